"""The contract of ``balancer(losses)``: what it returns, what backward() does, what it refuses and how it says so."""

import copy
import gc
import re
import subprocess
import sys
import weakref

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

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
        assert balancer.state_dict() == state

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


@pytest.mark.parametrize("make", EVERY)
@pytest.mark.parametrize(
    ("losses", "error", "message"),
    [
        ({}, ValueError, "the mapping is empty"),
        ({"audio": None, "video": None}, ValueError, r"all of \['audio', 'video'\] are None"),
        ([torch.ones(())], TypeError, "mapping of name -> scalar tensor, got list"),
        ({"audio": 1.5}, TypeError, "'audio' is a float, not a tensor"),
        ({3: torch.ones(())}, TypeError, "loss names are strings, got 3"),
        ({"audio": torch.ones(4)}, ValueError, r"'audio' has shape \(4,\).*losses\['audio'\].mean\(\)"),
        ({"audio": torch.ones((), dtype=torch.long)}, TypeError, "'audio' has dtype torch.int64"),
        ({"audio": torch.ones(())}, ValueError, "'audio' has no graph"),
        ({"a": torch.ones(()), "b": torch.ones((), device="meta")}, ValueError, "'b' is on meta but 'a' is on cpu"),
    ],
)
def test_bad_losses_are_named(make, losses, error, message):
    with pytest.raises(error, match=message):
        make()(losses)


class TestRefusals:
    @pytest.mark.parametrize("make", CAPTURING)
    def test_second_backward(self, make):
        total = make()(LateFusion().losses(*make_batch()))
        total.backward(retain_graph=True)
        with pytest.raises(RuntimeError, match="second time"):
            total.backward()

    def test_second_backward_of_a_losses_only_method_is_autograds_own_error(self):
        total = bg.MIMO()(LateFusion().losses(*make_batch()))
        total.backward()
        with pytest.raises(RuntimeError, match="second time"):
            total.backward()

    @pytest.mark.parametrize("make", CAPTURING)
    def test_create_graph(self, make):
        model = LateFusion()
        total = make()(model.losses(*make_batch()))
        with pytest.raises(RuntimeError, match="create_graph=True is not supported"):
            total.backward(create_graph=True)
        assert all(p.grad is None for p in model.parameters())

    @pytest.mark.parametrize("make", CAPTURING)
    def test_post_accumulate_hooks(self, make):
        model = LateFusion()
        model.trunk.weight.register_post_accumulate_grad_hook(lambda p: None)
        with pytest.raises(RuntimeError, match=r"shape \(6, 6\) \(reached by 'joint', 'audio', 'video'\).*post-acc"):
            make()(model.losses(*make_batch()))
        named = bg.MinNorm(params=model.named_parameters())
        with pytest.raises(RuntimeError, match=r"^trunk\.weight \(reached by"):
            named(model.losses(*make_batch()))

    def test_post_accumulate_hooks_fire_at_the_feature_level_and_for_losses_only(self):
        for balancer in (bg.MIMO(), bg.MinNorm(level="features")):
            model, fired = LateFusion(), []
            model.trunk.weight.register_post_accumulate_grad_hook(fired.append)
            losses = model.losses(*make_batch())
            balancer(losses, features=model.features).backward()
            assert fired == [model.trunk.weight]

    def test_reentrant_checkpointing(self):
        layer = nn.Linear(3, 3)
        x = torch.randn(2, 3, requires_grad=True)
        losses = {"joint": checkpoint(layer, x, use_reentrant=True).sum(), "audio": layer(x).sum()}
        with pytest.raises(RuntimeError, match=r"'joint'.*use_reentrant=False"):
            bg.MinNorm()(losses)

    def test_sparse_gradients_where_losses_meet(self):
        table = nn.Embedding(4, 2, sparse=True)
        z = table(torch.tensor([1, 2]))
        with pytest.raises(RuntimeError, match="sparse=False"):
            bg.MinNorm()({"joint": z.sum(), "audio": z.square().sum()}).backward()
        assert table.weight.grad is None

    def test_unknown_level(self):
        with pytest.raises(ValueError, match="level='layers': choose one of"):
            bg.MinNorm(level="layers")

    def test_more_than_one_process(self, monkeypatch):
        monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
        monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
        losses = LateFusion().losses(*make_batch())
        with pytest.raises(RuntimeError, match="not yet averaged over processes"):
            bg.MinNorm()(losses)
        bg.MIMO()(losses).backward()


