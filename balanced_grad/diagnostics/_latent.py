"""What training on one subset gave, over all seeds."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from balanced_grad.diagnostics._experiment import Outcome
from balanced_grad.diagnostics._items import Array
from balanced_grad.subsets import Subset


@dataclass(frozen=True)
class Latent:
    """What training on one subset gave; means over the seeds.

    Attributes:
        trained_on: the modalities; empty for the best constant.
        losses: ``(seeds, test items)`` test loss of the refitted head.
        risk: its mean, ``R(𝓜)``: cross-entropy in nats or squared error.
        quality: ``η(𝓜) = risk - reference``; the smaller, the better the latent.
        accuracy: percent correct of the refitted head; None for a regression.
        train_loss, test_risk: of the model with its own head; None if it has none.
        head_gap: ``test_risk - risk``: above zero, the latent holds more than the model's own head makes of it.
        width: of the latent.
        parameters: of the model, if it is a module.
        penalties: the L2 penalty that cross-validation chose in each seed.
        encoders: modality -> ``(seeds, test items)`` losses of a head on that modality's features alone; only of the
            model of all modalities, where ``encode`` gives one latent per modality.
    """

    trained_on: Subset
    losses: Array
    risk: float
    quality: float
    accuracy: float | None
    train_loss: float | None
    test_risk: float | None
    head_gap: float | None
    width: float
    parameters: float | None
    penalties: tuple[float, ...]
    encoders: Mapping[str, Array]

    @classmethod
    def of(cls, subset: Subset, outcomes: list[Outcome]) -> "Latent":
        """Average the runs of all seeds."""
        losses = np.stack([run.losses for run in outcomes])
        test_risk = _mean([run.test_risk for run in outcomes])
        correct = [run.correct for run in outcomes]
        risk = float(losses.mean())
        return cls(
            trained_on=subset,
            losses=losses,
            risk=risk,
            quality=risk,
            accuracy=_mean([None if hits is None else 100 * float(hits.mean()) for hits in correct]),
            train_loss=_mean([run.train_loss for run in outcomes]),
            test_risk=test_risk,
            head_gap=None if test_risk is None else test_risk - risk,
            width=float(np.mean([run.width for run in outcomes])),
            parameters=_mean([run.parameters for run in outcomes]),
            penalties=tuple(run.penalty for run in outcomes),
            encoders={name: np.stack([run.encoders[name] for run in outcomes]) for name in outcomes[0].encoders},
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers, ready for JSON; the losses as one mean per seed."""
        out = {**self.__dict__, "trained_on": list(self.trained_on), "penalties": list(self.penalties)}
        out["losses"] = self.losses.mean(1).tolist()
        out["encoders"] = {name: losses.mean(1).tolist() for name, losses in self.encoders.items()}
        return out


def _mean(values: list[Any]) -> float | None:
    return None if any(value is None for value in values) else float(np.mean(values))
