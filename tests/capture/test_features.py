"""Per-loss gradients at the encoder outputs."""

import re

import pytest
import torch

import balanced_grad as bg
from tests.conftest import LateFusion, make_batch


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
