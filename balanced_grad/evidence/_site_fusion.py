from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from balanced_grad.capture import JOINT
from balanced_grad.checks import described, vector
from balanced_grad.choices import check_choice
from balanced_grad.evidence._block_exchange import SiteRows
from balanced_grad.evidence._estimators import MicroBatchVariance, Moments, StepVariance, Variance
from balanced_grad.evidence._history import History, sample, typical_variance
from balanced_grad.evidence._linear import widened
from balanced_grad.evidence._opinions import modality_opinion
from balanced_grad.evidence._precision import precision_evidence
from balanced_grad.kernels import evidential_fuse, moments_update
from balanced_grad.records import LinearCall

Precision = Literal["absolute", "relative"]
Unit = Literal["site", "source"]
Joint = Literal["auto", "source", "add"]


class Observed(NamedTuple):
    """What is known of one site before anything is changed.

    Attributes:
        losses: positions of the losses that are sources; empty if there is only one.
        sources: positions of all of them.
        added: positions of the losses whose gradients are added as they are.
        names: of the sources.
        rows: ``(R, D)`` their gradients, at least float32, times the loss scale.
        plain: ``(A, D)`` gradients of those that are added.
        known: the statistics of these losses before this step.
        moments: of this step; None if the variance is that of the rows over steps.
    """

    losses: list[int]
    sources: list[int]
    added: list[int]
    names: list[str]
    rows: Tensor
    plain: Tensor
    known: dict[str, Tensor]
    moments: Moments | None


class FusedSite(NamedTuple):
    """What became of one site; all but the row are means over its dimensions, or 4096 of them evenly spread.

    Attributes:
        row: ``(D,)`` as it goes to ``.grad``, times the loss scale.
        losses: positions of the losses that were fused; empty if there was only one, and then nothing is reported.
        report: ``(3, R)`` belief, share of the dimensions in which the source has more weight than every other, and
            factor on its gradient.
        uncertainty: ``()``.
    """

    row: Tensor
    losses: list[int]
    report: Tensor | None = None
    uncertainty: Tensor | None = None


