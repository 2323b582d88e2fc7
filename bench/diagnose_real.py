"""Before and after: what bg.diagnose says of networks that are trained jointly, and with one loss per modality.

    python -m bench.diagnose_real                                                    # scikit-learn's digits, hard
    BALANCED_GRAD_DATA=DIR python -m bench.diagnose_real --dataset mfeat             # or wiki, avmnist:clean,noisy
    python -m bench.diagnose_real --out DIR                                          # reports as pages, too

The demo's networks and recipe, one seed. Every network is asked on the test items; each encoder is probed beside the
same encoder trained alone. The second table has the accuracy by the fused head and by the product of heads where every
modality is missing in half of the items.
"""

import argparse
import os
from pathlib import Path

import torch

import balanced_grad as bg
from balanced_grad.demo._digits import load_digits
from balanced_grad.demo._folder import load_folder
from balanced_grad.demo._train import ALONE, BALANCED, BASELINE, BATCH, Trainer
from bench._markdown import header, row

METHODS = (BASELINE, *BALANCED[:2])
HALF = 5  # of the rates


def trained(data, method, seed, steps):
    trainer, generator = Trainer(data, method, seed), torch.Generator().manual_seed(seed)
    done = 0
    while done < steps:
        for rows in torch.randperm(len(data.train), generator=generator).split(BATCH):
            trainer.step(data.train[rows])
            done += 1
    return trainer.model


def diagnosed(model, alone, data, **options):
    def predict(inputs):
        features = model.features(inputs)
        return {"joint": model.fuse(features)} | model.unimodal(features)

    batches = [data.test[rows] for rows in torch.arange(len(data.test)).split(256)]
    return bg.diagnose(
        model,
        [(batch.inputs, batch.labels) for batch in batches],
        predict=predict,
        encoders=dict(zip(model.names, model.encoders, strict=True)),
        reference=dict(zip(alone.names, alone.encoders, strict=True)),
        **options,
    )


def percent(estimate):
    return (
        "-" if estimate is None else f"{100 * estimate.value:.0f} [{100 * estimate.low:.0f}, {100 * estimate.high:.0f}]"
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", default="digits-hard", help="digits, digits-hard, or one in BALANCED_GRAD_DATA")
    parser.add_argument("--steps", type=int, default=600, help="of training (default: 600)")
    parser.add_argument("--draws", type=int, default=8, help="permutations (default: 8)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, metavar="DIR", help="write METHOD.html there")
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.dataset.startswith("digits"):
        data = load_digits(hard=args.dataset.endswith("hard"))
    else:
        data = load_folder(Path(os.environ["BALANCED_GRAD_DATA"]), args.dataset)
    alone = trained(data, ALONE, args.seed, args.steps)
    print(header("trained with", "modality", "verdict", "share, %", "moved, %", "encoder beside one alone, points"))
    summaries = []
    for method in METHODS:
        model = trained(data, method, args.seed, args.steps)
        report = diagnosed(model, alone, data, draws=args.draws, seed=args.seed, progress=False)
        for name, each in report.contributions.items():
            probe = report.probes[name]
            beside = f"{probe.verdict}, {probe.points.value:+.1f} [{probe.points.low:+.1f}, {probe.points.high:+.1f}]"
            moved = f"{100 * each.moved:.0f}"
            print(row(method.name, name, each.verdict, percent(each.share), moved, beside), flush=True)
        gap, left = report.additive.points, report.robustness
        summaries.append(
            row(
                method.name,
                f"{report.subset(report.modalities).accuracy.value:.1f}",
                f"{gap.value:+.1f} [{gap.low:+.1f}, {gap.high:+.1f}]",
                f"{left.random[HALF].value:.1f}",
                f"{left.heads[HALF].value:.1f}",
            )
        )
        if args.out is not None:
            args.out.mkdir(parents=True, exist_ok=True)
            report.save(args.out / f"{method.name}.html")
    print(
        "\n"
        + header("trained with", "accuracy, %", "additive gap, points", "half missing: fused", "half missing: heads")
    )
    print("\n".join(summaries))


if __name__ == "__main__":
    main()
