"""Networks beside the demo's, and how published code trains them: ``--network NAME``, or ``NAME:WIDTH``.

``resnet18``   A ResNet-18 per modality, a linear head on each, and the joint logits the sum of the heads': OGM-GE's
               fusion ``sum``, also in AGM. SGD, momentum 0.9, weight decay 1e-4, batches of 64, 100 epochs, rate 0.001,
               after 70 epochs a tenth of it. (MMPareto's code: 0.002, 50 epochs, a tenth after 30, and a fused head of
               its own.) Width: that of the first stage; published 64.
``lenet``      MultiBench's AV-MNIST: a LeNet per modality, features side by side, a hidden layer of 100 units. SGD
               without momentum, weight decay 1e-4, batches of 40, 30 epochs, rate 0.1. Width: channels of the first
               stage; published 6.

Our reading: initial weights are PyTorch's but for LeNet's convolutions; ``--epochs`` moves the fall of the rate along;
with AdamW, rate and decay are those of every network here; the heads of a sum of logits, which are also its uni-modal
heads, learn from the joint loss alone where a method has no other.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from torch import nn

from balanced_grad.demo._data import Dataset, DemoError
from balanced_grad.demo._train import BATCH, RECIPE
from bench._encoders import Encoder, lenet
from bench._encoders import width as lenet_width
from bench.published._networks import resnet18

DEFAULTS: dict[str, dict[str, float]] = {
    "sgd": {"lr": RECIPE["lr"], "weight_decay": RECIPE["weight_decay"]},
    "adamw": {"lr": 1e-3, "weight_decay": 1e-2},
}
Shape = tuple[int, ...]


@dataclass(frozen=True)
class Recipe:
    """What to train, and how.

    Attributes:
        name: as in the lines, with the width where it is not the published one.
        encoder: shape of an item, width -> an encoder and its number of features; None: the demo's.
        fusion: the joint logits are the ``"sum"`` of those of the uni-modal heads, or come from ``"hidden"`` units on
            the features side by side.
        epochs: None: the study's budget of steps.
        falls: after this share of the epochs the rate is a tenth.
    """

    name: str
    encoder: Callable[[Shape, int], tuple[nn.Module, int]] | None = None
    fusion: Literal["sum", "hidden"] = "sum"
    width: int = 0
    batch: int = BATCH
    epochs: int | None = None
    momentum: float = RECIPE["momentum"]
    defaults: Mapping[str, Mapping[str, Any]] = field(default_factory=lambda: DEFAULTS)
    falls: float = 1.0

    def rate(self, epoch: int, epochs: int) -> float:
        """Factor on the learning rate in an epoch."""
        return 1.0 if epoch < self.falls * epochs else 0.1

    def check(self, data: Dataset) -> None:
        """Refuse what is no picture."""
        vectors = [name for name, shape in data.shapes.items() if len(shape) != 3]
        if self.encoder and vectors:
            raise DemoError(f"--network {self.name} takes pictures, and {vectors} of {data.name} are vectors")


def resnet_encoder(shape: Shape, width: int) -> tuple[nn.Module, int]:
    """ResNet-18 up to its features."""
    return Encoder(*resnet18(shape[0], 1, width)[:-1]), 8 * width


def lenet_encoder(shape: Shape, width: int) -> tuple[nn.Module, int]:
    """LeNet of a square picture."""
    colours, side, _ = shape
    return lenet(side, width, colours), lenet_width(side, width)


SMALL = Recipe("small")
RECIPES = {
    recipe.name: recipe
    for recipe in (
        SMALL,
        Recipe("resnet18", resnet_encoder, "sum", 64, 64, 100, 0.9,
               DEFAULTS | {"sgd": {"lr": 0.001, "weight_decay": 1e-4}}, 0.7),
        Recipe("lenet", lenet_encoder, "hidden", 6, 40, 30, 0.0,
               DEFAULTS | {"sgd": {"lr": 0.1, "weight_decay": 1e-4}}),
    )
}  # fmt: skip


def find_recipe(request: str) -> Recipe:
    """The recipe ``NAME`` or ``NAME:WIDTH``."""
    name, colon, width = request.partition(":")
    recipe = RECIPES.get(name)
    if recipe is None:
        raise DemoError(f"unknown network {name!r}; known: {', '.join(RECIPES)}, with a width such as resnet18:16")
    if not colon:
        return recipe
    if not (recipe.encoder and width.isdecimal() and int(width) > 0):
        raise DemoError(f"network {request!r}: a width is a whole number of at least 1, and not of {SMALL.name}")
    return replace(recipe, name=request, width=int(width)) if int(width) != recipe.width else recipe
