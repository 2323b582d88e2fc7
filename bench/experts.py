"""Inter- and intra-modality experts on real data: is their product ever far from the better of the two?

    BALANCED_GRAD_DATA=DIR python -m bench.experts --datasets mfeat wiki avmnist:clean,noisy --seeds 3
    BALANCED_GRAD_DATA=DIR python -m bench.experts --datasets mfeat --seeds 1 --epochs 2  # a short look
    BALANCED_GRAD_DATA=DIR python -m bench.experts --datasets multibench-avmnist --seeds 5  # the published networks

The demo's networks and recipe (SGD, learning rate 0.01, joint training after pretraining at a tenth of it). Every stage
ends at its best validation loss. Per seed all rows start from the same experts: those trained alone, or the same
initial weights. Accuracy (percent), negative log-likelihood (nats), expected calibration error (15 bins, percent), on
test items. ``multibench-avmnist`` has networks and recipe of its own, see ``bench._experts_tasks``. One JSON line per
data set and seed goes to ``--out``; those found there are not run again.
"""

import argparse
import copy
import json
import statistics
from pathlib import Path

import torch
from torch import nn
from tqdm import tqdm

import balanced_grad as bg
from balanced_grad.models import ProductOfExperts, expert_subsets, fit_temperature, fit_weights
from balanced_grad.models import predictions as predict
from bench import _markdown as markdown
from bench._experts_tasks import real

BALANCERS = {"": None, " + per-expert loss": bg.Uniform, " + MIMO": bg.MIMO}
SINGLE, INTRA, INTER, PRODUCT = "best single modality", "intra", "inter", "I2M2"


def study(task, seed, tick=lambda: None):
    """Every row of one seed: name -> accuracy, negative log-likelihood, calibration error; and exponents fitted."""
    keys = expert_subsets(task.splits["train"][0])
    singles, joint = keys[:-1], keys[-1]
    torch.manual_seed(seed)
    fresh = {key: task.make(key) for key in keys}
    alone = dict(zip(keys, task.train(copy.deepcopy(fresh), seed, mode="frozen").experts, strict=True))
    tick()
    rows, exponents = {}, {}

    def add(name, product):
        rows[name] = score(task, product)
        for kind, fit in (("temperature", fit_temperature), ("weights", fit_weights)):
            calibrated = copy.deepcopy(product)
            found = fit(calibrated, *predict(calibrated, [task.splits["val"]]))
            rows[f"{name}, {kind}"] = score(task, calibrated)
            exponents[f"{name}, {kind}"] = found.exponents

    def start(source, chosen):
        return {key: copy.deepcopy(source[key]) for key in chosen}

    products = {key: ProductOfExperts({key: alone[key]}) for key in keys}
    best = min(singles, key=lambda key: score(task, products[key], "val")[1])
    add(SINGLE, products[best])
    add(INTER, products[joint])
    for name, chosen in ((INTRA, singles), (PRODUCT, keys)):
        add(f"{name}, pretrained, no joint step", ProductOfExperts(start(alone, chosen)))
        for label, make in BALANCERS.items():
            for stage, source, options in (
                ("pretrained", alone, task.together(intra=name == INTRA)),
                ("scratch", fresh, task.alone(chosen)),
            ):
                if name == INTRA and (stage == "scratch" or make is bg.Uniform):
                    continue  # the paper's intra baseline is the product of pretrained experts
                options |= {"mode": "scratch", "balancer": make() if make else None}
                add(f"{name}, {stage}{label}", task.train(start(source, chosen), seed, **options))
                tick()
    return rows, exponents


@torch.no_grad()
def score(task, product, split="test"):
    """Accuracy in percent, negative log-likelihood in nats, expected calibration error in percent."""
    inputs, labels = task.splits[split]
    product.eval()
    log_p = product(inputs)
    nll = nn.functional.nll_loss(log_p, labels).item()
    return 100 * (log_p.argmax(1) == labels).double().mean().item(), nll, 100 * calibration_error(log_p.exp(), labels)


def calibration_error(p, labels, bins=15):
    """``Σ_b (n_b / N) |accuracy_b - confidence_b|`` over equal bins of the confidence."""
    confidence, predicted = p.max(1)
    gap = (predicted == labels).double() - confidence.double()
    index = (confidence * bins).long().clamp_max(bins - 1)
    return (torch.zeros(bins, dtype=torch.double).index_add_(0, index, gap).abs().sum() / len(labels)).item()


def table(results):
    """Means over seeds, of accuracy with the deviation; as trained, then with a temperature, then with exponents."""
    print(f"\n{results[0]['name']}: {len(results)} seeds\n")
    scores = ("NLL / ECE, temperature", "accuracy, weights", "NLL / ECE, weights")
    print(markdown.header("row", "accuracy", "NLL / ECE", *scores))
    for row in results[0]["rows"]:
        if row.endswith((", temperature", ", weights")):
            continue
        cells = []
        for kind in ("", ", temperature", ", weights"):
            accuracy, nll, error = zip(*(r["rows"][row + kind] for r in results), strict=True)
            spread = statistics.stdev(accuracy) if len(results) > 1 else 0.0
            cells += [f"{statistics.mean(accuracy):.1f} ± {spread:.1f}"] * (kind != ", temperature")
            cells += [f"{statistics.mean(nll):.3f} / {statistics.mean(error):.1f}"]
        print(markdown.row(row, *cells))
    print("\n" + markdown.header("row", "exponents fitted"))
    for row, first in results[0]["exponents"].items():
        if row.startswith((INTRA, PRODUCT)) and row.endswith("weights"):
            means = {e: statistics.mean(r["exponents"][row][e] for r in results) for e in first}
            print(markdown.row(row.removesuffix(", weights"), ", ".join(f"{e} {w:.2f}" for e, w in means.items())))


def run_all(tasks, seeds, out):
    done = [json.loads(line) for line in out.read_text().splitlines()] if out and out.exists() else []
    for task in tasks:
        for seed in range(seeds):
            if any((r["name"], r["seed"]) == (task.name, seed) for r in done):
                continue
            with tqdm(desc=f"{task.name}, seed {seed}") as bar:
                rows, exponents = study(task.for_seed(seed), seed, bar.update)
            done.append({"name": task.name, "seed": seed, "rows": rows, "exponents": exponents})
            if out:
                with out.open("a") as file:
                    file.write(json.dumps(done[-1]) + "\n")
        table([r for r in done if r["name"] == task.name])


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--datasets", nargs="+", default=["mfeat", "wiki", "avmnist:clean,noisy", "avmnist:pca25,noisy"]
    )
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=0, help="at most so many per stage; default: by size")
    parser.add_argument("--out", type=Path, help="JSON lines, to go on from")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    run_all((real(name, arguments.epochs) for name in arguments.datasets), arguments.seeds, arguments.out)


if __name__ == "__main__":
    main()
