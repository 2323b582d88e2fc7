"""Where the variance of a gradient comes from: one interface, several estimators."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from balanced_grad.evidence._linear import item_variance
from balanced_grad.records import LinearCall

State = Mapping[str, Tensor]


class Moments(NamedTuple):
    """What an estimator makes of one step, a row per loss.

    Attributes:
        mean: ``(R, D)``.
        variance: ``(R, D)``, float32 or float64; NaN in the rows of which nothing is known at this step.
        state: the estimator's own statistics after this step, ``(R, ...)`` each.
    """

    mean: Tensor
    variance: Tensor
    state: State


class Variance(ABC):
    """Base of the estimators: the mean and the variance of each loss's gradient at one layer, seen as random.

    ``linear`` tells whether the estimator reads what went through linear layers (``calls``), or works with the
    gradients alone, of parameters of any kind.
    """

    linear: ClassVar[bool] = False

    @property
    def random(self) -> bool:
        """Whether it draws, and so needs a generator."""
        return False

    @abstractmethod
    def moments(
        self,
        gradients: Tensor,
        calls: Sequence[LinearCall],
        shapes: Sequence[torch.Size],
        state: State,
        generator: torch.Generator | None = None,
    ) -> Moments:
        """Mean and variance ``(R, D)`` of this step.

        Args:
            gradients: ``(R, D)``, one row per loss; loss scale divided out, at least float32.
            calls: per row what went through the layer, for an estimator that is ``linear``.
            shapes: of the parameters whose gradients make up a row: a weight ``(C, F)``, a bias ``(C,)``.
            state: the ``state`` of the previous step's result for these rows; empty at first, zero for a new loss.
            generator: for estimators that draw.
        """


@dataclass(frozen=True)
class SampleVariance(Variance):
    """Variance of the mini-batch gradient over the items of the batch, exactly, for linear layers.

    See ``sample_variance``. Costs two products per loss and layer, in float64, and no backward. With the empirical
    Fisher information as curvature the Laplace variance is near ``h / N`` where ``N h`` is large beside the prior
    precision, as by default; this one is ``(h - g²) / (B - 1)`` for a batch of ``B``: the same up to the squared mean
    and a factor that ``BOGC`` divides out.
    """

    linear: ClassVar[bool] = True

    def moments(
        self,
        gradients: Tensor,
        calls: Sequence[LinearCall],
        shapes: Sequence[torch.Size],
        state: State,
        generator: torch.Generator | None = None,
    ) -> Moments:
        """See ``Variance.moments``."""
        parts = [item_variance(call.gradients, x).reshape(-1) for call in calls for x in inputs_of(call, shapes)]
        return Moments(gradients, torch.cat(parts).view(len(calls), -1), {})


@dataclass(frozen=True)
class StepVariance(Variance):
    """Squared deviation from a running mean of the previous steps' gradients: free, for parameters of any kind.

        v = (g - m)²,   m ← β m + (1 - β) g   (bias corrected)

    The change of the gradient as training goes on counts as variance too. Unknown at a loss's first step. ``BOGC``
    keeps mean and averaged variance by ``kernels.moments_update``, which takes the deviation from both means.

    Args:
        decay: ``β`` of the running mean, and in ``BOGC`` of the variance. Default 0.9 (ours, Adam's).
    """

    decay: float = 0.9

    def __post_init__(self) -> None:
        if not 0 < self.decay < 1:
            raise ValueError(f"decay={self.decay!r}: give a number between 0 and 1")

    def moments(
        self,
        gradients: Tensor,
        calls: Sequence[LinearCall],
        shapes: Sequence[torch.Size],
        state: State,
        generator: torch.Generator | None = None,
    ) -> Moments:
        """See ``Variance.moments``."""
        total = state.get("mean", torch.zeros_like(gradients))
        count = state.get("count", gradients.new_zeros(len(gradients), 1))
        deviation = (gradients - total / count).square()  # 0 / 0 at the first step: NaN, unknown
        after = {
            "mean": self.decay * total + (1 - self.decay) * gradients,
            "count": self.decay * count + (1 - self.decay),
        }
        return Moments(gradients, deviation, after)


@dataclass(frozen=True)
class MicroBatchVariance(Variance):
    """Variance between the micro-batches of one accumulation window, for parameters of any kind.

        v = Σ_k (g_k - ḡ)² / (K - 1)

    over the ``K`` calls between two optimizer steps, during which the parameters stay where they are; known at
    the last call of a window and used until the next window's end.

    Args:
        count: ``K ≥ 2``, the number of micro-batches in a window.
    """

    count: int

    def __post_init__(self) -> None:
        if self.count < 2:
            raise ValueError(f"count={self.count!r}: a variance needs at least 2 micro-batches per optimizer step")

    def moments(
        self,
        gradients: Tensor,
        calls: Sequence[LinearCall],
        shapes: Sequence[torch.Size],
        state: State,
        generator: torch.Generator | None = None,
    ) -> Moments:
        """See ``Variance.moments``."""
        zero = torch.zeros_like(gradients)
        seen = state.get("seen", gradients.new_zeros(len(gradients), 1)) + 1
        before, squares = state.get("mean", zero), state.get("squares", zero)
        mean = before + (gradients - before) / seen
        squares = squares + (gradients - before) * (gradients - mean)
        last = seen == self.count
        variance = torch.where(last, squares / (self.count - 1), torch.full_like(squares, torch.nan))
        after = {"seen": seen, "mean": mean, "squares": squares}
        return Moments(gradients, variance, {k: torch.where(last, torch.zeros_like(v), v) for k, v in after.items()})


def inputs_of(call: LinearCall, shapes: Sequence[torch.Size]) -> list[Tensor]:
    """What each parameter of a linear layer is multiplied with: the inputs, or ones for its bias."""
    return [call.inputs if len(shape) > 1 else torch.ones_like(call.inputs[..., :1]) for shape in shapes]


def flat(parts: object) -> Tensor:
    """Parameters' entries as one row ``(D,)``."""
    return torch.cat([part.reshape(-1) for part in parts])  # type: ignore[attr-defined]
