"""What is legal and yet looks like a mistake is said, and what is right is not."""

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from balanced_grad.check import check
from tests.conftest import MODALITIES, LateFusion, make_batch


@pytest.fixture
def model():
    return LateFusion(MODALITIES)


@pytest.fixture
def losses(model):
    return model.losses(*make_batch(MODALITIES))


def notes(losses, model=None, optimizer=None):
    return "\n".join(check(losses, model, optimizer=optimizer).advice)


def test_nothing_is_said_of_what_is_right(model, losses):
    assert notes(losses, model, torch.optim.SGD(model.parameters(), lr=0.1)) == ""
    assert notes(dict(reversed(losses.items())) | {"smell": None}, model) == ""


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_a_loss_that_is_not_finite(losses, value):
    text = notes(losses | {"video": losses["video"] * value})
    assert f"loss 'video' is {value}" in text
    assert "'audio'" not in text


@pytest.mark.parametrize("same", [lambda loss: loss, torch.clone, lambda loss: loss * 1, lambda loss: loss.reshape(1)])
def test_one_tensor_under_several_names(losses, same):
    assert "losses 'joint' and 'audio' are the same" in notes(losses | {"audio": same(losses["joint"])})


def test_equal_values_of_different_heads_are_two_losses(model):
    for head in (*model.heads.values(), model.fused):
        nn.init.zeros_(head.weight)
        nn.init.zeros_(head.bias)
    assert "are the same" not in notes(model.losses(*make_batch(MODALITIES)), model)


@pytest.mark.parametrize(
    ("factor", "said"), [(150.0, True), (1 / 150, True), (-150.0, True), (20.0, False), (0.0, False)]
)
def test_values_of_different_scales(losses, factor, said):
    assert ("loss " in notes(losses | {"text": losses["text"] * factor})) == said


def test_a_loss_alone_needs_heads(losses):
    assert "bg.attach" in notes({"joint": losses["joint"]})
    assert "bg.attach" in notes({"audio": losses["audio"]})
    missing = notes({"joint": losses["joint"], "audio": None})
    assert "in which no modality is missing" in missing
    assert "bg.attach" not in missing


@pytest.mark.parametrize(
    "name",
    ["fused", "Joint", "joint_cls", "loss/fusion", "multimodal", "multi-modal", "total", "fusedLoss", "lossJoint"],
)
def test_a_fused_loss_by_another_name(losses, name):
    others = {key: loss for key, loss in losses.items() if key != "joint"}
    assert f"{name!r} looks like it" in notes({**others, name: losses["joint"]})
    assert f"loss {name!r} looks like that of a fused prediction" in notes({**losses, name: 2 * losses["joint"]})


@pytest.mark.parametrize("name", ["diffusion", "confused", "ankle_disjoint", "subtotal"])
def test_words_that_only_contain_one_are_modalities(losses, name):
    losses[name] = losses.pop("text")
    assert notes(losses) == ""


def test_a_fused_loss_is_known_by_what_it_reaches():
    model = LateFusion(MODALITIES, trunk=False)
    losses = model.losses(*make_batch(MODALITIES))
    losses["ce"] = losses.pop("joint")
    assert "'ce' looks like it" in notes(losses)


def test_an_encoder_without_a_loss_of_its_own():
    model = LateFusion(MODALITIES, trunk=False)
    losses = model.losses(*make_batch(MODALITIES))
    del losses["text"]
    text = notes(losses, model)
    assert "only the joint loss reaches encoders.text:" in text
    assert "no loss reaches heads.text.*" in text


def test_a_detached_loss(model, losses):
    features = {m: z.detach() for m, z in model.features.items()}
    alone = cross_entropy(model.heads["text"](features["text"]), torch.zeros(8, dtype=torch.long))
    assert "loss 'text' meets no other loss" in notes(losses | {"text": alone}, model)


def test_what_the_optimizer_does_not_hold(model, losses):
    optimizer = torch.optim.SGD(model.encoders.parameters(), lr=0.1)
    optimizer.add_param_group({"params": list(model.heads["audio"].parameters())})
    text = notes(losses, model, optimizer)
    assert "does not hold" in text
    assert all(f"{part}.*" in text for part in ("trunk", "heads.video", "heads.text", "fused"))
    assert "heads.audio" not in text
    assert "does not hold" in notes(losses, None, optimizer)


def test_an_optimizer_of_parameters_that_are_gone(model):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model.fused = nn.Linear(18, 3)
    text = notes(model.losses(*make_batch(MODALITIES)), model, optimizer)
    assert "holds 2 parameters that are neither in the model" in text
    assert "does not hold fused.*" in text


def test_a_leaf_that_is_no_parameter_stands_aside(model, losses):
    inputs, label = make_batch(MODALITIES)
    plain = check(losses, model)
    for value in inputs.values():
        value.requires_grad_()
    report = check(model.losses(inputs, label), model)
    assert (report.rows, report.traffic, report.parts) == (plain.rows, plain.traffic, plain.parts)
    assert {(aside.losses, aside.shape) for aside in report.bystanders} == {(("joint", m), (8, 5)) for m in MODALITIES}
    assert "not a parameter of the model" in str(report)
    assert "a tensor of shape (8, 5)" in str(report)
    assert "not a parameter" not in str(plain)
    held = torch.optim.SGD([*model.parameters(), inputs["audio"]], lr=0.1)
    assert "no nn.Parameter" in notes(model.losses(inputs, label), model, held)


def test_leaves_are_parameters_where_there_is_no_other():
    weight = torch.ones(3, requires_grad=True)
    report = check({"joint": weight.sum(), "audio": weight.square().sum()})
    assert report.bystanders == ()
    assert report.rows > 0


def test_an_adapted_model_reads_at_120_columns():
    names = [f"layers.{i}.attention.{q}_proj.lora_{side}" for i in range(16) for q in "qv" for side in "AB"]
    model = nn.ModuleDict()
    for name in names:
        module = model
        for part in name.split("."):
            module = _child(module, part)
        module.register_parameter("weight", nn.Parameter(torch.ones(2)))
        module.register_parameter("frozen", nn.Parameter(torch.ones(2), requires_grad=False))
    total = sum(p.sum() for p in model.parameters())
    report = check({"joint": total, "audio": total.square()}, model)
    assert "layers.{0..15}.attention.{q,v}_proj.lora_{A,B}.weight" in str(report)
    assert max(map(len, str(report).splitlines())) <= 120
    assert len(report.parts[0].where) == len(names)


def _child(module, name):
    if name not in module._modules:
        module.add_module(name, nn.Module())
    return module._modules[name]
