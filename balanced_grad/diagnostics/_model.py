"""What the user brings: a way to train, and models whose latent can be frozen."""

from collections.abc import Iterator, Mapping
from typing import Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, mse_loss

from balanced_grad.diagnostics._items import Array, Items
from balanced_grad.subsets import Subset, label

CHUNK = 1024  # items encoded at a time


class Model(Protocol):
    """A trained model: an encoder that can be frozen and, to see whether the head is at fault, its own ``head``.

    ``head(encode(inputs))``, where there is one, gives logits ``(B, C)``, one logit ``(B, 1)`` for two classes
    labelled 0 and 1, or the values ``(B,)`` or ``(B, D)`` of a regression.
    """

    def encode(self, inputs: Mapping[str, Tensor]) -> Tensor | Mapping[str, Tensor]:
        """The latent ``(B, d)``, or one ``(B, d_k)`` per modality, which are then probed one by one as well."""


class Train(Protocol):
    """The user's recipe: train a new model on the modalities it is given, which are those of one subset."""

    def __call__(self, inputs: dict[str, Tensor], targets: Tensor, seed: int) -> Model:
        """Train on ``inputs[modality] (N, ...)``, ``targets``; torch's global generator is seeded with ``seed``."""


@torch.no_grad()
def _encoded(model: Model, items: Items) -> Iterator[Tensor | Mapping[str, Tensor]]:
    modules = [part for part in (model, getattr(model, "head", None)) if isinstance(part, nn.Module)]
    modes = [module.training for module in modules]
    for module in modules:
        module.eval()
    for start in range(0, len(items), CHUNK):
        yield model.encode(items[start : start + CHUNK].inputs)
    for module, mode in zip(modules, modes, strict=True):
        module.train(mode)


def latents(model: Model, items: Items, subset: Subset) -> dict[str, Array]:
    """The latent ``(N, d)`` by modality, or as a whole under the name ``""``."""
    chunks = [z if isinstance(z, Mapping) else {"": z} for z in _encoded(model, items)]
    if any(z.ndim != 2 or not z.shape[1] for z in chunks[0].values()):
        shapes = [tuple(z.shape) for z in chunks[0].values()]
        raise ValueError(f"encode() of the model of {label(subset)} must give (items, width); got {shapes}")
    latent = {name: torch.cat([chunk[name] for chunk in chunks]).double().cpu().numpy() for name in chunks[0]}
    if not all(np.isfinite(z).all() for z in latent.values()):
        raise ValueError(f"encode() of the model of {label(subset)} gave NaN or infinity: did its training diverge?")
    return latent


@torch.no_grad()
def own_risk(model: Model, items: Items) -> float | None:
    """Mean loss of the model with its own head; None if it has none."""
    head = getattr(model, "head", None)
    if head is None:
        return None
    predictions = torch.cat([head(latent) for latent in _encoded(model, items)])
    return _mean_loss(predictions, items.targets.to(predictions.device))


def _mean_loss(predictions: Tensor, targets: Tensor) -> float:
    predictions = predictions.double()
    if targets.is_floating_point():
        return float(mse_loss(predictions.reshape(targets.shape), targets.double()))
    if predictions.ndim == 2 and predictions.shape[1] == 1:  # one logit of two classes
        predictions = torch.cat([torch.zeros_like(predictions), predictions], 1)
    if predictions.ndim != 2 or targets.min() < 0 or targets.max() >= predictions.shape[1]:
        shape = tuple(predictions.shape)
        raise ValueError(f"head(latent) must give logits (items, classes) for labels from 0; got {shape}")
    return float(cross_entropy(predictions, targets.long()))


def parameter_count(model: Model) -> int | None:
    """Of a module; None for anything else."""
    return sum(p.numel() for p in model.parameters()) if isinstance(model, nn.Module) else None
