"""What any code may expect of an optimizer, of each one wrapped: torch's contracts with schedulers, hooks, scalers."""

import copy
import io
import pickle
from itertools import pairwise

import pytest
import torch
from torch.optim import Optimizer
from torch.optim.lr_scheduler import ExponentialLR
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

import balanced_grad as bg
from balanced_grad.optim import BalancedOptimizer
from tests.optim.conftest import CASES, Run
from tests.releases import VERSION

every = pytest.mark.parametrize("name", CASES)


def reload(optimizer):
    optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))


@every
def test_without_factors_it_steps_as_the_base_does(name):
    wrapped, bare = Run(name, bg.MIMO()), Run(name, bg.MIMO(), wrap=False)
    for seed in range(4):
        assert torch.equal(wrapped.step(seed) or torch.zeros(()), bare.step(seed) or torch.zeros(()))
    torch.testing.assert_close(wrapped.parameters(), bare.parameters(), rtol=0, atol=0)


@every
def test_it_is_an_optimizer_and_its_parts_are_the_bases(name):
    run = Run(name)
    assert isinstance(run.optimizer, Optimizer)
    for reloaded in (False, True):
        if reloaded:
            run.step()
            reload(run.optimizer)
        for part in ("param_groups", "state", "defaults"):
            assert getattr(run.optimizer, part) is getattr(run.base, part)


@every
@pytest.mark.parametrize("reloaded", ["neither", "base", "wrapper"])
def test_a_scheduler_reaches_the_lr_also_after_a_reload(name, reloaded):
    run, bare = Run(name, bg.Uniform()), Run(name, bg.Uniform(), wrap=False)
    schedules = [ExponentialLR(run.optimizer, 0.5), ExponentialLR(bare.optimizer, 0.5)]
    for seed in range(3):
        run.step(seed)
        bare.step(seed)
        if reloaded != "neither":
            reload(run.base if reloaded == "base" else run.optimizer)
        for schedule in schedules:
            schedule.step()
    assert run.base.param_groups[0]["lr"] == 0.05 / 8
    torch.testing.assert_close(run.parameters(), bare.parameters(), rtol=0, atol=0)


@every
def test_step_hooks_fire_once_around_the_scaled_update(name):
    run, fired, seen = Run(name), [], []
    run.optimizer._patch_step_function()  # torch does so when it unpickles: it must not run the hooks a second time
    run.optimizer.register_step_pre_hook(lambda *_: fired.append("pre"))
    run.optimizer.register_step_post_hook(lambda *_: (fired.append("post"), seen.extend(run.parameters())))
    handles = [
        register_optimizer_step_pre_hook(lambda *_: fired.append("global pre")),
        register_optimizer_step_post_hook(lambda *_: fired.append("global post")),
    ]
    try:
        run.step()
    finally:
        for handle in handles:
            handle.remove()
    assert fired == ["global pre", "pre", "post", "global post"]
    torch.testing.assert_close(seen, run.parameters(), rtol=0, atol=0)


@every
def test_state_dict_hooks_fire_once(name):
    run, fired = Run(name).steps(0), []
    run.optimizer.register_state_dict_pre_hook(lambda _: fired.append("save"))
    run.optimizer.register_state_dict_post_hook(lambda *_: fired.append("saved"))
    run.optimizer.register_load_state_dict_pre_hook(lambda *_: fired.append("load"))
    run.optimizer.register_load_state_dict_post_hook(lambda _: fired.append("loaded"))
    state = run.optimizer.state_dict()
    assert fired == ["save", "saved"]
    run.optimizer.load_state_dict(state)
    assert fired[2:] == ["load", "loaded"]


@every
def test_a_closure_runs_with_gradients_and_its_loss_is_returned(name):
    run = Run(name)

    def closure():
        assert torch.is_grad_enabled()
        run.optimizer.zero_grad()
        return run.backward()

    expected = Run(name).model.losses()
    assert torch.allclose(run.optimizer.step(closure), sum(expected.values()))


@every
def test_zero_grad(name):
    run = Run(name)
    run.backward()
    run.optimizer.zero_grad(set_to_none=False)
    assert all(p.grad.to_dense().eq(0).all() for p in run.model.parameters())
    run.optimizer.zero_grad()
    assert all(p.grad is None for p in run.model.parameters())


