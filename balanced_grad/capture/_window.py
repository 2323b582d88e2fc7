from collections.abc import Collection, Sequence
from typing import Any

import torch
from torch import Tensor

from balanced_grad.capture._common import Layout, summed
from balanced_grad.capture._plan import Plan
from balanced_grad.capture._rows import Arena
from balanced_grad.capture._write import accumulate

Written = list[tuple[list[Tensor], list[Tensor]]]  # parameters, and what was added to their .grad


class Window:
    """The micro-batches of one optimizer step: their rows added up, and what was made of them in ``.grad``.

    After every micro-batch ``.grad`` holds the fusion of all rows so far, in the place of the last one, so that it
    can be unscaled, clipped and stepped with at any time. A batch counts when its gradients are written: a step that
    fails before leaves everything as it was.
    """

    def __init__(self) -> None:
        self._arena, self._next = Arena(), Arena()
        self.close()

    def close(self) -> None:
        """The optimizer has stepped, or the gradients were dropped: what comes next is a new step."""
        self._rows: Layout | None = None
        self._written: Written = []
        self._losses: dict[str, tuple[Tensor, int]] = {}  # sum and count
        self._new_losses = self._losses
        self._version = 0  # of the first gradient written
        self._batches = 0

    def open(self) -> None:
        """Close if ``.grad`` was dropped behind our back: set to None, or to zero.

        Where only some of them were set to None, those parameters alone begin anew. Looks at values only where
        something else has changed them, as another backward does, too.
        """
        written = [p for parameters, _ in self._written for p in parameters]
        dropped = {p for p in written if p.grad is None}
        if dropped and len(dropped) < len(written):
            self._forget(dropped)
            return
        first = written[0].grad if written else None
        changed = first is not None and first._version != self._version
        if dropped or (changed and not any(bool(p.grad.any()) for p in written if p.grad is not None)):
            self.close()

    def _forget(self, dropped: Collection[Tensor]) -> None:
        """Take what these parameters have received out of the window."""
        assert self._rows is not None
        for rows in self._rows[1]:
            for _, parameter, position, view in rows.places():
                if parameter in dropped:
                    view.zero_()
                    rows.defined[position] = False
        left = [[(p, grad) for p, grad in zip(*part, strict=True) if p not in dropped] for part in self._written]
        self._written = [([p for p, _ in part], [grad for _, grad in part]) for part in left]
        self._version = next((_version(p.grad) for part in left for p, _ in part), 0)

    @property
    def batches(self) -> int:
        """The number of this batch in its window, from 1."""
        return self._batches + 1

    def rows(self, new: Layout) -> Layout:
        """Those of the window with the new ones."""
        parts = [new] if self._rows is None else [self._rows, new]
        plan = Plan.union([plan for plan, _ in parts])
        return plan, summed(parts, plan, self._next)

    def losses(self, names: Sequence[str], values: Tensor, wanted: Sequence[str]) -> Tensor:
        """Means over the window and the new batch, of those wanted."""
        sums = dict(self._losses)
        for name, value in zip(names, values.unbind(), strict=True):
            total, count = sums.get(name, (torch.zeros_like(value), 0))
            sums[name] = total + value, count + 1
        self._new_losses = sums
        return torch.stack([total / count for total, count in (sums[name] for name in wanted)])

    def write(self, rows: Layout, fused: Written) -> None:
        """Put the fusion of all rows in the place of the last one, and count the batch."""
        for parameters, grads in self._written:
            for parameter, grad in zip(parameters, grads, strict=True):
                assert parameter.grad is not None
                parameter.grad.sub_(grad)  # exact where nothing else was added, and keeps what was
        for parameters, grads in fused:
            accumulate(parameters, [grad.clone() for grad in grads])
        self._rows, self._losses, self._written = rows, self._new_losses, fused
        self._version = next((_version(p.grad) for parameters, _ in fused for p in parameters), 0)
        self._batches += 1
        self._arena, self._next = self._next, self._arena

    def __reduce__(self) -> tuple[Any, ...]:
        return Window, ()  # a step that is under way is neither copied nor pickled


def _version(grad: Tensor | None) -> int:
    return 0 if grad is None else grad._version
