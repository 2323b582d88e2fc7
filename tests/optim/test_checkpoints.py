"""The balancer's state travels in the optimizer's checkpoint, exactly, by every road a checkpoint takes."""

import copy
import io
import warnings

import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)

import balanced_grad as bg
from balanced_grad.optim import BalancedOptimizer
from tests.optim.conftest import CASES, Paced, Run
from tests.releases import ONE_PROCESS

every = pytest.mark.parametrize("name", CASES)


def through_file(state):
    buffer = io.BytesIO()
    torch.save(state, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=True)


ROADS = {"as it is": lambda state: state, "deepcopy": copy.deepcopy, "file, weights only": through_file}


def resumed(name, run, **changes):
    """A fresh process: other initial numbers, then the model's parameters."""
    fresh = Run(name, seed=1, **changes)
    fresh.model.load_state_dict(run.model.state_dict())
    return fresh


def assert_same_future(run, other):
    run.steps(10, 11)
    other.steps(10, 11)
    assert torch.equal(run.balancer.means, other.balancer.means)
    torch.testing.assert_close(other.parameters(), run.parameters(), rtol=0, atol=0)


@every
@pytest.mark.parametrize("road", ROADS)
def test_resume_is_bitwise(name, road):
    run = Run(name).steps(0, 1, 2)
    other = resumed(name, run)
    other.optimizer.load_state_dict(ROADS[road](copy.deepcopy(run.optimizer.state_dict())))
    assert_same_future(run, other)


@pytest.fixture
def quiet():
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"torch\.distributed.*")  # it says that there is one process only
        yield


# SparseAdam refuses the dense zero gradients of torch's own initialisation, LBFGS the missing closure.
STEPPING = [name for name, case in CASES.items() if not (case.sparse or case.closure)]


# A full state dict without any tensor, plain SGD's, is refused by torch.
@pytest.mark.parametrize(
    ("name", "full"), [(n, full) for n in STEPPING for full in (False, True) if (n, full) != ("SGD", True)]
)
@pytest.mark.usefixtures("quiet")
def test_distributed_checkpoint(name, full, tmp_path):
    options = StateDictOptions(full_state_dict=full)
    run = Run(name).steps(0, 1, 2)
    run.optimizer.zero_grad()
    saved = get_optimizer_state_dict(run.model, run.optimizer, options=options)
    dcp.save({"optimizer": saved}, checkpoint_id=tmp_path, **ONE_PROCESS)
    other = resumed(name, run)
    template = {"optimizer": get_optimizer_state_dict(other.model, other.optimizer, options=options)}
    dcp.load(template, checkpoint_id=tmp_path, **ONE_PROCESS)
    set_optimizer_state_dict(other.model, other.optimizer, template["optimizer"], options=options)
    assert_same_future(run, other)


@pytest.mark.usefixtures("quiet")
def test_the_flattened_form_resumes_the_base_optimizer_only():
    options = StateDictOptions(flatten_optimizer_state_dict=True)
    run = Run("Adam").steps(0, 1)
    run.optimizer.zero_grad()
    other = resumed("Adam", run)
    state = copy.deepcopy(get_optimizer_state_dict(run.model, run.optimizer, options=options))
    set_optimizer_state_dict(other.model, other.optimizer, state, options=options)
    assert torch.equal(other.balancer.means, torch.ones(2))
    other.balancer.load_state_dict(run.balancer.state_dict())  # what the documentation says to do
    assert_same_future(run, other)


@pytest.mark.usefixtures("quiet")
def test_state_that_appears_with_the_first_step_reaches_a_fresh_template(tmp_path):
    run = Run("AdamW", bg.MIMO(ema=0.9, ramp_steps=9)).steps(0, 1)
    run.optimizer.zero_grad()
    dcp.save(get_optimizer_state_dict(run.model, run.optimizer), checkpoint_id=tmp_path, **ONE_PROCESS)
    other = resumed("AdamW", run, balancer=bg.MIMO(ema=0.9, ramp_steps=9))
    template = get_optimizer_state_dict(other.model, other.optimizer)
    dcp.load(template, checkpoint_id=tmp_path, **ONE_PROCESS)
    set_optimizer_state_dict(other.model, other.optimizer, template)
    assert other.balancer.state() == run.balancer.state()
    assert set(other.balancer.state()["averages"]) == {"audio", "video"}


