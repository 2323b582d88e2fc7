"""What a method sees, what it decides, and what is kept of a step."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from balanced_grad.caching import cached


@dataclass(frozen=True)
class Step:
    """What a balancer saw and decided in one step: detached tensors on the losses' device, never synchronised.

    Attributes:
        names: the losses present, in the user's order; everything else is aligned with it.
        losses: ``(K,)`` values.
        weights: ``(K,)`` weight of each loss in the gradient; None until a Gramian method's ``backward()``.
        gramian: ``(K, K)`` float64 inner products of the per-loss gradients, loss scale divided out, over the
            parameters where losses meet; None where nothing was captured.
        problems: one label per problem where the parameters were partitioned (``groups=``): ``weights`` is then
            ``(S, K)`` and ``gramian`` ``(S, K, K)``. Empty for a single problem. Without names in ``params=``, a
            tensor's label is its shape and a number, by first meeting: ``(8, 5)#1``.
        reach: per problem, the indices of the losses that meet there. In a row of ``weights (S, K)`` only theirs are
            applied; where no problem is, every loss has its plain gradient. Empty where nothing was captured.
        scores: modality -> score ``()``, for a method that modulates encoders; empty for others.
        coefficients: modality -> factor ``()`` on its encoder's gradient or update, beside the scores.
        trust: of a method that weighs evidence, what it believed; None for others.
        factors: loss -> factor ``()`` of a guard on the weight that the method chose; it is in ``weights``.
        rates: modality -> learning rate relative to the optimizer's, a plain number: ``BalancedOptimizer(rates=)``.
    """

    names: tuple[str, ...]
    losses: Tensor
    weights: Tensor | None = None
    gramian: Tensor | None = None
    problems: tuple[str, ...] = ()
    reach: tuple[tuple[int, ...], ...] = ()
    scores: Mapping[str, Tensor] = field(default_factory=dict)
    coefficients: Mapping[str, Tensor] = field(default_factory=dict)
    trust: "Trust | None" = None
    factors: Mapping[str, Tensor] = field(default_factory=dict)
    rates: Mapping[str, float] = field(default_factory=dict)

    def to_dict(self) -> dict[str, dict[str, float]]:
        """Losses, weights, scores, coefficients, factors and rates by name, for logging; waits for the device.

        Of several problems, those under ``"weights"`` are ``mean_weights()``, beside one ``"weights/<label>"`` each
        with the losses that meet there.
        """
        out = {"losses": dict(zip(self.names, self.losses.tolist(), strict=True))}
        by_name = {"scores": self.scores, "coefficients": self.coefficients, "factors": self.factors}
        for kind, values in by_name.items():
            if values:
                out[kind] = dict(zip(values, torch.stack(list(values.values())).tolist(), strict=True))
        if self.rates:
            out["rates"] = dict(self.rates)
        if self.weights is None:
            return out
        mean = self.mean_weights()
        assert mean is not None
        out["weights"] = dict(zip(self.names, mean.tolist(), strict=True))
        if self.weights.dim() > 1:
            every = tuple(range(len(self.names)))
            reach = self.reach or (every,) * len(self.problems)
            for label, losses, weights in zip(self.problems, reach, self.weights.tolist(), strict=True):
                out[f"weights/{label}"] = {self.names[loss]: weights[loss] for loss in losses}
        if self.trust is not None:
            out["belief"] = dict(zip(self.names, self.trust.belief.tolist(), strict=True))
            out["leading"] = dict(zip(self.names, self.trust.leading.tolist(), strict=True))
            out["belief"]["uncertainty"] = float(self.trust.uncertainty)
        return out

    def norm_shares(self) -> Tensor | None:
        """``(K,)``, or ``(S, K)`` of each problem: the part that each has of all squared gradient norms.

        Waits for no device. None without a Gramian, NaN where all gradients are 0.
        """
        if self.gramian is None:
            return None
        squares = self.gramian.diagonal(dim1=-2, dim2=-1)
        return squares / squares.sum(-1, keepdim=True)

    def cosines(self) -> Tensor | None:
        """``(K, K)``, or ``(S, K, K)``: cosines between the gradients; waits for no device. None without a Gramian."""
        if self.gramian is None:
            return None
        norms = self.gramian.diagonal(dim1=-2, dim2=-1).sqrt()
        return (self.gramian / norms.unsqueeze(-1) / norms.unsqueeze(-2)).clamp(-1, 1)

    def mean_weights(self) -> Tensor | None:
        """``(K,)`` weight of each loss: the mean over the problems in which it meets others; waits for no device.

        1, that of its plain gradient, for a loss that is in none of several problems. None before there are weights.
        """
        if self.weights is None or self.weights.dim() == 1:
            return self.weights
        if not self.reach:
            return self.weights.mean(0) if len(self.weights) else self.weights.new_ones(len(self.names))
        there = _membership(self.reach, len(self.names), self.weights.device)
        count = there.sum(0)
        return torch.where(count > 0, torch.where(there, self.weights, 0).sum(0) / count, 1)


@cached(256)
def _membership(reach: tuple[tuple[int, ...], ...], count: int, device: torch.device) -> Tensor:
    """``(S, K)`` bool, which loss is in which problem: made once, since a copy to a GPU waits for it."""
    return torch.tensor([[loss in losses for loss in range(count)] for losses in reach], device=device)


@dataclass(frozen=True)
class Problem:
    """What a method may look at to choose its weights.

    Attributes:
        names: the ``K`` losses present in this batch; ``"joint"`` is the fused one.
        losses: ``(K,)`` detached values, at least float32.
        gramian: ``(K, K)`` float64 for methods that need it, else None; ``(S, K, K)`` for a partition into ``S``
            problems, where a loss that does not reach a problem has a zero row.
        reach: per problem, the indices of the losses that meet in it: a structural fact, known without looking at
            numbers. A loss that is not among them has a zero row there and nothing to be balanced against.
    """

    names: tuple[str, ...]
    losses: Tensor
    gramian: Tensor | None = None
    reach: tuple[tuple[int, ...], ...] = ()


class Weighting(NamedTuple):
    """What a method decides: ``weights (K,)`` and, where it is not their weighted sum, the objective's value."""

    weights: Tensor
    value: Tensor | None = None

    def objective(self, problem: Problem) -> Tensor:
        """Value of what the method minimises."""
        return torch.dot(self.weights, problem.losses.to(self.weights)) if self.value is None else self.value


class Trust(NamedTuple):
    """Means over the dimensions in which losses were fused as sources of evidence.

    Of a layer with more than 4096 parameters, over about 4096 of them, evenly spread.

    Attributes:
        belief: ``(K,)`` mass committed to each loss; 0 for one that was no source.
        uncertainty: ``()`` mass left open; 1 where nothing was fused.
        leading: ``(K,)`` share of a source's dimensions in which it has more weight than every other.
        weights: ``(K,)`` mean factor on the loss's gradient; 1 for one that was no source.
    """

    belief: Tensor
    uncertainty: Tensor
    leading: Tensor
    weights: Tensor


class LinearCall(NamedTuple):
    """What one loss saw of a linear layer in one batch: ``N`` items, ``T`` positions (or calls of the layer) of each.

    Attributes:
        gradients: ``(N, T, C)`` gradient of the loss at the outputs.
        inputs: ``(N, T, F)``.
        outputs: ``(N, T, C)``; None where the model overwrote them in place.
    """

    gradients: Tensor
    inputs: Tensor
    outputs: Tensor | None = None
