import math

from balanced_grad import arrays
from balanced_grad.balancer import Balancer
from balanced_grad.capture import Groups, Params
from balanced_grad.methods._lengths import of_unit_size, squares, taking_part
from balanced_grad.records import Problem, Weighting
from balanced_grad.source import Level
from balanced_grad.tokens import Tokens


class EqualNorms(Balancer):
    """Every loss, or every group of tokens, sends a gradient of the same length.

        w_k = min(mean_j |g_j| / |g_k|, cap)

    over those with a gradient; the others keep weight 1. In a transformer whose text tokens send the longer gradient
    through every shared weight, the picture's are brought up to it, and down to it where they dominate.

    Args:
        cap: largest weight, so that a gradient that has nearly vanished is not blown up. Default 4 (ours).
        groups, params, level, include_exclusive, every: see ``Balancer``.

    Raises:
        ValueError: for a cap that is no number of at least 1.

    Source: ours, after the normalisation in multi-task learning; GradNorm (Chen et al., 2018) learns such weights.

    Examples:
        >>> import torch
        >>> import balanced_grad as bg
        >>> w = torch.zeros(2, requires_grad=True)
        >>> balancer = bg.EqualNorms()
        >>> balancer({"joint": 3 * w[0], "audio": w[1] + 0 * w[0]}).backward()
        >>> balancer.last.weights, w.grad
        (tensor([0.6667, 2.0000], dtype=torch.float64), tensor([2., 2.]))
    """

    needs = "gramian"

    def __init__(
        self,
        cap: float = 4.0,
        *,
        groups: Groups = "all",
        params: Params | None = None,
        level: Level | Tokens = "parameters",
        include_exclusive: bool = False,
        every: int = 1,
    ) -> None:
        super().__init__(params=params, level=level, groups=groups, include_exclusive=include_exclusive, every=every)
        if math.isnan(cap) or cap < 1:
            raise ValueError(f"cap={cap!r}: give a number >= 1, the largest weight")
        self.cap = cap

    @arrays.ignoring_errors
    def weigh(self, problem: Problem) -> Weighting:
        """The mean length over each one's own."""
        assert problem.gramian is not None
        gramian = arrays.of(problem.gramian)
        active = taking_part(gramian)
        norms = squares(of_unit_size(gramian)) ** 0.5
        mean = arrays.total(arrays.where(active, norms, 0.0)) / arrays.at_least(arrays.total(active), 1)
        weights = arrays.at_most(mean / arrays.where(active, norms, 1.0), self.cap)
        return Weighting(arrays.tensor(arrays.where(active, weights, 1.0)))

    def settings(self) -> dict[str, object]:
        """Its own, and the common ones."""
        return {"cap": self.cap} | super().settings()
