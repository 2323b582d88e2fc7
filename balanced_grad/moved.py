"""Public names that have another home now: the old import works for one minor version, with a warning."""

import warnings
from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any


def moved(module: str, names: Mapping[str, str]) -> Callable[[str], Any]:
    """A module's ``__getattr__`` for names that moved: name -> the module they are in now."""

    def look_up(name: str) -> Any:
        if name not in names:
            raise AttributeError(f"module {module!r} has no attribute {name!r}")
        warnings.warn(
            f"{module}.{name} is {names[name]}.{name} since 0.2; the old name goes in 0.3",
            DeprecationWarning,
            stacklevel=2,
        )
        return getattr(import_module(names[name]), name)

    return look_up
