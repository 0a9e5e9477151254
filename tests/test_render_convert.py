"""Slides that are not 8-bit RGB, the whole way, against samples read by other libraries and a formula of our own."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import openslide
import pytest
from numpy.typing import NDArray

import mimic
from mimic import settings, sources, verify
from mimic.errors import Unsupported
from mimic.model import Box, Report
from tests.conftest import module
from tools import render_samples as made

RED, GREEN, BLUE = (255, 0, 0), (0, 255, 0), (0, 0, 255)
NEAR_DB = 30.0
"""A rendered slide at quality 95 against its truth; a wrong plane, colour or range gives less than 20."""


def blend(channels: Any, colours: Any, spans: Any) -> NDArray[np.uint8]:
    """Additive colours, each channel linear from low to high."""
    light = np.zeros((*np.shape(channels[0]), 3))
    for channel, colour, (low, high) in zip(channels, colours, spans, strict=True):
        light += np.clip((np.asarray(channel, float) - low) / (high - low), 0, 1)[..., None] * np.array(colour)
    return np.asarray(np.clip(light + 0.5, 0, 255), np.uint8)


def robust(channel: NDArray[Any]) -> tuple[float, float]:
    """0.1 and 99.9 percentile of what is not zero, as the README says."""
    known = channel[np.isfinite(channel) & ((channel != 0) | (channel.dtype.kind != "u"))]
    low, high = np.percentile(known, (0.1, 99.9))
    return (np.floor(low), np.ceil(high)) if channel.dtype.kind in "ui" else (low, high)


def convert(path: Path, folder: Path, **options: Any) -> tuple[Report, NDArray[np.uint8]]:
    """The report, and what OpenSlide sees."""
    chosen = {"quality": 95, "profile": "rgb", "source": "bioformats", "mpp_um": 0.25, **options}
    report = mimic.convert(path, folder / "out.svs", **chosen)
    assert not verify.failed(report.results[0].checks)
    with closing(openslide.OpenSlide(folder / "out.svs")) as slide:
        return report, np.asarray(slide.read_region((0, 0), 0, slide.dimensions).convert("RGB"))


def agree(got: NDArray[np.uint8], truth: NDArray[np.uint8]) -> None:
    assert got.shape == truth.shape
    assert verify.psnr_db(got, truth) > NEAR_DB


def description(folder: Path) -> str:
    with closing(openslide.OpenSlide(folder / "out.svs")) as slide:
        return str(slide.properties.get("aperio.Rendering", ""))


def pixels_read(report: Report) -> NDArray[np.uint8]:
    """What our own reader renders, before JPEG: compared exactly."""
    from mimic import render
    from mimic.sources import bioformats

    plan = report.results[0].plan
    assert plan.rendering is not None
    opened = bioformats.open_planes(
        plan.slide, plan.image, plan.rendering, threads=1, settings=settings.load(), scratch=Path()
    )
    with closing(opened) as planes:
        size = plan.levels[0]
        return render.Rendered(planes, plan.rendering, plan.image).read(Box(0, 0, size.width_px, size.height_px))


def test_four_channel_czi_is_shown_as_its_own_settings_say(tmp_path: Path) -> None:
    """Against ZEISS's libCZI: the samples read by it, and the settings that its writer was given."""
    czi = module("pylibCZIrw.czi")
    path = made.four_channel_czi(tmp_path / "four.czi").path
    with czi.open_czi(str(path)) as file:
        channels = [file.read(plane={"C": c, "Z": 0, "T": 0})[..., 0] for c in range(4)]
    truth = blend(channels, [each[1] for each in made.FOUR], [[65535 * part for part in each[2]] for each in made.FOUR])
    report, got = convert(path, tmp_path)
    agree(got, truth)
    assert np.abs(pixels_read(report).astype(int) - truth).max() <= 1
    assert description(tmp_path).startswith("ch0 DAPI 0000FF 655.35-19660.5, ch1 FITC 00FF00")
    assert any("display setting" in reason for reason in report.results[0].plan.reasons)


