"""Inside other wrappers, and around them: one step, one set of hooks, one checkpoint."""

import copy
import warnings

import pytest
import torch
from torch.optim import Optimizer
from torch.optim.lr_scheduler import ExponentialLR

from balanced_grad.optim import BalancedOptimizer, is_scale_invariant
from tests.optim.conftest import Model, Paced, Run

accelerate = pytest.importorskip("accelerate")
lightning = pytest.importorskip("lightning")
from accelerate.optimizer import AcceleratedOptimizer  # noqa: E402
from accelerate.state import AcceleratorState, GradientState, PartialState  # noqa: E402
from lightning.pytorch.core.optimizer import LightningOptimizer  # noqa: E402

NAMES = ["SGD momentum", "AdamW fused", "RMSprop", "third party"]


class Delegate(Optimizer):
    """A third-party wrapper of the common kind: shares the groups and the state, steps through."""

    def __init__(self, optimizer):
        self.optimizer = optimizer

    param_groups = property(lambda self: self.optimizer.param_groups)
    state = property(lambda self: self.optimizer.state)
    defaults = property(lambda self: self.optimizer.defaults)

    def step(self, closure=None):
        return self.optimizer.step(closure)

    step.hooked = True  # type: ignore[attr-defined]

    def zero_grad(self, set_to_none=True):
        self.optimizer.zero_grad(set_to_none)

    def state_dict(self):
        return self.optimizer.state_dict()

    def load_state_dict(self, state_dict):
        self.optimizer.load_state_dict(state_dict)


@pytest.fixture(autouse=True)
def accelerator():
    yield accelerate.Accelerator(cpu=True)
    for state in (AcceleratorState, GradientState, PartialState):
        state._reset_state()


class Strategy:
    """What a LightningOptimizer asks of Lightning's strategy."""

    def optimizer_step(self, optimizer, closure):
        return optimizer.step(closure)


def in_lightning(optimizer):
    wrapper = LightningOptimizer(optimizer)
    wrapper._strategy = Strategy()
    return wrapper


AROUND = {
    "accelerate": AcceleratedOptimizer,
    "lightning": in_lightning,
    "third party": Delegate,
    "two deep": lambda optimizer: AcceleratedOptimizer(Delegate(optimizer)),
}
around = pytest.mark.parametrize("where", AROUND)
every = pytest.mark.parametrize("name", NAMES)


@every
@around
def test_training_hooks_and_schedule_through_a_wrapper(name, where):
    run, plain, fired = Run(name), Run(name), []
    outer = AROUND[where](run.optimizer)
    schedules = [ExponentialLR(outer, 0.5), ExponentialLR(plain.optimizer, 0.5)]
    run.optimizer.register_step_post_hook(lambda *_: fired.append("step"))
    run.optimizer.register_load_state_dict_post_hook(lambda _: fired.append("load"))
    for seed in range(3):
        run.step(seed, outer)
        plain.step(seed)
        outer.load_state_dict(copy.deepcopy(outer.state_dict()))
        for schedule in schedules:
            schedule.step()
    assert fired == ["step", "load"] * 3
    assert isinstance(outer, Optimizer)
    assert outer.param_groups is run.base.param_groups
    assert run.base.param_groups[0]["lr"] == 0.05 / 8
    torch.testing.assert_close(run.parameters(), plain.parameters(), rtol=0, atol=0)


@every
@around
def test_resume_through_a_wrapper(name, where):
    run = Run(name)
    outer = AROUND[where](run.optimizer)
    run.step(0, outer)
    other = Run(name, seed=1)
    again = AROUND[where](other.optimizer)
    again.load_state_dict(copy.deepcopy(outer.state_dict()))
    other.model.load_state_dict(run.model.state_dict())
    for seed in (1, 2):
        run.step(seed, outer)
        other.step(seed, again)
    assert torch.equal(run.balancer.means, other.balancer.means)
    torch.testing.assert_close(run.parameters(), other.parameters(), rtol=0, atol=0)


@every
@pytest.mark.parametrize("where", ["third party", "accelerate"])
def test_around_a_wrapper(name, where):
    run, plain = Run(name, wrap=False), Run(name)
    run.optimizer = BalancedOptimizer(AROUND[where](run.base), run.balancer, modalities=run.model.modalities)
    assert is_scale_invariant(run.optimizer) == is_scale_invariant(plain.optimizer)
    for seed in range(2):
        run.step(seed)
        plain.step(seed)
        run.optimizer.load_state_dict(copy.deepcopy(run.optimizer.state_dict()))
    torch.testing.assert_close(run.parameters(), plain.parameters(), rtol=0, atol=0)


def test_a_lightning_optimizer_is_unwrapped_as_well():
    run = Run("Adam")
    assert BalancedOptimizer(in_lightning(run.optimizer), run.balancer).base is run.base


