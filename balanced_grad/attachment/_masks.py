"""Which positions of a sequence are padding, as an encoder's own call says."""

import inspect
from collections.abc import Mapping
from contextlib import suppress
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from balanced_grad.notices import Notices

Call = tuple[tuple[Any, ...], Mapping[str, Any]]  # positional and keyword arguments
_KNOWN = ("attention_mask", "src_key_padding_mask", "key_padding_mask", "padding_mask")
_OF_OUTPUT = ("decoder_attention_mask", "tgt_key_padding_mask")  # where a forward has them, others are the source's
_REDUCE = "_get_feature_vector_attention_mask"  # of Hugging Face's speech models: from samples to frames


class Mask(NamedTuple):
    """A padding mask and the argument it came as; ``real`` is ``(B, T)``, True where there is no padding."""

    argument: str
    real: Tensor


class Masks:
    """The padding masks that encoders, or the model around them, are called with.

    ``asked`` names an argument per modality, or None for no mask; other modalities are looked through for the
    usual names.
    """

    def __init__(self, model: nn.Module, asked: Mapping[str, str | None], notices: Notices) -> None:
        self._model = model.module if isinstance(model, DistributedDataParallel) else model
        self._asked = asked
        self._notices = notices
        self._outer: dict[str, Any] = {}

    def begin(self, call: Call) -> None:
        """A new batch: keep the model's arguments that the user has named."""
        named = set(self._asked.values()) - {None}
        self._outer = {k: v for k, v in _arguments(self._model, call).items() if k in named} if named else {}

    def release(self) -> None:
        """Forget the batch."""
        self._outer = {}

    def find(self, name: str, encoder: nn.Module, call: Call) -> Mask | None:
        """The mask of this call, if there is one."""
        names: tuple[str | None, ...]
        arguments = _arguments(encoder, call)
        if name in self._asked:
            names, arguments = (self._asked[name],), self._outer | arguments
            self._look_for(name, arguments)
        else:
            names = tuple(set(_OF_OUTPUT) & set(_parameters(encoder))) or _KNOWN
        for argument in names:
            value = arguments.get(argument or "")
            if argument and isinstance(value, Tensor) and value.dim():
                return Mask(argument, _real(argument, value))
        return None

    def fit(self, name: str, encoder: nn.Module, mask: Mask | None, features: Tensor) -> Tensor | None:
        """``(B, T)`` for features ``(B, T, D)``; None, and a notice, where the mask is of another length."""
        if mask is None:
            return None
        fitted = _reduced(encoder, mask.real, features)
        if fitted is None:
            self._notices.say(
                ("mask", name),
                f"the {mask.argument} of {name!r}, {tuple(mask.real.shape)}, does not fit its encoder's output, "
                f"{tuple(features.shape)}: that is averaged over all positions, padding included; give "
                f"pool={{{name!r}: ...}}, a function of output and mask, or mask={{{name!r}: None}} if that is meant",
            )
        return fitted

    def _look_for(self, name: str, arguments: Mapping[str, Any]) -> None:
        argument = self._asked[name]
        if argument is not None and argument not in arguments:
            self._notices.say(
                ("mask", name),
                f"mask= names {argument!r} for {name!r}, with which neither its encoder nor the model was called "
                f"({sorted(arguments)}): its features are averaged over all positions, padding included",
            )


def mean_over_time(features: Tensor, real: Tensor | None) -> Tensor:
    """``(B, D)`` means over the real positions of ``(B, T, D)``; zeros where there is none."""
    if real is None:
        return features.mean(1)
    wide = torch.promote_types(features.dtype, torch.float32)  # a sum of many positions overflows float16
    total = features.masked_fill(~real.unsqueeze(-1), 0).sum(1, dtype=wide)
    return (total / real.sum(1, keepdim=True).clamp_min(1)).to(features.dtype)


def _arguments(module: nn.Module, call: Call) -> dict[str, Any]:
    """What the module was called with, by name; a batch given as one mapping is looked into."""
    args, kwargs = call
    named = dict(kwargs)
    with suppress(TypeError, ValueError):  # a forward without a signature that fits
        named = inspect.signature(module.forward).bind_partial(*args).arguments | named if args else named
    for value in [value for value in named.values() if isinstance(value, Mapping)]:
        named = {**value, **named}
    return named


def _parameters(module: nn.Module) -> Mapping[str, Any]:
    with suppress(TypeError, ValueError):
        return inspect.signature(module.forward).parameters
    return {}


def _real(argument: str, value: Tensor) -> Tensor:
    """True where a position is no padding. ``(B, ..., queries, T)``: where any query sees it."""
    if value.dim() > 2:  # extended for the attention: True, or 0 where it is added to the scores
        seen = value >= 0 if value.is_floating_point() else value > 0
        return seen.flatten(1, -2).any(1)
    if value.dim() == 1 and not value.dtype.is_floating_point and value.dtype != torch.bool:
        return value  # lengths
    return value == 0 if "padding" in argument else value > 0


def _reduced(encoder: nn.Module, real: Tensor, features: Tensor) -> Tensor | None:
    rows, length = features.shape[:2]
    if len(real) != rows or (real.dim() == 1 and real.dtype == torch.bool):
        return None
    real = real.to(features.device)
    if real.dim() == 1:
        return torch.arange(length, device=real.device) < real.unsqueeze(1)
    if real.shape[1] == length:
        return real
    speech = next((module for module in encoder.modules() if hasattr(module, _REDUCE)), None)
    if speech is None:
        return None
    reduced: Tensor = getattr(speech, _REDUCE)(length, real.long()).bool()
    return reduced & real.any(1, keepdim=True)
