"""Rows of several sources in one layout: those of other processes, and those of earlier micro-batches."""

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from balanced_grad.capture._plan import Group, Plan
from balanced_grad.capture._processes import Processes
from balanced_grad.capture._rows import Arena, Rows

Layout = tuple[Plan, list[Rows]]


def summed(parts: Sequence[Layout], plan: Plan, arena: Arena) -> list[Rows]:
    """The rows of all parts, added up in the layout of ``plan``; what no part has is zero."""
    totals = arena.rows(plan.groups)
    places: dict[tuple[str, Tensor], Tensor] = {}
    where: dict[Tensor, tuple[Rows, int]] = {}
    for total in totals:
        total.flat.zero_()
        for loss, parameter, position, view in total.places():
            places[plan.names[loss], parameter] = view
            where[parameter] = total, position
    for source_plan, sources in parts:
        for source in sources:
            views = [(view, places[source_plan.names[loss], parameter]) for loss, parameter, _, view in source.places()]
            torch._foreach_add_([target for _, target in views], [view for view, _ in views])
            for parameter, defined in zip(source.group.parameters, source.defined, strict=True):
                target, position = where[parameter]
                target.defined[position] |= defined
    return totals


def average(
    here: Layout, losses: Tensor, given: Iterable[Tensor], processes: Processes, arena: Arena
) -> tuple[Layout, Tensor]:
    """Sum rows over the processes, in the layout of all of them; and the mean of each loss.

    What travels is agreed on first, so that processes whose batches miss different modalities, or took different
    ways through the model, reduce the same buffers.
    """
    plan, rows = here
    said = _say(plan, rows, given, processes)
    if any(layout != said[0] for layout in said):
        plans = [_plan(names, groups, processes) for _, names, groups in said]
        plan = Plan.union(plans)
        rows = summed([here], plan, arena)
        defined = {
            processes.numbers.parameter(number)
            for _, _, groups in said
            for _, numbers, flags in groups
            for number, flag in zip(numbers, flags, strict=True)
            if flag
        }
        for total in rows:
            total.defined = [parameter in defined for parameter in total.group.parameters]
    names = [names for _, names, _ in said]
    return (plan, rows), processes.mean(names, here[0].names, losses, beside=[each.flat for each in rows])


def _say(plan: Plan, rows: Sequence[Rows], given: Iterable[Tensor], processes: Processes) -> list[Any]:
    """What each process has captured, with parameters as numbers that all of them understand."""
    numbers = processes.numbers
    new = numbers.new([*given, *(p for group in plan.groups for p in group.parameters)])
    groups = tuple(
        (
            each.group.losses,
            tuple(new[p] if p in new else numbers.of(p) for p in each.group.parameters),
            tuple(each.defined),
        )
        for each in rows
    )
    claim = len(numbers), tuple((tuple(leaf.shape), str(leaf.dtype)) for leaf in new)
    said = processes.agree((claim, plan.names, groups))
    if any(other[0] != said[0][0] for other in said):
        raise RuntimeError(
            "the losses of different processes reach different parameters, so gradients cannot be matched; give the "
            "balancer params=model.named_parameters()"
        )
    numbers.add(new, processes.agree)
    return said


def _plan(names: tuple[str, ...], groups: Iterable[Any], processes: Processes) -> Plan:
    """What another process said, with this process's parameters."""
    parameter = processes.numbers.parameter
    return Plan(names, tuple(Group(losses, tuple(map(parameter, numbers))) for losses, numbers, _ in groups))
