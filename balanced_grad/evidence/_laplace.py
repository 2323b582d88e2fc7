from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from balanced_grad.choices import check_choice
from balanced_grad.evidence._curvature import laplace_variance, softmax_curvature
from balanced_grad.evidence._estimators import Moments, State, Variance, flat, inputs_of
from balanced_grad.evidence._history import typical_variance
from balanced_grad.evidence._linear import sum_of_squares, widened
from balanced_grad.records import LinearCall

Curvature = Literal["fisher", "softmax"]
_PRIOR = 1e-3  # of a typical N h


@dataclass(frozen=True)
class Laplace(Variance):
    """Variance of the gradient under a diagonal Laplace posterior of a linear layer.

        θ ~ N(θ*, s²),   s² = 1 / (N h + δ)

    Either in closed form, ``v = h² s²`` (see ``laplace_variance``), or from Monte-Carlo draws of ``θ`` in antithetic
    pairs: the gradient at ``θ* ± s ξ`` on the inputs that the layer saw in this batch, matched to a Gaussian by its
    mean and variance. Nothing but the layer is run again, so dropout and batch norm stay as they were.

    Args:
        curvature: ``h``. ``"fisher"`` (default): the empirical Fisher information, for any loss. ``"softmax"``: the
            exact diagonal of the Hessian, where the layer's outputs are the logits of a mean cross-entropy; checked.
        num_data: ``N``, the number of items that the posterior is of, for the paper the training set's; default: the
            batch's, which makes the posterior that much wider. It is a common factor of all variances, which ``BOGC``
            divides out, and so matters for draws only: how far they go.
        prior_precision: ``δ > 0``. Default (ours): a thousandth of the layer's typical ``N h`` (median over its
            positive entries), so that the unit of the loss changes nothing and ``v`` is near ``h / N``. A number has
            the unit of ``N h``, which is that of the loss for softmax curvature and its square for Fisher's: give it
            for losses of a known unit; where it is large, ``v`` is near ``h² / δ``.
        draws: number of Monte-Carlo draws, even; needs ``curvature="softmax"``. 0 (default): the closed form.

    Raises:
        ValueError: for a value out of range, draws without softmax curvature, or a loss that is no mean
            cross-entropy of the layer's outputs.

    Source: that a Laplace posterior of each modality's last layer and Monte-Carlo gradients are used is Guo et al.
    (2025); the curvature, the constants and the closed form are our reading.
    """

    curvature: Curvature = "fisher"
    num_data: float | None = None
    prior_precision: float | None = None
    draws: int = 0
    linear: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_choice("curvature", self.curvature, Curvature)
        if self.draws < 0 or self.draws % 2:
            raise ValueError(f"draws={self.draws!r}: give an even number (antithetic pairs), or 0 for the closed form")
        if self.draws and self.curvature != "softmax":
            raise ValueError(
                f"draws={self.draws} with curvature='fisher': only for a softmax cross-entropy can the gradient be "
                "evaluated again from the layer alone; write curvature='softmax', or draws=0"
            )
        size = 1.0 if self.num_data is None else self.num_data
        prior = 1.0 if self.prior_precision is None else self.prior_precision
        laplace_variance(torch.zeros((), device="cpu"), size, prior)  # refuses values out of range

    @property
    def random(self) -> bool:
        """Whether it draws."""
        return self.draws > 0

    def moments(
        self,
        gradients: Tensor,
        calls: Sequence[LinearCall],
        shapes: Sequence[torch.Size],
        state: State,
        generator: torch.Generator | None = None,
    ) -> Moments:
        """See ``Variance.moments``."""
        if self.curvature == "softmax":
            if gradients.is_cpu or "checked" not in state:  # elsewhere it waits for the device: once
                for call in calls:
                    _check_cross_entropy(call)
            state = {"checked": gradients.new_ones(len(calls), 1)}
        curvature = [[self._curvature(call, x) for x in inputs_of(call, shapes)] for call in calls]
        if self.draws == 0:
            rows = [
                (h := flat(parts)).square() / self._precision(h, call)
                for call, parts in zip(calls, curvature, strict=True)
            ]
            return Moments(gradients, torch.stack(rows), state)
        pairs = [
            self._draw(call, own, inputs_of(call, shapes), generator)
            for call, own in zip(calls, curvature, strict=True)
        ]
        shift, variance = (torch.stack(rows) for rows in zip(*pairs, strict=True))
        return Moments(gradients + shift, variance, state)

    def _size(self, call: LinearCall) -> float:
        return self.num_data or len(call.gradients)

    def _precision(self, h: Tensor, call: LinearCall) -> Tensor:
        """``N h + δ`` of one layer's curvature ``(D,)``."""
        size = self._size(call)
        prior = _PRIOR * size * typical_variance(h[None]) if self.prior_precision is None else self.prior_precision
        return size * h + prior

    def _curvature(self, call: LinearCall, inputs: Tensor) -> Tensor:
        if self.curvature == "fisher":
            return sum_of_squares(call.gradients, inputs) * len(call.gradients)
        assert call.outputs is not None
        return softmax_curvature(call.outputs.flatten(0, 1).double(), inputs.flatten(0, 1))

    def _draw(
        self,
        call: LinearCall,
        curvature: Sequence[Tensor],
        inputs: Sequence[Tensor],
        generator: torch.Generator | None,
    ) -> tuple[Tensor, Tensor]:
        """Shift of the mean gradient, and the variance, over draws from the posterior."""
        assert call.outputs is not None
        logits = widened(call.outputs.flatten(0, 1))
        columns = [widened(x.flatten(0, 1)) for x in inputs]
        p = logits.softmax(-1)
        row = self._precision(flat(curvature), call).rsqrt().to(logits.dtype)
        sizes = [h.numel() for h in curvature]
        spread = [s.view_as(h) for s, h in zip(torch.split(row, sizes), curvature, strict=True)]
        size = sum(s.numel() for s in spread)
        shift, square = logits.new_zeros(size), logits.new_zeros(size)
        for _ in range(self.draws // 2):
            drawn = [s * torch.randn(s.shape, generator=generator, dtype=s.dtype, device=s.device) for s in spread]
            step = sum(x @ d.T for x, d in zip(columns, drawn, strict=True))
            ahead, behind = ((logits + sign * step).softmax(-1) - p for sign in (1, -1))
            sides = [flat(side.T @ x / len(p) for x in columns) for side in (ahead, behind)]
            shift = shift + (sides[0] + sides[1]) / self.draws
            square = square + ((sides[0] - sides[1]) / 2).square() / (self.draws // 2)
        return shift, square


def _check_cross_entropy(call: LinearCall) -> None:
    """Refuse a loss whose gradient at the outputs is not ``(softmax - targets) / N`` for targets that sum to 1."""
    if call.outputs is not None:
        gradients = widened(call.gradients.flatten(0, 1))
        targets = widened(call.outputs.flatten(0, 1)).softmax(-1) - len(gradients) * gradients
        tolerance = 0.05 if call.gradients.itemsize < 4 else 1e-3
        fits = (targets > -tolerance).all() & ((targets.sum(-1) - 1).abs() < tolerance).all()
        if fits or not gradients.isfinite().all():
            return
    raise ValueError(
        "curvature='softmax' needs a loss that is the mean cross-entropy of the outputs of the block's layer, and one "
        "of them is not (another loss, class weights, an activation after the layer, an encoder's layer); write "
        "curvature='fisher'"
    )
