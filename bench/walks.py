"""How far a step walks through the library: calls, functions, files, and changes of room, from losses to ``.grad``.

    python -m bench.walks            # the table of docs/architecture.md
    python -m bench.walks --show BOGC  # every function at its first visit

A room is a folder of the package, or the module ``balancer``; the small modules beside them, on which every room
stands, are none. A change of room is counted between the first visits of two functions that follow each other. Two
encoders, three heads, the third step.
"""

import argparse
import sys
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import torch
from torch import nn

import balanced_grad as bg
from bench._markdown import markdown

ROOT = Path(bg.__file__).parent
STEPS = 3


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoders = nn.ModuleDict({name: nn.Linear(5, 4) for name in ("audio", "video")})
        self.heads = nn.ModuleDict({name: nn.Linear(4, 3) for name in ("audio", "video")})
        self.fused = nn.Linear(8, 3)

    def forward(self, x):
        return self.fused(torch.cat([encoder(x).tanh() for encoder in self.encoders.values()], 1))

    def losses(self, x, y):
        z = {name: encoder(x).tanh() for name, encoder in self.encoders.items()}
        loss = nn.functional.cross_entropy
        joint = loss(self.fused(torch.cat(list(z.values()), 1)), y)
        return {"joint": joint} | {name: loss(self.heads[name](z[name]), y) for name in z}


Step = Callable[[], object]


def plain(make: Callable[[Model], bg.Balancer]) -> Callable[[], Step]:
    """A balancer called on the losses."""

    def build() -> Step:
        model, x, y = Model(), torch.randn(6, 5), torch.arange(6) % 3
        balancer = make(model)
        return lambda: balancer(model.losses(x, y)).backward()

    return build


def attached() -> Step:
    """Heads attached to the encoders, and OGM on their scores."""
    model, x, y = Model(), torch.randn(6, 5), torch.arange(6) % 3
    aux = bg.attach(model, model.encoders, num_outputs=3)
    balancer = bg.OGM(model.encoders)

    def step() -> None:
        joint = nn.functional.cross_entropy(model(x), y)
        balancer(aux.losses(joint, y), scores=aux.scores(y)).backward()

    return step


def guarded() -> Step:
    """MinNorm under a held-out guard and an optimizer."""
    model, x, y = Model(), torch.randn(6, 5), torch.arange(6) % 3
    balancer = bg.HeldOut(bg.MinNorm(), every=10)
    optimizer = bg.BalancedOptimizer(torch.optim.SGD(model.parameters(), lr=0.1), balancer, modalities=model.encoders)

    def step() -> None:
        optimizer.zero_grad()
        if balancer.due:
            balancer.observe(model.losses(x, y))
        balancer(model.losses(x, y)).backward()
        optimizer.step()

    return step


WAYS: dict[str, Callable[[], Step]] = {
    "Uniform": plain(lambda model: bg.Uniform()),
    "MIMO": plain(lambda model: bg.MIMO()),
    "MinNorm": plain(lambda model: bg.MinNorm()),
    "MMPareto": plain(lambda model: bg.MMPareto()),
    "BOGC": plain(lambda model: bg.BOGC(model.encoders)),
    "MLB": plain(lambda model: bg.MLB(model.encoders)),
    "attach + OGM": attached,
    "HeldOut(MinNorm), optimizer": guarded,
}


def walk(step: Step) -> list[tuple[str, str, str]]:
    """Room, file and function of every call of a step."""
    calls = []

    def note(frame, event, _):
        path = Path(frame.f_code.co_filename)
        if event == "call" and ROOT in path.parents:
            inside = path.relative_to(ROOT)
            calls.append((inside.parts[0].removesuffix(".py"), str(inside), frame.f_code.co_qualname))

    before = sys.getprofile()
    sys.setprofile(note)
    try:
        step()
    finally:
        sys.setprofile(before)
    return calls


def numbers(calls: list[tuple[str, str, str]]) -> list[int]:
    """Calls, functions, files, changes of room."""
    first = list(dict.fromkeys(calls))
    rooms = [room for room, file, _ in first if "/" in file or room == "balancer"]
    changes = sum(a != b for a, b in pairwise(rooms))
    return [len(calls), len(first), len({file for _, file, _ in first}), changes]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--show", choices=list(WAYS), help="print the walk of one of them")
    options = parser.parse_args()
    rows = {}
    for name, build in WAYS.items():
        torch.manual_seed(0)
        step = build()
        for _ in range(STEPS - 1):
            step()
        calls = walk(step)
        if options.show == name:
            print("\n".join(f"{file}: {function}" for _, file, function in dict.fromkeys(calls)))
        rows[name] = [str(number) for number in numbers(calls)]
    if options.show is None:
        print(markdown("step of", ["calls", "functions", "files", "changes of room"], rows))


if __name__ == "__main__":
    main()
