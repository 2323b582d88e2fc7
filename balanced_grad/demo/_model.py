"""A late-fusion network: one encoder and one linear head per modality, one linear head over all features."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

FEATURES = 32  # width of every encoder's output


class LateFusion(nn.Module):
    """Encoders that meet only in the fused head, with a uni-modal head on each.

    ``shapes`` gives the shape of one item of each modality: ``(d,)`` gets two dense layers, ``(1, h, w)``
    three convolutions.
    """

    def __init__(self, shapes: Mapping[str, tuple[int, ...]], classes: int) -> None:
        super().__init__()
        self.names = tuple(shapes)  # lists, not ModuleDict: a modality may be called anything
        self.encoders = nn.ModuleList(encoder(shape) for shape in shapes.values())
        self.heads = nn.ModuleList(nn.Linear(FEATURES, classes) for _ in shapes)
        self.fused = nn.Linear(FEATURES * len(shapes), classes)

    def features(self, inputs: Mapping[str, Tensor]) -> list[Tensor]:
        """Encode: one ``(n, FEATURES)`` per modality."""
        return [encode(inputs[name]) for name, encode in zip(self.names, self.encoders, strict=True)]

    def fuse(self, features: list[Tensor]) -> Tensor:
        """Predict from all modalities: ``(n, classes)`` logits."""
        logits: Tensor = self.fused(torch.cat(features, dim=1))
        return logits

    def unimodal(self, features: list[Tensor]) -> dict[str, Tensor]:
        """Predict from each modality alone: ``(n, classes)`` logits by name."""
        return {name: head(x) for name, head, x in zip(self.names, self.heads, features, strict=True)}


def encoder(shape: tuple[int, ...]) -> nn.Module:
    """Build a small encoder for one modality."""
    if len(shape) == 1:
        return nn.Sequential(nn.Linear(shape[0], 64), nn.ReLU(), nn.Linear(64, FEATURES), nn.ReLU())
    channels, height, width = shape
    convolutions = nn.Sequential(
        nn.Conv2d(channels, 16, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Conv2d(16, 32, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Conv2d(32, 64, 3, stride=2, padding=1),
        nn.ReLU(),
    )
    area = -(-height // 8) * -(-width // 8)  # three strides of two, rounded up
    return nn.Sequential(convolutions, nn.Flatten(), nn.Linear(64 * area, FEATURES), nn.ReLU())
