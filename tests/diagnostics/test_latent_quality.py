"""Latent quality where the answer is known: overlapping modalities, least squares, encoders left behind."""

import json
import math
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

import balanced_grad as bg
from balanced_grad.diagnostics import latent_quality
from balanced_grad.subsets import all_subsets, in_order, label, shapley_contrast

pytest.importorskip("sklearn", reason="heads are scikit-learn's; pip install 'balanced-grad[demo]'")

REAL = os.environ.get("BALANCED_GRAD_DATA")
WIDTH = 10


class Linear(nn.Module):
    """Least squares, one number per modality, added up by the head."""

    def __init__(self, inputs, targets):
        super().__init__()
        x = torch.cat(list(inputs.values()), 1)
        self.names = list(inputs)
        self.weights = nn.ParameterList((torch.linalg.pinv(x) @ targets).split([x.shape[1] for x in inputs.values()]))

    def encode(self, inputs):
        return {name: inputs[name] @ w[:, None] for name, w in zip(self.names, self.weights, strict=True)}

    def head(self, latent):
        return torch.cat(list(latent.values()), 1).sum(1)


def least_squares(inputs, targets, seed):
    return Linear(inputs, targets)


def overlapping(items, overlap, seed, modalities=4):
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(modalities, items, WIDTH, generator=generator, dtype=torch.double)
    views = [noise[0], *(overlap * noise[0] + (1 - overlap) * x for x in noise[1:])]
    return {f"m{i}": x for i, x in enumerate(views, 1)}, sum(x.sum(1) for x in views)


def measure(overlap=0.0, modalities=3, items=300, test=500, train=least_squares, **options):
    pair = (overlapping(n, overlap, seed, modalities) for seed, n in enumerate((items, test)))
    return latent_quality(train, *pair, **{"progress": False, "seeds": 2} | options)


@pytest.fixture(scope="module")
def report():
    return measure()


@pytest.mark.parametrize("overlap", [0.0, 0.5, 1.0])
def test_risk_is_the_bayes_risk_times_the_price_of_few_items(overlap):
    chains = [["m1", "m2", "m3", "m4"][:n] for n in (1, 2, 3, 4)]
    report = measure(overlap, modalities=4, items=900, test=4000, subsets=chains)
    for n, subset in enumerate(chains, 1):
        bayes = WIDTH * (4 - n) * (1 - overlap) ** 2
        expected = bayes * (1 + n * WIDTH / (600 - n * WIDTH - 1))
        if expected:
            assert report[subset].test_risk == pytest.approx(expected, rel=0.08)
            assert report[subset].risk == pytest.approx(expected, rel=0.08)
        else:
            assert report[subset].risk < 1e-6 * report[[]].risk


def test_a_gap_is_the_difference_of_risks_and_nested_pairs_are_all_there(report):
    gaps = report.gaps()
    assert len(gaps) == 3**3 - 2**3
    for (m, n), gap in gaps.items():
        assert set(n) < set(m)
        assert gap.value == pytest.approx(report[m].risk - report[n].risk)
        assert gap.low <= gap.value <= gap.high
        assert gap.verdict == "helps"  # without overlap each modality carries what no other does
        assert gap.points is None
    assert report.gap(["m1"], ["m2"]).verdict == "inconclusive"  # not nested: allowed


def test_shapley_values_share_out_the_whole_gap(report):
    values = [report.shapley(name).value for name in report.modalities]
    assert sum(values) == pytest.approx(report.gap(report.modalities, []).value)
    assert values == pytest.approx([-WIDTH] * 3, rel=0.3)  # each explains ten of thirty


def test_reference_sets_the_zero_of_quality_and_of_nothing_else():
    options = {"subsets": [["m1"]], "seeds": 1}
    best, given = measure(**options), measure(**options, reference=5.0)
    assert best["m1"].quality == 0.0
    assert given["m1"].quality == pytest.approx(given["m1"].risk - 5.0)
    assert best.gap("m1", []) == given.gap("m1", [])


def test_table_json_and_plot_say_the_same(report, tmp_path):
    text = str(report)
    assert "m1+m2+m3" in text
    assert f"{report['m1'].risk:.3f}" in text
    assert "a heuristic only" in text
    report.to_json(tmp_path / "report.json")
    read = json.loads((tmp_path / "report.json").read_text())
    assert read["shapley"]["m2"]["value"] == report.shapley("m2").value
    assert len(read["gaps"]) == len(report.gaps())
    assert read["latents"]["m1+m3"]["train_loss"] == report[["m1", "m3"]].train_loss
    pytest.importorskip("matplotlib")
    report.plot(tmp_path / "report.png")
    assert (tmp_path / "report.png").read_bytes().startswith(b"\x89PNG")


