"""Notebooks as pages: MkDocs reads docs/notebooks/*.ipynb as Markdown, outputs and pictures included.

A notebook is JSON, so this needs no package. Nothing runs here; the tests run the notebooks.
"""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files


def on_files(files: Files, *, config: MkDocsConfig) -> Files:
    """Add a page beside each notebook, which stays where it is, to be downloaded."""
    for file in list(files):
        if file.src_uri.endswith(".ipynb") and file.abs_src_path:
            source = Path(file.abs_src_path)
            uri = file.src_uri.removesuffix(".ipynb") + ".md"
            files.append(File.generated(config, uri, content=page(json.loads(source.read_text("utf-8")), source.name)))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """A link to a notebook, which a forge shows, leads to its page here."""
    return re.sub(r"\]\((notebooks/[\w-]+)\.ipynb\)", r"](\1.md)", markdown)


def page(notebook: dict[str, Any], name: str) -> str:
    """The Markdown of a notebook, with a link to its file under the title."""
    parts = [part for cell in notebook["cells"] for part in _parts(cell)]
    parts.insert(1, f"[Download this page as a notebook]({name})")
    return "\n\n".join(parts) + "\n"


def _parts(cell: dict[str, Any]) -> Iterator[str]:
    source = "".join(cell["source"])  # a string, or a list of lines
    if cell["cell_type"] == "markdown":
        title, _, rest = source.partition("\n")
        yield from (part for part in ((title, rest.strip()) if title.startswith("# ") else (source,)) if part)
        return
    yield _fenced(source, "python")
    for output in cell["outputs"]:
        data = output.get("data", {})
        if "image/png" in data:
            alt = cell["metadata"].get("alt", "")
            yield f"![{alt}](data:image/png;base64,{''.join(data['image/png']).replace(chr(10), '')})"
        else:
            yield _fenced("".join(output.get("text") or data["text/plain"]).rstrip(), "text")


def _fenced(text: str, language: str) -> str:
    fence = "```"
    while fence in text:
        fence += "`"
    return f"{fence}{language}\n{text}\n{fence}"
