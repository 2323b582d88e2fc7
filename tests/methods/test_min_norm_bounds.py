"""MinNorm with bounds: the shortest direction among those whose shares keep them, whatever the policy."""

import copy
import itertools
import math

import cvxpy as cp
import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import balanced_grad as bg
from balanced_grad.methods._bounds import Bounds, corners
from tests.solvers.conftest import SAMPLERS

NAMES = ("joint", "audio", "video", "text", "touch", "radar", "depth", "thermal")
KINDS = ("normal", "narrow_cone", "strongly_stationary", "rank_deficient", "duplicates", "near_parallel")
BOXES = {
    "floor": {"joint": (0.3, 1)},
    "floors": {"joint": (0.2, 1), "audio": (0.1, 1)},
    "ceiling": {"audio": (0, 0.4)},
    "box": {"joint": (0.25, 0.6), "audio": (0.05, 0.35), "video": (0, 0.5)},
    "fixed": {"joint": (0.3, 0.3)},
    "none": {"joint": (0, 1)},
}


def rows_of(kind, count, seed):
    generator = torch.Generator().manual_seed(1000 * count + seed)
    return SAMPLERS[kind](count, lambda *shape: torch.randn(shape, generator=generator, dtype=torch.float64))


def problem_of(rows, losses=None):
    return bg.Problem(NAMES[: rows.shape[-2]], torch.ones(rows.shape[-2]) if losses is None else losses, rows @ rows.mT)


def limits(bounds, names):
    """Least and largest shares as documented: the largest are raised where they do not reach 1."""
    low, high = np.array([bounds.get(name, (0, 1)) for name in names], float).T
    return low, high / min(1.0, high.sum())


def shares(bounds, rows, losses=None, **policy):
    weights = bg.MinNorm(bounds=bounds, **policy).weigh(problem_of(rows, losses)).weights
    return weights / weights.sum(-1, keepdim=True)


def divided(rows, w, divisor):
    """Squared length of the direction over its mixture of divisors."""
    return (w @ rows).square().sum(-1) / (w @ divisor) ** 2


def oracle(rows, divisor, low, high):
    """The convex problem in unnormalised weights by Clarabel, and its shares."""
    z = cp.Variable(len(rows))
    total = cp.sum(z)  # type: ignore[attr-defined]
    keep = [divisor.numpy() @ z == 1, z >= low * total, z <= high * total]
    cp.Problem(cp.Minimize(cp.sum_squares(rows.numpy().T @ z)), keep).solve(  # type: ignore[attr-defined]
        solver=cp.CLARABEL, tol_gap_abs=1e-12, tol_gap_rel=1e-12, tol_feas=1e-12
    )
    return torch.from_numpy(z.value / z.value.sum())


def exchange(rows, w, divisor, low, high):
    """By how much moving share from one loss to another goes downhill, over the size of the slopes' terms."""
    w, low, high = w.clone(), torch.from_numpy(low), torch.from_numpy(high)
    z = w / (w @ divisor)
    G, roots = rows @ rows.T, rows.norm(dim=1)
    slope = G @ z - (z @ G @ z) * divisor
    reach = roots * (roots @ z) + (z @ G @ z) * divisor
    gain = (slope[:, None] - slope) / (reach[:, None] + reach)
    free = gain[w > low + 1e-9][:, w < high - 1e-9]
    return free.amax().clamp_min(0) if free.numel() else torch.zeros(())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("box", BOXES)
@pytest.mark.parametrize("normalize", ["none", "l2"])
def test_shares_keep_their_bounds_and_no_exchange_goes_downhill(kind, box, normalize):
    for count, seed in itertools.product((1, 2, 3, 4, 5, 8), range(4)):
        rows = rows_of(kind, count, seed)
        if not rows.any():
            continue  # a loss without a gradient takes no part
        low, high = limits(BOXES[box], NAMES[:count])
        w = shares(BOXES[box], rows, normalize=normalize)
        assert (w >= torch.from_numpy(low) - 1e-12).all()
        assert (w <= torch.from_numpy(high) + 1e-12).all()
        divisor = rows.norm(dim=1) if normalize == "l2" else torch.ones(count, dtype=torch.float64)
        assert exchange(rows, w, divisor, low, high) <= 1e-8


