"""What is legal and yet looks like a mistake: said once, as a warning, with the cure."""

import sys
import warnings
from pathlib import Path

import torch

_INSIDE = tuple(str(Path(module).parent) for module in (__file__, torch.__file__))


class InactiveBalancerWarning(UserWarning):
    """A balancer, or a part of it, does not act on the training: what would be expected to change does not.

    The category of all warnings of this library that are not about a single bad value. Turn them into errors with
    ``warnings.simplefilter("error", bg.InactiveBalancerWarning)``, or silence them with ``"ignore"``.
    """


class Notices:
    """Remembers what has been said, so that each thing is said once."""

    def __init__(self) -> None:
        self._said: set[object] = set()

    def say(self, key: object, message: str) -> None:
        """Warn, unless this ``key`` has been warned of before; the warning names the user's line."""
        if key not in self._said:
            self._said.add(key)
            warnings.warn(message, InactiveBalancerWarning, stacklevel=_level_of_user())


def _level_of_user() -> int:
    """Number of frames up to the first one outside this library and torch, as ``warnings.warn`` in ``say`` counts."""
    level, frame = 1, sys._getframe(1)
    while frame.f_back is not None and frame.f_code.co_filename.startswith(_INSIDE):
        level, frame = level + 1, frame.f_back
    return level
