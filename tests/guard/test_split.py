import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import DataLoader, TensorDataset

import balanced_grad as bg


@given(st.integers(2, 60), st.floats(0.05, 0.6), st.integers(0, 3))
def test_every_item_is_on_one_side(count, fraction, seed):
    training, held = bg.hold_out(list(range(count)), fraction, seed=seed)
    assert sorted([*training, *held]) == list(range(count))
    assert len(held) == max(1, int(fraction * count))
    assert list(training.indices) == sorted(training.indices)


@given(st.lists(st.sampled_from("abcdefgh"), min_size=12, max_size=40), st.integers(0, 3))
def test_a_group_stays_together(groups, seed):
    if len(set(groups)) < 2:
        return
    training, held = bg.hold_out(groups, 0.3, groups=groups, seed=seed)
    assert not set(training) & set(held)
    largest = max(map(groups.count, set(groups)))
    assert len(held) <= max(0.3 * len(groups), largest)


def test_the_seed_decides_and_global_generators_rest():
    state = torch.random.get_rng_state()
    first, again, other = (bg.hold_out(list(range(50)), seed=seed)[1].indices for seed in (0, 0, 1))
    assert first == again != other
    assert torch.equal(state, torch.random.get_rng_state())


def test_a_data_set_of_torch():
    training, held = bg.hold_out(TensorDataset(torch.arange(20.0)), 0.25)
    assert (len(training), len(held)) == (15, 5)
    assert next(iter(DataLoader(held, batch_size=5)))[0].shape == (5,)


@pytest.mark.parametrize(
    ("items", "options", "says"),
    [
        ([1, 2, 3], {"fraction": 0.0}, "fraction=0.0"),
        ([1, 2, 3], {"fraction": 1}, "fraction=1"),
        ([1, 2, 3], {"groups": "ab"}, "2 labels for 3 items"),
        ([1, 2, 3], {"groups": "aaa"}, "1 groups cannot be split"),
        ([1], {}, "1 items cannot be split"),
    ],
)
def test_what_is_refused(items, options, says):
    with pytest.raises(ValueError, match=says):
        bg.hold_out(items, **options)


def test_endless_shuffles_anew_and_refuses_what_is_empty():
    loader = DataLoader(range(64), batch_size=32, shuffle=True)
    batches = bg.endless(loader)
    first, second = (torch.cat([next(batches), next(batches)]) for _ in range(2))
    assert sorted(first.tolist()) == sorted(second.tolist()) == list(range(64))
    assert first.tolist() != second.tolist()
    with pytest.raises(ValueError, match="no batch"):
        next(bg.endless([]))
    once = bg.endless(iter([1]))
    assert next(once) == 1
    with pytest.raises(ValueError, match="run out"):
        next(once)
