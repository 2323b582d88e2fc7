import sys
from collections.abc import Iterable, Iterator
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
    pairs = ((getattr(each, "_unsharded_param", None), each) for _, owned in _owners() for each in owned)
    return {id(whole): each.sharded_param for whole, each in pairs if whole is not None}


def sharded_forward_runs(shards: Iterable[Tensor]) -> bool:
    """Whether the model that these are of is in the middle of its forward."""
    ids = {id(shard) for shard in shards}
    return any(
        getattr(getattr(state, "_state_ctx", None), "iter_forward_root", None) is not None
        and any(id(each.sharded_param) in ids for each in owned)
        for state, owned in _owners()
    )


def _owners() -> Iterator[tuple[Any, list[Any]]]:
    """The state of each module that was given to ``fully_shard``, anywhere in this process, and what it has sharded."""
    states = getattr(sys.modules.get("torch.distributed._composable_state"), "_module_state_mapping", None)
    for state in (state() if callable(state) else state for state in (states or {}).values()):
        groups = getattr(state, "_fsdp_param_groups", None) or [getattr(state, "_fsdp_param_group", None)]
        yield state, [each for group in groups for each in getattr(group, "fsdp_params", ())]
