"""Most memory that two steps hold at once, beyond what those of the plain sum hold."""

from collections.abc import Callable
from functools import partial

import torch

from bench._models import ENCODERS, Model
from bench.capture import plain, variants
from bench.gpu._case import Case, Clock
from bench.published._memory import peak_bytes

BATCH = {"cuda": 256, "cpu": 4}


def peak(run: Callable[[], object], device: str) -> int:
    """Bytes beyond those held before, by the allocator of the device."""
    if device != "cuda":
        return peak_bytes(run)
    torch.cuda.empty_cache()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    run()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


def steps(model: Model, backward, batch: int) -> None:
    for _ in range(2):
        inputs, label = model.batch(batch)
        model.zero_grad()
        backward(model, model.losses(inputs, label))


def measure(kind: str, modalities: int, device: str) -> dict:
    """MiB per variant, each on a model of its own."""
    peaks = {}
    for name in variants(Model(kind, modalities)):
        model = Model(kind, modalities).to(device)
        steps(model, plain, BATCH[device])  # loads what stays loaded
        model.zero_grad()
        peaks[name] = peak(partial(steps, model, variants(model)[name], BATCH[device]), device)
    return {f"{name}, MiB": (held - peaks["plain sum"]) / 2**20 for name, held in peaks.items()}


def cases(device: str, clock: Clock) -> list[Case]:
    return [Case(f"{kind}, M={count}", partial(measure, kind, count, device)) for kind in ENCODERS for count in (2, 3)]
