"""More modalities are worse until there are enough items: least squares where the crossover can be worked out.

    y = w_a · a + w_b · b + ε,   a (8) with ‖w_a‖² = 1,   b (100) with ‖w_b‖² = 1/4,   all of unit variance

Least squares on m items has the risk ``v (m - 1)/(m - d - 1)`` in the mean, where v is what its inputs leave
unexplained: 5/4 from ``a``, 1 from both. The curves cross at ``m = 1 + d + d_b / ‖w_b‖² = 509``, ``d = 108``.
"""

from dataclasses import dataclass
from math import sqrt
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from tqdm import tqdm

from balanced_grad.diagnostics import SampleSizeCurve, sample_size_curve
from balanced_grad.diagnostics._curve import crossing
from balanced_grad.pictures import BLUE, GREY, ORANGE, drawing, write
from bench import _markdown as markdown

Array = npt.NDArray[np.float64]
WIDTHS, SIGNALS = {"a": 8, "b": 100}, {"a": 1.0, "b": 0.25}
SIZES = (150, 200, 300, 400, 500, 700, 1000, 2000)
TEST = 5000
ALONE, BOTH = ("a",), ("a", "b")


class LeastSquares(nn.Module):
    """A latent of one number, ``ŵ · x``, with a head that passes it on."""

    def __init__(self, inputs: dict[str, Tensor], targets: Tensor) -> None:
        super().__init__()
        x = torch.cat(list(inputs.values()), 1)
        self.weight = nn.Parameter(torch.linalg.lstsq(x, targets[:, None]).solution)

    def encode(self, inputs: dict[str, Tensor]) -> Tensor:
        return torch.cat(list(inputs.values()), 1) @ self.weight

    def head(self, latent: Tensor) -> Tensor:
        return latent[:, 0]


def theory(subset: tuple[str, ...], items: Array) -> Array:
    """Mean risk of least squares."""
    width = sum(WIDTHS[name] for name in subset)
    unexplained = 1 + sum(SIGNALS[name] for name in WIDTHS if name not in subset)
    return unexplained * (items - 1) / (items - width - 1)


def crossover() -> float:
    """Items at which the two are equal."""
    return 1 + sum(WIDTHS.values()) + WIDTHS["b"] / SIGNALS["b"]


def draw(items: int, weights: dict[str, Tensor], generator: torch.Generator) -> tuple[dict[str, Tensor], Tensor]:
    """Inputs and targets."""
    inputs = {n: torch.randn(items, w, generator=generator, dtype=torch.double) for n, w in WIDTHS.items()}
    noise = torch.randn(items, generator=generator, dtype=torch.double)
    return inputs, torch.stack([inputs[name] @ weights[name] for name in WIDTHS]).sum(0) + noise


