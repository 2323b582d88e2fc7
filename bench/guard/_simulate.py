"""How often the estimate is wrong, on learning curves whose true transfer is known.

The loss starts at 1. On training items its mean falls as ``T(t) = 1 - G (1 - exp(-t / 20))`` over checks ``t``; on
unseen items as ``H(t) = 1 - ρ (1 - T(t))``. The loss of item ``i`` is ``1 + a(t) (u_i - 1)`` times the mean, with ``u``
from the exponential distribution. So ``a`` is the items' standard deviation over their mean: it grows from 0.05 to 1,
``a(t) = 0.05 + 0.95 (1 - exp(-t / 20))``, much as on ``wiki``, where it was 0.05 at the start and 0.6 to 1.5 later.

A check sees the training items of ten steps, and one batch drawn from the guard's items, whose ``u_i`` are drawn once:
their own sampling error stays.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

import balanced_grad as bg
from balanced_grad.demo._train import BATCH
from balanced_grad.guard._transfer import Track

Array = npt.NDArray[np.float64]
Result = dict[str, Any]
SIZES = (16, 32, 64, 128, 256, 1024)  # of the guard's items
CONFIDENCES = (0.0, 1.0, 2.0)
CHECKS = (20, 50, 100)
STEPS = 10  # between two checks: the default
TIME = 20.0  # checks in which the training loss does 63 % of its fall
GROUPS = (4, 16, 64)
SHIFTS = (0.0, 0.2, 0.4, 0.8)
ITEMS = 256  # of the guard, where groups are simulated


@dataclass(frozen=True)
class Curve:
    """A loss: what it gains in training, and the share of that which carries over."""

    gain: float
    transfer: float

    def train(self, check: int) -> float:
        """Mean training loss."""
        return 1 - self.gain * (1 - float(np.exp(-check / TIME)))

    def unseen(self, check: int, lost: Any = 0.0) -> Any:
        """Mean loss on unseen items; ``lost`` is the part of the transfer that these items do not get."""
        return 1 - (self.transfer - lost) * (1 - self.train(check))


CURVES = {
    "generalises (0.8)": Curve(0.8, 0.8),
    "generalises (0.8), gains little": Curve(0.3, 0.8),
    "memorises (0)": Curve(0.8, 0.0),
    "gets worse (-0.1)": Curve(0.8, -0.1),
    "gets far worse (-7), gains little": Curve(0.3, -7.0),
}


def spread(check: int) -> float:
    """Standard deviation of the item losses over their mean."""
    return 0.05 + 0.95 * (1 - float(np.exp(-check / TIME)))


def training(curve: Curve, check: int, repetitions: int, rng: np.random.Generator) -> Array:
    """Mean loss of the items of ten steps, all different: ``(R,)``."""
    count = STEPS * BATCH
    noise = rng.standard_gamma(count, repetitions) / count - 1
    return curve.train(check) * (1 + spread(check) * noise)


def batch(items: Array, rng: np.random.Generator) -> npt.NDArray[np.int64]:
    """Indices ``(R, BATCH)`` into the guard's items ``(R, n)``."""
    return rng.integers(items.shape[1], size=(len(items), BATCH))


class Estimates:
    """The library's estimate, with its defaults, of many repetitions at once: all it does is elementwise."""

    def __init__(self, repetitions: int) -> None:
        self.settings = bg.HeldOut(bg.Uniform()).transfer
        self.known = Track(*torch.zeros(len(Track._fields), repetitions, dtype=torch.float64))

    def observe(self, train: Array, held_out: Array) -> None:
        """One check of each repetition, ``(R,)`` losses."""
        self.known = self.known.after(torch.from_numpy(train), torch.from_numpy(held_out), self.settings.decay)

    def factors(self, confidence: float | None = None, warm_up: int | None = None) -> Array:
        """``(R,)``, with other settings than the defaults if they are given."""
        own = self.settings
        z = own.confidence if confidence is None else confidence
        return np.asarray(self.known.ratio(own.decay, z, own.warm_up if warm_up is None else warm_up))


def sizes(repetitions: int, sizes: tuple[int, ...] = SIZES, seed: int = 0) -> Iterator[Result]:
    """Factors by size of the split, curve, confidence and check."""
    rng = np.random.default_rng(seed)
    for size in sizes:
        for name, curve in CURVES.items():
            estimates, u = Estimates(repetitions), rng.standard_exponential((repetitions, size))
            for check in range(max(CHECKS)):
                drawn = np.take_along_axis(u, batch(u, rng), 1).mean(1)
                held_out = curve.unseen(check) * (1 + spread(check) * (drawn - 1))
                estimates.observe(training(curve, check, repetitions, rng), held_out)
                if check + 1 in CHECKS:
                    for z in CONFIDENCES:
                        about = {"items": size, "curve": name, "confidence": z, "check": check + 1}
                        yield about | summary(estimates.factors(z))


def shifts(repetitions: int, seed: int = 0) -> Iterator[Result]:
    """Factors after 100 checks by kind of split, where new groups get less of the gain.

    On items of the groups it was trained on the loss transfers 0.8; a new group ``g`` gets ``0.8 - shift v_g``, ``v``
    of mean 1 and standard deviation 0.5. A split by items has no new group.
    """
    rng = np.random.default_rng(seed)
    curve, items = CURVES["generalises (0.8)"], np.arange(ITEMS)
    for shift in SHIFTS:
        for groups in (0, *GROUPS):
            estimates, u = Estimates(repetitions), rng.standard_exponential((repetitions, ITEMS))
            lost = np.zeros_like(u)
            if groups:
                lost = shift * rng.gamma(4.0, 0.25, (repetitions, groups))[:, items % groups]
            for check in range(max(CHECKS)):
                rows = batch(u, rng)
                noise = 1 + spread(check) * (np.take_along_axis(u, rows, 1) - 1)
                held_out = (curve.unseen(check, np.take_along_axis(lost, rows, 1)) * noise).mean(1)
                estimates.observe(training(curve, check, repetitions, rng), held_out)
            true = curve.transfer - shift
            yield {"shift": shift, "true": true, "groups": groups} | summary(estimates.factors())


def summary(factors: Array) -> dict[str, float]:
    """Mean, deviation, and how often a threshold of a half calls for a shutdown."""
    return {"mean": float(factors.mean()), "deviation": float(factors.std()), "below": float((factors < 0.5).mean())}
