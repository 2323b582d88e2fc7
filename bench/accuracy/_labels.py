"""What a group of lines is called on the pages, and the command that makes it."""

import re

from bench.accuracy._data import trusted
from bench.accuracy._recipes import SMALL
from bench.accuracy._statistics import Group
from bench.accuracy._study import Protocol

OPTIMIZERS = {"sgd": "SGD", "adamw": "AdamW"}


def command_of(group: Group) -> str:
    at, seeds = group.protocol, max(len(runs) for runs in group.runs.values())
    return (
        f"$ python -m bench.accuracy --dataset {at.dataset} --optimizer {at.optimizer} \\\n"
        f"    --seeds {seeds} --trials {at.trials} --epochs {at.epochs}"
        + f" --tuning-seeds {at.tuning_seeds}" * (at.tuning_seeds > 1)
        + f" \\\n    --network {at.network}" * (at.network != SMALL.name)
    )


def heading(at: Protocol) -> str:
    return f"{name(at)}, {OPTIMIZERS[at.optimizer]}"


def name(at: Protocol) -> str:
    """Of a data set and how it was tuned, with a colon no more, which Markdown's renderer takes for a link's."""
    tuning = ", defaults" if at.trials == 1 and trusted(at.dataset) else ""
    tuning = f", {at.tuning_seeds} tuning seeds" if at.tuning_seeds > 1 else tuning
    return at.dataset.replace(":", " ") + network(at) + tuning


def network(at: Protocol) -> str:
    """Of a line's network, where it is not the small one."""
    return "" if at.network == SMALL.name else f", {at.network.replace(':', ' of width ')}"


def stem(at: Protocol) -> str:
    parts = (at.dataset, at.optimizer, at.epochs, at.trials, *[at.tuning_seeds] * (at.tuning_seeds > 1))
    parts += (at.network,) * (at.network != SMALL.name)
    return "-".join(re.sub(r"\W+", "-", str(part)) for part in parts)
