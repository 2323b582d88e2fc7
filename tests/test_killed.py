"""A process that is killed, in training or in saving, and started again ends where one that runs through does."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import torch

from tests.state_cases import METHODS, built, train

STEPS = 12


def work(folder, kill_at):
    """Train one model per method, with a checkpoint after every other step; go on from the last one that is whole."""
    torch.set_num_threads(1)
    runs = {}
    for kind in METHODS:
        module = built(kind)
        runs[kind] = module, torch.optim.SGD(module.parameters(), lr=0.1, momentum=0.9)
    start, path = 0, folder / "checkpoint.pt"
    if path.exists():
        saved = torch.load(path, weights_only=True)
        start = saved["step"]
        for kind, (module, optimizer) in runs.items():
            module.load_state_dict(saved[kind][0])
            optimizer.load_state_dict(saved[kind][1])
    for step in range(start, STEPS):
        for place, (module, optimizer) in enumerate(runs.values()):
            train(module, [step], optimizer)
            if kill_at == step and place == len(runs) // 2:
                os.kill(os.getpid(), signal.SIGKILL)
        if step % 2:
            parts = {kind: (module.state_dict(), optimizer.state_dict()) for kind, (module, optimizer) in runs.items()}
            torch.save({"step": step + 1} | parts, folder / "partial.pt")
            if kill_at == step + 0.5:
                os.truncate(folder / "partial.pt", 1000)
                os.kill(os.getpid(), signal.SIGKILL)
            (folder / "partial.pt").replace(path)


def started(folder, kill_at=-1.0):
    folder.mkdir(exist_ok=True)
    command = [sys.executable, "-m", "tests.test_killed", str(folder), str(kill_at)]
    return subprocess.run(command, cwd=Path(__file__).parents[1], check=False).returncode


def test_killed_and_started_again(tmp_path):
    (tmp_path / "through").mkdir()
    work(tmp_path / "through", -1)
    for kill_at in (4, 7.5):
        assert started(tmp_path / "killed", kill_at) == -signal.SIGKILL
    assert started(tmp_path / "killed") == 0
    ends = [torch.load(tmp_path / name / "checkpoint.pt", weights_only=True) for name in ("through", "killed")]
    assert ends[0]["step"] == STEPS
    torch.testing.assert_close(*ends, rtol=0, atol=0)


if __name__ == "__main__":
    work(Path(sys.argv[1]), float(sys.argv[2]))
