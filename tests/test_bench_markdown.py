"""Tables of benchmarks: as wide as a page, whatever is measured."""

import pytest

from bench._markdown import MOST, header, markdown, narrow, row


def parts(table):
    return [[line.strip("| ").split(" | ") for line in part.splitlines()] for part in table.split("\n\n")]


@pytest.mark.parametrize("values", [1, 5, 6, 7, 10, 11, 12, 23])
def test_every_number_is_there_once_beside_its_row_and_under_its_column(values):
    columns = [f"c{i}" for i in range(values)]
    rows = {name: [f"{name}{i}" for i in range(values)] for name in "ab"}
    found = parts(markdown("corner", columns, rows))
    assert all(len(line) <= MOST for part in found for line in part)
    assert {len({len(line) for line in part}) for part in found} == {1}
    assert {part[0][0] for part in found} == {"corner"}
    assert [title for part in found for title in part[0][1:]] == columns
    for place, name in enumerate("ab", 2):
        assert {part[place][0] for part in found} == {name}
        assert [cell for part in found for cell in part[place][1:]] == rows[name]
    sizes = [len(part[0]) for part in found]
    assert max(sizes) - min(sizes) <= 1
    assert len(sizes) == -(-values // (MOST - 1))


def test_a_row_without_a_number_in_a_part_is_left_out_there():
    table = "\n".join([header("a", *"bcdefg"), row("full", *range(6)), row("half", 1, "", "", "", "", "")])
    first, second = parts(narrow(table))
    assert [line[0] for line in first[2:]] == ["full", "half"]
    assert [line[0] for line in second[2:]] == ["full"]


def test_what_is_narrow_enough_stays_as_it_is():
    table = header("a", "b") + "\n" + row("", "")
    assert narrow(table) == table
