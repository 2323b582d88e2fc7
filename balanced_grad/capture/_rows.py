import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from balanced_grad.caching import cached
from balanced_grad.capture._plan import Group, grad_dtype

_ALIGN = 16  # bytes: where every parameter of a row starts, for vectorised loads


class Rows:
    """Gradients of one group, one row per loss: a flat ``(R, D)`` buffer with a view per parameter.

    A view has its parameter's strides, so a gradient made from a row keeps autograd's layout contract.
    Padding between parameters is zero and stays zero.
    """

    def __init__(self, group: Group) -> None:
        self.group = group
        self._layout, size = _layout(group.parameters)
        first = group.parameters[0]
        self.flat = torch.zeros(len(group.losses), size, dtype=grad_dtype(first).to_real(), device=first.device)
        self._views = [self.views(row) for row in self.flat]
        self.defined = [False] * len(group.parameters)
        self._output: tuple[Tensor, int | None] | None = None
        self._stacks: list[Tensor] = []

    @staticmethod
    def row_bytes(group: Group) -> int:
        """Bytes of one row, without making any."""
        return _layout(group.parameters)[1] * grad_dtype(group.parameters[0]).to_real().itemsize

    def views(self, row: Tensor) -> list[Tensor]:
        """One view per parameter into a flat ``(D,)`` row."""
        if self.group.parameters[0].is_complex():
            row = torch.view_as_complex(row.view(-1, 2))
        start = row.storage_offset()
        return [row.as_strided(shape, stride, start + offset) for shape, stride, offset in self._layout]

    def stacks(self) -> dict[Tensor, Tensor]:
        """Per parameter the gradients of all losses, ``(R, ...)`` views of the rows."""
        if not self._stacks:
            whole = self.flat
            if self.group.parameters[0].is_complex():
                whole = torch.view_as_complex(whole.view(len(whole), -1, 2))
            step = whole.stride(0)
            self._stacks = [whole.as_strided((len(whole), *x), (step, *y), start) for x, y, start in self._layout]
        return dict(zip(self.group.parameters, self._stacks, strict=True))

    @property
    def size(self) -> int:
        """Length of a row, in real numbers."""
        return self.flat.shape[1]

    @property
    def bounds(self) -> list[int]:
        """Where each parameter starts in a row, in real numbers, and where the row ends."""
        unit = 2 if self.group.parameters[0].is_complex() else 1
        return [unit * offset for _, _, offset in self._layout] + [self.size]

    def columns(self, among: slice) -> Tensor:
        """Which columns of these hold an entry of a parameter, ``(n,)`` int64: made once per layout."""
        unit = 2 if self.group.parameters[0].is_complex() else 1
        stretches = ((unit * start, unit * math.prod(shape)) for shape, _, start in self._layout)
        inside = tuple((start, start + size) for start, size in stretches if among.start <= start < among.stop)
        return _columns(inside, self.flat.device)

    def output(self) -> Tensor:
        """A ``(D,)`` buffer for the combined row, whose views become ``.grad``.

        On the CPU, where fresh memory costs more than the pass that fills it, last step's buffer is taken again
        if nothing refers to it any more: as many uses as when this object alone held it.
        """
        if not self.flat.is_cpu:
            return self.flat.new_empty(self.size)
        if self._output is not None:
            buffer, alone = self._output
            if alone is not None and _uses(buffer) == alone:
                return buffer
        buffer = self.flat.new_empty(self.size)
        self._output = buffer, _uses(buffer)
        return buffer

    def clear(self) -> None:
        """Forget which parameters have a gradient; the numbers are overwritten by the next capture."""
        self.defined = [False] * len(self.group.parameters)

    def zero(self) -> None:
        """Rows to be added to, in which every parameter has a gradient."""
        self.flat.zero_()
        self.defined = [True] * len(self._layout)

    def release(self) -> None:
        """Let go of the parameters: a model that is deleted between two steps must not live on here."""
        self.group = Group(self.group.losses, ())

    def write(self, row: int, grads: Sequence[Tensor | None]) -> None:
        """Copy one loss's gradients in: what autograd returns may be aliased or zero-stride."""
        views = self._views[row]
        dense = [grad for grad in grads if grad is not None and not grad.is_sparse]
        if len(dense) == len(views):
            self.defined = [True] * len(views)
            torch._foreach_copy_(views, dense)
            return
        for position, (view, grad) in enumerate(zip(views, grads, strict=True)):
            if grad is None:
                view.zero_()
                continue
            if grad.is_sparse:
                who = "is reached by several losses" if self.group.shared else "its gradients are kept or averaged here"
                raise RuntimeError(
                    f"a parameter of shape {tuple(grad.shape)} has sparse gradients, and {who}; "
                    "build its embedding with sparse=False, or use a losses-only balancer such as Uniform or MIMO"
                )
            self.defined[position] = True
            view.copy_(grad)

    def write_all(self, grads: Sequence[Tensor | None], losses: int) -> None:
        """Copy in what all losses send to each parameter, ``(losses, ...)``; of these, the rows have the group's."""
        there = [grad for grad in grads if grad is not None]
        if len(self.group.losses) == losses and len(there) == len(grads):
            self.defined = [True] * len(grads)
            torch._foreach_copy_(list(self.stacks().values()), there)
            return
        for row, loss in enumerate(self.group.losses):
            self.write(row, [None if grad is None else grad[loss] for grad in grads])

    def places(self) -> list[tuple[int, Tensor, int, Tensor]]:
        """One entry per gradient held: loss, parameter, the parameter's position in the group, view of the gradient."""
        return [
            (loss, parameter, position, view)
            for loss, views in zip(self.group.losses, self._views, strict=True)
            for position, (parameter, view) in enumerate(zip(self.group.parameters, views, strict=True))
        ]


