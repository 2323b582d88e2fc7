from typing import TYPE_CHECKING, cast

from torch import Tensor, distributed

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch.distributed.tensor import DTensor


def is_sharded(rows: Tensor) -> bool:
    """Whether these rows are a DTensor, without importing its module for those who have none."""
    return type(rows).__name__ == "DTensor"


def sum_over_shards(product: "Callable[[Tensor], Tensor]", rows: Tensor) -> Tensor:
    """``product`` of each process's columns, summed over the processes: one all-reduce of the small result."""
    from torch.distributed.tensor import Replicate, Shard

    sharded = cast("DTensor", rows)
    for placement in sharded.placements:
        if placement != Shard(1) and placement != Replicate():
            raise ValueError(
                f"rows are placed {sharded.placements}; shard their columns, Shard(1), or replicate them: "
                "the products of other placements are no sums over processes"
            )
    total = product(sharded.to_local())
    for dimension, placement in enumerate(sharded.placements):
        if placement == Shard(1):
            distributed.all_reduce(total, group=sharded.device_mesh.get_group(dimension))
    return total
