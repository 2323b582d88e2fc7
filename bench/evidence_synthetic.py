"""Does evidence find the better direction where the noise is known? BOGC beside the sum, min-norm and the bound.

    python -m bench.evidence_synthetic                               # the table of docs/evidence.md
    python -m bench.evidence_synthetic --plot docs/images/evidence-synthetic.png

Two sources measure the same true gradient ``μ (D,)``, each dimension with a noise of its own: per item, source i gives
``μ_d + σ_id ε``, where ``σ_1d / σ_2d`` is the noise ratio in a random half of the dimensions and its inverse in the
others. Both go through one linear layer, whose gradient is the mean over the items, so that the whole path of the
library runs: rows, variance over the items, evidence, fusion. What is measured is the squared error of the fused
gradient divided by that of the plain sum, both brought to the size of a mean; the bound is inverse-variance weighting
with the true variances.
"""

import argparse
from pathlib import Path

import torch
from torch import nn

import balanced_grad as bg
from balanced_grad.evidence import StepVariance
from bench._markdown import header, row

DIMS, REPEATS, WARM_UP = 400, 20, 30
RATIOS = (1.0, 2.0, 4.0, 8.0, 16.0)
ITEMS = (4, 16, 64)
METHODS = {
    "sum": lambda head: bg.Uniform(),
    "min-norm": lambda head: bg.MinNorm(normalize="none", rescale="none"),
    "BOGC, κ = 1": lambda head: bg.BOGC(head, unit="site"),
    "BOGC, κ = 100": lambda head: bg.BOGC(head, kappa=100.0, unit="site"),
    "BOGC, κ = 100, this batch only": lambda head: bg.BOGC(head, kappa=100.0, decay=0.0, unit="site"),
    "BOGC, κ = 100, across steps": lambda head: bg.BOGC(head, StepVariance(), kappa=100.0, unit="site"),
}


def problem(ratio, seed):
    """True gradient ``(D,)`` and noise ``(2, D)`` of both sources, of geometric mean 1."""
    generator = torch.Generator().manual_seed(seed)
    mu = torch.randn(DIMS, generator=generator)
    sign = torch.where(torch.rand(DIMS, generator=generator) < 0.5, 0.5, -0.5)
    return mu, torch.stack([ratio**sign, ratio**-sign]), generator


def error(make, ratio, items, seed):
    """Mean squared error of the gradient that the method writes, as a mean of the two."""
    mu, sigma, generator = problem(ratio, seed)
    head = nn.Linear(DIMS, 1, bias=False)
    balancer, total = make(head), 0.0
    for step in range(WARM_UP + REPEATS):
        head.zero_grad()
        inputs = mu + sigma[:, None] * torch.randn(2, items, DIMS, generator=generator)
        balancer({name: head(x).mean() for name, x in zip(("audio", "video"), inputs, strict=True)}).backward()
        weights = balancer.last.weights
        size = weights.sum() if isinstance(balancer, bg.MinNorm) else 2.0  # min-norm weights sum to 1
        total += (head.weight.grad[0] / size - mu).square().mean().item() * (step >= WARM_UP)
    return total / REPEATS


def bound(ratio):
    """Error of inverse-variance weighting relative to that of the mean."""
    _, sigma, _ = problem(ratio, 0)
    return ((1 / sigma.square().reciprocal().sum(0)).mean() / (sigma.square().sum(0) / 4).mean()).item()


def measure(seeds):
    out = {}
    for items in ITEMS:
        for ratio in RATIOS:
            errors = {name: [error(make, ratio, items, s) for s in range(seeds)] for name, make in METHODS.items()}
            for name, values in errors.items():
                pairs = zip(values, errors["sum"], strict=True)
                out[items, name, ratio] = sum(own / plain for own, plain in pairs) / seeds
    return out


def plot(results, path):
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, len(ITEMS), figsize=(11, 3.6), sharey=True, layout="constrained")
    for axis, items in zip(axes, ITEMS, strict=True):
        for name in METHODS:
            axis.plot(RATIOS, [results[items, name, ratio] for ratio in RATIOS], marker="o", ms=3, label=name)
        axis.plot(RATIOS, [bound(ratio) for ratio in RATIOS], "k--", label="bound: true variances")
        axis.set(xscale="log", yscale="log", title=f"{items} items in a batch", xlabel="noise ratio")
        axis.set_xticks(RATIOS, [f"{ratio:g}" for ratio in RATIOS], minor=False)
        axis.minorticks_off()
    axes[0].set_ylabel("squared error / that of the sum")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=4, fontsize="small")
    figure.savefig(path, dpi=110)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--plot", type=Path, help="write the figure here")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    results = measure(arguments.seeds)
    print(header("method; items in a batch", *(f"ratio {ratio:g}" for ratio in RATIOS)))
    for items in ITEMS:
        for name in METHODS:
            cells = (f"{results[items, name, ratio]:.3f}" for ratio in RATIOS)
            print(row(f"{name}; {items} items", *cells))
    print(row("bound", *(f"{bound(ratio):.3f}" for ratio in RATIOS)))
    if arguments.plot:
        plot(results, arguments.plot)


if __name__ == "__main__":
    main()
