"""The leaderboard, from lines made by hand: who wins, what is missing, what may be compared."""

import json

import pytest
import torch

from balanced_grad.demo._data import DemoError
from bench.accuracy._board import Board
from bench.accuracy._evaluate import pack
from bench.accuracy._judging import cautions, judging_error
from bench.accuracy._leaderboard import MISSING, by_set, leaderboard
from bench.accuracy._statistics import read

ITEMS = 200
METHODS = ["joint", "uniform", "MIMO", "mine:Own"]


def line(method, right, seed=0, **changes):
    """A run that has the first ``right`` of 200 test items right, under every rule."""
    correct = torch.arange(ITEMS) < right
    accuracy = 100 * right / ITEMS
    rule = {"test": {"accuracy": accuracy}, "val": {"accuracy": accuracy}, "correct": pack(correct)}
    own = {
        "kind": "run", "method": method, "dataset": "toy", "optimizer": "sgd", "epochs": 10, "trials": 4, "seed": seed,
        "items": {"train": 500, "val": 100, "test": ITEMS}, "modalities": ["a", "b"], "checkpoint": {"*": 3},
        "rules": {"fused": rule, "fitted": rule}, "ms": {"step": 3.0, "joint_step": 2.0},
        "versions": {"balanced-grad": "0.1.0"}, "date": "2026-01-01",
    }  # fmt: skip
    return own | changes


def runs(method, rights, **changes):
    return [line(method, right, seed, **changes) for seed, right in enumerate(rights)]


@pytest.fixture
def written(tmp_path):
    """A function that writes lines and reads them back as groups."""

    def write(*groups, name="toy"):
        text = "".join(json.dumps(each) + "\n" for group in groups for each in group)
        (tmp_path / f"accuracy-{name}.jsonl").write_text(text)
        return read(tmp_path)

    return write


def board(groups, tuned=True, methods=METHODS):
    return Board.of(groups, tuned, list(methods))


def test_a_win_a_tie_and_a_loss(written):
    groups = written(
        runs("joint", (100, 101, 102)), runs("uniform", (150, 151, 152)), runs("MIMO", (150, 151, 152)),
        runs("mine:Own", (170, 172, 171)),
    )  # fmt: skip
    found = {name: board(groups).record(name, "uniform", "fused") for name in METHODS}
    assert found == {"joint": (0, 0, 1), "uniform": None, "MIMO": (0, 1, 0), "mine:Own": (1, 0, 0)}
    assert board(groups).record("joint", "mine:Own", "fused") == (0, 0, 1)


def test_a_difference_below_half_a_point_is_a_tie_whatever_its_interval(tmp_path):
    """Of 20,000 items 0.4 points are certain, and still no win; 0.6 are one."""

    def outcome(more):
        counts = {"joint": 10_000, "uniform": 10_000 + more}
        text = ""
        for method, right in counts.items():
            for seed in range(2):
                own = line(method, 0, seed, items={"train": 1, "val": 1, "test": 20_000})
                own["rules"]["fused"]["correct"] = pack(torch.arange(20_000) < right)
                text += json.dumps(own) + "\n"
        (tmp_path / "accuracy-toy.jsonl").write_text(text)
        (group,) = read(tmp_path)
        assert group.difference("uniform", "fused", "joint", "fused").verdict == "helps"
        return board([group]).fields[0].outcome("uniform", "joint", "fused")

    assert outcome(80) == 0
    assert outcome(120) == 1


def test_one_seed_in_common_is_not_compared(written):
    (group,) = written(runs("joint", (100,)), runs("uniform", (150, 150)))
    assert board([group]).record("joint", "uniform", "fused") is None


def test_another_budget_is_not_paired(written):
    """Lines that do not say how many seeds they were tuned on were tuned on one."""
    two = {"tuning_seeds": 2}
    groups = written(runs("uniform", (150, 151)), runs("joint", (100, 101)), runs("mine:Own", (190, 191), **two))
    own = board(groups)
    assert own.record("mine:Own", "uniform", "fused") is None
    assert own.mean_rank("mine:Own", "fused") == (1.0, 1)
    own = board(written(runs("uniform", (150, 151)), *(runs(m, (150, 151), **two) for m in ("uniform", "mine:Own"))))
    assert own.record("mine:Own", "uniform", "fused") == (0, 1, 0)


def test_default_and_tuned_are_apart(written):
    groups = written(runs("uniform", (150, 151)), runs("joint", (100, 101)), runs("joint", (180, 181), trials=1))
    default, tuned = board(groups, tuned=False), board(groups)
    assert [field.accuracy("joint", "fused") for (field,) in (default.fields, tuned.fields)] == [90.25, 50.25]
    assert default.record("joint", "uniform", "fused") is None