class TestCapture:
    def test_exclusive_sparse_gradients_stay_sparse(self):
        table, w = nn.Embedding(4, 2, sparse=True), torch.ones(2, requires_grad=True)
        for _ in range(2):
            losses = {"joint": w.sum(), "audio": (table(torch.tensor([1, 1])) * w).sum()}
            bg.Uniform({"audio": 3.0}, record_gramian=True)(losses).backward()
        assert table.weight.grad.is_sparse
        torch.testing.assert_close(table.weight.grad.to_dense()[1], torch.tensor([12.0, 12.0]))

    def test_a_reached_parameter_without_a_gradient_keeps_none(self):
        class Severed(torch.autograd.Function):
            @staticmethod
            def forward(ctx, x, w):
                return x.clone()

            @staticmethod
            def backward(ctx, grad):
                return grad, None

        x, w = torch.ones(2, requires_grad=True), torch.ones(2, requires_grad=True)
        z = Severed.apply(x, w)
        bg.Uniform(record_gramian=True)({"joint": z.sum(), "audio": (2 * z).sum()}).backward()
        torch.testing.assert_close(x.grad, torch.full((2,), 3.0))
        assert w.grad is None

    def test_aliased_and_zero_stride_gradients_are_copied(self):
        a, b = torch.zeros(3, requires_grad=True), torch.zeros(3, requires_grad=True)
        bg.Uniform(record_gramian=True)(
            {"joint": (a + b).sum(), "audio": 2 * (a + b).sum(), "video": a.sum()}
        ).backward()
        torch.testing.assert_close(a.grad, torch.full((3,), 4.0))
        torch.testing.assert_close(b.grad, torch.full((3,), 3.0))
        a.grad.zero_()
        torch.testing.assert_close(b.grad, torch.full((3,), 3.0))

    def test_gradients_do_not_live_in_the_arena(self):
        model, balancer = LateFusion(), bg.MinNorm()
        balancer(model.losses(*make_batch(seed=0))).backward()
        held = [p.grad for p in model.parameters()]
        copies = [grad.clone() for grad in held]
        model.zero_grad()
        balancer(model.losses(*make_batch(seed=1))).backward()
        for grad, before in zip(held, copies, strict=True):
            torch.testing.assert_close(grad, before, rtol=0, atol=0)

    def test_a_detached_view_of_a_gradient_outlives_zero_grad(self):
        model, balancer = LateFusion(), bg.MinNorm()
        balancer(model.losses(*make_batch(seed=0))).backward()
        held = model.trunk.weight.grad.detach()[1:]
        before = held.clone()
        for seed in (1, 2, 3):
            model.zero_grad()
            balancer(model.losses(*make_batch(seed=seed))).backward()
        torch.testing.assert_close(held, before, rtol=0, atol=0)

    def test_memory_of_dropped_gradients_is_used_again(self):
        model, balancer = LateFusion(), bg.MinNorm()
        addresses = set()
        for seed in range(4):
            model.zero_grad()
            balancer(model.losses(*make_batch(seed=seed))).backward()
            addresses.add(model.trunk.weight.grad.data_ptr())
        assert len(addresses) == 1

    def test_gramian_is_that_of_the_per_loss_gradients_over_shared_parameters(self):
        model, balancer = LateFusion(MODALITIES), bg.MinNorm()
        losses = model.losses(*make_batch(MODALITIES))
        shared = [p for name, p in model.named_parameters() if "encoders" in name or "trunk" in name]
        for scope, make in (
            (shared, bg.MinNorm),
            (list(model.parameters()), lambda: bg.MinNorm(include_exclusive=True)),
        ):
            rows = []
            for loss in losses.values():
                grads = torch.autograd.grad(loss, scope, retain_graph=True, allow_unused=True)
                rows.append(
                    torch.cat(
                        [
                            torch.zeros(p.numel()) if g is None else g.flatten()
                            for p, g in zip(scope, grads, strict=True)
                        ]
                    )
                )
            want = torch.stack(rows).double() @ torch.stack(rows).double().T
            balancer = make()
            balancer(model.losses(*make_batch(MODALITIES))).backward()
            torch.testing.assert_close(balancer.last.gramian, want, rtol=1e-5, atol=1e-8)

    def test_any_weights_give_the_weighted_sum_of_the_gradients(self):
        class Fixed(bg.Balancer):
            needs_gramian = True

            def weigh(self, problem):
                return bg.Weighting(torch.tensor([0.25, 3.0, -1.0]))

        weights = Fixed().weigh(None).weights
        for level in ("parameters", "features"):
            model = LateFusion()
            losses = model.losses(*make_batch())
            Fixed(level=level)(losses, features=model.features if level == "features" else None).backward()
            got = [p.grad.clone() for p in model.parameters()]
            model.zero_grad()
            sum(w * loss for w, loss in zip(weights, model.losses(*make_batch()).values(), strict=True)).backward()
            for p, grad in zip(model.parameters(), got, strict=True):
                torch.testing.assert_close(grad, p.grad)

    def test_params_restricts_what_receives_a_gradient(self):
        for balancer_of in (bg.MinNorm, lambda params: bg.Uniform(params=params, record_gramian=True)):
            model = LateFusion()
            balancer_of(params=model.encoders.parameters())(model.losses(*make_batch())).backward()
            reached = {name.split(".")[0] for name, p in model.named_parameters() if p.grad is not None}
            assert reached == {"encoders"}

    @pytest.mark.parametrize("make", [bg.Uniform, bg.MIMO])
    def test_params_restricts_losses_only_methods_too(self, make):
        model = LateFusion()
        make(params=model.encoders.parameters())(model.losses(*make_batch())).backward()
        reached = {name.split(".")[0] for name, p in model.named_parameters() if p.grad is not None}
        assert reached == {"encoders"}

    @pytest.mark.parametrize(
        ("params", "error", "message"),
        [
            ([], ValueError, "params is empty"),
            (torch.ones(2), TypeError, r"write params=\[tensor\]"),
            (["weight"], TypeError, r"params\[0\] is a str"),
            ([("w", torch.ones(2, requires_grad=True) * 2)], ValueError, "w is not a leaf"),
        ],
    )
    def test_bad_params(self, params, error, message):
        with pytest.raises(error, match=message):
            bg.MinNorm(params=params)

    def test_a_modality_without_a_parameter(self):
        model = LateFusion(trunk=False)
        balancer = bg.MinNorm(params=model.encoders["audio"].parameters())
        with pytest.raises(ValueError, match="'video' reaches none of the parameters"):
            balancer(model.losses(*make_batch()))

    def test_the_arena_is_kept_and_bounded(self):
        model, balancer = LateFusion(MODALITIES), bg.MinNorm()
        sizes = set()
        for seed in range(12):
            inputs, label = make_batch(MODALITIES, seed=seed)
            if seed % 4:
                del inputs[MODALITIES[seed % 4 - 1]]
            balancer(model.losses(inputs, label)).backward()
            sizes.add(balancer._arena.nbytes)
        full = 4 * (3 * 36 * 2 + 4 * 44)  # encoders: joint and own; trunk: all four; rows padded to 16 bytes
        assert max(sizes) <= 2 * full
        assert copy.deepcopy(balancer)._arena.nbytes == 0


