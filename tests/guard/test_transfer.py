"""The ratio itself: against its formula step by step, and what it must do whatever the numbers."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from balanced_grad.guard import Transfer
from tests.conftest import NoHostReads

losses = st.floats(0.1, 10)


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
    """In plain floats, from weights that are written out; None where rounding decides whether to judge."""
    out, deviations = [], []
    for n in range(1, len(pairs) + 1):
        weights = [decay ** (n - 1 - i) for i in range(n)]
        total = sum(weights)
        train, held_out = (sum(w * p[i] for w, p in zip(weights, pairs, strict=False)) / total for i in (0, 1))
        if n > 1:
            before = [decay ** (n - 2 - i) for i in range(n - 1)]
            means = [sum(w * p[i] for w, p in zip(before, pairs, strict=False)) / sum(before) for i in (0, 1)]
            deviations.append(sum((pairs[n - 1][i] - means[i]) ** 2 for i in (0, 1)))
        late = [decay ** (len(deviations) - 1 - i) for i in range(len(deviations))]
        noise = sum(w * d for w, d in zip(late, deviations, strict=True)) / sum(late) if deviations else 0.0
        slack = confidence * math.sqrt(noise * sum(w * w for w in weights) / total**2)
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
        assert expected is None or found == pytest.approx(expected, abs=0.02)


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


def test_nothing_is_read_on_the_host():
    transfer = Transfer(0.9, 1.0, 1)
    with NoHostReads():
        for i in range(4):
            transfer.observe({"audio": torch.tensor(2.0) / (i + 1)}, {"audio": torch.tensor(2.0)})
            ratios = transfer.ratios()
    assert ratios["audio"] < 1
