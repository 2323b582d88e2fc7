"""One branch at a time: what is trained when, what rests, and what a round is."""

import pytest
import torch
from torch import nn

import balanced_grad as bg
from tests.conftest import MODALITIES, LateFusion, make_batch

NAMES = MODALITIES[:2]


def turns(balancer, steps, losses=None):
    w = torch.ones(3, requires_grad=True)
    seen = []
    for _ in range(steps):
        parts = dict(zip(("joint", *NAMES), w.unbind(), strict=True)) if losses is None else losses(w)
        balancer(parts).backward()
        seen += balancer.last.names
    return seen


@pytest.mark.parametrize(
    ("options", "round_"),
    [
        ({}, ["audio", "video", "joint"]),
        ({"period": 2}, ["audio", "audio", "video", "video", "joint"]),
        ({"joint": 0}, ["audio", "video"]),
        ({"period": 2, "joint": 3}, [*["audio"] * 2, *["video"] * 2, *["joint"] * 3]),
    ],
)
def test_a_round(options, round_):
    balancer = bg.Alternate(NAMES, **options)
    assert turns(balancer, 2 * len(round_) + 1) == [*round_, *round_, round_[0]]
    assert balancer.turn == round_[1 % len(round_)]


def test_what_has_no_turn_has_no_gradient_and_momentum_rests():
    model, balancer = LateFusion(trunk=False), bg.Alternate(NAMES)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    for step in range(3):
        before = {name: p.detach().clone() for name, p in model.named_parameters()}
        balancer(model.losses(*make_batch(seed=step))).backward()
        optimizer.step()
        optimizer.zero_grad()
        moved = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
        parts = {"audio": ("encoders.audio", "heads.audio"), "video": ("encoders.video", "heads.video")}
        wanted = parts.get(balancer.last.names[0], ("encoders", "fused"))
        assert moved == {name for name in before if name.startswith(wanted)}


def test_it_is_the_loop_by_hand():
    model, other, balancer = LateFusion(), LateFusion(), bg.Alternate(NAMES)
    other.load_state_dict(model.state_dict())
    optimizers = [torch.optim.AdamW(each.parameters(), lr=0.01) for each in (model, other)]
    for step in range(6):
        balancer(model.losses(*make_batch(seed=step))).backward()
        other.losses(*make_batch(seed=step))[("audio", "video", "joint")[step % 3]].backward()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
    torch.testing.assert_close(list(model.parameters()), list(other.parameters()), rtol=0, atol=0)


def test_a_turn_of_what_is_missing_passes_to_the_next():
    silent = turns(bg.Alternate(NAMES), 3, lambda w: {"joint": w[0], "audio": None, "video": w[2]})
    assert silent == ["video", "video", "joint"]
    alone = turns(bg.Alternate(NAMES), 3, lambda w: {"audio": w[1]})
    assert alone == ["audio"] * 3


def test_masks_and_weights_per_item():
    w = torch.ones(2, requires_grad=True)
    balancer = bg.Alternate(NAMES)
    balancer.item_weights = lambda losses, present: {"video": torch.tensor([1.0, 3.0])}
    losses = {"joint": w.sum(), "audio": w * 2, "video": w * torch.tensor([1.0, 5.0])}
    masks = {"audio": torch.tensor([False, False]), "video": torch.tensor([False, True])}
    balancer(losses, present=masks).backward()  # nobody has audio
    assert torch.equal(w.grad, torch.tensor([0.0, 15.0]))
    balancer.item_weights = None
    with pytest.raises(ValueError, match="all of"):
        balancer({"audio": w * 2}, present=masks)


def test_validation_sees_the_sum_and_moves_nothing():
    balancer, w = bg.Alternate(NAMES), torch.ones(3, requires_grad=True)
    losses = dict(zip(("joint", *NAMES), w.unbind(), strict=True))
    with torch.no_grad():
        assert balancer(losses) == 3
    balancer.eval()(losses)
    assert balancer.turn == "audio"


@pytest.mark.parametrize(
    ("names", "options", "words"),
    [
        ((), {}, "give the names of the uni-modal losses, each once"),
        (("a", "a"), {}, "each once"),
        ("audio", {}, "modalities='audio'"),
        (("joint", "a"), {}, "whose steps are joint="),
        (NAMES, {"period": 0}, "period=0, joint=1: give whole numbers"),
        (NAMES, {"joint": -1}, "joint=-1"),
        (NAMES, {"period": 1.5}, "period=1.5"),
    ],
)
def test_what_is_refused(names, options, words):
    with pytest.raises(ValueError, match=words):
        bg.Alternate(names, **options)


def test_a_loss_without_a_turn_is_refused():
    with pytest.raises(ValueError, match=r"loss 'smell' has no turn; the modalities are"):
        bg.Alternate(NAMES)({"smell": nn.Parameter(torch.ones(())).square()})
