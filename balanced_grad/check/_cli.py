"""``balanced-grad check``: from a script to its plan."""

import argparse
import runpy
import sys
import traceback
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from balanced_grad import check
from balanced_grad.check._function import RETURNS, Batch


class ScriptError(Exception):
    """What is wrong with the user's script, and what to write instead."""


def add_command(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Declare the command and its options."""
    parser = commands.add_parser(
        "check",
        help="print which loss reaches which parameters of your model, and what balancing will cost",
        description=check.__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(run=partial(main, parser))
    parser.add_argument("target", metavar="FILE.py:FUNCTION", help="a function that returns (model, losses)")
    parser.add_argument(
        "--verify",
        action="store_true",
        help="compare one step of each kind of method with separate backwards, and name operators that come between; "
        "status 1 if anything is wrong",
    )


def main(parser: argparse.ArgumentParser, args: argparse.Namespace) -> int:
    """Print the plan, or what was verified; status 1 where something is wrong, with an explanation."""
    file, colon, name = args.target.rpartition(":")
    if not (colon and file and name):
        parser.error(f"{args.target!r} names no function; write FILE.py:FUNCTION, such as train.py:first_batch")
    if not Path(file).is_file():
        parser.error(f"there is no file {file!r}")
    try:
        function = load(Path(file), name)
        return _verify(function, args.target) if args.verify else _check(function, args.target)
    except ScriptError as error:
        print(f"balanced-grad check: {error}", file=sys.stderr)
        return 1


def _check(function: Callable[[], object], target: str) -> int:
    batch = batch_of(function, target)
    report = _told(
        lambda: check.check(batch.losses, batch.model, optimizer=batch.optimizer, tokens=batch.tokens),
        f"the losses of {target} cannot be balanced",
    )
    print(report)
    return 0


def _verify(function: Callable[[], object], target: str) -> int:
    batch_of(function, target)  # for its errors
    verification = _told(lambda: check.verify(function), f"{target} cannot be verified")
    print(verification)
    return 0 if verification.ok else 1


def load(file: Path, name: str) -> Callable[[], object]:
    """The function of that name in the script, whose ``__main__`` part is not run."""
    sys.path.insert(0, str(file.resolve().parent))  # the script's own imports, as python FILE.py finds them
    try:
        script = _told(lambda: runpy.run_path(str(file)), f"{file} cannot be loaded")
    finally:
        sys.path.pop(0)
    if name not in script or not callable(script[name]):
        defined = [key for key, value in script.items() if getattr(value, "__module__", None) == "<run_path>"]
        has = f"it has {', '.join(defined)}" if defined else "it has none"
        raise ScriptError(f"{file} has no function {name!r}; {has}")
    function: Callable[[], object] = script[name]
    return function


def batch_of(function: Callable[[], object], target: str) -> Batch:
    """Losses, and the model, optimizer and features where the function returns them."""
    result = _told(function, f"{target} fails when called without arguments; {RETURNS}")
    try:
        return Batch.of(result, target)
    except TypeError as error:
        raise ScriptError(str(error)) from error


def _told(function: Callable[[], Any], what: str) -> Any:
    """Call what may fail for a reason of the user's, and say where in the script it did."""
    try:
        return function()
    except (Exception, SystemExit) as error:
        ours = str(Path(__file__).parent.parent)
        frames = [
            frame
            for frame in traceback.extract_tb(error.__traceback__)
            if not frame.filename.startswith((ours, "<frozen"))
        ]
        where = "".join(traceback.format_list(frames))
        raise ScriptError(f"{what}\n{where}{type(error).__name__}: {error}") from error
