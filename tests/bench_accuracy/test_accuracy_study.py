"""The study: every method runs, nothing is done twice, choices are made on validation only."""

import json
import math
import shutil

import pytest
import torch

from bench.accuracy._methods import BASELINE, BY_NAME, METHODS, UNIFORM
from bench.accuracy._model import InterIntra
from bench.accuracy._study import TUNING_SEED, Ledger, rounded
from bench.accuracy._train import Best, Trainer, phase_starts
from tests.bench_accuracy.conftest import complete, study


def lines(folder):
    (path,) = folder.glob("accuracy-*.jsonl")
    return [json.loads(text) for text in path.read_text().splitlines()]


def numbers(value):
    if isinstance(value, dict):
        return [number for inner in value.values() for number in numbers(inner)]
    return [value] if isinstance(value, float) else []


def test_every_method_has_a_complete_line(results):
    runs = {line["method"]: line for line in lines(results)}
    assert list(runs) == list(BY_NAME)
    for line in runs.values():
        assert set(line["rules"]) == {"fused", "product", "fitted"}
        for rule in line["rules"].values():
            assert set(rule) == {"val", "test", "missing", "correct"}
        for per_modality in (line["heads"], line["probe"]["val"], line["shapley"], line["update_ratio"]):
            assert set(per_modality) == set(line["modalities"])
        measured = numbers({key: line[key] for key in ("rules", "probe", "shapley", "ms", "update_ratio")})
        assert all(map(math.isfinite, measured))
    assert {name for name, line in runs.items() if line["conflict"] is not None} == {
        "MinNorm", "MinNorm, guarded", "MGDA", "MMPareto", "UPGrad", "AlignedMTL",
    }  # fmt: skip


def test_methods_differ_where_they_should(results):
    """Each method reaches its own gradients: no two rows are one method under two names."""
    predictions = {line["method"]: json.dumps(line["shapley"]) for line in lines(results)}
    del predictions["uniform, rates"]  # whose first trial has all rates at 1
    same = {name for name, own in predictions.items() if list(predictions.values()).count(own) > 1}
    guards = ("uniform, guarded", "G-Blend")  # which have not seen enough yet
    assert same == {name for name in same if name.startswith(guards)}


@pytest.mark.parametrize("name", ["uniform, guarded", "uniform, guarded encoders"])
def test_a_guard_finds_the_modality_of_noise(tmp_path, name):
    complete(study(tmp_path, "noise", epochs=16), [name])
    (line,) = lines(tmp_path)
    last = {modality: series[-1] for modality, series in line["factors"].items()}
    assert last["noise"] < 0.5 < min(last["easy"], last["hard"])
    assert [len(series) for series in line["factors"].values()] == [16] * 3
    assert set(line["last"]) == {"fused", "product", "fitted"}


@pytest.mark.parametrize("name", ["OGM", "MLB", "MIMO", "BOGC"])
def test_adamw(tmp_path, name):
    complete(study(tmp_path, optimizer="adamw"), [name])
    (line,) = lines(tmp_path)
    assert line["settings"]["lr"] == 1e-3


def test_resuming_repeats_nothing_and_a_cut_line_gives_the_same_run(results, tmp_path):
    shutil.copytree(results, tmp_path, dirs_exist_ok=True)
    assert complete(study(tmp_path)) == 0
    (path,) = tmp_path.glob("*.jsonl")
    text = path.read_text()
    path.write_text(text[:-40])
    assert complete(study(tmp_path)) == 1
    before, after = json.loads(text.splitlines()[-1]), lines(tmp_path)[-1]
    for line in (before, after):
        del line["ms"], line["date"]
    assert after == before


def test_other_budgets_are_other_runs(results):
    assert len(list(study(results, epochs=3).jobs(["joint"], 1))) == 1
    assert len(list(study(results, trials=2).jobs(["joint"], 1))) == 3
    assert len(list(study(results, optimizer="adamw").jobs(["joint"], 1))) == 1


