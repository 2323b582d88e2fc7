"""How often noise alone shuts a modality down: the training and the held-out loss have the same mean at every check.

The loss starts at 2 and gains ``gain (1 - exp(-t / 20))`` over checks ``t``; a check's training loss has a
standard deviation of 0.03 around it, its held-out loss, one batch, of 0.1.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np

from bench.guard._simulate import CONFIDENCES, TIME, Estimates

GAINS = (0.0, 0.02, 0.05, 0.1, 0.2, 0.5, 1.3)
WARM_UPS = (10, 0)
RUN = 100  # checks
DEVIATIONS = 0.03, 0.1  # of a check's training and held-out loss


def null(repetitions: int, seed: int = 0) -> Iterator[dict[str, Any]]:
    """Share of the runs in which the factor was below a half at some check, by gain, warm-up and confidence."""
    for gain in GAINS:
        rng, estimates = np.random.default_rng(seed), Estimates(repetitions)
        lowest = {(warm_up, z): np.ones(repetitions) for warm_up in WARM_UPS for z in CONFIDENCES}
        for check in range(RUN):
            mean = 2 - gain * (1 - float(np.exp(-check / TIME)))
            train, held_out = (rng.normal(mean, deviation, repetitions) for deviation in DEVIATIONS)
            estimates.observe(train, held_out)
            for (warm_up, z), least in lowest.items():
                np.minimum(least, estimates.factors(z, warm_up), out=least)
        for (warm_up, z), least in lowest.items():
            yield {"gain": gain, "warm_up": warm_up, "confidence": z, "below": float((least < 0.5).mean())}
