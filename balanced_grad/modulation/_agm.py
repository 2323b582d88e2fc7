from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from balanced_grad.balancer import Balancer
from balanced_grad.capture import eager, weighted
from balanced_grad.checks import described, scalar
from balanced_grad.labels import class_loss
from balanced_grad.modulation._comparison import across_ranks
from balanced_grad.modulation._shapley import shapley
from balanced_grad.records import Problem, Weighting
from balanced_grad.state import Stateful

Muted = Callable[[tuple[str, ...]], Tensor]


class AGM(Stateful, Balancer):
    """Adaptive gradient modulation: the logits' Shapley share of each modality learns faster where it lags.

        φ_m = Shapley value of modality m in the logits f;  for two:  φ_a = ½ (f(a, v) - f(0, v) + f(a, 0)),
              so that Σ_m φ_m = f(a, v)
        s_m = L(φ_m, y)
        r_m = exp(M / (M - 1) (mean s - s_m)),   τ_m = the same of the running means of s
        κ_m = exp(α min(τ_m - r_m, limit)),   the factor on the gradient that flows back into φ_m

    ``logits`` takes the ordinary forward's logits and a callback for the passes with modalities muted, and returns
    the same logits with that gradient behind them. With ``d`` the gradient at the logits, the full pass of two
    modalities receives ``(κ_a + κ_v)/2 d``, the one with audio alone ``(κ_a - κ_v)/2 d``, the other its negative.
    So no parameter groups are needed and no optimizer cancels it by parameter; the price is the muted passes, 2
    for two modalities and 6 for three.

    Args:
        modalities: names, in any order.
        alpha: ``α ≥ 0``. Default 1.5 (CREMA-D); the author's settings are 2.5 for AV-MNIST and 4 to 6 for UR-FUNNY.
        limit: largest ``τ - r``. Default 10, as released for CREMA-D; 7 for UR-FUNNY, none (``math.inf``) elsewhere.
        loss: ``(logits, labels) -> scalar`` that scores a share. Default: cross-entropy, labels of -100 left out.

    In a step in which a modality has no running mean yet, as in the first one, every ``κ`` is 1. A score that is
    not finite enters no running mean; the factor of one that is NaN is 1, that of an infinite one its limit. The rule
    depends on the unit of ``loss``: standardise the targets of a regression.

    Raises:
        ValueError: for fewer than two modalities or a name twice, a negative ``alpha`` or ``limit``, muted logits of
            another shape, a ``loss`` that is not one number.

    Source: Li et al., "Boosting Multi-modal Model Performance with Adaptive Gradient Modulation" (2023), and its
    released code, with ``f(nothing) = 0`` for three modalities, muted passes in eval mode, and the whole model's
    gradient clipped to norm 1 when the head's exceeds 1. It clamps the right class's probability at 1e-8 and begins
    with running means of 0, ``τ = 1``; we do neither.

    Examples:
        >>> import torch
        >>> import balanced_grad as bg
        >>> inputs = {"audio": torch.ones(4, 3), "video": torch.ones(4, 5)}
        >>> labels = torch.tensor([0, 1, 0, 1])
        >>> encoders = torch.nn.ModuleDict({name: torch.nn.Linear(x.shape[1], 2) for name, x in inputs.items()})
        >>> def model(present):
        ...     return sum(encoders[name](x if name in present else torch.zeros_like(x)) for name, x in inputs.items())
        >>> balancer = bg.AGM(("audio", "video"))
        >>> logits = balancer.logits(model(("audio", "video")), model, labels)
        >>> balancer({"joint": torch.nn.functional.cross_entropy(logits, labels)}).backward()
        >>> balancer.last.to_dict()["coefficients"]
        {'audio': 1.0, 'video': 1.0}
    """

    def __init__(
        self,
        modalities: Sequence[str],
        alpha: float = 1.5,
        *,
        limit: float = 10.0,
        loss: Callable[[Tensor, Tensor], Tensor] = class_loss,
    ) -> None:
        super().__init__()
        names = tuple(modalities)
        if isinstance(modalities, str) or len(set(names)) < max(2, len(names)):
            raise ValueError(f"modalities={modalities!r}: give two or more different names, e.g. ('audio', 'video')")
        for setting, value in (("alpha", alpha), ("limit", limit)):
            if not value >= 0:
                raise ValueError(f"{setting}={value!r}: give a number >= 0")
        self.modalities = names
        self.alpha = alpha
        self.limit = limit
        self.loss = loss
        # No buffers: a half-precision model would round them, and stop counting at 256.
        self.total = torch.zeros(len(names), dtype=torch.float32, device="cpu")  # of the scores of all training steps
        self.count = torch.zeros(len(names), dtype=torch.float32, device="cpu")
        self._latest: tuple[Mapping[str, Tensor], Mapping[str, Tensor]] = {}, {}  # scores, coefficients
        self.register_load_state_dict_pre_hook(_from_buffers)  # type: ignore[no-untyped-call]

    def weigh(self, problem: Problem) -> Weighting:
        """1 for every loss: what is balanced is inside the logits."""
        return Weighting(torch.ones_like(problem.losses), problem.losses.sum())

    @eager
    def logits(self, full: Tensor, muted: Muted, labels: Tensor, present: Sequence[str] | None = None) -> Tensor:
        """The same logits as ``full``, with the modulated gradient behind them.

        Args:
            full: ``(B, ...)`` logits of the ordinary forward.
            muted: ``present -> logits``: run the model with all other modalities muted, for example by zeros, with
                gradients. Called once per non-empty proper subset of the modalities.
            labels: what ``loss`` compares with.
            present: the modalities that this batch has; default: all.
        """
        if not torch.is_grad_enabled():
            return full
        if not callable(muted):
            raise TypeError(
                f"muted is {muted!r}; give a function from the modalities present to logits, such as the muted of "
                "bg.attach(..., mute=...)"
            )
        names = self.modalities if present is None else tuple(name for name in self.modalities if name in present)
        unknown = set(present or ()) - set(self.modalities)
        if unknown or not names:
            raise ValueError(f"present={present!r}: give at least one of {list(self.modalities)} and nothing else")
        subsets, shares = shapley(len(names), full.device)
        passes = [full] + [self._pass(muted, tuple(names[index] for index in subset), full) for subset in subsets[1:]]
        with torch.autocast(full.device.type, enabled=False):
            scores = self._scores(passes, shares, labels, names)
            coefficients = dict(zip(self.modalities, self._coefficients(scores).unbind(), strict=True))
            factors = shares @ torch.stack([coefficients[name] for name in names])
        self._observe(scores)
        row = dict(zip(self.modalities, scores.unbind(), strict=True))
        self._latest = {name: row[name] for name in names}, coefficients
        return weighted(passes[0].detach(), factors, passes)

    def _pass(self, muted: Muted, present: tuple[str, ...], full: Tensor) -> Tensor:
        logits = muted(present)
        if not isinstance(logits, Tensor):
            raise TypeError(
                f"muted({present}) returned {described(logits)}; return the logits, as those of all modalities"
            )
        if logits.shape != full.shape or logits.device != full.device:
            raise ValueError(
                f"the logits with only {list(present)} have shape {tuple(logits.shape)}, "
                f"those of all {tuple(full.shape)}"
                + (f"; they are on {logits.device} and {full.device}" if logits.device != full.device else "")
            )
        if full.requires_grad and not logits.requires_grad:
            self.notices.say(
                "muted",
                f"muted({present}) returned logits without a graph, so AGM's factor does not reach what they are "
                "computed from; run the muted passes with gradients, without no_grad() or detach()",
            )
        return logits

    def forward(
        self, losses: Mapping[str, Tensor | None], features: Mapping[str, Tensor] | None = None, **options: Any
    ) -> Tensor:
        """The scalar to call ``backward()`` on: the plain sum of the losses; see ``Balancer.forward``."""
        scalar: Tensor = super().forward(losses, features, **options)
        if self.last is not None and torch.is_grad_enabled():
            if not self._latest[1]:
                self.notices.say(
                    "logits",
                    "AGM has no logits of this step, so it balances nothing: compute the joint loss from "
                    "balancer.logits(full, muted, labels), before every balancer(losses)",
                )
            self.last = replace(self.last, scores=self._latest[0], coefficients=self._latest[1])
            self._latest = {}, {}
        return scalar

    @torch.no_grad()
    def _scores(self, passes: list[Tensor], shares: Tensor, labels: Tensor, names: tuple[str, ...]) -> Tensor:
        """``(M,)`` loss of each modality's share, NaN for the missing ones; the same in all processes."""
        dtype = torch.promote_types(passes[0].dtype, shares.dtype)
        values = torch.tensordot(shares.t().to(dtype), torch.stack([each.to(dtype) for each in passes]), 1)
        share_of = dict(zip(names, values.unbind(), strict=True))
        row = [self._score(share_of[name], labels) if name in share_of else None for name in self.modalities]
        here = torch.stack([shares.new_full((), torch.nan) if s is None else s.to(shares) for s in row])
        return across_ranks(here, self.processes)

    def _score(self, share: Tensor, labels: Tensor) -> Tensor:
        return scalar(self.loss(share, labels), share, "AGM's loss=", self.notices)

    def _coefficients(self, scores: Tensor) -> Tensor:
        """``(M,)`` factors ``κ``."""
        there = ~scores.isnan()
        self.total, self.count = self.total.to(scores.device), self.count.to(scores.device)
        now, usual = _lead(scores, there), _lead(self.total.to(scores) / self.count.to(scores), there)
        largest = torch.finfo(scores.dtype).max
        excess = _exp_difference(usual, now).clamp(-largest, min(self.limit, largest))
        factors = torch.exp(self.alpha * excess).clamp_max(largest)
        compared = there & (there.sum() > 1) & (~there | (self.count > 0)).all()
        return torch.where(compared, factors, 1)

    def _observe(self, scores: Tensor) -> None:
        if self.training:
            usable = scores.isfinite()  # one infinite score would stay in the sum forever
            self.total = self.total + torch.where(usable, scores, 0)  # not in place: made in any mode
            self.count = self.count + usable

    def state(self) -> dict[str, Any]:
        """Sums and numbers of the scores, for ``state_dict``."""
        return {"modalities": self.modalities, "total": self.total, "count": self.count}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Restore what ``state`` gave."""
        names = tuple(state.get("modalities", self.modalities))
        if names != self.modalities or len(state["total"]) != len(names):
            raise ValueError(f"the state is of an AGM of {names}, this one is of {self.modalities}; name the same ones")
        self.total, self.count = state["total"], state["count"]

    def settings(self) -> dict[str, object]:
        """Its own, and the common ones."""
        return {"modalities": self.modalities, "alpha": self.alpha, "limit": self.limit} | super().settings()


def _from_buffers(_: AGM, state_dict: dict[str, Any], prefix: str, *rest: object) -> None:
    """Read a checkpoint from when sums and numbers were buffers."""
    if f"{prefix}total" in state_dict:
        buffers = {key: state_dict.pop(f"{prefix}{key}").float() for key in ("total", "count")}
        state_dict[f"{prefix}_extra_state"] = buffers


def _lead(losses: Tensor, there: Tensor) -> Tensor:
    """``(M,)`` mean of the others' losses minus the own one, which is ``M/(M-1) (mean - loss)``."""
    others = there & ~torch.eye(len(losses), dtype=torch.bool, device=losses.device)
    ahead = torch.where(others & (losses != losses[:, None]), losses - losses[:, None], 0)  # infinite ones tie
    return ahead.sum(-1) / others.sum(-1).clamp_min(1)


def _exp_difference(first: Tensor, second: Tensor) -> Tensor:
    """``exp(first) - exp(second)``, infinite with the right sign where both are."""
    size = torch.exp(torch.maximum(first, second)) * -torch.expm1(-(first - second).abs())
    return torch.where(first == second, 0, torch.copysign(size, first - second))
