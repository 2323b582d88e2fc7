"""A pytest plugin: a line of JSON per test as it ends, so that a crash or a kill keeps those before it."""

import json
import os


def pytest_runtest_logreport(report):
    if report.when != "call" and report.passed:
        return
    reason = ""
    if report.skipped:
        reason = report.longrepr[2].removeprefix("Skipped: ") if isinstance(report.longrepr, tuple) else "expected"
    elif report.failed:
        crash = getattr(report.longrepr, "reprcrash", None)
        reason = crash.message.splitlines()[0] if crash else str(report.longrepr)[-200:]
    line = {"test": report.nodeid, "outcome": report.outcome, "seconds": report.duration, "reason": reason}
    with open(os.environ["BENCH_GPU_TESTS"], "a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")
