"""Run the notebooks of the docs: ``python -m tests.notebooks`` writes their outputs anew, the tests only look.

Each cell of a notebook runs in a fresh kernel of this environment, where a warning is an error. What is kept is what a
reader needs: text and pictures, with no times, no numbers of runs and no machine in the metadata.
"""

import os
import tempfile
from pathlib import Path

import pytest

WANTED = "runs the notebooks of the docs: pip install 'balanced-grad[dev]'"
nbclient = pytest.importorskip("nbclient", reason=WANTED)
nbformat = pytest.importorskip("nbformat", reason=WANTED)
pytest.importorskip("ipykernel", reason=WANTED)

FOLDER = Path(__file__).resolve().parent.parent / "docs" / "notebooks"
STRICT = "import warnings\n\nwarnings.simplefilter('error')"
LENIENT = "\nwarnings.simplefilter('ignore')"  # of the kernel's own shutdown
KEPT = {"kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"}}
KEPT["language_info"] = {"name": "python"}


def notebooks():
    return sorted(FOLDER.glob("*.ipynb"))


def read(path):
    return nbformat.read(path, as_version=4)


def execute(notebook, scratch, claims=""):
    """A copy with the outputs of a fresh kernel; ``claims`` are statements that it runs at the end."""
    copy = nbformat.from_dict(notebook)
    for place, source in ((0, STRICT), (len(copy.cells) + 1, claims + LENIENT)):
        copy.cells.insert(place, nbformat.v4.new_code_cell(source, id=f"added-{place}"))
    client = nbclient.NotebookClient(
        copy,
        timeout=300,
        kernel_name="python3",
        record_timing=False,
        resources={"metadata": {"path": str(scratch)}},
    )
    client.execute(env=os.environ | {name: str(scratch) for name in ("IPYTHONDIR", "JUPYTER_RUNTIME_DIR")})
    copy.cells = copy.cells[1:-1]
    return copy


def clean(notebook):
    """What is committed: cells counted from 1, nothing of the kernel in the metadata but its name."""
    copy = nbformat.from_dict(notebook)
    copy.metadata = nbformat.from_dict(KEPT)
    code = [cell for cell in copy.cells if cell.cell_type == "code"]
    for number, cell in enumerate(code, 1):
        cell.execution_count = number
        cell.outputs = merged(cell.outputs)
        for output in cell.outputs:
            if output.output_type == "execute_result":
                output.execution_count = number
            output.get("metadata", {}).clear()
    for number, cell in enumerate(copy.cells):
        cell.id = f"cell-{number:02}"
        cell.metadata = nbformat.from_dict({key: cell.metadata[key] for key in ("alt",) if key in cell.metadata})
    return copy


def merged(outputs):
    """Text that was printed in a row and came in several parts, by the clock, is one output."""
    done = []
    for output in outputs:
        if done and output.output_type == done[-1].output_type == "stream" and output.name == done[-1].name:
            done[-1].text += output.text
        else:
            done.append(output)
    return done


def main():
    for path in notebooks():
        with tempfile.TemporaryDirectory() as scratch:
            nbformat.write(clean(execute(read(path), Path(scratch))), path)
        print(f"{path.name}: {path.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
