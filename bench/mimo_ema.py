"""MIMO on the batch's losses and on their running means: ``python -m bench.mimo_ema``, ten minutes.

The recipe of the accuracy study: its model, its budget, the checkpoint chosen on validation. ``wiki`` and ``mfeat`` are
read from ``$BALANCED_GRAD_DATA``. Test accuracy, mean and standard deviation over the seeds.
"""

import balanced_grad as bg
from bench._variants import compare

if __name__ == "__main__":
    compare({"MIMO()": lambda _: bg.MIMO(), "MIMO(ema=0.9)": lambda _: bg.MIMO(ema=0.9)}, __doc__)
