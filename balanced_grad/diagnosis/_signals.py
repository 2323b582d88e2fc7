"""What the gradients of a few batches say, and which method that suggests."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from balanced_grad.capture import JOINT
from balanced_grad.diagnosis._advice import advice
from balanced_grad.diagnosis._estimates import Estimate, plain
from balanced_grad.diagnosis._gradients import Batch, measured
from balanced_grad.diagnosis._text import cell, laid_out, number, short
from balanced_grad.running import evaluating, keeping_random_state

Mapped = Mapping[str, Tensor | None]


@dataclass(frozen=True)
class LossSignal:
    """One loss, in means over the batches.

    Attributes:
        level: its value.
        slope: how fast it changes along a step of plain gradient descent on the sum of all losses, ``-<g_k, Σ_j g_j>``
            per unit of learning rate; above zero, the sum makes it worse.
        shared: its share of the gradient norms where losses meet.
        own: its share of the gradient norms at parameters that one loss alone reaches, such as heads.
        encoder: share of the joint loss's gradient norm over all encoders that arrives at this one; None for the joint
            loss, or where no parameter is reached by just these two.
        overfit: held-out loss less training loss, with a 95 % interval from the spread over the batches; None with
            fewer than two batches of each.
    """

    level: float
    slope: float
    shared: float
    own: float
    encoder: float | None
    overfit: Estimate | None

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers, ready for JSON."""
        return plain(self.__dict__)  # type: ignore[no-any-return]


