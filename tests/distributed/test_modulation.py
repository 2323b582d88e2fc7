"""Two processes, each with half of the batch, against one process with all of it."""

import pytest
import torch
from torch.nn.parallel import DistributedDataParallel

from balanced_grad.modulation import DGL, MLB, OGM
from tests.conftest import LateFusion, make_batch

METHODS = {
    "OGM": lambda model: OGM(model.encoders, 0.8, noise=0.0),
    "MLB": lambda model: MLB(model.encoders),
    "DGL": lambda model: DGL(model.encoders),
}
SCORES = ({"audio": 0.9, "video": 0.3}, {"audio": 0.7, "video": 0.4})  # of either half
MEAN = {"audio": 0.8, "video": 0.35}


class Model(LateFusion):
    def forward(self, *batch):
        return self.losses(*batch)


def gradients(rank, kind, options):
    torch.manual_seed(0)
    model = Model()
    balancer = METHODS[kind](model)
    inputs, label = make_batch()
    forward = model
    if rank is not None:
        half = slice(4 * rank, 4 * rank + 4)
        inputs, label = {name: x[half] for name, x in inputs.items()}, label[half]
        forward = DistributedDataParallel(model, **options)
    scores = {} if kind == "DGL" else {"scores": MEAN if rank is None else SCORES[rank]}
    for _ in range(2):
        balancer(forward(inputs, label), **scores).backward()
    return [p.grad for p in model.parameters()]


@pytest.mark.parametrize("options", [{}, {"find_unused_parameters": True}, {"static_graph": True}], ids=str)
@pytest.mark.parametrize("kind", METHODS)
def test_two_processes_do_what_one_does_with_the_whole_batch(pair, kind, options):
    if kind == "DGL" and "static_graph" in options:
        pair(refused, kind, options)
        return
    for own in pair(gradients, kind, options):
        torch.testing.assert_close(own, gradients(None, kind, {}))


def refused(rank, kind, options):
    with pytest.raises(RuntimeError, match="static_graph"):
        gradients(rank, kind, options)


def one_fails(rank):
    model = Model()
    scores = {"audio": 0.5, "video": 0.5} if rank else {"odour": 0.5}
    message = "process 0 failed" if rank else "no such modality"
    with pytest.raises((RuntimeError, ValueError), match=message):
        OGM(model.encoders)(model(*make_batch()), scores=scores)


def test_a_process_that_fails_leaves_nobody_waiting(pair):
    pair(one_fails)
