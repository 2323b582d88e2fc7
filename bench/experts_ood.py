"""A cue that lies at test time: what is left of I2M2 where one modality's short cut turns over?

    python -m bench.experts_ood              # the table of docs/experts.md
    python -m bench.experts_ood --seeds 1

The toy of ``bench.experts_toy`` at its setting ``both`` (``a = 0.7``, ``q = 0.85``), with a short cut in modality
``two``: one of its numbers of noise becomes ``c t + ε``, where ``t`` is the label's sign with probability ``k`` while
training (and in validation), and with probability ``1 - k`` in the items out of distribution. In distribution the short
cut is worth ``k``; a model that leans on it falls below chance where it turns over. Rows as in
``bench.experts_controls``, with the same recipe, and

    I2M2, scratch              no training alone before: the published way of some of its data sets
    I2M2 + MIMO                the joint stage on all losses, balanced
    I2M2, cue's expert out     I2M2 after training, without the expert of ``two``: for who knows where the short cut is
    bias product               the other experts trained beside that of ``two``, which is trained before and stays as it
                               is, and then used without it (Clark et al., "Don't Take the Easy Way Out", EMNLP 2019)
    never saw the cue          the joint expert, trained on data without the short cut: what there is to keep

Accuracy in percent, mean and standard error over seeds, in distribution and out of it; NLL in nats out of it.
"""

import argparse
import copy
from statistics import mean

import torch
from torch.nn.functional import nll_loss
from tqdm import tqdm

import balanced_grad as bg
from balanced_grad.models import ProductOfExperts
from bench import _markdown as markdown
from bench.experts_controls import alone_stage, members, parameters, toy
from bench.experts_toy import SETTINGS, SIZES, draw

CUE, STRENGTH = 2, 2.0  # its place in modality two, and ``c``
AGREEMENTS = (0.8, 0.95)
KEYS = ["one", "two", ("one", "two")]


def with_cue(inputs, labels, agreement, generator):
    """The inputs with the short cut put in."""
    truth = torch.where(torch.rand(len(labels), generator=generator) < agreement, 1.0, -1.0)
    two = inputs["two"].clone()
    two[:, CUE] += STRENGTH * truth * (2.0 * labels - 1)
    return {**inputs, "two": two}


def data(agreement, seed):
    """Splits with the short cut, ``ood`` among them, and the training splits without it."""
    generator = torch.Generator().manual_seed(seed)
    clean = {split: draw(n, *SETTINGS["both"], generator) for split, n in SIZES.items()}
    cued = {split: (with_cue(x, y, agreement, generator), y) for split, (x, y) in clean.items()}
    inputs, labels = clean["test"]
    return cued | {"ood": (with_cue(inputs, labels, 1 - agreement, generator), labels)}, clean


def study(agreement, seed, epochs=0, tick=lambda: None):
    """Row -> accuracy in and out of distribution, NLL out of it."""
    task = toy("both", epochs)
    cued, clean = data(agreement, seed)
    task.splits = cued
    torch.manual_seed(seed)
    fresh = {key: task.make(key) for key in KEYS}
    alone = dict(zip(KEYS, alone_stage(task, fresh, seed), strict=True))
    joint = KEYS[-1]
    copies = members((joint, parameters(fresh[joint])), sum(map(parameters, fresh.values())))
    ensemble = dict(zip(copies, alone_stage(task, {key: task.make(key) for key in copies}, seed), strict=True))
    low_rank = alone_stage(task, {joint: task.make(joint, low_rank=True)}, seed)[0]
    task.splits = cued | {split: clean[split] for split in ("train", "val")}
    unaware = alone_stage(task, {joint: fresh[joint]}, seed)[0]
    task.splits = cued
    tick()

    def together(experts, lr=0.1 * task.recipe["lr"], weight=1.0, balancer=None):
        product = ProductOfExperts(copy.deepcopy(experts))
        product.weights.fill_(weight)
        return task.fit(product, seed, mode="scratch", lr=lr, balancer=balancer)

    rows = {
        "one alone": ProductOfExperts({"one": alone["one"]}),
        "two alone": ProductOfExperts({"two": alone["two"]}),
        "intra": together({key: alone[key] for key in KEYS[:2]}),
        "inter": ProductOfExperts({joint: alone[joint]}),
        "inter, low rank": ProductOfExperts({joint: low_rank}),
        "ensemble": together(ensemble, weight=1 / len(copies)),
        "I2M2": together(alone),
        "I2M2, scratch": together(fresh, task.recipe["lr"]),
        "I2M2 + MIMO": together(alone, balancer=bg.MIMO()),
    }
    tick()
    found = {name: judged(product, task.splits) for name, product in rows.items()}
    found["I2M2, cue's expert out"] = judged(rows["I2M2"], task.splits, out="two")
    known = copy.deepcopy(alone["two"]).requires_grad_(False)
    found["bias product"] = judged(together(fresh | {"two": known}, task.recipe["lr"]), task.splits, out="two")
    found["never saw the cue"] = judged(ProductOfExperts({joint: unaware}), task.splits)
    return found


@torch.no_grad()
def judged(product, splits, out=None):
    log_p = {}
    for split in ("test", "ood"):
        outputs = product.eval().outputs(splits[split][0])
        log_p[split] = product.combine({name: x for name, x in outputs.items() if name != out})
    right = {split: 100 * (x.argmax(1) == splits[split][1]).double().mean().item() for split, x in log_p.items()}
    return right["test"], right["ood"], nll_loss(log_p["ood"], splits["ood"][1]).item()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--agreements", nargs="+", type=float, default=AGREEMENTS, metavar="K")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=0, help="at most so many per stage; default: the toy's")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    for agreement in arguments.agreements:
        with tqdm(desc=f"k = {agreement}", total=2 * arguments.seeds) as bar:
            found = [study(agreement, seed, arguments.epochs, bar.update) for seed in range(arguments.seeds)]
        lines = {}
        for row in found[0]:
            test, ood, nll = zip(*(one[row] for one in found), strict=True)
            lines[row] = [markdown.mean_and_error(test), markdown.mean_and_error(ood), f"{mean(nll):.2f}"]
        columns = ["in distribution", "turned over", "NLL, turned over"]
        print("\n" + markdown.markdown(f"k = {agreement:g}, {len(found)} seeds", columns, lines), flush=True)


if __name__ == "__main__":
    main()
