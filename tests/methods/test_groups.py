"""Problems of their own per encoder, tensor or named group: MinNorm, MMPareto and foreign weightings."""

import math

import pytest
import torch
from torchjd.aggregation import AlignedMTLWeighting, CAGradWeighting, PCGradWeighting, UPGradWeighting

import balanced_grad as bg
from balanced_grad.solvers import min_norm
from tests.conftest import MODALITIES, LateFusion, make_batch


def per_loss_grads(model, modalities):
    """``{parameter name: {loss name: gradient}}`` by plain autograd."""
    losses = model.losses(*make_batch(modalities))
    named = dict(model.named_parameters())
    out = {name: {} for name in named}
    for loss_name, loss in losses.items():
        grads = torch.autograd.grad(loss, list(named.values()), retain_graph=True, allow_unused=True)
        for name, grad in zip(named, grads, strict=True):
            if grad is not None:
                out[name][loss_name] = grad.double()
    return out


def balanced(model, balancer, modalities):
    balancer(model.losses(*make_batch(modalities))).backward()
    return {name: p.grad.double() for name, p in model.named_parameters()}


def min_norm_of(grads, names):
    rows = torch.stack([torch.cat([grads[name][loss].flatten() for name in names]) for loss in grads[names[0]]])
    return rows, min_norm(rows @ rows.T).weights


@pytest.mark.parametrize("modalities", [MODALITIES[:2], MODALITIES])
def test_one_problem_per_encoder(modalities):
    model = LateFusion(modalities, trunk=False)
    grads = per_loss_grads(model, modalities)
    balancer = bg.MinNorm(groups="reach", normalize="none", rescale="none")
    got = balanced(model, balancer, modalities)
    assert sorted(balancer.last.problems) == sorted(f"joint+{m}" for m in modalities)
    assert balancer.last.gramian.shape == (len(modalities), len(modalities) + 1, len(modalities) + 1)
    for modality in modalities:
        names = [name for name in got if name.startswith(f"encoders.{modality}")]
        rows, weights = min_norm_of(grads, names)
        torch.testing.assert_close(
            torch.cat([got[name].flatten() for name in names]), weights @ rows, rtol=1e-4, atol=1e-7
        )
    for name in (name for name in got if name.startswith(("heads", "fused"))):
        (only,) = grads[name].values()
        torch.testing.assert_close(got[name], only)


def test_one_problem_per_tensor():
    model = LateFusion()
    grads = per_loss_grads(model, MODALITIES[:2])
    balancer = bg.MinNorm(groups="tensor", normalize="none", rescale="none", params=model.named_parameters())
    got = balanced(model, balancer, MODALITIES[:2])
    shared = [name for name in got if name.startswith(("encoders", "trunk"))]
    assert sorted(balancer.last.problems) == sorted(shared)
    for name in shared:
        rows, weights = min_norm_of(grads, [name])
        torch.testing.assert_close(got[name].flatten(), weights @ rows, rtol=1e-4, atol=1e-7)


def test_named_groups_and_the_plain_sum_outside_them():
    model = LateFusion()
    grads = per_loss_grads(model, MODALITIES[:2])
    groups = {"sound": model.encoders["audio"], "deep": model.trunk.parameters()}
    balancer = bg.MinNorm(groups=groups, normalize="none", rescale="none")
    got = balanced(model, balancer, MODALITIES[:2])
    assert sorted(balancer.last.problems) == ["deep", "sound"]
    for prefix in ("encoders.audio", "trunk"):
        names = [name for name in got if name.startswith(prefix)]
        rows, weights = min_norm_of(grads, names)
        torch.testing.assert_close(
            torch.cat([got[name].flatten() for name in names]), weights @ rows, rtol=1e-4, atol=1e-7
        )
    for name in (name for name in got if name.startswith(("encoders.video", "heads", "fused"))):
        torch.testing.assert_close(got[name], sum(grads[name].values()))
    logged = balancer.last.to_dict()
    assert set(logged) == {"losses", "weights", "weights/sound", "weights/deep"}
    assert logged["weights"]["joint"] == pytest.approx(
        (logged["weights/sound"]["joint"] + logged["weights/deep"]["joint"]) / 2
    )


def test_all_is_the_gramian_of_reach_summed():
    model = LateFusion(MODALITIES)
    whole, parts = bg.MinNorm(), bg.MinNorm(groups="reach")
    for balancer in (whole, parts):
        balancer(model.losses(*make_batch(MODALITIES))).backward()
    torch.testing.assert_close(parts.last.gramian.sum(0), whole.last.gramian)


