"""``python -m bench.accuracy`` runs a study, ``python -m bench.accuracy report`` writes its page."""

import argparse
from pathlib import Path

import torch
from tqdm import tqdm

from balanced_grad.demo._cli import BUILT_IN
from balanced_grad.demo._data import DemoError
from bench import accuracy
from bench.accuracy._data import TASKS
from bench.accuracy._methods import BY_NAME, DEFAULTS
from bench.accuracy._study import RESULTS, Study

PAGE = RESULTS.parent.parent / "docs" / "results.md"


def parse() -> tuple[argparse.ArgumentParser, argparse.Namespace]:
    parser = argparse.ArgumentParser(
        prog="python -m bench.accuracy",
        description=accuracy.__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("command", nargs="?", choices=("run", "report"), default="run")
    parser.add_argument("--dataset", nargs="+", metavar="NAME", default=[*BUILT_IN, *TASKS])
    parser.add_argument("--methods", nargs="+", metavar="NAME", default=list(BY_NAME), help=", ".join(BY_NAME))
    parser.add_argument("--optimizer", nargs="+", choices=tuple(DEFAULTS), default=["sgd"])
    parser.add_argument("--seeds", type=positive, metavar="N", default=5)
    parser.add_argument("--trials", type=positive, metavar="N", default=8, help="settings per method; 1: the defaults")
    parser.add_argument("--epochs", type=positive, metavar="N", help="default: the demo's budget of steps")
    parser.add_argument("--threads", type=positive, metavar="N", default=1)
    parser.add_argument("--results", type=Path, metavar="DIR", default=RESULTS, help="where the JSON lines are")
    parser.add_argument("--page", type=Path, metavar="FILE", default=PAGE, help="what report writes")
    args = parser.parse_args()
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
    for dataset in args.dataset:
        for optimizer in args.optimizer:
            study = Study.of(dataset, optimizer, args.epochs, args.trials, args.results)
            jobs = list(study.jobs(args.methods, args.seeds))
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
        else:
            from bench.accuracy._report import report

            report(args.results, args.page)
    except DemoError as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
