import math
from typing import Literal

import torch

from balanced_grad import arrays
from balanced_grad.balancer import Balancer
from balanced_grad.capture import Params, index
from balanced_grad.choices import check_choice
from balanced_grad.methods._lengths import growth, taking_part
from balanced_grad.records import Problem, Weighting
from balanced_grad.solvers import min_norm

RescaledPer = Literal["tensor", "encoder"]


class MMPareto(Balancer):
    """Per encoder, the plain sum of its gradients where they agree and their min-norm point where they conflict.

    An encoder is reached by its own loss and by the joint one. With their gradients ``u`` and ``g`` there:

        cos(g, u) > 0:  h = g + u
        otherwise:      h = 2 (c g + (1 - c) u),  the min-norm point of the two, doubled
        then            h ← γ h · max(1, |g + u| / |h|)

    so that the conflict-free direction is never shorter than the plain sum. Parameters that one loss alone
    reaches (heads, fusion) get its plain gradient. One backward per loss; the published code runs M + 2.

    Encoders are found from the graph, as the sets of parameters that the same losses reach; where more than two
    losses meet (a shared trunk), our reading is: no conflict if all pairs agree, the min-norm point of all of
    them times their number otherwise.

    Args:
        gamma: factor on every balanced gradient. Default 1.5, as in the published code.
        rescale: where lengths are compared: per ``"tensor"`` (default, as in the published code) or per whole
            ``"encoder"``, which keeps the direction.
        params: see ``Balancer``.

    Raises:
        ValueError: for a ``gamma`` that is not positive, or an unknown ``rescale``.

    Source: Wei & Hu, "MMPareto: Boosting Multimodal Learning with Innocent Unimodal Assistance" (2024), from its
    formulas.

    Examples:
        >>> import torch
        >>> import balanced_grad as bg
        >>> w = torch.zeros(2, requires_grad=True)
        >>> balancer = bg.MMPareto(gamma=1.0)
        >>> balancer({"joint": 2 * w[0] + w[1], "audio": -2 * w[0] + w[1]}).backward()
        >>> w.grad  # the min-norm point, as long as the plain sum (0, 2)
        tensor([0., 2.])
    """

    needs = "gramian"

    def __init__(self, gamma: float = 1.5, *, rescale: RescaledPer = "tensor", params: Params | None = None) -> None:
        check_choice("rescale", rescale, RescaledPer)
        if not (math.isfinite(gamma) and gamma > 0):
            raise ValueError(f"gamma={gamma!r}: give a positive number")
        super().__init__(params=params, groups="tensor" if rescale == "tensor" else "reach")
        self.gamma = gamma
        self.rescale = rescale

    @arrays.ignoring_errors
    def weigh(self, problem: Problem) -> Weighting:
        """``(S, K)`` weights: one direction per encoder, one length per tensor or encoder."""
        assert problem.gramian is not None
        encoders: dict[tuple[int, ...], int] = {}
        places = tuple(encoders.setdefault(reach, len(encoders)) for reach in problem.reach)
        if not places:
            return Weighting(torch.ones_like(problem.gramian[..., 0]))
        parent = index(places, problem.gramian.device)
        added_up = problem.gramian.new_zeros(len(encoders), *problem.gramian.shape[1:])
        whole = arrays.of(added_up.index_add_(0, parent, problem.gramian))
        parts, parent = arrays.of(problem.gramian), arrays.of(parent)
        active = taking_part(whole)
        pairs = active[..., None] & active[..., None, :]
        conflict = (pairs & ~(whole > 0)).any(-1).any(-1)[..., None]
        shortest = min_norm(arrays.tensor(whole), active=arrays.tensor(active)).weights
        plain = active * arrays.ones_like(whole[..., 0])
        weights = arrays.where(conflict, arrays.total(active) * arrays.of(shortest), plain)
        factor = arrays.at_least(growth(parts, weights[parent], plain[parent]), 1.0)
        return Weighting(arrays.tensor(self.gamma * factor * weights[parent]))

    def settings(self) -> dict[str, object]:
        """Its own, and the common ones."""
        return {"gamma": self.gamma, "rescale": self.rescale} | super().settings()
