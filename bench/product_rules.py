"""Towards what the weights of a product of heads should shrink, and how far: ``python -m bench.product_rules``.

Networks of the accuracy study at its default settings, trained by the joint loss and by ``Uniform``. On their
validation items the weights of ``ProductOfHeads`` are fitted with four rules: shrinkage towards equal weights, or
towards the fused head alone; as much of it as is within one standard error of the best in cross-validation, or the
best. Printed: test accuracy of the fused head, and by how much each rule's product differs from it, in points, with the
standard error over the seeds. Nothing was decided by the sets of ``LAST``, which were run once, in the end.
"""

import argparse
import math
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from balanced_grad.models import ProductOfExperts
from balanced_grad.models._experts_fit import _items
from balanced_grad.models._experts_weights import cross_validate, fit, lowest, one_standard_error
from bench._markdown import markdown
from bench.accuracy._data import load
from bench.accuracy._evaluate import JOINT, quality, under_rules
from bench.accuracy._methods import BY_NAME
from bench.accuracy._study import budget
from bench.accuracy._train import train

FIRST = ("digits", "digits-hard", "wiki", "synergy", "redundant", "unique", "leaf")
LAST = ("watch", "cells")
RULES: dict[str, tuple[bool, Any]] = {
    "equal, one s.e.": (False, one_standard_error),
    "equal, best": (False, lowest),
    "fused, one s.e.": (True, one_standard_error),
    "fused, best": (True, lowest),
}


def differences(dataset: str, method_name: str, seed: int) -> dict[str, float]:
    """Test accuracy of the fused head, and of each rule minus it."""
    data, method = load(dataset), BY_NAME[method_name]
    trained = train(data, method, method.settings("sgd", 0), "sgd", seed, budget(data), choose=True)
    trained.model.eval()
    with torch.no_grad():
        _, outputs, _, _ = under_rules(trained.model, method, data)
    names = trained.model.names
    pool = ProductOfExperts({names: torch.nn.Identity()} | {name: torch.nn.Identity() for name in names})
    keys = {JOINT: "+".join(names)} | {name: name for name in names}
    val, test = ({keys[name]: x for name, x in outputs[part].items()} for part in ("val", "test"))
    items = _items(pool, val, data.val.labels, None)
    fused = quality(outputs["test"][JOINT], data.test.labels)[0]
    out = {"fused head": fused}
    for rule, (towards_fused, choose) in RULES.items():
        center = list(pool.subsets).index(keys[JOINT]) if towards_fused else None
        pool.weights.copy_(fit(items, choose(cross_validate(items, center)), center))
        out[rule] = quality(pool.combine(test), data.test.labels)[0] - fused
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--datasets", nargs="+", metavar="NAME", default=list(FIRST), help="default: all but the last")
    parser.add_argument("--seeds", type=int, metavar="N", default=5)
    args = parser.parse_args()
    torch.set_num_threads(1)
    rows: dict[str, list[str]] = {}
    with tqdm(total=2 * len(args.datasets) * args.seeds, unit="run") as bar:
        for dataset in args.datasets:
            for method in ("joint", "uniform"):
                found = []
                for seed in range(args.seeds):
                    found.append(differences(dataset, method, seed))
                    bar.update()
                means = {key: np.array([each[key] for each in found]) for key in found[0]}
                fused, *others = means.values()
                cells = [f"{x.mean():+.1f} ± {x.std(ddof=1) / math.sqrt(len(x)):.1f}" for x in others]
                rows[f"{dataset}, {method}"] = [f"{fused.mean():.1f}", *cells]
    print(markdown("set, training", ["fused head", *RULES], rows))


if __name__ == "__main__":
    main()
