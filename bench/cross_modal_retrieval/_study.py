"""One seed of one set: every model, every stage, both kinds of query."""

from copy import deepcopy
from dataclasses import dataclass

import numpy as np
import torch

from balanced_grad.models import Bernoulli, Gaussian
from bench._metrics import mean_average_precision
from bench.cross_modal_retrieval._metrics import cosine_map, fit_labels
from bench.cross_modal_retrieval._paths import Path
from bench.cross_modal_retrieval._training import STAGES, Model, fine_tune, lifted, pretrain

MODELS = [*(Model(f"K = {k}", k) for k in (0, 1, 5, 10)), Model("entries, K = 5", 5, entries=True)]
QUERIES = 100  # by cosine, which is slower than labels


@dataclass(frozen=True)
class Size:
    """Widths of a path's two layers and of the shared one; epochs of pretraining a layer, and of a stage."""

    layer: int = 64
    hidden: int = 128
    pretrain: int = 15
    stage: int = 10


SIZES = {"movies": Size(), "digits": Size(pretrain=20, stage=20), "mirflickr": Size(1024, 2048, 200, 200)}


def study(pairs, seed, size, models=None):
    """Rows of scores: of linear models on the data, then of each model after each stage."""
    torch.manual_seed(seed)
    data = {"image": torch.from_numpy(pairs.image), "tags": torch.from_numpy(pairs.tags)}
    paths = {name: Path(likelihood(x[pairs.pairs]), [x.shape[1], size.layer, size.layer]) for name, x in data.items()}
    inputs = {name: x[pairs.pairs] for name, x in data.items()}
    for name, path in paths.items():
        pretrain(path, inputs[name], size.pretrain, torch.Generator().manual_seed(seed))
    yield {"model": "linear, on the data", "stage": "all"} | linear(pairs)
    for model in models or MODELS:
        own = deepcopy(paths)
        torch.manual_seed(seed)
        for stage, vi in fine_tune(own, inputs, model, size.hidden, size.stage, torch.Generator().manual_seed(seed)):
            if stage in (STAGES[0], STAGES[-1]):
                yield {"model": model.name, "stage": stage.name} | scores(pairs, vi, lifted(own, data, stage.first))


def likelihood(x):
    """Entries in [0, 1] are Bernoulli, standardised ones Gaussian of variance one, as in the source."""
    return Bernoulli(x.shape[1]) if x.min() >= 0 and x.max() <= 1 else Gaussian(x.shape[1], variance="unit")


def linear(pairs):
    """What labels a linear classifier finds in both halves, in the image, and what an order by chance is worth."""
    targets = pairs.labels[pairs.test]
    kinds = {"multimodal": np.concatenate([pairs.image, pairs.tags], 1), "unimodal": pairs.image}
    found = {name: fit_labels(x[pairs.train], pairs.labels[pairs.train])(x[pairs.test]) for name, x in kinds.items()}
    return {name: mean_average_precision(targets, x) for name, x in found.items()} | {
        "chance": float(targets.mean(0).mean())
    }


@torch.no_grad()
def scores(pairs, vi, below):
    """mAP by label of both kinds of query, mAP by cosine, and what the tags cost to fill in, in nats per item."""
    both = vi(below).hidden.numpy()
    test = {name: x[pairs.test] for name, x in below.items()}
    fill = vi({"image": test["image"]})
    classify = fit_labels(both[pairs.train], pairs.labels[pairs.train])
    targets, known = pairs.labels[pairs.test], pairs.labels[pairs.train]
    row = {"nll": vi.branches[1].likelihood.nll(fill.predictions["tags"], test["tags"]).sum(1).mean().item()}
    for name, hidden in (("multimodal", both[pairs.test]), ("unimodal", fill.hidden.numpy())):
        row[name] = mean_average_precision(targets, classify(hidden))
        row[f"{name}, cosine"] = cosine_map(hidden[:QUERIES], both[pairs.train], targets[:QUERIES], known)
    return row
