"""Bounds on the losses' shares of the weight: the hull of the gradients shrinks to one with corners of its own."""

import difflib
import itertools
import math
from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor

from balanced_grad.caching import cached
from balanced_grad.capture import index
from balanced_grad.notices import Notices

Interval = tuple[float, float]
_NOISE = 1e-12
_MOST_CORNERS = 512
_TABULATED = 8  # losses: for so many, the corners of all their subsets are at hand where a mask must not be read


class Bounds:
    """Least and largest share of each named loss; the others have none."""

    def __init__(self, bounds: Mapping[str, Interval] | None) -> None:
        if not isinstance(bounds, Mapping | None):
            raise TypeError(f"bounds={bounds!r}: give a mapping from losses to shares, as {{'joint': (0.3, 1)}}")
        self.intervals = {name: _interval(name, shares) for name, shares in (bounds or {}).items()}
        total = sum(low for low, _ in self.intervals.values())
        if total > 1 + _NOISE:
            raise ValueError(f"bounds={bounds!r}: the least shares sum to {total:g}, and all shares to 1")
        self._met: set[str] = set()

    def check_names(self, names: Sequence[str], notices: Notices) -> None:
        """Refuse a name that looks misspelt: no loss was ever called so, and one without bounds nearly is."""
        self._met.update(names)
        unmet = [name for name in self.intervals if name not in self._met]
        free = [name for name in names if name not in self.intervals]
        for name in unmet:
            for near in difflib.get_close_matches(name, free, n=1, cutoff=0.75):
                raise ValueError(
                    f"bounds={self.intervals} name no loss {near!r}, and there is none called {name!r}: write "
                    f"{near!r}, or give both bounds, (0, 1) for none; the losses of this batch are {list(names)}"
                )
        if unmet and len(unmet) == len(self.intervals):
            notices.say("bounds", f"bounds={self.intervals} name none of the losses {list(names)}, so they do nothing")

    def corners(self, names: Sequence[str], active: Tensor) -> tuple[Tensor, Tensor]:
        """The corners of the shares that are allowed, ``(..., V, K)``, and which of the V there are, ``(..., V)``.

        Of the ``active`` losses ``(..., K)`` only; the mask is read on the host where that costs nothing, or where
        there are too many losses for a table of all their subsets.
        """
        lower, upper = zip(*(self.intervals.get(name, (0.0, 1.0)) for name in names), strict=True)
        count = len(names)
        if active.is_cpu or count > _TABULATED:
            rows = [tuple(row) for row in active.reshape(-1, count).tolist()]
            sets = tuple(dict.fromkeys(rows))
            place = torch.tensor([sets.index(row) for row in rows], dtype=torch.int64, device=active.device)
        else:
            sets = tuple(itertools.product((False, True), repeat=count))
            bits = index(tuple(2**k for k in reversed(range(count))), active.device)
            place = (active.reshape(-1, count) * bits).sum(-1)
        table, there = _table(lower, upper, sets, active.device)
        shape = active.shape[:-1]
        return table[place].reshape(*shape, *table.shape[1:]), there[place].reshape(*shape, -1)


def _interval(name: str, shares: Interval) -> Interval:
    if not (isinstance(shares, Sequence) and len(shares) == 2):
        raise ValueError(f"bounds[{name!r}]={shares!r}: give the least and the largest share, as ({shares!r}, 1)")
    low, high = map(float, shares)
    if not (0 <= low <= high <= 1 and high > 0):
        raise ValueError(f"bounds[{name!r}]={shares!r}: shares are 0 <= least <= largest <= 1, and the largest not 0")
    return low, high


@cached(maxsize=64)
def _table(
    lower: tuple[float, ...], upper: tuple[float, ...], sets: tuple[tuple[bool, ...], ...], device: torch.device
) -> tuple[Tensor, Tensor]:
    """Corners of each set of losses ``(S, V, K)``, filled up with zeros, and which of the V there are ``(S, V)``."""
    found = [list(corners(lower, upper, members)) for members in sets]
    most = max(1, *map(len, found))  # of no losses there are none, and a problem has a row at least
    nothing = [0.0] * len(lower)
    table = [some + [nothing] * (most - len(some)) for some in found]
    there = [[True] * len(some) + [False] * (most - len(some)) for some in found]
    shape = len(sets), most
    return (
        torch.tensor(table, dtype=torch.float64, device=device).reshape(*shape, len(lower)),
        torch.tensor(there, dtype=torch.bool, device=device).reshape(shape),
    )


def corners(lower: Sequence[float], upper: Sequence[float], members: Sequence[bool]) -> Iterator[list[float]]:
    """Corners of ``{lower <= w <= upper, Σ w = 1}`` over the members: all but at most one are at a bound.

    Largest shares that sum to less than 1 are raised in proportion.
    """
    if not any(members):
        return
    low = [x if on else 0.0 for x, on in zip(lower, members, strict=True)]
    total = sum(itertools.compress(upper, members))
    rest = 1.0 - sum(low)
    room = [min(x / min(total, 1.0) - y, rest) if on else 0.0 for x, y, on in zip(upper, low, members, strict=True)]
    count = 0
    for full in _fills(room, rest):
        corner = [x + room[k] if k in full else x for k, x in enumerate(low)]
        left = rest - math.fsum(room[k] for k in full)
        loose = [k for k in range(len(room)) if k not in full and room[k] - left > _NOISE]
        count += 1 if left <= _NOISE else len(loose)
        if count > _MOST_CORNERS:
            raise ValueError(
                f"bounds on {sum(members)} losses that meet have more than {_MOST_CORNERS} corners: leave out some "
                "largest shares, or all of them; least shares alone have one corner per loss"
            )
        if left <= _NOISE:
            yield corner
        else:
            yield from ([x + left if k == free else x for k, x in enumerate(corner)] for free in loose)


def _fills(room: Sequence[float], rest: float, start: int = 0) -> Iterator[tuple[int, ...]]:
    """Sets of losses that are at their largest shares together."""
    yield ()
    for k in range(start, len(room)):
        if _NOISE < room[k] <= rest + _NOISE:
            yield from ((k, *more) for more in _fills(room, rest - room[k], k + 1))
