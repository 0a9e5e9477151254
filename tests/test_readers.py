"""What mimic wrote, opened with every reader that installs from PyPI or Debian.

With MIMIC_READER_TABLE=FILE set, the table of what each one saw is written there as Markdown (README's is made so).
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

import mimic
from tests.conftest import SAMPLE_CZI, absent, module
from tests.readers import BOX, RGB, Seen, cut, libraries
from tests.readers.table import READERS

MPP_UM, POWER, SIZE_PX = 0.22, 40, (3072, 2304)
LEVELS_PX = ((3072, 2304), (768, 576))
PICTURES_PX = {(387, 463): "label", (960, 323): "macro"}
NEWEST_CUCIM = "cucim-cu12==26.10.0"
PSNR_DB = 33.0
"""Floor for quality 80: the slide has 38 dB with halved chroma and 40 without, the macro 35 and 38; a shift by one
pixel gives 29, swapped channels 17."""
CHANNEL_LEVELS = 0.5
"""A decoder that mistakes the colour space moves the mean of a channel by many grey levels; JPEG by 0.3."""
APERIO_NAMES = {"aperio", "svs", "aperio svs"}
GENERIC = {"pyvips", "libtiff", "imagemagick", "gimp"}
"""These read the file as an ordinary TIFF: they do not know Aperio."""
UPSIDE_DOWN = {("slideio", "ycc", "macro")}
"""slideio 2.10 flips every stripped YCbCr JPEG. What reads right one day fails here, to tell."""


@dataclass(frozen=True, slots=True)
class Converted:
    """A slide that mimic wrote, and what ZEISS's own library reads from its source."""

    path: Path
    profile: str
    pixels: RGB
    pictures: dict[str, RGB]


def embedded(czi: bytes, folder: Path) -> list[RGB]:
    """Label and macro: CZI files inside the CZI, decoded by libCZI."""
    zeiss = module("pylibCZIrw.czi")
    found, at = [], czi.find(b"ZISRAWFILE", 1)
    while at > 0:
        inner = folder / f"attachment{len(found)}.czi"
        inner.write_bytes(czi[at:])
        with zeiss.open_czi(str(inner)) as document:
            found.append(document.read()[..., ::-1])
        at = czi.find(b"ZISRAWFILE", at + 1)
    return found


def make_converted(folder: Path, profile: str) -> Path:
    """The one place that says how the slide under test comes to be."""
    output = folder / f"{profile}.svs"
    mimic.convert(SAMPLE_CZI, output, profile=profile)
    return output


@pytest.fixture(scope="module", params=["ycc", "rgb"])
def converted(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Converted:
    """The shipped sample, converted in one of the two colour profiles."""
    folder = tmp_path_factory.mktemp(f"converted_{request.param}")
    with module("pylibCZIrw.czi").open_czi(str(SAMPLE_CZI)) as document:
        pixels = np.ascontiguousarray(document.read()[..., ::-1])
    pictures = {PICTURES_PX[image.shape[1::-1]]: image for image in embedded(SAMPLE_CZI.read_bytes(), folder)}
    return Converted(make_converted(folder, request.param), request.param, pixels, pictures)


@pytest.fixture(scope="module")
def table() -> Iterator[dict[str, Seen]]:
    """Collects what every reader saw; written once all have looked."""
    rows: dict[str, Seen] = {}
    yield rows
    if target := os.environ.get("MIMIC_READER_TABLE"):
        head = "| reader | sees | size | levels | MPP | AppMag | pictures |\n|---|---|---|---|---|---|---|\n"
        Path(target).write_text(head + "".join(markdown(seen) for seen in rows.values()), encoding="utf-8")


def markdown(seen: Seen) -> str:
    """One row of README's table; a dash is something that the reader has no notion of."""
    cells = [
        seen.reader,
        seen.recognised or "a TIFF",
        f"{seen.size[0]} x {seen.size[1]}",
        str(len(seen.levels)) if seen.levels else "-",
        f"{seen.mpp_um[0]:.4g}" if seen.mpp_um else "-",
        f"{seen.power:g}" if seen.power else "-",
        ", ".join(seen.names) if seen.names else "-",
    ]
    return f"| {' | '.join(cells)} |\n"


@pytest.mark.parametrize("name", READERS)
def test_reader(name: str, converted: Converted, table: dict[str, Seen]) -> None:
    seen = READERS[name](converted.path)
    table[name] = seen
    judge(name, seen, converted)


@pytest.fixture(scope="session")
def newest_cucim(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """cuCIM without its requirements, which are 2 GB of CUDA; fetched only where all tools are demanded."""
    if sys.platform != "linux" or os.environ.get("MIMIC_REQUIRE_TOOLS") != "1":
        pytest.skip("fetched only with MIMIC_REQUIRE_TOOLS=1")
    folder = tmp_path_factory.mktemp("cucim")
    command = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", str(folder), NEWEST_CUCIM]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    if done.returncode != 0:
        absent(f"{NEWEST_CUCIM} ({done.stderr[-300:]})")
    return folder


def test_newest_cucim(newest_cucim: Path, converted: Converted, table: dict[str, Seen]) -> None:
    seen = libraries.see_newest_cucim(converted.path, newest_cucim)
    table["newest cucim"] = seen
    judge("newest cucim", seen, converted)


def judge(name: str, seen: Seen, converted: Converted) -> None:
    """Everything that the reader tells must be right; all but generic TIFF readers must tell everything."""
    assert seen.size == SIZE_PX
    assert seen.pixels is not None
    alike(seen.pixels, cut(converted.pixels))
    for picture in converted.pictures.keys() & seen.pictures.keys():
        flipped = (name, converted.profile, picture) in UPSIDE_DOWN
        alike(seen.pictures[picture][:: -1 if flipped else 1], converted.pictures[picture])
    if seen.levels is not None:
        assert tuple(tuple(level) for level in seen.levels) == LEVELS_PX
    if seen.mpp_um is not None:
        assert seen.mpp_um == pytest.approx((MPP_UM, MPP_UM), rel=1e-3)
    if name not in GENERIC:
        assert seen.recognised is not None
        assert seen.recognised.lower() in APERIO_NAMES
        assert seen.mpp_um is not None
        assert seen.power == POWER
        assert seen.names is not None
        assert set(seen.names) >= {"label", "macro"}


def alike(found: RGB, truth: RGB, floor_db: float = PSNR_DB) -> None:
    """Within what JPEG changes: by PSNR, and by the mean of each channel."""
    assert found.shape == truth.shape
    difference = found.astype(np.float64) - truth
    noise = float(np.mean(difference**2))
    assert noise == 0 or 10 * np.log10(255**2 / noise) >= floor_db
    assert np.abs(difference.mean(axis=(0, 1))).max() <= CHANNEL_LEVELS


def test_the_measure_itself(converted: Converted) -> None:
    """A picture that is one pixel off, mirrored or with red and blue swapped would not pass for the slide."""
    truth = cut(converted.pixels)
    x, y, width, height = BOX
    shifted = converted.pixels[y : y + height, x + 1 : x + 1 + width]
    for wrong in (shifted, truth[::-1], truth[:, ::-1], truth[..., ::-1]):
        with pytest.raises(AssertionError):
            alike(wrong, truth)
