from dataclasses import dataclass

import torch
from torch import Tensor

from balanced_grad.capture._gradients import gradients
from balanced_grad.capture._inner import add_block, select, squared_norm
from balanced_grad.capture._losses import JOINT, Losses
from balanced_grad.capture._partition import Partition, Run, runs
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

    def __init__(self, losses: Losses, params: ParameterFilter, partition: Partition, arena: Arena) -> None:
        self._losses = losses
        self._plan = Plan.of(losses, params)
        shared = [group for group in self._plan.groups if group.shared]
        self._problem_of, self.problems = partition.split(shared, losses.names, params)
        self._single = partition.single
        self._arena = arena
        self._rows: list[Rows] = []
        self._runs: list[tuple[Rows, Run]] = []  # every stretch of columns that one problem's weights apply to
        self._exclusive: list[_Exclusive] = []

    def run(self, scale: Tensor) -> None:
        """One backward per loss, each seeded with ``scale`` and asked only for what that loss reaches."""
        self._rows = self._arena.rows([group for group in self._plan.groups if group.shared])
        self._runs = [
            (rows, run)
            for rows, problems in zip(self._rows, self._problem_of, strict=True)
            for run in runs(problems, rows.bounds)
        ]
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

    def reach(self) -> tuple[tuple[int, ...], ...]:
        """Per problem, the losses that meet in it."""
        found: list[set[int]] = [set() for _ in self.problems]
        for rows, run in self._runs:
            if run.problem is not None:
                found[run.problem].update(rows.group.losses)
        return tuple(tuple(sorted(losses)) for losses in found)

    def gramian(self, *, exclusive: bool = False) -> Tensor:
        """Float64 inner products over the shared parameters, or over all of them.

        ``(K, K)`` for one problem, ``(S, K, K)`` for a partition into ``S``.
        """
        count = len(self._losses.names)
        shape = (1 if self._single else len(self.problems), count, count)
        total = torch.zeros(shape, dtype=torch.float64, device=self._losses.tensors[0].device)
        for rows, run in self._runs:
            if run.problem is not None:
                add_block(total[run.problem], gramian(rows.flat[:, run.columns]), rows.group.losses)
        for part in self._exclusive if exclusive else ():
            add_block(total[0], squared_norm(part.grads), (part.loss,))
        return total[0] if self._single else total

    def write(self, weights: Tensor) -> None:
        """Accumulate the weighted sum of the captured gradients into ``.grad``, and forget them.

        ``weights`` is ``(K,)``, or ``(S, K)`` for a partition; there, what no problem covers is summed plainly.
        """
        plain = weights.new_ones(weights.shape[-1]) if weights.dim() > 1 else weights
        fused = {rows: rows.output() for rows in self._rows}
        for rows, run in self._runs:
            own = plain if weights.dim() == 1 or run.problem is None else weights[run.problem]
            own = select(own, rows.group.losses).to(rows.flat.device)
            combine(rows.flat[:, run.columns], own, out=fused[rows][run.columns])
        for rows, row in fused.items():
            # What no loss gave a gradient keeps its .grad, None included: zero would make an optimizer step it.
            given = list(zip(rows.group.parameters, rows.views(row), rows.defined, strict=True))
            accumulate([p for p, _, defined in given if defined], [view for _, view, defined in given if defined])
        for part in self._exclusive:
            accumulate(part.parameters, scaled(part.grads, plain[part.loss].to(part.grads[0].device)))
        self._exclusive = []
