from dataclasses import dataclass

import torch
from torch import Tensor

from balanced_grad.capture._gradients import gradients
from balanced_grad.capture._inner import add_block, select, squared_norm
from balanced_grad.capture._losses import JOINT, Losses
from balanced_grad.capture._plan import ParameterFilter, Plan
from balanced_grad.capture._rows import Arena, Rows
from balanced_grad.capture._write import accumulate, scaled
from balanced_grad.kernels import combine, gramian


@dataclass(frozen=True)
class _Exclusive:
    """Gradients at parameters that one loss alone reaches."""

    loss: int
    parameters: list[Tensor]
    grads: list[Tensor]


class ParameterCapture:
    """Per-loss gradients of one batch at the parameters: rows where losses meet, plain tensors elsewhere."""

    def __init__(self, losses: Losses, params: ParameterFilter, arena: Arena) -> None:
        self._losses = losses
        self._plan = Plan.of(losses, params)
        self._arena = arena
        self._rows: list[Rows] = []
        self._exclusive: list[_Exclusive] = []

    def run(self, scale: Tensor) -> None:
        """One backward per loss, each seeded with ``scale`` and asked only for what that loss reaches."""
        self._rows = self._arena.rows([group for group in self._plan.groups if group.shared])
        rows_of = {rows.group: rows for rows in self._rows}
        # The joint loss has the largest graph: last, so that it is freed as it is traversed.
        order = sorted(range(len(self._losses.names)), key=lambda i: self._losses.names[i] == JOINT)
        for loss in order:
            groups = self._plan.reached_by(loss)
            wanted = [parameter for group in groups for parameter in group.parameters]
            found = iter(gradients(self._losses.tensors[loss], wanted, scale, retain=loss != order[-1]))
            for group in groups:
                own = [(parameter, next(found)) for parameter in group.parameters]
                if group.shared:
                    rows_of[group].write(group.losses.index(loss), [grad for _, grad in own])
                    continue
                defined = [(parameter, grad) for parameter, grad in own if grad is not None]
                if defined:
                    self._exclusive.append(_Exclusive(loss, [p for p, _ in defined], [g for _, g in defined]))

    def meets(self) -> tuple[bool, ...]:
        """Per loss, whether it meets another one in some parameter."""
        meeting = {loss for group in self._plan.groups if group.shared for loss in group.losses}
        return tuple(loss in meeting for loss in range(len(self._losses.names)))

    def gramian(self, *, exclusive: bool = False) -> Tensor:
        """``(K, K)`` float64 inner products over the shared parameters, or over all of them."""
        count = len(self._losses.names)
        total = torch.zeros(count, count, dtype=torch.float64, device=self._losses.tensors[0].device)
        for rows in self._rows:
            add_block(total, gramian(rows.flat), rows.group.losses)
        for part in self._exclusive if exclusive else ():
            add_block(total, squared_norm(part.grads), (part.loss,))
        return total

    def write(self, weights: Tensor) -> None:
        """Accumulate the weighted sum of the captured gradients into ``.grad``, and forget them."""
        for rows in self._rows:
            fused = combine(rows.flat, select(weights, rows.group.losses).to(rows.flat.device))
            # What no loss gave a gradient keeps its .grad, None included: zero would make an optimizer step it.
            defined = [
                (parameter, view)
                for parameter, view, given in zip(rows.group.parameters, rows.views(fused), rows.defined, strict=True)
                if given
            ]
            accumulate([p for p, _ in defined], [v for _, v in defined])
        for part in self._exclusive:
            weight = weights[part.loss].to(part.grads[0].device)
            accumulate(part.parameters, scaled(part.grads, weight))
        self._exclusive = []
