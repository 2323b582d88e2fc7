"""Uniform through the row path must train exactly as ordinary training on the sum does, in every setting."""

import copy
import warnings

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.checkpoint import checkpoint

import balanced_grad as bg
from tests.conftest import MODALITIES, LateFusion, make_batch
from tests.releases import compiled_alike

STEPS = 20


class Plain(nn.Module):
    """What the balancer is compared with: the sum of the losses present."""

    def forward(self, losses, features=None):
        return sum(loss for loss in losses.values() if loss is not None)


def plain_step(model, objective, optimizer, step):
    optimizer.zero_grad()
    objective(model.losses(*make_batch(seed=step))).backward()
    optimizer.step()


def accumulating_step(model, objective, optimizer, step):
    objective(model.losses(*make_batch(seed=step))).div(2).backward()
    if step % 2:
        optimizer.step()
        optimizer.zero_grad(set_to_none=step % 4 == 1)


def clipping_step(model, objective, optimizer, step):
    optimizer.zero_grad()
    objective(model.losses(*make_batch(seed=step))).backward()
    nn.utils.clip_grad_norm_(model.parameters(), 0.1)
    optimizer.step()


def missing_step(model, objective, optimizer, step):
    inputs, label = make_batch(seed=step)
    if step % 3:
        del inputs[MODALITIES[step % 3 - 1]]
    losses = model.losses(inputs, label)
    optimizer.zero_grad()
    objective({name: losses.get(name) for name in ("joint", *MODALITIES[:2])}).backward()
    optimizer.step()


class Checkpointed(LateFusion):
    def losses(self, inputs, label):
        plain = self.encoders["audio"]
        self.encoders["audio"] = _Through(plain)
        try:
            return super().losses(inputs, label)
        finally:
            self.encoders["audio"] = plain


class _Through(nn.Module):
    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, x):
        return checkpoint(self.inner, x, use_reentrant=False)


class Switching(LateFusion):
    """Control flow sends every third batch through other parameters."""

    def __init__(self):
        super().__init__()
        self.detour = nn.Linear(6, 6)
        self.calls = 0

    def losses(self, inputs, label):
        out = super().losses(inputs, label)
        self.calls += 1
        if self.calls % 3 == 0:
            out["audio"] = cross_entropy(self.heads["audio"](self.detour(self.features["audio"])), label)
        if self.calls % 3 == 1:
            out["joint"] = out["joint"] + self.detour(self.features["video"]).square().mean()
        return out


class Tied(LateFusion):
    def __init__(self):
        super().__init__()
        self.encoders["video"][0].weight = self.encoders["audio"][0].weight


class Frozen(LateFusion):
    def __init__(self):
        super().__init__()
        self.encoders["audio"].requires_grad_(False)
        self.heads["video"].bias.requires_grad_(False)


class Mixed(LateFusion):
    """A bf16 encoder beside fp32 parts."""

    def __init__(self):
        super().__init__()
        self.encoders["audio"].to(torch.bfloat16)

    def losses(self, inputs, label):
        self.features = {
            "audio": self.encoders["audio"](inputs["audio"].bfloat16()).float(),
            "video": self.encoders["video"](inputs["video"]),
        }
        deep = {m: self.trunk(z) for m, z in self.features.items()}
        out = {"joint": cross_entropy(self.fused(torch.cat(list(deep.values()), 1)), label)}
        return out | {m: cross_entropy(self.heads[m](z), label) for m, z in deep.items()}


