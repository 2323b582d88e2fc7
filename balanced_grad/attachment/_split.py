from collections.abc import Mapping

from torch import Tensor, nn
from torch.nn.functional import linear

from balanced_grad.attachment._heads import in_dtype


class SplitHead:
    """Uni-modal logits from the model's own linear head on concatenated features.

        f_m = W_m z_m + b / M,   so that Σ_m f_m is the joint prediction

    with ``W_m`` the columns of modality ``m``, in the order in which the modalities were named.
    """

    def __init__(self, names: tuple[str, ...], head: nn.Linear, widths: Mapping[str, int]) -> None:
        self._names = names
        self._head = head
        self._widths = dict(widths)

    def logits(self, features: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """``(..., outputs)`` per modality that has features."""
        self._widths |= {name: feature.shape[-1] for name, feature in features.items()}
        columns = self._columns()
        bias = None if self._head.bias is None else self._head.bias / len(self._names)
        weight = self._head.weight
        return {
            name: linear(in_dtype(feature, weight.dtype), weight[:, columns[name]], bias)
            for name, feature in features.items()
        }

    def _columns(self) -> dict[str, slice]:
        unknown = [name for name in self._names if name not in self._widths]
        if unknown:
            raise ValueError(
                f"the width of {unknown[0]!r} is not known, since no batch has had it yet; give widths={{...}}"
            )
        total = sum(self._widths.values())
        if total != self._head.in_features:
            raise ValueError(
                f"the features have widths {self._widths}, together {total}, but split= takes "
                f"{self._head.in_features}; name the modules whose outputs are concatenated, in that order"
            )
        columns, start = {}, 0
        for name in self._names:
            columns[name] = slice(start, start + self._widths[name])
            start += self._widths[name]
        return columns
