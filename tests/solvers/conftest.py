"""Samplers of gradient rows `(M, D)`: each stresses one thing that breaks min-norm solvers."""

import pytest
import torch
from torch import Tensor


def normal(M: int, draw) -> Tensor:
    return draw(M, 4 * M)


def strongly_stationary(M: int, draw) -> Tensor:
    """A positive combination of all rows is 0."""
    J, w = draw(M, 4 * M), draw(M).abs() + 0.1
    return J - w / w.sum() @ J


def weakly_stationary(M: int, draw) -> Tensor:
    """A combination of half of the rows is 0."""
    J, half = draw(M, 4 * M), max(1, M // 2)
    w = draw(half).abs() + 0.1
    J[:half] -= w / w.sum() @ J[:half]
    return J


def rank_deficient(M: int, draw) -> Tensor:
    half = max(1, M // 2)
    return draw(M, half) @ draw(half, 20)


def rank_one(M: int, draw) -> Tensor:
    return draw(M, 1) @ draw(1, 20)


def more_rows_than_columns(M: int, draw) -> Tensor:
    return draw(M, 3)


def narrow_cone(M: int, draw) -> Tensor:
    return 2.0 * draw(1, 20) + draw(M, 20)


def spread_norms(M: int, draw) -> Tensor:
    return draw(M, 4 * M) * 10.0 ** (2.0 * draw(M, 1))


def mixed_norms(M: int, draw) -> Tensor:
    """Norms from 1e-18 to 1e18 in one problem."""
    return draw(M, 4 * M) * 10.0 ** draw(M, 1).mul(9.0).clamp(-18.0, 18.0)


def near_parallel(M: int, draw) -> Tensor:
    """Unit rows with 1 - cos of about 1e-12."""
    J = torch.nn.functional.normalize(draw(1, 40), dim=1) + 2e-7 * draw(M, 40)
    return J / J.norm(dim=1, keepdim=True)


def near_antiparallel(M: int, draw) -> Tensor:
    J = near_parallel(M, draw)
    J[: M // 2] *= -1.0
    return J


def duplicates(M: int, draw) -> Tensor:
    return draw(max(1, M // 2), 20)[torch.arange(M) % max(1, M // 2)]


def zero_row(M: int, draw) -> Tensor:
    J = draw(M, 20)
    J[0] = 0.0
    return J


def all_zero(M: int, draw) -> Tensor:
    return torch.zeros(M, 20, dtype=torch.float64)


def tiny(M: int, draw) -> Tensor:
    return 1e-18 * draw(M, 4 * M)


def huge(M: int, draw) -> Tensor:
    return 1e18 * draw(M, 4 * M)


SAMPLERS = {
    f.__name__: f
    for f in (
        normal, strongly_stationary, weakly_stationary, rank_deficient, rank_one, more_rows_than_columns,
        narrow_cone, spread_norms, mixed_norms, near_parallel, near_antiparallel, duplicates, zero_row, all_zero,
        tiny, huge,
    )
}  # fmt: skip


class Family:
    def __init__(self, name: str) -> None:
        self.name = name

    def rows(self, M: int, seed: int) -> Tensor:
        generator = torch.Generator().manual_seed(1000 * M + seed)
        return SAMPLERS[self.name](M, lambda *shape: torch.randn(shape, generator=generator, dtype=torch.float64))

    def gramian(self, M: int, seed: int, dtype: torch.dtype = torch.float64) -> Tensor:
        J = self.rows(M, seed)
        return (J @ J.T).to(dtype)


@pytest.fixture(params=SAMPLERS)
def family(request) -> Family:
    return Family(request.param)


@pytest.fixture
def families() -> dict[str, Family]:
    return {name: Family(name) for name in SAMPLERS}
