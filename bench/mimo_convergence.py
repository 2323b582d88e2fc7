"""MIMO on convex problems with known solutions: gaps on the way of gradient descent, beside what is promised of them.

    python -m bench.mimo_convergence                               # the tables of docs/mimo.md, about three minutes
    python -m bench.mimo_convergence --plot docs/images/mimo-convergence.png

``shared parameters, quadratics``: three losses that want two coordinates to be three different points, so that the
least worst loss is where they cross. ``late fusion, logistic``: three modalities with linear encoders, whose scores add
up to the joint one. Problems are drawn anew for every seed; least worst loss and lexicographic solution are cvxpy's.
Gradient descent is the library's ``MIMO`` with steps of ``1/L_Φ``; mini-batches are 16 of 128 items. Mean and standard
error over the seeds.
"""

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from balanced_grad.pictures import BLUE, GREEN, GREY, ORANGE, PINK, drawing, write
from bench._convex import Problem, Solution, late_fusion, lexicographic, quadratics
from bench._markdown import markdown, mean_and_error
from bench._mimo_theory import Case, MiniBatches, bounds, gaps, schedule, trace

MAKERS = (quadratics, late_fusion)
TOLERANCES = (0.3, 0.15)
PENALTIES = (1.0, 2.0, 4.0, 8.0, 16.0)
SMOOTHINGS = (0.01, 0.03, 0.1, 0.3, 1.0)
SHARP = 1e-3  # smoothing with which its own part of the gap is small
BATCH, PENALTY, SMOOTHING, SGD_STEPS = 16, 2.0, 0.1, (300, 1000, 3000)
Known = list[tuple[Problem, Solution]]


def scheduled(problem: Problem, solution: Solution, tolerance: float) -> Case:
    penalty_and_smoothing = schedule(tolerance, solution.given_up, len(problem.modalities), solution.multiplier)
    return Case.of(problem, *penalty_and_smoothing, solution)


def descent(known: Known, bar: tqdm) -> dict[str, list[str]]:
    """Steps promised and taken, and the gaps after those promised."""
    rows = {}
    for tolerance in TOLERANCES:
        found = []
        for problem, solution in known:
            case = scheduled(problem, solution, tolerance)
            promised = case.steps(tolerance / 2)
            seen = trace(case, promised)
            taken = int(np.flatnonzero((seen <= tolerance).all(1))[0])
            found.append((case.penalty, promised, taken, *seen[-1]))
            bar.update()
        forms = (".2f", ".0f", ".0f", ".4f", ".4f")
        cells = [mean_and_error(column, form) for column, form in zip(zip(*found, strict=True), forms, strict=True)]
        rows[f"{known[0][0].title}, ε = {tolerance:g}"] = cells
    return rows


def by_penalty(known: Known) -> np.ndarray:
    """``(seeds, penalties, 2)`` worst gap of the minimiser, and its bound."""
    found = []
    for problem, solution in known:
        row = []
        for penalty in PENALTIES:
            worst = gaps(problem, solution, Case.of(problem, penalty, SHARP, solution).best).worst
            row.append((worst, bounds(solution, penalty, SHARP, len(problem.modalities), 0).worst))
        found.append(row)
    return np.array(found)


def by_smoothing(known: Known) -> np.ndarray:
    """``(seeds, smoothings, 4)`` ``μ log M``, ``b``, the sum of both, and the gap at the mini-batches' minimiser."""
    found = []
    for problem, solution in known:
        row = []
        for smoothing in SMOOTHINGS:
            batches = MiniBatches(Case.of(problem, PENALTY, smoothing, solution), BATCH)
            smooth = smoothing * np.log(len(problem.modalities))
            worst = gaps(problem, solution, batches.best).worst
            row.append((smooth, batches.bias, smooth + batches.bias, worst))
        found.append(row)
    return np.array(found)


def stochastic(known: Known, bar: tqdm) -> dict[str, list[str]]:
    """What SGD leaves of the mini-batches' objective, its gaps, and the bounds on all three."""
    rows = {}
    for steps in SGD_STEPS:
        found = []
        for seed, (problem, solution) in enumerate(known):
            batches = MiniBatches(Case.of(problem, PENALTY, SMOOTHING, solution), BATCH)
            x, left = batches.run(steps, seed)
            own, excess = gaps(problem, solution, x), batches.objective(x) - batches.objective(batches.best)
            most = bounds(solution, PENALTY, SMOOTHING, len(problem.modalities), left, batches.bias)
            found.append((float(excess), left, own.worst, most.worst, own.joint))
            bar.update()
        rows[f"{steps} steps"] = [mean_and_error(column, ".3f") for column in zip(*found, strict=True)]
    return rows


