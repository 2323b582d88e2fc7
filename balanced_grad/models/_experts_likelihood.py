"""The loss of a product as a function of its exponents, with its slope and curvature in closed form.

Experts are exponential families, so a product adds up their natural parameters, and that of the prior,

    η(w) = Σ_e w_e η_e + π η_0,   loss(w) = mean( A(η(w)) - <t, η(w)> )

with the log-partition ``A`` and the statistics ``t`` of the labels, in expectation where a share of a label is unknown.
Parameters are taken relative to the label: then ``<t, η>`` is zero, or does not depend on the mean; nothing cancels.
"""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor, nn

from balanced_grad.models._convex import Model
from balanced_grad.models._experts_validation import TINY, Validation


@dataclass(frozen=True)
class Likelihood(ABC):
    """Mean negative log-likelihood, for parameters ``design (E, P, K)`` and ``offset (P, K)`` of ``K`` labels."""

    design: Tensor
    offset: Tensor

    @abstractmethod
    def __call__(self, weights: Tensor) -> Model:
        """The loss near exponents ``(E,)``, in nats."""

    def parameters(self, weights: Tensor) -> Tensor:
        """``η(w)``: ``(P, K)``."""
        return (weights @ self.design.flatten(1)).reshape(self.offset.shape) + self.offset

    def along(self, weights: Tensor) -> Self:
        """The loss as a function ``(1,)`` of a factor of these exponents."""
        return replace(self, design=torch.tensordot(weights[None], self.design, 1))


@dataclass(frozen=True)
class Categorical(Likelihood):
    """``Σ_k s_k log Σ_c exp η_ck``; the shares ``s (K,)`` sum to one where those of the classes do."""

    shares: Tensor

    def __call__(self, weights: Tensor) -> Model:
        logits = self.parameters(weights)
        top = logits.amax(0)
        chances = logits.sub_(top).exp_()  # in place, as below: fresh memory is what takes time
        total = chances.sum(0)
        chances /= total
        away = self.design * chances
        means = away.sum(1)
        torch.sub(self.design, means[:, None], out=away).mul_(chances.mul_(self.shares).sqrt_())
        curvature = away.flatten(1) @ away.flatten(1).T
        return Model(float((top + total.log()) @ self.shares), means @ self.shares, curvature)


@dataclass(frozen=True)
class Gaussian(Likelihood):
    """``½ mean(ε²/p - log p + p v) + constant`` with ``η = (p, ε)``: the precision, and the error times it."""

    variance: Tensor  # (K,): that of a label that is unknown in part
    constant: float

    def __call__(self, weights: Tensor) -> Model:
        precision, pull = self.parameters(weights)
        precisions, pulls = self.design.unbind(1)
        error = pull / precision
        value = 0.5 * float((pull * error - precision.log() + precision * self.variance).mean()) + self.constant
        slope = pulls @ error + 0.5 * precisions @ (self.variance - error.square() - 1 / precision)
        away, ratios = (pulls - error * precisions) / precision.sqrt(), precisions / precision
        return Model(value, slope / len(error), (away @ away.T + 0.5 * ratios @ ratios.T) / len(error))


def likelihood(items: Validation, doubt: float) -> Likelihood:
    """Of labels of which a share ``doubt`` is unknown: any class, either answer, the value of any item."""
    kept = torch.cat([items.present, torch.full_like(items.present[:1], items.prior_weight, dtype=torch.double)])
    outputs = torch.cat([items.outputs, items.prior])
    kept = kept.reshape(*kept.shape, *[1] * (outputs.dim() - 2))
    build = _gaussian if items.task == "regression" else _categorical
    return build(items, outputs, kept, doubt)


def _categorical(items: Validation, outputs: Tensor, kept: Tensor, doubt: float) -> Categorical:
    outputs, values = kept * outputs, items.labels.values
    if items.task == "multilabel":  # two classes per entry
        outputs = torch.stack([torch.zeros_like(outputs), outputs], -1)
        known, unknown = torch.stack([1 - values, values], -1), torch.full_like(outputs[0], 0.5)
    else:
        known = values if items.labels.soft else nn.functional.one_hot(values, outputs.shape[-1]).double()
        allowed = (items.outputs > items.floor).all(0)
        unknown = allowed.double() / allowed.sum(-1, keepdim=True).clamp_min(1)
    shares = ((1 - doubt) * known + doubt * unknown).flatten(0, -2)
    counted = _counted(items)
    shares, outputs = shares[counted].T, outputs.flatten(1, -2)[:, counted].transpose(1, 2)
    total = shares.sum(0)
    relative = outputs - (shares * outputs).sum(1, keepdim=True) / total
    return Categorical(relative[:-1].contiguous(), relative[-1], total / len(total))


def _gaussian(items: Validation, outputs: Tensor, kept: Tensor, doubt: float) -> Gaussian:
    values, counted, _ = items.labels
    told = values if counted is None else values.masked_fill(~counted, torch.nan)
    mean = told.nanmean(0)
    spread = (told - mean).square().nanmean(0)
    label = (1 - doubt) * values + doubt * mean
    variance = (1 - doubt) * (values - label).square() + doubt * ((mean - label).square() + spread)
    means, log_variances = outputs.chunk(2, -1)
    least = log_variances.masked_fill(kept <= 0, torch.inf).amin(0)  # taken out, so nothing overflows
    precisions = kept * torch.where(kept > 0, least - log_variances, 0.0).exp()
    pulls = precisions * (means - label) * (-0.5 * least).exp()
    rows = _counted(items)
    design = torch.stack([precisions, pulls], 1).flatten(2)[..., rows]
    least = least.flatten()[rows]
    variance = variance.flatten()[rows] * (-least).exp()
    experts = design[:-1] + TINY * design[:-1].sum(0)
    return Gaussian(experts, design[-1], variance, 0.5 * (float(least.mean()) + math.log(2 * math.pi)))


def _counted(items: Validation) -> Tensor:
    """Indices ``(K,)`` of the labels that count."""
    values, counted, soft = items.labels
    every = torch.ones(values.shape[: -1 if soft else None], dtype=torch.bool, device="cpu")
    return (every if counted is None else counted).flatten().nonzero()[:, 0]
