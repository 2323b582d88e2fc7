"""Experts by name -> one tensor, with every complaint about names, shapes and masks in one place."""

from collections.abc import Collection, Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from balanced_grad.labels import Labels, Task, fits, read, require_tensor
from balanced_grad.models._product import normalised

Present = Mapping[str, Tensor]  # modality -> (B,) boolean


class Stack(NamedTuple):
    """What the experts of one batch say: those of ``names``, normalised, and for which items they may speak.

    ``outputs`` is ``(E, B, ..., C)``, with anything in it where ``present`` ``(E, B)`` is false. ``silent`` holds the
    names of which it is known on the host that no item has them.
    """

    names: tuple[str, ...]
    outputs: Tensor
    present: Tensor
    silent: frozenset[str]


def stack(
    task: Task,
    subsets: Mapping[str, tuple[str, ...]],
    flexible: Collection[str],
    outputs: Mapping[str, Tensor | None],
    present: Present | None,
) -> Stack:
    """Stack outputs in the order of ``subsets``; an expert needs all of its modalities, a flexible one any."""
    for name in outputs:
        if name not in subsets:
            raise ValueError(f"no expert is called {name!r}; the experts are {list(subsets)}")
    given = {name: output for name in subsets if (output := outputs.get(name)) is not None}
    if not given:
        raise ValueError(f"no expert speaks: give the output of at least one of {list(subsets)}")
    _check_outputs(task, given)
    ready = torch.stack([normalised(task, output) for output in given.values()])
    masks = checked(present, ready.shape[1], {m for subset in subsets.values() for m in subset})
    everywhere = next(iter(masks.values()), ready).new_ones(ready.shape[1], dtype=torch.bool)
    rows, silent = [], set()
    for name in given:
        needed = torch.stack([masks.get(m, everywhere) for m in subsets[name]])
        row = needed.any(0) if name in flexible else needed.all(0)
        if row.is_cpu and not row.any():
            silent.add(name)
        rows.append(row.to(ready.device))
    return Stack(tuple(given), ready, torch.stack(rows), frozenset(silent))


def checked(present: Present | None, items: int, modalities: Collection[str]) -> Present:
    """Presence masks that are ``(B,)`` booleans of modalities that exist; None: no masks."""
    for name, mask in (present or {}).items():
        if name not in modalities:
            raise ValueError(f"present[{name!r}]: no expert looks at such a modality; there are {sorted(modalities)}")
        if not isinstance(mask, Tensor) or mask.dtype != torch.bool or mask.shape != (items,):
            what = f"{mask.dtype} of shape {tuple(mask.shape)}" if isinstance(mask, Tensor) else type(mask).__name__
            raise ValueError(f"present[{name!r}] is {what}; give one boolean per item, shape ({items},)")
    return present or {}


def read_targets(task: Task, prediction: Tensor, targets: Tensor) -> Labels:
    """Targets that fit a prediction, in the form that losses take.

    Shapes are ``(B, ...)`` class indices or ``(B, ..., C)`` shares of classes, ``(B, ..., C)`` labels, ``(B, ..., D)``
    values; of one label or value ``(B, ...)`` will do.
    """
    require_tensor(targets)
    like = prediction.chunk(2, -1)[0] if task == "regression" else prediction
    *items, width = like.shape
    single = task != "classification" and width == 1 and tuple(targets.shape) == (*items,)
    shaped = targets.unsqueeze(-1) if single else targets
    if not fits(task, shaped, like.shape):
        wanted = (*items,) if task == "classification" else (*items, width)
        raise ValueError(
            f"targets of shape {tuple(targets.shape)} do not fit experts that give {tuple(prediction.shape)} "
            f"for task={task!r}; give {wanted}{f' or {(*items,)}' if width == 1 and task != 'classification' else ''}"
        )
    return read(task, shaped, like)


def refuse_excluded(outputs: Tensor, kept: Tensor) -> None:
    """Experts that leave an item no class between them."""
    excluded = (outputs == -torch.inf) & kept.reshape(*kept.shape, *[1] * (outputs.dim() - 2))
    nothing = excluded.any(0).all(-1).nonzero()
    if len(nothing):
        raise ValueError(
            f"item {nothing[0].tolist()} of the batch has no class left: its experts exclude (logit -inf) all of them"
        )


def _check_outputs(task: Task, given: Mapping[str, Tensor]) -> None:
    first, like = next(iter(given.items()))
    for name, output in given.items():
        if output.dim() < 2 or not output.is_floating_point():
            raise ValueError(
                f"expert {name!r} gives {output.dtype} of shape {tuple(output.shape)}; give floats of shape (B, ..., C)"
            )
        if output.shape != like.shape:
            raise ValueError(
                f"expert {name!r} gives {tuple(output.shape)} but {first!r} {tuple(like.shape)}: they must be equal"
            )
    if task == "regression" and like.shape[-1] % 2:
        raise ValueError(
            f"expert {first!r} gives {like.shape[-1]} numbers per item; in regression they are D means, then D "
            "log-variances: an even number"
        )
