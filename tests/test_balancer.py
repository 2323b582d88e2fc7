"""The contract of ``balancer(losses)``: what it returns, what backward() does, what it refuses and how it says so."""

import copy
import gc
import subprocess
import sys
import weakref

import pytest
import torch

import balanced_grad as bg
from tests.conftest import MODALITIES, LateFusion, NoHostReads, make_batch

EVERY = [bg.Uniform, bg.MIMO, bg.MinNorm, lambda: bg.Uniform(record_gramian=True)]
CAPTURING = [bg.MinNorm, lambda: bg.MIMO(record_gramian=True)]


def scalars(*values):
    leaf = torch.ones((), requires_grad=True)
    return {name: value * leaf for name, value in zip(("joint", *MODALITIES), values, strict=False)}


@pytest.mark.parametrize("make", EVERY)
class TestScalar:
    def test_is_an_ordinary_scalar(self, make):
        model = LateFusion()
        loss = make()(model.losses(*make_batch()))
        assert loss.shape == ()
        assert loss.requires_grad
        assert loss.item() == pytest.approx(loss.detach().item())
        (loss / 2).backward()
        assert all(p.grad is not None for p in model.parameters())

    def test_no_grad_returns_the_value_and_does_nothing_else(self, make):
        model, balancer = LateFusion(), make()
        losses = model.losses(*make_batch())
        want = balancer(losses)
        last, state = balancer.last, copy.deepcopy(balancer.state_dict())
        with torch.no_grad():
            value = balancer(model.losses(*make_batch()))
        torch.testing.assert_close(value, want.detach())
        assert not value.requires_grad
        assert balancer.last is last
        torch.testing.assert_close(balancer.state_dict(), state, rtol=0, atol=0)

    def test_accumulates_as_autograd_does(self, make):
        model, balancer = LateFusion(), make()
        balancer(model.losses(*make_batch())).backward()
        once = [p.grad.clone() for p in model.parameters()]
        balancer(model.losses(*make_batch())).backward()
        for p, grad in zip(model.parameters(), once, strict=True):
            torch.testing.assert_close(p.grad, 2 * grad)

    def test_unreached_parameters_keep_none(self, make):
        model = LateFusion(trunk=False)
        inputs, label = make_batch()
        del inputs["video"]
        make()(model.losses(inputs, label)).backward()
        reached = {name for name, p in model.named_parameters() if p.grad is not None}
        assert reached == {name for name, _ in model.named_parameters() if "audio" in name}

    def test_a_missing_modality_is_none_or_absent(self, make):
        model = LateFusion()
        grads = []
        for missing in ({}, {"video": None}):
            model.zero_grad()
            losses = model.losses(*make_batch())
            del losses["video"]
            make()(losses | missing).backward()
            grads.append([p.grad for p in model.parameters()])
        for one, other in zip(*grads, strict=True):
            assert (one is None) == (other is None)
            if one is not None:
                torch.testing.assert_close(one, other)

    def test_frees_what_the_graph_saved(self, make):
        saved = []

        class Packed:
            def __init__(self, tensor):
                self.tensor = tensor

        def pack(tensor):
            packed = Packed(tensor.detach())  # a saved output would hold the node that saves it
            saved.append(weakref.ref(packed))
            return packed

        model, balancer = LateFusion(trunk=False), make()
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda packed: packed.tensor):
            losses = model.losses(*make_batch())
        total = balancer(losses)
        total.backward()
        inside = [ref for ref in saved if ref() is not None and ref().tensor.shape == (8, 5)]
        assert saved
        assert not inside, "the encoders' inputs are still alive although the losses were back-propagated"
        losses.clear()
        gc.collect()
        assert all(ref() is None for ref in saved)

    def test_works_without_a_joint_loss_and_with_one_loss(self, make):
        model = LateFusion()
        losses = model.losses(*make_batch())
        make()({"audio": losses["audio"]}).backward()
        assert model.encoders["audio"][0].weight.grad is not None

    def test_repr_deepcopy_and_state_dict_round_trip(self, make):
        balancer = make()
        balancer(LateFusion().losses(*make_batch())).backward()
        twin = copy.deepcopy(balancer)
        fresh = make()
        fresh.load_state_dict(balancer.state_dict())
        assert repr(twin) == repr(balancer) == repr(fresh)
        assert type(balancer).__name__ in repr(balancer)

    def test_inputs_of_shape_one_are_scalars_too(self, make):
        leaf = torch.ones(1, requires_grad=True)
        make()({"audio": 2 * leaf}).backward()
        assert leaf.grad.shape == (1,)


@pytest.mark.parametrize(
    "balancer",
    [
        bg.Uniform({"audio": 0.5, "video": 2.0}),
        bg.Uniform(record_gramian=True),
        bg.Uniform(record_gramian=True, level="features"),
        bg.MinNorm(solver="faces"),
        bg.MinNorm(solver="faces", normalize="loss+", groups="reach"),
        bg.MinNorm(solver="closed", level="features", rescale="sum"),
    ],
    ids=repr,
)
def test_the_engine_never_reads_a_tensor_on_the_host(balancer):
    model = LateFusion()
    losses = model.losses(*make_batch())
    with NoHostReads():
        balancer(losses, features=model.features if balancer.level == "features" else None).backward()


def test_autocast_around_backward_does_not_lower_the_precision():
    model, plain = LateFusion(), bg.MinNorm()
    plain(model.losses(*make_batch())).backward()
    casting = bg.MinNorm()
    losses = model.losses(*make_batch())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        casting(losses).backward()
    torch.testing.assert_close(casting.last.gramian, plain.last.gramian, rtol=1e-4, atol=1e-6)


def test_last_reports_the_step():
    balancer = bg.MinNorm()
    before = balancer.last
    assert before is None
    total = balancer(scalars(1.0, 2.0))
    assert balancer.last.weights is None
    total.backward()
    assert balancer.last.names == ("joint", "audio")
    assert balancer.last.gramian.tolist() == [[1.0, 2.0], [2.0, 4.0]]
    assert balancer.last.to_dict()["losses"] == {"joint": 1.0, "audio": 2.0}
    assert set(balancer.last.to_dict()["weights"]) == {"joint", "audio"}
    assert not balancer.last.losses.requires_grad


def test_import_is_light():
    heavy = "('scipy', 'cvxpy', 'sklearn', 'matplotlib', 'triton')"
    code = f"import sys, balanced_grad; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_public_names():
    assert all(hasattr(bg, name) for name in bg.__all__)
    assert sorted(bg.__all__, key=str.lower) == sorted(set(bg.__all__), key=str.lower)
