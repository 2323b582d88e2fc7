"""A deep network of one modality whose weights go both ways, and the shared layer over several of them."""

from itertools import pairwise

import torch
from torch import nn
from torch.nn.functional import linear

from balanced_grad.models import Bernoulli, CrossModalVI, Modality


class Path(nn.Module):
    """Sigmoid layers over ``x``: up through ``W_l``, down through ``W_lᵀ``.

    A layer of units has one bias for each direction until ``join`` makes it one for both. All gains are 1, as the
    source has them for image halves; those of its deep network are not known to us.

    Args:
        likelihood: of ``x``, below the lowest layer.
        widths: of ``x`` and of the layers above it.
    """

    def __init__(self, likelihood, widths):
        super().__init__()
        self.likelihood, self.widths = likelihood, widths
        self.weights = nn.ParameterList(torch.empty(n, m) for m, n in pairwise(widths))
        for weight in self.weights:
            nn.init.xavier_uniform_(weight)
        self.up_biases = nn.ParameterList(torch.zeros(n) for n in widths[1:])  # of layers 1 ..
        self.down_biases = nn.ParameterList(torch.zeros(n) for n in widths[:-1])  # of x and layers 1 ..

    def up(self, x, first, last):
        """Activations of layer ``last`` from those of layer ``first``."""
        for level in range(first, last):
            x = linear(x, self.weights[level], self.up_biases[level]).sigmoid()
        return x

    def down(self, logits, first):
        """Parameters of ``p`` of layer ``first`` from the logits of the highest."""
        for level in reversed(range(first, len(self.weights))):
            logits = linear(logits.sigmoid(), self.weights[level].T, self.down_biases[level])
        return logits

    def join(self, level, below):
        """One bias for both directions of the units of a layer: the mean of theirs (``below``: the one from above)."""
        with torch.no_grad():
            self.up_biases[level - 1].lerp_(below, 0.5)
        return self.up_biases[level - 1]


class Up(nn.Module):
    """The encoder from layer ``first`` on."""

    def __init__(self, path, first):
        super().__init__()
        self.path, self.first = path, first

    def forward(self, x):
        return self.path.up(x, self.first, len(self.path.weights))


class Down(Up):
    """The decoder to layer ``first``."""

    def forward(self, x):
        return self.path.down(x, self.first)


def over(paths, first, hidden, steps, top=None):
    """The network on the activations of layer ``first`` (0: the data), with the shared layer of ``top``."""
    modalities = {}
    for name, path in paths.items():
        likelihood = path.likelihood if first == 0 else Bernoulli(path.widths[first])
        modalities[name] = Modality(likelihood, Up(path, first), path.widths[-1], Down(path, first))
    vi = CrossModalVI(modalities, hidden, steps=steps)
    if top is not None:
        vi.bias = top.bias
        for branch, old in zip(vi.branches, top.branches, strict=True):
            branch.up, branch.bias = old.up, old.bias
    return vi


def join(paths, level, top):
    """Make one bias of the two that the units of a layer have: the mean, as the source where it joins stages."""
    for path, branch in zip(paths.values(), top.branches, strict=True):
        if level == len(path.weights):
            branch.bias = path.join(level, branch.bias)
        else:
            path.down_biases[level] = path.join(level, path.down_biases[level])
