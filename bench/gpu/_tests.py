"""The tests marked ``gpu``, one file after the other."""

import json
import os
import re
import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path

from bench.gpu._case import Case, Clock, LeftOut
from bench.gpu._parts import ROOT

MARK = re.compile(r"^(@|pytestmark = )pytest\.mark\.gpu\b", re.MULTILINE)


def files() -> list[Path]:
    return sorted(path for path in (ROOT / "tests").rglob("test_*.py") if MARK.search(path.read_text(encoding="utf-8")))


def cases(device: str, clock: Clock) -> list[Case]:
    return [Case(str(path.relative_to(ROOT)), partial(run_file, path, clock)) for path in files()]


def run_file(path: Path, clock: Clock) -> dict:
    """How many tests passed, were skipped and failed, and which."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "tests.jsonl"
        out.touch()
        text = run_pytest(path, out, clock)
        tests = [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]
    absent = re.search(r"No module named '(?!balanced_grad|bench|tests)([\w.]+)'", text or "")
    if not tests and absent:
        raise LeftOut(f"it imports {absent.group(1)}, which is not installed")
    return count(tests, text)


def run_pytest(path: Path, out: Path, clock: Clock) -> str | None:
    """What pytest says, or None if the time was up. Plugins of the image, ours apart, have no part in it."""
    command = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", "-p", "bench.gpu._collect", str(path)]
    search = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    variables = {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", "BENCH_GPU_TESTS": str(out), "PYTHONPATH": search}
    options = {"capture_output": True, "text": True, "check": False, "timeout": clock.left()}
    try:
        done = subprocess.run(command, cwd=ROOT, env={**os.environ, **variables}, **options)
    except subprocess.TimeoutExpired:
        return None
    return done.stdout + done.stderr


def count(tests: list[dict], text: str | None) -> dict:
    """Summary of one file: of each outcome how many, and the reasons."""
    kinds = {kind: [t for t in tests if t["outcome"] == kind] for kind in ("passed", "skipped", "failed")}
    summary: dict = {kind: len(those) for kind, those in kinds.items()}
    summary["seconds"] = round(sum(t["seconds"] for t in tests), 1)
    if kinds["failed"]:
        summary["errors"] = [f"{t['test']}: {t['reason']}" for t in kinds["failed"]]
    if kinds["skipped"]:
        summary["left_out"] = "; ".join(dict.fromkeys(t["reason"] for t in kinds["skipped"]))
    if text is None:
        summary["left_out"] = f"the time was up after {len(tests)} tests"
    elif not tests:
        summary["errors"] = [f"no test ran: {text.strip()[-300:]}"]
    return summary
