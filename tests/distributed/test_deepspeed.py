"""DeepSpeed, which need not be installed: what stands in for it collects gradients as ZeRO 1 and 2 of 0.19 do.

A hook on each parameter, called when its gradient has been accumulated, averages it, keeps it on one process and drops
it from ``.grad``. Each backward says at its first hook how many there will be, and has to keep its word.
"""

import pytest
import torch
from torch import distributed
from torch.autograd.graph import get_gradient_edge

import balanced_grad as bg
from tests.distributed.test_data_parallel import TOLERANCE, Model, half, make_batch

WORKS = {
    "uniform": lambda model: bg.Uniform(),
    "mimo": lambda model: bg.MIMO(smoothing=0.1),
    "features": lambda model: bg.MinNorm(level="features"),
    "ogm": lambda model: bg.OGM(model.encoders, target="gradient", noise=0.0),
    "mlb": lambda model: bg.MLB(model.encoders, target="gradient"),
}
REFUSED = {
    "min-norm": lambda model: bg.MinNorm(),
    "min-norm-named": lambda model: bg.MinNorm(params=model.named_parameters()),
    "mmpareto": lambda model: bg.MMPareto(),
    "mimo-rows": lambda model: bg.MIMO(record_gramian=True),
    "bogc": lambda model: bg.BOGC(model.encoders),
}


class Zero:
    """Engine and optimizer of ZeRO 2, on the CPU, with plain SGD."""

    def __init__(self, model, lr):
        self.parameters, self.lr = list(model.parameters()), lr
        self.shards = {}
        self.seen = self.expected = 0
        for index, parameter in enumerate(self.parameters):
            parameter.register_post_accumulate_grad_hook(self._hook(index))

    def _hook(self, index):
        def reduce(parameter):
            if not self.seen:
                nodes = [get_gradient_edge(p).node for p in self.parameters]
                self.expected = sum(torch._C._will_engine_execute_node(node) for node in nodes)
            self.seen += 1
            distributed.all_reduce(parameter.grad)
            if index % 2 == distributed.get_rank():
                mean = parameter.grad / 2
                self.shards[index] = self.shards[index] + mean if index in self.shards else mean
            parameter.grad = None

        reduce.__module__ = "deepspeed.runtime.zero.stage_1_and_2"
        return reduce

    def backward(self, loss):
        self.seen = 0
        loss.backward()
        assert self.seen == self.expected, "gradients were collected before the backward had ended, or more than once"

    def step(self):
        with torch.no_grad():
            for index, parameter in enumerate(self.parameters):
                if index in self.shards:
                    parameter -= self.lr * self.shards.pop(index)
                distributed.broadcast(parameter, src=index % 2)


def train(rank, kind):
    torch.manual_seed(0)
    model = Model()
    balancer = (WORKS | REFUSED)[kind](model)
    engine = None if rank is None else Zero(model, lr=0.1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for step in range(3):
        for micro in range(2):
            batch = make_batch(seed=2 * step + micro)
            losses = model(*(batch if rank is None else half(batch, rank)))
            scalar = balancer(losses, features=model.features if balancer.level == "features" else None) / 2
            scalar.backward() if engine is None else engine.backward(scalar)
        (engine or optimizer).step()
        optimizer.zero_grad()
    return [p.detach() for p in model.parameters()]


@pytest.mark.parametrize("kind", WORKS)
def test_one_backward_trains_as_on_one_process(pair, kind):
    whole = train(None, kind)
    first, second = pair(train, kind)
    torch.testing.assert_close(first, second, rtol=0, atol=0)
    torch.testing.assert_close(first, whole, **TOLERANCE)


def refused(rank, kind):
    with pytest.raises(RuntimeError, match=r"DeepSpeed's ZeRO.*level='features' with ZeRO 1 or 2.*Uniform or MIMO"):
        train(rank, kind)


@pytest.mark.parametrize("kind", REFUSED)
def test_several_are_refused_by_name(pair, kind):
    pair(refused, kind)
