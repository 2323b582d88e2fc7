"""Heads in two processes, as the documentation puts them into one module with the model."""

import os
import socket

import pytest
import torch
from torch import distributed, nn
from torch.nn.functional import cross_entropy
from torch.nn.parallel import DistributedDataParallel

from balanced_grad.attachment import attach
from balanced_grad.methods import MLB

pytestmark = pytest.mark.skipif(not distributed.is_available(), reason="this torch has no torch.distributed")


class WithHeads(nn.Module):
    def __init__(self, model, aux):
        super().__init__()
        self.model, self.aux = model, aux

    def forward(self, *inputs):
        return self.model(*inputs)


class Late(nn.Module):
    def __init__(self):
        super().__init__()
        self.encoders = nn.ModuleDict({"audio": nn.Linear(4, 5), "video": nn.Linear(6, 5)})
        self.head = nn.Linear(10, 3)

    def forward(self, audio, video):
        return self.head(torch.cat([self.encoders["audio"](audio), self.encoders["video"](video)], 1).relu())


def gradients(rank=None):
    generator = torch.Generator().manual_seed(0)
    batch = [torch.randn(8, 4, generator=generator), torch.randn(8, 6, generator=generator), torch.arange(8) % 3]
    torch.manual_seed(0)
    model = Late()
    aux = attach(model, model.encoders, num_outputs=3, widths={"audio": 5, "video": 5})
    forward = trained = WithHeads(model, aux)
    if rank is not None:
        batch = [part[4 * rank : 4 * rank + 4] for part in batch]
        forward = DistributedDataParallel(trained)
    balancer = MLB(model.encoders)
    *inputs, labels = batch
    losses = aux.losses(cross_entropy(forward(*inputs), labels), labels)
    balancer(losses, scores=aux.scores(labels)).backward()
    aux.detach()
    return [p.grad for p in trained.parameters()]


def on_each_process(rank, port, whole):
    torch.set_num_threads(1)
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    distributed.init_process_group("gloo", rank=rank, world_size=2)
    try:
        torch.testing.assert_close(gradients(rank), whole)
        distributed.barrier()  # who leaves first must not close the connections of the other
    finally:
        distributed.destroy_process_group()


def test_two_processes_train_the_heads_as_one_does():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    torch.multiprocessing.spawn(on_each_process, (port, gradients()), nprocs=2)  # raises what a process raised
