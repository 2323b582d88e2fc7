"""A guard on two processes: the same factors on both, those of the mean losses."""

import pytest
import torch
from torch import nn

import balanced_grad as bg

TRAIN = [(2.0, 2.2), (1.5, 1.3), (1.0, 0.6), (0.5, 0.4), (0.2, 0.2)]  # per step, by process
HELD_OUT = [(2.0, 2.0), (1.8, 2.0), (1.7, 1.9), (1.9, 1.6), (2.0, 1.4)]


def guarded(train, held_out, video):
    w = nn.Parameter(torch.ones(2))
    guard = bg.HeldOut(bg.Uniform(), every=1, warm_up=0)
    for mine, theirs, extra in zip(train, held_out, video, strict=True):
        guard({"audio": w[0] * mine} | ({"video": w[1] * mine} if extra else {})).backward()
        guard.observe({"audio": torch.tensor(theirs)} | ({"video": torch.tensor(theirs)} if extra else {}))
    return {name: factor.item() for name, factor in guard.factors.items()}


def on_rank(rank):
    return guarded([x[rank] for x in TRAIN], [x[rank] for x in HELD_OUT], [rank == 1 or i != 2 for i in range(5)])


def wrong_shape(rank):
    w = nn.Parameter(torch.ones(2))
    guard = bg.HeldOut(bg.Uniform(), every=1)
    guard({"audio": w.sum()}).backward()
    try:
        guard.observe({"audio": w.outer(w)} if rank == 0 else {"audio": w.sum()})
    except (TypeError, ValueError, RuntimeError) as error:
        return str(error)
    return ""


def test_both_get_the_factors_of_the_mean_losses(pair):
    first, second = pair(on_rank)
    assert first == second
    alone = guarded([sum(x) / 2 for x in TRAIN], [sum(x) / 2 for x in HELD_OUT], [True] * 5)
    assert first["audio"] == pytest.approx(alone["audio"], abs=1e-5)
    assert 0 < first["audio"] < 1


def test_where_one_fails_the_other_stops(pair):
    first, second = pair(wrong_shape)
    assert "shape" in first
    assert "process 0 failed" in second
