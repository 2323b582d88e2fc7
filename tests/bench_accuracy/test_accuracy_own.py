"""Methods from outside, trials on several seeds, and what a line says of its origin."""

import json
import sys
from typing import ClassVar

import pytest
import torch

import balanced_grad as bg
from balanced_grad.demo._data import DemoError
from bench.accuracy.__main__ import main
from bench.accuracy._methods import UNIFORM
from bench.accuracy._own import find, own_method
from bench.accuracy._statistics import read
from bench.accuracy._study import TUNING_SEED, Study

HERE = __name__


class Doubled(bg.Balancer):
    """Joint loss, and the others times a factor."""

    space: ClassVar = {"factor": (2.0, 3.0)}

    def __init__(self, factor):
        super().__init__()
        self.factor = factor

    def weigh(self, problem):
        joint = torch.tensor([name == "joint" for name in problem.names])
        return bg.Weighting(torch.where(joint, 1.0, self.factor))


class Halved(bg.Modulation):
    """Half the gradient for every encoder."""

    def modulate(self, scores):
        return torch.full_like(scores, 0.5)


def lines(folder):
    (path,) = folder.glob("accuracy-*.jsonl")
    return [json.loads(text) for text in path.read_text().splitlines()]


def do(folder, methods, seeds=1, **options):
    jobs = list(Study.of("digits", "sgd", 1, options.pop("trials", 1), folder, **options).jobs(methods, seeds))
    for _, job in jobs:
        job(lambda: None)
    return [description for description, _ in jobs]


def test_a_class_trains_as_the_same_rule_of_the_study(tmp_path, monkeypatch):
    """With a factor of 2 it is ``uniform`` with a weight of 2."""
    monkeypatch.setitem(UNIFORM.space, "unimodal", (2.0,))
    do(tmp_path, ["uniform", f"{HERE}:Doubled"])
    theirs, own = lines(tmp_path)
    assert own["method"] == f"{HERE}:Doubled"
    assert own["settings"]["factor"] == 2.0
    assert own["rules"] == theirs["rules"]


def test_a_modulation_is_given_encoders_and_scores(tmp_path):
    do(tmp_path, [f"{HERE}:Halved"])
    (line,) = lines(tmp_path)
    assert {value for series in line["weights"].values() for value in series} == {0.5}


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("Doubled", "not package.module:Class"),
        (":Doubled", "not package.module:Class"),
        ("no_such_module:Doubled", "cannot import no_such_module"),
        (f"{HERE}:HERE", "no class HERE"),
        (f"{HERE}:Nothing", "no class Nothing"),
        ("pathlib:Path", "no class Path that is a bg.Balancer"),
    ],
)
def test_names_that_lead_nowhere(name, said):
    with pytest.raises(DemoError, match=said):
        own_method(name)


def test_methods_of_the_study_are_found_by_name():
    assert find("uniform") is UNIFORM


def test_trials_on_two_seeds_choose_by_their_mean(tmp_path):
    study = Study.of("digits", "sgd", 1, 2, tmp_path, tuning_seeds=2)
    shared = {"kind": "trial", "method": "uniform", "dataset": "digits", "optimizer": "sgd", "epochs": 1}
    for trial, seed, accuracy in ((0, 0, 90.0), (0, 1, 50.0), (1, 0, 80.0), (1, 1, 70.0)):
        settings = {"lr": float(trial)}
        study.ledger.add(
            shared | {"trial": trial, "tuning_seed": seed, "settings": settings, "score": [accuracy, -1.0]}
        )
    assert study.chosen(UNIFORM) == {"lr": 1.0}
    one = Study.of("digits", "sgd", 1, 2, tmp_path)
    assert one.chosen(UNIFORM) == {"lr": 0.0}


def test_a_second_seed_of_trials_keeps_the_first(tmp_path, monkeypatch):
    do(tmp_path, ["joint"], trials=2)
    seen = []
    train = Study._train
    monkeypatch.setattr(Study, "_train", lambda self, *a: seen.append(a[2]) or train(self, *a))
    done = do(tmp_path, ["joint"], trials=2, tuning_seeds=2)
    assert done == ["joint, trial 0 on seed 1", "joint, trial 1 on seed 1", "joint, seed 0"]
    assert seen == [TUNING_SEED + 1, TUNING_SEED + 1, 0]


def test_lines_that_do_not_say_are_of_one_seed(tmp_path):
    do(tmp_path, ["joint"], trials=2)
    (path,) = tmp_path.glob("*.jsonl")
    old = [{k: v for k, v in line.items() if not k.startswith("tuning_seed")} for line in lines(tmp_path)]
    path.write_text("".join(json.dumps(line) + "\n" for line in old))
    assert do(tmp_path, ["joint"], trials=2) == []
    (group,) = read(tmp_path)
    assert group.protocol.tuning_seeds == 1


def test_a_line_says_where_it_comes_from(tmp_path):
    do(tmp_path, ["joint"])
    (line,) = lines(tmp_path)
    assert line["versions"]["balanced-grad"] == bg.__version__
    assert {"system", "processor", "cores", "threads"} == set(line["machine"])
    assert line["machine"]["threads"] == torch.get_num_threads()
    assert line["commit"] is None or len(line["commit"].rstrip("+")) >= 10


def test_command_line(tmp_path, monkeypatch):
    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["accuracy", "--results", str(tmp_path), *arguments])
        main()

    own = f"{HERE}:Doubled"
    run("--dataset", "digits", "--method", own, "--seeds", "1", "--trials", "2", "--epochs", "1")
    trials = [(line["method"], line["tuning_seed"]) for line in lines(tmp_path) if line["kind"] == "trial"]
    assert {method for method, _ in trials} == {"joint", "uniform", own}
    assert sorted({seed for _, seed in trials}) == [0, 1]
    run("leaderboard", "--page", str(tmp_path / "page.md"))
    assert f"\n| {own} |" in (tmp_path / "page.md").read_text()
    with pytest.raises(SystemExit):
        run("--method", "no_such_module:Own")
