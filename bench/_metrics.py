"""What published tables report beside the accuracy."""

import numpy as np
import torch
from sklearn.metrics import average_precision_score, roc_auc_score
from torch.nn.functional import nll_loss, one_hot


def mean_average_precision(targets, scores):
    """Mean over labels of the average precision of ``scores (n, C)`` for ``targets (n, C)`` in {0, 1}.

    A label without a positive item has no precision and is left out, as is one without a negative, which all rank
    alike.

    Raises:
        ValueError: where no label is left.
    """
    targets = np.asarray(targets, bool)
    ranked = targets.any(0) & ~targets.all(0)
    if not ranked.any():
        raise ValueError("no label has both positive and negative items; mean average precision has nothing to rank")
    return float(average_precision_score(targets[:, ranked], np.asarray(scores)[:, ranked], average="macro"))


def ranking(p, labels):
    """Area under the ROC and under the precision-recall curve, in percent: one class against the rest, mean over them.

    ``p`` is ``(N, C)``, ``labels`` ``(N,)``; a class that no item or every item has is left out.
    """
    truth = one_hot(labels, p.shape[1]).bool()
    scored = truth.any(0) & ~truth.all(0)
    area = roc_auc_score(truth[:, scored].numpy(), p[:, scored].numpy())
    return 100 * area, 100 * mean_average_precision(truth, p)


def summary(log_p, labels):
    """Accuracy, AUROC and AUPRC in percent, negative log-likelihood in nats."""
    accuracy = 100 * (log_p.argmax(1) == labels).double().mean().item()
    return accuracy, *ranking(log_p.double().exp(), labels), nll_loss(log_p, labels).item()


def vqa_score(predicted, answers):
    """Soft accuracy of visual question answering in percent: ``min(n / 3, 1)`` for an answer ``n`` of ten people gave.

    Args:
        predicted: answers, one per question.
        answers: per question, those of the people asked.

    Source: Antol et al., "VQA: Visual Question Answering" (ICCV 2015), in the form that papers print; the official
    script takes the mean over all subsets of nine people, and cleans the spelling.
    """
    shares = [agreement(one, given) for one, given in zip(predicted, answers, strict=True)]
    return 100 * torch.tensor(shares, dtype=torch.double).mean().item()


def agreement(answer, given):
    """``min(n / 3, 1)`` for an answer that ``n`` of the people asked gave."""
    return min(given.count(answer) / 3, 1.0)
