from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from balanced_grad.capture._batched import Batching, Parameters, batched_gradients
from balanced_grad.capture._common import average
from balanced_grad.capture._inner import add_block, select, squared_norm
from balanced_grad.capture._losses import Losses
from balanced_grad.capture._params import ParameterFilter
from balanced_grad.capture._partition import Partition, Stretch, to_stretches
from balanced_grad.capture._plan import Group, Plan
from balanced_grad.capture._processes import Processes
from balanced_grad.capture._rows import Arena, Rows
from balanced_grad.capture._walk import Walk
from balanced_grad.capture._window import Window, Written
from balanced_grad.capture._write import accumulate, scaled
from balanced_grad.kernels import combine, gramian

Rule = Callable[[Tensor, tuple[int, ...]], Tensor]  # rows and the positions of their losses -> one row


@dataclass(frozen=True)
class _Exclusive:
    """Gradients of one loss that are kept as autograd gave them."""

    loss: int
    parameters: list[Tensor]
    grads: list[Tensor]


class Memory:
    """What a balancer keeps from step to step for its captures: buffers, and a window where rows are accumulated."""

    def __init__(self, parameters: Parameters) -> None:
        self.arena = Arena()
        self.common = Arena()  # of rows that travel in another layout than that of this process
        self.window: Window | None = None
        self.batching = Batching(parameters)


