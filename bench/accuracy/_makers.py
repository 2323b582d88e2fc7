"""How balancers are made that need to know the model."""

from collections.abc import Callable, Iterable
from typing import Any

from torch import nn

import balanced_grad as bg
from balanced_grad.demo._model import LateFusion
from bench.accuracy._model import SumOfLogits


def encoders(model: LateFusion) -> dict[str, Any]:
    return dict(zip(model.names, model.encoders, strict=True))


def uniform(model: LateFusion, unimodal: float) -> bg.Balancer:
    return bg.Uniform(dict.fromkeys(model.names, unimodal))


def last_layers(modules: Iterable[nn.Module]) -> list[nn.Module]:
    """Of each module the last layer with parameters."""
    return [[layer for layer in module.modules() if [*layer.parameters(recurse=False)]][-1] for module in modules]


def bogc(model: LateFusion, **own: Any) -> bg.Balancer:
    """Where the joint loss meets a modality's: in its head if the joint logits are a sum, else in its encoder."""
    block = model.heads if isinstance(model.fused, SumOfLogits) else model.encoders
    linear = all(isinstance(layer, nn.Linear) for layer in last_layers(block))
    return bg.BOGC(block, None if linear else bg.evidence.StepVariance(), **own)


def torchjd(name: str) -> Callable[..., bg.Balancer]:
    """A weighting of torchjd, on the Gramian of the losses."""

    def make(_: LateFusion, **options: Any) -> bg.Balancer:
        from torchjd import aggregation

        return bg.Gramian(getattr(aggregation, f"{name}Weighting")(**options))

    return make
