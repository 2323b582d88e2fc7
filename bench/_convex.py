"""Convex multi-modal problems whose lexicographic solution is known, and the constants that step sizes are made of.

Every loss is ``g(A x)`` with a strictly convex ``g``: half the mean squared error of a linear map, or the mean logistic
loss of linear scores. Independent solvers (cvxpy, scipy) say where the least worst loss, the lexicographic solution and
the minimiser of MIMO's objective are.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn.functional import softplus

Array = npt.NDArray[np.float64]
JOINT = "joint"


@dataclass(frozen=True)
class Term:
    """A loss of ``x (d,)``: ``|A x - b|² / 2n``, or without ``b`` the mean of ``log(1 + exp(-A x))``; ``A (n, d)``."""

    A: Tensor
    b: Tensor | None = None

    def __call__(self, x: Tensor) -> Tensor:
        score = self.A @ x
        return softplus(-score).mean() if self.b is None else (score - self.b).square().mean() / 2

    def __getitem__(self, rows: Tensor) -> "Term":
        return Term(self.A[rows], None if self.b is None else self.b[rows])

    @property
    def smoothness(self) -> float:
        """``L``: the gradient's Lipschitz constant."""
        curvature = 0.25 if self.b is None else 1.0
        return curvature * float(torch.linalg.matrix_norm(self.A, 2)) ** 2 / len(self.A)

    def steepness(self, level: float) -> float:
        """``G``: the longest gradient where the loss is no more than ``level``."""
        most = 1.0 if self.b is None else math.sqrt(2 * level)
        return most * float(torch.linalg.matrix_norm(self.A, 2)) / math.sqrt(len(self.A))

    def modelled(self, x: Any) -> Any:
        """The loss of a cvxpy variable."""
        import cvxpy

        cp: Any = cvxpy  # its types do not declare the atoms
        score = self.A.numpy() @ x
        if self.b is None:
            return cp.sum(cp.logistic(-score)) / len(self.A)
        return cp.sum_squares(score - self.b.numpy()) / (2 * len(self.A))


@dataclass(frozen=True)
class Problem:
    """The joint loss and the modalities' losses as functions of one vector."""

    title: str
    joint: Term
    modalities: dict[str, Term]

    @property
    def start(self) -> Tensor:
        return torch.zeros(self.joint.A.shape[1], dtype=torch.float64)

    def __getitem__(self, rows: Tensor) -> "Problem":
        return Problem(self.title, self.joint[rows], {name: term[rows] for name, term in self.modalities.items()})

    def losses(self, x: Tensor) -> dict[str, Tensor]:
        return {JOINT: self.joint(x)} | {name: term(x) for name, term in self.modalities.items()}

    def worst(self, x: Tensor) -> Tensor:
        return torch.stack([term(x) for term in self.modalities.values()]).max()

    def objective(self, x: Tensor, penalty: float, smoothing: float) -> Tensor:
        """MIMO's, written out once more: ``f_0 + λ μ log((1/M) Σ exp(f_m / μ))``."""
        values = torch.stack([term(x) for term in self.modalities.values()])
        smooth = smoothing * (torch.logsumexp(values / smoothing, 0) - math.log(len(values)))
        return self.joint(x) + penalty * smooth

    def smoothness(self, penalty: float, smoothing: float) -> float:
        """``L_Φ = L_0 + λ (L + G²/μ)``, on the points where the objective is no more than at the start."""
        terms = self.modalities.values()
        # Losses are not negative, so λ times the worst one is below the objective with its log M put back.
        at_start = float(self.objective(self.start, penalty, smoothing))
        level = at_start / penalty + smoothing * math.log(len(self.modalities))
        steep = max(term.steepness(level) for term in terms)
        return self.joint.smoothness + penalty * (max(term.smoothness for term in terms) + steep**2 / smoothing)


@dataclass(frozen=True)
class Solution:
    """The lexicographic solution ``x``, its worst and joint loss, and ``given_up = f_0(x) - inf f_0``.

    ``multiplier``: the least ``ν`` with ``f_0 + ν F`` minimised by ``x``; infinite where there is none.
    """

    x: Tensor
    worst: float
    joint: float
    given_up: float
    multiplier: float


