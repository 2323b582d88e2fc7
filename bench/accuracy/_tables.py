"""The tables of one group, in Markdown."""

from collections.abc import Callable, Sequence
from statistics import mean

from bench._markdown import header, narrow, row
from bench.accuracy._evaluate import RULES
from bench.accuracy._methods import BASELINE, UNIFORM
from bench.accuracy._statistics import Group, mean_and_deviation, number, points
from bench.accuracy._study import Line

SPLITS = ("test", "val")
Cell = Callable[[str], str]


def table(methods: Sequence[str], columns: dict[str, Cell]) -> str:
    """One row per method; several tables where there are too many columns for a page."""
    lines = [row(method, *(cell(method) for cell in columns.values())) for method in methods]
    return narrow("\n".join([header("method", *columns), *lines]))


def over_seeds(group: Group, read: Callable[[Line], float | None], sign: str = "", digits: int = 1) -> Cell:
    return lambda method: mean_and_deviation(group.values(method, read), sign, digits)


def at(group: Group, *path: str, digits: int = 1) -> Cell:
    return over_seeds(group, lambda line: number(line, *path), digits=digits)


def accuracy(group: Group) -> str:
    """Accuracy under every rule, and macro-F1."""
    columns = {f"{rule}, test": at(group, "rules", rule, "test", "accuracy") for rule in RULES}
    columns |= {f"{rule}, val": at(group, "rules", rule, "val", "accuracy") for rule in RULES}
    columns["macro-F1, fused, test"] = at(group, "rules", "fused", "test", "f1")
    return table(list(group.runs), columns)


def differences(group: Group) -> str:
    """Paired differences to the two baselines that matter most."""

    def to(rule: str, other: str, other_rule: str) -> Cell:
        return lambda method: points(group.difference(method, rule, other, other_rule))

    columns = {
        "fused - joint": to("fused", BASELINE.name, "fused"),
        "fused - uniform": to("fused", UNIFORM.name, "fused"),
        "fitted - joint, fused": to("fitted", BASELINE.name, "fused"),
        "fitted - uniform, fitted": to("fitted", UNIFORM.name, "fitted"),
    }
    return table(list(group.runs), columns)


def heads(group: Group) -> str:
    """Accuracy of each uni-modal head."""
    return table(list(group.runs), {name: at(group, "heads", name, "test") for name in group.modalities})


def gaps(group: Group) -> str:
    """Probe accuracy of each encoder minus that of the encoder trained alone."""

    def of(modality: str, split: str) -> Cell:
        return lambda method: mean_and_deviation(group.gaps(method, modality, split), "+")

    def over_modalities(split: str) -> Cell:
        def cell(method: str) -> str:
            columns = [group.gaps(method, modality, split) for modality in group.modalities]
            return mean_and_deviation([mean(seed) for seed in zip(*columns, strict=True)], "+")

        return cell

    columns = {name: of(name, "test") for name in group.modalities}
    columns |= {"mean": over_modalities("test"), "mean, val": over_modalities("val")}
    return table(list(group.runs), columns)


def missing(group: Group) -> str:
    """Accuracy without one modality: which one, by the fused rule, then the mean over modalities by every rule."""

    def over_modalities(rule: str) -> Cell:
        return over_seeds(group, lambda line: mean(line["rules"][rule]["missing"]["test"].values()))

    columns = {f"no {name}": at(group, "rules", "fused", "missing", "test", name) for name in group.modalities}
    columns |= {f"mean, {rule}": over_modalities(rule) for rule in RULES}
    return table(list(group.runs), columns)


def calibration(group: Group) -> str:
    """Negative log-likelihood and expected calibration error."""
    columns = {f"NLL, {rule}": at(group, "rules", rule, "test", "nll", digits=3) for rule in RULES}
    columns |= {f"ECE, {rule}": at(group, "rules", rule, "test", "ece") for rule in RULES}
    return table(list(group.runs), columns)


def contributions(group: Group) -> str:
    """Shapley values of the held-out loss."""
    return table(list(group.runs), {name: at(group, "shapley", name, digits=3) for name in group.modalities})


def training(group: Group) -> str:
    """Conflicts and update ratios."""

    def moved(modality: str) -> Cell:
        def ratio(line: Line) -> float | None:
            series = number(line, "update_ratio", modality)
            return 1e3 * mean(series) if series else None

        return over_seeds(group, ratio, digits=2)

    columns = {"conflicts, %": at(group, "conflict")}
    columns |= {f"update ratio of {name}, 1e-3": moved(name) for name in group.modalities}
    return table(list(group.runs), columns)


def time(group: Group) -> str:
    """Time per step, and the subroutine's part of it."""

    def ratio(above: str, below: str) -> Cell:
        return over_seeds(group, lambda line: line["ms"][above] / line["ms"][below], digits=2)

    columns = {
        "step, ms": at(group, "ms", "step", digits=2),
        "step / joint step": ratio("step", "joint_step"),
        "subroutine, ms": at(group, "ms", "subroutine", digits=2),
        "subroutine / joint's": ratio("subroutine", "joint_subroutine"),
        "extra over joint, ms": at(group, "ms", "extra", digits=2),
    }
    return table(list(group.runs), columns)


def last(group: Group) -> str:
    """Accuracy after the last epoch, and the mean factor of a guard by then."""
    columns = {f"{rule}, {split}": at(group, "last", rule, split) for rule in ("fused", "fitted") for split in SPLITS}
    for name in group.modalities:
        columns[f"factor of {name}"] = over_seeds(group, lambda line, name=name: final(line, name), digits=2)
    return table(list(group.runs), columns)


def final(line: Line, name: str) -> float | None:
    """Factor of a modality in the last epoch."""
    series = number(line, "factors", name)
    return series[-1] if series else None


def settings(group: Group) -> str:
    """What the trials chose."""

    def cell(method: str) -> str:
        chosen = next(iter(group.runs[method].values()))["settings"]
        return ", ".join(f"{k} {v:.2g}" if isinstance(v, float) else f"{k} {v}" for k, v in chosen.items())

    return table(list(group.runs), {"settings": cell, "seeds": lambda method: str(len(group.runs[method]))})


SECTIONS = {
    "Accuracy, %": accuracy,
    "Paired differences of test accuracy, points, with 95 % intervals over items or groups, and seeds": differences,
    "Probe gap to the encoder trained alone, test, points": gaps,
    "Accuracy of the uni-modal heads, test, %": heads,
    "Accuracy with one modality missing, test, %": missing,
    "Calibration, test: negative log-likelihood in nats, expected calibration error in %": calibration,
    "Shapley contribution to the test loss, nats": contributions,
    "After the last epoch, with no checkpoint chosen, %": last,
    "Training": training,
    "Time per step": time,
    "Settings": settings,
}  # fmt: skip