@dataclass(frozen=True)
class SiteFusion:
    """How the gradients at one site are fused; see ``BOGC`` for the options."""

    variance: Variance
    kappa: float
    cap: float
    precision: Precision
    unit: Unit
    joint: Joint
    decay: float

    def __post_init__(self) -> None:
        for name, allowed in {"precision": Precision, "unit": Unit, "joint": Joint}.items():
            check_choice(name, getattr(self, name), allowed)
        if not 0 <= self.decay < 1:
            raise ValueError(f"decay={self.decay!r}: give a number in [0, 1)")
        one = torch.ones(1, 1, device="cpu")
        precision_evidence(one, self.kappa, cap=self.cap)  # refuses other values out of range

    @property
    def _over_steps(self) -> StepVariance | None:
        """The estimator, if the variance is that of the rows over steps, which the kernel keeps."""
        return self.variance if isinstance(self.variance, StepVariance) else None

    @property
    def statistics(self) -> str:
        """What the averages over steps are of, in the words of the options: only the same ones can go on."""
        window = f"(count={self.variance.count})" if isinstance(self.variance, MicroBatchVariance) else ""
        return f"variance={type(self.variance).__name__}{window}, precision={self.precision!r}"

    def observe(
        self,
        site: SiteRows,
        names: Sequence[str],
        scale: Tensor,
        history: History,
        generator: torch.Generator | None,
    ) -> Observed:
        """Gradients and variance of one site's sources; changes nothing, but may refuse."""
        sources, added = self._roles(site, names)
        rows = widened(site.rows)
        plain = rows[added]
        rows = rows if len(sources) == len(rows) else rows[sources]
        losses = [site.losses[position] for position in sources]
        beside = [site.losses[position] for position in added]
        present = [names[loss] for loss in losses]
        if len(sources) < 2:
            return Observed([], losses, beside, present, rows, plain, {}, None)
        # The variances of small gradients are beyond float32, and those over steps are made in a pass of its own dtype.
        dtypes = {"variance": torch.float64 if self.variance.linear else rows.dtype}
        if self._over_steps or self.precision == "relative":
            dtypes["mean"] = rows.dtype
        known = history.rows(present, rows, **dtypes)
        if self._over_steps:
            return Observed(losses, losses, beside, present, rows, plain, known, None)
        gradients = rows / scale
        calls = [_unscaled(site.calls[position], scale) for position in sources] if site.calls else []
        shapes = [parameter.shape for parameter in next(iter(site.site.heads.values()))]
        moments = _checked(self.variance.moments(gradients, calls, shapes, known, generator), gradients, self.variance)
        rows = rows if moments.mean is gradients else moments.mean * scale
        return Observed(losses, losses, beside, present, rows, plain, known, moments)

    def fuse(
        self, seen: Observed, scale: Tensor, history: History, factors: Tensor | None = None, *, learning: bool
    ) -> FusedSite:
        """Update the statistics, if ``learning``, and fuse the rows, each times the factor of its loss."""
        rows, known = seen.rows, seen.known
        damped, plain = _damped(rows, factors, seen.sources), _damped(seen.plain, factors, seen.added)
        if not seen.losses:
            return FusedSite(_plus(damped.sum(0), plain), [])
        zeros = rows.sum(1, dtype=torch.float64) * 0  # NaN in the rows where anything is not finite, in one read
        if learning:
            self._update(seen, scale, zeros == 0)
            history.put(seen.names, known)
        variance = known["variance"]
        if self.precision == "relative":
            variance = variance / known["mean"] / known["mean"]
        reference = typical_variance(variance, per_source=self.unit == "source").double().reciprocal()
        row = evidential_fuse(damped, variance, reference.view(-1).squeeze(), kappa=self.kappa, cap=self.cap)
        row.add_(zeros.sum())  # a loss scaler must see it
        return self._reported(_plus(row, plain), seen.losses, variance, reference)

    def _update(self, seen: Observed, scale: Tensor, finite: Tensor) -> None:
        """Take this step into the statistics, in the rows that are ``finite (R,)``."""
        known, rows = seen.known, seen.rows
        if self._over_steps is not None:
            state = known["mean"], known["variance"], known["weight"]
            moments_update(rows, *state, self._over_steps.decay, scale=scale, ok=finite)
            return
        assert seen.moments is not None
        for key, value in seen.moments.state.items():
            old = known.get(key, torch.zeros_like(value))
            known[key] = torch.where(finite.view(-1, *[1] * (value.dim() - 1)), value, old)
        new = seen.moments.variance
        ok = finite & (new.sum(1, dtype=torch.float64) * 0 == 0)
        moments_update(rows, None, known["variance"], known["weight"], self.decay, new_variance=new, ok=ok)
        if self.precision == "relative":
            known["steps"] = known.get("steps", torch.zeros_like(known["weight"]))
            known["steps"] += finite * (1 - known["steps"]) * (1 - self.decay)
            rate = finite * (1 - self.decay) / known["steps"].clamp_min(1e-30)
            known["mean"] += rate[:, None] * (torch.nan_to_num(rows / scale, 0.0, 0.0, 0.0) - known["mean"])

    def _reported(self, row: Tensor, losses: list[int], variance: Tensor, reference: Tensor) -> FusedSite:
        """The row with its report, of a sample: a report of all dimensions would cost more than the pass itself."""
        some = sample(variance).double() * reference
        evidence = precision_evidence(some, self.kappa, reference=some.new_ones(()), cap=self.cap)
        opinion = modality_opinion(evidence)
        most = opinion.weights >= opinion.weights.amax(0)
        leading = (most & (most.sum(0) == 1)).float().mean(1)
        report = torch.stack([opinion.belief.mean(1), leading, opinion.weights.mean(1) * len(variance)])
        return FusedSite(row, losses, report, opinion.uncertainty.mean())

    def _roles(self, site: SiteRows, names: Sequence[str]) -> tuple[list[int], list[int]]:
        """Positions of the rows that are sources, and of those that are added as they are."""
        modalities = [row for row, loss in enumerate(site.losses) if names[loss] != JOINT]
        joint = [row for row, loss in enumerate(site.losses) if names[loss] == JOINT]
        add = self.joint == "add" or (self.joint == "auto" and len(modalities) > 1)
        return (modalities, joint) if add else (sorted(modalities + joint), [])


def _checked(moments: object, gradients: Tensor, variance: Variance) -> Moments:
    """What an estimator returned, which may be the user's own."""
    who = f"{type(variance).__name__}.moments()"
    if not isinstance(moments, Moments) or not isinstance(moments.state, Mapping):
        what = described(moments.state if isinstance(moments, Moments) else moments)
        raise TypeError(f"{who} returned {what}; return evidence.Moments(mean, variance, state), with state a mapping")
    shape, count = gradients.shape, len(gradients)
    mean = moments.mean if moments.mean is gradients else vector(moments.mean, shape, gradients, who)
    for key, value in moments.state.items():
        if not isinstance(value, Tensor) or not value.dim() or len(value) != count:
            raise ValueError(
                f"{who} returned {described(value)} as state[{key!r}]; return a row per loss, ({count}, ...)"
            )
    like = gradients
    if isinstance(moments.variance, Tensor) and moments.variance.dtype is torch.float64:
        like = gradients.new_empty(0, dtype=torch.float64)  # a variance has twice the range of its gradient
    return Moments(mean, vector(moments.variance, shape, like, who), moments.state)


def _plus(row: Tensor, plain: Tensor) -> Tensor:
    return row + plain.sum(0) if len(plain) else row


def _damped(rows: Tensor, factors: Tensor | None, losses: list[int]) -> Tensor:
    """Each row times the factor of its loss."""
    if factors is None or not losses:
        return rows
    return rows * torch.stack([factors[loss] for loss in losses]).to(rows).unsqueeze(1)


def _unscaled(call: LinearCall, scale: Tensor) -> LinearCall:
    return call._replace(gradients=widened(call.gradients) / scale)
