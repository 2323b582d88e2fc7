"""Does adding a modality help? ``latent_quality`` where the answer is known, and on real data.

    python -m bench.latent_quality synthetic                    # Table 4 of Huang et al. and the Bayes risk
    python -m bench.latent_quality verdicts --scenario useless  # how often is a verdict wrong? 50 data sets
    BALANCED_GRAD_DATA=DIR python -m bench.latent_quality real --dataset wiki --method joint
    BALANCED_GRAD_DATA=DIR python -m bench.latent_quality curve --dataset wiki

``synthetic``: four modalities of 100 numbers, ``m_1`` and ``o m_1 + (1 - o) ε_i``; the target is the sum of all 400.
The best risk from the first n is ``100 (4 - n)(1 - o)²``; least squares on N items adds a factor
``1 + d/(N - d - 1)``, ``d = 100 n``.

``verdicts``: ``a`` is informative; ``b`` is informative too (``helpful``), noise (``useless``), so much noise that it
can be memorised (``memorised``), or shows the label of every item but the tests' (``leaking``). A verdict is false if
its sign is not that of the true gap on 20,000 other test items: of these very runs, or of the recipe, which five other
training seeds stand for.

``real``: the demo's networks and recipe, 600 steps. ``joint`` is the fused loss only; the others balance it with the
uni-modal losses.
"""

import argparse
import os
import statistics
from pathlib import Path

import torch
from torch import nn
from torch.nn.functional import cross_entropy
from tqdm import tqdm

import balanced_grad as bg
from balanced_grad.demo._digits import load_digits
from balanced_grad.demo._folder import load_folder
from balanced_grad.demo._model import LateFusion
from balanced_grad.demo._train import BATCH, RECIPE
from balanced_grad.diagnostics import latent_quality, paired_gap, sample_size_curve
from bench import _markdown as markdown

OVERLAPS = (1.0, 0.8, 0.5, 0.2, 0.0)
PAPER = {  # Table 4 of the paper
    1: (0.0, 12.04, 75.89, 193.28, 301.92),
    2: (0.0, 8.16, 51.25, 129.81, 207.45),
    3: (0.0, 4.18, 26.06, 65.17, 103.23),
    4: (0.0, 0.0, 0.0, 0.0, 0.0),
}
VIEWS = [f"m{i}" for i in range(1, 5)]


def draw_overlapping(items, overlap, generator):
    noise = torch.randn(4, items, 100, generator=generator, dtype=torch.double)
    views = [noise[0], *(overlap * noise[0] + (1 - overlap) * noise[i] for i in (1, 2, 3))]
    return dict(zip(VIEWS, views, strict=True)), sum(view.sum(1) for view in views)


class LeastSquares(nn.Module):
    """One number per modality; the head adds them up."""

    def __init__(self, inputs, targets):
        super().__init__()
        x = torch.cat(list(inputs.values()), 1)
        weight = torch.linalg.pinv(x.T @ x, rtol=1e-10, hermitian=True) @ (x.T @ targets)
        self.weights = nn.ParameterList(weight.split([z.shape[1] for z in inputs.values()]))

    def encode(self, inputs):
        return torch.stack([z @ w for z, w in zip(inputs.values(), self.weights, strict=True)], 1)

    def head(self, latent):
        return latent.sum(1)


