from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from balanced_grad import host
from balanced_grad.host import Number

ENOUGH = 3  # differences of successive checks, from which on their mean is trusted as a noise
AT_START = 10  # checks whose noise is that of the first one


class Track(NamedTuple):
    """What is known of one loss.

    Attributes:
        start: ``L_0``.
        train, held_out: moving averages ``T`` and ``H``.
        last_train, last_held_out: values of the last check.
        noise: moving average of the variance of ``train - held_out`` of one check, from the differences of successive
            checks, in which a trend hardly counts (von Neumann, 1941).
        checks: how many so far.
        start_noise: mean of the same variance over the first checks, in one of which ``L_0`` was measured.
        generalised: 1 from when ``H`` has first been clearly below the start, by three standard errors; 0 before.
    """

    start: Number = 0.0
    train: Number = 0.0
    held_out: Number = 0.0
    last_train: Number = 0.0
    last_held_out: Number = 0.0
    noise: Number = 0.0
    checks: Number = 0.0
    start_noise: Number = 0.0
    generalised: Number = 0.0

    def after(self, train: Number, held_out: Number, decay: float) -> "Track":
        """With one more check; as it is if a value, or its square, is not finite."""
        first, later = self.checks == 0, host.at_least(self.checks, 1.0)
        weight = (1 - decay) / (1 - decay ** (self.checks + 1))  # of this check in a bias-corrected average
        weight_of_noise = (1 - decay) / (1 - decay**later)  # whose average starts with the second check
        jump = (host.square(train - self.last_train) + host.square(held_out - self.last_held_out)) / 2
        early = self.start_noise + (jump - self.start_noise) / later
        new = Track(
            host.where(first, (train + held_out) / 2, self.start),
            self.train + weight * (train - self.train),
            self.held_out + weight * (held_out - self.held_out),
            train,
            held_out,
            host.where(first, jump * 0, self.noise + weight_of_noise * (jump - self.noise)),
            self.checks + 1,
            host.where(first, jump * 0, host.where(self.checks < AT_START, early, self.start_noise)),
            self.generalised,
        )
        fallen = new.is_known() & (new.start - new.held_out > 3 * new.error(decay))
        new = new._replace(generalised=host.where(fallen, jump * 0 + 1, self.generalised))
        finite = host.is_finite(train + held_out + jump)
        return Track(*(host.where(finite, after, before) for after, before in zip(new, self, strict=True)))

    def ratio(self, decay: float, confidence: float, warm_up: int) -> Number:
        """``ρ``; 1 while there is nothing to judge."""
        slack = confidence * self.error(decay)
        gained = self.start - self.train
        judged = (gained > slack) & (self.checks > warm_up) & self.is_known()
        ratio = (self.start - self.held_out + slack) / host.where(judged, gained, 1.0)
        return host.where(judged, host.at_most(host.at_least(ratio, 0.0), 1.0), 1.0)

    def is_known(self) -> Any:
        """Whether there have been enough checks to tell noise from gain."""
        return self.checks > ENOUGH

    def error(self, decay: float) -> Number:
        """Standard error of what was gained: that of ``T - H``, and that of ``L_0``, the mean of two batches."""
        return (self.excess_variance(decay) + self.start_noise / 2) ** 0.5

    def excess_variance(self, decay: float) -> Number:
        """Squared standard error of ``H - T``, which does not depend on the start."""
        past = decay ** host.at_least(self.checks, 1.0)
        share = (1 - decay) / (1 + decay) * (1 + past) / (1 - past)  # variance of an average over that of one check
        return self.noise * share


class Transfer:
    """How much of what each loss gained in training carries over to held-out items.

        ρ = (L_0 - H + z s) / (L_0 - T)   within [0, 1]

    ``T`` and ``H`` are moving averages of the loss on training batches and on held-out ones, ``L_0`` is where both
    started, one check, and ``s`` the standard error of the gains, that of ``L_0`` with it. Until training has gained
    more than ``z s``, or in the first checks, there is nothing to judge and ``ρ`` is 1.

    Nothing here waits for a device. A non-finite value, or a loss that is missing, leaves what is known of that
    loss as it is. ``tracks`` holds what is known, by name.

    Args:
        decay: of the moving averages, per check, bias corrected.
        confidence: ``z``: how many standard errors speak for the loss.
        warm_up: number of checks in which ``ρ`` is 1; at least 3, without which no noise is known.
    """

    def __init__(self, decay: float, confidence: float, warm_up: int) -> None:
        self.decay = decay
        self.confidence = confidence
        self.warm_up = warm_up
        self.tracks: dict[str, Track] = {}

    def observe(self, train: Mapping[str, Tensor], held_out: Mapping[str, Tensor]) -> None:
        """Take in the mean training loss since the last check and the held-out loss of this one, ``()`` each."""
        names = [name for name in train if name in held_out]
        pairs = zip(*(host.numbers(losses[name] for name in names) for losses in (train, held_out)), strict=True)
        for name, (mine, theirs) in zip(names, pairs, strict=True):
            before = Track(*(host.beside(mine, number) for number in self.tracks.get(name, Track())))
            self.tracks[name] = before.after(mine, theirs, self.decay)

    def ratios(self) -> dict[str, Tensor]:
        """``ρ`` of each loss seen so far, ``()``."""
        ratios = {name: t.ratio(self.decay, self.confidence, self.warm_up) for name, t in self.tracks.items()}
        return {name: x if isinstance(x, Tensor) else torch.tensor(x, device="cpu") for name, x in ratios.items()}

    def generalised(self, name: str) -> Tensor:
        """Whether this loss has ever learnt something that carries over; boolean ``()``, false for one never seen."""
        flag = self.tracks.get(name, Track()).generalised
        return flag > 0 if isinstance(flag, Tensor) else torch.tensor(flag > 0, device="cpu")

    def state(self) -> dict[str, Any]:
        """For a checkpoint: nine numbers per loss, ``(9,)`` where they are tensors."""
        return {name: _together(track) for name, track in self.tracks.items()}

    def load(self, state: Mapping[str, Any]) -> None:
        """What ``state`` gave, on whatever device it was."""
        self.tracks = {name: self._restored(numbers) for name, numbers in state.items()}

    def _restored(self, numbers: Iterable[Number]) -> Track:
        numbers = list(numbers)
        if len(numbers) == len(Track._fields):
            return Track(*numbers)
        *same, lowest = numbers  # a state from when the lowest held-out loss was kept, and no noise of the start
        track = Track(*same)
        track = track._replace(start_noise=track.noise)
        return track._replace(generalised=1.0 * (track.start - lowest > 3 * track.error(self.decay)))


def _together(track: Track) -> Tensor | list[Number]:
    tensors = [number for number in track if isinstance(number, Tensor)]
    return torch.stack(tensors) if len(tensors) == len(track) else list(track)