def test_float32_statistics_of_bfloat16_weights_are_exact():
    run = Run("Adam", dtype=torch.bfloat16).steps(0, 1)
    assert not torch.equal(run.balancer.means, run.balancer.means.bfloat16().float())
    other = resumed("Adam", run, dtype=torch.bfloat16)
    other.optimizer.load_state_dict(through_file(run.optimizer.state_dict()))
    assert other.balancer.means.dtype == torch.float32
    assert_same_future(run, other)


@every
def test_the_bases_checkpoint_loads_and_leaves_the_balancer_alone(name):
    run = Run(name).steps(0, 1)
    other = resumed(name, run)
    other.steps(5)
    means = other.balancer.means.clone()
    other.optimizer.load_state_dict(through_file(run.base.state_dict()))
    assert torch.equal(other.balancer.means, means)
    other.balancer.load_state_dict(run.balancer.state_dict())
    other.model.load_state_dict(run.model.state_dict())
    assert_same_future(run, other)


@every
def test_the_bare_optimizer_loads_the_wrappers_checkpoint(name):
    run = Run(name).steps(0, 1)
    bare, base = (resumed(name, run, balancer=bg.Uniform(), wrap=False) for _ in range(2))
    bare.optimizer.load_state_dict(through_file(run.optimizer.state_dict()))
    base.optimizer.load_state_dict(run.base.state_dict())
    torch.testing.assert_close(bare.steps(3).parameters(), base.steps(3).parameters(), rtol=0, atol=0)
    # and wrapped again it writes the new balancer's state, not the one it carries
    again = BalancedOptimizer(bare.optimizer, Paced())
    again.load_state_dict(again.state_dict())
    assert torch.equal(again.balancer.means, torch.ones(2))


def test_a_state_dict_is_a_snapshot_and_loading_changes_nothing_in_it():
    run = Run("Adam").steps(0)
    state = run.optimizer.state_dict()
    packed = state["param_groups"][0]["balancer_state"]
    run.step(1)
    other = resumed("Adam", run)
    other.optimizer.load_state_dict(state)
    assert state["param_groups"][0]["balancer_state"] is packed
    assert "balancer_state" not in run.base.param_groups[0]
    assert "balancer_state" not in other.base.param_groups[0]
    assert not torch.equal(other.balancer.means, run.balancer.means)


def test_another_methods_checkpoint_is_refused_by_name():
    run = Run("Adam").steps(0)
    other = resumed("Adam", run, balancer=bg.MIMO())
    with pytest.raises(ValueError, match=r"state of a Paced balancer, this optimizer's is a MIMO.*optimizer\.base"):
        other.optimizer.load_state_dict(run.optimizer.state_dict())
    assert not other.base.state


@pytest.mark.parametrize("broken", ["base", "balancer"])
def test_a_failed_load_leaves_both_as_they_were(broken):
    run = Run("Adam").steps(0)
    if broken == "base":
        other = Run("Adam", wrap=False)
        other.base.add_param_group({"params": [torch.nn.Parameter(torch.ones(2))]})
        other.optimizer = BalancedOptimizer(other.base, other.balancer)
    else:
        other = Run("Adam", Paced(("audio", "video", "joint")))
    before = copy.deepcopy(other.balancer.state_dict())
    with pytest.raises((ValueError, RuntimeError)):
        other.optimizer.load_state_dict(run.optimizer.state_dict())
    assert torch.equal(other.balancer.means, before["means"])
    assert not other.base.state
