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
