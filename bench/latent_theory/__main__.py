"""``python -m bench.latent_theory``: one command per claim."""

import argparse
from pathlib import Path

import torch

from bench import latent_theory
from bench.accuracy.__main__ import positive
from bench.latent_theory import _gains, _linear, _reversal, _terms


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m bench.latent_theory",
        description=latent_theory.__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(required=True)
    own = commands.add_parser("subset", help="theorem 3")
    own.add_argument("--problems", type=positive, metavar="N", default=500)
    own.set_defaults(report=lambda args: _linear.report(args.problems))
    own = commands.add_parser("terms", help="theorems 1 and 2")
    own.add_argument("--seeds", type=several, metavar="N", default=20)
    own.set_defaults(report=lambda args: _terms.report(args.seeds))
    own = commands.add_parser("reversal", help="more modalities are worse until there are enough items")
    own.add_argument("--seeds", type=several, metavar="N", default=12)
    own.add_argument("--plot", type=Path, metavar="FILE")
    own.set_defaults(report=lambda args: _reversal.report(args.seeds, args.plot))
    own = commands.add_parser("gains", help="gamma beside accuracy, on real sets")
    own.add_argument("--datasets", nargs="+", metavar="NAME", default=list(_gains.DATASETS))
    own.add_argument("--seeds", type=positive, metavar="N", default=5)
    own.add_argument("--out", type=Path, metavar="FILE", default=_gains.OUT, help="sets found there are not repeated")
    own.add_argument("--plot", type=Path, metavar="FILE")
    own.set_defaults(report=lambda args: _gains.report(args.datasets, args.seeds, args.out, args.plot))
    return parser.parse_args()


def several(text: str) -> int:
    """A number of seeds that has a spread."""
    found = positive(text)
    if found < 2:
        raise argparse.ArgumentTypeError("one seed has no standard error: give at least 2")
    return found


def main() -> None:
    args = parse()
    torch.set_num_threads(1)
    print(args.report(args))


if __name__ == "__main__":
    main()
