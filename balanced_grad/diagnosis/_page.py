"""The report as one HTML page that opens without a network, light or dark as its reader has it."""

import base64
import tempfile
from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

from balanced_grad.diagnosis._picture import VERDICTS, save_picture
from balanced_grad.diagnosis._text import blocks

if TYPE_CHECKING:
    from balanced_grad.diagnosis._report import Diagnosis

_STYLE = """
:root { color-scheme: light dark; --ink: #1a1a1a; --paper: #ffffff; --line: #dddddd; }
@media (prefers-color-scheme: dark) { :root { --ink: #dddddd; --paper: #16181d; --line: #444444; } }
body { color: var(--ink); background: var(--paper); font: 15px/1.5 system-ui, sans-serif; max-width: 64em;
  margin: 2em auto; padding: 0 1em; }
table { border-collapse: collapse; margin: 1.2em 0; display: block; overflow-x: auto; }
th, td { padding: .25em .9em .25em 0; border-bottom: 1px solid var(--line); text-align: right; white-space: nowrap; }
th:first-child, td:first-child { text-align: left; }
img { width: 100%; height: auto; }
.verdict { border-left: .6em solid; padding-left: .4em; }
.note { opacity: .75; }
"""


def page(report: "Diagnosis") -> str:
    """Everything that ``print`` shows, and the picture."""
    parts = [_paragraph(part) if isinstance(part, str) else _table(part) for part in blocks(report)]
    light, dark = (_image(report, dark=dark) for dark in (False, True))
    picture = (
        f'<picture><source media="(prefers-color-scheme: dark)" srcset="{dark}">'
        f'<img src="{light}" alt="verdicts, worth, subsets and missing modalities of the report"></picture>'
    )
    return "\n".join(
        [
            "<!DOCTYPE html>",
            '<html lang="en"><head><meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<title>Diagnosis: {escape(', '.join(report.modalities))}</title>",
            f"<style>{_STYLE}</style></head><body>",
            "<h1>What each modality is worth</h1>",
            *parts[:2],
            picture,
            *parts[2:],
            "</body></html>\n",
        ]
    )


def _paragraph(words: str) -> str:
    return f"<p>{escape(words)}</p>"


def _table(rows: Sequence[Sequence[str]]) -> str:
    """The first row is the header, one with fewer cells a note below."""
    header, *body = rows
    full = [row for row in body if len(row) == len(header)]
    notes = [f'<p class="note">{escape(row[0])}</p>' for row in body if len(row) < len(header)]
    lines = [f"<tr>{_cells('th', header)}</tr>", *(f"<tr>{_cells('td', row)}</tr>" for row in full)]
    return "\n".join(["<table>", *lines, "</table>", *notes])


def _cells(tag: str, cells: Iterable[str]) -> str:
    return "".join(f"<{tag}>{_coloured(cell)}</{tag}>" for cell in cells)


def _coloured(cell: str) -> str:
    colour = VERDICTS.get(cell)
    return escape(cell) if colour is None else f'<span class="verdict" style="border-color: {colour}">{cell}</span>'


def _image(report: "Diagnosis", *, dark: bool) -> str:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "picture.svg"
        save_picture(report, path, dark=dark)
        return f"data:image/svg+xml;base64,{base64.b64encode(path.read_bytes()).decode()}"
