"""From JSON lines to a page with tables and figures."""

import re
from collections.abc import Callable
from pathlib import Path
from statistics import mean

from balanced_grad.demo._data import DemoError
from bench.accuracy import _tables as tables
from bench.accuracy._data import trusted
from bench.accuracy._figures import figure
from bench.accuracy._judging import cautions
from bench.accuracy._labels import OPTIMIZERS, command_of, heading, name, stem
from bench.accuracy._methods import BASELINE
from bench.accuracy._statistics import Group, in_order, mean_and_deviation, points, read

START, END = "<!-- results -->\n", "<!-- /results -->\n"
PREFACE = "# Results\n\n"
DETAILS = """\
# Results in detail

Every method and baseline with the same encoders, initial weights, batch order, budget and number of trials per seed;
settings and checkpoints are chosen on validation items. Three prediction rules for every run: `fused` is the method's
own prediction (its fused head; the average of networks trained alone; the product of I2M2), `product` multiplies the
probabilities of all its heads, `fitted` gives each head a weight fitted on the validation items, so its validation
columns are not held out. Means and deviations are over seeds. A guarded method gives up 15 % of its training items.
Times per step were taken beside other work, each beside joint training in the same loop: their ratios can be read,
their milliseconds cannot.
"""


def report(results: Path, page: Path) -> None:
    """Write the part of the page between its two marks, and all tables to a page beside it; figures go to ``images``.

    Text around the marks is kept.
    """
    groups = read(results)
    if not groups:
        raise DemoError(f"there are no runs in {results}; run python -m bench.accuracy first")
    details = page.with_stem(f"{page.stem}-details")
    old = page.read_text(encoding="utf-8") if page.exists() else PREFACE + START + END
    marked = re.compile(re.escape(START) + ".*?" + re.escape(END), re.DOTALL)
    if not marked.search(old):
        raise DemoError(f"{page} has no part between {START.strip()} and {END.strip()}")
    page.parent.mkdir(parents=True, exist_ok=True)
    text = (
        f"{START}\n{command(groups)}\nAll tables and figures: [details]({details.name}).\n\n{overview(groups)}\n{END}"
    )
    page.write_text(marked.sub(lambda _: text, old, count=1), encoding="utf-8")
    parts = [DETAILS]
    for group in groups:
        image = page.parent / "images" / f"results-{stem(group.protocol)}.png"
        figure(group, image)
        parts.append(section(group, f"images/{image.name}"))
    details.write_text("\n".join(parts), encoding="utf-8")


def command(groups: list[Group]) -> str:
    """The commands that make these numbers."""
    return "\n".join(["```console", *map(command_of, groups), "$ python -m bench.accuracy report", "```"])


def overview(groups: list[Group]) -> str:
    """What matters of every set, by optimizer: differences to joint training, probe gaps, missing modalities."""
    out = []
    for optimizer, title in OPTIMIZERS.items():
        own = [group for group in groups if group.protocol.optimizer == optimizer]
        methods = in_order(method for group in own for method in group.runs)
        for what, text, cell in OVERVIEW if own else ():
            columns = {
                name(group.protocol): lambda method, group=group, cell=cell: (
                    cell(group, method) if method in group.runs else ""
                )
                for group in own
            }
            out += [f"### {title}: {what}", "", text, "", tables.table(methods, columns), ""]
    return "\n".join(out)


def against_joint(rule: str) -> Callable[[Group, str], str]:
    return lambda group, method: points(group.difference(method, rule, BASELINE.name, "fused"))


def glance(group: Group, method: str) -> str:
    """Mean test accuracy, fused and fitted."""
    runs = group.runs[method].values()
    return " / ".join(f"{mean(run['rules'][rule]['test']['accuracy'] for run in runs):.1f}" for rule in SHOWN)


def gap(group: Group, method: str) -> str:
    """Mean probe gap over the modalities, and that of the worst of them."""
    means = [mean(values) for values in (group.gaps(method, modality) for modality in group.modalities) if values]
    return f"{mean(means):+.1f} ({min(means):+.1f})" if means else ""


def without(group: Group, method: str) -> str:
    """Accuracy without a modality, the mean over modalities and seeds."""
    lost = [mean(run["rules"]["product"]["missing"]["test"].values()) for run in group.runs[method].values()]
    return mean_and_deviation(lost)


SHOWN = ("fused", "fitted")
OVERVIEW = (
    (
        "test accuracy",
        "Percent: the method's own prediction / the product of its heads with weights fitted on validation items.",
        glance,
    ),
    (
        "fused prediction against joint training",
        "Points of test accuracy over the fused head of joint training, with 95 % intervals over items, or groups of"
        " them such as people, and seeds; bold: zero is outside.",
        against_joint("fused"),
    ),
    (
        "product with fitted weights against joint training",
        "The same networks, predicting by the product of their heads with weights fitted on validation items, over the"
        " fused head of joint training.",
        against_joint("fitted"),
    ),
    (
        "probe gap, mean and worst modality",
        "Linear probe of each encoder minus that of the same encoder trained alone, test, points.",
        gap,
    ),
    (
        "one modality missing",
        "Test accuracy without one modality, the mean over modalities, by the plain product of the"
        " heads that are left.",
        without,
    ),
)


def section(group: Group, image: str) -> str:
    """One data set under one protocol."""
    at, first = group.protocol, group.first
    items = " / ".join(f"{count} {split}" for split, count in first["items"].items())
    fold = " in the first fold" if len(group.clusters) > 1 else ""
    seeds = max(len(runs) for runs in group.runs.values())
    versions = ", ".join(f"{name} {version}" for name, version in first["versions"].items())
    facts = (
        f"{first['title']}. {items} items{fold}; {at.epochs} epochs, {seeds} seeds, {at.trials} trials per method; "
        f"{first['date']}, {versions}."
    )
    lines = [f"## {heading(at)}", "", facts, "", f"![{heading(at)}]({image})", ""]
    lines += cautions(group)
    if not trusted(at.dataset):
        lines += ["Its features were made with the labels of the validation items, so nothing was chosen on them:", ""]
        lines[-2] += " defaults, last epoch. The weights of the fitted product come from them all the same."
    if group.failed:
        failures = ", ".join(f"{name}: {count}" for name, count in group.failed.items())
        lines += [f"Runs that diverged and are in no table: {failures}.", ""]
    for title, make in tables.SECTIONS.items():
        lines += [f"### {title}", "", make(group), ""]
    return "\n".join(lines)
