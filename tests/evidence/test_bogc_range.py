"""BOGC in any unit: losses that are fitted, small, large, of any order of features, against float64."""

import copy
import itertools

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy, mse_loss, one_hot

import balanced_grad as bg
from balanced_grad.evidence import Laplace, MicroBatchVariance, SampleVariance, StepVariance

LINEAR = [SampleVariance(), Laplace(), Laplace(num_data=500)]


class Late(nn.Module):
    """An encoder and a head for each of two modalities, and a joint head."""

    def __init__(self, outputs=3, width=5):
        super().__init__()
        torch.manual_seed(0)
        self.encoders = nn.ModuleDict(
            {m: nn.Sequential(nn.Linear(6, width), nn.ReLU(), nn.Linear(width, width)) for m in ("audio", "video")}
        )
        self.heads = nn.ModuleDict({"audio": nn.Linear(width, outputs), "video": nn.Linear(width, outputs)})
        self.joint = nn.Linear(2 * width, outputs)

    def outputs(self, x):
        z = {m: encoder(x) for m, encoder in self.encoders.items()}
        return {"joint": self.joint(torch.cat(list(z.values()), 1)), **{m: self.heads[m](z[m]) for m in z}}

    def losses(self, seed=0, margin=0.0, scale=1.0):
        generator = torch.Generator().manual_seed(seed)
        x, y = torch.randn(16, 6, generator=generator), torch.randint(3, (16,), generator=generator)
        x = x.to(self.joint.weight.dtype)
        sure = {"audio": margin * one_hot(y, 3)}
        return {m: scale * cross_entropy(out + sure.get(m, 0), y) for m, out in self.outputs(x).items()}


def gradient(model):
    return torch.cat([p.grad.flatten() for p in model.parameters()])


@pytest.mark.parametrize("variance", [*LINEAR, Laplace("softmax"), StepVariance(), MicroBatchVariance(2)], ids=str)
@pytest.mark.parametrize("options", [{}, {"unit": "site"}, {"unit": "site", "precision": "relative"}], ids=str)
def test_a_loss_of_any_smallness_leaves_everything_finite(variance, options):
    for margin in (0, 20, 40, 42, 45, 46, 60, 90):
        model = Late()
        block = model.heads if variance == Laplace("softmax") else model.encoders
        balancer = bg.BOGC(block, variance, **options)
        for seed in range(3):
            balancer(model.losses(seed, 0.0 if block is model.heads else margin)).backward()
            assert gradient(model).isfinite().all()
            assert all(torch.as_tensor(value).isfinite().all() for value in balancer.last.trust)
        assert all(t.isfinite().all() for history in balancer._histories for t in history.tensors.values())


