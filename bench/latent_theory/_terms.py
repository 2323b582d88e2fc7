"""The terms of theorems 1 and 2 for linear functions of bounded norm, and what they bound.

    f(x) = w · x, ‖w‖ ≤ B      ℜ̂ = (B/m) E_σ ‖Σ_i σ_i x_i‖ ≤ (B/m) √(Σ_i ‖x_i‖²)

Our reading of the composite class: a linear encoder with orthonormal rows and a head of norm B at most compose to
exactly these functions. ``a`` and ``b`` are four numbers each, uniform in a cube, so that ``‖x‖ ≤ 1``; ``y`` is
``w* · x`` and a uniform noise. Squared loss is bounded by C and L-Lipschitz there, and risks in the population are
closed forms. The best function of the ball for m items is a ridge regression, whose penalty solves ``‖w‖ = B``.
"""

from dataclasses import dataclass
from math import log, sqrt

import numpy as np
import numpy.typing as npt
from scipy.optimize import brentq
from tqdm import tqdm

from bench import _markdown as markdown

Array = npt.NDArray[np.float64]
DIMS = 8
SUBSETS = {"a": slice(0, 4), "a+b": slice(0, 8)}
SIZES = (100, 1000, 10_000)
NORM, NOISE = 1.0, 0.25  # of w* and of every w; half-width of the noise
LIPSCHITZ, CEILING = 2 * (2 * NORM + NOISE), (2 * NORM + NOISE) ** 2  # |f| <= B, |y| <= B + noise
VARIANCE = 1 / (3 * DIMS)  # of one input
FLOOR = NOISE**2 / 3  # r(h* ∘ g*)
DELTA = 0.05
SIGNS = 2000


@dataclass(frozen=True)
class Fit:
    """Empirical risk minimisation on one subset: its terms, and risks that are known."""

    closed: float  # bound of the Rademacher complexity
    drawn: float  # the same, by drawing signs
    training: float
    risk: float
    quality: float  # η: of the direction, with the best head of the ball


def draw(items: int, rng: np.random.Generator) -> tuple[Array, Array, Array]:
    """Inputs ``(m, d)``, targets and ``w*``."""
    truth = rng.standard_normal(DIMS)
    truth *= NORM / np.linalg.norm(truth)
    x = rng.uniform(-1, 1, (items, DIMS)) / sqrt(DIMS)
    return x, x @ truth + rng.uniform(-NOISE, NOISE, items), truth


def in_ball(x: Array, y: Array, norm: float = NORM) -> Array:
    """Least squares among ``‖w‖ ≤ norm``."""
    values, vectors = np.linalg.eigh(x.T @ x)
    target = vectors.T @ (x.T @ y)

    def excess(penalty: float) -> float:
        return float(np.linalg.norm(target / (values + penalty))) - norm

    smallest = 1e-12 * values[-1]
    penalty = 0.0 if excess(smallest) <= 0 else brentq(excess, smallest, np.linalg.norm(target) / norm)
    found: Array = vectors @ (target / np.maximum(values + penalty, smallest))
    return found


def closed_form(x: Array, norm: float = NORM) -> float:
    """``(B/m) √(Σ ‖x_i‖²)``."""
    return float(norm * np.linalg.norm(x) / len(x))


def by_signs(x: Array, signs: Array, norm: float = NORM) -> float:
    """``(B/m) E ‖Σ σ_i x_i‖``, the mean over rows of signs ``(n, m)``."""
    return float(norm * np.linalg.norm(signs @ x, axis=1).mean() / len(x))


def fit(x: Array, y: Array, truth: Array, seen: slice, signs: Array) -> Fit:
    """Of one subset."""
    own = x[:, seen]
    weights = np.zeros(DIMS)
    weights[seen] = in_ball(own, y)
    along = float(weights @ truth / np.linalg.norm(weights))  # the best head on this direction
    return Fit(
        closed_form(own),
        by_signs(own, signs),
        float(np.square(x @ weights - y).mean()),
        VARIANCE * float(np.square(weights - truth).sum()) + FLOOR,
        VARIANCE * (float(truth @ truth) - along**2),
    )


