"""From numbers to a sentence each; only what the study in docs/results.md supports."""

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from balanced_grad.capture import JOINT

if TYPE_CHECKING:
    from balanced_grad.diagnosis._signals import LossSignal

BEHIND = 2.0  # times the smallest loss of a modality
CONFLICT = -0.1  # a cosine that is no noise of a few batches


def advice(losses: Mapping[str, "LossSignal"], cosines: Mapping[tuple[str, str], float]) -> Iterator[str]:
    """What to try, with the numbers it rests on."""
    modalities = {name: each for name, each in losses.items() if name != JOINT}
    if len(modalities) < 2:
        given = "no modality has" if not modalities else f"only {next(iter(modalities))} has"
        yield (
            f"Losses: {given} a loss of its own. Most of what balancing gains is one loss for each modality: bg.attach "
            "makes them, bg.Uniform() sums them."
        )
        return
    yield from _behind(modalities)
    yield from _memorised(modalities)
    yield from _conflicts(cosines)


def _behind(modalities: Mapping[str, "LossSignal"]) -> Iterator[str]:
    levels = {name: each.level for name, each in modalities.items()}
    worst, best = max(levels, key=levels.__getitem__), min(levels, key=levels.__getitem__)
    said = f"the loss of {worst} is {levels[worst]:.3g}, that of {best} {levels[best]:.3g}"
    if levels[best] > 0 and levels[worst] >= BEHIND * levels[best]:
        yield (
            f"Levels: {said}. Where a modality lags because it is starved, bg.MIMO() did best; where it has little to "
            "say, it followed it in vain. Compare it with bg.Uniform()."
        )
    else:
        yield f"Levels: {said}; no modality lags far behind, so bg.Uniform() is the one to begin with."


def _memorised(modalities: Mapping[str, "LossSignal"]) -> Iterator[str]:
    for name, each in modalities.items():
        if each.overfit is not None and each.overfit.low > 0.1 * each.level:
            yield (
                f"Over-fit: {name} loses {each.overfit.value:.3g} more on held-out items than the {each.level:.3g} of "
                "training. Choose the checkpoint on validation, or guard it by bg.HeldOut if training runs to the end."
            )


def _conflicts(cosines: Mapping[tuple[str, str], float]) -> Iterator[str]:
    pair = min(cosines, key=cosines.__getitem__, default=None)
    if pair is not None and cosines[pair] < CONFLICT:
        yield (
            f"Conflict: the gradients of {pair[0]} and {pair[1]} have a cosine of {cosines[pair]:+.2f}. bg.MinNorm() "
            "is made for that, but on the data of the study no solver was better than bg.Uniform() beyond noise."
        )
