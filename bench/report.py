"""Run the benchmarks and write their tables into docs/performance.md, with date and machine.

    python -m bench.report                     # everything, about five minutes on two quiet cores
    python -m bench.report --only capture      # one part; the others keep the numbers they have

The page holds a part between two HTML comments per benchmark; text outside them is kept.
"""

import argparse
import datetime
import json
import os
import platform
import re
import subprocess
import sys
import tempfile
from collections import defaultdict
from functools import partial
from pathlib import Path

import torch

from bench._markdown import header, narrow, row

PAGE = Path(__file__).resolve().parent.parent / "docs" / "performance.md"


def machine() -> str:
    """Processor, cores and versions, in one line; how many threads a part uses is said on the page."""
    name = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        found = re.search(r"model name\s*: (.*)", cpuinfo.read_text())
        name = found.group(1) if found else name
    return f"{name}, {os.cpu_count()} cores, torch {torch.__version__}, Python {platform.python_version()}"


def run_pytest(path: str) -> list[dict]:
    """Benchmark records of one file."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "out.json"
        command = [sys.executable, "-m", "pytest", path, "--benchmark-only", "-q", f"--benchmark-json={out}"]
        subprocess.run(command, check=True)
        return json.loads(out.read_text())["benchmarks"]


def wide_table(records: list[dict], first: str, column, value) -> str:
    """One row per way, one column per case, in the order in which they ran; cut where it is too wide."""
    rows: dict[str, dict[str, str]] = defaultdict(dict)
    columns: dict[str, None] = {}
    for record in records:
        columns[column(record)] = None
        rows[record["params"].get("way") or record["params"]["name"]][column(record)] = value(record)
    lines = [row(way, *(cells.get(c, "") for c in columns)) for way, cells in rows.items()]
    return narrow("\n".join([header(first, *columns), *lines]))


def capture() -> str:
    command = [sys.executable, "-m", "bench.capture", "--threads", "1"]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return done.stdout.split("\n", 1)[1].strip()


def case(record: dict) -> str:
    """Number of rows and their length."""
    return f"M={record['params']['count']}, D={record['params']['size']:.0e}".replace("e+0", "e")


def gramian() -> str:
    def cell(record: dict) -> str:
        return f"{record['extra_info']['ratio']:.1f} ({record['extra_info']['error']:.0e})"

    return wide_table(run_pytest("bench/test_gramian.py"), "time / one read (relative error)", case, cell)


def subroutine() -> str:
    return wide_table(
        run_pytest("bench/test_subroutine.py"),
        "time / (read M rows, write one)",
        case,
        lambda r: f"{r['extra_info']['ratio']:.1f}",
    )


def kernels() -> str:
    """One table per pass."""
    records = run_pytest("bench/test_kernels.py")
    tables = []
    for name in dict.fromkeys(r["params"]["name"] for r in records):
        of_pass = [r for r in records if r["params"]["name"] == name]
        table = wide_table(of_pass, "time / floor", case, lambda r: f"{r['extra_info']['ratio']:.1f}")
        tables.append(f"{name}:\n\n{table}")
    return "\n\n".join(tables)


def min_norm() -> str:
    records = run_pytest("bench/test_min_norm.py")
    tables = []
    for title, group, solved in (
        ("One problem", "one at a time", 12),
        ("A batch of 1000 problems", "a batch of 1000", 1),
    ):
        of_group = [r for r in records if group in r["group"]]
        cell = partial(time_and_gap, solved=solved)
        table = wide_table(of_group, "median (worst gap)", lambda r: f"M={r['params']['M']}", cell)
        tables.append(f"{title}:\n\n{table}")
    return "\n\n".join(tables)


def time_and_gap(record: dict, solved: int) -> str:
    """Median time per solve and, where it was measured, the worst duality gap over the largest diagonal entry."""
    micro = 1e6 * record["stats"]["median"] / solved
    time = f"{micro:.1f} µs" if micro < 1000 else f"{micro / 1000:.1f} ms"
    gap = record["extra_info"].get("gap")
    return time if gap is None else f"{time} ({max(gap, 0):.0e})"


def overhead() -> str:
    return wide_table(
        run_pytest("bench/test_overhead.py"),
        "training step / that of the plain sum",
        lambda r: f"M={r['params']['modalities']}",
        lambda r: f"{r['extra_info']['ratio']:.3f}",
    )


PARTS = {
    "capture": capture,
    "gramian": gramian,
    "subroutine": subroutine,
    "kernels": kernels,
    "overhead": overhead,
    "min_norm": min_norm,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=list(PARTS))
    only = parser.parse_args().only
    page = PAGE.read_text()
    for name in [only] if only else PARTS:
        block = re.compile(f"(<!-- {name} -->\n).*?(<!-- /{name} -->)", re.DOTALL)
        if not block.search(page):
            sys.exit(f"{PAGE} has no part between <!-- {name} --> and <!-- /{name} -->")
        text = f"Measured {datetime.date.today()} on {machine()}.\n\n{PARTS[name]()}\n"
        page = block.sub(lambda match, text=text: match.group(1) + text + match.group(2), page)
        PAGE.write_text(page)  # after every part, so that an interruption loses one only


if __name__ == "__main__":
    main()
