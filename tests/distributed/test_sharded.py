"""A model sharded over two processes by ``fully_shard``, against one process with the whole batch."""

import pytest
import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

import balanced_grad as bg
from tests.distributed.test_data_parallel import TOLERANCE, Model, half, make_batch, report
from tests.releases import fully_shard_on_cpu

pytestmark = fully_shard_on_cpu

KINDS = {
    "mimo": lambda params: bg.MIMO(smoothing=0.1),
    "mimo-params": lambda params: bg.MIMO(smoothing=0.1, params=params),
    "mimo-rows": lambda params: bg.MIMO(record_gramian=True, params=params),
    "features": lambda params: bg.MinNorm(level="features"),
    "features-params": lambda params: bg.MinNorm(level="features", params=params),
    "uniform": lambda params: bg.Uniform(),
    "min-norm": lambda params: bg.MinNorm(params=params),
    "min-norm-loss": lambda params: bg.MinNorm(normalize="loss+", include_exclusive=True, params=params),
    "min-norm-encoders": lambda params: bg.MinNorm(groups="reach", params=params),
    "mmpareto": lambda params: bg.MMPareto(params=params),
}


def sharded():
    torch.manual_seed(0)
    model = Model()
    mesh = init_device_mesh("cpu", (2,))
    for part in (*model.encoders.values(), model.trunk):
        fully_shard(part, mesh=mesh)
    return fully_shard(model, mesh=mesh)


def train(rank, kind):
    model = sharded() if rank is not None else Model()
    balancer = KINDS[kind](model.parameters())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    seen = []
    for step in range(3):
        batch = make_batch(seed=step)
        optimizer.zero_grad()
        for _ in range(2):  # the second time onto what is there
            losses = model(*(batch if rank is None else half(batch, rank)))
            features = model.features if balancer.level == "features" else None
            (balancer(losses, features=features) / 2).backward()
        optimizer.step()
        seen.append(report(balancer))
    whole = [p.full_tensor() if rank is not None else p for p in model.parameters()]
    return seen, [p.detach() for p in whole]


@pytest.mark.parametrize("kind", KINDS)
def test_trains_as_one_process_with_the_whole_batch(pair, kind):
    torch.manual_seed(0)
    whole = train(None, kind)
    first, second = pair(train, kind)
    torch.testing.assert_close(first, second, rtol=0, atol=0)
    torch.testing.assert_close(first, whole, **TOLERANCE)


def ordinary_step_afterwards(rank):
    model = sharded()
    torch.manual_seed(0)
    reference = Model()
    bg.MinNorm(params=model.parameters())(model(*half(make_batch(), rank))).backward()
    model.zero_grad()
    sum(model(*half(make_batch(), rank)).values()).backward()
    sum(reference(*make_batch()).values()).backward()
    for got, want in zip(model.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(got.grad.full_tensor(), want.grad, **TOLERANCE)


def test_an_ordinary_step_after_a_balanced_one(pair):
    pair(ordinary_step_afterwards)


def refused(rank):
    model = sharded()
    batch = half(make_batch(), rank)
    with pytest.raises(RuntimeError, match=r"is sharded.*params=model.parameters\(\) after fully_shard"):
        bg.MinNorm()(model(*batch))

    model = sharded()
    balancer = bg.MinNorm(params=model.parameters())
    model.set_requires_gradient_sync(False)
    with pytest.raises(ValueError, match="set_requires_gradient_sync"):
        balancer(model(*batch)).backward()
    model.set_requires_gradient_sync(True)

    model = sharded()
    balancer = bg.MinNorm(params=model.parameters())
    losses = model(*batch)
    if rank:
        del losses["audio"]
    with pytest.raises(RuntimeError, match="the same backwards on all of them"):
        balancer(losses).backward()

    model = sharded()
    balancer = bg.MinNorm(params=model.named_parameters())
    model.trunk.weight.register_post_accumulate_grad_hook(lambda p: None)
    with pytest.raises(RuntimeError, match=r"^trunk.weight .*post-accumulate"):
        balancer(model(*batch))

    partly = nn.ModuleDict({"a": fully_shard(nn.Linear(2, 2)), "b": nn.Linear(2, 2)})
    balancer = bg.MinNorm(params=partly.named_parameters())
    with pytest.raises(RuntimeError, match=r"^b.weight is not sharded as a.weight is"):
        balancer({"audio": partly["b"](partly["a"](torch.ones(1, 2))).sum()})

    with pytest.raises(ValueError, match="accumulate='rows'"):
        bg.MinNorm(params=sharded().parameters()).accumulate_rows(True)

    model = Model()
    balancer = bg.MinNorm(params=model)
    balancer.accumulate_rows(True)
    fully_shard(model)
    with pytest.raises(ValueError, match=r"accumulate='rows'.*sharded the model since"):
        balancer(model(*batch))


def test_refusals_on_all_processes(pair):
    pair(refused)
