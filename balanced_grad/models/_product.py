"""Products of predictions and their losses: functions of tensors that know no modules."""

import math

import torch
from torch import Tensor
from torch.nn import functional

from balanced_grad.methods import Task

IGNORED = -100  # torch's label of what does not count
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
    least = log_variance.detach().amin(0)
    precision = weights * (least - log_variance).exp()
    total = precision.sum(0)
    return torch.cat([(precision * mean).sum(0) / total, least - total.log()], -1)


def mean_loss(
    task: Task, output: Tensor, targets: Tensor, counted: Tensor | None = None, class_weights: Tensor | None = None
) -> Tensor:
    """Mean negative log-likelihood in nats of what ``pool`` gives, over the items counted; 0 where none is.

    ``counted`` is ``(B,)``, boolean; ``class_weights`` ``(C,)`` weigh the mean, as those of ``cross_entropy`` do.
    """
    losses = elementwise_losses(task, output, targets)
    share = torch.ones_like(losses)
    if task == "classification":
        if class_weights is not None:
            share = class_weights.to(share)[targets.clamp_min(0)]
        share = share.masked_fill(targets == IGNORED, 0.0)
    if counted is not None:
        share = share * counted.reshape(-1, *[1] * (losses.dim() - 1))
    total = share.sum()
    return (losses * share).sum() / torch.where(total > 0, total, 1.0)


def elementwise_losses(task: Task, output: Tensor, targets: Tensor) -> Tensor:
    """Negative log-likelihoods in nats in the shape of the targets; 0 where a class is -100."""
    if task == "classification":
        return functional.nll_loss(output.movedim(-1, 1), targets, reduction="none", ignore_index=IGNORED)
    targets = targets.to(output.dtype)
    if task == "multilabel":
        return functional.binary_cross_entropy_with_logits(output, targets, reduction="none")
    mean, log_variance = (x.reshape(targets.shape) for x in output.chunk(2, -1))
    return 0.5 * (math.log(2 * math.pi) + log_variance + (targets - mean).square() * (-log_variance).exp())
