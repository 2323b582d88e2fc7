import contextlib
import importlib.util
import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from balanced_grad.__main__ import main

VIEWS = ["pixels", "fourier", "profiles"]
METHODS = ["uni-modal", "joint", "Uniform", "MIMO", "MinNorm", "BOGC"]
REAL = os.environ.get("BALANCED_GRAD_DATA")


@pytest.fixture(autouse=True)
def _no_folder(monkeypatch):
    monkeypatch.delenv("BALANCED_GRAD_DATA", raising=False)


@pytest.fixture(scope="module")
def outcome(tmp_path_factory):
    """What the smallest whole run prints and writes."""
    out, text = tmp_path_factory.mktemp("demo") / "new", io.StringIO()
    with contextlib.redirect_stdout(text):
        status = main(["demo", "--epochs", "1", "--seeds", "1", "--out", str(out)])
    return status, text.getvalue(), out


def refused(capsys, *argv):
    """The message of a command line that cannot be served."""
    with pytest.raises(SystemExit) as stop:
        main(["demo", *argv])
    assert stop.value.code == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    return captured.err.splitlines()[-1]


def test_table_has_every_method_and_view(outcome):
    status, text, _ = outcome
    assert status == 0
    accuracy, probes, gaps, times = text.split("\n\n")[1:5]
    for block, names in ((accuracy, METHODS), (probes, METHODS), (gaps, METHODS[1:]), (times, METHODS[1:])):
        assert [line.split()[0] for line in block.splitlines()[2:]] == names
    assert accuracy.splitlines()[1].split() == ["fused", *VIEWS]
    assert gaps.splitlines()[1].split() == VIEWS
    assert all(0 <= float(cell) <= 100 for line in accuracy.splitlines()[2:] for cell in line.split()[1:])
    assert times.splitlines()[1].split() == ["step", "subroutine"]


def test_json_holds_what_the_table_shows(outcome):
    _, text, out = outcome
    numbers = json.loads((out / "demo-digits.json").read_text())
    assert numbers["settings"].items() >= {"seeds": 1, "epochs": 1, "device": "cpu", "lr": 0.01, "batch": 64}.items()
    assert list(numbers["balancers"]) == METHODS[2:]
    assert numbers["dataset"]["items"] == {"train": 1078, "val": 360, "test": 359}
    assert {"torch", "numpy", "scikit-learn", "balanced-grad", "python"} <= set(numbers["versions"])
    assert list(numbers["methods"]) == METHODS
    joint_row = next(line.split() for line in text.splitlines() if line.split()[:1] == ["joint"])
    joint = numbers["methods"]["joint"]
    assert joint_row[1:] == [f"{joint['test'][name]['mean']:.1f}" for name in ("fused", *VIEWS)]
    for name, method in numbers["methods"].items():
        (run,) = method["runs"]
        assert list(run["val"]) == ["joint", *VIEWS]
        assert bool(run["weights"]) == (name in METHODS[2:])
        assert (method["milliseconds"] is None) == (name == "uni-modal")


def test_picture_is_written(outcome):
    picture = (outcome[2] / "demo-digits.png").read_bytes()
    assert picture[:8] == b"\x89PNG\r\n\x1a\n"
    assert int.from_bytes(picture[16:20], "big") == 1800  # 9 inches at 200 dots


def test_balancers_are_chosen_by_name(capsys, monkeypatch):
    monkeypatch.setattr("balanced_grad.demo._timing.MEASURED", 3)
    main(["demo", "--epochs", "1", "--seeds", "1", "--balancer", "min-norm,UNIFORM", "--balancer", "uniform"])
    accuracy = capsys.readouterr().out.split("\n\n")[1]
    assert [line.split()[0] for line in accuracy.splitlines()[2:]] == [
        "uni-modal",
        "joint",
        "Uniform",
        "MinNorm",
    ]


@pytest.mark.parametrize(
    ("argv", "parts"),
    [
        (["--dataset", "digit"], ["'digit'", "built in: digits, digits-hard", "--data"]),
        (["--dataset", "mfeat"], ["'mfeat'", "--data"]),
        (["--data", "/no/such/place", "--dataset", "mfeat"], ["/no/such/place is not a folder"]),
        (["--balancer", "uniform,mgda"], ["'mgda'", "possible: Uniform, MIMO, MinNorm, BOGC"]),
        (["--device", "tpu"], ["'tpu'", "possible here: cpu"]),
        (["--device", "cuda:99"], ["'cuda:99'", "possible here: cpu"]),
        (["--seeds", "0"], ["--seeds", "at least 1"]),
        (["--epochs", "two"], ["--epochs", "'two'", "whole number"]),
        (["--sed", "3"], ["unrecognized arguments: --sed"]),
    ],
)
def test_wrong_arguments_say_what_is_possible(capsys, argv, parts):
    message = refused(capsys, *argv)
    for part in parts:
        assert part in message


def test_folder_without_the_set_says_what_is_there(capsys, tmp_path, monkeypatch):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "mine.npz").touch()
    assert f"in {tmp_path}: mine" in refused(capsys, "--data", str(tmp_path), "--dataset", "yours")
    assert "needs a --dataset from it; there: mine" in refused(capsys, "--data", str(tmp_path))
    monkeypatch.setenv("BALANCED_GRAD_DATA", str(tmp_path))
    assert f"in {tmp_path}: mine" in refused(capsys, "--dataset", "yours")


def test_output_that_cannot_be_written_is_refused_before_training(capsys, tmp_path):
    (tmp_path / "file").touch()
    assert f"cannot write to --out {tmp_path / 'file'}" in refused(capsys, "--out", str(tmp_path / "file"))


def test_missing_extras_give_the_pip_line(capsys, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "sklearn" else find(name))
    assert "needs scikit-learn: pip install 'balanced-grad[demo]'" in refused(capsys)


def test_a_command_is_needed(capsys):
    with pytest.raises(SystemExit) as stop:
        main([])
    assert stop.value.code == 2
    assert "COMMAND" in capsys.readouterr().err


def test_heavy_packages_are_loaded_by_a_run_only():
    code = (
        "import sys, balanced_grad.__main__, balanced_grad.demo._cli;"
        "print(sorted({'sklearn', 'matplotlib', 'cvxpy'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.skipif(REAL is None, reason="BALANCED_GRAD_DATA names no folder with real data sets")
def test_real_data_runs_the_same(capsys, monkeypatch, tmp_path):
    monkeypatch.setattr("balanced_grad.demo._timing.MEASURED", 3)
    argv = [
        "--data",
        str(Path(REAL)),
        "--dataset",
        "mfeat",
        "--epochs",
        "1",
        "--seeds",
        "2",
        "--balancer",
        "MIMO",
    ]
    assert main(["demo", *argv, "--out", str(tmp_path)]) == 0
    accuracy = capsys.readouterr().out.split("\n\n")[1]
    assert accuracy.splitlines()[1].split() == ["fused", "fou", "fac", "kar", "pix", "zer", "mor"]
    assert " ± " in accuracy
    assert (tmp_path / "demo-mfeat.png").exists()
