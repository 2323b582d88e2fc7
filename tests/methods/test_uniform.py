import math

import pytest
import torch

import balanced_grad as bg


def losses():
    leaf = torch.ones((), requires_grad=True)
    return {"joint": leaf, "audio": 2 * leaf, "video": 3 * leaf}


def test_is_the_plain_sum():
    assert bg.Uniform()(losses()).item() == 6.0


def test_fixed_weights_follow_the_names_not_the_order():
    balancer = bg.Uniform({"video": 0.5, "audio": 4.0})
    assert balancer(losses()).item() == 1 + 8 + 1.5
    assert balancer.last.weights.tolist() == [1.0, 4.0, 0.5]


def test_a_loss_without_a_weight_is_named():
    with pytest.raises(ValueError, match=r"loss 'video' has no entry in weights=.*\['joint', 'audio', 'video'\]"):
        bg.Uniform({"audio": 1.0, "vidoe": 1.0})(losses())


@pytest.mark.parametrize("weight", [-1.0, math.nan, math.inf])
def test_bad_weights(weight):
    with pytest.raises(ValueError, match=r"weights\['audio'\]"):
        bg.Uniform({"audio": weight})


def test_supports_double_backward():
    x = torch.tensor(3.0, requires_grad=True)
    (first,) = torch.autograd.grad(bg.Uniform({"audio": 2.0})({"audio": x**3}), x, create_graph=True)
    (second,) = torch.autograd.grad(first, x)
    assert (first.item(), second.item()) == (54.0, 36.0)
