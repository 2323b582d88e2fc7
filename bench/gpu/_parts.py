"""Runs the parts one after the other and shares the time between them."""

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from bench.gpu._case import Clock

ROOT = Path(__file__).resolve().parents[2]
SHARES = {  # of the time left, beside those of the parts to come: what one does not use, the next ones have
    "tests": 4,
    "no_sync": 1,
    "processes": 1,
    "kernels": 4,
    "subroutine": 2,
    "capture": 3,
    "memory": 1,
}
STOPS = 0.9  # of its time after which a part begins nothing new; at the end of it it is killed


def run_all(parts: list[str], device: str, clock: Clock) -> Iterator[dict]:
    """Records of all parts, each with the name of its part."""
    for position, part in enumerate(parts):
        seconds = clock.left() * SHARES[part] / sum(SHARES[other] for other in parts[position:])
        print(f"{part} (at most {max(seconds, 0):.0f} s) ...", flush=True)
        for record in run_part(part, device, seconds):
            yield {"part": part} | record


def run_part(part: str, device: str, seconds: float) -> list[dict]:
    """Records of one part, those of cases that were not reached included."""
    if seconds <= 0:
        return [{"row": "", "left_out": "no time was left"}]
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "records.jsonl"
        out.touch()
        options = ["--device", device, "--seconds", str(STOPS * seconds), "--out", str(out)]
        status = call([sys.executable, "-m", "bench.gpu._worker", part, *options], environment(part, device), seconds)
        lines = [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]
    return [line for line in lines if "row" in line] + unreached(lines, status)


def environment(part: str, device: str) -> dict[str, str]:
    """On the CPU Triton's kernels run in its interpreter, which has to be chosen before Triton is imported."""
    return {**os.environ, **({"TRITON_INTERPRET": "1"} if (part, device) == ("kernels", "cpu") else {})}


def call(command: list[str], variables: dict[str, str], seconds: float) -> int | None:
    """Exit status, or None if the time was up; then with all processes that it has started."""
    process = subprocess.Popen(command, cwd=ROOT, env=variables, start_new_session=True)
    try:
        return process.wait(seconds)
    except subprocess.TimeoutExpired:
        return None
    finally:
        if process.poll() is None:  # also where the user interrupts
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def unreached(lines: list[dict], status: int | None) -> list[dict]:
    """The case in which a part ended, with its reason, and those that it did not come to."""
    if status == 0:
        return []
    ended = (
        {"left_out": "the time was up"} if status is None else {"errors": [f"the process ended with status {status}"]}
    )
    done = {(line["row"], line["column"]) for line in lines if "column" in line}
    rest = [tuple(pair) for line in lines for pair in line.get("cases", ()) if tuple(pair) not in done]
    if not rest:
        return [{"row": "", **ended}]
    reason = "the time was up" if status is None else "the process had ended"
    first, *others = [{"row": row, "column": column} for row, column in rest]
    return [first | ended, *(other | {"left_out": reason} for other in others)]
