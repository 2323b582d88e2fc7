import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch

from balanced_grad.demo._data import SPLITS, DemoError
from balanced_grad.demo._digits import HARD_TRAIN, VIEWS, fourier, load_digits, profiles
from balanced_grad.demo._folder import available, load_folder

REAL = os.environ.get("BALANCED_GRAD_DATA")
needs_real_data = pytest.mark.skipif(REAL is None, reason="BALANCED_GRAD_DATA names no folder with real data sets")


def write_set(folder, name="toy", modalities=("a", "b"), **changes):
    """A small set in the documented plain form, with different statistics in every split."""
    rng = np.random.default_rng(0)
    split = np.repeat([0, 1, 2], [40, 20, 30]).astype(np.uint8)
    arrays = {
        "a": (rng.standard_normal((90, 3)) * (1 + split[:, None]) + 10 * split[:, None]).astype(np.float32),
        "b": rng.integers(0, 256, (90, 5, 4), dtype=np.uint8),
        "label": (np.arange(90) % 3).astype(np.uint8),
        "split": split,
    }
    arrays |= changes
    (folder / name).mkdir()
    np.savez(folder / name / f"{name}.npz", **{k: v for k, v in arrays.items() if v is not None})
    (folder / name / f"{name}.json").write_text(json.dumps({"title": "Toy", "modalities": list(modalities)}))
    return arrays


@pytest.mark.parametrize(("hard", "train"), [(False, 1078), (True, HARD_TRAIN)])
def test_digits_come_in_three_views(hard, train):
    data = load_digits(hard)
    assert data.shapes == {"pixels": (64,), "fourier": (40,), "profiles": (16,)}
    assert (len(data.train), len(data.val), len(data.test)) == (train, 360, 359)
    assert data.classes == 10
    for split in (data.train, data.val, data.test):
        assert all(x.isfinite().all() and len(x) == len(split) for x in split.inputs.values())
        assert split.labels.bincount(minlength=10).min() > 0


@pytest.mark.parametrize("hard", [False, True])
def test_no_digit_is_in_two_splits(hard):
    data = load_digits(hard)
    rows = [{tuple(x.tolist()) for x in getattr(data, split).inputs["pixels"]} for split in SPLITS]
    assert [len(rows[i] & rows[j]) for i, j in ((0, 1), (0, 2), (1, 2))] == [0, 0, 0]


@pytest.mark.parametrize("hard", [False, True])
def test_digits_are_the_same_every_time(hard):
    first, second = load_digits(hard), load_digits(hard)
    assert all(torch.equal(first.test.inputs[view], second.test.inputs[view]) for view in VIEWS)


def test_views_are_computed_from_the_image():
    image = np.zeros((1, 8, 8))
    image[0, 2, 5] = 8.0
    moved = np.roll(image, 3, axis=2)
    np.testing.assert_allclose(fourier(image), fourier(moved))  # magnitudes do not see where the stroke is
    np.testing.assert_array_equal(profiles(image)[0].nonzero()[0], [2, 8 + 5])
    np.testing.assert_array_equal(profiles(image)[0, [2, 13]], [1.0, 1.0])


def test_folder_is_cut_by_split_and_scaled(tmp_path):
    arrays = write_set(tmp_path)
    data = load_folder(tmp_path, "toy")
    assert data.title == "Toy"
    assert data.shapes == {"a": (3,), "b": (1, 5, 4)}
    assert (len(data.train), len(data.val), len(data.test), data.classes) == (40, 20, 30, 3)
    np.testing.assert_array_equal(data.val.labels, arrays["label"][40:60])
    train = arrays["b"][:40].astype(np.float64)
    expected = (arrays["b"][60:] - train.mean()) / train.std()  # one scale for the image, bytes as they are
    np.testing.assert_allclose(data.test.inputs["b"][:, 0], expected, rtol=1e-5, atol=1e-6)


def test_only_training_items_set_the_scale(tmp_path):
    arrays = write_set(tmp_path)
    data = load_folder(tmp_path, "toy")
    train = arrays["a"][:40].astype(np.float64)
    np.testing.assert_allclose(data.train.inputs["a"].mean(0), 0, atol=1e-6)
    np.testing.assert_allclose(data.train.inputs["a"].std(0, correction=0), 1, rtol=1e-5)
    expected = (arrays["a"][60:] - train.mean(0)) / train.std(0)
    np.testing.assert_allclose(data.test.inputs["a"], expected, rtol=1e-5)
    assert (data.test.inputs["a"].mean(0) > 5).all()  # the shift between the splits is left in


