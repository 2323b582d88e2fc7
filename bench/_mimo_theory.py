"""What can be promised of MIMO on convex losses, and gradient descent with the library's ``MIMO`` beside it.

``Φ = f_0 + λ F_μ`` as in docs/mimo.md. A point is within ``δ`` of the minimum of ``Φ``, or of the expected objective of
a mini-batch; ``b`` is what the noise of the mini-batches' losses adds to the smooth maximum at the solution.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

import balanced_grad as bg
from bench._convex import Array, Problem, Solution, lexicographic, minimiser

Losses = dict[str, Tensor]


class Gaps(NamedTuple):
    """``F(x) - F*`` and ``f_0(x) - f_0(x*)``, of a point or as bounds."""

    worst: float
    joint: float


def schedule(tolerance: float, given_up: float, modalities: int, multiplier: float = math.inf) -> tuple[float, float]:
    """``(λ, μ)`` with which a point within half the tolerance of the minimum has both gaps within the tolerance."""
    penalty = 1 + min(given_up / tolerance, multiplier)
    return penalty, tolerance / (2 * penalty * math.log(modalities))


def bounds(solution: Solution, penalty: float, smoothing: float, modalities: int, left: float, bias: float = 0) -> Gaps:
    """The most that both gaps can be, ``left`` being ``δ``."""
    joint = penalty * (smoothing * math.log(modalities) + bias) + left
    worst = (solution.given_up + joint) / penalty
    if penalty > solution.multiplier:
        worst = min(worst, joint / (penalty - solution.multiplier))
    return Gaps(worst, joint)


def gaps(problem: Problem, solution: Solution, x: Tensor) -> Gaps:
    return Gaps(float(problem.worst(x)) - solution.worst, float(problem.joint(x)) - solution.joint)


@dataclass(frozen=True)
class Case:
    """A problem with its solution, a penalty and a smoothing, and what follows from them."""

    problem: Problem
    solution: Solution
    penalty: float
    smoothing: float
    smoothness: float
    best: Tensor  # the minimiser of the objective

    @classmethod
    def of(cls, problem: Problem, penalty: float, smoothing: float, solution: Solution | None = None) -> "Case":
        best = minimiser(lambda x: problem.objective(x, penalty, smoothing), problem.start)
        known = solution or lexicographic(problem)
        return cls(problem, known, penalty, smoothing, problem.smoothness(penalty, smoothing), best)

    @property
    def distance(self) -> float:
        """Square of the way from the start to the minimiser."""
        return float((self.best - self.problem.start).square().sum())

    def steps(self, left: float) -> int:
        """Steps of size ``1 / L_Φ`` after which the objective is within ``left`` of its minimum."""
        return math.ceil(self.smoothness * self.distance / (2 * left))

    def bounds_at(self, step: int) -> Gaps:
        left = self.smoothness * self.distance / (2 * max(step, 1))
        return bounds(self.solution, self.penalty, self.smoothing, len(self.problem.modalities), left)


def descend(
    problem: Problem,
    penalty: float,
    smoothing: float,
    rate: float,
    steps: int,
    batch: Callable[[], Problem] | None = None,
    look: Callable[[int, Tensor, Losses], None] = lambda step, x, losses: None,
) -> Tensor:
    """The average of ``steps`` points of (stochastic) gradient descent; ``look`` sees each point before its step."""
    balancer = bg.MIMO(penalty, smoothing)
    x = problem.start.requires_grad_()
    total = torch.zeros_like(problem.start)
    for step in range(steps):
        losses = (problem if batch is None else batch()).losses(x)
        look(step, x.detach(), losses)
        balancer(losses).backward()
        with torch.no_grad():
            x -= rate * x.grad
            total += x
        x.grad = None
    return total / steps


def trace(case: Case, steps: int) -> Array:
    """``(steps, 2)`` gaps on the way of gradient descent with the step ``1 / L_Φ``."""
    seen = np.empty((steps, 2))

    def look(step: int, x: Tensor, losses: Losses) -> None:
        joint, *others = (loss.item() for loss in losses.values())
        seen[step] = max(others), joint

    descend(case.problem, case.penalty, case.smoothing, 1 / case.smoothness, steps, look=look)
    return seen - (case.solution.worst, case.solution.joint)


class MiniBatches:
    """The items in parts of equal size, one of which is drawn in every step: their mean objective is what SGD sees."""

    def __init__(self, case: Case, size: int) -> None:
        items = torch.arange(len(case.problem.joint.A))
        self.case, self.parts = case, [case.problem[rows] for rows in items.split(size)]
        self.smoothness = max(part.smoothness(case.penalty, case.smoothing) for part in self.parts)
        self.best = minimiser(self.objective, case.problem.start)

    def objective(self, x: Tensor) -> Tensor:
        values = [part.objective(x, self.case.penalty, self.case.smoothing) for part in self.parts]
        return torch.stack(values).mean()

    @property
    def bias(self) -> float:
        """``b``, exactly: by how much the mean smooth maximum exceeds that of the mean losses at the solution."""
        x = self.case.solution.x
        excess = self.objective(x) - self.case.problem.objective(x, self.case.penalty, self.case.smoothing)
        return float(excess) / self.case.penalty

    @property
    def noise(self) -> float:
        """Root of the mean over the parts of the largest squared deviation of a loss, at the solution."""
        x, terms = self.case.solution.x, self.case.problem.modalities
        means = {name: float(term(x)) for name, term in terms.items()}
        deviations = [[float(part.modalities[name](x)) - value for name, value in means.items()] for part in self.parts]
        return math.sqrt(float(np.square(deviations).max(1).mean()))

    def variance(self, x: Tensor) -> float:
        """Mean squared distance of a part's gradient from the mean gradient."""
        point = x.clone().requires_grad_()
        own = [part.objective(point, self.case.penalty, self.case.smoothing) for part in self.parts]
        rows = torch.stack([torch.autograd.grad(value, point)[0] for value in own])
        return float((rows - rows.mean(0)).square().sum(1).mean())

    def run(self, steps: int, seed: int, every: int = 20) -> tuple[Tensor, float]:
        """The average point of SGD, and the bound on what it leaves: ``δ = R²/(2αK) + α σ²``.

        The rate is the one that is best for the variance at the start, and no more than ``1 / L``.
        """
        start, draw, seen = self.case.problem.start, torch.Generator().manual_seed(seed), []
        distance = float((self.best - start).square().sum())
        rate = min(1 / self.smoothness, math.sqrt(distance / (2 * steps * self.variance(start))))

        def batch() -> Problem:
            return self.parts[int(torch.randint(len(self.parts), (), generator=draw))]

        def look(step: int, x: Tensor, losses: Losses) -> None:
            if step % every == 0:
                seen.append(self.variance(x))

        mean = descend(self.case.problem, self.case.penalty, self.case.smoothing, rate, steps, batch, look)
        return mean, distance / (2 * rate * steps) + rate * float(np.mean(seen))