@pytest.mark.parametrize("box", BOXES)
@pytest.mark.parametrize("normalize", ["none", "l2", "loss"])
def test_cvxpy_finds_nothing_shorter(box, normalize):
    for count, seed in itertools.product((2, 3, 4, 6), range(3)):
        rows = rows_of("normal", count, seed) * torch.logspace(0, 1, count, dtype=torch.float64)[:, None]
        losses = torch.linspace(0.5, 2, count)
        divisor = {"none": torch.ones(count).double(), "l2": rows.norm(dim=1), "loss": losses.double()}[normalize]
        w = shares(BOXES[box], rows, losses, normalize=normalize)
        expected = oracle(rows, divisor, *limits(BOXES[box], NAMES[:count]))
        torch.testing.assert_close(w, expected, rtol=0, atol=1e-5)
        assert divided(rows, w, divisor) <= divided(rows, expected, divisor) * (1 + 1e-8)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("box", BOXES)
@pytest.mark.parametrize("count", [2, 3])
def test_no_point_of_a_grid_is_shorter(kind, box, count):
    steps = torch.linspace(0, 1, 81, dtype=torch.float64)
    pairs = torch.cartesian_prod(*[steps] * (count - 1)).reshape(-1, count - 1)
    grid = torch.cat((pairs, 1 - pairs.sum(-1, keepdim=True)), -1)
    low, high = map(torch.from_numpy, limits(BOXES[box], NAMES[:count]))
    grid = grid[((grid >= low - 1e-12) & (grid <= high + 1e-12)).all(-1)]
    for seed in range(5):
        rows = rows_of(kind, count, seed)
        rows = rows / rows.norm(dim=1).max()
        for normalize, divisor in (("none", torch.ones(count).double()), ("l2", rows.norm(dim=1))):
            w = shares(BOXES[box], rows, normalize=normalize)
            best = divided(rows, grid, divisor).min() if len(grid) else math.inf
            assert divided(rows, w, divisor) <= best + 1e-12


@pytest.mark.parametrize("rescale", ["none", "sum", "mean", "cap"])
@pytest.mark.parametrize("box", ["floor", "box"])
def test_rescale_leaves_the_shares_alone(rescale, box):
    rows = rows_of("normal", 4, 0)
    weights = bg.MinNorm(bounds=BOXES[box], rescale=rescale).weigh(problem_of(rows)).weights
    torch.testing.assert_close(weights / weights.sum(), shares(BOXES[box], rows, rescale="none"))
    length = {"sum": rows.sum(0).norm(), "mean": rows.mean(0).norm()}.get(rescale)
    assert length is None or (weights @ rows).norm() == pytest.approx(float(length))
    assert rescale not in ("none", "cap") or weights.sum() <= {"none": 1, "cap": 4}[rescale] + 1e-12


def test_bounds_that_do_not_bind_change_nothing():
    for count, seed in itertools.product((2, 3, 5), range(5)):
        rows = rows_of("normal", count, seed)
        free = shares(None, rows, joint_floor=0)
        around = {name: (max(0, w - 0.05), min(1, w + 0.05)) for name, w in zip(NAMES, free.tolist(), strict=False)}
        for bounds in (around, {"joint": (0, 1)}):
            torch.testing.assert_close(shares(bounds, rows), free, rtol=0, atol=1e-9)


@pytest.mark.parametrize("box", ["floors", "box"])
def test_a_batch_of_problems_each_with_its_own_losses(box):
    """A loss that takes no part in a problem has no share there and keeps weight 1, and its bounds are dropped."""
    generator = torch.Generator().manual_seed(0)
    rows = torch.stack([rows_of("normal", 4, seed) for seed in range(12)])
    rows[torch.rand(12, 4, generator=generator) < 0.4] = 0
    rows[0] = 0
    for normalize in ("none", "l2"):
        balancer = bg.MinNorm(bounds=BOXES[box], normalize=normalize, rescale="none", groups="tensor")
        together = balancer.weigh(problem_of(rows)).weights
        for weights, part in zip(together, rows, strict=True):
            on = (part != 0).any(-1)
            assert (weights[~on] == 1).all()
            if not on.any():
                continue
            names = tuple(itertools.compress(NAMES, on.tolist()))
            alone = balancer.weigh(bg.Problem(names, torch.ones(len(names)), part[on] @ part[on].T)).weights
            torch.testing.assert_close(weights[on], alone, rtol=0, atol=1e-9)
            low, high = map(torch.from_numpy, limits(BOXES[box], names))
            assert ((alone >= low - 1e-12) & (alone <= high + 1e-12)).all()


