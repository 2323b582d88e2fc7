"""Problems of their own per encoder, tensor or named group: MinNorm, MMPareto and foreign weightings."""

import pytest
import torch
from torchjd.aggregation import UPGradWeighting

import balanced_grad as bg
from balanced_grad.solvers import min_norm
from tests.conftest import MODALITIES, LateFusion, make_batch


def per_loss_grads(model, modalities):
    """``{parameter name: {loss name: gradient}}`` by plain autograd."""
    losses = model.losses(*make_batch(modalities))
    named = dict(model.named_parameters())
    out = {name: {} for name in named}
    for loss_name, loss in losses.items():
        grads = torch.autograd.grad(loss, list(named.values()), retain_graph=True, allow_unused=True)
        for name, grad in zip(named, grads, strict=True):
            if grad is not None:
                out[name][loss_name] = grad.double()
    return out


def balanced(model, balancer, modalities):
    balancer(model.losses(*make_batch(modalities))).backward()
    return {name: p.grad.double() for name, p in model.named_parameters()}


def min_norm_of(grads, names):
    rows = torch.stack([torch.cat([grads[name][loss].flatten() for name in names]) for loss in grads[names[0]]])
    return rows, min_norm(rows @ rows.T).weights


@pytest.mark.parametrize("modalities", [MODALITIES[:2], MODALITIES])
def test_one_problem_per_encoder(modalities):
    model = LateFusion(modalities, trunk=False)
    grads = per_loss_grads(model, modalities)
    balancer = bg.MinNorm(groups="reach", normalize="none", rescale="none")
    got = balanced(model, balancer, modalities)
    assert sorted(balancer.last.problems) == sorted(f"joint+{m}" for m in modalities)
    assert balancer.last.gramian.shape == (len(modalities), len(modalities) + 1, len(modalities) + 1)
    for modality in modalities:
        names = [name for name in got if name.startswith(f"encoders.{modality}")]
        rows, weights = min_norm_of(grads, names)
        torch.testing.assert_close(
            torch.cat([got[name].flatten() for name in names]), weights @ rows, rtol=1e-4, atol=1e-7
        )
    for name in (name for name in got if name.startswith(("heads", "fused"))):
        (only,) = grads[name].values()
        torch.testing.assert_close(got[name], only)


def test_one_problem_per_tensor():
    model = LateFusion()
    grads = per_loss_grads(model, MODALITIES[:2])
    balancer = bg.MinNorm(groups="tensor", normalize="none", rescale="none", params=model.named_parameters())
    got = balanced(model, balancer, MODALITIES[:2])
    shared = [name for name in got if name.startswith(("encoders", "trunk"))]
    assert sorted(balancer.last.problems) == sorted(shared)
    for name in shared:
        rows, weights = min_norm_of(grads, [name])
        torch.testing.assert_close(got[name].flatten(), weights @ rows, rtol=1e-4, atol=1e-7)


def test_named_groups_and_the_plain_sum_outside_them():
    model = LateFusion()
    grads = per_loss_grads(model, MODALITIES[:2])
    groups = {"sound": model.encoders["audio"], "deep": model.trunk.parameters()}
    balancer = bg.MinNorm(groups=groups, normalize="none", rescale="none")
    got = balanced(model, balancer, MODALITIES[:2])
    assert sorted(balancer.last.problems) == ["deep", "sound"]
    for prefix in ("encoders.audio", "trunk"):
        names = [name for name in got if name.startswith(prefix)]
        rows, weights = min_norm_of(grads, names)
        torch.testing.assert_close(
            torch.cat([got[name].flatten() for name in names]), weights @ rows, rtol=1e-4, atol=1e-7
        )
    for name in (name for name in got if name.startswith(("encoders.video", "heads", "fused"))):
        torch.testing.assert_close(got[name], sum(grads[name].values()))
    logged = balancer.last.to_dict()
    assert set(logged) == {"losses", "weights", "weights/sound", "weights/deep"}
    assert logged["weights"]["joint"] == pytest.approx(
        (logged["weights/sound"]["joint"] + logged["weights/deep"]["joint"]) / 2
    )


def test_all_is_the_gramian_of_reach_summed():
    model = LateFusion(MODALITIES)
    whole, parts = bg.MinNorm(), bg.MinNorm(groups="reach")
    for balancer in (whole, parts):
        balancer(model.losses(*make_batch(MODALITIES))).backward()
    torch.testing.assert_close(parts.last.gramian.sum(0), whole.last.gramian)


@pytest.mark.parametrize(
    "make",
    [
        lambda **k: bg.MinNorm(groups="reach", **k),
        lambda **k: bg.MMPareto(**k),
        lambda **k: bg.Gramian(UPGradWeighting(), groups="reach", **k),
    ],
)
def test_losses_that_never_meet_are_summed(make):
    model = LateFusion(trunk=False)
    grads = per_loss_grads(model, MODALITIES[:2])
    losses = model.losses(*make_batch())
    make()({name: losses[name] for name in MODALITIES[:2]}).backward()
    for name, p in model.named_parameters():
        if "fused" not in name:
            own = next(m for m in MODALITIES[:2] if m in name)
            torch.testing.assert_close(p.grad.double(), grads[name][own])


@pytest.mark.parametrize(
    ("groups", "error", "message"),
    [
        ("layer", ValueError, "groups='layer': choose one of"),
        ({}, TypeError, "groups={}: give one of"),
        ({"audio": []}, ValueError, r"groups\['audio'\] has no parameter"),
    ],
)
def test_bad_groups(groups, error, message):
    with pytest.raises(error, match=message):
        bg.MinNorm(groups=groups)


def test_overlapping_groups_and_options_that_exclude_each_other():
    layer = torch.nn.Linear(2, 2)
    with pytest.raises(ValueError, match="is in groups 'audio' and 'video'"):
        bg.MinNorm(groups={"audio": layer, "video": [layer.weight]})
    with pytest.raises(ValueError, match="cannot be combined with level='features'"):
        bg.MinNorm(groups="reach", level="features")
    with pytest.raises(ValueError, match="cannot be combined with include_exclusive=True"):
        bg.MinNorm(groups="tensor", include_exclusive=True)
