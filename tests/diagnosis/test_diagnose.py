"""What a user gives and gets: forms of batches and models, tasks, what is left as it was, what is refused."""

import json
import random
import re
import sys

import numpy as np
import pytest
import torch
from torch import nn

import balanced_grad as bg
from balanced_grad.diagnosis import Estimate


def draw(count=30, seed=0):
    torch.manual_seed(seed)
    x = {"audio": torch.randn(count, 3), "video": torch.randn(count, 3)}
    return x, (x["audio"].sum(1) + 0.3 * x["video"].sum(1) > 0).long()


def by_name(audio, video):
    score = 2 * audio.sum(-1) + 0.6 * video.sum(-1)
    return torch.stack([-score, score], -1)


def report_of(model=by_name, batches=None, *args, **options):
    settings = {"draws": 2, "resamples": 100, "additive_items": 7, "progress": False} | options
    return bg.diagnose(model, [draw()] if batches is None else batches, *args, **settings)


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.audio = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(0.5))
        self.frozen = nn.BatchNorm1d(3).eval()
        self.head = nn.Linear(7, 2)

    def forward(self, audio, video):
        return self.head(torch.cat([self.audio(audio), self.frozen(video)], 1))


def test_modes_statistics_gradients_and_generators_are_left_as_they_were():
    model = Net().train()
    model.frozen.eval()
    modes = [module.training for module in model.modules()]
    before = {name: value.clone() for name, value in model.state_dict().items()}
    seen = []
    model.register_forward_hook(lambda *_: seen.append((torch.is_grad_enabled(), model.training)))
    x, y = draw()
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()

    class Loader:
        """Draws from every generator, as augmentations do."""

        def __iter__(self):
            random.random(), np.random.rand(), torch.rand(1)
            yield x, y

    first, again = (report_of(model, Loader()) for _ in range(2))
    assert first == again  # no dropout
    assert set(seen) == {(False, False)}
    assert [module.training for module in model.modules()] == modes
    assert all((value == before[name]).all() for name, value in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())
    assert (torch.get_rng_state() == states[0]).all()
    assert random.getstate() == states[1]
    assert np.random.get_state()[1].tolist() == states[2]


def test_modes_are_restored_where_the_model_fails():
    class Fails(Net):
        def forward(self, audio, video):
            raise RuntimeError("no")

    model = Fails()
    with pytest.raises(RuntimeError, match="no"):
        report_of(model)
    assert model.training


def test_the_same_by_every_way_of_calling():
    x, y = draw()
    named = {"labels": y, **x}
    renamed = {"l": x["audio"], "r": x["video"], "y": y}
    plain = report_of(by_name, [(x, y)])
    ways = [
        report_of(by_name, [named]),
        report_of(lambda inputs: by_name(**inputs), [(x, y)]),
        report_of(lambda **inputs: by_name(**inputs), [(x, y)]),
        report_of(lambda left, right: by_name(left, right), [(x["audio"], x["video"], y)], ["audio", "video"]),
        report_of(lambda inputs: {"logits": by_name(**inputs)}, [(x, y)]),
        report_of(lambda inputs: {"joint": by_name(**inputs), "audio": None}, [(x, y)]),
        report_of(None, [(x, y)], predict=lambda inputs: by_name(**inputs)),
        report_of(by_name, [y], unpack=lambda labels: (x, labels)),
        report_of(lambda l, r: by_name(l, r), [renamed], {"audio": "l", "video": ("r",)}, labels="y"),  # noqa: E741
        report_of(by_name, [({k: v[:11] for k, v in x.items()}, y[:11]), ({k: v[11:] for k, v in x.items()}, y[11:])]),
    ]
    for way in ways:
        assert way.contributions == pytest.approx(plain.contributions) or way == plain


def test_inputs_of_no_modality_stay_with_their_items():
    x, y = draw()
    own = torch.arange(30.0)
    seen = []

    def model(audio, video, own):
        seen.append(own)
        return by_name(audio, video)

    report = report_of(model, [({**x, "own": own}, y)], ["audio", "video"], additive_items=0)
    assert report.modalities == ("audio", "video")
    assert all((each == own).all() for each in seen)


def test_lists_are_inputs_too():
    x, y = draw()
    words = [str(value.item()) for value in x["audio"].sum(1)]

    def model(audio, video):
        return by_name(torch.tensor([[float(word)] for word in audio]), video)

    found = report_of(model, [({"audio": words, "video": x["video"]}, y)])
    assert found["audio"].shapley.value == pytest.approx(report_of(by_name, [(x, y)])["audio"].shapley.value, rel=1e-5)


