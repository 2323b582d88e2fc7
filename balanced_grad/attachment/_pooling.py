"""From whatever an encoder returns to one feature vector per item."""

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from balanced_grad.attachment._masks import Call, Masks, mean_over_time

Pool = Callable[..., Tensor]
_PREFERRED = ("pooler_output", "last_hidden_state")  # of Hugging Face's model outputs


class Pooling:
    """``(B, D)``: sequences ``(B, T, D)`` averaged over the time that is no padding, maps ``(B, D, H, W)`` over space.

    A ``pool`` of the user's gets the encoder's whole output, its mask if it has an argument ``mask``, and may return
    ``(..., D)``.
    """

    def __init__(self, pools: Mapping[str, Pool], masks: Masks) -> None:
        self.masks = masks
        self._pools = pools
        self._masked = {name for name, pool in pools.items() if _takes_mask(pool)}

    def __call__(self, name: str, encoder: nn.Module, call: Call, output: Any) -> Tensor:
        """The features of one call."""
        if name in self._pools:
            return self._by_pool(name, encoder, call, output)
        feature = _time_second(encoder, _picked(name, output))
        if feature.dim() < 2:
            raise ValueError(
                f"the encoder of {name!r} returned shape {tuple(feature.shape)}; a batch of features (B, D) is needed: "
                f"give pool={{{name!r}: ...}}, a function of the encoder's output"
            )
        if feature.dim() == 3:
            mask = self.masks.find(name, encoder, call)
            return mean_over_time(feature, self.masks.fit(name, encoder, mask, feature))
        return feature if feature.dim() == 2 else feature.flatten(2).mean(2)

    def _by_pool(self, name: str, encoder: nn.Module, call: Call, output: Any) -> Tensor:
        pool = self._pools[name]
        feature = pool(output, mask=self._mask(name, encoder, call, output)) if name in self._masked else pool(output)
        if not isinstance(feature, Tensor) or feature.dim() < 2:
            what = tuple(feature.shape) if isinstance(feature, Tensor) else type(feature).__name__
            raise TypeError(f"pool of {name!r} returned {what}; it must return features (B, D)")
        return feature

    def _mask(self, name: str, encoder: nn.Module, call: Call, output: Any) -> Tensor | None:
        """Of the length of the output where that is a sequence, else as the encoder was called with it."""
        mask, sequence = self.masks.find(name, encoder, call), _first_tensor(output)
        if mask is None or sequence is None or sequence.dim() < 3:
            return None if mask is None else mask.real
        return self.masks.fit(name, encoder, mask, _time_second(encoder, sequence))


def _takes_mask(pool: Pool) -> bool:
    try:
        parameters = inspect.signature(pool.forward if isinstance(pool, nn.Module) else pool).parameters
    except ValueError:  # some functions written in C
        return False
    return "mask" in parameters


def _time_second(encoder: nn.Module, feature: Tensor) -> Tensor:
    """``(B, T, D)`` also from torch's own sequence modules, whose default is ``(T, B, D)``."""
    return feature.transpose(0, 1) if feature.dim() == 3 and _time_first(encoder) else feature


def _time_first(encoder: nn.Module) -> bool:
    layer: object = encoder
    if isinstance(encoder, nn.TransformerEncoder | nn.TransformerDecoder):
        layer = encoder.layers[0]
    if isinstance(layer, nn.TransformerEncoderLayer | nn.TransformerDecoderLayer):
        layer = layer.self_attn
    return isinstance(layer, nn.RNNBase | nn.Transformer | nn.MultiheadAttention) and not layer.batch_first


def _picked(name: str, output: Any) -> Tensor:
    """The tensor that stands for an encoder's output."""
    tensor = _first_tensor(output)
    if tensor is None:
        raise TypeError(
            f"the encoder of {name!r} returned a {type(output).__name__} without a tensor to choose; "
            f"give pool={{{name!r}: ...}}, a function from it to features (B, D)"
        )
    return tensor


def _first_tensor(output: Any) -> Tensor | None:
    if isinstance(output, Tensor):
        return output
    by_name = output if isinstance(output, Mapping) else vars(output) if hasattr(output, "__dict__") else {}
    candidates = [by_name.get(key) for key in _PREFERRED] + list(by_name.values())
    if isinstance(output, tuple | list) and not isinstance(output, PackedSequence):
        candidates += output
    return next((candidate for candidate in candidates if isinstance(candidate, Tensor)), None)
