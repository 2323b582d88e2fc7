import pytest

from balanced_grad.demo._data import DemoError
from bench.guard._proof import proof
from tests.bench_accuracy.conftest import complete, study


def test_a_row_per_method(tmp_path):
    complete(study(tmp_path, "noise", epochs=1), ["joint", "uniform", "uniform, guarded"])
    text = proof(tmp_path)
    assert "noise, 1 epochs, 1 seeds" in text
    assert [line.split(" | ")[0] for line in text.splitlines()[4:]] == ["| joint", "| uniform", "| uniform, guarded"]
    assert text.splitlines()[-1].endswith("| 1.00 | 1.00 | 1.00 |")


def test_nothing_to_prove(tmp_path):
    with pytest.raises(DemoError, match="no runs"):
        proof(tmp_path)