class NoHostRead(TorchDispatchMode):
    """Raises where a tensor of a GPU would make the host wait."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        mask = name == "index" and any(i is not None and i.dtype is torch.bool for i in args[1])
        if mask or name in ("_local_scalar_dense", "nonzero", "masked_select", "is_nonzero"):
            raise AssertionError(f"{name} synchronises")
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("box", BOXES)
def test_the_table_of_all_subsets_finds_the_corners_without_reading_the_mask(box, monkeypatch):
    active = torch.tensor(list(itertools.product((True, False), repeat=4)))
    bounds, names = Bounds(BOXES[box]), NAMES[:4]
    read, there = bounds.corners(names, active)
    monkeypatch.setattr(torch.Tensor, "is_cpu", property(lambda _: False))
    with NoHostRead():
        looked_up, also = bounds.corners(names, active)
    torch.testing.assert_close(looked_up, read, rtol=0, atol=0)
    assert torch.equal(also, there)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
@pytest.mark.parametrize("box", BOXES)
def test_cuda_does_not_synchronise(box):
    balancer, problem = bg.MinNorm(bounds=BOXES[box], groups="tensor"), problem_of(rows_of("normal", 3, 0)[None])
    expected = balancer.weigh(problem).weights
    problem = bg.Problem(problem.names, problem.losses.cuda(), problem.gramian.cuda())
    balancer.weigh(problem)  # makes the table and loads the kernels
    torch.cuda.set_sync_debug_mode("error")
    try:
        weights = balancer.weigh(problem).weights
    finally:
        torch.cuda.set_sync_debug_mode("default")
    torch.testing.assert_close(weights.cpu(), expected)


@pytest.mark.parametrize("solver", ["faces", "active_set", "cvxpy", "scipy"])
@pytest.mark.parametrize("box", ["floor", "box"])
def test_every_solver_gives_the_same_shares(solver, box):
    rows = rows_of("normal", 3, 0)
    expected = shares(BOXES[box], rows)
    torch.testing.assert_close(shares(BOXES[box], rows, solver=solver), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("count", range(1, 7))
def test_corners_are_the_feasible_points_with_all_but_one_at_a_bound(count):
    generator = torch.Generator().manual_seed(count)
    for _ in range(20):
        low = (torch.rand(count, generator=generator) * 0.9 / count).tolist()
        high = [min(1.0, x + r) for x, r in zip(low, torch.rand(count, generator=generator).tolist(), strict=True)]
        high[0] = max(high[0], 1 - sum(high[1:]))
        expected = set()
        for free, ends in itertools.product(range(count), itertools.product(*zip(low, high, strict=True))):
            value = 1 - sum(ends) + ends[free]
            if low[free] - 1e-12 <= value <= high[free] + 1e-12:
                expected.add(tuple(round(value if k == free else x, 9) for k, x in enumerate(ends)))
        got = [tuple(round(x, 9) for x in corner) for corner in corners(low, high, [True] * count)]
        assert len(got) == len(set(got))
        assert set(got) == expected


def test_ties_and_order():
    rows = torch.ones(3, 5, dtype=torch.float64)
    torch.testing.assert_close(shares({"joint": (0.3, 1)}, rows), shares({"joint": (0.3, 1)}, rows), rtol=0, atol=0)
    w = shares({"joint": (0.5, 1)}, rows)
    assert w[1] == pytest.approx(float(w[2]))
    rows = rows_of("normal", 3, 0)
    problem = problem_of(rows)
    order = [2, 0, 1]
    turned = bg.Problem(tuple(problem.names[k] for k in order), problem.losses, problem.gramian[order][:, order])
    balancer = bg.MinNorm(bounds=BOXES["box"])
    torch.testing.assert_close(balancer.weigh(turned).weights, balancer.weigh(problem).weights[order])


def test_a_floor_inside_the_problem_is_shorter_than_one_put_on_after_it():
    for seed in range(20):
        rows = rows_of("normal", 3, seed)
        rows = rows / rows.norm(dim=1, keepdim=True)
        free = shares(None, rows, joint_floor=0)
        if free[0] >= 0.6:
            continue
        after = free * (0.4 / free[1:].sum())
        after[0] = 0.6
        inside = shares({"joint": (0.6, 1)}, rows)
        assert (inside @ rows).norm() <= (after @ rows).norm() + 1e-12


def losses_of(names, x):
    return {name: (x * (k + 1.0)).sum() for k, name in enumerate(names)}


def test_names():
    x = torch.ones(2, requires_grad=True)
    with pytest.raises(ValueError, match=r"'vidoe'.*write 'video'"):
        bg.MinNorm(bounds={"vidoe": (0.1, 1)})(losses_of(("joint", "audio", "video"), x))
    with pytest.warns(bg.InactiveBalancerWarning, match="none of the losses"):
        bg.MinNorm(bounds={"lidar": (0.1, 1)})(losses_of(("joint", "audio"), x))
    balancer = bg.MinNorm(bounds={"joint": (0.3, 1), "cam1": (0.1, 1)})
    for names in (("joint", "cam1", "cam2"), ("joint", "cam2"), ("cam1", "cam2")):
        balancer(losses_of(names, x)).backward()
        assert balancer.last.names == names
    copy.deepcopy(balancer)(losses_of(("joint", "cam2"), x))


@pytest.mark.parametrize(
    ("bounds", "error", "message"),
    [
        ({"joint": 0.3}, ValueError, r"bounds\['joint'\]=0\.3.*\(0\.3, 1\)"),
        ({"joint": (0.6, 0.3)}, ValueError, "least <= largest"),
        ({"joint": (-0.1, 1)}, ValueError, "least <= largest"),
        ({"joint": (0, 1.5)}, ValueError, "least <= largest"),
        ({"joint": (0, 0)}, ValueError, "largest not 0"),
        ({"joint": (math.nan, 1)}, ValueError, "least <= largest"),
        ({"joint": (0.6, 1), "audio": (0.5, 1)}, ValueError, r"sum to 1\.1"),
        (0.3, TypeError, "mapping"),
    ],
)
def test_bad_bounds(bounds, error, message):
    with pytest.raises(error, match=message):
        bg.MinNorm(bounds=bounds)


def test_a_floor_and_bounds_do_not_go_together():
    with pytest.raises(ValueError, match=r"joint_floor=0\.5 with bounds"):
        bg.MinNorm(bounds={"audio": (0.1, 1)}, joint_floor=0.5)
    assert bg.MinNorm(bounds={"audio": (0.1, 1)}).joint_floor == 0
    assert "bounds={'audio': (0.1, 1.0)}" in repr(bg.MinNorm(bounds={"audio": (0.1, 1)}))


def test_too_many_corners_are_refused_and_floors_of_many_losses_are_not():
    names = tuple(map(str, range(12)))
    problem = bg.Problem(names, torch.ones(12), torch.eye(12, dtype=torch.float64))
    with pytest.raises(ValueError, match="512 corners"):
        bg.MinNorm(bounds=dict.fromkeys(names, (0.01, 0.18))).weigh(problem)
    weights = bg.MinNorm(bounds=dict.fromkeys(names, (0.05, 1)), rescale="none").weigh(problem).weights
    torch.testing.assert_close(weights, torch.full((12,), 1 / 12, dtype=torch.float64))


def test_non_finite_gramians_give_non_finite_weights():
    rows = rows_of("normal", 3, 0)
    rows[1, 0] = math.nan
    assert bg.MinNorm(bounds=BOXES["box"]).weigh(problem_of(rows)).weights.isnan().all()
