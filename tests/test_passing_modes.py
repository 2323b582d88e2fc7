"""What a mode makes goes with it: steps in passing modes, or under another default device, change no later step."""

import re
import sys
from pathlib import Path

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

import balanced_grad as bg
from balanced_grad.caching import cached
from balanced_grad.capture import _inner
from balanced_grad.kernels import _dispatch, _segments
from balanced_grad.modulation import _shapley
from balanced_grad.solvers import min_norm
from tests.conftest import LateFusion, make_batch
from tests.state_cases import METHODS, WITHOUT, Balanced, train

MORE = {
    "Uniform, recorded": lambda model: bg.Uniform(record_gramian=True),
    "MinNorm, tensor": lambda model: bg.MinNorm(groups="tensor"),
    "MinNorm, reach": lambda model: bg.MinNorm(groups="reach"),
    "MinNorm, floor": lambda model: bg.MinNorm(joint_floor=0.3),
    "MIMO, recorded": lambda model: bg.MIMO(record_gramian=True),
}
EVERY = METHODS | WITHOUT | MORE
every = pytest.mark.parametrize("kind", EVERY)
CACHES = (_inner.index, _segments.segment_plan, _segments.piece_table, _segments.owners, _shapley.shapley)
HOST = torch.device("cpu")


class Case(Balanced):
    def __init__(self, kind):
        torch.manual_seed(0)
        super(Balanced, self).__init__()
        self.model = LateFusion(trunk=kind != "DGL")
        self.balancer = EVERY[kind](self.model)
        self.dropout = bg.ModalityDropout(0.4) if "dropped" in kind else None
        self.kind = kind


@pytest.fixture(autouse=True)
def _nothing_kept():
    for cache in (*CACHES, _dispatch.triton_works):
        cache.cache_clear()
    yield
    for cache in (*CACHES, _dispatch.triton_works):
        cache.cache_clear()


def assert_trains_as_ever(module, reference):
    train(module, range(4))
    torch.testing.assert_close(module.state_dict(), reference, rtol=0, atol=0)


def estimate(kind):
    """Steps of fake tensors, as for the memory they would take; what is said where a method must read values."""
    try:
        train(Case(kind), range(2))
    except Exception as error:
        return str(error)
    return ""


@pytest.fixture
def reference(kind):
    expected = train(Case(kind), range(4)).state_dict()
    for cache in CACHES:
        cache.cache_clear()
    return expected


@every
def test_after_a_step_of_fake_tensors(kind, reference):
    with FakeTensorMode():
        said = estimate(kind)
    assert "convert all Tensors" not in said
    assert_trains_as_ever(Case(kind), reference)


@every
def test_fake_steps_after_real_ones_meet_no_real_tensor(kind):
    train(Case(kind), range(2))
    with FakeTensorMode():
        said = estimate(kind)
    assert "convert all Tensors" not in said


@every
def test_after_a_call_in_inference_mode(kind, reference):
    module = Case(kind)
    inputs, labels = make_batch(seed=9)
    with torch.inference_mode():
        module.eval()(labels=labels, **inputs)
    assert_trains_as_ever(module.train(), reference)


@every
def test_made_and_loaded_in_inference_mode(kind, reference):
    with torch.inference_mode():
        balancer = EVERY[kind](Case(kind).model)
        state = Case(kind).balancer.state_dict()
        if not isinstance(balancer, bg.BOGC):  # whose block is of another model
            balancer.load_state_dict(state)
    module = Case(kind)
    if isinstance(balancer, bg.MIMO | bg.AGM):
        module.balancer = balancer
    with torch.inference_mode():
        module.balancer.load_state_dict(state)
    assert_trains_as_ever(module, reference)


