from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from balanced_grad.presence import ItemWeights, Present, over_items

JOINT = "joint"  # the reserved name of the fused prediction's loss


@dataclass(frozen=True)
class Losses:
    """The losses present in one batch, checked: ``names`` in the user's order, ``tensors`` scalars beside them."""

    names: tuple[str, ...]
    tensors: tuple[Tensor, ...]

    @classmethod
    def check(
        cls,
        losses: Mapping[str, Tensor | None],
        present: Present | None = None,
        weigh: ItemWeights | None = None,
    ) -> "Losses":
        """Drop the missing ones (``None``), average those per item, and refuse what no method could use."""
        if not isinstance(losses, Mapping):
            raise TypeError(
                f"losses must be a mapping of name -> scalar tensor, got {type(losses).__name__}; "
                "write {'joint': loss, 'audio': audio_loss, ...}"
            )
        found = {name: loss for name, loss in over_items(losses, present, weigh).items() if loss is not None}
        if not found:
            none = "are None" if present is None else "are None, or no item has them"
            what = f"all of {list(losses)} {none}" if losses else "the mapping is empty"
            raise ValueError(f"no loss to balance: {what}; give at least one scalar loss")
        tensors = tuple(_scalar(name, loss) for name, loss in found.items())
        device = tensors[0].device
        for name, loss in zip(found, tensors, strict=True):
            if loss.device != device:
                first = next(iter(found))
                raise ValueError(
                    f"loss {name!r} is on {loss.device} but {first!r} is on {device}; "
                    f"move it with losses[{name!r}].to({str(device)!r})"
                )
        return cls(tuple(found), tensors)

    def require_graph(self) -> None:
        """Refuse losses that would silently contribute no gradient."""
        for name, loss in zip(self.names, self.tensors, strict=True):
            if not loss.requires_grad:
                raise ValueError(
                    f"loss {name!r} has no graph (requires_grad is False): compute it from the model's outputs "
                    "without detach() or no_grad(), or leave it out when nothing it reaches is trained"
                )

    def values(self) -> Tensor:
        """Detached values ``(K,)``, in at least float32."""
        dtype = torch.float32
        for loss in self.tensors:
            if loss.dtype != dtype:
                dtype = torch.promote_types(dtype, loss.dtype)
        with torch.no_grad():
            return torch.stack([loss if loss.dtype == dtype else loss.to(dtype) for loss in self.tensors])


def _scalar(name: str, loss: Tensor) -> Tensor:
    if not isinstance(name, str):
        raise TypeError(f"loss names are strings, got {name!r} of type {type(name).__name__}")
    if not isinstance(loss, Tensor):
        raise TypeError(
            f"loss {name!r} is a {type(loss).__name__}, not a tensor; give the scalar tensor itself "
            "(no .item()), or None when the modality is missing"
        )
    if loss.numel() != 1:
        raise ValueError(
            f"loss {name!r} has shape {tuple(loss.shape)}, not that of a scalar or of one number per item (B,); reduce "
            f"it, e.g. losses[{name!r}].mean()"
        )
    if not loss.is_floating_point():
        raise TypeError(f"loss {name!r} has dtype {loss.dtype}; a loss is a real floating-point scalar")
    return loss.reshape(())