@pytest.mark.parametrize("where", ["accelerate", "third party", "two deep"])
def test_a_hidden_balanced_optimizer_is_refused(where):
    run = Run("Adam")
    with pytest.raises(ValueError, match=r"base is a .* around a BalancedOptimizer.*scaled already"):
        BalancedOptimizer(AROUND[where](run.optimizer), run.balancer)


def test_accelerates_scaler_skips_infinite_steps():
    run = Run("Adam fused")
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    outer = AcceleratedOptimizer(run.optimizer, scaler=scaler)
    before = run.parameters()
    run.backward(scaled=lambda loss: scaler.scale(float("inf") * loss))
    outer.step()
    assert outer.step_was_skipped
    torch.testing.assert_close(run.parameters(), before, rtol=0, atol=0)
    outer.zero_grad()
    run.backward(scaled=scaler.scale)
    outer.step()
    assert not outer.step_was_skipped
    assert not torch.equal(run.parameters()[0], before[0])


def test_accelerate_with_accumulation_clipping_and_its_own_checkpoint(tmp_path):
    accelerator = accelerate.Accelerator(cpu=True, gradient_accumulation_steps=2)

    def session(seed):
        run = Run("AdamW", seed=seed)
        model, optimizer = accelerator.prepare(run.model, run.optimizer)
        assert optimizer.optimizer is run.optimizer
        return run, model, optimizer

    def train(run, model, optimizer, seeds):
        for seed in seeds:
            with accelerator.accumulate(model):
                accelerator.backward(run.balancer(run.model.losses(seed)))
                accelerator.clip_grad_norm_(model.parameters(), 0.5)
                optimizer.step()
                optimizer.zero_grad()

    run, model, optimizer = session(0)
    train(run, model, optimizer, range(4))
    accelerator.save_state(tmp_path)
    train(run, model, optimizer, range(4, 8))
    ended, means = run.parameters(), run.balancer.means.clone()
    accelerator.free_memory()
    other, model, optimizer = session(1)
    accelerator.load_state(tmp_path)
    train(other, model, optimizer, range(4, 8))
    assert torch.equal(other.balancer.means, means)
    torch.testing.assert_close(other.parameters(), ended, rtol=0, atol=0)


class Lit(lightning.LightningModule):
    """Automatic optimization with a schedule; the balancer is saved by the module and by the optimizer."""

    def __init__(self, seed=0):
        super().__init__()
        torch.manual_seed(seed)
        self.model = Model()
        self.balancer = Paced()

    def training_step(self, batch):
        return self.balancer(self.model.losses(self.global_step))

    def configure_optimizers(self):
        base = torch.optim.AdamW(self.model.parameters(), lr=0.05)
        optimizer = BalancedOptimizer(base, self.balancer, modalities=self.model.modalities)
        schedule = {"scheduler": ExponentialLR(optimizer, 0.9), "interval": "step"}
        return {"optimizer": optimizer, "lr_scheduler": schedule}


def fit(module, path, steps, **settings):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Lightning's own: few data workers
        trainer = lightning.Trainer(
            accelerator="cpu",
            max_steps=steps,
            default_root_dir=path,
            enable_progress_bar=False,
            enable_model_summary=False,
            gradient_clip_val=0.5,
        )
        trainer.fit(module, torch.utils.data.DataLoader(range(4)), **settings)
    return trainer


def test_lightning_trains_as_the_plain_loop_and_resumes(tmp_path):
    run = Run("AdamW", wrap=False)
    run.base = torch.optim.AdamW(run.model.parameters(), lr=0.05)
    run.optimizer = BalancedOptimizer(run.base, run.balancer, modalities=run.model.modalities)
    schedule = ExponentialLR(run.optimizer, 0.9)
    for seed in range(8):
        run.optimizer.zero_grad()
        run.balancer(run.model.losses(seed)).backward()
        torch.nn.utils.clip_grad_norm_(run.model.parameters(), 0.5)
        run.optimizer.step()
        schedule.step()
    once = Lit()
    fit(once, tmp_path, 8)
    torch.testing.assert_close([p.detach() for p in once.model.parameters()], run.parameters(), rtol=0, atol=0)
    first = Lit()
    checkpoint = tmp_path / "four.ckpt"
    fit(first, tmp_path, 4).save_checkpoint(checkpoint)
    resumed = Lit(seed=1)
    fit(resumed, tmp_path, 8, ckpt_path=checkpoint, weights_only=True)
    assert torch.equal(resumed.balancer.means, once.balancer.means)
    torch.testing.assert_close([p.detach() for p in resumed.model.parameters()], run.parameters(), rtol=0, atol=0)
