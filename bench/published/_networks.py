"""The published family of encoders in plain PyTorch, of any width: ResNet-18, and transformers for sequences."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from balanced_grad.demo._model import FEATURES, LateFusion


class Block(nn.Module):
    """Two 3x3 convolutions around a shortcut (He et al., 2016); a projection where the shape changes."""

    def __init__(self, inside: int, outside: int, stride: int) -> None:
        super().__init__()
        self.path = nn.Sequential(
            nn.Conv2d(inside, outside, 3, stride, 1, bias=False),
            nn.BatchNorm2d(outside),
            nn.ReLU(),
            nn.Conv2d(outside, outside, 3, 1, 1, bias=False),
            nn.BatchNorm2d(outside),
        )
        self.shortcut: nn.Module = nn.Identity()
        if stride > 1 or inside != outside:
            self.shortcut = nn.Sequential(nn.Conv2d(inside, outside, 1, stride, bias=False), nn.BatchNorm2d(outside))

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.path(x) + self.shortcut(x))


def resnet18(channels: int, outputs: int, width: int = 64) -> nn.Sequential:
    """ResNet-18 of ``(channels, height, width)`` pictures; 64 is the standard width of its first stage."""
    stages: list[nn.Module] = []
    inside = width
    for stage in range(4):
        outside = width * 2**stage
        stages += [Block(inside, outside, 1 + (stage > 0)), Block(outside, outside, 1)]
        inside = outside
    stem = (nn.Conv2d(channels, width, 7, 2, 3, bias=False), nn.BatchNorm2d(width), nn.ReLU(), nn.MaxPool2d(3, 2, 1))
    return nn.Sequential(*stem, *stages, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(inside, outputs))


class Transformer(nn.Module):
    """``nn.TransformerEncoder`` of projected ``(tokens, size)`` sequences with learned positions, mean pooled."""

    def __init__(self, shape: tuple[int, ...], outputs: int, width: int, layers: int, heads: int = 4) -> None:
        super().__init__()
        tokens, size = shape
        self.project = nn.Linear(size, width)
        self.positions = nn.Parameter(0.02 * torch.randn(tokens, width))
        layer = nn.TransformerEncoderLayer(width, heads, 4 * width, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)
        self.out = nn.Linear(width, outputs)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.encoder(self.project(x) + self.positions).mean(1))


class ResNets(LateFusion):
    """A ResNet-18 per modality."""

    def __init__(self, shapes: Mapping[str, tuple[int, ...]], classes: int, width: int) -> None:
        super().__init__(shapes, classes)
        self.encoders = nn.ModuleList(resnet18(shape[0], FEATURES, width) for shape in shapes.values())


class Transformers(LateFusion):
    """A transformer per modality."""

    def __init__(self, shapes: Mapping[str, tuple[int, ...]], classes: int, width: int, layers: int = 2) -> None:
        super().__init__(dict.fromkeys(shapes, (1,)), classes)  # which has no encoder of sequences
        self.encoders = nn.ModuleList(Transformer(shape, FEATURES, width, layers) for shape in shapes.values())
