"""The pages as their readers meet them: code and tables that fit, links that lead somewhere, pictures with words."""

import re
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("balanced_grad/*/README.md")])
COLUMNS_OF_CODE, COLUMNS_OF_TABLES = 88, 6
FENCE = re.compile(r"\s*(`{3,})")
RULE = re.compile(r"\|(\s*:?-+:?\s*\|)+")
LINK = re.compile(r"(!?)\[([^][]*)\]\(([^)\s]+)\)")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())

every_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))


def lines_of(text: str) -> Iterator[tuple[bool, int, str]]:
    """Whether each line is code, its number, and the line; fences belong to neither."""
    fence = None
    for number, line in enumerate(text.splitlines(), 1):
        found = FENCE.match(line)
        if found and fence in (None, found[1]):
            fence = None if fence else found[1]
        else:
            yield fence is not None, number, line


def wide_code(text: str) -> list[str]:
    return [f"{number}: {line}" for code, number, line in lines_of(text) if code and len(line) > COLUMNS_OF_CODE]


def wide_tables(text: str) -> list[str]:
    """The lines below the heads of tables, which have one dash per column."""
    rules = [(number, line.strip()) for code, number, line in lines_of(text) if not code]
    return [f"{n}: {line}" for n, line in rules if RULE.fullmatch(line) and line.count("|") - 1 > COLUMNS_OF_TABLES]


def links(text: str) -> list[tuple[str, str, str]]:
    """``("!" of a picture, text, target)`` of every link outside of code."""
    prose = "\n".join(line for code, _, line in lines_of(text) if not code)
    return LINK.findall(re.sub(r"`[^`\n]*`", "`code`", prose))


def own_file(target: str, page: Path) -> Path | None:
    """The file of this repository that a link leads to, or None if it leads elsewhere."""
    urls = PROJECT["project"]["urls"]
    source, site = urls["Source"], urls["Documentation"]
    target = target.partition("#")[0]
    raw = f"{source.replace('github.com', 'raw.githubusercontent.com')}/main/"
    for start in (f"{source}/blob/main/", f"{source}/tree/main/", raw):
        if target.startswith(start):
            return ROOT / target.removeprefix(start)
    if target.startswith(site):
        name = target.removeprefix(site).strip("/") or "index.html"
        return ROOT / "docs" / re.sub(r"\.html$", ".md", name)
    return None if "://" in target or not target else page.parent / target


def dead(text: str, page: Path) -> list[str]:
    found = ((target, own_file(target, page)) for _, _, target in links(text))
    return [target for target, file in found if file is not None and not (file.exists() or _generated(file))]


def _generated(file: Path) -> bool:
    """A page that the build makes of a notebook."""
    return file.parent.name == "notebooks" and file.with_suffix(".ipynb").exists()


@every_page
def test_code_fits_its_box(page):
    assert wide_code(page.read_text()) == []


@every_page
def test_tables_fit_a_page(page):
    assert wide_tables(page.read_text()) == []


@every_page
def test_links_into_the_project_lead_somewhere(page):
    if page.parent == ROOT / "docs" and page.read_text().startswith("--8<--"):
        pytest.skip("a page of the root, shown by the site")
    assert dead(page.read_text(), page) == []


@every_page
def test_pictures_have_words(page):
    assert [target for picture, words, target in links(page.read_text()) if picture and not words.strip()] == []
    assert "<img" not in page.read_text()


def test_the_readme_on_an_index_leads_to_files_that_are_here():
    """What pyproject.toml makes of the links, where nothing lies beside the page."""
    text = (ROOT / "README.md").read_text()
    for rule in PROJECT["tool"]["hatch"]["metadata"]["hooks"]["fancy-pypi-readme"]["substitutions"]:
        text = re.sub(rule["pattern"], rule["replacement"], text)
    targets = [target for _, _, target in links(text)]
    assert len(targets) > 10
    assert [target for target in targets if "://" not in target] == []
    assert dead(text, ROOT / "README.md") == []


def test_the_addresses_of_the_project_lead_to_files_that_are_here():
    files = [own_file(url, ROOT / "README.md") for url in PROJECT["project"]["urls"].values()]
    assert ROOT / "CHANGELOG.md" in files
    assert all(file.exists() for file in files if file is not None)


def test_these_tests_see_what_is_wrong():
    code = "x" * 89
    assert wide_code(f"```python\n{code}\n```\n") == [f"2: {code}"]
    assert wide_code(f"{code}\n") == []
    assert wide_tables("| a |\n|" + " --- |" * 7) == ["2: |" + " --- |" * 7]
    assert wide_tables("| a |\n|" + " ---: |" * 6) == []
    site = PROJECT["project"]["urls"]["Documentation"]
    assert dead(f"[a]({site}/nowhere.html#a) [b]({site}/index.html) `[c](no.md)`", ROOT / "README.md") == [
        f"{site}/nowhere.html#a"
    ]
    assert dead("[a](docs/nowhere.md) [b](docs/index.md) [c](#here)", ROOT / "README.md") == ["docs/nowhere.md"]
