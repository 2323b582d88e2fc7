"""One training run of one method, and what is known after it."""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn import functional

import balanced_grad as bg
from balanced_grad.demo._data import Dataset, Split
from balanced_grad.demo._model import LateFusion
from balanced_grad.demo._probe import probe

BATCH = 64
RECIPE = {"lr": 0.01, "momentum": 0.9, "weight_decay": 1e-4}  # of SGD, the same for every data set and method
JOINT = "joint"


@dataclass(frozen=True)
class Method:
    """Which losses train the network, and what combines them (None: their plain sum)."""

    name: str
    joint: bool = True
    unimodal: bool = True
    make: Callable[[LateFusion], bg.Balancer] | None = None

    def logits(self, model: LateFusion, split: Split) -> tuple[dict[str, Tensor], list[Tensor]]:
        """Run the forward pass: predictions that this method trains, by loss name, and the features."""
        features = model.features(split.inputs)
        logits = {JOINT: model.fuse(features)} if self.joint else {}
        if self.unimodal:
            logits |= model.unimodal(features)
        return logits, features


ALONE = Method("uni-modal", joint=False)
BASELINE = Method("joint", unimodal=False)
BALANCED = (
    Method("Uniform", make=lambda _: bg.Uniform()),
    Method("MIMO", make=lambda _: bg.MIMO()),
    Method("MinNorm", make=lambda _: bg.MinNorm()),
    Method("BOGC", make=lambda model: bg.BOGC(model.encoders)),
)


@dataclass
class Run:
    """Numbers of one run, in percent; ``heads``, ``probe`` and ``probe_val`` by modality.

    ``val`` holds the validation accuracy after every epoch by loss name, ``weights`` the mean weight of
    every loss in every epoch (balanced methods only).
    """

    seed: int
    fused: float = 0.0
    heads: dict[str, float] = field(default_factory=dict)
    probe: dict[str, float] = field(default_factory=dict)
    probe_val: dict[str, float] = field(default_factory=dict)
    val: dict[str, list[float]] = field(default_factory=dict)
    weights: dict[str, list[float]] = field(default_factory=dict)


class Trainer:
    """A network, its optimizer and its method: one seed gives every method the same initial weights."""

    def __init__(self, data: Dataset, method: Method, seed: int) -> None:
        with torch.random.fork_rng(devices=[]):  # the caller's random state is none of our business
            torch.manual_seed(seed)
            self.model = LateFusion(data.shapes, data.classes).to(data.train.labels.device)
        self.method = method
        self.balancer = method.make(self.model) if method.make else None
        self.optimizer = torch.optim.SGD(self.model.parameters(), **RECIPE, fused=True)  # type: ignore[arg-type]

    def backward(self, logits: dict[str, Tensor], labels: Tensor) -> None:
        """From logits to the final ``.grad``: the part that methods differ in."""
        losses = {name: functional.cross_entropy(x, labels) for name, x in logits.items()}
        loss = self.balancer(losses) if self.balancer else torch.stack(list(losses.values())).sum()
        loss.backward()

    def watch(self, features: list[Tensor], labels: Tensor) -> None:
        """Train the heads that the method leaves alone on detached features, which no encoder can feel."""
        logits = self.model.unimodal([x.detach() for x in features])
        loss = torch.stack([functional.cross_entropy(x, labels) for x in logits.values()]).sum()
        loss.backward()  # type: ignore[no-untyped-call]

    def step(self, batch: Split) -> None:
        """One step of training."""
        logits, features = self.method.logits(self.model, batch)
        self.backward(logits, batch.labels)
        if not self.method.unimodal:
            self.watch(features, batch.labels)
        self.optimizer.step()
        self.optimizer.zero_grad()


def train(data: Dataset, method: Method, seed: int, epochs: int, tick: Callable[[], object]) -> Run:
    """Train for a fixed number of epochs and evaluate the last; ``tick()`` is called after every epoch."""
    trainer, run = Trainer(data, method, seed), Run(seed)
    order = torch.Generator().manual_seed(seed)
    for _ in range(epochs):
        weights: list[Tensor] = []
        for rows in torch.split(torch.randperm(len(data.train), generator=order), BATCH):
            trainer.step(data.train[rows.to(data.train.labels.device)])
            last = trainer.balancer.last if trainer.balancer else None
            mean = last.mean_weights() if last is not None else None
            if mean is not None:
                weights.append(mean)
        if last is not None and weights:
            _extend(run.weights, dict(zip(last.names, torch.stack(weights).mean(0).tolist(), strict=True)))
        _extend(run.val, accuracies(trainer.model, method, data.val))
        tick()
    test = accuracies(trainer.model, method, data.test)
    run.fused = test.pop(JOINT)
    run.heads = test
    run.probe_val, run.probe = probe(trainer.model, data)
    return run


@torch.no_grad()
def accuracies(model: LateFusion, method: Method, split: Split) -> dict[str, float]:
    """Percent correct of the fused prediction (``"joint"``) and of each uni-modal head."""
    features = model.features(split.inputs)
    heads = model.unimodal(features)
    ensemble = torch.stack([x.softmax(1) for x in heads.values()]).mean(0)
    scores = {JOINT: model.fuse(features) if method.joint else ensemble, **heads}
    return {name: 100 * (x.argmax(1) == split.labels).double().mean().item() for name, x in scores.items()}


def _extend(series: dict[str, list[float]], values: dict[str, float]) -> None:
    for name, value in values.items():
        series.setdefault(name, []).append(value)
