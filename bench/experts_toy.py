"""Inter- and intra-modality experts where the truth is known: what each row of the table should reach.

    python -m bench.experts_toy              # the table of docs/experts.md
    python -m bench.experts_toy --seeds 1

A binary label ``y``. Each of two modalities holds one Gaussian cue, ``a (2y - 1) + ε``, one sign bit, and eight numbers
of pure noise. The product of the two bits is the label's sign with probability ``q``, and beside that the bits are fair
coins: ``a`` is what each modality knows alone, ``q`` what only both together know. 400 training, 200 validation and
5,000 test items, experts with 64 hidden units, Adam.
"""

import argparse
from pathlib import Path

import torch
from torch import nn

from bench._experts_tasks import Task
from bench.experts import run_all

SETTINGS = {"intra only": (1.0, 0.5), "inter only": (0.0, 0.9), "both": (0.7, 0.85)}
SIZES = {"train": 400, "val": 200, "test": 5000}
WIDTH, HIDDEN = 10, 64


def draw(items, strength, agreement, generator):
    """Inputs ``(items, 10)`` of two modalities, and labels."""
    label = torch.randint(2, (items,), generator=generator)
    sign = 2.0 * label - 1
    bit = 2.0 * torch.randint(2, (items,), generator=generator) - 1
    agree = torch.where(torch.rand(items, generator=generator) < agreement, 1.0, -1.0)
    bits = {"one": bit, "two": bit * sign * agree}
    inputs = {}
    for modality, own in bits.items():
        x = torch.randn(items, WIDTH, generator=generator)
        x[:, 0] += strength * sign
        x[:, 1] = own
        inputs[modality] = x
    return inputs, label


class Dense(nn.Module):
    """One hidden layer over all inputs."""

    def __init__(self, modalities):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(WIDTH * modalities, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, 2))

    def forward(self, *inputs):
        return self.net(torch.cat(inputs, 1))


class Toy(Task):
    """Data of its own for each seed."""

    def __init__(self, name, strength, agreement):
        self.setting = strength, agreement
        # Rate and decay were chosen by the fused expert's validation loss among seven pairs.
        adam = {"optimizer": lambda parameters, lr: torch.optim.Adam(parameters, lr=lr, weight_decay=1e-2)}
        recipe = {"lr": 1e-2, "epochs": 100, "patience": 20, **adam}
        super().__init__(name, {}, lambda key: Dense(1 if isinstance(key, str) else len(key)), recipe)

    def for_seed(self, seed):
        generator = torch.Generator().manual_seed(seed)
        self.splits = {split: draw(n, *self.setting, generator) for split, n in SIZES.items()}
        return self


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=6)
    parser.add_argument("--out", type=Path, help="JSON lines, to go on from")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    run_all([Toy(name, *setting) for name, setting in SETTINGS.items()], arguments.seeds, arguments.out)


if __name__ == "__main__":
    main()
