"""Features to probe: those of the model's encoders, and those of a reference."""

from collections.abc import Callable, Mapping
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from balanced_grad.attachment import encoder_features
from balanced_grad.diagnosis._items import Items
from balanced_grad.diagnosis._network import Network
from balanced_grad.diagnosis._scores import Array
from balanced_grad.running import evaluating

Reference = Literal["raw"] | Mapping[str, Callable[..., Tensor]]


def features(
    net: Network, items: Items, model: nn.Module, encoders: Mapping[str, nn.Module], pool: Any, mask: Any
) -> dict[str, Array]:
    """Modality -> ``(N, D)``, caught while the model runs once."""
    found: dict[str, list[Tensor]] = {name: [] for name in encoders}
    with encoder_features(model, encoders, pool=pool, mask=mask) as caught:
        for _ in net.logits(items, {}, "with all modalities"):
            missing = [name for name in encoders if name not in caught.features]
            if missing:
                raise ValueError(f"the model did not call the encoder of {missing[0]!r} on a batch")
            for name, parts in found.items():
                parts.append(caught.features[name].cpu())
    return {name: _rows(f"the encoder of {name!r}", parts) for name, parts in found.items()}


def reference_features(net: Network, items: Items, name: str, reference: Reference) -> Array:
    """``(N, D)`` of the other side."""
    keys = items.keys[name]
    if isinstance(reference, str):
        found = [items.inputs[key] for key in keys]
        if not all(isinstance(x, Tensor) for x in found):
            raise TypeError(f"{name!r} has inputs that are lists; give reference={{{name!r}: ...}}, a function of them")
        return _rows(f"{name!r}", [torch.cat([x.reshape(len(x), -1).double() for x in found], 1)])
    function = reference[name]
    with evaluating(function if isinstance(function, nn.Module) else nn.Identity()):
        parts = [function(*(batch[key] for key in keys)).cpu() for batch in net.batches(items)]
    return _rows(f"reference[{name!r}]", parts)


def _rows(what: str, parts: list[Tensor]) -> Array:
    rows: Array = torch.cat([part.reshape(len(part), -1) for part in parts]).double().numpy()
    if not np.isfinite(rows).all():
        bad = np.flatnonzero(~np.isfinite(rows).all(1))[:5].tolist()
        raise ValueError(f"{what} has features that are not finite, for items {bad} and perhaps others")
    return rows