@every
def test_add_param_group(name):
    if name.startswith("Adagrad") and VERSION < (2, 8):
        pytest.skip("torch's own Adagrad makes its state in the constructor only")
    run = Run(name)
    extra = torch.nn.Parameter(torch.ones(2, 2))
    group = {"params": [extra], "lr": 0.5}
    if run.case.one_group:
        pytest.skip("this optimizer takes one group only")
    run.optimizer.add_param_group(group)
    assert run.base.param_groups[1]["params"] == [extra]
    extra.grad = torch.ones(2, 2)
    if run.case.sparse:
        extra.grad = extra.grad.to_sparse(1)
    run.optimizer.step()
    assert not torch.equal(extra, torch.ones(2, 2))


@every
@pytest.mark.parametrize("clone", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))], ids=["deepcopy", "pickle"])
def test_copies_go_on_as_the_original(name, clone):
    if name == "LBFGS":
        pytest.skip("torch's own LBFGS does not survive a copy: it keeps its parameters outside of its groups")
    run = Run(name)
    schedule = ExponentialLR(run.optimizer, 0.9)  # leaves a step() on the instance, which must not travel
    run.steps(0)
    schedule.step()
    twin = clone(run)
    assert twin.optimizer.balancer is twin.balancer
    assert twin.optimizer.base is not run.base
    run.step(1)
    twin.step(1)
    run.step(2)
    twin.step(2)
    torch.testing.assert_close(twin.parameters(), run.parameters(), rtol=0, atol=0)
    twin.optimizer.register_step_post_hook(lambda *_: None)  # an unpickled optimizer has its hook tables


@every
def test_repr_shows_lr_and_balancer(name):
    shown = repr(Run(name, bg.MIMO(penalty=2.5)).optimizer)
    assert "lr: 0.05" in shown
    assert "MIMO(penalty=2.5" in shown


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if not case.closure])
def test_grad_scaler_steps_unscaled_and_skips_infinities(name):
    scaled, plain = Run(name), Run(name)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    for seed, factor in enumerate([1.0, float("inf"), 1.0]):
        before = scaled.parameters()
        scaled.optimizer.zero_grad()
        scaled.backward(seed, lambda loss, factor=factor: scaler.scale(factor * loss))
        scaler.step(scaled.optimizer)
        scaler.update()
        if factor == 1.0:
            plain.step(seed)
            torch.testing.assert_close(scaled.parameters(), plain.parameters(), rtol=1e-4, atol=1e-5)
        else:
            torch.testing.assert_close(scaled.parameters(), before, rtol=0, atol=0)
            plain.balancer(plain.model.losses(seed))  # it has seen this batch as well
    assert scaler.get_scale() == 512.0


def test_a_closure_with_grad_scaler():
    run = Run("SGD")
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    run.backward(scaled=scaler.scale)
    assert scaler.step(run.optimizer, lambda: torch.tensor(3.0)) == 3.0


def test_wrapping_twice_unwraps_first():
    run, other = Run("Adam"), bg.MIMO()
    again = BalancedOptimizer(run.optimizer, other)
    assert again.base is run.base
    assert again.balancer is other


def test_a_scheduler_built_before_wrapping_stays_quiet_and_right():
    run = Run("SGD", wrap=False)
    schedule = ExponentialLR(run.base, 0.5)
    run.optimizer = BalancedOptimizer(run.base, run.balancer, modalities=run.model.modalities)
    rates = []
    for seed in range(3):
        run.step(seed)
        rates.append(run.base.param_groups[0]["lr"])
        schedule.step()
    assert all(b == a / 2 for a, b in pairwise(rates))


def test_no_attribute_of_the_base_leaks():
    optimizer = Run("Adam fused").optimizer
    assert optimizer.base._step_supports_amp_scaling
    assert not hasattr(optimizer, "_step_supports_amp_scaling")  # GradScaler would set its scale on the wrapper


def test_torch_save_of_the_whole_optimizer():
    run = Run("Adam").steps(0)
    buffer = io.BytesIO()
    torch.save(run.optimizer, buffer)
    buffer.seek(0)
    loaded = torch.load(buffer, weights_only=False)
    assert loaded.base.param_groups[0]["lr"] == 0.05
    assert torch.equal(loaded.balancer.means, run.balancer.means)
