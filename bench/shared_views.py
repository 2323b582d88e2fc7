"""Six views through one small trunk, one unlike the others: the worst view under MIMO and under fixed weights.

    python -m bench.shared_views                                      # the tables of docs/when-to-use-which.md
    python -m bench.shared_views --widths 8 --epochs 90               # three times the steps
    python -m bench.shared_views --separate --widths 8                # a network of its own for each view

scikit-learn's digits. A view is the picture with noise of its own (deviation 0.15, drawn once, where pixels are in
0-1); the sixth view has its pixels in another order, one fixed permutation. One network 64-width-10 takes every view,
each has a cross-entropy of its own, and there is no joint loss. Five of six losses ask the trunk for the same thing.

``--separate``: the same views, but each with a network of its own, and the sixth at a tenth of the contrast, so that it
learns slowly. Nothing is shared, so a weight is no more than a learning rate.

Per seed: a split into 60 % training, 20 % validation, 20 % test items, the permutation and the initial weights. AdamW
without decay, batches of 128. The rate of each row is the best of three by the worst view's validation accuracy, on two
seeds of their own; ``*``: at the end of the three. Test accuracy at the last epoch, percent, mean ± standard error.
``odd x 2`` is ``Uniform`` with a weight set by hand, for one who knows which view is odd; ``x 4`` likewise.
"""

import argparse
from collections.abc import Callable
from statistics import mean

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from tqdm import tqdm

import balanced_grad as bg
from bench._markdown import header, mean_and_error, row

VIEWS = ("a", "b", "c", "d", "e", "odd")
NOISE, BATCH = 0.15, 128
CONTRAST = 0.1
TUNING_SEEDS = range(1000, 1002)
RATES = (0.003, 0.01, 0.03)
BALANCERS: dict[str, Callable[[], bg.Balancer]] = {
    "Uniform": bg.Uniform,
    "Uniform, odd x 2": lambda: bg.Uniform(dict.fromkeys(VIEWS, 1.0) | {"odd": 2.0}),
    "Uniform, odd x 4": lambda: bg.Uniform(dict.fromkeys(VIEWS, 1.0) | {"odd": 4.0}),
    "MIMO(smoothing=0.05, ema=0.9)": lambda: bg.MIMO(smoothing=0.05, ema=0.9),
}


class Items:
    """Views ``(6, N, 64)`` and labels of each split, for one seed."""

    def __init__(self, seed: int, contrast: float) -> None:
        from sklearn.datasets import load_digits

        pixels, labels = load_digits(return_X_y=True)
        draws = np.random.default_rng(seed)
        views = pixels / 16 + NOISE * draws.standard_normal((len(VIEWS), *pixels.shape))
        views[-1] = contrast * views[-1][:, draws.permutation(pixels.shape[1])]
        order = draws.permutation(len(labels))
        parts = np.split(order, [round(0.6 * len(order)), round(0.8 * len(order))])
        self.train, self.val, self.test = (
            (torch.from_numpy(views[:, part]).float(), torch.from_numpy(labels[part])) for part in parts
        )


class Networks(nn.Module):
    """``64-width-10``, one for all views or one for each: ``(6, B, 64)`` to ``(6, B, 10)``."""

    def __init__(self, width: int, separate: bool) -> None:
        super().__init__()
        count = len(VIEWS) if separate else 1
        self.nets = nn.ModuleList(
            nn.Sequential(nn.Linear(64, width), nn.ReLU(), nn.Linear(width, 10)) for _ in range(count)
        )

    def forward(self, views: Tensor) -> Tensor:
        if len(self.nets) == 1:
            return self.nets[0](views)
        return torch.stack([net(view) for net, view in zip(self.nets, views, strict=True)])


def accuracies(model: Networks, part: tuple[Tensor, Tensor]) -> list[float]:
    """Percent right, by view."""
    views, labels = part
    with torch.no_grad():
        right = model(views).argmax(2) == labels
    return (100 * right.double().mean(1)).tolist()


def train(
    name: str, width: int, separate: bool, rate: float, epochs: int, seed: int
) -> tuple[list[float], list[float]]:
    """Validation and test accuracy of each view at the end of one training."""
    items, order = Items(seed, CONTRAST if separate else 1.0), torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)
    model, balancer = Networks(width, separate), BALANCERS[name]()
    optimizer = torch.optim.AdamW(model.parameters(), rate, weight_decay=0.0)
    views, labels = items.train
    for _ in range(epochs):
        for batch in torch.randperm(len(labels), generator=order).split(BATCH):
            logits = model(views[:, batch])
            losses = {view: cross_entropy(x, labels[batch]) for view, x in zip(VIEWS, logits, strict=True)}
            balancer(losses).backward()
            optimizer.step()
            optimizer.zero_grad()
    return accuracies(model, items.val), accuracies(model, items.test)


def cells(name: str, width: int, args: argparse.Namespace, tick: Callable[[], object]) -> list[str]:
    """Rate, then worst, odd and mean of the others over the seeds."""

    def run(rate: float, seed: int) -> tuple[list[float], list[float]]:
        found = train(name, width, args.separate, rate, args.epochs, seed)
        tick()
        return found

    by_rate = {rate: mean(min(run(rate, seed)[0]) for seed in TUNING_SEEDS) for rate in RATES}
    rate = max(by_rate, key=by_rate.__getitem__)
    tests = [run(rate, seed)[1] for seed in range(args.seeds)]
    columns = [min(x) for x in tests], [x[-1] for x in tests], [mean(x[:-1]) for x in tests]
    return [*map(mean_and_error, columns), f"{rate:g}{'*' if rate in (RATES[0], RATES[-1]) else ''}"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--widths", type=int, nargs="+", default=[4, 8, 16])
    parser.add_argument("--methods", nargs="+", choices=tuple(BALANCERS), metavar="NAME", default=list(BALANCERS))
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--seeds", type=int, default=10, help="at least 2")
    parser.add_argument("--separate", action="store_true", help="a network for each view, the sixth view slow")
    args = parser.parse_args()
    torch.set_num_threads(1)
    runs = (len(RATES) * len(TUNING_SEEDS) + args.seeds) * len(args.widths) * len(args.methods)
    print(header("width", "method", "worst view", "odd view", "mean of the others", "rate"))
    with tqdm(total=runs, unit="run", leave=False) as bar:
        for width in args.widths:
            for name in args.methods:
                bar.write(row(width, name, *cells(name, width, args, bar.update)))


if __name__ == "__main__":
    main()
