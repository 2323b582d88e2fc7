import hashlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Literal, Union

import torch
from torch import Tensor, distributed

from balanced_grad.capture._numbers import Numbers

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup as TorchGroup

ProcessGroup = Union["TorchGroup", Literal["default"], None]
_SMALL = 1 << 24  # bytes: below, a reduction is mostly waiting
_PATIENCE = timedelta(seconds=30)  # of a process that failed, to tell the others


class Processes:
    """The processes that train one model on different data, and what they agree on before they exchange gradients.

    What is agreed on travels between hosts, as bytes: no process waits for its device.
    """

    def __init__(self, group: ProcessGroup = "default") -> None:
        if isinstance(group, str) and group != "default":
            raise ValueError(
                f"process_group={group!r}: give a process group, 'default', or None for this process alone"
            )
        self.group = group
        self.numbers = Numbers()
        self._host: tuple[TorchGroup, TorchGroup] | None = None  # the group, and one that reaches its hosts

    @property
    def size(self) -> int:
        """How many there are; 1 without torch.distributed."""
        if self.group is None or not (distributed.is_available() and distributed.is_initialized()):
            return 1
        return distributed.get_world_size(self._group)

    @property
    def rank(self) -> int:
        """Which of them this is."""
        return distributed.get_rank(self._group) if self.size > 1 else 0

    @property
    def _group(self) -> "TorchGroup | None":
        return None if self.group is None or isinstance(self.group, str) else self.group

    @contextmanager
    def together(self) -> Iterator[None]:
        """Should what runs here fail, the others are told in their next ``agree``, so that none of them waits.

        Nothing that waits for the others may run inside.
        """
        try:
            yield
        except Exception:
            if self.size > 1:
                with suppress(Exception):  # the others are gone: what counts is the error itself
                    self._gather(0, failed=True)
            raise

    def agree(self, said: object) -> list[Any]:
        """What each process says, in their order; a few bytes travel where all say the same.

        ``said`` is made of tuples, strings and numbers, so that equal values have equal ``repr``.
        """
        digest = hashlib.blake2b(repr(said).encode(), digest_size=8).digest()
        gathered = self._gather(int.from_bytes(digest, "little", signed=True))
        failed = [rank for rank, (_, error) in enumerate(gathered) if error]
        if failed:
            raise RuntimeError(
                f"process {failed[0]} failed in this step (its own error says why); this one has nothing to average "
                "with, so it stops too"
            )
        if len({answer for answer, _ in gathered}) == 1:
            return [said] * self.size
        answers: list[Any] = [None] * self.size
        distributed.all_gather_object(answers, said, group=self._hosts())
        return answers

    def _gather(self, message: int, failed: bool = False) -> list[tuple[int, int]]:
        mine = torch.tensor([message, failed], device="cpu")
        gathered = [torch.empty_like(mine) for _ in range(self.size)]
        work = distributed.all_gather(gathered, mine, group=self._hosts(), async_op=True)
        assert work is not None
        if failed:
            work.wait(_PATIENCE)
        else:
            work.wait()
        return [(answer, error) for answer, error in torch.stack(gathered).tolist()]

    def _hosts(self) -> "TorchGroup":
        """The same processes, reached through their hosts: the group itself if its backend can, else one made once."""
        group = self._group or distributed.group.WORLD
        assert group is not None
        if self._host is None or self._host[0] is not group:
            host = group
            if "cpu:" not in distributed.get_backend_config(group):
                ranks = distributed.get_process_group_ranks(group)
                host = distributed.new_group(ranks, backend="gloo", use_local_synchronization=True)
            self._host = group, host
        return self._host[1]

    def sum(self, *buffers: Tensor) -> None:
        """Sum each contiguous buffer over the processes, in place; small ones travel together."""
        together: dict[tuple[torch.dtype, torch.device], list[Tensor]] = {}
        for buffer in buffers:
            if buffer.nbytes < _SMALL:
                together.setdefault((buffer.dtype, buffer.device), []).append(buffer)
        joined = [(parts, parts[0] if len(parts) == 1 else _joined(parts)) for parts in together.values()]
        alone = [buffer for buffer in buffers if buffer.nbytes >= _SMALL]
        flats = alone + [flat for _, flat in joined]
        works = [distributed.all_reduce(flat, group=self._group, async_op=True) for flat in flats]
        for work in works:
            assert work is not None
            work.wait()
        for parts, flat in joined:
            if len(parts) > 1:
                pieces = torch.split(flat, [part.numel() for part in parts])
                torch._foreach_copy_(parts, [piece.view_as(part) for piece, part in zip(pieces, parts, strict=True)])

    def mean(
        self, said: Sequence[tuple[str, ...]], names: tuple[str, ...], values: Tensor, beside: Sequence[Tensor] = ()
    ) -> Tensor:
        """Mean of each loss over the processes that have it, for the union of the names ``said`` by each of them.

        The buffers ``beside`` are summed in place on the way.
        """
        union = merged(said)
        here = dict(zip(names, values.unbind(), strict=True))
        absent = values.new_zeros(())
        total = torch.stack([here.get(name, absent) for name in union])
        self.sum(*beside, total)
        counts = [sum(name in theirs for theirs in said) for name in union]
        if len(set(counts)) == 1:
            return total / counts[0]
        return torch.stack([value / count for value, count in zip(total.unbind(), counts, strict=True)])

    def of_all(self, names: tuple[str, ...], values: Tensor) -> tuple[tuple[str, ...], Tensor]:
        """All losses' names, and the mean of each over the processes that have it."""
        said = self.agree(names)
        return merged(said), self.mean(said, names, values)

    def sum_rows(self, rows: Mapping[str, Tensor], device: torch.device) -> dict[str, Tensor]:
        """Sum of each named row over the processes: one reduction per dtype, whichever of them have which rows.

        A process without a row counts as zero. The result has the rows of all processes, in the same order
        everywhere, flat where this process has none. Every process must call it, one without rows too.
        """
        said = self.agree(tuple((name, row.numel(), str(row.dtype)) for name, row in rows.items()))
        kinds: dict[str, tuple[int, str]] = {}
        for name, size, dtype in (entry for entries in said for entry in entries):
            if kinds.setdefault(name, (size, dtype)) != (size, dtype):
                raise ValueError(f"row {name!r} has {kinds[name]} entries on one process, {(size, dtype)} on another")
        out: dict[str, Tensor] = {}
        for kind in sorted({kind for _, kind in kinds.values()}):
            sizes = {name: size for name, (size, dtype) in kinds.items() if dtype == kind}
            flat = torch.zeros(sum(sizes.values()), dtype=getattr(torch, kind.removeprefix("torch.")), device=device)
            out |= zip(sizes, torch.split(flat, list(sizes.values())), strict=True)
            for name in sizes.keys() & rows.keys():
                out[name].copy_(rows[name].reshape(-1))
            self.sum(flat)
        return {name: out[name].view_as(rows[name]) if name in rows else out[name] for name in kinds}

    def __reduce__(self) -> tuple[Any, ...]:
        return Processes, ("default" if self._group is not None else self.group,)  # a group lives in its process only


def merged(said: Sequence[tuple[str, ...]]) -> tuple[str, ...]:
    """All names, each once: those of the first process first."""
    return tuple(dict.fromkeys(name for names in said for name in names))


def _joined(parts: Sequence[Tensor]) -> Tensor:
    return torch.cat([part.view(-1) for part in parts])