def test_a_partial_report_has_its_table_and_picture_and_names_what_is_missing(tmp_path):
    report = measure(subsets=[["m2", "m1"], ["m1"]], seeds=1)
    assert list(report.latents) == [(), ("m1",), ("m1", "m2")]
    assert not report.complete
    assert "Shapley" not in str(report)
    assert "one seed" in str(report)
    assert "shapley" not in report.to_dict()
    with pytest.raises(KeyError, match="m3 was not measured"):
        report["m3"]
    with pytest.raises(KeyError, match="was not measured"):
        report.shapley("m1")
    with pytest.raises(ValueError, match="no such modality: 'm9'"):
        report.gap("m9", "m1")
    pytest.importorskip("matplotlib")
    report.plot(tmp_path / "report.png")


def test_heads_meet_the_same_unseen_items_in_every_subset():
    seen = {}
    inputs, targets = overlapping(90, 0.0, 0, 2)
    inputs["row"] = torch.arange(90, dtype=torch.double)[:, None]

    def train(inputs, targets, seed):
        seen.setdefault(seed, []).append((tuple(inputs), len(targets)))
        if "row" in inputs:
            rows[seed] = set(inputs["row"][:, 0].long().tolist())
        return least_squares(inputs, targets, seed)

    rows = {}
    report = latent_quality(train, (inputs, targets), (inputs, targets), progress=False, seeds=[3, 7])
    assert seen[3] == [(subset, 60) for subset in all_subsets(["m1", "m2", "row"]) if subset]
    assert seen[3] == seen[7]
    assert rows[3] != rows[7]  # each seed holds out others
    assert (report.settings["train_items"], report.settings["probe_items"]) == (60, 30)


def test_fewer_training_items_are_part_of_more():
    rows = []

    def train(inputs, targets, seed):
        rows.append(set(inputs["m1"][:, 0].tolist()))
        return least_squares(inputs, targets, seed)

    for fraction in (0.1, 1.0):
        report = measure(modalities=1, train=train, fraction=fraction, seeds=1)
        assert report.settings["probe_items"] == 100
    assert rows[0] < rows[1]
    assert (len(rows[0]), len(rows[1])) == (20, 200)


class Classifier(nn.Module):
    """Two encoders, of which the recipe may leave one behind."""

    def __init__(self, inputs):
        super().__init__()
        self.encoders = nn.ModuleDict({name: nn.Linear(x.shape[1], 4) for name, x in inputs.items()})
        self.fused = nn.Linear(4 * len(inputs), 3)
        self.scale = 1.0

    def encode(self, inputs):
        return {name: self.encoders[name](x) for name, x in inputs.items()}

    def head(self, latent):
        return self.scale * self.fused(torch.cat(list(latent.values()), 1))

    def losses(self, inputs, targets):
        return {"joint": cross_entropy(self.head(self.encode(inputs)), targets)}


def labelled(items, seed):
    generator = torch.Generator().manual_seed(seed)
    x = {name: torch.randn(items, 30, generator=generator) for name in ("audio", "video")}
    return x, (x["audio"][:, :3] + x["video"][:, :3]).argmax(1)


def classify(inputs, targets, seed, *, balancer=None, silent=False):
    model = Classifier(inputs)
    if len(inputs) > 1 and silent:
        model.encoders["video"].requires_grad_(False)
    optimizer = torch.optim.Adam((p for p in model.parameters() if p.requires_grad), lr=0.03)
    for _ in range(60):
        optimizer.zero_grad()
        losses = model.losses(inputs, targets)
        (balancer(losses) if balancer else losses["joint"]).backward()
        optimizer.step()
    return model