@pytest.mark.parametrize(
    "make",
    [
        lambda **k: bg.MinNorm(groups="reach", **k),
        lambda **k: bg.MMPareto(**k),
        lambda **k: bg.Gramian(UPGradWeighting(), groups="reach", **k),
    ],
)
def test_losses_that_never_meet_are_summed(make):
    model = LateFusion(trunk=False)
    grads = per_loss_grads(model, MODALITIES[:2])
    losses = model.losses(*make_batch())
    make()({name: losses[name] for name in MODALITIES[:2]}).backward()
    for name, p in model.named_parameters():
        if "fused" not in name:
            own = next(m for m in MODALITIES[:2] if m in name)
            torch.testing.assert_close(p.grad.double(), grads[name][own])


@pytest.mark.parametrize(
    ("groups", "error", "message"),
    [
        ("layer", ValueError, "groups='layer': choose one of"),
        ({}, TypeError, "groups={}: give one of"),
        ({"audio": []}, ValueError, r"groups\['audio'\] has no parameter"),
    ],
)
def test_bad_groups(groups, error, message):
    with pytest.raises(error, match=message):
        bg.MinNorm(groups=groups)


def test_overlapping_groups_and_options_that_exclude_each_other():
    layer = torch.nn.Linear(2, 2)
    with pytest.raises(ValueError, match="is in groups 'audio' and 'video'"):
        bg.MinNorm(groups={"audio": layer, "video": [layer.weight]})
    with pytest.raises(ValueError, match="cannot be combined with level='features'"):
        bg.MinNorm(groups="reach", level="features")
    with pytest.raises(ValueError, match="cannot be combined with include_exclusive=True"):
        bg.MinNorm(groups="tensor", include_exclusive=True)


def mmpareto_by_hand(joint, own, gamma, unit):
    """The published rule on one encoder, ``{tensor: gradient}`` each, by its formulas."""
    g, u = (torch.cat([grad.flatten() for grad in grads]) for grads in (joint, own))
    c = 0.5
    if torch.dot(g, u) <= 0:
        c = float((torch.dot(u - g, u) / (u - g).square().sum()).clamp(0, 1))
    out = []
    whole = (g + u).norm() / (2 * (c * g + (1 - c) * u)).norm()
    for a, b in zip(joint, own, strict=True):
        h = 2 * (c * a + (1 - c) * b)
        factor = (a + b).norm() / h.norm() if unit == "tensor" else whole
        out.append(gamma * h * max(1.0, float(factor)))
    return out


@pytest.mark.parametrize("unit", ["tensor", "encoder"])
@pytest.mark.parametrize("seed", range(6))
def test_mmpareto_equals_its_formulas(unit, seed):
    generator = torch.Generator().manual_seed(seed)
    tensors = [torch.zeros(shape, requires_grad=True) for shape in ((3, 2), (4,))]
    joint, own = ([torch.randn(t.shape, generator=generator) for t in tensors] for _ in range(2))
    if seed % 2:
        own = [b - 2 * a for a, b in zip(joint, own, strict=True)]  # a conflict
    losses = {
        "joint": sum((a * t).sum() for a, t in zip(joint, tensors, strict=True)),
        "audio": sum((b * t).sum() for b, t in zip(own, tensors, strict=True)),
    }
    bg.MMPareto(1.5, rescale=unit)(losses).backward()
    for tensor, want in zip(tensors, mmpareto_by_hand(joint, own, 1.5, unit), strict=True):
        torch.testing.assert_close(tensor.grad, want, rtol=1e-4, atol=1e-6)


def test_mmpareto_at_120_degrees_leans_to_the_smaller_gradient_but_keeps_the_length():
    w = torch.zeros(2, requires_grad=True)
    big = 10 * torch.tensor([math.cos(2 * math.pi / 3), math.sin(2 * math.pi / 3)])
    bg.MMPareto(1.0)({"joint": (big * w).sum(), "audio": w[0]}).backward()
    assert w.grad.norm().item() == pytest.approx((big + torch.tensor([1.0, 0.0])).norm().item(), rel=1e-4)
    assert (w.grad @ torch.stack([big / 10, torch.tensor([1.0, 0.0])]).T / w.grad.norm()).tolist() == pytest.approx(
        [0.08, 0.82], abs=5e-3
    )


