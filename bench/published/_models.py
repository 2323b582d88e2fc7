"""The networks that are timed, and random items of the shapes they take."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

import torch
from torch import nn

from balanced_grad.demo._data import Dataset, Split
from balanced_grad.demo._model import FEATURES, LateFusion
from bench.published._networks import ResNets, Transformers

ITEMS = 256
CLASSES = 10
WIDTHS = {"resnet": 16, "transformer": 64}  # of the published ones: 64 and 768
PICTURES = {"visual": (3, 32, 32), "audio": (1, 32, 32)}
SEQUENCES = {"text": (12, 300), "visual": (12, 371), "audio": (12, 81)}  # tokens; sizes of UR-FUNNY's features
MFEAT = {"fou": 76, "fac": 216, "kar": 64, "pix": 240, "zer": 47, "mor": 6}


@dataclass(frozen=True)
class Case:
    """A network and the shape of one item of each modality."""

    title: str
    shapes: Mapping[str, tuple[int, ...]]
    network: Callable[[Mapping[str, tuple[int, ...]], int], LateFusion] = LateFusion

    def data(self) -> Dataset:
        """Random items; the splits that nobody trains on are empty."""
        generator = torch.Generator().manual_seed(0)
        inputs = {name: torch.randn(ITEMS, *shape, generator=generator) for name, shape in self.shapes.items()}
        items = Split(inputs, torch.randint(CLASSES, (ITEMS,), generator=generator))
        nothing = items[torch.arange(0)]
        return Dataset(self.title, self.title, CLASSES, items, nothing, nothing)


class Large(LateFusion):
    """Three wider convolutions per encoder, half a million parameters each: Python's share of a step is small."""

    def __init__(self, shapes: Mapping[str, tuple[int, ...]], classes: int) -> None:
        super().__init__(shapes, classes)
        self.encoders = nn.ModuleList(wide_encoder() for _ in shapes)


def wide_encoder() -> nn.Module:
    """Build an encoder of ``(1, 28, 28)`` images."""
    layers: list[nn.Module] = []
    channels = 1
    for width in (64, 128, 256):
        layers += [nn.Conv2d(channels, width, 3, stride=2, padding=1), nn.ReLU()]
        channels = width
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(16 * channels, FEATURES), nn.ReLU())


def cases(modalities: int = 2, width: int | None = None) -> dict[str, Case]:
    """The models by name; ``modalities`` is the number that ``large`` has, ``width`` of ResNets and transformers."""
    images = {f"image {k + 1}": (1, 28, 28) for k in range(modalities)}
    stage, tokens = (width or WIDTHS[name] for name in ("resnet", "transformer"))
    return {
        "avmnist": Case("AV-MNIST, small CNNs", {"image": (1, 28, 28), "audio": (1, 40, 40)}),
        "mfeat": Case("mfeat, six small MLPs", {name: (size,) for name, size in MFEAT.items()}),
        "large": Case(f"large, {modalities} CNNs", images, Large),
        "resnet": Case(f"two ResNet-18, width {stage}", PICTURES, partial(ResNets, width=stage)),
        "transformer": Case(f"three transformers, width {tokens}", SEQUENCES, partial(Transformers, width=tokens)),
    }