def test_an_encoder_that_joint_training_left_behind_is_found():
    pair = labelled(600, 0), labelled(800, 1)

    def train(inputs, targets, seed):
        return classify(inputs, targets, seed, silent=True)

    report = latent_quality(train, *pair, progress=False)
    assert report.encoder_gap("video").verdict == "hurts"
    assert report.encoder_gap("audio").verdict != "hurts"
    assert list(report.encoder_gaps()) == ["audio", "video"]
    assert "in the model of all, against alone" in str(report)
    assert report.to_dict()["encoder_gaps"]["video"]["verdict"] == "hurts"
    gap = report.gap(["audio", "video"], "audio")
    assert gap.points == pytest.approx(report[["audio", "video"]].accuracy - report["audio"].accuracy)
    assert report["audio"].head_gap == pytest.approx(report["audio"].test_risk - report["audio"].risk)
    assert report["audio"].parameters == 30 * 4 + 4 + 4 * 3 + 3
    assert gap.training_gain == pytest.approx(report["audio"].train_loss - report[["audio", "video"]].train_loss)
    sizes = [report[subset].parameters for subset in (["audio", "video"], ["audio"])]
    assert gap.complexity_price == pytest.approx(math.sqrt(sizes[0] / 400) - math.sqrt(sizes[1] / 400))


def test_a_recipe_may_balance_and_a_poor_head_shows():
    pair = labelled(300, 0), labelled(300, 1)

    def train(inputs, targets, seed):
        model = classify(inputs, targets, seed, balancer=bg.MIMO())
        model.scale = 0.0  # worth ln 3
        return model

    report = latent_quality(train, *pair, seeds=1, subsets=[["audio", "video"]], progress=False)
    assert report[["audio", "video"]].test_risk == pytest.approx(math.log(3), rel=1e-6)
    assert report[["audio", "video"]].head_gap > 0.2


def test_one_logit_and_one_latent_for_all():
    class Binary(nn.Module):
        def __init__(self, inputs):
            super().__init__()
            self.dropout = nn.Dropout(0.9)  # off where it is frozen

        def encode(self, inputs):
            return self.dropout(torch.cat(list(inputs.values()), 1))

        def head(self, latent):
            return 3 * latent[:, :1]

    generator = torch.Generator().manual_seed(0)
    x = torch.randn(300, 2, generator=generator)
    items = {"a": x[:, :1], "b": x[:, 1:]}, (x[:, 0] > 0).long()
    model = Binary(items[0])
    report = latent_quality(lambda inputs, targets, seed: model, items, items, seeds=1, progress=False)
    expected = torch.nn.functional.binary_cross_entropy_with_logits(3 * x[:, 0], (x[:, 0] > 0).float())
    assert report["a"].test_risk == pytest.approx(float(expected), rel=1e-5)
    assert model.training  # as it was
    with pytest.raises(ValueError, match="one latent for all"):
        report.encoder_gap("a")


def test_the_same_call_gives_the_same_report_and_leaves_the_random_state_alone():
    pair = labelled(200, 0), labelled(100, 1)
    options = {"subsets": [["audio"]], "seeds": 2, "progress": False}
    state = torch.get_rng_state()
    first = latent_quality(classify, *pair, **options)
    assert torch.equal(torch.get_rng_state(), state)
    torch.rand(5)
    second = latent_quality(classify, *pair, **options)
    assert np.array_equal(first["audio"].losses, second["audio"].losses)
    assert not np.array_equal(*first["audio"].losses)  # the seeds differ


def test_processes_give_the_same_report():
    def train(inputs, targets, seed):
        import torch  # a process of its own knows nothing of this file

        class Mean:
            def encode(self, inputs):
                return torch.cat([x.mean(1, keepdim=True) for x in inputs.values()], 1)

        return Mean()

    plain, spread = (measure(modalities=2, train=train, jobs=jobs, items=60, test=50, seeds=1) for jobs in (1, 2))
    assert plain.to_dict() == spread.to_dict()


@pytest.mark.parametrize("modalities", [1, 2, 3, 5])
def test_shapley_contrasts(modalities):
    names = [f"m{i}" for i in range(modalities)]
    total = dict.fromkeys(all_subsets(names), 0.0)
    for name in names:
        contrast = shapley_contrast(names, name)
        assert sum(contrast.values()) == pytest.approx(0.0)
        assert sum(c for subset, c in contrast.items() if name in subset) == pytest.approx(1.0)
        for subset, coefficient in contrast.items():
            total[subset] += coefficient
    inner = {subset: c for subset, c in total.items() if 0 < len(subset) < modalities}
    assert total[tuple(names)] == pytest.approx(1.0)
    assert total[()] == pytest.approx(-1.0)
    assert all(abs(c) < 1e-12 for c in inner.values())


def test_subsets_keep_the_users_order():
    assert all_subsets(["b", "a"]) == [(), ("b",), ("a",), ("b", "a")]
    assert in_order(["video", "audio"], {"audio", "video"}) == ("video", "audio")
    assert in_order(["video", "audio"], "audio") == ("audio",)
    assert [label(()), label(("b", "a"))] == ["none", "b+a"]


