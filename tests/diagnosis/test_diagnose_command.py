"""``balanced-grad diagnose`` on a script of a user's."""

import json
import textwrap

import pytest

from balanced_grad.__main__ import main

SCRIPT = """
import torch

def model(audio, video):
    score = 3 * audio.sum(1)
    return torch.stack([-score, score], 1)

def trained():
    torch.manual_seed(0)
    x = {"audio": torch.randn(200, 2), "video": torch.randn(200, 2)}
    return model, [(x, (x["audio"].sum(1) > 0).long())]

def positional():
    _, [(x, y)] = trained()
    return model, [(*x.values(), y)], {"modalities": ["audio", "video"], "draws": 3}

def alone():
    return model

def loader():
    return model, []

def options():
    return model, [], 3

def fails():
    raise KeyError("weights.pt")
"""


@pytest.fixture
def script(tmp_path):
    (tmp_path / "train.py").write_text(textwrap.dedent(SCRIPT))
    return str(tmp_path / "train.py")


@pytest.mark.parametrize(("function", "draws"), [("trained", 8), ("positional", 3)])
def test_the_command_prints_the_report_and_states_its_cost(script, capsys, function, draws):
    assert main(["diagnose", f"{script}:{function}"]) == 0
    out, err = capsys.readouterr()
    assert [line.split()[1] for line in out.splitlines() if line.startswith(("audio ", "video "))][:2] == [
        "used",
        "ignored",
    ]
    assert f"({draws} draws)" in out
    assert f"{1 + 3 * draws + 200} passes over 200 items" in err


def test_files_and_options(script, capsys, tmp_path):
    pytest.importorskip("matplotlib", reason="pip install 'balanced-grad[demo]'")
    arguments = ["--out", str(tmp_path / "new" / "folder"), "--absent", "zero", "--seed", "3", "--device", "cpu"]
    assert main(["diagnose", f"{script}:trained", *arguments]) == 0
    out, _ = capsys.readouterr()
    folder = tmp_path / "new" / "folder"
    assert (folder / "report.txt").read_text() == out
    settings = json.loads((folder / "report.json").read_text())["settings"]
    assert (settings["absent"], settings["seed"]) == ("zero", 3)
    assert sorted(path.name for path in folder.iterdir()) == [f"report.{end}" for end in ("html", "json", "png", "txt")]


@pytest.mark.parametrize(
    ("function", "message"),
    [
        ("alone", "returns an object of type function; it must return (model, loader)"),
        ("options", "the third thing that"),
        ("loader", "the loader gave no batch"),
        ("fails", "KeyError: 'weights.pt'"),
        ("nothing", "has no function 'nothing'"),
    ],
)
def test_what_is_wrong_is_said(script, capsys, function, message):
    assert main(["diagnose", f"{script}:{function}"]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert message in err


@pytest.mark.parametrize("target", ["train.py", "missing.py:trained"])
def test_targets_that_lead_nowhere_end_with_status_2(target, capsys):
    with pytest.raises(SystemExit, match="2"):
        main(["diagnose", target])
    assert "names no function" in (said := capsys.readouterr().err) or "there is no file" in said
