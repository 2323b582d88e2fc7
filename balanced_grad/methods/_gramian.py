from collections.abc import Callable

import torch
from torch import Tensor

from balanced_grad.balancer import Balancer
from balanced_grad.capture import JOINT, Groups, Params, index
from balanced_grad.checks import vector
from balanced_grad.methods._torchjd import keeps_state, refuse_other_inputs
from balanced_grad.records import Problem, Weighting
from balanced_grad.source import Level
from balanced_grad.tokens import Tokens


class Gramian(Balancer):
    """Any rule from a Gramian to weights, the weightings of torchjd included.

    The rule gets the float64 Gramian of the losses that meet and have a non-zero gradient there, ``"joint"`` first
    and then the others in your order; those left out keep weight 1. So rules in which the first objective is special
    (PCD), and preference vectors, mean the joint loss, and a missing modality or a finished one never reaches a rule
    that would answer it with a zero update. A non-finite Gramian gives NaN weights without calling the rule, as a
    loss scaler expects. The tensor is read on the host once per step for that.

    Args:
        weighting: callable from ``(M, M)`` to ``(M,)``; an ``nn.Module`` becomes a submodule, so that its state is
            in the ``state_dict``.
        normalize: hand over the Gramian divided by its mean diagonal (default, ours), so that absolute tolerances
            inside the rule (torchjd's UPGrad and CAGrad have them) do not depend on the size of the gradients.
            Rules whose weights scale with the gradients (Nash-MTL, FairGrad) want ``False``.
        groups, params, level, include_exclusive, every: see ``Balancer``.

    Raises:
        TypeError: for a weighting that is not callable, is a class, takes no Gramian (torchjd's aggregators, and its
            weightings of Jacobians), or returns no tensor.
        ValueError: for weights of a wrong shape; for ``groups`` with a rule of torchjd that has one memory for all.

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

    needs = "gramian"

    def __init__(
        self,
        weighting: Callable[[Tensor], Tensor],
        *,
        normalize: bool = True,
        groups: Groups = "all",
        params: Params | None = None,
        level: Level | Tokens = "parameters",
        include_exclusive: bool = False,
        every: int = 1,
    ) -> None:
        super().__init__(params=params, level=level, groups=groups, include_exclusive=include_exclusive, every=every)
        if not callable(weighting) or isinstance(weighting, type):
            what = f"is a class; write {weighting.__name__}(...)" if isinstance(weighting, type) else "is not callable"
            raise TypeError(f"weighting={weighting!r} {what}; give a rule from (M, M) to (M,)")
        refuse_other_inputs(weighting)
        self._remembers = keeps_state(weighting)
        if self._remembers and groups != "all":
            raise ValueError(
                f"groups={groups!r} has several problems, and {type(weighting).__name__} would remember them as one; "
                "leave groups out, or take a rule without memory"
            )
        self.weighting = weighting
        self.normalize = normalize
        self._taught: tuple[str, ...] = ()  # the losses that a rule with a memory has seen

    def weigh(self, problem: Problem) -> Weighting:
        """The rule's weights of the losses that take part, 1 for the others."""
        assert problem.gramian is not None
        count = len(problem.names)
        several = problem.gramian.reshape(-1, count, count)
        solved = [self._solve(gramian, problem.names) for gramian in several]
        return Weighting((torch.stack(solved) if solved else several[:, 0]).reshape(problem.gramian.shape[:-1]))

    def _solve(self, gramian: Tensor, names: tuple[str, ...]) -> Tensor:
        diagonal = gramian.diagonal()
        weights = torch.ones_like(diagonal)
        if not gramian.isfinite().all():
            return weights * torch.nan
        active = (diagonal != 0).tolist()
        taking_part = sorted((k for k in range(len(names)) if active[k]), key=lambda k: names[k] != JOINT)
        if not taking_part:
            return weights
        if self._remembers:
            self._forget_others(tuple(names[k] for k in taking_part))
        sub = gramian[taking_part][:, taking_part]
        chosen = self.weighting(sub / sub.diagonal().mean() if self.normalize else sub)
        chosen = vector(chosen, sub.shape[:1], gramian, "the weighting", self.notices)
        return weights.index_copy(0, index(tuple(taking_part), weights.device), chosen)

    def _forget_others(self, names: tuple[str, ...]) -> None:
        """What was learnt of other losses, by position, must not be taken for that of these."""
        if self._taught and self._taught != names:
            self.notices.say(
                "forgets",
                f"{type(self.weighting).__name__} keeps its memory by position, so it starts anew whenever other "
                f"losses take part, as now {list(names)} after {list(self._taught)}; where modalities are missing, "
                "take a rule without memory",
            )
            self.weighting.reset()  # type: ignore[attr-defined]
        self._taught = names

    def settings(self) -> dict[str, object]:
        """Its own, and the common ones."""
        rule = {} if isinstance(self.weighting, torch.nn.Module) else {"weighting": self.weighting}
        return rule | {"normalize": self.normalize} | super().settings()
