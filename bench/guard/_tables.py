"""Results as Markdown."""

from collections.abc import Callable, Iterable, Mapping
from statistics import mean

from bench._markdown import markdown
from bench.accuracy._statistics import mean_and_deviation
from bench.accuracy._study import Line
from bench.guard._candidates import ALONE_ROW, CANDIDATES
from bench.guard._simulate import CURVES, Result

MOMENTS = {"checkpoint": "checkpoint", "last": "last epoch"}


def candidates(lines: list[Line]) -> str:
    """All sets at a glance, then one table per set, and what the runs were."""
    sets = dict.fromkeys(line["dataset"] for line in lines)
    return "\n\n".join([glance(lines), *details(lines, sets)])


def glance(lines: list[Line]) -> str:
    """Fused test accuracy at the checkpoint and after the last epoch, and the mean probe gap at the checkpoint."""
    sets = dict.fromkeys(line["dataset"] for line in lines)
    alone = {(line["dataset"], line["seed"]): line for line in lines if line["candidate"] == ALONE_ROW}
    rows: dict[str, list[str]] = {}
    for name in dict.fromkeys(line["candidate"] for line in lines):
        cells = rows.setdefault(name, [])
        for dataset in sets:
            own = [line for line in lines if (line["candidate"], line["dataset"]) == (name, dataset)]
            first, last = (
                [line[moment]["accuracy"]["fused"]["test"] for line in own] for moment in ("checkpoint", "last")
            )
            gaps = [
                gap(line["checkpoint"]["probe"]["test"], alone[dataset, line["seed"]]["checkpoint"]["probe"]["test"])
                for line in own
                if (dataset, line["seed"]) in alone
            ]
            found = [f"{mean(first):.1f}, {mean(last):.1f}"] if own else []
            cells.append(" ".join([*found, f"({mean(gaps):+.1f})"] if gaps else found))
    return markdown("checkpoint, last (gap)", sets, {name: rows[name] for name in CANDIDATES if name in rows})


def details(lines: list[Line], sets: Iterable[str]) -> list[str]:
    return [one_set([line for line in lines if line["dataset"] == name]) for name in sets]


def one_set(lines: list[Line]) -> str:
    runs = {name: [line for line in lines if line["candidate"] == name] for name in CANDIDATES}
    alone = {line["seed"]: line for line in runs[ALONE_ROW]}
    first = lines[0]
    columns: dict[str, Callable[[list[Line]], str]] = {}
    for moment, title in MOMENTS.items():
        for rule in ("fused", "fitted"):
            columns[f"{rule}, {title}"] = lambda own, m=moment, r=rule: pair(
                own, lambda line, split: line[m]["accuracy"][r][split]
            )
        columns[f"probe gap, {title}"] = lambda own, m=moment: pair(
            [line for line in own if line["seed"] in alone],
            lambda line, split: gap(line[m]["probe"][split], alone[line["seed"]]["checkpoint"]["probe"][split]),
            "+",
        )
    columns["factors at the end"] = factors
    seeds = len({line["seed"] for line in lines})
    about = (
        f"{first['dataset']}, {first['epochs']} epochs, seeds: {seeds}; measured {first['date']} on {first['machine']}."
    )
    rows = {name: [cell(own) for cell in columns.values()] for name, own in runs.items() if own}
    return f"{about}\n\n{markdown('signal', columns, rows)}"


def pair(own: list[Line], read: Callable[[Line, str], float], sign: str = "") -> str:
    """Test with its deviation over seeds, validation in brackets."""
    if not own:
        return ""
    val = mean(read(line, "val") for line in own)
    return f"{mean_and_deviation([read(line, 'test') for line in own], sign)} ({val:{sign}.1f})"


def gap(own: Mapping[str, float], alone: Mapping[str, float]) -> float:
    """Mean over modalities of a probe's accuracy minus that of the encoder trained alone."""
    return mean(own[name] - alone[name] for name in alone)


def factors(own: list[Line]) -> str:
    """Mean over seeds, by modality; of the encoders' updates where they have some."""
    parts = []
    for kind, title in (("factors", ""), ("scales", "updates: ")):
        names = own[0][kind]
        if names:
            parts.append(title + ", ".join(f"{name} {mean(line[kind][name] for line in own):.2f}" for name in names))
    return "; ".join(parts)


def errors(results: list[Result], check: int) -> str:
    """Everything at one check: mean factor, and how often it is on the wrong side of a half."""
    columns: dict[str, None] = {}
    rows: dict[str, list[str]] = {}
    for found in results:
        if found["check"] == check:
            good = CURVES[found["curve"]].transfer > 0.5
            columns[f"{found['items']} items"] = None
            share = found["below"] if good else 1 - found["below"]
            row = f"{found['curve']}, confidence {found['confidence']:g}"
            rows.setdefault(row, []).append(f"{found['mean']:.2f} ({100 * share:.0f} %)")
    return markdown(f"check {check}", columns, rows)


def shifts(results: list[Result]) -> str:
    """Mean factor and its deviation, by how much of the gain a new group does not get."""
    columns: dict[str, None] = {"true, new groups": None}
    rows: dict[str, list[str]] = {}
    for found in results:
        columns[f"{found['groups']} groups" if found["groups"] else "split by items"] = None
        cells = rows.setdefault(f"{found['shift']:.1f}", [f"{found['true']:.1f}"])
        cells.append(f"{found['mean']:.2f} ± {found['deviation']:.2f}")
    return markdown("lost on new groups", columns, rows)


def null(results: list[Result]) -> str:
    """Share of runs that noise alone shut down, by what training gained."""
    columns: dict[str, None] = {}
    rows: dict[str, list[str]] = {}
    for found in results:
        columns[f"gains {found['gain']:g}"] = None
        row = f"warm_up={found['warm_up']}, confidence {found['confidence']:g}"
        rows.setdefault(row, []).append(f"{100 * found['below']:.1f} %")
    return markdown("false shutdowns", columns, rows)


def cost(results: list[Result]) -> str:
    """Times and their ratio to training without a guard, by model and period."""
    columns = ("step ms", "forward ms", "observe µs", "each step +µs", "encoders +µs", "cost", "cost, encoders")
    rows = {
        f"{found['model']}, every {found['every']}": [
            f"{found['step']:.2f}",
            f"{found['forward']:.2f}",
            *(f"{1000 * found[part]:.0f}" for part in ("observe", "calls", "updates")),
            f"{found['cost']:.3f}",
            f"{found['cost_encoders']:.3f}",
        ]
        for found in results
    }
    return markdown("model", columns, rows)
