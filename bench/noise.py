"""Noise in one modality at test time: which training and which rule of prediction stand it?

    BALANCED_GRAD_DATA=DIR python -m bench.noise
    python -m bench.noise --datasets leaf --seeds 1 --steps 100
    BALANCED_GRAD_DATA=DIR python -m bench.noise --plot docs/images/noise.png

The demo's networks and recipe, 300 steps, last epoch, trained on clean items by the joint loss, Uniform, MIMO and BOGC.
At test time one modality is spoilt, and the accuracy is the mean over which one. Features are standardised by training
items:

    Gaussian         noise of 0.5, 1, 2 or 4 standard deviations is added
    salt and pepper  10, 30, 50 or 70 % of the entries become the least or the largest of the training items
    drop             30, 50, 70 or 90 % of the entries become 0, the mean: lost features, or words of a bag of words

Rules of prediction, none of which has seen noise:

    fused head       the head on all features
    mean of heads    the mean of the uni-modal heads' logits
    energy           their sum, weighted per item by energy, as QMF does (Zhang et al., 2023)
    Dempster         evidence heads fitted on training items, fused by Dempster's rule, as TMC does (Han et al., 2021)
    product          ``ProductOfHeads``, of fused and uni-modal heads, fitted on clean validation items

Test accuracy in percent, mean and standard error over seeds; the columns of noise are means over its four severities.
One JSON line per training goes to ``--out``; those found there are not repeated.
"""

import argparse
import json
from pathlib import Path
from statistics import mean

import torch
from tqdm import tqdm

from balanced_grad.demo._train import BALANCED, BASELINE, BATCH, JOINT, Trainer
from balanced_grad.models import ProductOfHeads
from balanced_grad.pictures import COLOURS, drawing, write
from bench import _corruptions as corruptions
from bench import _markdown as markdown
from bench._late_rules import EvidenceHeads, by_energy, mean_of_heads
from bench.accuracy._data import load

DATASETS = ("mfeat", "wiki", "leaf")
METHODS = {method.name: method for method in (BASELINE, *BALANCED) if method.name != "MinNorm"}
SEVERITIES = {"Gaussian": (0.5, 1, 2, 4), "salt and pepper": (0.1, 0.3, 0.5, 0.7), "drop": (0.3, 0.5, 0.7, 0.9)}
RULES = ("fused head", "mean of heads", "energy", "Dempster", "product")
OUT = Path(__file__).resolve().parent / "results" / "noise.jsonl"


def spoilt(x, noise, severity, train, generator):
    """Test items ``x`` with noise in them; ``train`` holds the training items of the same modality."""
    if noise == "Gaussian":
        return corruptions.noise(x, severity, generator)
    if noise == "drop":
        return corruptions.dropout(x, severity, generator)
    hit = torch.rand(x.shape, generator=generator) < severity
    salt = torch.rand(x.shape, generator=generator) < 0.5
    return torch.where(hit, torch.where(salt, train.amax(0), train.amin(0)), x)


class Rules:
    """The rules of prediction of a trained model."""

    def __init__(self, model, data, seed):
        self.model = model.eval()
        with torch.no_grad():
            train, val = self.features(data.train.inputs), self.features(data.val.inputs)
            self.product = ProductOfHeads(model.names)
            self.product.fit(self.heads(val) | {JOINT: model.fuse(list(val.values()))}, data.val.labels)
        torch.manual_seed(seed)
        self.evidence = EvidenceHeads(train, data.classes).fit(train, data.train.labels)

    def features(self, inputs):
        return dict(zip(self.model.names, self.model.features(inputs), strict=True))

    def heads(self, features):
        return self.model.unimodal(list(features.values()))

    @torch.no_grad()
    def accuracies(self, features, labels):
        """Rule -> percent correct."""
        heads, fused = self.heads(features), self.model.fuse(list(features.values()))
        predicted = {
            "fused head": fused,
            "mean of heads": mean_of_heads(heads),
            "energy": by_energy(heads),
            "Dempster": self.evidence(features),
            "product": self.product(heads | {JOINT: fused}),
        }
        return {rule: 100 * (x.argmax(1) == labels).double().mean().item() for rule, x in predicted.items()}