def test_four_channel_czi_with_gammas_and_a_hidden_channel(tmp_path: Path) -> None:
    """Channels by libCZI; the curve of 0.5 is the one whose toe is known in closed form."""
    czi = module("pylibCZIrw.czi")
    path = made.four_channel_czi(tmp_path / "four.czi", hidden=(1,), gammas={0: 0.5, 2: 2.2}).path
    shown = (0, 2, 3)
    with czi.open_czi(str(path)) as file:
        channels = [file.read(plane={"C": c, "Z": 0, "T": 0})[..., 0] for c in shown]
    spans = [[65535 * part for part in made.FOUR[c][2]] for c in shown]
    light = [np.clip((part - low) / (high - low), 0, 1) for part, (low, high) in zip(channels, spans, strict=True)]
    light[0] = (np.sqrt(224 * light[0] + 1) - 1) / 14
    light[1] = light[1] ** 2.2
    truth = blend(light, [made.FOUR[c][1] for c in shown], [(0, 1)] * 3)
    report, got = convert(path, tmp_path)
    agree(got, truth)
    assert np.abs(pixels_read(report).astype(int) - truth).max() <= 1
    assert description(tmp_path).startswith("ch0 DAPI 0000FF 655.35-19660.5 gamma 0.5, ch2 TRITC")
    assert any("channel 1 (FITC), hidden" in reason for reason in report.results[0].plan.reasons)
    _, all_of_it = convert(path, tmp_path, channels=(0, 1, 2, 3), overwrite=True)
    assert int(all_of_it[..., 1].sum()) > 2 * int(got[..., 1].sum())


def test_four_channel_czi_without_settings_gets_robust_ranges_the_same_for_all_tiles(tmp_path: Path) -> None:
    raw = made.four_channel_czi(tmp_path / "four.czi", display=False)
    report, got = convert(raw.path, tmp_path, channels=(0, 2), tile_px=128)
    rendering = report.results[0].plan.rendering
    assert rendering is not None
    assert [(view.low, view.high) for view in rendering.views] == [robust(raw.samples[c]) for c in (0, 2)]
    agree(got, blend(raw.samples[[0, 2]], [view.colour for view in rendering.views], map(robust, raw.samples[[0, 2]])))


def test_options_choose_channels_colours_and_ranges(tmp_path: Path) -> None:
    raw = made.four_channel_czi(tmp_path / "four.czi")
    _, got = convert(raw.path, tmp_path, channels=(3, 1), colours=(GREEN, RED), ranges=((3, 500.0, 9000.0),))
    agree(got, blend(raw.samples[[3, 1]], (GREEN, RED), ((500, 9000), (0.02 * 65535, 0.25 * 65535))))
    assert description(tmp_path).startswith("ch3 Cy5 00FF00 500-9000, ch1 FITC FF0000")


@pytest.mark.parametrize("compression", ["zstd1:ExplicitLevel=1;PreProcess=HiLoByteUnpack", "zstd0:ExplicitLevel=2"])
def test_a_dark_block_of_fluorescence_is_no_damage(compression: str, tmp_path: Path) -> None:
    czi = module("pylibCZIrw.czi")
    samples = made.stains()[:2]
    samples[:, :256, :256] = 0
    path = tmp_path / "dark.czi"
    with czi.create_czi(str(path), compression_options=compression) as file:
        for index, channel in enumerate(samples):
            for y, x in ((0, 0), (0, 256), (256, 0)):  # the fourth was never scanned
                block = np.ascontiguousarray(channel[y : y + 256, x : x + 256, None])
                file.write(block, location=(x, y), plane={"C": index, "Z": 0, "T": 0})
        file.write_metadata(scale_x=0.25e-6, scale_y=0.25e-6)
    report, got = convert(path, tmp_path)
    assert got[:250, :250].max() < 12 and got[262:, 262:].max() < 12
    assert got[:250, 262:].std() > 5
    assert any("written black" in warning for warning in report.warnings)


