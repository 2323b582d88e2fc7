"""MinNorm solved in every step and in one of several: ``python -m bench.every``, a quarter of an hour.

The recipe of the accuracy study: its model, its budget, the checkpoint chosen on validation. ``wiki`` and ``mfeat`` are
read from ``$BALANCED_GRAD_DATA``. Test accuracy, mean and standard deviation over the seeds.
"""

import balanced_grad as bg
from bench._variants import compare

PERIODS = (1, 4, 16)

if __name__ == "__main__":
    variants = {f"MinNorm(every={every})": lambda _, every=every: bg.MinNorm(every=every) for every in PERIODS}
    compare({"Uniform()": lambda _: bg.Uniform(), **variants}, __doc__)
