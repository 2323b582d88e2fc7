import sys
from typing import Any

from torch import Tensor


def is_dtensor(tensor: Tensor) -> bool:
    """Whether this is a distributed tensor, without importing its module for those who have none."""
    return type(tensor).__name__ == "DTensor"


def unsharded_ids() -> frozenset[int]:
    """Ids of what ``fully_shard`` puts in the place of shards during the forward pass, anywhere in this process."""
    return frozenset(unsharded())


def unsharded() -> dict[int, Tensor]:
    """By the id of what ``fully_shard`` puts in the place of a shard: the shard.

    It carries no mark, but its owner knows it.
    """
    out: dict[int, Tensor] = {}
    for state in _states_of_shards():
        groups = getattr(state, "_fsdp_param_groups", None) or [getattr(state, "_fsdp_param_group", None)]
        for group in groups:
            for each in getattr(group, "fsdp_params", ()):
                whole = getattr(each, "_unsharded_param", None)
                if whole is not None:
                    out[id(whole)] = each.sharded_param
    return out


def sharded_forward_runs() -> bool:
    """Whether a model that ``fully_shard`` has sharded is in the middle of its forward."""
    contexts = (getattr(state, "_state_ctx", None) for state in _states_of_shards())
    return any(getattr(context, "iter_forward_root", None) is not None for context in contexts)


def _states_of_shards() -> list[Any]:
    states = getattr(sys.modules.get("torch.distributed._composable_state"), "_module_state_mapping", None)
    return [state() if callable(state) else state for state in (states or {}).values()]
