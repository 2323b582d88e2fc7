"""Forward and backward of every variant of bench.capture, as ratios to those of the plain sum."""

import importlib
import importlib.metadata
import itertools
import warnings
from functools import partial

from bench import capture
from bench._models import ENCODERS
from bench.gpu._case import Case, Clock

BATCHES = {"cuda": (256, 32), "cpu": (4,)}
ROUNDS = {"cuda": 20, "cpu": 1}


def measure(kind: str, modalities: int, batch: int, device: str) -> dict:
    warnings.filterwarnings("ignore", message=".*batching rule.*")  # torchjd's vmap over attention
    return capture.measure(kind, modalities, batch, ROUNDS[device], device)


def peer() -> dict:
    """A case of its own, so that the report says it where the released peer is not there."""
    importlib.import_module("torchjd")
    return {"version": importlib.metadata.version("torchjd")}


def cases(device: str, clock: Clock) -> list[Case]:
    grid = itertools.product(BATCHES[device], ENCODERS, (2, 3))
    return [
        Case("torchjd", peer),
        *(Case(f"{kind}, M={m}, batch {size}", partial(measure, kind, m, size, device)) for size, kind, m in grid),
    ]
