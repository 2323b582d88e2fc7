"""EqualNorms and Project: against gradients combined by hand."""

import pytest
import torch

import balanced_grad as bg
from tests.conftest import MODALITIES, LateFusion, make_batch


def rows_of(losses, parameters):
    found = [torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True) for loss in losses.values()]
    flat = [[torch.zeros_like(p) if g is None else g for g, p in zip(r, parameters, strict=True)] for r in found]
    return torch.stack([torch.cat([g.flatten() for g in r]) for r in flat])


def problem(rows, names=None):
    names = names or tuple(f"m{k}" for k in range(len(rows)))
    return bg.Problem(names, torch.ones(len(rows)), rows @ rows.T)


@pytest.mark.parametrize("scale", [1e-12, 1.0, 1e12])
@pytest.mark.parametrize("seed", range(5))
def test_equal_norms(seed, scale):
    torch.manual_seed(seed)
    rows = scale * torch.randn(4, 9, dtype=torch.float64) * torch.tensor([[1.0], [2.0], [0.5], [1e-3]])
    weights = bg.EqualNorms(cap=float("inf")).weigh(problem(rows)).weights
    norms = (weights[:, None] * rows).norm(dim=1)
    torch.testing.assert_close(norms, rows.norm(dim=1).mean().expand(4))
    capped = bg.EqualNorms(cap=3).weigh(problem(rows)).weights
    torch.testing.assert_close(capped, weights.clamp_max(3))


def test_those_without_a_gradient_take_no_part():
    rows = torch.tensor([[1.0, 0.0], [0.0, 0.0], [0.0, 3.0]], dtype=torch.float64)
    assert bg.EqualNorms().weigh(problem(rows)).weights.tolist() == pytest.approx([2.0, 1.0, 2 / 3])


@pytest.mark.parametrize("seed", range(5))
def test_project_is_what_projection_gives(seed):
    torch.manual_seed(seed)
    rows = torch.randn(4, 5, dtype=torch.float64)
    weights = bg.Project("m2").weigh(problem(rows)).weights
    kept = rows[2]
    want = kept.clone()
    for other in rows[[0, 1, 3]]:
        want += other - min(0.0, float(other @ kept)) / (kept @ kept) * kept
    torch.testing.assert_close(weights @ rows, want)
    assert (weights @ rows) @ kept >= kept @ kept - 1e-12  # not slowed down


def test_project_without_the_kept_one_is_the_plain_sum():
    rows = torch.randn(3, 5, dtype=torch.float64)
    assert (bg.Project("other").weigh(problem(rows)).weights == 1).all()
    rows[1] = 0
    assert (bg.Project("m1").weigh(problem(rows)).weights == 1).all()


@pytest.mark.parametrize("make", [lambda **o: bg.EqualNorms(**o), lambda **o: bg.Project("video", **o)])
@pytest.mark.parametrize("groups", ["all", "reach", "tensor"])
def test_in_a_step(make, groups):
    torch.manual_seed(0)
    model = LateFusion(MODALITIES).double()
    losses = model.losses(*make_batch(MODALITIES, dtype=torch.float64))
    balancer = make(groups=groups)
    rows = rows_of(losses, list(model.trunk.parameters()))
    balancer(losses).backward()
    if groups == "all":
        got = torch.cat([p.grad.flatten() for p in model.trunk.parameters()])
        torch.testing.assert_close(got, balancer.last.weights @ rows)
    assert all(p.grad.isfinite().all() for p in model.parameters())
    shares, cosines = balancer.last.norm_shares(), balancer.last.cosines()
    assert shares.shape == balancer.last.weights.shape
    torch.testing.assert_close(shares.sum(-1), torch.ones_like(shares[..., 0]))
    own = cosines.diagonal(dim1=-2, dim2=-1)
    assert (own.isnan() | (own > 1 - 1e-12)).all()


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [(lambda: bg.EqualNorms(0.5), ValueError, "cap=0.5"), (lambda: bg.Project(3), TypeError, "keep=3")],
)
def test_refusals(make, error, message):
    with pytest.raises(error, match=message):
        make()
