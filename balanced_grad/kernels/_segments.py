"""Columns divided into segments (parameters, layers), planned once on the host and kept."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from balanced_grad.caching import cached

Bounds = tuple[int, ...]


def check_bounds(segments: Sequence[int], size: int) -> Bounds:
    """The bounds as a tuple of ints.

    Raises:
        ValueError: unless they rise from 0 to ``size``.
    """
    bounds = tuple(map(int, segments))
    if len(bounds) < 2 or bounds[0] != 0 or bounds[-1] != size or any(a > b for a, b in pairwise(bounds)):
        shown = f"{bounds[:6]}..." if len(bounds) > 6 else f"{bounds}"
        raise ValueError(f"segments={shown}: give where each segment starts and the end, rising from 0 to {size}")
    return bounds


@dataclass(frozen=True)
class Gather:
    """Pieces of at most ``width`` columns: where they are, and which entries of the gathered block are theirs."""

    columns: Tensor  # (P, width) int64
    inside: Tensor  # (P, width) bool


@dataclass(frozen=True)
class SegmentPlan:
    """How segments are made of whole chunks of a grid and of pieces between them.

    Partial results are laid out as all chunks of the grid, then the pieces of each ``Gather``. ``order`` lists those
    that count, segment by segment; ``lengths`` says how many belong to each segment.
    """

    gathers: tuple[Gather, ...]
    order: Tensor
    lengths: Tensor


@cached(maxsize=64)
def segment_plan(bounds: Bounds, chunk: int, device: torch.device) -> SegmentPlan:
    """The plan for these bounds on a grid of ``chunk`` columns."""
    edge = np.array(bounds)
    start, stop = edge[:-1], edge[1:]
    first, last = -(-start // chunk), stop // chunk  # whole chunks [first, last)
    inner = np.maximum(last - first, 0)
    chunks = np.repeat(first - np.cumsum(inner) + inner, inner) + np.arange(inner.sum())
    apart = first > last  # within one chunk
    ends = np.stack([np.where(apart, stop, first * chunk), np.where(apart, stop, last * chunk)])
    starts, stops = np.concatenate([start, ends[1]]), np.concatenate([ends[0], stop])
    owners = np.tile(np.arange(len(start)), 2)
    some = stops > starts
    starts, stops, owners = starts[some], stops[some], owners[some]
    width = 1 << np.ceil(np.log2(np.maximum(stops - starts, 16))).astype(int)
    sorting = np.argsort(width, kind="stable")
    starts, stops, owners, width = starts[sorting], stops[sorting], owners[sorting], width[sorting]
    owner = np.concatenate([np.repeat(np.arange(len(start)), inner), owners])
    place = np.concatenate([chunks, bounds[-1] // chunk + np.arange(len(owners))])
    order = place[np.argsort(owner, kind="stable")]
    lengths = np.bincount(owner, minlength=len(start))
    gathers = tuple(_gather(starts[width == w], stops[width == w], int(w), device) for w in np.unique(width))
    return SegmentPlan(gathers, torch.from_numpy(order).to(device), torch.from_numpy(lengths).to(device))


def _gather(starts: np.ndarray, stops: np.ndarray, width: int, device: torch.device) -> Gather:
    columns = starts[:, None] + np.arange(width)
    inside = columns < stops[:, None]
    return Gather(torch.from_numpy(np.where(inside, columns, 0)).to(device), torch.from_numpy(inside).to(device))


@cached(maxsize=64)
def piece_table(bounds: Bounds, width: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Pieces of at most ``width`` columns, each within one segment.

    ``(P, 3)`` int64 start, stop and segment, in order, and ``(S,)`` how many each segment has.
    """
    edge = np.array(bounds)
    counts = -(-np.diff(edge) // width)
    segment = np.repeat(np.arange(len(counts)), counts)
    within = np.arange(len(segment)) - np.repeat(np.cumsum(counts) - counts, counts)
    starts = edge[segment] + within * width
    stops = np.minimum(starts + width, edge[segment + 1])
    table = torch.from_numpy(np.stack([starts, stops, segment], 1).astype(np.int64))
    return table.to(device), torch.from_numpy(counts).to(device)


@lru_cache(maxsize=64)
def runs(bounds: Bounds, short: int, longest: int) -> tuple[tuple[int, int], ...]:
    """Segments ``[first, last)`` to be treated together: neighbours below ``short``, up to ``longest`` columns."""
    out: list[tuple[int, int]] = []
    for segment, (start, stop) in enumerate(pairwise(bounds)):
        if out and stop - start < short:
            first, last = out[-1]
            if bounds[last] - bounds[last - 1] < short and stop - bounds[first] <= longest:
                out[-1] = first, segment + 1
                continue
        if stop > start:
            out.append((segment, segment + 1))
    return tuple(out)


@cached(maxsize=256)
def owners(bounds: Bounds, first: int, last: int, device: torch.device) -> Tensor:
    """The segment of each column of the segments ``[first, last)``, ``(n,)`` int64."""
    lengths = np.diff(np.array(bounds[first : last + 1]))
    return torch.from_numpy(np.repeat(np.arange(first, last), lengths)).to(device)


def add_up(parts: Tensor, lengths: Tensor) -> Tensor:
    """``(P, M, M)`` partial products to ``(S, M, M)``; unlike ``index_add_`` in the same order every time."""
    sums: Tensor = torch.segment_reduce(parts.flatten(1), "sum", lengths=lengths, axis=0, unsafe=True, initial=0.0)
    return sums.reshape(len(lengths), *parts.shape[1:])
