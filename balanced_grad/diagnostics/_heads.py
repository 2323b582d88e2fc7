"""The best head on a frozen latent: refitted from scratch, L2 chosen by cross-validation."""

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from balanced_grad.diagnostics._items import Array

HeadClass = Literal["linear", "mlp"]
PENALTIES = (10.0, 1.0, 1e-1, 1e-2, 1e-3, 1e-4, 1e-6)  # λ of mean loss + λ/2 ‖w‖², on standardised features
FOLDS = 3
HIDDEN = 64
NEVER_VARIES = 1e-12  # a deviation below so much of the largest value is rounding
LEAST_PROBABILITY = 1e-12  # bounds the loss, at 27.6 nats, as the theory asks


@dataclass(frozen=True)
class Family:
    """The estimators of one class of heads.

    ``make(penalty, items, seed)`` gives an unfitted one; a class that is not convex gets several restarts.
    """

    make: Callable[[float, int, int], Any]
    restarts: int = 1


@dataclass(frozen=True)
class Scale:
    """Standardisation by the items a head is fitted to, in any unit; what never varies stays near zero."""

    mean: Array
    deviation: Array

    @classmethod
    def of(cls, x: Array) -> "Scale":
        mean, largest = x.mean(0), np.abs(x).max(0)
        unit = np.where(largest > 0, largest, 1.0)  # squares of small or large units would leave the range
        deviation = ((x - mean) / unit).std(0)
        return cls(mean, np.where(deviation > NEVER_VARIES, deviation * unit, unit))

    def __call__(self, x: Array) -> Array:
        scaled: Array = (x - self.mean) / self.deviation
        return scaled

    def undo(self, x: Array) -> Array:
        raw: Array = x * self.deviation + self.mean
        return raw


@dataclass(frozen=True)
class Head:
    """A fitted head ``h``, with the scales of what goes in and, in a regression, of what comes out."""

    estimator: Any
    inputs: Scale
    outputs: Scale | None
    penalty: float

    def losses(self, features: Array, targets: Array) -> Array:
        """``(N,)`` cross-entropy in nats, or squared error (mean over the outputs)."""
        x = self.inputs(features)
        if self.outputs is not None:
            error = self.outputs.undo(self.estimator.predict(x).reshape(targets.shape)) - targets
            squares: Array = np.square(error).reshape(len(error), -1).mean(1)
            return squares
        chosen = np.searchsorted(self.estimator.classes_, targets)
        nats: Array = -np.log(np.clip(self.estimator.predict_proba(x)[np.arange(len(x)), chosen], LEAST_PROBABILITY, 1))
        return nats

    def correct(self, features: Array, targets: Array) -> Array | None:
        """``(N,)`` whether the most probable class is right; None for a regression."""
        return None if self.outputs is not None else self.estimator.predict(self.inputs(features)) == targets


def refit(kind: HeadClass, features: Array, targets: Array, *, classification: bool, seed: int) -> Head:
    """Fit the best head of its class to ``features (N, d)``."""
    family = _family(kind, classification)
    with _quietly():
        errors = sum(_validated(family, *fold, seed) for fold in _folds(features, targets, classification, seed))
        penalty = PENALTIES[int(np.argmin(errors))]  # the largest of equals
        fitted = [
            _fit(family, features, targets, classification, (penalty,), seed + restart)[0]
            for restart in range(family.restarts)
        ]
    objectives = [head.estimator.loss_ if family.restarts > 1 else 0.0 for head in fitted]
    return fitted[int(np.argmin(objectives))]


def require_items_per_class(targets: Array, labels: Array) -> None:
    """Every fold of the cross-validation must see every class."""
    counts = {label: int((targets == label).sum()) for label in labels.tolist()}
    rare = {label: count for label, count in counts.items() if count < FOLDS}
    if rare:
        raise ValueError(
            f"the heads are fitted with {FOLDS}-fold cross-validation, but of some classes fewer than {FOLDS} items "
            f"are held out for them (label: items): {rare}; give more items, raise held_out=, or leave them out"
        )


Fold = tuple[Array, Array, Array, Array, bool]


def _folds(features: Array, targets: Array, classification: bool, seed: int) -> Iterator[Fold]:
    from sklearn.model_selection import KFold, StratifiedKFold

    folds = (StratifiedKFold if classification else KFold)(FOLDS, shuffle=True, random_state=seed)
    for rows, out in folds.split(features, targets):
        yield features[rows], targets[rows], features[out], targets[out], classification


def _validated(
    family: Family, features: Array, targets: Array, unseen: Array, truth: Array, classification: bool, seed: int
) -> Array:
    heads = _fit(family, features, targets, classification, PENALTIES, seed)
    return np.array([head.losses(unseen, truth).sum() for head in heads])


def _fit(
    family: Family, features: Array, targets: Array, classification: bool, penalties: tuple[float, ...], seed: int
) -> list[Head]:
    inputs, outputs = Scale.of(features), None if classification else Scale.of(targets)
    x, y = inputs(features), targets if outputs is None else outputs(targets)
    fitted = [(family.make(penalty, len(x), seed).fit(x, y), penalty) for penalty in penalties]
    return [Head(estimator, inputs, outputs, penalty) for estimator, penalty in fitted]


@contextmanager
def _quietly() -> Iterator[None]:
    from sklearn import config_context
    from sklearn.exceptions import ConvergenceWarning
    from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

    with threadpool_limits(1), config_context(assume_finite=True), warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # validation judges a head, finished or not
        yield


def _family(kind: HeadClass, classification: bool) -> Family:
    from sklearn.linear_model import LogisticRegression, Ridge
    from sklearn.neural_network import MLPClassifier, MLPRegressor

    if kind == "linear" and classification:
        return Family(lambda penalty, items, seed: LogisticRegression(C=1 / (penalty * items), max_iter=1000))
    if kind == "linear":
        return Family(lambda penalty, items, seed: Ridge(alpha=penalty * items))
    network = MLPClassifier if classification else MLPRegressor

    def mlp(penalty: float, items: int, seed: int) -> Any:
        size = {"hidden_layer_sizes": (HIDDEN,), "solver": "lbfgs", "max_iter": 300}
        return network(alpha=penalty * items, random_state=seed, **size)

    return Family(mlp, restarts=3)
