"""Both passes against float64."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from balanced_grad.kernels import combine, gramian

SHAPES = [(1, 1), (2, 7), (3, 4096), (2, 4097), (5, 12288), (16, 5000), (2, 0)]
DTYPES = {torch.float64: 1e-13, torch.float32: 1e-6, torch.bfloat16: 1e-6, torch.float16: 1e-6}


def rows_of(shape, dtype):
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).to(dtype)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_gramian(shape, dtype):
    rows = rows_of(shape, dtype)
    got = gramian(rows)
    assert got.dtype == torch.float64
    scale = rows.double().square().sum(1).sqrt()
    error = (got - rows.double() @ rows.double().T) / torch.outer(scale, scale).clamp_min(1e-300)
    assert error.abs().max() <= DTYPES[dtype]


def test_gramian_of_many_half_precision_chunks():
    rows = rows_of((2, 4096 * 1030 + 5), torch.bfloat16)
    torch.testing.assert_close(gramian(rows), rows.double() @ rows.double().T, rtol=1e-6, atol=1e-2)


def test_gramian_keeps_the_difference_of_near_parallel_rows():
    generator = torch.Generator().manual_seed(0)
    one = torch.randn(2_000_000, generator=generator)
    rows = torch.stack([one, one + 1e-3 * torch.randn(one.shape, generator=generator)])
    g = gramian(rows)
    got = g[0, 0] - 2 * g[0, 1] + g[1, 1]
    want = (rows[0].double() - rows[1].double()).square().sum()
    assert abs(got / want - 1) < 0.05
    plain = (rows @ rows.T).double()
    assert abs((plain[0, 0] - 2 * plain[0, 1] + plain[1, 1]) / want - 1) > abs(got / want - 1)


@pytest.mark.parametrize("shape", [shape for shape in SHAPES if shape[1]])
@pytest.mark.parametrize("dtype", DTYPES)
def test_combine(shape, dtype):
    rows, weights = rows_of(shape, dtype), torch.linspace(0.1, 2.0, shape[0], dtype=torch.float64)
    got = combine(rows, weights)
    assert got.dtype == dtype
    rounding = max(torch.finfo(dtype).eps, DTYPES[dtype])
    torch.testing.assert_close(got.double(), weights @ rows.double(), rtol=rounding, atol=4 * shape[0] * rounding)


def test_under_autocast_nothing_is_rounded():
    rows = rows_of((3, 5000), torch.float32)
    want = gramian(rows), combine(rows, torch.ones(3))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = gramian(rows), combine(rows, torch.ones(3))
    torch.testing.assert_close(got, want, rtol=0, atol=0)


def test_non_finite_entries_show():
    rows = torch.ones(2, 5000)
    rows[0, 17] = torch.inf
    rows[1, 18] = torch.nan
    assert not gramian(rows)[0, 0].isfinite()
    assert gramian(rows)[1, 1].isnan()


class Largest(TorchDispatchMode):
    """Size of the largest new tensor that an operator returned."""

    def __init__(self):
        super().__init__()
        self.numel = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        given = [*args, *(kwargs or {}).values()]
        shared = {a.untyped_storage().data_ptr() for a in given if isinstance(a, torch.Tensor)}
        if isinstance(out, torch.Tensor) and out.untyped_storage().data_ptr() not in shared:
            self.numel = max(self.numel, out.numel())
        return out


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("count", [2, 8])
def test_working_memory_is_a_small_part_of_one_row(count, dtype):
    size = 30_000_000 // count
    rows = torch.zeros(count, size, dtype=dtype)
    most = 0.1 * size if dtype == torch.float32 else 2**18 * count  # half precision is widened in fixed pieces
    with Largest() as largest:
        gramian(rows)
    assert 0 < largest.numel <= most, "nothing seen, or too much"
    out = torch.empty_like(rows[0])
    with Largest() as largest:
        combine(rows, torch.ones(count, dtype=torch.float64), out)
    assert 0 < largest.numel <= most
