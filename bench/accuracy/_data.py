"""Data sets by name."""

import os
from pathlib import Path

from balanced_grad.demo._cli import BUILT_IN, FOLDER
from balanced_grad.demo._cli import load as load_demo
from balanced_grad.demo._data import Dataset, DemoError
from balanced_grad.demo._packaged import FOLDED, FOLDS, PACKAGED
from bench.accuracy._clips import SOURCES, load_clips
from bench.accuracy._generated import TASKS, load_generated
from bench.accuracy._mimic import load_mimic
from bench.accuracy._multibench import AVMNIST, load_avmnist
from bench.accuracy._sequences import TITLES, load_sequences

PUBLIC = {  # read in their published form
    **dict.fromkeys(SOURCES, load_clips),
    **dict.fromkeys(TITLES, load_sequences),
    AVMNIST: load_avmnist,
    "mimic": load_mimic,
}
LEAKED = {"mosi"}  # its features were made with the labels of the validation items


def load(name: str, fold: int = 0) -> Dataset:
    """Load a generated task, the built-in digits, a set inside a package, or one in ``$BALANCED_GRAD_DATA``."""
    if name in TASKS:
        return load_generated(name)
    if name in FOLDED:
        return FOLDED[name](fold)
    folder = os.environ.get(FOLDER)
    if name not in (*BUILT_IN, *PACKAGED) and not folder:
        known = ", ".join((*TASKS, *BUILT_IN, *PACKAGED, *FOLDED))
        raise DemoError(f"unknown data set {name!r}; built in: {known}; for others set {FOLDER} to their folder")
    published = PUBLIC.get(name.partition(":")[0])
    if folder and published:
        return published(Path(folder), name)
    return load_demo(name, Path(folder) if folder else None)


def fold_of(name: str, seed: int) -> int:
    """The fold that a seed trains and tests on; 0 of a set that has one split."""
    return seed % FOLDS if name in FOLDED else 0


def trusted(name: str) -> bool:
    """Whether anything may be chosen on the validation items."""
    return name.partition(":")[0] not in LEAKED
