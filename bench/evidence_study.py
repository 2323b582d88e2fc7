"""What should count as evidence? BOGC's variants beside the baselines, on real data, chosen on validation.

    BALANCED_GRAD_DATA=DIR python -m bench.evidence_study --datasets mfeat avmnist:pca25,noisy --seeds 5
    python -m bench.evidence_study --datasets digits-hard --seeds 2 --steps 100

The demo's networks and recipe; per seed, every method has the same initial weights, batch order and budget. One JSON
line per run goes to ``--out`` (runs found there are not repeated), and a table per data set is printed: mean and worst
probe gap to the uni-modal network, fused accuracy, and fused accuracy with one modality missing (its features replaced
by their mean over the training items; mean over modalities), as mean and deviation over seeds. Choices are made on the
validation columns.
"""

import argparse
import json
import os
import statistics
from dataclasses import dataclass
from pathlib import Path

import torch
from tqdm import tqdm

import balanced_grad as bg
from balanced_grad.demo._digits import load_digits
from balanced_grad.demo._folder import load_folder
from balanced_grad.demo._probe import probe
from balanced_grad.demo._train import ALONE, BASELINE, BATCH, JOINT, Method, Trainer, accuracies
from balanced_grad.evidence import Laplace, SampleVariance, StepVariance
from bench._markdown import header, row


def bogc(name, variance=None, block="encoders", **options):
    return Method(f"BOGC {name}", make=lambda model: bg.BOGC(getattr(model, block), variance, **options))


def heads(name, variance, **options):
    """The uni-modal heads, of equal shape, combined by index."""

    def make(model):
        return bg.BOGC(dict(zip(model.names, model.heads, strict=True)), variance, by_index=True, **options)

    return Method(f"BOGC {name}", make=make)


METHODS = [
    ALONE,
    BASELINE,
    Method("Uniform", make=lambda _: bg.Uniform()),
    Method("MIMO", make=lambda _: bg.MIMO()),
    Method("MinNorm", make=lambda _: bg.MinNorm(joint_floor=0)),
    bogc("sample", unit="site"),
    bogc("Laplace", Laplace(num_data=1200), unit="site"),
    bogc("steps", StepVariance(), unit="site"),
    bogc("sample, kappa 0.1", kappa=0.1, unit="site"),
    bogc("sample, kappa 10", kappa=10.0, unit="site"),
    bogc("sample, cap 2", cap=2.0, unit="site"),
    bogc("sample, relative", precision="relative", unit="site"),
    bogc("steps, relative", StepVariance(), precision="relative", unit="site"),
    bogc("sample, per source"),
    bogc("steps, whole encoders", StepVariance(), layers="all", unit="site"),
    bogc("steps, whole encoders, relative", StepVariance(), layers="all", precision="relative", unit="site"),
    bogc("steps, whole encoders, per source", StepVariance(), layers="all"),
    bogc("sample, per source, kappa 10", kappa=10.0),
    heads("heads by index, sample", SampleVariance(), unit="site"),
    heads("heads by index, softmax Laplace", Laplace("softmax", num_data=1200), unit="site"),
]


@dataclass
class Result:
    """Numbers of one run, in percent."""

    dataset: str
    method: str
    seed: int
    val: float
    test: float
    probe_val: dict
    probe_test: dict
    missing_val: float
    missing_test: float
    weights: list
    losses: list


def load(name):
    if name.startswith("digits"):
        return load_digits(hard=name == "digits-hard")
    return load_folder(Path(os.environ["BALANCED_GRAD_DATA"]), name)


def run(data, method, seed, steps):
    trainer, order = Trainer(data, method, seed), torch.Generator().manual_seed(seed)
    epochs = max(1, round(steps / -(-len(data.train) // BATCH)))
    weights, losses = [], []
    for _ in range(epochs):
        records = []
        for rows in torch.split(torch.randperm(len(data.train), generator=order), BATCH):
            trainer.step(data.train[rows])
            if trainer.balancer is not None:
                last = trainer.balancer.last
                records.append(torch.stack([last.mean_weights().float(), last.losses]))
        if records:
            mean = torch.stack(records).mean(0)
            weights.append(dict(zip(last.names, mean[0].tolist(), strict=True)))
            losses.append(dict(zip(last.names, mean[1].tolist(), strict=True)))
    model = trainer.model
    probe_val, probe_test = probe(model, data)
    val, test = (accuracies(model, method, split)[JOINT] for split in (data.val, data.test))
    missing_val, missing_test = (missing(model, method, data.train, split) for split in (data.val, data.test))
    return Result(
        data.name, method.name, seed, val, test, probe_val, probe_test, missing_val, missing_test, weights, losses
    )


@torch.no_grad()
def missing(model, method, train, split):
    """Mean fused accuracy over which one modality is missing."""
    means = [x.mean(0) for x in model.features(train.inputs)]
    scores = []
    for position, mean in enumerate(means):
        features = model.features(split.inputs)
        features[position] = mean.expand_as(features[position])
        others = [x for i, x in enumerate(model.unimodal(features).values()) if i != position]
        logits = model.fuse(features) if method.joint else torch.stack([x.softmax(1) for x in others]).mean(0)
        scores.append(100 * (logits.argmax(1) == split.labels).double().mean().item())
    return statistics.mean(scores)


def table(name, results):
    alone = {r["seed"]: r for r in results if r["method"] == ALONE.name}
    print(f"\n{name}: {len(alone)} seeds; validation, then test")
    on_test = ("mean gap, test", "fused, test", "one missing, test")
    print(header("method", "mean gap", "worst gap", "fused", "one missing", *on_test))
    for method in METHODS:
        own = [r for r in results if r["method"] == method.name and r["seed"] in alone]
        if not own:
            continue
        cells = []
        for split in ("val", "test"):
            gaps = [[r[f"probe_{split}"][m] - p for m, p in alone[r["seed"]][f"probe_{split}"].items()] for r in own]
            by_modality = [statistics.mean(g) for g in zip(*gaps, strict=True)]
            cells.append(f"{statistics.mean(by_modality):+.2f}")
            if split == "val":
                cells.append(f"{min(by_modality):+.2f}")
            cells += [spread([r[split] for r in own]), spread([r[f"missing_{split}"] for r in own])]
        print(row(method.name, *cells), flush=True)


def spread(values):
    deviation = statistics.stdev(values) if len(values) > 1 else 0.0
    return f"{statistics.mean(values):.1f} ± {deviation:.1f}"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--datasets", nargs="+", default=["digits", "digits-hard"])
    parser.add_argument("--methods", nargs="+", help="names from the table; default: all")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--out", type=Path, default=Path("evidence_study.jsonl"))
    arguments = parser.parse_args()
    torch.set_num_threads(1)  # the networks are tiny
    done = [json.loads(line) for line in arguments.out.read_text().splitlines()] if arguments.out.exists() else []
    seen = {(r["dataset"], r["method"], r["seed"]) for r in done}
    chosen = [m for m in METHODS if not arguments.methods or m.name in arguments.methods]
    for name in arguments.datasets:
        data = load(name)
        jobs = [(m, s) for s in range(arguments.seeds) for m in chosen if (data.name, m.name, s) not in seen]
        with arguments.out.open("a") as file:
            for method, seed in tqdm(jobs, desc=name):
                result = vars(run(data, method, seed, arguments.steps))
                done.append(result)
                file.write(json.dumps(result) + "\n")
                file.flush()
        table(name, [r for r in done if r["dataset"] == data.name])


if __name__ == "__main__":
    main()
