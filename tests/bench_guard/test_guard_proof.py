import pytest

from balanced_grad.demo._data import DemoError
from bench.guard._proof import proof
from tests.bench_accuracy.conftest import complete, study


def test_a_row_per_method(tmp_path):
    complete(study(tmp_path, "noise", epochs=1), ["joint", "uniform", "uniform, guarded"])
    about, *tables = proof(tmp_path).split("\n\n")
    assert about.startswith("noise, 1 epochs, 1 seeds")
    for table in tables:
        rows = [line.split(" | ")[0] for line in table.splitlines()[2:]]
        assert rows == ["| joint", "| uniform", "| uniform, guarded"]
    assert tables[-1].endswith("| 1.00 | 1.00 | 1.00 |")


def test_nothing_to_prove(tmp_path):
    with pytest.raises(DemoError, match="no runs"):
        proof(tmp_path)
