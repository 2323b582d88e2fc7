# mypy: disable-error-code="untyped-decorator,no-untyped-def"
# ruff: noqa: ANN001, ANN202
import triton
import triton.language as tl
from torch import Tensor

from balanced_grad.kernels._segments import Bounds, piece_table
from balanced_grad.kernels._triton._launch import Config, dense, element, tuned, vector


@triton.jit(do_not_specialize=["stride", "out_step"])
def _kernel(
    rows,
    stride,
    weights,
    out,
    out_step,
    table,
    M: tl.constexpr,
    PADDED: tl.constexpr,
    BLOCK: tl.constexpr,
    VECTOR: tl.constexpr,
    WIDE: tl.constexpr,
    STRIDED: tl.constexpr,
):
    """One piece of columns, all of one segment."""
    piece = tl.program_id(0).to(tl.int64)
    start = tl.multiple_of(tl.load(table + 3 * piece), VECTOR)
    stop = tl.multiple_of(tl.load(table + 3 * piece + 1), VECTOR)
    segment = tl.load(table + 3 * piece + 2)
    step = tl.multiple_of(stride.to(tl.int64), VECTOR)
    index = tl.arange(0, PADDED)
    present = index < M
    weight = tl.load(weights + segment * M + index, mask=present, other=0.0).to(WIDE)
    for base in range(start, stop, BLOCK):
        columns = tl.multiple_of(base, VECTOR) + tl.arange(0, BLOCK)
        inside = columns < stop
        mask = present[:, None] & inside[None, :]
        tile = tl.load(rows + index[:, None].to(tl.int64) * step + columns[None, :], mask=mask, other=0.0).to(WIDE)
        place = columns * out_step.to(tl.int64) if STRIDED else columns
        tl.store(out + place, tl.sum(tile * weight[:, None], 0), mask=inside)


def combine(rows: Tensor, weights: Tensor, out: Tensor, bounds: Bounds) -> None:
    """Write ``Σ_i w_i r_i`` to ``out``; ``weights`` are ``(M,)`` or ``(S, M)``, in the dtype to compute in."""
    rows, weights = dense(rows), weights.contiguous()
    count, size = rows.shape
    table, _ = piece_table(bounds, 16384 if size >= 1 << 24 else 2048, rows.device)
    aligned = vector(bounds, rows)

    def launch(config: Config) -> None:
        _kernel[(len(table),)](
            rows,
            rows.stride(0),
            weights,
            out,
            out.stride(0),
            table,
            M=count,
            PADDED=triton.next_power_of_2(count),
            BLOCK=config.block,
            VECTOR=aligned,
            WIDE=element(weights.dtype),
            STRIDED=out.stride(0) != 1,
            num_warps=config.warps,
            enable_fp_fusion=True,
        )

    if len(table):
        key = ("combine", count, rows.dtype, aligned, rows.device)
        launch(tuned(key, count, lambda: launch))  # which writes the same each time
