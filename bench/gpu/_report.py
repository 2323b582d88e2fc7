"""What was run on, and all results as Markdown."""

import datetime
import importlib.metadata
import platform
import subprocess

import torch

from bench._markdown import markdown

CELLS = {  # parts with a column per size: what a cell says
    "kernels": lambda record: f"{record['share']:.0%} ({record['ms']:.3g} ms)",
    "subroutine": lambda record: f"{record['ratio']:.3g} ({record['ms']:.3g} ms)",
}
TITLES = {
    "tests": "Tests marked gpu",
    "no_sync": "Reads on the host in a step",
    "processes": "In a group of one process: largest difference from the step without a group",
    "kernels": "Passes: share of the bandwidth of a copy (time)",
    "subroutine": "Subroutine: time / (read M rows, write one)",
    "capture": "Forward + backward / those of the plain sum",
    "memory": "Peak memory beyond the plain sum's",
}
PLAIN = {"part", "row", "column", "errors", "left_out"}


def machine(device: str) -> dict:
    """Versions, device and date."""
    versions = {name: version(name) for name in ("torch", "triton", "torchjd", "cvxpy", "scipy", "numpy")}
    described = {"date": str(datetime.date.today()), "python": platform.python_version(), "versions": versions}
    if device != "cuda":
        return described | {"device": f"a rehearsal on the CPU, {platform.processor() or platform.machine()}"}
    properties = torch.cuda.get_device_properties(0)
    return described | {
        "device": properties.name,
        "memory_gib": round(properties.total_memory / 2**30, 1),
        "capability": f"{properties.major}.{properties.minor}",
        "cuda": torch.version.cuda,
        "driver": driver(),
    }


def version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def driver() -> str | None:
    """As nvidia-smi says it, where there is one."""
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()[0]
    except (OSError, subprocess.CalledProcessError, IndexError):
        return None


def report(described: dict, records: list[dict]) -> str:
    """One table per part, then what failed and what was left out."""
    there = {name: number for name, number in described["versions"].items() if number}
    rest = {key: value for key, value in described.items() if key != "versions"} | there
    lines = ["Measured " + ", ".join(f"{key} {value}" for key, value in rest.items()) + "."]
    for part, title in TITLES.items():
        table = table_of(part, [record for record in records if record["part"] == part])
        lines += [f"### {title}", table] if table else []
    failed = [f"* {where(record)}: {error.splitlines()[0]}" for record in records for error in record.get("errors", ())]
    absent = [f"* {where(record)}: {record['left_out']}" for record in records if "left_out" in record]
    lines += ["### Failed", "\n".join(failed) or "Nothing."]
    lines += ["### Left out", "\n".join(absent) or "Nothing."]
    return "\n\n".join(lines) + "\n"


def where(record: dict) -> str:
    return ", ".join(filter(None, (record["part"], record["row"], record.get("column"))))


def table_of(part: str, records: list[dict]) -> str:
    """A row per case with a column per number, or with a column per size."""
    rows: dict[str, dict[str, str]] = {}
    for record in records:
        numbers = {key: value for key, value in record.items() if key not in PLAIN}
        if not numbers:
            continue
        cells = {record["column"]: CELLS[part](record)} if part in CELLS else {k: text(v) for k, v in numbers.items()}
        rows.setdefault(record["row"], {}).update(cells)
    columns = list(dict.fromkeys(name for cells in rows.values() for name in cells))
    return (
        markdown(part, columns, {row: [cells.get(c, "") for c in columns] for row, cells in rows.items()})
        if rows
        else ""
    )


def text(value: object) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)
