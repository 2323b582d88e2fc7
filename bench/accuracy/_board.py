"""Who beats whom: methods ranked on each set, and paired with the baselines at an equal budget."""

from collections import Counter
from dataclasses import dataclass
from statistics import mean, median

from scipy.stats import rankdata

from bench.accuracy._statistics import Group
from bench.accuracy._study import Line, Protocol

MARGIN = 0.5  # points: what the choice of settings alone moves, see docs/results.md
FEWEST = 2  # seeds in common, below which nothing is compared
LATE = 0.5  # share of runs whose best epoch is the last, above which they were still improving
SIGNS = {1: "+", 0: "", -1: "-"}


@dataclass(frozen=True)
class Field:
    """All that ran on one set with one optimizer and one budget; groups differ in the seeds of tuning alone."""

    groups: tuple[Group, ...]

    @property
    def key(self) -> tuple[str, str, str]:
        """Set, optimizer and network."""
        return key_of(self.groups[0].protocol)

    def of(self, method: str) -> Group | None:
        """Where its lines are: of several places that which was tuned on most seeds."""
        return next((group for group in self.groups if method in group.runs), None)

    def accuracy(self, method: str, rule: str) -> float | None:
        """Mean test accuracy over the seeds, percent."""
        group = self.of(method)
        return None if group is None else mean(group.values(method, lambda run: run["rules"][rule]["test"]["accuracy"]))

    def ranks(self, methods: list[str], rule: str) -> dict[str, float]:
        """Rank of each method that is here, 1 the best, ties shared, stretched to the number of all methods."""
        found = {method: accuracy for method in methods if (accuracy := self.accuracy(method, rule)) is not None}
        if len(found) < 2:
            return {}
        stretch = (len(methods) - 1) / (len(found) - 1)
        ranks = rankdata([-accuracy for accuracy in found.values()])
        return {method: 1 + (rank - 1) * stretch for method, rank in zip(found, ranks.tolist(), strict=True)}

    def outcome(self, method: str, other: str, rule: str) -> int | None:
        """1 for a win, 0 for a tie, -1 for a loss, within one group; None where that has too few seeds of both."""
        shared = [group for group in self.groups if method in group.runs and other in group.runs]
        gap = shared[0].difference(method, rule, other, rule) if shared else None
        if gap is None or len(gap.seeds) < FEWEST:
            return None
        if gap.verdict == "inconclusive" or 100 * abs(gap.value) < MARGIN:
            return 0
        return 1 if gap.value < 0 else -1  # of errors

    def improving(self, method: str) -> bool:
        """Whether most of its runs had their best epoch last; those of parts chosen apart count part by part."""
        group = self.of(method)
        if group is None:
            return False
        last = group.protocol.epochs - 1
        ends = [epoch == last for run in group.runs[method].values() for epoch in run["checkpoint"].values()]
        return mean(ends) > LATE


@dataclass(frozen=True)
class Board:
    """The fields of one way of tuning."""

    fields: tuple[Field, ...]
    methods: list[str]

    @classmethod
    def of(cls, groups: list[Group], tuned: bool, methods: list[str]) -> "Board":
        """Of the budgets of a key the one with most methods, then with most trials and epochs."""
        found: dict[tuple[str, str, str], dict[tuple[int, int], list[Group]]] = {}
        for group in groups:
            at = group.protocol
            if (at.trials > 1) == tuned:
                budgets = found.setdefault(key_of(at), {})
                budgets.setdefault((at.trials, at.epochs), []).append(group)
        chosen = []
        for budgets in found.values():
            best = max(budgets, key=lambda budget: (len({m for g in budgets[budget] for m in g.runs}), *budget))
            chosen.append(Field(tuple(sorted(budgets[best], key=lambda group: -group.protocol.tuning_seeds))))
        return cls(tuple(sorted(chosen, key=lambda field: field.key)), methods)

    def mean_rank(self, method: str, rule: str) -> tuple[float, int] | None:
        """Mean rank and the number of sets it is a mean of."""
        ranks = [ranks[method] for field in self.fields if method in (ranks := field.ranks(self.methods, rule))]
        return (mean(ranks), len(ranks)) if ranks else None

    def record(self, method: str, other: str, rule: str) -> tuple[int, int, int] | None:
        """Wins, ties and losses against a baseline; None where nothing was compared."""
        found = Counter(field.outcome(method, other, rule) for field in self.fields)
        return (found[1], found[0], found[-1]) if found[1] + found[0] + found[-1] else None


def key_of(at: Protocol) -> tuple[str, str, str]:
    return at.dataset, at.optimizer, at.network


def step_ratio(run: Line) -> float:
    return run["ms"]["step"] / run["ms"]["joint_step"]


def cost(boards: list[Board], method: str) -> float | None:
    """Time of a step over that of joint training, measured in turns: the median over the sets."""
    groups = [group for board in boards for field in board.fields if (group := field.of(method))]
    ratios = [mean(group.values(method, step_ratio)) for group in groups]
    return median(ratios) if ratios else None
