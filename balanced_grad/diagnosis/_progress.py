"""How far a long measurement is: a line before it starts, and a bar where there is a terminal and tqdm."""

import sys
from importlib.util import find_spec
from typing import Any


class Progress:
    """Counts passes of the model over the items.

    Args:
        shown: whether to write anything, to standard error.
    """

    def __init__(self, shown: bool) -> None:
        self._shown = shown
        self._bar: Any = None
        self.passes = 0

    def start(self, passes: int, items: int, forwards: int) -> None:
        """State the cost: passes over the items, and items that go through the model altogether."""
        if not self._shown:
            return
        print(
            f"diagnose: {passes} passes over {items:,} items; {forwards:,} items go through the model", file=sys.stderr
        )
        if find_spec("tqdm") is not None:
            from tqdm import tqdm

            self._bar = tqdm(total=passes, disable=None, unit="pass", leave=False)

    def advance(self) -> None:
        """A pass is done."""
        self.passes += 1
        if self._bar is not None:
            self._bar.update()

    def stop(self) -> None:
        """Take the bar away."""
        if self._bar is not None:
            self._bar.close()
