"""Heads that never move are said once, and no other loop raises a false alarm."""

import warnings

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

import balanced_grad as bg
from tests.attach.test_attach import LABELS, Late, batch

CALLS = 110
METHODS = {
    "uniform": lambda model: bg.Uniform(),
    "mimo": lambda model: bg.MIMO(),
    "min-norm": lambda model: bg.MinNorm(),
    "mmpareto": lambda model: bg.MMPareto(),
    "dgl": lambda model: bg.DGL(model.encoders),
    "groups": lambda model: bg.MinNorm(groups="reach"),
}


def step(model, aux, balancer):
    balancer(aux.losses(cross_entropy(model(*batch()), LABELS), LABELS)).backward()


def train(model, aux, balancer, optimizer, steps=CALLS, clear=None):
    for _ in range(steps):
        step(model, aux, balancer)
        optimizer.step()
        (clear or optimizer).zero_grad()


def build(**attach):
    model = Late()
    return (
        model,
        bg.attach(model, model.encoders, num_outputs=3, **attach),
        torch.optim.SGD(model.parameters(), lr=1e-3),
    )


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("clear", ["optimizer", "model"])
def test_heads_that_no_optimizer_holds(method, clear):
    model, aux, optimizer = build()
    balancer = METHODS[method](model)
    with pytest.warns(
        bg.InactiveBalancerWarning, match=r"\['audio', 'video'\] have not moved .*aux.add_to\(opt"
    ) as said:
        train(model, aux, balancer, optimizer, 2 * CALLS, {"optimizer": optimizer, "model": model}[clear])
    assert len(said) == 1


def test_probes_that_no_optimizer_holds():
    model, aux, optimizer = build(stop_gradient=True)
    with pytest.warns(bg.InactiveBalancerWarning, match="have not moved"):
        train(model, aux, bg.Uniform(), optimizer)


def test_heads_that_the_balancer_leaves_out():
    model, aux, optimizer = build()
    aux.add_to(optimizer)
    balancer = bg.MinNorm(params=model.named_parameters())
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        train(model, aux, balancer, optimizer)
    said = [
        str(one.message)
        for one in said
        if "in 100 calls of losses() in which their encoders did, and hold no gr" in str(one.message)
    ]
    assert len(said) == 1
    assert "params=[*model.parameters(), *aux.parameters()]" in said[0]


class TestNoFalseAlarm:
    @pytest.mark.parametrize("to_none", [True, False])
    @pytest.mark.parametrize("accumulation", [1, 64])
    def test_in_training_with_accumulation(self, accumulation, to_none):
        model, aux, optimizer = build()
        aux.add_to(optimizer)
        for index in range(1, 2 * CALLS):
            step(model, aux, bg.Uniform())
            if index % accumulation == 0:
                optimizer.step()
                optimizer.zero_grad(to_none)

    def test_of_an_optimizer_that_moves_the_data(self):
        """Third-party ones write past the version of the tensor."""
        model, aux, _ = build()
        for _ in range(CALLS):
            losses = aux.losses(cross_entropy(model(*batch()), LABELS), LABELS)
            model.zero_grad()
            aux.zero_grad()
            bg.Uniform()(losses).backward()
            for p in (*model.parameters(), *aux.parameters()):
                p.data.sub_(1e-3 * p.grad)

    def test_of_frozen_heads(self):
        model, aux, optimizer = build()
        model(*batch())
        aux.losses(None, LABELS)
        aux.requires_grad_(False)
        train(model, aux, bg.Uniform(), optimizer)

    def test_of_probes_whose_losses_are_only_looked_at(self):
        model, aux, optimizer = build(stop_gradient=True)
        for _ in range(CALLS):
            aux.losses(cross_entropy(model(*batch()), LABELS), LABELS)["joint"].backward()
            optimizer.step()
            optimizer.zero_grad()

    @pytest.mark.parametrize("grad", [True, False])
    def test_in_a_long_validation(self, grad):
        model, aux, optimizer = build()
        aux.add_to(optimizer)
        for _ in range(2):
            step(model, aux, bg.Uniform())
            optimizer.step()  # the gradients stay
        model.eval()
        with torch.set_grad_enabled(grad):
            for _ in range(CALLS):
                aux.losses(cross_entropy(model(*batch()), LABELS), LABELS)

    def test_where_the_scaler_skips_steps(self):
        model, aux, optimizer = build()
        aux.add_to(optimizer)
        scaler = torch.amp.GradScaler("cpu")
        for index in range(1, 2 * CALLS):
            losses = aux.losses(cross_entropy(model(*batch()), LABELS), LABELS)
            scaler.scale(bg.Uniform()(losses) * (torch.inf if index < 80 else 1.0)).backward()
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad()

    def test_where_a_modality_is_mostly_missing(self):
        model, aux, optimizer = build()
        aux.add_to(optimizer)
        for index in range(CALLS):
            x = batch() if index == 0 else batch()[:1]
            bg.Uniform()(aux.losses(cross_entropy(model(*x), LABELS), LABELS)).backward()
            optimizer.step()
            optimizer.zero_grad()

    def test_of_an_optimizer_that_moves_the_data_of_heads_alone(self):
        class ByData(torch.optim.SGD):
            def step(self):
                for p in aux.parameters():
                    self.state[p]["step"] = 1
                    p.data.sub_(p.grad)

        model, aux, optimizer = build()
        heads = ByData([nn.Parameter(torch.zeros(1))])
        aux.add_to(heads)
        for _ in range(CALLS):
            step(model, aux, bg.Uniform())
            for each in (optimizer, heads):
                each.step()
                each.zero_grad()


