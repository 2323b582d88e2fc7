"""The claims of the method on real images, at a smaller size than the tables; and the bench on real data runs."""

import os
from dataclasses import replace

import pytest

pytest.importorskip("sklearn", reason="pip install 'balanced-grad[demo]'")

from bench import cross_modal, cross_modal_missing
from bench.cross_modal import LEFT, RIGHT, Model


@pytest.fixture(scope="module")
def halves():
    """Scores of networks trained with 0 and 5 steps, and of the latter tested with 0."""
    data = replace(cross_modal.digits(0), hidden=100, epochs=150)
    none, five = (cross_modal.train(Model(f"VI, K={k}", steps=k), data, seed=0) for k in (0, 5))
    return {
        "0": cross_modal.evaluate(none, data, 0),
        "5": cross_modal.evaluate(five, data, 5),
        "5, tested with 0": cross_modal.evaluate(five, data, 0),
    }


class TestHalvesOfDigits:
    @pytest.mark.parametrize("half", [LEFT, RIGHT])
    def test_steps_help_to_predict_a_half_and_to_do_without_it(self, halves, half):
        assert halves["5"][f"ce {half}"] < halves["0"][f"ce {half}"] - 0.2
        assert halves["5"][half] < halves["0"][half] - 5

    def test_nothing_is_lost_where_both_are_there(self, halves):
        assert halves["5"]["both"] < halves["0"]["both"] + 1.5
        assert halves["5"]["both"] < 6

    def test_a_network_is_tested_with_the_steps_it_was_trained_with(self, halves):
        for half in (LEFT, RIGHT):
            assert halves["5, tested with 0"][half] > halves["5"][half] + 10


@pytest.mark.skipif("BALANCED_GRAD_DATA" not in os.environ, reason="needs real data: set BALANCED_GRAD_DATA")
@pytest.mark.parametrize("name", ["wiki", "mosi"])
def test_missing_modality_bench(name):
    data = cross_modal_missing.load(name)
    for method in (cross_modal_missing.METHODS[0], cross_modal_missing.METHODS[-2]):
        scores = cross_modal_missing.train(data, method, seed=0, epochs=1)
        assert {"all", *(f"without {m}" for m in data.shapes)} <= set(scores)
        assert all(0 < scores[key] < 100 for key in scores if not key.startswith("nll"))
