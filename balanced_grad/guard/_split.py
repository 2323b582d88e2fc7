import random
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, TypeVar

from torch.utils.data import Dataset, Subset

Batch = TypeVar("Batch")


def hold_out(
    dataset: Dataset[Any], fraction: float = 0.15, *, groups: Sequence[Any] | None = None, seed: int = 0
) -> tuple[Subset[Any], Subset[Any]]:
    """Split training items into those to train on and those to guard with.

    Args:
        dataset: the training part, with a length. Items of validation or test have no place here.
        fraction: share of the items to hold out. Default 0.15 (ours).
        groups: one label per item, such as its speaker, patient or recording; items that share a label stay on one
            side, so that the guard sees what a new speaker does. Whole groups are held out, in random order, as long
            as they fit in the fraction, and at least one is.
        seed: of the draw, which leaves the global generators alone.

    Returns:
        ``(training, held out)``, both in the order of the data set.

    Raises:
        ValueError: if a side would be empty, or there is not one label per item.

    Examples:
        >>> import balanced_grad as bg
        >>> training, guard = bg.hold_out(list(range(100)))
        >>> len(training), len(guard)
        (85, 15)
        >>> training, guard = bg.hold_out(list(range(6)), 0.4, groups=["ann", "ann", "bob", "bob", "cy", "cy"])
        >>> sorted(guard)
        [0, 1]
    """
    count = len(dataset)  # type: ignore[arg-type]
    if not 0 < fraction < 1:
        raise ValueError(f"fraction={fraction!r}: give a share between 0 and 1")
    if groups is not None and len(groups) != count:
        raise ValueError(f"groups has {len(groups)} labels for {count} items; give one per item")
    labels = range(count) if groups is None else groups
    members: dict[Any, list[int]] = {}
    for item, label in enumerate(labels):
        members.setdefault(label, []).append(item)
    order = list(members)
    random.Random(seed).shuffle(order)
    held: list[int] = []
    for label in order:
        if not held or len(held) + len(members[label]) <= fraction * count:
            held += members[label]
    if not 0 < len(held) < count:
        what = "items" if groups is None else "groups"
        raise ValueError(f"{len(order)} {what} cannot be split: a side would be empty; give more of them")
    chosen = set(held)
    return Subset(dataset, [item for item in range(count) if item not in chosen]), Subset(dataset, sorted(held))


def endless(loader: Iterable[Batch]) -> Iterator[Batch]:
    """The batches of a loader, again and again; a loader that shuffles does so each time.

    Raises:
        ValueError: for a loader without a batch.

    Examples:
        >>> import balanced_grad as bg
        >>> batches = bg.endless([1, 2])
        >>> [next(batches) for _ in range(5)]
        [1, 2, 1, 2, 1]
    """
    while True:
        empty = True
        for batch in loader:
            empty = False
            yield batch
        if empty:
            raise ValueError("the loader has no batch: it is empty, or an iterator that has run out; give a DataLoader")
