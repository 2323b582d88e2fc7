"""The bench of what is proved of latent quality: closed forms against other ways to the same number."""

import itertools
import json
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch

pytest.importorskip("torchjd", reason="the peer of the benchmarks; pip install 'balanced-grad[bench]'")
pytest.importorskip("sklearn", reason="pip install 'balanced-grad[demo]'")

from bench import latent_quality, latent_theory
from bench.latent_theory import __main__ as command
from bench.latent_theory import _gains, _linear, _reversal, _terms


@pytest.mark.parametrize("seed", range(40))
def test_no_subset_beats_its_superset_in_the_population(seed):
    problem = _linear.draw(np.random.default_rng(seed))
    assert max(_linear.gaps(problem, problem.moments)) <= _linear.ROUNDING


def test_few_items_can_reverse_what_the_population_says():
    rng = np.random.default_rng(0)
    problems = [_linear.draw(rng) for _ in range(20)]
    assert max(gap for problem in problems for gap in _linear.gaps(problem, problem.sample(30, rng))) > 0


@pytest.mark.parametrize("seed", range(10))
def test_no_other_latent_of_its_width_is_better(seed):
    rng = np.random.default_rng(seed)
    problem = _linear.draw(rng)
    moments, outputs = problem.moments, len(problem.weights)
    columns = problem.inputs(problem.subsets()[0])
    best = _linear.encoder(moments, columns, outputs, problem.rank)
    found = _linear.risk(moments, columns, outputs, best)
    others = rng.standard_normal((200, *best.shape)) * rng.choice([0.1, 1.0], (200, 1, 1)) + best
    assert found <= min(_linear.risk(moments, columns, outputs, other) for other in others) + 1e-9
    everything = problem.inputs(problem.subsets()[-1])
    full = _linear.encoder(moments, everything, outputs, problem.rank)
    noise = outputs * problem.noise**2  # all modalities, the optimum's own rank: only the noise is left
    assert _linear.risk(moments, everything, outputs, full) == pytest.approx(noise, rel=1e-6)


@pytest.mark.parametrize("items", [1, 4, 9])
def test_the_closed_form_bounds_the_mean_over_all_signs(items):
    x = np.random.default_rng(items).standard_normal((items, 3))
    signs = np.array(list(itertools.product([-1.0, 1.0], repeat=items)))
    exact = np.mean([abs(_terms.NORM) * np.linalg.norm(row @ x) / items for row in signs])
    assert _terms.by_signs(x, signs) == pytest.approx(exact)
    assert exact <= _terms.closed_form(x) + 1e-12
    assert _terms.by_signs(np.eye(items), signs) == pytest.approx(_terms.closed_form(np.eye(items)))  # no sign matters
    assert _terms.closed_form(x, norm=3.0) == pytest.approx(3 * _terms.closed_form(x))


@pytest.mark.parametrize("norm", [0.1, 1.0, 100.0])
def test_least_squares_in_a_ball_meets_its_optimality_conditions(norm):
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((50, 4)), rng.standard_normal(50)
    y += x @ np.array([1.0, -2.0, 0.5, 0.0])
    weights, free = _terms.in_ball(x, y, norm), np.linalg.lstsq(x, y, rcond=None)[0]
    if np.linalg.norm(free) <= norm:
        assert weights == pytest.approx(free)
        return
    assert np.linalg.norm(weights) == pytest.approx(norm)
    descent = x.T @ (y - x @ weights)
    assert descent == pytest.approx(weights * (descent @ weights) / norm**2)
    assert descent @ weights > 0


def test_terms_hold_and_shrink_with_the_root_of_the_items():
    few, many = (_terms.theorem_1(0.0, 0.5 / items**0.5, items) for items in (100, 400))
    assert few == pytest.approx(2 * many)
    gap, one, quality, two = _terms.run(200, seed=0)["both"]
    assert gap <= one
    assert 0 <= quality <= two


def test_the_crossover_is_where_both_risks_are_equal():
    items = np.array(_reversal.crossover())
    assert _reversal.theory(_reversal.ALONE, items) == pytest.approx(_reversal.theory(_reversal.BOTH, items))
    before, after = items - 50, items + 50
    assert _reversal.theory(_reversal.ALONE, before) < _reversal.theory(_reversal.BOTH, before)
    assert _reversal.theory(_reversal.ALONE, after) > _reversal.theory(_reversal.BOTH, after)


def test_theory_is_the_mean_risk_of_least_squares():
    risks, items = [], 30
    for seed in range(200):
        generator = torch.Generator().manual_seed(seed)
        truth = {"a": torch.ones(8, dtype=torch.double) / 8**0.5, "b": torch.zeros(100, dtype=torch.double)}
        inputs, targets = _reversal.draw(items, truth, generator)
        weight = _reversal.LeastSquares({"a": inputs["a"]}, targets).weight[:, 0]
        risks.append(1 + (weight - truth["a"]).square().sum().item())  # b says nothing here: 4/5 of the theory's
    expected = _reversal.theory(_reversal.ALONE, np.array(items)) / (1 + _reversal.SIGNALS["b"])
    assert np.mean(risks) == pytest.approx(expected, abs=4 * np.std(risks) / len(risks) ** 0.5)


