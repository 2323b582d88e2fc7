"""What a method weighs on the host in NumPy's arrays, it weighs alike in tensors, as on another device."""

import pytest
import torch

import balanced_grad as bg
from balanced_grad import arrays

NAMES = ("joint", "audio", "video")
BOUNDED = {"joint": (0.4, 1.0), "audio": (0.0, 0.3)}
METHODS = [
    *(bg.MinNorm(normalize=how, rescale="cap") for how in ("none", "l2", "loss", "loss+")),
    *(bg.MinNorm(rescale=how) for how in ("none", "sum", "mean")),
    *(bg.MinNorm(bounds=BOUNDED, rescale=how) for how in ("none", "cap")),
    bg.EqualNorms(),
    bg.EqualNorms(cap=2.0),
    bg.Project(keep="audio"),
    bg.MMPareto(),
    bg.MMPareto(rescale="encoder"),
]
ROWS = {
    "plain": torch.eye(3, 7),
    "opposed": torch.tensor([[1.0, 0.0, 0.0], [-2.0, 1.0, 0.0], [0.5, 0.0, 1.0]]),
    "one absent": torch.tensor([[1.0, 2.0], [0.0, 0.0], [-1.0, 1.0]]),
    "none": torch.zeros(3, 2),
    "tiny": 1e-160 * torch.eye(3, dtype=torch.float64),
    "huge": 1e160 * torch.eye(3, dtype=torch.float64),
    "broken": torch.tensor([[1.0, float("nan")], [1.0, 0.0], [0.0, 1.0]]),
    "infinite": torch.tensor([[1.0, float("inf")], [1.0, 0.0], [0.0, 1.0]]),
}


def problem(rows: torch.Tensor, several: bool) -> bg.Problem:
    rows = rows.double()
    gramian = rows @ rows.mT
    losses = torch.tensor([0.5, 2.0, 0.0])
    if not several:
        return bg.Problem(NAMES, losses, gramian, ((0, 1, 2),))
    pair = gramian.clone()
    pair[2] = pair[:, 2] = 0
    return bg.Problem(NAMES, losses, torch.stack([gramian, pair, 3 * pair]), ((0, 1, 2), (0, 1), (0, 1)))


@pytest.mark.parametrize("several", [False, True])
@pytest.mark.parametrize("rows", [*ROWS, *range(5)])
@pytest.mark.parametrize("method", METHODS, ids=repr)
def test_arrays_of_both_kinds_give_the_same_weights(method, rows, several, monkeypatch):
    torch.manual_seed(0 if isinstance(rows, str) else rows)
    given = problem(ROWS[rows] if isinstance(rows, str) else torch.randn(3, 5), several)
    if isinstance(method, bg.MMPareto) and not several:
        pytest.skip("it has a problem per tensor")
    before = given.gramian.clone()
    found = method.weigh(given).weights
    torch.testing.assert_close(given.gramian, before, rtol=0, atol=0, equal_nan=True)
    monkeypatch.setattr(arrays, "of", lambda values: values)
    expected = method.weigh(given).weights
    assert found.dtype is expected.dtype is torch.float64
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-14, equal_nan=True)
