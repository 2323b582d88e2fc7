from collections.abc import Callable, Mapping
from typing import Any, Literal

import torch
from torch import Tensor

from balanced_grad.balancer import Balancer
from balanced_grad.capture import JOINT, Losses
from balanced_grad.choices import check_choice
from balanced_grad.guard._seen import Seen
from balanced_grad.guard._transfer import Transfer
from balanced_grad.guard._wrapper import Wrapper
from balanced_grad.presence import Present
from balanced_grad.state import Stateful

GuardTarget = Literal["auxiliary", "encoder"]
HeldOutLosses = Callable[[], Mapping[str, Tensor | None]]


class HeldOut(Stateful, Wrapper):
    """A guard around any balancer: a modality that only memorises loses its weight.

    Training signals tell how fast a modality fits, not what it learns. Every ``every`` steps the losses of one batch
    of held-out items, taken from the training part, tell how much of that carries over:

        ρ_m = (L_m,0 - H_m + z s_m) / (L_m,0 - T_m)   within [floor, 1]

    with the moving averages ``T`` of the training loss and ``H`` of the held-out one, their common start ``L_0``, and
    the standard error ``s`` of the gain, with that of ``L_0`` in it: noise alone cuts a factor below a half in at most
    0.3 % of simulated runs of 100 checks. The weight that the method chooses for the loss of modality ``m`` is
    multiplied by ``ρ_m``; the joint loss keeps its own. A held-out loss that falls again brings the modality back.

    With ``target="encoder"`` the update of encoder ``m`` is multiplied as well, joint gradient and all, by
    ``max(ρ_m, 2 ρ_joint - 1)``, for good from when the held-out joint loss has first been three standard errors
    below its start. While the joint prediction generalises, or has not begun to, it may go on teaching an encoder whose
    own loss does not carry over, as it must where only the modalities together say something.

    Args:
        balancer: the method to guard.
        held_out: called for the losses of a held-out batch, without a graph; a ``BalancedOptimizer`` around this
            guard calls it after its step whenever one is due. None (default): call ``observe`` yourself.
        every: training steps between two checks. Default 10 (ours): one more forward pass in ten steps.
        target: ``"auxiliary"`` (default), the uni-modal losses; ``"encoder"``, the encoders' updates as well, which
            needs a ``BalancedOptimizer`` that knows the ``modalities``, and ``"joint"`` among the losses on both sides.
        floor: smallest factor. Default 0.
        decay: of the moving averages, per check, bias corrected. Default 0.9 (ours).
        confidence: ``z``. Default 1 (ours).
        warm_up: checks in which all factors are 1. Default 10 (ours). The first three count in any case: the noise is
            not known yet.

    All processes of a group get the same factors, from the means of their losses. Nothing waits for the device. A
    held-out loss that is not finite, or missing, leaves the factor of its modality as it is.

    Raises:
        TypeError, ValueError: for something else than a balancer, a guard inside a guard, an option out of range.
        RuntimeError: for ``target="encoder"`` without a ``BalancedOptimizer``; for ``observe`` before the first
            training step.

    Source: ours. The ratio is the complement of gradient blending's over-fitting to generalisation, taken online and in
    one run (Wang et al., "What Makes Training Multi-modal Classification Networks Hard?", 2020).

    Examples:
        >>> import torch
        >>> import balanced_grad as bg
        >>> w = torch.nn.Parameter(torch.tensor([4.0, 4.0]))
        >>> guard = bg.HeldOut(bg.Uniform(), every=1, warm_up=2)
        >>> optimizer = bg.BalancedOptimizer(torch.optim.SGD([w], lr=0.2), guard)
        >>> for _ in range(12):
        ...     guard({"audio": w[0].abs(), "video": w[1].abs()}).backward()
        ...     optimizer.step()
        ...     optimizer.zero_grad()
        ...     if guard.due:
        ...         guard.observe({"audio": w[0].abs(), "video": 8 - w[1].abs()})  # video learns nothing that lasts
        >>> guard.last.to_dict()["factors"]
        {'audio': 1.0, 'video': 0.0}
    """

    def __init__(
        self,
        balancer: Balancer,
        held_out: HeldOutLosses | None = None,
        *,
        every: int = 10,
        target: GuardTarget = "auxiliary",
        floor: float = 0.0,
        decay: float = 0.9,
        confidence: float = 1.0,
        warm_up: int = 10,
    ) -> None:
        if not isinstance(balancer, Balancer) or isinstance(balancer, HeldOut):
            what = "another HeldOut" if isinstance(balancer, HeldOut) else f"a {type(balancer).__name__}"
            raise TypeError(f"balancer is {what}; give the method to guard, such as bg.Uniform()")
        if held_out is not None and not callable(held_out):
            raise TypeError(f"held_out is a {type(held_out).__name__}; give a function that returns losses, or None")
        if not (hasattr(every, "__index__") and hasattr(warm_up, "__index__") and every >= 1 and warm_up >= 0):
            raise ValueError(f"every={every!r}, warm_up={warm_up!r}: give whole numbers, steps >= 1 and checks >= 0")
        check_choice("target", target, GuardTarget)
        if not 0 <= floor <= 1 or not 0 <= decay < 1 or not confidence >= 0:
            raise ValueError(
                f"floor={floor!r}, decay={decay!r}, confidence={confidence!r}: give floor in [0, 1], decay in [0, 1) "
                "and confidence >= 0"
            )
        super().__init__()
        self.held_out = held_out
        self.every = every
        self.target: GuardTarget = target
        self.floor = floor
        self.transfer = Transfer(decay, confidence, warm_up)
        self._steps = self._checks = 0
        self._due_at = 1
        self._seen = Seen(every)  # training losses since the last check
        self._scales: dict[str, Tensor] = {}
        self._wrapped = False
        self.balancer = balancer

    @property
    def due(self) -> bool:
        """Whether it is time for ``observe``: after the first training step, then ``every`` so many."""
        return self._steps >= self._due_at

    @property
    def checks(self) -> int:
        """Number of checks so far, also after a resume: which held-out batch is next."""
        return self._checks

    def forward(
        self, losses: Mapping[str, Tensor | None], features: Mapping[str, Tensor] | None = None, **options: Any
    ) -> Tensor:
        """The scalar of the balancer inside, for a batch of training items; see its ``forward``."""
        if self.target == "encoder" and not self._wrapped:
            raise RuntimeError(
                "target='encoder' multiplies what the optimizer does, so the optimizer must be wrapped: write "
                "bg.BalancedOptimizer(optimizer, guard, modalities={...}), or use target='auxiliary'"
            )
        scalar = super().forward(losses, features, **options)
        if torch.is_grad_enabled() and self.training:
            assert self.last is not None
            self._seen.add(self.last.names, self.last.losses)
            self._steps += 1
        return scalar

    @torch.inference_mode(False)  # what is kept must serve in training
    @torch.no_grad()
    def observe(self, losses: Mapping[str, Tensor | None], present: Present | None = None) -> None:
        """Take in the losses of one held-out batch, of which any graph is ignored, and choose the factors anew.

        Call it under ``torch.no_grad()``, with the model in the state in which it is to be judged. A modality that is
        missing keeps its factor. Losses per item ``(B,)`` count by their mean over the items ``present``.
        """
        with self.processes.together():
            given = Losses.check(losses, present)
            if not self._seen:
                raise RuntimeError("observe() before the first training step: there is nothing to compare with yet")
            train, held_out = self._seen.means(), dict(zip(given.names, given.values().unbind(), strict=True))
        if self.processes.size > 1:
            train, held_out = self._over_processes(train, held_out)
        self._warn_of_unknown(held_out)
        self.transfer.observe(train, held_out)
        self._seen.clear()
        self._checks += 1
        self._due_at = self._steps + self.every
        self._choose()

    def _warn_of_unknown(self, held_out: Mapping[str, Tensor]) -> None:
        """Held-out losses without a training loss, unless that one may just have been missing so far."""
        unknown = [name for name in held_out if name not in self._seen.names]
        unmatched = [name for name in sorted(self._seen.names) if name not in held_out]
        if unknown and (unmatched or self._checks > 0):
            self.notices.say(
                ("held out", *unknown),
                f"the held-out losses {unknown} are ignored, because no training loss has that name; those are "
                f"{sorted(self._seen.names)}: give both the same names",
            )

    def check(self) -> bool:
        """Observe what ``held_out`` returns if a check is due, and say whether it was."""
        if self.held_out is None:
            raise RuntimeError("check() calls held_out, and there is none: write HeldOut(balancer, held_out=...)")
        if not self.due:
            return False
        with torch.no_grad():
            self.observe(self.held_out())
        return True

    def _over_processes(
        self, train: dict[str, Tensor], held_out: dict[str, Tensor]
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        both = {f"T {name}": loss for name, loss in train.items()} | {f"H {name}": x for name, x in held_out.items()}
        names, means = self.processes.of_all(tuple(both), torch.stack(list(both.values())))
        mean = dict(zip(names, means.unbind(), strict=True))
        train, held_out = ({key[2:]: x for key, x in mean.items() if key[0] == kind} for kind in "TH")
        return train, held_out

    def _choose(self) -> None:
        """The factors on the weights and, where encoders are the target, on their updates: they change here only."""
        ratios = self.transfer.ratios()
        joint = ratios.pop(JOINT, None)
        factors = {name: x.clamp_min(self.floor) for name, x in ratios.items()}
        self.factors = factors
        if self.target == "encoder" and joint is not None:
            started = self.transfer.generalised(JOINT)
            self._scales = {
                name: torch.where(started, torch.maximum(factor, 2 * joint - 1), 1.0)
                for name, factor in factors.items()
            }

    def update_scales(self) -> Mapping[str, Tensor]:
        """The factors of the balancer inside, times those of the guard where encoders are its target."""
        scales = dict(super().update_scales())
        for name, factor in self._scales.items():
            scales[name] = scales[name].to(factor) * factor if name in scales else factor
        return scales

    def resolve_target(self, scale_invariant: bool) -> None:
        """Called by a ``BalancedOptimizer``."""
        self._wrapped = True
        super().resolve_target(scale_invariant)

    def end_step(self) -> None:
        """Called by a ``BalancedOptimizer`` when it has stepped: runs a check that is due."""
        super().end_step()
        if self.held_out is not None:
            self.check()

    def state(self) -> dict[str, Any]:
        """What is known of each loss, the steps since the last check, and counts, for ``state_dict``."""
        counts = {"steps": self._steps, "checks": self._checks, "due_at": self._due_at}
        return counts | {"transfer": self.transfer.state(), "seen": self._seen.state()}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Restore what ``state`` gave."""
        self._steps, self._due_at = state["steps"], state["due_at"]
        self._checks = state.get("checks", 0)
        self.transfer.load(state["transfer"])
        self._seen.load(state.get("seen", {"names": list(state["transfer"]), "steps": [], "losses": None}))
        self._scales = {}
        self._choose()

    def settings(self) -> dict[str, object]:
        """Its own; those of the balancer inside are shown with it."""
        mine: dict[str, object] = {"every": self.every, "target": self.target, "floor": self.floor}
        return mine | {name: getattr(self.transfer, name) for name in ("decay", "confidence", "warm_up")}
