"""The simulated rates behave as they must, and the cost adds up."""

import sys

import numpy as np
import pytest
import torch

import balanced_grad as bg
from bench.guard import __main__ as command
from bench.guard import _tables as tables
from bench.guard._cost import CASES, PERIODS, measure, summary
from bench.guard._null import GAINS, null
from bench.guard._simulate import CHECKS, CONFIDENCES, CURVES, Estimates, shifts, sizes

SIZES = (16, 256)


@pytest.fixture(scope="module")
def results():
    return list(sizes(200, SIZES))


def read(results, **keys):
    """The one result with these entries."""
    (found,) = [found for found in results if all(found[key] == value for key, value in keys.items())]
    return found


def test_estimates_are_the_library_s_one_by_one():
    rng = np.random.default_rng(0)
    together, alone = Estimates(3), [bg.HeldOut(bg.Uniform()).transfer for _ in range(3)]
    for i in range(20):
        train, held_out = (rng.uniform(1, 1.2, 3) - slope * i for slope in (0.03, 0.02))
        together.observe(train, held_out)
        for own, t, h in zip(alone, train, held_out, strict=True):
            own.observe({"a": torch.tensor(t)}, {"a": torch.tensor(h)})
    assert together.factors().tolist() == pytest.approx([own.ratios()["a"].item() for own in alone], rel=1e-6)
    assert together.factors().max() < 1
    assert (together.factors(0.0) < together.factors(2.0)).all()


def test_more_items_make_fewer_mistakes(results):
    assert len(results) == len(SIZES) * len(CURVES) * len(CONFIDENCES) * len(CHECKS)
    for curve in CURVES:
        small, large = (read(results, items=n, curve=curve, confidence=1.0, check=100) for n in SIZES)
        wrong = [1 - x["below"] if CURVES[curve].transfer <= 0 else x["below"] for x in (small, large)]
        assert wrong[1] <= wrong[0]
        assert large["deviation"] <= small["deviation"]  # both zero where all are certain


def test_with_enough_items_the_estimate_is_the_truth(results):
    for name, curve in CURVES.items():
        found = read(results, items=256, curve=name, confidence=0.0, check=100)
        assert found["mean"] == pytest.approx(max(curve.transfer, 0), abs=0.05)


def test_confidence_speaks_for_the_loss(results):
    for curve in CURVES:
        for check in CHECKS:
            means = [read(results, items=16, curve=curve, confidence=z, check=check)["mean"] for z in CONFIDENCES]
            assert means == sorted(means)


def test_only_a_split_by_groups_sees_the_shift():
    found = list(shifts(100))
    assert all(x["mean"] == pytest.approx(0.8, abs=0.05) for x in found if not x["groups"])
    by_groups = {x["true"]: x["mean"] for x in found if x["groups"] == 64}
    assert list(by_groups.values()) == pytest.approx(list(by_groups), abs=0.1)
    few, many = (read([x for x in found if x["shift"] == 0.4], groups=groups)["deviation"] for groups in (4, 64))
    assert many < few


def test_cost_is_positive_and_adds_up():
    ticks = []
    found = measure(CASES["wiki"], 2, lambda: ticks.append(1))
    assert [x["every"] for x in found] == list(PERIODS)
    assert len(ticks) > 2
    for x in found:
        assert min(x["step"], x["forward"], x["observe"]) > 0
        added = x["calls"] + (x["forward"] + x["observe"]) / x["every"]
        assert x["cost"] == pytest.approx(1 + added / x["step"])


def test_cost_of_rounds_is_that_of_their_medians():
    rounds = [{"step": s, "calls": 0.1, "updates": 0.2, "forward": 1.0, "observe": 0.5} for s in (1.0, 2.0, 90.0)]
    assert summary(5, rounds) == pytest.approx(
        {"step": 2000, "calls": 100, "updates": 200, "forward": 1000, "observe": 500, "cost": 1.2, "cost_encoders": 1.3}
    )


def test_tables(results):
    by_size = tables.errors(results, 100)
    assert len(by_size.splitlines()) == 2 + len(CURVES) * len(CONFIDENCES)
    assert tables.errors([{**results[0], "check": 100, "mean": 0.9, "below": 0.05}], 100).endswith("| 0.90 (5 %) |")
    bad = {**results[0], "curve": "memorises (0)", "check": 100, "mean": 0.1, "below": 0.9}
    assert tables.errors([bad], 100).endswith("| 0.10 (10 %) |")


def test_commands(monkeypatch, capsys, tmp_path):
    path = tmp_path / "lines.jsonl"
    run = ["candidates", "--datasets", "noise", "--candidates", "transfer", "--seeds", "1", "--epochs", "1"]
    said = []
    for arguments in ([*run, "--results", str(path)], ["table", str(path)], ["simulate", "--repetitions", "20"]):
        monkeypatch.setattr(sys, "argv", ["guard", *arguments])
        command.main()
        said.append(capsys.readouterr().out)
    trained, again, rates = said
    assert "noise, 1 epochs" in trained
    assert trained == again
    assert "20 repetitions." in rates
    assert "lost on new groups" in rates


def test_noise_alone_shuts_nothing_down():
    """At the default confidence and warm-up; without the slack it does, so the simulation can tell."""
    results = list(null(300))
    assert {line["gain"] for line in results} == set(GAINS)
    default = [line["below"] for line in results if line["confidence"] == 1 and line["warm_up"] == 10]
    assert max(default) <= 0.02
    assert max(line["below"] for line in results if line["confidence"] == 0) > 0.3
