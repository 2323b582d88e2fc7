"""The command line: ``balanced-grad COMMAND`` or ``python -m balanced_grad COMMAND``."""

import argparse
from collections.abc import Sequence

import balanced_grad


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; wrong arguments end with status 2 and a message that says what is possible."""
    from balanced_grad.check import _cli as check
    from balanced_grad.demo import _cli as demo
    from balanced_grad.diagnosis import _cli as diagnosis

    parser = argparse.ArgumentParser(prog="balanced-grad", description=balanced_grad.__doc__)
    parser.add_argument("--version", action="version", version=balanced_grad.__version__)
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    demo.add_command(commands)
    check.add_command(commands)
    diagnosis.add_command(commands)
    args = parser.parse_args(argv)
    status: int = args.run(args)
    return status


if __name__ == "__main__":
    raise SystemExit(main())
