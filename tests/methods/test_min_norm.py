"""MinNorm: common descent, the two policies, and who takes part."""

import dataclasses
import math

import pytest
import torch

import balanced_grad as bg
from balanced_grad.records import Problem
from tests.conftest import MODALITIES, LateFusion, make_batch


def step(rows, balancer, losses=None):
    """One step on linear losses with these gradients: the gradient written and the record."""
    x = torch.zeros(len(rows[0]), dtype=torch.float64, requires_grad=True)
    values = losses or [1.0] * len(rows)
    named = {
        name: (torch.tensor(row, dtype=torch.float64) * x).sum() + value
        for name, row, value in zip(("joint", *MODALITIES), rows, values, strict=False)
    }
    balancer(named).backward()
    return x.grad, balancer.last


def random_rows(count, size, seed):
    return torch.randn(count, size, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)).tolist()


@pytest.mark.parametrize("count", [1, 2, 3, 4])
@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("normalize", ["none", "l2", "loss", "loss+"])
@pytest.mark.parametrize("rescale", ["none", "sum", "mean", "cap"])
def test_no_loss_increases_to_first_order(count, seed, normalize, rescale):
    rows = random_rows(count, 6, seed)
    balancer = bg.MinNorm(normalize=normalize, rescale=rescale, joint_floor=0)
    direction, last = step(rows, balancer, losses=[0.5, 2.0, 1.0, 3.0][:count])
    assert (torch.tensor(rows, dtype=torch.float64) @ direction >= -1e-9).all()
    assert (last.weights >= 0).all()


@pytest.mark.parametrize("normalize", ["none", "l2", "loss+"])
@pytest.mark.parametrize("seed", range(5))
def test_rescale_sets_the_length_and_only_the_length(normalize, seed):
    rows = random_rows(3, 6, seed)
    raw, last = step(rows, bg.MinNorm(normalize=normalize, rescale="none"))
    assert last.weights.sum().item() == pytest.approx(1.0)
    total = torch.tensor(rows, dtype=torch.float64).sum(0)
    for rescale, length in (("sum", total.norm()), ("mean", total.norm() / 3)):
        scaled, _ = step(rows, bg.MinNorm(normalize=normalize, rescale=rescale))
        torch.testing.assert_close(scaled, raw * (length / raw.norm()))
    capped, last = step(rows, bg.MinNorm(normalize=normalize, rescale="cap", joint_floor=0))
    torch.testing.assert_close(capped, raw * min(3.0, total.norm() / raw.norm()))
    assert last.weights.sum() <= 3 + 1e-9


def test_length_lost_without_a_policy():
    """Norms 1 : 10 at 120 degrees: the figures that the docstring quotes."""
    rows = [[1.0, 0.0], [10 * math.cos(2 * math.pi / 3), 10 * math.sin(2 * math.pi / 3)]]
    direction, _ = step(rows, bg.MinNorm(normalize="none", rescale="none"))
    matrix = torch.tensor(rows, dtype=torch.float64)
    share = direction.norm() / matrix.sum(0).norm()
    assert 2 * share.item() == pytest.approx(0.17, abs=5e-3)
    cosines = matrix @ direction / (matrix.norm(dim=1) * direction.norm())
    assert cosines.tolist() == pytest.approx([0.82, 0.08], abs=5e-3)


def test_normalised_pairs_are_weighted_inversely_to_their_norms():
    direction, last = step([[3.0, 0.0], [0.0, 1.0]], bg.MinNorm(normalize="l2", rescale="none"))
    assert last.weights.tolist() == pytest.approx([0.25, 0.75])
    torch.testing.assert_close(direction, torch.tensor([0.75, 0.75], dtype=torch.float64))


@pytest.mark.parametrize("normalize", ["loss", "loss+"])
@pytest.mark.parametrize("seed", range(6))
def test_a_loss_of_zero_is_the_limit_of_a_small_one(normalize, seed):
    rows = random_rows(3, 3, seed)

    def weights(loss):
        return step(rows, bg.MinNorm(normalize=normalize, rescale="none"), losses=[loss, 1.0, 0.5])[1].weights

    at_zero = weights(0.0)
    for small in (1e-12, -1e-12, 1e-8, -1e-8, 1e-6):
        torch.testing.assert_close(weights(small), at_zero, rtol=0, atol=1e-4)
    everything = step(rows, bg.MinNorm(normalize=normalize, rescale="none"), losses=[0.0] * 3)[1].weights
    assert everything.isfinite().all()
    assert everything.sum().item() == pytest.approx(1)


