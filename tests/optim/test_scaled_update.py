"""Factors on the update: p_before + f (p_after - p_before), exactly and only there."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn, optim
from torch.distributed.tensor import DTensor, Shard, init_device_mesh

import balanced_grad as bg
from balanced_grad import BalancedOptimizer, ModalityGroups
from balanced_grad.optim import is_scale_invariant
from tests.conftest import NoHostReads
from tests.optim.conftest import CASES, Paced, Run, SignSGDMomentum

every = pytest.mark.parametrize("name", CASES)


class Fixed(bg.Uniform):
    """The plain sum, with the factors given."""

    def __init__(self, **scales):
        super().__init__()
        self.scales = {name: torch.as_tensor(scale) for name, scale in scales.items()}

    def update_scales(self):
        return self.scales


@every
@settings(max_examples=20, deadline=None)
@given(audio=st.floats(0, 2), video=st.floats(0, 2))
def test_each_modality_moves_by_its_factor(name, audio, video):
    scaled, plain = Run(name, Fixed(audio=audio, video=video)), Run(name, Fixed())
    before = scaled.parameters()
    scaled.step()
    plain.step()
    for old, new, full, factor in zip(
        before, scaled.parameters(), plain.parameters(), (audio, video, 1.0), strict=True
    ):
        torch.testing.assert_close(new, old + factor * (full - old), rtol=1e-6, atol=1e-7)


@every
def test_one_and_zero_are_exact(name):
    scaled, plain = Run(name, Fixed(audio=1.0, video=0.0)), Run(name, Fixed())
    video = scaled.model.video.detach().clone()
    scaled.step()
    plain.step()
    assert torch.equal(scaled.model.audio, plain.model.audio)
    assert torch.equal(scaled.model.fused, plain.model.fused)
    assert torch.equal(scaled.model.video, video)


def displacement(kind, *, gradient=1.0, update=1.0, steps=10, **settings):
    p = nn.Parameter(torch.zeros(1, dtype=torch.float64))
    optimizer = BalancedOptimizer(kind([p], lr=0.1, **settings), Fixed(audio=update), modalities={"audio": p})
    for _ in range(steps):
        (gradient * p.sum()).backward()
        optimizer.step()
        optimizer.zero_grad()
    return p.item()


ADAMS = [optim.Adam, optim.AdamW, optim.NAdam, optim.Adamax]  # RAdam starts with steps of plain momentum


@pytest.mark.parametrize("kind", ADAMS)
@pytest.mark.parametrize("factor", [0.5, 0.1])
def test_adam_cancels_a_scaled_gradient_and_keeps_a_scaled_update(kind, factor):
    full = displacement(kind, eps=1e-12, weight_decay=0.0)
    assert displacement(kind, gradient=factor, eps=1e-12, weight_decay=0.0) == pytest.approx(full, rel=1e-9)
    assert displacement(kind, update=factor, eps=1e-12, weight_decay=0.0) == pytest.approx(factor * full, rel=1e-6)


@pytest.mark.parametrize("name", sorted(set(CASES) - {"SparseAdam", "LBFGS"}))
def test_scale_invariance_is_what_the_optimizer_does(name):
    case = CASES[name]

    def moved(factor):
        p = nn.Parameter(torch.zeros(2, 2, dtype=torch.float64))
        optimizer = case.make([p])
        for gradient in (1.0, -0.3, 0.7, 0.9, 0.2, -0.6, 1.1, 0.4):
            before = p.detach().clone()
            p.grad = torch.full_like(p, factor * gradient)
            optimizer.step()
        return (p - before).abs().max().item()  # of the last step: RAdam's first ones are plain momentum

    invariant = moved(100.0) == pytest.approx(moved(1.0), rel=1e-2)
    assert is_scale_invariant(case.make([nn.Parameter(torch.zeros(2, 2))])) is invariant


def test_scale_invariance_of_the_others_and_through_wrappers():
    p = nn.Parameter(torch.zeros(2))
    assert is_scale_invariant(optim.SparseAdam([p]))
    assert not is_scale_invariant(optim.LBFGS([p]))
    assert is_scale_invariant(BalancedOptimizer(optim.Adam([p]), bg.Uniform()))
    assert is_scale_invariant(type("PagedAdamW8bit", (SignSGDMomentum,), {})([p]))
    assert is_scale_invariant(type("Tuned", (optim.RMSprop,), {})([p]))


@pytest.mark.parametrize(("name", "invariant"), [("SGD", False), ("AdamW fused", True), ("LBFGS", False)])
def test_the_balancer_is_told_at_construction(name, invariant):
    assert Run(name).balancer.told == [invariant]


def test_weight_decay_and_momentum_are_scaled_with_the_step():
    full = displacement(optim.SGD, steps=1, momentum=0.9)
    assert displacement(optim.SGD, update=0.25, steps=1, momentum=0.9) == pytest.approx(0.25 * full)
    p = nn.Parameter(torch.ones(1))
    optimizer = BalancedOptimizer(optim.AdamW([p], lr=0.1, weight_decay=1.0), Fixed(audio=0.5), modalities={"audio": p})
    p.grad = torch.zeros(1)
    optimizer.step()
    assert p.item() == pytest.approx(1 - 0.5 * 0.1)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_other_dtypes(dtype):
    p, q = nn.Parameter(torch.ones(3, dtype=dtype)), nn.Parameter(torch.ones(3))
    optimizer = BalancedOptimizer(
        optim.SGD([p, q], lr=0.5), Fixed(audio=torch.tensor(0.25, dtype=torch.float64)), modalities={"audio": [p, q]}
    )
    p.grad, q.grad = torch.ones_like(p), torch.ones_like(q)
    optimizer.step()
    assert torch.equal(p, torch.full_like(p, 0.875))
    assert torch.equal(q, torch.full_like(q, 0.875))


@pytest.mark.parametrize("name", ["SGD", "SGD fused", "RMSprop", "third party"])
def test_no_host_read(name):
    run = Run(name)
    run.backward()
    with NoHostReads():
        run.optimizer.step()


def test_nothing_is_copied_without_factors(monkeypatch):
    run = Run("SGD", Fixed())
    run.backward()
    monkeypatch.setattr(torch.Tensor, "clone", lambda *_, **__: pytest.fail("a parameter was copied"))
    run.optimizer.step()


def test_frozen_parameters_and_those_without_a_gradient_stay():
    frozen, idle, trained = (
        nn.Parameter(torch.ones(1), requires_grad=False),
        *(nn.Parameter(torch.ones(1)) for _ in "ab"),
    )
    parameters = [frozen, idle, trained]
    base = optim.SGD(parameters, lr=1.0, weight_decay=0.5)
    optimizer = BalancedOptimizer(base, Fixed(audio=0.5), modalities={"audio": parameters})
    trained.grad = torch.ones(1)
    optimizer.step()
    assert [p.item() for p in parameters] == [1.0, 1.0, 0.25]


def test_a_closures_first_evaluation_chooses_the_factors():
    """LBFGS evaluates several times in a step: the factors are those of where the step starts."""
    run, plain = Run("LBFGS", Paced()), Run("LBFGS", Fixed())
    before = run.parameters()
    chosen = []
    weigh = run.balancer.weigh
    run.balancer.weigh = lambda problem: (weigh(problem), chosen.append(dict(run.balancer.scales)))[0]
    run.step()
    plain.step()
    assert len(chosen) > 1
    assert not torch.equal(chosen[0]["audio"], chosen[-1]["audio"])
    for old, new, full, modality in zip(before, run.parameters(), plain.parameters(), ("audio", "video"), strict=False):
        torch.testing.assert_close(new, old + chosen[0][modality] * (full - old))


@pytest.mark.parametrize("name", ["SGD", "LBFGS"])
def test_factors_are_asked_for_once_per_step_after_the_first_evaluation(name):
    """A balancer may average over the micro-batches of a step, of which the last is evaluated by the closure."""
    run, order = Run(name), []
    run.balancer.update_scales = lambda: order.append("factors") or {}

    def closure():
        order.append("batch")
        run.optimizer.zero_grad()
        return run.backward()

    run.optimizer.step(closure)
    assert order[:2] == ["batch", "factors"]
    assert order.count("factors") == 1


def test_a_base_that_moves_before_its_closure_is_refused_where_its_update_is_scaled():
    class SharpnessAware(optim.SGD):
        def step(self, closure=None):
            with torch.no_grad():
                self.param_groups[0]["params"][0].add_(1.0)
            return closure()

    p = nn.Parameter(torch.zeros(1))
    optimizer = BalancedOptimizer(SharpnessAware([p]), Fixed(), modalities={"audio": p})
    assert optimizer.step(lambda: 7.0) == 7.0
    optimizer.balancer.scales = {"audio": torch.tensor(0.5)}
    with pytest.raises(RuntimeError, match=r"moves parameters before it evaluates its closure.*target='gradient'"):
        optimizer.step(lambda: 7.0)


def test_a_base_without_hooks_is_scaled_too():
    class Bare(optim.Optimizer):
        def __init__(self, inner):
            self.inner = inner
            self.param_groups, self.defaults, self.state = inner.param_groups, inner.defaults, inner.state

        def step(self):
            self.inner.step()

    Bare.step.hooked = True  # type: ignore[attr-defined]
    p = nn.Parameter(torch.zeros(1))
    optimizer = BalancedOptimizer(Bare(optim.SGD([p], lr=1.0)), Fixed(audio=0.5), modalities={"audio": p})
    p.grad = torch.ones(1)
    optimizer.step()
    assert p.item() == -0.5


def test_a_failing_step_leaves_no_hook_behind():
    run = Run("SGD", Fixed(audio=0.5))
    with pytest.raises(RuntimeError, match="out of data"):
        run.optimizer.step(lambda: (_ for _ in ()).throw(RuntimeError("out of data")))
    assert not run.base._optimizer_step_post_hooks


def test_two_optimizers_with_one_balancer_scale_their_own_part():
    audio, video = nn.Parameter(torch.zeros(1)), nn.Parameter(torch.zeros(1))
    balancer, groups = Fixed(audio=0.5, video=0.25), ModalityGroups({"audio": audio, "video": video})
    for p in (audio, video):
        p.grad = torch.ones(1)
        BalancedOptimizer(optim.SGD([p], lr=1.0), balancer, modalities=groups).step()
    assert (audio.item(), video.item()) == (-0.5, -0.25)


def test_modalities_default_to_the_balancers():
    p = nn.Parameter(torch.zeros(1))
    balancer = Fixed(audio=0.5)
    balancer.modalities = ModalityGroups({"audio": p})
    assert BalancedOptimizer(optim.SGD([p]), balancer).modalities is balancer.modalities


def test_a_sharded_parameter_is_scaled_shard_by_shard(tmp_path):
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1)
    try:
        mesh = init_device_mesh("cpu", (1,))
        p: Any = nn.Parameter(DTensor.from_local(torch.zeros(4, 2), mesh, [Shard(0)]))
        optimizer = BalancedOptimizer(optim.SGD([p], lr=1.0), Fixed(audio=0.5), modalities={"audio": p})
        p.grad = DTensor.from_local(torch.ones(4, 2), mesh, [Shard(0)])
        optimizer.step()
        assert torch.equal(p.to_local(), torch.full((4, 2), -0.5))
    finally:
        torch.distributed.destroy_process_group()


class TestRefusals:
    @pytest.mark.parametrize("scale", [0.5, torch.ones(2)])
    def test_a_factor_that_is_no_scalar_tensor(self, scale):
        run = Run("SGD", Fixed())
        run.balancer.scales = {"audio": scale}
        run.backward()
        before = run.parameters()
        with pytest.raises(TypeError, match=r"factor of 'audio' from Fixed is .*must be a 0-dimensional tensor"):
            run.optimizer.step()
        torch.testing.assert_close(run.parameters(), before, rtol=0, atol=0)

    @pytest.mark.parametrize("given", [None, {"audio": "audio"}])
    def test_a_modality_that_is_not_named(self, given):
        run = Run("SGD", Fixed(video=0.5), wrap=False)
        groups = given and {"audio": run.model.audio}
        optimizer = BalancedOptimizer(run.base, run.balancer, modalities=groups)
        run.backward()
        before = run.parameters()
        with pytest.raises(ValueError, match=r"Fixed scales the update of modality 'video'.*modalities=\{'video'"):
            optimizer.step()
        torch.testing.assert_close(run.parameters(), before, rtol=0, atol=0)

    def test_not_an_optimizer(self):
        with pytest.raises(TypeError, match=r"base is a list; give an optimizer, e\.g\. torch\.optim"):
            BalancedOptimizer([nn.Parameter(torch.zeros(1))], bg.Uniform())
        with pytest.raises(TypeError, match="base is the class SGD; give an optimizer instance, not the class"):
            BalancedOptimizer(optim.SGD, bg.Uniform())

    def test_not_a_balancer(self):
        base = Run("SGD", wrap=False).base
        with pytest.raises(TypeError, match=r"balancer is the class MIMO; give a balancer such as bg\.MIMO\(\)"):
            BalancedOptimizer(base, bg.MIMO)
        with pytest.raises(TypeError, match="balancer is a dict"):
            BalancedOptimizer(base, {})

    def test_modalities_of_another_model(self):
        run, other = Run("SGD"), Run("SGD")
        with pytest.raises(ValueError, match=r"holds no parameter of the modalities \['audio', 'video'\].*not from a"):
            BalancedOptimizer(run.base, run.balancer, modalities=other.model.modalities)
