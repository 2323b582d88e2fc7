"""The rows of the ablation: one method, ``bg.Uniform()``, and what steers it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

import balanced_grad as bg
from balanced_grad.demo._model import LateFusion
from bench.accuracy._methods import ALONE, BASELINE, Method, encoders
from bench.guard._signals import Agreement, Blending, Check, Cosine, Credit, Marginal, Signal

HeldOutLosses = Callable[[], dict[str, Tensor]]
Make = Callable[[LateFusion, HeldOutLosses, int], bg.Balancer]


class Guarded(bg.Uniform):
    """The plain sum, steered by a signal that looks every so many steps, ahead of the step."""

    def __init__(self, signal: Signal, model: LateFusion, held_out: HeldOutLosses, every: int) -> None:
        super().__init__()
        self.signal, self.held_out, self.every = signal, held_out, every
        self.parameters_of = {name: list(encoder.parameters()) for name, encoder in encoders(model).items()}
        self.steps = 0

    def forward(self, losses: Mapping[str, Tensor | None], features: Any = None, **options: Any) -> Tensor:
        if self.steps % self.every == 0:
            self.signal.check(Check(self.parameters_of, losses, self.held_out()))
            self.factors |= tensors(self.signal.factors)  # a guard around this one may have its own
        self.steps += 1
        return super().forward(losses, features, **options)

    def update_scales(self) -> Mapping[str, Tensor]:
        return tensors(self.signal.scales)


def tensors(values: Mapping[str, float]) -> dict[str, Tensor]:
    return {name: torch.tensor(x) for name, x in values.items()}


@dataclass(frozen=True)
class Candidate:
    """A row.

    Attributes:
        make: builds the balancer; not called where there is a ``method``.
        holds_out: whether the guard's items are kept out of training.
        method: one of the study's, trained as it is.
    """

    make: Make = lambda *_: bg.Uniform()
    holds_out: bool = True
    method: Method | None = None


def steered(signal: Callable[[], Signal]) -> Candidate:
    return Candidate(lambda model, held_out, every: Guarded(signal(), model, held_out, every))


def guard(**options: Any) -> Candidate:
    """The library's, around the plain sum."""
    return Candidate(lambda _, held_out, every: bg.HeldOut(bg.Uniform(), held_out, every=every, **options))


def credit_and_transfer(model: LateFusion, held_out: HeldOutLosses, every: int) -> bg.Balancer:
    return bg.HeldOut(Guarded(Credit(), model, held_out, every), held_out, every=every)


ALONE_ROW = "uni-modal"
CANDIDATES = {
    ALONE_ROW: Candidate(method=ALONE, holds_out=False),
    "joint only": Candidate(method=BASELINE, holds_out=False),
    "none, all items": Candidate(holds_out=False),
    "none, 85 % of the items": Candidate(),
    "transfer": guard(),
    "transfer, no slack": guard(confidence=0.0),
    "transfer, encoders": guard(target="encoder"),
    "gradient blending": steered(Blending),
    "cosine": steered(Cosine),
    "agreement": steered(Agreement),
    "marginal transfer": steered(Marginal),
    "credit": steered(Credit),
    "credit + transfer": Candidate(credit_and_transfer),
}
