from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from balanced_grad.balancer import Balancer
from balanced_grad.checks import described
from balanced_grad.modulation import ModalityGroups
from balanced_grad.optim._scale_invariance import averaging


class ScaledUpdate:
    """One step of the base optimizer, with its update of a modality's parameters scaled.

        p ← p_before + r f (p_after - p_before)

    with the user's rate ``r`` and the balancer's factor ``f``. ``begin``, once per step and where the step starts from,
    asks for the factors and copies the parameters they name; it copies nothing where there are none. ``finish`` scales.
    Both wait for no device. A factor of one or zero leaves ``p_after`` or ``p_before`` as it is, bit by bit.
    """

    def __init__(
        self, base: Optimizer, balancer: Balancer, modalities: ModalityGroups | None, rates: Mapping[str, float]
    ) -> None:
        self._base = base
        self._balancer = balancer
        self._modalities = modalities
        self._rates = {name: rate for name, rate in rates.items() if rate != 1}
        self._factors: list[Tensor] = []
        self._after: list[Tensor] = []
        self.scales = False
        self._before: list[Tensor] = []
        # One parameter per modality and its version, to notice a base that moves before it evaluates its closure.
        self._still = [(p, p._version) for p in modalities.representatives()] if modalities else []

    @torch.no_grad()
    def begin(self) -> None:
        """Take the factors and rates, and copies of the parameters they name."""
        scales = self._balancer.update_scales()
        if not isinstance(scales, Mapping):
            raise TypeError(
                f"{type(self._balancer).__name__}.update_scales() returned {described(scales)}; return a mapping of "
                "modality -> 0-dimensional tensor, {} for none"
            )
        for name, scale in scales.items():
            self._add(self._parameters(name, scale), scale * self._rates.get(name, 1.0))
        self.scales = bool(self._after)
        for name, rate in self._rates.items():
            if name not in scales and (parameters := self._of(name)):
                self._add(parameters, torch.full((), rate, dtype=torch.float64, device="cpu"))
        if self._after:
            self._refuse_averaging()
        if self._after and any(p._version != version for p, version in self._still):
            raise RuntimeError(
                "the base optimizer moves parameters before it evaluates its closure, as sharpness-aware ones do, so "
                f"{self._who()} cannot scale its update; {self._instead()}"
            )
        self._before = [p.clone(memory_format=torch.preserve_format) for p in self._after]

    @torch.no_grad()
    def finish(self, *_: Any) -> None:
        """Scale what the base optimizer did; a second call does nothing. Takes what a step hook is given."""
        if self._after:
            torch._foreach_lerp_(self._before, self._after, self._factors)  # exact at both ends, unlike before + f Δ
            torch._foreach_copy_(self._after, self._before)
        self._after = []

    def _refuse_averaging(self) -> None:
        kind = averaging(self._base)
        if kind is not None:
            raise RuntimeError(
                f"{kind} keeps averaged weights, which would not know of the factors that {self._who()} puts on its "
                f"update; {self._instead()}, or an optimizer without averages, e.g. torch.optim.AdamW"
            )

    def _who(self) -> str:
        return type(self._balancer).__name__ if self.scales else "rates="

    def _instead(self) -> str:
        return "use target='gradient'" if self.scales else "use a parameter group with an lr of its own"

    def _add(self, parameters: list[Tensor], factor: Tensor) -> None:
        self._after += parameters
        self._factors += _like(factor, parameters)

    def _parameters(self, name: str, scale: object) -> list[Tensor]:
        who = type(self._balancer).__name__
        if self._modalities is None or name not in self._modalities.names:
            whose = "none were given" if self._modalities is None else f"known are {list(self._modalities.names)}"
            raise ValueError(
                f"{who} scales the update of modality {name!r}, whose parameters are not known ({whose}); "
                f"write BalancedOptimizer(..., modalities={{{name!r}: model.{name}_encoder, ...}})"
            )
        if not isinstance(scale, Tensor) or scale.dim():
            what = f"of shape {tuple(scale.shape)}" if isinstance(scale, Tensor) else described(scale)
            raise TypeError(f"the update factor of {name!r} from {who} is {what}; it must be a 0-dimensional tensor")
        return self._of(name)

    def _of(self, name: str) -> list[Tensor]:
        assert self._modalities is not None
        return [_local(p) for p in self._modalities.parameters(name) if p.requires_grad]


def _local(parameter: Tensor) -> Tensor:
    """The parameter without its graph; of a DTensor this process's shard, since scaling acts on each element alone."""
    local: Tensor = parameter.to_local() if hasattr(parameter, "to_local") else parameter
    return local.detach()


def _like(scale: Tensor, parameters: list[Tensor]) -> list[Tensor]:
    """The factor once per parameter, in its dtype and on its device."""
    casts: dict[tuple[torch.device, torch.dtype], Tensor] = {}
    for p in parameters:
        key = (p.device, p.dtype)
        if key not in casts:
            casts[key] = scale.detach().to(*key, non_blocking=scale.is_cpu)
    return [casts[p.device, p.dtype] for p in parameters]
