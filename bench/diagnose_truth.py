"""Are the verdicts of bg.diagnose right, and do its intervals cover? Data whose answer is known, drawn many times.

    python -m bench.diagnose_truth                                        # the tables of docs/diagnose.md
    python -m bench.diagnose_truth --picture docs/images/diagnose.png     # its picture: one network on XOR

Every task has three modalities of two numbers each; ``noise`` says nothing about the label in any of them. Each is
learnt by small networks, and read once more by a rule that is written down and cannot look where it should not. A
network is judged on test sets of its own, which it has not seen; the truth about it is its report on 20,000 items.
"""

import argparse
from collections import Counter
from pathlib import Path

import torch
from torch import nn
from torch.nn.functional import cross_entropy

import balanced_grad as bg
from bench._markdown import header, markdown, row

NAMES = ("a", "b", "noise")
NOTHING = {"ignored", "barely used"}
USED, TOGETHER = {"used"}, {"relies on interaction"}
TRUTH = {
    "unique": (USED, USED, NOTHING),
    "redundant": (USED, USED, NOTHING),
    "copy": (USED, USED, NOTHING),
    "XOR": (TOGETHER, TOGETHER, NOTHING),
}
READ_ONE = (USED, {"ignored"}, {"ignored"})  # of the copy, by the rule
LARGE = 20_000
ROUNDING = 1e-6


def draw(task, count, generator):
    """``({modality: (N, 2)}, label (N,))``."""
    x = {name: torch.randn(count, 2, generator=generator) for name in NAMES}
    chance = torch.rand(count, generator=generator)
    if task in {"redundant", "copy"}:
        y = (chance > 0.5).long()
        x["a"][:, 0] += 2.0 * y - 1
        x["b"][:, 0] += 2.0 * y - 1
        if task == "copy":
            x["b"] = x["a"].clone()
        return x, y
    score = 2 * x["a"][:, 0] + 1.5 * x["b"][:, 0] if task == "unique" else 6 * x["a"][:, 0] * x["b"][:, 0]
    return x, (chance < score.sigmoid()).long()


def rule(task):
    """The posterior, from what it needs and nothing else."""

    def model(a, b, noise):
        score = {
            "unique": 2 * a[:, 0] + 1.5 * b[:, 0],
            "redundant": 2 * a[:, 0] + 2 * b[:, 0],
            "copy": 2 * a[:, 0],
            "XOR": 6 * a[:, 0] * b[:, 0],
        }[task]
        return torch.stack([torch.zeros_like(score), score], 1)

    return model


class Network(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(6, 32), nn.Tanh(), nn.Linear(32, 2))

    def forward(self, a, b, noise):
        return self.layers(torch.cat([a, b, noise], 1))


def trained(task, seed):
    generator = torch.Generator().manual_seed(1000 + seed)
    torch.manual_seed(seed)
    network = Network()
    optimizer = torch.optim.Adam(network.parameters(), lr=0.02, weight_decay=1e-3)
    x, y = draw(task, 2000, generator)
    for _ in range(300):
        optimizer.zero_grad()
        cross_entropy(network(**x), y).backward()
        optimizer.step()
    return network


def numbers(report):
    """What has an interval, by kind."""
    out = {"all together": [("", report.subset(NAMES).risk)], "additive gap": [("", report.additive.risk)]}
    for kind in ("shapley", "first", "last", "share", "points"):
        out[kind] = [(name, getattr(report[name], kind)) for name in NAMES]
    return out


def covered(report, truth):
    """Kind -> whether each interval has the true number in it; exact zeros are not counted."""
    out = {}
    for kind, found in numbers(report).items():
        pairs = zip(found, numbers(truth)[kind], strict=True)
        both = [(mine, right) for (_, mine), (_, right) in pairs if mine and mine.high - mine.low > ROUNDING]
        out[kind] = [mine.low <= right.value <= mine.high for mine, right in both]
    return out


def judge(task, models, tests, items, wanted, large):
    """Verdicts by modality, and coverage by kind, over all models and their test sets."""
    said, hits = [Counter() for _ in NAMES], {}
    for number, model in enumerate(models):
        generator = torch.Generator().manual_seed(number)
        truth = bg.diagnose(model, [draw(task, large, generator)], additive_items=1499, progress=False)
        for seed in range(tests):
            report = bg.diagnose(model, [draw(task, items, generator)], seed=seed, progress=False)
            for place, name in enumerate(NAMES):
                said[place][report[name].verdict] += 1
            for kind, inside in covered(report, truth).items():
                hits.setdefault(kind, []).extend(inside)
    right = [
        sum(count for word, count in each.items() if word in good) for each, good in zip(said, wanted, strict=True)
    ]
    return said, right, hits


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", type=int, default=5, help="trained per task (default: 5)")
    parser.add_argument("--tests", type=int, default=20, help="test sets per network (default: 20)")
    parser.add_argument("--items", type=int, default=500, help="items of a test set (default: 500)")
    parser.add_argument("--large", type=int, default=LARGE, help=f"items that the truth is of (default: {LARGE})")
    parser.add_argument("--picture", type=Path, metavar="PATH", help="only draw the report on one network, XOR")
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.picture is not None:
        test = draw("XOR", args.items, torch.Generator().manual_seed(0))
        bg.diagnose(trained("XOR", 0), [test], progress=False).save(args.picture)
        return
    total = args.networks * args.tests
    print(header("task", "read by", "modality", "right answer", f"right, of {total}", "said"))
    table = {}
    for task, wanted in TRUTH.items():
        networks = [trained(task, seed) for seed in range(args.networks)]
        plans = {"network": (networks, args.tests, wanted)}
        plans["rule"] = ([rule(task)], total, READ_ONE if task == "copy" else (*wanted[:2], {"ignored"}))
        for reader, (models, tests, right_ones) in plans.items():
            said, right, table[task, reader] = judge(task, models, tests, args.items, right_ones, args.large)
            for name, good, count, words in zip(NAMES, right_ones, right, said, strict=True):
                told = ", ".join(f"{word} {times}" for word, times in words.most_common())
                print(row(task, reader, name, " or ".join(sorted(good)), count, told), flush=True)
    kinds = list(next(iter(table.values())))
    rows = {
        f"{task}, {reader}": [f"{100 * sum(x) / len(x):.0f} %" if x else "exact" for x in hits.values()]
        for (task, reader), hits in table.items()
    }
    print("\n" + markdown("coverage of 95 % intervals", kinds, rows))


if __name__ == "__main__":
    main()