@pytest.mark.parametrize("holes", [False, True])
def test_bgr48_keeps_its_colours_and_its_white(holes: bool, tmp_path: Path) -> None:
    raw = made.bgr48_czi(tmp_path / "a.czi", holes=holes)
    report, got = convert(raw.path, tmp_path)
    truth = (raw.samples // 257).astype(np.uint8)
    agree(got, truth)
    assert np.array_equal(pixels_read(report), truth)


@pytest.mark.parametrize("name", ["rgb16.ome.tif", "rgb12.ome.tif"])
def test_rgb_of_more_bits_is_scaled_by_them(name: str, tmp_path: Path) -> None:
    report, got = convert(made.WRITERS[name](tmp_path / name).path, tmp_path)
    agree(got, made.tissue())
    assert np.abs(pixels_read(report).astype(int) - made.tissue()).max() <= 1


@pytest.mark.parametrize("name", ["float.ome.tif", "int16.ome.tif"])
def test_signed_and_float_grey_is_stretched_to_robust_percentiles(name: str, tmp_path: Path) -> None:
    raw = made.WRITERS[name](tmp_path / name)
    report, got = convert(raw.path, tmp_path)
    truth = blend([np.nan_to_num(raw.samples, nan=-1e9)], [(255, 255, 255)], [robust(raw.samples)])
    agree(got, truth)
    assert np.abs(pixels_read(report).astype(int) - truth).max() <= 1


@pytest.mark.parametrize(("z", "t"), [(None, None), (0, 1), (4, 0), ("max", 1)])
def test_planes_of_a_stack(z: Any, t: int | None, tmp_path: Path) -> None:
    raw = made.stack_tiff(tmp_path / "stack.ome.tif")
    frame = raw.samples[t or 0]
    plane = frame.max(0) if z == "max" else frame[2 if z is None else z]
    report, got = convert(raw.path, tmp_path, z=z, t=t)
    agree(got, np.dstack([plane] * 3))
    assert np.array_equal(pixels_read(report)[..., 0], plane)
    assert f"; z {2 if z is None else z}; t {t or 0}" in description(tmp_path)


def test_a_stack_of_rgb(tmp_path: Path) -> None:
    raw = made.rgb_stack_tiff(tmp_path / "rgbz.ome.tif")
    report, got = convert(raw.path, tmp_path, z=2)
    agree(got, raw.samples[2])
    assert np.array_equal(pixels_read(report), raw.samples[2])


@pytest.mark.parametrize("compression", [None, "lzw", "jpeg"])
def test_minimum_is_white(compression: str | None, tmp_path: Path) -> None:
    raw = made.white_is_zero_tiff(tmp_path / "white.tif", compression=compression)
    _, got = convert(raw.path, tmp_path)
    agree(got, np.dstack([raw.samples] * 3))


@pytest.mark.parametrize("ending", ["bmp", "gif", "tif"])
def test_colours_by_number_are_looked_up(ending: str, tmp_path: Path) -> None:
    raw = made.palette(tmp_path / f"palette.{ending}")
    report, got = convert(raw.path, tmp_path)
    assert report.results[0].plan.rendering is None
    agree(got, raw.samples)
    plan = report.results[0].plan
    reader = sources.load("bioformats").open(
        plan.slide, plan.image, threads=1, settings=settings.load(), scratch=tmp_path
    )
    with closing(reader):
        assert np.array_equal(reader.read(Box(0, 0, 512, 512)), raw.samples)


def test_the_original_recipe_refuses_what_it_would_not_render(tmp_path: Path) -> None:
    raw = made.four_channel_czi(tmp_path / "four.czi")
    with pytest.raises(Unsupported, match="--source bioformats"):
        mimic.convert(raw.path, tmp_path / "out.svs", source="bfconvert", mpp_um=0.25)


def test_nd2_of_the_corpus(corpus_file: Callable[[str], Path], tmp_path: Path) -> None:
    """Against the nd2 library: its samples and its colours; the white camera channel is left out."""
    nd2 = module("nd2")
    path = corpus_file("nd2/example-multichannel.nd2")
    with nd2.ND2File(path) as file:
        channels = file.asarray()[1:]
        tints = [each.channel.color for each in file.metadata.channels[1:]]
    truth = blend(channels, [(tint.r, tint.g, tint.b) for tint in tints], map(robust, channels))
    report, got = convert(path, tmp_path)
    agree(got, truth)
    assert np.abs(pixels_read(report).astype(int) - truth).max() <= 1


def test_oib_of_the_corpus(corpus_file: Callable[[str], Path], tmp_path: Path) -> None:
    """Against oiffile; the third channel is transmitted light."""
    oiffile = module("oiffile")
    path = corpus_file("oib/test.oib")
    with oiffile.OifFile(str(path)) as file:
        channels = file.asarray()[:2]
    truth = blend(channels, (BLUE, RED), map(robust, channels))
    report, got = convert(path, tmp_path)
    agree(got, truth)
    assert np.abs(pixels_read(report).astype(int) - truth).max() <= 1


def test_two_scenes_of_two_planes_become_two_slides(corpus_file: Callable[[str], Path], tmp_path: Path) -> None:
    """Against libCZI; black and white point of the file are 10000 and 22353."""
    czi = module("pylibCZIrw.czi")
    path = corpus_file("czi/two_scenes_u16_z2.czi")
    report = mimic.convert(path, tmp_path, quality=95)
    assert [output.name for output in report.outputs] == ["two_scenes_u16_z2_s1.svs", "two_scenes_u16_z2_s2.svs"]
    with czi.open_czi(str(path)) as file:
        for scene, output in enumerate(report.outputs):
            plane = file.read(plane={"C": 0, "Z": 1, "T": 0}, scene=scene)[..., 0]
            with closing(openslide.OpenSlide(output)) as slide:
                got = np.asarray(slide.read_region((0, 0), 0, slide.dimensions).convert("RGB"))
            agree(got, blend([plane], [(255, 255, 255)], [(10000, 22353)]))
