"""A function in a script of the user's, given as FILE.py:FUNCTION, and what is wrong with it."""

import runpy
import sys
import traceback
from argparse import ArgumentParser
from collections.abc import Callable
from pathlib import Path
from typing import Any


class ScriptError(Exception):
    """What is wrong with the user's script, and what to write instead."""


def split_target(parser: ArgumentParser, target: str, example: str) -> tuple[Path, str]:
    """File and function; ends the command with status 2 where one of them is not given."""
    file, colon, name = target.rpartition(":")
    if not (colon and file and name):
        parser.error(f"{target!r} names no function; write FILE.py:FUNCTION, such as {example}")
    if not Path(file).is_file():
        parser.error(f"there is no file {file!r}")
    return Path(file), name


def load(file: Path, name: str) -> Callable[[], object]:
    """The function of that name in the script, whose ``__main__`` part is not run."""
    sys.path.insert(0, str(file.resolve().parent))  # the script's own imports, as python FILE.py finds them
    try:
        script = told(lambda: runpy.run_path(str(file)), f"{file} cannot be loaded")
    finally:
        sys.path.pop(0)
    if name not in script or not callable(script[name]):
        defined = [key for key, value in script.items() if getattr(value, "__module__", None) == "<run_path>"]
        has = f"it has {', '.join(defined)}" if defined else "it has none"
        raise ScriptError(f"{file} has no function {name!r}; {has}")
    function: Callable[[], object] = script[name]
    return function


def told(function: Callable[[], Any], what: str) -> Any:
    """Call what may fail for a reason of the user's, and say where in the script it did."""
    try:
        return function()
    except (Exception, SystemExit) as error:
        ours = str(Path(__file__).parent)
        frames = [
            frame
            for frame in traceback.extract_tb(error.__traceback__)
            if not frame.filename.startswith((ours, "<frozen"))
        ]
        where = "".join(traceback.format_list(frames))
        raise ScriptError(f"{what}\n{where}{type(error).__name__}: {error}") from error
