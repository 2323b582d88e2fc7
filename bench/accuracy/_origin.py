"""Where a line comes from: versions, commit, machine."""

import os
import platform
import subprocess
from functools import cache
from pathlib import Path
from typing import Any

import torch

import balanced_grad as bg

ROOT = Path(__file__).resolve().parents[2]


def origin() -> dict[str, Any]:
    """What a reader needs to run a line again, and to know whether two lines may be compared."""
    machine = {"system": platform.platform(), "processor": processor(), "cores": os.cpu_count()}
    return {
        "versions": {"balanced-grad": bg.__version__, "torch": torch.__version__, "machine": platform.machine()},
        "commit": commit(),
        "machine": machine | {"threads": torch.get_num_threads()},
    }


@cache
def commit() -> str | None:
    """Commit of the working copy, ``+`` where it was changed since; None outside of one."""
    try:
        head = git("rev-parse", "--short=10", "HEAD")
        return head + "+" * bool(
            git("status", "--porcelain", "--untracked-files=no", "--", "balanced_grad", "bench/*.py")
        )
    except (OSError, subprocess.CalledProcessError):
        return None


def git(*arguments: str) -> str:
    command = ["git", "-C", str(ROOT), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=30).stdout.strip()


@cache
def processor() -> str:
    """Its name; Linux keeps it where ``platform`` does not look."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()
