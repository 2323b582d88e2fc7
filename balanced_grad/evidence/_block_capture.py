from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor, distributed

from balanced_grad.capture import (
    Delivery,
    Losses,
    ParameterFilter,
    Processes,
    Walk,
    accumulate,
    leads_to,
    looked_through,
    refuse_hidden,
    select,
    unsharded_ids,
)
from balanced_grad.evidence._block import Block, Site
from balanced_grad.evidence._block_exchange import SiteRows, of_all
from balanced_grad.evidence._taps import KINDS, Tap, taps
from balanced_grad.records import LinearCall


class BlockCapture:
    """Per-loss gradients at the parameters of a block; all others get one ordinary backward.

    Over several processes, the block is averaged here, and everything else by what wraps the model.
    """

    def __init__(self, losses: Losses, block: Block, params: ParameterFilter, processes: Processes) -> None:
        self._losses = losses
        self._block = block
        self._params = params
        self._processes = processes
        self._names, self._values = losses.names, losses.values()
        block.refuse_replaced()
        walk = self._walk = Walk.of(losses, KINDS if block.linear else ())
        self._taps = [taps(found.noted) for found in walk.each]
        self._parameters = block.parameters
        reach, bystanders = params.divide(walk.reach)
        inside = set(self._parameters)
        met = [leaf for leaf in reach if leaf in inside]
        self._refuse(met, reach)
        self.left_out = params.left_out(walk.reach, walk.names)
        outside = [leaf for leaf in (*reach, *bystanders) if leaf not in inside]
        # A wrapper, of one process too, waits for every parameter's gradient: it gets it first, the block then its own.
        grouped = distributed.is_available() and distributed.is_initialized()
        self._beside_wrapper = grouped and not block.by_index and not looked_through()
        if not self._beside_wrapper:
            self._delivery = Delivery(walk, outside, shown=met)
        else:
            self._delivery = Delivery(walk, [*met, *outside] if params.restricts else None)
        self.through = self._delivery.through
        self._found: list[dict[Tensor, Tensor]] = []
        self._scale: Tensor

    def _refuse(self, met: Sequence[Tensor], reach: Mapping[Tensor, Sequence[int]]) -> None:
        """What a capture at the block would pass by."""
        walk = self._walk
        self._params.check(walk, {leaf: reach[leaf] for leaf in met}, unsharded_ids())
        if not met and self._processes.size == 1 and any(p.requires_grad for p in self._parameters):
            raise ValueError(f"none of the losses {list(walk.names)} reaches the block {self._block}")
        wanted = {node for leaf in met for node in walk.accumulators[leaf]}
        for name, found in zip(walk.names, walk.each, strict=True):
            refuse_hidden(name, [node for node in found.custom if leads_to(node, wanted)], walk.accumulators)

    def losses(self) -> tuple[tuple[str, ...], Tensor]:
        """The losses of this batch, as means over the processes that have them; after ``run``."""
        return self._names, self._values

    def run(self, scale: Tensor) -> list[SiteRows]:
        """Gradients of every loss at the block, each seeded with ``scale``; a backward no further than there."""
        self._scale = scale
        count = self._processes.size
        if count == 1:
            return self._take(scale)
        with self._processes.together():
            if self._block.by_index:
                raise RuntimeError("by_index=True is for one process: heads of different losses are not averaged")
            found = self._take(scale / count)
        self._names, self._values = self._processes.of_all(self._losses.names, self._values)
        return of_all(found, self._block, self._losses.names, self._names, self._processes, scale.device)

    def _take(self, scale: Tensor) -> list[SiteRows]:
        """The gradients of this process."""
        self._found = []
        calls: list[dict[object, list[tuple[Tap, Tensor]]]] = []
        for loss, noted in enumerate(self._taps):
            beside = [edge for edge, _ in noted]
            grads = self._walk.gradients(loss, self._parameters, scale, retain=True, beside=beside)
            # Copies: static buffers, as of graphed callables, are the same for every loss.
            found = [None if grad is None else grad.clone() for grad in grads]
            inside = zip(self._parameters, found, strict=False)
            self._found.append({parameter: grad for parameter, grad in inside if grad is not None})
            seen: dict[object, list[tuple[Tap, Tensor]]] = {}
            for (_, tap), grad in zip(noted, found[len(self._parameters) :], strict=True):
                if grad is not None:
                    seen.setdefault(tap.layer, []).append((tap, grad))
            calls.append(seen)
        return [rows for site in self._block.sites if (rows := self._rows(site, calls)) is not None]

    def _rows(self, site: Site, calls: list[dict[object, list[tuple[Tap, Tensor]]]]) -> SiteRows | None:
        losses, parts, through = [], [], []
        for index, (name, found) in enumerate(zip(self._losses.names, self._found, strict=True)):
            key = name if site.by_index else ""
            head = site.heads.get(key, ())
            if not any(parameter in found for parameter in head):
                continue
            losses.append(index)
            parts += [found[p] if p in found else torch.zeros_like(p) for p in head]
            if self._block.linear:
                through.append(_merged(calls[index].get(site.layers[key], ()), site.name, name))
        if not losses:
            return None
        rows = torch.cat([part.reshape(-1) for part in parts]).view(len(losses), -1)
        return SiteRows(site, tuple(losses), rows, tuple(through))

    def write(self, fused: Iterable[tuple[SiteRows, Tensor]], weights: Tensor) -> None:
        """Accumulate each site's fused row into ``.grad``; elsewhere, one backward of the weighted losses."""
        weights = select(weights, tuple(map(self._names.index, self._losses.names)))
        if self._beside_wrapper:
            self._write_beside_wrapper(fused, weights)
            return
        for rows, row in fused:
            for name, head in rows.site.heads.items():
                self._accumulate(name, head, row.to(rows.rows.dtype))
        self._found = []
        self._delivery(weights, self._scale)

    def _write_beside_wrapper(self, fused: Iterable[tuple[SiteRows, Tensor]], weights: Tensor) -> None:
        """The same where a wrapper waits for every parameter's gradient."""
        before = {p: None if p.grad is None else p.grad.clone() for p in self._parameters}
        self._found = []
        self._delivery(weights, self._scale)
        for rows, row in fused:
            (head,) = rows.site.heads.values()
            parts = torch.split(row.to(rows.rows.dtype), [parameter.numel() for parameter in head])
            for parameter, part in zip(head, parts, strict=True):
                if not parameter.requires_grad:
                    continue
                kept, grad = before.pop(parameter), part.view(parameter.shape)
                grad = grad if kept is None else kept + grad
                if parameter.grad is None:
                    accumulate([parameter], [grad])
                else:
                    parameter.grad.copy_(grad)  # in place: it may be a view of the wrapper's buffer
        for parameter, kept in before.items():  # reached by no loss of any process
            parameter.grad = kept

    def _accumulate(self, owner: str, head: tuple[Tensor, ...], row: Tensor) -> None:
        """A fused row into one layer, beside what other losses send to a head of its own."""
        parts = torch.split(row, [parameter.numel() for parameter in head])
        others = [found for name, found in zip(self._losses.names, self._found, strict=True) if owner and name != owner]
        for parameter, part in zip(head, parts, strict=True):
            if not any(parameter in found for found in self._found):
                continue  # reached by no loss: its .grad stays as it is, None included
            grad = part.view(parameter.shape)
            for found in others:
                if parameter in found:
                    grad = grad + found[parameter]
            accumulate([parameter], [grad])