# Made in a passing mode


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("what", ["attach", "widths", "first batch", "load"])
def test_heads_made_in_a_passing_mode_train_afterwards(mode, what):
    model = Late()
    widths = {"audio": 5, "video": 7}
    saved = bg.attach(model, model.encoders, num_outputs=3, widths=widths, seed=1).state_dict()

    def attach():
        return bg.attach(model, model.encoders, num_outputs=3, widths=widths if what == "widths" else None)

    if what in ("attach", "widths"):
        with mode():
            aux = attach()
    else:
        aux = attach()
        with mode():
            if what == "load":
                aux.load_state_dict(saved)
            else:
                model(*batch())
                aux.losses(None, LABELS)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    aux.add_to(optimizer)
    step(model, aux, bg.MIMO())
    before = [p.detach().clone() for p in aux.parameters()]
    optimizer.step()
    assert not any(p.is_inference() for p in aux.parameters())
    assert not any(map(torch.equal, before, aux.parameters()))


@pytest.mark.parametrize("eager", [True, False])
def test_whatever_the_default_device_and_dtype_heads_are_the_same(eager):
    model = Late()
    reference = bg.attach(model, model.encoders, num_outputs=3)
    model(*batch())
    reference.logits()
    try:
        torch.set_default_device("meta")
        torch.set_default_dtype(torch.float64)
        widths = {"audio": 5, "video": 7} if eager else None
        aux = bg.attach(model, model.encoders, num_outputs=3, widths=widths)
    finally:
        torch.set_default_device(None)
        torch.set_default_dtype(torch.float32)
    model(*batch())
    aux.logits()
    torch.testing.assert_close(dict(aux.state_dict()), dict(reference.state_dict()), rtol=0, atol=0)


def test_a_checkpoint_loaded_before_the_first_batch_takes_the_dtype_of_the_encoder():
    saved = bg.attach(
        nn.Sequential(inner := nn.Linear(4, 5)), {"x": inner}, num_outputs=3, widths={"x": 5}
    ).state_dict()
    model = nn.Sequential(nn.Linear(4, 5)).bfloat16()
    aux = bg.attach(model, {"x": model[0]}, num_outputs=3)
    aux.load_state_dict(saved)
    model(torch.ones(2, 4, dtype=torch.bfloat16))
    assert aux.logits()["x"].dtype == torch.bfloat16


# Labels that do not fit


@pytest.mark.parametrize("ask", ["losses", "scores"])
@pytest.mark.parametrize(
    ("task", "labels", "message"),
    [
        (
            "classification",
            torch.zeros(40).long(),
            r"'audio' have shape \(8, 3\) and the labels \(40,\).* one label .*pool=",
        ),
        ("classification", torch.zeros(8, 5).long(), r"'audio' have shape \(8, 3\) and the labels \(8, 5\)"),
        ("classification", torch.zeros(8), r"labels are torch.float32 .* write labels.long\(\)"),
        ("classification", torch.zeros(8, 3), r"labels are torch.float32 of shape \(8, 3\)"),
        ("classification", torch.zeros(8).bool(), r"labels are torch.bool .* write labels.long\(\)"),
        ("classification", torch.full((8,), 255), r"a label is 255, but the indices of 3 classes are 0 to 2"),
        ("classification", [0] * 8, r"labels are a list; give a tensor"),
        (
            "multilabel",
            torch.zeros(8),
            r"\(8, 3\) and the labels \(8,\), but task='multilabel' needs labels of the same",
        ),
        ("regression", torch.zeros(3), r"\(8, 3\) and the labels \(3,\), but task='regression'"),
        ("regression", torch.zeros(8, 1), r"\(8, 3\) and the labels \(8, 1\)"),
    ],
)
def test_labels_that_do_not_fit_are_named(task, labels, message, ask):
    model = Late()
    aux = bg.attach(model, model.encoders, num_outputs=3, task=task)
    model(*batch())
    with pytest.raises((TypeError, ValueError), match=message):
        aux.losses(None, labels) if ask == "losses" else aux.scores(labels)


def test_with_mute_the_cure_is_another():
    model = Late()
    aux = bg.attach(model, model.encoders, mute={name: name for name in model.encoders})
    model(*batch())
    with pytest.raises(ValueError, match=r"one label per row; .* give logits="):
        aux.losses(None, LABELS[:5])
