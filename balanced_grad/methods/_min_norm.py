import math
from collections.abc import Mapping
from typing import Literal

import torch

from balanced_grad import arrays
from balanced_grad.arrays import Array
from balanced_grad.balancer import Balancer
from balanced_grad.capture import JOINT, Groups, Params
from balanced_grad.choices import check_choice
from balanced_grad.methods._bounds import Bounds, Interval
from balanced_grad.methods._lengths import growth, of_unit_size, squares, taking_part
from balanced_grad.records import Problem, Weighting
from balanced_grad.solvers import min_norm
from balanced_grad.source import Level
from balanced_grad.tokens import Tokens

Normalize = Literal["none", "l2", "loss", "loss+"]
Rescale = Literal["none", "sum", "mean", "cap"]
_TINY = torch.finfo(torch.float64).tiny
ZERO = 1e-6  # of the largest loss: smaller ones count as this, so that the weights have their limit at 0


class MinNorm(Balancer):
    """The shortest convex combination of the per-loss gradients (multiple-gradient descent, MGDA).

        minimise |Σ_k w_k g_k|² = wᵀ G w   over   w ≥ 0, Σ_k w_k = 1

    The result is a common descent direction: no loss increases to first order, or it is zero, where no such
    direction exists. Under the default policy the weight of the joint loss is then raised to ``joint_floor``, because
    what is trained for is its prediction. Solved exactly, in closed form for up to three losses. The Gramian is
    taken over the parameters where two or more losses meet; the weight of a loss also scales its gradient elsewhere.
    A loss that meets no other one, or whose gradient there is exactly zero, takes no part and keeps weight 1.

    The raw minimum-norm point needs a policy for its length and for unequal gradients: with norms 1 : 10 at
    120 degrees it points along the smaller gradient (cosine 0.82 against 0.08) and, even with its weights
    doubled to sum to 2 as those of the plain sum do, has 17 % of the sum's length, which starves training.

    Args:
        normalize: divide each gradient by a positive number before the problem is solved: ``"l2"`` its norm,
            ``"loss"`` its loss, ``"loss+"`` their product (the choices of Sener & Koltun's code). The weights
            of the original gradients are renormalised to sum 1. Default ``"l2"`` (ours): on validation over four
            data sets it and ``"loss"`` come out best, and it asks nothing of the losses. Under ``"none"``, as
            published, the joint loss has the shortest gradient once it is fitted and takes all the weight.
            Negative losses count by their magnitude, and a loss of zero as the limit: it takes next to no weight,
            unless the others' gradients oppose it.
        rescale: length of the resulting direction over the shared parameters: ``"none"`` as it comes (weights
            sum to 1), ``"sum"`` that of the plain sum of the gradients (as MMPareto), ``"mean"`` that of their
            mean, ``"cap"`` towards that of the sum but with weights that sum to at most K, as in the sum
            itself, so that a nearly stationary point is not blown up (ours, default).
        joint_floor: least weight of the loss ``"joint"``, put in place after the problem is solved and its length
            set. None (default): 1, its weight in the plain sum, under ``rescale="cap"`` without ``bounds``, and
            otherwise 0, as in the sources. Without it, where only all
            modalities together tell the label (an XOR), the uni-modal losses, which nothing can lower, take the
            weight: half of the runs never leave chance (ours, measured on validation). It gives up common descent in
            the steps in which it acts.
        bounds: name -> least and largest share of the loss in the sum of all weights, inside the problem: the
            shortest direction among those that keep them, as ``{"joint": (0.3, 1)}``. ``rescale`` leaves the shares
            alone. Losses without bounds have (0, 1), and losses that take no part in a problem have no share. Where
            the largest shares of those that do sum to less than 1, they are raised in proportion.
        solver: method of ``balanced_grad.solvers.min_norm``; ``"auto"`` (default) is exact and the fastest,
            ``"cvxpy"`` and ``"scipy"`` are the references.
        groups: parameters that share a problem and its weights: ``"all"``, ``"reach"`` (one problem per encoder),
            ``"tensor"`` or a mapping; see ``Balancer``.
        params, level, include_exclusive, every: see ``Balancer``.

    Raises:
        ValueError: for an unknown policy, solver or group, a negative floor, bounds that no shares keep or that come
            with a floor, or a name in them that looks misspelt.

    Source: Désidéri, "Multiple-gradient descent algorithm" (2012); Sener & Koltun, "Multi-task learning as
    multi-objective optimization" (2018). The policies for length are ours where not said otherwise.

    Examples:
        >>> import torch
        >>> import balanced_grad as bg
        >>> w = torch.zeros(2, requires_grad=True)
        >>> balancer = bg.MinNorm(normalize="none", rescale="none")
        >>> loss = balancer({"joint": 2 * w[0] + w[1], "audio": -w[0] + w[1]})
        >>> loss.backward()
        >>> balancer.last.weights, w.grad
        (tensor([0.3333, 0.6667], dtype=torch.float64), tensor([0., 1.]))
    """

    needs = "gramian"

    def __init__(
        self,
        *,
        normalize: Normalize = "l2",
        rescale: Rescale = "cap",
        joint_floor: float | None = None,
        bounds: Mapping[str, Interval] | None = None,
        solver: str = "auto",
        groups: Groups = "all",
        params: Params | None = None,
        level: Level | Tokens = "parameters",
        include_exclusive: bool = False,
        every: int = 1,
    ) -> None:
        super().__init__(params=params, level=level, groups=groups, include_exclusive=include_exclusive, every=every)
        check_choice("normalize", normalize, Normalize)
        check_choice("rescale", rescale, Rescale)
        self.normalize = normalize
        min_norm(torch.ones(1, 1, device="cpu"), method=solver)  # names what is possible where the name is wrong
        if joint_floor is not None and not (math.isfinite(joint_floor) and joint_floor >= 0):
            raise ValueError(f"joint_floor={joint_floor!r}: give a finite number >= 0, or None for the default")
        if bounds and joint_floor:
            raise ValueError(
                f"joint_floor={joint_floor!r} with bounds={bounds!r}: it would break them; leave one out, and give the "
                "joint loss a least share as bounds={'joint': (0.3, 1)}"
            )
        self.rescale = rescale
        self.joint_floor = float(rescale == "cap" and not bounds) if joint_floor is None else joint_floor
        self._bounds = Bounds(bounds)
        self.bounds = self._bounds.intervals
        self.solver = solver

    @arrays.ignoring_errors
    def weigh(self, problem: Problem) -> Weighting:
        """Minimum-norm weights of the losses that meet, 1 for the others."""
        assert problem.gramian is not None
        gramian = of_unit_size(arrays.of(problem.gramian))  # a factor on all gradients changes no weight
        active = taking_part(gramian)
        divisor = self._divisor(squares(gramian), arrays.of(problem.losses.to(problem.gramian)), active)
        weights = self._solve(gramian, divisor, active, problem.names)
        weights = weights / arrays.at_least(arrays.total(weights), _TINY)
        weights = weights * self._length(gramian, weights, active)
        if self.joint_floor and JOINT in problem.names:
            joint = problem.names.index(JOINT)
            weights[..., joint] = arrays.at_least(weights[..., joint], self.joint_floor)
        return Weighting(arrays.tensor(arrays.where(active, weights, 1.0)))

    def _solve(self, gramian: Array, divisor: Array, active: Array, names: tuple[str, ...]) -> Array:
        """Weights of the shortest point, up to a factor: of the divided gradients' hull, or of what bounds leave of it.

        With bounds the shares reach over a smaller simplex or polytope; its corners, each a mixture of gradients over
        the same mixture of divisors, span the hull.
        """
        if not self.bounds:
            return self._shortest(gramian / divisor[..., None] / divisor[..., None, :], active) / divisor
        corners, there = map(arrays.of, self._bounds.corners(names, arrays.tensor(active)))
        size = corners @ divisor[..., None]
        corners = corners / arrays.where(there[..., None], size, 1.0)
        weights = self._shortest(corners @ gramian @ corners.swapaxes(-1, -2), there)
        return (weights[..., None, :] @ corners)[..., 0, :]

    def _shortest(self, gramian: Array, active: Array) -> Array:
        found = min_norm(arrays.tensor(gramian), method=self.solver, active=arrays.tensor(active))
        return arrays.of(found.weights)

    def _check_names(self, names: tuple[str, ...]) -> None:
        self._bounds.check_names(names, self.notices)

    def _divisor(self, diagonal: Array, losses: Array, active: Array) -> Array:
        """What each gradient is divided by, up to a common factor; 1 for those that take no part."""
        divisor = arrays.ones_like(diagonal)
        if self.normalize in ("l2", "loss+"):
            divisor = divisor * diagonal**0.5
        if self.normalize in ("loss", "loss+"):
            size = arrays.where(active, abs(losses), 0.0)
            largest = arrays.largest(size)
            divisor = divisor * arrays.at_least(size / arrays.where(largest == 0, 1.0, largest), ZERO)
        return arrays.where(active, divisor, 1.0)

    def _length(self, gramian: Array, weights: Array, active: Array) -> Array:
        """Factor on the minimum-norm direction, from norms that the Gramian already holds."""
        if self.rescale == "none":
            return 1.0
        count = arrays.total(active)
        factor = growth(gramian, weights, active * arrays.ones_like(weights))
        if self.rescale == "mean":
            return factor / arrays.at_least(count, 1)
        return arrays.at_most(factor, count) if self.rescale == "cap" else factor

    def settings(self) -> dict[str, object]:
        """Its own, and the common ones."""
        mine: dict[str, object] = {
            "normalize": self.normalize,
            "rescale": self.rescale,
            "joint_floor": self.joint_floor,
        }
        mine |= {"bounds": self.bounds} if self.bounds else {}
        return mine | ({} if self.solver == "auto" else {"solver": self.solver}) | super().settings()
