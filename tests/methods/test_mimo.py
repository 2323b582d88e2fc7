"""MIMO: the toy's exact minimisers, both bounds, limits, edge cases, state."""

import math
import warnings

import pytest
import torch
from torch import nn

import balanced_grad as bg
from balanced_grad.methods._smooth_max import smooth_max
from tests.conftest import NoHostReads


def toy(x):
    """f0 = (x - 2)^2 joint; f1 = (x + 1)^2 and f2 = (x - 1)^2: the worst-modality optimum is the kink x = 0."""
    return {"joint": (x - 2) ** 2, "one": (x + 1) ** 2, "two": (x - 1) ** 2}


def minimise(balancer, steps=4000, lr=2e-3):
    x = torch.tensor(1.0, dtype=torch.float64, requires_grad=True)
    for step in range(steps):
        (grad,) = torch.autograd.grad(balancer(toy(x)), x)
        with torch.no_grad():
            x -= lr * (1 if step < steps // 2 else 0.05) * grad
    return x.item()


class TestToy:
    @pytest.mark.parametrize(
        ("penalty", "smoothing", "minimiser"),
        [(1, 1e-9, 0.5), (2, 0.1, 0.0717), (4, 0.1, 0.0254), (10, 0.1, 0.0096), (10, 1.0, 0.0648)],
    )
    def test_exact_minimisers(self, penalty, smoothing, minimiser):
        x = torch.linspace(-1.0, 2.0, 300_001, dtype=torch.float64)
        f = toy(x)
        pair = torch.stack([f["one"], f["two"]])
        phi = f["joint"] + penalty * smoothing * torch.logsumexp(pair / smoothing, 0)
        assert x[phi.argmin()].item() == pytest.approx(minimiser, abs=6e-5)
        at = torch.tensor(minimiser, dtype=torch.float64, requires_grad=True)
        total = bg.MIMO(penalty, smoothing)(toy(at))
        torch.testing.assert_close(
            total.item(), phi.min().item() - penalty * smoothing * math.log(2), rtol=0, atol=2e-5
        )

    @pytest.mark.parametrize(("penalty", "smoothing"), [(2, 0.1), (10, 1.0)])
    def test_gradient_descent_arrives_there(self, penalty, smoothing):
        want = {(2, 0.1): 0.0717, (10, 1.0): 0.0648}[penalty, smoothing]
        assert minimise(bg.MIMO(penalty, smoothing)) == pytest.approx(want, abs=2e-4)

    @pytest.mark.parametrize("penalty", [1, 2, 4, 10])
    @pytest.mark.parametrize("smoothing", [0.01, 0.1, 1.0])
    def test_both_bounds_hold(self, penalty, smoothing):
        x = torch.linspace(-2.0, 3.0, 50_001, dtype=torch.float64)
        f = toy(x)
        pair = torch.stack([f["one"], f["two"]], 1)
        phi = (
            f["joint"]
            + penalty
            * torch.stack([smooth_max(row, smoothing)[0] for row in pair[::50]]).repeat_interleave(50)[: len(x)]
        )
        best = x[phi.argmin()]
        worst, least, joint_there = max((best + 1) ** 2, (best - 1) ** 2), 1.0, 4.0  # lexicographic optimum x = 0
        delta = 4.0
        assert worst - least <= delta / penalty + smoothing * math.log(2)
        assert (best - 2) ** 2 <= joint_there + penalty * smoothing * math.log(2)

    def test_value_is_the_objective_and_its_derivative_the_gradient(self):
        balancer = bg.MIMO(3.0, 0.4, offsets={"one": 0.2, "two": -0.1})
        for at in (-1.3, 0.2, 2.7):
            x = torch.tensor(at, dtype=torch.float64, requires_grad=True)
            (grad,) = torch.autograd.grad(balancer(toy(x)), x)
            step = 1e-6
            ends = [balancer(toy(x + sign * step)).item() for sign in (1, -1)]
            assert grad.item() == pytest.approx((ends[0] - ends[1]) / (2 * step), rel=1e-6)


def two_heads():
    torch.manual_seed(1)
    heads = {name: nn.Linear(3, 1) for name in ("joint", "audio", "video")}
    x = torch.randn(4, 3)
    return heads, lambda: {name: head(x).square().mean() for name, head in heads.items()}


def grads_of(balancer, heads, losses):
    for head in heads.values():
        head.zero_grad()
    balancer(losses).backward()
    return {name: head.weight.grad for name, head in heads.items()}


class TestLimits:
    def test_infinite_smoothing_with_the_default_penalty_is_uniform(self):
        heads, losses = two_heads()
        torch.testing.assert_close(
            grads_of(bg.MIMO(smoothing=math.inf), heads, losses()), grads_of(bg.Uniform(), heads, losses())
        )

    def test_zero_smoothing_trains_only_the_worst(self):
        heads, losses = two_heads()
        values = losses()
        worst = max(("audio", "video"), key=lambda name: values[name].item())
        other = {"audio": "video", "video": "audio"}[worst]
        grads = grads_of(bg.MIMO(1.0, 0.0), heads, values)
        assert grads[other].abs().max() == 0
        assert grads[worst].abs().max() > 0

    def test_zero_penalty_is_joint_training(self):
        heads, losses = two_heads()
        grads = grads_of(bg.MIMO(0.0), heads, losses())
        assert grads["joint"].abs().max() > 0
        assert grads["audio"].abs().max() == grads["video"].abs().max() == 0

    @pytest.mark.parametrize("names", [("audio",), ("joint",), ("joint", "audio"), ("audio", "video")])
    def test_any_subset_of_losses(self, names):
        _, losses = two_heads()
        value = bg.MIMO(2.0)({name: losses()[name] for name in names})
        want = {name: loss.item() for name, loss in losses().items()}
        if names == ("audio",):
            assert value.item() == pytest.approx(2 * want["audio"])
        if names == ("joint",):
            assert value.item() == pytest.approx(want["joint"])
        if names == ("joint", "audio"):  # M = 1 needs no special case: the centring vanishes
            assert value.item() == pytest.approx(want["joint"] + 2 * want["audio"])


class CountBackward(torch.autograd.Function):
    calls = 0

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, grad):
        CountBackward.calls += 1
        return grad


