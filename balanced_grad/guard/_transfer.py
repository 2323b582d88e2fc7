from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

ROWS = ("start", "train", "held_out", "noise", "count")  # what is kept of each loss


class Transfer:
    """How much of what each loss gained in training carries over to held-out items.

        ρ = (L_0 - H + z s) / (L_0 - T)   within [0, 1]

    ``T`` and ``H`` are moving averages of the loss on training batches and on held-out ones, ``L_0`` is where both
    started and ``s`` the standard error of ``T - H``. Until training has gained more than ``z s``, or in the
    first checks, there is nothing to judge and ``ρ`` is 1.

    Nothing here waits for the device. A non-finite value, or a loss that is missing, leaves what is known of that
    loss as it is.

    Args:
        decay: of the moving averages, per check, bias corrected.
        confidence: ``z``: how many standard errors speak for the loss.
        warm_up: number of checks in which ``ρ`` is 1.
    """

    def __init__(self, decay: float, confidence: float, warm_up: int) -> None:
        self.decay = decay
        self.confidence = confidence
        self.warm_up = warm_up
        self._names: tuple[str, ...] = ()
        self._known: Tensor | None = None  # (ROWS, K)

    def observe(self, train: Mapping[str, Tensor], held_out: Mapping[str, Tensor]) -> None:
        """Take in the mean training loss since the last check and the held-out loss of this one, ``()`` each."""
        known = self._grown(tuple(name for name in train if name in held_out), next(iter(held_out.values())))
        absent = known.new_full((), torch.nan)
        now_train, now_held_out = (
            torch.stack([seen.get(name, absent).to(known) for name in self._names]) for seen in (train, held_out)
        )
        start, train_mean, held_out_mean, noise, count = known
        first = count == 0
        weight = (1 - self.decay) / (1 - self.decay ** (count + 1))  # of this check in a bias-corrected average
        deviation = (now_train - train_mean).square() + (now_held_out - held_out_mean).square()
        # The first check has no deviation: the average of the deviations starts with the second.
        late = (1 - self.decay) / (1 - self.decay ** count.clamp_min(1))
        after = torch.stack(
            [
                torch.where(first, (now_train + now_held_out) / 2, start),
                torch.lerp(train_mean, now_train, weight),
                torch.lerp(held_out_mean, now_held_out, weight),
                torch.where(first, 0, torch.lerp(noise, deviation, late)),
                count + 1,
            ]
        )
        ok = (now_train + now_held_out).isfinite()
        self._known = torch.where(ok, after, known)

    def ratios(self) -> dict[str, Tensor]:
        """``ρ`` of each loss seen so far, ``()``."""
        if self._known is None:
            return {}
        start, train, held_out, noise, count = self._known
        past = self.decay**count
        share = (1 - self.decay) / (1 + self.decay) * (1 + past) / (1 - past)  # variance of an average over that of one
        slack = self.confidence * (noise * share).sqrt()
        gained = start - train
        judged = (gained > slack) & (count > self.warm_up)
        ratio = ((start - held_out + slack) / torch.where(judged, gained, 1)).clamp(0, 1)
        return dict(zip(self._names, torch.where(judged, ratio, 1).unbind(), strict=True))

    def _grown(self, names: tuple[str, ...], like: Tensor) -> Tensor:
        """What is known, with a column of zeros for each new loss."""
        new = tuple(name for name in names if name not in self._names)
        self._names += new
        if self._known is None:
            self._known = torch.zeros(len(ROWS), 0, device=like.device)
        if new:
            self._known = torch.cat([self._known, self._known.new_zeros(len(ROWS), len(new))], dim=1)
        return self._known.to(like.device)

    def state(self) -> dict[str, Any]:
        """For a checkpoint."""
        return {"names": list(self._names), "known": self._known}

    def load(self, state: Mapping[str, Any]) -> None:
        """What ``state`` gave."""
        self._names, self._known = tuple(state["names"]), state["known"]
