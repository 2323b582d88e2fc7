"""Mean average precision, by label and by query."""

import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.metrics.pairwise import cosine_similarity
from sklearn.multiclass import OneVsRestClassifier

from bench._metrics import mean_average_precision

DECAY = 1e-3  # L2 of the source, per item (our reading)


def fit_labels(representation, targets):
    """One logistic regression per label that is not constant: returns a function to scores ``(n, C)``."""
    targets = np.asarray(targets, bool)
    varied = np.flatnonzero(targets.any(0) & ~targets.all(0))
    model = LogisticRegression(C=1 / (DECAY * len(targets)), solver="newton-cholesky")
    model = OneVsRestClassifier(model).fit(representation, targets[:, varied].astype(int))

    def scores(of):
        out = np.zeros((len(of), targets.shape[1]))
        out[:, varied] = model.predict_proba(of)[:, -len(varied) :]  # of one label also its complement
        return out

    return scores


def cosine_map(queries, database, query_targets, database_targets):
    """Mean over queries of the average precision of a database ranked by cosine; relevant is what shares a label.

    Queries to which nothing, or everything, is relevant are left out.
    """
    relevant = np.asarray(query_targets, int) @ np.asarray(database_targets, int).T > 0
    return mean_average_precision(relevant.T, cosine_similarity(queries, database).T)
