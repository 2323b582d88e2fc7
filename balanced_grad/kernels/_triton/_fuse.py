# mypy: disable-error-code="untyped-decorator,no-untyped-def"
# ruff: noqa: ANN001, ANN202
from collections.abc import Callable

import torch
import triton
import triton.language as tl
from torch import Tensor

from balanced_grad.kernels._layout import wide
from balanced_grad.kernels._triton._launch import Config, dense, element, finite, tuned, vector


@triton.jit(do_not_specialize=["size", "row_step", "variance_step", "out_step"])
def _kernel(
    rows,
    variance,
    out,
    roots,
    size,
    row_step,
    variance_step,
    out_step,
    kappa: tl.float64,
    cap: tl.float64,
    eps: tl.float64,
    M: tl.constexpr,
    PADDED: tl.constexpr,
    BLOCK: tl.constexpr,
    VECTOR: tl.constexpr,
    WIDE: tl.constexpr,
    STATE: tl.constexpr,
    STRIDED: tl.constexpr,
):
    """One tile of all rows. ``roots`` are those of the references, which in float32 may be out of range."""
    size = tl.multiple_of(size.to(tl.int64), VECTOR)
    columns = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    column = columns[None, :]
    index = tl.arange(0, PADDED)
    row = index[:, None].to(tl.int64)
    inside = (index[:, None] < M) & (column < size)
    place = variance + row * tl.multiple_of(variance_step.to(tl.int64), VECTOR) + column
    v = tl.load(place, mask=inside, other=0.0).to(STATE)
    g = tl.load(rows + row * tl.multiple_of(row_step.to(tl.int64), VECTOR) + column, mask=inside, other=0.0).to(WIDE)
    # Scalars arrive as float32 from eager code and as float64 from compiled code: cast here.
    sure = (v > 0) & finite(v)
    share = v.to(WIDE) if tl.float64 != STATE else v
    root = tl.load(roots + index, mask=index < M, other=1.0).to(share.dtype)[:, None]
    share = (share * root * root + tl.cast(eps, share.dtype)).to(WIDE)
    gain = tl.cast(kappa, WIDE)
    e = gain / tl.where(sure, tl.maximum(share, gain * 1e-37), 1.0)  # more than any cap, and finite
    here = inside & finite(g)
    e = tl.where(here, tl.where(sure, tl.minimum(e, tl.cast(cap, WIDE)), 0.0) + 1.0, 0.0)
    number = tl.sum(here.to(WIDE), 0)
    total = tl.sum(e, 0)
    lost = total == 0  # none is finite: NaN, so that a loss scaler sees it
    # First the shares: a count times a row may overflow.
    fused = tl.sum(e * number / tl.where(lost, 1.0, total) * tl.where(here, g, 0.0), 0)
    at = columns * out_step.to(tl.int64) if STRIDED else columns
    tl.store(out + at, tl.where(lost, float("nan"), fused), mask=columns < size)


def fuse(rows: Tensor, variance: Tensor, out: Tensor, roots: Tensor, kappa: float, cap: float, eps: float) -> None:
    """Write the fused row to ``out``; ``roots (M,)`` are the square roots of the typical precisions."""
    rows, variance = dense(rows), dense(variance)
    if rows.shape[1] == 0:
        return
    evidence = (kappa, cap, eps)
    aligned = vector((rows.shape[1],), rows, variance)

    def on_scratch() -> Callable[[Config], object]:
        cut = slice(1 << 22)
        scratch = rows[:, cut], variance[:, cut], torch.empty_like(out[cut]), roots
        return lambda config: _launch(*scratch, evidence, aligned, config)

    key = ("fuse", len(rows), rows.dtype, variance.dtype, out.stride(0) == 1, aligned, rows.device)
    _launch(rows, variance, out, roots, evidence, aligned, tuned(key, len(rows), on_scratch))


def _launch(
    rows: Tensor,
    variance: Tensor,
    out: Tensor,
    roots: Tensor,
    evidence: tuple[float, float, float],
    aligned: int,
    config: Config,
) -> None:
    count, size = rows.shape
    _kernel[(triton.cdiv(size, config.block),)](
        rows,
        variance,
        out,
        roots,
        size,
        rows.stride(0),
        variance.stride(0),
        out.stride(0),
        *evidence,
        M=count,
        PADDED=triton.next_power_of_2(count),
        BLOCK=config.block,
        VECTOR=aligned,
        WIDE=element(wide(rows.dtype)),
        STATE=element(variance.dtype),
        STRIDED=out.stride(0) != 1,
        num_warps=config.warps,
        enable_fp_fusion=True,
    )
