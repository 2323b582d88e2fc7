"""AGM's training loop, re-implemented from its description like those of ``_loops``."""

import math

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.nn.utils import clip_grad_norm_

from balanced_grad.subsets import all_subsets, shapley_contrast
from bench.accuracy._objectives import JOINT, Forward
from bench.published._loops import concatenated


class AGM:
    """AGM (Li et al., 2023): the whole network once more for every set of muted modalities.

    The released loop runs 2^M forward passes with zeros for the inputs that are muted, the one with all of them muted
    too, although nothing uses it; passes with zeros run in eval mode, with a graph. The logits are split into Shapley
    shares; a hook on each multiplies the gradient that flows back into it; where the head's gradient is longer than 1,
    the whole model's is clipped to 1. Our re-implementation, in which the running means do not hold the batch itself
    yet; released are two and three modalities, more are our reading.
    """

    def __init__(self, alpha: float = 1.5, limit: float = 10.0, clip: float = 1.0) -> None:
        self.alpha, self.limit, self.clip = alpha, limit, clip
        self.seen: list[list[float]] = []  # per modality, the running sum of its scores and their number

    def __call__(self, forward: Forward) -> None:
        model, labels = forward.model, forward.batch.labels
        passes = torch.stack([*self.muted(forward), forward.logits[JOINT]])
        parts = torch.tensordot(shapley(len(model.names)), passes, 1).unbind()
        scores = [cross_entropy(part.detach(), labels).item() for part in parts]
        for part, factor in zip(parts, self.factors(scores), strict=True):
            part.register_hook(lambda gradient, factor=factor: factor * gradient)
        cross_entropy(torch.stack(parts).sum(0), labels).backward()
        if concatenated(p.grad for p in model.fused.parameters()).norm() > self.clip:
            clip_grad_norm_((p for p in model.parameters() if p.grad is not None), self.clip)

    @staticmethod
    def muted(forward: Forward) -> list[Tensor]:
        """Logits of every set of modalities but the full one, in the order of ``subsets``."""
        model, inputs = forward.model, forward.batch.inputs
        model.eval()
        found = []
        for present in subsets(len(inputs))[:-1]:
            given = {name: x if k in present else torch.zeros_like(x) for k, (name, x) in enumerate(inputs.items())}
            found.append(model.fuse(model.features(given)))
        model.train()
        return found

    def factors(self, scores: list[float]) -> list[float]:
        """``κ`` from this batch's losses of the shares and their running means; 1 in the first step."""
        self.seen = self.seen or [[0.0, 0] for _ in scores]
        now, count = advantages(scores), self.seen[0][1]
        usual = advantages([total / count for total, _ in self.seen]) if count else now
        for kept, score in zip(self.seen, scores, strict=True):
            kept[0] += score
            kept[1] += 1
        return [math.exp(self.alpha * min(u - n, self.limit)) for u, n in zip(usual, now, strict=True)]


def advantages(losses: list[float]) -> list[float]:
    """How far each is below the mean, ``exp(M/(M-1) (mean - loss))``."""
    count = len(losses)
    mean = sum(losses) / count
    return [math.exp(count / (count - 1) * (mean - loss)) for loss in losses]


def subsets(count: int) -> list[tuple[int, ...]]:
    """Every set of the first numbers, from none to all."""
    return all_subsets(range(count))


def shapley(count: int) -> Tensor:
    """``(M, 2^M)`` share of each pass in each modality's Shapley value, the pass with nothing counting as zero."""
    contrasts = [shapley_contrast(range(count), player) | {(): 0.0} for player in range(count)]
    return torch.tensor([[contrast[subset] for subset in subsets(count)] for contrast in contrasts])
