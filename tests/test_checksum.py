"""CRC-32 against Python's own."""

from __future__ import annotations

import zlib
from collections.abc import Iterator

import imagecodecs
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mimic import checksum


@pytest.fixture(params=[True, False], ids=["libdeflate", "without"])
def built(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(imagecodecs.DEFLATE, "available", request.param)
    checksum._function.cache_clear()
    yield
    checksum._function.cache_clear()


@given(data=st.binary(max_size=300), at=st.integers(0, 300))
def test_it_is_zlibs_in_one_piece_or_two(data: bytes, at: int) -> None:
    assert checksum.crc32(data) == zlib.crc32(data)
    assert checksum.crc32(data[at:], checksum.crc32(data[:at])) == zlib.crc32(data)


@pytest.mark.usefixtures("built")
def test_any_contiguous_buffer_is_taken() -> None:
    data = bytes(range(256)) * 100
    for buffer in (data, bytearray(data), memoryview(data)[16:], np.frombuffer(data, np.uint8)):
        assert checksum.crc32(buffer) == zlib.crc32(bytes(buffer))
        assert checksum.crc32(buffer, 2**32 - 1) == zlib.crc32(bytes(buffer), 2**32 - 1)
    assert checksum.crc32(b"") == 0
