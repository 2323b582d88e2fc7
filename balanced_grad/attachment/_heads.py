import math
import warnings
from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn


class Heads(nn.ModuleDict):
    """One linear head per modality, of a width, device and dtype found at the first batch."""

    def __init__(self, names: tuple[str, ...], outputs: int, seed: int) -> None:
        super().__init__({name: LazyHead(outputs, seed + index) for index, name in enumerate(names)})

    def logits(self, features: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """``(..., outputs)`` per modality that has features."""
        return {name: self._head(name)(feature) for name, feature in features.items()}

    def build(self, widths: Mapping[str, int], like: Mapping[str, Tensor]) -> None:
        """Make the heads now, on the device and in the dtype of given tensors."""
        for name, width in widths.items():
            self._head(name).initialize_parameters(like[name].new_empty(0, width))

    def _head(self, name: str) -> "LazyHead":
        head = self[name]
        assert isinstance(head, nn.Linear)  # which a lazy one becomes at its first call
        return cast("LazyHead", head)


class LazyHead(nn.LazyLinear):
    """A linear layer whose parameters an optimizer can hold, and a checkpoint fill, before its width is known.

    Drawn as ``nn.Linear`` draws, but from a generator of its own: attaching must not change the model's randomness.
    """

    def __init__(self, outputs: int, seed: int) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # older releases of torch call lazy modules experimental
            super().__init__(outputs)
        self._seed = seed

    def initialize_parameters(self, input: Tensor) -> None:
        """Width, device and dtype of the input; float32 where autocast made the input's dtype."""
        if self.has_uninitialized_params():
            width = input.shape[-1]
            dtype = torch.float32 if torch.is_autocast_enabled(input.device.type) else input.dtype
            generator = torch.Generator().manual_seed(self._seed)
            bound = 1 / math.sqrt(width) if width else 0.0
            with torch.no_grad():
                for parameter, shape in ((self.weight, (self.out_features, width)), (self.bias, (self.out_features,))):
                    parameter.materialize(shape, input.device, dtype)
                    parameter.copy_(torch.empty(shape).uniform_(-bound, bound, generator=generator))
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
            super()._load_from_state_dict(state_dict, prefix, *rest)
