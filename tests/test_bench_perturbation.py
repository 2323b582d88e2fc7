"""The bench of perturbed sensors: what each corruption does, and that all methods see the same."""

import os
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("torchjd", reason="the peer of the benchmarks; pip install 'balanced-grad[bench]'")
pytest.importorskip("matplotlib", reason="pip install 'balanced-grad[demo]'")

from balanced_grad.demo._data import Dataset, Split
from balanced_grad.demo._model import LateFusion
from bench import perturbation as study
from bench._corruptions import CORRUPTIONS, corrupted

INPUTS = {"audio": torch.randn(400, 20), "video": torch.randn(400, 5)}


class TestCorruptions:
    @pytest.mark.parametrize("kind", CORRUPTIONS)
    def test_severity_zero_changes_nothing_and_the_others_stay_clean(self, kind):
        for severity in (0.0, 1.0):
            found = corrupted(INPUTS, "audio", kind, severity, seed=0)
            assert list(found) == list(INPUTS)
            assert found["video"] is INPUTS["video"]
            assert torch.equal(found["audio"], INPUTS["audio"]) == (severity == 0)

    @pytest.mark.parametrize("kind", ["attenuation", "dropout"])
    def test_nothing_is_left_at_severity_one(self, kind):
        assert not corrupted(INPUTS, "audio", kind, 1.0, seed=0)["audio"].any()

    @pytest.mark.parametrize("kind", CORRUPTIONS)
    def test_the_same_seed_spoils_alike(self, kind):
        one, two, other = (corrupted(INPUTS, "audio", kind, 0.5, seed)["audio"] for seed in (1, 1, 2))
        assert torch.equal(one, two)
        assert torch.equal(one, other) == (kind == "attenuation")

    @pytest.mark.parametrize("severity", [0.5, 2.0])
    def test_noise_has_the_deviation_that_it_says(self, severity):
        added = corrupted(INPUTS, "audio", "noise", severity, seed=0)["audio"] - INPUTS["audio"]
        assert float(added.std()) == pytest.approx(severity, rel=0.05)

    def test_dropout_takes_its_share_and_leaves_the_rest(self):
        found = corrupted(INPUTS, "audio", "dropout", 0.25, seed=0)["audio"]
        assert float((found == 0).double().mean()) == pytest.approx(0.25, abs=0.03)
        assert torch.equal(found[found != 0], INPUTS["audio"][found != 0])

    def test_attenuation_halves(self):
        torch.testing.assert_close(corrupted(INPUTS, "audio", "attenuation", 0.5, 0)["audio"], INPUTS["audio"] / 2)


def test_curves_of_a_model_that_looks_at_one_modality():
    torch.manual_seed(0)
    model = LateFusion({"audio": (20,), "video": (5,)}, 3)
    with torch.no_grad():
        model.fused.weight[:, 32:] = 0  # of the features of video
        labels = model.fuse(model.features(INPUTS)).argmax(1)
    split = Split(INPUTS, labels)
    found = study.curves(model, Dataset("", "", 3, split, split, split), seed=0)
    assert found["clean"] == [100.0]
    assert all(50 < value < 100 for kind in CORRUPTIONS for value in found[kind])  # one of two modalities has no part
    assert found["attenuation"][-1] == found["dropout"][-1]


@pytest.mark.skipif(
    not Path(os.environ.get("BALANCED_GRAD_DATA", "/nowhere"), "wiki").exists(), reason="BALANCED_GRAD_DATA has no wiki"
)
def test_it_prints_its_tables_and_draws(tmp_path, monkeypatch, capsys):
    picture = tmp_path / "picture.png"
    arguments = ["--datasets", "wiki", "--seeds", "1", "--epochs", "1", "--plot", str(picture)]
    monkeypatch.setattr(sys, "argv", ["perturbation", *arguments])
    study.main()
    shown = capsys.readouterr().out
    assert shown.count("| --- |") == 1 + len(CORRUPTIONS)
    for row in ("| wiki, default, clean |", "| wiki, tuned, dropout |", "| wiki, MIMO |"):
        assert row in shown
    assert picture.stat().st_size > 10_000
