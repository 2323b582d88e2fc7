"""The gradient of one layer's parameters, split by the positions that it comes from."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from balanced_grad.tokens._masks import Positions

_NARROW = 64  # features up to which the products of all groups are one, of a masked factor
_LEADING = (nn.Embedding, nn.LayerNorm, nn.RMSNorm)  # whose features are the last dimension of the output
_TRAILING = (nn.Conv1d, nn.Conv2d)  # whose features are the second one
Parts = dict[str, Tensor | list[Tensor]]  # name of a parameter -> its gradient for each group, in one tensor or apart


def splits(layer: nn.Module) -> bool:
    """Whether this layer works position by position, in a way that is known here."""
    if not any(True for _ in layer.parameters(recurse=False)) or next(layer.children(), None) is not None:
        return False
    if _is_linear(layer) or _is_transposed(layer) or type(layer).__name__.endswith(("RMSNorm", "LayerNorm")):
        return True
    return type(layer) in (*_LEADING, *_TRAILING) and not getattr(layer, "sparse", False)


def positions_of(layer: nn.Module, output: torch.Size) -> torch.Size:
    """The shape of the positions in an output of this shape."""
    return torch.Size((output[0], *output[2:])) if type(layer) in _TRAILING else output[:-1]


def split(layer: nn.Module, inputs: Tensor, grad: Tensor, positions: Positions) -> Parts:
    """Per trainable parameter of the layer, the gradient that each group of positions sends: they sum to the whole."""
    if _is_linear(layer) or _is_transposed(layer):
        return _of_linear(layer, inputs, grad, positions)
    return _by_replay(layer, inputs, grad, positions)


def _of_linear(layer: nn.Module, inputs: Tensor, grad: Tensor, positions: Positions) -> Parts:
    """``Σ_t g_t x_tᵀ`` over the positions of each group."""
    grad = grad.reshape(-1, grad.shape[-1])
    out: Parts = {}
    if _trains(layer, "weight"):
        inputs = inputs.reshape(-1, inputs.shape[-1]).to(grad.dtype)
        out["weight"] = (
            _products(inputs, grad, positions) if _is_transposed(layer) else _products(grad, inputs, positions)
        )
    if _trains(layer, "bias"):
        out["bias"] = positions.masks(grad) @ grad
    return out


def _products(left: Tensor, right: Tensor, positions: Positions) -> Tensor | list[Tensor]:
    """``Σ_t left_t right_tᵀ``: masked in the narrower factor, so that the wider one is read once.

    Where both are wide, by index.
    """
    count, narrow, wide = len(positions.names), left.shape[1], right.shape[1]
    indices = positions.indices(left.device) if min(narrow, wide) > _NARROW else None
    if indices is not None:
        return [left[index].mT @ right[index] for index in indices]
    masks = positions.columns(left)
    if narrow <= wide:
        return ((masks * left.unsqueeze(1)).flatten(1).mT @ right).view(count, narrow, wide)
    return (left.mT @ (masks * right.unsqueeze(1)).flatten(1)).view(narrow, count, wide).transpose(0, 1)


def _by_replay(layer: nn.Module, inputs: Tensor, grad: Tensor, positions: Positions) -> Parts:
    """The layer alone, once more, and a backward of it for each group, whose gradient is 0 elsewhere."""
    names = [name for name, parameter in layer._parameters.items() if parameter is not None and parameter.requires_grad]
    own = [layer._parameters[name] for name in names]
    with torch.enable_grad():
        output = layer.forward(inputs)  # its hooks have seen this call
    masks = positions.masks(grad).view(len(positions.names), *positions_of(layer, grad.shape))
    masks = masks.unsqueeze(2 if type(layer) in _TRAILING else -1)
    found = [
        torch.autograd.grad(output, own, (mask * grad).to(output.dtype), retain_graph=True)  # type: ignore[arg-type]
        for mask in masks.unbind(0)
    ]
    return {name: [grads[place] for grads in found] for place, name in enumerate(names)}


def _is_linear(layer: nn.Module) -> bool:
    return isinstance(layer, nn.Linear) and type(layer).forward is nn.Linear.forward


def _is_transposed(layer: nn.Module) -> bool:
    """The linear layer of GPT-2, by name: transformers is not imported for those who have none."""
    return type(layer).__name__ == "Conv1D" and type(layer).__module__.startswith("transformers.")


def _trains(layer: nn.Module, name: str) -> bool:
    parameter = layer._parameters.get(name)
    return parameter is not None and parameter.requires_grad


def matching(shape: torch.Size, mask: Sequence[int]) -> bool:
    """Whether positions of this shape are those of a mask: of its very shape, or laid end to end."""
    count = torch.Size(mask).numel()
    return shape == torch.Size(mask) or (shape.numel() == count and max(shape, default=0) == count)