class TestFeatureLevel:
    def test_gramian_is_taken_at_the_features(self):
        model, balancer = LateFusion(), bg.MinNorm(level="features")
        losses = model.losses(*make_batch())
        wanted = list(model.features.values())
        rows = []
        for loss in losses.values():
            grads = torch.autograd.grad(loss, wanted, retain_graph=True, allow_unused=True)
            rows.append(
                torch.cat(
                    [torch.zeros(z.numel()) if g is None else g.flatten() for z, g in zip(wanted, grads, strict=True)]
                )
            )
        want = torch.stack(rows).double() @ torch.stack(rows).double().T
        balancer(losses, features=model.features).backward()
        torch.testing.assert_close(balancer.last.gramian, want, rtol=1e-5, atol=1e-10)

    @pytest.mark.parametrize(
        ("features", "error", "message"),
        [
            (None, ValueError, "level='features' needs the encoder outputs"),
            ({}, TypeError, "non-empty mapping"),
            ({"audio": 3}, TypeError, "'audio' is a int"),
            ({"audio": torch.ones(3)}, ValueError, "'audio' has no graph"),
        ],
    )
    def test_bad_features(self, features, error, message):
        with pytest.raises(error, match=message):
            bg.MinNorm(level="features")(LateFusion().losses(*make_batch()), features=features)

    def test_a_feature_no_loss_reaches(self):
        model = LateFusion()
        stranger = torch.ones(3, requires_grad=True) * 2
        total = bg.MinNorm(level="features")(model.losses(*make_batch()), features=model.features | {"text": stranger})
        with pytest.raises(RuntimeError, match="'text' is reached by none"):
            total.backward()
        assert all(p.grad is None for p in model.parameters())

    def test_features_at_the_parameter_level_are_refused(self):
        model = LateFusion()
        with pytest.raises(ValueError, match=re.escape("write MinNorm(level='features')")):
            bg.MinNorm()(model.losses(*make_batch()), features=model.features)


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
    assert balancer.last is None
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
