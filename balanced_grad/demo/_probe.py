"""How much of each modality an encoder has learned to show: logistic regression on its frozen features."""

import torch
from torch import Tensor

from balanced_grad.demo._data import Array, Dataset, Split
from balanced_grad.demo._model import LateFusion


def probe(model: LateFusion, data: Dataset) -> tuple[dict[str, float], dict[str, float]]:
    """Percent correct by modality on validation and test items, of probes fitted to the training items."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler
    from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

    train, val, test = (_features(model, split) for split in (data.train, data.val, data.test))
    labels, val_labels, test_labels = (_host(s.labels) for s in (data.train, data.val, data.test))
    on_val, on_test = {}, {}
    with threadpool_limits(1):  # the problem is small: more threads only get into each other's way
        for i, name in enumerate(model.names):
            fitted = make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000)).fit(train[i], labels)
            on_val[name] = 100 * float(fitted.score(val[i], val_labels))
            on_test[name] = 100 * float(fitted.score(test[i], test_labels))
    return on_val, on_test


@torch.no_grad()
def _features(model: LateFusion, split: Split) -> list[Array]:
    return [_host(x) for x in model.features(split.inputs)]


def _host(x: Tensor) -> Array:
    return x.cpu().numpy()
