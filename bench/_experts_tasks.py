"""What the benches of experts train on: splits, what makes an expert, and a recipe."""

from dataclasses import dataclass

import torch
from torch import nn

from balanced_grad.demo._model import FEATURES, encoder
from balanced_grad.models import LowRankFusion, ProductOfExperts, train_experts
from bench._encoders import lenet, width
from bench.accuracy._data import load
from bench.accuracy._multibench import AVMNIST

RANK = 4


class Shuffled:
    """Batches of a split in a new order each time it is gone through."""

    def __init__(self, inputs, labels, batch, seed):
        self.inputs, self.labels, self.batch = inputs, labels, batch
        self.generator = torch.Generator().manual_seed(seed)

    def __iter__(self):
        for rows in torch.randperm(len(self.labels), generator=self.generator).split(self.batch):
            yield {m: x[rows] for m, x in self.inputs.items()}, self.labels[rows]


@dataclass
class Task:
    """Splits as ``(inputs, labels)``, what makes an expert, and the recipe of ``train_experts``."""

    name: str
    splits: dict
    make: object
    recipe: dict
    batch: int = 64

    def for_seed(self, seed):
        """The data of one seed: the same for all."""
        return self

    def together(self, intra):
        """Options for all experts together, after each was trained alone; ``intra``: there is no joint expert."""
        return {"lr": 0.1 * self.recipe["lr"]}

    def alone(self, experts):
        """Options for each expert alone, and for all of them from scratch."""
        return {}

    def train(self, experts, seed, **options):
        if options.get("mode") == "frozen":
            options |= self.alone(experts)
        return self.fit(ProductOfExperts(experts), seed, **options)

    def fit(self, product, seed, **options):
        batches = Shuffled(*self.splits["train"], batch=self.batch, seed=seed)
        train_experts(product, batches, [self.splits["val"]], **{**self.recipe, **options})
        return product


class Late(nn.Module):
    """A late-fusion network as an expert: encoders of its own, features side by side, a head."""

    def __init__(self, encoders, head):
        super().__init__()
        self.encoders = nn.ModuleList(encoders)
        self.head = head

    def forward(self, *inputs):
        return self.head(torch.cat([encode(x) for encode, x in zip(self.encoders, inputs, strict=True)], 1))


class LowRank(nn.Module):
    """A joint expert whose features are multiplied, not laid side by side."""

    def __init__(self, encoders, fusion, head=None):
        super().__init__()
        self.encoders = nn.ModuleList(encoders)
        self.fusion = fusion
        self.head = nn.Identity() if head is None else head

    def forward(self, *inputs):
        return self.head(self.fusion(*(encode(x) for encode, x in zip(self.encoders, inputs, strict=True))))


def real(name, epochs):
    """A set of ``bench.accuracy`` as a task; epochs: at most so many per stage, 0 for as many as fit its size."""
    data = load(name)
    splits = {s: (getattr(data, s).inputs, getattr(data, s).labels) for s in ("train", "val", "test")}
    if name == AVMNIST:
        return AVMNISTTask(splits, epochs)

    def make(key, low_rank=False):
        names = modalities(key)
        encoders = [encoder(data.shapes[m]) for m in names]
        head = nn.Linear(FEATURES * len(names), data.classes)  # drawn in any case: the seed goes on alike
        if low_rank:
            return LowRank(encoders, LowRankFusion([FEATURES] * len(names), data.classes, rank=RANK))
        return Late(encoders, head)

    epochs = epochs or max(4, round(800 / -(-len(data.train) // 64)))
    return Task(name, splits, make, {"lr": 0.01, "epochs": epochs, "patience": max(3, epochs // 6)})


def modalities(key):
    """Those an expert looks at."""
    return (key,) if isinstance(key, str) else key


class AVMNISTTask(Task):
    """AV-MNIST as in I2M2's released code, as far as it is known.

    LeNets of 3 channels for the experts of single modalities and of 6 for the joint one, a hidden layer of 100 units;
    low rank: 120 products of rank 40 before it. SGD, weight decay 1e-4, batches of 40, 30 epochs, gradients no longer
    than 8. Rates: 0.01 for a single modality, 0.1 for the joint expert; then together 0.01, without a joint expert 0.1.
    Our reading: no momentum, as in MultiBench's loop; stages end after 10 epochs without a better validation loss;
    from scratch at the rates of the experts alone.
    """

    CHANNELS, JOINT_CHANNELS, HIDDEN, CLASSES = 3, 6, 100, 10
    PRODUCTS, RANK = 120, 40
    JOINT_RATE = 10  # of the joint expert, beside that of a single modality

    def __init__(self, splits, epochs=0):
        recipe = {
            "lr": 0.01,
            "epochs": epochs or 30,
            "patience": 10,
            "clip": 8,
            "optimizer": lambda parameters, lr: torch.optim.SGD(parameters, lr=lr, weight_decay=1e-4),
        }
        super().__init__(AVMNIST, splits, self.expert, recipe, batch=40)
        self.sides = {m: x.shape[-1] for m, x in splits["train"][0].items()}

    def expert(self, key, low_rank=False):
        names = modalities(key)
        channels = self.CHANNELS if len(names) == 1 else self.JOINT_CHANNELS
        encoders = [lenet(self.sides[m], channels) for m in names]
        widths = [width(self.sides[m], channels) for m in names]
        if low_rank:
            return LowRank(encoders, LowRankFusion(widths, self.PRODUCTS, rank=self.RANK), self.head(self.PRODUCTS))
        return Late(encoders, self.head(sum(widths)))

    def head(self, inside):
        return nn.Sequential(nn.Linear(inside, self.HIDDEN), nn.ReLU(), nn.Linear(self.HIDDEN, self.CLASSES))

    def together(self, intra):
        return {"lr": 0.1 if intra else 0.01}

    def alone(self, experts):
        return {"rates": {"+".join(key): self.JOINT_RATE for key in experts if not isinstance(key, str)}}
