"""Pretraining of the paths, and the three stages of fine-tuning."""

from dataclasses import dataclass

import torch
from torch.nn.functional import linear

from balanced_grad.models import Bernoulli
from bench.cross_modal_retrieval._paths import join, over

BATCH, RATE, DECAY, NOISE = 100, 2e-2, 1e-5, 0.2


@dataclass(frozen=True)
class Model:
    """How to train: ``entries`` hides random entries of both modalities instead of one modality."""

    name: str
    steps: int
    entries: bool = False


@dataclass(frozen=True)
class Stage:
    """What is trained: layers above ``first``, to predict ``targets``, some of whose entries are revealed."""

    name: str
    first: int
    targets: tuple[str, ...] = ("image", "tags")
    reveal: float = 0.0


STAGES = (Stage("top", 2), Stage("two", 1), Stage("all", 0, ("tags",), 0.1))


def descend(parameters, loss, items, epochs, order):
    """Adam on mini-batches, its rate falling to zero."""
    optimizer = torch.optim.Adam(parameters, lr=RATE, weight_decay=DECAY)
    decay = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, total_iters=epochs * -(-items // BATCH))
    for _ in range(epochs):
        for rows in torch.randperm(items, generator=order).split(BATCH):
            loss(rows).backward()
            optimizer.step()
            optimizer.zero_grad()
            decay.step()


def pretrain(path, x, epochs, order):
    """Each layer as an auto-encoder of the one below, a fifth of whose entries are zeroed (ours)."""
    for level, weight in enumerate(path.weights):
        likelihood = path.likelihood if level == 0 else Bernoulli(path.widths[level])
        up, down = path.up_biases[level], path.down_biases[level]
        with torch.no_grad():
            below = path.up(x, 0, level)
            down.copy_(likelihood.fit(below))

        def loss(rows, level=level, likelihood=likelihood, weight=weight, down=down, below=below):
            kept = torch.rand(below[rows].shape, generator=order) >= NOISE
            back = linear(path.up(below[rows] * kept, level, level + 1), weight.T, down)
            return likelihood.nll(back, below[rows]).sum(1).mean()

        descend([weight, up, down], loss, len(x), epochs, order)


@torch.no_grad()
def lifted(paths, inputs, first):
    """Activations of layer ``first``."""
    return {name: paths[name].up(x, 0, first) for name, x in inputs.items()}


def fine_tune(paths, inputs, model, hidden, epochs, order):
    """The network after each of the three stages: ``(stage, network, inputs of its layer)``."""
    top = None
    for stage in STAGES:
        if top is not None:
            join(paths, stage.first + 1, top)
        before, top = top, over(paths, stage.first, hidden, model.steps, top)
        below = lifted(paths, inputs, stage.first)
        if before is None:
            with torch.no_grad():
                for branch, x in zip(top.branches, below.values(), strict=True):
                    branch.bias.copy_(branch.likelihood.fit(x))
        options = {"kind": "entries"} if model.entries else {"reveal": stage.reveal}

        def loss(rows, vi=top, below=below, options=options, targets=stage.targets):
            batch = {name: x[rows] for name, x in below.items()}
            losses = vi.objective(
                batch, reduction="sum", sparsity=0.01, sparsity_target=0.2, generator=order, **options
            ).losses
            return sum(losses[name] for name in (losses if "kind" in options else targets))

        top.train()
        descend(top.parameters(), loss, len(below["tags"]), epochs, order)
        yield stage, top.eval()
