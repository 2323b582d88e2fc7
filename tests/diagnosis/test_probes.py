"""Probes of encoders: who is behind whom, against what is known."""

import json
import re

import numpy as np
import pytest
import torch
from torch import nn

import balanced_grad as bg
from balanced_grad.attachment import encoder_features
from balanced_grad.diagnosis import probe_encoders

pytest.importorskip("sklearn", reason="pip install 'balanced-grad[demo]'")


class Late(nn.Module):
    """Ears hear everything, eyes see half of it."""

    def __init__(self):
        super().__init__()
        self.ears, self.eyes, self.head = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(8, 2)
        with torch.no_grad():
            self.ears.weight.copy_(torch.eye(4))
            self.eyes.weight.copy_(torch.diag(torch.tensor([0.0, 0.0, 1.0, 1.0])))

    def forward(self, audio, video):
        return self.head(torch.cat([self.ears(audio), self.eyes(video)], 1))


def draw(count=240):
    torch.manual_seed(0)
    x = {"audio": torch.randn(count, 4), "video": torch.randn(count, 4)}
    return x, (x["audio"][:, 0] + x["video"][:, 0] > 0).long()


def probes_of(model=None, batches=None, *args, **options):
    model = model or Late()
    settings = {"resamples": 200} | options
    return probe_encoders(model, batches or [draw()], {"audio": model.ears, "video": model.eyes}, *args, **settings)


def test_an_encoder_that_lost_something_is_behind_and_one_that_lost_nothing_is_not():
    found = probes_of()
    assert (found["audio"].verdict, found["video"].verdict) == ("inconclusive", "left behind")
    assert found["audio"].gap.value == pytest.approx(0, abs=1e-6)  # the same features
    assert found["audio"].accuracy == found["audio"].reference_accuracy
    assert found["video"].points.high < 0
    assert found["video"].points.value == pytest.approx(found["video"].accuracy - found["video"].reference_accuracy)
    assert json.loads(json.dumps(found["video"].to_dict()))["verdict"] == "left behind"


def test_they_are_part_of_a_report_where_encoders_are_given():
    model, batches = Late(), [draw()]
    options = {"draws": 2, "resamples": 200, "additive_items": 0, "progress": False}
    report = bg.diagnose(model, batches, encoders={"audio": model.ears, "video": model.eyes}, **options)
    assert report.probes == probes_of(model, batches)
    assert "left behind" in str(report)
    assert max(map(len, str(report).splitlines())) <= 100
    assert report.to_dict()["probes"]["video"]["verdict"] == "left behind"
    assert bg.diagnose(model, batches, **options).probes is None
    with pytest.raises(ValueError, match="encoders has 'text'"):
        bg.diagnose(model, batches, encoders={"text": model.ears}, **options)


def test_a_reference_of_the_users_is_asked_in_eval_mode():
    class Alone(nn.Module):
        def forward(self, x):
            assert not self.training
            return torch.zeros(len(x), 2, 3)  # any shape

    alone = Alone().train()
    found = probes_of(None, None, {"audio": alone, "video": lambda x: x[:, :1]})
    assert alone.training
    assert (found["audio"].verdict, found["video"].verdict) == ("ahead", "left behind")


def test_other_tasks():
    x, y = draw()
    both = torch.stack([y, 1 - y], 1)
    several = probes_of(None, [(x, both)], task="multilabel")
    assert several["video"].verdict == "left behind"
    assert several["video"].accuracy == pytest.approx(probes_of()["video"].accuracy, abs=3)
    numbers = probes_of(None, [(x, x["video"][:, 0] + 0.1 * torch.randn(len(y)))], task="regression")
    assert numbers["video"].verdict == "left behind"
    assert numbers["video"].points is None


def test_nothing_is_left_behind():
    model, batches = Late().train(), [draw()]
    state = torch.get_rng_state()
    first, again = probes_of(model, batches), probes_of(model, batches)
    assert first == again
    assert model.training
    assert (torch.get_rng_state() == state).all()
    assert not model.ears._forward_hooks
    assert not model._forward_pre_hooks


def test_features_are_those_of_the_last_forward_and_have_no_graph():
    model = Late()
    with encoder_features(model, {"audio": model.ears}, pool=lambda out: 2 * out) as caught:
        model(torch.ones(3, 4), torch.ones(3, 4))
        features = caught.features["audio"]
    torch.testing.assert_close(features, 2 * model.ears(torch.ones(3, 4)).detach())
    assert not features.requires_grad
    assert not model.ears._forward_hooks


X, Y = draw()
WRONG = {
    "reference": (lambda: probes_of(None, None, "alone"), "reference='alone': write 'raw'"),
    "one": (lambda: probes_of(None, None, {"audio": nn.Identity()}), "reference= has nothing for 'video'"),
    "folds": (lambda: probes_of(folds=1), "folds=1"),
    "head": (lambda: probes_of(head="deep"), "head='deep'"),
    "name": (lambda: probes_of(None, [({"audio": X["audio"], "eyes": X["video"]}, Y)], predict=lambda x: x["audio"]),
             "encoders has 'video', but the modalities are"),
    "few": (lambda: probes_of(None, [({k: v[:9] for k, v in X.items()}, torch.arange(9) // 8)]), "a class has 1 items"),
    "shares": (lambda: probes_of(None, [(X, torch.nn.functional.one_hot(Y).float())]), "one class index per item"),
    "finite": (lambda: probes_of(None, None, {"audio": lambda x: x / 0, "video": nn.Identity()}),
               r"reference\['audio'\] has features that are not finite, for items \[0, 1, 2, 3, 4\]"),
    "uncalled": (lambda: probes_of(predict=lambda x: torch.zeros(len(x["audio"]), 2)), "did not call the encoder of"),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_wrong_input_is_named(case):
    call, message = WRONG[case]
    with pytest.raises((ValueError, TypeError), match=re.compile(message)):
        call()


def test_heads_do_not_see_the_items_that_judge_them():
    from balanced_grad.diagnosis._folds import out_of_fold, splits_of

    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(60, 40)), rng.integers(2, size=60)  # noise: a head that had seen them would do well
    splits = splits_of(y, "classification", 3, 0)
    assert sorted(np.concatenate([test for _, test in splits])) == list(range(60))
    _, hits = out_of_fold(x, y, "classification", "linear", splits, 0)
    assert hits.mean() < 0.75
