"""Image halves as two modalities: how well does one half stand for the other, by objective and number of steps?

    python -m bench.cross_modal --data digits --seeds 5
    BALANCED_GRAD_DATA=DIR python -m bench.cross_modal --data mnist --seeds 1
    python -m bench.cross_modal --figure docs/images/cross-modal-digits.png

The protocol of Sohn et al. (2014) on small data: a tied sigmoid network learns without labels; a linear SVM learns
on its hidden layer with both halves present, its ``C`` chosen on a third of the training items; the same SVM is then
tested on the hidden layer inferred from both halves, the left only and the right only. ``CE`` is the negative
log-likelihood of the missing half in nats per image. ``digits`` are the 1797 images of 8 x 8 of scikit-learn (1297
for training, a new permutation per seed); ``mnist`` are 28 x 28 images of the data set ``avmnist`` in DIR (8000 for
training, 2000 for test). One JSON line per run goes to ``--out``; runs found there are not repeated.
"""

import argparse
import json
import os
import statistics
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from sklearn.datasets import load_digits
from sklearn.svm import LinearSVC
from tqdm import tqdm

from balanced_grad.models import Bernoulli, CrossModalVI
from balanced_grad.models._vi_objective import sparsity
from bench import _markdown as markdown
from bench._boltzmann import Boltzmann

LEFT, RIGHT = "left", "right"
PENALTIES = (0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0)
COLUMNS = ("model", "both", "left only", "right only", "CE right, given left", "CE left, given right")


@dataclass(frozen=True)
class Data:
    """Images ``(n, height, width)`` in [0, 1]."""

    images: torch.Tensor
    labels: np.ndarray
    train: int
    hidden: int
    epochs: int
    ml_epochs: int

    def halves(self, images):
        middle = images.shape[2] // 2
        return {LEFT: images[..., :middle].flatten(1), RIGHT: images[..., middle:].flatten(1)}


@dataclass(frozen=True)
class Model:
    """How to train, and how many steps to test with (default: as trained)."""

    name: str
    steps: int = 0
    kind: str = "vi"
    reveal: float = 0.25
    start: str = "scaled"
    test_steps: tuple[int, ...] = ()


MODELS = [
    Model("ML (PCD)", steps=10, kind="ml"),
    Model("ML (PCD), recipe of VI", steps=10, kind="pcd"),
    Model("VI by CD-PercLoss", steps=10, kind="perception"),
    Model("hybrid of VI and ML, K=5", steps=5, kind="hybrid", reveal=0.1),
    Model("entries, K=5", steps=5, kind="entries", reveal=0.0),
    Model("auto-encoder, zero fill", kind="autoencoder", reveal=0.0, start="zero"),
    Model("denoising auto-encoder, zero fill", kind="predict-all", reveal=0.0, start="zero"),
    Model("predict both, K=5", steps=5, kind="predict-all"),
    *(Model(f"VI, K={k}", steps=k) for k in (0, 1, 2)),
    Model("VI, K=5", steps=5, test_steps=(0, 1, 2, 10)),
    Model("VI, K=5, nothing revealed", steps=5, reveal=0.0),
]


def digits(seed):
    images, labels = load_digits(return_X_y=True)
    order = np.random.default_rng(seed).permutation(len(images))
    pixels = torch.tensor(images[order] / 16, dtype=torch.float32).reshape(-1, 8, 8)
    return Data(pixels, labels[order], train=1297, hidden=200, epochs=200, ml_epochs=800)


def mnist(seed):
    root = os.environ.get("BALANCED_GRAD_DATA")
    if not root:
        raise SystemExit("set BALANCED_GRAD_DATA to the folder that holds avmnist/")
    with np.load(Path(root) / "avmnist" / "avmnist.npz") as raw:
        images, labels = (
            np.concatenate([raw[f"{split}_{key}"] for split in ("train", "test")]) for key in ("image", "label")
        )
        first = len(raw["train_label"])
    rng = np.random.default_rng(seed)
    order = np.concatenate([rng.permutation(first)[:8000], first + rng.permutation(len(labels) - first)[:2000]])
    pixels = torch.tensor(images[order], dtype=torch.float32).reshape(-1, 28, 28) / 255
    return Data(pixels, labels[order], train=8000, hidden=500, epochs=20, ml_epochs=100)


DATA = {"digits": digits, "mnist": mnist}


