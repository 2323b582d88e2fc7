"""Variants of a method beside each other, by the recipe of the accuracy study at its default settings."""

import argparse
from collections.abc import Callable, Mapping

import torch
from tqdm import tqdm

import balanced_grad as bg
from balanced_grad.demo._model import LateFusion
from bench._markdown import markdown
from bench.accuracy._data import load
from bench.accuracy._evaluate import accuracies
from bench.accuracy._methods import Method
from bench.accuracy._statistics import mean_and_deviation
from bench.accuracy._study import budget
from bench.accuracy._train import train

DATASETS = ("digits", "digits-hard", "wiki", "mfeat")
RULES = ("fused", "fitted")


def compare(variants: Mapping[str, Callable[[LateFusion], bg.Balancer]], doc: str | None) -> None:
    """Print test accuracy, mean and standard deviation over the seeds, of the fused head and of the fitted product."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--datasets", nargs="+", metavar="NAME", default=list(DATASETS))
    parser.add_argument("--seeds", type=int, metavar="N", default=5)
    args = parser.parse_args()
    torch.set_num_threads(1)
    rows: dict[str, list[str]] = {name: [] for name in variants}
    with tqdm(total=len(args.datasets) * len(variants) * args.seeds, unit="run") as bar:
        for dataset in args.datasets:
            data = load(dataset)
            for name, make in variants.items():
                method = Method(name, make)
                found: list[dict[str, float]] = []
                for seed in range(args.seeds):
                    trained = train(data, method, method.settings("sgd", 0), "sgd", seed, budget(data), choose=True)
                    scores = accuracies(trained.model, method, data)
                    found.append({rule: scores[rule]["test"] for rule in RULES})
                    bar.update()
                rows[name] += [mean_and_deviation([line[rule] for line in found]) for rule in RULES]
    columns = [f"{dataset}, {rule}" for dataset in args.datasets for rule in RULES]
    print(markdown("method", columns, rows))
