"""Items that belong together: people are counted, not their recordings, in one split and over folds."""

import json

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from balanced_grad.demo._data import DemoError
from bench.accuracy._board import Board
from bench.accuracy._data import load
from bench.accuracy._evaluate import pack
from bench.accuracy._judging import cautions, design_effect, judging_error
from bench.accuracy._leaderboard import leaderboard
from bench.accuracy._report import report
from bench.accuracy._statistics import read, wrong
from tests.bench_accuracy.conftest import complete, study

ITEMS = {"train": 300, "val": 100, "test": 200}


def run(method, correct, seed=0, fold=0, **changes):
    """A run with these test items right, and half of its validation items."""
    correct = torch.as_tensor(correct)
    half = {"accuracy": 50.0}
    rule = {"test": {"accuracy": 100 * correct.double().mean().item()}, "val": half, "correct": pack(correct)}
    line = {
        "kind": "run", "method": method, "dataset": "toy", "optimizer": "sgd", "epochs": 10, "trials": 4, "seed": seed,
        "fold": fold, "items": ITEMS, "modalities": ["a", "b"], "checkpoint": {"*": 3},
        "rules": {"fused": rule, "fitted": rule}, "ms": {"step": 3.0, "joint_step": 2.0},
        "versions": {"balanced-grad": "0.1.0"}, "date": "2026-01-01",
    }  # fmt: skip
    return line | changes


def people(test, fold=0, val=None):
    """Who the test items are of; of the validation part there are four people if nothing is said."""
    val = np.arange(100) % 4 if val is None else np.asarray(val)
    line = {"kind": "groups", "dataset": "toy", "fold": fold, "groups": "people"}
    return line | {"val": val.tolist(), "test": np.asarray(test).tolist()}


@pytest.fixture
def written(tmp_path):
    """A function that writes lines and reads them back as the one group they make."""

    def write(*lines):
        text = "".join(json.dumps(each) + "\n" for each in lines)
        (tmp_path / "accuracy-toy.jsonl").write_text(text)
        (group,) = read(tmp_path)
        return group

    return write


def outcome(group):
    return Board.of([group], True, ["joint", "uniform"]).fields[0].outcome("uniform", "joint", "fused")


def test_what_one_of_ten_people_gains_is_a_win_over_items_and_none_over_people(written):
    person = np.repeat(np.arange(10), 20)
    right = np.arange(200) % 2 == 0
    runs = [run(m, right | ((person == 3) & (m == "uniform")), seed) for m in ("joint", "uniform") for seed in (0, 1)]
    over_items, over_people = written(*runs), written(people(person), *runs)
    gaps = [group.difference("uniform", "fused", "joint", "fused") for group in (over_items, over_people)]
    assert gaps[0].value == pytest.approx(gaps[1].value) == pytest.approx(-0.05)
    assert gaps[1].high - gaps[1].low > 2 * (gaps[0].high - gaps[0].low)
    assert [outcome(group) for group in (over_items, over_people)] == [1, 0]


def test_what_everybody_gains_is_a_win_over_people_too(written):
    right = np.arange(200) % 2 == 0
    more = right | (np.arange(200) % 20 == 1)
    runs = [run(m, more if m == "uniform" else right, seed) for m in ("joint", "uniform") for seed in (0, 1)]
    assert outcome(written(people(np.repeat(np.arange(10), 20)), *runs)) == 1


def test_two_people_decide_nothing_unless_they_agree_to_a_hair(written):
    person = np.repeat((0, 1), 100)
    right = np.arange(200) % 2 == 0
    more = right | ((person == 0) & (np.arange(200) % 5 == 0)) | ((person == 1) & (np.arange(200) % 4 == 1))
    runs = [run(m, more if m == "uniform" else right, seed) for m in ("joint", "uniform") for seed in (0, 1)]
    assert [outcome(written(*lines)) for lines in (runs, [people(person), *runs])] == [1, 0]


def test_over_folds_the_difference_is_that_of_all_their_items_and_seeds_keep_their_own(written):
    generator = np.random.default_rng(0)
    folds = [people(np.repeat((2 * fold, 2 * fold + 1), 100), fold) for fold in range(3)]
    runs = [
        run(method, generator.random(200) < share, seed, seed % 3)
        for method, share in (("joint", 0.5), ("uniform", 0.7))
        for seed in range(4)
    ]
    group = written(*folds, *runs)
    gap = group.difference("uniform", "fused", "joint", "fused")
    errors = {
        method: [np.mean([wrong(lines[seed], "fused").mean() for seed in fold]) for fold in ((0, 3), (1,), (2,))]
        for method, lines in group.runs.items()
    }
    assert gap.value == pytest.approx(np.mean(errors["uniform"]) - np.mean(errors["joint"]))
    shares = [[wrong(lines[seed], "fused").mean() for seed in range(4)] for lines in group.runs.values()]
    assert gap.seeds == pytest.approx(np.subtract(*reversed(shares)))
    assert (group.count("test"), group.count("val"), group.kind) == (6, 4, "people")
    assert gap.low < gap.value < gap.high < 0


