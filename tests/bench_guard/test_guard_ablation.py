"""All candidates train, each on its items, and their lines make a table."""

import pytest
import torch

import balanced_grad as bg
from balanced_grad.demo._model import LateFusion
from bench.accuracy._data import load
from bench.accuracy._model import build
from bench.guard import _tables as tables
from bench.guard._ablation import ablation, source
from bench.guard._candidates import ALONE_ROW, CANDIDATES, Guarded
from bench.guard._signals import Signal

STEERED = set(CANDIDATES) - {ALONE_ROW, "joint only", "none, all items", "none, 85 % of the items"}


@pytest.fixture(scope="module")
def lines():
    return list(ablation(["noise"], CANDIDATES, seeds=1, epochs=2))


def test_every_candidate_has_a_line(lines):
    assert [line["candidate"] for line in lines] == list(CANDIDATES)
    for line in lines:
        for moment in ("checkpoint", "last"):
            for rule in ("fused", "product", "fitted"):
                assert all(0 <= line[moment]["accuracy"][rule][split] <= 100 for split in ("val", "test"))
            assert set(line[moment]["probe"]["test"]) == {"easy", "hard", "noise"}
        assert bool(line["factors"] or line["scales"]) == (line["candidate"] in STEERED)
        assert all(0 <= x <= 1 for x in (*line["factors"].values(), *line["scales"].values()))


def test_factors_and_scales_are_where_they_belong(lines):
    found = {line["candidate"]: (set(line["factors"]), set(line["scales"])) for line in lines}
    modalities = {"easy", "hard", "noise"}
    for name in STEERED:
        scaled = name in ("credit", "credit + transfer", "transfer, encoders")
        assert found[name] == (set() if name == "credit" else modalities, modalities if scaled else set())


def test_less_is_trained_on_where_items_are_held_out(lines):
    probes = {line["candidate"]: line["last"] for line in lines}
    assert probes["none, all items"] != probes["none, 85 % of the items"]
    assert probes["transfer"] == probes["none, 85 % of the items"]  # two epochs are all warm-up


def test_tables(lines):
    glance, about, *details = tables.candidates(lines).split("\n\n")
    assert about.startswith("noise, 2 epochs, seeds: 1")
    for table in (glance, *details):
        rows = table.splitlines()
        assert [row.split(" | ")[0].strip("| ") for row in rows[2:]] == list(CANDIDATES)
        assert len({row.count("|") for row in rows}) == 1
    assert "+0.0 (+0.0)" in details[0].splitlines()[2]  # the encoders trained alone are what gaps are to
    assert glance.splitlines()[2].endswith(" (+0.0) |")


class Halve(Signal):
    """Halves the factor of ``easy`` and the scale of ``hard`` at each check."""

    def check(self, check):
        self.factors["easy"] = self.factors.get("easy", 1.0) / 2
        self.scales["hard"] = self.scales.get("hard", 1.0) / 2


def test_a_signal_steers_from_the_step_of_its_check_on():
    data = load("noise")
    model = build(LateFusion, data)
    held_out = source(model, data.train[torch.arange(100)], seed=0)
    balancer = Guarded(Halve(), model, held_out, every=3)
    seen = []
    for _ in range(7):
        balancer(held_out())
        seen.append((balancer.last.to_dict()["weights"]["easy"], balancer.update_scales()["hard"].item()))
    assert seen == [(x, x) for x in (0.5, 0.5, 0.5, 0.25, 0.25, 0.25, 0.125)]
    assert balancer.last.to_dict()["weights"]["joint"] == 1


def test_guard_items_are_drawn_from_the_seed():
    data = load("noise")
    torch.manual_seed(0)
    model = build(LateFusion, data)
    first, again, other = (source(model, data.train[torch.arange(100)], seed) for seed in (0, 0, 1))
    values = [{name: x.item() for name, x in draw().items()} for draw in (first, again, other)]
    assert values[0] == values[1] != values[2]
    assert values[0].keys() == {"joint", "easy", "hard", "noise"}
    assert isinstance(CANDIDATES["transfer"].make(model, first, 5), bg.HeldOut)