def test_feature_without_variation_in_training_does_not_explode(tmp_path):
    a = np.zeros((90, 3), dtype=np.float32)
    a[60:] = 1.0
    write_set(tmp_path, a=a)
    assert load_folder(tmp_path, "toy").test.inputs["a"].max() == 1.0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"label": None}, r"missing: \['label'\]"),
        ({"modalities": ("a", "c")}, r"missing: \['c'\]"),
        ({"modalities": ()}, "lists under"),
        ({"modalities": ("joint",), "joint": np.zeros((90, 2))}, "not free as names: .*'joint'"),
        ({"a": np.zeros((89, 3))}, r"wrong: \['a'\]"),
        ({"split": np.zeros(90, dtype=np.uint8)}, "wrong: split"),
    ],
)
def test_folder_in_another_form_says_what_is_wrong(tmp_path, changes, message):
    write_set(tmp_path, **changes)
    with pytest.raises(DemoError, match=message):
        load_folder(tmp_path, "toy")


def test_unreadable_files_are_named(tmp_path):
    write_set(tmp_path)
    (tmp_path / "toy" / "toy.json").unlink()
    with pytest.raises(DemoError, match=r"toy\.json"):
        load_folder(tmp_path, "toy")
    for content in (b"PK\x03\x04 is no archive", b"nor is this", b""):
        (tmp_path / "toy" / "toy.npz").write_bytes(content)
        with pytest.raises(DemoError, match="cannot read the data set 'toy'"):
            load_folder(tmp_path, "toy")


def test_available_lists_the_sets_of_a_folder(tmp_path):
    write_set(tmp_path, "one")
    write_set(tmp_path, "two")
    (tmp_path / "three").mkdir()
    assert available(tmp_path) == ["one", "two"]


@pytest.mark.parametrize(("key", "kind"), [("group", "groups"), ("video_id", "videos")])
def test_a_folder_says_which_items_belong_together(tmp_path, key, kind):
    members = np.arange(90) // 3
    write_set(tmp_path, **{key: members})
    found = load_folder(tmp_path, "toy").groups
    assert found.kind == kind
    np.testing.assert_array_equal(np.concatenate([found.codes[split] for split in SPLITS]), members)
    write_set(tmp_path, "alone")
    assert load_folder(tmp_path, "alone").groups is None


@needs_real_data
def test_nobody_of_mosi_is_in_two_parts():
    groups = load_folder(Path(REAL), "mosi").groups
    parts = [set(groups.codes[split].tolist()) for split in SPLITS]
    assert [len(part) for part in parts] == [50, 12, 31]
    assert len(set.union(*parts)) == 93


@needs_real_data
def test_pairs_follow_the_recordings():
    data = load_folder(Path(REAL), "avmnist:pca25,noisy")
    assert data.shapes == {"image": (1, 28, 28), "audio": (1, 40, 40)}
    assert (len(data.train), len(data.val), len(data.test)) == (12000, 2000, 4000)
    with np.load(Path(REAL) / "avmnist" / "avmnist.npz") as archive:
        recording, version = archive["test_recording"][7], archive["test_version"][7]
        sound = archive["test_audio_noisy"][recording, version]
        image = archive["test_image_pca25"][7]
    for name, expected in {"audio": sound, "image": image}.items():
        found = data.test.inputs[name][7, 0]
        assert np.corrcoef(found.flatten(), expected.flatten())[0, 1] > 1 - 1e-6
        assert abs(float(data.train.inputs[name].mean())) < 1e-3
        assert abs(float(data.train.inputs[name].std()) - 1) < 1e-3


@needs_real_data
def test_pairs_belong_to_speakers_whom_training_has_not_heard():
    groups = load_folder(Path(REAL), "avmnist:clean,clean").groups
    assert groups.kind == "speakers"
    parts = {split: set(groups.codes[split].tolist()) for split in SPLITS}
    assert parts["val"] == parts["train"]
    assert len(parts["test"]) == 2
    assert not parts["test"] & parts["train"]


@needs_real_data
def test_unknown_variants_are_refused():
    with pytest.raises(DemoError, match="avmnist:clean,clean, avmnist:clean,noisy, avmnist:pca25,clean"):
        load_folder(Path(REAL), "avmnist:clean,loud")
    with pytest.raises(DemoError, match="no variants"):
        load_folder(Path(REAL), "mfeat:clean")
