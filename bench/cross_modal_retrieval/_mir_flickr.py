"""MIR-Flickr, or anything in its form, from a folder of arrays."""

from pathlib import Path

import numpy as np
from scipy import sparse

from bench.cross_modal_retrieval._pairs import Pairs, standardised

MIN_TAGS = 2  # of an unlabelled pair, as the source


def load_mirflickr(folder, split):
    """Read images as features, their tags, labels of the first items, and a split.

    Args:
        folder: holds

            ``image.npy``   ``(N, D)`` real features, of any scale (the source: 3857)
            ``tags.npz``    ``(N, T)`` in {0, 1}, by ``scipy.sparse.save_npz``; or ``tags.npy``, dense (2000)
            ``labels.npy``  ``(L, C)`` in {0, 1} of the first ``L <= N`` items, the labelled ones (25,000 of 38)
            ``splits.npy``  ``(S, L)``: 0 for training, 1 for validation, 2 for test, in each of ``S`` splits (5)

            Items ``L ..`` are unlabelled pairs: those with two tags or more join the training without labels.
        split: row of ``splits.npy``; modulo ``S``.

    Returns:
        Pairs: with image features standardised by the training pairs.

    Raises:
        FileNotFoundError: for a file that is not there.
        ValueError: where the arrays do not go together, or hold other values than said.
    """
    folder = Path(folder)
    image, labels, splits = (read(folder, f"{name}.npy") for name in ("image", "labels", "splits"))
    dense = (folder / "tags.npy").exists()
    tags = read(folder, "tags.npy") if dense else sparse.load_npz(exists(folder, "tags.npz")).toarray()
    check(folder, image, tags, labels, splits)
    codes = splits[split % len(splits)]
    extra = len(labels) + np.flatnonzero(tags[len(labels) :].sum(1) >= MIN_TAGS)
    train, test = (np.flatnonzero(codes == code) for code in (0, 2))
    pairs = np.concatenate([train, extra])
    return Pairs(standardised(image, pairs), tags.astype(np.float32), labels.astype(bool), train, test, pairs)


def read(folder, name):
    return np.load(exists(folder, name), allow_pickle=False)


def exists(folder, name):
    path = folder / name
    if not path.exists():
        raise FileNotFoundError(f"{path} is missing; load_mirflickr says which arrays the folder has to hold")
    return path


def check(folder, image, tags, labels, splits):
    """Refuse what does not go together."""
    if not (image.ndim == tags.ndim == labels.ndim == splits.ndim == 2):
        raise ValueError(f"{folder}: image, tags, labels and splits all have to be (rows, columns)")
    if len(image) != len(tags):
        raise ValueError(f"{folder}: {len(image)} rows of image but {len(tags)} of tags; give one of each per item")
    if len(labels) > len(image) or splits.shape[1] != len(labels):
        raise ValueError(
            f"{folder}: {len(labels)} labelled items of {len(image)}, with splits of {splits.shape[1]}; labels are of "
            "the first items, and a split has one code for each of them"
        )
    if not np.isfinite(image).all():
        raise ValueError(f"{folder}/image.npy has values that are NaN or infinite")
    for name, array in (("tags", tags), ("labels", labels)):
        if not np.isin(array, (0, 1)).all():
            raise ValueError(f"{folder}: {name} has other values than 0 and 1")
    missing = [row for row, codes in enumerate(splits) if not {0, 2} <= set(codes.tolist()) <= {0, 1, 2}]
    if missing:
        raise ValueError(f"{folder}/splits.npy: rows {missing} need 0 (training), 2 (test) and no codes but 0, 1, 2")
