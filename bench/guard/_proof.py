"""Methods with a guard and without, trained to a fixed budget: a table from the lines of the accuracy study."""

from pathlib import Path

from balanced_grad.demo._data import DemoError
from bench.accuracy._statistics import Group, number, read
from bench.accuracy._tables import at, final, over_seeds, table

RULES = {"fused": "fused", "fitted": "fitted product"}


def proof(folder: Path) -> str:
    """One table per protocol."""
    groups = read(folder)
    if not groups:
        raise DemoError(
            f"there are no runs in {folder}; write them with python -m bench.accuracy --trials 1 --results {folder}"
        )
    return "\n\n".join(one(group) for group in groups)


def one(group: Group) -> str:
    columns = {f"{RULES[rule]}, checkpoint": at(group, "rules", rule, "test", "accuracy") for rule in RULES}
    columns |= {f"{RULES[rule]}, last epoch": at(group, "last", rule, "test") for rule in RULES}
    columns["fused, last epoch, val"] = at(group, "last", "fused", "val")
    for name in group.modalities:
        columns[f"factor of {name}"] = over_seeds(group, lambda line, name=name: final(line, name), digits=2)
    protocol = group.protocol
    seeds = max(len(runs) for runs in group.runs.values())
    dates = sorted({str(number(line, "date")) for runs in group.runs.values() for line in runs.values()})
    about = f"{protocol.dataset}, {protocol.epochs} epochs, {seeds} seeds, default settings; {dates[-1]}."
    return f"{about}\n\n{table(list(group.runs), columns)}"
