"""Small networks, one forward pass each, and what a backward pass leaves in them."""

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # bench is no installed package

pytest.importorskip("torchjd", reason="the peer of the benchmarks; pip install 'balanced-grad[bench]'")

from balanced_grad.demo._data import Split
from balanced_grad.demo._model import LateFusion
from bench.accuracy._objectives import JOINT, Forward

torch.set_num_threads(1)
SHAPES = {"image": (1, 8, 8), "audio": (5,), "text": (4,)}
ITEMS, CLASSES = 12, 3


class Network:
    """A network and batches for it; the same seed gives the same ones."""

    def __init__(self, modalities=2, seed=0, conflict=False):
        torch.manual_seed(seed)
        shapes = dict(list(SHAPES.items())[:modalities])
        self.model = LateFusion(shapes, CLASSES)
        if conflict:  # the fused head wants the opposite of what the others want
            with torch.no_grad():
                self.model.fused.weight.copy_(-torch.cat([head.weight for head in self.model.heads], 1))
        self.shapes = shapes

    def forward(self, unimodal=True):
        inputs = {name: torch.randn(ITEMS, *shape) for name, shape in self.shapes.items()}
        batch = Split(inputs, torch.randint(CLASSES, (ITEMS,)))
        features = self.model.features(inputs)
        logits = {JOINT: self.model.fuse(features)} | (self.model.unimodal(features) if unimodal else {})
        return Forward(self.model, batch, features, logits)

    def gradients(self):
        """Take them away: the next pass finds none."""
        found = {name: p.grad for name, p in self.model.named_parameters() if p.grad is not None}
        self.model.zero_grad()
        return found


@pytest.fixture
def network():
    return Network


@pytest.fixture
def assert_same():
    def check(found, wanted, rtol=1e-4, atol=1e-6):
        assert found.keys() == wanted.keys()
        for name, gradient in wanted.items():
            torch.testing.assert_close(found[name], gradient, rtol=rtol, atol=atol, msg=lambda m, n=name: f"{n}: {m}")

    return check
