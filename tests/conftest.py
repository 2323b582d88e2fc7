"""Shared models and data. They are small: what is tested is which gradient arrives where."""

import os

os.environ.setdefault("MPLBACKEND", "Agg")

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils._python_dispatch import TorchDispatchMode

torch.set_num_threads(1)  # the models are tiny: more threads only wait for each other

try:
    import hypothesis
except ImportError:  # as on an image for GPUs: tests that draw no cases run without it
    pass
else:
    hypothesis.settings.register_profile("ci", derandomize=True)  # a new find belongs to who looks for it
    hypothesis.settings.load_profile("ci" if os.environ.get("CI") else "default")

MODALITIES = ("audio", "video", "text")


class LateFusion(nn.Module):
    """Encoders, a trunk all losses share, uni-modal heads and a fused head."""

    def __init__(self, modalities=MODALITIES[:2], *, trunk=True, width=6, classes=3):
        super().__init__()
        self.encoders = nn.ModuleDict({m: nn.Sequential(nn.Linear(5, width), nn.Tanh()) for m in modalities})
        self.trunk = nn.Linear(width, width) if trunk else nn.Identity()
        self.heads = nn.ModuleDict({m: nn.Linear(width, classes) for m in modalities})
        self.fused = nn.Linear(width * len(modalities), classes)
        self.features: dict[str, Tensor] = {}

    def losses(self, inputs, label):
        self.features = {m: encoder(inputs[m]) for m, encoder in self.encoders.items() if m in inputs}
        deep = {m: self.trunk(z).tanh() for m, z in self.features.items()}
        out = {}
        if len(deep) == len(self.encoders):
            out["joint"] = cross_entropy(self.fused(torch.cat(list(deep.values()), 1)), label)
        return out | {m: cross_entropy(self.heads[m](z), label) for m, z in deep.items()}


def make_batch(modalities=MODALITIES[:2], size=8, *, seed=0, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    inputs = {m: torch.randn(size, 5, generator=generator).to(dtype) for m in modalities}
    return inputs, torch.randint(3, (size,), generator=generator)


class NoHostReads(TorchDispatchMode):
    """Raises where a tensor's value is read on the host: on a GPU that would wait for the device."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        assert func is not torch.ops.aten._local_scalar_dense.default, "a tensor was read on the host"
        return func(*args, **(kwargs or {}))


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)
