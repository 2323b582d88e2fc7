"""Which modalities which items have, and clean inputs: what is known of the structure needs no look at a mask."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from balanced_grad.models._vi_likelihoods import Likelihood

Known = bool | Tensor  # ``(B,)``, or one answer for the whole batch
Inputs = Mapping[str, Tensor | None]
Present = Mapping[str, Tensor]


@dataclass(frozen=True)
class Batch:
    """A checked batch: ``inputs`` as encoders take them, zero where absent; ``known`` for every modality."""

    size: int
    inputs: dict[str, Tensor]
    known: dict[str, Known]


def read(likelihoods: Mapping[str, Likelihood], inputs: Inputs, present: Present | None, like: Tensor) -> Batch:
    """Check a batch and replace what stands in absent slots (NaN often), which no encoder may see."""
    masks = dict(present or {})
    given = {name: x for name, x in inputs.items() if x is not None}
    for name in (*inputs, *masks):
        if name not in likelihoods:
            raise ValueError(f"{name!r} is not one of the modalities {list(likelihoods)}")
    sizes = {name: len(x) for name, x in (*given.items(), *masks.items())}
    if not sizes:
        raise ValueError(f"the batch is empty of modalities; give at least one of {list(likelihoods)}")
    if len(set(sizes.values())) > 1:
        raise ValueError(f"the modalities differ in their number of items: {sizes}")
    clean: dict[str, Tensor] = {}
    known: dict[str, Known] = dict.fromkeys(likelihoods, False)
    for name, likelihood in likelihoods.items():
        mask = _mask(name, masks.get(name), name in given)
        if name in given:
            known[name] = mask.to(given[name].device) if isinstance(mask, Tensor) else mask
            clean[name] = _clean(name, likelihood, given[name], known[name], like)
    return Batch(next(iter(sizes.values())), clean, known)


def _mask(name: str, mask: Tensor | None, given: bool) -> Known:
    """Where a modality is known."""
    if mask is None:
        return given
    if mask.dtype != torch.bool or mask.ndim != 1:
        raise ValueError(f"present[{name!r}] is {mask.dtype} of shape {tuple(mask.shape)}; give a boolean (B,)")
    known = settled(mask)
    if not given and known is not False and mask.is_cpu:
        raise ValueError(f"present[{name!r}] says that some items have {name!r}, but the inputs do not hold it")
    return known if given else False


def _clean(name: str, likelihood: Likelihood, x: Tensor, mask: Known, like: Tensor) -> Tensor:
    x = likelihood.encode(x)
    if tuple(x.shape[1:]) != likelihood.shape:
        raise ValueError(
            f"modality {name!r} has items of shape {tuple(x.shape[1:])}, but {likelihood} was declared; "
            f"give (B, {', '.join(map(str, likelihood.shape))})"
        )
    x = x.to(like.dtype)
    if x.is_cpu and mask is not False:
        likelihood.check(name, x if mask is True else x[mask])
    return x if mask is True else where_known(negated(mask), x.new_zeros(()), x)


def settled(mask: Tensor) -> Known:
    """As one answer where a mask on the CPU has only one; others are not looked at."""
    if not mask.is_cpu:
        return mask
    if bool(mask.all()) and len(mask):
        return True
    return mask if bool(mask.any()) else False


def negated(known: Known) -> Known:
    """Not."""
    return not known if isinstance(known, bool) else ~known


def both(a: Known, b: Known) -> Known:
    """And."""
    if isinstance(a, bool):
        return b if a else False
    if isinstance(b, bool):
        return a if b else False
    return settled(a & b)


def either(flags: Iterable[Known]) -> Known:
    """Or; False of nothing."""
    none: Known = True
    for flag in flags:
        none = both(none, negated(flag))
    return negated(none)


def where_known(where: Known, yes: Tensor, no: Tensor) -> Tensor:
    """``yes`` for the items where the flag holds, ``no`` for the others."""
    if isinstance(where, bool):
        return yes.expand_as(no) if where else no
    return torch.where(where.reshape(-1, *[1] * (no.ndim - 1)), yes, no)


def mean_over(items: Known, values: Tensor) -> Tensor:
    """Mean of ``(B, ...)`` over the items chosen; 0, with zero gradient, where there is none."""
    if isinstance(items, bool):
        return values.sum(0) / max(len(values), 1) if items else values.sum(0) * 0
    kept = where_known(items, values, torch.zeros_like(values))
    return kept.sum(0) / items.sum().clamp_min(1)
