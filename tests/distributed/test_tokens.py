"""Groups of tokens over two processes, each with half of the sequences."""

import pytest
import torch
from torch.nn.parallel import DistributedDataParallel

import balanced_grad as bg
from tests.tokens.test_rows import Model, ids, masks


def train(rank, kind):
    torch.manual_seed(0)
    model = Model()
    balancer = bg.MinNorm(level=bg.Tokens(model), **({"groups": "tensor"} if kind == "tensor" else {}))
    wrapped = model if rank is None else DistributedDataParallel(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for seed in range(3):
        inputs, given = ids(seed)[:2], {name: mask[:2] for name, mask in masks(seed).items()}
        own = slice(None) if rank is None else slice(rank, rank + 1)
        optimizer.zero_grad()
        loss = wrapped(inputs[own])
        balancer({"joint": loss}, tokens={name: mask[own] for name, mask in given.items()}).backward()
        optimizer.step()
    return [p.detach() for p in model.parameters()]


@pytest.mark.parametrize("kind", ["all", "tensor"])
def test_two_processes_train_as_one(pair, kind):
    whole = train(None, kind)
    first, second = pair(train, kind)
    torch.testing.assert_close(first, second, rtol=0, atol=0)
    torch.testing.assert_close(first, whole, rtol=1e-4, atol=1e-6)
