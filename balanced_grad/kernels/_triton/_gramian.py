# mypy: disable-error-code="untyped-decorator,no-untyped-def"
# ruff: noqa: ANN001, ANN202
import torch
import triton
import triton.language as tl
from torch import Tensor

from balanced_grad.kernels._layout import wide
from balanced_grad.kernels._segments import Bounds, add_up, piece_table
from balanced_grad.kernels._triton._launch import Config, dense, element, tuned, vector


@triton.jit(do_not_specialize=["stride"])
def _kernel(
    rows,
    stride,
    table,
    out,
    M: tl.constexpr,
    PADDED: tl.constexpr,
    BLOCK: tl.constexpr,
    VECTOR: tl.constexpr,
    WIDE: tl.constexpr,
):
    """One piece of columns: products of a tile in WIDE, added up over tiles in float64."""
    piece = tl.program_id(0).to(tl.int64)
    start = tl.multiple_of(tl.load(table + 3 * piece), VECTOR)
    stop = tl.multiple_of(tl.load(table + 3 * piece + 1), VECTOR)
    step = tl.multiple_of(stride.to(tl.int64), VECTOR)
    index = tl.arange(0, PADDED)
    total = tl.zeros((PADDED, PADDED), tl.float64)
    for base in range(start, stop, BLOCK):
        columns = tl.multiple_of(base, VECTOR) + tl.arange(0, BLOCK)
        inside = columns < stop
        mask = (index[:, None] < M) & inside[None, :]
        tile = tl.load(rows + index[:, None].to(tl.int64) * step + columns[None, :], mask=mask, other=0.0).to(WIDE)
        if tl.float32 == WIDE:
            unit = _power(tl.max(tl.abs(tile), 1))
        for i in tl.static_range(M):
            row = tl.load(rows + i * step + columns, mask=inside, other=0.0).to(WIDE)  # again, from the L1 cache
            chosen = index[:, None] == i
            if tl.float32 == WIDE:  # over powers of two, which keep all digits: products leave float32's range
                other = _power(tl.max(tl.abs(row), 0))
                products = tl.sum((tile * _inverse(unit)[:, None]) * (row * _inverse(other))[None, :], 1).to(tl.float64)
                products = products * unit.to(tl.float64) * other.to(tl.float64)
            else:
                products = tl.sum(tile * row[None, :], 1).to(tl.float64)
            total += tl.where(chosen, products[None, :], 0.0)
    place = out + piece * M * M + index[:, None] * M + index[None, :]
    mask = (index[:, None] < M) & (index[None, :] < M)
    tl.store(place, total, mask=mask)


@triton.jit
def _power(x):
    """The power of two below a float32 number, if that and its inverse are normal numbers, and else the nearest one."""
    bits = x.to(tl.int32, bitcast=True) & 0x7F800000
    return tl.minimum(tl.maximum(bits, 0x00800000), 0x7E800000).to(tl.float32, bitcast=True)


@triton.jit
def _inverse(power):
    return (0x7F000000 - power.to(tl.int32, bitcast=True)).to(tl.float32, bitcast=True)


def gramian(rows: Tensor, bounds: Bounds) -> Tensor:
    """``(S, M, M)`` float64."""
    rows = dense(rows)
    count, size = rows.shape
    table, lengths = piece_table(bounds, 16384 if size >= 1 << 24 else 2048, rows.device)
    parts = torch.empty(len(table), count, count, dtype=torch.float64, device=rows.device)
    aligned = vector(bounds, rows)

    def launch(config: Config, pieces: int = len(table)) -> None:
        _kernel[(pieces,)](
            rows,
            rows.stride(0),
            table,
            parts,
            M=count,
            PADDED=triton.next_power_of_2(count),
            BLOCK=config.block,
            VECTOR=aligned,
            WIDE=element(wide(rows.dtype)),
            num_warps=config.warps,
            enable_fp_fusion=True,
        )

    if len(table):
        key = ("gramian", count, rows.dtype, aligned, rows.device)
        launch(tuned(key, count, lambda: lambda config: launch(config, min(len(table), 1024))))
    return add_up(parts, lengths)
