from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise

import torch
from torch import Tensor

from balanced_grad.kernels._compiled import compiled
from balanced_grad.kernels._dispatch import Implementation, choose, plain
from balanced_grad.kernels._layout import check_rows, wide
from balanced_grad.kernels._segments import Bounds, add_up, check_bounds, segment_plan

CHUNK = 1024  # columns per fp32 partial product: small enough to stay exact, large enough for one batched call
_MOST_PAIRED = 4
_SMALL, _LARGE = 1e-24, 1e36  # squared norms of a chunk that float32 gives to all its digits
_WIDENED = 16  # chunks that are doubled at a time
_COPIED = 256  # chunks that are widened at a time
_FEW = 1 << 18  # numbers that a CPU widens and multiplies whole in less time than it takes to look at chunks


def gramian(rows: Tensor, segments: Sequence[int] | None = None, *, implementation: Implementation = "auto") -> Tensor:
    """Gramian of the rows, in one read and with partial sums in float64.

        G_ij = Σ_d r_id r_jd

    Products over chunks of 1024 columns are formed in float32 (float64 rows, and chunks that float32 could not
    hold: in float64) by one batched matrix product and added up in float64. At cosine 0.999999 and D = 1e7 this
    keeps two digits of ``|g_1 - g_2|²``, of which a float32 ``rows @ rows.T`` keeps none.

    Args:
        rows: ``(M, D)``, real floating point; half precision is widened chunk by chunk.
        segments: where each of ``S`` segments of columns starts, and the end: rising from 0 to D. One Gramian per
            segment, in the same single read. Default: one for all columns.
        implementation: ``"auto"`` (default) is Triton on CUDA and the reference elsewhere; see the page on kernels.

    Returns:
        ``(M, M)``, or ``(S, M, M)`` with segments: float64 on the device of ``rows``. Non-finite rows give
        non-finite entries, in their own segment only.

    Raises:
        TypeError, ValueError: for rows that are not ``(M, D)`` real floating point, bounds that do not rise from 0 to
            D, or an unknown implementation.
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
    bounds = None if segments is None else check_bounds(segments, rows.shape[1])
    chosen = choose(implementation, rows)
    with plain(rows):
        if chosen == "reference":
            return _whole(rows) if bounds is None else _by_segment(rows, bounds)
        edges = bounds or (0, rows.shape[1])
        if chosen == "compiled":
            # More pairs than this compile for minutes: a library call from there on.
            pairs = compiled(_pairs, len(rows), rows.dtype) if len(rows) <= _MOST_PAIRED else None
            products = torch.stack([_whole(rows[:, start:stop], pairs) for start, stop in pairwise(edges)])
        else:
            from balanced_grad.kernels import _triton

            products = _triton.gramian(rows, edges)
        return products[0] if bounds is None else products


def _whole(rows: Tensor, pairs: Callable[[list[Tensor]], Tensor] | None = None) -> Tensor:
    count, size = rows.shape
    if pairs is None and rows.is_cpu and rows.itemsize < 8 and rows.numel() <= _FEW:
        wider = rows.double()
        return wider @ wider.mT
    full = size - size % CHUNK
    total = torch.zeros(count, count, dtype=torch.float64, device=rows.device)
    if pairs is not None and full:
        total += pairs(list(rows[:, :full].reshape(count, -1, CHUNK).unbind(0)))
    for part in _chunks(rows[:, :full]) if pairs is None else ():
        total += _products(part).sum(0, dtype=torch.float64)
    if full < size:
        total += _products(rows[:, full:].to(wide(rows.dtype)).unsqueeze(0))[0]
    return total


def _by_segment(rows: Tensor, bounds: Bounds) -> Tensor:
    """On the grid of chunks of the whole; what lies between chunks and the ends of segments is gathered."""
    count, size = rows.shape
    plan = segment_plan(bounds, CHUNK, rows.device)
    parts = [_products(part) for part in _chunks(rows[:, : size - size % CHUNK])]
    for gather in plan.gathers:
        block = rows[:, gather.columns].to(wide(rows.dtype)).masked_fill_(~gather.inside, 0)
        parts.append(_products(block.transpose(0, 1)))
    if not parts:
        return torch.zeros(len(bounds) - 1, count, count, dtype=torch.float64, device=rows.device)
    return add_up(torch.cat(parts)[plan.order], plan.lengths)


def _chunks(rows: Tensor) -> Iterator[Tensor]:
    """``(C, M, 1024)`` in at least float32; where a copy is needed on the way, of a part at a time."""
    if rows.shape[1]:
        chunks = rows.reshape(len(rows), -1, CHUNK).transpose(0, 1)
        step = _COPIED if rows.itemsize < 4 else len(chunks)
        for start in range(0, len(chunks), step):
            yield chunks[start : start + step].to(wide(rows.dtype))


def _products(chunks: Tensor) -> Tensor:
    """``(C, M, M)`` float64; in float64 from the start what float32 could not hold."""
    values = chunks if chunks.is_cpu else chunks.double()  # elsewhere to look at them would wait for the device
    products = torch.bmm(values, values.mT).double()
    if values.itemsize < 8:
        squares = products.diagonal(dim1=1, dim2=2)
        far = ((squares < _SMALL) | ~(squares < _LARGE)).any(1)  # zeros too: they may be squares that vanished
        for some in torch.split(far.nonzero()[:, 0], _WIDENED):
            wider = values[some].double()
            products[some] = torch.bmm(wider, wider.mT)
    return products


def _pairs(rows: list[Tensor]) -> Tensor:
    """Products of ``(C, 1024)`` rows by pairs: this compiles to one read; a batched product stays a library call."""
    values = [row.double() for row in rows]  # fused with the product: no copy, and no range to leave
    total = torch.empty(len(rows), len(rows), dtype=torch.float64, device=rows[0].device)
    for i, row in enumerate(values):
        for j, other in enumerate(values[: i + 1]):
            total[i, j] = total[j, i] = (row * other).sum(-1).sum()
    return total
