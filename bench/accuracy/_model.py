"""The networks: the demo's late fusion, with a deep fused head for tasks that a linear one cannot solve, and I2M2's."""

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from balanced_grad.demo._data import Dataset
from balanced_grad.demo._model import FEATURES, LateFusion, encoder
from balanced_grad.running import evaluating
from bench.accuracy._generated import TASKS
from bench.accuracy._recipes import SMALL, Recipe

HIDDEN = 100  # units of a published head


def build(network: type[LateFusion], data: Dataset, recipe: Recipe = SMALL) -> LateFusion:
    """Make a network for a data set; a generated task gets a deep fused head, for a linear one can learn no XOR."""
    model = network(data.shapes, data.classes)
    if recipe.encoder:
        dress(model, data, recipe)
    elif data.name in TASKS:
        width = model.fused.in_features
        model.fused = nn.Sequential(nn.Linear(width, FEATURES), nn.ReLU(), nn.Linear(FEATURES, data.classes))
    return model


def dress(model: LateFusion, data: Dataset, recipe: Recipe) -> None:
    """Put the recipe's encoders and heads in the place of the demo's; those of I2M2's joint expert are its own."""
    made = [recipe.encoder(shape, recipe.width) for shape in data.shapes.values()]
    widths = [width for _, width in made]
    model.encoders = nn.ModuleList(encode for encode, _ in made)
    model.heads = linear(widths, data.classes)
    joint = model.heads
    if isinstance(model, InterIntra):
        model.inter = nn.ModuleList(recipe.encoder(shape, recipe.width)[0] for shape in data.shapes.values())
        joint = linear(widths, data.classes)
    if recipe.fusion == "sum":
        model.fused = SumOfLogits(joint)
    else:
        model.fused = nn.Sequential(nn.Linear(sum(widths), HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, data.classes))


def linear(widths: Iterable[int], classes: int) -> nn.ModuleList:
    """A linear head per modality."""
    return nn.ModuleList(nn.Linear(width, classes) for width in widths)


class SumOfLogits(nn.Module):
    """A fused head that adds up what heads of single modalities say of their part of the features."""

    def __init__(self, heads: nn.ModuleList) -> None:
        super().__init__()
        self.heads = heads

    def forward(self, features: Tensor) -> Tensor:
        parts = features.split([head.in_features for head in self.heads], dim=1)
        return torch.stack([head(part) for head, part in zip(self.heads, parts, strict=True)]).sum(0)


class InterIntra(LateFusion):
    """Uni-modal experts and a joint expert that share no parameter: twice the encoders of ``LateFusion``."""

    def __init__(self, shapes: Mapping[str, tuple[int, ...]], classes: int) -> None:
        super().__init__(shapes, classes)
        self.inter = nn.ModuleList(encoder(shape) for shape in shapes.values())

    def features(self, inputs: Mapping[str, Tensor]) -> list[Tensor]:
        """Encode: one tensor per uni-modal expert, then one per encoder of the joint expert."""
        inter = [encode(inputs[name]) for name, encode in zip(self.names, self.inter, strict=True)]
        return super().features(inputs) + inter

    def fuse(self, features: list[Tensor]) -> Tensor:
        """Predict by the joint expert."""
        return super().fuse(features[len(self.names) :])

    def unimodal(self, features: list[Tensor]) -> dict[str, Tensor]:
        """Predict by each uni-modal expert."""
        return super().unimodal(features[: len(self.names)])


def head_split(model: LateFusion, features: list[Tensor]) -> dict[str, Tensor]:
    """What each modality adds to the fused logits, ``W_m z_m + b / M``; of other fused heads the uni-modal heads'."""
    if not isinstance(model.fused, nn.Linear):
        return model.unimodal(features)
    blocks = model.fused.weight.split([z.shape[1] for z in features], dim=1)
    share = model.fused.bias / len(features)
    return {name: z @ w.t() + share for name, z, w in zip(model.names, features, blocks, strict=True)}


def muted_features(model: LateFusion, features: list[Tensor], inputs: Mapping[str, Tensor]) -> list[list[Tensor]]:
    """Per modality, its features as they are and those of an input of zeros, which batch norm takes no notice of."""
    with evaluating(model):
        silent = model.features({name: torch.zeros_like(x[:1]) for name, x in inputs.items()})
    return [[nothing.expand_as(z), z] for nothing, z in zip(silent, features, strict=True)]
