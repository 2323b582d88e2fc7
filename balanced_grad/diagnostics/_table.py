"""A report as text."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from balanced_grad.diagnostics._gap import Gap
from balanced_grad.subsets import label
from balanced_grad.tables import side_by_side

if TYPE_CHECKING:
    from balanced_grad.diagnostics._report import LatentQuality

PAIRS = 12  # more nested pairs than this are left to gaps() and to_json()
Cells = Sequence[str]


def table(report: "LatentQuality") -> str:
    """Latents, what each modality adds, and the nested pairs where they are few."""
    blocks = [_headline(report), _block(*_latents(report))]
    if report.complete:
        blocks.append(_block(*_modalities(report)))
    pairs = [(m, n) for m in report.latents for n in report.latents if n and set(n) < set(m)]
    if 0 < len(pairs) <= PAIRS:
        blocks.append(_block(*_pairs(report)))
    if report.encoder_gaps():
        blocks.append(_block(*_encoders(report)))
    return "\n\n".join(blocks)


def _gap_cells(gap: Gap) -> list[str]:
    """Value, interval and verdict."""
    return [f"{_number(gap.value, '+')} [{_number(gap.low, '+')}, {_number(gap.high, '+')}]", gap.verdict]


def _headline(report: "LatentQuality") -> str:
    s = report.settings
    unit = "nats" if s["task"] == "classification" else "squared error"
    runs = f"{len(s['seeds'])} seeds" if len(s["seeds"]) > 1 else "one seed, so the intervals are about this run"
    return (
        f"latent quality: {s['train_items']} items for the encoders, {s['probe_items']} for the heads ({s['head']}), "
        f"{s['test_items']} for the test; {runs}\n"
        f"risk in {unit}; gaps below zero are better; intervals at {100 * s['confidence']:g} %"
    )


def _latents(report: "LatentQuality") -> tuple[Cells, list[Cells]]:
    header = [
        "trained on",
        "train loss",
        "test risk",
        "probe risk",
        "quality",
        "head gap",
        "accuracy",
        "width",
        "params",
    ]
    rows: list[Cells] = []
    for subset, x in report.latents.items():
        numbers = [x.train_loss, x.test_risk, x.risk, x.quality]
        cells = [_number(value) for value in numbers] + [_number(x.head_gap, "+")]
        accuracy = "-" if x.accuracy is None else f"{x.accuracy:.1f}"
        rows.append(
            [label(subset), *cells, accuracy, f"{x.width:g}", "-" if x.parameters is None else f"{x.parameters:g}"]
        )
    return header, rows


def _modalities(report: "LatentQuality") -> tuple[Cells, list[Cells]]:
    header = ["modality", "added last", "verdict", "added first", "verdict", "Shapley value", "verdict"]
    kinds = (report.added_last, report.added_first, report.shapley)
    return header, [[name, *(cell for kind in kinds for cell in _gap_cells(kind(name)))] for name in report.modalities]


def _pairs(report: "LatentQuality") -> tuple[Cells, list[Cells]]:
    header: Cells = ["adding", "to", "gap", "verdict", "points", "training gain", "complexity price*"]
    rows: list[Cells] = []
    for (m, n), gap in report.gaps().items():
        if not n:
            continue
        added = tuple(name for name in m if name not in n)
        points = "-" if gap.points is None else f"{gap.points:+.1f}"
        heuristic = [_number(gap.training_gain, "+"), _number(gap.complexity_price, "+")]
        rows.append([label(added), label(n), *_gap_cells(gap), points, *heuristic])
    rows.append(["* up to an unknown constant: a heuristic only"])
    return header, rows


def _encoders(report: "LatentQuality") -> tuple[Cells, list[Cells]]:
    header = ["encoder", "in the model of all, against alone", "verdict"]
    return header, [[name, *_gap_cells(gap)] for name, gap in report.encoder_gaps().items()]


def _block(header: Cells, rows: Sequence[Cells]) -> str:
    return "\n".join(line.rstrip() for line in side_by_side([header, *rows]))


def _number(value: float | None, sign: str = "") -> str:
    if value is None:
        return "-"
    return f"{value:{sign}.3f}" if 1e-3 <= abs(value) < 1e3 or value == 0 else f"{value:{sign}.3g}"
