from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

import torch
from torch import Tensor

from balanced_grad.evidence._curvature import laplace_variance, softmax_curvature
from balanced_grad.evidence._estimators import Moments, State, Variance, flat, inputs_of
from balanced_grad.evidence._linear import fisher_curvature, wide
from balanced_grad.records import LinearCall

Curvature = Literal["fisher", "softmax"]


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
        num_data: ``N``, the size of the training set; default: of the batch.
        prior_precision: ``δ > 0``. Default 1 (ours).
        draws: number of Monte-Carlo draws, even; needs ``curvature="softmax"``. 0 (default): the closed form.

    Raises:
        ValueError: for a value out of range, draws without softmax curvature, or a loss that is no mean
            cross-entropy of the layer's outputs.

    Source: that a Laplace posterior of each modality's last layer and Monte-Carlo gradients are used is Guo et al.
    (2025); the curvature, the constants and the closed form are our reading.
    """

    curvature: Curvature = "fisher"
    num_data: float | None = None
    prior_precision: float = 1.0
    draws: int = 0
    linear: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.curvature not in get_args(Curvature):
            raise ValueError(f"curvature={self.curvature!r}: choose one of {get_args(Curvature)}")
        if self.draws < 0 or self.draws % 2:
            raise ValueError(f"draws={self.draws!r}: give an even number (antithetic pairs), or 0 for the closed form")
        if self.draws and self.curvature != "softmax":
            raise ValueError(
                f"draws={self.draws} with curvature='fisher': only for a softmax cross-entropy can the gradient be "
                "evaluated again from the layer alone; write curvature='softmax', or draws=0"
            )
        size = 1.0 if self.num_data is None else self.num_data
        laplace_variance(torch.zeros((), device="cpu"), size, self.prior_precision)  # refuses values out of range

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
                flat(laplace_variance(h, self._size(call), self.prior_precision) for h in own)
                for call, own in zip(calls, curvature, strict=True)
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

    def _curvature(self, call: LinearCall, inputs: Tensor) -> Tensor:
        if self.curvature == "fisher":
            return fisher_curvature(call.gradients, inputs)
        assert call.outputs is not None
        return softmax_curvature(call.outputs.flatten(0, 1), inputs.flatten(0, 1))

    def _draw(
        self,
        call: LinearCall,
        curvature: Sequence[Tensor],
        inputs: Sequence[Tensor],
        generator: torch.Generator | None,
    ) -> tuple[Tensor, Tensor]:
        """Shift of the mean gradient, and the variance, over draws from the posterior."""
        assert call.outputs is not None
        logits = wide(call.outputs.flatten(0, 1))
        columns = [wide(x.flatten(0, 1)) for x in inputs]
        p = logits.softmax(-1)
        spread = [(self._size(call) * h + self.prior_precision).rsqrt() for h in curvature]
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
        gradients = wide(call.gradients.flatten(0, 1))
        targets = wide(call.outputs.flatten(0, 1)).softmax(-1) - len(gradients) * gradients
        tolerance = 0.05 if call.gradients.itemsize < 4 else 1e-3
        fits = (targets > -tolerance).all() & ((targets.sum(-1) - 1).abs() < tolerance).all()
        if fits or not gradients.isfinite().all():
            return
    raise ValueError(
        "curvature='softmax' needs a loss that is the mean cross-entropy of the outputs of the block's layer, and one "
        "of them is not (another loss, class weights, an activation after the layer, an encoder's layer); write "
        "curvature='fisher'"
    )
