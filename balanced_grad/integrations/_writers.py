"""Where records of steps go: TensorBoard, JSON lines, CSV, or a writer of your own."""

import csv
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol


class Writer(Protocol):
    """Takes the numbers of one step; anything with these two methods is one."""

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """The numbers of a step by name; NaN among them is what a method gave."""

    def close(self) -> None:
        """Nothing more comes."""


class JSONLines:
    """A line of JSON per step, ``{"step": 3, "balance/loss/audio": 0.7, ...}``; what is not finite is null.

    Args:
        path: of the file, which is begun anew.

    Examples: see ``StepLogger``.
    """

    def __init__(self, path: str | Path) -> None:
        self._path = Path(path)
        self._path.write_text("", encoding="utf-8")

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """A line, at once in the file: a run that is killed leaves whole ones."""
        finite = {name: value if math.isfinite(value) else None for name, value in values.items()}
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"step": step, **finite}, allow_nan=False) + "\n")

    def close(self) -> None:
        """Nothing is open."""


class CSV:
    """A row ``step,name,value`` per number: losses come and go with their modalities, columns cannot.

    Args:
        path: of the file, which is begun anew.

    Examples: see ``StepLogger``.
    """

    def __init__(self, path: str | Path) -> None:
        self._path = Path(path)
        self._append([("step", "name", "value")], "w")

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Its rows."""
        self._append([(step, name, value) for name, value in values.items()], "a")

    def close(self) -> None:
        """Nothing is open."""

    def _append(self, rows: Sequence[tuple[object, ...]], mode: str) -> None:
        with self._path.open(mode, newline="", encoding="utf-8") as file:
            csv.writer(file).writerows(rows)


class TensorBoard:
    """Scalars of TensorBoard.

    Args:
        writer: a ``SummaryWriter`` of yours, which stays open, or the folder of a new one.

    Raises:
        ImportError: for a folder, without the package ``tensorboard``.

    Examples: see ``StepLogger``.
    """

    def __init__(self, writer: Any) -> None:
        self._own = isinstance(writer, str | Path)
        if self._own:
            try:
                from torch.utils.tensorboard import SummaryWriter
            except ImportError as error:
                raise ImportError("TensorBoard(folder) needs tensorboard: pip install tensorboard") from error
            writer = SummaryWriter(str(writer))
        self._writer = writer

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """A scalar for each."""
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        """Close a writer that was made here."""
        if self._own:
            self._writer.close()
