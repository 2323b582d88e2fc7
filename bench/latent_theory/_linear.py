"""Theorem 3 where nothing is estimated: linear encoders and heads, squared loss, every risk from second moments.

    y = W x + ε,  W = B A of rank k,      f = H G x,  G (k, d) blind to all modalities but those of 𝓜

With ``S = Σ_yM Σ_MM⁺ Σ_My``, the best latent of width k is ``Vᵀ Σ_yM Σ_MM⁺ x``, V the k leading eigenvectors of S, and
its risk is ``tr Σ_yy`` minus their eigenvalues (reduced-rank regression; Izenman 1975). ``S`` of a superset is larger
in Loewner's order, hence so is every eigenvalue, hence ``γ ≤ 0``.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from bench import _markdown as markdown

Array = npt.NDArray[np.float64]
SIZES = (30, 100, 300, 1000, 10_000)
ROUNDING = 1e-10  # of the target's variance
TIE = 1e-4  # a population gap below this share of the variance: the modality that is added says nothing new


@dataclass(frozen=True)
class Problem:
    """``factor (d, r)`` of the inputs' covariance, ``weights (q, d)``, ``noise`` deviation, ``rank`` of the latent."""

    factor: Array
    weights: Array
    noise: float
    rank: int
    columns: tuple[Array, ...]

    @property
    def moments(self) -> Array:
        """``(d + q, d + q)`` second moments of ``(x, y)``."""
        return moments_of(self.factor, self.weights @ self.factor, self.noise)

    def sample(self, items: int, rng: np.random.Generator) -> Array:
        """The same of so many items."""
        x = rng.standard_normal((items, self.factor.shape[1])) @ self.factor.T
        y = x @ self.weights.T + self.noise * rng.standard_normal((items, len(self.weights)))
        return moments_of(x.T / np.sqrt(items), y.T / np.sqrt(items), 0.0)

    def subsets(self) -> list[tuple[int, ...]]:
        """All but the empty one."""
        modalities = range(len(self.columns))
        return [found for size in modalities for found in combinations(modalities, size + 1)]

    def inputs(self, subset: tuple[int, ...]) -> Array:
        """Columns of x that belong to a subset."""
        return np.concatenate([self.columns[modality] for modality in subset])


def moments_of(x: Array, y: Array, noise: float) -> Array:
    """Of factors ``(d, r)`` and ``(q, r)``, noise being added to y."""
    both = np.concatenate([x, y])
    return both @ both.T + np.diag(np.repeat([0.0, noise**2], [len(x), len(y)]))


def draw(rng: np.random.Generator) -> Problem:
    """Two or three modalities of 1 to 6 numbers, correlated, of unequal scale; one may say nothing, or be a copy."""
    widths = rng.integers(1, 7, size=rng.integers(2, 4))
    columns = tuple(np.split(np.arange(widths.sum()), np.cumsum(widths)[:-1]))
    inputs, outputs = int(widths.sum()), int(rng.integers(1, 4))
    rank = int(rng.integers(1, outputs + 1))
    factor = rng.standard_normal((inputs, inputs)) * 10 ** rng.uniform(-1, 1, (inputs, 1)) / np.sqrt(inputs)
    weights = rng.standard_normal((outputs, rank)) @ rng.standard_normal((rank, inputs))
    kind = rng.choice(["plain", "useless", "copy"])
    if kind == "useless":
        weights[:, columns[-1]] = 0
        factor[columns[-1], : columns[-1][0]] = 0  # independent of the others, or it would say what they say
        factor[: columns[-1][0], columns[-1]] = 0
    elif kind == "copy":
        shared = min(len(columns[0]), len(columns[-1]))
        factor[columns[-1][:shared]] = factor[columns[0][:shared]]
    signal = float(np.square(weights @ factor).sum(1).mean())
    return Problem(factor, weights / np.sqrt(signal), float(rng.uniform(0.1, 1)), rank, columns)


def encoder(moments: Array, inputs: Array, outputs: int, rank: int) -> Array:
    """``(k, |inputs|)``: the best latent of its width, by population or by sample moments."""
    cross = moments[-outputs:][:, inputs]
    weights = cross @ np.linalg.pinv(moments[np.ix_(inputs, inputs)], rcond=1e-12, hermitian=True)
    _, vectors = np.linalg.eigh(weights @ cross.T)
    found: Array = vectors[:, -rank:].T @ weights
    return found


def risk(moments: Array, inputs: Array, outputs: int, latent: Array) -> float:
    """``inf_h r(h ∘ g)``: of the best linear head on a latent ``(k, |inputs|)``, in the population of the moments."""
    cross = moments[-outputs:][:, inputs] @ latent.T
    inner = latent @ moments[np.ix_(inputs, inputs)] @ latent.T
    explained = cross @ np.linalg.pinv(inner, rcond=1e-12, hermitian=True) @ cross.T
    return float(np.trace(moments[-outputs:, -outputs:]) - np.trace(explained))


def gaps(problem: Problem, learned_from: Array) -> list[float]:
    """γ of every nested pair as a share of the target's variance, the encoders being learned from these moments."""
    truth, outputs = problem.moments, len(problem.weights)
    risks = {}
    for subset in problem.subsets():
        columns = problem.inputs(subset)
        risks[subset] = risk(truth, columns, outputs, encoder(learned_from, columns, outputs, problem.rank))
    variance = float(np.trace(truth[-outputs:, -outputs:]))
    return [(risks[large] - risks[small]) / variance for large, small in nested(problem)]


def nested(problem: Problem) -> Iterator[tuple[tuple[int, ...], tuple[int, ...]]]:
    """Superset and subset."""
    subsets = problem.subsets()
    yield from ((large, small) for large in subsets for small in subsets if set(small) < set(large))


def report(problems: int, seed: int = 0) -> str:
    """A row for encoders of so many items each, and one for those of the population."""
    rng = np.random.default_rng(seed)
    found: dict[str, list[float]] = {f"{size:,}": [] for size in SIZES} | {"population": []}
    for _ in tqdm(range(problems), disable=None, unit="problem"):
        problem = draw(rng)
        for size in SIZES:
            found[f"{size:,}"] += gaps(problem, problem.sample(size, rng))
        found["population"] += gaps(problem, problem.moments)
    limit = np.array(found["population"])
    tie = limit > -TIE
    lines = [f"{problems} problems, {(~tie).sum()} nested pairs that differ, {tie.sum()} that tie; gamma / Var y", ""]
    lines.append(markdown.header("items m", "gamma > 0, differ", "gamma > 0, tie", "mean, differ", "largest"))
    for name, values in found.items():
        gap = np.array(values)
        wrong = gap > ROUNDING
        cells = (wrong[~tie].sum(), wrong[tie].sum(), f"{gap[~tie].mean():+.4f}", f"{gap.max():+.1e}")
        lines.append(markdown.row(name, *cells))
    return "\n".join(lines)