def test_many_modalities_are_refused_unless_forced(monkeypatch):
    calls = []

    def train(inputs, targets, seed):
        calls.append(tuple(inputs))
        return least_squares(inputs, targets, seed)

    options = {"modalities": 7, "items": 30, "test": 10, "train": train, "seeds": 1}
    with pytest.raises(ValueError, match="7 modalities have 127 subsets"):
        measure(**options)
    assert not calls
    assert len(measure(**options, subsets=[["m1", "m7"]]).latents) == 2
    monkeypatch.setattr("balanced_grad.diagnostics._latent_quality.MANY", 2)  # 127 trainings would take long
    options["modalities"] = 3
    with pytest.raises(ValueError, match="3 modalities have 7 subsets"):
        measure(**options)
    assert len(measure(**options, force=True).latents) == 8


@pytest.mark.parametrize("unit", [1e-13, 1e-8, 1e-3, 1e13])
@pytest.mark.parametrize("offset", [0.0, 3.0])
def test_the_unit_of_a_modality_is_its_own_business(unit, offset):
    """Magnetic fields in tesla are of the order of 1e-13."""

    def draw(items):
        generator = torch.Generator().manual_seed(items)
        meg, other = (torch.randn(items, n, generator=generator, dtype=torch.double) for n in (3, 2))
        return {"meg": unit * (meg + offset), "other": other}, (meg.sum(1) > 0).long()

    def train(inputs, targets, seed):
        return SimpleNamespace(encode=lambda given: torch.cat(list(given.values()), 1))

    report = latent_quality(train, draw(200), draw(400), seeds=2, progress=False)
    assert report.added_last("meg").verdict == "helps"
    assert report["meg",].accuracy > 95


def test_every_class_is_held_out_in_its_proportion():
    generator = torch.Generator().manual_seed(0)
    inputs = {"a": torch.randn(90, 2, generator=generator, dtype=torch.double)}
    targets = torch.tensor([0] * 72 + [1] * 18)
    seen = []

    def train(inputs, targets, seed):
        seen.append(targets.bincount().tolist())
        return SimpleNamespace(encode=lambda given: given["a"])

    latent_quality(train, (inputs, targets), (inputs, targets), seeds=5, progress=False)
    assert seen == [[48, 12]] * 5


def test_accuracy_is_in_percent_and_two_test_items_are_enough():
    inputs, targets = {"a": torch.linspace(-1, 1, 60, dtype=torch.double)[:, None]}, torch.arange(60) // 30
    train = encodes(lambda x: x)
    few = {"a": inputs["a"][[0, -1]]}, targets[[0, -1]]
    assert latent_quality(train, (inputs, targets), few, seeds=1, progress=False)["a",].accuracy == 100


def test_inputs_may_be_numbers_but_not_one_number():
    targets = torch.arange(40) % 2
    inputs = {"a": torch.linspace(-1, 1, 40, dtype=torch.double)}
    report = latent_quality(
        encodes(lambda x: x[:, None]), (inputs, targets), (inputs, targets), seeds=1, progress=False
    )
    assert len(report.latents) == 2
    with pytest.raises(ValueError, match=r"'a' has shape \(\), but there are 40 targets"):
        latent_quality(None, ({"a": torch.tensor(1.0)}, targets), (inputs, targets))


def test_what_is_no_number_is_not_written_as_json(report, tmp_path):
    with pytest.raises(ValueError, match="JSON"):
        replace(report, reference=math.nan).to_json(tmp_path / "report.json")


def items_of(inputs, targets):
    return {"items": (inputs, targets), "test": (inputs, targets)}


X = torch.randn(40, 2, generator=torch.Generator().manual_seed(0))
Y = torch.arange(40) % 2
GOOD = items_of({"a": X, "b": X}, Y)


