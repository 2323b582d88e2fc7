"""From whatever an encoder returns to one feature vector per item."""

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

Pool = Callable[[Any], Tensor]
_PREFERRED = ("pooler_output", "last_hidden_state")  # of Hugging Face's model outputs


def pooled(name: str, output: Any, pool: Pool | None) -> Tensor:
    """``(B, D)``: sequences ``(B, T, D)`` averaged over time, maps ``(B, D, H, W)`` and the like over space.

    A ``pool`` of the user's gets the encoder's whole output and may return ``(..., D)``.
    """
    if pool is not None:
        feature = pool(output)
        if not isinstance(feature, Tensor) or feature.dim() < 2:
            what = tuple(feature.shape) if isinstance(feature, Tensor) else type(feature).__name__
            raise TypeError(f"pool of {name!r} returned {what}; it must return features (B, D)")
        return feature
    feature = _picked(name, output)
    if feature.dim() < 2:
        raise ValueError(
            f"the encoder of {name!r} returned shape {tuple(feature.shape)}; a batch of features (B, D) is needed: "
            f"give pool={{{name!r}: ...}}, a function of the encoder's output"
        )
    if feature.dim() == 3:
        return feature.mean(1)
    return feature if feature.dim() == 2 else feature.flatten(2).mean(2)


def _picked(name: str, output: Any) -> Tensor:
    """The tensor that stands for an encoder's output."""
    if isinstance(output, Tensor):
        return output
    found = output if isinstance(output, Mapping) else vars(output) if hasattr(output, "__dict__") else {}
    candidates = [found.get(key) for key in _PREFERRED] + list(found.values())
    if isinstance(output, tuple | list) and not isinstance(output, PackedSequence):
        candidates += output
    for candidate in candidates:
        if isinstance(candidate, Tensor):
            return candidate
    raise TypeError(
        f"the encoder of {name!r} returned a {type(output).__name__} without a tensor to choose; "
        f"give pool={{{name!r}: ...}}, a function from it to features (B, D)"
    )
