"""What does the floor under the joint loss's weight do to MinNorm? Validation accuracy by floor, all else default.

python -m bench.joint_floor --datasets synergy digits-hard --floors 0 0.5 0.75 1 --seeds 10
"""

import argparse
from statistics import mean

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
    parser.add_argument("--seeds", type=int, metavar="N", default=10)
    parser.add_argument("--epochs", type=int, metavar="N", help="default: the study's budget of steps")
    args = parser.parse_args()
    torch.set_num_threads(1)
    rows: dict[str, list[str]] = {}
    for name in args.datasets:
        data = load(name)
        for floor in args.floors:
            method = Method("MinNorm", lambda _, floor=floor: bg.MinNorm(joint_floor=floor))
            settings, epochs = method.settings("sgd", 0), args.epochs or budget(data)
            found = [train(data, method, settings, "sgd", seed, epochs, True).score[0] for seed in range(args.seeds)]
            rows.setdefault(f"joint_floor={floor:g}", []).append(f"{mean(found):.1f}, worst {min(found):.1f}")
    print(markdown("", args.datasets, rows))


if __name__ == "__main__":
    main()