def synthetic(arguments):
    subsets = [VIEWS[:n] for n in (1, 2, 3, 4)]
    print(
        f"{arguments.items} items, {arguments.seeds} data sets: Bayes risk | paper (N unknown) | model | refitted head"
    )
    print(markdown.header("observed", *(f"o = {o:g}" for o in OVERLAPS)))
    rows = {n: [] for n in PAPER}
    for overlap in OVERLAPS:
        risks = {n: [] for n in PAPER}
        for seed in range(arguments.seeds):
            generator = torch.Generator().manual_seed(seed)
            items, test = (draw_overlapping(n, overlap, generator) for n in (arguments.items * 3 // 2, arguments.test))
            train = lambda inputs, targets, seed: LeastSquares(inputs, targets)  # noqa: E731
            report = latent_quality(train, items, test, subsets=subsets, seeds=[seed], progress=False)
            for n, subset in enumerate(subsets, 1):
                risks[n].append((report[subset].test_risk, report[subset].risk))
        for n, column in risks.items():
            own, refitted = (statistics.mean(values) for values in zip(*column, strict=True))
            bayes = 100 * (4 - n) * (1 - overlap) ** 2
            rows[n].append(f"{bayes:.4g}, {PAPER[n][OVERLAPS.index(overlap)]:g}, {own:.4g}, {refitted:.4g}")
    for n, cells in rows.items():
        print(markdown.row(f"first {n}", *cells))


SCENARIOS = ("helpful", "useless", "memorised", "leaking")
FRESH = 20_000  # test items that know the truth
JUDGED = 1000  # test items that the verdict is made of
FIRST_RUN = 1000  # seed of the first training: none is that of a data set, or it would draw the same numbers


def draw_pair(items, scenario, generator, direction, leak):
    a = torch.randn(items, 8, generator=generator)
    b = torch.randn(items, 100 if scenario == "memorised" else 8, generator=generator)
    score = a @ direction[0] + (b[:, :8] @ direction[1] if scenario == "helpful" else 0)
    label = (torch.rand(items, generator=generator) < torch.sigmoid(2 * score)).long()
    if scenario == "leaking" and leak:
        b[:, 0] += 2.0 * (2 * label - 1)
    return {"a": a, "b": b}, label


class Small(nn.Module):
    """A rectified layer of 16 per modality and a linear head."""

    def __init__(self, inputs):
        super().__init__()
        self.encoders = nn.ModuleList(nn.Sequential(nn.Linear(x.shape[1], 16), nn.ReLU()) for x in inputs.values())
        self.head = nn.Linear(16 * len(inputs), 2)

    def encode(self, inputs):
        return torch.cat([encode(x) for encode, x in zip(self.encoders, inputs.values(), strict=True)], 1)


def train_small(inputs, targets, seed):
    model = Small(inputs)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    for _ in range(60):
        optimizer.zero_grad()
        cross_entropy(model.head(model.encode(inputs)), targets).backward()
        optimizer.step()
    return model


def verdicts(arguments):
    half = 5  # training seeds to judge by, and as many to know the recipe by
    outcomes = {runs: [] for runs in (1, 3, half)}
    recipes = []
    for seed in tqdm(range(arguments.seeds), disable=None):
        generator = torch.Generator().manual_seed(seed)
        direction = torch.nn.functional.normalize(torch.randn(2, 8, generator=generator), dim=1)
        items = draw_pair(450, arguments.scenario, generator, direction, leak=True)
        test = draw_pair(JUDGED + FRESH, arguments.scenario, generator, direction, leak=False)
        both, alone = ["a", "b"], ["a"]
        trainings = range(FIRST_RUN + 2 * half * seed, FIRST_RUN + 2 * half * (seed + 1))  # no two data sets share any
        report = latent_quality(train_small, items, test, subsets=[both, alone], seeds=trainings, progress=False)
        first, second = report[both].losses, report[alone].losses
        true = (first - second)[:, JUDGED:].mean(1)  # of every training seed
        recipes.append(float(true[half:].mean()))
        for runs, found in outcomes.items():
            gap = paired_gap(first[:runs, :JUDGED], second[:runs, :JUDGED])
            found.append((gap, float(true[:runs].mean()), recipes[-1]))
    spread = f"{statistics.mean(recipes):+.4f} ({min(recipes):+.4f} to {max(recipes):+.4f})"
    columns = ["true gap of the recipe, nats", "training seeds", "helps / hurts / inconclusive"]
    columns += [f"false / covers, {whose}" for whose in ("these runs", "the recipe")]
    print(markdown.header("b", *columns))
    for runs, found in outcomes.items():
        names = [gap.verdict for gap, _, _ in found]
        cells = [" / ".join(str(names.count(verdict)) for verdict in ("helps", "hurts", "inconclusive"))]
        for truth in (1, 2):
            covers = sum(x[0].low <= x[truth] <= x[0].high for x in found)
            cells.append(f"{sum(false(x[0], x[truth]) for x in found)} / {covers}")
        print(markdown.row(arguments.scenario, spread, runs, *cells))


def false(gap, truth):
    return gap.verdict != "inconclusive" and (gap.value < 0) != (truth < 0)


METHODS = {"joint": None, "Uniform": bg.Uniform, "MIMO": bg.MIMO, "MinNorm": bg.MinNorm}
STEPS = 600


class Fused(LateFusion):
    """The demo's network, as the diagnostic sees it."""

    def encode(self, inputs):
        return dict(zip(self.names, self.features(inputs), strict=True))

    def head(self, latent):
        return self.fuse(list(latent.values()))


def trainer(method, classes):
    """The demo's recipe; the gradients are balanced where a method says so."""

    def train(inputs, targets, seed):
        model = Fused({name: tuple(x.shape[1:]) for name, x in inputs.items()}, classes)
        optimizer = torch.optim.SGD(model.parameters(), **RECIPE, fused=True)
        balancer = METHODS[method]() if METHODS[method] else None
        for _ in range(STEPS):
            rows = torch.randint(len(targets), (BATCH,))
            features = model.features({name: x[rows] for name, x in inputs.items()})
            logits = {"joint": model.fuse(features)} | (model.unimodal(features) if balancer else {})
            losses = {name: cross_entropy(x, targets[rows]) for name, x in logits.items()}
            (balancer(losses) if balancer else losses["joint"]).backward()
            optimizer.step()
            optimizer.zero_grad()
        model.heads = nn.ModuleList()  # no part of the prediction, so none of the parameter count
        return model

    return train


def load(name):
    data = load_digits() if name == "digits" else load_folder(Path(os.environ["BALANCED_GRAD_DATA"]), name)
    pairs = ((split.inputs, split.labels) for split in (data.train, data.test))
    return (*pairs, data.classes)


def real(arguments):
    items, test, classes = load(arguments.dataset)
    names = list(items[0])
    subsets = [names, *([name] for name in names)] if arguments.encoders else None
    report = latent_quality(
        trainer(arguments.method, classes), items, test, subsets=subsets, seeds=arguments.seeds, jobs=arguments.jobs
    )
    print(report)
    if arguments.json:
        report.to_json(arguments.json)
    if arguments.plot:
        report.plot(arguments.plot)


def curve(arguments):
    items, test, classes = load(arguments.dataset)
    names = arguments.modalities or list(items[0])
    items, test = (({name: inputs[name] for name in names}, targets) for inputs, targets in (items, test))
    result = sample_size_curve(
        trainer("joint", classes), items, test, fractions=[0.03, 0.1, 0.3, 1.0], seeds=arguments.seeds
    )
    print(result)
    sizes = list(result.reports)
    for larger, smaller in result.reports[sizes[0]].gaps():
        if smaller and len(larger) == len(smaller) + 1:
            cells = [f"{gap.value:+.3f} {gap.verdict}" for gap in result.gaps(larger, smaller).values()]
            crossing = result.crossing(larger, smaller)
            print(markdown.row("+".join(larger), "+".join(smaller), *cells, f"{crossing:.0f}"))
    if arguments.plot:
        result.plot(arguments.plot)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    for function, seeds in ((synthetic, 3), (verdicts, 50), (real, 3), (curve, 3)):
        command = commands.add_parser(function.__name__)
        command.set_defaults(run=function)
        command.add_argument("--seeds", type=int, default=seeds)
        if function is synthetic:
            command.add_argument("--items", type=int, default=10_000, help="that train the encoders")
            command.add_argument("--test", type=int, default=10_000)
        elif function is verdicts:
            command.add_argument("--scenario", choices=SCENARIOS, default="useless")
        else:
            command.add_argument("--dataset", default="digits")
            command.add_argument("--plot", type=Path)
        if function is real:
            command.add_argument("--method", choices=METHODS, default="joint")
            command.add_argument("--encoders", action="store_true", help="only all modalities and each alone")
            command.add_argument("--jobs", type=int, default=1)
            command.add_argument("--json", type=Path)
        elif function is curve:
            command.add_argument("--modalities", nargs="+")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    arguments.run(arguments)


if __name__ == "__main__":
    main()
