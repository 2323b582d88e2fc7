"""The missing modality end to end: trained with and without dropped modalities, predicted in four ways.

    BALANCED_GRAD_DATA=DIR python -m bench.missing
    python -m bench.missing --datasets digits --seeds 1

Training: the networks, recipe, defaults and choice of the epoch of ``bench.accuracy`` (``uniform``: ``Uniform()``;
``dropped``: with ``drop_modalities(inputs, 0.2)`` and losses per item), one pair per seed, of the same initial weights
and batches. Of a larger set, the first 4000 items of each split are used. Prediction at test time:

    zeros     the fused head, inputs of zeros in the gaps (of standardised features, their mean)
    means     the fused head, the training mean of the features in the gaps
    heads     ``ProductOfHeads``, fitted on complete validation items: all heads, or those whose modality is there
    fill-in   the fused head, features filled in by a ``CrossModalVI`` of the encoders' features (64 hidden units, 10
              epochs of ``objective(kind="subsets")`` on complete training items, Adam, lr 1e-3, untuned)

``MCAR``: each modality of each item is missing with the rate of the column, but one stays, so that of ``M`` modalities
``r - r^M/M`` are missing. ``one``: one modality is missing in that share of the items; mean over which one. Test
accuracy in percent, mean and deviation over seeds. One JSON line per training goes to ``--out``; those found there are
not repeated.
"""

import argparse
import json
from itertools import product as subsets_of
from pathlib import Path
from statistics import mean, stdev

import torch
from torch import nn
from tqdm import tqdm

import balanced_grad as bg
from balanced_grad.demo._data import Dataset
from balanced_grad.demo._model import FEATURES
from balanced_grad.demo._train import BATCH
from balanced_grad.models import CrossModalVI, Gaussian, ProductOfHeads
from bench import _markdown as markdown
from bench.accuracy._data import load, trusted
from bench.accuracy._methods import BY_NAME, UNIFORM
from bench.accuracy._study import RESULTS, budget, rounded
from bench.accuracy._train import train

DATASETS = ("digits-hard", "mfeat", "wiki", "mosi", "avmnist:clean,noisy")
TRAININGS = {"uniform": UNIFORM, "dropped": BY_NAME["uniform, dropped"]}
RULES = ("zeros", "means", "heads", "fill-in")
RATES = (0.0, 0.1, 0.3, 0.5, 0.7, 0.9)
MOST, HIDDEN, EPOCHS = 4000, 64, 10


def small(data):
    """The set with no more than 4000 items in a split."""
    splits = (split[torch.arange(min(len(split), MOST))] for split in (data.train, data.val, data.test))
    return Dataset(data.name, data.title, data.classes, *splits)


class Filling:
    """Features of missing modalities, from those of the others."""

    def __init__(self, names, features, seed):
        self.names = names
        self.scale = [(z.mean(0), z.std(0).clamp_min(1e-3)) for z in features]
        torch.manual_seed(seed)
        activation = nn.Sequential(nn.LayerNorm(HIDDEN), nn.SiLU())
        entries = {name: Gaussian(FEATURES) for name in names}
        self.vi = CrossModalVI(entries, HIDDEN, tied=False, activation=activation, damping=0.5)
        optimizer = torch.optim.Adam(self.vi.parameters(), lr=1e-3)
        known = self.standardised(features, dict.fromkeys(names, True))
        self.vi.fit_biases(known)
        for _ in range(EPOCHS):
            for rows in torch.randperm(len(features[0])).split(BATCH):
                batch = {name: z[rows] for name, z in known.items()}
                sum(self.vi.objective(batch, kind="subsets").losses.values()).backward()
                optimizer.step()
                optimizer.zero_grad()
        self.vi.eval()

    def standardised(self, features, there):
        pairs = zip(self.names, features, self.scale, strict=True)
        return {name: (z - at) / by for name, z, (at, by) in pairs if there[name]}

    def __call__(self, features, there):
        filled = self.vi(self.standardised(features, there)).filled
        pairs = zip(self.names, features, self.scale, strict=True)
        return [z if there[name] else filled[name] * by + at for name, z, (at, by) in pairs]