def row(data, gap, gain, verdict="helps"):
    numbers = {"gap": gap, "low": gap - 1, "high": gap + 1, "points": gain, "own": [gain, gain]}
    return {"data": data, "seeds": 2, "subset": "audio", "verdict": verdict, **numbers}


def test_correlation_is_of_the_rank_and_of_minus_gamma(monkeypatch):
    monkeypatch.setattr(_gains, "RESAMPLES", 20)
    gaps, gains = [-3.0, -1.0, -0.1, 0.2], [40.0, 3.0, 2.0, -1.0]
    assert _gains.correlation(map(row, "wwww", gaps, gains)) == pytest.approx(1)
    assert _gains.correlation(map(row, "wwww", gaps, gains[::-1])) == pytest.approx(-1)
    tracked = {name: [row(name, gap, gain) for gap, gain in zip(gaps, gains, strict=True)] for name in "wx"}
    assert _gains.interval(tracked) == pytest.approx((1, 1))


def test_what_is_chosen_is_smaller_than_all():
    assert len(_gains.chosen(("a", "b", "c"))) == 2**3 - 2
    assert len(_gains.chosen(tuple("abcdef"))) == 6 + 6
    assert ("a", "b") not in _gains.chosen(("a", "b"))


def test_gains_are_printed_and_a_set_is_not_repeated(tmp_path, monkeypatch, capsys):
    out = tmp_path / "gains.jsonl"
    gaps, gains = [-1.0, -0.5, -0.2, 0.1], [9.0, 5.0, 2.0, 1.0]
    monkeypatch.setattr(
        _gains, "measure", lambda name, seeds: [row(name, *pair) for pair in zip(gaps, gains, strict=True)]
    )
    monkeypatch.setattr(sys, "argv", ["x", "gains", "--datasets", "wiki", "--seeds", "2", "--out", str(out)])
    command.main()
    first = capsys.readouterr().out
    assert "| wiki | 4 | +1.00 | 3 of 4 | 3 of 4 |" in first
    assert [json.loads(line)["gap"] for line in out.read_text().splitlines()] == gaps
    monkeypatch.setattr(_gains, "measure", lambda *_: pytest.fail("a set was repeated"))
    command.main()
    assert capsys.readouterr().out == first


def test_networks_are_judged_with_their_own_heads():
    labels = torch.tensor([0, 1, 1, 1])
    model = SimpleNamespace(encode=lambda inputs: inputs["audio"], head=lambda latent: torch.eye(2)[latent])
    train = _gains.Recorded(lambda *_: model, {"audio": torch.tensor([0, 1, 1, 0]), "video": labels}, labels)
    assert train({"audio": labels}, labels, 0) is model
    assert train.accuracy == {("audio",): [75.0]}


def test_every_data_set_of_verdicts_has_its_own_initial_weights(monkeypatch):
    used = []

    class Report:
        def __getitem__(self, subset):
            losses = np.random.default_rng(len(subset)).random((10, latent_quality.JUDGED + latent_quality.FRESH))
            return SimpleNamespace(losses=losses)

    def measured(*_, seeds, **options):
        used.extend(seeds)
        return Report()

    monkeypatch.setattr(latent_quality, "latent_quality", measured)
    latent_quality.verdicts(SimpleNamespace(seeds=3, scenario="useless"))
    assert len(set(used)) == len(used) == 3 * 10
    assert not set(used) & set(range(3))  # seeds of the data


def test_tables_are_printed(monkeypatch, capsys):
    monkeypatch.setattr(_linear, "SIZES", (30,))
    monkeypatch.setattr(_terms, "SIZES", (50, 100))
    for arguments in (("subset", "--problems", "3"), ("terms", "--seeds", "2")):
        monkeypatch.setattr(sys, "argv", ["x", *arguments])
        command.main()
        assert "| --- |" in capsys.readouterr().out
    assert "bench.latent_theory subset" in latent_theory.__doc__


def test_the_reversal_is_measured_and_drawn(monkeypatch, tmp_path):
    monkeypatch.setattr(_reversal, "SIZES", (150, 2000))
    monkeypatch.setattr(_reversal, "TEST", 500)
    text = _reversal.report(2, tmp_path / "reversal.png")
    few, many = (line for line in text.splitlines() if line.startswith(("| 150 ", "| 2000 ")))
    assert few.count("+") > many.count("+")  # a gap above zero, then below
    assert (tmp_path / "reversal.png").stat().st_size > 1000
