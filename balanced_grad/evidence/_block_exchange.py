"""The rows of a block and what went through its layers, of all processes."""

import ast
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad

from balanced_grad.capture import Processes
from balanced_grad.evidence._block import Block, Site
from balanced_grad.records import LinearCall

_PARTS = ("gradients", "inputs", "outputs")


@dataclass(frozen=True)
class SiteRows:
    """The gradients of a site, a row for each loss that reaches it.

    Attributes:
        losses: positions of these losses.
        rows: ``(R, D)``, as autograd gave them: times the loss scale.
        calls: per row what went through the layer, times the loss scale; empty where it was not noted.
    """

    site: Site
    losses: tuple[int, ...]
    rows: Tensor
    calls: tuple[LinearCall, ...]


def of_all(
    found: Sequence[SiteRows],
    block: Block,
    names: Sequence[str],
    union: Sequence[str],
    processes: Processes,
    device: torch.device,
) -> list[SiteRows]:
    """Rows summed over the processes, and their calls side by side, as more items of one batch.

    With the calls of all of them, every process finds the variance of the whole batch's gradient, whatever the
    estimator. ``names`` are the losses of this process, ``union`` those of all.
    """
    sent: dict[str, Tensor] = {}
    for own in found:
        place = block.sites.index(own.site)
        for position, loss in enumerate(own.losses):
            sent[repr((place, names[loss]))] = own.rows[position]
            for part in _PARTS if own.calls else ():
                tensor = getattr(own.calls[position], part)
                if tensor is not None:
                    # A row of its own per process: absent elsewhere, so the sum over processes only carries it.
                    sent[repr((place, names[loss], processes.rank, part, tuple(tensor.shape)))] = tensor
    got = {ast.literal_eval(key): row for key, row in processes.sum_rows(sent, device).items()}
    out = []
    for place, site in enumerate(block.sites):
        losses = tuple(index for index, name in enumerate(union) if (place, name) in got)
        if losses:
            rows = torch.stack([got[place, union[loss]].reshape(-1) for loss in losses])
            calls = tuple(_call(got, place, union[loss]) for loss in losses) if block.linear else ()
            out.append(SiteRows(site, losses, rows, calls))
    return out


def _call(got: Mapping[tuple[object, ...], Tensor], place: int, name: str) -> LinearCall:
    parts: dict[str, list[Tensor]] = {part: [] for part in _PARTS}
    for key in sorted((key for key in got if key[:2] == (place, name) and len(key) > 2), key=repr):
        _, _, _, part, shape = key
        parts[str(part)].append(got[key].view(shape))  # type: ignore[call-overload]
    longest = max(len(one[0]) for one in parts["inputs"])
    even = len(parts["outputs"]) == len(parts["inputs"]) and all(len(one[0]) == longest for one in parts["inputs"])
    # A shorter sequence is filled with positions that have no gradient and no input.
    gradients, inputs = (
        torch.cat([pad(one, (0, 0, 0, longest - one.shape[1])) for one in parts[part]]) for part in _PARTS[:2]
    )
    return LinearCall(gradients, inputs, torch.cat(parts["outputs"]) if even else None)
