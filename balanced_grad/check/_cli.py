"""``balanced-grad check``: from a script to its plan."""

import argparse
import sys
from collections.abc import Callable
from functools import partial

from balanced_grad import check
from balanced_grad.check._function import RETURNS, Batch
from balanced_grad.scripts import ScriptError, load, split_target, told


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
    file, name = split_target(parser, args.target, "train.py:first_batch")
    try:
        function = load(file, name)
        return _verify(function, args.target) if args.verify else _check(function, args.target)
    except ScriptError as error:
        print(f"balanced-grad check: {error}", file=sys.stderr)
        return 1


def _check(function: Callable[[], object], target: str) -> int:
    batch = batch_of(function, target)
    report = told(
        lambda: check.check(batch.losses, batch.model, optimizer=batch.optimizer, tokens=batch.tokens),
        f"the losses of {target} cannot be balanced",
    )
    print(report)
    return 0


def _verify(function: Callable[[], object], target: str) -> int:
    batch_of(function, target)  # for its errors
    verification = told(lambda: check.verify(function), f"{target} cannot be verified")
    print(verification)
    return 0 if verification.ok else 1


def batch_of(function: Callable[[], object], target: str) -> Batch:
    """Losses, and the model, optimizer and features where the function returns them."""
    result = told(function, f"{target} fails when called without arguments; {RETURNS}")
    try:
        return Batch.of(result, target)
    except TypeError as error:
        raise ScriptError(str(error)) from error
