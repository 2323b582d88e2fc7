"""How much of the accuracy an additive model of the modalities explains: Hessel and Lee's projection, of any number."""

import numpy as np
import torch
from torch import Tensor

from balanced_grad.diagnosis._items import Items, Rows, taken
from balanced_grad.diagnosis._network import Network
from balanced_grad.diagnosis._scores import Array, scores
from balanced_grad.labels import Task


def projected(network: Network, items: Items) -> tuple[Tensor, Tensor]:
    """Logits ``(n, ...)`` of the model, and of its projection on sums of functions of one modality each.

        f̂(x_i) = Σ_m f_m(x_i^m) - (M - 1) f_0,    f_m(z) = E[f | x^m = z],    f_0 = E[f],   modalities independent

    Every modality of every item is combined with every item of any other modality exactly once, in ``n`` passes:
    pass ``r`` gives item ``i`` the modality ``m`` of item ``i + m r mod n``. For two modalities these are all ``n²``
    pairs, Hessel and Lee's double sum. For more, ``n`` must be a prime, and it is an orthogonal array of strength 2:
    the projection of an additive model is that model, exactly; of any other, interactions are averaged over ``n``.
    """
    count = len(items)
    sums: list[Tensor] = []
    original = None
    for draw in range(count):
        donors = [(np.arange(count) + place * draw) % count for place in range(len(items.modalities))]
        changed = {} if draw == 0 else _combined(items, donors)
        logits = torch.cat([x.cpu().double() for _, x in network.logits(items, changed, "with modalities of several")])
        if original is None:
            original, sums = logits, [torch.zeros_like(logits) for _ in donors]
        for total, rows in zip(sums, donors, strict=True):
            total[torch.from_numpy(rows)] += logits
    assert original is not None
    effects = [total / count for total in sums]
    mean = effects[0].mean(0)
    return original, torch.stack([effect - mean for effect in effects]).sum(0) + mean


def _combined(items: Items, donors: list[Rows]) -> dict[str, object]:
    return {
        key: taken(items.inputs[key], rows)
        for name, rows in zip(items.modalities, donors, strict=True)
        for key in items.keys[name]
    }


def additive_rows(task: Task, original: Tensor, additive: Tensor, labels: Tensor) -> tuple[Array, Array | None]:
    """``(2, n)`` losses, and hits, of the model and of its projection."""
    both = [scores(task, logits, labels) for logits in (original, additive)]
    hits = [each.hits for each in both if each.hits is not None]
    return np.stack([each.losses for each in both]), np.stack(hits) if hits else None


def grid_size(modalities: int, items: int, limit: int) -> int:
    """How many items the projection takes: a prime where there are more than two modalities; 0 for one modality."""
    count = min(items, limit)
    if modalities < 2 or count < 2:
        return 0
    if modalities == 2:
        return count
    return next((n for n in range(count, modalities, -1) if all(n % d for d in range(2, int(n**0.5) + 1))), 0)
