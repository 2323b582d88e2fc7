from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from balanced_grad.balancer import Balancer
from balanced_grad.capture import JOINT, Params
from balanced_grad.names import refuse_unknown
from balanced_grad.presence import Present, over_items
from balanced_grad.records import Problem, Weighting
from balanced_grad.state import Stateful


class Alternate(Stateful, Balancer):
    """One modality's branch at a time, and the joint loss at the end of each round.

        round:  m_1 for ``period`` steps, ..., m_M for ``period`` steps, then ``"joint"`` for ``joint`` steps

    Only the loss whose turn it is has a backward, so no step has gradients that compete, and what it does not reach
    keeps ``.grad is None``: an optimizer leaves it and its momentum alone. A step costs one branch. ``balancer.turn``
    says which loss is next, for a loop that computes no more than that.

    Where the loss of the turn is missing, the next one in the round that is there is trained, and the turn passes.
    Without a graph the scalar is the plain sum of all losses, so that values can be compared.

    Under ``DistributedDataParallel`` write ``find_unused_parameters=True``, and let no process lack a modality that
    another one has.

    Args:
        modalities: names of the uni-modal losses, in the order of their turns.
        period: steps of each modality in a round. Default 1, a step each, as MLA has it.
        joint: steps of the joint loss at the end of a round. Default 1 (ours); 0: never.
        params: see ``Balancer``.

    Raises:
        ValueError: for no name, one twice or ``"joint"``; for a ``period`` below 1, a ``joint`` below 0; in a call,
            for a loss of an unknown modality.

    Source: the core of MLA (Zhang et al., "Multimodal Representation Learning by Alternating Unimodal Adaptation",
    2024), ReconBoost (Hua et al., 2024) and AUG (2025), without what each adds: MLA's projection of the shared head's
    gradient, ReconBoost's agreement term, which has no gradient in its released code, AUG's additional heads.

    Examples:
        >>> import torch
        >>> import balanced_grad as bg
        >>> w = torch.nn.Parameter(torch.ones(2))
        >>> balancer = bg.Alternate(["audio", "video"])
        >>> for step in range(4):
        ...     print(balancer.turn, end=" ")
        ...     balancer({"joint": w.sum(), "audio": w[0], "video": w[1]}).backward()
        audio video joint audio
        >>> w.grad
        tensor([3., 2.])
    """

    needs = "nothing"

    def __init__(
        self, modalities: Iterable[str], period: int = 1, *, joint: int = 1, params: Params | None = None
    ) -> None:
        super().__init__(params=params)
        self.modalities = tuple(modalities)
        if isinstance(modalities, str) or not self.modalities or len(set(self.modalities)) < len(self.modalities):
            raise ValueError(f"modalities={modalities!r}: give the names of the uni-modal losses, each once")
        if JOINT in self.modalities:
            raise ValueError(f"{JOINT!r} is the fused prediction's loss, whose steps are joint=; leave it out")
        whole = hasattr(period, "__index__") and hasattr(joint, "__index__")
        if not (whole and period >= 1 and joint >= 0):
            raise ValueError(f"period={period!r}, joint={joint!r}: give whole numbers of steps, 1 and 0 or more")
        self.period = period
        self.joint = joint
        self._steps = 0

    @property
    def turn(self) -> str:
        """The loss that the next training step is about."""
        return self._round()[0]

    def _round(self) -> list[str]:
        """Losses in the order in which they come to be trained, that of the next step first."""
        place = self._steps % (self.period * len(self.modalities) + self.joint)
        index = min(place // self.period, len(self.modalities))
        order = [*self.modalities, JOINT] if self.joint else list(self.modalities)
        return order[index:] + order[:index]

    def forward(
        self,
        losses: Mapping[str, Tensor | None],
        features: Mapping[str, Tensor] | None = None,
        *,
        present: Present | None = None,
        **options: Any,
    ) -> Tensor:
        """The loss whose turn it is, as the scalar to call ``backward()`` on; see ``Balancer.forward``."""
        learning = torch.is_grad_enabled()
        if isinstance(losses, Mapping) and learning:  # else the base says so
            self._check_names(tuple(losses))
            found = over_items(losses, present, self.item_weights)
            turn = next((name for name in self._round() if found.get(name) is not None), None)
            losses, present = found if turn is None else {turn: found[turn]}, None
        scalar: Tensor = super().forward(losses, features, present=present, **options)
        self._steps += learning and self.training
        return scalar

    def weigh(self, problem: Problem) -> Weighting:
        """1: the choice is which loss there is."""
        return Weighting(torch.ones_like(problem.losses), problem.losses.sum())

    def _check_names(self, names: tuple[str, ...]) -> None:
        refuse_unknown(names, self.modalities, "turn", "modalities")

    def state(self) -> dict[str, Any]:
        """Number of training steps, for ``state_dict``."""
        return {"steps": self._steps}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Restore what ``state`` gave."""
        self._steps = state["steps"]

    def settings(self) -> dict[str, object]:
        """Its own, and the common ones."""
        return {"modalities": self.modalities, "period": self.period, "joint": self.joint} | super().settings()
