"""Steps in a group of one process on the device, NCCL on a GPU, against the same steps without a group."""

from functools import cache, partial

import torch
from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel

import balanced_grad as bg
from bench._models import Model
from bench.gpu._case import Case, Clock, difference

STEPS = 3
TOLERANCE = 1e-4
BACKENDS = {"cuda": "nccl", "cpu": "gloo"}


class Losses(nn.Module):
    """As both wrappers want it: losses from ``forward``."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.model = Model("mlp", 2)

    def forward(self, inputs, label):
        return self.model.losses(inputs, label)


METHODS = {
    "MIMO": lambda module: bg.MIMO(params=module.parameters()),
    "MinNorm": lambda module: bg.MinNorm(params=module.parameters()),
    "BOGC": lambda module: bg.BOGC(module.model.last_layers()),
}


@cache
def join(device: str) -> None:
    """The group of one."""
    distributed.init_process_group(BACKENDS[device], store=distributed.HashStore(), rank=0, world_size=1)


def data_parallel(module: Losses, device: str) -> nn.Module:
    return DistributedDataParallel(module)


def sharded(module: Losses, device: str) -> nn.Module:
    """Every encoder a unit, and the rest."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh(device, (1,))
    for encoder in module.model.encoders.values():
        fully_shard(encoder, mesh=mesh)
    fully_shard(module, mesh=mesh)
    return module


WRAPPERS = {"DDP": data_parallel, "fully_shard": sharded}


def train(method: str, device: str, wrap=None) -> list[torch.Tensor]:
    """Parameters after a few steps."""
    module = Losses().to(device)
    batches = [module.model.batch(16) for _ in range(STEPS)]  # before sharding: they are made where the weights are
    forward = wrap(module, device) if wrap else module
    balancer = METHODS[method](module)
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1, momentum=0.9)
    for batch in batches:
        optimizer.zero_grad()
        balancer(forward(*batch)).backward()
        optimizer.step()
    return [p.full_tensor() if hasattr(p, "full_tensor") else p for p in module.parameters()]


def compare(method: str, wrapper: str, device: str) -> dict:
    join(device)
    pairs = zip(train(method, device, WRAPPERS[wrapper]), train(method, device), strict=True)
    worst = max(difference(got, expected) for got, expected in pairs)
    errors = [] if worst < TOLERANCE else [f"parameters differ by {worst:.1e} of the largest"]
    return {"backend": distributed.get_backend(), "difference": worst} | ({"errors": errors} if errors else {})


def cases(device: str, clock: Clock) -> list[Case]:
    pairs = [(w, m) for w in WRAPPERS for m in METHODS if (w, m) != ("fully_shard", "BOGC")]  # it takes whole layers
    return [Case(f"{wrapper}, {method}", partial(compare, method, wrapper, device)) for wrapper, method in pairs]
