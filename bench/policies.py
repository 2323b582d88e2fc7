"""Which norm policy should MinNorm have by default? Probe gap and fused accuracy on validation, over data sets.

    python -m bench.policies                                    # digits, digits-hard
    BALANCED_GRAD_DATA=DIR python -m bench.policies --datasets digits mfeat wiki --seeds 5

The demo's networks and recipe (same initial weights, batch order and budget for every method of a seed). The choice
is made on the validation columns; test accuracy is printed for the record.
"""

import argparse
import os
import statistics
from pathlib import Path

import torch
from tqdm import tqdm

import balanced_grad as bg
from balanced_grad.demo._digits import load_digits
from balanced_grad.demo._folder import load_folder
from balanced_grad.demo._train import ALONE, BASELINE, Method, train
from bench._markdown import header, row

STEPS = 500


def min_norm(normalize, rescale, groups="all"):
    name = f"MinNorm {normalize}, {rescale}" + (f", {groups}" if groups != "all" else "")
    return Method(name, make=lambda _: bg.MinNorm(normalize=normalize, rescale=rescale, groups=groups, joint_floor=0))


METHODS = [
    ALONE,
    BASELINE,
    Method("Uniform", make=lambda _: bg.Uniform()),
    Method("MIMO", make=lambda _: bg.MIMO()),
    *(min_norm(normalize, rescale) for normalize in ("none", "l2", "loss", "loss+") for rescale in ("cap", "sum")),
    *(min_norm(normalize, "cap", "reach") for normalize in ("none", "l2", "loss")),
    *(
        Method(f"MMPareto 1.0, {unit}", make=lambda _, unit=unit: bg.MMPareto(1.0, rescale=unit))
        for unit in ("tensor", "encoder")
    ),
]


def load(name):
    if name.startswith("digits"):
        return load_digits(hard=name == "digits-hard")
    return load_folder(Path(os.environ["BALANCED_GRAD_DATA"]), name)


def table(name, seeds):
    data = load(name)
    epochs = max(1, round(STEPS / -(-len(data.train) // 64)))
    bar = tqdm(total=len(METHODS) * seeds, desc=name, leave=False)
    runs = {}
    for method in METHODS:
        for seed in range(seeds):
            runs.setdefault(method.name, []).append(train(data, method, seed, epochs, lambda: None))
            bar.update()
    bar.close()
    print(f"\n{name}: {seeds} seeds, {epochs} epochs, validation unless said otherwise")
    print(header("method", "mean probe gap", "worst probe gap", "fused accuracy", "fused, test"))
    for method, of_method in runs.items():
        pairs = list(zip(of_method, runs[ALONE.name], strict=True))
        gaps = [statistics.mean(r.probe_val[m] - a.probe_val[m] for r, a in pairs) for m in of_method[0].probe_val]
        fused = statistics.mean(r.val["joint"][-1] for r in of_method)
        test = statistics.mean(r.fused for r in of_method)
        cells = (f"{statistics.mean(gaps):+.2f}", f"{min(gaps):+.2f}", f"{fused:.2f}", f"{test:.2f}")
        print(row(method, *cells), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--datasets", nargs="+", default=["digits", "digits-hard"])
    parser.add_argument("--seeds", type=int, default=3)
    arguments = parser.parse_args()
    torch.set_num_threads(1)  # the networks are tiny
    for name in arguments.datasets:
        table(name, arguments.seeds)


if __name__ == "__main__":
    main()
