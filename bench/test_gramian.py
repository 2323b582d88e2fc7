"""The Gramian pass beside what one would write, and one read of the rows.

    pytest bench/test_gramian.py --benchmark-only

``extra_info["ratio"]`` is to a plain sum over all rows, measured in the same run; ``error`` is the largest relative
error against float64.
"""

import statistics
import time

import pytest
import torch

from balanced_grad.kernels import gramian

CASES = [(count, size) for size in (10**5, 10**6, 10**7) for count in (2, 3, 4, 8)]


def pair_dots(rows):
    return torch.stack([torch.stack([torch.dot(a, b) for a in rows]) for b in rows])


WAYS = {"ours, float64 partial sums": gramian, "rows @ rows.T": lambda rows: rows @ rows.T, "a dot per pair": pair_dots}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(("count", "size"), CASES)
def test_gramian(benchmark, count, size, way):
    rows = torch.randn(count, size, generator=torch.Generator().manual_seed(0))
    benchmark.group = f"Gramian M={count} D={size:.0e}"
    result = benchmark.pedantic(WAYS[way], args=(rows,), rounds=9, warmup_rounds=2)
    if benchmark.disabled:
        return
    reads = []
    for _ in range(9):
        start = time.perf_counter()
        rows.sum()
        reads.append(time.perf_counter() - start)
    exact = rows.double() @ rows.double().T
    benchmark.extra_info["ratio"] = benchmark.stats.stats.median / statistics.median(reads)
    benchmark.extra_info["error"] = ((result - exact).abs() / exact.diagonal().max()).max().item()
