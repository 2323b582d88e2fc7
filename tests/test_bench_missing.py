"""The bench of missing modalities: curves are read off by pattern, and a run is not repeated."""

import json
import sys

import pytest
import torch

pytest.importorskip("torchjd", reason="the peer of the benchmarks; pip install 'balanced-grad[bench]'")
pytest.importorskip("sklearn", reason="pip install 'balanced-grad[demo]'")

from bench import missing

NAMES = ("audio", "video")
FULL, AUDIO, VIDEO = (True, True), (True, False), (False, True)


def test_each_item_is_judged_under_its_own_pattern():
    hits = {FULL: torch.tensor([1, 1, 1, 0]) > 0, AUDIO: torch.tensor([0, 1, 0, 0]) > 0}
    masks = torch.tensor([FULL, AUDIO, AUDIO, FULL])
    assert missing.right(hits, masks) == 50.0


def test_curves_go_from_complete_items_to_those_without():
    always, never = torch.ones(400, dtype=torch.bool), torch.zeros(400, dtype=torch.bool)
    found = {rule: {FULL: always, AUDIO: always, VIDEO: never} for rule in missing.RULES}
    curves = missing.curves(found, NAMES, seed=0)
    for rule in missing.RULES:
        mcar, one = curves["MCAR"][rule], curves["one"][rule]
        assert mcar[0] == one[0] == 100
        for rate, in_mcar, in_one in zip(missing.RATES, mcar, one, strict=True):
            assert in_mcar == pytest.approx(100 * (1 - rate + rate**2 / 2), abs=6)
            assert in_one == pytest.approx(100 - 50 * rate, abs=5)


def test_it_runs_prints_and_repeats_nothing(tmp_path, monkeypatch, capsys):
    out = tmp_path / "missing.jsonl"
    arguments = ["--datasets", "digits-hard", "--seeds", "1", "--epochs", "1", "--out", str(out)]
    monkeypatch.setattr(sys, "argv", ["missing", *arguments])
    monkeypatch.setattr(missing, "EPOCHS", 1)
    missing.main()
    first = capsys.readouterr().out
    assert "| digits-hard, dropped, fill-in |" in first
    assert len(out.read_text().splitlines()) == len(missing.TRAININGS)
    line = json.loads(out.read_text().splitlines()[0])
    assert set(line["MCAR"]) == set(line["one"]) == set(missing.RULES)
    monkeypatch.setattr(missing, "run", lambda *_: pytest.fail("a run was repeated"))
    missing.main()
    assert capsys.readouterr().out == first
