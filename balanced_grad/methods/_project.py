from balanced_grad import arrays
from balanced_grad.balancer import Balancer
from balanced_grad.capture import Groups, Params
from balanced_grad.methods._lengths import of_unit_size
from balanced_grad.records import Problem, Weighting
from balanced_grad.source import Level
from balanced_grad.tokens import Tokens


class Project(Balancer):
    """Take out of every gradient what works against one that is to be kept, and leave the rest of it.

        g_k ← g_k - min(0, g_k·g_keep / |g_keep|²) g_keep     for every k but the kept one

    and sum: as weights, 1 for all but the kept one, and ``1 - Σ_k min(0, g_k·g_keep) / |g_keep|²`` for that. The kept
    loss, or group of tokens, is not slowed down by any other; where nothing conflicts this is the plain sum.

    Args:
        keep: the name of the loss or group. In a batch without it, or without its gradient, nothing is taken out.
        groups, params, level, include_exclusive, every: see ``Balancer``.

    Source: one direction of the projection in Yu et al., "Gradient Surgery for Multi-Task Learning" (2020), which does
    it to both of each pair in random order; the choice of one to be kept is ours.

    Examples:
        >>> import torch
        >>> import balanced_grad as bg
        >>> w = torch.zeros(2, requires_grad=True)
        >>> bg.Project("text")({"text": w[0] + 0 * w[1], "image": w[1] - w[0]}).backward()
        >>> w.grad
        tensor([1., 1.])
    """

    needs = "gramian"

    def __init__(
        self,
        keep: str,
        *,
        groups: Groups = "all",
        params: Params | None = None,
        level: Level | Tokens = "parameters",
        include_exclusive: bool = False,
        every: int = 1,
    ) -> None:
        super().__init__(params=params, level=level, groups=groups, include_exclusive=include_exclusive, every=every)
        if not isinstance(keep, str):
            raise TypeError(f"keep={keep!r}: give the name of the loss, or group of tokens, that is to be kept")
        self.keep = keep

    @arrays.ignoring_errors
    def weigh(self, problem: Problem) -> Weighting:
        """1, and more for the kept one where others work against it."""
        assert problem.gramian is not None
        gramian = of_unit_size(arrays.of(problem.gramian))
        weights = arrays.ones_like(gramian[..., 0])
        if self.keep in problem.names:
            kept = problem.names.index(self.keep)
            against = arrays.at_most(gramian[..., kept, :], 0.0).sum(-1)
            square = gramian[..., kept, kept]
            weights[..., kept] -= arrays.where(square == 0, 0.0, against / square)
        return Weighting(arrays.tensor(weights))

    def settings(self) -> dict[str, object]:
        """Its own, and the common ones."""
        return {"keep": self.keep} | super().settings()