@dataclass(frozen=True)
class TrainingSignals:
    """What a few batches show of a training: ``print`` it.

    Attributes:
        losses: name -> its ``LossSignal``.
        cosines: pairs of losses -> mean cosine of their gradients where losses meet, of those that are not zero.
        batches: how many were looked at.
        advice: what that suggests, a sentence each, with the numbers it rests on and no more than
            ``docs/results.md`` supports.
    """

    losses: Mapping[str, LossSignal]
    cosines: Mapping[tuple[str, str], float]
    batches: int
    advice: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers, ready for JSON; a pair of losses is ``"audio, video"``."""
        out: dict[str, Any] = plain({**self.__dict__, "losses": dict(self.losses), "cosines": {}})
        out["cosines"] = {", ".join(pair): value for pair, value in self.cosines.items()}
        return out

    def blocks(self) -> list[str | list[list[str]]]:
        """Paragraphs, and tables as rows of cells, of what ``print`` shows."""
        rows = [["loss", "level", "slope", "shared, %", "own, %", "encoder, %", "held-out less training"]]
        for name, each in self.losses.items():
            shares = [_percent(share) for share in (each.shared, each.own, each.encoder)]
            overfit = "-" if each.overfit is None else cell(each.overfit)
            rows.append([short(name), number(each.level), number(each.slope, sign="+"), *shares, overfit])
        pairs = [["cosine of", "and", "mean"]]
        pairs += [[short(a), short(b), f"{value:+.2f}"] for (a, b), value in self.cosines.items()]
        return [f"Training signals of {self.batches} batches.", rows, *([pairs] if pairs[1:] else []), *self.advice]

    def __str__(self) -> str:
        return laid_out(self.blocks())


def training_signals(
    model: nn.Module,
    losses: Callable[[Any], Mapped],
    batches: Iterable[Any],
    held_out: Iterable[Any] | None = None,
) -> TrainingSignals:
    """Look at the gradients of a few batches without a step: who pulls where, who is behind, who memorises.

    One backward per loss and batch. The model is in eval mode meanwhile; modes, batch statistics, ``.grad`` and random
    generators are left as they were.

    Args:
        model: whose modes are kept; its losses are taken in eval mode.
        losses: from a batch to its losses by name, as for a balancer: ``lambda batch: model.losses(*batch)``.
        batches: a few training batches, such as ``itertools.islice(loader, 8)``.
        held_out: as many held-out ones, for the over-fit of each loss.

    Raises:
        TypeError, ValueError, RuntimeError: for no batch, batches with other losses than the first, and what a
            balancer refuses.

    Examples:
        >>> import torch
        >>> from balanced_grad.diagnosis import training_signals
        >>> _ = torch.manual_seed(0)
        >>> model = torch.nn.ModuleDict({"audio": torch.nn.Linear(3, 1), "video": torch.nn.Linear(3, 1)})
        >>> def losses(batch):
        ...     out = {name: model[name](x) for name, x in batch.items()}
        ...     joint = (out["audio"] + 0.1 * out["video"] - 1).square().mean()
        ...     return {"joint": joint} | {name: (z - 1).square().mean() for name, z in out.items()}
        >>> batches = [{"audio": torch.randn(8, 3), "video": torch.randn(8, 3)} for _ in range(3)]
        >>> signals = training_signals(model, losses, batches)
        >>> signals.losses["audio"].encoder > 0.8 > 0.2 > signals.losses["video"].encoder
        True
    """
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    with evaluating(model), keeping_random_state(device):
        with torch.enable_grad():
            found = [measured(losses(batch)) for batch in batches]
        with torch.no_grad():
            unseen = [_values(losses(batch)) for batch in held_out or ()]
    if not found:
        raise ValueError("there is no batch; give a few, such as itertools.islice(loader, 8)")
    names = found[0].names
    for batch in [one.names for one in found] + [tuple(one) for one in unseen]:
        if set(batch) != set(names):
            raise ValueError(
                f"a batch has the losses {list(batch)}, the first one {list(names)}; give batches with all"
            )
    signals = {name: _signal(place, found, unseen) for place, name in enumerate(names)}
    cosines = {
        (first, second): value
        for a, first in enumerate(names)
        for b, second in enumerate(names)
        if a < b and (value := _cosine(found, a, b)) is not None
    }
    return TrainingSignals(signals, cosines, len(found), tuple(advice(signals, cosines)))


def _signal(place: int, found: list[Batch], unseen: list[dict[str, float]]) -> LossSignal:
    name = found[0].names[place]
    levels = np.array([float(batch.values[place]) for batch in found])
    slope = -float(np.mean([float(batch.shared[place].sum() + batch.own[place]) for batch in found]))
    overfit = _difference(np.array([values[name] for values in unseen]), levels) if unseen else None
    encoder = [_share(batch.encoders, name) for batch in found if name in batch.encoders]
    return LossSignal(
        float(levels.mean()),
        slope,
        float(np.mean([_part(batch.shared.diagonal().tolist(), place) for batch in found])),
        float(np.mean([_part(batch.own.tolist(), place) for batch in found])),
        float(np.mean(encoder)) if encoder and name != JOINT else None,
        overfit,
    )


def _part(squares: list[float], place: int) -> float:
    """A norm's part of all norms; 0 where all are zero."""
    norms = np.sqrt(squares)
    return float(norms[place] / norms.sum()) if norms.sum() > 0 else 0.0


def _share(squares: Mapping[str, float], name: str) -> float:
    return _part(list(squares.values()), list(squares).index(name))


def _cosine(found: list[Batch], first: int, second: int) -> float | None:
    values = []
    for batch in found:
        size = float(batch.shared[first, first] * batch.shared[second, second]) ** 0.5
        if size > 0:
            values.append(float(batch.shared[first, second]) / size)
    return float(np.mean(values)) if values else None


def _values(losses: Mapped) -> dict[str, float]:
    return {name: float(loss) for name, loss in losses.items() if loss is not None}


def _difference(unseen: np.ndarray[Any, Any], seen: np.ndarray[Any, Any]) -> Estimate | None:
    """Difference of two means of batches, with Welch's interval; None of a single batch."""
    from scipy.stats import t

    value = float(unseen.mean() - seen.mean())
    if min(len(unseen), len(seen)) < 2:
        return None
    parts = [(x.var(ddof=1) / len(x), len(x) - 1) for x in (unseen, seen)]
    error = sum(variance for variance, _ in parts)
    if error == 0:
        return Estimate(value, value, value)
    freedom = error**2 / sum(variance**2 / count for variance, count in parts)
    half = float(t.ppf(0.975, freedom) * error**0.5)
    return Estimate(value, value - half, value + half)


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.0f}"
