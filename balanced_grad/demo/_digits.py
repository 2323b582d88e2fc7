"""The embedded data: scikit-learn's handwritten digits, seen through three views computed from the images.

``digits``
    1797 real 8 x 8 images (UCI Optical Recognition of Handwritten Digits), split 60 / 20 / 20 with every
    class equally frequent in each part. The views: ``pixels`` (64 grey levels), ``fourier`` (40 magnitudes
    of the 2-d spectrum: where a stroke lies is lost, its shape is kept) and ``profiles`` (the ink of each
    of the 8 rows and 8 columns). The split is random, so writers are shared between its parts.

``digits-hard``
    The same images, split and views with two changes, both drawn once from a fixed seed. Only ``HARD_TRAIN``
    images are for training. And every view looks at the digit through a sensor of its own: white noise is
    added to the image before the view is computed, independently per view, in every split alike, most of it
    for ``pixels`` (see ``HARD_NOISE``). No view is enough alone then, and under-training one costs fused
    accuracy.
"""

import numpy as np

from balanced_grad.demo._data import Array, Dataset, build

HARD_TRAIN = 400
HARD_NOISE = {"pixels": 0.4, "fourier": 0.2, "profiles": 0.2}  # standard deviation; ink is 0 to 1


def pixels(images: Array) -> Array:
    """Grey levels, ``(n, 8, 8) -> (n, 64)``."""
    return images.reshape(len(images), -1)


def fourier(images: Array) -> Array:
    """Magnitudes of the 2-d spectrum without its mirrored half, ``(n, 8, 8) -> (n, 40)``."""
    return pixels(np.abs(np.fft.rfft2(images)))


def profiles(images: Array) -> Array:
    """Mean ink of each row, then of each column, ``(n, 8, 8) -> (n, 16)``."""
    return np.concatenate([images.mean(2), images.mean(1)], axis=1)


VIEWS = {"pixels": pixels, "fourier": fourier, "profiles": profiles}


def load_digits(hard: bool = False) -> Dataset:
    """Load the digits in three views; the module's text tells the two variants apart."""
    from sklearn.datasets import load_digits as bundled

    images, labels = bundled(return_X_y=True)
    images = images.reshape(-1, 8, 8) / 16
    rng = np.random.default_rng(0)
    split = stratified(labels, rng)
    if not hard:
        views = {name: view(images) for name, view in VIEWS.items()}
        return build("digits", "handwritten digits in three views", views, labels, split)
    views = {name: view(images + HARD_NOISE[name] * rng.standard_normal(images.shape)) for name, view in VIEWS.items()}
    spare = rng.permutation(np.flatnonzero(split == 0))[HARD_TRAIN:]
    split[spare] = -1  # in no part
    return build("digits-hard", "noisy handwritten digits in three views, few to learn from", views, labels, split)


def stratified(labels: Array, rng: np.random.Generator) -> Array:
    """Split codes 0 / 1 / 2 for 60 / 20 / 20 % of each class."""
    split = np.zeros(len(labels), dtype=np.int64)
    for label in np.unique(labels):
        rows = rng.permutation(np.flatnonzero(labels == label))
        val, test = round(0.6 * len(rows)), round(0.8 * len(rows))
        split[rows[val:test]] = 1
        split[rows[test:]] = 2
    return split
