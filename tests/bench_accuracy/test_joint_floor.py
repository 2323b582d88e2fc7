import sys

from bench import joint_floor


def test_a_row_per_floor(monkeypatch, capsys):
    arguments = ["--datasets", "synergy", "--floors", "0", "1", "--seeds", "1", "--epochs", "1"]
    monkeypatch.setattr(sys, "argv", ["joint_floor", *arguments])
    joint_floor.main()
    _, _, *rows = capsys.readouterr().out.splitlines()
    assert [row.split(" | ")[0] for row in rows] == ["| joint_floor=0", "| joint_floor=1"]
    assert all(0 < float(row.split(" | ")[1].split(",")[0]) <= 100 for row in rows)
