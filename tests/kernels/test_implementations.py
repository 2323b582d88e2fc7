"""Every implementation gives the numbers of the reference, and is chosen or refused as documented."""

import os
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.cpp_extension import get_cxx_compiler

from balanced_grad.kernels import _dispatch as dispatch
from balanced_grad.kernels import combine, evidential_fuse, gramian, moments_update

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
ROOT = Path(__file__).resolve().parents[2]


def compiler_works():
    return subprocess.run([get_cxx_compiler(), "--version"], capture_output=True, check=False).returncode == 0


needs_compiler = pytest.mark.skipif(not compiler_works(), reason="torch.compile on the CPU needs a C++ compiler")
ignores_torch = pytest.mark.filterwarnings("ignore::DeprecationWarning:torch", "ignore::UserWarning:torch")


def results(implementation, device, count, size, dtype, segments=None):
    """What all passes give for one seeded case."""
    generator = torch.Generator().manual_seed(size)
    rows = torch.randn(count, size, generator=generator).to(device, dtype)
    new = torch.rand(count, size, generator=generator).to(device)
    kind = {"implementation": implementation}
    found = [
        gramian(rows, **kind),
        combine(rows, torch.arange(1.0, count + 1).to(device), **kind),
    ]
    if segments is not None:
        weights = torch.rand(len(segments) - 1, count, generator=generator).to(device)
        found += [gramian(rows, segments, **kind), combine(rows, weights, segments=segments, **kind)]
    ok, reference = (torch.arange(count) != 1).to(device), torch.tensor(2.0, device=device)
    with_holes = rows.clone()
    with_holes[0, ::5] = torch.nan
    for mean, given in ((torch.zeros(count, size), None), (None, None), (None, new)):
        state = None if mean is None else mean.to(device), torch.full((count, size), 0.5).to(device)
        weight = torch.zeros(count, device=device)
        for k in range(3):
            moments_update(rows + k, *state, weight, 0.9, new_variance=given, scale=reference, ok=ok, **kind)
        found += [*(s for s in state if s is not None), weight]
        each = torch.arange(1.0, count + 1, device=device)
        found += [evidential_fuse(with_holes, state[1], typical, **kind) for typical in (reference, each)]
    return found


def assert_as_reference(implementation, device, count, size, dtype, segments=None):
    got = results(implementation, device, count, size, dtype, segments)
    want = results("reference", device, count, size, dtype, segments)
    rounding = {torch.bfloat16: 1e-2, torch.float16: 1e-3}.get(dtype, 1e-5)
    for one, other in zip(got, want, strict=True):
        torch.testing.assert_close(one, other, rtol=rounding, atol=max(1e-4, rounding), equal_nan=True)
    for one, again in zip(got, results(implementation, device, count, size, dtype, segments), strict=True):
        torch.testing.assert_close(one, again, rtol=0, atol=0, equal_nan=True)  # deterministic


@needs_compiler
@ignores_torch
@pytest.mark.parametrize(("count", "dtype"), [(2, torch.float32), (3, torch.bfloat16)])
def test_compiled(count, dtype):
    assert_as_reference("compiled", "cpu", count, 2501, dtype, [0, 4, 4, 1100, 2501])
    assert_as_reference("compiled", "cpu", count, 1, dtype)


TRITON_CASES = [
    (1, 1, torch.float32, None),
    (2, 1023, torch.float32, [0, 3, 3, 1000, 1023]),
    (3, 4100, torch.bfloat16, [0, 64, 2048, 2112, 4100]),
    (4, 700, torch.float64, None),
    (5, 33, torch.float16, None),
    (16, 260, torch.float32, [0, 128, 260]),
]


@pytest.mark.skipif(not INTERPRETED, reason="needs TRITON_INTERPRET=1; test_triton_interpreted runs it so")
@pytest.mark.parametrize("case", TRITON_CASES, ids=str)
def test_triton(case):
    assert_as_reference("triton", "cpu", *case)


@pytest.mark.skipif(not INTERPRETED, reason="needs TRITON_INTERPRET=1; test_triton_interpreted runs it so")
def test_triton_and_strides():
    rows = torch.randn(3, 1001)
    wider = torch.randn(3, 1010)
    wider[:, 3:-6] = rows
    for view in (wider[:, 3:-6], rows.T.contiguous().T):
        torch.testing.assert_close(gramian(view, implementation="triton"), gramian(rows), rtol=1e-5, atol=1e-4)
        got = combine(view, torch.ones(3), torch.zeros(1001, 2)[:, 0], implementation="triton")
        torch.testing.assert_close(got, rows.sum(0), rtol=1e-5, atol=1e-5)
    state, weight = rows.T.contiguous().T, torch.zeros(3)
    with pytest.raises(ValueError, match="must lie side by side"):
        moments_update(rows, None, state, weight, 0.9, implementation="triton")
    assert not weight.any()


def test_triton_interpreted():
    pytest.importorskip("triton", minversion="3.8", reason="pip install triton")
    command = [sys.executable, "-m", "pytest", "-q", __file__, "-k", "test_triton and not interpreted"]
    done = subprocess.run(
        command, cwd=ROOT, env={**os.environ, "TRITON_INTERPRET": "1"}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{len(TRITON_CASES) + 1} passed" in done.stdout


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("implementation", ["triton", "auto", "compiled"])
@pytest.mark.parametrize("case", TRITON_CASES, ids=str)
def test_on_a_gpu(implementation, case):
    assert_as_reference(implementation, "cuda", *case)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_more_than_2_to_the_31_numbers_on_a_gpu():
    rows = torch.zeros(3, 2**30 + 8, dtype=torch.bfloat16, device="cuda")
    rows[:, -1] = torch.tensor([1.0, 2.0, 3.0])
    want = torch.outer(rows[:, -1].double(), rows[:, -1].double())
    torch.testing.assert_close(gramian(rows, implementation="triton"), want)
    assert combine(rows, torch.ones(3, device="cuda"), implementation="triton")[-1] == 6


def test_triton_where_it_cannot_run():
    if INTERPRETED:
        pytest.skip("the interpreter runs it anywhere")
    with pytest.raises(RuntimeError, match="needs CUDA tensors, and the rows are on cpu"):
        gramian(torch.ones(2, 3), implementation="triton")


def test_a_broken_triton_is_left_alone_after_one_warning(monkeypatch):
    class Broken:
        def __getattr__(self, name):
            raise ImportError("no such driver")

    monkeypatch.setitem(sys.modules, "balanced_grad.kernels._triton", Broken())
    device = torch.device("meta")  # a key that nobody else asks for
    works: Any = dispatch.triton_works
    works.cache_clear()
    with pytest.warns(RuntimeWarning, match=r"Triton does not work on meta .*no such driver"):
        assert not dispatch.triton_works(device)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert not dispatch.triton_works(device)
    works.cache_clear()


def test_importing_the_package_imports_no_triton():
    check = "import sys, balanced_grad.kernels; assert 'triton' not in sys.modules"
    subprocess.run([sys.executable, "-c", check], check=True)


def test_rows_that_are_sharded_are_given_by_their_part():
    class DTensor(torch.Tensor):
        pass

    rows = torch.ones(2, 3).as_subclass(DTensor)
    with pytest.raises(TypeError, match=r"rows are a DTensor; give the columns of this process, rows.to_local\(\)"):
        gramian(rows)
