from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.autograd.graph import get_gradient_edge

from balanced_grad.capture import (
    Losses,
    Memory,
    ParameterCapture,
    ParameterFilter,
    Partition,
    Plan,
    Processes,
    Rule,
    accumulate,
    exclusive,
    index,
    unsharded_ids,
)
from balanced_grad.tokens._layers import look, refuse_unsplit
from balanced_grad.tokens._masks import Positions
from balanced_grad.tokens._split import split
from balanced_grad.tokens._tag import tag_type
from balanced_grad.tokens._tokens import Tokens

PLAIN = ""  # what is not split, among the names of a plan: no group is called so


class TokenCapture(ParameterCapture):
    """The gradient of one loss in rows, one for each group of positions, from one backward.

    What is not split has a row of its own among those of the plan, ``PLAIN``, whose weight is always 1 and of which
    nobody hears.
    """

    _kinds = (tag_type(),)

    def __init__(
        self,
        losses: Losses,
        tokens: Tokens,
        positions: Positions,
        params: ParameterFilter,
        partition: Partition,
        memory: Memory,
        processes: Processes,
    ) -> None:
        if len(losses.names) > 1:
            raise ValueError(
                f"level=bg.Tokens(...) splits the gradient of one loss, and there are {list(losses.names)}; add them "
                "up: balancer({'joint': first + second})"
            )
        self._tokens, self._positions = tokens, positions
        super().__init__(losses, params, partition, memory, processes)
        self._values = self._values.expand(len(self._plan.names))
        self._stacks: dict[Tensor, Tensor] = {}

    def _planned(self) -> Plan:
        walk = self._walk
        self._layers = look(walk, self._tokens, self._positions)
        self._tokens.why = self._layers.why
        if not self._layers.split and not self._tokens.owners():
            refuse_unsplit(self._layers, self._positions)
        reach, bystanders = self._params.divide(walk.reach)
        self._params.refuse_unreached(walk.names, reach)
        walk.refuse_hidden()
        self._params.check(walk, reach, unsharded_ids())
        owners = self._tokens.owners()
        names = tuple(dict.fromkeys((*self._positions.names, *owners.values(), PLAIN)))
        every = tuple(range(len(self._positions.names)))
        by_group: dict[Tensor, tuple[int, ...]] = {}
        for leaf in reach:
            place = names.index(owners.get(leaf, PLAIN))
            by_group[leaf] = (place,) if leaf in owners or leaf not in self._layers.split else every
        beside = dict.fromkeys(bystanders, (0,))
        return replace(Plan.by_reach(names, by_group), bystanders=beside)

    def _take(self, scale: Tensor) -> None:
        """One backward, which goes no further than the first tag, and to what is not split."""
        whole = self._processes.size > 1 or self._memory.window is not None
        groups = [group for group in self._plan.groups if group.shared or whole]
        self._rows = self._memory.arena.rows(groups)
        for rows in self._rows:
            if rows.group.shared:
                rows.zero()
                self._stacks |= rows.stacks()
        apart = [group for group in self._plan.groups if not group.shared]
        beside = list(self._plan.bystanders)
        wanted = [*(parameter for group in apart for parameter in group.parameters), *beside]
        received = iter(self._received(wanted, scale))
        rows_of = {rows.group: rows for rows in self._rows}
        for group in apart:
            grads = [next(received) for _ in group.parameters]
            if group in rows_of:
                rows_of[group].write(0, grads)
            else:
                self._exclusive += exclusive(group.losses[0], group.parameters, grads)
        self._beside += exclusive(0, beside, [next(received) for _ in beside])
        self._stacks = {}

    def _received(self, wanted: list[Tensor], scale: Tensor) -> list[Tensor | None]:
        anchor = get_gradient_edge(self._tokens.anchor)
        for tag in self._layers.tags:
            tag.call.receiver = self
        try:
            keep = self._walk.needed_later()
            return self._walk.gradients(0, wanted, scale, retain=keep, beside=[anchor])
        finally:
            for tag in self._layers.tags:
                tag.call.receiver = None

    def receive(self, layer: nn.Module, inputs: Tensor, grad: Tensor) -> None:
        """Called by a tag: what went through one call of a layer."""
        for name, parts in split(layer, inputs, grad, self._positions).items():
            stack = self._stacks.get(layer._parameters[name])  # type: ignore[arg-type]
            if stack is None:
                continue
            if isinstance(parts, Tensor):
                stack.add_(parts)
            else:
                torch._foreach_add_(stack.unbind(0), parts)

    def losses(self) -> tuple[tuple[str, ...], Tensor]:
        """The groups, each with the one loss."""
        names, values = super().losses()
        return tuple(name for name in names if name != PLAIN), values[self._heard(values.device)]

    def gramian(self, *, exclusive: bool = False) -> Tensor:
        """Of the groups only."""
        whole = super().gramian(exclusive=exclusive)
        heard = self._heard(whole.device)
        return whole.index_select(-1, heard).index_select(-2, heard)

    def reach(self) -> tuple[tuple[int, ...], ...]:
        """Per problem, the groups that meet in it; what is plain meets nothing."""
        names = [name for name in self._plan.names if name != PLAIN]
        return tuple(tuple(names.index(self._plan.names[loss]) for loss in losses) for losses in super().reach())

    def write(self, weights: Tensor) -> None:
        """Weighted, and plainly what is not split."""
        super().write(self._with_plain(weights))

    def write_by(self, rule: Rule, weights: Tensor) -> None:
        """The same for a rule."""
        names = [name for name in self._plan.names if name != PLAIN]
        places = {loss: names.index(name) for loss, name in enumerate(self._plan.names) if name != PLAIN}
        super().write_by(
            lambda rows, losses: rule(rows, tuple(places[loss] for loss in losses)), self._with_plain(weights)
        )

    def _write_beside(self, weights: Tensor, processes: int) -> None:
        for part in self._beside:
            accumulate(part.parameters, [grad * processes for grad in part.grads])
        self._beside = []

    def _heard(self, device: torch.device) -> Tensor:
        return index(tuple(place for place, name in enumerate(self._plan.names) if name != PLAIN), device)

    def _with_plain(self, weights: Tensor) -> Tensor:
        """``(..., K)`` weights of the groups among those of the plan."""
        out = weights.new_ones(*weights.shape[:-1], len(self._plan.names))
        return out.index_copy_(-1, self._heard(weights.device), weights)
