"""Tasks whose Bayes accuracy is known: redundant, unique and synergistic information, and a modality of noise.

Each modality carries one bit ``s = ±1`` in one or two of its ``SIZE`` directions; the others are noise, and a fixed
random rotation hides which is which. All noise is standard normal.

* ``easy``: the mean of the first direction is ``2 s``: linear, learned at once.
* ``hard``: the means are ``(2 t, 2 s t)`` with a sign ``t`` of its own per item: the bit is the sign of a product,
  which no linear map of the input shows.

``redundant``: one bit in both, the label. ``unique``: a bit each, the label is their pair. ``synergy``: a bit each, the
label says whether they differ (XOR), so neither modality alone says anything. ``noise``: as ``unique``, with half the
training items and beside it a modality of ``NOISE`` numbers that say nothing, and that can only be memorised.
"""

import numpy as np

from balanced_grad.demo._data import Array, Dataset, build

TASKS = ("redundant", "unique", "synergy", "noise")
SIZES = {"noise": (1000, 1000, 4000)}  # train, val, test
USUAL = (2000, 1000, 4000)
SIZE = 12
SIGNAL = 2.0
NOISE = 64


def load_generated(task: str, seed: int = 0) -> Dataset:
    """Draw the items of a task; its title states the Bayes accuracy on its test items."""
    rng = np.random.default_rng(seed)
    sizes = SIZES.get(task, USUAL)
    count = sum(sizes)
    split = np.repeat(range(3), sizes)
    bits = rng.choice([-1, 1], (2, count))
    if task == "redundant":
        bits[1] = bits[0]
    noise = rng.standard_normal((2, count, SIZE))
    turn = rng.choice([-1, 1], count)
    noise[0, :, 0] += SIGNAL * bits[0]
    noise[1, :, 0] += SIGNAL * turn
    noise[1, :, 1] += SIGNAL * turn * bits[1]
    labels = label(task, bits)
    test = split == 2
    truth = {name: bayes(task, noise[:, test], labels[test], known) for name, known in KNOWN.items()}
    title = f"{task} information; Bayes accuracy " + ", ".join(f"{name} {value:.1f}" for name, value in truth.items())
    views = {name: x @ rotation(rng) for name, x in zip(("easy", "hard"), noise, strict=True)}
    if task == "noise":
        views["noise"] = rng.standard_normal((count, NOISE))
    return build(task, title, views, labels, split)


def label(task: str, bits: Array) -> Array:
    """Classes of ``(2, n)`` bits."""
    first, second = bits > 0
    pair = 2 * first + second
    return {"redundant": first, "unique": pair, "synergy": first ^ second, "noise": pair}[task].astype(np.int64)


KNOWN = {"easy": (True, False), "hard": (False, True), "both": (True, True)}


def bayes(task: str, x: Array, labels: Array, known: tuple[bool, bool]) -> float:
    """Accuracy, in percent, of the exact posterior of the label given the known modalities, unrotated."""
    easy = 2 * SIGNAL * x[0, :, 0] * known[0]
    log_cosh = [np.logaddexp(z, -z) for z in SIGNAL * (x[1, :, 0] + np.array([[1], [-1]]) * x[1, :, 1])]
    hard = (log_cosh[0] - log_cosh[1]) * known[1]
    if task == "redundant":
        predicted = easy + hard > 0
    elif task in ("unique", "noise"):
        predicted = 2 * (easy > 0) + (hard > 0)
    else:
        predicted = easy * hard < 0
    return 100 * float((predicted == labels).mean())


def rotation(rng: np.random.Generator) -> Array:
    """Draw an orthogonal matrix."""
    return np.linalg.qr(rng.standard_normal((SIZE, SIZE)))[0]
