"""The report in a terminal, 100 columns wide."""

import textwrap
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from balanced_grad.diagnosis._estimates import Estimate
from balanced_grad.subsets import Subset, label
from balanced_grad.tables import side_by_side

if TYPE_CHECKING:
    from balanced_grad.diagnosis._report import Diagnosis

WIDTH = 100
NAME = 16  # characters of a name that are shown
FEW = 16  # subsets that are all shown


def text(report: "Diagnosis") -> str:
    """What was done, the verdicts, the numbers they rest on."""
    return laid_out(blocks(report))


def laid_out(parts: Iterable[str | Sequence[Sequence[str]]]) -> str:
    """Paragraphs, and tables of cells, below each other."""
    return "\n\n".join(wrapped(part) if isinstance(part, str) else table(part) for part in parts)


def blocks(report: "Diagnosis") -> list[str | list[list[str]]]:
    """Paragraphs, and tables as rows of cells."""
    signals = [] if report.signals is None else report.signals.blocks()
    return [headline(report), *_tables(report), sentence(report), *signals]


def headline(report: "Diagnosis") -> str:
    """What was measured, and how."""
    s = report.settings
    how = {
        "permute": f"an absent modality is that of another item ({s['draws']} draws)",
        "zero": "an absent modality is zeros",
        "mean": "an absent modality is its mean",
        "none": "an absent modality is None",
    }.get(s["absent"], "an absent modality is a value of yours")
    orders = f", {s['orders']} sampled orders" if s["orders"] else ""
    return (
        f"{s['items']:,} held-out items, {s['passes']} passes; {how}{orders}. Risk in {unit(report)}; worth is risk "
        f"saved; intervals at {100 * s['confidence']:g} %"
    )


def unit(report: "Diagnosis") -> str:
    """Of the risk."""
    return "squared error" if report.settings["task"] == "regression" else "nats"


def sentence(report: "Diagnosis") -> str:
    """What it comes to."""
    nothing, everything = report.subset([]), report.subset(report.modalities)
    saved = nothing.risk.value - everything.risk.value
    points = (
        ""
        if nothing.accuracy is None or everything.accuracy is None
        else f" and {everything.accuracy.value - nothing.accuracy.value:.1f} points of accuracy"
    )
    parts = [f"All modalities together save {number(saved)} {unit(report)}{points}."]
    gap = report.additive
    if gap is not None:
        model = f"has a risk that is {cell(gap.risk)} higher"
        if gap.points is not None:
            model = (
                f"is right in {gap.additive_accuracy:.1f} % where the model is in {gap.accuracy:.1f} %: "
                f"interactions are worth {cell(gap.points, 1)} points"
            )
        parts.append(f"An additive model of the modalities (EMAP, {gap.items} items) {model}.")
    return " ".join(parts)


def _tables(report: "Diagnosis") -> Iterable[list[list[str]]]:
    rows = [["modality", "verdict", "share, %", "together, %", "points", "moved"]]
    numbers = [["modality", "Shapley value", "added first", "added last"]]
    for name, each in report.contributions.items():
        points = "-" if each.points is None else _range(each.points, "{:.1f}")
        shares = [percent(each.share), percent(each.interaction), points, _moved(each.moved, report)]
        rows.append([short(name), each.verdict, *shares])
        numbers.append([short(name), cell(each.shapley), cell(each.first), cell(each.last)])
    rows.append(["share: of what all are worth; together: of it, only beside others; moved: predictions"])
    yield rows
    yield numbers
    subsets = [["with", "risk", "accuracy, %"]]
    for subset in shown_subsets(report):
        each_risk = report.subsets[subset]
        accuracy = "-" if each_risk.accuracy is None else _range(each_risk.accuracy, "{:.1f}")
        subsets.append([short(said(subset, report.modalities), 3 * NAME), range_of(each_risk.risk), accuracy])
    yield subsets
    if report.probes is not None:
        probes = [["encoder", "beside its reference", "risk saved", "accuracy, points"]]
        for name, probe in report.probes.items():
            points = "-" if probe.points is None else cell(probe.points, 1)
            probes.append([short(name), probe.verdict, cell(probe.gap), points])
        yield probes


def shown_subsets(report: "Diagnosis") -> list[Subset]:
    """All, where they are few; else none, one, all but one, and all of the modalities."""
    count = len(report.modalities)
    few = len(report.subsets) <= FEW
    return [subset for subset in report.subsets if few or len(subset) in {0, 1, count - 1, count}]


def said(subset: Subset, modalities: Subset) -> str:
    """A subset in words, which are fewer where it is nearly everything."""
    left_out = [name for name in modalities if name not in subset]
    if len(modalities) <= 3 or len(left_out) > 1:
        return label(subset)
    return f"all but {left_out[0]}" if left_out else "all"


def _moved(share: float, report: "Diagnosis") -> str:
    return f"{share:.2f} sd" if report.settings["task"] == "regression" else f"{100 * share:.1f} %"


def table(rows: Sequence[Sequence[str]]) -> str:
    """Cells in columns."""
    return "\n".join(line.rstrip() for line in side_by_side(rows))


def wrapped(words: str) -> str:
    """A paragraph."""
    return textwrap.fill(words, WIDTH)


def short(name: str, width: int = NAME) -> str:
    """A name that fits."""
    return name if len(name) <= width else name[: width - 1] + "…"


def number(value: float, digits: int = 3, sign: str = "") -> str:
    """At most seven characters: fewer digits of larger numbers, powers of ten of very large and very small ones."""
    size = abs(value)
    if size and (size < 1e-3 or size >= 1e5):
        mantissa, exponent = f"{value:{sign}.1e}".split("e")
        return f"{mantissa}e{int(exponent)}"
    return f"{value:{sign}.{max(0, digits - sum(size >= ten for ten in (10, 100, 1000)))}f}"


def cell(estimate: Estimate, digits: int = 3) -> str:
    """Value and interval, with signs."""
    value, low, high = (number(each, digits, "+") for each in (estimate.value, estimate.low, estimate.high))
    return f"{value} [{low}, {high}]"


def percent(estimate: Estimate | None) -> str:
    """A share and its interval; a dash where there is none."""
    return "-" if estimate is None else _range(Estimate(*(100 * x for x in _ends(estimate))), "{:.0f}")


def range_of(estimate: Estimate) -> str:
    """Value and interval of what is never negative."""
    value, low, high = (number(each) for each in _ends(estimate))
    return f"{value} [{low}, {high}]"


def _range(estimate: Estimate, form: str) -> str:
    value, low, high = (form.format(each) for each in _ends(estimate))
    return f"{value} [{low}, {high}]"


def _ends(estimate: Estimate) -> tuple[float, float, float]:
    return estimate.value, estimate.low, estimate.high
