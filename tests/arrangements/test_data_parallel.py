"""Trainers on two processes, with the wrapper options that they choose by themselves."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.arrangements.reference import METHODS

TRAINERS = ("hugging_face", "accelerate", "lightning", "lightning_unused")
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def printed():
    pytest.importorskip("transformers")
    pytest.importorskip("accelerate")
    pytest.importorskip("lightning.pytorch")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*command, "-m", "tests.arrangements.data_parallel"],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=600,
    )
    lines = [line for line in done.stdout.splitlines() if line.startswith("RESULT ")]
    # Not the exit status: the launcher's store sometimes complains when all is done.
    assert len(lines) == len(METHODS) * len(TRAINERS), done.stdout[-2000:] + done.stderr[-4000:]
    return lines


@pytest.mark.parametrize("trainer", TRAINERS)
@pytest.mark.parametrize("name", METHODS)
def test_the_gradient_of_the_whole_batch(printed, name, trainer):
    assert f"RESULT {trainer} {name}: right" in printed