def measure(seed: int) -> SampleSizeCurve:
    """One data set, at every size; the heads have half as many items as the largest."""
    generator = torch.Generator().manual_seed(seed)
    weights = {name: torch.randn(width, generator=generator, dtype=torch.double) for name, width in WIDTHS.items()}
    weights = {name: w * (sqrt(SIGNALS[name]) / w.norm()) for name, w in weights.items()}
    items, test = (draw(n, weights, generator) for n in (SIZES[-1] * 3 // 2, TEST))
    return sample_size_curve(
        lambda inputs, targets, _: LeastSquares(dict(inputs), targets),
        items,
        test,
        fractions=[size / SIZES[-1] for size in SIZES],
        subsets=[ALONE, BOTH],
        seeds=[seed],
        progress=False,
    )


@dataclass(frozen=True)
class Found:
    """Of every data set and size ``(S, sizes)``: risks of either set with its own head, γ of refitted heads."""

    alone: Array
    both: Array
    refitted: Array
    rule: int  # how often training gain and complexity price call for both

    @classmethod
    def of(cls, curves: list[SampleSizeCurve]) -> "Found":
        own = ([[each[s].test_risk for each in c.reports.values()] for c in curves] for s in (ALONE, BOTH))
        alone, both = map(np.array, own)
        gaps = [list(curve.gaps(BOTH, ALONE).values()) for curve in curves]
        rule = sum(gap.training_gain >= gap.complexity_price for row in gaps for gap in row)
        return cls(alone, both, np.array([[gap.value for gap in row] for row in gaps]), rule)

    def crossings(self) -> dict[str, Array]:
        """Of every data set: items from which both win, with the network's own head and with a refitted one."""
        gaps = {"own head": self.both - self.alone, "refitted head": self.refitted}
        return {
            name: np.array([crossing(list(zip(SIZES, row, strict=True))) for row in gap]) for name, gap in gaps.items()
        }


def report(seeds: int, plot: Path | None) -> str:
    """A row per size, and where the curves cross."""
    found = Found.of([measure(seed) for seed in tqdm(range(seeds), disable=None, unit="data set")])
    if plot:
        draw_picture(found, plot)
    lines = [markdown.header("items", "a: theory, risk", "a+b: theory, risk", "difference", "gamma, refitted head")]
    for column, items in enumerate(SIZES):
        pairs = ((ALONE, found.alone), (BOTH, found.both))
        risks = [f"{float(theory(s, np.array(items))):.3f}, {spread(r[:, column])}" for s, r in pairs]
        gaps = [spread(gap[:, column], "+") for gap in (found.both - found.alone, found.refitted)]
        lines.append(markdown.row(items, *risks, *gaps))
    lines += ["", f"{seeds} data sets, mean ± standard error. Crossover in theory: {crossover():.0f} items; measured:"]
    lines += [f"{name}: {spread(values, digits=0)} items" for name, values in found.crossings().items()]
    cases = seeds * len(SIZES)
    return "\n".join([*lines, f"training gain >= complexity price, so take both: in {found.rule} of {cases} cases"])


def spread(values: Array, sign: str = "", digits: int = 3) -> str:
    """Mean and standard error."""
    return markdown.mean_and_error(values.tolist(), f"{sign}.{digits}f")


def draw_picture(found: Found, path: Path) -> None:
    """Risks beside theory, and the gap with its crossover."""
    with drawing("--plot", figsize=(9, 3.4)) as figure:
        left, right = figure.subplots(1, 2)
        grid = np.geomspace(SIZES[0], SIZES[-1], 200)
        for subset, risks, colour in ((ALONE, found.alone, ORANGE), (BOTH, found.both, BLUE)):
            left.plot(grid, theory(subset, grid), "--", color=colour, lw=0.9)
            left.errorbar(SIZES, risks.mean(0), 2 * error(risks), fmt="o", color=colour, label="+".join(subset))
        left.set(xscale="log", yscale="log", xlabel="training items", ylabel="risk, own head (dashed: theory)")
        left.legend()
        for gap, colour, label in (
            (found.both - found.alone, BLUE, "own head"),
            (found.refitted, GREY, "refitted head"),
        ):
            right.errorbar(SIZES, gap.mean(0), 2 * error(gap), marker="o", color=colour, label=label)
        right.axhline(0, color="black", lw=0.8)
        right.set(xscale="log", xlabel="training items", ylabel="risk of a+b minus risk of a", ylim=(-0.3, 0.7))
        for axis in (left, right):
            axis.axvline(crossover(), color="black", lw=0.8, ls=":")
            axis.set_xticks(SIZES, [str(size) for size in SIZES], minor=False)
            axis.minorticks_off()
        left.set_yticks((1, 1.5, 2, 3, 4), ("1", "1.5", "2", "3", "4"))
        right.annotate(f" {crossover():.0f}", (crossover(), 0.6))
        right.legend()
        write(figure, path)


def error(values: Array) -> Array:
    """Standard error of each column."""
    found: Array = values.std(0, ddof=1) / sqrt(len(values))
    return found
