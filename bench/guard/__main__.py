"""``python -m bench.guard``: measure, print the tables."""

import argparse
import json
from datetime import UTC, datetime
from pathlib import Path

import torch
from tqdm import tqdm

from balanced_grad.demo._data import DemoError
from bench import guard
from bench.accuracy.__main__ import positive
from bench.accuracy._study import RESULTS, Line
from bench.guard import _tables as tables
from bench.guard._ablation import DATASETS, ablation
from bench.guard._candidates import CANDIDATES
from bench.guard._cost import CASES, WARM_UP, measure
from bench.guard._null import null
from bench.guard._proof import proof
from bench.guard._simulate import CHECKS, shifts, sizes
from bench.report import machine


def parse() -> tuple[argparse.ArgumentParser, argparse.Namespace]:
    parser = argparse.ArgumentParser(
        prog="python -m bench.guard",
        description=guard.__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True)
    own = commands.add_parser("candidates", help="train with each signal")
    own.add_argument("--datasets", nargs="+", metavar="NAME", default=list(DATASETS))
    own.add_argument("--candidates", nargs="+", choices=list(CANDIDATES), metavar="NAME", default=list(CANDIDATES))
    own.add_argument("--seeds", type=positive, metavar="N", default=5)
    own.add_argument(
        "--epochs", type=positive, metavar="N", help="default: 100 for wiki, 150 for noise, or the study's"
    )
    own.add_argument("--results", type=Path, metavar="FILE", help="where JSON lines are appended")
    own.set_defaults(run=candidates)
    own = commands.add_parser("table", help="the tables of results")
    own.add_argument("results", type=Path, metavar="FILE")
    own.set_defaults(run=lambda args: print(tables.candidates(read(args.results))))
    own = commands.add_parser("proof", help="guarded methods beside the others, from lines of the accuracy study")
    own.add_argument("results", type=Path, metavar="DIR", nargs="?", default=RESULTS / "fixed-budget")
    own.set_defaults(run=lambda args: print(proof(args.results)))
    own = commands.add_parser("simulate", help="error rates of the estimate")
    own.add_argument("--repetitions", type=positive, metavar="N", default=2000)
    own.set_defaults(run=simulate)
    own = commands.add_parser("null", help="false shutdowns by noise alone")
    own.add_argument("--repetitions", type=positive, metavar="N", default=2000)
    own.set_defaults(run=lambda args: print(tables.null(list(null(args.repetitions)))))
    own = commands.add_parser("cost", help="time per step")
    own.add_argument("--rounds", type=positive, metavar="N", default=100)
    own.set_defaults(run=cost)
    for own in commands.choices.values():
        own.add_argument("--threads", type=positive, metavar="N", default=1)
    return parser, parser.parse_args()


def candidates(args: argparse.Namespace) -> None:
    """Every run, with a bar; a line is written when it is done."""
    lines: list[Line] = []
    with tqdm(total=len(args.datasets) * len(args.candidates) * args.seeds, unit="run") as bar:
        for line in ablation(args.datasets, args.candidates, args.seeds, args.epochs, bar.update):
            lines.append(line)
            if args.results:
                with args.results.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(line) + "\n")
    print(tables.candidates(lines))


def read(path: Path) -> list[Line]:
    return [json.loads(text) for text in path.read_text(encoding="utf-8").splitlines()]


def simulate(args: argparse.Namespace) -> None:
    """Two tables: by size of the split, and by kind of split."""
    print(f"{args.repetitions} repetitions.\n")
    results = list(sizes(args.repetitions))
    for check in CHECKS:
        print(tables.errors(results, check), end="\n\n")
    print(tables.shifts(list(shifts(args.repetitions))))


def cost(args: argparse.Namespace) -> None:
    """One table."""
    results = []
    with tqdm(total=len(CASES) * (WARM_UP + args.rounds), unit="round") as bar:
        for case in CASES.values():
            results += measure(case, args.rounds, bar.update)
    print(f"{datetime.now(UTC).date()}, {machine()}, {args.threads} thread(s)\n\n{tables.cost(results)}")


def main() -> None:
    parser, args = parse()
    torch.set_num_threads(args.threads)
    try:
        args.run(args)
    except DemoError as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
