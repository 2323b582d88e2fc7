"""The balancing subroutine alone, from per-loss gradients to ``.grad``, beside the released torchjd.

    pytest bench/test_subroutine.py --benchmark-only --benchmark-group-by=group

M gradients of D floats in 64 parameters, half of them bias-sized. ``extra_info["floor"]`` is the time, in the same
run, of reading every row once and writing one row; ``ratio`` is the shortest time over that. The floor of a method
whose weights need all inner products is two reads once M * D leaves the cache: 1.6 to 1.9 times the first.
"""

import time

import pytest
import torch

from balanced_grad.capture._plan import Group
from balanced_grad.capture._rows import Arena
from balanced_grad.capture._write import accumulate
from balanced_grad.kernels import combine, gramian
from balanced_grad.solvers import min_norm

torchjd = pytest.importorskip("torchjd", reason="the peer that is compared with; pip install 'balanced-grad[bench]'")
from torchjd.aggregation import MGDA, UPGrad  # noqa: E402
from torchjd.autojac import jac_to_grad  # noqa: E402

CASES = [(m, d) for d in (10**5, 10**6, 10**7) for m in (2, 3, 4, 8)]


def parameters_of(size):
    """64 parameters with ``size`` entries in all: 32 weights and 32 biases."""
    bias = 64
    weight = (size - 32 * bias) // 32
    return [torch.zeros(n, requires_grad=True) for _ in range(32) for n in (weight, bias)]


class Case:
    def __init__(self, count, size):
        torch.manual_seed(0)
        self.parameters = parameters_of(size)
        self.rows = Arena().rows([Group(tuple(range(count)), tuple(self.parameters))])[0]
        self.grads = [[torch.randn_like(p) for p in self.parameters] for _ in range(count)]
        for row, grads in enumerate(self.grads):
            self.rows.write(row, grads)

    def clear(self):
        for p in self.parameters:
            p.grad = None

    def ours(self):
        """Rows as the capture leaves them: Gramian, exact solve, one combined row, views as ``.grad``."""
        weights = min_norm(gramian(self.rows.flat)).weights
        accumulate(self.parameters, self.rows.views(combine(self.rows.flat, weights, self.rows.output())))

    def ours_with_copy(self):
        """The same from the tensors autograd returned, the copy into the arena included."""
        for row, grads in enumerate(self.grads):
            self.rows.write(row, grads)
        self.ours()

    def plain_sum(self):
        for grads in self.grads:
            accumulate(self.parameters, [g.clone() for g in grads] if self.parameters[0].grad is None else grads)

    def torchjd_setup(self):
        self.clear()
        for position, p in enumerate(self.parameters):
            p.jac = torch.stack([grads[position] for grads in self.grads])

    def torchjd(self, aggregator, **options):
        jac_to_grad(self.parameters, aggregator, **options)

    def floor(self, out):
        """Read all rows once and write one."""
        self.rows.flat.sum()
        out.fill_(1.0)


WAYS = {
    "ours": (Case.clear, Case.ours),
    "ours, copy into the arena included": (Case.clear, Case.ours_with_copy),
    "plain sum of the gradients": (Case.clear, Case.plain_sum),
    "torchjd MGDA": (Case.torchjd_setup, lambda case: case.torchjd(MGDA())),
    "torchjd MGDA, Gramian option": (
        Case.torchjd_setup,
        lambda case: case.torchjd(MGDA(), optimize_gramian_computation=True),
    ),
    "torchjd UPGrad": (Case.torchjd_setup, lambda case: case.torchjd(UPGrad())),
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(("count", "size"), CASES)
def test_subroutine(benchmark, count, size, way):
    case = Case(count, size)
    setup, run = WAYS[way]
    benchmark.group = f"subroutine M={count} D={size:.0e}"
    benchmark.pedantic(lambda: run(case), setup=lambda: setup(case), rounds=7 if size < 10**7 else 5, warmup_rounds=1)
    if benchmark.disabled:
        return
    out = torch.empty_like(case.rows.flat[0])
    pairs = [(seconds(lambda: case.floor(out)), seconds(lambda: run(case), lambda: setup(case))) for _ in range(9)]
    floor, shortest = (min(times) for times in zip(*pairs, strict=True))  # in turns, best of both: other load only adds
    benchmark.extra_info["floor_ms"] = 1e3 * floor
    benchmark.extra_info["ratio"] = shortest / floor


def seconds(function, before=lambda: None):
    before()
    start = time.perf_counter()
    function()
    return time.perf_counter() - start
