"""Which items of a batch have which modality, and the mean of a loss over those that do."""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from balanced_grad.labels import looked_at

Present = Mapping[str, Tensor]  # modality -> (B,) boolean
ItemWeights = Callable[[Mapping[str, Tensor], Present], Mapping[str, Tensor]]


def checked_mask(name: str, mask: object, items: int, device: torch.device) -> Tensor:
    """A presence mask ``(B,)`` on the device where it is used; one that stayed on the CPU is brought there."""
    if not isinstance(mask, Tensor) or mask.dtype != torch.bool or mask.shape != (items,):
        what = f"{mask.dtype} of shape {tuple(mask.shape)}" if isinstance(mask, Tensor) else type(mask).__name__
        raise ValueError(f"present[{name!r}] is {what}; give one boolean per item, shape ({items},)")
    return mask if mask.device == device else mask.to(device, non_blocking=True)


def nobody(mask: Tensor) -> bool:
    """Whether it is known on the host that no item has the modality."""
    return looked_at(mask) and not bool(mask.any().tolist())


def over_items(
    losses: Mapping[str, Tensor | None], present: Present | None = None, weigh: ItemWeights | None = None
) -> dict[str, Tensor | None]:
    """Losses per item ``(B,)`` as their means over the items present, others as they are.

        L_m = Σ_i w_i p_i ℓ_i / Σ_i p_i

    Args:
        losses: name -> scalar, ``(B,)``, or None.
        present: name -> mask ``p`` ``(B,)``, for what some items lack. What stands in their slots, NaN included, has no
            influence. Masks of names without a loss are ignored. A loss that no item has is None where that is known
            on the host, else 0 with zero gradient.
        weigh: from detached losses ``(B,)`` and masks, by name, to weights ``w`` ``(B,)`` of some of them.
    """
    masks = {} if present is None else present
    per_item: dict[str, Tensor] = {}
    for name, loss in losses.items():
        if isinstance(loss, Tensor) and loss.dim() == 1 and (len(loss) != 1 or name in masks or weigh is not None):
            per_item[name] = loss
        elif name in masks and isinstance(loss, Tensor) and not loss.dim():
            raise ValueError(
                f"present[{name!r}] says which items have {name!r}, but its loss is one number for all of them; give "
                f"a loss per item (B,), e.g. cross_entropy(..., reduction='none'), or leave out present[{name!r}]"
            )
    if not per_item:
        return dict(losses)
    kept = {
        name: checked_mask(name, masks[name], len(loss), loss.device)
        for name, loss in per_item.items()
        if name in masks
    }
    weights = _weights(weigh, per_item, kept)
    return dict(losses) | {name: _mean(x, kept.get(name), weights.get(name)) for name, x in per_item.items()}


def _mean(losses: Tensor, mask: Tensor | None, weights: Tensor | None) -> Tensor | None:
    if mask is not None and nobody(mask):
        return None
    kept = losses if mask is None else torch.where(mask, losses, 0)
    kept = kept if weights is None else kept * weights
    wide = torch.promote_types(losses.dtype, torch.float32)
    total = kept.sum(dtype=wide)
    count = len(losses) if mask is None else mask.sum().clamp_min(1)
    return (total / count).to(losses.dtype)


def _weights(weigh: ItemWeights | None, losses: Mapping[str, Tensor], present: Present) -> dict[str, Tensor]:
    """What the hook returned, checked: finite wherever it counts is for the hook to see to."""
    if weigh is None:
        return {}
    with torch.no_grad():
        given = weigh({name: loss.detach() for name, loss in losses.items()}, present)
    if not isinstance(given, Mapping):
        raise TypeError(
            f"item_weights returned a {type(given).__name__}; return a mapping of loss name -> weights (B,)"
        )
    for name, weights in given.items():
        if name not in losses:
            raise ValueError(f"item_weights returned weights for {name!r}; the losses per item are {list(losses)}")
        if not isinstance(weights, Tensor) or weights.shape != losses[name].shape:
            what = f"shape {tuple(weights.shape)}" if isinstance(weights, Tensor) else f"a {type(weights).__name__}"
            raise ValueError(f"item_weights returned {what} for {name!r}; return {tuple(losses[name].shape)}")
    return {
        name: torch.where(present[name], w, 0) if name in present else w
        for name, w in ((name, w.detach().to(losses[name])) for name, w in given.items())
    }
