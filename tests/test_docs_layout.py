"""The built pages on a screen and on a telephone, in light and dark: nothing is wider than the window.

A headless browser shows every page in a frame of that width, and each page says how wide it came out. Without one, the
style sheets are read for what keeps wide tables, code and pictures in boxes of their own.
"""

import html
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("material", reason="pip install 'balanced-grad[docs]'")

ROOT = Path(__file__).resolve().parent.parent
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome", "headless_shell")
BROWSER = next(filter(None, map(shutil.which, BROWSERS)), None)
WIDTHS = (1400, 400)
SCHEMES = ("light", "dark")
HARNESS = """<!doctype html><title>harness</title><pre id="found">[]</pre><script>
const found = []
addEventListener("message", event => {
  found.push(event.data)
  document.getElementById("found").textContent = JSON.stringify(found)
})
</script>%s"""
MEASURE = """<script>addEventListener("load", () => parent.postMessage({
  page: document.documentElement.dataset.page,
  width: document.scrollingElement.scrollWidth,
  window: innerWidth,
  dark: matchMedia("(prefers-color-scheme: dark)").matches,
  paper: getComputedStyle(document.body).backgroundColor,
}, "*"))</script>"""


def pages(site: Path) -> list[Path]:
    """All but the one for addresses that do not exist, which looks for its style at the root of a server."""
    return sorted(page for page in site.rglob("*.html") if page.name != "404.html")


def framed(site: Path, width: int) -> Path:
    """A page with every page of the site in a frame of that width, each of which measures itself."""
    frames = []
    for page in pages(site):
        name = page.relative_to(site).as_posix()
        frames.append(f'<iframe src="{name}" width="{width}" height="900" style="border:0"></iframe>')
        text = page.read_text()
        if MEASURE not in text:
            text = text.replace("<html ", f'<html data-page="{name}" ', 1).replace("</body>", f"{MEASURE}</body>", 1)
            page.write_text(text)
    harness = site / f"harness-{width}.htm"
    harness.write_text(HARNESS % "\n".join(frames))
    return harness


def measured(dom: str) -> list[dict]:
    """What the pages said, from the document that a browser printed."""
    return json.loads(html.unescape(re.search(r'<pre id="found">(.*?)</pre>', dom, re.DOTALL).group(1)))


def too_wide(found: list[dict]) -> dict[str, int]:
    return {each["page"]: each["width"] for each in found if each["width"] > each["window"]}


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    if BROWSER is None:
        pytest.skip(f"no browser to look at the pages: none of {', '.join(BROWSERS)} is installed")
    out = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "-d", str(out)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True, env=os.environ | {"NO_MKDOCS_2_WARNING": "1"})
    return out


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("width", WIDTHS)
def test_no_page_is_wider_than_its_window(site, width, scheme, tmp_path):
    harness = framed(site, width)
    dark = ["--force-dark-mode", "--blink-settings=preferredColorScheme=0"] if scheme == "dark" else []
    command = [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--window-size=1500,1000", *dark]
    command += [f"--user-data-dir={tmp_path / 'profile'}", "--virtual-time-budget=60000", "--dump-dom"]
    done = subprocess.run([*command, harness.as_uri()], check=True, capture_output=True, text=True, timeout=600)
    found = measured(done.stdout)
    assert {each["page"] for each in found} == {page.relative_to(site).as_posix() for page in pages(site)}
    assert {each["window"] for each in found} == {width}
    assert {each["dark"] for each in found} == {scheme == "dark"}
    assert len({each["paper"] for each in found}) == 1
    assert too_wide(found) == {}


def test_what_a_browser_prints_is_read(tmp_path):
    page = tmp_path / "sub" / "a.html"
    page.parent.mkdir()
    page.write_text('<html lang="en"><body></body></html>')
    for width in WIDTHS:
        assert f'src="sub/a.html" width="{width}"' in framed(tmp_path, width).read_text()
    assert page.read_text().count(MEASURE) == 1
    assert '<html data-page="sub/a.html" lang="en">' in page.read_text()
    said = [{"page": "a", "width": 400, "window": 400}, {"page": "b", "width": 401, "window": 400}]
    dom = HARNESS.replace("[]</pre>", html.escape(json.dumps(said), quote=False) + "</pre>", 1) % ""
    assert measured(dom) == said
    assert too_wide(said) == {"b": 401}


def rules() -> dict[str, str]:
    """Selector -> declarations of the style sheets, those of the project last."""
    from material import templates

    (main,) = (Path(templates.__file__).parent / "assets" / "stylesheets").glob("main.*.min.css")
    text = main.read_text() + (ROOT / "docs" / "stylesheets" / "extra.css").read_text()
    found: dict[str, str] = {}
    for selectors, body in re.findall(r"([^{}]+)\{([^{}]*)\}", re.sub(r"/\*.*?\*/", "", text, flags=re.DOTALL)):
        for selector in selectors.split(","):
            found[selector.strip()] = found.get(selector.strip(), "") + body + ";"
    return found


@pytest.mark.parametrize(
    ("selector", "declaration"),
    [
        (".md-typeset pre>code", r"overflow:\s*auto"),
        (".md-typeset__scrollwrap", r"overflow-x:\s*auto"),  # a table's box, which the page's script makes
        (".md-typeset table:not([class])", r"overflow:\s*auto"),  # the same without a script
        (".md-typeset table:not([class])", r"max-width:\s*100%"),
        (".md-typeset img", r"max-width:\s*100%"),
        (".md-typeset code", r"word-break:\s*break-word"),  # in a line of text
    ],
)
def test_what_is_wide_scrolls_in_a_box_of_its_own(selector, declaration):
    found = rules()
    wanted = [body for key, body in found.items() if key == selector]
    assert wanted, f"{selector} is in no style sheet"
    assert re.search(declaration, wanted[0])


def test_the_project_s_style_takes_no_box_away():
    text = re.sub(r"/\*.*?\*/", "", (ROOT / "docs" / "stylesheets" / "extra.css").read_text(), flags=re.DOTALL)
    rules_of_ours = dict(re.findall(r"([^{}]+){([^{}]+)}", text))
    grid = next(key for key in rules_of_ours if key.strip() == ".md-grid")  # the page; no box is as wide
    assert rules_of_ours.pop(grid).strip() == "max-width: 69rem;"
    properties = {name for body in rules_of_ours.values() for name in re.findall(r"([\w-]+)\s*:", body)}
    assert properties
    assert not properties & {"overflow", "overflow-x", "width", "min-width", "max-width", "position"}
