"""AV-MNIST as MultiBench builds it: arrays of MNIST images without three quarters of their energy, and of noisy speech.

``DIR/multibench-avmnist/``: ``image/train_data.npy`` with 28 x 28 numbers per item (784 in a row, or a square), 0 to
255; ``audio/train_data.npy``, spectrograms of 112 x 112, likewise; ``train_labels.npy``; the same with ``test``. 60,000
and 10,000 items, of which the last 5,000 for training are the validation items: here the last twelfth.

As there, all is divided by 255 and nothing is standardised: networks with batch norm, such as the published LeNets, do
not mind. The whole set takes 4 GB of memory.
"""

from pathlib import Path

import numpy as np
import torch

from balanced_grad.demo._data import Array, Dataset, DemoError, Split

AVMNIST = "multibench-avmnist"
SIDES = {"image": 28, "audio": 112}
DIGITS = 10


def load_avmnist(root: Path, name: str) -> Dataset:
    """Read the arrays of both parts."""
    train, test = (read_part(root / name, part) for part in ("train", "test"))
    rows = torch.arange(len(train))
    kept = len(rows) - len(rows) // 12
    if kept == len(rows):
        raise DemoError(f"{root / name} has {kept} training items; a twelfth validates, so 12 or more are needed")
    train, val = (Split({m: x[part] for m, x in train.inputs.items()}, train.labels[part]) for part in slices(kept))
    return Dataset(name, "AV-MNIST of MultiBench", DIGITS, train, val, test)


def slices(kept: int) -> tuple[slice, slice]:
    """The first so many items, and the others: views, no copies."""
    return slice(kept), slice(kept, None)


def read_part(folder: Path, part: str) -> Split:
    """The items for training, or for tests."""
    labels = read(folder / f"{part}_labels.npy").astype(np.int64).reshape(-1)
    if not set(np.unique(labels)) <= set(range(DIGITS)):
        raise DemoError(f"{folder / part}_labels.npy: give a digit from 0 to {DIGITS - 1} per item")
    inputs = {}
    for modality, side in SIDES.items():
        path = folder / modality / f"{part}_data.npy"
        x = read(path)
        if x.size != len(labels) * side * side:
            raise DemoError(
                f"{path} has the shape {x.shape} for {len(labels)} labels; give {side} x {side} numbers for each"
            )
        scaled = np.divide(x, 255, dtype=np.float32)  # which makes no copy in the precision of the file
        inputs[modality] = torch.from_numpy(scaled.reshape(-1, 1, side, side))
    return Split(inputs, torch.from_numpy(labels))


def read(path: Path) -> Array:
    """An array, not yet in memory."""
    try:
        found: Array = np.load(path, mmap_mode="r")
    except (OSError, ValueError) as error:
        raise DemoError(f"cannot read {path}: {error}") from error
    return found