class ParameterCapture:
    """Per-loss gradients of one batch at the parameters: rows where losses meet, plain tensors elsewhere.

    With several processes, or where micro-batches are accumulated, every gradient is a row, also where a single loss
    arrives: rows are what can be summed. After ``run``, names, losses and Gramian are those of all processes and of
    all micro-batches together.
    """

    _kinds: tuple[type, ...] = ()  # of nodes to be noted on the walk
    through: tuple[Tensor, ...] = ()  # a wrapper that looks through the scalar finds nothing, and waits for nothing

    def __init__(
        self, losses: Losses, params: ParameterFilter, partition: Partition, memory: Memory, processes: Processes
    ) -> None:
        self._losses = losses
        self._params = params
        self._partition = partition
        self._memory = memory
        self._processes = processes
        self._walk = Walk.of(losses, self._kinds)
        self._plan = self._planned()
        self._values = losses.values()
        self._rows: list[Rows] = []
        self._stretches: dict[Rows, list[Stretch]] = {}  # the stretches of columns that one problem's weights apply to
        self._exclusive: list[_Exclusive] = []
        self._beside: list[_Exclusive] = []  # at leaves that are no parameters: of this process and batch alone
        self.problems: tuple[str, ...] = ()

    def _planned(self) -> Plan:
        return Plan.along(self._walk, self._params)

    @property
    def left_out(self) -> str | None:
        """What to say of parameters that ``params=`` or ``groups=`` does not name."""
        reach = self._walk.reach
        return self._params.left_out(reach, self._walk.names) or self._partition.unmet(reach)

    def run(self, scale: Tensor) -> None:
        """One backward per loss, each seeded with ``scale`` and asked only for what that loss reaches."""
        count = self._processes.size
        with self._processes.together():
            self._take(scale / count if count > 1 else scale)
        layout = self._plan, self._rows
        if count > 1:
            named = self._params.given or ()
            layout, self._values = average(layout, self._values, named, self._processes, self._memory.common)
        window = self._memory.window
        if window is not None:
            window.open()
            names, layout = layout[0].names, window.rows(layout)
            self._values = window.losses(names, self._values, layout[0].names)
        self._plan, self._rows = layout
        self._lay_out()

    def _lay_out(self) -> None:
        """Which columns of which rows belong to which problem."""
        shared = [rows for rows in self._rows if rows.group.shared]
        if self._partition.single:  # nothing to tell apart, so no parameter is looked at
            self.problems = ("all",) if shared else ()
            self._stretches = {rows: [Stretch(slice(0, rows.size), 0)] for rows in shared}
        else:
            problem_of, self.problems = self._problems([rows.group for rows in shared])
            pairs = zip(shared, problem_of, strict=True)
            self._stretches = {rows: to_stretches(problems, rows.bounds) for rows, problems in pairs}
        self._stretches |= {rows: [Stretch(slice(0, rows.size), None)] for rows in self._rows if not rows.group.shared}

    def _problems(self, groups: list[Group]) -> tuple[list[list[int | None]], tuple[str, ...]]:
        return self._partition.split(groups, self._plan.names, self._params)

    def _take(self, scale: Tensor) -> None:
        """The gradients of this process and batch."""
        whole = self._processes.size > 1 or self._memory.window is not None
        self._rows = self._memory.arena.rows([group for group in self._plan.groups if group.shared or whole])
        rows_of = {rows.group: rows for rows in self._rows}
        bystanders = self._plan.bystanders
        order = self._walk.order
        keep = self._walk.needed_later()
        batched = self._batched(scale)
        if batched is not None:
            self._spread(batched, rows_of)
            return
        for loss in order:
            groups = self._plan.reached_by(loss)
            beside = [leaf for leaf, losses in bystanders.items() if loss in losses]
            wanted = [*(parameter for group in groups for parameter in group.parameters), *beside]
            received = iter(self._walk.gradients(loss, wanted, scale, retain=keep or loss != order[-1]))
            for group in groups:
                grads = [next(received) for _ in group.parameters]
                if group in rows_of:
                    rows_of[group].write(group.losses.index(loss), grads)
                else:
                    self._exclusive += exclusive(loss, group.parameters, grads)
            self._beside += exclusive(loss, beside, list(received))

    def _batched(self, scale: Tensor) -> dict[Tensor, Tensor] | None:
        """All losses in one pass, where that pays and works; what cannot be batched is not tried again."""
        leaves = [*(parameter for group in self._plan.groups for parameter in group.parameters), *self._plan.bystanders]
        return batched_gradients(self._walk, leaves, scale, self._memory.batching)

    def _spread(self, batched: dict[Tensor, Tensor], rows_of: dict[Group, Rows]) -> None:
        """The gradients of all losses ``(K, ...)`` to where they are kept; a loss has none where it does not reach."""
        for group in self._plan.groups:
            grads = [batched.get(parameter) for parameter in group.parameters]
            if group in rows_of:
                rows_of[group].write_all(grads, len(self._plan.names))
            else:
                loss = group.losses[0]
                self._exclusive += exclusive(loss, group.parameters, [_row(grad, loss) for grad in grads])
        for leaf, losses in self._plan.bystanders.items():
            for loss in losses:
                self._beside += exclusive(loss, [leaf], [_row(batched.get(leaf), loss)])

    def losses(self) -> tuple[tuple[str, ...], Tensor]:
        """The losses of this batch, as means over the processes that have them and over the micro-batches so far."""
        return self._plan.names, self._values

    @property
    def batches(self) -> int:
        """How many micro-batches these gradients are the sum of."""
        return 1 if self._memory.window is None else self._memory.window.batches

    def reach(self) -> tuple[tuple[int, ...], ...]:
        """Per problem, the losses that meet in it."""
        meeting: list[set[int]] = [set() for _ in self.problems]
        for rows, stretches in self._stretches.items():
            for stretch in stretches:
                if stretch.problem is not None:
                    meeting[stretch.problem].update(rows.group.losses)
        return tuple(tuple(sorted(losses)) for losses in meeting)

    def gramian(self, *, exclusive: bool = False) -> Tensor:
        """Float64 inner products over the shared parameters, or over all of them.

        ``(K, K)`` for one problem, ``(S, K, K)`` for a partition into ``S``.
        """
        count = len(self._plan.names)
        single = self._partition.single
        shape = (1 if single else len(self.problems), count, count)
        total = torch.zeros(shape, dtype=torch.float64, device=self._losses.tensors[0].device)
        for rows, stretches in self._stretches.items():
            if all(stretch.problem is None for stretch in stretches):
                continue
            parts = gramian(rows.flat, _bounds(stretches)) if len(stretches) > 1 else gramian(rows.flat)[None]
            for stretch, part in zip(stretches, parts, strict=True):
                if stretch.problem is not None:
                    add_block(total[stretch.problem], part, rows.group.losses)
        if exclusive:
            alone = [(part.loss, part.grads) for part in self._exclusive]
            alone += [(r.group.losses[0], [r.flat[0]]) for r in self._rows if not r.group.shared]
            for loss, grads in alone:
                add_block(total[0], squared_norm(grads), (loss,))
        return total[0] if single else total

    def write(self, weights: Tensor) -> None:
        """Accumulate the weighted sum of the captured gradients into ``.grad``, and forget them.

        ``weights`` is ``(K,)``, or ``(S, K)`` for a partition; there, what no problem covers is summed plainly.
        """
        self._put(self._fuse(weights), weights)

    def write_by(self, rule: Rule, weights: Tensor) -> None:
        """The same, but for what ``rule`` makes of the rows ``(R, D)`` of a problem in place of their weighted sum."""
        self._put(self._fuse(weights, rule), weights)

    def _put(self, fused: Written, weights: Tensor) -> None:
        if self._memory.window is not None:
            self._memory.window.write((self._plan, self._rows), fused)
        else:
            for parameters, grads in fused:
                accumulate(parameters, grads)
            for rows in self._rows:
                rows.release()
        self._write_beside(weights, self._processes.size)

    def _write_beside(self, weights: Tensor, processes: int) -> None:
        """The weighted sum at leaves that are no parameters; no mean over the processes, whose inputs differ."""
        plain = weights.new_ones(weights.shape[-1]) if weights.dim() > 1 else weights
        for part in self._beside:
            weight = plain[self._plan.names.index(self._losses.names[part.loss])] * processes
            accumulate(part.parameters, scaled(part.grads, weight.to(part.grads[0].device)))
        self._beside = []

    def _fuse(self, weights: Tensor, rule: Rule | None = None) -> Written:
        plain = weights.new_ones(weights.shape[-1]) if weights.dim() > 1 else weights
        out = {rows: rows.output() for rows in self._rows}
        for rows, stretches in self._stretches.items():
            if rule is not None and rows.group.shared:
                for stretch in stretches:
                    columns = rows.columns(stretch.columns)
                    inside, losses = rows.flat[:, columns], rows.group.losses
                    apart = stretch.problem is None
                    out[rows][columns] = combine(inside, select(plain, losses)) if apart else rule(inside, losses)
                continue
            problems = [None if weights.dim() == 1 else stretch.problem for stretch in stretches]
            of_stretch = [
                select(plain if problem is None else weights[problem], rows.group.losses).to(rows.flat.device)
                for problem in problems
            ]
            if len(stretches) > 1:
                combine(rows.flat, torch.stack(of_stretch), out[rows], segments=_bounds(stretches))
            else:
                combine(rows.flat, of_stretch[0], out[rows])
        fused: Written = []
        for rows, row in out.items():
            # What no loss gave a gradient keeps its .grad, None included: zero would make an optimizer step it.
            places = zip(rows.group.parameters, rows.views(row), rows.defined, strict=True)
            written = [(parameter, view) for parameter, view, defined in places if defined]
            fused.append(([parameter for parameter, _ in written], [view for _, view in written]))
        for part in self._exclusive:
            fused.append((part.parameters, scaled(part.grads, plain[part.loss].to(part.grads[0].device))))
        self._exclusive = []
        return fused


def exclusive(loss: int, leaves: Sequence[Tensor], grads: Sequence[Tensor | None]) -> list[_Exclusive]:
    """Those that there are."""
    there = [(leaf, grad) for leaf, grad in zip(leaves, grads, strict=True) if grad is not None]
    return [_Exclusive(loss, [leaf for leaf, _ in there], [grad for _, grad in there])] if there else []


def _row(grads: Tensor | None, loss: int) -> Tensor | None:
    return None if grads is None else grads[loss]


def _bounds(stretches: list[Stretch]) -> list[int]:
    """Where each stretch starts, and where the last one ends."""
    return [stretch.columns.start for stretch in stretches] + [stretches[-1].columns.stop]
