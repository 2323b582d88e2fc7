"""Where a balancer may be called under DistributedDataParallel: every method, against one process with the whole batch.

The table in docs/distributed.md is what this test prints.
"""

from pathlib import Path

import pytest
import torch
from torch.nn.parallel import DistributedDataParallel

from tests.arrangements.reference import METHODS, Model, batch, error, reference, scalar

PAGE = Path(__file__).parents[2] / "docs" / "distributed.md"
STEPS = 3
ARRANGEMENTS = {  # inside forward?, logits returned beside the loss?, options of the wrapper
    "outside": (False, False, {}),
    "outside, `find_unused_parameters`": (False, False, {"find_unused_parameters": True}),
    "in `forward`": (True, False, {}),
    "in `forward`, with logits": (True, True, {}),
    "in `forward`, `find_unused_parameters`": (True, False, {"find_unused_parameters": True}),
    "in `forward`, `find_unused_parameters`, with logits": (True, True, {"find_unused_parameters": True}),
    "outside, `static_graph`": (False, False, {"static_graph": True}),
    "in `forward`, `static_graph`": (True, False, {"static_graph": True}),
}
REFUSED = {
    (name, place)
    for name in METHODS
    for place in ARRANGEMENTS
    if "static_graph" in place and name not in {"Uniform", "MIMO", "MIMO(params=)", "OGM", "MLB"}
}


def steps(net, model, batches, inside):
    """The gradient of the first step, and the parameters after all."""
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    first = None
    for inputs in batches:
        out = net(**inputs)
        optimizer.zero_grad()
        (out["loss"] if inside else scalar(model.balancer, *out)).backward()
        if first is None:
            first = {name: None if p.grad is None else p.grad.clone() for name, p in model.named_parameters()}
        optimizer.step()
    return first, [p.detach().clone() for p in model.parameters()]


def outcome(rank, name, place):
    inside, logits, options = ARRANGEMENTS[place]
    whole = [batch(seed=seed, size=16) for seed in range(STEPS)]
    mine = [{key: x[8 * rank : 8 * rank + 8] for key, x in inputs.items()} for inputs in whole]
    alone = Model(METHODS[name])
    alone.balancer.process_group = None
    _, wanted = steps(alone, alone, whole, inside=False)
    model = Model(METHODS[name], inside=inside, logits=logits)
    try:
        first, got = steps(DistributedDataParallel(model, **options), model, mine, inside)
    except RuntimeError as refusal:
        if "static_graph" not in str(refusal) or any(p.grad is not None for p in model.parameters()):
            raise  # only by name, and before the backward
        return "refused"
    for p, grad in zip(model.parameters(), first.values(), strict=True):
        p.grad = grad
    assert error(model, reference(name, whole[0])) < 2e-5
    torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-6)
    return "works"


def outcomes(rank, name):
    return {place: outcome(rank, name, place) for place in ARRANGEMENTS}


@pytest.fixture(scope="module")
def found():
    return {}


@pytest.mark.parametrize("name", METHODS)
def test_every_arrangement(pair, found, name):
    first, second = pair(outcomes, name)
    assert first == second
    assert first == {place: "refused" if (name, place) in REFUSED else "works" for place in ARRANGEMENTS}
    found[name] = first


def table(found):
    """Arrangements down, methods that fare alike across."""
    alike = {}
    for name, answers in found.items():
        alike.setdefault(tuple(answers.values()), []).append(f"`{name}`")
    lines = ["| The balancer is called | " + " | ".join(", ".join(names) for names in alike.values()) + " |"]
    lines.append("| --- " * (len(alike) + 1) + "|")
    lines += [
        f"| {place} | " + " | ".join(row[position] for row in alike) + " |"
        for position, place in enumerate(ARRANGEMENTS)
    ]
    return "\n".join(lines)


def test_the_page_has_the_table(found):
    if len(found) < len(METHODS):
        pytest.skip("not all methods have been run")
    printed = table(found)
    print(printed)
    assert printed in PAGE.read_text(), f"put this table into docs/distributed.md:\n{printed}"
