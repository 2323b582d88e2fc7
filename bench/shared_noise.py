"""Two sources, one linear map, one optimum, noise that differs by output: what evidence per dimension is worth.

    python -m bench.shared_noise                                      # the table of docs/when-to-use-which.md
    python -m bench.shared_noise --steps 400 --ratios 30 --optimizers adamw   # four times the steps

``y = W* x`` has 30 outputs of 20 inputs. Two sources measure it, each on 60 items of its own and each with noise of its
own: ``y_o + σ_io ε``, where ``σ_1o / σ_2o`` is the ratio in a random half of the outputs and its inverse in the others,
and ``σ_1o σ_2o = 4``. One ``nn.Linear(20, 30)`` is trained on the mean squared error of each source. Noise of
*measurement* leaves the optimum where it is, for both. (Noise of the inputs would not: it shrinks the least squares.)
So the two gradients of an output's weights are two measurements of one quantity, one of them far noisier.

Error: ``|W - W*|²`` per weight, in units of the weights' variance: the squared error on new inputs without noise, over
the signal's. SGD with momentum 0.9, AdamW without decay, rates falling linearly to zero, batches of 16. The rate of
each row is the best of four on two seeds of their own; ``*``: at the end of the four. Mean ± standard error over the
other seeds.

``learned variances`` is what needs no balancer: a Gaussian likelihood with a trained variance per source and output.
``known variances`` weighs by the truth: the bound.
"""

import argparse
from collections.abc import Callable
from statistics import mean

import torch
from torch import Tensor, nn
from tqdm import tqdm

import balanced_grad as bg
from bench._markdown import header, mean_and_error, row

INPUTS, OUTPUTS, ITEMS, BATCH = 20, 30, 60, 16
TUNING_SEEDS = range(1000, 1002)
RATES = {"sgd": (0.0003, 0.001, 0.003, 0.01), "adamw": (0.01, 0.03, 0.1, 0.3)}
BALANCERS: dict[str, Callable[[nn.Module], bg.Balancer]] = {
    "Uniform": lambda _: bg.Uniform(),
    "BOGC, default": lambda layer: bg.BOGC(layer),
    "BOGC, site, κ = 100": lambda layer: bg.BOGC(layer, unit="site", kappa=100.0),
    "learned variances": lambda _: bg.Uniform(),
    "known variances": lambda _: bg.Uniform(),
}


class Problem:
    """The truth and the training items of one seed."""

    def __init__(self, ratio: float, seed: int) -> None:
        draws = torch.Generator().manual_seed(seed)
        self.truth = torch.randn(OUTPUTS, INPUTS, generator=draws)
        sign = torch.where(torch.rand(OUTPUTS, generator=draws) < 0.5, 0.5, -0.5)
        self.noise = 2 * torch.stack([ratio**sign, ratio**-sign])
        self.x = torch.randn(2, ITEMS, INPUTS, generator=draws)
        errors = torch.randn(2, ITEMS, OUTPUTS, generator=draws)
        self.y = self.x @ self.truth.T + self.noise[:, None] * errors

    def error(self, layer: nn.Linear) -> float:
        """Squared error of a weight, relative to the weights' variance, which is 1."""
        return (layer.weight.detach() - self.truth).square().mean().item()


def losses(name: str, squares: Tensor, problem: Problem, log_variance: Tensor) -> dict[str, Tensor]:
    """One loss per source, from squared errors ``(2, B, outputs)``."""
    if name == "known variances":
        precision = problem.noise.square().reciprocal()[:, None]
        squares = squares * precision / precision.mean()  # the rate is that of the others
    elif name == "learned variances":
        squares = squares * (-log_variance).exp() + log_variance
    return dict(zip(("first", "second"), squares.mean((1, 2)), strict=True))


def train(name: str, ratio: float, optimizer: str, rate: float, steps: int, seed: int) -> float:
    """Error at the end of one training."""
    problem, order = Problem(ratio, seed), torch.Generator().manual_seed(seed)
    layer, log_variance = nn.Linear(INPUTS, OUTPUTS, bias=False), nn.Parameter(torch.zeros(2, 1, OUTPUTS))
    nn.init.zeros_(layer.weight)
    balancer = BALANCERS[name](layer)
    trained = [layer.weight] + [log_variance] * (name == "learned variances")
    # The mean over outputs makes gradients small; SGD's rate is given for their sum.
    sgd = {"lr": OUTPUTS * rate, "momentum": 0.9}
    own = torch.optim.SGD(trained, **sgd) if optimizer == "sgd" else torch.optim.AdamW(trained, rate, weight_decay=0.0)
    falling = torch.optim.lr_scheduler.LinearLR(own, 1.0, 0.0, steps)
    for _ in range(steps):
        items = torch.randint(ITEMS, (2, BATCH), generator=order)
        pick = torch.arange(2)[:, None], items
        squares = (layer(problem.x[pick]) - problem.y[pick]).square()
        balancer(losses(name, squares, problem, log_variance)).backward()
        own.step()
        own.zero_grad()
        falling.step()
    return problem.error(layer)


def cell(name: str, ratio: float, optimizer: str, steps: int, seeds: int, tick: Callable[[], object]) -> str:
    """The rate chosen, then the error over the seeds."""

    def over(seeds: range, rate: float) -> list[float]:
        found = []
        for seed in seeds:
            found.append(train(name, ratio, optimizer, rate, steps, seed))
            tick()
        return found

    by_rate = {rate: mean(over(TUNING_SEEDS, rate)) for rate in RATES[optimizer]}
    rate = min(by_rate, key=by_rate.__getitem__)
    end = "*" if rate in (RATES[optimizer][0], RATES[optimizer][-1]) else ""
    found = over(range(seeds), rate)
    return f"{mean_and_error(found, '.3f')} ({rate:g}{end})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--seeds", type=int, default=10, help="at least 2")
    parser.add_argument("--ratios", type=float, nargs="+", default=[10.0, 30.0])
    parser.add_argument("--optimizers", nargs="+", choices=tuple(RATES), default=list(RATES))
    parser.add_argument("--methods", nargs="+", choices=tuple(BALANCERS), metavar="NAME", default=list(BALANCERS))
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    runs = sum(len(RATES[name]) * len(TUNING_SEEDS) + args.seeds for name in args.optimizers)
    print(header("optimizer", "method", *(f"ratio {ratio:g}" for ratio in args.ratios)))
    with tqdm(total=runs * len(args.methods) * len(args.ratios), unit="run", leave=False) as bar:
        for optimizer in args.optimizers:
            for name in args.methods:
                cells = [cell(name, ratio, optimizer, args.steps, args.seeds, bar.update) for ratio in args.ratios]
                bar.write(row(optimizer, name, *cells))


if __name__ == "__main__":
    main()
