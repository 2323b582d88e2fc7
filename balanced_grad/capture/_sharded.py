from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor, distributed, nn

from balanced_grad.capture._losses import Losses
from balanced_grad.capture._parameters import Memory, ParameterCapture, exclusive
from balanced_grad.capture._params import ParameterFilter
from balanced_grad.capture._partition import Partition
from balanced_grad.capture._plan import Group, Plan
from balanced_grad.capture._processes import Processes
from balanced_grad.capture._shards import is_dtensor, sharded_forward_runs, unsharded_ids
from balanced_grad.capture._window import Written

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor


class ShardedCapture(ParameterCapture):
    """Per-loss gradients of a model sharded by ``fully_shard``: one backward per loss, read from ``.grad``.

    Such a backward gathers the parameters and averages and scatters the gradients by itself, so that every process
    holds the rows of its own shards; inner products are summed over them.
    """

    def __init__(
        self, losses: Losses, params: ParameterFilter, partition: Partition, memory: Memory, processes: Processes
    ) -> None:
        super().__init__(losses, params, partition, memory, processes)
        if memory.window is not None:  # asked for before the model was sharded
            raise ValueError(
                "accumulate='rows' keeps the per-loss gradients of whole parameters, and fully_shard has sharded the "
                "model since; leave accumulate out"
            )
        if sharded_forward_runs(params.given or ()):
            raise RuntimeError(
                "the balancer is called in the forward of a model that fully_shard has sharded, which prepares it for "
                "one backward of what forward() returns, not for one per loss: return the losses and call the balancer "
                "on them, use BalancedTrainerMixin with the Trainer of Hugging Face, or a losses-only balancer such as "
                "Uniform or MIMO"
            )
        self._shards = [cast("DTensor", p) for p in params.given or ()]
        for shard in self._shards:
            params.refuse_hooks(shard, losses.names, range(len(losses.names)))
            first = self._shards[0]
            if not is_dtensor(shard) or (shard.device_mesh, shard.placements) != (first.device_mesh, first.placements):
                raise RuntimeError(
                    f"{params.label(shard)} is not sharded as {params.label(first)} is; shard all parameters given "
                    "as params= over one mesh, with fully_shard(model), and make the balancer before the first "
                    "forward pass"
                )
        self._local = {shard: _local(shard.detach()) for shard in self._shards}
        self._whole = {local: shard for shard, local in self._local.items()}

    def _planned(self) -> Plan:
        self._walk.refuse_hidden()
        return Plan(self._walk.names, ())  # the graph does not lead to shards: what is reached is seen afterwards

    def run(self, scale: Tensor) -> None:
        """One whole backward per loss, each seeded with ``scale``."""
        names = self._losses.names
        said = self._processes.agree(names) if self._processes.size > 1 else [names]
        if any(theirs != names for theirs in said):
            raise RuntimeError(
                f"the processes have different losses, {said}, but a sharded model needs the same backwards on "
                "all of them; give each process a batch with the same modalities"
            )
        if len(said) > 1:
            self._values = self._processes.mean(said, names, self._values)
        grads = self._backwards(scale)
        reach = {
            self._local[shard]: [loss for loss, received in enumerate(grads) if received[position] is not None]
            for position, shard in enumerate(self._shards)
        }
        for loss, name in enumerate(names):
            if not any(loss in losses for losses in reach.values()):
                raise ValueError(
                    f"loss {name!r} sent no gradient to the parameters given as params=; leave it out, or, after "
                    "set_requires_gradient_sync(False), set it to True: each micro-batch is averaged by itself"
                )
        self._plan = Plan.by_reach(names, {local: losses for local, losses in reach.items() if losses})
        self._rows = self._memory.arena.rows(self._plan.groups)
        position_of = {self._local[shard]: position for position, shard in enumerate(self._shards)}
        for rows in self._rows:
            for row, loss in enumerate(rows.group.losses):
                rows.write(row, [grads[loss][position_of[local]] for local in rows.group.parameters])
        self._lay_out()

    def _backwards(self, scale: Tensor) -> list[list[Tensor | None]]:
        """Local shards of every loss's gradients; ``.grad`` of all leaves stays as it was."""
        names, unsharded = self._losses.names, unsharded_ids()
        others = [leaf for leaf in self._walk.reach if id(leaf) not in unsharded]
        leaves: list[Tensor] = [*self._shards, *others]
        before = [leaf.grad for leaf in leaves]
        grads: dict[int, list[Tensor | None]] = {}
        order = self._walk.order
        keep = self._walk.needed_later()
        try:
            for loss in order:
                for leaf in leaves:
                    leaf.grad = None
                seed = scale.to(self._losses.tensors[loss].dtype, copy=True)
                torch.autograd.backward(self._losses.tensors[loss], seed, retain_graph=keep or loss != order[-1])
                grads[loss] = [None if shard.grad is None else _local(shard.grad) for shard in self._shards]
                inputs = [leaf for leaf in others if not isinstance(leaf, nn.Parameter)]
                self._beside += exclusive(loss, inputs, [leaf.grad for leaf in inputs])
        finally:
            for leaf, grad in zip(leaves, before, strict=True):
                leaf.grad = grad
        return [grads[loss] for loss in range(len(names))]

    def _problems(self, groups: list[Group]) -> tuple[list[list[int | None]], tuple[str, ...]]:
        whole = [Group(group.losses, tuple(self._whole[local] for local in group.parameters)) for group in groups]
        return super()._problems(whole)

    def gramian(self, *, exclusive: bool = False) -> Tensor:
        """Those of the shards, summed over the processes that hold them."""
        total = super().gramian(exclusive=exclusive)
        mesh, placements = self._shards[0].device_mesh, self._shards[0].placements
        for dimension, placement in enumerate(placements):
            if placement.is_shard():
                distributed.all_reduce(total, group=mesh.get_group(dimension))
        return total

    def _put(self, fused: Written, weights: Tensor) -> None:
        for locals_, grads in fused:
            for local, grad in zip(locals_, grads, strict=True):
                _accumulate(self._whole[local], grad)
        self._write_beside(weights, processes=1)


def _local(grad: Tensor) -> Tensor:
    return cast("DTensor", grad).to_local()


def _accumulate(shard: "DTensor", grad: Tensor) -> None:
    from torch.distributed.tensor import DTensor

    if shard.grad is not None:
        _local(shard.grad).add_(grad)
        return
    shard.grad = DTensor.from_local(
        grad, shard.device_mesh, shard.placements, run_check=False, shape=shard.shape, stride=shard.stride()
    )
