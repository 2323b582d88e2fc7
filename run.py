"""One command on a fresh machine: sets up ``.venv`` beside this file, as far as the task needs it, then does the task.

python3 run.py demo      train on embedded real data, print the table, write the picture to demo-out/
python3 run.py test      lint, spelling, types, tests (doctests, all examples of README and docs), strict docs build
python3 run.py docs      build the documentation into site/
python3 run.py bench     subroutine-time benchmarks
python3 run.py coverage  lines and branches that the tests reach, in one process
python3 run.py matrix    the tests on the lowest and the newest versions: gigabytes, and hours

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
PIP = ("pip", "install", "--quiet", "--disable-pip-version-check", "-c", "constraints.txt")


def call(*command: str) -> None:
    """Run a module of the virtual environment from the project root; stop at its first failure."""
    print("+", *command, flush=True)
    quiet = {"NO_MKDOCS_2_WARNING": "1", "MPLBACKEND": "Agg"}
    status = subprocess.call([str(PYTHON), "-m", *command], cwd=ROOT, env={**os.environ, **quiet})
    if status:
        sys.exit(status)


def set_up(extra: str) -> None:
    """Create the virtual environment and install the project with one of its extras, unless that is done already."""
    wanted = (ROOT / "pyproject.toml").read_text() + (ROOT / "constraints.txt").read_text()
    if any(_installed(done, wanted) for done in (extra, "dev")):
        return
    if not PYTHON.exists():
        venv.create(VENV, with_pip=True)
    call(*PIP, "torch")  # first and alone, so that nothing else chooses its build
    call(*PIP, "-e", f".[{extra}]")
    if extra == "dev":
        # It asks for torchvision, which has no build beside a CPU torch and which nothing that we use of it imports.
        call(*PIP, "--no-deps", "backpack-for-pytorch")
        call(*PIP, "--no-deps", "scikit-multimodallearn")  # of which one file is read, see demo/_packaged.py
    _stamp(extra).write_text(wanted)


def _stamp(extra: str) -> Path:
    return VENV / f"installed-{extra}"


def _installed(extra: str, wanted: str) -> bool:
    return _stamp(extra).exists() and _stamp(extra).read_text() == wanted


def demo(*extra: str) -> None:
    """Run the demo; the default writes its picture and numbers to demo-out/."""
    call("balanced_grad", "demo", *(extra or ("--out", "demo-out")))


def test(*extra: str) -> None:
    """Everything CI checks; with arguments, only pytest on them."""
    if extra:
        return call("pytest", *extra)
    call("ruff", "check", ".")
    call("ruff", "format", "--check", ".")
    call("codespell_lib")
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


def matrix(*extra: str) -> None:
    """The tests on other versions, in environments of their own under .nox/; see noxfile.py."""
    call("nox", *extra)


TASKS = {"demo": demo, "test": test, "docs": docs, "bench": bench, "coverage": coverage, "matrix": matrix}
WITH_EXTRA = ("demo", "bench", "docs", "matrix")  # tasks with an extra of that name; dev, for the others, has all four


def main() -> None:
    """Choose the task."""
    task, *extra = sys.argv[1:] or [""]
    if task not in TASKS:
        sys.exit(f"{__doc__}\nunknown task {task!r}: choose one of {', '.join(TASKS)}")
    if sys.version_info < (3, 11):
        sys.exit(
            f"balanced_grad needs Python 3.11 or newer; this is {sys.version.split()[0]} ({shutil.which('python3')})"
        )
    set_up(task if task in WITH_EXTRA else "dev")
    TASKS[task](*extra)


if __name__ == "__main__":
    main()
