"""Which position belongs to which modality."""

from collections.abc import Mapping
from itertools import combinations

import torch
from torch import Tensor

from balanced_grad.checks import described

REST = "rest"  # the positions that no mask covers


class Positions:
    """Disjoint masks over the positions of a batch, by name; what they leave is ``"rest"``.

    Raises:
        TypeError, ValueError: for what are no boolean masks of one shape and device, for the name ``"rest"``, and on
            the CPU for masks that overlap; elsewhere these fail when the device comes there.
    """

    def __init__(self, masks: Mapping[str, Tensor]) -> None:
        given = _checked(masks)
        self.shape = next(iter(given.values())).shape
        flat = torch.stack([mask.reshape(-1) for mask in given.values()])
        count = flat.sum(0)
        names = list(given)
        if flat.is_cpu:
            _refuse_overlap(given, count)
        else:
            torch._assert_async((count <= 1).all(), "masks of tokens overlap")
        # Elsewhere whether something is left is not looked at: that would wait for the device.
        if not flat.is_cpu or bool((count == 0).any()):
            names, flat = [*names, REST], torch.cat([flat, (count == 0)[None]])
        self.names = tuple(names)
        self._flat = flat
        self._copies: dict[tuple[torch.device, torch.dtype], Tensor] = {}
        self._columns: dict[tuple[torch.device, torch.dtype], Tensor] = {}
        self._indices: list[Tensor] | None = None

    def counts(self) -> dict[str, int]:
        """How many positions each group has; waits for the device."""
        return dict(zip(self.names, self._flat.sum(1).tolist(), strict=True))

    def masks(self, like: Tensor) -> Tensor:
        """``(M, N)`` ones and zeros, in the dtype and on the device of ``like``."""
        kind = like.device, like.dtype
        if kind not in self._copies:
            self._copies[kind] = self._flat.to(*kind, non_blocking=True)
        return self._copies[kind]

    def columns(self, like: Tensor) -> Tensor:
        """The same as ``(N, M, 1)``, position by position."""
        kind = like.device, like.dtype
        if kind not in self._columns:
            self._columns[kind] = self.masks(like).mT.contiguous().unsqueeze(-1)
        return self._columns[kind]

    def indices(self, device: torch.device) -> list[Tensor] | None:
        """The positions of each group, if they are known on the host."""
        if not self._flat.is_cpu:
            return None
        if self._indices is None:
            self._indices = [mask.nonzero()[:, 0] for mask in self._flat]
        return [index.to(device, non_blocking=True) for index in self._indices]


def _checked(masks: Mapping[str, Tensor]) -> dict[str, Tensor]:
    if not isinstance(masks, Mapping) or not masks:
        raise TypeError(
            f"tokens is {described(masks)}; give a mapping of modality -> mask, as {{'image': ids == image_id, ...}}"
        )
    first = next(iter(masks.values()))
    for name, mask in masks.items():
        if name == REST:
            raise ValueError(f"tokens[{REST!r}]: the positions that no mask covers are called so; choose another name")
        if not isinstance(mask, Tensor) or mask.dtype != torch.bool or mask.dim() not in (1, 2):
            raise TypeError(
                f"tokens[{name!r}] is {described(mask)}; give a boolean mask, (B, T), or (total,) for packed sequences"
            )
        if mask.shape != first.shape or mask.device != first.device:
            raise ValueError(
                f"tokens[{name!r}] is {described(mask)} on {mask.device}, another mask {described(first)} on "
                f"{first.device}; give masks over the same positions"
            )
    return dict(masks)


def _refuse_overlap(masks: Mapping[str, Tensor], count: Tensor) -> None:
    if not bool((count > 1).any()):
        return
    for one, other in combinations(masks, 2):
        both = int((masks[one] & masks[other]).sum())
        if both:
            raise ValueError(f"tokens {one!r} and {other!r} share {both} positions; a position has one modality")
