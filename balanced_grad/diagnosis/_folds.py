"""Heads on folds: how well features predict items that the head has not seen."""

import numpy as np
from torch import Tensor

from balanced_grad.diagnosis._scores import Array
from balanced_grad.heads import HeadClass, refit
from balanced_grad.labels import Task, unlabelled

Splits = list[tuple[Array, Array]]


def out_of_fold(
    x: Array, targets: Array, task: Task, head: HeadClass, splits: Splits, seed: int
) -> tuple[Array, Array | None]:
    """``(N,)`` losses and hits of heads that have not seen the item; of several labels, the means over them."""
    columns = list(targets.T) if task == "multilabel" else [targets]
    losses, hits = np.zeros((len(columns), len(x))), np.zeros((len(columns), len(x)))
    for place, column in enumerate(columns):
        for fit, test in splits:
            fitted = refit(head, x[fit], column[fit], classification=task != "regression", seed=seed)
            losses[place, test] = fitted.losses(x[test], column[test])
            hits[place, test] = 0 if task == "regression" else fitted.correct(x[test], column[test])
    return losses.mean(0), None if task == "regression" else hits.mean(0)


def splits_of(targets: Array, task: Task, folds: int, seed: int) -> Splits:
    """Rows to fit on and rows to judge on; every class alike in a classification."""
    from sklearn.model_selection import KFold, StratifiedKFold

    single = task == "classification"
    if single:
        counts = np.unique(targets, return_counts=True)[1]
        if counts.min() < 2 * folds:
            raise ValueError(
                f"a class has {counts.min()} items, too few for {folds} folds of which each fits a probe; give more"
            )
    kind = StratifiedKFold if single else KFold
    return list(kind(folds, shuffle=True, random_state=seed).split(targets, targets if single else None))


def targets_of(labels: Tensor, task: Task) -> Array:
    """Labels as scikit-learn has them."""
    whole = not labels.is_floating_point()
    fits = {"classification": labels.dim() == 1 and whole, "multilabel": labels.dim() == 2}.get(task, labels.dim() <= 2)
    if not fits or (task != "classification" and unlabelled(labels.float()).any()):
        raise ValueError(
            f"labels are {labels.dtype} of shape {tuple(labels.shape)}: a probe needs one class index per item, 0 and "
            "1 for every label of task='multilabel', or numbers without NaN for task='regression'"
        )
    found: Array = labels.numpy()
    return found.astype(np.float64) if task == "regression" else found.astype(np.int64)
