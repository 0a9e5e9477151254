"""Pixels of one colour are found, and none else."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mimic import uniform


@given(
    shape=st.tuples(st.integers(1, 20), st.integers(1, 20)),
    colour=st.tuples(*[st.integers(0, 255)] * 3),
    spoilt=st.none() | st.tuples(st.integers(0, 19), st.integers(0, 19), st.integers(0, 2)),
)
def test_one_colour_is_found_and_one_other_sample_seen(
    shape: tuple[int, int], colour: tuple[int, int, int], spoilt: tuple[int, int, int] | None
) -> None:
    whole = np.zeros((25, 25, 3), np.uint8)
    pixels = whole[2 : 2 + shape[0], 3 : 3 + shape[1]]
    pixels[:] = colour
    if spoilt is not None:
        pixels[spoilt[0] % shape[0], spoilt[1] % shape[1], spoilt[2]] ^= 1
    got = uniform.found(pixels)
    assert np.array_equal(got, pixels)
    assert uniform.is_uniform(got) == (spoilt is None or shape == (1, 1))


def test_what_is_found_is_independent_and_read_only() -> None:
    pixels = np.full((8, 8, 3), 7, np.uint8)
    got = uniform.found(pixels)
    pixels[:] = 9
    assert (got == 7).all() and not np.shares_memory(got, pixels)
    with pytest.raises(ValueError, match="read-only"):
        got[0, 0] = 1


def test_one_pixel_over_and_over_is_taken_as_it_is() -> None:
    blank = np.broadcast_to(np.uint8([1, 2, 3]), (9, 9, 3))
    assert uniform.found(blank) is blank
    assert uniform.is_uniform(blank[2:, 3:]) and not uniform.is_uniform(blank.copy())
    empty = np.zeros((0, 4, 3), np.uint8)
    assert uniform.found(empty) is empty


def test_it_is_written_out_to_be_changed() -> None:
    blank = np.broadcast_to(np.uint8([1, 2, 3]), (9, 7, 3))
    whole = uniform.written_out(blank)
    assert np.array_equal(whole, blank) and whole.flags.c_contiguous and whole.flags.writeable
    whole[:] = 9
    assert blank[0, 0].tolist() == [1, 2, 3]
    assert uniform.written_out(whole) is whole
