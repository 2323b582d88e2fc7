"""One command on a fresh machine: sets up ``.venv`` beside this file, then does the task.

python3 run.py demo    train on embedded real data, print the table, write the picture to demo-out/
python3 run.py test    lint, types, tests (doctests and the examples of README and docs too), strict docs build
python3 run.py docs    build the documentation into site/
python3 run.py bench   subroutine-time benchmarks
python3 run.py coverage  lines and branches that the tests reach, in one process

Further arguments go to the task: ``python3 run.py demo --seeds 5``, ``python3 run.py test tests/test_balancer.py``.
"""

import os
import shutil
import subprocess
import sys
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parent
VENV = ROOT / ".venv"
PYTHON = VENV / ("Scripts/python.exe" if os.name == "nt" else "bin/python")


def call(*command: str) -> None:
    """Run a command of the virtual environment from the project root; stop at its first failure."""
    print("+", *command, flush=True)
    quiet = {"NO_MKDOCS_2_WARNING": "1", "MPLBACKEND": "Agg"}
    status = subprocess.call([str(PYTHON), "-m", *command], cwd=ROOT, env={**os.environ, **quiet})
    if status:
        sys.exit(status)


def set_up() -> None:
    """Create the virtual environment and install the project with all extras, unless that is done already."""
    wanted = (ROOT / "pyproject.toml").read_text() + (ROOT / "constraints.txt").read_text()
    stamp = VENV / "installed-for"
    if stamp.exists() and stamp.read_text() == wanted:
        return
    if not PYTHON.exists():
        venv.create(VENV, with_pip=True)
    pip = ("pip", "install", "--quiet", "--disable-pip-version-check", "-c", "constraints.txt")
    call(*pip, "torch")  # first and alone, so that nothing else chooses its build
    call(*pip, "-e", ".[dev]")
    # It asks for torchvision, which has no build beside a CPU torch and which nothing that we use of it imports.
    call(*pip, "--no-deps", "backpack-for-pytorch")
    stamp.write_text(wanted)


def demo(*extra: str) -> None:
    """Run the demo; the default writes its picture and numbers to demo-out/."""
    call("balanced_grad", "demo", *(extra or ("--out", "demo-out")))


def test(*extra: str) -> None:
    """Everything CI checks; with arguments, only pytest on them."""
    if extra:
        return call("pytest", *extra)
    call("ruff", "check", ".")
    call("ruff", "format", "--check", ".")
    call("mypy")
    docs()
    return call("pytest")


def docs(*extra: str) -> None:
    """Build the documentation; a broken link or reference is an error."""
    call("mkdocs", "build", "--strict", "--quiet", *extra)


def bench(*extra: str) -> None:
    """Run the benchmarks (they print ratios measured side by side in one run)."""
    call("pytest", "bench", "--benchmark-only", *extra)


def coverage(*extra: str) -> None:
    """Tests again, with the lines and branches they reach: apart from ``test``, which it would slow down by a third."""
    call("pytest", "--cov", *extra)


def main() -> None:
    """Choose the task."""
    tasks = {"demo": demo, "test": test, "docs": docs, "bench": bench, "coverage": coverage}
    if len(sys.argv) < 2 or sys.argv[1] not in tasks:
        sys.exit(f"{__doc__}\nunknown task {sys.argv[1:2]}: choose one of {', '.join(tasks)}")
    if sys.version_info < (3, 11):
        sys.exit(
            f"balanced_grad needs Python 3.11 or newer; this is {sys.version.split()[0]} ({shutil.which('python3')})"
        )
    set_up()
    tasks[sys.argv[1]](*sys.argv[2:])


if __name__ == "__main__":
    main()
