from typing import Literal, get_args

import torch
from torch import Tensor

from balanced_grad.balancer import Balancer, Level, Params, Problem, Weighting
from balanced_grad.solvers import min_norm

Normalize = Literal["none", "l2", "loss", "loss+"]
Rescale = Literal["none", "sum", "mean", "cap"]


class MinNorm(Balancer):
    r"""The shortest convex combination of the per-loss gradients (multiple-gradient descent, MGDA).

    .. math:: \min_{w \ge 0,\, \sum_k w_k = 1} \; \Big\| \sum_k w_k g_k \Big\|^2 = w^\top G w

    The result is a common descent direction: no loss increases to first order, or it is zero, where no such
    direction exists. Solved exactly, in closed form for up to three losses. The Gramian is taken over the
    parameters where two or more losses meet; the weight of a loss also scales its gradient elsewhere. A loss
    that meets no other one, or whose gradient there is exactly zero, takes no part and keeps weight 1.

    The raw minimum-norm point needs a policy for its length and for unequal gradients: with norms 1 : 10 at
    120 degrees it points along the smaller gradient (cosine 0.82 against 0.08) and, even with its weights
    doubled to sum to 2 as those of the plain sum do, has 17 % of the sum's length, which starves training.

    Args:
        normalize: divide each gradient by a positive number before the problem is solved: ``"l2"`` its norm,
            ``"loss"`` its loss, ``"loss+"`` their product (the choices of Sener & Koltun's code). The weights
            of the original gradients are renormalised to sum 1. Default ``"none"``, as published.
        rescale: length of the resulting direction over the shared parameters: ``"none"`` as it comes (weights
            sum to 1), ``"sum"`` that of the plain sum of the gradients (as MMPareto), ``"mean"`` that of their
            mean, ``"cap"`` towards that of the sum but with weights that sum to at most K, as in the sum
            itself, so that a nearly stationary point is not blown up (ours, default).
        params, level, include_exclusive: see :class:`Balancer`.

    Source: Desideri, "Multiple-gradient descent algorithm" (2012); Sener & Koltun, "Multi-task learning as
    multi-objective optimization" (2018). The policies for length are ours where not said otherwise.

    Example:
        >>> import torch
        >>> import balanced_grad as bg
        >>> w = torch.zeros(2, requires_grad=True)
        >>> balancer = bg.MinNorm(rescale="none")
        >>> loss = balancer({"joint": 2 * w[0] + w[1], "audio": -w[0] + w[1]})
        >>> loss.backward()
        >>> balancer.last.weights, w.grad
        (tensor([0.3333, 0.6667], dtype=torch.float64), tensor([0., 1.]))
    """

    needs_gramian = True

    def __init__(
        self,
        *,
        normalize: Normalize = "none",
        rescale: Rescale = "cap",
        params: Params | None = None,
        level: Level = "parameters",
        include_exclusive: bool = False,
    ) -> None:
        super().__init__(params=params, level=level, include_exclusive=include_exclusive)
        if normalize not in get_args(Normalize):
            raise ValueError(f"normalize={normalize!r}: choose one of {get_args(Normalize)}")
        if rescale not in get_args(Rescale):
            raise ValueError(f"rescale={rescale!r}: choose one of {get_args(Rescale)}")
        self.normalize = normalize
        self.rescale = rescale

    def weigh(self, problem: Problem) -> Weighting:
        """Minimum-norm weights of the losses that meet, 1 for the others."""
        assert problem.gramian is not None
        gramian = problem.gramian
        diagonal = gramian.diagonal()
        active = ~(diagonal == 0)  # true for NaN, which must reach the weights
        scale = self._scale(diagonal, problem.losses.to(gramian))
        weights = min_norm(gramian / torch.outer(scale, scale), active=active).weights / scale
        weights = weights / weights.sum().clamp_min(torch.finfo(weights.dtype).tiny)
        return Weighting(torch.where(active, weights * self._length(gramian, weights, active), 1.0))

    def _scale(self, diagonal: Tensor, losses: Tensor) -> Tensor:
        """What each gradient is divided by; 1 where that would be zero."""
        scale = torch.ones_like(diagonal)
        if self.normalize in ("l2", "loss+"):
            scale = scale * diagonal.sqrt()
        if self.normalize in ("loss", "loss+"):
            scale = scale * losses.abs()
        return torch.where(scale == 0, torch.ones_like(scale), scale)

    def _length(self, gramian: Tensor, weights: Tensor, active: Tensor) -> Tensor:
        """Factor on the minimum-norm direction, from norms that the Gramian already holds."""
        if self.rescale == "none":
            return torch.ones_like(weights[0])
        count = active.sum()
        short, plain = _norm(gramian, weights), _norm(gramian, active.to(gramian))
        factor = plain / short
        # Stationary up to rounding: there is no direction to lengthen.
        stationary = short <= 1e-7 * gramian.diagonal().amax().sqrt()
        if self.rescale == "mean":
            factor = factor / count
        if self.rescale == "cap":
            factor = torch.minimum(factor, count.to(factor))
        return torch.where(stationary, torch.ones_like(factor), factor)

    def extra_repr(self) -> str:
        """Settings."""
        return f"normalize={self.normalize!r}, rescale={self.rescale!r}" + self._base_repr()


def _norm(gramian: Tensor, weights: Tensor) -> Tensor:
    return torch.dot(weights, gramian @ weights).clamp_min(0).sqrt()
