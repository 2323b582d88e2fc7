import importlib

import pytest

import balanced_grad as bg
from balanced_grad import evidence, labels, modulation

HOMES = [
    ("methods", "BOGC", evidence),
    ("methods", "Task", labels),
    *(("methods", name, modulation) for name in ("AGM", "DGL", "MLB", "OGM", "TaskScores", "score", "scores")),
    ("optim", "ModalityGroups", modulation),
]


@pytest.mark.parametrize(("room", "name", "home"), HOMES, ids=[f"{room}.{name}" for room, name, _ in HOMES])
def test_the_old_place_still_gives_the_same_object_and_says_where_it_is_now(room, name, home):
    old = importlib.import_module(f"{bg.__name__}.{room}")
    with pytest.warns(DeprecationWarning, match=f"{room}.{name} is {home.__name__}.{name} since") as record:
        assert getattr(old, name) is getattr(home, name)
    assert record[0].filename == __file__


def test_a_name_that_never_was_is_an_attribute_error():
    with pytest.raises(AttributeError, match=r"balanced_grad\.methods.* has no attribute .Median."):
        _ = bg.methods.Median
