"""The published family of encoders has the published shape, and every way of timing them runs."""

import sys

import pytest
import torch
from torch import nn

from bench.published import __main__ as cli
from bench.published._models import SEQUENCES, cases
from bench.published._networks import Transformer, resnet18
from bench.published._table import with_interval
from bench.published._timing import interval, median


def parameters(module):
    return sum(p.numel() for p in module.parameters())


def test_resnet18_has_the_parameters_of_the_standard_one():
    assert parameters(resnet18(3, 1000)) == 11_689_512  # as in every published copy of it


@pytest.mark.parametrize("side", [32, 64])
def test_resnet18_halves_five_times(side):
    model = resnet18(3, 7, width=4).eval()
    sizes = []
    for module in model:
        module.register_forward_hook(lambda _, __, out: sizes.append(out.shape[-1]) if out.ndim == 4 else None)
    assert model(torch.randn(2, 3, side, side)).shape == (2, 7)
    assert min(size for size in sizes[:-1]) == side // 32
    assert sum(isinstance(m, nn.Conv2d | nn.Linear) for m in model.modules()) == 18 + 3  # and three projections


def test_transformer_knows_the_order_of_its_tokens():
    torch.manual_seed(0)
    model = Transformer((5, 9), 4, width=8, layers=2).eval()
    x = torch.randn(3, 5, 9)
    assert model(x).shape == (3, 4)
    assert not torch.allclose(model(x), model(x.flip(1)), atol=1e-5)


@pytest.mark.parametrize("name", ["resnet", "transformer"])
def test_width_is_that_of_every_encoder(name):
    small, large = (cases(width=width)[name] for width in (4, 8))
    counts = [parameters(case.network(case.shapes, 10)) for case in (small, large)]
    assert 1.5 < counts[1] / counts[0] < 4.5
    assert "width 8" in large.title


def test_three_sequences():
    case = cases(width=8)["transformer"]
    features = case.network(case.shapes, 10).features(case.data().train.inputs)
    assert [tuple(z.shape[1:]) for z in features] == [(32,)] * len(SEQUENCES)


class TestIntervals:
    def test_it_holds_the_ratio_and_narrows_with_more_rounds(self):
        def width(rounds):
            times = torch.Generator().manual_seed(0)
            own, mimo = (size + torch.rand(rounds, generator=times).numpy() for size in (3, 1))
            low, high = interval(own, mimo)
            assert low <= median(own) / median(mimo) <= high
            return high - low

        assert width(200) < width(20)

    def test_of_itself_it_is_one(self):
        times = torch.rand(20).numpy() - 0.5
        assert interval(times, times) == (1.0, 1.0)

    def test_without_an_upper_end_where_mimo_costs_nothing(self):
        own, mimo = torch.rand(20).numpy() + 5, torch.rand(20).numpy() - 0.5
        low, high = interval(own, mimo)
        assert low > 1
        assert high is None

    @pytest.mark.parametrize(
        ("value", "ends", "shown"),
        [
            (2.0, (1.5, 2.5), "2.00 [1.50, 2.50]"),
            (None, (7.0, None), "> 7.00"),
            (None, (-1.0, None), "-"),
            (1.0, (1.0, 1.0), "1.00"),
        ],
    )
    def test_cells(self, value, ends, shown):
        assert with_interval({"x": value, "x_interval": ends}, "x") == shown


def test_command_with_chosen_methods_on_the_processors_clock(monkeypatch, capsys):
    arguments = ["--dataset", "resnet", "--width", "2", "--rounds", "1", "--clock", "cpu", "--methods", "MMPareto"]
    monkeypatch.setattr(sys, "argv", ["published", *arguments])
    cli.main()
    shown = capsys.readouterr().out
    assert "1 thread, cpu time" in shown
    rows = [line.split(" | ")[0] for line in shown.split("\n\n")[1].splitlines()[2:]]
    assert rows == ["| joint", "| MIMO", "| MMPareto"]
