"""The scripts of the page on distributed training, each on two processes."""

import os
import re
import socket
from pathlib import Path

import pytest
from torch import distributed

from tests.releases import fully_shard_on_cpu

PAGE = Path(__file__).parents[2] / "docs" / "distributed.md"
SCRIPTS = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(), re.MULTILINE | re.DOTALL)


def run_script(rank, script, port):
    distributed.destroy_process_group()  # the script starts its own, from what torchrun would set
    os.environ.update(RANK=str(rank), WORLD_SIZE="2", MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    exec(compile(script, PAGE.name, "exec"), {"__name__": "__main__"})
    assert not distributed.is_initialized()


@pytest.mark.parametrize(
    "script", [SCRIPTS[0], pytest.param(SCRIPTS[1], marks=fully_shard_on_cpu)], ids=["ddp", "fully_shard"]
)
def test_script(pair, script):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    pair(run_script, script, port)
