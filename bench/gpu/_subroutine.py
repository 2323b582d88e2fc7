"""From per-loss gradients in rows to ``.grad``, beside torchjd and other solvers."""

import importlib
from functools import partial

import torch

from bench._subroutine import WAYS
from bench._subroutine import Case as Gradients
from bench.gpu._case import Case, Clock, milliseconds
from bench.gpu._kernels import column

SIZES = {
    "cuda": [(count, size) for size in (10**7, 10**8, 10**6) for count in (2, 4, 8)],
    "cpu": [(2, 10**4), (3, 10**4)],
}
ROUNDS = {"cuda": 9, "cpu": 2}
WARM_UP = 2


def solved_by(name: str, gradients: Gradients) -> None:
    """The package is asked for first: without it ``min_norm`` would go on with a solver of its own."""
    importlib.import_module(name)
    gradients.ours(name)


ALL = WAYS | {f"ours, solved by {name}": (Gradients.clear, partial(solved_by, name)) for name in ("cvxpy", "scipy")}


def measure(way: str, count: int, size: int, device: str) -> dict:
    """Shortest time, and as a ratio to reading all rows once and writing one, measured in turns."""
    gradients = Gradients(count, size, device)
    setup, run = ALL[way]
    out = torch.empty_like(gradients.rows.flat[0])
    pairs = []
    for _ in range(WARM_UP + ROUNDS[device]):
        setup(gradients)
        pairs.append((milliseconds(lambda: run(gradients), device), milliseconds(lambda: gradients.floor(out), device)))
    shortest, floor = (min(times) for times in zip(*pairs[WARM_UP:], strict=True))
    return {"ms": shortest, "floor_ms": floor, "ratio": shortest / floor}


def cases(device: str, clock: Clock) -> list[Case]:
    return [
        Case(way, partial(measure, way, count, size, device), column(count, size))
        for count, size in SIZES[device]
        for way in ALL
    ]