def test_a_small_loss_that_nothing_opposes_takes_no_weight():
    for loss in (0.0, 1e-8, -1e-8):
        _, last = step([[1.0, 0.0], [0.0, 1.0]], bg.MinNorm(normalize="loss", rescale="none"), losses=[loss, 1.0])
        assert last.weights.tolist() == pytest.approx([0, 1], abs=1e-5)


@pytest.mark.parametrize("normalize", ["none", "l2", "loss", "loss+"])
@pytest.mark.parametrize("rescale", ["none", "sum", "mean", "cap"])
@pytest.mark.parametrize("count", [2, 3, 5])
@pytest.mark.parametrize("gradients", [1e-300, 1e-150, 1e150, 1e300])
@pytest.mark.parametrize("values", [1e-30, 1.0, 1e30])
def test_a_factor_on_all_gradients_or_losses_changes_no_weight(normalize, rescale, count, gradients, values):
    rows = torch.tensor(random_rows(count, 6, seed=count), dtype=torch.float64)
    losses, names = torch.tensor([0.5, 2.0, 1.0, 3.0, 0.1][:count]), tuple("abcde"[:count])
    balancer = bg.MinNorm(normalize=normalize, rescale=rescale)
    plain, scaled = (
        balancer.weigh(Problem(names, value * losses, factor * rows @ rows.T)).weights
        for value, factor in ((1.0, 1.0), (values, gradients))
    )
    torch.testing.assert_close(scaled, plain, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("balancer", [bg.MMPareto(), bg.MMPareto(rescale="encoder"), bg.Gramian(lambda g: g @ g[0])])
@pytest.mark.parametrize("factor", [1e-300, 1e-150, 1e150, 1e300])
def test_other_methods_are_as_indifferent(balancer, factor):
    rows = torch.tensor(random_rows(3, 6, seed=1), dtype=torch.float64)
    gramian = rows @ rows.T if isinstance(balancer, bg.Gramian) else (rows @ rows.T).repeat(2, 1, 1)
    reach = () if isinstance(balancer, bg.Gramian) else ((0, 1, 2), (0, 1, 2))
    plain, scaled = (
        balancer.weigh(Problem(("a", "b", "c"), torch.ones(3), f * gramian, reach)).weights for f in (1.0, factor)
    )
    torch.testing.assert_close(scaled, plain, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("normalize", ["loss", "loss+"])
def test_a_loss_without_a_gradient_may_be_no_number(normalize):
    """It takes no part: an unlabelled batch must not spoil the others."""
    x = torch.ones(2, requires_grad=True)
    losses = {"joint": x.sum(), "audio": x[0] * 2, "video": (x * 0).sum() * 0 + torch.tensor(math.nan)}
    balancer = bg.MinNorm(normalize=normalize)
    balancer(losses).backward()
    weights = dict(zip(balancer.last.names, balancer.last.weights.tolist(), strict=True))
    assert all(map(math.isfinite, weights.values()))
    assert x.grad.isfinite().all()


def test_loss_normalisation_uses_the_losses():
    _, last = step([[1.0, 0.0], [0.0, 1.0]], bg.MinNorm(normalize="loss", rescale="none"), losses=[3.0, 1.0])
    # rows / loss: norms 1/3 and 1; weights 0.9, 0.1 there; 0.9/3 : 0.1 in the original rows
    assert last.weights.tolist() == pytest.approx([0.75, 0.25])


@pytest.mark.parametrize("normalize", ["none", "l2", "loss", "loss+"])
@pytest.mark.parametrize("rescale", ["none", "sum", "mean", "cap"])
def test_scaling_all_gradients_scales_the_step(normalize, rescale):
    rows = random_rows(3, 6, 0)
    one, _ = step(rows, bg.MinNorm(normalize=normalize, rescale=rescale))
    for factor in (1e-12, 1e12):
        scaled, _ = step([[factor * v for v in row] for row in rows], bg.MinNorm(normalize=normalize, rescale=rescale))
        torch.testing.assert_close(scaled / factor, one, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("rescale", ["none", "sum", "mean", "cap"])
def test_a_zero_gradient_never_zeroes_the_update(rescale):
    rows = random_rows(3, 6, 0)
    with_zero, last = step([*rows, [0.0] * 6], bg.MinNorm(normalize="none", rescale=rescale))
    without, _ = step(rows, bg.MinNorm(normalize="none", rescale=rescale))
    torch.testing.assert_close(with_zero, without)
    assert last.weights[3] == 1.0
    assert without.norm() > 0


def test_a_stationary_point_is_not_blown_up():
    direction, last = step([[1.0, 2.0], [-2.0, -4.0]], bg.MinNorm(normalize="none", rescale="sum"))
    assert direction.norm().item() == pytest.approx(0.0, abs=1e-12)
    assert last.weights.sum().item() == pytest.approx(1.0)


def test_losses_that_never_meet_are_summed():
    model = LateFusion(trunk=False)
    losses = model.losses(*make_batch())
    balancer = bg.MinNorm()
    balancer({name: losses[name] for name in MODALITIES[:2]}).backward()
    assert balancer.last.weights.tolist() == [1.0, 1.0]
    assert balancer.last.gramian.abs().max() == 0


def test_exclusive_parameters_take_their_losss_weight():
    model, balancer = LateFusion(), bg.MinNorm()
    losses = model.losses(*make_batch())
    (want,) = torch.autograd.grad(losses["audio"], [model.heads["audio"].weight], retain_graph=True)
    balancer(losses).backward()
    weight = balancer.last.weights[balancer.last.names.index("audio")].float()
    torch.testing.assert_close(model.heads["audio"].weight.grad, weight * want)


@pytest.mark.parametrize("groups", ["all", "tensor"])
@pytest.mark.parametrize("floor", [0.0, 0.7, 1.0, 3.0])
def test_the_joint_loss_has_a_floor_and_the_others_keep_their_weights(groups, floor):
    problem = bg.Problem(("audio", "joint", "video"), torch.ones(3), torch.eye(3).double() * torch.tensor([1, 100, 1]))
    if groups == "tensor":
        problem = dataclasses.replace(problem, gramian=torch.stack([problem.gramian, problem.gramian.flip(0, 1)]))
    free = bg.MinNorm(joint_floor=0, groups=groups).weigh(problem).weights
    held = bg.MinNorm(joint_floor=floor, groups=groups).weigh(problem).weights
    torch.testing.assert_close(held[..., [0, 2]], free[..., [0, 2]], rtol=0, atol=0)
    torch.testing.assert_close(held[..., 1], free[..., 1].clamp_min(floor), rtol=0, atol=0)
    assert (free[..., 1] < 0.7).any()


def test_the_floor_is_of_the_default_policy_only():
    assert bg.MinNorm().joint_floor == 1
    assert all(bg.MinNorm(rescale=rescale).joint_floor == 0 for rescale in ("none", "sum", "mean"))
    alone = bg.Problem(("audio", "video"), torch.ones(2), torch.diag(torch.tensor([1.0, 100.0])).double())
    torch.testing.assert_close(bg.MinNorm().weigh(alone).weights, bg.MinNorm(joint_floor=0).weigh(alone).weights)
    for floor in (-0.1, math.nan, math.inf):
        with pytest.raises(ValueError, match="joint_floor"):
            bg.MinNorm(joint_floor=floor)


def test_a_joint_loss_that_takes_no_part_has_no_floor():
    _, last = step([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]], bg.MinNorm(joint_floor=3.0))
    assert last.weights[0] == 1


def test_non_finite_gradients_end_as_non_finite_grad():
    direction, last = step([[1.0, math.inf], [1.0, 2.0]], bg.MinNorm())
    assert last.weights.isnan().all()
    assert direction.isnan().all()


@pytest.mark.parametrize("level", ["parameters", "features"])
def test_trains(level):
    model, balancer = LateFusion(MODALITIES), bg.MinNorm(level=level)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    batch = make_batch(MODALITIES, size=16)
    values = []
    for _ in range(60):
        losses = model.losses(*batch)
        optimizer.zero_grad()
        balancer(losses, features=model.features if level == "features" else None).backward()
        optimizer.step()
        values.append(balancer.last.losses)
    assert (values[-1] < values[0]).all()


@pytest.mark.parametrize("solver", ["closed", "faces", "active_set", "cvxpy", "scipy"])
def test_every_solver_gives_the_same_step(solver):
    rows = random_rows(3, 6, 0)
    want, _ = step(rows, bg.MinNorm())
    got, _ = step(rows, bg.MinNorm(solver=solver))
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"normalize": "l1"}, "normalize='l1': choose one of"),
        ({"rescale": "max"}, "rescale='max': choose one of"),
        ({"solver": "newton"}, "newton"),
    ],
)
def test_bad_settings(arguments, message):
    with pytest.raises(ValueError, match=message):
        bg.MinNorm(**arguments)
