"""One sensor is perturbed at test time: accuracy of the fused head of joint training, ``Uniform`` and ``MIMO``.

    BALANCED_GRAD_DATA=DIR python -m bench.perturbation --plot docs/images/perturbation.png
    BALANCED_GRAD_DATA=DIR python -m bench.perturbation --datasets wiki --seeds 1

Networks, recipe, budget and choice of the epoch are those of ``bench.accuracy``, with SGD. *Tuned* settings are the
best of its eight trials on clean validation items, the same number for every method, as ``bench/results`` has them.
Nothing is trained or chosen on perturbed items. Each modality is perturbed in turn while the others stay clean; a
number is the mean over which one it is. All methods see the same perturbed items. Mean and standard error over the
seeds, differences paired by seed.
"""

import argparse
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from balanced_grad.demo._data import Dataset
from balanced_grad.demo._model import LateFusion
from balanced_grad.pictures import BLUE, GREY, ORANGE, drawing, write
from bench._corruptions import CORRUPTIONS, corrupted
from bench._markdown import markdown, mean_and_error
from bench.accuracy._methods import BY_NAME
from bench.accuracy._study import RESULTS, Study
from bench.accuracy._train import train

METHODS = {"joint": GREY, "uniform": BLUE, "MIMO": ORANGE}
SETTINGS = ("default", "tuned")
DATASETS, TRIALS = {"mfeat": 40, "wiki": 18}, 8  # epochs, and trials of the study
CLEAN = "clean"
Curve = dict[str, list[float]]  # corruption -> accuracy by severity; a single one where there is none
Found = dict[tuple[str, str, str], list[Curve]]  # data set, settings, method -> one per seed


@torch.no_grad()
def accuracy(model: LateFusion, inputs: dict[str, torch.Tensor], labels: torch.Tensor) -> float:
    predicted = model.fuse(model.features(inputs)).argmax(1)
    return 100 * (predicted == labels).double().mean().item()


def curves(model: LateFusion, data: Dataset, seed: int) -> Curve:
    """Test accuracy at each severity, mean over which modality is perturbed."""
    inputs, labels = data.test.inputs, data.test.labels
    found = {CLEAN: [accuracy(model, inputs, labels)]}
    for kind, corruption in CORRUPTIONS.items():
        found[kind] = []
        for severity in corruption.severities:
            spoiled = [corrupted(inputs, name, kind, severity, seed) for name in model.names]
            found[kind].append(float(np.mean([accuracy(model, each, labels) for each in spoiled])))
    return found


def measure(data: str, seeds: int, epochs: int, tick: Callable[[], object]) -> Found:
    """A training per method and seed at the default settings, and one at the tuned settings where they are others."""
    study = Study.of(data, "sgd", DATASETS[data], TRIALS, RESULTS)
    found: Found = {}
    for name in METHODS:
        method, done = BY_NAME[name], []
        for settings, chosen in zip(SETTINGS, (method.settings("sgd", 0), study.chosen(method)), strict=True):
            runs = next((runs for known, runs in done if known == chosen), [])
            for seed in range(len(runs), seeds):
                trained = train(study.data, method, chosen, "sgd", seed, epochs, choose=True)
                runs.append(curves(trained.model.eval(), study.data, seed))
                tick()
            done.append((chosen, runs))
            found[data, settings, name] = runs
    return found


def measure_all(datasets: list[str], seeds: int, epochs: int | None) -> Found:
    found: Found = {}
    with tqdm(unit="run") as bar:
        for name in datasets:
            found |= measure(name, seeds, epochs or DATASETS[name], bar.update)
    return found


def summary(found: Found) -> str:
    """Mean over the severities of each kind, and MIMO's difference to the others."""
    rows = {}
    for data, settings in sorted({(data, settings) for data, settings, _ in found}):
        for kind in (CLEAN, *CORRUPTIONS):
            own = {name: [float(np.mean(run[kind])) for run in found[data, settings, name]] for name in METHODS}
            cells = [mean_and_error(values) for values in own.values()]
            for other in ("uniform", "joint"):
                paired = [mine - theirs for mine, theirs in zip(own["MIMO"], own[other], strict=True)]
                cells.append(mean_and_error(paired, "+.1f"))
            rows[f"{data}, {settings}, {kind}"] = cells
    return markdown("mean over severities", [*METHODS, "MIMO - uniform", "MIMO - joint"], rows)


def by_severity(found: Found) -> str:
    """The tuned methods at each severity, one table per kind."""
    parts = []
    for kind, corruption in CORRUPTIONS.items():
        rows = {}
        for (data, settings, name), runs in found.items():
            if settings == "tuned":
                columns = zip(*(run[kind] for run in runs), strict=True)
                rows[f"{data}, {name}"] = [mean_and_error(column) for column in columns]
        parts.append(markdown(f"{kind}, tuned", [f"{severity:g}" for severity in corruption.severities], rows))
    return "\n\n".join(parts)


def plot(found: Found, path: Path) -> None:
    """A row per data set, a column per kind; solid tuned, dashed default."""
    datasets = list(dict.fromkeys(data for data, *_ in found))
    with drawing("bench.perturbation", figsize=(9, 2.6 * len(datasets) + 0.4)) as figure:
        axes = figure.subplots(len(datasets), len(CORRUPTIONS), sharey="row", squeeze=False)
        for (data, settings, name), runs in found.items():
            for axis, (kind, corruption) in zip(axes[datasets.index(data)], CORRUPTIONS.items(), strict=True):
                points = np.array([[*run[CLEAN], *run[kind]] for run in runs])
                error = points.std(0, ddof=1) / np.sqrt(len(points)) if len(points) > 1 else None
                style = {"color": METHODS[name], "ls": "-" if settings == "tuned" else ":"}
                label = f"{name}, {settings}"
                axis.errorbar((0, *corruption.severities), points.mean(0), error, label=label, capsize=2, **style)
                axis.set(title=f"{data}, {kind}", xlabel="severity")
        for row in axes:
            row[0].set_ylabel("test accuracy, %")
        figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=6)
        write(figure, path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--datasets", nargs="+", choices=tuple(DATASETS), default=list(DATASETS))
    parser.add_argument("--seeds", type=int, metavar="N", default=5)
    parser.add_argument("--epochs", type=int, metavar="N", help="default: the study's")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="write the figure here")
    args = parser.parse_args()
    torch.set_num_threads(1)
    found = measure_all(args.datasets, args.seeds, args.epochs)
    print(f"{summary(found)}\n\n{by_severity(found)}")
    if args.plot:
        plot(found, args.plot)


if __name__ == "__main__":
    main()
