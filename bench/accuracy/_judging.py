"""What keeps the tables of a set from deciding: few items to validate on, or few people, training that ended early."""

from statistics import mean

import numpy as np

from bench.accuracy._board import Field
from bench.accuracy._data import trusted
from bench.accuracy._methods import BASELINE
from bench.accuracy._statistics import Group, in_order

TOO_SMALL = 1.0  # points: a standard error of validation accuracy under which a part can judge settings
FEWEST_GROUPS = 6  # below which nobody can say how alike the items of one are


def judging_error(group: Group) -> float:
    """Standard error of one validation accuracy, in points, at that of joint training, else of its first method.

    Items that belong together count for less, see ``design_effect``: as much as on the test part, or, where that has
    too few groups to say so, each group as one item.
    """
    name = BASELINE.name if BASELINE.name in group.runs else in_order(group.runs)[0]
    share = mean(group.values(name, lambda run: run["rules"]["fused"]["val"]["accuracy"])) / 100
    items = group.first["items"]["val"]
    return 100 * (share * (1 - share) / items * alike(group, name)) ** 0.5


def alike(group: Group, name: str) -> float:
    """The design effect of a set on a method's errors; 1 where items are on their own."""
    seeds = sorted(group.runs[name])
    errors, members = group.errors(name, "fused", seeds)
    if members is None:
        return 1.0
    if len(np.unique(members)) >= FEWEST_GROUPS:
        return mean(design_effect(row, members) for row in errors)
    return group.first["items"]["val"] / group.count("val")


def design_effect(errors: np.ndarray, members: np.ndarray) -> float:
    """How many times the variance of a mean is that of independent items, at least 1.

    ``G / (G - 1) * Σ_g (Σ_{i in g} r_i)² / Σ_i r_i²`` with residuals ``r`` of ``errors (N,)`` and the group of each
    item, ``members (N,)``. Source: Kish, "Survey Sampling" (1965), by the sandwich estimate of the variance.
    """
    residuals = errors - errors.mean()
    sums = np.bincount(np.unique(members, return_inverse=True)[1], residuals)
    alone = float((residuals**2).sum())
    return max(1.0, len(sums) / (len(sums) - 1) * float((sums**2).sum()) / alone) if alone else 1.0


def cautions(group: Group) -> list[str]:
    """Too few validation items, items that belong together, training that ended too early."""
    out, error = [], judging_error(group)
    if error > TOO_SMALL and trusted(group.protocol.dataset):
        of = f" of {counted(group)}" if group.clusters else ""
        out.append(
            f"Its validation part{of} is too small to judge settings and epochs: one accuracy there has a"
            f" standard error of {error:.1f} points."
        )
    if group.clusters:
        out.append(f"Its intervals are over {group.kind} and not over items; there are {group.count('test')} to test.")
    improving = [method for method in group.runs if Field((group,)).improving(method)]
    if improving:
        out.append(f"Still improving when training ended, in most of their runs: {', '.join(improving)}.")
    return [line for text in out for line in (text, "")]


def counted(group: Group) -> str:
    """Who validates, such as ``"2 people"``."""
    return f"{group.count('val')} {group.kind}"
