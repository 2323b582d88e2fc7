import math
import warnings
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from balanced_grad.balancer import Balancer, Level, Params, Problem, Weighting
from balanced_grad.capture import JOINT
from balanced_grad.methods._smooth_max import smooth_max


class MIMO(Balancer):
    r"""Joint loss plus a penalty on the smoothed worst uni-modal loss: multi-objective learning without a solver.

    .. math::
        \Phi = L_\text{joint} + \lambda \Big( \mu \log \frac1M \sum_m \exp \frac{L_m - c_m}{\mu} \Big), \qquad
        \nabla \Phi = \nabla L_\text{joint} + \lambda \sum_m p_m \nabla L_m, \quad
        p = \operatorname{softmax}\!\Big(\frac{L - c}{\mu}\Big)

    The modality that lags furthest gets the largest weight; one ordinary backward, no per-loss gradients, no
    solver. The lexicographic problem behind it gives the worst modality priority over the fused loss; a global
    minimiser of :math:`\Phi` is within :math:`\Delta/\lambda + \mu \log M` of the best possible worst loss.

    Source: Fernando et al., "Mitigating Modality Imbalance in Multi-modal Learning via Multi-objective
    Optimization" (2025). Only its abstract and digests could be read: that the method is a plain gradient
    method on the fused loss plus a smooth maximum of the uni-modal losses is stated there; the log-sum-exp
    form, its centring, the constants and schedules are our reading.

    Args:
        penalty: :math:`\lambda \ge 0`. None (default, ours): the number of modalities present, so that the
            total uni-modal weight is that of :class:`Uniform` and ``smoothing=math.inf`` is ``Uniform``.
        smoothing: :math:`\mu \ge 0`, in units of the losses. 0 is the hard maximum (ties share evenly), ``inf``
            equal weights. Default 0.3, for cross-entropy in nats; keep it above the noise of a batch loss.
        ramp_steps: raise the penalty linearly from 0 over so many training steps (0: constant).
        scale_by_penalty: multiply the objective by ``min(1/penalty, 1)``, so that the step does not grow.
        offsets: name -> :math:`c_m` subtracted before the maximum; needed where losses have different scales
            or irreducible parts, or the modality with the larger one is for ever the worst.
        ema: take the weights from an exponential moving average of the losses with this decay in (0, 1), bias
            corrected, instead of from the batch: softmax of noisy losses is biased towards equal weights.
        params, level, include_exclusive, record_gramian: see :class:`Balancer`.

    A non-finite uni-modal loss is treated as missing in this batch: on the CPU with a warning and outside the
    graph; on other devices, where looking would wait for the device, by weight zero. A step with any non-finite
    loss leaves the moving average as it was.

    Raises:
        ValueError: for a negative penalty or smoothing, a decay outside (0, 1), a loss without an offset.

    Example:
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
        if ramp_steps < 0:
            raise ValueError(f"ramp_steps={ramp_steps!r}: give a number of steps >= 0")
        if ema is not None and not 0 < ema < 1:
            raise ValueError(f"ema={ema!r}: give a decay between 0 and 1, or None for the losses of the batch")
        self.penalty = penalty
        self.smoothing = smoothing
        self.ramp_steps = ramp_steps
        self.scale_by_penalty = scale_by_penalty
        self.offsets = None if offsets is None else dict(offsets)
        self.ema = ema
        self._steps = 0
        self._averages: dict[str, Tensor] = {}  # name -> (decayed sum of losses, decayed count)

    def forward(self, losses: Mapping[str, Tensor | None], features: Mapping[str, Tensor] | None = None) -> Tensor:
        """The scalar to call ``backward()`` on; see :meth:`Balancer.forward`."""
        scalar: Tensor = super().forward(_without_non_finite(losses), features)
        return scalar

    def weigh(self, problem: Problem) -> Weighting:
        r"""1 for the joint loss, :math:`\lambda p_m` for the modalities; the value is :math:`\Phi`."""
        learning = torch.is_grad_enabled() and self.training
        if self.ema is not None and learning:
            self._observe(problem, self.ema)
        names = [name for name in problem.names if name != JOINT]
        by_loss = dict(zip(problem.names, problem.losses.unbind(), strict=True))
        one = torch.ones_like(problem.losses[0])
        joint = by_loss.get(JOINT, torch.zeros_like(one))
        if not names:
            return Weighting(one[None], joint)
        excess = torch.stack([self._level(name, by_loss[name]) for name in names])
        worst, shares = smooth_max(excess, self.smoothing)
        penalty = self._ramp() * (excess.isfinite().sum() if self.penalty is None else one * self.penalty)
        scale = (1 / penalty).clamp_max(1) if self.scale_by_penalty else one
        weights = dict(zip(names, (penalty * shares).unbind(), strict=True))
        if learning:
            self._steps += 1
        return Weighting(
            scale * torch.stack([weights.get(name, one) for name in problem.names]),
            scale * (joint + penalty * worst) if self.ema is None else None,
        )

    def _level(self, name: str, loss: Tensor) -> Tensor:
        """How far this modality lags: its loss, or the average of it, above its offset."""
        if name in self._averages:
            total, count = self._averages[name].to(loss.device).unbind()
            loss = torch.where(count > 0, total / count, loss).to(loss.dtype)
        if self.offsets is None:
            return loss
        if name not in self.offsets:
            raise ValueError(f"loss {name!r} has no entry in offsets={self.offsets!r}")
        return loss - self.offsets[name]

    def _observe(self, problem: Problem, decay: float) -> None:
        """Update the moving averages of the modalities present, unless any loss is non-finite."""
        finite = problem.losses.isfinite().all()
        for name, loss in zip(problem.names, problem.losses.unbind(), strict=True):
            if name == JOINT:
                continue
            before = self._averages.get(name, torch.zeros(2)).to(loss.device, torch.float64)
            after = decay * before + (1 - decay) * torch.stack([loss, torch.ones_like(loss)])
            self._averages[name] = torch.where(finite, after, before)

    def _ramp(self) -> float:
        return min(1.0, self._steps / self.ramp_steps) if self.ramp_steps else 1.0

    def get_extra_state(self) -> dict[str, Any]:
        """Step count and loss averages, for ``state_dict``."""
        return {"steps": self._steps, "averages": dict(self._averages)}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Restore what :meth:`get_extra_state` gave, also in a balancer that has seen no loss yet."""
        self._steps = state["steps"]
        self._averages = dict(state["averages"])

    def extra_repr(self) -> str:
        """Settings."""
        return (
            f"penalty={self.penalty}, smoothing={self.smoothing}, ramp_steps={self.ramp_steps}, "
            f"scale_by_penalty={self.scale_by_penalty}, offsets={self.offsets}, ema={self.ema}" + self._base_repr()
        )


def _without_non_finite(losses: Mapping[str, Tensor | None]) -> Mapping[str, Tensor | None]:
    """Losses on the CPU without the non-finite uni-modal ones; elsewhere as they are, since looking would wait."""
    bad = [
        name
        for name, loss in (losses.items() if isinstance(losses, Mapping) else ())
        if name != JOINT and isinstance(loss, Tensor) and loss.device.type == "cpu" and not loss.isfinite().all()
    ]
    if not bad or all(name in bad for name, loss in losses.items() if loss is not None):
        return losses  # nothing to leave out, or nothing left: then let the loss scaler see it
    warnings.warn(f"the losses {bad} are not finite; MIMO treats them as missing in this step", stacklevel=4)
    return {name: None if name in bad else loss for name, loss in losses.items()}