@pytest.mark.parametrize("absent", ["zero", "mean", {"audio": 0.0, "video": torch.zeros(3)}])
def test_fixed_values_stand_for_the_absent(absent):
    x, y = draw()
    report = report_of(by_name, [(x, y)], absent=absent)
    mean = {name: v.mean(0, keepdim=True).expand(30, 3) if absent == "mean" else 0 * v for name, v in x.items()}
    wanted = nn.functional.cross_entropy(by_name(x["audio"], mean["video"]), y)
    assert report.subset("audio").risk.value == pytest.approx(wanted.item(), rel=1e-5)
    assert report.settings["draws"] == 1


def test_none_reaches_a_model_that_knows_it():
    def model(audio, video):
        return by_name(torch.zeros(30, 3) if audio is None else audio, torch.zeros(30, 3) if video is None else video)

    none, zero = (report_of(model, absent=absent, additive_items=0) for absent in ("none", "zero"))
    assert none.subset("audio") == zero.subset("audio")
    mean = by_name(*draw()[0].values()).double().softmax(1).mean(0).log()  # of nothing the model is not asked
    assert none.subset([]).risk.value == pytest.approx(
        nn.functional.cross_entropy(mean.expand(30, 2), draw()[1]).item()
    )


def test_tasks():
    x, y = draw()
    both = torch.stack([1 - y, y], 1).float()
    multilabel = report_of(by_name, [(x, both)], task="multilabel")
    assert multilabel.subset(["audio", "video"]).accuracy.value > 90
    regression = report_of(lambda audio, video: audio.sum(1), [(x, x["audio"].sum(1))], task="regression")
    assert regression.subset(["audio", "video"]).risk.value == 0
    assert regression["audio"].points is None
    assert regression["audio"].moved == pytest.approx(2**0.5, rel=0.3)  # of two independent draws
    assert regression.verdict == {"audio": "used", "video": "ignored"}
    assert "sd" in str(regression)
    steps = report_of(
        lambda audio, video: by_name(audio[:, None].expand(-1, 4, -1), video[:, None].expand(-1, 4, -1)),
        [(x, torch.where(torch.arange(4) < 2, y[:, None], -100))],
    )
    assert steps.subset(["audio"]) == report_of(by_name, [(x, y)]).subset(["audio"])


def test_unlabelled_items_are_left_out():
    x, y = draw()
    labels = torch.where(torch.arange(30) < 4, -100, y)
    assert report_of(by_name, [(x, labels)]) == report_of(by_name, [({k: v[4:] for k, v in x.items()}, y[4:])])


