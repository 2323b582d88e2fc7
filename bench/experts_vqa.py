"""I2M2 on visual questions: the VQA score of each row, in distribution and in every part out of it.

    BALANCED_GRAD_DATA=DIR python -m bench.experts_vqa --seeds 5

``DIR/vqa``: see ``bench._vqa``. The backbone is frozen and its features are given, as in the published runs on VQA-VS.
An expert is a linear layer to twice the width of its features, layer norm, GELU, a linear layer to the answers; the
joint one sees all features side by side. AdamW, rate 1e-4, weight decay 0.01, batches of 512, at most 10 epochs; every
expert alone, then all of a row together at a tenth of the rate. The loss is binary cross-entropy with the score of each
answer as its target. Our reading: products add up logits, where the published code gives log-probabilities to that
loss; stages end after 3 epochs without a better validation loss, and at their best; a tenth.

Score in percent, ``min(n / 3, 1)`` for an answer that ``n`` people gave, mean and standard error over seeds.
"""

import argparse
import copy
import os
from pathlib import Path

import torch
from torch import nn
from tqdm import tqdm

from balanced_grad.demo._cli import FOLDER
from balanced_grad.demo._data import DemoError
from balanced_grad.models import ProductOfExperts, expert_subsets, train_experts
from bench import _markdown as markdown
from bench._experts_tasks import modalities
from bench._metrics import vqa_score
from bench._vqa import SPLITS, Annotated, Questions, load_vqa

RECIPE = {
    "lr": 1e-4,
    "epochs": 10,
    "patience": 3,
    "optimizer": lambda parameters, lr: torch.optim.AdamW(parameters, lr=lr, weight_decay=0.01),
}
BATCH = 512


class Head(nn.Module):
    """An expert on features of a frozen backbone."""

    def __init__(self, width, answers):
        super().__init__()
        self.net = nn.Sequential(
            nn.Linear(width, 2 * width), nn.LayerNorm(2 * width), nn.GELU(), nn.Linear(2 * width, answers)
        )

    def forward(self, *inputs):
        return self.net(torch.cat(inputs, 1))


class Batches:
    """Features and targets of a part, which are made dense batch by batch; in a new order each time with a seed."""

    def __init__(self, part: Questions, classes, seed=None):
        self.part, self.classes = part, classes
        self.generator = None if seed is None else torch.Generator().manual_seed(seed)

    def __iter__(self):
        count = len(self.part.answers)
        order = torch.arange(count) if self.generator is None else torch.randperm(count, generator=self.generator)
        for rows in order.split(BATCH):
            yield {m: x[rows] for m, x in self.part.inputs.items()}, self.part.targets(rows, self.classes)


def products(inputs, classes, task, fit, recipe, seed):
    """Row -> product: each modality's expert, all of these, the joint one, and all; ``fit`` trains one by a recipe."""
    keys = expert_subsets(inputs)
    torch.manual_seed(seed)
    experts = {key: Head(sum(inputs[m].shape[1] for m in modalities(key)), classes) for key in keys}

    def trained(chosen, mode, **options):
        product = ProductOfExperts(copy.deepcopy({key: experts[key] for key in chosen}), task=task)
        fit(product, mode=mode, **recipe | options)
        return product

    experts = dict(zip(keys, trained(keys, "frozen").experts, strict=True))
    rows = {key: ProductOfExperts({key: experts[key]}, task=task) for key in keys[:-1]}
    rows["intra"] = trained(keys[:-1], "scratch", lr=0.1 * recipe["lr"])
    rows["inter"] = ProductOfExperts({keys[-1]: experts[keys[-1]]}, task=task)
    rows["I2M2"] = trained(keys, "scratch", lr=0.1 * recipe["lr"])
    return rows


def study(data: Annotated, seed, epochs, tick=lambda: None):
    """Row -> part -> score."""
    train, val, classes = data.parts["train"], data.parts["val"], len(data.vocabulary)

    def fit(product, **options):
        train_experts(product, Batches(train, classes, seed), Batches(val, classes), **options)
        tick()

    recipe = RECIPE | {"epochs": epochs or RECIPE["epochs"]}
    rows = products(train.inputs, classes, "multilabel", fit, recipe, seed)
    return {row: {part: score(product, data, part) for part in judged(data)} for row, product in rows.items()}


def judged(data: Annotated):
    """Parts that are judged."""
    return [part for part in data.parts if part not in SPLITS[:2]]


@torch.no_grad()
def score(product, data: Annotated, part):
    """VQA score of the answers with the highest logits."""
    batches = Batches(data.parts[part], len(data.vocabulary))
    chosen = torch.cat([product.eval()(inputs).argmax(1) for inputs, _ in batches])
    return vqa_score([data.vocabulary[i] for i in chosen.tolist()], data.parts[part].answers)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=0, help="at most so many per stage; default 10")
    parser.add_argument("--least", type=int, default=9, help="questions that an answer must be the answer to")
    arguments = parser.parse_args()
    if not os.environ.get(FOLDER):
        parser.error(f"set {FOLDER} to the folder that has vqa/")
    torch.set_num_threads(1)
    try:
        data = load_vqa(Path(os.environ[FOLDER]) / "vqa", arguments.least)
    except DemoError as error:
        parser.error(str(error))
    with tqdm(desc="vqa", total=3 * arguments.seeds) as bar:
        found = [study(data, seed, arguments.epochs, bar.update) for seed in range(arguments.seeds)]
    lines = {
        row: [markdown.mean_and_error([one[row][part] for one in found]) for part in judged(data)] for row in found[0]
    }
    print(f"{len(data.vocabulary)} answers, {len(found)} seeds\n")
    print(markdown.markdown("VQA score", judged(data), lines))


if __name__ == "__main__":
    main()
