"""Small files in the form in which MOSEI and UR-FUNNY features are published."""

import os
import pickle

import numpy as np
import pytest

from balanced_grad.demo._data import DemoError
from bench.accuracy._data import load
from tests.bench_accuracy.conftest import complete, study

SIZES = {"train": 40, "valid": 20, "test": 20}
WIDTHS = {"text": 4, "audio": 3, "vision": 5}
STEPS, WORDS = 6, 2


def content(seed=0):
    """Two words at the end of six steps; text holds the label's sign."""
    rng = np.random.default_rng(seed)
    out = {}
    for split, count in SIZES.items():
        labels = rng.choice([-2.0, -1.0, 1.0, 3.0], (count, 1, 1))
        part = {m: rng.standard_normal((count, STEPS, width)).astype(np.float32) for m, width in WIDTHS.items()}
        part["text"] += 3 * np.sign(labels)
        for x in part.values():
            x[:, : STEPS - WORDS] = 0
        out[split] = part | {"labels": labels, "id": np.arange(count)}
    return out


@pytest.fixture
def write(tmp_path, monkeypatch):
    monkeypatch.setenv("BALANCED_GRAD_DATA", str(tmp_path))

    def to(name, what):
        (tmp_path / name).mkdir(exist_ok=True)
        (tmp_path / name / "features.pkl").write_bytes(pickle.dumps(what))

    return to


@pytest.mark.parametrize("name", ["mosei", "ur-funny"])
def test_loads_and_trains(write, tmp_path, name):
    write(name, content())
    data = load(name)
    assert {m: tuple(x.shape) for m, x in data.train.inputs.items()} == {m: (40, width) for m, width in WIDTHS.items()}
    assert [len(s) for s in (data.train, data.val, data.test)] == [40, 20, 20]
    np.testing.assert_array_equal(data.test.labels, content()["test"]["labels"].ravel() > 0)
    assert complete(study(tmp_path / "out", name), ["joint"]) == 1


def test_neutral_sentiment_is_not_negative_but_no_joke_is_zero(write):
    for name, expected in (("mosei", 1), ("ur-funny", 0)):
        what = content()
        what["test"]["labels"][0] = 0
        write(name, what)
        assert load(name).test.labels[0] == expected


def test_padding_counts_for_nothing(write):
    write("mosei", content())
    short = load("mosei")
    longer = content()
    for part in longer.values():
        for m in WIDTHS:
            part[m] = np.concatenate([np.zeros_like(part[m]), part[m]], axis=1)
    write("mosei", longer)
    for m in WIDTHS:
        np.testing.assert_allclose(load("mosei").train.inputs[m], short.train.inputs[m], rtol=1e-5, atol=1e-6)


def test_items_without_a_word_are_left_out_and_infinities_are_silence(write):
    what = content()
    what["train"]["text"][3] = 0
    what["train"]["audio"][5, -1] = -np.inf
    write("mosei", what)
    data = load("mosei")
    assert len(data.train) == 39
    assert data.train.inputs["audio"].isfinite().all()


class Code:
    def __reduce__(self):
        return os.getcwd, ()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda what: what | {"train": Code()}, "not only arrays"),
        (lambda what: {"train": what["train"]}, "no entry 'valid'"),
        (lambda what: what | {"test": {"text": what["test"]["text"]}}, "no entry 'labels'"),
    ],
)
def test_files_of_another_form_are_refused(write, change, message):
    write("mosei", change(content()))
    with pytest.raises(DemoError, match=message):
        load("mosei")


def test_a_folder_without_the_file(write, tmp_path):
    with pytest.raises(DemoError, match=r"needs the one \.pkl"):
        load("ur-funny")
