"""I2M2 on sentences about pairs of pictures: accuracy of each row, and how sure each expert of I2M2 is.

    BALANCED_GRAD_DATA=DIR python -m bench.experts_nlvr2 --seeds 5
    python -m bench.experts_nlvr2 --generated             # a stand-in, in under a minute

``DIR/nlvr2/``: ``train.json``, ``dev.json`` and ``test1.json`` as NLVR2 publishes them, a JSON object per line with
``identifier`` and ``label`` (``"True"`` or ``"False"``); any other ``NAME.json`` there is one more test part.
``features.npz`` (this form is ours): ``identifier`` ``(n,)`` and an array ``(n, d)`` per modality, such as ``image``,
both pictures of a pair side by side, and ``text``.

Networks, optimizer and stages are those of ``bench.experts_vqa``, with cross-entropy and batches of 256. The published
runs train the backbone as well; here it is frozen. ``--generated`` has the property that the claim is about: pictures
and sentence each show a number of four, and the sentence is true where it is the pictures'. Either alone says nothing,
so an expert of one modality should be flat (entropy near 0.693 nats), and the product near the joint expert.

Accuracy in percent, entropy in nats on the first test part; mean and standard error over seeds.
"""

import argparse
import json
import os
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from tqdm import tqdm

from balanced_grad.demo._cli import FOLDER
from balanced_grad.demo._data import DemoError
from balanced_grad.models import expert_entropies, predictions, train_experts
from bench import _markdown as markdown
from bench._experts_tasks import Shuffled
from bench._vqa import read_features, read_parts, rows_of
from bench.experts_vqa import RECIPE, products

SPLITS = ("train", "dev", "test1")
ID = "identifier"
LABELS = {"False": 0, "True": 1}
BATCH, NUMBERS, NOISE = 256, 4, 0.3
GENERATED = {"train": 4000, "dev": 1000, "test1": 2000}


class Pairs(NamedTuple):
    """One part: features ``(n, d)`` by modality, and whether the sentence is true ``(n,)``."""

    inputs: dict[str, Tensor]
    labels: Tensor


def load_nlvr2(folder: Path) -> dict[str, Pairs]:
    """Read labels and features of every part."""
    features, row_of = read_features(folder / "features.npz", ID, str)
    parts = {}
    for part, given in read_parts(folder, SPLITS, labels).items():
        rows = rows_of(given, row_of, ID, part)
        parts[part] = Pairs({m: x[rows] for m, x in features.items()}, torch.tensor(list(given.values())))
    return parts


def labels(path: Path) -> dict[str, int]:
    """Identifier -> label."""
    try:
        lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
        found = {str(one[ID]): LABELS[str(one["label"])] for one in lines}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DemoError(f"{path} is not in the form of NLVR2, a JSON object per line: {error!r}") from error
    if not found:
        raise DemoError(f"{path} is empty")
    return found


def generated(seed: int = 0) -> dict[str, Pairs]:
    """Sentences that are true of half the pictures; neither alone tells of which."""
    generator = torch.Generator().manual_seed(seed)
    parts = {}
    for part, count in GENERATED.items():
        true = torch.randint(2, (count,), generator=generator)
        shown = torch.randint(NUMBERS, (count,), generator=generator)
        other = (shown + torch.randint(1, NUMBERS, (count,), generator=generator)) % NUMBERS
        places = {"image": shown, "text": torch.where(true == 1, shown, other)}
        noise = {m: NOISE * torch.randn(count, NUMBERS, generator=generator) for m in places}
        parts[part] = Pairs({m: torch.eye(NUMBERS)[n] + noise[m] for m, n in places.items()}, true)
    return parts


def study(parts: dict[str, Pairs], seed: int, recipe, tick=lambda: None):
    """Row -> part -> accuracy, and expert -> entropy."""

    def fit(product, **options):
        train_experts(product, Shuffled(*parts["train"], BATCH, seed), [parts["dev"]], **options)
        tick()

    rows = products(parts["train"].inputs, 2, "classification", fit, recipe, seed)
    scores = {row: {part: accuracy(product, parts[part]) for part in judged(parts)} for row, product in rows.items()}
    return scores, entropies(rows["I2M2"], parts[judged(parts)[0]])


def entropies(product, part: Pairs) -> dict[str, float]:
    """Mean entropy of each expert's predictions, and that of the product."""
    outputs, _, present = predictions(product, [part])
    return expert_entropies(product, outputs, present)


def judged(parts):
    """Parts that are judged."""
    return [part for part in parts if part not in SPLITS[:2]]


@torch.no_grad()
def accuracy(product, part: Pairs) -> float:
    return 100 * float((product.eval()(part.inputs).argmax(1) == part.labels).float().mean())


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=0, help="at most so many per stage; default 10")
    parser.add_argument("--generated", action="store_true", help="the stand-in, with 100 times the rate")
    arguments = parser.parse_args()
    if not (arguments.generated or os.environ.get(FOLDER)):
        parser.error(f"set {FOLDER} to the folder that has nlvr2/, or give --generated")
    torch.set_num_threads(1)
    recipe = RECIPE | {"epochs": arguments.epochs or RECIPE["epochs"]}
    recipe |= {"lr": 100 * RECIPE["lr"]} if arguments.generated else {}
    try:
        parts = generated() if arguments.generated else load_nlvr2(Path(os.environ[FOLDER]) / "nlvr2")
    except DemoError as error:
        parser.error(str(error))
    with tqdm(desc="nlvr2", total=3 * arguments.seeds, disable=None) as bar:
        found = [study(parts, seed, recipe, bar.update) for seed in range(arguments.seeds)]
    scores, entropies = zip(*found, strict=True)
    lines = {
        row: [markdown.mean_and_error([one[row][part] for one in scores]) for part in judged(parts)]
        for row in scores[0]
    }
    print(markdown.markdown("accuracy", judged(parts), lines))
    sure = {key: [markdown.mean_and_error([one[key] for one in entropies], ".3f")] for key in entropies[0]}
    print("\n" + markdown.markdown("expert of I2M2", ["entropy, nats"], sure))


if __name__ == "__main__":
    main()
