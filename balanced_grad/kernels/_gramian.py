from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise

import torch
from torch import Tensor

from balanced_grad.kernels._compiled import compiled
from balanced_grad.kernels._dispatch import Implementation, choose, plain
from balanced_grad.kernels._layout import check_rows, wide
from balanced_grad.kernels._segments import Bounds, add_up, check_bounds, segment_plan
from balanced_grad.kernels._sharded import is_sharded, sum_over_shards

CHUNK = 1024  # columns per fp32 partial product: small enough to stay exact, large enough for one batched call
_MOST_PAIRED = 4
_SMALL, _LARGE = 1e-24, 1e36  # squared norms of a chunk that float32 gives to all its digits
_WIDENED = 16  # chunks that are doubled at a time
_COPIED = 256  # chunks that are widened, or whose signs are taken, at a time


def gramian(rows: Tensor, segments: Sequence[int] | None = None, *, implementation: Implementation = "auto") -> Tensor:
    """Gramian of the rows, in one read and with partial sums in float64.

        G_ij = Σ_d r_id r_jd

    Products over chunks of 1024 columns are formed in float32 (float64 rows, and chunks that float32 could not
    hold: in float64) by one batched matrix product and added up in float64. At cosine 0.999999 and D = 1e7 this
    keeps two digits of ``|g_1 - g_2|²``, of which a float32 ``rows @ rows.T`` keeps none.

    Args:
        rows: ``(M, D)``, real floating point; half precision is widened chunk by chunk. A DTensor whose columns
            are sharded is multiplied shard by shard, and only the ``(M, M)`` results travel.
        segments: where each of ``S`` segments of columns starts, and the end: rising from 0 to D. One Gramian per
            segment, in the same single read. Default: one for all columns.
        implementation: ``"auto"`` (default) is Triton on CUDA and the reference elsewhere; see the page on kernels.

    Returns:
        ``(M, M)``, or ``(S, M, M)`` with segments: float64 on the device of ``rows``, the same on every process.
        Non-finite rows give non-finite entries, in their own segment only.

    Raises:
        TypeError, ValueError: for rows that are not ``(M, D)`` real floating point, bounds that do not rise from 0 to
            D, an unknown implementation, or a DTensor that is neither sharded along its columns nor replicated.
        RuntimeError: for ``implementation="triton"`` where Triton cannot run.

    Examples:
        >>> import torch
        >>> from balanced_grad.kernels import gramian
        >>> rows = torch.tensor([[1.0, 2.0, 2.0], [0.0, 1.0, 0.0]])
        >>> gramian(rows)
        tensor([[9., 2.],
                [2., 1.]], dtype=torch.float64)
        >>> gramian(rows, [0, 1, 3]).diagonal(dim1=1, dim2=2)  # squared norms, per segment
        tensor([[1., 0.],
                [8., 1.]], dtype=torch.float64)
    """
    check_rows(rows)
    if is_sharded(rows):
        if segments is not None:
            raise ValueError("segments of sharded rows lie across processes; leave segments out, or gather the rows")
        return sum_over_shards(lambda local: products(local, None, False, implementation)[0], rows)
    bounds = None if segments is None else check_bounds(segments, rows.shape[1])
    return products(rows, bounds, False, implementation)[0]


def products(rows: Tensor, bounds: Bounds | None, signs: bool, implementation: str) -> Tensor:
    """The Gramian, and with ``signs`` that of the signs too: ``(1 or 2, M, M)`` or ``(1 or 2, S, M, M)``."""
    segments = None if bounds is None else list(bounds)
    return (_operator if torch.compiler.is_compiling() else _run)(rows, segments, signs, implementation)


def _run(rows: Tensor, segments: list[int] | None, signs: bool, implementation: str) -> Tensor:
    chosen = choose(implementation, rows)
    with plain(rows):
        bounds = None if segments is None else tuple(segments)
        if chosen == "reference":
            return _whole(rows, signs) if bounds is None else _by_segment(rows, bounds, signs)
        if chosen == "compiled":
            edges = bounds or (0, rows.shape[1])
            # More pairs than this compile for minutes: a library call from there on.
            pairs = compiled(_pairs, len(rows), rows.dtype, signs) if len(rows) <= _MOST_PAIRED else None
            parts = [_whole(rows[:, start:stop], signs, pairs) for start, stop in pairwise(edges)]
            found = torch.stack(parts, 1)
        else:
            from balanced_grad.kernels import _triton

            found = _triton.gramian(rows, bounds or (0, rows.shape[1]), signs)
        return (found[:, 0] if bounds is None else found).contiguous()