def theorem_1(gap: float, complexity: float, items: int) -> float:
    """``γ + 8Lℜ(𝓜) + 4C/√m + 2C√(2 ln(2/δ)/m)``, of the difference of risks."""
    return gap + 8 * LIPSCHITZ * complexity + 4 * CEILING / sqrt(items) + 2 * CEILING * deviation(items)


def theorem_2(centred: float, complexity: float, full: float, items: int) -> float:
    """``4Lℜ(𝓜) + 4Lℜ(all) + 6C√(2 ln(2/δ)/m) + L̂``, of η."""
    return 4 * LIPSCHITZ * (complexity + full) + 6 * CEILING * deviation(items) + centred


def deviation(items: int) -> float:
    """``√(2 ln(2/δ)/m)``."""
    return sqrt(2 * log(2 / DELTA) / items)


def run(items: int, seed: int) -> dict[str, tuple[float, ...]]:
    """One data set: numbers of each subset and, as ``both``, of the theorems."""
    rng = np.random.default_rng(seed)
    x, y, truth = draw(items, rng)
    signs = rng.choice([-1.0, 1.0], (SIGNS, items))
    fits = {name: fit(x, y, truth, seen, signs) for name, seen in SUBSETS.items()}
    small, full = fits["a"], fits["a+b"]
    centred = full.training - float(np.square(x @ truth - y).mean())
    rows: dict[str, tuple[float, ...]]
    rows = {name: (f.closed, f.drawn, f.risk - f.training, 2 * LIPSCHITZ * f.closed) for name, f in fits.items()}
    one = theorem_1(full.quality - small.quality, full.closed, items)
    two = theorem_2(centred, full.closed, full.closed, items)
    return rows | {"both": (full.risk - small.risk, one, full.quality, two)}


def report(seeds: int) -> str:
    """A table of the complexity and one of the two theorems."""
    jobs = [(items, seed) for items in SIZES for seed in range(seeds)]
    found = {job: run(*job) for job in tqdm(jobs, disable=None, unit="data set")}
    first = [markdown.header("modalities, m", "Rademacher, closed form", "by signs", "measured gap", "its bound")]
    second = [markdown.header("m", "r(a+b) - r(a)", "theorem 1", "η(a+b)", "theorem 2")]
    for items in SIZES:
        table = {key: np.array([found[items, seed][key] for seed in range(seeds)]) for key in (*SUBSETS, "both")}
        first += [markdown.row(f"{name}, {items:,}", *cells(table[name])) for name in SUBSETS]
        second.append(markdown.row(f"{items:,}", *cells(table["both"])))
    complexities = [row[:2] for out in found.values() for name, row in out.items() if name in SUBSETS]
    below = sum(drawn < closed for closed, drawn in complexities)
    about = [f"{seeds} data sets, mean ± standard error; L = {LIPSCHITZ:g}, C = {CEILING:g}, δ = {DELTA:g}"]
    terms = theorem_1(0.0, table["a+b"][:, 0].mean(), items)  # all of them fall like 1/√m
    needed = items * (terms / (VARIANCE + FLOOR)) ** 2
    about += [f"target's variance {VARIANCE + FLOOR:.4f}; theorem 1's terms are below it from m = {needed:,.0f} on"]
    about += [f"by signs below the closed form: {below} of {2 * len(jobs)}"]
    return "\n".join(["; ".join(about), "", *first, "", *second])


def cells(values: Array) -> list[str]:
    """Mean and standard error of each column."""
    errors = values.std(0, ddof=1) / sqrt(len(values))
    return [f"{mean:.4f} ± {error:.4f}" for mean, error in zip(values.mean(0), errors, strict=True)]
