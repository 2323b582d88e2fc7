"""Gradients of single losses on a few batches, where they meet and where they do not; nothing is stepped."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from balanced_grad.capture import JOINT, Losses, ParameterFilter, Plan, gradients


@dataclass(frozen=True)
class Batch:
    """Of one batch: values ``(K,)``, and inner products of the gradients ``(K, K)`` by where they are taken.

    Attributes:
        shared: over the parameters that two losses or more reach.
        own: squared norms ``(K,)`` over those that one loss alone reaches.
        encoders: modality -> squared norm of the joint gradient where, beside the joint loss, only that modality's
            reaches.
    """

    names: tuple[str, ...]
    values: Tensor
    shared: Tensor
    own: Tensor
    encoders: Mapping[str, float]


def measured(losses: Mapping[str, Tensor | None]) -> Batch:
    """One backward per loss; ``.grad`` stays as it is."""
    present = Losses.check(losses)
    present.require_graph()
    plan = Plan.of(present, ParameterFilter())
    count = len(present.names)
    products = torch.zeros(count, count, dtype=torch.float64)
    own = torch.zeros(count, dtype=torch.float64)
    rows = [_gradients(present, plan, loss) for loss in range(count)]
    encoders: dict[str, float] = {}
    for group in plan.groups:
        parts = {loss: [rows[loss].get(p) for p in group.parameters] for loss in group.losses}
        for first in group.losses:
            for second in group.losses:
                product = _inner(parts[first], parts[second])
                if group.shared:
                    products[first, second] += product
                else:
                    own[first] += product
        owner = _owner(present.names, group.losses)
        if owner is not None:
            joint = parts[present.names.index(JOINT)]
            encoders[owner] = encoders.get(owner, 0.0) + _inner(joint, joint)
    return Batch(present.names, present.values().double().cpu(), products, own, encoders)


def _gradients(present: Losses, plan: Plan, loss: int) -> dict[Tensor, Tensor]:
    wanted = [parameter for group in plan.reached_by(loss) for parameter in group.parameters]
    tensor = present.tensors[loss]
    found = gradients(tensor, wanted, tensor.new_ones(()), retain=True, name=present.names[loss])
    return {p: grad.detach() for p, grad in zip(wanted, found, strict=True) if grad is not None}


def _inner(first: list[Tensor | None], second: list[Tensor | None]) -> float:
    pairs = [(a, b) for a, b in zip(first, second, strict=True) if a is not None and b is not None]
    return sum(float((a.double() * b.double()).sum()) for a, b in pairs)


def _owner(names: tuple[str, ...], losses: tuple[int, ...]) -> str | None:
    """The modality, where the joint loss meets its own and no other."""
    reached = [names[loss] for loss in losses]
    modalities = [name for name in reached if name != JOINT]
    return modalities[0] if JOINT in reached and len(modalities) == 1 else None
