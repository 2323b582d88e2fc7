"""What BOGC refuses, and that a refusal changes nothing."""

import copy

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy, mse_loss

import balanced_grad as bg
from balanced_grad.evidence import Laplace, MicroBatchVariance, StepVariance
from tests.conftest import LateFusion, make_batch
from tests.evidence.test_bogc import SharedHead


class TestRefusals:
    def test_blocks(self):
        model = LateFusion()
        for block, error, message in (
            (5, TypeError, "give a module"),
            ({}, ValueError, "empty"),
            ({"audio": 3}, TypeError, r"block\['audio'\] is a int"),
            (nn.Tanh(), ValueError, "no trainable parameter"),
            ([model.fused, model.fused], ValueError, "twice"),
            (nn.Conv1d(1, 1, 1), ValueError, "Conv1d"),
            (nn.utils.parametrizations.weight_norm(nn.Linear(2, 2)), ValueError, "ParametrizationList|computed"),
        ):
            with pytest.raises(error, match=message):
                bg.BOGC(block)

    @pytest.mark.parametrize(
        "options",
        [
            {"layers": "first"},
            {"precision": "x"},
            {"unit": "x"},
            {"joint": "x"},
            {"kappa": -1.0},
            {"cap": float("nan")},
            {"decay": 1.0},
        ],
    )
    def test_options(self, options):
        with pytest.raises(ValueError, match=next(iter(options))):
            bg.BOGC(nn.Linear(2, 2), **options)

    def test_variance(self):
        with pytest.raises(TypeError, match="variance='laplace'"):
            bg.BOGC(nn.Linear(2, 2), "laplace")
        for wrong in (
            lambda: Laplace("full"),
            lambda: Laplace(draws=4),
            lambda: Laplace("softmax", draws=3),
            lambda: Laplace(num_data=0),
            lambda: Laplace(num_data=-1),
            lambda: Laplace(prior_precision=0),
            lambda: StepVariance(1.0),
            lambda: MicroBatchVariance(1),
        ):
            with pytest.raises(ValueError, match=r"give|choose|needs|between|draws"):
                wrong()

    def test_softmax_curvature_of_another_loss(self):
        model = SharedHead()
        inputs, _ = make_batch()
        balancer = bg.BOGC(model.head, Laplace("softmax"))
        before = copy.deepcopy(balancer.state_dict())
        outputs = {m: model.head(model.encoders[m](x)) for m, x in inputs.items()}
        loss = balancer({m: mse_loss(x, torch.ones_like(x)) for m, x in outputs.items()})
        with pytest.raises(ValueError, match="mean cross-entropy"):
            loss.backward()
        torch.testing.assert_close(balancer.state_dict(), before, rtol=0, atol=0)
        assert all(p.grad is None for p in model.parameters())

    def test_a_block_that_no_loss_reaches(self):
        with pytest.raises(ValueError, match="reaches the block"):
            bg.BOGC(nn.Linear(2, 2))(LateFusion().losses(*make_batch()))

    def test_a_layer_that_is_bypassed(self):
        head = nn.Linear(5, 3)
        inputs, label = make_batch()
        balancer = bg.BOGC(head)
        logits = {m: nn.functional.linear(x, head.weight, head.bias) for m, x in inputs.items()}
        with pytest.raises(RuntimeError, match="'linear'"):
            balancer({m: cross_entropy(x, label) for m, x in logits.items()}).backward()

    def test_features_and_second_backward(self):
        model = SharedHead()
        balancer = bg.BOGC(model.head)
        with pytest.raises(ValueError, match="features"):
            balancer(model.losses(*make_batch()), features={})
        loss = balancer(model.losses(*make_batch()))
        loss.backward()
        with pytest.raises(RuntimeError, match="second time"):
            loss.backward()

    def test_state_of_another_block(self):
        model = LateFusion()
        with pytest.raises(ValueError, match="is of a block"):
            bg.BOGC(model.encoders).load_state_dict(bg.BOGC(model.fused).state_dict())
