"""The page made of the lines."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from balanced_grad.demo._data import DemoError
from bench.accuracy import _tables as tables
from bench.accuracy.__main__ import main
from bench.accuracy._methods import BY_NAME
from bench.accuracy._report import END, OVERVIEW, START, report
from bench.accuracy._statistics import points, read
from tests.bench_accuracy.conftest import complete, study

ROOT = Path(__file__).resolve().parents[2]


def test_page_has_every_method_in_every_table(results, tmp_path):
    page = tmp_path / "results.md"
    report(results, page)
    text, details = page.read_text(), (tmp_path / "results-details.md").read_text()
    for found, sections in ((text, len(OVERVIEW)), (details, len(tables.SECTIONS))):
        parts = found.split("\n### ")[1:]
        assert len(parts) == sections
        assert [name for name in BY_NAME for part in parts if f"\n| {name} |" not in part] == []
    (image,) = (tmp_path / "images").iterdir()
    assert f"](images/{image.name})" in details
    assert "--dataset digits-hard --optimizer sgd \\\n    --seeds 1 --trials 1 --epochs 2\n" in text


@pytest.fixture
def few(results, tmp_path):
    """Folder with three of the lines."""
    (source,) = results.glob("*.jsonl")
    (tmp_path / "few").mkdir()
    lines = source.read_text().splitlines(keepends=True)
    (tmp_path / "few" / source.name).write_text("".join(lines[:3]))
    return tmp_path / "few"


def test_text_around_the_marks_is_kept(few, tmp_path):
    page = tmp_path / "results.md"
    page.write_text(f"Start with uniform.\n\n{START}old\n{END}\nAsk again later.\n")
    report(few, page)
    first = page.read_text()
    assert first.startswith("Start with uniform.\n")
    assert first.endswith(f"{END}\nAsk again later.\n")
    assert "\nold\n" not in first
    report(few, page)
    assert page.read_text() == first


def test_a_page_without_marks_is_left_alone(few, tmp_path):
    page = tmp_path / "results.md"
    page.write_text("mine")
    with pytest.raises(DemoError, match="no part between"):
        report(few, page)
    assert page.read_text() == "mine"


def test_nothing_to_report(tmp_path):
    with pytest.raises(DemoError, match="no runs"):
        report(tmp_path, tmp_path / "results.md")


def test_differences_are_those_of_the_mean_accuracies(tmp_path):
    complete(study(tmp_path), ["joint", "uni-modal"], seeds=2)
    (group,) = read(tmp_path)
    gap = group.difference("uni-modal", "fitted", "joint", "fused")
    accuracy = {
        (name, rule): [run["rules"][rule]["test"]["accuracy"] for run in group.runs[name].values()]
        for name, rule in (("uni-modal", "fitted"), ("joint", "fused"))
    }
    by_seed = [a - b for a, b in zip(accuracy["uni-modal", "fitted"], accuracy["joint", "fused"], strict=True)]
    assert [-100 * seed for seed in gap.seeds] == pytest.approx(by_seed, abs=1e-2)
    assert points(gap).strip("*").startswith(f"{sum(by_seed) / 2:+.1f} [")
    assert group.difference("joint", "fused", "joint", "fused") is None
    assert group.difference("MIMO", "fused", "joint", "fused") is None


def test_runs_that_diverged_are_counted_not_averaged(results, tmp_path):
    (source,) = results.glob("*.jsonl")
    kept, other = (json.loads(line) for line in source.read_text().splitlines()[1:3])
    failed = {key: other[key] for key in other if key not in ("rules", "ms", "probe")} | {"failed": "no finite loss"}
    (tmp_path / source.name).write_text(json.dumps(kept) + "\n" + json.dumps(failed) + "\n")
    report(tmp_path, tmp_path / "page.md")
    text = (tmp_path / "page-details.md").read_text()
    assert f"diverged and are in no table: {other['method']}: 1." in text
    assert f"\n| {other['method']} |" not in text


def test_command_line(tmp_path, monkeypatch, capsys):
    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["accuracy", "--results", str(tmp_path), *arguments])
        main()
        return capsys.readouterr().out

    short = ("--dataset", "digits", "--methods", "JOINT", "mimo", "--seeds", "1", "--trials", "2", "--epochs", "1")
    assert "6 trainings done" in run(*short)
    assert "0 trainings done" in run(*short)
    page = tmp_path / "page.md"
    run("report", "--page", str(page))
    assert "\n| MIMO |" in page.read_text()


def test_unknown_method_ends_with_a_message():
    command = [sys.executable, "-m", "bench.accuracy", "--methods", "mino"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "unknown methods ['mino']; known: uni-modal, joint" in done.stderr
