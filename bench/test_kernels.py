"""Every pass over the rows, by every implementation that runs here, beside what one would otherwise write.

    pytest bench/test_kernels.py --benchmark-only

``extra_info["bytes"]`` is the least traffic of the pass; ``floor_ms`` what it takes at the bandwidth measured in
turns with it, the best of a sum (read only), a copy and a multiplication in place over tensors of the same size;
``ratio`` is the shortest time over that floor: the best of both, since whatever else runs only adds. On a CUDA
device sizes go up to 1e8, and the floor is that of the device.
"""

import time
from itertools import pairwise

import pytest
import torch

from balanced_grad.evidence import fuse_gradients
from balanced_grad.kernels import combine, evidential_fuse, gramian, moments_update

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
IMPLEMENTATIONS = ("reference", "compiled", "triton") if DEVICE == "cuda" else ("reference", "compiled")
SIZES = (10**5, 10**6, 10**7, 10**8) if DEVICE == "cuda" else (10**5, 10**6, 10**7)
CASES = [(count, size) for size in SIZES for count in (2, 3, 4, 8)]
ROUNDS = 9
BETA, KAPPA, CAP, EPS = 0.9, 1.0, 1e4, 1e-8


class Case:
    """Rows, state and output of one size."""

    def __init__(self, count, size, device=DEVICE):
        torch.manual_seed(0)
        self.rows = torch.randn(count, size, device=device)
        self.mean = torch.zeros_like(self.rows)
        self.variance = torch.rand_like(self.rows)
        self.out = torch.empty_like(self.rows[0])
        self.weights = torch.rand(count, device=device)
        self.bias = torch.zeros(count, device=device)
        self.ok = torch.ones(count, dtype=torch.bool, device=device)
        self.reference = torch.ones((), device=device)
        tensor = max(4, size // 64 // 4 * 4)
        self.bounds = [*range(0, size - tensor, tensor), size]
        lengths = [stop - start for start, stop in pairwise(self.bounds)]
        self.split = [row.split(lengths) for row in self.rows]

    def state(self):
        return self.rows, self.mean, self.variance, self.bias, BETA


def eager(c):
    """The step as one writes it, one tensor per modality."""
    evidences = []
    for row, mean, variance in zip(c.rows, c.mean, c.variance, strict=True):
        deviation = row - mean
        mean += (1 - BETA) * deviation
        variance.copy_(BETA * (variance + (1 - BETA) * deviation**2))
        evidences.append((KAPPA / (c.reference * variance + EPS)).clamp(max=CAP) + 1)
    total = sum(evidences)
    return len(evidences) * sum(e / total * row for e, row in zip(evidences, c.rows, strict=True))


def foreach(c):
    """The step over lists of tensors with torch._foreach_*."""
    rows, means, variances = list(c.rows), list(c.mean), list(c.variance)
    deviations = torch._foreach_sub(rows, means)
    torch._foreach_add_(means, deviations, alpha=1 - BETA)
    torch._foreach_mul_(variances, BETA)
    torch._foreach_addcmul_(variances, deviations, deviations, value=BETA * (1 - BETA))
    evidences = torch._foreach_add(torch._foreach_mul(variances, 1.0), EPS)
    torch._foreach_reciprocal_(evidences)
    torch._foreach_clamp_max_(evidences, CAP)
    torch._foreach_add_(evidences, 1.0)
    total = sum(evidences)
    torch._foreach_mul_(evidences, rows)
    return len(rows) * sum(evidences) / total


def torchjd_sum(c):
    """What the released torchjd does with weights: a matrix product over stacked rows."""
    return c.weights @ c.rows


def dots_per_tensor(c):
    """Inner products tensor by tensor, in the parameters' pieces."""
    return [torch.stack([torch.dot(a, b) for a, b in zip(one, two, strict=True)]) for one in c.split for two in c.split]


def both(c, implementation):
    """One step of evidence over steps: the two passes, one after the other."""
    moments_update(*c.state(), ok=c.ok, implementation=implementation)
    return evidential_fuse(c.rows, c.variance, c.reference, out=c.out, implementation=implementation)


# pass -> (streams of D numbers at least, ours, what one would otherwise write)
PASSES = {
    "gramian": (
        lambda m: m,
        lambda c, i: gramian(c.rows, implementation=i),
        {"rows @ rows.T": lambda c: c.rows @ c.rows.T},
    ),
    "gramian per segment": (
        lambda m: m,
        lambda c, i: gramian(c.rows, c.bounds, implementation=i),
        {"a dot per pair and tensor": dots_per_tensor},
    ),
    "combine": (
        lambda m: m + 1,
        lambda c, i: combine(c.rows, c.weights, c.out, implementation=i),
        {"weights @ rows": torchjd_sum},
    ),
    "moments": (lambda m: 5 * m, lambda c, i: moments_update(*c.state(), ok=c.ok, implementation=i), {}),
    "fuse": (
        lambda m: 2 * m + 1,
        lambda c, i: evidential_fuse(c.rows, c.variance, c.reference, out=c.out, implementation=i),
        {"fuse_gradients": lambda c: fuse_gradients(c.rows, c.variance, reference=c.reference)},
    ),
    "moments, fuse": (
        lambda m: 7 * m + 1,
        both,
        {"eager": eager, "foreach": foreach},
    ),
}
WAYS = [
    (name, way)
    for name, (_, _, others) in PASSES.items()
    for way in [*(f"ours, {i}" for i in IMPLEMENTATIONS), *others]
]


def seconds(function):
    """Wall time, the device's work included."""
    synchronize()
    start = time.perf_counter()
    function()
    synchronize()
    return time.perf_counter() - start


def synchronize():
    if DEVICE == "cuda":
        torch.cuda.synchronize()


def beside_the_floor(once, c):
    """Shortest time of the pass, and the highest bandwidth of reading, copying and scaling in place, in turns."""
    size, other = c.rows.nbytes, torch.empty_like(c.rows)
    times, speeds = [], []
    for _ in range(ROUNDS):
        times.append(seconds(once))
        speeds += [
            size / seconds(c.rows.sum),
            2 * size / seconds(lambda: other.copy_(c.rows)),
            2 * size / seconds(lambda: other.mul_(1.0)),
        ]
    return min(times), max(speeds)


@pytest.mark.filterwarnings("ignore::DeprecationWarning:torch", "ignore::UserWarning:torch")
@pytest.mark.parametrize(("name", "way"), WAYS)
@pytest.mark.parametrize(("count", "size"), CASES)
def test_kernel(benchmark, count, size, name, way):
    streams, ours, others = PASSES[name]
    case = Case(count, size)
    run = others.get(way) or (lambda c: ours(c, way.removeprefix("ours, ")))

    def once():
        run(case)
        synchronize()

    benchmark.group = f"{name} M={count} D={size:.0e}"
    benchmark.pedantic(once, rounds=3, warmup_rounds=2)
    if benchmark.disabled:
        return
    least = streams(count) * size * case.rows.itemsize
    shortest, bandwidth = beside_the_floor(once, case)
    floor = least / bandwidth
    benchmark.extra_info.update(bytes=least, floor_ms=1e3 * floor, ratio=shortest / floor)
