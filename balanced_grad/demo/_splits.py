"""Which items train, validate and test, where nobody has said so."""

import numpy as np

from balanced_grad.demo._data import Array


def apart(groups: Array, parts: tuple[float, ...] = (0.6, 0.2, 0.2)) -> Array:
    """A code for each item, the same for all of a group, with shares of the items as near as whole groups allow."""
    found, member, sizes = np.unique(groups, return_inverse=True, return_counts=True)
    order = np.random.default_rng(0).permutation(len(found))
    middles = np.cumsum(sizes[order]) - sizes[order] / 2
    code = np.empty(len(found), int)
    code[order] = np.searchsorted(np.cumsum(parts)[:-1] * len(groups), middles)
    return code[member]


def stratified(labels: Array, parts: tuple[float, ...] = (0.6, 0.2, 0.2)) -> Array:
    """A code for each item, with the same shares in each class."""
    split = np.zeros(len(labels), int)
    random = np.random.default_rng(0)
    for label in np.unique(labels):
        items = random.permutation(np.flatnonzero(labels == label))
        ends = np.round(np.cumsum(parts)[:-1] * len(items)).astype(int)
        for code, part in enumerate(np.split(items, ends)):
            split[part] = code
    return split
