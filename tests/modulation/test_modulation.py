"""What OGM and MLB have in common: where the coefficient acts, and that nothing else changes."""

import copy
import itertools
import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.utils.checkpoint import checkpoint

import balanced_grad as bg
from balanced_grad.modulation import _comparison
from tests.conftest import MODALITIES, LateFusion, NoHostReads, make_batch

SCORES = {"audio": 0.8, "video": 0.4}
METHODS = {
    "OGM": lambda modalities, **options: bg.OGM(modalities, 0.5, noise=0.0, **options),
    "MLB": lambda modalities, **options: bg.MLB(modalities, 0.5, **options),
}


@pytest.fixture(params=METHODS)
def method(request):
    return METHODS[request.param]


def plain_gradients(model, batch):
    sum(model.losses(*batch).values()).backward()
    found = {name: p.grad for name, p in model.named_parameters()}
    model.zero_grad()
    return found


def expected(balancer, plain):
    factors = balancer.last.coefficients
    owner = {name: next((m for m in factors if name.startswith(f"encoders.{m}.")), None) for name in plain}
    return {name: g if owner[name] is None else g * factors[owner[name]] for name, g in plain.items()}


def assert_gradients(model, wanted):
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, wanted[name], msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize("modalities", [MODALITIES[:2], MODALITIES])
def test_only_the_encoders_gradients_are_multiplied(method, modalities):
    model, batch = LateFusion(modalities), make_batch(modalities)
    plain = plain_gradients(model, batch)
    balancer = method(model.encoders)
    scalar = balancer(model.losses(*batch), scores=dict(zip(modalities, (0.8, 0.4, 0.1), strict=False)))
    assert scalar.item() == pytest.approx(sum(model.losses(*batch).values()).item())
    scalar.backward()
    assert len({round(k.item(), 6) for k in balancer.last.coefficients.values()}) > 1
    assert_gradients(model, expected(balancer, plain))


def test_equal_scores_change_nothing(method):
    model, batch = LateFusion(), make_batch()
    plain = plain_gradients(model, batch)
    method(model.encoders)(model.losses(*batch), scores=dict.fromkeys(SCORES, 0.5)).backward()
    assert_gradients(model, plain)


def test_existing_gradients_are_not_scaled(method):
    model, batch = LateFusion(), make_batch()
    plain = plain_gradients(model, batch)
    balancer = method(model.encoders)
    for _ in range(2):
        (balancer(model.losses(*batch), scores=SCORES) / 2).backward()
    assert_gradients(model, expected(balancer, plain))


def test_the_loss_scale_reaches_the_gradient_only(method):
    model, batch = LateFusion(), make_batch()
    plain = plain_gradients(model, batch)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    balancer = method(model.encoders)
    scaler.scale(balancer(model.losses(*batch), scores=SCORES)).backward()
    assert_gradients(model, {name: 1024 * g for name, g in expected(balancer, plain).items()})


