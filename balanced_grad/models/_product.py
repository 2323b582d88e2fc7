"""Products of predictions and their losses: functions of tensors that know no modules."""

import math

import torch
from torch import Tensor
from torch.nn import functional

from balanced_grad.labels import Labels, Task

_HUGE = 80.0  # log-variance of an expert that says nothing; its precision is still a float32


def normalised(task: Task, output: Tensor) -> Tensor:
    """An expert's raw output in the form that ``pool`` takes, in at least float32; one logit becomes two classes."""
    wide = output.float() if output.itemsize < 4 else output
    if task != "classification":
        return wide
    if wide.shape[-1] == 1:
        wide = torch.cat([torch.zeros_like(wide), wide], -1)
    excluded = wide == -torch.inf  # kept as such where it is all of them, which log_softmax makes NaN
    return wide.log_softmax(-1).masked_fill(excluded, -torch.inf)


def silenced(task: Task, output: Tensor, kept: Tensor) -> Tensor:
    """Outputs with a neutral, finite value wherever ``kept`` is false: neither value nor gradient goes through."""
    kept = kept.reshape(*kept.shape, *[1] * (output.dim() - kept.dim()))
    if task != "regression":
        return torch.where(kept, output, 0.0)
    mean, log_variance = output.chunk(2, -1)
    return torch.cat([torch.where(kept, mean, 0.0), torch.where(kept, log_variance, _HUGE)], -1)


def pool(task: Task, outputs: Tensor, weights: Tensor) -> Tensor:
    """Weighted product ``Π_e p_e^w_e``, normalised.

    Args:
        task: of classification the outputs are log-probabilities, of ``"multilabel"`` logits of Bernoullis, of
            ``"regression"`` means and log-variances side by side.
        outputs: ``(E, B, ..., C)``, finite where the weight is 0.
        weights: ``(E, B)``, not negative, with a positive one for each item.

    Returns:
        ``(B, ..., C)`` in the form of the outputs.
    """
    weights = weights.reshape(*weights.shape, *[1] * (outputs.dim() - 2))
    if task == "regression":
        mean, log_variance = outputs.chunk(2, -1)
        return _gaussian(mean, log_variance, weights)
    total = (weights * outputs).sum(0)
    return total.log_softmax(-1) if task == "classification" else total


def _gaussian(mean: Tensor, log_variance: Tensor, weights: Tensor) -> Tensor:
    """Precisions add up and means count by precision; the smallest variance is taken out, so nothing overflows."""
    heard = log_variance.detach().masked_fill(weights <= 0, torch.inf)
    least = heard.amin(0)
    least = torch.where(least.isinf(), 0.0, least)  # of nobody
    precision = weights * torch.where(weights > 0, least - log_variance, 0.0).exp()
    total = precision.sum(0)
    return torch.cat([(precision * mean).sum(0) / total, least - total.log()], -1)


def mean_loss(task: Task, output: Tensor, labels: Labels, class_weights: Tensor | None = None) -> Tensor:
    """Mean negative log-likelihood in nats of what ``pool`` gives, over the labels that count; 0 where none does.

    ``class_weights`` ``(C,)`` weigh the mean, as those of ``cross_entropy`` do.
    """
    losses = elementwise_losses(task, output, labels, class_weights)
    share = None if class_weights is None or labels.soft else class_weights.to(losses)[labels.values]
    return labels.mean(losses, share)


def elementwise_losses(task: Task, output: Tensor, labels: Labels, class_weights: Tensor | None = None) -> Tensor:
    """Negative log-likelihoods in nats of each item of a classification, or of each entry.

    ``class_weights`` weigh shares of classes here, as those of ``cross_entropy`` do, and indices in the mean.
    """
    values = labels.values
    if task == "classification":
        if labels.soft:
            shares = values if class_weights is None else values * class_weights.to(values)
            return -(shares * output.masked_fill(shares == 0, 0.0)).sum(-1)  # 0 log 0 = 0
        return -output.gather(-1, values.unsqueeze(-1)).squeeze(-1)
    if task == "multilabel":
        return functional.binary_cross_entropy_with_logits(output, values, reduction="none")
    mean, log_variance = output.chunk(2, -1)
    return 0.5 * (math.log(2 * math.pi) + log_variance + ((values - mean) * (-0.5 * log_variance).exp()).square())
