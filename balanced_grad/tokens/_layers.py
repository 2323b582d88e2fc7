"""How the layers that one loss came through are split."""

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge

from balanced_grad.capture import Losses, Walk, reached
from balanced_grad.tokens._masks import REST, Positions
from balanced_grad.tokens._split import matching, positions_of
from balanced_grad.tokens._tag import tag_type
from balanced_grad.tokens._tokens import Tokens

if TYPE_CHECKING:
    from torch.autograd.graph import Node


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


def look(walk: Walk, tokens: Tokens, positions: Positions) -> Layers:
    """Which parameters are split: those whose every use is a tagged call over the positions of the masks."""
    kind = tag_type()
    noted: list[Any] = [node for node in walk.each[0].noted if type(node) is kind]
    met = [tag for tag in noted if tag.call.anchor is tokens.anchor]  # others may watch the same layers
    elsewhere = _beside_tags(walk, met)
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


def _beside_tags(walk: Walk, tags: list[Any]) -> set[Tensor]:
    """The leaves that the loss reaches by another way than through a tagged layer.

    More edges lead there in the whole graph than from between the inputs and the outputs of tagged layers. So they do
    to a cast of the weight, which autocast keeps for all who use it.
    """
    ends = {tag.call.upstream for tag in tags}
    stack = [tag.next_functions[0][0] for tag in tags]
    inside: Counter[Node] = Counter()
    while stack:
        for child, _ in stack.pop().next_functions:
            if child is not None and child not in ends:
                if child not in inside:
                    stack.append(child)
                inside[child] += 1
    whole = Counter(walk.each[0].uses)
    elsewhere = [node for node, count in inside.items() if whole[node] > count]
    return {leaf for node in elsewhere for leaf in reached(GradientEdge(node, 0)).leaves}


def shares(losses: Losses, tokens: Tokens, positions: Positions) -> dict[Tensor, tuple[tuple[str, ...], str]]:
    """Per parameter that the loss reaches, the groups whose rows hold it, and why where it is not split."""
    walk = Walk.of(losses, (tag_type(),))
    layers, owners = look(walk, tokens, positions), tokens.owners()
    out: dict[Tensor, tuple[tuple[str, ...], str]] = {}
    for leaf in walk.reach:
        if leaf in owners:
            out[leaf] = (owners[leaf],), "of modules="
        elif leaf in layers.split:
            out[leaf] = positions.names, ""
        else:
            out[leaf] = (), layers.why.get(leaf, "not of a layer that is watched")
    return out


def refuse_unsplit(layers: Layers, positions: Positions) -> None:
    """Say why no layer is split.

    Raises:
        ValueError: always.
    """
    names = [name for name in positions.names if name != REST]
    why = sorted(set(layers.why.values()))
    raise ValueError(
        f"no trainable layer that the loss reaches is split into {names}: "
        + ("; ".join(why) if why else "none of those that bg.Tokens(model) watches was called in this forward pass")
        + ". Give masks over the positions that the layers see, or the model that was called"
    )