def _whole(rows: Tensor, signs: bool, pairs: Callable[[list[Tensor], bool], Tensor] | None = None) -> Tensor:
    count, size = rows.shape
    full = size - size % CHUNK
    total = torch.zeros(1 + signs, count, count, dtype=torch.float64, device=rows.device)
    if pairs is not None and full:
        total += pairs(list(rows[:, :full].reshape(count, -1, CHUNK).unbind(0)), signs)
    for part in _chunks(rows[:, :full], signs) if pairs is None else ():
        total += _products(part, signs).sum(0, dtype=torch.float64)
    if full < size:
        total += _products(rows[:, full:].to(wide(rows.dtype)).unsqueeze(0), signs)[0]
    return total


def _by_segment(rows: Tensor, bounds: Bounds, signs: bool) -> Tensor:
    """On the grid of chunks of the whole; what lies between chunks and the ends of segments is gathered."""
    count, size = rows.shape
    plan = segment_plan(bounds, CHUNK, rows.device)
    parts = [_products(part, signs) for part in _chunks(rows[:, : size - size % CHUNK], signs)]
    for gather in plan.gathers:
        block = rows[:, gather.columns].to(wide(rows.dtype)).masked_fill_(~gather.inside, 0)
        parts.append(_products(block.transpose(0, 1), signs))
    if not parts:
        return torch.zeros(1 + signs, len(bounds) - 1, count, count, dtype=torch.float64, device=rows.device)
    each = torch.cat(parts)[plan.order].double()
    return add_up(each, plan.lengths)


def _chunks(rows: Tensor, signs: bool) -> Iterator[Tensor]:
    """``(C, M, 1024)`` in at least float32; where a copy is needed on the way, of a part at a time."""
    if rows.shape[1]:
        chunks = rows.reshape(len(rows), -1, CHUNK).transpose(0, 1)
        step = _COPIED if signs or rows.itemsize < 4 else len(chunks)
        for start in range(0, len(chunks), step):
            yield chunks[start : start + step].to(wide(rows.dtype))


def _products(chunks: Tensor, signs: bool) -> Tensor:
    """``(C, 1 or 2, M, M)`` float64; in float64 from the start what float32 could not hold."""
    values = chunks if chunks.is_cpu else chunks.double()  # elsewhere to look at them would wait for the device
    found = torch.bmm(values, values.mT).double()
    if values.itemsize < 8:
        squares = found.diagonal(dim1=1, dim2=2)
        far = ((squares < _SMALL) | ~(squares < _LARGE)).any(1)  # zeros too: they may be squares that vanished
        for some in torch.split(far.nonzero()[:, 0], _WIDENED):
            wider = values[some].double()
            found[some] = torch.bmm(wider, wider.mT)
    found = found.unsqueeze(1)
    if not signs:
        return found
    sign = chunks.sign()
    return torch.cat([found, torch.bmm(sign, sign.mT).double().unsqueeze(1)], 1)


def _pairs(rows: list[Tensor], signs: bool) -> Tensor:
    """Products of ``(C, 1024)`` rows by pairs: this compiles to one read; a batched product stays a library call."""
    values = [row.double() for row in rows]  # fused with the product: no copy, and no range to leave
    kinds = [values, [row.sign() for row in values]] if signs else [values]
    total = torch.empty(len(kinds), len(rows), len(rows), dtype=torch.float64, device=rows[0].device)
    for kind, found in zip(kinds, total.unbind(0), strict=True):
        for i, one in enumerate(kind):
            for j, other in enumerate(kind[: i + 1]):
                found[i, j] = found[j, i] = (one * other).sum(-1).sum()
    return total


_SCHEMA = "(Tensor rows, SymInt[]? segments, bool signs, str implementation) -> Tensor"
_operator = torch.library.custom_op("balanced_grad::gramian", mutates_args=(), schema=_SCHEMA)(_run)


@_operator.register_fake
def _(rows: Tensor, segments: list[int] | None, signs: bool, implementation: str) -> Tensor:
    count = rows.shape[0]
    middle = () if segments is None else (len(segments) - 1,)
    return rows.new_empty((1 + signs, *middle, count, count), dtype=torch.float64)
