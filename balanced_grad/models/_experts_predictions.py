from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from balanced_grad.models._experts import ProductOfExperts

Batch = Sequence[Any]  # (inputs, targets) or (inputs, targets, present)


@torch.no_grad()
def predictions(
    product: ProductOfExperts, batches: Iterable[Batch], *, only: str | None = None
) -> tuple[dict[str, Tensor], Tensor, dict[str, Tensor]]:
    """What every expert says of all items of some batches, in evaluation mode.

    A modality that a whole batch lacks is absent there, as if its mask were false.

    Returns:
        outputs ``(N, ..., C)`` by expert, targets ``(N, ...)``, and masks ``(N,)`` of the modalities that some item
        lacks: the arguments of ``product.losses``, ``fit_weights`` and ``fit_temperature``.

    Examples:
        >>> import torch
        >>> from torch import nn
        >>> from balanced_grad.models import ProductOfExperts, predictions
        >>> product = ProductOfExperts({"audio": nn.Linear(3, 2), "video": nn.Linear(3, 2)})
        >>> full = {"audio": torch.ones(4, 3), "video": torch.ones(4, 3)}, torch.ones(4, dtype=torch.long)
        >>> silent = {"video": torch.ones(4, 3)}, torch.ones(4, dtype=torch.long)
        >>> outputs, targets, present = predictions(product, [full, silent])
        >>> outputs["audio"].shape, present["audio"].sum()
        (torch.Size([8, 2]), tensor(4))
    """
    product.eval()
    parts: dict[str, list[Tensor | None]] = {}
    masks: dict[str, list[Tensor]] = {m: [] for subset in product.subsets.values() for m in subset}
    targets: list[Tensor] = []
    for inputs, target, *rest in batches:
        outputs = product.outputs(inputs, *rest, only=only)
        for name in product.subsets:
            parts.setdefault(name, []).append(outputs.get(name))
        given = rest[0] if rest and rest[0] is not None else {}
        for m, column in masks.items():
            here = inputs.get(m) is not None
            column.append(given[m] if here and m in given else target.new_full((len(target),), here, dtype=torch.bool))
        targets.append(target)
    if not targets:
        raise ValueError("there are no batches; was an iterator given that has been used up? Give a list or a loader")
    sizes = [len(target) for target in targets]
    joined = {name: _joined(column, sizes) for name, column in parts.items() if any(x is not None for x in column)}
    present = {m: torch.cat([mask.to(targets[0].device) for mask in column]) for m, column in masks.items()}
    return joined, torch.cat(targets), {m: mask for m, mask in present.items() if not mask.all()}


def _joined(column: list[Tensor | None], sizes: list[int]) -> Tensor:
    like = next(x for x in column if x is not None)
    return torch.cat(
        [like.new_zeros(n, *like.shape[1:]) if x is None else x for x, n in zip(column, sizes, strict=True)]
    )
