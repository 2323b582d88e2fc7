"""The min-norm subproblem, Gramian in and weights out, ours beside the peers.

    pytest bench/test_min_norm.py --benchmark-only

Every entry turns a CPU tensor into a CPU tensor. One round solves each of the problems below once (batch 1) or a
batch of 1000; times are per round, so compare within a group. `extra_info` holds the worst gap and the worst excess
of the returned vector's length over the shortest one. Nothing is asserted on times.
"""

import warnings
from typing import Any

import clarabel
import cvxpy
import numpy as np
import pytest
import qpsolvers
import scipy.sparse
import torch
from scipy.optimize import minimize, nnls
from torchjd.aggregation import MGDAWeighting, UPGradWeighting

from balanced_grad.solvers import min_norm

torch.set_num_threads(1)
cp: Any = cvxpy  # its types do not declare the atoms
SIZES = (2, 3, 4, 8, 16, 64)


def rows(M, kind, generator):
    J = torch.randn(M, 3 * M, generator=generator, dtype=torch.float64)
    if kind == "spread":  # norms 1 : 1000
        return J * 10.0 ** (3.0 * torch.rand(M, 1, generator=generator, dtype=torch.float64))
    return J + 2.0 * J[0] if kind == "cone" else J


def problems(M, count):
    generator = torch.Generator().manual_seed(M)
    kinds = ("balanced", "spread", "cone")
    return torch.stack([(lambda J: J @ J.T)(rows(M, kinds[i % 3], generator)) for i in range(count)])


def scaled(G):
    P = G.numpy()
    return P / P.diagonal().mean()


def ours(method):
    return lambda G: min_norm(G, method=method).weights


def by_qpsolvers(G):
    n = len(G)
    P = scaled(G) + 1e-10 * np.eye(n)  # quadprog needs a positive definite matrix
    ones, zeros = np.ones((1, n)), np.zeros(n)
    return torch.from_numpy(qpsolvers.solve_qp(P, zeros, A=ones, b=np.ones(1), lb=zeros, solver="quadprog"))


def by_clarabel(G):
    n = len(G)
    P = scipy.sparse.csc_matrix(np.triu(2.0 * scaled(G)))
    A = scipy.sparse.csc_matrix(np.vstack((np.ones(n), -np.eye(n))))
    cones = [clarabel.ZeroConeT(1), clarabel.NonnegativeConeT(n)]
    settings = clarabel.DefaultSettings()
    settings.verbose = False
    solution = clarabel.DefaultSolver(P, np.zeros(n), A, np.eye(n + 1)[0], cones, settings).solve()
    return torch.tensor(solution.x, dtype=torch.float64)


def by_slsqp(G):
    P, n = scaled(G), len(G)
    total = {"type": "eq", "fun": lambda w: w.sum() - 1.0, "jac": np.ones_like}
    result = minimize(
        lambda w: w @ P @ w,
        np.full(n, 1.0 / n),
        jac=lambda w: 2.0 * P @ w,
        bounds=[(0.0, 1.0)] * n,
        constraints=[total],
        method="SLSQP",
    )
    return torch.from_numpy(result.x)


def by_nnls(G):
    values, vectors = np.linalg.eigh(scaled(G))
    A = np.vstack(((vectors * np.sqrt(np.maximum(values, 0.0))).T, np.ones(len(G))))
    y = nnls(A, np.eye(len(G) + 1)[-1])[0]
    return torch.from_numpy(y / y.sum())


def by_cvxpy_rebuilt(G):
    w = cp.Variable(len(G))
    cp.Problem(cp.Minimize(cp.quad_form(w, cp.psd_wrap(scaled(G)))), [w >= 0, cp.sum(w) == 1]).solve()
    return torch.from_numpy(w.value)


PEERS = {
    "quadprog through qpsolvers": by_qpsolvers,
    "scipy NNLS": by_nnls,
    "scipy SLSQP": by_slsqp,
    "clarabel": by_clarabel,
    "cvxpy rebuilt": by_cvxpy_rebuilt,
    "cvxpy parametrised": ours("cvxpy"),
    "torchjd MGDA": MGDAWeighting(),
    "torchjd MGDA 1e-5 / 1000": MGDAWeighting(epsilon=1e-5, max_iters=1000),
    "torchjd UPGrad": UPGradWeighting(),  # solves another problem: for its time only
}


def entries(M):
    own = {"ours": ours("auto"), "ours, active set": ours("active_set")}
    if M <= 3:
        own["ours, closed on device"] = ours("closed")
    if M <= 8:
        own["ours, faces on device"] = ours("faces")
    return own


def accuracy(G, weights):
    """Worst gap and worst excess length over a batch."""
    weights = weights / weights.sum(-1, keepdim=True)
    best = min_norm(G).weights

    def length(w):
        return torch.einsum("bi,bij,bj->b", w, G, w).clamp_min(0.0).sqrt()

    product = torch.einsum("bij,bj->bi", G, weights)
    gap = (length(weights) ** 2 - product.amin(-1)) / G.diagonal(dim1=-2, dim2=-1).amax(-1)
    return {"gap": gap.max().item(), "excess": (length(weights) / length(best)).max().item() - 1.0}


@pytest.mark.parametrize(("M", "name"), [(M, name) for M in SIZES for name in (*entries(M), *PEERS)])
def test_one_at_a_time(benchmark, M, name):
    solve = (entries(M) | PEERS)[name]
    G = problems(M, 12)
    benchmark.group = f"M={M:2d}, 12 problems one at a time"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the peers warn about accuracy: it is measured here
        weights = benchmark.pedantic(lambda: [solve(g) for g in G], rounds=8, warmup_rounds=1)
    if name != "torchjd UPGrad":
        benchmark.extra_info.update(accuracy(G, torch.stack(list(weights))))


BATCHED = {"ours": ours("auto"), "ours, active set loop": ours("active_set")}


@pytest.mark.parametrize("name", [*BATCHED, "loop over quadprog", "loop over NNLS"])
@pytest.mark.parametrize("M", SIZES)
def test_batch_of_1000(benchmark, M, name):
    G = problems(M, 1000)
    loops = {"loop over quadprog": by_qpsolvers, "loop over NNLS": by_nnls}
    solve = BATCHED.get(name) or (lambda batch: torch.stack([loops[name](g) for g in batch]))
    benchmark.group = f"M={M:2d}, a batch of 1000"
    weights = benchmark.pedantic(solve, args=(G,), rounds=3, warmup_rounds=1)
    benchmark.extra_info.update(accuracy(G, weights))
