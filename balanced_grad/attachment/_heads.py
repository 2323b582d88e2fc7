import math
import warnings
from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy


class Heads(nn.ModuleDict):
    """One linear head per modality, of a width, device and dtype found at the first batch."""

    def __init__(self, outputs: int, seed: int, like: Mapping[str, Tensor]) -> None:
        heads = {name: LazyHead(outputs, seed + index, encoder) for index, (name, encoder) in enumerate(like.items())}
        super().__init__(heads)

    def logits(self, features: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """``(..., outputs)`` per modality that has features."""
        return {name: self._logits(name, feature) for name, feature in features.items()}

    def _logits(self, name: str, feature: Tensor) -> Tensor:
        head = self._head(name)
        dtype = head.weight.dtype
        if is_lazy(head.weight):
            dtype = torch.promote_types(dtype, feature.dtype)
        return cast(Tensor, head(in_dtype(feature, dtype)))

    def build(self, widths: Mapping[str, int]) -> None:
        """Make the heads now, on the device and in the dtype of the encoders."""
        for name, width in widths.items():
            head = self._head(name)
            head.initialize_parameters(torch.empty(0, width, device=head.weight.device, dtype=head.weight.dtype))

    def _head(self, name: str) -> "LazyHead":
        head = self[name]
        assert isinstance(head, nn.Linear)  # which a lazy one becomes at its first call
        return cast("LazyHead", head)


def in_dtype(feature: Tensor, dtype: torch.dtype) -> Tensor:
    """For a layer of this dtype: a trainer's autocast ends with the model's forward, and heads come after it."""
    return feature if torch.is_autocast_enabled(feature.device.type) else feature.to(dtype)


class LazyHead(nn.LazyLinear):
    """A linear layer whose parameters an optimizer can hold, and a checkpoint fill, before its width is known.

    Drawn as ``nn.Linear`` draws, but from a generator of its own: attaching must not change the model's randomness.
    Whatever makes the parameters leaves inference mode first: a validation may come before the training.
    """

    def __init__(self, outputs: int, seed: int, like: Tensor) -> None:
        with warnings.catch_warnings(), torch.inference_mode(False):
            warnings.simplefilter("ignore")  # older releases of torch call lazy modules experimental
            super().__init__(outputs, device=like.device, dtype=like.dtype)
        self._seed = seed

    def initialize_parameters(self, input: Tensor) -> None:
        """Width, device and dtype of the input; float32 where autocast made the input's dtype."""
        if self.has_uninitialized_params():
            width = input.shape[-1]
            dtype = torch.float32 if torch.is_autocast_enabled(input.device.type) else input.dtype
            generator = torch.Generator("cpu").manual_seed(self._seed)
            bound = 1 / math.sqrt(width) if width else 0.0
            with torch.inference_mode(False), torch.no_grad():
                for parameter, shape in ((self.weight, (self.out_features, width)), (self.bias, (self.out_features,))):
                    parameter.materialize(shape, input.device, dtype)
                    drawn = torch.empty(shape, dtype=torch.float32, device="cpu")
                    parameter.copy_(drawn.uniform_(-bound, bound, generator=generator))
        self._check_width(input)
        super().initialize_parameters(input)

    def _check_width(self, input: Tensor) -> None:
        if input.shape[-1] != self.weight.shape[-1]:
            raise ValueError(
                f"the head was made for features of width {self.weight.shape[-1]}, by widths= or a checkpoint, "
                f"but the encoder's have {input.shape[-1]}"
            )

    def reset_parameters(self) -> None:
        """Nothing: ``initialize_parameters`` draws."""

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        """A head that is not made yet is not in the checkpoint: torch would put objects there that are no tensors."""
        if not self.has_uninitialized_params():
            super()._save_to_state_dict(destination, prefix, keep_vars)

    def _load_from_state_dict(self, state_dict: Mapping[str, Any], prefix: str, *rest: Any) -> None:
        if prefix + "weight" in state_dict or not self.has_uninitialized_params():
            with torch.inference_mode(False):
                super()._load_from_state_dict(state_dict, prefix, *rest)
