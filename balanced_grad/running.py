"""Running a model of the user's once more without a trace: its modes, its random numbers, what it returns."""

import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Every module in eval mode, so that no batch statistic is touched; those that trained do so again afterwards."""
    training = [module for module in model.modules() if module.training]
    try:
        for module in training:
            module.training = False
        yield
    finally:
        for module in training:
            module.training = True


@contextmanager
def keeping_random_state(device: torch.device) -> Iterator[None]:
    """The generators of torch, of NumPy and of Python go on afterwards as if nothing had been drawn."""
    python, numpy = random.getstate(), np.random.get_state()
    devices = [device] if device.type == "cuda" else []
    try:
        with torch.random.fork_rng(devices=devices):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)


def logits_of(output: Any, option: str = "logits=") -> Tensor:
    """The tensor that a model returned, or that is called logits in what it returned."""
    logits = output
    if isinstance(output, Mapping):
        logits = output.get("logits")
    elif not isinstance(output, Tensor):
        logits = getattr(output, "logits", None)
    if not isinstance(logits, Tensor):
        raise TypeError(
            f"the model returned a {type(output).__name__} without logits; give {option}, a function from it to them"
        )
    return logits