@every
def test_under_a_default_device(kind, reference):
    module = Case(kind)
    torch.set_default_device("meta")
    try:
        with torch.device("cpu"):
            batches = [make_batch(seed=step) for step in range(4)]
        optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
        for inputs, labels in batches:
            if isinstance(module.balancer, bg.HeldOut) and module.balancer.due:
                with torch.device("cpu"):
                    held = make_batch(seed=1000 + module.balancer.checks % 4)
                with torch.no_grad():
                    module.balancer.observe(module.model.losses(*held))
            module(labels=labels, **inputs)["loss"].backward()
            optimizer.step()
            optimizer.zero_grad()
        module.load_state_dict(module.state_dict())
    finally:
        torch.set_default_device(None)
    torch.testing.assert_close(module.state_dict(), reference, rtol=0, atol=0)


@every
def test_built_under_a_default_device(kind, reference):
    module = Case(kind)
    with torch.device("meta"):
        balancer = EVERY[kind](module.model)
    module.balancer = balancer
    assert_trains_as_ever(module, reference)


def test_solvers_under_a_default_device():
    gramian = torch.tensor([[2.0, 0.5], [0.5, 1.0]])
    A, b = torch.ones(1, 2), torch.ones(1)
    asked = ({}, {"lower": 0.1}, {"linear": torch.zeros(2)}, {"inequalities": (A, b)}, {"method": "faces"})
    expected = [list(min_norm(gramian, **options)) for options in asked]
    with torch.device("meta"):
        answers = [list(min_norm(gramian, **options)) for options in asked]
    torch.testing.assert_close(answers, expected, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("transform", [torch.func.grad, torch.func.functionalize, torch.func.vmap])
@pytest.mark.parametrize("mode", ["transform", "fake", "inference"])
def test_what_is_kept_is_of_no_mode(transform, mode):
    made = []

    @cached(maxsize=4)
    def ones(size, device):
        made.append(size)
        return torch.ones(size, device=device)

    def inside(x):
        used = ones(2, HOST)
        return (used * x).sum()

    if mode == "transform":
        transform(inside)(torch.ones(2) if transform is not torch.func.vmap else torch.ones(3, 2))
    elif mode == "fake":
        with FakeTensorMode():
            assert type(ones(2, HOST)) is not torch.Tensor
    else:
        with torch.inference_mode():
            ones(2, HOST)
    kept = ones(2, HOST)
    assert type(kept) is torch.Tensor
    assert not kept.is_inference()
    assert not torch._C._functorch.is_functorch_wrapped_tensor(kept)
    assert kept.sum() == 2
    assert ones(2, HOST) is kept
    with FakeTensorMode():
        assert type(ones(2, HOST) * torch.ones(2)) is not torch.Tensor


def test_triton_is_not_judged_by_a_fake_tensor(monkeypatch):
    class Probing:
        @staticmethod
        def probe(device):
            if type(torch.empty(0, device=device)) is not torch.Tensor:
                raise RuntimeError("no kernel runs on a fake tensor")

    monkeypatch.setitem(sys.modules, "balanced_grad.kernels._triton", Probing)
    with FakeTensorMode(), pytest.warns(RuntimeWarning, match="no kernel"):
        assert not _dispatch.triton_works(HOST)
    assert _dispatch.triton_works(HOST)


def test_a_guard_may_be_observed_in_inference_mode(monkeypatch):
    monkeypatch.setattr("balanced_grad.host.on_host", lambda *_: False)
    model = LateFusion()
    guard = bg.HeldOut(bg.MinNorm(), every=1, warm_up=0)
    for step in range(4):
        guard(model.losses(*make_batch(seed=step))).backward()
        with torch.inference_mode():
            guard.observe(model.losses(*make_batch(seed=99)))
        assert not any(factor.is_inference() for factor in guard.factors.values())
        assert not any(x.is_inference() for x in guard.state()["transfer"].values())


def test_functools_caches_hold_no_tensors():
    """Those are held by ``cached``, which knows the modes."""
    package = Path(bg.__file__).parent
    pattern = re.compile(r"^@(?:functools\.)?(?:lru_cache|cache)\b.*\n(?:@.*\n)*(def .*)$", re.MULTILINE)
    signatures = [line for path in package.rglob("*.py") for line in pattern.findall(path.read_text())]
    assert signatures
    assert not [line for line in signatures if "Tensor" in line or "device" in line]
