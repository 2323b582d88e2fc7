"""Signals of a training: the numbers against plain autograd, what is left alone, and what is said."""

import json

import pytest
import torch
from torch import nn

import balanced_grad as bg
from balanced_grad.diagnosis import Estimate, training_signals
from balanced_grad.diagnosis._advice import advice
from balanced_grad.diagnosis._signals import LossSignal, _difference
from tests.conftest import LateFusion, make_batch


def signals_of(model, batches=None, **options):
    given = [make_batch(seed=seed) for seed in range(3)] if batches is None else batches
    return training_signals(model, lambda batch: model.losses(*batch), given, **options)


def flat(loss, params):
    found = torch.autograd.grad(loss, params, retain_graph=True, allow_unused=True)
    pairs = zip(params, found, strict=True)
    return torch.cat([torch.zeros_like(p).flatten() if g is None else g.flatten() for p, g in pairs])


def test_numbers_are_those_of_plain_autograd():
    model = LateFusion().double()
    batch = make_batch(dtype=torch.float64)
    signals = signals_of(model, [batch])
    losses = model.losses(*batch)
    everywhere = list(model.parameters())
    grads = {name: flat(loss, everywhere) for name, loss in losses.items()}
    total = sum(grads.values())
    meets = [*model.encoders.parameters(), *model.trunk.parameters()]
    shared = {name: flat(loss, meets) for name, loss in losses.items()}
    alone = {"joint": model.fused, "audio": model.heads["audio"], "video": model.heads["video"]}
    own = {name: flat(losses[name], list(part.parameters())).norm() for name, part in alone.items()}
    encoders = {m: flat(losses["joint"], list(model.encoders[m].parameters())).norm() for m in ("audio", "video")}
    for name, each in signals.losses.items():
        assert each.level == pytest.approx(losses[name].item())
        assert each.slope == pytest.approx(-(grads[name] @ total).item())
        assert each.shared == pytest.approx((shared[name].norm() / sum(g.norm() for g in shared.values())).item())
        assert each.own == pytest.approx((own[name] / sum(own.values())).item())
        if name != "joint":
            assert each.encoder == pytest.approx((encoders[name] / sum(encoders.values())).item())
    for (first, second), cosine in signals.cosines.items():
        assert cosine == pytest.approx(torch.cosine_similarity(shared[first], shared[second], dim=0).item())
    assert signals.losses["joint"].encoder is None
    assert len(signals.cosines) == 3


def test_a_step_down_the_sum_changes_each_loss_by_its_slope():
    model = LateFusion().double()
    batch, rate = make_batch(dtype=torch.float64), 1e-6
    signals = signals_of(model, [batch])
    sum(model.losses(*batch).values()).backward()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter -= rate * parameter.grad
    for name, loss in model.losses(*batch).items():
        assert (loss.item() - signals.losses[name].level) / rate == pytest.approx(signals.losses[name].slope, rel=1e-3)


def test_nothing_is_left_behind():
    model = LateFusion()
    model.encoders["audio"].append(nn.BatchNorm1d(6)).append(nn.Dropout(0.5))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    model.fused.bias.grad = grad = torch.ones_like(model.fused.bias)
    state = torch.get_rng_state()
    first, again = signals_of(model), signals_of(model)
    assert first == again
    assert all((value == before[name]).all() for name, value in model.state_dict().items())
    assert model.fused.bias.grad is grad
    assert all(p.grad is None for p in model.parameters() if p is not model.fused.bias)
    assert all(module.training for module in model.modules())
    assert (torch.get_rng_state() == state).all()


def test_overfit_is_held_out_less_training():
    model = LateFusion()
    train, unseen = ([make_batch(seed=seed) for seed in seeds] for seeds in (range(3), range(10, 14)))
    signals = signals_of(model, train, held_out=unseen)
    same = signals_of(model, train, held_out=train)
    with torch.no_grad():
        means = [
            torch.stack([model.losses(*batch)["audio"] for batch in some]).mean().item() for some in (unseen, train)
        ]
    assert signals.losses["audio"].overfit.value == pytest.approx(means[0] - means[1], rel=1e-5)
    assert same.losses["audio"].overfit.value == 0
    assert signals_of(model, train[:1], held_out=unseen).losses["audio"].overfit is None
    found = _difference(torch.tensor([1.0, 2.0, 3.0]).numpy(), torch.tensor([0.0, 1.0, 2.0]).numpy())
    assert (found.value, found.low) == (1.0, pytest.approx(1 - 2.7764 * (2 / 3) ** 0.5, rel=1e-3))  # t of 4 degrees


def test_the_text_fits_and_json_is_plain():
    signals = signals_of(LateFusion(), held_out=[make_batch(seed=9), make_batch(seed=8)])
    assert all(max(map(len, block.splitlines())) <= 100 for block in str(signals).split("\n\n"))
    assert json.loads(json.dumps(signals.to_dict()))["losses"]["joint"]["encoder"] is None


def signal(level, overfit=None):
    return LossSignal(level, -1.0, 0.5, 0.5, None, overfit)


def test_advice_says_its_numbers_and_no_more_than_the_study():
    (alone,) = advice({"joint": signal(1.0)}, {})
    assert "no modality has a loss of its own" in alone
    assert "bg.attach" in alone
    (level,) = advice({"joint": signal(1.0), "a": signal(0.5), "b": signal(0.6)}, {("a", "b"): 0.1})
    assert "bg.Uniform() is the one to begin with" in level
    behind, fits, conflict = advice(
        {"a": signal(0.5), "b": signal(1.5, Estimate(2.0, 1.0, 3.0))}, {("a", "b"): -0.4, ("joint", "a"): 0.9}
    )
    assert "the loss of b is 1.5, that of a 0.5" in behind
    assert "bg.MIMO()" in behind
    assert "b loses 2 more on held-out items than the 1.5 of training" in fits
    assert "cosine of -0.40" in conflict
    assert "no solver was better" in conflict


def test_what_is_wrong_is_said():
    model = LateFusion()
    with pytest.raises(ValueError, match="there is no batch"):
        signals_of(model, [])
    with pytest.raises(ValueError, match="'joint' has no graph"):
        training_signals(model, lambda _: {"joint": torch.ones(())}, [0])
    alone = make_batch(["audio"])
    with pytest.raises(ValueError, match=r"a batch has the losses \['audio'\], the first one \['joint'"):
        signals_of(model, [make_batch(), alone])


def test_signals_stand_in_the_report(tmp_path):
    model, batch = LateFusion(), make_batch()
    signals = signals_of(model)

    def fused(audio, video):
        deep = [model.trunk(model.encoders[m](x)).tanh() for m, x in (("audio", audio), ("video", video))]
        return model.fused(torch.cat(deep, 1))

    report = bg.diagnose(fused, [batch], signals=signals, draws=2, resamples=100, additive_items=0, progress=False)
    assert report.signals is signals
    assert str(report).endswith(f"\n\n{signals}")
    assert json.loads(json.dumps(report.to_dict()))["signals"]["losses"].keys() == {"joint", "audio", "video"}
    report.save(tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text()
    assert f"Training signals of {signals.batches} batches" in page
    assert "<td>joint</td>" in page
    with pytest.raises(TypeError, match="signals='norms': give what"):
        bg.diagnose(fused, [batch], signals="norms")
