"""`python -m bench.gpu` is ready for a GPU: rehearsed on the CPU, with and without what an image for GPUs lacks."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("triton", reason="pip install triton")

from bench.gpu import _case, _kernels, _no_sync, _parts, _tests, _worker

ROOT = Path(__file__).resolve().parent.parent
ABSENT = ("scipy", "cvxpy", "sklearn", "matplotlib", "hypothesis", "torchjd", "transformers", "lightning")
HIDE = f"""
from importlib.machinery import PathFinder
find = PathFinder.find_spec
PathFinder.find_spec = classmethod(
    lambda cls, name, *rest: None if name.split(".")[0] in {ABSENT} else find(name, *rest)
)
"""


@pytest.fixture
def bare(tmp_path):
    """Variables of a process that has torch, triton and pytest only."""
    (tmp_path / "sitecustomize.py").write_text(HIDE)
    return {**os.environ, "PYTHONPATH": str(tmp_path)}


def call(*arguments, **options):
    command = [sys.executable, *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, **options)


def test_the_library_is_imported_without_its_lazy_dependencies(bare):
    done = call("-c", "import balanced_grad, balanced_grad.kernels, balanced_grad.solvers", env=bare)
    assert done.returncode == 0, done.stderr
    assert call("-c", "import scipy", env=bare).returncode  # it is hidden indeed


def test_a_rehearsal_without_what_an_image_lacks(bare, tmp_path):
    done = call("-m", "bench.gpu", "--device", "cpu", "--out", str(tmp_path / "out"), env=bare)
    content = json.loads((tmp_path / "out" / "gpu.json").read_text())
    records = content["records"]
    assert not [record for record in records if record.get("errors")], done.stdout
    assert done.returncode == 0
    assert {record["part"] for record in records} == set(_parts.SHARES)
    absent = {record["row"]: record["left_out"] for record in records if "left_out" in record}
    assert "cvxpy" in absent["tests/methods/test_min_norm_bounds.py"]
    assert "CUDA" in absent["tests/kernels/test_implementations.py"]
    assert {row for row in absent if "torchjd" in row or "solved by" in row} == set(absent) - {
        str(path.relative_to(ROOT)) for path in _tests.files()
    }
    triton = [record for record in records if "triton" in record["row"] and record["part"] == "kernels"]
    assert {record["row"].split(":")[0] for record in triton} == set(_kernels.PASSES)
    assert all(record["error"] < 1e-5 for record in triton)
    table = (tmp_path / "out" / "gpu.md").read_text()
    assert all(f"{reason}" in table for reason in absent.values())
    assert content["versions"]["torch"] == torch.__version__


def test_a_failure_is_said_and_stops_nothing():
    def fail():
        raise ValueError("wrong")

    def absent():
        raise ModuleNotFoundError("No module named 'other'", name="other")

    def ours():
        raise ImportError("cannot import name", name="balanced_grad.kernels")

    clock = _case.Clock(60)
    assert "ValueError: wrong" in _worker.outcome(_case.Case("", fail), clock)["errors"][0]
    assert _worker.outcome(_case.Case("", absent), clock) == {"left_out": "No module named 'other'"}
    assert "errors" in _worker.outcome(_case.Case("", ours), clock)
    assert _worker.outcome(_case.Case("", fail), _case.Clock(0)) == {"left_out": "no time was left"}


@pytest.mark.parametrize(("status", "key"), [(None, "left_out"), (-11, "errors")])
def test_cases_that_a_part_did_not_come_to_are_named(status, key):
    lines = [{"cases": [["a", ""], ["b", "1"], ["b", "2"]]}, {"row": "a", "column": "", "ms": 1.0}]
    first, last = _parts.unreached(lines, status)
    assert (first["row"], first["column"], last["column"]) == ("b", "1", "2")
    assert key in first
    assert "left_out" in last
    assert _parts.unreached(lines, 0) == []


def test_a_part_that_takes_too_long_is_ended():
    endless = [sys.executable, "-c", "import threading; threading.Event().wait()"]
    assert _parts.call(endless, dict(os.environ), 0.5) is None


def test_no_time_is_said():
    assert _parts.run_part("kernels", "cpu", 0.0) == [{"row": "", "left_out": "no time was left"}]


def test_failing_and_missing_tests_are_told_apart(tmp_path):
    path = tmp_path / "test_some.py"
    path.write_text(
        "import pytest\npytestmark = pytest.mark.gpu\n"
        "def test_good(): pass\ndef test_bad(): assert 1 == 2\n@pytest.mark.skip(reason='why')\ndef test_not(): pass\n"
    )
    summary = _tests.run_file(path, _case.Clock(120))
    assert [summary[kind] for kind in ("passed", "failed", "skipped")] == [1, 1, 1]
    assert "test_bad" in summary["errors"][0]
    assert summary["left_out"] == "why"
    path.write_text("import pytest, no_such_package\npytestmark = pytest.mark.gpu\n")
    with pytest.raises(_case.LeftOut, match="no_such_package"):
        _tests.run_file(path, _case.Clock(120))


def test_reads_on_the_host_are_counted():
    def step(_, model, inputs, label):
        sum(model.losses(inputs, label).values()).item()

    assert _no_sync.watch(lambda model: None, step, "cpu")["reads"] == _no_sync.WATCHED


def test_without_a_gpu_it_says_what_to_write():
    if torch.cuda.is_available():
        pytest.skip("there is one")
    done = call("-m", "bench.gpu")
    assert done.returncode == 1
    assert "--device cpu" in done.stderr


def test_a_wrong_kernel_is_an_error(monkeypatch):
    streams, _, others = _kernels.PASSES["combine"]
    wrong = (streams, lambda rows, way: (rows.weights * (1.01 if rows.out.itemsize == 4 else 1.0)) @ rows.rows, others)
    monkeypatch.setitem(_kernels.PASSES, "combine", wrong)
    assert "differs" in _kernels.ours("combine", 2, 1000, "reference", "cpu")["errors"][0]
