"""What a part is made of, and how it measures."""

import time
from collections.abc import Callable
from typing import NamedTuple

import torch


class Case(NamedTuple):
    """One line of a part's table, or with ``column`` one cell of it.

    ``run`` returns numbers by name. Texts under ``errors``, and one under ``left_out``, say what was wrong or missing.
    """

    row: str
    run: Callable[[], dict]
    column: str = ""


class LeftOut(Exception):  # noqa: N818 - no error
    """A case that cannot run here, and why."""


class Clock:
    """The time of a part."""

    def __init__(self, seconds: float):
        self.end = time.monotonic() + seconds

    def left(self) -> float:
        return self.end - time.monotonic()


def milliseconds(run: Callable[[], object], device: str) -> float:
    """Of one call: by the device's own clock, or by that of the CPU."""
    if device != "cuda":
        start = time.perf_counter()
        run()
        return 1e3 * (time.perf_counter() - start)
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    begin.record()
    run()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end)


def difference(got, expected) -> float:
    """Largest distance of two tensors, as a share of the largest entry that was expected."""
    if not expected.numel():
        return 0.0
    wide = expected.detach().double()
    return float((got.detach().double() - wide).abs().max() / wide.abs().max().clamp_min(1e-300))
