"""Does balancing pay? Every method and baseline on real data and on generated tasks whose truth is known.

    BALANCED_GRAD_DATA=DIR python -m bench.accuracy --dataset mfeat wiki avmnist:clean,noisy --seeds 5 --trials 8
    python -m bench.accuracy --dataset synergy --methods joint uniform MIMO --optimizer adamw
    python -m bench.accuracy --dataset leaf cells --method my_project.methods:MyMethod
    BALANCED_GRAD_DATA=DIR python -m bench.accuracy --dataset crema-d --network resnet18 --seeds 5
    python -m bench.accuracy report
    python -m bench.accuracy leaderboard

One JSON line per run goes to ``bench/results/``; what is found there is not run again, so an interrupted study goes
on where it stopped. The protocol, the same for every method and every baseline:

* Per seed, the same network (``--network``, see ``bench.accuracy._recipes``), initial weights, batch order and
  number of epochs.
* Hyper-parameters: ``--trials`` settings per method, the first of them the defaults, the others drawn from its space;
  trial ``k`` has the same learning rate and weight decay for all methods. Trials run on seeds of their own
  (``--tuning-seeds``), the one best on validation items in the mean is used for all seeds.
* The checkpoint is the epoch with the best validation accuracy (ties: the lower negative log-likelihood).
* Three prediction rules for every run: the method's own (as a rule its fused head), the plain product of fused and
  uni-modal heads, and that product with one weight per head, fitted on validation items.
* Where items belong together, as those of one person, intervals are over people, and validation is judged by them.
  ``watch:folds`` is ``watch`` with other people for each seed, at the defaults: whoever validates in one fold is tested
  in another, so that no choice for all would be clean.
* Where validation items cannot be trusted (``mosi``, whose features were made with their labels), nothing is chosen on
  them: defaults and the last epoch.
"""
