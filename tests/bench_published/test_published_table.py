"""The study runs: every row on a tiny model, two rounds. No time is judged."""

import json
import sys

import pytest
import torch

from bench.published import __main__ as cli
from bench.published._memory import peak_bytes
from bench.published._models import Case
from bench.published._rows import ROWS
from bench.published._table import table
from bench.published._timing import measure

TINY = Case("tiny", {"image": (1, 8, 8), "audio": (5,)})
POSITIVE = ("subroutine_ms", "step_ms", "x_joint", "x_joint_paired", "x_mimo", "x_mimo_paired", "step_x_joint")


@pytest.fixture(scope="module")
def results():
    """As the command writes them."""
    return {"machine": "", "threads": 1, "batch": 64, "models": [measure(TINY, ROWS, rounds=2)]}


@pytest.fixture
def rows(results):
    return {row["method"]: row for row in results["models"][0]["rows"]}


def test_every_method_is_measured(rows):
    assert list(rows) == [row.name for row in ROWS]
    assert all(row[key] > 0 for row in rows.values() for key in POSITIVE)


def test_a_subroutine_is_a_part_of_its_step(rows):
    assert all(row["subroutine_ms"] < row["step_ms"] for row in rows.values())


def test_ratios_are_to_joint_and_to_mimo(rows):
    joint, mimo = rows["joint"], rows["MIMO"]
    assert (joint["x_joint"], joint["step_x_joint"], joint["extra_ms"], joint["extra_mib"]) == (1, 1, 0, 0)
    assert mimo["x_mimo"] == mimo["x_mimo_paired"] == 1
    for row in rows.values():
        assert row["x_mimo"] == pytest.approx(row["subroutine_ms"] / mimo["subroutine_ms"])
        assert row["x_joint"] == pytest.approx(row["subroutine_ms"] / joint["subroutine_ms"])


def test_memory_grows_with_the_gradients_that_are_kept(rows):
    own = {name: row["extra_mib"] for name, row in rows.items()}
    assert own["MinNorm, parameters"] > own["MIMO"]
    assert own["MinNorm, parameters"] > 0
    assert own["torchjd MGDA"] > own["MIMO"]
    assert own["MGDA loop, Frank-Wolfe"] > own["MIMO"]


def test_a_loop_over_convolutions_is_left_out_where_there_are_none():
    case = Case("dense", {"audio": (5,), "text": (4,)})
    assert [row.name for row in ROWS if not row.suits(case)] == ["OGM-GE loop"]


def test_table(results):
    shown = table(results)
    headline, *tables = shown.split("\n\n")
    assert headline.splitlines()[0] == "| subroutine time / MIMO's | tiny |"
    assert "| MIMO | 1.00 |" in headline.splitlines()
    assert "| MMPareto loop (re-implemented) |" in shown
    assert "| torchjd MGDA (released) |" in shown
    assert "-0.00 |" not in shown
    titles = [table.splitlines()[0] for table in tables if table.startswith("|")]
    assert titles == [
        "| method | subroutine ms | x joint | x MIMO | step x joint |",
        "| method | extra ms | extra x MIMO | extra MiB |",
    ]
    assert len(tables[-1].splitlines()) == len(headline.splitlines()) == 2 + len(ROWS)


def test_table_says_where_there_is_no_number():
    row = {"method": "MIMO", "kind": "ours", "extra_x_mimo": None} | dict.fromkeys(
        ("subroutine_ms", "x_joint", "x_mimo", "extra_ms", "step_x_joint", "extra_mib"), 1.0
    )
    other = row | {"method": "OGM-GE loop", "kind": "loop"}
    models = [
        {"model": "a", "modalities": 2, "parameters": 10, "rows": [row, other]},
        {"model": "b", "modalities": 2, "parameters": 10, "rows": [row]},
    ]
    shown = table({"batch": 64, "models": models})
    assert "| OGM-GE loop (re-implemented) | 1.00 | - |" in shown
    assert "| MIMO | 1.00 | 1.00 | 1.00 | 1.00 |" in shown
    assert "| MIMO | 1.00 | - | 1.00 |" in shown


def test_peak_is_what_is_held_at_once():
    one = torch.ones(2**18).nbytes

    def in_turn():
        for _ in range(3):
            torch.ones(2**18)

    def together():
        return [torch.ones(2**18) for _ in range(3)]

    assert peak_bytes(in_turn) == one
    assert peak_bytes(together) == 3 * one
    assert peak_bytes(lambda: None) == 0


def test_command(monkeypatch, capsys, tmp_path):
    out = tmp_path / "new" / "published.json"
    arguments = ["--dataset", "mfeat", "--rounds", "2", "--results", str(out)]
    monkeypatch.setattr(sys, "argv", ["published", *arguments])
    cli.main()
    results = json.loads(out.read_text(encoding="utf-8"))
    assert capsys.readouterr().out.endswith(table(results) + "\n")
    assert [model["rounds"] for model in results["models"]] == [2]
    assert results["models"][0]["modalities"] == 6


def test_large_has_the_number_of_modalities_asked_for():
    case = cli.cases(3)["large"]
    model = case.network(case.shapes, 10)
    assert len(model.encoders) == 3
    assert sum(p.numel() for p in model.parameters()) > 1e6


def test_one_modality_is_refused(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["published", "--modalities", "1"])
    with pytest.raises(SystemExit):
        cli.main()
    assert "nothing to balance" in capsys.readouterr().err