class Convolutional(LateFusion):
    """Channels-last weights, a complex parameter and an expanded one: gradients of every layout."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(4, 6, 3, padding=1).to(memory_format=torch.channels_last)
        self.spectral = nn.Parameter(torch.randn(6, dtype=torch.complex64))
        self.gain = nn.Parameter(torch.ones(6))

    def losses(self, inputs, label):
        out = super().losses(inputs, label)
        image = inputs["audio"].repeat(1, 4)[:, :16, None, None].reshape(-1, 4, 2, 2)
        z = self.conv(image.contiguous(memory_format=torch.channels_last)).mean((2, 3)) * self.gain.expand(8, 6)
        z = (z * self.spectral).abs()
        out["joint"] = out["joint"] + cross_entropy(self.heads["audio"](z), label)
        out["audio"] = out["audio"] + cross_entropy(self.heads["audio"](2 * z), label)
        return out


MODELS = [LateFusion, Checkpointed, Switching, Tied, Frozen, Mixed, Convolutional]
LOOPS = [plain_step, accumulating_step, clipping_step]


def train(model, objective, loop, steps=STEPS):
    trainable = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(trainable, lr=0.1, momentum=0.9)
    for step in range(steps):
        loop(model, objective, optimizer, step)
    return model


def assert_same_training(model, balancer, loop, **tolerance):
    reference = train(copy.deepcopy(model), Plain(), loop)
    trained = train(model, balancer, loop)
    for (name, want), got in zip(reference.named_parameters(), trained.parameters(), strict=True):
        torch.testing.assert_close(got, want, msg=lambda text, name=name: f"{name}: {text}", **tolerance)
        assert (got.grad is None) == (want.grad is None), name
        if got.grad is not None:
            assert got.grad.stride() == want.grad.stride(), name


@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.parametrize("make", MODELS)
def test_trains_as_the_plain_sum(make, loop):
    tolerance = {"rtol": 2e-2, "atol": 2e-2} if make is Mixed else {"rtol": 1e-4, "atol": 1e-5}
    assert_same_training(make(), bg.Uniform(record_gramian=True), loop, **tolerance)


@pytest.mark.parametrize("balancer", [bg.Uniform(), bg.Uniform(record_gramian=True)], ids=["scalar", "rows"])
def test_trains_as_the_plain_sum_when_modalities_are_missing(balancer):
    assert_same_training(LateFusion(), balancer, missing_step, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("modalities", [MODALITIES[:1], MODALITIES])
@pytest.mark.parametrize("trunk", [True, False])
def test_any_number_of_modalities(modalities, trunk):
    def loop(model, objective, optimizer, step):
        optimizer.zero_grad()
        objective(model.losses(*make_batch(modalities, seed=step))).backward()
        optimizer.step()

    model = LateFusion(modalities, trunk=trunk)
    assert_same_training(model, bg.Uniform(record_gramian=True), loop, rtol=1e-4, atol=1e-5)


def test_double_precision_is_kept():
    def loop(model, objective, optimizer, step):
        optimizer.zero_grad()
        loss = objective(model.losses(*make_batch(seed=step, dtype=torch.float64)))
        assert loss.dtype == torch.float64
        loss.backward()
        optimizer.step()

    assert_same_training(LateFusion().double(), bg.Uniform(record_gramian=True), loop, rtol=1e-12, atol=1e-12)


def test_features_level_trains_as_the_plain_sum():
    model, balancer = LateFusion(), bg.Uniform(record_gramian=True, level="features")

    def through_features(losses):
        return balancer(losses, features=model.features)

    reference = train(copy.deepcopy(model), Plain(), plain_step)
    trained = train(model, through_features, plain_step)
    for want, got in zip(reference.parameters(), trained.parameters(), strict=True):
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)


def test_compiled_encoders():
    model = LateFusion()
    reference = copy.deepcopy(model)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what the compiler says of itself
        for encoder in model.encoders.values():
            encoder.compile(backend="aot_eager")
        train(model, bg.Uniform(record_gramian=True), plain_step)
    train(reference, Plain(), plain_step)
    for want, got in zip(reference.parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)


class CompiledWhole(nn.Module):
    def __init__(self, model):
        super().__init__()
        self.model = model
        self.losses = torch.compile(model.losses, backend="aot_eager")


@compiled_alike
def test_a_model_compiled_as_a_whole():
    """One compiled graph answers every loss for every parameter, with zeros: nothing is exclusive any more."""
    model = LateFusion()
    reference, eager = copy.deepcopy(model), copy.deepcopy(model)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        train(CompiledWhole(model), bg.Uniform(record_gramian=True), plain_step)
        train(reference, Plain(), plain_step)
        for want, got in zip(reference.parameters(), model.parameters(), strict=True):
            torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)
        whole, everywhere = bg.MinNorm(), bg.MinNorm(include_exclusive=True)
        whole(CompiledWhole(copy.deepcopy(eager)).losses(*make_batch())).backward()
    everywhere(eager.losses(*make_batch())).backward()
    torch.testing.assert_close(whole.last.gramian, everywhere.last.gramian)


def test_two_balancers_in_one_process():
    models = LateFusion(), LateFusion(trunk=False)
    references = copy.deepcopy(models)
    balancers = bg.Uniform(record_gramian=True), bg.Uniform(record_gramian=True)
    optimizers = [torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9) for model in models]
    for step in range(STEPS):
        totals = [b(m.losses(*make_batch(seed=step))) for b, m in zip(balancers, models, strict=True)]
        for optimizer, total in zip(reversed(optimizers), reversed(totals), strict=True):
            optimizer.zero_grad()
            total.backward()  # in the other order than they were built
            optimizer.step()
    for reference, model in zip(references, models, strict=True):
        train(reference, Plain(), plain_step)
        for want, got in zip(reference.parameters(), model.parameters(), strict=True):
            torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)
