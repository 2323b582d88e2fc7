"""What the balancer refuses, and that it names what the user wrote."""

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

import balanced_grad as bg
from tests.conftest import LateFusion, make_batch

EVERY = [bg.Uniform, bg.MIMO, bg.MinNorm, lambda: bg.Uniform(record_gramian=True)]
CAPTURING = [bg.MinNorm, lambda: bg.MIMO(record_gramian=True)]


@pytest.mark.parametrize("make", EVERY)
@pytest.mark.parametrize(
    ("losses", "error", "message"),
    [
        ({}, ValueError, "the mapping is empty"),
        ({"audio": None, "video": None}, ValueError, r"all of \['audio', 'video'\] are None"),
        ([torch.ones(())], TypeError, "mapping of name -> scalar tensor, got list"),
        ({"audio": 1.5}, TypeError, "'audio' is a float, not a tensor"),
        ({3: torch.ones(())}, TypeError, "loss names are strings, got 3"),
        ({"audio": torch.ones(4, 2)}, ValueError, r"'audio' has shape \(4, 2\).*losses\['audio'\].mean\(\)"),
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
            balancer(losses, features=model.features if balancer.level == "features" else None).backward()
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


class TestOptionsWithoutEffect:
    @pytest.mark.parametrize("make", [bg.Uniform, bg.MIMO])
    @pytest.mark.parametrize("option", [{"level": "features"}, {"include_exclusive": True}])
    def test_of_the_capture_where_nothing_is_captured(self, make, option):
        (name, value), *_ = option.items()
        with pytest.raises(ValueError, match=rf"{make.__name__}: {name}={value!r} has no effect.*record_gramian=True"):
            make(**option)
        assert getattr(make(**option, record_gramian=True), name) == value

    @pytest.mark.filterwarnings("ignore::balanced_grad.InactiveBalancerWarning")  # of groups that nothing reaches
    @pytest.mark.parametrize("groups", ["reach", "tensor", {"audio": nn.Linear(2, 2)}])
    def test_groups_of_a_losses_only_method_of_ones_own(self, groups):
        class Even(bg.Balancer):
            def weigh(self, problem):
                return bg.Weighting(torch.ones_like(problem.losses))

        with pytest.raises(ValueError, match=r"Even: groups=.* has no effect"):
            Even(groups=groups)
        balancer = Even(groups=groups, record_gramian=True)
        balancer(LateFusion().losses(*make_batch())).backward()
        assert balancer.last.gramian.dim() == 3
        assert set(balancer.last.to_dict()) == {"losses", "weights"}, "one weight per loss, in all problems"

    @pytest.mark.parametrize(
        "balancer",
        [
            bg.Uniform(),
            bg.MIMO(),
            bg.MIMO(record_gramian=True),
            bg.MinNorm(),
            bg.MMPareto(),
            bg.Gramian(lambda gramian: torch.ones(len(gramian))),
            bg.BOGC(nn.Linear(2, 2)),
            bg.DGL({"audio": nn.Linear(2, 2)}),
            bg.OGM({"audio": nn.Linear(2, 2)}),
            bg.MLB({"audio": nn.Linear(2, 2)}),
            bg.AGM(("audio", "video")),
            bg.HeldOut(bg.Uniform()),
        ],
        ids=lambda balancer: type(balancer).__name__,
    )
    @pytest.mark.parametrize("features", [{"audio": "nonsense"}, {}])
    @pytest.mark.parametrize("learning", [True, False])
    def test_features_that_nobody_reads(self, balancer, features, learning):
        losses = {"joint": torch.ones((), requires_grad=True)}
        with torch.set_grad_enabled(learning), pytest.raises(ValueError, match=r"features=.* has no effect"):
            balancer(losses, features=features)
        assert balancer.last is None

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"penalty": 0, "ramp_steps": 5}, "ramp_steps=5 has no effect, since penalty=0"),
            ({"penalty": 0.0, "ema": 0.9, "offsets": {"audio": 1.0}}, "ema=0.9 and offsets={...} have no effect"),
            ({"smoothing": float("inf"), "ema": 0.9}, "ema=0.9 has no effect, since smoothing=inf"),
        ],
    )
    def test_of_mimo_that_exclude_each_other(self, options, message):
        with pytest.raises(ValueError, match=message):
            bg.MIMO(**options)


@pytest.mark.parametrize("make", [bg.MIMO, bg.MinNorm, lambda: bg.HeldOut(bg.Uniform())])
def test_data_parallel_replicas(make):
    with pytest.raises(RuntimeError, match=r"nn.DataParallel.*use DistributedDataParallel"):
        make()._replicate_for_data_parallel()  # what DataParallel calls for every module of a model
