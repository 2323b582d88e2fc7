"""Every pass by every implementation: its error against float64, its time, and its share of a copy's bandwidth."""

import copy
from functools import partial

import torch
from torch import Tensor

from bench.gpu._case import Case, Clock, difference, milliseconds
from bench.test_kernels import PASSES
from bench.test_kernels import Case as Rows

SIZES = {
    "cuda": [(count, size) for size in (10**7, 10**8, 10**6) for count in (2, 4, 8)],
    "cpu": [(2, 4096), (3, 5000)],
}
IMPLEMENTATIONS = {"cuda": ("triton", "reference", "compiled"), "cpu": ("triton", "reference")}
ROUNDS = {"cuda": 20, "cpu": 2}
WARM_UP = {"cuda": 3, "cpu": 1}
TOLERANCE = 1e-4  # of the largest entry: float32 against float64, through a quotient of variances


def results(name: str, rows: Rows, implementation: str) -> list[Tensor]:
    """What a pass returns and what it leaves in its state."""
    returned = PASSES[name][1](rows, implementation)
    values = returned if isinstance(returned, tuple) else (returned,)
    return [*(value for value in values if value is not None), rows.out, rows.mean, rows.variance]


def in_float64(rows: Rows) -> Rows:
    """The same numbers with more digits."""
    double = copy.copy(rows)
    for name, value in vars(rows).items():
        if isinstance(value, Tensor):
            setattr(double, name, value.double() if value.is_floating_point() else value)
    return double


def error(name: str, count: int, size: int, implementation: str, device: str) -> float:
    """The worst of all results."""
    rows = Rows(count, size, device)
    rows.out.zero_()
    double = in_float64(rows)
    pairs = zip(results(name, rows, implementation), results(name, double, "reference"), strict=True)
    return max(difference(got, expected) for got, expected in pairs)


def speed(run, rows: Rows, streams: int, device: str) -> dict:
    """Shortest time, and beside it, in turns, the highest bandwidth of a copy of as many numbers as the rows have."""
    other = torch.empty_like(rows.rows)
    for _ in range(WARM_UP[device]):
        run()
        other.copy_(rows.rows)
    pairs = [
        (milliseconds(run, device), milliseconds(lambda: other.copy_(rows.rows), device)) for _ in range(ROUNDS[device])
    ]
    shortest, copied = (min(times) for times in zip(*pairs, strict=True))
    bandwidth = 1e-6 * streams * rows.out.nbytes / shortest
    of_copy = 1e-6 * 2 * rows.rows.nbytes / copied
    return {"ms": shortest, "gb_per_s": bandwidth, "copy_gb_per_s": of_copy, "share": bandwidth / of_copy}


def ours(name: str, count: int, size: int, implementation: str, device: str) -> dict:
    wrong = error(name, count, size, implementation, device)
    streams, run, _ = PASSES[name]
    rows = Rows(count, size, device)
    numbers = {"error": wrong} | speed(lambda: run(rows, implementation), rows, streams(count), device)
    if wrong < TOLERANCE:
        return numbers
    return numbers | {"errors": [f"it differs from float64 by {wrong:.1e} of the largest entry"]}


def peer(name: str, way: str, count: int, size: int, device: str) -> dict:
    """What one would otherwise write."""
    streams, _, others = PASSES[name]
    rows = Rows(count, size, device)
    return speed(lambda: others[way](rows), rows, streams(count), device)


def cases(device: str, clock: Clock) -> list[Case]:
    """Triton first, and large sizes before small ones, should the time not do for all."""
    first, *rest = IMPLEMENTATIONS[device]
    return [*own(device, [first]), *peers(device), *own(device, rest)]


def own(device: str, implementations: list[str]) -> list[Case]:
    return [
        Case(f"{name}: {way}", partial(ours, name, count, size, way, device), column(count, size))
        for way in implementations
        for count, size in SIZES[device]
        for name in PASSES
    ]


def peers(device: str) -> list[Case]:
    return [
        Case(f"{name}: {way}", partial(peer, name, way, count, size, device), column(count, size))
        for count, size in SIZES[device]
        for name, (_, _, others) in PASSES.items()
        for way in others
    ]


def column(count: int, size: int) -> str:
    return f"M={count}, D={size:.0e}".replace("e+0", "e")