def _merged(calls: Sequence[tuple[Tap, Tensor]], site: str, loss: str) -> LinearCall:
    """All calls of a layer that one loss reaches: as positions of the same items, or as more items."""
    if not calls:
        raise RuntimeError(
            f"loss {loss!r} reaches {site!r}, but not through a call of that layer that could be seen: it is compiled, "
            "its weight is used directly, its output was changed in place through a view, or the forward pass came "
            "before the balancer was made. Leave the layer uncompiled, or use variance=StepVariance()"
        )
    inputs = [_by_item(tap.inputs, tap.inputs.shape) for tap, _ in calls]
    grads = [_by_item(grad, tap.outputs.shape) for tap, grad in calls]
    intact = all(tap.intact for tap, _ in calls)
    outputs = [_by_item(tap.outputs, tap.outputs.shape) for tap, _ in calls] if intact else []
    dim = 1 if len({len(x) for x in inputs}) == 1 else 0
    return LinearCall(_joined(grads, dim), _joined(inputs, dim), _joined(outputs, dim) if intact else None)


def _by_item(values: Tensor, shape: torch.Size) -> Tensor:
    """``(N, ..., C)`` as ``(N, T, C)``; a single vector is one item."""
    items = shape[0] if len(shape) > 1 else 1
    return values.reshape(items, -1, shape[-1])


def _joined(parts: Sequence[Tensor], dim: int) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(list(parts), dim)