@pytest.mark.parametrize(("balancer", "passes"), [(bg.MIMO(), 1), (bg.Uniform(), 1), (bg.MinNorm(), 3)], ids=repr)
def test_one_backward_only(balancer, passes):
    x = torch.ones(3, requires_grad=True)
    z = CountBackward.apply(x)
    CountBackward.calls = 0
    balancer({"joint": z.sum(), "audio": z.square().sum(), "video": (2 * z).sum()}).backward()
    assert CountBackward.calls == passes


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_losses_are_weighed_in_float32(dtype):
    leaf = torch.tensor(30.0, dtype=dtype, requires_grad=True)
    balancer = bg.MIMO(smoothing=1e-4)  # 30 / 1e-4 overflows half precision
    total = balancer({"joint": leaf, "audio": leaf * 1.5, "video": leaf * 1.25})
    assert total.dtype == torch.float32
    total.backward()
    assert balancer.last.weights.tolist() == [1.0, 2.0, 0.0]
    assert leaf.grad.item() == pytest.approx(4.0)


class TestNonFinite:
    @pytest.mark.parametrize("bad", [math.nan, math.inf])
    def test_a_non_finite_modality_counts_as_missing_with_a_warning(self, bad):
        heads, losses = two_heads()
        broken = losses()
        broken["video"] = broken["video"] * bad
        with pytest.warns(UserWarning, match=r"\['video'\] are not finite"):
            got = grads_of(bg.MIMO(), heads, broken)
        want = grads_of(bg.MIMO(), heads, losses() | {"video": None})
        assert got["video"] is None
        torch.testing.assert_close(got["audio"], want["audio"])

    def test_a_non_finite_joint_loss_is_not_hidden(self):
        heads, losses = two_heads()
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            total = bg.MIMO()(losses() | {"joint": heads["joint"].weight.sum() * math.inf})
        assert not total.isfinite()

    def test_nothing_left_is_not_hidden(self):
        heads, _ = two_heads()
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            total = bg.MIMO()({"audio": heads["audio"].weight.sum() * math.nan})
        total.backward()
        assert heads["audio"].weight.grad is not None


