"""What does a floor under the joint loss's weight do to MinNorm? Validation accuracy, all else default.

python -m bench.joint_floor --datasets synergy digits-hard --floors 0 0.5 0.75 1 --shares 0.333 0.5 0.75 --seeds 10

Floors are of its weight, after the solve; shares are bounds inside the problem.
"""

import argparse
from statistics import mean
from typing import Any

import torch

import balanced_grad as bg
from bench._markdown import markdown
from bench.accuracy._data import load
from bench.accuracy._methods import Method
from bench.accuracy._study import budget
from bench.accuracy._train import train


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--datasets", nargs="+", metavar="NAME", default=["synergy", "digits-hard"])
    parser.add_argument("--floors", nargs="+", type=float, metavar="F", default=[0.0, 0.5, 0.75, 1.0])
    parser.add_argument("--shares", nargs="*", type=float, metavar="S", default=[])
    parser.add_argument("--seeds", type=int, metavar="N", default=10)
    parser.add_argument("--epochs", type=int, metavar="N", help="default: the study's budget of steps")
    args = parser.parse_args()
    torch.set_num_threads(1)
    settings: dict[str, dict[str, Any]] = {f"joint_floor={floor:g}": {"joint_floor": floor} for floor in args.floors}
    settings |= {f"joint's share >= {share:g}": {"bounds": {"joint": (share, 1)}} for share in args.shares}
    rows: dict[str, list[str]] = {}
    for name in args.datasets:
        data = load(name)
        for label, chosen in settings.items():
            method = Method("MinNorm", lambda _, chosen=chosen: bg.MinNorm(**chosen))
            recipe, epochs = method.settings("sgd", 0), args.epochs or budget(data)
            found = [train(data, method, recipe, "sgd", seed, epochs, True).score[0] for seed in range(args.seeds)]
            rows.setdefault(label, []).append(f"{mean(found):.1f}, worst {min(found):.1f}")
    print(markdown("", args.datasets, rows))


if __name__ == "__main__":
    main()