def lexicographic(problem: Problem) -> Solution:
    """Least worst loss first, then the least joint loss among all points that have it, by cvxpy.

    A loss that has to be active is strictly convex in ``A x``, so its ``A x`` is the same at all those points: the
    second problem holds it by an equation, where an inequality would leave no interior.
    """
    import cvxpy

    cp: Any = cvxpy
    terms = list(problem.modalities.values())
    x, worst = cp.Variable(len(problem.start)), cp.Variable()
    limits = [term.modelled(x) <= worst for term in terms]
    cp.Problem(cp.Minimize(worst), limits).solve(solver=cp.CLARABEL)
    first, least = x.value, float(worst.value)
    held = [
        (basis := row_space(term.A)) @ x == basis @ first if limit.dual_value > 1e-4 else term.modelled(x) <= least
        for term, limit in zip(terms, limits, strict=True)
    ]
    joint = float(cp.Problem(cp.Minimize(problem.joint.modelled(x)), held).solve(solver=cp.CLARABEL))
    found = torch.from_numpy(np.asarray(x.value))
    lowest = float(cp.Problem(cp.Minimize(problem.joint.modelled(x))).solve(solver=cp.CLARABEL))
    return Solution(found, least, joint, joint - lowest, multiplier(problem, found))


def row_space(A: Tensor) -> Array:
    """Orthonormal rows that span those of ``A``."""
    _, values, rows = np.linalg.svd(A.numpy(), full_matrices=False)
    return rows[values > 1e-9 * values.max()]


def multiplier(problem: Problem, x: Tensor) -> float:
    """Least total weight on the active losses whose gradient cancels that of the joint loss; infinite without one."""
    from scipy.optimize import linprog

    x = x.clone().requires_grad_()
    losses = problem.losses(x)
    rows = {name: torch.autograd.grad(loss, x, retain_graph=True)[0].numpy() for name, loss in losses.items()}
    aim, worst = rows.pop(JOINT), float(problem.worst(x.detach()))
    J = np.stack([row for name, row in rows.items() if losses[name].item() > worst - 1e-5], 1)
    slack = 1e-4 * np.linalg.norm(aim)  # of the solver's point
    found = linprog(np.ones(J.shape[1]), np.vstack([J, -J]), np.concatenate([slack - aim, slack + aim]))
    return float(found.fun) if found.success and found.fun < 1e3 else math.inf


def minimiser(function: Callable[[Tensor], Tensor], start: Tensor) -> Tensor:
    """The minimiser of a smooth convex function, by Newton steps in a trust region."""
    from scipy.optimize import minimize

    def value_and_gradient(point: Array) -> tuple[float, Array]:
        x = torch.from_numpy(point).requires_grad_()
        value = function(x)
        return value.item(), torch.autograd.grad(value, x)[0].numpy()

    def hessian(point: Array) -> Array:
        return torch.autograd.functional.hessian(function, torch.from_numpy(point)).numpy()

    found = minimize(
        value_and_gradient, start.numpy(), jac=True, hess=hessian, method="trust-exact", options={"gtol": 1e-9}
    )
    return torch.from_numpy(found.x)


def quadratics(seed: int, size: int = 6) -> Problem:
    """Three modalities want the same two coordinates of a trunk to be three different points: the optimum is a kink."""
    draw = torch.Generator().manual_seed(seed)
    angle = 2 * math.pi * (torch.arange(3) / 3 + 0.1 * torch.rand(3, generator=draw) + torch.rand(1, generator=draw))
    wanted = 1 + torch.stack([angle.cos(), angle.sin()], 1).double()
    shared = torch.linalg.qr(torch.randn(size, 2, generator=draw, dtype=torch.float64))[0].T
    A = torch.eye(size, dtype=torch.float64) + 0.3 * torch.randn(size, size, generator=draw, dtype=torch.float64)
    joint = Term(A, torch.randn(size, generator=draw, dtype=torch.float64))
    return Problem("shared parameters, quadratics", joint, {f"m{k}": Term(shared, wanted[k]) for k in range(3)})


def late_fusion(seed: int, items: int = 128, strengths: Sequence[float] = (1.2, 0.8, 0.4), width: int = 3) -> Problem:
    """Linear encoders whose scores add up to the joint score; a nuisance that spoils each cancels between them."""
    draw = torch.Generator().manual_seed(seed)
    nuisance = 2 * torch.randn(items, generator=draw, dtype=torch.float64)
    blocks = []
    for k, strength in enumerate(strengths):
        x = torch.randn(items, width, generator=draw, dtype=torch.float64)
        x[:, 0] += strength + (-1) ** k * nuisance  # each item with the sign of its label multiplied in
        blocks.append(x)
    zero = torch.zeros_like(blocks[0])
    own = {
        f"m{k}": Term(torch.cat([block if j == k else zero for j in range(len(blocks))], 1))
        for k, block in enumerate(blocks)
    }
    return Problem("late fusion, logistic", Term(torch.cat(blocks, 1)), own)
