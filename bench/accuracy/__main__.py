"""``python -m bench.accuracy`` runs a study, its ``report`` and its ``leaderboard`` write their pages."""

import argparse
from pathlib import Path

import torch
from tqdm import tqdm

from balanced_grad.demo._cli import BUILT_IN
from balanced_grad.demo._data import DemoError
from bench import accuracy
from bench.accuracy._data import TASKS
from bench.accuracy._methods import BASELINE, BY_NAME, UNIFORM
from bench.accuracy._own import own_method
from bench.accuracy._recipes import DEFAULTS, RECIPES, SMALL
from bench.accuracy._study import RESULTS, Study

DOCS = RESULTS.parent.parent / "docs"
PAGES = {"report": DOCS / "results.md", "leaderboard": DOCS / "leaderboard.md"}


def parse() -> tuple[argparse.ArgumentParser, argparse.Namespace]:
    parser = argparse.ArgumentParser(
        prog="python -m bench.accuracy",
        description=accuracy.__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("command", nargs="?", choices=("run", *PAGES), default="run")
    parser.add_argument("--dataset", nargs="+", metavar="NAME", default=[*BUILT_IN, *TASKS])
    parser.add_argument("--methods", nargs="+", metavar="NAME", help=", ".join(BY_NAME))
    parser.add_argument("--method", nargs="+", metavar="MODULE:CLASS", default=[], help="methods of your own")
    parser.add_argument("--optimizer", nargs="+", choices=tuple(DEFAULTS), default=["sgd"])
    parser.add_argument("--network", default=SMALL.name, help=f"{', '.join(RECIPES)}, or one of a width: resnet18:16")
    parser.add_argument("--seeds", type=positive, metavar="N", default=5)
    parser.add_argument("--trials", type=positive, metavar="N", default=8, help="settings per method; 1: the defaults")
    tuning = (
        "trials are run on so many; default 2 with --method, where --methods is joint and uniform by default, else 1"
    )
    parser.add_argument("--tuning-seeds", type=positive, metavar="N", help=tuning)
    parser.add_argument("--epochs", type=positive, metavar="N", help="default: the network's, or the demo's budget")
    parser.add_argument("--threads", type=positive, metavar="N", default=1)
    parser.add_argument("--results", type=Path, metavar="DIR", default=RESULTS, help="where the JSON lines are")
    parser.add_argument("--page", type=Path, metavar="FILE", help="what report or leaderboard writes")
    args = parser.parse_args()
    if args.methods is None:
        args.methods = [BASELINE.name, UNIFORM.name] if args.method else list(BY_NAME)
    if args.tuning_seeds is None:
        args.tuning_seeds = 2 if args.method else 1
    known = {name.lower(): name for name in BY_NAME}
    unknown = [name for name in args.methods if name.lower() not in known]
    if unknown:
        parser.error(f"unknown methods {unknown}; known: {', '.join(BY_NAME)}")
    args.methods = [known[name.lower()] for name in args.methods]
    return parser, args


def positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 1")
    return int(text)


def run(args: argparse.Namespace) -> None:
    """Every missing run, with a bar over their epochs."""
    torch.set_num_threads(args.threads)
    methods = args.methods + [own_method(name).name for name in args.method]
    for dataset in args.dataset:
        for optimizer in args.optimizer:
            study = Study.of(
                dataset, optimizer, args.epochs, args.trials, args.results, args.tuning_seeds, args.network
            )
            jobs = list(study.jobs(methods, args.seeds))
            with tqdm(total=len(jobs) * study.protocol.epochs, unit="epoch", desc=f"{dataset}, {optimizer}") as bar:
                for description, job in jobs:
                    bar.set_postfix_str(description, refresh=False)
                    job(bar.update)
            print(f"{dataset}, {optimizer}: {len(jobs)} trainings done, lines in {study.ledger.path}")


def main() -> None:
    parser, args = parse()
    try:
        if args.command == "run":
            run(args)
        elif args.command == "report":
            from bench.accuracy._report import report

            report(args.results, args.page or PAGES["report"])
        else:
            from bench.accuracy._leaderboard import leaderboard

            leaderboard(args.results, args.page or PAGES["leaderboard"])
    except DemoError as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