def test_ranks_share_ties_and_are_stretched_over_what_is_missing(written):
    groups = written(runs("joint", (100,)), runs("uniform", (150,)), runs("MIMO", (150,)))
    (field,) = board(groups).fields
    assert field.ranks(METHODS, "fused") == {"uniform": 1.75, "MIMO": 1.75, "joint": 4.0}
    assert field.ranks(METHODS[:3], "fused") == {"uniform": 1.5, "MIMO": 1.5, "joint": 3.0}


def test_mean_rank_is_over_the_sets_that_have_lines(written):
    groups = written(
        runs("joint", (100,)), runs("uniform", (150,)),
        runs("joint", (150,), dataset="other"), runs("uniform", (100,), dataset="other"),
        runs("MIMO", (120,), dataset="other"),
    )  # fmt: skip
    own = board(groups, methods=METHODS[:3])
    assert own.mean_rank("joint", "fused") == (2.0, 2)
    assert own.mean_rank("MIMO", "fused") == (2.0, 1)
    assert own.mean_rank("mine:Own", "fused") is None


def test_runs_that_end_at_their_best_are_marked(written):
    groups = written(runs("joint", (100, 100), checkpoint={"*": 9}), runs("uniform", (100, 100)))
    (field,) = board(groups).fields
    assert field.improving("joint")
    assert not field.improving("uniform")


def test_error_of_judging(written):
    (group,) = written(runs("joint", (100,)))  # half of 100 validation items right
    assert judging_error(group) == pytest.approx(5.0)
    (group,) = written(runs("joint", (100,), items={"train": 1, "val": 10_000, "test": ITEMS}))
    assert judging_error(group) == pytest.approx(0.5)


def test_the_report_says_what_keeps_it_from_deciding(written):
    (group,) = written(runs("joint", (100, 100)), runs("uniform", (100, 100), checkpoint={"*": 9}))
    few, _, late, _ = cautions(group)
    assert "standard error of 5.0 points" in few
    assert late.endswith("in most of their runs: uniform.")
    large = {"train": 1, "val": 10_000, "test": ITEMS}
    (group,) = written(runs("joint", (100, 100), items=large))
    assert cautions(group) == []


def rows(text, name):
    """Cells of every row of a method."""
    lines = [each for each in text.splitlines() if each.startswith(f"| {name} |")]
    return [[cell.strip() for cell in each.strip("|").split("|")[1:]] for each in lines]


def test_page(written, tmp_path):
    new = {"commit": "abc", "machine": {"processor": "Z80"}}
    written(
        runs("joint", (100, 101)), runs("uniform", (150, 151)),
        runs("mine:Own", (190, 191), checkpoint={"*": 9}, **new),
        runs("joint", (199, 199), dataset="mosi", trials=1),
    )  # fmt: skip
    page = tmp_path / "docs" / "leaderboard.md"
    leaderboard(tmp_path, page)
    text = page.read_text()
    ranks, record, *_, by_set = rows(text, "mine:Own")
    assert ranks == [MISSING, "1.0 (1)", "1.5"]
    assert record == [MISSING, "1 / 0 / 0", MISSING, "1 / 0 / 0"]
    assert by_set == ["95.2 + ↑"]
    for cells in rows(text, "MIMO"):
        assert set(cells) == {MISSING}
    (source,) = rows(text, "toy, SGD")
    assert source == [
        "4 x 1",
        "5.0 (too small to judge)",
        "0.1.0; 2026-01-01 to 2026-01-01",
        "abc, not noted",
        "Z80, not noted",
    ]
    assert "mosi, SGD" not in text
    assert max(map(len, (each.split("|")[1:-1] for each in text.splitlines()))) <= 6
    leaderboard(tmp_path, page)
    assert page.read_text() == text


@pytest.mark.parametrize("count", [5, 6, 13])
def test_sets_are_spread_evenly_over_tables_that_a_page_can_show(written, count):
    sets = [f"set{index:02}" for index in range(count)]
    groups = written(*(runs(method, (100, 101), dataset=name) for name in sets for method in ("joint", "uniform")))
    text = by_set({"tuned": board(groups)}, METHODS)
    heads = [each.strip("|").split("|")[1:] for each in text.splitlines() if each.startswith("| method |")]
    assert [cell.strip() for head in heads for cell in head] == [f"{name}, SGD" for name in sets]
    assert max(map(len, heads)) - min(map(len, heads)) <= 1
    assert max(map(len, heads)) <= 5
    assert len(rows(text, "MIMO")) == len(heads)  # what has no lines is said in each of them


def test_nothing_to_show(tmp_path):
    with pytest.raises(DemoError, match="no runs"):
        leaderboard(tmp_path, tmp_path / "leaderboard.md")
