import math
import warnings
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from balanced_grad import host
from balanced_grad.balancer import Balancer
from balanced_grad.capture import JOINT, Params
from balanced_grad.checks import refuse
from balanced_grad.host import Number
from balanced_grad.methods._smooth_max import smooth_max, smooth_max_on_host
from balanced_grad.presence import Present, over_items
from balanced_grad.records import Problem, Weighting
from balanced_grad.source import Level
from balanced_grad.state import Stateful


class MIMO(Stateful, Balancer):
    """Joint loss plus a penalty on the smoothed worst uni-modal loss: multi-objective learning without a solver.

        Φ  = L_joint + λ μ log( (1/M) Σ_m exp((L_m - c_m) / μ) )
        ∇Φ = ∇L_joint + λ Σ_m p_m ∇L_m,   p = softmax((L - c) / μ)

    The modality that lags furthest gets the largest weight; one ordinary backward, no per-loss gradients, no
    solver. The lexicographic problem behind it gives the worst modality priority over the fused loss; a global
    minimiser of ``Φ`` is within ``Δ/λ + μ log M`` of the best possible worst loss, where ``Δ`` is what the
    lexicographic solution gives up in the joint loss.

    Source: Fernando et al., "Mitigating Modality Imbalance in Multi-modal Learning via Multi-objective
    Optimization" (2025). Only its abstract and digests could be read: that the method is a plain gradient
    method on the fused loss plus a smooth maximum of the uni-modal losses is stated there; the log-sum-exp
    form, its centring, the constants and schedules are our reading.

    Args:
        penalty: ``λ ≥ 0``. None (default, ours): the number of modalities present, so that the
            total uni-modal weight is that of ``Uniform`` and ``smoothing=math.inf`` is ``Uniform``.
        smoothing: ``μ ≥ 0``, in units of the losses. 0 is the hard maximum (ties share evenly), ``inf``
            equal weights. Default 0.3, for cross-entropy in nats; keep it above the noise of a batch loss.
        ramp_steps: raise the penalty linearly from 0 over so many training steps (0: constant).
        scale_by_penalty: multiply the objective by ``min(1/penalty, 1)``, so that the step does not grow.
        offsets: name -> ``c_m`` subtracted before the maximum; needed where losses have different scales
            or irreducible parts, or the modality with the larger one stays the worst.
        ema: take the weights from an exponential moving average of the losses with this decay in (0, 1), bias
            corrected, instead of from the batch: softmax of noisy losses is biased towards equal weights.
        params, level, include_exclusive, record_gramian: see ``Balancer``.

    A non-finite uni-modal loss is treated as missing in this batch: on the CPU with a warning and outside the
    graph; on other devices, where looking would wait for the device, by weight zero. A step with any non-finite
    loss leaves the moving average as it was.

    Raises:
        ValueError: for a negative penalty or smoothing, a decay outside (0, 1), a loss without an offset; for an option
            that another one makes meaningless.

    Examples:
        >>> import torch
        >>> import balanced_grad as bg
        >>> w = torch.ones(2, requires_grad=True)
        >>> balancer = bg.MIMO(penalty=2.0, smoothing=0.5)
        >>> loss = balancer({"joint": w.sum(), "audio": 2 * w[0], "video": w[1]})
        >>> loss.backward()
        >>> balancer.last.weights
        tensor([1.0000, 1.7616, 0.2384])
        >>> w.grad
        tensor([4.5232, 1.2384])
    """

    def __init__(
        self,
        penalty: float | None = None,
        smoothing: float = 0.3,
        *,
        ramp_steps: int = 0,
        scale_by_penalty: bool = False,
        offsets: Mapping[str, float] | None = None,
        ema: float | None = None,
        params: Params | None = None,
        level: Level = "parameters",
        include_exclusive: bool = False,
        record_gramian: bool = False,
    ) -> None:
        super().__init__(params=params, level=level, include_exclusive=include_exclusive, record_gramian=record_gramian)
        if penalty is not None and not (math.isfinite(penalty) and penalty >= 0):
            raise ValueError(f"penalty={penalty!r}: give a finite number >= 0, or None for the number of modalities")
        if not smoothing >= 0:
            raise ValueError(f"smoothing={smoothing!r}: give a number >= 0 (0: hard maximum, math.inf: equal weights)")
        if not hasattr(ramp_steps, "__index__") or ramp_steps < 0:
            raise ValueError(f"ramp_steps={ramp_steps!r}: give a whole number of steps >= 0")
        if ema is not None and not 0 < ema < 1:
            raise ValueError(f"ema={ema!r}: give a decay between 0 and 1, or None for the losses of the batch")
        if penalty == 0:
            refuse(
                "MIMO",
                "penalty=0 trains the joint loss alone",
                ramp_steps=ramp_steps or None,
                ema=ema,
                offsets=offsets,
            )
        if smoothing == math.inf:
            refuse("MIMO", "smoothing=inf gives all modalities equal weights, whatever their losses", ema=ema)
        self.penalty = penalty
        self.smoothing = smoothing
        self.ramp_steps = ramp_steps
        self.scale_by_penalty = scale_by_penalty
        self.offsets = None if offsets is None else dict(offsets)
        self.ema = ema
        self._steps = 0
        self._averages: dict[str, tuple[Number, Number]] = {}  # decayed sum and count of each modality's losses

    def forward(
        self,
        losses: Mapping[str, Tensor | None],
        features: Mapping[str, Tensor] | None = None,
        *,
        present: Present | None = None,
        **options: Any,
    ) -> Tensor:
        """The scalar to call ``backward()`` on; see ``Balancer.forward``."""
        if isinstance(losses, Mapping):  # else the base says so
            weigh = self.item_weights if torch.is_grad_enabled() else None
            losses = _without_non_finite(over_items(losses, present, weigh))
        scalar: Tensor = super().forward(losses, features, **options)
        return scalar

    def weigh(self, problem: Problem) -> Weighting:
        """1 for the joint loss, ``λ p_m`` for the modalities; the value is ``Φ``."""
        learning = torch.is_grad_enabled() and self.training
        values = problem.losses
        numbers = host.numbers(values)
        losses = dict(zip(problem.names, numbers, strict=True))
        joint = losses.pop(JOINT, 0.0)
        offsets = [self._offset(name) for name in losses]
        if self.ema is not None and learning:
            self._observe(losses, _all_finite(values, numbers), self.ema)
        levels = [self._level(name, loss) for name, loss in losses.items()]
        excess = [level - offset for level, offset in zip(levels, offsets, strict=True)]
        worst, shares, present = _smooth_max(excess, self.smoothing)
        penalty = self._ramp() * (present if self.penalty is None else self.penalty)
        scale = 1 / host.at_least(penalty, 1.0) if self.scale_by_penalty else 1.0
        uni_modal = {name: scale * penalty * share for name, share in zip(losses, shares, strict=True)}
        if learning:
            self._steps += 1
        weights = host.tensor([uni_modal.get(name, scale) for name in problem.names], values)
        if self.ema is not None:
            return Weighting(weights)
        return Weighting(weights, host.tensor([scale * (joint + penalty * worst)], values).squeeze(0))

    def _offset(self, name: str) -> float:
        if self.offsets is None:
            return 0.0
        if name not in self.offsets:
            raise ValueError(f"loss {name!r} has no entry in offsets={self.offsets!r}")
        return self.offsets[name]

    def _level(self, name: str, loss: Number) -> Number:
        """The loss of this modality, or the average of it."""
        if name not in self._averages:
            return loss
        total, count = (host.beside(loss, value) for value in self._averages[name])
        if isinstance(count, Tensor):
            return torch.where(count > 0, total / count, loss)
        return total / count if count > 0 else loss

    def _observe(self, losses: Mapping[str, Number], finite: bool | Tensor, decay: float) -> None:
        """Update the moving averages of the modalities present, unless any loss is non-finite."""
        for name, loss in losses.items():
            total, count = (host.beside(loss, value) for value in self._averages.get(name, (0.0, 0.0)))
            after = decay * total + (1 - decay) * loss, decay * count + (1 - decay)
            if isinstance(finite, Tensor):
                self._averages[name] = torch.where(finite, after[0], total), torch.where(finite, after[1], count)
            elif finite:
                self._averages[name] = after

    def _ramp(self) -> float:
        return min(1.0, self._steps / self.ramp_steps) if self.ramp_steps else 1.0

    def state(self) -> dict[str, Any]:
        """Step count and loss averages, for ``state_dict``."""
        return {"steps": self._steps, "averages": dict(self._averages)}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Restore what ``state`` gave, also in a balancer that has seen no loss yet."""
        if state["averages"] and self.ema is None:
            raise ValueError(
                f"the state holds moving averages of {sorted(state['averages'])}, and this MIMO has ema=None; "
                "build it with the ema of the one that was saved"
            )
        self._steps = state["steps"]
        self._averages = {name: (total, count) for name, (total, count) in state["averages"].items()}

    def settings(self) -> dict[str, object]:
        """Its own, and the common ones."""
        names = ("penalty", "smoothing", "ramp_steps", "scale_by_penalty", "offsets", "ema")
        return {name: getattr(self, name) for name in names} | super().settings()


def _smooth_max(values: list[Number], smoothing: float) -> tuple[Number, list[Number], Number]:
    """Smooth maximum, its gradient and how many values took part."""
    floats = [value for value in values if not isinstance(value, Tensor)]
    if len(floats) == len(values):
        worst, shares = smooth_max_on_host(floats, smoothing)
        return worst, list(shares), float(sum(map(math.isfinite, floats)))
    stacked = torch.stack([value for value in values if isinstance(value, Tensor)])
    value, weights = smooth_max(stacked, smoothing)
    return value, list(weights.unbind()), stacked.isfinite().sum()


def _all_finite(values: Tensor, numbers: list[Number]) -> bool | Tensor:
    return all(map(math.isfinite, numbers)) if host.on_host(values) else values.isfinite().all()


def _without_non_finite(losses: Mapping[str, Tensor | None]) -> Mapping[str, Tensor | None]:
    """Losses on the CPU without the non-finite uni-modal ones; elsewhere as they are, since looking would wait."""
    bad = [
        name
        for name, loss in losses.items()
        if name != JOINT
        and isinstance(loss, Tensor)
        and loss.is_cpu
        and loss.numel() == 1
        and not math.isfinite(loss.item())
    ]
    if not bad or all(name in bad for name, loss in losses.items() if loss is not None):
        return losses  # nothing to leave out, or nothing left: then let the loss scaler see it
    warnings.warn(f"the losses {bad} are not finite; MIMO treats them as missing in this step", stacklevel=4)
    return {name: None if name in bad else loss for name, loss in losses.items()}
