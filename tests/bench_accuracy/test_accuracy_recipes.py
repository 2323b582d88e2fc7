"""Published networks in the study: what they compute, how they are trained, and that their lines stay apart."""

import copy
import json
import math

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy

from balanced_grad.demo._data import DemoError, build
from balanced_grad.demo._model import LateFusion
from bench.accuracy import _model as networks
from bench.accuracy import _study
from bench.accuracy._evaluate import evaluate, evaluate_own
from bench.accuracy._labels import command_of, name, stem
from bench.accuracy._methods import BASELINE, BY_NAME, METHODS
from bench.accuracy._model import InterIntra, head_split, muted_features
from bench.accuracy._recipes import SMALL, find_recipe, resnet_encoder
from bench.accuracy._statistics import read
from bench.accuracy._study import Study
from bench.accuracy._train import Trainer, train
from tests.bench_accuracy.conftest import complete

RESNET, LENET = find_recipe("resnet18:2"), find_recipe("lenet:1")
recipes = pytest.mark.parametrize("recipe", [RESNET, LENET], ids=lambda recipe: recipe.name)


@pytest.fixture(scope="module")
def data():
    """Three classes, shown by the brightness of pictures; the batches of both recipes have more than one item."""
    rng, labels = np.random.default_rng(0), np.arange(140) % 3
    bright = 0.5 * labels[:, None, None]
    views = {"audio": rng.standard_normal((140, 32, 32)) + bright, "image": rng.standard_normal((140, 32, 32)) - bright}
    return build("pictures", "pictures", views, labels, np.repeat([0, 1, 2], [100, 20, 20]))


def begun(data, method, recipe):
    return Trainer(data, method, method.settings("sgd", 0, recipe.defaults), "sgd", 0, recipe)


def test_the_published_network_is_a_resnet18_without_its_last_layer():
    encoder, width = resnet_encoder((3, 224, 224), find_recipe("resnet18").width)
    assert width == 512
    assert sum(p.numel() for p in encoder.parameters()) == 11_689_512 - 1000 * 513


def test_joint_logits_are_the_sum_of_those_of_the_modalities(data):
    model = networks.build(LateFusion, data, RESNET).eval()
    features = model.features(data.val.inputs)
    heads = model.unimodal(features)
    torch.testing.assert_close(model.fuse(features), heads["audio"] + heads["image"])
    torch.testing.assert_close(head_split(model, features), heads)


def test_joint_training_is_the_published_loop(data):
    """SGD with momentum and decay on the joint cross-entropy, and no other loss, written out."""
    trainer = begun(data, BASELINE, RESNET)
    model = copy.deepcopy(trainer.model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.001, momentum=0.9, weight_decay=1e-4)
    for rows in torch.arange(100).split(RESNET.batch):
        batch = data.train[rows]
        trainer.step(batch)
        logits = [
            head(encode(x)) for head, encode, x in zip(model.heads, model.encoders, batch.inputs.values(), strict=True)
        ]
        optimizer.zero_grad()
        cross_entropy(sum(logits), batch.labels).backward()
        optimizer.step()
    torch.testing.assert_close(dict(trainer.model.named_parameters()), dict(model.named_parameters()))


@recipes
def test_experts_share_no_parameter(data, recipe):
    model = networks.build(InterIntra, data, recipe)
    model.fuse(model.features(data.val.inputs)).sum().backward()
    assert all(p.grad is None for p in [*model.encoders.parameters(), *model.heads.parameters()])
    assert all(p.grad is not None for p in [*model.inter.parameters(), *model.fused.parameters()])


@pytest.mark.parametrize("method", ["joint", "pretrained"])
@pytest.mark.parametrize("recipe", [RESNET, LENET, SMALL], ids=lambda recipe: recipe.name)
def test_the_rate_falls_where_it_does_in_published_code(data, monkeypatch, recipe, method):
    rates = []

    def step(self, batch):
        rates.append(self.optimizer.param_groups[0]["lr"])

    monkeypatch.setattr(Trainer, "step", step)
    settings = BY_NAME[method].settings("sgd", 0, recipe.defaults)
    train(data, BY_NAME[method], settings, "sgd", 0, 10, True, recipe=recipe)
    steps = math.ceil(100 / recipe.batch)
    factors = [1] * 7 + [0.1] * 3 if recipe is RESNET else [1] * 10
    assert rates == pytest.approx([settings["lr"] * factor for factor in factors for _ in range(steps)])