def tables(known: list[Known]) -> str:
    seeds = len(known[0])
    with tqdm(total=seeds * (len(known) * len(TOLERANCES) + len(SGD_STEPS)), unit="run") as bar:
        rows = descent(known[0], bar) | descent(known[1], bar)
        sgd = stochastic(known[1], bar)
    penalties = {}
    for each in known:
        values = by_penalty(each)
        for index, name in enumerate(("worst gap", "its bound")):
            cells = [mean_and_error(column, ".5f") for column in values[:, :, index].T]
            penalties[f"{each[0][0].title}: {name}"] = cells
    noise = by_smoothing(known[1])
    names = ("μ log M", "b", "μ log M + b", "worst gap")
    smoothings = {name: [mean_and_error(x, ".3f") for x in noise[:, :, k].T] for k, name in enumerate(names)}
    parts = (
        markdown("problem", ["λ", "steps promised", "steps taken", "worst gap, end", "joint gap, end"], rows),
        markdown("minimiser", [f"λ = {penalty:g}" for penalty in PENALTIES], penalties),
        markdown("mini-batches", [f"μ = {smoothing:g}" for smoothing in SMOOTHINGS], smoothings),
        markdown("SGD", ["left of Φ", "δ, its bound", "worst gap", "its bound", "joint gap"], sgd),
    )
    return "\n\n".join(parts)


def plot(known: list[Known], path: Path) -> None:
    """Losses against steps with their bounds, and the worst gap against the penalty; the first seed."""
    with drawing("bench.mimo_convergence", figsize=(10, 3.6)) as figure:
        *descents, last = figure.subplots(1, 3)
        for axis, each in zip(descents, known, strict=True):
            draw_descent(axis, scheduled(*each[0], TOLERANCES[-1]), TOLERANCES[-1])
        descents[0].set_ylabel("loss")
        for each, colour in zip(known, (GREEN, PINK), strict=True):
            measured, promised = by_penalty(each[:1])[0].T
            last.plot(PENALTIES, measured, "o-", color=colour, label=f"{each[0][0].title}: worst gap")
            last.plot(PENALTIES, promised, "--", color=colour, label="its bound")
        last.set(xscale="log", yscale="log", xlabel="penalty λ", title=f"worst gap of the minimiser, μ = {SHARP:g}")
        last.set_xticks(PENALTIES, [f"{penalty:g}" for penalty in PENALTIES])
        last.minorticks_off()
        handles, labels = descents[0].get_legend_handles_labels()
        more, names = last.get_legend_handles_labels()
        figure.legend(handles + more, labels + names, loc="outside lower center", ncols=5)
        write(figure, path)


def draw_descent(axis: Any, case: Case, tolerance: float) -> None:
    seen = trace(case, case.steps(tolerance / 2))
    steps = np.arange(1, len(seen))
    promised = np.array([case.bounds_at(step) for step in steps])
    levels = (case.solution.worst, case.solution.joint)
    for index, (name, colour) in enumerate((("worst loss", ORANGE), ("joint loss", BLUE))):
        axis.plot(steps, levels[index] + seen[1:, index], color=colour, label=name)
        axis.plot(steps, levels[index] + promised[:, index], "--", color=colour, label="its bound")
        label = "at the lexicographic solution" if index else None
        axis.axhline(levels[index], color=GREY, lw=0.8, ls=":", label=label)
    axis.set(xscale="log", xlabel="step", title=f"{case.problem.title}, ε = {tolerance:g}")
    axis.set_ylim(0, 1.3 * max(level + gap for level, gap in zip(levels, seen[0], strict=True)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, metavar="N", default=5)
    parser.add_argument("--plot", type=Path, metavar="FILE", help="write the figure here")
    args = parser.parse_args()
    torch.set_num_threads(1)
    known = [[(p, lexicographic(p)) for p in map(make, range(args.seeds))] for make in MAKERS]
    print(tables(known))
    if args.plot:
        plot(known, args.plot)


if __name__ == "__main__":
    main()