def encodes(latent):
    model = type("Model", (), {"encode": lambda self, inputs: latent(inputs["a"])})()
    return lambda inputs, targets, seed: model


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"items": X}, TypeError, "items: give a pair"),
        ({"test": ({}, Y)}, ValueError, "no modality"),
        (items_of({"a": X[:30]}, Y), ValueError, r"'a' has shape \(30, 2\), but there are 40 targets"),
        (items_of({"a": X}, Y.float() / 0), ValueError, "items: the targets must be finite, but 20 of 20"),
        ({"test": ({"a": X, "b": torch.where(X > 2, torch.nan, X)}, Y)}, ValueError, "test: 'b' must be finite"),
        (items_of({"a": X / 0}, Y), ValueError, "items: 'a' must be finite, but 40 of 40 items"),
        (items_of({"a": X + 1j}, Y), ValueError, "items: 'a' must be real numbers"),
        (items_of({"a": X}, torch.where(Y == 0, Y, -100)), ValueError, "all training items have the label 0"),
        (items_of({"a": X}, torch.full_like(Y, -100)), ValueError, "no item is labelled"),
        (
            {"items": ({"a": X[:2], "b": X[:2]}, Y[:2].float()), "test": ({"a": X, "b": X}, Y.float())},
            ValueError,
            "only 1 of 2 items are held out",
        ),
        ({"items": ({"a": X[:2], "b": X[:2]}, Y[:2])}, ValueError, "cannot hold out|are held out for them"),
        ({"seeds": 2.5}, ValueError, "seeds=2.5: give a whole number"),
        ({"seeds": [0.5]}, ValueError, "seeds="),
        ({"resamples": 150.5}, ValueError, "resamples=150.5: give a whole number"),
        ({"jobs": 1.5}, ValueError, "jobs=1.5: give a whole number"),
        (items_of({"a": X}, Y[:, None]), ValueError, "floating targets for a regression"),
        (items_of({"a": X}, torch.zeros(40, dtype=torch.long)), ValueError, "nothing to learn"),
        ({"test": ({"a": X, "c": X}, Y)}, ValueError, "differ"),
        ({"test": ({"a": X, "b": X}, Y + 1)}, ValueError, r"no training item has: \[2\]"),
        ({"test": ({"a": X, "b": X}, Y.float())}, TypeError, "one is floating"),
        ({"test": ({"a": X[:1], "b": X[:1]}, Y[:1])}, ValueError, "at least two"),
        (items_of({"a": X}, torch.tensor([0] * 37 + [5] * 3)), ValueError, r"\{5: 1\}"),
        ({"seeds": 0}, ValueError, "seeds=0"),
        ({"seeds": [1, 1]}, ValueError, "distinct"),
        ({"head": "forest"}, ValueError, "'linear', 'mlp'"),
        ({"held_out": 1.0}, ValueError, "held_out=1.0"),
        ({"fraction": 0.0}, ValueError, "fraction=0.0"),
        ({"subsets": [["a", "z"]]}, ValueError, "no such modality: 'z'"),
        ({"train": lambda inputs, targets, seed: None}, TypeError, "NoneType"),
        ({"train": encodes(lambda x: x[:, 0])}, ValueError, r"\(items, width\)"),
        ({"train": encodes(lambda x: x / 0)}, ValueError, "did its training diverge"),
    ],
)
def test_bad_input_is_named(changes, error, message):
    arguments = {"train": encodes(lambda x: x), "subsets": [["a"]], "seeds": 1, "progress": False, **GOOD} | changes
    with pytest.raises(error, match=message):
        latent_quality(arguments.pop("train"), arguments.pop("items"), arguments.pop("test"), **arguments)


def test_a_missing_extra_is_named(monkeypatch):
    monkeypatch.setattr("balanced_grad.diagnostics._latent_quality.find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"needs sklearn: pip install 'balanced-grad\[demo\]'"):
        measure()


def test_the_import_stays_light():
    code = (
        "import sys, balanced_grad, balanced_grad.diagnostics; print('sklearn' in sys.modules, 'scipy' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]


@pytest.mark.skipif(REAL is None, reason="BALANCED_GRAD_DATA names no folder with real data sets")
def test_text_is_what_matters_on_wiki():
    from balanced_grad.demo._folder import load_folder

    data = load_folder(Path(REAL), "wiki")
    pair = ((split.inputs, split.labels) for split in (data.train, data.test))

    def train(inputs, targets, seed):
        model = nn.Linear(sum(x.shape[1] for x in inputs.values()), 16)
        head = nn.Linear(16, data.classes)
        model.encode = lambda inputs: model(torch.cat(list(inputs.values()), 1)).relu()
        optimizer = torch.optim.Adam([*model.parameters(), *head.parameters()], lr=0.01)
        for _ in range(50):
            optimizer.zero_grad()
            cross_entropy(head(model.encode(inputs)), targets).backward()
            optimizer.step()
        return model

    report = latent_quality(train, *pair, seeds=1, progress=False)
    assert report.added_last("text").verdict == "helps"
    assert report.added_last("image").verdict != "helps"
