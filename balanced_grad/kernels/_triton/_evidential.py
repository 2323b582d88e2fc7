# mypy: disable-error-code="untyped-decorator,no-untyped-def"
# ruff: noqa: ANN001, ANN202
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from balanced_grad.kernels._layout import wide
from balanced_grad.kernels._pass import LEAST, MOST
from balanced_grad.kernels._triton._launch import Config, dense, element, tuned, vector


@triton.jit
def _finite(x):
    return tl.abs(x) < float("inf")


@triton.jit(do_not_specialize=["size", "row_step", "mean_step", "variance_step", "new_step", "out_step"])
def _kernel(
    rows,
    mean,
    variance,
    new,
    out,
    rate,
    scale,
    reference,
    present,
    sums,
    size,
    row_step,
    mean_step,
    variance_step,
    new_step,
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
    """One tile of all rows. A pointer that is None is a stream that this pass does not have."""
    size = tl.multiple_of(size.to(tl.int64), VECTOR)
    columns = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    index = tl.arange(0, PADDED)
    inside = (index[:, None] < M) & (columns[None, :] < size)
    row = index[:, None].to(tl.int64)
    column = columns[None, :]
    known = index < M
    state = variance + row * tl.multiple_of(variance_step.to(tl.int64), VECTOR) + column
    v = tl.load(state, mask=inside, other=0.0).to(STATE)
    if (out is not None) or (new is None):
        g = tl.load(rows + row * tl.multiple_of(row_step.to(tl.int64), VECTOR) + column, mask=inside, other=0.0)
    if rate is not None:
        rho = tl.load(rate + index, mask=known, other=0.0).to(STATE)[:, None]
        if new is not None:
            place = new + row * tl.multiple_of(new_step.to(tl.int64), VECTOR) + column
            change = tl.load(place, mask=inside, other=0.0).to(STATE) - v
            v += rho * tl.where(_finite(change), change, 0.0)
        else:
            deviation = g.to(STATE)
            if scale is not None:
                deviation *= 1.0 / tl.load(scale).to(STATE)
            if mean is not None:
                place = mean + row * tl.multiple_of(mean_step.to(tl.int64), VECTOR) + column
                m = tl.load(place, mask=inside, other=0.0).to(STATE)
                deviation -= m
            deviation = tl.where(_finite(deviation), deviation, 0.0)
            # A square that is not finite would stay for ever.
            if tl.float64 == STATE:
                deviation = tl.minimum(tl.maximum(deviation, -6e153), 6e153)
            else:
                deviation = tl.minimum(tl.maximum(deviation, -9e18), 9e18)
            part = rho
            if mean is not None:
                tl.store(place, m + rho * deviation, mask=inside)
                part = rho * (1.0 - rho)
            v = (1.0 - rho) * v + part * deviation * deviation
        tl.store(state, v, mask=inside)
    if out is not None:
        # Scalars arrive as float32 from eager code and as float64 from compiled code: cast here.
        sure = (v > 0) & _finite(v)
        share = v.to(WIDE) if tl.float64 != STATE else v
        share = (share * tl.load(reference).to(share.dtype) + tl.cast(eps, share.dtype)).to(WIDE)
        gain = tl.cast(kappa, WIDE)
        e = gain / tl.where(sure, tl.maximum(share, gain * 1e-37), 1.0)  # more than any cap, and finite
        g = g.to(WIDE)
        here = inside & _finite(g)
        gone = 0.0
        if present is not None:
            given = tl.load(present + index, mask=known, other=0.0).to(WIDE)
            here = here & (given[:, None] > 0)
            gone = 1.0 - tl.max(given, 0)
        e = tl.where(here, tl.where(sure, tl.minimum(e, tl.cast(cap, WIDE)), 0.0) + 1.0, 0.0)
        number = tl.sum(here.to(WIDE), 0)
        total = tl.sum(e, 0) + gone
        lost = total == 0  # of those present none is finite: NaN, so that a loss scaler sees it
        # First the shares: a count times a row may overflow.
        fused = tl.sum(e * number / tl.where(lost, 1.0, total) * tl.where(here, g, 0.0), 0)
        at = columns * out_step.to(tl.int64) if STRIDED else columns
        tl.store(out + at, tl.where(lost, float("nan"), fused), mask=columns < size)
        if sums is not None:
            some = (number > 0) & (columns < size)
            safe = tl.where(some, total, 1.0)
            first = tl.max(e, 0)
            belief = tl.where(here & some[None, :], (e - 1.0) / safe[None, :], 0.0)
            ties = tl.sum((e == first[None, :]).to(WIDE) * inside.to(WIDE), 0)
            alone = here & (e == first[None, :]) & (ties[None, :] == 1.0)
            uncertainty = tl.where(some, number / safe, (columns < size).to(WIDE))
            base = sums + tl.program_id(0).to(tl.int64) * (2 * M + 1)
            tl.store(base + index, tl.sum(belief, 1).to(tl.float64), mask=known)
            tl.store(base + M + index, tl.sum(alone.to(WIDE), 1).to(tl.float64), mask=known)
            tl.store(base + 2 * M, tl.sum(uncertainty, 0).to(tl.float64))


class Streams(NamedTuple):
    """What a pass reads and writes; None for what it does not have. ``out`` and ``reference`` go together."""

    rows: Tensor
    mean: Tensor | None
    variance: Tensor
    new_variance: Tensor | None
    out: Tensor | None
    rate: Tensor | None
    scale: Tensor | None
    reference: Tensor | None
    present: Tensor | None


def evidential(streams: Streams, evidence: Sequence[float], sums: bool) -> Tensor:
    """Update the moments and fuse, each where asked for. Returns the sums ``(2M + 1,)`` float64, or an empty tensor."""
    s = streams._replace(rows=dense(streams.rows))
    if s.new_variance is not None:
        s = s._replace(new_variance=dense(s.new_variance))
    for name, state in (("mean", s.mean), ("variance", s.variance)):
        if state is not None and dense(state) is not state:
            raise ValueError(
                f"the columns of {name} must lie side by side (stride 1); its strides are {state.stride()}"
            )
    if s.rows.shape[1] == 0:
        return torch.zeros(2 * len(s.rows) + 1 if sums else 0, dtype=torch.float64, device=s.rows.device)
    kind = tuple(None if t is None else t.dtype for t in s)
    aligned = vector((s.rows.shape[1],), *s)

    def on_scratch() -> Callable[[Config], object]:
        scratch = _scratch(s)
        return lambda config: _launch(scratch, evidence, sums, aligned, config)

    key = ("evidential", len(s.rows), kind, sums, aligned, s.rows.device)
    return _launch(s, evidence, sums, aligned, tuned(key, len(s.rows), on_scratch))


def _scratch(s: Streams) -> Streams:
    """Copies of the first columns: to measure a pass is to run it often, and it changes its state."""
    size = s.rows.shape[1]
    some = min(size, 1 << 22)
    cut = (None if t is None else (t[..., :some] if t.dim() and t.shape[-1] == size else t).clone() for t in s)
    return Streams._make(cut)


def _launch(s: Streams, evidence: Sequence[float], sums: bool, aligned: int, config: Config) -> Tensor:
    count, size = s.rows.shape
    kappa, cap, eps = evidence
    tiles = triton.cdiv(size, config.block)
    partial = s.rows.new_empty(tiles if sums else 0, 2 * count + 1, dtype=torch.float64)
    out_step = 1 if s.out is None else s.out.stride(0)
    _kernel[(tiles,)](
        *s,
        partial if sums else None,
        size,
        *(0 if t is None else t.stride(0) for t in (s.rows, s.mean, s.variance, s.new_variance)),
        out_step,
        min(kappa, MOST),
        min(cap, MOST),
        max(eps, LEAST),
        M=count,
        PADDED=triton.next_power_of_2(count),
        BLOCK=config.block,
        VECTOR=aligned,
        WIDE=element(wide(s.rows.dtype)),
        STATE=element(s.variance.dtype),
        STRIDED=out_step != 1,
        num_warps=config.warps,
        enable_fp_fusion=True,
    )
    return partial.sum(0) if sums else s.rows.new_empty(0, dtype=torch.float64)