@torch.no_grad()
def correct(model, data, filling):
    """Rule -> which modalities are there -> ``(B,)``: which test items are right."""
    names, labels = model.names, data.test.labels
    z = model.features(data.test.inputs)
    means = [x.mean(0) for x in model.features(data.train.inputs)]
    nothing = model.features({name: torch.zeros_like(x[:1]) for name, x in data.test.inputs.items()})
    heads, val = ProductOfHeads(names), model.features(data.val.inputs)
    heads.fit({"joint": model.fuse(val)} | model.unimodal(val), data.val.labels)
    found = {rule: {} for rule in RULES}
    for flags in subsets_of((True, False), repeat=len(names)):
        if not any(flags):
            continue
        there = dict(zip(names, flags, strict=True))
        votes = {name: x for name, x in model.unimodal(z).items() if there[name]}
        votes |= {"joint": model.fuse(z)} if all(flags) else {}
        predicted = {
            "zeros": model.fuse([x if flag else n.expand_as(x) for x, n, flag in zip(z, nothing, flags, strict=True)]),
            "means": model.fuse([x if flag else m.expand_as(x) for x, m, flag in zip(z, means, flags, strict=True)]),
            "heads": heads(votes),
            "fill-in": model.fuse(filling(z, there)),
        }
        for rule, logits in predicted.items():
            found[rule][flags] = logits.argmax(1) == labels
    return found


def curves(found, names, seed):
    """Pattern -> rule -> accuracy at each rate."""
    items = len(next(iter(found["zeros"].values())))
    out = {"MCAR": {rule: [] for rule in RULES}, "one": {rule: [] for rule in RULES}}
    for rate in RATES:
        draws = torch.Generator().manual_seed(seed)
        blank = {name: torch.empty(items, 0) for name in names}
        _, present = bg.drop_modalities(blank, rate, generator=draws)
        mcar = torch.stack(list(present.values()), 1)
        lost = torch.rand(items, generator=draws) < rate
        one = [~(lost[:, None] & (torch.arange(len(names)) == index)) for index in range(len(names))]
        for rule, by_pattern in found.items():
            out["MCAR"][rule].append(right(by_pattern, mcar))
            out["one"][rule].append(mean(right(by_pattern, masks) for masks in one))
    return out


def right(by_pattern, masks):
    """Percent of the items right, each under its own pattern ``(B, M)``."""
    hits = torch.zeros(len(masks), dtype=torch.bool)
    for flags, good in by_pattern.items():
        hits |= good & (masks == torch.tensor(flags)).all(1)
    return 100 * hits.double().mean().item()


def run(data, training, seed, epochs, tick):
    """One training, its curves."""
    method = TRAININGS[training]
    model = train(data, method, method.settings("sgd", 0), "sgd", seed, epochs, trusted(data.name), tick).model.eval()
    with torch.no_grad():
        features = model.features(data.train.inputs)
    filling = Filling(model.names, features, seed)
    return curves(correct(model, data, filling), model.names, seed)


def table(pattern, lines):
    rows = {}
    for name in dict.fromkeys(line["data"] for line in lines):
        for training in TRAININGS:
            own = [line[pattern] for line in lines if (line["data"], line["training"]) == (name, training)]
            for rule in RULES if own else ():
                rows[f"{name}, {training}, {rule}"] = [spread([run[rule][i] for run in own]) for i in range(len(RATES))]
    return markdown.markdown(pattern, [f"{rate:.1f}" for rate in RATES], rows)


def spread(values):
    return f"{mean(values):.1f}" + (f" ± {stdev(values):.1f}" if len(values) > 1 else "")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--datasets", nargs="+", default=DATASETS)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--epochs", type=int, help="default: the study's")
    parser.add_argument("--out", type=Path, default=RESULTS / "missing.jsonl")
    options = parser.parse_args()
    torch.set_num_threads(1)
    lines = [json.loads(text) for text in options.out.read_text().splitlines()] if options.out.exists() else []
    done = {(line["data"], line["training"], line["seed"]) for line in lines}
    for name in options.datasets:
        data = small(load(name))
        epochs = options.epochs or budget(data)
        jobs = [(t, seed) for seed in range(options.seeds) for t in TRAININGS if (name, t, seed) not in done]
        with tqdm(total=len(jobs) * epochs, unit="epoch", desc=name) as bar:
            for training, seed in jobs:
                line = {"data": name, "training": training, "seed": seed, "epochs": epochs}
                lines.append(line | rounded(run(data, training, seed, epochs, bar.update)))
                with options.out.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(lines[-1]) + "\n")
    shown = [line for line in lines if line["data"] in options.datasets]
    print(f"{table('MCAR', shown)}\n\n{table('one', shown)}")


if __name__ == "__main__":
    main()
