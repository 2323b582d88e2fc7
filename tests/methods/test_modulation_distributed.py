"""Two processes, each with half of the batch, against one process with all of it."""

import os
import socket

import pytest
import torch
from torch import distributed
from torch.nn.parallel import DistributedDataParallel

from balanced_grad.methods import DGL, MLB, OGM
from tests.conftest import LateFusion, make_batch

pytestmark = pytest.mark.skipif(not distributed.is_available(), reason="this torch has no torch.distributed")

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


def gradients(kind, options, rank=None):
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


def on_each_process(rank, port, whole):
    torch.set_num_threads(1)
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    distributed.init_process_group("gloo", rank=rank, world_size=2)
    try:
        for kind, wanted in whole.items():
            for options in ({}, {"find_unused_parameters": True}, {"static_graph": True}):
                if kind == "DGL" and "static_graph" in options:
                    with pytest.raises(RuntimeError, match="static_graph"):
                        gradients(kind, options, rank)
                else:
                    torch.testing.assert_close(gradients(kind, options, rank), wanted)
        distributed.barrier()  # who leaves first must not close the connections of the other
    finally:
        distributed.destroy_process_group()


def test_two_processes_do_what_one_does_with_the_whole_batch():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    whole = {kind: gradients(kind, {}) for kind in METHODS}
    torch.multiprocessing.spawn(on_each_process, (port, whole), nprocs=2)  # raises what a process raised