X, Y = draw()
WRONG = {
    "exhausted": (lambda: report_of(by_name, iter([])), "an iterator or generator that has been read is empty"),
    "one item": (lambda: report_of(by_name, [({k: v[:1] for k, v in X.items()}, Y[:1])]), "one item has no spread"),
    "one class": (lambda: report_of(by_name, [(X, 0 * Y)]), r"all 30 held-out items are of the class 0"),
    "one value": (lambda: report_of(by_name, [(X, torch.ones(30))], task="regression"), r"have the label 1.0"),
    "no such input": (lambda: report_of(by_name, [(X, Y)], ["audio", "text"]), "'text' names the input 'text'.*audio"),
    "not taken": (lambda: report_of(by_name, [({**X, "text": Y}, Y)]), r"does not take \['text'\].*predict="),
    "no labels": (lambda: report_of(by_name, [dict(X)]), "no 'labels'; name the labels' key in labels="),
    "unnamed": (lambda: report_of(by_name, [(*X.values(), Y)]), r"name the 2 inputs in modalities=\["),
    "form": (lambda: report_of(by_name, [Y]), "a batch is a Tensor; give"),
    "missing": (lambda: report_of(by_name, [(X, Y), (X | {"video": None}, Y)]), "batch 1 has no 'video'"),
    "lengths": (lambda: report_of(by_name, [(X, Y[:9])]), "'audio' has 30 items, but there are 9 labels"),
    "padding": (
        lambda: report_of(by_name, [(X, Y), (X | {"video": X["video"][:, :2]}, Y)]),
        r"'video' has items of shape \(3,\) in one batch and of \(2,\) in another.*pad all",
    ),
    "labels": (lambda: report_of(by_name, [(X, Y.tolist())]), "torch.as_tensor"),
    "task": (lambda: report_of(task="ranking"), "task='ranking': choose one of"),
    "absent": (lambda: report_of(absent="noise"), "absent='noise': choose 'permute', 'zero', 'mean' or 'none'"),
    "one absent": (lambda: report_of(absent={"audio": 0.0}), r"absent= has \['audio'\].*'video'"),
    "draws": (lambda: report_of(draws=1), "draws=1: give a whole number, at least 2"),
    "grid": (lambda: report_of(additive_items=-1), "additive_items=-1"),
    "confidence": (lambda: report_of(confidence=95), "confidence=95"),
    "model": (lambda: report_of(3), "model is a int; give a module"),
    "output": (lambda: report_of(lambda inputs: [1]), "returned a list without logits; give predict="),
    "rows": (lambda: report_of(lambda inputs: torch.zeros(3, 2)), r"\(3, 2\) for 30 items; give predict="),
    "shape": (lambda: report_of(by_name, [(X, torch.rand(30))], task="regression"), "needs labels of the same shape"),
    "name": (lambda: report_of()["text"], "no such modality: 'text'"),
    "ending": (lambda: report_of().save("report.doc"), "'report.doc': end the name in one of"),
    "subset": (lambda: report_of().subset(["text"]), "no such modality: 'text'"),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_wrong_input_is_named(case):
    call, message = WRONG[case]
    with pytest.raises((ValueError, TypeError), match=re.compile(message, re.DOTALL)):
        call()


def test_outputs_that_are_not_finite_name_items_and_modality():
    def model(audio, video):
        return by_name(audio, video) / torch.where(video == 0, 0.0, 1.0).sum(1, keepdim=True)

    with pytest.raises(
        ValueError, match=r"not finite for items \[0, 1, 2, 3, 4\] and 25 more.*with 'audio' and 'video'"
    ):
        report_of(model, absent="zero")
    x, y = draw()
    x["audio"][17] = torch.nan
    y[0] = -100  # which does not move the number
    with pytest.raises(ValueError, match=r"items \[17\] .* with all modalities"):
        report_of(by_name, [(x, y)])


def test_the_text_fits_a_terminal(capsys):
    names = ["a modality with a very long name", *"bcdefgh"]
    x = {name: 1e4 * torch.randn(30, 1) for name in names}
    y = (x[names[0]] > 0).long()[:, 0]
    report = report_of(lambda inputs: sum(inputs.values()) * torch.tensor([-1, 1]), [(x, y)], progress=True)
    text = str(report)
    assert max(map(len, text.splitlines())) <= 100
    assert "16 sampled orders" in text.replace("\n", " ")
    said = capsys.readouterr().err
    passes = report.settings["passes"]
    assert f"diagnose: {passes} passes over 30 items; {30 * passes:,} items go through the model" in said


def test_the_stated_number_of_passes_is_the_number_of_passes(capsys):
    class Heads(Net):
        def forward(self, audio, video):
            return {
                "joint": super().forward(audio, video),
                "audio": by_name(audio, 0 * video),
                "video": by_name(0 * audio, video),
            }

    model, calls = Heads(), []
    model.register_forward_hook(lambda *_: calls.append(1))
    report = report_of(model, encoders={"audio": model.audio, "video": model.frozen}, progress=True)
    said = int(capsys.readouterr().err.split()[1])
    assert said == report.settings["passes"] == 1 + 2 * 3 + 7 + 1 + 1
    assert len(calls) == said + 1  # one batch, to see what the model returns
    assert report.robustness.heads is not None


def test_plain_numbers_and_files(tmp_path):
    report = report_of()
    assert json.loads(json.dumps(report.to_dict()))["contributions"]["audio"]["verdict"] == report.verdict["audio"]
    report.save(tmp_path / "report.json")
    report.save(tmp_path / "report.txt")
    assert json.loads((tmp_path / "report.json").read_text()) == json.loads(json.dumps(report.to_dict()))
    assert (tmp_path / "report.txt").read_text() == f"{report}\n"


def test_frame(monkeypatch):
    report = report_of()
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(ImportError, match="pip install pandas"):
        report.to_frame()
    monkeypatch.undo()
    frame = pytest.importorskip("pandas") and report.to_frame()
    assert list(frame.index) == ["audio", "video"]
    assert frame.loc["audio", "shapley_low"] == report["audio"].shapley.low


def test_a_verdict_follows_from_the_intervals():
    from balanced_grad.diagnosis._contribution import _verdict

    one, zero = Estimate(1, 0.9, 1.1), Estimate(0, 0, 0)

    def said(low, high, beside=zero):
        return _verdict(one, Estimate((low + high) / 2, low, high), beside)

    assert said(0.2, 0.4) == "used"
    assert said(0.2, 0.4, Estimate(0.2, 0.1, 0.3)) == "relies on interaction"
    assert said(0.01, 0.04) == said(-0.02, 0.02) == "barely used"
    assert said(-0.005, 0.005) == "ignored"
    assert said(-0.3, -0.1) == "hurts"
    assert said(0.02, 0.2) == said(-0.1, 0.01) == "inconclusive"
    assert _verdict(one, None, zero) == "inconclusive"
    assert _verdict(zero, None, zero) == "ignored"
