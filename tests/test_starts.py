"""How often a JVM is started: once for many slides, never for a picture, again only after a death."""

from __future__ import annotations

import os
import signal
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mimic.convert import convert
from mimic.errors import ToolFailed
from mimic.model import Options, Request, Slide
from mimic.probe import probe
from mimic.programs import bfclient
from mimic.settings import load

PLAIN = Options(source="bioformats", overwrite=True)


@pytest.fixture(autouse=True)
def starts(jvm_starts: list[int]) -> list[int]:
    return jvm_starts


@pytest.mark.parametrize("threads", [1, 3])
def test_one_for_probe_pixels_and_proof(sample_czi: Path, tmp_path: Path, starts: list[int], threads: int) -> None:
    options = replace(PLAIN, threads=threads, verify="full")
    done = convert(Request(sample_czi, tmp_path / "a.svs", options), load())
    assert done.status == "converted" and starts == [threads]


def test_one_for_slide_after_slide(sample_czi: Path, tmp_path: Path, starts: list[int]) -> None:
    for number in range(2):
        assert convert(Request(sample_czi, tmp_path / f"{number}.svs", PLAIN), load()).status == "converted"
    assert starts == [bfclient.cores()]


def test_none_for_a_picture(tmp_path: Path, starts: list[int]) -> None:
    picture = tmp_path / "a.png"
    Image.fromarray(np.random.default_rng(1).integers(0, 255, (300, 400, 3)).astype(np.uint8)).save(picture)
    done = convert(Request(picture, tmp_path / "a.svs", Options(mpp_um=0.5)), load())
    assert done.status == "converted" and starts == []


def test_many_probes_at_once_share_one(sample_czi: Path, starts: list[int]) -> None:
    def one(_: int) -> Slide:
        return probe(sample_czi, load(), source="bioformats")

    with ThreadPoolExecutor(4) as pool:
        assert len({slide.format for slide in pool.map(one, range(8))}) == 1
    assert starts == [bfclient.cores()]


@pytest.mark.skipif(sys.platform == "win32", reason="signals")
def test_a_slide_that_kills_its_child_costs_itself_alone(
    sample_czi: Path, tmp_path: Path, starts: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert convert(Request(sample_czi, tmp_path / "0.svs", PLAIN), load()).status == "converted"
    plain = bfclient.Server.ask

    def ask(self: bfclient.Server, op: str, path: Path | None = None, **request: Any) -> bfclient.Answer:
        if op == "read":
            os.kill(self.pid, signal.SIGKILL)
        return plain(self, op, path, **request)

    with monkeypatch.context() as deadly, pytest.raises(ToolFailed, match="killed from outside"):
        deadly.setattr(bfclient.Server, "ask", ask)
        convert(Request(sample_czi, tmp_path / "1.svs", PLAIN), load())
    assert convert(Request(sample_czi, tmp_path / "2.svs", PLAIN), load()).status == "converted"
    assert len(starts) == 2 and sorted(path.name for path in tmp_path.glob("*.svs")) == ["0.svs", "2.svs"]
