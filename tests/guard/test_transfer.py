"""The ratio itself: against its formula step by step, and what it must do whatever the numbers."""

import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from balanced_grad.guard import Transfer
from balanced_grad.guard._transfer import Track
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
        of_averages = noise * sum(w * w for w in weights) / sum(weights) ** 2
        of_start = sum(jumps[:9]) / max(1, len(jumps[:9])) / 2
        slack = confidence * math.sqrt(of_averages + of_start)
        start = sum(pairs[0]) / 2
        gained = start - train
        judged = gained > slack and n > max(warm_up, 3)
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
        patch.setattr("balanced_grad.host.on_host", lambda *_: False)
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


@pytest.mark.parametrize(("warm_up", "at_most"), [(10, 0.005), (0, 0.03)])
@pytest.mark.parametrize("gain", [0.0, 0.02, 0.05, 0.1, 0.3, 1.3])
@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
def test_noise_alone_takes_nothing_away(gain, warm_up, at_most, scale):
    """Both losses have the same mean at every check; all runs are elements of one tensor."""
    generator = torch.Generator().manual_seed(0)
    known, lowest = Track(*torch.zeros(len(Track._fields), 1000, dtype=torch.float64)), torch.ones(1000)
    for check in range(100):
        mean = 2 - gain * (1 - math.exp(-check / 20))
        train, held_out = torch.randn(2, 1000, generator=generator, dtype=torch.float64)
        known = known.after(scale * (mean + 0.03 * train), scale * (mean + 0.1 * held_out), 0.9)
        lowest = torch.minimum(lowest, known.ratio(0.9, 1.0, warm_up))
    assert (lowest < 0.5).double().mean() <= at_most


@given(st.lists(st.tuples(losses, losses), min_size=1, max_size=3), st.sampled_from([0.0, 0.9]), st.floats(0, 3))
def test_nothing_is_judged_before_the_noise_is_known(pairs, decay, confidence):
    assert watch(pairs, decay, confidence, warm_up=0) == [1.0] * len(pairs)


def test_a_first_batch_that_was_hard_is_not_taken_for_a_gain():
    """Training fell from an unlucky start, and nothing else."""
    pairs = [(2.2, 2.1)] + [(1.98 + 0.1 * (-1) ** i, 2.05 + 0.1 * (-1) ** i) for i in range(9)]
    assert watch(pairs, confidence=1.0) == [1.0] * len(pairs)


@pytest.mark.parametrize("spike", [1e20, 1e200])
def test_a_value_whose_square_is_no_number_changes_nothing(spike, monkeypatch):
    dtype = torch.float32 if spike < 1e30 else torch.float64
    monkeypatch.setattr("balanced_grad.host.on_host", lambda *_: dtype == torch.float64)
    transfer = Transfer(0.9, 1.0, 0)
    for i, (train, held_out) in enumerate(zip(curve(2, 0, 20), curve(2, 3, 20), strict=True)):
        both = torch.tensor([spike if i == 10 else train, held_out], dtype=dtype)
        transfer.observe({"audio": both[0]}, {"audio": both[1]})
    assert transfer.ratios()["audio"] == 0


def carried_over_then_noisy(transfer, checks=60):
    """Held-out losses that fall, stay down, and then swing more and more, as an over-fitting cross-entropy does."""
    seen = []
    for i in range(checks):
        held_out = 2.0 if i <= 5 else 1.0 if i < 40 else 2.5 + 2.7 * (-1) ** i
        transfer.observe(tensors({"joint": 2 * 0.95**i}), tensors({"joint": held_out}))
        seen.append(bool(transfer.generalised("joint")))
    return seen


@pytest.mark.parametrize("on_host", [True, False])
def test_that_a_loss_has_generalised_is_never_forgotten(monkeypatch, on_host):
    monkeypatch.setattr("balanced_grad.host.on_host", lambda *_: on_host)
    transfer = Transfer(0.9, 1.0, 10)
    seen = carried_over_then_noisy(transfer)
    assert seen == sorted(seen)
    assert not any(seen[:6])
    assert seen[39]
    resumed = Transfer(0.9, 1.0, 10)
    resumed.load(transfer.state())
    assert resumed.generalised("joint")
    assert resumed.ratios() == transfer.ratios()


def test_a_loss_that_only_looked_better_once_has_not_generalised():
    transfer = Transfer(0.9, 1.0, 10)
    transfer.observe(tensors({"joint": 2.2}), tensors({"joint": 1.8}))
    assert not transfer.generalised("joint")
    for i in range(20):
        transfer.observe(tensors({"joint": 2.0 + 0.2 * (-1) ** i}), tensors({"joint": 2.0 - 0.2 * (-1) ** i}))
    assert not transfer.generalised("joint")


@pytest.mark.parametrize("lowest", [0.5, 1.9])
def test_a_state_from_when_the_lowest_loss_was_kept_is_read(lowest):
    old = [2.0, 0.5, 1.0, 0.5, 1.0, 0.01, 40.0, lowest]
    for saved in (old, torch.tensor(old)):
        transfer = Transfer(0.9, 1.0, 10)
        transfer.load({"joint": saved})
        assert bool(transfer.generalised("joint")) == (lowest == 0.5)
        assert 0 < transfer.ratios()["joint"] < 1
        transfer.observe(tensors({"joint": 0.5}), tensors({"joint": 1.0}))
        assert len(transfer.state()["joint"]) == len(Track._fields)


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
    monkeypatch.setattr("balanced_grad.host.on_host", lambda *_: False)
    transfer = Transfer(0.9, 1.0, 1)
    with NoHostReads():
        for i in range(4):
            transfer.observe({"audio": torch.tensor(2.0) / (i + 1)}, {"audio": torch.tensor(2.0)})
            ratios = transfer.ratios()
    assert ratios["audio"] < 1
