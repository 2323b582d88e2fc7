"""From where on does a modality help? Crossing points of known curves, and a curve that has one."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch

pytest.importorskip("sklearn", reason="heads are scikit-learn's; pip install 'balanced-grad[demo]'")

from balanced_grad.diagnostics import LatentQuality, SampleSizeCurve, sample_size_curve
from balanced_grad.diagnostics._experiment import Outcome
from balanced_grad.diagnostics._latent import Latent

SETTINGS = {"train_items": 1, "resamples": 200, "confidence": 0.95, "tolerance": 0.0}


def curve(gaps):
    """A curve whose gap between a+b and a is known."""

    def report(gap):
        risks = {(): 9.0, ("a",): 1.0, ("a", "b"): 1.0 + gap}
        runs = {key: Outcome(np.full(5, risk), None, penalty=1.0, width=1) for key, risk in risks.items()}
        return LatentQuality(("a", "b"), {key: Latent.of(key, [run]) for key, run in runs.items()}, 0.0, SETTINGS)

    return SampleSizeCurve({items: report(gap) for items, gap in gaps.items()})


@pytest.mark.parametrize(
    ("gaps", "expected"),
    [
        ({10: 1.0, 1000: -1.0}, 100.0),  # half way in the logarithm
        ({10: 3.0, 1000: -1.0}, 10 ** (1 + 2 * 0.75)),
        ({10: -1.0, 100: 1.0, 10_000: -1.0}, 1000.0),  # the last crossing counts
        ({10: -1.0, 100: -2.0}, 10.0),
        ({10: 1.0, 100: 0.5}, math.inf),
        ({10: -1.0, 100: 0.0}, math.inf),
    ],
)
def test_crossing(gaps, expected):
    assert curve(gaps).crossing(["a", "b"], "a") == pytest.approx(expected)


def test_few_items_favour_fewer_modalities(tmp_path):
    """Least squares on N items pays 1 + d/(N - d - 1): forty more weights are worth their price from some N on."""
    generator = torch.Generator().manual_seed(0)

    def draw(items):
        x = {name: torch.randn(items, 40, generator=generator, dtype=torch.double) for name in ("a", "b")}
        noise = torch.randn(items, generator=generator)
        return x, x["a"].sum(1) + 0.25 * x["b"].sum(1) + 2 * noise

    class Model:
        def __init__(self, weight):
            self.weight = weight

        def encode(self, inputs):
            return torch.cat(list(inputs.values()), 1) @ self.weight

    def train(inputs, targets, seed):
        return Model(torch.linalg.lstsq(torch.cat(list(inputs.values()), 1), targets[:, None]).solution)

    result = sample_size_curve(
        train, draw(1500), draw(1000), fractions=[1.0, 0.09], subsets=[["a", "b"], ["a"]], progress=False, seeds=3
    )
    assert list(result.reports) == [90, 1000]
    few, many = result.gaps(("a", "b"), "a").values()
    assert min(few.seeds) > 0
    assert many.verdict == "helps"
    assert 90 < result.crossing(["a", "b"], "a") < 1000
    assert set(result.to_dict()) == {"90", "1000"}
    assert "a+b" in str(result)
    pytest.importorskip("matplotlib")
    result.plot(tmp_path / "curve.png")
    assert (tmp_path / "curve.png").read_bytes().startswith(b"\x89PNG")


def test_by_default_a_thousandth_a_hundredth_a_tenth_and_all():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(3000, 2, generator=generator, dtype=torch.double)
    model = SimpleNamespace(encode=lambda inputs: inputs["a"])
    pair = {"a": x}, x.sum(1)
    curve = sample_size_curve(lambda inputs, targets, seed: model, pair, pair, seeds=1, progress=False)
    assert list(curve.reports) == [2, 20, 200, 2000]


def test_sizes_that_do_not_differ_are_refused():
    x = {"a": torch.randn(30, 1)}
    train = lambda inputs, targets, seed: type("Model", (), {"encode": lambda self, inputs: inputs["a"]})()  # noqa: E731
    items = (x, x["a"][:, 0])
    with pytest.raises(ValueError, match="the same number of items"):
        sample_size_curve(train, items, items, fractions=[0.5, 0.51], progress=False)
    with pytest.raises(ValueError, match="fractions is empty"):
        sample_size_curve(train, items, items, fractions=[])
