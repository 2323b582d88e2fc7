"""Which parameters belong to which name: every argument takes the same forms."""

import pytest
import torch
from torch import nn

import balanced_grad as bg
from tests.conftest import MODALITIES, LateFusion, make_batch

FORMS = {
    "mapping of modules": dict,
    "ModuleDict": lambda encoders: encoders,
    "ModalityGroups": bg.ModalityGroups,
}
GROUPS = FORMS | {
    "mapping of parameters": lambda encoders: {name: list(e.parameters()) for name, e in encoders.items()},
    "mapping of generators": lambda encoders: {name: e.parameters() for name, e in encoders.items()},
    "mapping of modules and parameters": lambda encoders: {
        name: [e[0].weight, nn.Sequential(e[0])] for name, e in encoders.items()
    },
}


@pytest.fixture
def model():
    return LateFusion()


@pytest.mark.parametrize("form", GROUPS.values(), ids=GROUPS)
def test_groups(model, form):
    expected = bg.MinNorm(groups=dict(model.encoders))
    balancer = bg.MinNorm(groups=form(model.encoders))
    assert repr(balancer) == repr(expected)
    for each in (expected, balancer):
        each(model.losses(*make_batch())).backward()
    assert balancer.last.problems == expected.last.problems == MODALITIES[:2]
    assert balancer.last.weights.equal(expected.last.weights)


def test_what_modality_groups_share_is_in_no_problem(model):
    groups = bg.ModalityGroups(model.encoders, shared=model.trunk)
    bg.MinNorm(groups=groups)(model.losses(*make_batch())).backward()
    shared = [p.grad.clone() for p in model.trunk.parameters()]
    model.zero_grad()
    sum(model.losses(*make_batch()).values()).backward()
    for given, plain in zip(shared, model.trunk.parameters(), strict=True):
        torch.testing.assert_close(given, plain.grad)


def test_one_parameter_is_a_group(model):
    balancer = bg.MinNorm(groups={"weight": model.trunk.weight})
    balancer(model.losses(*make_batch())).backward()
    assert balancer.last.problems == ("weight",)
    assert balancer.last.reach == ((0, 1, 2),)


def test_groups_are_asked_anew(model):
    balancer = bg.MinNorm(groups=bg.ModalityGroups({"audio": model.encoders["audio"]}))
    model.encoders["audio"][0] = nn.Linear(5, 6)
    balancer(model.losses(*make_batch())).backward()
    assert balancer.last.problems == ("audio",)


@pytest.mark.parametrize(
    ("groups", "error", "message"),
    [
        ({"audio": 3}, TypeError, r"groups\['audio'\] is a int; give a module, a parameter, or a list"),
        ({"audio": ["encoder"]}, TypeError, r"groups\['audio'\] holds a str; give modules or parameters"),
        ({"audio": nn.ReLU()}, ValueError, r"groups\['audio'\] has no parameter"),
        ({"audio": nn.Linear(1, 1).weight * 2}, ValueError, r"groups\['audio'\] holds a computed tensor"),
        ([nn.Linear(1, 1)], TypeError, "groups=.*: give one of"),
        (nn.ModuleDict(), TypeError, "groups=.*: give one of"),
    ],
)
def test_bad_groups_are_named(groups, error, message):
    with pytest.raises(error, match=message):
        bg.MinNorm(groups=groups)


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_the_block_of_bogc(model, form):
    expected, balancer = bg.BOGC(dict(model.encoders)), bg.BOGC(form(model.encoders))
    assert repr(balancer) == repr(expected)
    balancer(model.losses(*make_batch())).backward()
    assert all(p.grad is not None for p in model.encoders.parameters())


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_attached_heads(form):
    model = nn.ModuleDict({"audio": nn.Linear(2, 3), "video": nn.Linear(2, 3)})
    model.forward = lambda x: model["audio"](x) + model["video"](x)
    attached = bg.attach(model, form(model), num_outputs=2)
    model(torch.ones(4, 2))
    assert list(attached.logits()) == ["audio", "video"]
    attached.detach()


def test_attached_heads_want_one_module_each():
    model = nn.ModuleDict({"audio": nn.Linear(2, 3), "video": nn.Linear(2, 3)})
    groups = bg.ModalityGroups({"both": [model["audio"], model["video"]]})
    with pytest.raises(TypeError, match=r"modalities\['both'\] is a list; give the encoder module itself"):
        bg.attach(model, groups, num_outputs=2)


@pytest.mark.parametrize("form", GROUPS.values(), ids=GROUPS)
def test_the_optimizer(model, form):
    optimizer = bg.BalancedOptimizer(
        torch.optim.SGD(model.parameters(), lr=0.1), bg.Uniform(), modalities=form(model.encoders)
    )
    assert optimizer.modalities.names == MODALITIES[:2]
