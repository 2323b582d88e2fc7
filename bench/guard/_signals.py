"""Signals that could steer: from the losses, or the gradients, of held-out items to a factor per modality.

``T`` is the training loss, ``H`` the held-out one, ``θ_m`` the parameters of encoder ``m``; averages are moving ones
over checks, with decay 0.9.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from bench.accuracy._objectives import JOINT
from bench.guard._average import Average

WARM_UP = 10  # checks before a signal that needs a standard error is trusted, as in the library's guard


@dataclass(frozen=True)
class Check:
    """What a check sees: losses of a training batch and of a held-out one, with their graphs, and the encoders."""

    encoders: Mapping[str, Sequence[Tensor]]
    train: Mapping[str, Tensor]
    held_out: Mapping[str, Tensor]

    def gradient(self, loss: Tensor, name: str) -> Tensor:
        """Of a loss at an encoder, in one vector."""
        return flat(torch.autograd.grad(loss, self.encoders[name], retain_graph=True))

    def losses(self) -> Iterator[tuple[str, float, float]]:
        """Modality, training loss, held-out loss."""
        for name in self.encoders:
            yield name, self.train[name].item(), self.held_out[name].item()


def flat(tensors: Sequence[Tensor]) -> Tensor:
    """Detached copy in one vector."""
    return torch.cat([x.detach().reshape(-1) for x in tensors])


class Signal(ABC):
    """``factors`` multiply the weights of the uni-modal losses, ``scales`` the updates of the encoders."""

    def __init__(self) -> None:
        self.factors: dict[str, float] = {}
        self.scales: dict[str, float] = {}

    @abstractmethod
    def check(self, check: Check) -> None:
        """Choose anew."""


class Blending(Signal):
    """Gradient blending, online: ``w_m ∝ G_m / O_m²``, the largest 1.

    ``G = max(H_0 - H, 0)`` is what the held-out loss fell since the first check,
    ``O = max((H - T) - (H_0 - T_0), 1e-3)`` how far the gap has opened. Where no held-out loss has fallen, all are 1.
    """

    def __init__(self) -> None:
        super().__init__()
        self._start: dict[str, tuple[float, float]] = {}
        self._now: dict[str, tuple[Average, Average]] = {}

    def check(self, check: Check) -> None:
        worth = {}
        for name, train, held_out in check.losses():
            t0, h0 = self._start.setdefault(name, (train, held_out))
            t, h = self._now.setdefault(name, (Average(), Average()))
            t.add(train)
            h.add(held_out)
            opened = max((h.mean - t.mean) - (h0 - t0), 1e-3)
            worth[name] = max(h0 - h.mean, 0.0) / opened**2
        best = max(worth.values())
        self.factors = {name: x / best if best else 1.0 for name, x in worth.items()}


class Marginal(Signal):
    """What carries over of the *recent* gain: ``(H_slow - H_fast) / (T_slow - T_fast)`` within [0, 1], averaged.

    Slow averages have decay 0.98, fast ones 0.9. While training itself gains less than 0.01, the factor stays.
    """

    def __init__(self) -> None:
        super().__init__()
        self._averages: dict[str, tuple[Average, Average, Average, Average]] = {}

    def check(self, check: Check) -> None:
        for name, train, held_out in check.losses():
            new = Average(0.98), Average(), Average(0.98), Average()
            slow_t, fast_t, slow_h, fast_h = known = self._averages.setdefault(name, new)
            for average, x in zip(known, (train, train, held_out, held_out), strict=True):
                average.add(x)
            gained, carried = slow_t.mean - fast_t.mean, slow_h.mean - fast_h.mean
            factor = self.factors.setdefault(name, 1.0)
            if gained > 1e-2:
                self.factors[name] = 0.9 * factor + 0.1 * min(max(carried / gained, 0.0), 1.0)


class Inner(Signal):
    """Base of signals from ``∂L_m/∂θ_m`` in training and ``∂H_joint/∂θ_m``: does the own loss help the joint one?"""

    def __init__(self) -> None:
        super().__init__()
        self._averages: dict[str, Average] = {}

    def product(self, own: Tensor, joint: Tensor) -> Tensor:
        """What is averaged."""
        return own @ joint

    def factor(self, average: Average) -> float:
        """From the average to the factor."""
        raise NotImplementedError

    def check(self, check: Check) -> None:
        for name in check.encoders:
            own, joint = (check.gradient(loss, name) for loss in (check.train[name], check.held_out[JOINT]))
            average = self._averages.setdefault(name, Average())
            average.add(self.product(own, joint).item())
            self.factors[name] = self.factor(average)


class Cosine(Inner):
    """``cos(∂L_m/∂θ_m, ∂H_joint/∂θ_m)``, averaged, within [0, 1]."""

    def product(self, own: Tensor, joint: Tensor) -> Tensor:
        return torch.nn.functional.cosine_similarity(own, joint, dim=0)

    def factor(self, average: Average) -> float:
        return min(max(average.mean, 0.0), 1.0)


class Agreement(Inner):
    """0 where the mean of ``⟨∂L_m/∂θ_m, ∂H_joint/∂θ_m⟩`` is below -2 standard errors, else 1."""

    def factor(self, average: Average) -> float:
        return 0.0 if average.count > WARM_UP and average.mean < -2 * average.error else 1.0


class Credit(Signal):
    """What each encoder's movement did to the held-out joint loss; acts on the encoder's update.

        x = -½ (g_before + g_now) · Δθ_m,   g = ∂H_joint/∂θ_m

    between two checks: to second order, the fall of that loss which the movement of this encoder alone explains. Where
    the mean of ``x`` is below -1.5 standard errors the scale is multiplied by 0.8, otherwise it recovers:
    ``min(1, 1.05 scale + 0.005)``. ``total`` is the sum of ``x`` over training.
    """

    def __init__(self) -> None:
        super().__init__()
        self.total: dict[str, float] = {}
        self._before: dict[str, tuple[Tensor, Tensor]] = {}
        self._averages: dict[str, Average] = {}

    def check(self, check: Check) -> None:
        for name, parameters in check.encoders.items():
            now = check.gradient(check.held_out[JOINT], name), flat(parameters)
            scale = self.scales.setdefault(name, 1.0)
            if name in self._before:
                gradient, where = self._before[name]
                x = -0.5 * ((gradient + now[0]) @ (now[1] - where)).item()
                self.total[name] = self.total.get(name, 0.0) + x
                average = self._averages.setdefault(name, Average())
                average.add(x)
                if average.count >= WARM_UP:
                    harms = average.mean < -1.5 * average.error
                    self.scales[name] = 0.8 * scale if harms else min(1.0, 1.05 * scale + 0.005)
            self._before[name] = now
