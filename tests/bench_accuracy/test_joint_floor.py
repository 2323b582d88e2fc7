import sys

from bench import joint_floor


def test_a_row_per_floor_and_share(monkeypatch, capsys):
    arguments = ["--datasets", "synergy", "--floors", "0", "1", "--shares", "0.3", "--seeds", "1", "--epochs", "1"]
    monkeypatch.setattr(sys, "argv", ["joint_floor", *arguments])
    joint_floor.main()
    _, _, *rows = capsys.readouterr().out.splitlines()
    assert [row.split(" | ")[0] for row in rows] == ["| joint_floor=0", "| joint_floor=1", "| joint's share >= 0.3"]
    assert all(0 < float(row.split(" | ")[1].split(",")[0]) <= 100 for row in rows)
