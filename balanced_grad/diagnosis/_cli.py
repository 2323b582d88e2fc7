"""``balanced-grad diagnose``: from a script to the report on its model."""

import argparse
import sys
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, get_args

from balanced_grad.diagnosis._absence import Absent, Fill
from balanced_grad.diagnosis._diagnose import diagnose
from balanced_grad.diagnosis._report import Diagnosis
from balanced_grad.scripts import ScriptError, load, split_target, told

RETURNS = (
    "it must return (model, loader) with a trained model and held-out batches; arguments of bg.diagnose may follow: "
    "(model, loader, {'modalities': ['audio', 'video']})"
)
DESCRIPTION = f"""What each modality is worth to a trained model, asked on held-out items.

The script is given as FILE.py:FUNCTION. The function is called without arguments;
{RETURNS}.
"""


def add_command(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Declare the command and its options."""
    parser = commands.add_parser(
        "diagnose",
        help="ask your trained model what each modality is worth to it",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(run=partial(main, parser))
    parser.add_argument("target", metavar="FILE.py:FUNCTION", help="a function that returns (model, loader)")
    parser.add_argument(
        "--out", type=Path, metavar="DIR", help="write the report there: report.html, .png, .json, .txt"
    )
    words = [*get_args(Absent)[:1], *get_args(Fill)]
    parser.add_argument("--absent", choices=words, help="what stands for an absent modality (default: permute)")
    parser.add_argument("--draws", type=int, metavar="N", help="permutations (default: 8)")
    parser.add_argument("--seed", type=int, metavar="N", help="of the permutations (default: 0)")
    parser.add_argument("--device", metavar="NAME", help="where to run (default: where the model is)")


def main(parser: argparse.ArgumentParser, args: argparse.Namespace) -> int:
    """Print the report, and write it where asked; status 1 with an explanation where that is not possible."""
    file, name = split_target(parser, args.target, "train.py:trained")
    given = {key: getattr(args, key) for key in ("absent", "draws", "seed", "device")}
    chosen = {key: value for key, value in given.items() if value is not None}
    try:
        model, loader, options = _returned(load(file, name), args.target)
        report: Diagnosis = told(
            lambda: diagnose(model, loader, **(options | chosen)), f"the model of {args.target} cannot be diagnosed"
        )
        print(report)
        if args.out is not None:
            told(lambda: _write(report, args.out), f"the report cannot be written to {args.out}")
    except ScriptError as error:
        print(f"balanced-grad diagnose: {error}", file=sys.stderr)
        return 1
    return 0


def _returned(function: Callable[[], object], target: str) -> tuple[Any, Any, dict[str, Any]]:
    result = told(function, f"{target} fails when called without arguments; {RETURNS}")
    if not isinstance(result, tuple) or len(result) not in (2, 3):
        raise ScriptError(f"{target} returns an object of type {type(result).__name__}; {RETURNS}")
    model, loader, *rest = result
    options = rest[0] if rest else {}
    if not isinstance(options, Mapping):
        raise ScriptError(f"the third thing that {target} returns is of type {type(options).__name__}; {RETURNS}")
    return model, loader, dict(options)


def _write(report: Diagnosis, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for ending in ("txt", "json", "png", "html"):
        report.save(folder / f"report.{ending}")
    print(f"written: {folder}/report.html, .png, .json, .txt", file=sys.stderr)
