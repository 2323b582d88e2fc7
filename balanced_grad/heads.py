"""The best head on a frozen latent: refitted from scratch, L2 chosen by cross-validation."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]

HeadClass = Literal["linear", "mlp"]
PENALTIES = (10.0, 1.0, 1e-1, 1e-2, 1e-3, 1e-4, 1e-6)  # λ of mean loss + λ/2 ‖w‖², on standardised features
FOLDS = 3
HIDDEN = 64
RESTARTS = {"linear": 1, "mlp": 3}  # of a class that is not convex
LEAST_PROBABILITY = 1e-12  # bounds the loss, at 27.6 nats, as the theory asks


@dataclass(frozen=True)
class Head:
    """A fitted head ``h``: scikit-learn's, with the units of what goes in and, in a regression, of what comes out."""

    estimator: Any
    unit: Array
    target_unit: Array | None
    penalty: float

    def losses(self, features: Array, targets: Array) -> Array:
        """``(N,)`` cross-entropy in nats, or squared error (mean over the outputs)."""
        return _losses(self.estimator, features / self.unit, targets, self.target_unit)

    def correct(self, features: Array, targets: Array) -> Array | None:
        """``(N,)`` whether the most probable class is right; None for a regression."""
        return self.estimator.predict(features / self.unit) == targets if self.target_unit is None else None


def refit(kind: HeadClass, features: Array, targets: Array, *, classification: bool, seed: int) -> Head:
    """Fit the best head of its class to ``features (N, d)``."""
    from sklearn import clone
    from sklearn.model_selection import GridSearchCV, KFold, StratifiedKFold

    unit, target_unit = _unit(features), None if classification else _unit(targets)
    x, y = features / unit, targets if target_unit is None else targets / target_unit
    head, step = _pipeline(classification)
    make = partial(_last_step, kind, classification)
    folds = (StratifiedKFold if classification else KFold)(FOLDS, shuffle=True, random_state=seed)
    in_a_fold = len(x) - len(x) // FOLDS

    def score(estimator: Any, unseen: Array, truth: Array) -> float:
        """Of a fold: the sum, so that every item counts alike."""
        return -float(_losses(estimator, unseen, truth, None if classification else 1.0).sum())

    grid = {step: [make(penalty, in_a_fold, seed) for penalty in PENALTIES]}
    with _quietly():
        search = GridSearchCV(head, grid, scoring=score, cv=folds, refit=False, error_score="raise").fit(x, y)
        penalty = PENALTIES[search.best_index_]  # the largest of equals
        starts = [make(penalty, len(x), seed + restart) for restart in range(RESTARTS[kind])]
        fitted = [clone(head).set_params(**{step: start}).fit(x, y) for start in starts]
    best = 0 if len(fitted) == 1 else int(np.argmin([_objective(estimator) for estimator in fitted]))
    return Head(fitted[best], unit, target_unit, penalty)


def require_items_per_class(targets: Array, labels: Array) -> None:
    """Every fold of the cross-validation must see every class."""
    counts = {label: int((targets == label).sum()) for label in labels.tolist()}
    rare = {label: count for label, count in counts.items() if count < FOLDS}
    if rare:
        raise ValueError(
            f"the heads are fitted with {FOLDS}-fold cross-validation, but of some classes fewer than {FOLDS} items "
            f"are held out for them (label: items): {rare}; give more items, raise held_out=, or leave them out"
        )


def _unit(x: Array) -> Array:
    """The largest value of each column: squares of small or large units would leave the range of numbers."""
    largest = np.abs(x).max(0)
    return np.where(largest > 0, largest, 1.0)


def _pipeline(classification: bool) -> tuple[Any, str]:
    """What is standardised and then fitted, and how to set its last step."""
    from sklearn.compose import TransformedTargetRegressor
    from sklearn.pipeline import Pipeline
    from sklearn.preprocessing import StandardScaler

    pipeline = Pipeline([("scale", StandardScaler()), ("fit", None)])
    if classification:
        return pipeline, "fit"
    return TransformedTargetRegressor(pipeline, transformer=StandardScaler()), "regressor__fit"


def _last_step(kind: HeadClass, classification: bool, penalty: float, items: int, seed: int) -> Any:
    from sklearn.linear_model import LogisticRegression, Ridge
    from sklearn.neural_network import MLPClassifier, MLPRegressor

    if kind == "linear":
        return LogisticRegression(C=1 / (penalty * items), max_iter=1000) if classification else Ridge(penalty * items)
    network = MLPClassifier if classification else MLPRegressor
    return network(hidden_layer_sizes=(HIDDEN,), solver="lbfgs", alpha=penalty * items, max_iter=300, random_state=seed)


def _losses(estimator: Any, x: Array, targets: Array, target_unit: Array | float | None) -> Array:
    if target_unit is not None:
        error = estimator.predict(x).reshape(targets.shape) * target_unit - targets
        squares: Array = np.square(error).reshape(len(error), -1).mean(1)
        return squares
    label = np.searchsorted(estimator.classes_, targets)
    nats: Array = -np.log(np.clip(estimator.predict_proba(x)[np.arange(len(x)), label], LEAST_PROBABILITY, 1))
    return nats


def _objective(estimator: Any) -> float:
    return float(getattr(estimator, "regressor_", estimator)[-1].loss_)


@contextmanager
def _quietly() -> Iterator[None]:
    from sklearn import config_context
    from sklearn.exceptions import ConvergenceWarning
    from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

    with threadpool_limits(1), config_context(assume_finite=True), warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # validation judges a head, finished or not
        yield
