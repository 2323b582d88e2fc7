"""What must hold exactly: sums, zeros, and the loops written out."""

from itertools import product

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.functional import cross_entropy

import balanced_grad as bg
from balanced_grad.diagnosis._absence import Permuted
from balanced_grad.diagnosis._additive import grid_size, projected
from balanced_grad.diagnosis._items import gather
from balanced_grad.diagnosis._network import network
from balanced_grad.diagnosis._progress import Progress
from balanced_grad.diagnosis._subsets import Game

NAMES = ("a", "b", "c", "d", "e", "f", "g")


class Fused(nn.Module):
    """Reads all modalities but those named, with interactions or without."""

    def __init__(self, names, unread=(), additive=False):
        super().__init__()
        self.read = [name for name in names if name not in unread]
        self.additive = additive
        self.encoders = nn.ModuleDict({name: nn.Linear(2, 3) for name in self.read})
        self.head = nn.Linear(3 * len(self.read), 3)

    def forward(self, inputs):
        z = [self.encoders[name](inputs[name]).tanh() for name in self.read]
        out = self.head(torch.cat(z, 1))
        return out if self.additive else out + 2 * torch.stack(z).prod(0)


def make(names, count, seed=0, dtype=torch.float64, **options):
    torch.manual_seed(seed)
    model = Fused(names, **options).to(dtype)
    x = {name: torch.randn(count, 2, dtype=dtype) for name in names}
    y = torch.arange(count) % 3
    return model, x, y


def loader(x, y, size=5):
    return [({name: v[i : i + size] for name, v in x.items()}, y[i : i + size]) for i in range(0, len(y), size)]


def prepared(model, x, y):
    items = gather(loader(x, y), None, "labels", None, "classification")
    return items, network(model, None, items, None, Progress(False))


@torch.no_grad()
def looped(model, x, y, subset):
    """The risk with a subset, one item and one donor per absent modality at a time."""
    absent = [name for name in x if name not in subset]
    total, count = 0.0, 0
    for i, *donors in product(range(len(y)), repeat=1 + len(absent)):
        rows = dict.fromkeys(x, i) | dict(zip(absent, donors, strict=True))
        logits = model({name: x[name][row : row + 1] for name, row in rows.items()})
        total, count = total + cross_entropy(logits, y[i : i + 1]).item(), count + 1
    return total / count


@pytest.mark.parametrize(("names", "count"), [(("a", "b"), 7), (("a", "b", "c"), 5)])
def test_every_subset_is_the_loop_over_all_donors(names, count):
    model, x, y = make(names, count)
    items, net = prepared(model, x, y)
    shifts = np.array(list(product(range(count), repeat=len(names))))
    with net.ready():
        game = Game(net, items, "classification", Permuted(np.random.default_rng(0).permutation(count), shifts, names))
        for chosen in product([False, True], repeat=len(names)):
            subset = tuple(name for name, there in zip(names, chosen, strict=True) if there)
            assert game.measure(subset).losses[0].mean() == pytest.approx(looped(model, x, y, subset), abs=1e-12)


def test_draws_are_never_an_items_own_and_each_item_gives_once_per_draw():
    items, _ = prepared(*make(NAMES[:3], 11))
    rule = Permuted.drawn(items, 50, np.random.default_rng(0))
    assert rule.draws == 10
    for name in items.modalities:
        donors = np.stack([rule.donors(name, draw) for draw in range(rule.draws)])
        assert (np.sort(donors, 1) == np.arange(11)).all()
        assert (np.sort(donors, 0)[:, 0] == np.delete(np.arange(11), 0)).all()  # everyone else, once


@settings(max_examples=10, deadline=None)
@given(st.integers(1, 4), st.integers(0, 99), st.sampled_from([torch.float32, torch.float64]))
def test_shapley_values_add_up(count, seed, dtype):
    names = NAMES[:count]
    model, x, y = make(names, 20, seed, dtype)
    report = bg.diagnose(model, loader(x, y), draws=3, seed=seed, resamples=100, progress=False)
    gain = report.subset([]).risk.value - report.subset(names).risk.value
    assert sum(each.shapley.value for each in report.contributions.values()) == pytest.approx(gain, abs=1e-9)
    accuracy = report.subset(names).accuracy.value - report.subset([]).accuracy.value
    assert sum(each.points.value for each in report.contributions.values()) == pytest.approx(accuracy, abs=1e-9)


def test_shapley_values_of_sampled_orders_add_up_too():
    model, x, y = make(NAMES, 20)
    report = bg.diagnose(model, loader(x, y), draws=2, resamples=100, additive_items=0, progress=False)
    gain = report.subset([]).risk.value - report.subset(NAMES).risk.value
    assert sum(each.shapley.value for each in report.contributions.values()) == pytest.approx(gain, abs=1e-9)
    assert report.settings["orders"] == 16
    assert len(report.subsets) < 2 ** len(NAMES)
    assert all(report[name].shapley.high > report[name].shapley.low for name in NAMES)


