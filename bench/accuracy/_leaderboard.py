"""``docs/leaderboard.md`` from JSON lines."""

from pathlib import Path

from balanced_grad.demo._data import DemoError
from bench._markdown import header, narrow, row
from bench.accuracy._board import FEWEST, LATE, MARGIN, SIGNS, Board, Field, cost
from bench.accuracy._data import trusted
from bench.accuracy._judging import TOO_SMALL, counted, judging_error
from bench.accuracy._labels import OPTIMIZERS, command_of, network
from bench.accuracy._methods import BASELINE, BY_NAME, UNIFORM
from bench.accuracy._statistics import Group, in_order, read

MISSING = "missing"
TITLES = {"fused": "The method's own prediction", "fitted": "The product of its heads, weights fitted on validation"}
TEXT = f"""\
# Leaderboard

All methods and baselines of the study beside each other, from the lines in `bench/results`. What it means, and what to
take from it: [Results](results.md). A set counts once per optimizer and network. `mosi`, whose features leak labels,
does not count.

* **Default** is the first setting of every method, **tuned** the best of its trials on validation items. At an equal
  budget: the same epochs, number of trials, learning rates to choose from and seeds.
* **Win, tie, loss**: paired over seeds and test items, or people and the like where items of one belong together. A
  tie is a 95 % interval of the difference that holds zero, or a difference below {MARGIN} points, which is what the
  choice of settings alone moves. Nothing is compared on fewer than {FEWEST} common seeds.
* **Rank** is by mean test accuracy, 1 the best, over the number of sets in brackets. Where only some methods have
  lines, ranks are stretched to the number of all. A mean over few sets says little.
* **Cost** is the time of a step over that of joint training, taken in turns; the median over the sets.
* **{MISSING}**: there are no lines. Nothing is filled in.

With so many comparisons, some wins are luck: of 100 methods that are no better, two or three come out as better.
"""
BY_SET = f"""\
Test accuracy of the method's own prediction, percent, mean over the seeds; `+` and `-`: a win and a loss against
uniform. `↑`: in more than {100 * LATE:.0f} % of the runs the best epoch is the last; longer training may give more.
"""
SOURCES = f"""\
Error of judging: a standard error of one validation accuracy, in points, where items of one person or so belong
together by how alike they are. *Too small to judge*: it is above
{TOO_SMALL:g}, so that settings and epochs are chosen there largely by chance.
"""
OWN = """\
## Your own method

Name its class. It is tuned like the others, by default on two seeds, with joint training and uniform beside it at the
same budget. A class attribute `space = {"alpha": (1.0, 0.5, 2.0)}` says what is drawn, the default first.

```console
$ python -m bench.accuracy --dataset leaf watch cells \\
    --method my_project.methods:MyMethod
$ python -m bench.accuracy leaderboard
```

Lines tuned on one seed and on two are not paired with each other. Ranks do mix them.
"""


def leaderboard(results: Path, page: Path) -> None:
    """Write the page from all lines of a folder."""
    groups = [group for group in read(results) if trusted(group.protocol.dataset)]
    if not groups:
        raise DemoError(f"there are no runs in {results}; run python -m bench.accuracy first")
    methods = in_order([*BY_NAME, *(method for group in groups for method in group.runs)])
    boards = {name: Board.of(groups, name == "tuned", methods) for name in ("default", "tuned")}
    shown = [group for board in boards.values() for field in board.fields for group in field.groups]
    commands = ["```console", *map(command_of, shown), "$ python -m bench.accuracy leaderboard", "```"]
    parts = [TEXT, "\n".join(commands), summary(boards, methods), by_set(boards, methods), sources(shown), OWN]
    page.parent.mkdir(parents=True, exist_ok=True)
    page.write_text("\n\n".join(part.strip() for part in parts) + "\n", encoding="utf-8")


def summary(boards: dict[str, Board], methods: list[str]) -> str:
    """The tables of ranks and of wins, best first, for both ways to predict."""
    out = []
    others = (BASELINE.name, UNIFORM.name)
    for rule, title in TITLES.items():
        order = sorted(methods, key=lambda method: sort_key(boards, method, rule))
        out += [f"## {title}", "", header("method", "rank, default", "rank, tuned", "cost")]
        for method in order:
            ranks = [rank(board, method, rule) for board in boards.values()]
            price = cost(list(boards.values()), method)
            out.append(row(method, *ranks, MISSING if price is None else f"{price:.1f}"))
        out += ["", "Wins / ties / losses:", ""]
        out.append(header("method", *(f"against {other}, {name}" for other in others for name in boards)))
        for method in order:
            out.append(row(method, *(record(board, method, o, rule) for o in others for board in boards.values())))
        out.append("")
    return "\n".join(out)


def sort_key(boards: dict[str, Board], method: str, rule: str) -> tuple[float, float]:
    """Tuned rank, then the default one; what is missing comes last."""
    tuned, default = (boards[name].mean_rank(method, rule) for name in ("tuned", "default"))
    return tuned[0] if tuned else float("inf"), default[0] if default else float("inf")


def rank(board: Board, method: str, rule: str) -> str:
    found = board.mean_rank(method, rule)
    return MISSING if found is None else f"{found[0]:.1f} ({found[1]})"


def record(board: Board, method: str, other: str, rule: str) -> str:
    if method == other:
        return ""
    found = board.record(method, other, rule)
    return MISSING if found is None else " / ".join(map(str, found))


def by_set(boards: dict[str, Board], methods: list[str]) -> str:
    """Test accuracy of every method on every set."""
    out = ["## By set", "", BY_SET]
    for name, board in boards.items():
        out += [f"### {name.capitalize()} settings", ""]
        if not board.fields:
            out += [f"All lines are {MISSING}.", ""]
            continue
        lines = [row(method, *(cell(field, method) for field in board.fields)) for method in methods]
        out += [narrow("\n".join([header("method", *map(title, board.fields)), *lines])), ""]
    return "\n".join(out)


def title(field: Field) -> str:
    at = field.groups[0].protocol
    return f"{at.dataset.replace(':', ' ')}{network(at)}, {OPTIMIZERS[at.optimizer]}"


def cell(field: Field, method: str) -> str:
    accuracy = field.accuracy(method, "fused")
    if accuracy is None:
        return MISSING
    sign = SIGNS[field.outcome(method, UNIFORM.name, "fused") or 0]
    return " ".join(filter(None, [f"{accuracy:.1f}", sign, "↑" * field.improving(method)]))


def sources(groups: list[Group]) -> str:
    """Where the lines come from, and whether their validation part can judge."""
    columns = ("set", "trials x tuning seeds", "error of judging", "versions, dates", "commits", "machines")
    return "\n".join(["## Where the lines come from", "", SOURCES, header(*columns), *map(source, groups)])


def source(group: Group) -> str:
    at, error = group.protocol, judging_error(group)
    runs = [run for runs in group.runs.values() for run in runs.values()]
    dates = sorted(run["date"] for run in runs)
    return row(
        title(Field((group,))),
        f"{at.trials} x {at.tuning_seeds}" if at.trials > 1 else "defaults",
        f"{error:.1f}"
        + (f", {counted(group)}" if group.clusters else "")
        + " (too small to judge)" * (error > TOO_SMALL),
        f"{noted({run['versions']['balanced-grad'] for run in runs})}; {dates[0]} to {dates[-1]}",
        noted({run.get("commit") for run in runs}),
        noted({run.get("machine", {}).get("processor") for run in runs}),
    )


def noted(found: set[str | None]) -> str:
    """What lines say; older ones do not."""
    return ", ".join(sorted(value or "not noted" for value in found))
