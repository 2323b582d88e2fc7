"""``python -m bench.published``: measure, print the tables, write the numbers."""

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from balanced_grad.demo._train import BATCH
from bench import published
from bench.accuracy.__main__ import positive
from bench.published._models import cases
from bench.published._rows import ROWS
from bench.published._table import table
from bench.published._timing import WARM_UP, measure
from bench.report import machine

ROUNDS = {"avmnist": 150, "mfeat": 200, "large": 30}


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m bench.published",
        description=published.__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--dataset", nargs="+", choices=tuple(ROUNDS), default=list(ROUNDS))
    parser.add_argument("--modalities", type=positive, metavar="N", default=2, help="of the large model; default 2")
    parser.add_argument("--rounds", type=positive, metavar="N", help=f"default: {ROUNDS}")
    parser.add_argument("--threads", type=positive, metavar="N", default=1)
    parser.add_argument("--results", type=Path, metavar="FILE", help="where to write the numbers as JSON")
    args = parser.parse_args()
    if args.modalities < 2:
        parser.error("--modalities 1: there is nothing to balance; give 2 or more")
    return args


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Every model, with a bar over its rounds."""
    torch.set_num_threads(args.threads)
    found = []
    for name in args.dataset:
        rounds = args.rounds or ROUNDS[name]
        with tqdm(total=WARM_UP + rounds, unit="round", desc=name) as bar:
            found.append(measure(cases(args.modalities)[name], ROWS, rounds, bar.update))
    return {"machine": machine(), "threads": args.threads, "batch": BATCH, "models": found}


def main() -> None:
    args = parse()
    results = run(args)
    threads = f"{args.threads} thread" + "s" * (args.threads > 1)
    print(f"{results['machine']}, {threads}\n\n{table(results)}")
    if args.results:
        args.results.parent.mkdir(parents=True, exist_ok=True)
        args.results.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
