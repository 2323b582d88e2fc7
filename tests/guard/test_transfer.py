"""The ratio itself: against its formula step by step, and what it must do whatever the numbers."""

import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from balanced_grad.guard import Transfer, _transfer
from tests.conftest import NoHostReads

losses = st.floats(0.1, 10)
bad = st.sampled_from([math.nan, math.inf])


def tensors(values):
    return {name: torch.tensor(value, dtype=torch.float64) for name, value in values.items()}


def watch(pairs, decay=0.9, confidence=1.0, warm_up=0):
    """Ratio of one loss after each of these checks."""
    transfer, seen = Transfer(decay, confidence, warm_up), []
    for train, held_out in pairs:
        transfer.observe(tensors({"audio": train}), tensors({"audio": held_out}))
        seen.append(transfer.ratios()["audio"].item())
    return seen


def by_formula(pairs, decay, confidence, warm_up):
    """From weights that are written out; None where rounding decides whether to judge."""

    def average(values):
        weights = [decay ** (len(values) - 1 - i) for i in range(len(values))]
        return sum(w * v for w, v in zip(weights, values, strict=True)) / sum(weights), weights

    out = []
    for n in range(1, len(pairs) + 1):
        (train, weights), (held_out, _) = (average([p[i] for p in pairs[:n]]) for i in (0, 1))
        jumps = [sum((b[i] - a[i]) ** 2 for i in (0, 1)) / 2 for a, b in itertools.pairwise(pairs[:n])]
        noise = average(jumps)[0] if jumps else 0.0
        slack = confidence * math.sqrt(noise * sum(w * w for w in weights) / sum(weights) ** 2)
        start = sum(pairs[0]) / 2
        gained = start - train
        judged = gained > slack and n > warm_up
        ratio = min(1.0, max(0.0, (start - held_out + slack) / gained)) if judged else 1.0
        out.append(None if abs(gained - slack) < 1e-3 else ratio)
    return out


@given(
    st.lists(st.tuples(losses, losses), min_size=1, max_size=12),
    st.sampled_from([0.0, 0.5, 0.9]),
    st.sampled_from([0.0, 1.0, 2.0]),
    st.sampled_from([0, 3]),
)
def test_the_ratio_is_that_of_its_formula(pairs, decay, confidence, warm_up):
    wanted = by_formula(pairs, decay, confidence, warm_up)
    for found, expected in zip(watch(pairs, decay, confidence, warm_up), wanted, strict=True):
        assert expected is None or found == pytest.approx(expected, abs=1e-4)


@given(st.lists(st.tuples(losses | bad, losses | bad), min_size=1, max_size=12), st.sampled_from([0.0, 0.9]))
def test_on_a_device_the_numbers_are_the_same(pairs, decay):
    with pytest.MonkeyPatch.context() as patch:
        host = watch(pairs, decay, 1.0, 2)
        patch.setattr(_transfer, "on_host", lambda losses: False)
        assert watch(pairs, decay, 1.0, 2) == pytest.approx(host, abs=1e-6)


@given(st.lists(st.tuples(losses, losses), min_size=3, max_size=10))
def test_the_unit_of_the_loss_does_not_matter(pairs):
    scaled = [(1024 * train, 1024 * held_out) for train, held_out in pairs]
    assert watch(scaled) == pytest.approx(watch(pairs), abs=1e-4)


def curve(first, last, steps=60):
    return [last + (first - last) * 0.9**i for i in range(steps)]


def test_what_carries_over_keeps_its_weight_and_what_is_memorised_loses_it():
    train = curve(2.0, 0.0)
    assert watch(zip(train, train, strict=True))[-1] == 1
    assert watch(zip(train, curve(2.0, 1.0), strict=True))[-1] == pytest.approx(0.5, abs=0.05)
    assert watch(zip(train, curve(2.0, 3.0), strict=True))[-1] == 0


def test_a_modality_comes_back():
    pairs = list(zip(curve(2.0, 0.1), curve(2.0, 2.2), strict=True))
    down = watch(pairs)[-1]
    again = watch(pairs + [(0.1, 0.2)] * 40)[-1]
    assert down == 0
    assert again > 0.9


def test_noise_alone_takes_nothing_away():
    generator = torch.Generator().manual_seed(0)
    noise = 0.3 * torch.randn(100, 2, generator=generator, dtype=torch.float64)
    flat = [(2 + a, 2 + b) for a, b in noise.tolist()]
    assert min(watch(flat, confidence=3.0, warm_up=10)) == 1


def test_nothing_is_judged_before_the_warm_up_is_over():
    pairs = list(zip(curve(2.0, 0.0), curve(2.0, 3.0), strict=True))
    seen = watch(pairs, warm_up=7)
    assert seen[:7] == [1.0] * 7
    assert seen[7] < 1


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("side", ["train", "held_out"])
def test_a_check_that_is_not_finite_changes_nothing_for_its_loss(bad, side):
    transfer, other = Transfer(0.9, 1.0, 0), Transfer(0.9, 1.0, 0)
    for i, (train, held_out) in enumerate(zip(curve(2, 0, 9), curve(2, 1, 9), strict=True)):
        given_train, given_held_out = {"audio": train, "video": train}, {"audio": held_out, "video": held_out}
        if i != 5:
            other.observe(tensors({"audio": train}), tensors({"audio": held_out}))
        else:
            (given_train if side == "train" else given_held_out)["audio"] = bad
        transfer.observe(tensors(given_train), tensors(given_held_out))
    assert transfer.ratios()["audio"].item() == pytest.approx(other.ratios()["audio"].item(), abs=1e-6)
    assert transfer.ratios()["video"] != transfer.ratios()["audio"]


def test_losses_may_come_and_go():
    both, alone = Transfer(0.9, 1.0, 0), Transfer(0.9, 1.0, 0)
    for i, (train, held_out) in enumerate(zip(curve(2, 0, 12), curve(2, 1, 12), strict=True)):
        mine = {"audio": (train, held_out)} | ({"video": (2 * train, held_out)} if i % 3 == 0 else {})
        both.observe(*(tensors({name: pair[j] for name, pair in mine.items()}) for j in (0, 1)))
        if i % 3 == 0:
            alone.observe(tensors({"video": 2 * train}), tensors({"video": held_out}))
    assert both.ratios()["video"].item() == pytest.approx(alone.ratios()["video"].item(), abs=1e-6)
    assert both.ratios()["audio"].item() == pytest.approx(watch(zip(curve(2, 0, 12), curve(2, 1, 12), strict=True))[-1])


def test_a_held_out_loss_that_shoots_up_is_no_noise():
    """The slack must not grow with a trend, or the worst harm would go unjudged."""
    little = [0.69 - 0.24 * (1 - 0.95**i) for i in range(60)]
    seen = watch(zip(little, [0.69 + 0.04 * i for i in range(60)], strict=True), warm_up=10)
    assert max(seen[11:]) == 0


def test_nothing_is_read_on_the_host(monkeypatch):
    monkeypatch.setattr(_transfer, "on_host", lambda losses: False)
    transfer = Transfer(0.9, 1.0, 1)
    with NoHostReads():
        for i in range(4):
            transfer.observe({"audio": torch.tensor(2.0) / (i + 1)}, {"audio": torch.tensor(2.0)})
            ratios = transfer.ratios()
    assert ratios["audio"] < 1