@settings(max_examples=15, deadline=None)
@given(st.integers(2, 4), st.integers(0, 99), st.sampled_from(["permute", "zero", "mean"]), st.booleans())
def test_a_modality_that_is_not_read_is_worth_exactly_nothing(count, seed, absent, double):
    names = NAMES[:count]
    model, x, y = make(names, 20, seed, torch.float64 if double else torch.float32, unread=["b"])
    report = bg.diagnose(model, loader(x, y), absent=absent, draws=5, seed=seed, resamples=100, progress=False)
    found = report["b"]
    numbers = [found.shapley, found.first, found.last, found.points]
    assert all((each.value, each.low, each.high) == (0, 0, 0) for each in numbers)
    assert (found.verdict, found.moved) == ("ignored", 0.0)


@pytest.mark.parametrize(("count", "items"), [(2, 20), (3, 19), (4, 19)])
def test_an_additive_model_is_its_own_projection(count, items):
    model, x, y = make(NAMES[:count], items, additive=True)
    found, net = prepared(model, x, y)
    with net.ready():
        original, additive = projected(net, found)
    torch.testing.assert_close(additive, original, rtol=0, atol=1e-12)
    report = bg.diagnose(model, loader(x, y), draws=2, resamples=100, progress=False)
    assert report.additive.points.value == 0
    assert report.additive.risk.value == pytest.approx(0, abs=1e-12)


@torch.no_grad()
def test_the_projection_of_two_is_the_double_sum():
    model, x, y = make(("a", "b"), 8)
    items, net = prepared(model, x, y)
    with net.ready():
        original, additive = projected(net, items)
    grid = torch.stack([model({"a": x["a"][i].expand(8, 2), "b": x["b"]}) for i in range(8)])
    torch.testing.assert_close(original, grid.diagonal().T)
    torch.testing.assert_close(additive, grid.mean(1) + grid.mean(0) - grid.mean((0, 1)))


@torch.no_grad()
def test_the_projection_of_three_leaves_out_what_two_do_together():
    model, x, y = make(("a", "b", "c"), 7)
    pair = model.head.in_features  # any network of a and b, on top of an additive one of all three
    inner = Fused(("a", "b")).double()
    additive_part = Fused(("a", "b", "c"), additive=True).double()
    items, net = prepared(lambda inputs: inner(inputs) + additive_part(inputs), x, y)
    with net.ready():
        _, found = projected(net, items)
    grid = torch.stack([inner({"a": x["a"][i].expand(7, 2), "b": x["b"]}) for i in range(7)])
    wanted = grid.mean(1) + grid.mean(0) - grid.mean((0, 1)) + additive_part(x)
    # c meets only some pairs of a and b, so its effect takes some of theirs: zero on average over its items
    rest = found - wanted
    assert pair == 9
    torch.testing.assert_close(rest.mean(0), torch.zeros(3, dtype=torch.float64), rtol=0, atol=1e-12)


def test_the_grid_has_a_prime_side_where_there_are_three():
    assert [grid_size(2, 600, 250), grid_size(3, 600, 251), grid_size(3, 600, 250), grid_size(3, 20, 251)] == [
        250, 251, 241, 19,
    ]  # fmt: skip
    assert grid_size(1, 600, 251) == grid_size(2, 600, 0) == grid_size(6, 7, 251) - 7 == 0


def test_one_seed_gives_one_report_and_the_whole_interval_follows_the_items():
    model, x, y = make(("a", "b"), 40)
    first, again, other = (
        bg.diagnose(model, loader(x, y), draws=4, seed=seed, resamples=200, progress=False) for seed in (1, 1, 2)
    )
    assert first == again
    assert first != other
    assert first.subset(["a", "b"]) == other.subset(["a", "b"])  # nothing is drawn for it


@pytest.mark.parametrize("count", [2, 3])
def test_curves_begin_with_everything_and_end_with_nothing_or_without_one(count):
    names = NAMES[:count]
    model, x, y = make(names, 30)
    report = bg.diagnose(model, loader(x, y), draws=3, resamples=100, additive_items=0, progress=False)
    curves = report.robustness
    full, none = report.subset(names).accuracy, report.subset([]).accuracy
    assert (curves.random[0].value, curves.random[-1].value) == pytest.approx((full.value, none.value))
    for name in names:
        rest = report.subset([other for other in names if other != name]).accuracy
        values = [each.value for each in curves.without[name]]
        assert (values[0], values[-1]) == pytest.approx((full.value, rest.value))
        assert values[5] == pytest.approx((values[0] + values[-1]) / 2)
    half = np.mean([report.subset(subset).accuracy.value for subset in report.subsets])  # all are equally likely
    assert curves.random[5].value == pytest.approx(half)


def test_the_product_of_heads_of_what_is_there():
    torch.manual_seed(0)
    x = {name: torch.randn(200, 1) for name in ("a", "b")}
    y = (x["a"][:, 0] > 0).long()

    def model(a, b):
        heads = {"a": torch.cat([-a, a], 1), "b": torch.cat([-b, b], 1)}
        return {"joint": heads["a"] + heads["b"]} | heads

    curve = bg.diagnose(model, [(x, y)], draws=2, resamples=100, progress=False).robustness.heads
    assert curve[0].value > 95  # b's head gets no weight
    none, only_b = 50, 50
    assert curve[5].value == pytest.approx((2 * curve[0].value + none + only_b) / 4, abs=6)
    assert bg.diagnose(lambda a, b: model(a, b)["joint"], [(x, y)], progress=False).robustness.heads is None
