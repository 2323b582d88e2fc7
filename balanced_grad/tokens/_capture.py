from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

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
    Walk,
    accumulate,
    exclusive,
    index,
    reached,
    unsharded_ids,
)
from balanced_grad.tokens._masks import REST, Positions
from balanced_grad.tokens._split import matching, positions_of, split
from balanced_grad.tokens._tag import tag_type
from balanced_grad.tokens._tokens import Tokens

if TYPE_CHECKING:
    from torch.autograd.graph import Node

PLAIN = ""  # what is not split, among the names of a plan: no group is called so


@dataclass(frozen=True)
class Layers:
    """How the layers that one loss came through are split.

    Attributes:
        tags: the nodes behind the calls of layers that are split.
        split: the parameters that all groups reach.
        why: parameters of watched layers that are not split, and the reason.
    """

    tags: list[Any]
    split: set[Tensor]
    why: dict[Tensor, str]


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
        self._views: dict[Tensor, list[Tensor]] = {}

    def _planned(self) -> Plan:
        walk = self._walk
        self._layers = look(walk, self._tokens, self._positions)
        self._tokens.why = self._layers.why
        if not self._layers.split and not self._tokens.owners():
            _refuse_unsplit(self._layers, self._positions)
        anchor = self._tokens.anchor
        reach, bystanders = self._params.divide({p: losses for p, losses in walk.reach.items() if p is not anchor})
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
                for _, parameter, _, view in rows.places():
                    self._views.setdefault(parameter, []).append(view)
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
        self._views = {}

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
            parameter = layer._parameters[name]
            if parameter is not None and parameter in self._views:
                torch._foreach_add_(self._views[parameter], parts)

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


def look(walk: Walk, tokens: Tokens, positions: Positions) -> Layers:
    """Which parameters are split: those whose every use is a tagged call over the positions of the masks."""
    kind = tag_type()
    noted: list[Any] = [node for node in walk.each[0].noted if type(node) is kind]
    met = [tag for tag in noted if tag.call.anchor is tokens.anchor]  # others may watch the same layers
    elsewhere = _beside_tags(walk.tensors[0], met)
    calls: dict[Tensor, list[bool]] = {}
    shapes: dict[Tensor, torch.Size] = {}
    for tag in met:
        layer = tag.call.layer
        shape = positions_of(layer, tag.call.shape)
        for parameter in layer._parameters.values():
            if parameter is not None and parameter.requires_grad:
                calls.setdefault(parameter, []).append(matching(shape, positions.shape))
                shapes[parameter] = shape
    why: dict[Tensor, str] = {}
    for parameter, fits in calls.items():
        if not all(fits):
            why[parameter] = (
                f"its positions are {tuple(shapes[parameter])}, those of the masks {tuple(positions.shape)}"
            )
        elif parameter in elsewhere:
            why[parameter] = "it is used outside of its layer too"
    chosen = set(calls) - set(why)
    tags = [tag for tag in met if any(p in chosen for p in tag.call.layer._parameters.values())]
    return Layers(tags, chosen, why)


def _beside_tags(loss: Tensor, tags: list[Any]) -> Mapping[Tensor, object]:
    """The leaves that the loss reaches by another way than through a tagged layer."""
    inside: set[Node] = {tag.next_functions[0][0] for tag in tags}
    first = reached(loss, stop=inside)
    out: dict[Tensor, object] = dict(first.leaves)
    seen = inside | first.nodes
    for tag in tags:
        start = tag.call.upstream
        if start is not None and start.node not in seen:
            further = reached(start, stop=seen)
            out |= further.leaves
            seen |= further.nodes
    return out


def _refuse_unsplit(layers: Layers, positions: Positions) -> None:
    names = [name for name in positions.names if name != REST]
    why = sorted(set(layers.why.values()))
    raise ValueError(
        f"no trainable layer that the loss reaches is split into {names}: "
        + ("; ".join(why) if why else "none of those that bg.Tokens(model) watches was called in this forward pass")
        + ". Give masks over the positions that the layers see, or the model that was called"
    )
