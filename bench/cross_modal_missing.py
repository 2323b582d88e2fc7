"""Classification when a modality is missing at test time: fill-in beside zero imputation, by balancer, on real data.

    BALANCED_GRAD_DATA=DIR python -m bench.cross_modal_missing --datasets wiki mosi mnist-halves --seeds 3

Every method has the same network (the demo's encoders, an untied CrossModalVI with 64 hidden units and damping 0.5, a
linear head), initial weights, batches and optimizer (Adam, lr 1e-3, weight decay 1e-4, untuned). ``complete`` methods
learn the labels from complete items only; ``patterns`` methods also with each modality left out, the cross-entropies
averaged. ``zero`` puts zeros in place of what is missing (of standardised features, the mean); ``fill-in`` predicts
it, K = 5, and adds the losses of ``objective()``, which a balancer weighs against the cross-entropy (``"joint"``). Test
accuracy of the last epoch; ``nll`` is the test loss of the fill-in in nats per entry, beside that of a constant
prediction. ``mnist-halves`` are 4000 training and 4000 test images of ``avmnist``, cut in two. One JSON line per run
goes to ``--out``; runs found there are not repeated.
"""

import argparse
import json
import os
import statistics
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn.functional import cross_entropy
from tqdm import tqdm

import balanced_grad as bg
from balanced_grad.demo._data import SPLITS, Dataset, Split
from balanced_grad.demo._folder import load_folder
from balanced_grad.demo._model import FEATURES, encoder
from balanced_grad.demo._train import BATCH
from balanced_grad.models import Bernoulli, CrossModalVI, Gaussian, Modality
from bench import _markdown as markdown

HIDDEN = 64


@dataclass(frozen=True)
class Method:
    name: str
    fill_in: bool
    patterns: bool
    make: type[bg.Balancer] = bg.Uniform
    damping: float = 0.5


METHODS = [
    Method("complete, zero", fill_in=False, patterns=False),
    *(Method(f"complete, fill-in, {b.__name__}", True, False, b) for b in (bg.Uniform, bg.MIMO, bg.MinNorm)),
    Method("complete, fill-in, no damping", fill_in=True, patterns=False, damping=0.0),
    Method("patterns, zero", fill_in=False, patterns=True),
    *(Method(f"patterns, fill-in, {b.__name__}", True, True, b) for b in (bg.Uniform, bg.MIMO, bg.MinNorm)),
]


def load(name):
    root = os.environ.get("BALANCED_GRAD_DATA")
    if not root:
        raise SystemExit("set BALANCED_GRAD_DATA to the folder that holds the data sets")
    if name != "mnist-halves":
        return load_folder(Path(root), name)
    with np.load(Path(root) / "avmnist" / "avmnist.npz") as raw:
        splits = [halves(raw[f"{split}_image"][:4000], raw[f"{split}_label"][:4000]) for split in SPLITS]
    return Dataset(name, "halves of MNIST images", 10, *splits)


def halves(images, labels):
    pixels = torch.tensor(images, dtype=torch.float32).reshape(len(images), 28, 28) / 255
    inputs = {"left": pixels[..., :14].flatten(1), "right": pixels[..., 14:].flatten(1)}
    return Split(inputs, torch.tensor(labels, dtype=torch.long))


def likelihood(x):
    """Pixels are Bernoulli, standardised features Gaussian."""
    return Bernoulli(x.shape[1:]) if x.min() >= 0 and x.max() <= 1 else Gaussian(x.shape[1:])


def network(data, seed, damping):
    torch.manual_seed(seed)
    modalities = {}
    for name, x in data.train.inputs.items():
        entries = likelihood(x)
        decoder = nn.Sequential(nn.ReLU(), nn.Linear(FEATURES, 64), nn.ReLU(), nn.Linear(64, entries.width))
        modalities[name] = Modality(entries, encoder(entries.shape), FEATURES, decoder)
    activation = nn.Sequential(nn.LayerNorm(HIDDEN), nn.SiLU())
    vi = CrossModalVI(modalities, HIDDEN, tied=False, activation=activation, damping=damping)
    vi.fit_biases(data.train.inputs)
    return vi, nn.Linear(HIDDEN, data.classes)