def train(model, data, seed, rate=2e-3):
    torch.manual_seed(seed)
    images = data.images[: data.train]
    halves = data.halves(images)
    vi = CrossModalVI(
        {name: Bernoulli(x.shape[1]) for name, x in halves.items()},
        data.hidden,
        steps=model.steps,
        start=model.start,
    )
    vi.fit_biases(halves)
    order = torch.Generator().manual_seed(seed)
    machine = Boltzmann(vi, order)
    if model.kind == "ml":
        epochs, optimizer = data.ml_epochs, torch.optim.SGD(vi.parameters(), lr=0.05, momentum=0.5)
    else:
        epochs, optimizer = data.epochs, torch.optim.Adam(vi.parameters(), lr=rate)
    decay = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, total_iters=epochs * -(-data.train // 100))
    for _ in tqdm(range(epochs), desc=f"{model.name} {seed}", leave=False, disable=None):
        for rows in torch.randperm(data.train, generator=order).split(100):
            loss(vi, machine, model, {name: x[rows] for name, x in halves.items()}, order).backward()
            optimizer.step()
            optimizer.zero_grad()
            decay.step()
    return vi


def loss(vi, machine, model, batch, order):
    """Of one mini-batch, in nats per image."""
    visible = torch.cat([*batch.values()], 1)
    if model.kind == "ml":
        return machine.likelihood_loss(visible)
    if model.kind in ("pcd", "perception"):
        own = machine.likelihood_loss(visible) if model.kind == "pcd" else machine.perception_loss(visible)
        return own + 0.1 * sparsity(vi(batch).hidden, True, 0.1)
    kind = "vi" if model.kind == "hybrid" else model.kind
    losses = vi.objective(batch, kind=kind, reveal=model.reveal, sparsity=0.1, reduction="sum", generator=order).losses
    prediction = sum(losses.values())
    return (prediction + machine.likelihood_loss(visible)) / 2 if model.kind == "hybrid" else prediction


@torch.no_grad()
def evaluate(vi, data, steps):
    """Test errors in percent and conditional cross-entropies in nats per image."""
    vi.eval()
    halves = data.halves(data.images)
    patterns = {"both": halves, LEFT: {LEFT: halves[LEFT]}, RIGHT: {RIGHT: halves[RIGHT]}}
    hidden = {name: vi(inputs, steps=steps).hidden.numpy() for name, inputs in patterns.items()}
    train, test = slice(data.train), slice(data.train, None)
    svm = fit_svm(hidden["both"][train], data.labels[train])
    errors = {name: 100 * float(1 - svm.score(h[test], data.labels[test])) for name, h in hidden.items()}
    losses = vi.objective(data.halves(data.images[test]), steps=steps, reduction="sum").losses
    return errors | {f"ce {name}": loss.item() for name, loss in losses.items()}


def fit_svm(x, labels):
    """Choose C on a third of the items, then fit all of them."""
    cut = 2 * len(x) // 3
    scores = {}
    for c in PENALTIES:
        scores[c] = svc(c).fit(x[:cut], labels[:cut]).score(x[cut:], labels[cut:])
    return svc(max(scores, key=scores.get)).fit(x, labels)


def svc(c):
    return LinearSVC(C=c, dual=False, tol=1e-3, max_iter=2000)


def run(name, model, seed, options, done):
    """Train once, test with every number of steps asked for."""
    tests = {model.name: model.steps} | {f"{model.name}, tested with K={k}": k for k in model.test_steps}
    if all((name, label, seed) in done for label in tests):
        return
    data = DATA[name](seed)
    vi = train(model, replace(data, epochs=options.epochs or data.epochs), seed, options.rate)
    for label, steps in tests.items():
        row = {"data": name, "model": label, "seed": seed, **evaluate(vi, data, steps)}
        done[name, label, seed] = row
        with options.out.open("a") as file:
            file.write(json.dumps(row) + "\n")


def table(name, done):
    print("\n" + markdown.header(*COLUMNS))
    labels = dict.fromkeys(label for data, label, _ in done if data == name)
    for label in labels:
        rows = [row for (data, other, _), row in done.items() if (data, other) == (name, label)]
        cells = [[row[key] for row in rows] for key in ("both", LEFT, RIGHT, f"ce {RIGHT}", f"ce {LEFT}")]
        print(markdown.row(label, *map(spread, cells)))


def spread(values):
    return f"{statistics.mean(values):.1f}" + (f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else "")


def figure(path):
    """Rows of test digits: the truth, the left half alone, and the right half filled in after K steps."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    data = digits(0)
    vi = train(Model("figure", steps=5), data, 0).eval()
    firsts = [int(np.flatnonzero(data.labels[data.train :] == digit)[0]) for digit in range(10)]
    truth = data.images[data.train :][firsts]
    left = data.halves(truth)[LEFT]
    rows = {"image": truth, "seen": torch.cat([truth[..., :4], torch.full_like(truth[..., 4:], 0.5)], 2)}
    with torch.no_grad():
        for steps in (0, 1, 2, 5):
            right = vi({LEFT: left}, steps=steps).filled[RIGHT].reshape(-1, 8, 4)
            rows[f"K = {steps}"] = torch.cat([truth[..., :4], right], 2)
    _, axes = plt.subplots(len(rows), 10, figsize=(7.5, 4.6), gridspec_kw={"wspace": 0.08, "hspace": 0.08})
    for line, (label, images) in zip(axes, rows.items(), strict=True):
        line[0].set_ylabel(label, rotation=0, ha="right", va="center", fontsize=9)
        for ax, image in zip(line, images, strict=True):
            ax.imshow(image, cmap="gray_r", vmin=0, vmax=1)
            ax.set_xticks([])
            ax.set_yticks([])
    plt.savefig(path, dpi=130, bbox_inches="tight")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", choices=DATA, default="digits")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--epochs", type=int, help="of all but ML (PCD); default: 200 for digits, 20 for mnist")
    parser.add_argument("--rate", type=float, default=2e-3, help="of Adam, of all but ML (PCD)")
    parser.add_argument("--models", nargs="+", choices=[m.name for m in MODELS])
    parser.add_argument("--out", type=Path, default=Path("cross-modal.jsonl"))
    parser.add_argument("--figure", type=Path, help="write the picture of filled-in digits instead")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.figure:
        figure(options.figure)
        return
    lines = options.out.read_text().splitlines() if options.out.exists() else []
    done = {(row["data"], row["model"], row["seed"]): row for row in map(json.loads, lines)}
    for seed in range(options.seeds):
        for model in MODELS:
            if not options.models or model.name in options.models:
                run(options.data, model, seed, options, done)
    table(options.data, done)


if __name__ == "__main__":
    main()