@pytest.mark.parametrize("variance", LINEAR, ids=str)
def test_in_its_own_unit_a_sources_size_does_not_matter(variance):
    """Where only the scale of audio's gradient changes, audio is trusted alike."""
    beliefs = []
    for margin in (30, 40, 44, 46, 50, 70, 90):
        model = Late()
        balancer = bg.BOGC(model.encoders, variance)
        balancer(model.losses(margin=margin)).backward()
        beliefs.append(balancer.last.trust.belief)
    torch.testing.assert_close(torch.stack(beliefs), beliefs[0].expand(len(beliefs), -1), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("variance", [*LINEAR, StepVariance(), MicroBatchVariance(2)], ids=str)
@pytest.mark.parametrize("options", [{}, {"unit": "site"}, {"unit": "site", "precision": "relative"}], ids=str)
@pytest.mark.parametrize("scale", [1e-12, 1e-6, 1e6, 1e12])
def test_losses_times_a_factor_change_nothing(variance, options, scale):
    one = Late()
    two = copy.deepcopy(one)
    ones, twos = (bg.BOGC(model.encoders, variance, **options) for model in (one, two))
    for seed in range(4):
        one.zero_grad()
        two.zero_grad()
        ones(one.losses(seed)).backward()
        twos(two.losses(seed, scale=scale)).backward()
        error = gradient(two) / scale - gradient(one)
        assert error.norm() <= 1e-3 * gradient(one).norm()


@pytest.mark.parametrize("ratio", [1e3, 1e4])
def test_unstandardised_targets_against_float64(ratio):
    """Items' gradients that agree but for their last digits: the fused gradient is that of float64."""
    fused = {}
    for dtype in (torch.float32, torch.float64):
        model = Late(outputs=1).to(dtype)
        generator = torch.Generator().manual_seed(0)
        x = 1 + torch.randn(64, 6, generator=generator) / ratio
        y = ratio + torch.randn(64, 1, generator=generator)
        balancer = bg.BOGC(model.encoders)
        balancer({m: mse_loss(out, y.to(dtype)) for m, out in model.outputs(x.to(dtype)).items()}).backward()
        fused[dtype] = gradient(model).double()
    error = (fused[torch.float32] - fused[torch.float64]).norm() / fused[torch.float64].norm()
    assert error <= 0.01


@pytest.mark.parametrize(("bias", "dead"), [*itertools.product((True, False), repeat=2)])
@pytest.mark.parametrize("moved", ["inputs", "outputs"])
def test_the_order_of_the_features_does_not_matter(bias, dead, moved):
    def fused(order):
        torch.manual_seed(0)
        x = torch.randn(16, 1024) * torch.randn(1024).exp()
        y = torch.randint(5, (16,))
        if dead:
            x[:, ::256] = 0
        layer, heads = nn.Linear(1024, 1024, bias=bias), nn.ModuleList(nn.Linear(1024, 5) for _ in range(2))
        if moved == "inputs":
            layer.weight.data, x = layer.weight.data[:, order], x[:, order]
        else:
            layer.weight.data = layer.weight.data[order]
            for parameter in (*layer._parameters.values(),) if bias else ():
                parameter.data = parameter.data[order] if parameter.dim() == 1 else parameter.data
            for head in heads:
                head.weight.data = head.weight.data[:, order]
        balancer = bg.BOGC({"a": layer}, decay=0.0)
        z = layer(x) / 32
        losses = {"joint": cross_entropy(heads[0](z), y), "a": cross_entropy(heads[1](z), y)}
        plain = torch.autograd.grad(sum(losses.values()), layer.weight, retain_graph=True)[0]
        balancer(losses).backward()
        back = order.argsort()
        grad = layer.weight.grad
        grad, plain = (g[:, back] if moved == "inputs" else g[back] for g in (grad, plain))
        return grad, plain, balancer.last.trust.uncertainty

    one, plain, uncertainty = fused(torch.arange(1024))
    two, *_ = fused(torch.randperm(1024, generator=torch.Generator().manual_seed(7)))
    changed = (one - plain).norm()
    assert changed > 0.01 * plain.norm()
    assert uncertainty < 0.9
    assert (one - two).norm() <= 0.03 * changed


@pytest.mark.parametrize("precision", ["absolute", "relative"])
def test_a_spike_does_not_stay_for_ever(precision):
    model = Late()
    balancer = bg.BOGC(model.encoders, StepVariance(), precision=precision)
    for seed, scale in enumerate((1.0, 1e20, 1.0, 1.0)):
        balancer(model.losses(seed, scale=scale)).backward()
        assert all(t.isfinite().all() for history in balancer._histories for t in history.tensors.values())


def test_published_is_equal_heads_by_index_in_one_unit():
    one = Late()
    two = copy.deepcopy(one)
    published = bg.BOGC.published(one.heads, num_data=500)
    spelt_out = bg.BOGC(two.heads, Laplace(num_data=500), by_index=True, unit="site")
    for model, balancer in ((one, published), (two, spelt_out)):
        balancer(model.losses()).backward()
    assert torch.equal(gradient(one), gradient(two))
    torch.testing.assert_close(one.heads["audio"].weight.grad, one.heads["video"].weight.grad)
    assert bg.BOGC.published(one.heads, StepVariance(), kappa=2.0).fusion.kappa == 2.0
    with pytest.raises(ValueError, match="num_data=3 beside variance=StepVariance"):
        bg.BOGC.published(one.heads, StepVariance(), num_data=3)
    with pytest.raises(ValueError, match="shape"):
        bg.BOGC.published({"audio": nn.Linear(3, 2), "video": nn.Linear(4, 2)})


def test_going_back_to_a_state_goes_back_to_its_draws():
    """Also in the balancer that has drawn since."""
    model = Late()
    balancer = bg.BOGC(model.heads, Laplace("softmax", draws=2), by_index=True)

    def step(seed):
        model.zero_grad()
        balancer(model.losses(seed)).backward()
        return gradient(model)

    step(0)
    saved = copy.deepcopy(balancer.state_dict())
    want = step(1)
    step(2)
    balancer.load_state_dict(saved)
    assert torch.equal(step(1), want)
