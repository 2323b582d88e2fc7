"""The demo: what balancing does to a real late-fusion model, in a minute on a laptop.

``balanced-grad demo`` trains one small network per method and seed, all with the same initial weights, batch
order and budget, and compares

* ``uni-modal``: every encoder alone with its own head, the yardstick; its fused prediction is the mean of the
  heads' probabilities (an ensemble of networks that never met);
* ``joint``: the loss of the fused head only, what most people train;
* the balancers: joint and uni-modal losses together, weighed by ``Uniform``, ``MIMO`` and ``MinNorm`` with
  their default settings.

What is measured, always after the last epoch (nothing is selected, so nothing is tuned on test items):

* test accuracy of the fused prediction and of each uni-modal head. Joint training has no uni-modal heads:
  there they learn from detached features and so watch the encoders without touching them;
* the probe: accuracy of a logistic regression on the frozen features of an encoder, and the *gap* to the
  encoder of the same seed trained alone. Below zero the encoder is under-optimised;
* time per step, and *subroutine time*: from the end of the forward pass (all logits computed) to the final
  ``.grad``, minus the same for joint training; losses, balancer and backward are in it. All methods take
  turns within one loop, and the figures are medians over its steps.
"""
