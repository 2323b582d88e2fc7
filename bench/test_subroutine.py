"""The balancing subroutine alone, from per-loss gradients to ``.grad``, beside the released torchjd.

    pytest bench/test_subroutine.py --benchmark-only --benchmark-group-by=group

M gradients of D floats in 64 parameters, half of them bias-sized. ``extra_info["floor"]`` is the time, in the same
run, of reading every row once and writing one row; ``ratio`` is the shortest time over that. The floor of a method
whose weights need all inner products is two reads once M * D leaves the cache: 1.6 to 1.9 times the first.
"""

import time

import pytest
import torch

from bench._subroutine import WAYS, Case

pytest.importorskip("torchjd", reason="the peer that is compared with; pip install 'balanced-grad[bench]'")

CASES = [(m, d) for d in (10**5, 10**6, 10**7) for m in (2, 3, 4, 8)]


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
