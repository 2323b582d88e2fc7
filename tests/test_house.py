"""Places that a change must not forget: pages, changelog, tests, versions. CONTRIBUTING.md lists them for people."""

import importlib
import inspect
import re
from pathlib import Path

import pytest

import balanced_grad as bg

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"

# Names of a room's __init__ that docs/api.md leaves out, each with its reason: this list can only shrink.
UNDOCUMENTED = {
    "modulation.grouped": "between rooms: what modalities= may be, made one type",
    "modulation.Muted": "a type, spelled out where it occurs",
    "modulation.Modalities": "likewise",
    "modulation.Target": "likewise",
    "modulation.score": "one modality's part of scores",
    "optim.ActivityWatch": "of the loggers and the wrapper",
}
# Rooms whose names are for other rooms; docs/api.md says what of them a user meets.
INSIDE = {"capture", "tokens"}

METHODS = sorted(
    name
    for name in bg.__all__
    if inspect.isclass(getattr(bg, name)) and issubclass(getattr(bg, name), bg.Balancer)
    if not inspect.isabstract(getattr(bg, name))
)


def read(*path: str) -> str:
    return ROOT.joinpath(*path).read_text()


def parsed(text):
    return pytest.importorskip("yaml", reason="comes with mkdocs; pip install 'balanced-grad[docs]'").safe_load(text)


def rooms():
    """Every room that has public names, the package itself as ``""``."""
    found = {path.parent.name: importlib.import_module(f"balanced_grad.{path.parent.name}") for path in _folders()}
    return {"": bg} | {name: room for name, room in found.items() if name not in INSIDE and hasattr(room, "__all__")}


def _folders():
    return sorted((ROOT / "balanced_grad").glob("*/__init__.py"))


def documented():
    """What docs/api.md shows, as objects: a name may be reached by several paths."""
    paths = re.findall(r"^::: balanced_grad\.(\S+)", read("docs", "api.md"), re.MULTILINE)
    return [_at(path) for path in paths]


def _at(path):
    """The object at a dotted path, with the modules on the way imported."""
    found, done = bg, "balanced_grad"
    for part in path.split("."):
        done = f"{done}.{part}"
        if not hasattr(found, part):
            importlib.import_module(done)
        found = getattr(found, part)
    return found


def left_out():
    shown = documented()
    return {
        f"{room}.{name}".removeprefix(".")
        for room, module in rooms().items()
        for name in module.__all__
        if not any(getattr(module, name) is one for one in shown)
    }


def test_every_public_name_is_in_the_api_page():
    assert left_out() == set(UNDOCUMENTED)


def test_what_the_api_page_shows_is_there_once():
    shown = documented()
    assert len({id(one) for one in shown}) == len(shown)


@pytest.mark.parametrize("name", METHODS)
def test_a_method_is_in_every_place_of_the_checklist(name):
    room = getattr(bg, name).__module__.split(".")[1]
    page = DOCS / f"{room}.md"
    section = rf"^## {name}$" if room in {"methods", "modulation"} else rf"bg\.{name}\("
    missing = [
        place
        for place, text, pattern in (
            ("its room's __all__", read("balanced_grad", room, "__init__.py"), rf'"{name}"'),
            ("docs/api.md", read("docs", "api.md"), rf"^::: balanced_grad\.{name}$"),
            (page.name, page.read_text(), section),
            ("CHANGELOG.md", read("CHANGELOG.md"), rf"`{name}\b"),
            ("the tests of its room", _tests(room), rf"\b{name}\("),
        )
        if not re.search(pattern, text, re.MULTILINE)
    ]
    assert missing == []


def _tests(room):
    return "\n".join(path.read_text() for path in sorted((ROOT / "tests" / room).glob("test_*.py")))


@pytest.mark.parametrize("name", [name for name in METHODS if name != "HeldOut"])
def test_a_method_says_whose_it_is_and_shows_itself(name):
    doc = inspect.getdoc(getattr(bg, name))
    assert ">>> " in doc
    assert "Source: " in doc or name in {"Uniform", "Gramian"}  # the baseline, and a frame for others' rules


@pytest.mark.parametrize("path", [*ROOT.glob("balanced_grad/*/README.md")], ids=lambda path: path.parent.name)
def test_a_page_in_a_room_names_the_files_of_the_room(path):
    said = re.findall(r"`(_\w+)`", "".join(re.findall(r"^\| `_.*?\|", path.read_text(), re.MULTILINE)))
    there = [each.stem for each in path.parent.iterdir() if re.match(r"_[a-z]\w*(\.py)?$", each.name)]
    assert sorted(said) == sorted(there)


def test_decisions_are_short_numbered_and_listed():
    records = sorted((DOCS / "decisions").glob("[0-9]*.md"))
    assert [int(path.name[:4]) for path in records] == list(range(1, len(records) + 1))
    index = read("docs", "decisions", "index.md")
    for number, path in enumerate(records, 1):
        lines = path.read_text().splitlines()
        title = re.fullmatch(rf"# {number}\. (.+)", lines[0]).group(1)
        assert len(lines) <= 40, path.name
        assert [line for line in lines if line.startswith("## ")] == ["## Context", "## Decision", "## Consequences"]
        assert f"| {number} | [{title}]({path.name}) |" in index


def test_hooks_run_the_pinned_versions():
    hooks = [hook for repo in parsed(read(".pre-commit-config.yaml"))["repos"] for hook in repo["hooks"]]
    pinned = [version for hook in hooks for version in hook.get("additional_dependencies", ())]
    assert pinned
    assert set(pinned) <= set(read("constraints.txt").splitlines())


@pytest.mark.parametrize("path", [*ROOT.glob(".github/**/*.yml")], ids=lambda path: path.name)
def test_forms_can_be_read(path):
    form = parsed(path.read_text())
    for field in form.get("body", ()):
        assert {"type", "id", "attributes"} <= set(field)
        assert field["attributes"]["label"]
