"""The rooms of docs/architecture.md: imports go down its floors, never up or sideways, and reach public names only."""

import ast
import re
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = "balanced_grad"

# Private modules that another room may use, each with its reason: this list can only shrink.
PRIVATE = {
    ("__main__", "check._cli"): "a command, loaded when it is asked for: its parser is nobody's API",
    ("__main__", "demo._cli"): "likewise",
    ("__main__", "diagnosis._cli"): "likewise",
}


class Import(NamedTuple):
    kind: str  # "module", "function" or "types"
    file: str
    source: str  # rooms
    target: str
    name: str  # full, below the package


def imports() -> list[Import]:
    """Every import of the package by itself."""
    return [found for path in sorted((ROOT / PACKAGE).rglob("*.py")) for found in _of(path)]


def _of(path: Path) -> list[Import]:
    file = path.relative_to(ROOT)
    source = _room(file.with_suffix("").parts[1:])
    names = [(kind, name) for kind, name in _named(ast.parse(path.read_text()), "module") if name[0] == PACKAGE]
    return [Import(kind, str(file), source, _room(name[1:]), ".".join(name[1:])) for kind, name in names]


def _room(parts: tuple[str, ...]) -> str:
    """The room that a dotted path below the package leads to; what is in no room belongs to the package itself."""
    inside = parts and ((ROOT / PACKAGE / parts[0]).is_dir() or (ROOT / PACKAGE / f"{parts[0]}.py").exists())
    return parts[0] if inside and parts[0] != "__init__" else PACKAGE


def _named(node: ast.AST, kind: str) -> list[tuple[str, tuple[str, ...]]]:
    if isinstance(node, ast.ImportFrom):
        assert not node.level, f"{ast.unparse(node)}: write the full name, as every other file does"
        return [(kind, (*str(node.module).split("."), alias.name)) for alias in node.names]
    if isinstance(node, ast.Import):
        return [(kind, tuple(alias.name.split("."))) for alias in node.names]
    if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
        kind = "types"
    elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda) and kind == "module":
        kind = "function"
    return [found for child in ast.iter_child_nodes(node) for found in _named(child, kind)]


def floors() -> dict[str, int]:
    """Room -> floor, from the table of the page."""
    rows = re.findall(r"^\| (\d+) \| ([^|]+) \|", (ROOT / "docs" / "architecture.md").read_text(), re.MULTILINE)
    rooms = Counter(room for _, cell in rows for room in re.findall(r"`(\w+)`", cell))
    assert [room for room, count in rooms.items() if count > 1] == [], "rooms on two floors"
    return {room: int(floor) for floor, cell in rows for room in re.findall(r"`(\w+)`", cell)}


def test_the_page_has_every_room_and_no_other():
    paths = (ROOT / PACKAGE).iterdir()
    rooms = {path.stem for path in paths if path.suffix == ".py" or (path / "__init__.py").exists()}
    assert set(floors()) == rooms - {"__init__"} | {PACKAGE}


@pytest.mark.parametrize("kind", ["module", "function", "types"])
def test_imports_go_down_the_floors(kind):
    floor = floors()
    wrong = [
        f"{one.file}: {one.source} (floor {floor[one.source]}) imports {one.name} (floor {floor[one.target]})"
        for one in imports()
        if one.kind == kind and one.source != one.target and floor[one.source] <= floor[one.target]
    ]
    assert wrong == []


def test_other_rooms_use_public_names_only():
    used = {
        (one.source, re.sub(r"^((?:\w+\.)*?_\w+).*", r"\1", one.name))
        for one in imports()
        if one.source != one.target and re.search(r"(^|\.)_(?!_)", one.name)
    }
    assert used == set(PRIVATE)
