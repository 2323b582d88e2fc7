"""Prediction rules, missing modalities, contributions and generated tasks."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn.functional import nll_loss

from balanced_grad.demo._data import DemoError
from balanced_grad.demo._model import LateFusion
from bench.accuracy._data import load
from bench.accuracy._evaluate import Product, evaluate, experts, missing, own, pack, product, shapley_loss, unpack
from bench.accuracy._generated import TASKS, bayes, label, load_generated
from bench.accuracy._methods import ALONE, BASELINE, BY_NAME
from bench.accuracy._model import build, head_split, muted_features
from bench.accuracy._train import train


@pytest.fixture(scope="module")
def data():
    return load("digits-hard")


@pytest.fixture(scope="module", params=["uni-modal", "uniform", "I2M2"])
def trained(request, data):
    method = BY_NAME[request.param]
    return method, train(data, method, method.settings("sgd", 0), "sgd", 0, 3, True).model


@given(st.lists(st.booleans(), min_size=1, max_size=40))
def test_packing_forgets_nothing(bits):
    assert unpack(pack(torch.tensor(bits)), len(bits)).tolist() == bits


def test_fitted_weights_are_no_worse_than_equal_ones_where_they_were_fitted(trained, data):
    method, model = trained
    report = evaluate(model, method, data)
    assert report["rules"]["fitted"]["val"]["nll"] <= report["rules"]["product"]["val"]["nll"] + 1e-3
    assert set(report["exponents"]) == {"pixels", "fourier", "profiles"} | ({"joint"} if method is not ALONE else set())
    correct = unpack(report["rules"]["product"]["correct"], len(data.test))
    assert 100 * correct.mean() == pytest.approx(report["rules"]["product"]["test"]["accuracy"])


def test_product_with_equal_weights_is_the_plain_product(trained, data):
    method, model = trained
    with torch.no_grad():
        outputs = experts(method, model, model.features(data.val.inputs))
        pool = Product(outputs, model.names, data.val.labels)
        pool.pool.weights.fill_(1)
        torch.testing.assert_close(pool.fitted(outputs), product(outputs))


def test_what_is_missing_does_not_matter(trained, data):
    method, model = trained
    with torch.no_grad():
        means = [z.mean(0) for z in model.features(data.train.inputs)]
        other = data.test.inputs | {"fourier": torch.randn_like(data.test.inputs["fourier"])}
        seen, changed = (
            missing(method, model, model.features(inputs), means, "fourier") for inputs in (data.test.inputs, other)
        )
        assert seen[1]["fourier"] is None
        assert torch.equal(product(seen[1]), product(changed[1]))
        if method.own == "fused":
            assert torch.equal(own(method, seen[0]), own(method, changed[0]))


def test_contributions_add_up_to_what_all_modalities_save(trained, data):
    method, model = trained
    values = shapley_loss(model, method, data.test)
    with torch.no_grad():
        features = model.features(data.test.inputs)
        orders = [torch.randperm(len(data.test), generator=torch.Generator().manual_seed(i)) for i in range(3)]
        shuffled = [z[orders[i % 3]] for i, z in enumerate(features)]
        with_all, with_none = (
            nll_loss(own(method, experts(method, model, z)), data.test.labels).item() for z in (features, shuffled)
        )
    assert sum(values.values()) == pytest.approx(with_none - with_all, abs=1e-4)


def test_split_head_sums_to_the_fused_logits(data):
    model = LateFusion(data.shapes, data.classes)
    features = model.features(data.val.inputs)
    total = torch.stack(list(head_split(model, features).values())).sum(0)
    torch.testing.assert_close(total, model.fuse(features))


def test_muting_by_features_is_muting_by_inputs(data):
    model = LateFusion(data.shapes, data.classes)
    inputs = data.val.inputs
    choices = muted_features(model, model.features(inputs), inputs)
    zeroed = inputs | {"pixels": torch.zeros_like(inputs["pixels"])}
    seen = [pair[name != "pixels"] for name, pair in zip(model.names, choices, strict=True)]
    torch.testing.assert_close(model.fuse(seen), model.fuse(model.features(zeroed)))


@pytest.mark.parametrize("task", TASKS)
def test_generated_tasks_hold_the_information_they_are_named_after(task):
    rng = np.random.default_rng(1)
    bits = rng.choice([-1, 1], (2, 20000))
    bits[1] = bits[0] if task == "redundant" else bits[1]
    x = np.zeros((2, 20000, 2))
    turn = rng.choice([-1, 1], 20000)
    x[0, :, 0], x[1, :, 0], x[1, :, 1] = bits[0], turn, turn * bits[1]
    accuracy = [bayes(task, 9 * x, label(task, bits), known) for known in ((True, False), (False, True), (True, True))]
    alone = {"redundant": 100, "unique": 50, "synergy": 50, "noise": 50}[task]
    assert accuracy == pytest.approx([alone, alone, 100], abs=2)


def test_generated_tasks_have_a_network_that_can_solve_them():
    """A linear fused head cannot: without noise the four cells of an XOR would need opposite signs."""
    data = load_generated("synergy")
    assert isinstance(build(LateFusion, data).fused, torch.nn.Sequential)
    assert torch.equal(load_generated("synergy").test.inputs["hard"], data.test.inputs["hard"])
    assert data.train.labels.double().mean() == pytest.approx(0.5, abs=0.05)


def test_joint_training_is_not_touched_by_the_heads_that_watch_it(data):
    settings = BASELINE.settings("sgd", 0)
    watched = train(data, BASELINE, settings, "sgd", 0, 1, False).model
    from bench.accuracy import _train

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_train.Trainer, "_train_watched_heads", lambda self, forward: None)
        alone = train(data, BASELINE, settings, "sgd", 0, 1, False).model
    assert torch.equal(watched.fused.weight, alone.fused.weight)
    assert not torch.equal(watched.heads[0].weight, alone.heads[0].weight)


def test_unknown_data(monkeypatch):
    monkeypatch.delenv("BALANCED_GRAD_DATA", raising=False)
    with pytest.raises(DemoError, match="synergy"):
        load("mfeet")