def state(vi, inputs, missing, fill_in):
    """The hidden layer of a batch without one modality (None: with all)."""
    if missing is None:
        return vi(inputs).hidden
    if fill_in:
        return vi({name: x for name, x in inputs.items() if name != missing}).hidden
    return vi(inputs | {missing: torch.zeros_like(inputs[missing])}).hidden


def losses(vi, head, method, batch):
    states, own = [vi(batch.inputs).hidden], {}
    if method.fill_in:
        own, fills = vi.objective(batch.inputs)
    if method.patterns and method.fill_in:
        states += [fill.hidden for fill in fills.values()]
    elif method.patterns:
        states += [state(vi, batch.inputs, name, fill_in=False) for name in vi.names]
    joint = torch.stack([cross_entropy(head(h), batch.labels) for h in states]).mean()
    return {"joint": joint} | own


@torch.no_grad()
def accuracies(vi, head, method, split):
    vi.eval()
    out = {}
    for missing in (None, *vi.names):
        hits = [
            head(state(vi, part.inputs, missing, method.fill_in)).argmax(1) == part.labels
            for part in (split[rows] for rows in torch.arange(len(split)).split(500))
        ]
        out["all" if missing is None else f"without {missing}"] = 100 * torch.cat(hits).double().mean().item()
    return out


def train(data, method, seed, epochs):
    vi, head = network(data, seed, method.damping)
    balancer = method.make()
    optimizer = torch.optim.Adam([*vi.parameters(), *head.parameters()], lr=1e-3, weight_decay=1e-4)
    order = torch.Generator().manual_seed(seed)
    for _ in tqdm(range(epochs), desc=f"{data.name} {method.name} {seed}", leave=False, disable=None):
        for rows in torch.randperm(len(data.train), generator=order).split(BATCH):
            balancer(losses(vi, head, method, data.train[rows])).backward()
            optimizer.step()
            optimizer.zero_grad()
    scores = accuracies(vi, head, method, data.test)
    if method.fill_in:
        with torch.no_grad():
            scores |= {f"nll {name}": loss.item() for name, loss in vi.objective(data.test.inputs).losses.items()}
    return scores


@torch.no_grad()
def constant(data):
    """What a prediction that looks at nothing gets: mean and variance of each entry over the training items."""
    row = {}
    for name, x in data.train.inputs.items():
        entries, test = likelihood(x), data.test.inputs[name]
        row[f"nll {name}"] = entries.nll(entries.fit(x).expand(len(test), -1), test).mean().item()
    return row


def table(data, done):
    name, rows = data.name, {}
    for (of, method, _), row in done.items():
        if of == name:
            rows.setdefault(method, []).append(row)
    rows["a constant"] = [constant(data)]
    columns = dict.fromkeys(key for runs in rows.values() for key in runs[0] if key not in ("data", "method", "seed"))
    cells = {
        method: [spread([run[c] for run in runs if c in run], 2 if c.startswith("nll") else 1) for c in columns]
        for method, runs in rows.items()
    }
    print("\n" + markdown.markdown(name, columns, cells))


def spread(values, digits):
    if not values:
        return ""
    deviation = f" ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.{digits}f}{deviation}"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--datasets", nargs="+", default=["wiki", "mosi", "mnist-halves"])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--out", type=Path, default=Path("cross-modal-missing.jsonl"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    lines = options.out.read_text().splitlines() if options.out.exists() else []
    done = {(row["data"], row["method"], row["seed"]): row for row in map(json.loads, lines)}
    for name in options.datasets:
        data = load(name)
        for seed in range(options.seeds):
            for method in METHODS:
                if (name, method.name, seed) not in done:
                    row = {
                        "data": name,
                        "method": method.name,
                        "seed": seed,
                        **train(data, method, seed, options.epochs),
                    }
                    done[name, method.name, seed] = row
                    with options.out.open("a") as file:
                        file.write(json.dumps(row) + "\n")
        table(data, done)


if __name__ == "__main__":
    main()
