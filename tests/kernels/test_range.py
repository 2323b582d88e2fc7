"""No number that a gradient can have leads to a wrong one: neither overflow nor lost digits, in any implementation."""

import itertools
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from balanced_grad.kernels import combine, evidential_fuse, gramian, moments_update

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
IMPLEMENTATIONS = ["triton"] if INTERPRETED else ["reference"]
SCALES = [1e-30, 1.0, 1e18] if INTERPRETED else [1e-30, 1e-25, 1e-22, 1e-12, 1.0, 1e12, 1e18, 1e30]
implementations = pytest.mark.parametrize("implementation", IMPLEMENTATIONS)


def make_rows(count, size, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, size, generator=generator)


@implementations
@pytest.mark.parametrize("size", [3, 1024, 2500])
@pytest.mark.parametrize("segments", [None, True])
def test_gramian_of_any_size_of_entries(implementation, size, segments):
    for scales in itertools.product(SCALES, SCALES):
        rows = make_rows(2, size) * torch.tensor(scales)[:, None]
        bounds = [0, size // 2, size] if segments else None
        got = gramian(rows, bounds, implementation=implementation)
        parts = rows.double().split([size // 2, size - size // 2], 1) if segments else [rows.double()]
        want = torch.stack([part @ part.T for part in parts])
        want = want if segments else want[0]
        norms = want.diagonal(dim1=-2, dim2=-1).sqrt()
        error = (got - want).abs() / norms[..., :, None] / norms[..., None, :]
        assert error.max() <= 1e-6


@implementations
def test_a_row_of_mixed_sizes_and_one_of_zeros(implementation):
    rows = make_rows(3, 3000)
    rows[0, :1500] *= 1e-24
    rows[1, 100] = 1e25
    rows[2] = 0
    got, wide = gramian(rows, implementation=implementation), rows.double()
    torch.testing.assert_close(got, wide @ wide.T, rtol=1e-5, atol=1e-4)


@implementations
@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_what_is_not_finite_stays_so(implementation, bad):
    rows = make_rows(2, 1100)
    rows[1, 5] = bad
    got = gramian(rows, [0, 600, 1100], implementation=implementation)
    assert not got[0, 1].isfinite().any()
    assert got[1].isfinite().all()


@implementations
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("count", [1, 2, 3, 7, 20])
def test_every_dtype_and_number_of_rows(implementation, dtype, count):
    rows = make_rows(count, 1500).to(dtype)
    wide, weights = rows.double(), torch.arange(1.0, count + 1)
    kind = {"implementation": implementation}
    torch.testing.assert_close(gramian(rows, **kind), wide @ wide.T, rtol=1e-5, atol=1e-3)
    torch.testing.assert_close(
        combine(rows, weights, **kind), (weights.double() @ wide).to(dtype), rtol=2e-2, atol=2e-2
    )
    fused = evidential_fuse(rows, torch.ones(count, 1500), torch.tensor(1.0), **kind)
    torch.testing.assert_close(fused, wide.sum(0).to(dtype), rtol=2e-2, atol=2e-2)


@implementations
@pytest.mark.parametrize("duplicated", [False, True])
def test_order_and_duplicates(implementation, duplicated):
    rows, order = make_rows(4, 1030), torch.tensor([2, 0, 3, 1])
    order = order.repeat(2) if duplicated else order
    got = gramian(rows[order], implementation=implementation)
    torch.testing.assert_close(got, gramian(rows, implementation=implementation)[order][:, order], rtol=1e-6, atol=1e-4)
    columns = torch.randperm(1030, generator=torch.Generator().manual_seed(0))
    again = gramian(rows[:, columns], implementation=implementation)
    torch.testing.assert_close(again, gramian(rows, implementation=implementation), rtol=1e-6, atol=1e-4)


@implementations
@pytest.mark.parametrize("kept", [torch.float32, torch.float64])
def test_fusion_of_any_unit(implementation, kept):
    rows, variance = make_rows(3, 50), make_rows(3, 50, 1).square() + 0.1
    want = evidential_fuse(rows, variance, torch.tensor(1.0), implementation=implementation)
    for scale in (1e-30, 1e-12, 1e12, 1e30):
        scaled, reference = variance.to(kept) * scale, torch.tensor(1 / scale, dtype=kept)
        got = evidential_fuse(rows, scaled, reference, implementation=implementation)
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)
        got = evidential_fuse(rows * scale, variance, torch.tensor(1.0), implementation=implementation)
        torch.testing.assert_close(got / scale, want, rtol=1e-4, atol=1e-5)
    sure = evidential_fuse(
        torch.full((2, 5), 1e37), torch.full((2, 5), 1e-20), torch.tensor(1.0), implementation=implementation
    )
    torch.testing.assert_close(sure, torch.full((5,), 2e37))
    for kappa, cap, eps in itertools.product((0.0, 1e-30, 1e30, float("inf")), (1.0, float("inf")), (0.0, 1e-8)):
        extreme = torch.tensor([[1e-45, 1e-30, 1.0, 3e38, 0.0], [1.0, 3e38, 1e-45, 1.0, 1.0]])
        kind = {"kappa": kappa, "cap": cap, "eps": eps, "implementation": implementation}
        assert evidential_fuse(torch.ones(2, 5), extreme, torch.tensor(1.0), **kind).isfinite().all()


@implementations
@pytest.mark.parametrize("with_mean", [False, True])
def test_a_spike_passes(implementation, with_mean):
    """One gradient of 1e20 must not leave a variance that no later step can lower."""
    mean = torch.zeros(1, 2) if with_mean else None
    variance, weight = torch.zeros(1, 2), torch.zeros(1)
    for value in (1.0, 1e20, -3e38, 1.0, *[1.0, 2.0] * 500):
        rows = torch.tensor([[value, 1.0]])
        moments_update(rows, mean, variance, weight, 0.8, implementation=implementation)
        assert variance.isfinite().all()
    assert variance[0, 0] < 1e10
    moments_update(
        torch.ones(1, 2), None, variance, weight, 0.8, new_variance=torch.full((1, 2), 1e300, dtype=torch.float64)
    )
    assert variance.isfinite().all()


@pytest.mark.skipif(INTERPRETED, reason="runs it so")
def test_triton_interpreted():
    pytest.importorskip("triton", minversion="3.8", reason="pip install triton")
    command = [sys.executable, "-m", "pytest", "-q", __file__]
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.skipif(INTERPRETED, reason="the interpreter is for Triton")
@pytest.mark.filterwarnings("ignore::DeprecationWarning:torch", "ignore::UserWarning:torch")
def test_compiled_gramian():
    for scales in ((1e-25, 1e-25), (1e-25, 1e18), (1e18, 1e18)):
        rows = make_rows(2, 2500) * torch.tensor(scales)[:, None]
        got, want = gramian(rows, implementation="compiled"), gramian(rows.double())
        torch.testing.assert_close(got / want.diagonal().max(), want / want.diagonal().max(), rtol=1e-6, atol=1e-7)