class TestSchedulesAndState:
    def losses(self, audio=2.0, video=1.0):
        leaf = torch.ones((), requires_grad=True)
        return {"joint": leaf, "audio": audio * leaf, "video": video * leaf}

    def test_ramp_rises_linearly_from_zero(self):
        balancer = bg.MIMO(4.0, math.inf, ramp_steps=4)
        seen = []
        for _ in range(6):
            balancer(self.losses())
            with torch.no_grad():
                balancer(self.losses())  # validation does not advance it
            seen.append(balancer.last.weights[1].item())
        assert seen == [0.0, 0.5, 1.0, 1.5, 2.0, 2.0]

    @pytest.mark.parametrize(("penalty", "scale"), [(4.0, 0.25), (0.5, 1.0), (0.0, 1.0)])
    def test_scale_by_penalty_bounds_the_step(self, penalty, scale):
        plain, scaled = bg.MIMO(penalty), bg.MIMO(penalty, scale_by_penalty=True)
        torch.testing.assert_close(scaled(self.losses()), scale * plain(self.losses()))
        torch.testing.assert_close(scaled.last.weights, scale * plain.last.weights)

    def test_average_starts_at_the_first_loss_and_follows_with_the_decay(self):
        balancer = bg.MIMO(smoothing=0.5, ema=0.75)
        balancer(self.losses(2.0, 1.0))
        torch.testing.assert_close(balancer.last.weights[1:], 2 * torch.tensor([2.0, 1.0]).div(0.5).softmax(0))
        balancer(self.losses(1.0, 1.0))
        average = (0.75 * 2.0 + 1.0) / 1.75  # bias corrected
        torch.testing.assert_close(balancer.last.weights[1:], 2 * torch.tensor([average, 1.0]).div(0.5).softmax(0))

    def test_a_missing_modality_keeps_its_average(self):
        balancer = bg.MIMO(ema=0.5)
        balancer(self.losses(5.0, 1.0))
        before = balancer.state()["averages"]["audio"]
        balancer(self.losses() | {"audio": None})
        assert balancer.state()["averages"]["audio"] == before
        assert balancer.last.weights.tolist() == [1.0, 1.0]

    def test_evaluation_mode_learns_nothing(self):
        balancer = bg.MIMO(ema=0.5, ramp_steps=3).eval()
        balancer(self.losses())
        assert balancer.state() == {"steps": 0, "averages": {}}

    def test_resumes_bitwise_also_through_a_weights_only_file(self, tmp_path):
        through, stopped = bg.MIMO(ema=0.9, ramp_steps=7), bg.MIMO(ema=0.9, ramp_steps=7)
        series = [(2.0 + math.sin(k), 1.0 + math.cos(k)) for k in range(8)]
        for pair in series[:4]:
            through(self.losses(*pair))
            stopped(self.losses(*pair))
        torch.save(stopped.state_dict(), tmp_path / "balancer.pt")
        resumed = bg.MIMO(ema=0.9, ramp_steps=7)
        resumed.load_state_dict(torch.load(tmp_path / "balancer.pt", weights_only=True))
        for pair in series[4:]:
            assert torch.equal(through(self.losses(*pair)), resumed(self.losses(*pair)))
            assert torch.equal(through.last.weights, resumed.last.weights)

    @pytest.mark.parametrize("offsets", [None, {"audio": 1.0}])
    def test_a_refused_step_leaves_the_state_alone(self, offsets):
        balancer = bg.MIMO(ema=0.5, ramp_steps=3, offsets=offsets)
        losses = self.losses() if offsets else {name: loss.detach() for name, loss in self.losses().items()}
        with pytest.raises(ValueError, match=r"has no (entry|graph)"):
            balancer(losses)
        assert balancer.state() == {"steps": 0, "averages": {}}
        assert balancer.last is None

    def test_offsets_move_who_is_worst(self):
        balancer = bg.MIMO(1.0, 0.0, offsets={"audio": 1.5, "video": 0.0})
        balancer(self.losses(2.0, 1.0))
        assert balancer.last.weights.tolist() == [1.0, 0.0, 1.0]

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ({"penalty": -1.0}, r"penalty=-1.0: give a finite number >= 0"),
            ({"penalty": math.inf}, "penalty=inf"),
            ({"smoothing": -0.1}, "smoothing=-0.1"),
            ({"smoothing": math.nan}, "smoothing=nan"),
            ({"ramp_steps": -1}, "ramp_steps=-1"),
            ({"ema": 1.0}, "ema=1.0: give a decay between 0 and 1"),
        ],
    )
    def test_bad_settings(self, arguments, message):
        with pytest.raises(ValueError, match=message):
            bg.MIMO(**arguments)

    def test_a_loss_without_an_offset_is_named(self):
        with pytest.raises(ValueError, match="loss 'video' has no entry in offsets="):
            bg.MIMO(offsets={"audio": 1.0})(self.losses())


@pytest.mark.parametrize(
    "settings_",
    [
        {},
        {"penalty": 3.0, "smoothing": 0.0},
        {"smoothing": math.inf},
        {"ema": 0.7, "offsets": {"audio": 0.1, "video": 0.4}},
        {"penalty": 4.0, "ramp_steps": 3, "scale_by_penalty": True},
        {"scale_by_penalty": True},
    ],
    ids=repr,
)
@pytest.mark.parametrize("bad", [False, True])
def test_the_path_of_other_devices_gives_the_same_and_reads_nothing(settings_, bad, monkeypatch):
    """On a GPU the losses stay there; the same code is run here on CPU tensors."""
    host, device = bg.MIMO(**settings_), bg.MIMO(**settings_)
    generator = torch.Generator().manual_seed(0)
    for step in range(6):
        losses = torch.rand(3, generator=generator) * 3
        if bad and step in (0, 3):
            losses[step % 2] = math.nan  # a modality, then the joint loss
        problem = bg.Problem(("audio", "joint", "video"), losses)
        want = host.weigh(problem)
        with monkeypatch.context() as patch:
            patch.setattr("balanced_grad.host.on_host", lambda *_: False)
            with NoHostReads():
                got = device.weigh(problem)
        torch.testing.assert_close(got.weights, want.weights, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(
            got.objective(problem), want.objective(problem), rtol=1e-5, atol=1e-6, equal_nan=True
        )
    restored = bg.MIMO(**settings_)
    restored.load_state_dict(device.state_dict())
    torch.testing.assert_close(restored.weigh(problem).weights, host.weigh(problem).weights, rtol=1e-5, atol=1e-6)


def test_without_modalities_on_other_devices(monkeypatch):
    monkeypatch.setattr("balanced_grad.host.on_host", lambda *_: False)
    chosen = bg.MIMO().weigh(bg.Problem(("joint",), torch.tensor([2.0])))
    assert (chosen.weights.tolist(), chosen.value.item()) == ([1.0], 2.0)
