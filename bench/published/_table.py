"""Results as Markdown."""

from typing import Any

from bench._markdown import markdown

Results = dict[str, Any]
COLUMNS = {
    "subroutine ms": ("subroutine_ms", "{:z.2f}"),
    "x joint": ("x_joint", "{:z.2f}"),
    "x MIMO": ("x_mimo", "{:z.2f}"),
    "step x joint": ("step_x_joint", "{:z.2f}"),
    "extra ms": ("extra_ms", "{:z.2f}"),
    "extra x MIMO": ("extra_x_mimo", "{:z.1f}"),
    "extra MiB": ("extra_mib", "{:z.2f}"),
}
KINDS = {"baseline": "", "ours": "", "package": " (released)", "loop": " (re-implemented)"}


def table(results: Results) -> str:
    """The headline, subroutine time over MIMO's by model, then one table per model with everything."""
    models = results["models"]
    cells: dict[str, dict[str, str]] = {}
    for model in models:
        for row in model["rows"]:
            cells.setdefault(title(row), {})[model["model"]] = cell(row, "x_mimo", "{:z.2f}")
    titles = [model["model"] for model in models]
    headline = {name: [row.get(model, "-") for model in titles] for name, row in cells.items()}
    parts = [markdown("subroutine time / MIMO's", titles, headline)]
    for model in models:
        rows = {title(row): [cell(row, *what) for what in COLUMNS.values()] for row in model["rows"]}
        about = f"{model['model']}: {model['modalities']} modalities, {model['parameters'] / 1e6:.2f} M parameters"
        parts.append(f"{about}, batch {results['batch']}.\n\n" + markdown("method", COLUMNS, rows))
    return "\n\n".join(parts)


def title(row: dict[str, Any]) -> str:
    """The method, and whose code it is where it is not ours."""
    return row["method"] + KINDS[row["kind"]]


def cell(row: dict[str, Any], key: str, form: str) -> str:
    return "-" if row[key] is None else form.format(row[key])