def test_mmpareto_without_conflict_is_gamma_times_the_sum():
    w = torch.zeros(2, requires_grad=True)
    bg.MMPareto(1.5)({"joint": 2 * w[0], "audio": w[0] + w[1]}).backward()
    torch.testing.assert_close(w.grad, torch.tensor([4.5, 1.5]))


def test_mmpareto_passes_non_finite_gradients_on():
    w = torch.zeros(2, requires_grad=True)
    bg.MMPareto()({"joint": torch.inf * w[0], "audio": w[0] + w[1]}).backward()
    assert not w.grad.isfinite().all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"gamma": 0.0}, "gamma=0.0: give a positive"),
        ({"gamma": math.nan}, "gamma=nan"),
        ({"rescale": "layer"}, "rescale='layer'"),
    ],
)
def test_bad_mmpareto_settings(arguments, message):
    with pytest.raises(ValueError, match=message):
        bg.MMPareto(**arguments)


class TestForeignWeightings:
    @pytest.mark.parametrize(
        "weighting", [UPGradWeighting(), PCGradWeighting(), AlignedMTLWeighting(), CAGradWeighting(c=0.5)], ids=str
    )
    def test_torchjd_weightings(self, weighting):
        model, balancer = LateFusion(), bg.Gramian(weighting)
        torch.manual_seed(0)
        balancer(model.losses(*make_batch())).backward()
        gramian = balancer.last.gramian
        torch.manual_seed(0)
        want = weighting(gramian / gramian.diagonal().mean())
        torch.testing.assert_close(balancer.last.weights, want.to(torch.float64), rtol=1e-4, atol=1e-6)

    def test_small_gradients_are_balanced_as_large_ones_are(self):
        """torchjd's UPGrad answers gradients below its absolute tolerance with the plain mean."""
        weights = []
        for scale in (1.0, 1e-6):
            w = torch.zeros(2, dtype=torch.float64, requires_grad=True)
            balancer = bg.Gramian(UPGradWeighting())
            balancer({"joint": scale * (2 * w[0] + w[1]), "audio": scale * (w[1] - 3 * w[0])}).backward()
            weights.append(balancer.last.weights)
        torch.testing.assert_close(weights[0], weights[1])
        raw = bg.Gramian(UPGradWeighting(), normalize=False)
        w = torch.zeros(2, dtype=torch.float64, requires_grad=True)
        raw({"joint": 1e-6 * (2 * w[0] + w[1]), "audio": 1e-6 * (w[1] - 3 * w[0])}).backward()
        assert (raw.last.weights - weights[0]).abs().max() > 0.1

    def test_a_zero_row_never_reaches_the_rule(self):
        seen = []

        def rule(gramian):
            seen.append(gramian.shape)
            return torch.full((len(gramian),), 0.25)

        w = torch.zeros(2, requires_grad=True)
        balancer = bg.Gramian(rule)
        balancer({"joint": w.sum(), "audio": 2 * w[0], "video": (0 * w).sum()}).backward()
        assert seen == [(2, 2)]
        assert balancer.last.weights.tolist() == [0.25, 0.25, 1.0]

    def test_non_finite_gradients_do_not_call_the_rule(self):
        def rule(gramian):
            raise AssertionError("called")

        w = torch.zeros(2, requires_grad=True)
        bg.Gramian(rule)({"joint": w.sum() * torch.inf, "audio": w[0]}).backward()
        assert not w.grad.isfinite().any()

    @pytest.mark.parametrize(
        ("rule", "error", "message"),
        [
            (3, TypeError, "weighting=3 is not callable"),
            (lambda gramian: [1.0, 1.0], TypeError, "returned a list"),
            (lambda gramian: torch.ones(3), ValueError, r"returned shape \(3,\), not \(2,\)"),
        ],
    )
    def test_bad_rules(self, rule, error, message):
        w = torch.zeros(2, requires_grad=True)
        with pytest.raises(error, match=message):
            bg.Gramian(rule)({"joint": w.sum(), "audio": w[0]}).backward()
        assert w.grad is None

    def test_state_of_a_module_is_in_the_state_dict(self):
        class Counting(torch.nn.Module):
            def __init__(self):
                super().__init__()
                self.register_buffer("calls", torch.zeros(()))

            def forward(self, gramian):
                self.calls += 1
                return torch.ones(len(gramian))

        w, balancer = torch.zeros(2, requires_grad=True), bg.Gramian(Counting())
        balancer({"joint": w.sum(), "audio": w[0]}).backward()
        fresh = bg.Gramian(Counting())
        fresh.load_state_dict(balancer.state_dict())
        assert fresh.weighting.calls == 1
