"""MIMIC-III as MultiBench preprocesses it: five static features of an admission and a day of twelve series.

``DIR/mimic/*.pk`` (or ``.pkl``), a dictionary with ``adm_features_all`` ``(items, 5)``, ``ep_tdata`` ``(items, 24,
12)``, ``adm_labels_all`` ``(items, 6)`` and ``y_icd9`` ``(items, 20)``. Tasks: ``mimic:mortality``, the first of five
horizons within which the patient died, or none (6 classes); ``mimic:140-239`` and ``mimic:460-519``, whether there is a
diagnosis of that group of ICD-9 codes (columns 1 and 7).

As there, what is not finite is 0, and of a shuffle by seed 10 the first tenth validates and the second tests. Ours: the
day is one vector, and all columns are standardised by the training items alone.
"""

import random
from pathlib import Path

import numpy as np

from balanced_grad.demo._data import Array, Dataset, DemoError, build
from bench.accuracy._sequences import read_pickle

ICD9 = {"mimic:140-239": 1, "mimic:460-519": 7}
TITLES = {"mimic:mortality": "MIMIC-III, mortality"} | {name: f"MIMIC-III, ICD-9 {name[6:]}" for name in ICD9}
ARRAYS = {"adm_features_all": 2, "ep_tdata": 3, "adm_labels_all": 2, "y_icd9": 2}  # and their dimensions


def load_mimic(root: Path, name: str) -> Dataset:
    """Read the one pickle in the set's folder, for one of its tasks."""
    if name not in TITLES:
        raise DemoError(f"unknown task {name!r}; choose one of {', '.join(TITLES)}")
    arrays = read(root / "mimic")
    labels = arrays["y_icd9"][:, ICD9[name]] > 0 if name in ICD9 else horizon(arrays["adm_labels_all"])
    count = len(labels)
    order = list(range(count))
    random.Random(10).shuffle(order)
    split = np.zeros(count, int)
    split[order[: count // 10]] = 1
    split[order[count // 10 : count // 5]] = 2
    views = {"static": arrays["adm_features_all"], "series": arrays["ep_tdata"].reshape(count, -1)}
    return build(name, TITLES[name], views, labels.astype(int), split)


def horizon(columns: Array) -> Array:
    """Place of the first positive one of columns 1 to 5, 0 without any."""
    died = columns[:, 1:6] > 0
    return np.where(died.any(1), 1 + died.argmax(1), 0)


def read(folder: Path) -> dict[str, Array]:
    """The arrays, checked, with 0 for what is not finite."""
    arrays = read_pickle(
        folder,
        "MIMIC-III",
        (".pk", ".pkl"),
        lambda content: {name: np.asarray(content[name], float) for name in ARRAYS},
        f"{tuple(ARRAYS)}",
    )
    shapes = {name: x.shape for name, x in arrays.items()}
    if any(len(shapes[name]) != n for name, n in ARRAYS.items()) or len({shape[0] for shape in shapes.values()}) > 1:
        raise DemoError(f"{folder} has the shapes {shapes}; give as many items everywhere, in {ARRAYS} dimensions")
    if shapes["adm_labels_all"][1] < 6 or shapes["y_icd9"][1] < 8:
        raise DemoError(f"{folder} has labels of the shapes {shapes}; 6 columns of horizons and 8 of codes are used")
    return {name: np.where(np.isfinite(x), x, 0.0) for name, x in arrays.items()}
