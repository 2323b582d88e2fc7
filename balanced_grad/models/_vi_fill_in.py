"""The recurrence: a hidden layer from what is known, what is missing from the hidden layer, and again."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from balanced_grad.models._vi_branch import Branch
from balanced_grad.models._vi_presence import Known, where_known

Cut = Literal["state", "prediction"]


class FillIn(NamedTuple):
    """What ``CrossModalVI`` makes of a batch.

    Attributes:
        hidden: ``(B, H)``, the state ``h^K``: the representation that a classifier takes.
        filled: modality -> ``(B, *shape)``: the input where it was known, untouched, else the mean prediction.
        predictions: modality -> decoder output ``(B, width)`` at ``h^K``, of every modality that some item lacks.
        residuals: ``(steps, B)``, ``mean |h^i - h^{i-1}|`` of each step that was run; no gradient.
    """

    hidden: Tensor
    filled: dict[str, Tensor]
    predictions: dict[str, Tensor]
    residuals: Tensor


class Revealed(NamedTuple):
    """Entries of hidden modalities that are shown all the same: ``limit`` bounds their share.

    ``entries`` are ``(B, *entries)`` boolean; ``masks`` the same, broadcasting over the data ``(B, *shape)``. What they
    drive ``h⁰`` with is multiplied by ``gain``.
    """

    limit: float
    inputs: Mapping[str, Tensor]
    entries: Mapping[str, Tensor]
    masks: Mapping[str, Tensor]
    gain: float | Tensor = 1.0

    def mix(self, name: str, x: Tensor) -> Tensor:
        """The prediction, with what is revealed in its place."""
        return torch.where(self.masks[name], self.inputs[name], x) if name in self.masks else x


NOTHING = Revealed(0.0, {}, {}, {})


@dataclass(frozen=True)
class Schedule:
    """How to run the recurrence: see ``CrossModalVI``; ``tolerance`` None never stops early."""

    steps: int
    back_steps: int
    cut: Cut
    damping: float
    tolerance: float | None
    latent: bool
    scaled: bool


class Recurrence:
    """One run over one batch: ``activate`` takes the sum of the drives, ``nothing`` is no drive, zeros ``(B, H)``."""

    def __init__(
        self,
        branches: Mapping[str, Branch],
        activate: Callable[[Tensor], Tensor],
        inputs: Mapping[str, Tensor],
        visible: Mapping[str, Known],
        nothing: Tensor,
        schedule: Schedule,
        revealed: Revealed = NOTHING,
    ) -> None:
        self.branches, self.activate, self.inputs, self.visible = branches, activate, inputs, visible
        self.nothing, self.schedule, self.revealed = nothing, schedule, revealed
        self.missing = [name for name in branches if visible[name] is not True]  # from some item at least
        self.observed = nothing
        for name, flag in visible.items():
            if flag is not False:
                self.observed = self.observed + where_known(flag, branches[name].drive(inputs[name]), nothing)

    def run(self) -> FillIn:
        """``h⁰``, ``K`` steps, and what is read out of the last state."""
        schedule = self.schedule
        steps = schedule.steps if self.missing else 0
        truncated = steps > schedule.back_steps
        hidden = self.start()
        residuals = []
        for left in range(steps, 0, -1):
            # Not no_grad(): autocast of older torch keeps what it cast there, without gradient (pytorch issue 65766).
            cut = truncated and left >= schedule.back_steps + (schedule.cut == "prediction")
            before = hidden.detach() if cut else hidden
            hidden = self.step(before, cut and schedule.cut == "prediction")
            residuals.append((hidden - before).detach().abs().mean(1))
            # On the CPU only: elsewhere looking would wait for the device.
            if schedule.tolerance is not None and hidden.is_cpu and bool(residuals[-1].max() < schedule.tolerance):
                break
        predictions = {name: self.branches[name].predict(hidden) for name in self.missing}
        filled = {name: self.fill(name, predictions.get(name)) for name in self.branches}
        changes = torch.stack(residuals) if residuals else self.nothing.new_zeros(0, len(self.nothing))
        return FillIn(hidden, filled, predictions, changes)

    def start(self) -> Tensor:
        """``h⁰``: what is seen, scaled up for what is not, and what is revealed of the rest."""
        shown = self.nothing
        for name, mask in self.revealed.masks.items():
            entries = torch.where(mask, self.inputs[name], 0.0)
            shown = shown + where_known(self.visible[name], self.nothing, self.branches[name].drive(entries))
        if not self.schedule.scaled:
            return self.activate(self.observed + shown)
        return self.activate(self.observed * self.gain() + shown * self.revealed.gain)

    def gain(self) -> float | Tensor:
        """``(|O| + (M - |O|)(1 - p)) / |O|``, 1 where nothing is seen."""
        flags = self.visible.values()
        count = sum(flag.to(self.nothing) if isinstance(flag, Tensor) else float(flag) for flag in flags)
        some = count.clamp_min(1).unsqueeze(1) if isinstance(count, Tensor) else max(count, 1.0)
        return 1 + (1 - self.revealed.limit) * (len(flags) - some) / some

    def step(self, hidden: Tensor, cut: bool) -> Tensor:
        """``h^{i-1}`` to ``h^i``; cut, the prediction on the way is a constant."""
        drive = self.observed
        for name in self.missing:
            drive = drive + where_known(self.visible[name], self.nothing, self.drive_back(name, hidden, cut))
        after, damping = self.activate(drive), self.schedule.damping
        return after if damping == 0 else torch.lerp(after, hidden, damping)

    def drive_back(self, name: str, hidden: Tensor, cut: bool) -> Tensor:
        """What the prediction of a missing modality drives in turn."""
        branch = self.branches[name]
        if self.schedule.latent:
            features = branch.features(hidden)
            drive: Tensor = branch.up(features.detach() if cut else features)
            return drive
        x = branch.likelihood.mean(branch.predict(hidden))
        x = x.detach() if cut else x
        return branch.drive(self.revealed.mix(name, x))

    def fill(self, name: str, parameters: Tensor | None) -> Tensor:
        """Input where it was seen, mean prediction where not."""
        if parameters is None:
            return self.inputs[name]
        x = self.revealed.mix(name, self.branches[name].likelihood.mean(parameters))
        flag = self.visible[name]
        return x if flag is False else where_known(flag, self.inputs[name], x)
