# mypy: disable-error-code="untyped-decorator,no-untyped-def"
# ruff: noqa: ANN001, ANN202
from collections.abc import Callable
from typing import NamedTuple

import triton
import triton.language as tl
from torch import Tensor

from balanced_grad.kernels._triton._launch import Config, dense, element, finite, tuned, vector


@triton.jit(do_not_specialize=["size", "row_step", "mean_step", "variance_step", "new_step"])
def _kernel(
    rows,
    mean,
    variance,
    new,
    rate,
    scale,
    size,
    row_step,
    mean_step,
    variance_step,
    new_step,
    M: tl.constexpr,
    PADDED: tl.constexpr,
    BLOCK: tl.constexpr,
    VECTOR: tl.constexpr,
    STATE: tl.constexpr,
):
    """One tile of all rows. A pointer that is None is a stream that this pass does not have."""
    size = tl.multiple_of(size.to(tl.int64), VECTOR)
    column = (tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK))[None, :]
    index = tl.arange(0, PADDED)
    row = index[:, None].to(tl.int64)
    inside = (index[:, None] < M) & (column < size)
    state = variance + row * tl.multiple_of(variance_step.to(tl.int64), VECTOR) + column
    v = tl.load(state, mask=inside, other=0.0).to(STATE)
    rho = tl.load(rate + index, mask=index < M, other=0.0).to(STATE)[:, None]
    if new is not None:
        place = new + row * tl.multiple_of(new_step.to(tl.int64), VECTOR) + column
        change = tl.load(place, mask=inside, other=0.0).to(STATE) - v
        v += rho * tl.where(finite(change), change, 0.0)
    else:
        place = rows + row * tl.multiple_of(row_step.to(tl.int64), VECTOR) + column
        deviation = tl.load(place, mask=inside, other=0.0).to(STATE)
        if scale is not None:
            deviation *= 1.0 / tl.load(scale).to(STATE)
        if mean is not None:
            place = mean + row * tl.multiple_of(mean_step.to(tl.int64), VECTOR) + column
            m = tl.load(place, mask=inside, other=0.0).to(STATE)
            deviation -= m
        deviation = tl.where(finite(deviation), deviation, 0.0)
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


class Streams(NamedTuple):
    """What the pass reads and writes; None for what it does not have."""

    rows: Tensor
    mean: Tensor | None
    variance: Tensor
    new_variance: Tensor | None
    rate: Tensor
    scale: Tensor | None


def moments(streams: Streams) -> None:
    """Update mean and variance in place; ``rate (M,)`` is that of each row."""
    s = streams._replace(rows=dense(streams.rows))
    if s.new_variance is not None:
        s = s._replace(new_variance=dense(s.new_variance))
    for name, state in (("mean", s.mean), ("variance", s.variance)):
        if state is not None and dense(state) is not state:
            raise ValueError(
                f"the columns of {name} must lie side by side (stride 1); its strides are {state.stride()}"
            )
    if s.rows.shape[1] == 0:
        return
    aligned = vector((s.rows.shape[1],), *s)

    def on_scratch() -> Callable[[Config], object]:
        """Copies of the first columns: to measure a pass is to run it often, and it changes its state."""
        cut = (t if t is None or t.dim() < 2 else t[:, : 1 << 22].clone() for t in s)
        scratch = Streams._make(cut)
        return lambda config: _launch(scratch, aligned, config)

    key = ("moments", len(s.rows), *(None if t is None else t.dtype for t in s), aligned, s.rows.device)
    _launch(s, aligned, tuned(key, len(s.rows), on_scratch))


def _launch(s: Streams, aligned: int, config: Config) -> None:
    count, size = s.rows.shape
    _kernel[(triton.cdiv(size, config.block),)](
        *s,
        size,
        *(0 if t is None else t.stride(0) for t in (s.rows, s.mean, s.variance, s.new_variance)),
        M=count,
        PADDED=triton.next_power_of_2(count),
        BLOCK=config.block,
        VECTOR=aligned,
        STATE=element(s.variance.dtype),
        num_warps=config.warps,
        enable_fp_fusion=True,
    )