class Arena:
    """Row buffers kept between steps, so that a step allocates nothing.

    They are found again by shape, not by parameter, and those of layouts no longer met are dropped once the
    arena holds more than twice what the current step needs.
    """

    def __init__(self) -> None:
        self._kept: dict[tuple[object, ...], Rows] = {}  # least recently used first

    def rows(self, groups: Sequence[Group]) -> list[Rows]:
        """Rows for the groups; the same buffers as last time where the shapes are the same."""
        twins: Counter[tuple[object, ...]] = Counter()  # two encoders of one architecture need two buffers
        current = []
        for group in groups:
            shapes = tuple((p.shape, p.stride()) for p in group.parameters)
            kind = (len(group.losses), grad_dtype(group.parameters[0]), group.parameters[0].device, shapes)
            key = (*kind, twins[kind])
            twins[kind] += 1
            rows = self._kept.pop(key, None) or Rows(group)
            rows.group = group
            rows.clear()
            self._kept[key] = rows
            current.append(rows)
        limit = 2 * sum(rows.flat.nbytes for rows in current)
        while sum(rows.flat.nbytes for rows in self._kept.values()) > limit:
            self._kept.pop(next(iter(self._kept)))
        return current

    @property
    def nbytes(self) -> int:
        """Memory held, in bytes."""
        return sum(rows.flat.nbytes for rows in self._kept.values())

    def __reduce__(self) -> tuple[Any, ...]:
        return Arena, ()  # scratch memory: neither copied nor pickled


def _uses(tensor: Tensor) -> int | None:
    """How many tensors share this storage; None where torch does not tell."""
    count = getattr(torch._C, "_storage_Use_Count", None)
    return None if count is None else int(count(tensor.untyped_storage()._cdata))


def _layout(parameters: Sequence[Tensor]) -> tuple[list[tuple[torch.Size, tuple[int, ...], int]], int]:
    """Shape, strides and offset of every parameter in a row, and the row's length in real numbers."""
    layout, offset = [], 0
    for parameter in parameters:
        # Keeps the strides where they are dense.
        dense = torch.empty_like(parameter, device="meta", dtype=grad_dtype(parameter))
        layout.append((dense.shape, dense.stride(), offset))
        unit = max(1, _ALIGN // dense.itemsize)
        offset += -(-dense.numel() // unit) * unit
    return layout, offset * (2 if parameters[0].is_complex() else 1)


@cached(maxsize=256)
def _columns(stretches: tuple[tuple[int, int], ...], device: torch.device) -> Tensor:
    return torch.cat([torch.arange(start, stop) for start, stop in stretches]).to(device)
