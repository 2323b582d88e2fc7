"""A small file in the form in which MultiBench preprocesses MIMIC-III."""

import pickle
import random

import numpy as np
import pytest

from balanced_grad.demo._data import DemoError
from bench.accuracy._data import load
from tests.bench_accuracy.conftest import complete, study

COUNT = 200


def content():
    """The static features hold the first code, the series the second; each tells of half of the deaths."""
    rng = np.random.default_rng(0)
    codes = (rng.random((COUNT, 20)) < 0.5).astype(float)
    static, series = rng.standard_normal((COUNT, 5)), rng.standard_normal((COUNT, 24, 12))
    static[:, 0] += 4 * codes[:, 1]
    series[:, :, 3] += codes[:, 7, None]
    died = np.zeros((COUNT, 6))
    died[::4, 3:] = 1  # within the third horizon, so within all later ones
    died[1::4, 5] = 1
    died[:, 0] = 1  # which is no horizon
    return {"adm_features_all": static, "ep_tdata": series, "adm_labels_all": died, "y_icd9": codes}


@pytest.fixture
def write(tmp_path, monkeypatch):
    monkeypatch.setenv("BALANCED_GRAD_DATA", str(tmp_path))
    (tmp_path / "mimic").mkdir()

    def to(what):
        (tmp_path / "mimic" / "im.pk").write_bytes(pickle.dumps(what))

    return to


@pytest.mark.parametrize(("name", "classes"), [("mimic:mortality", 6), ("mimic:140-239", 2), ("mimic:460-519", 2)])
def test_loads(write, name, classes):
    write(content())
    data = load(name)
    assert data.classes == classes
    assert {m: tuple(x.shape) for m, x in data.train.inputs.items()} == {"static": (160, 5), "series": (160, 288)}
    assert [len(s) for s in (data.train, data.val, data.test)] == [160, 20, 20]
    for x in data.train.inputs.values():
        np.testing.assert_allclose(x.mean(0), 0, atol=1e-6)
        np.testing.assert_allclose(x.std(0, correction=0), 1, rtol=1e-5)


def test_the_split_is_the_published_one(write):
    """A shuffle by seed 10: a tenth to validate, a tenth to test; the order within a part does not matter."""
    what = content()
    order = list(range(COUNT))
    random.Random(10).shuffle(order)
    write(what)
    expected = np.sort(what["adm_features_all"][order[20:40], 1])
    found = np.sort(load("mimic:mortality").test.inputs["static"][:, 1].double().numpy())
    np.testing.assert_allclose(np.corrcoef(found, expected)[0, 1], 1, rtol=1e-6)


def test_mortality_is_the_first_horizon(write):
    write(content())
    data = load("mimic:mortality")
    labels = np.concatenate([part.labels for part in (data.train, data.val, data.test)])
    assert {int(label): int((labels == label).sum()) for label in np.unique(labels)} == {0: 100, 3: 50, 5: 50}


def test_each_code_is_in_its_column_and_the_study_trains(write, tmp_path):
    write(content())
    for name, modality in (("mimic:140-239", "static"), ("mimic:460-519", "series")):
        data = load(name).train
        x = data.inputs[modality]
        gap = x[data.labels == 1].mean(0) - x[data.labels == 0].mean(0)
        assert float(gap.max()) > 0.5
        assert complete(study(tmp_path / modality, name), ["joint"]) == 1


def test_what_is_not_finite_is_zero(write):
    what = content()
    what["ep_tdata"][0, 0, 0], what["adm_features_all"][1, 1] = np.inf, np.nan
    write(what)
    assert all(x.isfinite().all() for x in load("mimic:mortality").train.inputs.values())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda what: {"ep_tdata": what["ep_tdata"]}, "no entry 'adm_features_all'"),
        (lambda what: what | {"ep_tdata": what["ep_tdata"][1:]}, "as many items everywhere"),
        (lambda what: what | {"ep_tdata": what["ep_tdata"][:, 0]}, "in .* dimensions"),
        (lambda what: what | {"y_icd9": what["y_icd9"][:, :3]}, "8 of codes"),
    ],
)
def test_files_of_another_form_are_refused(write, change, message):
    write(change(content()))
    with pytest.raises(DemoError, match=message):
        load("mimic:mortality")


def test_unknown_tasks_and_empty_folders(write):
    with pytest.raises(DemoError, match=r"needs the one \.pk"):
        load("mimic:mortality")
    write(content())
    with pytest.raises(DemoError, match="choose one of mimic:mortality"):
        load("mimic:icd")
