"""Is it the product, or only its size? I2M2 beside joint experts of another fusion, and as many parameters as it has.

    BALANCED_GRAD_DATA=DIR python -m bench.experts_controls
    python -m bench.experts_controls --datasets both leaf --seeds 1

Tasks, networks and recipe of ``bench.experts`` and ``bench.experts_toy``: every expert alone, then all of a row
together at a tenth of the rate, each stage ended by its validation loss. Rows:

    best single        the expert of one modality with the best validation loss
    intra              the product of the experts of single modalities
    inter              one joint expert: features side by side, then a linear layer (toy: inputs side by side)
    inter, low rank    the same with ``LowRankFusion`` on the features (toy: on 64 hidden units of each modality)
    ensemble           as many joint experts as come nearest to the parameters of I2M2, each from its own start; their
                       geometric mean, trained together as well
    I2M2               experts of single modalities and a joint one; likewise with the low-rank one

Means over seeds of test items: accuracy, AUROC and AUPRC (one class against the rest) in percent, the accuracy with its
standard error; negative log-likelihood in nats. Then, of I2M2, the mean entropy of what each expert predicts.
"""

import argparse
import copy
import math
from statistics import mean

import torch
from torch import nn
from torch.nn.functional import cross_entropy
from tqdm import tqdm

from balanced_grad.models import LowRankFusion, ProductOfExperts, expert_entropies, expert_subsets, predictions
from bench import _markdown as markdown
from bench._experts_tasks import RANK, LowRank, real
from bench._metrics import summary
from bench.experts import score
from bench.experts_toy import HIDDEN, SETTINGS, WIDTH, Toy


def toy(name, epochs):
    """A toy of ``bench.experts_toy``."""
    task = Toy(name, *SETTINGS[name])
    plain = task.make

    def make(key, low_rank=False):
        if not low_rank:
            return plain(key)
        encoders = [nn.Sequential(nn.Linear(WIDTH, HIDDEN), nn.ReLU()) for _ in key]
        return LowRank(encoders, LowRankFusion([HIDDEN] * len(key), 2, rank=RANK))

    task.make = make
    task.recipe["epochs"] = epochs or task.recipe["epochs"]
    return task


def members(joint, wanted):
    """Keys of a joint expert for the copies that come nearest to so many parameters: the modalities, turned round."""
    names, size = joint
    count = min(max(1, round(wanted / size)), len(names))
    return [names[turn:] + names[:turn] for turn in range(count)]


def parameters(module):
    return sum(p.numel() for p in module.parameters())


def study(task, seed, tick=lambda: None):
    """Row -> its numbers, and expert -> entropy and negative log-likelihood."""
    keys = expert_subsets(task.splits["train"][0])
    singles, joint = keys[:-1], keys[-1]
    torch.manual_seed(seed)
    fresh = {key: task.make(key) for key in keys}
    total = sum(parameters(expert) for expert in fresh.values())
    copies = members((joint, parameters(fresh[joint])), total)
    alone = dict(zip(keys, alone_stage(task, fresh, seed), strict=True))
    low_rank = alone_stage(task, {joint: task.make(joint, low_rank=True)}, seed)[0]
    ensemble = alone_stage(task, {key: task.make(key) for key in copies}, seed)
    tick()
    best = min(singles, key=lambda key: score(task, ProductOfExperts({key: alone[key]}), "val")[1])
    rows = {
        "best single": {best: alone[best]},
        "intra": {key: alone[key] for key in singles},
        "inter": {joint: alone[joint]},
        "inter, low rank": {joint: low_rank},
        "ensemble": dict(zip(copies, ensemble, strict=True)),
        "I2M2": alone,
        "I2M2, low rank": alone | {joint: low_rank},
    }
    found = {}
    for name, experts in rows.items():
        product = ProductOfExperts(copy.deepcopy(experts))
        if name == "ensemble":
            product.weights.fill_(1 / len(copies))
        if len(experts) > 1:
            task.fit(product, seed, mode="scratch", **task.together(intra=name == "intra"))
        found[name] = numbers(task, product)
        if name == "I2M2":
            silence = entropies(task, product)
        tick()
    return found, silence


def alone_stage(task, experts, seed):
    return list(task.train(copy.deepcopy(experts), seed, mode="frozen").experts)


@torch.no_grad()
def numbers(task, product):
    """Parameters, accuracy, AUROC, AUPRC, negative log-likelihood."""
    inputs, labels = task.splits["test"]
    return parameters(product), *summary(product.eval()(inputs), labels)


def entropies(task, product):
    """Expert -> mean entropy and negative log-likelihood on test items, in nats; ``labels``: the entropy of theirs."""
    outputs, labels, _ = predictions(product, [task.splits["test"]])
    joint = product.combine(outputs)
    found = {
        name: (entropy, cross_entropy(outputs.get(name, joint), labels).item())
        for name, entropy in expert_entropies(product, outputs).items()
    }
    share = torch.bincount(labels) / len(labels)
    return {"labels": (torch.special.entr(share).sum().item(), math.nan)} | found


def show(name, results):
    print(f"\n{name}: {len(results)} seeds\n")
    lines = {}
    for row in results[0][0]:
        count, accuracy, *rest = zip(*(found[row] for found, _ in results), strict=True)
        auroc, auprc, nll = map(mean, rest)
        lines[row] = [
            f"{mean(count):.0f}",
            markdown.mean_and_error(accuracy),
            f"{auroc:.1f}",
            f"{auprc:.1f}",
            f"{nll:.3f}",
        ]
    print(markdown.markdown("", ["parameters", "accuracy", "AUROC", "AUPRC", "NLL"], lines))
    lines = {
        "product" if expert == "joint" else expert: [
            "" if math.isnan(value) else f"{value:.2f}"
            for value in map(mean, zip(*(silence[expert] for _, silence in results), strict=True))
        ]
        for expert in results[0][1]
    }
    print("\n" + markdown.markdown("I2M2", ["entropy", "NLL"], lines), flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--datasets", nargs="+", default=[*SETTINGS, "leaf", "wiki"])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=0, help="at most so many per stage; default: by size")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    for name in arguments.datasets:
        task = (toy if name in SETTINGS else real)(name, arguments.epochs)
        with tqdm(desc=name, total=8 * arguments.seeds) as bar:
            results = [study(task.for_seed(seed), seed, bar.update) for seed in range(arguments.seeds)]
        show(name, results)


if __name__ == "__main__":
    main()
