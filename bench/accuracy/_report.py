"""From JSON lines to a page with tables and figures."""

import re
from pathlib import Path

from balanced_grad.demo._data import DemoError
from bench.accuracy import _tables as tables
from bench.accuracy._data import trusted
from bench.accuracy._figures import figure
from bench.accuracy._methods import BASELINE, BY_NAME
from bench.accuracy._statistics import Group, points, read
from bench.accuracy._study import Protocol

START, END = "<!-- results -->\n", "<!-- /results -->\n"
OPTIMIZERS = {"sgd": "SGD", "adamw": "AdamW"}
PREFACE = """\
# Results

Every method and baseline with the same encoders, initial weights, batch order, budget and number of trials per seed;
settings and checkpoints are chosen on validation items. Three prediction rules for every run: `fused` is the method's
own prediction (its fused head; the average of networks trained alone; the product of I2M2), `product` multiplies the
probabilities of all its heads, `fitted` gives each head a weight fitted on the validation items, so its validation
columns are not held out. Means and deviations are over seeds.

"""


def report(results: Path, page: Path) -> None:
    """Write the page, or the part between its two marks; text around them is kept. Figures go to ``images`` beside."""
    groups = read(results)
    if not groups:
        raise DemoError(f"there are no runs in {results}; run python -m bench.accuracy first")
    old = page.read_text(encoding="utf-8") if page.exists() else PREFACE + START + END
    marked = re.compile(re.escape(START) + ".*?" + re.escape(END), re.DOTALL)
    if not marked.search(old):
        raise DemoError(f"{page} has no part between {START.strip()} and {END.strip()}")
    page.parent.mkdir(parents=True, exist_ok=True)
    parts = [f"{command(groups)}\n", overview(groups)]
    for group in groups:
        image = page.parent / "images" / f"results-{stem(group.protocol)}.png"
        figure(group, image)
        parts.append(section(group, f"images/{image.name}"))
    text = START + "\n" + "\n".join(parts) + "\n" + END
    page.write_text(marked.sub(lambda _: text, old, count=1), encoding="utf-8")


def command(groups: list[Group]) -> str:
    """The commands that make these numbers."""
    lines = ["```console"]
    for group in groups:
        at = group.protocol
        seeds = max(len(runs) for runs in group.runs.values())
        lines.append(
            f"$ python -m bench.accuracy --dataset {at.dataset} --optimizer {at.optimizer} --seeds {seeds}"
            f" --trials {at.trials} --epochs {at.epochs}"
        )
    return "\n".join([*lines, "$ python -m bench.accuracy report", "```"])


def overview(groups: list[Group]) -> str:
    """Difference to joint training on every set, for the method's own prediction and for the fitted product."""
    methods = [name for name in BY_NAME if any(name in group.runs for group in groups)]
    out = []
    for rule in ("fused", "fitted"):
        columns = {
            f"{heading(group.protocol)}": lambda method, group=group, rule=rule: points(
                group.difference(method, rule, BASELINE.name, "fused") if method in group.runs else None
            )
            for group in groups
        }
        out += [f"## Against joint training: {rule} prediction", ""]
        out += ["Points of test accuracy over the fused head of joint training, with 95 % intervals; bold: zero is"]
        out += ["outside.", "", tables.table(methods, columns), ""]
    return "\n".join(out)


def section(group: Group, image: str) -> str:
    """One data set under one protocol."""
    at, first = group.protocol, group.first
    items = " / ".join(f"{count} {split}" for split, count in first["items"].items())
    seeds = max(len(runs) for runs in group.runs.values())
    versions = ", ".join(f"{name} {version}" for name, version in first["versions"].items())
    facts = (
        f"{first['title']}. {items} items; {at.epochs} epochs, {seeds} seeds, {at.trials} trials per method; "
        f"{first['date']}, {versions}."
    )
    lines = [f"## {heading(at)}", "", facts, "", f"![{heading(at)}]({image})", ""]
    if not trusted(at.dataset):
        lines += ["Its features were made with the labels of the validation items, so nothing was chosen on them:", ""]
        lines[-2] += " defaults, last epoch. The weights of the fitted product come from them all the same."
    if group.failed:
        failures = ", ".join(f"{name}: {count}" for name, count in group.failed.items())
        lines += [f"Runs that diverged and are in no table: {failures}.", ""]
    for title, make in tables.SECTIONS.items():
        lines += [f"### {title}", "", make(group), ""]
    return "\n".join(lines)


def heading(at: Protocol) -> str:
    return f"{at.dataset}, {OPTIMIZERS[at.optimizer]}"


def stem(at: Protocol) -> str:
    return "-".join(re.sub(r"\W+", "-", str(part)) for part in (at.dataset, at.optimizer, at.epochs, at.trials))
