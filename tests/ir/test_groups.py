"""Groups along a dimension are kept by position, and read as a tuple would be."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from morphir.ir.groups import Groups

WRITTEN = st.lists(st.integers(-1, 4)).map(tuple)


@given(WRITTEN)
def test_groups_read_as_the_tuple_that_they_were_made_of(written: tuple[int, ...]) -> None:
    groups = Groups.of(written)
    assert (len(groups), tuple(groups), tuple(groups.as_array())) == (len(written), written, written)
    assert [groups[place] for place in range(len(written))] == list(written)
    assert groups[::-1] == Groups.of(written[::-1])
    for group in range(-1, 6):
        assert (group in groups, groups.count(group)) == (group in written, written.count(group))


@given(WRITTEN)
def test_each_group_lies_where_it_is_written(written: tuple[int, ...]) -> None:
    groups = Groups.of(written)
    for group in range(5):
        assert groups.positions(group).tolist() == [at for at, owner in enumerate(written) if owner == group]
    largest = max(written, default=-1)
    assert groups.fit(largest + 1) and (largest < 0 or not groups.fit(largest))


@given(WRITTEN, WRITTEN)
def test_groups_are_equal_where_the_tuples_are(one: tuple[int, ...], other: tuple[int, ...]) -> None:
    assert (Groups.of(one) == Groups.of(other)) == (one == other)
    assert (Groups.of(one) == other) == (one == other)
    assert hash(Groups.of(one)) == hash(one)


@given(WRITTEN, st.lists(st.integers(0, 3), min_size=5, max_size=5))
def test_copies_add_positions(written: tuple[int, ...], copies: list[int]) -> None:
    assert Groups.of(written).added(copies) == sum(copies[group] - 1 for group in written if group >= 0)


def test_groups_print_as_they_are_made() -> None:
    groups = Groups.of((0, -1, 1))
    assert repr(groups) == "Groups.of((0, -1, 1))"
    with pytest.raises(IndexError):
        groups[3]


@pytest.mark.parametrize(("at", "held"), [([3, 0], [1, 1]), ([0, 0], [0, 1]), ([0, 4], [0, 1]), ([0], [-1])])
def test_positions_out_of_order_or_range_do_not_fit(at: list[int], held: list[int]) -> None:
    assert not Groups(4, np.array(at), np.array(held)).fit(2)
