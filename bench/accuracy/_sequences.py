"""CMU-MOSEI and UR-FUNNY features as MultiBench publishes them: one pickle of padded sequences.

``DIR/mosei/*.pkl`` or ``DIR/ur-funny/*.pkl``, a dictionary with ``train``, ``valid`` and ``test``, each with ``text``,
``audio`` and ``vision`` ``(items, steps, features)``, padded with zeros in front and aligned to the words of the text,
and ``labels``. Every sequence becomes the mean of its steps: an encoder for vectors sees no order.

The classes: sentiment below zero or not; no joke (0 or -1) or one. Items without a word are left out.
"""

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from balanced_grad.demo._data import Array, Dataset, DemoError, build

T = TypeVar("T")
MODALITIES = ("text", "audio", "vision")
TITLES = {"mosei": "CMU-MOSEI, sentiment below zero or not", "ur-funny": "UR-FUNNY, joke or not"}
SPLITS = ("train", "valid", "test")
SAFE = ("numpy", "numpy.core.multiarray", "numpy._core.multiarray", "numpy.core.numeric", "numpy._core.numeric")


class ArraysOnly(pickle.Unpickler):
    """Reads arrays, containers and numbers; a pickle that names anything else might run code."""

    def find_class(self, module: str, name: str) -> Any:
        if module in SAFE and name in ("_reconstruct", "ndarray", "dtype", "scalar", "_frombuffer"):
            return super().find_class(module, name)
        if (module, name) == ("_codecs", "encode"):
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"it holds a {module}.{name}, not only arrays")


def read_pickle(folder: Path, what: str, suffixes: tuple[str, ...], take: Callable[[Any], T], needs: str) -> T:
    """What ``take`` gets out of the one pickle of a folder, which ``needs`` to hold certain entries."""
    files = sorted(path for suffix in suffixes for path in folder.glob(f"*{suffix}"))
    if len(files) != 1:
        raise DemoError(f"{folder} needs the one {suffixes[0]} file of {what}; there: {[file.name for file in files]}")
    try:
        with files[0].open("rb") as file:
            return take(ArraysOnly(file).load())
    except KeyError as error:
        raise DemoError(f"{files[0]} has no entry {error}; it needs {needs}") from None
    except (pickle.UnpicklingError, EOFError, ValueError, TypeError) as error:
        raise DemoError(f"cannot read {files[0]}: {error}") from error


def load_sequences(root: Path, name: str) -> Dataset:
    """Read the one pickle in the set's folder."""
    needs = f"{SPLITS}, each with {MODALITIES} and 'labels'"
    pooled = read_pickle(root / name, name, (".pkl",), lambda content: [pool(content[s]) for s in SPLITS], needs)
    views = {m: np.concatenate([part[m] for part in pooled]) for m in MODALITIES}
    labels = np.concatenate([part["label"] for part in pooled])
    split = np.repeat(range(len(SPLITS)), [len(part["label"]) for part in pooled])
    threshold = labels >= 0 if name == "mosei" else labels > 0
    return build(name, TITLES[name], views, threshold, split)


def pool(part: dict[str, Array]) -> dict[str, Array]:
    """Mean of each sequence's steps from its first word on, and the raw label, of the items that have a word."""
    steps = (np.asarray(part["text"]) != 0).any(2)
    steps = np.maximum.accumulate(steps, axis=1)  # what follows the first word belongs to the sequence
    spoken = steps.any(1)
    out = {"label": np.asarray(part["labels"], float).reshape(len(steps), -1)[spoken, 0]}
    for modality in MODALITIES:
        x = np.asarray(part[modality], float)
        x = np.where(np.isfinite(x), x, 0.0) * steps[:, :, None]  # the audio of MOSEI holds -inf
        out[modality] = x[spoken].sum(1) / steps[spoken].sum(1, keepdims=True)
    return out