@given(st.integers(0, 99), st.integers(2, 20), st.integers(1, 30))
def test_the_design_effect_counts_what_is_alike(seed, count, size):
    """People who are all right or all wrong count as one item each; items on their own as themselves."""
    generator = np.random.default_rng(seed)
    members = np.repeat(generator.permutation(count), size)
    errors = generator.random(count)
    extra = count / (count - 1)
    assert design_effect(np.repeat(errors, size), members) == pytest.approx(size * extra)
    assert design_effect(errors, np.arange(count)) == pytest.approx(extra)
    assert design_effect(np.ones(count * size), members) == 1.0
    order = generator.permutation(count * size)
    mixed = generator.random(count * size)
    assert design_effect(mixed[order], members[order]) == pytest.approx(design_effect(mixed, members))
    assert design_effect(mixed, members) >= 1.0


def test_errors_of_judging_count_people(written):
    """Half of 100 validation items are right: five points over items, more where those of one person are alike."""
    person = np.repeat(np.arange(20), 10)
    alike, spread = person % 2 == 0, np.arange(200) % 2 == 0
    assert judging_error(written(run("joint", alike))) == pytest.approx(5.0)
    assert judging_error(written(people(person), run("joint", spread))) == pytest.approx(5.0)
    assert judging_error(written(people(person), run("joint", alike))) == pytest.approx(5.0 * (10 * 20 / 19) ** 0.5)
    few = people(np.repeat((0, 1), 100))
    assert judging_error(written(few, run("joint", spread))) == pytest.approx(25.0)  # four people, half of them right


def test_many_items_of_few_people_are_too_few_to_judge(written, tmp_path):
    items = ITEMS | {"val": 10_000}
    lines = [run("joint", np.arange(200) % 2 == 0, seed, items=items) for seed in (0, 1)]
    assert cautions(written(*lines)) == []
    few, _, over, _ = cautions(written(people(np.repeat((0, 1), 100), val=np.arange(10_000) % 2), *lines))
    assert few.startswith("Its validation part of 2 people is too small")
    assert over == "Its intervals are over people and not over items; there are 2 to test."
    leaderboard(tmp_path, tmp_path / "leaderboard.md")
    assert "| 4 x 1 | 35.4, 2 people (too small to judge) |" in (tmp_path / "leaderboard.md").read_text()


def test_a_study_over_folds(tmp_path):
    """Each seed tests other people, settings are the defaults, and who the items are of is noted once."""
    own = study(tmp_path, "watch:folds", epochs=1, trials=8)
    assert own.protocol.trials == 1
    assert complete(own, ["joint", "uniform"], seeds=3) == 6
    assert complete(study(tmp_path, "watch:folds", epochs=1), ["joint", "uniform"], seeds=3) == 0
    (path,) = tmp_path.glob("accuracy-*.jsonl")
    lines = [json.loads(text) for text in path.read_text().splitlines()]
    noted = [line for line in lines if line["kind"] == "groups"]
    assert [line["fold"] for line in noted] == list(range(5))
    for line in lines[5:]:
        data = load("watch:folds", line["fold"])
        assert line["fold"] == line["seed"]
        assert line["items"] == {split: len(getattr(data, split)) for split in ITEMS}
        assert noted[line["fold"]]["test"] == data.groups.codes["test"].tolist()
    (group,) = read(tmp_path)
    assert (group.count("test"), group.count("val")) == (6, 2)
    assert len(group.difference("uniform", "fused", "joint", "fused").seeds) == 3
    report(tmp_path, tmp_path / "page.md")
    text = (tmp_path / "page-details.md").read_text()
    assert "Its intervals are over people and not over items; there are 6 to test." in text


def test_a_set_without_folds_is_the_same_for_every_seed_and_notes_its_people(tmp_path):
    own = study(tmp_path, "watch", epochs=1)
    assert own.data_of(3) is own.data
    assert own.data.groups.kind == "people"
    own.note_groups()
    own.note_groups()
    assert [line["kind"] for line in own.ledger.lines] == ["groups"]
    digits = study(tmp_path / "other", epochs=1)
    digits.note_groups()
    assert digits.ledger.lines == []


def test_an_unknown_set_is_told_of_the_folds(monkeypatch):
    monkeypatch.delenv("BALANCED_GRAD_DATA", raising=False)
    with pytest.raises(DemoError, match="watch:folds"):
        load("wotch")