def trained(data, method, seed, steps):
    """A network after so many steps, to the end of an epoch."""
    trainer, order = Trainer(data, method, seed), torch.Generator().manual_seed(seed)
    for _ in range(max(1, round(steps / -(-len(data.train) // BATCH)))):
        for rows in torch.randperm(len(data.train), generator=order).split(BATCH):
            trainer.step(data.train[rows])
    return trainer.model


def curves(rules, data, seed):
    """Noise -> rule -> accuracy without it and at each severity, mean over the modality that has it."""
    inputs, labels = data.test.inputs, data.test.labels
    with torch.no_grad():
        clean = rules.features(inputs)
    start = rules.accuracies(clean, labels)
    out = {noise: {rule: [start[rule]] for rule in RULES} for noise in SEVERITIES}
    for noise, severities in SEVERITIES.items():
        for severity in severities:
            draws = torch.Generator().manual_seed(seed)  # the same noise for every method
            each = []
            for name, x in inputs.items():
                with torch.no_grad():
                    bad = rules.features(inputs | {name: spoilt(x, noise, severity, data.train.inputs[name], draws)})
                each.append(rules.accuracies(bad, labels))
            for rule in RULES:
                out[noise][rule].append(mean(found[rule] for found in each))
    return out


def table(name, lines):
    rows = {}
    for method in METHODS:
        own = [line["curves"] for line in lines if (line["data"], line["method"]) == (name, method)]
        for rule in RULES if own else ():
            by_noise = [[mean(run[noise][rule][1:]) for run in own] for noise in SEVERITIES]
            clean = [run["Gaussian"][rule][0] for run in own]
            cells = [clean, *by_noise, [mean(values) for values in zip(*by_noise, strict=True)]]
            rows[f"{method}, {rule}"] = [markdown.mean_and_error(values) for values in cells]
    return markdown.markdown(name, ["clean", *SEVERITIES, "all noise"], rows)


def plot(names, lines, path):
    """A row per set, a column per noise: the rules after ``Uniform``, and the fused head after the joint loss."""
    shown = {("Uniform", rule): colour for rule, colour in zip(RULES, COLOURS[1:], strict=False)}
    shown |= {("joint", "fused head"): COLOURS[0]}
    with drawing("bench.noise", figsize=(9, 2.6 * len(names))) as figure:
        axes = figure.subplots(len(names), len(SEVERITIES), squeeze=False, sharey="row")
        for name, row in zip(names, axes, strict=True):
            for (noise, severities), axis in zip(SEVERITIES.items(), row, strict=True):
                for (method, rule), colour in shown.items():
                    own = [line["curves"] for line in lines if (line["data"], line["method"]) == (name, method)]
                    values = [mean(run[noise][rule][i] for run in own) for i in range(1 + len(severities))]
                    style = "--" if method == "joint" else "-"
                    axis.plot((0, *severities), values, style, color=colour, marker="o", label=f"{method}, {rule}")
                axis.set(title=f"{name}: {noise}", xlabel="standard deviations" if noise == "Gaussian" else "share")
            row[0].set_ylabel("test accuracy, %")
        figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
        write(figure, path)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--datasets", nargs="+", default=DATASETS)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--out", type=Path, default=OUT, help="JSON lines, to go on from")
    parser.add_argument("--plot", type=Path, help="write the picture here")
    options = parser.parse_args()
    torch.set_num_threads(1)
    lines = [json.loads(text) for text in options.out.read_text().splitlines()] if options.out.exists() else []
    lines = [line for line in lines if line["steps"] == options.steps]
    done = {(line["data"], line["method"], line["seed"]) for line in lines}
    for name in options.datasets:
        data = load(name)
        jobs = [(m, seed) for seed in range(options.seeds) for m in METHODS if (name, m, seed) not in done]
        for method, seed in tqdm(jobs, desc=name):
            found = curves(Rules(trained(data, METHODS[method], seed, options.steps), data, seed), data, seed)
            rounded = {n: {r: [round(x, 2) for x in curve] for r, curve in by.items()} for n, by in found.items()}
            lines.append({"data": name, "method": method, "seed": seed, "steps": options.steps, "curves": rounded})
            with options.out.open("a", encoding="utf-8") as file:
                file.write(json.dumps(lines[-1]) + "\n")
        print("\n" + table(name, lines), flush=True)
    if options.plot:
        plot(options.datasets, lines, options.plot)


if __name__ == "__main__":
    main()
