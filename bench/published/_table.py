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
    """The two factors over MIMO by model, with their intervals, then one table per model with everything."""
    models = results["models"]
    parts = [factors("subroutine time / MIMO's", models, "x_mimo"), factors("extra / MIMO's", models, "extra_x_mimo")]
    for model in models:
        rows = {title(row): [cell(row, *what) for what in COLUMNS.values()] for row in model["rows"]}
        about = f"{model['model']}: {model['modalities']} modalities, {model['parameters'] / 1e6:.2f} M parameters"
        parts.append(f"{about}, batch {results['batch']}.\n\n" + markdown("method", COLUMNS, rows))
    return "\n\n".join(parts)


def factors(corner: str, models: list[dict[str, Any]], key: str) -> str:
    """One factor of every method on every model."""
    cells: dict[str, dict[str, str]] = {}
    for model in models:
        for row in model["rows"]:
            cells.setdefault(title(row), {})[model["model"]] = with_interval(row, key)
    titles = [model["model"] for model in models]
    return markdown(corner, titles, {name: [row.get(model, "-") for model in titles] for name, row in cells.items()})


def with_interval(row: dict[str, Any], key: str) -> str:
    """A ratio and its interval; the lower end alone where the ratio is not above the noise."""
    value, (low, high) = row[key], row[f"{key}_interval"]
    if low == high:
        return f"{low:z.2f}"
    if value is None or high is None:
        return f"> {low:z.2f}" if low > 0 else "-"
    return f"{value:z.2f} [{low:z.2f}, {high:z.2f}]"


def title(row: dict[str, Any]) -> str:
    """The method, and whose code it is where it is not ours."""
    return row["method"] + KINDS[row["kind"]]


def cell(row: dict[str, Any], key: str, form: str) -> str:
    return "-" if row[key] is None else form.format(row[key])
