from collections.abc import Callable

import torch
from torch import Tensor

from balanced_grad.balancer import Balancer, Level
from balanced_grad.capture import Groups, Params
from balanced_grad.records import Problem, Weighting


class Gramian(Balancer):
    """Any rule from a Gramian to weights, the weightings of torchjd included.

    The rule gets the float64 Gramian of the losses that meet and have a non-zero gradient there, in the order of
    the losses; the others keep weight 1. So a missing modality or a finished one never reaches a rule that would
    answer it with a zero update. A non-finite Gramian gives NaN weights without calling the rule, as a loss
    scaler expects. The tensor is read on the host once per step for that.

    Args:
        weighting: callable from ``(M, M)`` to ``(M,)``; an ``nn.Module`` becomes a submodule, so that its state is
            in the ``state_dict``.
        normalize: hand over the Gramian divided by its mean diagonal (default, ours), so that absolute tolerances
            inside the rule (torchjd's UPGrad and CAGrad have them) do not depend on the size of the gradients.
            Rules whose weights scale with the gradients (Nash-MTL, FairGrad) want ``False``.
        groups, params, level, include_exclusive: see ``Balancer``.

    Raises:
        TypeError: for a weighting that is not callable, or that returns no tensor.
        ValueError: for weights of a wrong shape.

    Examples:
        >>> import torch
        >>> import balanced_grad as bg
        >>> from torchjd.aggregation import UPGradWeighting
        >>> w = torch.zeros(2, requires_grad=True)
        >>> balancer = bg.Gramian(UPGradWeighting())
        >>> balancer({"joint": 2 * w[0] + w[1], "audio": -w[0] + w[1]}).backward()
        >>> bool((w.grad @ torch.tensor([[2.0, -1.0], [1.0, 1.0]]) >= 0).all())  # no loss increases
        True
    """

    needs_gramian = True

    def __init__(
        self,
        weighting: Callable[[Tensor], Tensor],
        *,
        normalize: bool = True,
        groups: Groups = "all",
        params: Params | None = None,
        level: Level = "parameters",
        include_exclusive: bool = False,
    ) -> None:
        super().__init__(params=params, level=level, groups=groups, include_exclusive=include_exclusive)
        if not callable(weighting):
            raise TypeError(f"weighting={weighting!r} is not callable; give a rule from (M, M) to (M,)")
        self.weighting = weighting
        self.normalize = normalize

    def weigh(self, problem: Problem) -> Weighting:
        """The rule's weights of the losses that take part, 1 for the others."""
        assert problem.gramian is not None
        count = len(problem.names)
        several = problem.gramian.reshape(-1, count, count)
        weights = torch.stack([self._solve(gramian) for gramian in several]) if len(several) else several[:, 0]
        return Weighting(weights.reshape(problem.gramian.shape[:-1]))

    def _solve(self, gramian: Tensor) -> Tensor:
        diagonal = gramian.diagonal()
        weights = torch.ones_like(diagonal)
        if not gramian.isfinite().all():
            return weights * torch.nan
        taking_part = diagonal.nonzero().squeeze(1)
        count = len(taking_part)
        if not count:
            return weights
        sub = gramian[taking_part][:, taking_part]
        chosen = self.weighting(sub / sub.diagonal().mean() if self.normalize else sub)
        if not isinstance(chosen, Tensor):
            raise TypeError(f"the weighting returned a {type(chosen).__name__}, not a tensor of shape ({count},)")
        if chosen.shape != (count,):
            raise ValueError(f"the weighting returned shape {tuple(chosen.shape)}, not ({count},)")
        return weights.index_copy(0, taking_part, chosen.detach().to(weights))

    def extra_repr(self) -> str:
        """Settings."""
        rule = "" if isinstance(self.weighting, torch.nn.Module) else f"{self.weighting!r}, "
        return f"{rule}normalize={self.normalize}" + self._base_repr()
