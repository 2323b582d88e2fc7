"""What models return, and their states, whatever their type."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor


def with_loss(output: Any, loss: Tensor) -> Any:
    """The model's output with another loss."""
    return like(output, by_name(output) | {"loss": loss})


def by_name(output: Any) -> dict[str, Any]:
    """What the model returned, by name: nothing else says which of its parts is the loss."""
    if isinstance(output, Tensor):
        return {"logits": output}
    if not isinstance(output, Mapping):
        raise TypeError(f"the model returned a {type(output).__name__}; let it return a mapping, with return_dict=True")
    return dict(output)


def like(output: Any, parts: dict[str, Any]) -> Any:
    """These parts in the type of what the model returned."""
    return parts if isinstance(output, Tensor) or type(output) is dict else type(output)(**parts)


def gathered(value: Any) -> Any:
    """A sharded parameter as a whole, which all processes call for."""
    return value.full_tensor() if hasattr(value, "full_tensor") else value


def sharded_as(value: Any, shard: Any) -> Any:
    """The whole value as shards are, if these are."""
    if not hasattr(shard, "full_tensor"):
        return value
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(value.to(shard.device), shard.device_mesh, shard.placements)
