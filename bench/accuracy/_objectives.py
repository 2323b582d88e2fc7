"""From one forward pass to the scalar that is trained on: how each kind of method is called."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, log_softmax, nll_loss

import balanced_grad as bg
from balanced_grad.demo._data import Split
from balanced_grad.demo._model import LateFusion
from bench.accuracy._model import head_split, muted_features

JOINT = "joint"


@dataclass(frozen=True)
class Forward:
    """One forward pass; ``logits`` of the predictions that are trained, by loss name."""

    model: LateFusion
    batch: Split
    features: list[Tensor]
    logits: dict[str, Tensor]
    present: Mapping[str, Tensor] | None = None

    def losses(self) -> dict[str, Tensor]:
        """Cross-entropies in nats; per item where some items lack a modality."""
        reduction = "mean" if self.present is None else "none"
        return {name: cross_entropy(x, self.batch.labels, reduction=reduction) for name, x in self.logits.items()}


class Scalar(Protocol):
    """What is trained on: a loss, or a loop of its own that takes the place of one."""

    def backward(self) -> Any: ...


Objective = Callable[[Any, Forward], Scalar]


def of_losses(balancer: bg.Balancer | None, forward: Forward) -> Tensor:
    """``balancer(losses)``; without a balancer the plain sum."""
    losses = forward.losses()
    if balancer is not None:
        return balancer(losses, present=forward.present)
    return torch.stack(list(losses.values())).sum()


def with_split_scores(balancer: bg.OGM, forward: Forward) -> Tensor:
    """Scores from the fused head's blocks, as OGM has them."""
    parts = head_split(forward.model, forward.features)
    return balancer(forward.losses(), scores=bg.scores(parts, forward.batch.labels))


def with_head_scores(balancer: bg.MLB, forward: Forward) -> Tensor:
    """Scores from the uni-modal heads."""
    heads = {name: forward.logits[name] for name in forward.model.names}
    return balancer(forward.losses(), scores=bg.scores(heads, forward.batch.labels))


def with_warranted_shares(balancer: bg.ARL, forward: Forward) -> Tensor:
    """ARL's scores, from the uni-modal heads."""
    heads = {name: forward.logits[name] for name in forward.model.names}
    return balancer(forward.losses(), scores=balancer.scores(heads))


def with_muted_passes(balancer: bg.AGM, forward: Forward) -> Tensor:
    """AGM's passes with modalities zeroed; late fusion lets them share the encoders' work."""
    model, batch = forward.model, forward.batch
    choices = muted_features(model, forward.features, batch.inputs)

    def muted(present: tuple[str, ...]) -> Tensor:
        return model.fuse([pair[name in present] for name, pair in zip(model.names, choices, strict=True)])

    logits = balancer.logits(forward.logits[JOINT], muted, batch.labels)
    return balancer({JOINT: cross_entropy(logits, batch.labels)})


def of_product(balancer: None, forward: Forward) -> Tensor:
    """Negative log-likelihood of the plain product of all experts: I2M2's loss."""
    total = torch.stack([log_softmax(x, 1) for x in forward.logits.values()]).sum(0)
    return nll_loss(log_softmax(total, 1), forward.batch.labels)
