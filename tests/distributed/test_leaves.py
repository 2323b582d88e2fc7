"""Inputs that require grad, on two processes: no row, no traffic, no comparison; each process has its own."""

from typing import Any

import pytest
import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

import balanced_grad as bg
from tests.releases import fully_shard_on_cpu

KINDS = {
    "min-norm": lambda **options: bg.MinNorm(**options),
    "mmpareto": lambda **options: bg.MMPareto(**options),
    "mimo-rows": lambda **options: bg.MIMO(record_gramian=True, **options),
}
LENGTHS = (5, 7)  # another one on each process


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.text = nn.Sequential(nn.Linear(6, 4), nn.Tanh())
        self.image, self.head = nn.Linear(3, 4), nn.Linear(8, 1)

    def forward(self, tokens, pixels):
        text, image = self.text(tokens).mean(1), self.image(pixels).tanh()
        joint = self.head(torch.cat([text, image], 1)).square().mean()
        return {"joint": joint, "text": text.square().mean(), "image": image.square().mean()}


def inputs(rank, wants_grad):
    generator = torch.Generator().manual_seed(rank)
    tokens = torch.randn(4, LENGTHS[rank], 6, generator=generator).requires_grad_(wants_grad)
    return tokens, torch.randn(4, 3, generator=generator)


def step(rank, kind, wants_grad, sharded):
    model = Model()
    if sharded:
        mesh = init_device_mesh("cpu", (2,))
        for part in (model.text, model.image):
            fully_shard(part, mesh=mesh)
        fully_shard(model, mesh=mesh)
        balancer = KINDS[kind](params=model.parameters())
    else:
        model, balancer = DistributedDataParallel(model), KINDS[kind]()
    tokens, pixels = inputs(rank, wants_grad)
    for _ in range(2):
        balancer(model(tokens, pixels)).backward()
    grads: list[Any] = [p.grad for p in model.parameters()]
    grads = [grad.full_tensor() for grad in grads] if sharded else grads
    return balancer.last.weights, balancer.last.gramian, grads, tokens.grad


def by_hand(rank, weights):
    """At the input the weighted sum over this process's items, twice."""
    tokens, pixels = inputs(rank, True)
    losses = Model()(tokens, pixels)
    weights = torch.ones(3) if weights.dim() > 1 else weights
    sum(w.float() * loss for w, loss in zip(weights, losses.values(), strict=True)).backward()
    return 2 * tokens.grad


@pytest.mark.parametrize("sharded", [False, pytest.param(True, marks=fully_shard_on_cpu)], ids=["ddp", "fully_shard"])
@pytest.mark.parametrize("kind", KINDS)
def test_they_change_nothing_and_get_their_gradient(pair, kind, sharded):
    plain, got = pair(step, kind, False, sharded), pair(step, kind, True, sharded)
    for rank, ((*before, nothing), (*after, grad)) in enumerate(zip(plain, got, strict=True)):
        torch.testing.assert_close(after, before)
        assert nothing is None
        torch.testing.assert_close(grad, by_hand(rank, after[0]))