@recipes
@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
def test_every_method_trains_it(data, recipe, method):
    settings = method.settings("sgd", 0, recipe.defaults)
    trained = train(data, method, settings, "sgd", 0, 1, True, recipe=recipe)
    rules = evaluate(trained.model, method, data)["rules"]
    assert all(math.isfinite(rule["test"]["nll"]) for rule in rules.values())
    start = begun(data, method, recipe).model.encoders
    for old, new in zip(start, trained.model.encoders, strict=True):
        assert not torch.equal(next(old.parameters()), next(new.parameters())) or method.name == "Alternate"


@recipes
def test_batch_norm_takes_notice_of_training_items_only(data, recipe):
    model = begun(data, BASELINE, recipe).model
    before = {key: x.clone() for key, x in model.named_buffers()}
    model.train()
    with torch.no_grad():
        features = [torch.zeros(20, head.in_features) for head in model.heads]
    muted_features(model, features, data.val.inputs)
    assert model.training
    evaluate_own(model, BASELINE, data.val)
    torch.testing.assert_close(dict(model.named_buffers()), before, rtol=0, atol=0)
    model.train()
    model.features(data.train.inputs)
    assert any(not torch.equal(x, before[key]) for key, x in model.named_buffers())


@pytest.fixture
def study(data, tmp_path, monkeypatch):
    monkeypatch.setattr(_study, "load", lambda _: data)
    monkeypatch.setattr(_study, "TIMED_STEPS", 1)
    return lambda network: Study.of("pictures", "sgd", 1, 1, tmp_path, network=network)


def test_lines_of_different_networks_stay_apart(study, tmp_path):
    for network in ("small", "resnet18:1", "resnet18:2"):
        assert complete(study(network), ["joint"]) == 1
        assert complete(study(network), ["joint"]) == 0
    groups = {group.protocol.network: group for group in read(tmp_path)}
    assert list(groups) == ["small", "resnet18:1", "resnet18:2"]
    labels = [(name(group.protocol), stem(group.protocol), command_of(group)) for group in groups.values()]
    assert all(len(set(column)) == 3 for column in zip(*labels, strict=True))
    assert "--network resnet18:2" in labels[2][2]
    assert "network" not in labels[0][2]
    path = next(tmp_path.glob("*.jsonl"))
    old = [json.loads(line) for line in path.read_text().splitlines()[:1]]
    path.write_text("".join(json.dumps({k: v for k, v in line.items() if k != "network"}) + "\n" for line in old))
    assert complete(study("small"), ["joint"]) == 0  # lines that do not say are of the small network


def test_the_budget_is_the_networks_own_where_none_is_given(study):
    epochs = [Study.of("pictures", "sgd", None, 1, study("small").ledger.path.parent, network=network).protocol.epochs
              for network in ("resnet18", "lenet")]  # fmt: skip
    assert epochs == [100, 30]


@pytest.mark.parametrize(
    ("network", "message"),
    [
        ("resnet50", "unknown network 'resnet50'; known: small, resnet18, lenet"),
        ("resnet18:wide", "a width is a whole number"),
        ("resnet18:0", "a width is a whole number"),
        ("small:3", "not of small"),
    ],
)
def test_networks_that_are_not_there(network, message):
    with pytest.raises(DemoError, match=message):
        find_recipe(network)


def test_the_published_width_needs_no_name():
    assert find_recipe("resnet18:64") is find_recipe("resnet18")


def test_vectors_are_refused(tmp_path):
    with pytest.raises(DemoError, match=r"takes pictures, and .*'pixels'.* are vectors"):
        Study.of("digits", "sgd", 1, 1, tmp_path, network="resnet18")
