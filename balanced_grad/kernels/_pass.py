"""The per-dimension pass behind ``moments_update``, ``evidential_fuse`` and ``evidential_step``, one row after another.

Plain functions of lists of rows: run as they are on cache-sized blocks (the reference), or compiled on whole rows.
Comparisons and ``where`` are avoided in them: on a CPU they take ten times as long as arithmetic.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce

import torch
from torch import Tensor

from balanced_grad.kernels._compiled import compiled
from balanced_grad.kernels._dispatch import choose, plain
from balanced_grad.kernels._layout import blocks, wide

Rows = list[Tensor]
MOST = 1e30  # evidence: sums and products of it stay in float32's range
LEAST = 1e-37  # floor on a variance, in units of the typical one


@dataclass(frozen=True)
class Streams:
    """What a pass reads and writes, ``(M, D)`` tensors as lists of rows. No ``rates``: no moments are updated."""

    rows: Rows
    means: Rows | None
    variances: Rows
    new_variances: Rows | None
    out: Tensor | None  # None: nothing is fused
    rates: Rows | None  # of these two, 0-dimensional tensors
    present: Rows | None

    def columns(self, part: slice) -> "Streams":
        """The same over these columns."""
        return Streams(
            [row[part] for row in self.rows],
            _cut(self.means, part),
            [row[part] for row in self.variances],
            _cut(self.new_variances, part),
            None if self.out is None else self.out[part],
            self.rates,
            self.present,
        )


def _cut(rows: Rows | None, part: slice) -> Rows | None:
    return None if rows is None else [row[part] for row in rows]


def evidential(
    s: Streams, unscale: Tensor | None, typical: tuple[Tensor, Tensor, float] | None, cap: float, sums: bool
) -> Tensor | None:
    """Update the moments, fuse, and return the sums, each where asked for."""
    if s.rates is not None:
        for i, (row, variance, rate) in enumerate(zip(s.rows, s.variances, s.rates, strict=True)):
            if s.new_variances is not None:
                # What is not finite leaves the old value: a change of 0.
                change = _finite(s.new_variances[i].to(variance.dtype) - variance)
                variance.addcmul_(change, rate)
            else:
                _moments(row, None if s.means is None else s.means[i], variance, rate, unscale)
    if s.out is None or typical is None:
        return None
    return _fuse(s, s.out, *typical, cap, sums)


def _finite(x: Tensor, *, own: bool = True) -> Tensor:
    """``x``, and 0 where it is not finite: in the form that each way of running it makes fast. In place if ``own``."""
    if torch.compiler.is_compiling():
        return torch.where(x.abs() < torch.inf, x, 0.0)
    return torch.nan_to_num(x, 0.0, 0.0, 0.0, out=x if own else None)


def _moments(row: Tensor, mean: Tensor | None, variance: Tensor, rate: Tensor, unscale: Tensor | None) -> None:
    deviation = row.to(variance.dtype)  # first: a 0-dimensional factor would not widen it
    deviation = deviation if unscale is None else deviation * unscale
    own = mean is not None or deviation is not row
    deviation = _finite(deviation if mean is None else deviation - mean, own=own)
    most = torch.finfo(variance.dtype).max ** 0.5 / 2  # a square beyond would stay for ever
    deviation = deviation.clamp_(-most, most) if own else deviation.clamp(-most, most)
    own = True
    if mean is not None:
        mean.addcmul_(deviation, rate)
    root = (rate if mean is None else rate * (1 - rate)).sqrt()
    deviation = deviation.mul_(root) if own else deviation * root
    variance.mul_(1 - rate).addcmul_(deviation, deviation)


def _fuse(
    s: Streams, out: Tensor, reference: Tensor, gain: Tensor, floor: float, cap: float, sums: bool
) -> Tensor | None:
    pseudo_counts = []  # per row: evidence + 1, or 0 where the row is not there
    for row, variance in zip(s.rows, s.variances, strict=True):
        share = variance.to(reference.dtype) * reference
        evidence = gain / share.add_(floor).to(gain.dtype)
        evidence = torch.ops.aten.threshold_backward(evidence, variance.sign().to(gain.dtype), 0)  # 0 where that is 0
        evidence = _finite(evidence.clamp_max_(cap)).add_(1)
        pseudo_counts.append(_finite(evidence.add_(row, alpha=0)))  # x + 0 row: NaN or x
    total = None
    if s.present is not None:
        for count, present in zip(pseudo_counts, s.present, strict=True):
            count.mul_(present)
        total = 1 - reduce(torch.maximum, s.present)  # with no row present 0 / 1, with all lost 0 / 0
    there = [count.clamp_max(1) for count in pseudo_counts]
    total = reduce(torch.add, pseudo_counts if total is None else [total, *pseudo_counts])
    number = reduce(torch.add, there)
    shares = [count.mul(number).div_(total) for count in pseudo_counts]  # first: a count times a row may overflow
    weighed = shares[0] * _finite(s.rows[0], own=False)
    for share, row in zip(shares[1:], s.rows[1:], strict=True):
        weighed.addcmul_(share, _finite(row, own=False).to(share.dtype))
    out.copy_(weighed)
    return _sums(pseudo_counts, there, total, number) if sums else None


def _sums(pseudo_counts: Rows, there: Rows, total: Tensor, number: Tensor) -> Tensor:
    """``(2M + 1,)`` float64: beliefs, leads, uncertainty."""
    first = second = torch.zeros_like(total)
    for count in pseudo_counts:
        second = torch.maximum(second, torch.minimum(first, count))
        first = torch.maximum(first, count)
    share = total.reciprocal()
    # Each part is added up at once: blocks that live together make the allocator ask for fresh memory.
    found = [_total(_finite((c - t) * share)) for c, t in zip(pseudo_counts, there, strict=True)]
    found += [_total((count - second).relu_().sign_()) for count in pseudo_counts]  # 1 where it alone is first
    found += [_total(1 - _finite(1 - number * share))]  # 1 where no row is left
    return torch.stack(found)


def _total(part: Tensor) -> Tensor:
    return part.sum(dtype=torch.float64)


def run(
    rows: Tensor,
    variance: Tensor,
    *,
    mean: Tensor | None = None,
    rate: Tensor | None = None,
    new_variance: Tensor | None = None,
    scale: Tensor | None = None,
    reference: Tensor | None = None,
    present: Tensor | None = None,
    out: Tensor | None = None,
    evidence: Sequence[float] = (1.0, 1.0, 0.0),
    sums: bool = False,
    implementation: str,
) -> Tensor:
    """One pass by the chosen implementation: moments if there is a ``rate``, fused if there is a ``reference``.

    ``evidence`` is kappa, cap and eps. Returns the sums ``(2M + 1,)``, or an empty tensor.
    """
    count, size = rows.shape
    chosen = choose(implementation, rows)
    with plain(rows):
        if chosen == "triton":
            from balanced_grad.kernels import _triton

            given = _triton.Streams(rows, mean, variance, new_variance, out, rate, scale, reference, present)
            return _triton.evidential(given, evidence, sums)
        kappa, cap, eps = evidence
        dtype = wide(rows.dtype)
        typical = None
        if reference is not None:
            finest = torch.promote_types(variance.dtype, dtype)
            typical = reference.to(finest), reference.new_full((), min(kappa, MOST), dtype=dtype), max(eps, LEAST)
        unscale = None if scale is None else scale.to(variance.dtype).reciprocal()
        streams = Streams(
            list(rows.unbind(0)),
            None if mean is None else list(mean.unbind(0)),
            list(variance.unbind(0)),
            None if new_variance is None else list(new_variance.unbind(0)),
            out,
            None if rate is None else list(rate.to(variance.dtype).unbind(0)),
            None if present is None else list(present.to(dtype).unbind(0)),
        )
        total = torch.zeros(2 * count + 1 if sums else 0, dtype=torch.float64, device=rows.device)
        function = evidential
        if chosen == "compiled":
            absent = tuple(t is None for t in (mean, rate, new_variance, scale, reference, present))
            function = compiled(evidential, count, rows.dtype, variance.dtype, absent, sums)
        for part in blocks(rows) if chosen == "reference" else [slice(None)] * (size > 0):
            found = function(streams.columns(part), unscale, typical, min(cap, MOST), sums)
            if found is not None:
                total += found
        return total
