from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor

from balanced_grad.capture import JOINT, SiteRows
from balanced_grad.evidence import Frame, Opinion, Reduction, Variance, fuse_gradients
from balanced_grad.evidence._history import History, typical_variance
from balanced_grad.records import LinearCall

Precision = Literal["absolute", "relative"]
Unit = Literal["site", "source"]
Joint = Literal["auto", "source", "add"]


class FusedSite(NamedTuple):
    """What became of one site in this step.

    Attributes:
        row: ``(D,)``, times the loss scale, as it goes to ``.grad``.
        sources: positions of the losses that were fused.
        opinion: None where there was one source or none.
        shares: ``(R, D)``, the factor on each source's gradient.
        remember: puts this step into the site's statistics.
    """

    row: Tensor
    sources: list[int]
    opinion: Opinion | None
    shares: Tensor
    remember: Callable[[], None]


@dataclass(frozen=True)
class SiteFusion:
    """How the gradients at one site are fused; see ``BOGC`` for the options."""

    variance: Variance
    kappa: float
    cap: float
    precision: Precision
    unit: Unit
    frame: Frame
    reduction: Reduction
    conservative: bool
    joint: Joint

    def __post_init__(self) -> None:
        for name, allowed in {"precision": Precision, "unit": Unit, "joint": Joint}.items():
            if getattr(self, name) not in get_args(allowed):
                raise ValueError(f"{name}={getattr(self, name)!r}: choose one of {get_args(allowed)}")
        self._fused(torch.zeros(1, 1), torch.zeros(1, 1))  # refuses other values out of range

    def fuse(
        self, site: SiteRows, names: tuple[str, ...], scale: Tensor, history: History, generator: torch.Generator | None
    ) -> FusedSite:
        """Fuse one site's rows, which carry the loss scale ``scale``."""
        sources, added = self._roles(site, names)
        rows = _wide(site.rows)
        plain = rows[added].sum(0) if added else 0.0
        losses = [site.losses[position] for position in sources]
        if len(sources) < 2:
            row = plain + rows[sources].sum(0)
            return FusedSite(row, losses, None, torch.ones_like(rows[sources]), _nothing)
        gradients = (rows if len(sources) == len(rows) else rows[sources]) / scale
        calls = [_unscaled(site.calls[position], scale) for position in sources] if site.calls else []
        known = [names[loss] for loss in losses]
        before = history.rows(known, gradients)
        shapes = [parameter.shape for parameter in next(iter(site.site.heads.values()))]
        moments = self.variance.moments(gradients, calls, shapes, before, generator)
        variance, kept = history.smooth(moments, before)
        after = {**moments.state, **kept}
        if self.precision == "relative":
            signal, kept = history.mean(gradients, before)
            variance, after = variance / signal.square(), after | kept
        variance = variance / typical_variance(variance, per_source=self.unit == "source")
        fused, opinion = self._fused(moments.mean, variance)
        whole = gradients.isfinite()
        row = torch.where(whole.all(0), fused, gradients.sum(0))  # a loss scaler must see what is not finite
        ok = whole.all(1, keepdim=True)
        shares = opinion.belief if self.conservative else opinion.weights
        return FusedSite(
            plain + row * scale,
            losses,
            opinion,
            shares * len(sources) if self.reduction == "sum" else shares,
            lambda: history.update(known, before, after, ok),
        )

    def _roles(self, site: SiteRows, names: tuple[str, ...]) -> tuple[list[int], list[int]]:
        """Positions of the rows that are sources, and of those that are added as they are."""
        modalities = [row for row, loss in enumerate(site.losses) if names[loss] != JOINT]
        joint = [row for row, loss in enumerate(site.losses) if names[loss] == JOINT]
        add = self.joint == "add" or (self.joint == "auto" and len(modalities) > 1)
        return (modalities, joint) if add else (sorted(modalities + joint), [])

    def _fused(self, gradients: Tensor, variance: Tensor) -> tuple[Tensor, Opinion]:
        return fuse_gradients(
            gradients,
            variance,
            kappa=self.kappa,
            cap=self.cap,
            reference=variance.new_ones(()),
            frame=self.frame,
            reduction=self.reduction,
            conservative=self.conservative,
        )


def _unscaled(call: LinearCall, scale: Tensor) -> LinearCall:
    return call._replace(gradients=_wide(call.gradients) / scale)


def _wide(values: Tensor) -> Tensor:
    return values.float() if values.itemsize < 4 else values


def _nothing() -> None:
    pass
