"""From what was seen of the operators to those that are to blame."""

from collections.abc import Iterable, Iterator
from itertools import pairwise

import torch
from torch.autograd.graph import Node

from balanced_grad.check._fault import Fault
from balanced_grad.check._nodes import is_custom, operator, variable
from balanced_grad.check._replay import Call
from balanced_grad.check._text import said
from balanced_grad.check._trace import Prints, Trace, Tracer, Visit, alike

_CLOSER = 100  # how much closer to each other what comes in must be than what goes out, for the operator to be blamed


def locate(step: Call, tolerance: float) -> tuple[list[Fault], list[Fault]]:
    """Faults, and apart from them operators that write over a gradient given to them, which need not hurt."""
    faults = list(_hooks(step))
    trace = Tracer(step).run()
    consuming = _consuming(trace, tolerance)
    faults += [Fault("consumes", operator(node), step.module_of(node)) for node in consuming]
    for node, names in trace.hidden.items():
        faults.append(Fault("hidden", operator(node), step.module_of(node), tuple(sorted(names))))
    for node in trace.handed:
        if node not in consuming and _is_static(trace, node):
            faults.append(Fault("static", operator(node), step.module_of(node)))
    for last, error in trace.failures:
        what, where = ("an operator", "") if last is None else (operator(last), step.module_of(last))
        faults.append(Fault("fails", what, where, detail=said(error)))
    return _once(faults), _once(_overwriters(step, trace))


def _consuming(trace: Trace, tolerance: float) -> list[Node]:
    """Those that do; of autograd's own, which suffer from what another one wrote, the first if there is no other."""
    nodes = [node for node, visits in trace.visits.items() if _consumes(visits, tolerance)]
    return [node for node in nodes if is_custom(node)] or nodes[:1]


def _consumes(visits: list[Visit], tolerance: float) -> bool:
    """Whether the same gradients came in twice in backwards of one loss, and different ones went out."""
    return any(
        first.loss == second.loss
        and _all_alike(first.incoming, second.incoming, tolerance / _CLOSER)
        and not _all_alike(first.outgoing, second.outgoing, tolerance)
        for first, second in pairwise(visits)
    )


def _all_alike(first: Prints, second: Prints, tolerance: float) -> bool:
    return all(alike(a, b, tolerance) for a, b in zip(first, second, strict=False))


def _is_static(trace: Trace, node: Node) -> bool:
    """Whether different gradients were handed out in the same memory, though the first were still held."""
    seen: dict[int, object] = {}
    for tensor, content in trace.handed[node]:
        if tensor.layout == torch.strided and tensor.numel():
            address = tensor.data_ptr()
            if seen.setdefault(address, content) != content:
                return True
    return False


def _overwriters(step: Call, trace: Trace) -> Iterator[Fault]:
    for node, visits in trace.visits.items():
        if any(visit.overwrote for visit in visits):
            yield Fault("overwrites", operator(node), step.module_of(node), tuple(trace.spoiled))
    roots = {operator(loss.grad_fn) for loss in step.losses.tensors if loss.grad_fn is not None}
    if trace.seeds and not any(visit.overwrote for visits in trace.visits.values() for visit in visits):
        names = ", ".join(map(repr, trace.seeds))
        yield Fault("overwrites", f"a hook on {names} ({', '.join(sorted(roots))})")


def _hooks(step: Call) -> Iterator[Fault]:
    names = {tensor: name for name, tensor in step.tensors.items()}
    hooked = []
    for node in step.nodes:
        leaf = variable(node)
        if leaf is not None and any(_count(register) for register in (node.register_hook, node.register_prehook)):
            hooked.append(names[leaf])
    if hooked:
        yield Fault("hooks", "AccumulateGrad", parameters=tuple(hooked), detail=f"{len(hooked)} parameters")


def _count(register: object) -> int:
    """How many hooks there are besides one of ours, which is removed at once."""
    handle = register(lambda *_: None)  # type: ignore[operator]
    others = len(handle.hooks_dict_ref()) - 1
    handle.remove()
    return others


def _once(faults: Iterable[Fault]) -> list[Fault]:
    return list(dict.fromkeys(faults))
