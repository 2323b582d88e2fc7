"""The picture over the depth of a model: who sends how much where, and where gradients are in conflict."""

import re
from itertools import combinations
from pathlib import Path

import torch
from torch import Tensor

from balanced_grad.pictures import COLOURS, drawing, write
from balanced_grad.records import Step

_LAYER = re.compile(r"^(.*?\.\d+)(?:\.|$)")  # a dotted name up to its first number
_DIGITS = re.compile(r"(\d+)")
_FEW = 16  # names that fit below a panel


def plot_depth(step: Step | None, path: str | Path) -> None:
    """Draw each loss's part of the squared gradient norm, and the cosines between losses, layer by layer.

    The Gramians of all problems in one layer are added up, a layer being what shares a name up to its first number:
    ``model.layers.3``. With ``level=bg.Tokens(model)`` groups of tokens take the place of losses. In each stack of
    layers the order is that of their numbers.

    Args:
        step: ``balancer.last`` of a Gramian method with ``groups="tensor"``; ``params=model`` gives parameters the
            model's names.
        path: where the picture goes; its ending says the format.

    Raises:
        ImportError: without matplotlib, which ``pip install 'balanced-grad[demo]'`` has.
        ValueError: for a step without a Gramian for each of several problems.

    Examples:
        >>> import torch, balanced_grad as bg, tempfile, pathlib
        >>> model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 2))
        >>> balancer = bg.MinNorm(groups="tensor", params=model)
        >>> balancer({"joint": model(torch.ones(1, 2)).sum(), "audio": model(torch.randn(1, 2)).sum()}).backward()
        >>> picture = pathlib.Path(tempfile.mkdtemp()) / "depth.png"
        >>> bg.plot_depth(balancer.last, picture)
        >>> picture.exists()
        True
    """
    if step is None or step.gramian is None or step.gramian.dim() < 3:
        raise ValueError(
            "there is no Gramian for each layer: give balancer.last, after a backward(), of a method with "
            "groups='tensor', such as bg.MinNorm(groups='tensor', params=model)"
        )
    layers = by_layer(step)
    gramians = torch.stack(list(layers.values()))
    norms = gramians.diagonal(dim1=-2, dim2=-1)
    shares = norms / norms.sum(-1, keepdim=True)
    cosines = gramians / (norms.unsqueeze(-1) * norms.unsqueeze(-2)).sqrt()  # NaN, and not drawn, where one is 0
    with drawing("plot_depth", figsize=(8.0, 5.2)) as figure:
        first, second = figure.subplots(2, 1, sharex=True)
        for place, name in enumerate(step.names):
            first.plot(shares[:, place].tolist(), marker="o", color=COLOURS[place % len(COLOURS)], label=name)
        for place, (one, other) in enumerate(combinations(range(len(step.names)), 2)):
            label = f"{step.names[one]}, {step.names[other]}"
            second.plot(cosines[:, one, other].tolist(), marker="o", color=COLOURS[place % len(COLOURS)], label=label)
        second.axhline(0, color="#7f7f7f", linewidth=0.8)
        first.set(title="part of the squared gradient norm", ylim=(-0.05, 1.05))
        second.set(title="cosine of two gradients", ylim=(-1.05, 1.05))
        every = max(1, -(-len(layers) // _FEW))
        ticks = range(0, len(layers), every)
        names = _endings(list(layers))
        second.set_xticks(list(ticks), [names[tick] for tick in ticks], rotation=45, ha="right")
        for axis in (first, second):
            axis.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))
        write(figure, path)


def by_layer(step: Step) -> dict[str, Tensor]:
    """Layer -> sum of the Gramians ``(K, K)`` of its problems, on the host, in the order of the numbers in names."""
    assert step.gramian is not None
    out: dict[str, Tensor] = {}
    for name, gramian in zip(step.problems, step.gramian.detach().cpu(), strict=True):
        match = _LAYER.match(name)
        layer = match[1] if match else name
        out[layer] = out[layer] + gramian if layer in out else gramian
    return dict(sorted(out.items(), key=lambda item: _natural(item[0])))


def _natural(name: str) -> list[tuple[int, str]]:
    """Numbers as numbers: ``layers.10`` after ``layers.9``."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in _DIGITS.split(name)]


def _endings(names: list[str]) -> list[str]:
    """The last components that tell all names apart."""
    parts = [name.split(".") for name in names]
    for length in range(min(2, max(map(len, parts))), max(map(len, parts)) + 1):
        short = [".".join(part[-length:]) for part in parts]
        if len(set(short)) == len(names):
            return short
    return names
