"""memory: large blocks that are freed and asked for again cost no page faults, and only while that is wanted."""

from __future__ import annotations

import sys

import numpy as np
import pytest

from mimic import memory

resource = pytest.importorskip("resource")
BLOCK_BYTES, TIMES = 8 << 20, 20


def faults() -> int:
    """Page faults of making the same large arrays again and again."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(TIMES):
        blocks = [np.ones(BLOCK_BYTES, np.uint8) for _ in range(3)]
        del blocks
    return int(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)


@pytest.mark.skipif(not sys.platform.startswith("linux") or memory._glibc() is None, reason="glibc only")
def test_freed_memory_is_used_again() -> None:
    without = faults()
    with memory.kept():
        faults()
        kept = faults()
    assert kept < TIMES * 3 * BLOCK_BYTES / 4096 / 10, "huge pages or not, they are not asked for anew"
    assert kept <= without
    with memory.kept(), memory.kept():
        pass


def test_elsewhere_nothing_is_done(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "_glibc", lambda: None)
    with memory.kept():
        assert np.ones(3).sum() == 3
