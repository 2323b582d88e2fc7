"""The benchmarks run: a short round of each, so that they do not rot between releases. No number is judged."""

import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("torchjd", reason="the peer of the benchmarks; pip install 'balanced-grad[bench]'")

ROOT = Path(__file__).resolve().parent.parent


def run(*arguments):
    command = [sys.executable, "-m", *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_capture_prints_a_ratio_per_variant():
    out = run(
        "bench.capture", "--encoders", "mlp", "--modalities", "2", "--rounds", "1", "--batch", "4", "--threads", "1"
    )
    rows = [line for line in out.splitlines() if line.startswith("| mlp, M=2 |")]
    ratios = [float(cell) for row in rows for cell in row.strip("|").split("|")[1:]]
    assert ratios[0] == 1.0
    assert len(ratios) == 9
    assert all(ratio > 0 for ratio in ratios)


@pytest.mark.parametrize(
    "arguments",
    [
        ("bench.latent_quality", "synthetic", "--seeds", "1", "--items", "600", "--test", "200"),
        ("bench.evidence_synthetic", "--seeds", "1"),
        ("bench.diagnose_truth", "--networks", "1", "--tests", "1", "--items", "100", "--large", "200"),
        ("bench.diagnose_real", "--steps", "5", "--draws", "2"),
        ("bench.trunk", "--rounds", "1"),
        ("bench.trunk", "--rounds", "1", "--sizes"),
        ("bench.checkpointed", "--rounds", "1", "--models", "ViT", "BERT, dropout"),
        ("bench.shared_noise", "--seeds", "2", "--steps", "2", "--ratios", "10"),
        ("bench.shared_views", "--seeds", "2", "--epochs", "1", "--widths", "2"),
        ("bench.shared_views", "--seeds", "2", "--epochs", "1", "--widths", "2", "--separate", "--methods", "Uniform"),
    ],
    ids=lambda arguments: " ".join(arguments),
)
def test_studies_print_a_table(arguments):
    assert "| --- |" in run(*arguments)


def test_evidence_study(tmp_path):
    out = run(
        "bench.evidence_study", "--datasets", "digits-hard", "--seeds", "1", "--steps", "20",
        "--out", str(tmp_path / "runs.jsonl"), "--methods", "uni-modal", "Uniform", "BOGC sample, per source",
    )  # fmt: skip
    assert "| BOGC sample, per source |" in out
    assert len((tmp_path / "runs.jsonl").read_text().splitlines()) == 3


@pytest.mark.parametrize(
    ("file", "keyword"),
    [
        ("test_min_norm.py", "one_at_a_time and 4-"),
        ("test_gramian.py", "2-100000-"),
        ("test_kernels.py", "2-100000- and not compiled"),
        ("test_subroutine.py", "2-100000-"),
        ("test_overhead.py", "2-MIMO"),
    ],
)
def test_benchmark_files(file, keyword):
    out = run("pytest", f"bench/{file}", "-q", "--benchmark-disable", "-k", keyword)
    assert "passed" in out
