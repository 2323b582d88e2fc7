"""``python -m bench.published``: measure, print the tables, write the numbers."""

import argparse
import json
import time
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from balanced_grad.demo._train import BATCH
from bench import published
from bench.accuracy.__main__ import positive
from bench.published._models import WIDTHS, cases
from bench.published._rows import JOINT, MIMO, ROWS
from bench.published._table import table
from bench.published._timing import WARM_UP, measure
from bench.report import machine

ROUNDS = {"avmnist": 150, "mfeat": 200, "large": 30, "resnet": 20, "transformer": 30}
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}
FIRST = ["avmnist", "mfeat", "large"]


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m bench.published",
        description=published.__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--dataset", nargs="+", choices=tuple(ROUNDS), default=FIRST)
    parser.add_argument("--methods", nargs="+", metavar="ROW", choices=[row.name for row in ROWS], help="default: all")
    parser.add_argument("--modalities", type=positive, metavar="N", default=2, help="of the large model; default 2")
    parser.add_argument("--width", type=positive, metavar="N", help=f"of resnet and transformer; default {WIDTHS}")
    parser.add_argument("--rounds", type=positive, metavar="N", help=f"default: {ROUNDS}")
    parser.add_argument("--clock", choices=tuple(CLOCKS), default="wall", help="cpu: for a machine that others use too")
    parser.add_argument("--threads", type=positive, metavar="N", default=1)
    parser.add_argument("--results", type=Path, metavar="FILE", help="where to write the numbers as JSON")
    args = parser.parse_args()
    if args.modalities < 2:
        parser.error("--modalities 1: there is nothing to balance; give 2 or more")
    return args


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Every model, with a bar over its rounds."""
    torch.set_num_threads(args.threads)
    asked = {JOINT, MIMO, *(args.methods or (row.name for row in ROWS))}
    rows = [row for row in ROWS if row.name in asked]
    found = []
    for name in args.dataset:
        rounds = args.rounds or ROUNDS[name]
        with tqdm(total=WARM_UP + rounds, unit="round", desc=name) as bar:
            case = cases(args.modalities, args.width)[name]
            found.append(measure(case, rows, rounds, bar.update, CLOCKS[args.clock]))
    return {"machine": machine(), "threads": args.threads, "clock": args.clock, "batch": BATCH, "models": found}


def main() -> None:
    args = parse()
    results = run(args)
    threads = f"{args.threads} thread" + "s" * (args.threads > 1)
    print(f"{results['machine']}, {threads}, {args.clock} time\n\n{table(results)}")
    if args.results:
        args.results.parent.mkdir(parents=True, exist_ok=True)
        args.results.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
