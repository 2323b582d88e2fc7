"""What is legal in the losses of one batch and yet looks like a mistake."""

import math
from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations

from balanced_grad.capture import JOINT
from balanced_grad.names import sounds_fused

_APART = 100.0  # ratio of two losses' values from which their scales are worth a look


def of_losses(
    losses: Mapping[str, float], missing: Sequence[str], sets: Sequence[tuple[str, ...]], *, split: bool = False
) -> list[str]:
    """Sentences about names, values and what is reached.

    Args:
        losses: name -> value.
        missing: names whose loss is None in this batch.
        sets: per part of the model, the losses that reach it.
        split: whether one loss is split by tokens, and so needs no other.
    """
    about_names = [] if split else _about_names(losses, missing, sets)
    return [*about_names, *_about_values(losses), *_about_reach(losses, sets)]


def _about_names(losses: Mapping[str, float], missing: Sequence[str], sets: Sequence[tuple[str, ...]]) -> Iterator[str]:
    if len(losses) == 1 and missing:
        yield f"only {next(iter(losses))!r} is present in this batch; check one in which no modality is missing"
    elif len(losses) == 1:
        yield (
            f"{next(iter(losses))!r} is the only loss, so there is nothing to balance; give a loss per modality too: "
            "bg.attach(model, {'audio': model.audio_encoder, ...}, num_outputs=...) makes them for a model without; "
            "where the modalities are tokens of one transformer, level=bg.Tokens(model) splits this one"
        )
    fused = [name for name in losses if name != JOINT and sounds_fused(name)]
    if JOINT not in losses and not fused:
        fused = _meeting_all(list(losses), sets)
    if JOINT in losses:
        for name in fused:
            yield (
                f"loss {name!r} looks like that of a fused prediction, but every name other than {JOINT!r} is taken "
                "for a modality; rename it if it is one, leave it out if it is a sum of the others"
            )
    elif JOINT not in missing:
        which = f"; {fused[0]!r} looks like it, and is taken for a modality" if fused else ""
        yield (f"no loss is named {JOINT!r}; give the loss of the fused prediction that name, if there is one{which}")


def _meeting_all(names: Sequence[str], sets: Sequence[tuple[str, ...]]) -> list[str]:
    """The one loss that meets every other one where the others do not all meet."""
    meet = {frozenset(pair) for losses in sets for pair in combinations(losses, 2)}
    hubs = [name for name in names if all(frozenset((name, other)) in meet for other in names if other != name)]
    return hubs if len(names) > 2 and len(hubs) == 1 else []


def _about_values(losses: Mapping[str, float]) -> Iterator[str]:
    for name, value in losses.items():
        if not math.isfinite(value):
            yield (
                f"loss {name!r} is {value}; look for a logarithm or a division by zero, a mean over no item "
                "(give None for a modality that is missing), or a learning rate that is too high"
            )
    sizes = {name: abs(value) for name, value in losses.items() if math.isfinite(value) and value != 0}
    if len(sizes) < 2:
        return
    small, large = min(sizes, key=lambda name: sizes[name]), max(sizes, key=lambda name: sizes[name])
    if sizes[large] >= _APART * sizes[small]:
        yield (
            f"loss {large!r} ({losses[large]:.3g}) is {sizes[large] / sizes[small]:.3g} times {small!r} "
            f"({losses[small]:.3g}): are both means over items? In a plain sum the larger one decides; bring them to "
            "one scale, or use Uniform(weights=...)"
        )


def _about_reach(losses: Mapping[str, float], sets: Sequence[tuple[str, ...]]) -> Iterator[str]:
    parts = {name: frozenset(i for i, part in enumerate(sets) if name in part) for name in losses}
    for first, second in combinations(losses, 2):
        if losses[first] == losses[second] and parts[first] == parts[second]:
            yield (
                f"losses {first!r} and {second!r} are the same: equal values, and they reach the same parameters; "
                "each modality needs a prediction of its own (bg.attach makes heads)"
            )
    shared = [part for part in sets if len(part) > 1]
    if not shared and len(losses) > 1:
        yield (
            "no two losses meet in any parameter, so there is nothing for a Gramian method to balance: is a "
            "detach() between the encoders and the joint loss? A losses-only method (MIMO) does act"
        )
    elif shared:
        for name in losses:
            if not any(name in part for part in shared):
                yield f"loss {name!r} meets no other loss in any parameter: is a detach() in its way?"
