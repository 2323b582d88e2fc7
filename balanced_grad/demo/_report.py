"""The table on the screen and the numbers in a file."""

import platform
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from importlib.metadata import version
from typing import Any

from balanced_grad.demo._compare import Results, Values, spread
from balanced_grad.demo._data import SPLITS, Dataset
from balanced_grad.demo._model import LateFusion
from balanced_grad.demo._timing import MEASURED
from balanced_grad.demo._train import ALONE, BALANCED, BASELINE, BATCH, RECIPE
from balanced_grad.tables import side_by_side

NOTES = f"""\
{ALONE.name}: every encoder trained alone; its fused prediction is the mean of theirs.
{BASELINE.name}: the fused loss only; its uni-modal heads learn from detached features and do not influence it.
subroutine: from the end of the forward pass to the final .grad, minus the same for joint training."""

Row = tuple[str, Sequence[str]]


def table(results: Results) -> str:
    """Accuracies, probes, gaps and times as text: mean ± deviation over the seeds."""
    methods, modalities = list(results.runs), results.modalities
    trained_with_others = [m for m in methods if m != ALONE.name]
    accuracy = [(m, _cells(results.heads(m))) for m in methods]
    probes = [(m, ["", *_cells(results.probes(m))]) for m in methods]
    gaps = [(m, ["", *_cells(results.gaps(m), sign="+")]) for m in trained_with_others]
    times = [
        (m, [f"{t.step:.2f}", f"{t.subroutine:+.2f}" if m != BASELINE.name else "0"]) for m, t in results.timing.items()
    ]
    blocks = [
        ("test accuracy, %", ["fused", *modalities], accuracy),
        ("linear probe of each frozen encoder, test accuracy, %", ["", *modalities], probes),
        (f"probe gap to the encoder trained alone ({ALONE.name}), points", ["", *modalities], gaps),
        (
            f"time per step, ms (median of {MEASURED} steps, methods taking turns)",
            ["step", "subroutine"],
            times,
        ),
    ]
    return "\n\n".join(["\n".join(_block(*block)) for block in blocks] + [NOTES])


def _block(title: str, header: Sequence[str], rows: Sequence[Row]) -> Iterator[str]:
    yield title
    for line in side_by_side([("", *header), *((name, *cells) for name, cells in rows)], least=(10, 11)):
        yield f"  {line}".rstrip()


def _cells(values: Values, sign: str = "") -> list[str]:
    cells = []
    for series in values.values():
        mean, deviation = spread(series)
        cells.append(f"{mean:{sign}.1f}" + (f" ± {deviation:.1f}" if len(series) > 1 else ""))
    return cells


def headline(data: Dataset, seeds: int, epochs: int, device: str) -> str:
    """Say what is about to be compared."""
    sizes = " / ".join(f"{len(getattr(data, split))} {split}" for split in SPLITS)
    shapes = ", ".join(f"{name} {'x'.join(map(str, shape))}" for name, shape in data.shapes.items())
    return (
        f"{data.name}: {data.title}\n"
        f"  {sizes} items, {data.classes} classes; {shapes}\n"
        f"  late fusion, SGD with momentum {RECIPE['momentum']}, learning rate {RECIPE['lr']}, batch {BATCH};"
        f" after {epochs} epochs, {seeds} seed{'s' if seeds > 1 else ''}, {device}"
    )


def numbers(data: Dataset, results: Results, settings: Mapping[str, Any], seconds: float) -> dict[str, Any]:
    """Everything that was measured, ready for JSON."""
    model = LateFusion(data.shapes, data.classes)
    return {
        "settings": dict(settings) | {"optimizer": "SGD", "batch": BATCH} | RECIPE,
        "balancers": {m.name: repr(m.make(model)) for m in BALANCED if m.make and m.name in results.runs},
        "versions": _versions(),
        "dataset": {
            "name": data.name,
            "title": data.title,
            "classes": data.classes,
            "items": {split: len(getattr(data, split)) for split in SPLITS},
            "shapes": data.shapes,
        },
        "methods": {
            method: {
                "test": _summary(results.heads(method)),
                "probe": _summary(results.probes(method)),
                "gap": _summary(results.gaps(method)),
                "milliseconds": asdict(results.timing[method]) if method in results.timing else None,
                "runs": [asdict(run) for run in runs],
            }
            for method, runs in results.runs.items()
        },
        "seconds": seconds,
    }


def _summary(values: Values) -> dict[str, dict[str, float]]:
    return {name: dict(zip(("mean", "deviation"), spread(series), strict=True)) for name, series in values.items()}


def _versions() -> dict[str, str]:
    packages = ("balanced-grad", "torch", "numpy", "scikit-learn")
    machine = {"python": platform.python_version(), "platform": platform.platform()}
    return machine | {package: version(package) for package in packages}