def test_no_hook_stays_behind_even_when_backward_fails(method):
    model, batch = LateFusion(), make_batch()
    losses = model.losses(*batch)

    def refuse(_):
        raise RuntimeError("refused")

    handle = model.trunk.weight.register_hook(refuse)
    with pytest.raises(RuntimeError, match="refused"):
        method(model.encoders)(losses, scores=SCORES).backward()
    handle.remove()
    assert not any(p._backward_hooks for p in model.parameters())
    model.zero_grad()
    sum(model.losses(*batch).values()).backward()
    found = {name: p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad()
    assert all(torch.equal(found[name], g) for name, g in plain_gradients(model, batch).items())


def test_a_missing_modality_has_coefficient_one(method):
    model, (inputs, label) = LateFusion(), make_batch()
    del inputs["video"]
    balancer = method(model.encoders)
    balancer(model.losses(inputs, label), scores={"audio": 0.9, "video": None}).backward()
    assert balancer.last.coefficients == {"audio": 1, "video": 1}
    assert list(balancer.last.scores) == ["audio"]
    assert all(p.grad is None for p in model.encoders["video"].parameters())


def test_a_missing_one_of_three_leaves_the_other_two(method):
    coefficients = {}
    for modalities in (MODALITIES[:2], MODALITIES):
        balancer = method(LateFusion(modalities).encoders)
        loss = torch.zeros((), requires_grad=True)
        balancer({"joint": loss * 1}, scores=SCORES)
        coefficients[len(modalities)] = balancer.last.coefficients
    assert coefficients[3] == coefficients[2] | {"text": 1}


def test_scores_default_to_the_uni_modal_losses(method):
    model, batch = LateFusion(), make_batch()
    losses = model.losses(*batch)
    balancer = method(model.encoders)
    balancer(losses)
    assert {name: s.item() for name, s in balancer.last.scores.items()} == pytest.approx(
        {name: torch.exp(-losses[name]).item() for name in SCORES}
    )
    with pytest.raises(ValueError, match=r"needs a score per modality: write balancer\(losses, scores="):
        balancer({"joint": losses["joint"]})


def test_works_through_shared_use_and_checkpointing(method):
    """A parameter used twice has one gradient; recomputation in backward must not see other hooks."""
    encoder = nn.Linear(3, 3)
    x = torch.randn(4, 3)
    for wrap in (lambda f, z: f(z), lambda f, z: checkpoint(f, z, use_reentrant=False)):
        encoder.zero_grad()
        loss = wrap(encoder, wrap(encoder, x)).square().mean()
        plain = torch.autograd.grad(loss, encoder.weight, retain_graph=True)[0]
        balancer = method({"audio": encoder, "video": nn.Linear(1, 1)})
        balancer({"joint": loss}, scores=SCORES).backward()
        torch.testing.assert_close(encoder.weight.grad, plain * balancer.last.coefficients["audio"])


def test_half_precision_gradients_stay_so(method):
    model = LateFusion().bfloat16()
    losses = model.losses(*make_batch(dtype=torch.bfloat16))
    method(model.encoders)(losses, scores=SCORES).backward()
    assert {p.grad.dtype for p in model.parameters()} == {torch.bfloat16}


def test_frozen_parameters_are_left_out(method):
    model, batch = LateFusion(), make_batch()
    model.encoders["audio"][0].bias.requires_grad_(False)
    method(model.encoders)(model.losses(*batch), scores=SCORES).backward()
    assert model.encoders["audio"][0].bias.grad is None


def test_nothing_is_read_on_the_host(method, monkeypatch):
    monkeypatch.setattr("balanced_grad.host.on_host", lambda *_: False)
    model, batch = LateFusion(), make_batch()
    balancer = method(model.encoders)
    losses = model.losses(*batch)
    with NoHostReads():
        balancer(losses, scores={name: torch.tensor(s) for name, s in SCORES.items()}).backward()


def test_no_gradient_no_state(method):
    model, batch = LateFusion(), make_batch()
    balancer = method(model.encoders, stop_after=1)
    with torch.no_grad():
        losses = model.losses(*batch)
        assert balancer(losses).item() == pytest.approx(sum(losses.values()).item())
    assert balancer.last is None
    assert balancer.state()["steps"] == 0


def test_stops_after_so_many_training_steps(method):
    model, batch = LateFusion(), make_batch()
    balancer = method(model.encoders, stop_after=2)
    seen = []
    for _ in range(3):
        balancer(model.losses(*batch), scores=SCORES)
        seen.append(balancer.last.coefficients["audio"].item() == 1)
    assert seen == [False, False, True]
    resumed = method(model.encoders, stop_after=2)
    resumed.load_state_dict(balancer.state_dict())
    resumed(model.losses(*batch), scores=SCORES)
    assert resumed.last.coefficients == {"audio": 1, "video": 1}


def test_the_record_can_be_logged(method):
    model, batch = LateFusion(), make_batch()
    balancer = method(model.encoders)
    balancer(model.losses(*batch), scores=SCORES)
    logged = balancer.last.to_dict()
    assert logged["scores"] == pytest.approx(SCORES)
    assert list(logged["coefficients"]) == ["audio", "video"]


# The target: gradient or update.


def displacement(balancer, optimizer_type, model, batch, steps=3, **options):
    before = copy.deepcopy(model.state_dict())
    optimizer = bg.BalancedOptimizer(optimizer_type(model.parameters(), **options), balancer)
    for _ in range(steps):
        balancer(model.losses(*batch), scores=SCORES).backward()
        optimizer.step()
        optimizer.zero_grad()
    moved = {name: p.detach() - before[name] for name, p in model.named_parameters()}
    model.load_state_dict(before)
    return moved


def test_adam_cancels_the_gradient_and_keeps_the_update(method):
    model, batch = LateFusion().double(), make_batch(dtype=torch.double)
    free = {"lr": 1e-3, "eps": 1e-30}
    plain = displacement(method(model.encoders, stop_after=0), torch.optim.Adam, model, batch, 1, **free)
    gradient = displacement(method(model.encoders, target="gradient"), torch.optim.Adam, model, batch, 1, **free)
    balancer = method(model.encoders)  # target=None: the wrapper tells
    update = displacement(balancer, torch.optim.Adam, model, batch, 1, **free)
    for name, moved in plain.items():
        torch.testing.assert_close(gradient[name], moved)
    wanted = expected(balancer, plain)
    for name, moved in update.items():
        torch.testing.assert_close(moved, wanted[name])


def test_sgd_is_reached_by_the_gradient(method):
    model, batch = LateFusion(), make_batch()
    plain = plain_gradients(model, batch)
    balancer = method(model.encoders)
    moved = displacement(balancer, torch.optim.SGD, model, batch, 1, lr=0.1)
    assert balancer.update_scales() == {}
    for name, wanted in expected(balancer, plain).items():
        torch.testing.assert_close(moved[name], -0.1 * wanted)


def test_update_scales_come_from_all_batches_of_a_step(method):
    model, batch = LateFusion(), make_batch()
    balancer = method(model.encoders, target="update")
    optimizer = bg.BalancedOptimizer(torch.optim.SGD(model.parameters(), lr=0.1), balancer)
    whole = method(model.encoders)
    for audio, video in ((0.9, 0.2), (0.1, 0.4)):
        for scores in ({"audio": audio, "video": video}, {"audio": video, "video": audio / 2}):
            balancer(model.losses(*batch), scores=scores).backward()
        means = {"audio": (audio + video) / 2, "video": (video + audio / 2) / 2}
        whole(model.losses(*batch), scores=means)
        found = {name: k.item() for name, k in balancer.update_scales().items()}
        assert found == pytest.approx({name: k.item() for name, k in whole.last.coefficients.items()})
        optimizer.step()


def test_an_update_target_needs_the_wrapper(method):
    model, batch = LateFusion(), make_batch()
    balancer = method(model.encoders, target="update")
    with pytest.raises(RuntimeError, match=r"bg\.BalancedOptimizer\(optimizer, balancer\)"):
        balancer(model.losses(*batch), scores=SCORES)
    assert balancer.last is None


def test_update_target_leaves_gradients_alone(method):
    model, batch = LateFusion(), make_batch()
    plain = plain_gradients(model, batch)
    balancer = method(model.encoders, target="update")
    bg.BalancedOptimizer(torch.optim.SGD(model.parameters(), lr=0.1), balancer)
    balancer(model.losses(*batch), scores=SCORES).backward()
    assert_gradients(model, plain)


# Whatever the numbers


def coefficients(balancer, losses=None, scores=None):
    zero = torch.zeros((), requires_grad=True)
    balancer({"joint": zero} | {name: zero + loss for name, loss in (losses or {}).items()}, scores=scores)
    return list(balancer.last.to_dict()["coefficients"].values())


def three(kind, **options):
    return METHODS[kind]({name: nn.Linear(1, 1) for name in ("a", "b", "c")}, **options)


@pytest.mark.parametrize("kind", METHODS)
@given(st.lists(st.floats(0.01, 1.0), min_size=3, max_size=3), st.floats(-30, 30))
def test_the_unit_of_the_scores_does_not_matter(kind, scores, exponent):
    scaled = [score * 10**exponent for score in scores]
    plain, other = (coefficients(three(kind), scores=dict(zip("abc", row, strict=True))) for row in (scores, scaled))
    assert other == pytest.approx(plain, abs=1e-4)


@pytest.mark.parametrize("kind", METHODS)
@given(st.lists(st.floats(-3, 3), min_size=3, max_size=3), st.sampled_from([-1e4, -300.0, -100.0, 0.0, 100.0, 300.0]))
def test_a_constant_in_all_losses_does_not_matter(kind, losses, offset):
    shifted = [loss + offset for loss in losses]
    plain, other = (coefficients(three(kind), losses=dict(zip("abc", row, strict=True))) for row in (losses, shifted))
    assert other == pytest.approx(plain, abs=1e-2)


@pytest.mark.parametrize("kind", METHODS)
@given(st.lists(st.floats(1e-30, 1e30) | st.just(math.inf) | st.just(0.0), min_size=3, max_size=3))
def test_every_score_has_its_coefficient(kind, scores):
    """Finite, no better modality faster than a worse one, and the best and the worst told apart."""
    found = coefficients(three(kind), scores=dict(zip("abc", scores, strict=True)))
    scores = torch.tensor(scores).tolist()
    assert all(0 <= k <= 2 for k in found)
    for (s, k), (t, other) in itertools.combinations(zip(scores, found, strict=True), 2):
        assert s == t or (s < t) == (k > other) or k == other
    if max(scores) > 3 * min(scores):
        assert min(found) < max(found)


@pytest.mark.parametrize("kind", METHODS)
def test_a_perfect_modality_is_the_limit_of_a_good_one(kind):
    nearly, perfect = (coefficients(three(kind), scores={"a": best, "b": 1.0}) for best in (1e20, math.inf))
    assert perfect == pytest.approx(nearly, abs=1e-6)
    assert perfect[0] < 1
    assert perfect[2] == 1  # missing
    losses = coefficients(three(kind), losses={"a": -math.inf, "b": 1.0})
    assert losses == pytest.approx(nearly, abs=1e-6)
    assert coefficients(three(kind), scores=dict.fromkeys("abc", math.inf)) == [1, 1, 1]


@pytest.mark.parametrize("kind", METHODS)
def test_losses_beyond_the_range_of_the_exponential_are_compared(kind):
    """A log-likelihood of many nats: the modalities keep their distance."""
    near = coefficients(three(kind), losses={"a": 0.5, "b": 1.0, "c": 2.0})
    for offset in (-200.0, 200.0):
        far = coefficients(three(kind), losses={"a": 0.5 + offset, "b": 1.0 + offset, "c": 2.0 + offset})
        assert far == pytest.approx(near, abs=1e-4)


@pytest.mark.parametrize("kind", METHODS)
def test_the_mean_of_a_perfect_batch_and_another_is_perfect(kind):
    balancer = three(kind, target="update")
    balancer.resolve_target(True)
    for audio in (math.inf, 0.5):
        coefficients(balancer, scores={"a": audio, "b": 0.5})
    scales = balancer.update_scales()
    assert scales["a"] < 1
    assert scales["c"] == 1


def test_a_score_that_is_no_number_is_reported_once_and_leaves_the_others(method):
    model, batch = LateFusion(MODALITIES), make_batch(MODALITIES)
    balancer = method(model.encoders)
    scores = {"audio": math.nan, "video": 0.8, "text": 0.2}
    with pytest.warns(bg.InactiveBalancerWarning, match="the score of 'audio' is NaN"):
        balancer(model.losses(*batch), scores=scores).backward()
    balancer(model.losses(*batch), scores=scores).backward()  # said once
    found = balancer.last.to_dict()["coefficients"]
    without = method(model.encoders)
    without(model.losses(*batch), scores=scores | {"audio": None}).backward()
    assert found == without.last.to_dict()["coefficients"]
    assert found["audio"] == 1


class TwoProcesses:
    """This process, and another one that has other scores."""

    size = 2

    def __init__(self, other):
        self.other, self.agreed = other, []

    def agree(self, what):
        self.agreed.append(what)

    def sum(self, values):
        values += torch.stack(_comparison.summable(self.other))


@pytest.mark.parametrize(
    ("mine", "other", "mean"),
    [
        ([0.2, 0.4], [0.6, 0.8], [0.4, 0.6]),
        ([0.2, math.nan], [0.6, 0.8], [0.4, 0.8]),  # missing here
        ([0.2, math.nan], [math.nan, 0.8], [0.2, 0.8]),
        ([0.2, math.nan], [0.4, math.nan], [0.3, math.nan]),  # missing everywhere
        ([math.inf, 0.4], [0.6, 0.8], [math.inf, 0.6]),  # perfect here
    ],
)
def test_scores_are_averaged_over_the_processes_that_have_them(mine, other, mean):
    processes = TwoProcesses(torch.tensor(other))
    found = _comparison.across_ranks(torch.tensor(mine), processes)
    torch.testing.assert_close(found, torch.tensor(mean), equal_nan=True)
    assert processes.agreed == ["scores"]  # a process that failed says so before the others wait for it


def test_half_precision_losses_do_not_round_the_scores(method):
    zero = torch.zeros((), dtype=torch.float16, requires_grad=True)
    balancer = method({name: nn.Linear(1, 1) for name in ("a", "b")})
    balancer({"joint": zero}, scores={"a": 4e8, "b": 1e8})
    assert balancer.last.to_dict()["coefficients"]["a"] == pytest.approx(
        coefficients(method({name: nn.Linear(1, 1) for name in ("a", "b")}), scores={"a": 4.0, "b": 1.0})[0], abs=1e-2
    )


# What must not be lost

XOR = METHODS | {"DGL": bg.DGL}


@pytest.mark.parametrize("kind", XOR)
def test_synergy_is_still_learned(kind):
    """Labels that no modality predicts alone: all scores stay at chance, and nothing may be slowed to a halt."""
    model = LateFusion(trunk=False, width=16, classes=2)
    model.fused = nn.Sequential(nn.Linear(32, 16), nn.Tanh(), nn.Linear(16, 2))
    bits = torch.randint(2, (2, 128))
    inputs = {m: torch.randn(128, 5) * 0.1 + (2 * b[:, None] - 1) for m, b in zip(MODALITIES, bits, strict=False)}
    label = bits[0] ^ bits[1]
    balancer = XOR[kind](model.encoders)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(100):
        balancer(model.losses(inputs, label)).backward()
        optimizer.step()
        optimizer.zero_grad()
    assert model.losses(inputs, label)["joint"] < 0.05


# Bad input


def test_bad_scores(method):
    model, batch = LateFusion(), make_batch()
    balancer, losses = method(model.encoders), model.losses(*batch)
    with pytest.raises(
        ValueError, match=r"scores\['vidoe'\]: there is no such modality; they are \['audio', 'video'\]"
    ):
        balancer(losses, scores={"vidoe": 0.3})
    with pytest.raises(ValueError, match=r"scores\['audio'\] has shape \(3,\)"):
        balancer(losses, scores={"audio": torch.ones(3)})
    with pytest.raises(ValueError, match=r"a score is positive"):
        balancer(losses, scores={"audio": -0.3, "video": -0.1})
    with pytest.raises(ValueError, match="has a score; give at least one"):
        balancer(losses, scores={"audio": None})
    with pytest.raises(ValueError, match=r"uses no features; write balancer\(losses, scores="):
        balancer(losses, SCORES)
    assert balancer.last is None


@pytest.mark.skipif(not torch.distributed.is_available(), reason="this torch has no torch.distributed")
def test_sharded_parameters_are_refused_unless_the_update_is_the_target(method, tmp_path):
    from torch.distributed.tensor import DTensor, Shard, init_device_mesh

    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1)
    try:
        mesh = init_device_mesh("cpu", (1,))
        sharded: Any = nn.Parameter(DTensor.from_local(torch.zeros(4, 2), mesh, [Shard(0)]))
        encoders = {"audio": sharded, "video": nn.Linear(1, 1)}
        losses = {"joint": sharded.to_local().sum()}
        with pytest.raises(RuntimeError, match=r"encoder of 'audio' has sharded DTensor parameters.*target='update'"):
            method(encoders)(losses, scores=SCORES)
        balancer = method(encoders, target="update")
        bg.BalancedOptimizer(torch.optim.SGD([sharded], lr=0.1), balancer)
        balancer(losses, scores=SCORES).backward()
        assert set(balancer.update_scales()) == {"audio", "video"}
    finally:
        torch.distributed.destroy_process_group()


@pytest.mark.parametrize("options", [{"target": "updates"}, {"stop_after": -1}, {"alpha": -0.1}])
@pytest.mark.parametrize("kind", ["OGM", "MLB"])
def test_bad_settings(kind, options):
    with pytest.raises(ValueError, match=f"{next(iter(options))}="):
        getattr(bg, kind)(LateFusion().encoders, **options)