def test_the_trial_best_on_validation_is_used_for_every_seed(tmp_path):
    own = study(tmp_path, trials=3)
    complete(own, ["uniform"], seeds=2)
    trials = [line for line in lines(tmp_path) if line["kind"] == "trial"]
    best = max(trials, key=lambda line: line["score"])
    assert [line["trial"] for line in trials] == [0, 1, 2]
    assert all(line["settings"] == best["settings"] for line in lines(tmp_path) if line["kind"] == "run")


def test_one_more_trial_keeps_the_earlier_ones(tmp_path):
    complete(study(tmp_path, trials=2), ["joint"])
    more = [description for description, _ in study(tmp_path, trials=3).jobs(["joint"], 1)]
    assert more == ["joint, trial 2", "joint, seed 0"]


@pytest.mark.parametrize("trial", [1, 5])
def test_a_trial_has_one_learning_rate_for_all_methods(trial):
    drawn = [method.settings("sgd", trial) for method in METHODS]
    assert len({(settings["lr"], settings["weight_decay"]) for settings in drawn}) == 1
    assert all(
        settings[key] in method.space[key]
        for method, settings in zip(METHODS, drawn, strict=True)
        for key in method.space
    )


def test_a_run_that_diverges_is_recorded_and_the_study_goes_on(tmp_path, monkeypatch):
    own = study(tmp_path)
    monkeypatch.setattr(type(own), "chosen", lambda self, method: method.settings("sgd", 0) | {"lr": 1e30})
    assert complete(own, ["joint"]) == 1
    (line,) = lines(tmp_path)
    assert "finite" in line["failed"]
    assert complete(own, ["joint"]) == 0


def test_a_seed_gives_every_method_the_same_start(tmp_path):
    data = study(tmp_path).data

    def start(method, seed=0):
        return Trainer(data, method, method.settings("sgd", 0), "sgd", seed).model.state_dict()

    reference = start(BASELINE)
    for method in METHODS:
        own = start(method)
        assert all(torch.equal(own[name], value) for name, value in reference.items())
        assert method.network is InterIntra or own.keys() == reference.keys()
    assert not torch.equal(start(BASELINE, TUNING_SEED)["fused.weight"], reference["fused.weight"])


def test_timing_leaves_the_trainer_as_it_trains(tmp_path):
    """A step's two times are nested, whatever the method."""
    data = study(tmp_path).data
    for method in (BASELINE, UNIFORM):
        step, subroutine = Trainer(data, method, method.settings("sgd", 0), "sgd", 0).step(data.train[torch.arange(8)])
        assert 0 < subroutine < step


def test_checkpoints():
    module = torch.nn.Linear(1, 1)
    scores = [(50.0, -1.0), (50.0, -0.9), (40.0, -0.1), (60.0, math.nan)]
    for choose, epoch in ((True, 1), (False, 2)):
        best = Best(choose)
        for index, score in enumerate(scores):
            best.offer("model", [module], score, index)
        assert best.epoch == {"model": epoch}


@pytest.mark.parametrize("epochs", [1, 2, 3, 10])
@pytest.mark.parametrize("name", ["joint", "pretrained", "I2M2"])
def test_phases_cover_training_and_end_with_the_last(epochs, name):
    phases = BY_NAME[name].phases(BY_NAME[name].settings("sgd", 0))
    starts = phase_starts(phases, epochs)
    assert min(starts) == 0
    assert max(starts) < epochs
    assert starts[max(starts)] is phases[-1]
    assert len(starts) == min(len(phases), epochs)


def test_ledger_finds_by_all_entries(tmp_path):
    ledger = Ledger(tmp_path, "a:b,c")
    ledger.add({"kind": "run", "seed": 0})
    assert ledger.path.name == "accuracy-a-b-c.jsonl"
    assert Ledger(tmp_path, "a:b,c").find(kind="run", seed=0)
    assert not ledger.find(kind="run", seed=1)


def test_rounding_keeps_five_digits_and_everything_else():
    assert rounded({"a": [1.23456789e-3, 7], "b": "x", "c": None}) == {"a": [1.2346e-3, 7], "b": "x", "c": None}
