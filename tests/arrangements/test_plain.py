"""A plain loop, and heads made by attach: every method against its hand-written gradient."""

import pytest
import torch
from torch.nn.functional import cross_entropy

import balanced_grad as bg
from tests.arrangements.reference import METHODS, Model, batch, error, expected, reference, scalar

methods = pytest.mark.parametrize("name", METHODS)


@methods
@pytest.mark.parametrize("inside", [False, True])
def test_plain_loop(name, inside):
    model = Model(METHODS[name], inside=inside)
    out = model(**batch())
    (out["loss"] if inside else scalar(model.balancer, *out)).backward()
    assert error(model, reference(name, batch())) < 2e-5


class Attached(Model):
    """Without heads of its own: ``attach`` makes them, in the place where the references look for them."""

    def __init__(self, make):
        super().__init__(None, heads=False)
        self.balancer = make(self)
        self.aux = bg.attach(self, self.encoders(), num_outputs=3, widths={"audio": 8, "video": 8})

    def forward(self, audio, video, labels):
        losses, features, _ = super().outputs(audio, video, labels)
        return losses["joint"], features


@pytest.mark.parametrize("name", [name for name in METHODS if name != "BOGC"])  # whose reference is a plain loop
def test_attached_heads(name):
    model, inputs = Attached(METHODS[name]), batch()
    joint, features = model(**inputs)
    losses = model.aux.losses(joint, inputs["labels"])
    scalar(model.balancer, losses, features).backward()

    def by_hand(model, inputs):
        losses, features, fused = model.outputs(**inputs)
        for m, head in model.aux.heads.items():
            losses[m] = cross_entropy(head(features[m]), inputs["labels"])
        return losses, features, fused

    twin = Attached(lambda model: None)
    wanted = expected(name, inputs, by_hand, twin)
    assert error(model, wanted) < 2e-5
    assert torch.is_tensor(model.aux.heads["audio"].weight.grad)
