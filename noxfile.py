"""The tests on other versions than the pinned ones: ``python3 run.py matrix``, or ``nox -s newest`` for one of them.

A release of torch other than the pinned one has no build for the CPU alone on the package index; the one that there is
runs on the CPU, and takes 5 GB with what it brings along.
"""

import nox

nox.options.default_venv_backend = "venv"
nox.options.reuse_existing_virtualenvs = True

CORE = ("pytest", "hypothesis")  # beside the extras
# What is left out, by what it needs.
LEFT_OUT = {
    "trainers of other libraries": (
        "balanced_grad/integrations",
        "tests/integrations",
        "tests/arrangements",
        "tests/optim/test_nesting.py",
        "tests/attach/test_transformers.py",
    ),
    "the build tools": ("tests/packaging",),
}


def _run(session: nox.Session, *left_out: str) -> None:
    """All of ``tests/`` and the doctests of the package, but for what is left out, which is printed."""
    ignored = [path for part in left_out for path in LEFT_OUT[part]]
    for part in left_out:
        session.log(f"left out, since {part} are not installed: {', '.join(LEFT_OUT[part])}")
    session.run("python", "-m", "pip", "list")
    arguments = session.posargs or ["tests", "balanced_grad"]
    session.run("python", "-m", "pytest", "-q", *[f"--ignore={path}" for path in ignored], *arguments)


@nox.session(python="3.11")
def lowest(session: nox.Session) -> None:
    """The lowest versions that are declared."""
    session.install("-c", "constraints-lowest.txt", ".[demo,bench]", *CORE)
    _run(session, *LEFT_OUT)


@nox.session(python=["3.11", "3.13"])
def newest(session: nox.Session) -> None:
    """Whatever is newest today."""
    session.install("--upgrade", "--upgrade-strategy", "eager", ".[demo,bench]", *CORE)
    _run(session, *LEFT_OUT)


@nox.session(python="3.13")
def pinned(session: nox.Session) -> None:
    """The pinned versions on the newest Python, trainers and all."""
    session.install("-c", "constraints.txt", "torch")
    session.install("-c", "constraints.txt", ".[dev]")
    _run(session)
