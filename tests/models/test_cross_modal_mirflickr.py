"""The folder form of MIR-Flickr: what is read of a tiny set, and what is refused."""

import numpy as np
import pytest

pytest.importorskip("sklearn", reason="pip install 'balanced-grad[demo]'")

from scipy import sparse

from bench.cross_modal_retrieval._mir_flickr import load_mirflickr


def write(folder, **arrays):
    """A tiny set in the form of ``load_mirflickr``: five labelled items, three without labels."""
    rng = np.random.default_rng(0)
    tags = np.array([[1, 0, 0, 1]] * 5 + [[1, 1, 0, 0], [1, 0, 0, 0], [1, 1, 1, 1]])
    usual = {
        "image": 5 + 3 * rng.normal(size=(8, 3)),
        "tags": tags,
        "labels": np.array([[1, 0], [1, 1], [0, 1], [0, 0], [1, 1]]),
        "splits": np.array([[0, 0, 1, 2, 2], [2, 2, 1, 0, 0]], np.uint8),
    }
    for name, array in (usual | arrays).items():
        np.save(folder / f"{name}.npy", array)
    return usual | arrays


def test_it_reads_labelled_and_unlabelled_pairs(tmp_path):
    raw = write(tmp_path)
    pairs = load_mirflickr(tmp_path, 0)
    assert pairs.train.tolist() == [0, 1]
    assert pairs.test.tolist() == [3, 4]
    assert pairs.pairs.tolist() == [0, 1, 5, 7]  # item 6 has one tag only
    np.testing.assert_array_equal(pairs.tags, raw["tags"])
    np.testing.assert_allclose(pairs.image[pairs.pairs].mean(0), 0, atol=1e-6)
    np.testing.assert_allclose(pairs.image[pairs.pairs].std(0), 1, rtol=1e-5)
    assert load_mirflickr(tmp_path, 3).train.tolist() == [3, 4]  # the second split


def test_tags_may_be_sparse(tmp_path):
    raw = write(tmp_path)
    (tmp_path / "tags.npy").unlink()
    with pytest.raises(FileNotFoundError, match=r"tags.npz is missing"):
        load_mirflickr(tmp_path, 0)
    sparse.save_npz(tmp_path / "tags.npz", sparse.csr_matrix(raw["tags"]))
    np.testing.assert_array_equal(load_mirflickr(tmp_path, 0).tags, raw["tags"])


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"image": np.zeros((7, 3))}, "7 rows of image but 8 of tags"),
        ({"image": np.full((8, 3), np.nan)}, "NaN or infinite"),
        ({"image": np.zeros(8)}, "all have to be"),
        ({"tags": np.full((8, 4), 2)}, "tags has other values than 0 and 1"),
        ({"labels": np.full((5, 2), -1)}, "labels has other values"),
        ({"labels": np.zeros((9, 2))}, "9 labelled items of 8"),
        ({"splits": np.zeros((1, 4))}, "splits of 4"),
        ({"splits": np.array([[0, 0, 1, 2, 2], [0, 0, 0, 0, 0]])}, r"rows \[1\] need 0"),
    ],
)
def test_what_does_not_go_together_is_refused(tmp_path, arrays, message):
    write(tmp_path, **arrays)
    with pytest.raises(ValueError, match=message):
        load_mirflickr(tmp_path, 0)
