"""MIMO on the batch's losses and on their running means: ``python -m bench.mimo_ema``, ten minutes.

The recipe of the accuracy study: its model, its budget, the checkpoint chosen on validation. ``wiki`` and ``mfeat`` are
read from ``$BALANCED_GRAD_DATA``. Test accuracy, mean and standard deviation over the seeds.
"""

import argparse

import torch
from tqdm import tqdm

import balanced_grad as bg
from bench._markdown import markdown
from bench.accuracy._data import load
from bench.accuracy._evaluate import accuracies
from bench.accuracy._methods import Method
from bench.accuracy._statistics import mean_and_deviation
from bench.accuracy._study import budget
from bench.accuracy._train import train

DATASETS = ("digits", "digits-hard", "wiki", "mfeat")
EMA = {"MIMO()": None, "MIMO(ema=0.9)": 0.9}
RULES = ("fused", "fitted")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.mimo_ema", description=__doc__)
    parser.add_argument("--datasets", nargs="+", metavar="NAME", default=list(DATASETS))
    parser.add_argument("--seeds", type=int, metavar="N", default=5)
    args = parser.parse_args()
    torch.set_num_threads(1)
    rows: dict[str, list[str]] = {name: [] for name in EMA}
    with tqdm(total=len(args.datasets) * len(EMA) * args.seeds, unit="run") as bar:
        for dataset in args.datasets:
            data = load(dataset)
            for name, ema in EMA.items():
                method = Method(name, lambda _, ema=ema: bg.MIMO(ema=ema))
                found: list[dict[str, float]] = []
                for seed in range(args.seeds):
                    trained = train(data, method, method.settings("sgd", 0), "sgd", seed, budget(data), choose=True)
                    scores = accuracies(trained.model, method, data)
                    found.append({rule: scores[rule]["test"] for rule in RULES})
                    bar.update()
                rows[name] += [mean_and_deviation([line[rule] for line in found]) for rule in RULES]
    columns = [f"{dataset}, {rule}" for dataset in args.datasets for rule in RULES]
    print(markdown("method", columns, rows))


if __name__ == "__main__":
    main()
