"""Heads in two processes, as the documentation puts them into one module with the model."""

import torch
from torch import nn
from torch.nn.functional import cross_entropy
from torch.nn.parallel import DistributedDataParallel

from balanced_grad.attachment import attach
from balanced_grad.modulation import MLB


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


def test_two_processes_train_the_heads_as_one_does(pair):
    whole = gradients()
    for own in pair(gradients):
        torch.testing.assert_close(own, whole)
