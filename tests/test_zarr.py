"""OME-Zarr in: stores that other programs wrote, stores by hand in every odd shape, and damaged ones."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import openslide
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import mimic
from mimic import chunks, ngff, requests
from mimic.errors import BadInput, MimicError, ToolMissing, Unsupported, UsageError
from mimic.model import Box, ChannelView, Options, Rendering, Slide
from mimic.probe import find_slides, probe
from mimic.render import compose
from mimic.settings import load
from mimic.sources import zarr as source
from mimic.structure import zarr as arrays
from tests.conftest import module

SETTINGS = load()
Json = dict[str, Any]
RGB_COLOURS = ("FF0000", "00FF00", "0000FF")
CYX = ("c", "y", "x")


@pytest.fixture(scope="module")
def zarr() -> Any:
    return module("zarr")


def tissue(height: int, width: int, *, seed: int = 1) -> np.ndarray:
    """A white ground with smooth spots in it: JPEG keeps it well, and no two places are alike."""
    y, x = np.mgrid[:height, :width].astype(np.float32)
    rng = np.random.default_rng(seed)
    dark = np.zeros((height, width, 3), np.float32)
    for _ in range(12):
        top, left, size = rng.uniform(0, height), rng.uniform(0, width), rng.uniform(0.06, 0.2) * width
        spot = np.exp(-((x - left) ** 2 + (y - top) ** 2) / (2 * size**2))
        dark += spot[..., None] * rng.uniform(20, 120, 3).astype(np.float32)
    return np.clip(245 - dark, 1, 255).astype(np.uint8)


def axes_of(names: Sequence[str], unit: str | None = "micrometer") -> list[Json]:
    kinds = {"c": "channel", "t": "time"}
    made: list[Json] = [{"name": name, "type": kinds.get(name, "space")} for name in names]
    for axis in made:
        if axis["type"] == "space" and unit is not None:
            axis["unit"] = unit
    return made


def described(
    names: Sequence[str], scales: Sequence[Sequence[float]], *, unit: str | None = "micrometer", version: str = "0.4",
    omero: Json | None = None, name: str = "",
) -> Json:  # fmt: skip
    """Attributes of an image, as the specification has them."""
    datasets = [
        {"path": str(level), "coordinateTransformations": [{"type": "scale", "scale": list(scale)}]}
        for level, scale in enumerate(scales)
    ]
    one: Json = {"axes": axes_of(names, unit), "datasets": datasets, "name": name}
    if version == "0.4":
        one["version"] = version
    said: Json = {"multiscales": [one]} if version == "0.4" else {"version": version, "multiscales": [one]}
    return said if omero is None else said | {"omero": omero}


def omero(colours: Sequence[str], *, windows: Sequence[tuple[float, float]] = (), labels: Sequence[str] = ()) -> Json:
    made: list[Json] = [{"color": colour, "active": True} for colour in colours]
    for channel, (start, end) in zip(made, windows, strict=False):
        channel["window"] = {"start": start, "end": end, "min": 0, "max": 65535}
    for channel, label in zip(made, labels, strict=False):
        channel["label"] = label
    return {"channels": made}


def write_group(folder: Path, attributes: Json, *, version: str = "0.4") -> None:
    folder.mkdir(parents=True, exist_ok=True)
    if version == "0.4":
        (folder / ".zgroup").write_text('{"zarr_format": 2}')
        (folder / ".zattrs").write_text(json.dumps(attributes))
    else:
        document = {"zarr_format": 3, "node_type": "group", "attributes": {"ome": attributes}}
        (folder / "zarr.json").write_text(json.dumps(document))


def write_image(
    zarr: Any, folder: Path, levels: Sequence[np.ndarray], names: Sequence[str] = CYX, *, version: str = "0.4",
    chunk: int = 256, scale: float = 0.5, unit: str | None = "micrometer", omero: Json | None = None, name: str = "",
    **how: Any,
) -> Path:  # fmt: skip
    """An image with zarr-python: ``levels`` in the order of ``names``, chunks of one plane."""
    scales = []
    for number, pixels in enumerate(levels):
        factor = levels[0].shape[names.index("x")] / pixels.shape[names.index("x")]
        scales.append([scale * factor if letter in "yx" else 1.0 for letter in names])
        shape = tuple(
            min(chunk, size) if letter in "yx" else 1 for letter, size in zip(names, pixels.shape, strict=True)
        )
        array = zarr.create_array(
            store=str(folder / str(number)), shape=pixels.shape, dtype=pixels.dtype,
            zarr_format=2 if version == "0.4" else 3, **({"chunks": shape} | how),
        )  # fmt: skip
        array[...] = pixels
    write_group(folder, described(names, scales, unit=unit, version=version, omero=omero, name=name), version=version)
    return folder


def planes(rgb: np.ndarray) -> np.ndarray:
    return np.moveaxis(rgb, 2, 0)


def halved(pixels: np.ndarray, names: Sequence[str] = CYX) -> np.ndarray:
    """Every second pixel: mean or not is no matter here."""
    return pixels[tuple(slice(None, None, 2) if letter in "yx" else slice(None) for letter in names)]


def opened(path: Path, index: int = 0) -> tuple[Slide, source.Reader]:
    slide = probe(path, SETTINGS)
    assert slide.source == "zarr"
    image = slide.images[index]
    return slide, source.open(slide, image, threads=1, settings=SETTINGS, scratch=path.parent)


def everything(reader: Any) -> np.ndarray:
    boxes = reader.boxes()
    whole = np.zeros((boxes[-1].y_px + boxes[-1].height_px, boxes[-1].x_px + boxes[-1].width_px, 3), np.uint8)
    for box in boxes:
        whole[box.y_px : box.y_px + box.height_px, box.x_px : box.x_px + box.width_px] = reader.read(box)
    return whole


def psnr(one: np.ndarray, other: np.ndarray) -> float:
    error = np.mean((one.astype(float) - other.astype(float)) ** 2)
    return float(10 * np.log10(255**2 / max(error, 1e-9)))


def converted(path: Path, out: Path, **options: Any) -> tuple[openslide.OpenSlide, Any]:
    report = mimic.convert(path, out, **options)
    return openslide.OpenSlide(report.outputs[0]), report


# Written by others


def by_ome_zarr(folder: Path, rgb: np.ndarray, version: str) -> None:
    writer, formats, zarr = module("ome_zarr.writer"), module("ome_zarr.format"), module("zarr")
    group = zarr.open_group(str(folder), mode="w", zarr_format=2 if version == "0.4" else 3)
    writer.write_image(
        planes(rgb), group, scale_factors=(2, 4), axes="cyx",
        scale={"y": 0.25, "x": 0.25}, axes_units={"y": "micrometer", "x": "micrometer"},
        fmt=formats.FormatV04() if version == "0.4" else formats.FormatV05(),
        storage_options={"chunks": (3, 300, 400)},
    )  # fmt: skip
    writer.add_metadata(group, {"omero": omero(RGB_COLOURS, windows=[(0, 255)] * 3)}, formats.FormatV05()) \
        if version == "0.5" else group.attrs.update({"omero": omero(RGB_COLOURS, windows=[(0, 255)] * 3)})  # fmt: skip


def by_ngff_zarr(folder: Path, rgb: np.ndarray, version: str) -> None:
    library = module("ngff_zarr")
    size = {"y": 250.0, "x": 250.0}
    image = library.to_ngff_image(
        rgb, dims=("y", "x", "c"), scale=size, axes_units={"y": "nanometer", "x": "nanometer"}, name="tissue"
    )
    library.to_ngff_zarr(str(folder), library.to_multiscales(image, scale_factors=[2, 4], chunks=512), version=version)


@pytest.mark.parametrize("version", ["0.4", "0.5"])
@pytest.mark.parametrize("write", [by_ome_zarr, by_ngff_zarr])
@pytest.mark.filterwarnings("ignore")  # theirs, as they write
def test_a_store_of_another_writer_becomes_a_slide(
    write: Callable[[Path, np.ndarray, str], None], version: str, tmp_path: Path
) -> None:
    rgb = tissue(1300, 1500)
    store = tmp_path / "slide.ome.zarr"
    write(store, rgb, version)
    slide, reader = opened(store)
    assert (slide.format, slide.path) == (f"OME-Zarr {version}", store)
    (image,) = slide.images
    assert (image.rgb, image.channels, image.pixel_type, image.z_planes) == (True, 3, "uint8", 1)
    assert [(level.width_px, level.height_px) for level in image.levels] == [(1500, 1300), (750, 650), (375, 325)]
    assert image.scale is not None and (image.scale.x_um, image.scale.y_um) == (0.25, 0.25)
    assert np.array_equal(everything(reader), rgb)
    seen, report = converted(store, tmp_path / "out")
    assert report.outputs == (tmp_path / "out" / "slide.svs",)
    assert seen.dimensions == (1500, 1300) and float(seen.properties["openslide.mpp-x"]) == 0.25
    pixels = np.asarray(seen.read_region((0, 0), 0, (1500, 1300)).convert("RGB"))
    assert psnr(pixels, rgb) > 38


@pytest.mark.parametrize("version", ["0.4", "0.5"])
@pytest.mark.filterwarnings("ignore")
def test_fluorescence_of_another_writer(version: str, tmp_path: Path) -> None:
    library = module("ngff_zarr")
    rng = np.random.default_rng(2)
    samples = rng.poisson(300, (4, 600, 700)).astype(np.uint16)
    for channel in range(4):
        samples[channel, 100 * channel : 100 * channel + 200, 150:500] += np.uint16(1500 + 500 * channel)
    image = library.to_ngff_image(
        samples, dims=CYX, scale={"y": 0.0005, "x": 0.0005}, axes_units={"y": "millimeter", "x": "millimeter"}
    )
    multiscales = library.to_multiscales(image, scale_factors=[2], chunks=256)
    ranges = [(200.0, 1500.0 + 500 * channel) for channel in range(4)]
    colours = ("0000FF", "00FF00", "FF0000", "FF00FF")
    multiscales.metadata.omero = library.Omero(
        channels=[
            library.OmeroChannel(
                color=colour, label=label, window=library.OmeroWindow(min=0, max=65535, start=low, end=high)
            )
            for colour, label, (low, high) in zip(colours, ("DAPI", "FITC", "Cy3", "Cy5"), ranges, strict=True)
        ]
    )
    store = tmp_path / "f.ome.zarr"
    library.to_ngff_zarr(str(store), multiscales, version=version)
    slide = probe(store, SETTINGS)
    facts = slide.images[0].channel_facts
    assert [(each.name, each.low, each.high) for each in facts][1:3] == [("FITC", *ranges[1]), ("Cy3", *ranges[2])]
    assert [each.colour for each in facts] == [(0, 0, 255), (0, 255, 0), (255, 0, 0), (255, 0, 255)]
    scale = slide.images[0].scale
    assert scale is not None and scale.x_um == 0.5
    seen, report = converted(store, tmp_path / "f.svs", quality=95, profile="rgb")
    assert "display setting" in " ".join(report.results[0].plan.reasons)
    views = tuple(
        ChannelView(index, colour, low, high)
        for index, (colour, (low, high)) in enumerate(
            zip([(0, 0, 255), (0, 255, 0), (255, 0, 0), (255, 0, 255)], ranges, strict=True)
        )
    )
    wanted = compose(list(samples), Rendering(views))
    pixels = np.asarray(seen.read_region((0, 0), 0, (700, 600)).convert("RGB"))
    assert psnr(pixels, wanted) > 28  # the noise of single photons, in JPEG


# bioformats2raw's layout, by hand

METADATA = """<?xml version="1.0" encoding="UTF-8"?>
<OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06">
 <Instrument ID="Instrument:0"><Microscope Manufacturer="Acme" Model="S1"/>
  <Objective ID="Objective:0:0" NominalMagnification="40.0"/></Instrument>
 <Image ID="Image:0" Name="tissue"><InstrumentRef ID="Instrument:0"/><ObjectiveSettings ID="Objective:0:0"/>
  <Pixels ID="Pixels:0" BigEndian="true" DimensionOrder="XYZCT" Interleaved="false" SizeX="{width}" SizeY="{height}"
   SizeZ="1" SizeC="3" SizeT="1" Type="uint8" PhysicalSizeX="0.22" PhysicalSizeXUnit="µm" PhysicalSizeY="0.22"
   PhysicalSizeYUnit="µm"><Channel ID="Channel:0:0" SamplesPerPixel="3"/><MetadataOnly/></Pixels></Image>
 <Image ID="Image:1" Name="label image">
  <Pixels ID="Pixels:1" BigEndian="true" DimensionOrder="XYZCT" Interleaved="false" SizeX="200" SizeY="220" SizeZ="1"
   SizeC="3" SizeT="1" Type="uint8"><Channel ID="Channel:1:0" SamplesPerPixel="1"/>
   <Channel ID="Channel:1:1" SamplesPerPixel="1"/><Channel ID="Channel:1:2" SamplesPerPixel="1"/>
   <MetadataOnly/></Pixels></Image>
</OME>"""

EXTRA_IMAGE = """<Image ID="Image:9"><Pixels ID="Pixels:9" DimensionOrder="XYZCT" SizeX="9" SizeY="9" SizeZ="1"
 SizeC="1" SizeT="1" Type="uint8"><Channel ID="Channel:9:0"/><MetadataOnly/></Pixels></Image>"""


def write_layout(zarr: Any, folder: Path, scan: np.ndarray, label: np.ndarray, version: str) -> Path:
    write_group(folder, {ngff.LAYOUT: 3}, version=version)
    write_group(folder / "OME", {"series": ["0", "1"]}, version=version)
    height, width = scan.shape[:2]
    (folder / "OME" / "METADATA.ome.xml").write_text(METADATA.format(width=width, height=height), encoding="utf-8")
    for name, rgb in (("0", scan), ("1", label)):
        five = planes(rgb)[None, :, None]
        write_image(zarr, folder / name, [five], tuple("tczyx"), version=version, scale=0.22)
    return folder


@pytest.mark.parametrize("version", ["0.4", "0.5"])
def test_bioformats2raw_layout(zarr: Any, version: str, tmp_path: Path) -> None:
    scan, label = tissue(700, 900), tissue(220, 200, seed=5)
    store = write_layout(zarr, tmp_path / "b.zarr", scan, label, version)
    slide, reader = opened(store)
    assert [(image.role, image.rgb) for image in slide.images] == [("scan", True), ("label", True)]
    assert slide.scanner == "Acme S1"
    objective, scale = slide.images[0].objective, slide.images[0].scale
    assert objective is not None and objective.power == 40
    assert scale is not None and scale.x_um == 0.22 and slide.images[1].scale is None
    assert store / "OME" / "METADATA.ome.xml" in slide.files
    assert np.array_equal(everything(reader), scan)
    assert np.array_equal(everything(opened(store, 1)[1]), label)
    seen, _ = converted(store, tmp_path / "b.svs")
    assert seen.properties["aperio.AppMag"] == "40" and seen.associated_images["label"].size == (200, 220)
    assert psnr(np.asarray(seen.associated_images["label"].convert("RGB")), label) > 60


def test_a_series_may_be_named_alone(zarr: Any, tmp_path: Path) -> None:
    scan = tissue(300, 400)
    store = write_layout(zarr, tmp_path / "b.zarr", scan, tissue(220, 200), "0.4")
    assert np.array_equal(everything(opened(store / "0")[1]), scan)


def test_without_a_list_the_series_are_the_numbered_folders(zarr: Any, tmp_path: Path) -> None:
    store = write_layout(zarr, tmp_path / "b.zarr", tissue(300, 400), tissue(220, 200), "0.4")
    shutil.rmtree(store / "OME")
    assert [image.levels[0].width_px for image in probe(store, SETTINGS).images] == [400, 200]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (('SizeX="400"', 'SizeX="401"'), "sizes disagree"),
        (('>\n <Image ID="Image:1"', ">" + EXTRA_IMAGE + '<Image ID="Image:1"'), "describes 3 images"),
        (("</OME>", ""), "OME-XML"),
    ],
)
def test_metadata_that_do_not_fit_are_damage(zarr: Any, change: tuple[str, str], words: str, tmp_path: Path) -> None:
    store = write_layout(zarr, tmp_path / "b.zarr", tissue(300, 400), tissue(220, 200), "0.4")
    path = store / "OME" / "METADATA.ome.xml"
    path.write_text(path.read_text(encoding="utf-8").replace(*change), encoding="utf-8")
    with pytest.raises(BadInput, match=words):
        probe(store, SETTINGS)


def test_a_series_that_was_not_finished_is_damage(zarr: Any, tmp_path: Path) -> None:
    store = write_layout(zarr, tmp_path / "b.zarr", tissue(300, 400), tissue(220, 200), "0.4")
    (store / "1" / ".zattrs").unlink()
    with pytest.raises(BadInput, match="not written to its end"):
        probe(store, SETTINGS)


# Every odd shape


@pytest.mark.parametrize("names", [("c", "y", "x"), ("y", "x", "c"), tuple("tczyx"), tuple("zcyx")])
@pytest.mark.parametrize("version", ["0.4", "0.5"])
def test_axes_in_any_order(zarr: Any, names: tuple[str, ...], version: str, tmp_path: Path) -> None:
    rgb = tissue(190, 270)
    full = rgb[None, None] if len(names) == 5 else rgb[None] if len(names) == 4 else rgb
    have = ("t", "z", "y", "x", "c")[5 - len(names) :] if len(names) != 4 else ("z", "y", "x", "c")
    data = full.transpose([have.index(name) for name in names])
    store = write_image(zarr, tmp_path / "a.zarr", [data], names, version=version, chunk=100, omero=omero(RGB_COLOURS))
    slide, reader = opened(store)
    assert slide.images[0].rgb and not slide.warnings
    assert np.array_equal(everything(reader), rgb)


@pytest.mark.parametrize(
    "how",
    [
        {"chunks": (3, 64, 128)},
        {"chunks": (1, 37, 41)},
        {"chunks": (2, 600, 700)},
        {"chunks": (1, 64, 64), "shards": (3, 256, 256), "version": "0.5"},
        {"compressors": None},
        {"compressors": None, "version": "0.5"},
        {"chunk_key_encoding": {"name": "v2", "separator": "."}},
        {"chunk_key_encoding": {"name": "v2", "separator": "/"}},
        {"chunk_key_encoding": {"name": "v2", "separator": "/"}, "version": "0.5"},
    ],
    ids=str,
)
def test_chunks_of_any_shape_and_name(zarr: Any, how: Json, tmp_path: Path) -> None:
    rgb = tissue(500, 620)
    store = write_image(zarr, tmp_path / "a.zarr", [planes(rgb)], **how)
    slide, reader = opened(store)
    assert np.array_equal(everything(reader), rgb)
    assert np.array_equal(reader.read(Box(33, 57, 311, 205)), rgb[57:262, 33:344])
    assert not [each for each in slide.warnings if "not stored" in each]
    layout = arrays.layout(store / "0")
    stored = [path for path in (store / "0").rglob("*") if path.is_file() and path.name not in ngff.MEMBERS]
    assert arrays.absent(layout) == (0, len(stored))
    assert {layout.file(place) for place in np.ndindex(layout.grid)} == set(stored)


@pytest.mark.parametrize("dtype", [">u2", "<u2", "|i1", "<i4", ">f4", "<f8", "|b1", "<f2"])
def test_samples_of_any_type(zarr: Any, dtype: str, tmp_path: Path) -> None:
    values = (np.arange(2 * 3 * 120 * 130).reshape(2, 3, 120, 130) % 120).astype(dtype)
    store = write_image(zarr, tmp_path / "a.zarr", [values], ("c", "z", "y", "x"), chunk=50)
    slide = probe(store, SETTINGS)
    image = slide.images[0]
    reader = source.open_planes(slide, image, Rendering(()), threads=1, settings=SETTINGS, scratch=tmp_path)
    found = reader.samples(Box(20, 30, 70, 60), (1, 0), z=2, t=0)
    assert all(part.dtype.isnative for part in found)
    for part, channel in zip(found, (1, 0), strict=True):
        assert np.array_equal(part, values[channel, 2, 30:90, 20:90])


def test_a_stack_is_converted_at_the_plane_that_is_asked_for(zarr: Any, tmp_path: Path) -> None:
    stack = np.stack([planes(tissue(320, 340, seed=seed)) for seed in range(3)], axis=1)
    store = write_image(zarr, tmp_path / "s.zarr", [stack], ("c", "z", "y", "x"), omero=omero(RGB_COLOURS))
    seen, _ = converted(store, tmp_path / "s.svs", z=2)
    pixels = np.asarray(seen.read_region((0, 0), 0, (340, 320)).convert("RGB"))
    assert psnr(pixels, tissue(320, 340, seed=2)) > 35 > psnr(pixels, tissue(320, 340, seed=1))


def test_many_threads_read_the_same(zarr: Any, tmp_path: Path) -> None:
    rgb = tissue(600, 700)
    store = write_image(zarr, tmp_path / "a.zarr", [planes(rgb), halved(planes(rgb))], chunk=64)
    _, reader = opened(store)
    boxes = [Box(x, y, 90, 80) for y in range(0, 520, 40) for x in range(0, 600, 50)]
    with ThreadPoolExecutor(8) as pool:
        for box, pixels in zip(boxes, pool.map(reader.read, boxes), strict=True):
            assert np.array_equal(pixels, rgb[box.y_px : box.y_px + 80, box.x_px : box.x_px + 90])


@given(
    width=st.integers(1, 9000), height=st.integers(1, 9000), wide=st.integers(1, 9000), high=st.integers(1, 9000),
    sample_bytes=st.integers(1, 64),
)  # fmt: skip
@settings(max_examples=80)
def test_boxes_are_small_enough(width: int, height: int, wide: int, high: int, sample_bytes: int) -> None:
    from mimic.model import Level

    found = chunks._box_size(Level(width, height, wide, high), sample_bytes)
    assert 1 <= found[0] <= width and 1 <= found[1] <= height
    assert found[0] * found[1] * sample_bytes <= chunks.BOX_MAX_BYTES or found[1] == 1


# What is a picture in red, green and blue


@pytest.mark.parametrize(
    ("said", "rgb", "warned"),
    [
        (omero(RGB_COLOURS), True, False),
        (None, True, True),
        (omero(("FFFFFF",) * 3), True, True),
        (omero(("FFFFFF",) * 3, labels=("Red", "Green", "Blue")), True, False),
        (omero(("FFFFFF",) * 3, labels=("DAPI", "FITC", "Cy3")), False, False),
        (omero(("0000FF", "00FF00", "FF0000")), False, False),
        (omero(RGB_COLOURS[:2]), True, True),
        ({"channels": [3, None, "x"]}, True, True),
    ],
)
def test_rgb_by_colours(zarr: Any, said: Json | None, rgb: bool, warned: bool, tmp_path: Path) -> None:
    store = write_image(zarr, tmp_path / "a.zarr", [planes(tissue(64, 80))], omero=said)
    slide = probe(store, SETTINGS)
    assert slide.images[0].rgb is rgb
    assert any("taken for red" in each for each in slide.warnings) is warned


def test_16_bit_channels_in_pure_colours_are_fluorescence(zarr: Any, tmp_path: Path) -> None:
    store = write_image(zarr, tmp_path / "a.zarr", [planes(tissue(64, 80)).astype(np.uint16)], omero=omero(RGB_COLOURS))
    assert not probe(store, SETTINGS).images[0].rgb


# Scale


@pytest.mark.parametrize(
    ("unit", "scale", "um"),
    [
        ("micrometer", 0.25, 0.25),
        ("millimeter", 0.00025, 0.25),
        ("nanometer", 250, 0.25),
        ("centimeter", 0.000025, 0.25),
        ("meter", 2.5e-7, 0.25),
        ("angstrom", 2500, 0.25),
        ("inch", 1e-5, 0.254),
        ("µm", 0.25, 0.25),
        ("micron", 0.25, 0.25),
        (None, 0.25, None),
        ("pixel", 0.25, None),
        ("furlong", 0.25, None),
        ("micrometer", 500, None),
        ("micrometer", 0, None),
        ("micrometer", float("nan"), None),
        ("micrometer", True, None),
    ],
)
def test_units_of_the_scale(unit: str | None, scale: float, um: float | None) -> None:
    said = described(CYX, [[1, scale, scale]], unit=unit) | {"zarr_format": 2}
    found = ngff.multiscale(said, Path("a.zarr")).scale
    assert (found.x_um if found else None) == um


def test_scales_of_a_dataset_and_of_all_are_multiplied() -> None:
    said = described(CYX, [[1, 0.1, 0.3]]) | {"zarr_format": 2}
    said["multiscales"][0]["coordinateTransformations"] = [{"type": "scale", "scale": [1, 3, 1]}]
    found = ngff.multiscale(said, Path("a.zarr")).scale
    assert found is not None and (found.x_um, found.y_um) == (0.3, 0.3)


def test_without_a_scale_one_must_be_given(zarr: Any, tmp_path: Path) -> None:
    store = write_image(zarr, tmp_path / "a.ome.zarr", [planes(tissue(300, 340))], unit=None)
    with pytest.raises(BadInput, match="does not state its scale"):
        mimic.convert(store, tmp_path / "a.svs")
    seen, _ = converted(store, tmp_path / "a.svs", mpp_um=0.5)
    assert float(seen.properties["openslide.mpp-x"]) == 0.5


# Damage

DAMAGE: dict[str, Callable[[bytes], bytes]] = {
    "half": lambda data: data[: len(data) // 2],
    "without its last byte": lambda data: data[:-1],
    "empty": lambda _: b"",
    "with something behind": lambda data: data + b"xyz",
    "zeros": lambda data: bytes(len(data)),
}


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("codec", ["none", "blosc", "zstd", "gzip", "shards"])
@pytest.mark.parametrize("version", ["0.4", "0.5"])
def test_a_damaged_chunk_is_named(zarr: Any, version: str, codec: str, damage: str, tmp_path: Path) -> None:
    if codec == "shards" and (version == "0.4" or damage == "with something behind"):
        pytest.skip("no shards in Zarr 2; an index at the end of a shard moves with it")
    numcodecs, codecs = module("numcodecs"), module("zarr.codecs")
    two = {"none": None, "blosc": numcodecs.Blosc(), "zstd": numcodecs.Zstd(), "gzip": numcodecs.GZip()}
    three = {"none": None, "blosc": codecs.BloscCodec(), "zstd": codecs.ZstdCodec(), "gzip": codecs.GzipCodec()}
    how = (two if version == "0.4" else three).get(codec)
    pixels = planes(tissue(300, 400))
    shards = {"shards": (1, 200, 200), "chunks": (1, 50, 100)} if codec == "shards" else {"compressors": how}
    store = write_image(zarr, tmp_path / "a.zarr", [pixels, halved(pixels)], version=version, chunk=128, **shards)
    victim = arrays.layout(store / "0").file((1, 1, 1))
    victim.write_bytes(DAMAGE[damage](victim.read_bytes()))
    _, reader = opened(store)
    with pytest.raises(BadInput, match=victim.relative_to(store).as_posix()) as caught:
        everything(reader)
    assert caught.value.path == store and caught.value.remedy
    with pytest.raises(BadInput, match="chunk"):
        mimic.convert(store, tmp_path / "a.svs")
    assert not (tmp_path / "a.svs").exists()


@pytest.mark.parametrize("version", ["0.4", "0.5"])
def test_a_chunk_that_was_lost_is_found_by_the_lower_resolution(zarr: Any, version: str, tmp_path: Path) -> None:
    samples = np.random.default_rng(0).poisson(120, (2, 500, 600)).astype(np.uint16)
    store = write_image(zarr, tmp_path / "a.zarr", [samples, halved(samples)], version=version, chunk=128)
    victim = arrays.layout(store / "0").file((1, 2, 3))
    victim.unlink()
    slide = probe(store, SETTINGS)
    assert any("1 of 40 chunks are not stored" in each for each in slide.warnings)
    with pytest.raises(BadInput, match=f"{victim.relative_to(store).as_posix()} is empty.*lost"):
        mimic.convert(store, tmp_path / "a.svs")


def with_hole(rgb: np.ndarray) -> np.ndarray:
    """Nothing scanned in one place; zarr-python does not store chunks of zeros."""
    pixels = planes(rgb).copy()
    pixels[:, 128:256, 256:384] = 0
    return pixels


@pytest.mark.parametrize("levels", [1, 2])
def test_places_that_a_slide_declares_empty_are_white(zarr: Any, levels: int, tmp_path: Path) -> None:
    rgb = tissue(400, 500)
    pixels = with_hole(rgb)
    store = write_image(
        zarr, tmp_path / "a.zarr", [pixels, halved(pixels)][:levels], chunk=128, omero=omero(RGB_COLOURS)
    )
    slide, reader = opened(store)
    assert any("3 of 48 chunks are not stored" in each for each in slide.warnings)
    wanted = np.moveaxis(pixels, 0, 2).copy()
    wanted[128:256, 256:384] = 255
    assert np.array_equal(everything(reader), wanted)
    _, report = converted(store, tmp_path / "a.svs")
    assert any("not stored" in each for each in report.warnings)


def test_places_that_a_dark_picture_declares_empty_stay_black(zarr: Any, tmp_path: Path) -> None:
    pixels = with_hole((255 - tissue(400, 500)) // 3)
    store = write_image(zarr, tmp_path / "a.zarr", [pixels], chunk=128, omero=omero(RGB_COLOURS))
    assert np.array_equal(everything(opened(store)[1]), np.moveaxis(pixels, 0, 2))


def test_black_chunks_that_are_stored_stay_black(zarr: Any, tmp_path: Path) -> None:
    pixels = with_hole(tissue(400, 500))
    store = write_image(
        zarr, tmp_path / "a.zarr", [pixels], chunk=128, omero=omero(RGB_COLOURS), config={"write_empty_chunks": True}
    )
    assert np.array_equal(everything(opened(store)[1]), np.moveaxis(pixels, 0, 2))


def test_another_fill_value_is_kept(zarr: Any, tmp_path: Path) -> None:
    pixels = planes(tissue(400, 500)).copy()
    pixels[:, 128:256, 256:384] = 230
    store = write_image(zarr, tmp_path / "a.zarr", [pixels], chunk=128, fill_value=230)
    assert any("every sample 230" in each for each in probe(store, SETTINGS).warnings)
    assert np.array_equal(everything(opened(store)[1]), np.moveaxis(pixels, 0, 2))


@pytest.mark.parametrize("name", [".zattrs", "0/.zarray"])
@pytest.mark.parametrize("text", ["", "{", "[]", "null", "[" * 100_000, '{"a": 1}', "\0\0\0\0"])
def test_damaged_documents(zarr: Any, name: str, text: str, tmp_path: Path) -> None:
    store = write_image(zarr, tmp_path / "a.zarr", [planes(tissue(64, 80))])
    (store / name).write_text(text)
    with pytest.raises((BadInput, Unsupported)):
        probe(store, SETTINGS)


def test_an_array_that_is_not_there(zarr: Any, tmp_path: Path) -> None:
    pixels = planes(tissue(200, 220))
    store = write_image(zarr, tmp_path / "a.zarr", [pixels, halved(pixels)])
    shutil.rmtree(store / "1")
    with pytest.raises(BadInput, match="there is no array"):
        probe(store, SETTINGS)


# What is not taken


def change(store: Path, name: str, **fields: Any) -> None:
    document = json.loads((store / name).read_text())
    (store / name).write_text(json.dumps(document | fields))


@pytest.mark.parametrize("name", ["../b.zarr/0", "/etc", "0/../../b.zarr/0", "..", "a\0b", "..\\x", 5, None])
def test_a_path_outside_of_the_store_is_refused(zarr: Any, name: object, tmp_path: Path) -> None:
    write_image(zarr, tmp_path / "b.zarr", [planes(tissue(64, 80))])
    store = write_image(zarr, tmp_path / "a.zarr", [planes(tissue(64, 80))])
    said = json.loads((store / ".zattrs").read_text())
    said["multiscales"][0]["datasets"][0]["path"] = name
    (store / ".zattrs").write_text(json.dumps(said))
    with pytest.raises(BadInput):
        probe(store, SETTINGS)
    with pytest.raises(BadInput, match="outside of itself"):
        ngff.below(store, name)


@pytest.mark.parametrize(
    "fields",
    [
        {"filters": [{"id": "pickle", "protocol": 5}]},
        {"compressor": {"id": "pickle"}},
        {"compressor": {"id": "json2"}},
        {"compressor": {"id": "nonsense"}},
        {"dtype": "|O"},
        {"dtype": [["a", "<u2"]]},
        {"dtype": "<U4"},
    ],
)
def test_codecs_and_types_that_run_code_are_never_opened(zarr: Any, fields: Json, tmp_path: Path) -> None:
    """numcodecs has one that unpickles, which runs whatever a chunk says."""
    import pickle

    ran = tmp_path / "ran"
    store = write_image(zarr, tmp_path / "a.zarr", [planes(tissue(64, 80))], compressors=None)

    class Bomb:
        def __reduce__(self) -> tuple[Any, ...]:
            return (open, (str(ran), "w"))

    for path in (store / "0").rglob("*"):
        if path.is_file() and path.name not in ngff.MEMBERS:
            path.write_bytes(pickle.dumps(Bomb()))
    change(store, "0/.zarray", **fields)
    with pytest.raises(Unsupported):
        everything(opened(store)[1])
    assert not ran.exists()


@pytest.mark.parametrize(
    ("said", "kind", "words"),
    [
        ({"plate": {"wells": []}}, Unsupported, "plate of wells"),
        ({}, Unsupported, "without an OME-Zarr image"),
        ({"multiscales": []}, BadInput, "no image"),
        ({"multiscales": [{"version": "0.4", "axes": []}]}, BadInput, "axes none"),
        ({"multiscales": [{"version": "0.3", "axes": ["y", "x"]}]}, Unsupported, r"OME-Zarr 0\.3"),
        ({"multiscales": [{"version": "0.1"}]}, Unsupported, r"OME-Zarr 0\.1"),
        ({"multiscales": [{"version": "0.4", "axes": axes_of("yx")}]}, BadInput, "resolutions"),
        (described("yx", [[1, 1]]) | {"image-label": {}}, Unsupported, "segmentation"),
        (described("cy", [[1, 1]]), BadInput, "axes c, y"),
        (described("yxc", [[1, 1, 1]]), BadInput, "no array"),
        ({ngff.LAYOUT: 3}, BadInput, "no image"),
    ],
)
def test_stores_that_are_no_slides(said: Json, kind: type[MimicError], words: str, tmp_path: Path) -> None:
    module("zarr")
    write_group(tmp_path / "a.zarr", said)
    with pytest.raises(kind, match=words):
        probe(tmp_path / "a.zarr", SETTINGS)


def test_a_later_version_is_unsupported(tmp_path: Path) -> None:
    module("zarr")
    write_group(tmp_path / "a.zarr", described("yx", [[1, 1]], version="0.6"), version="0.6")
    with pytest.raises(Unsupported, match=r"OME-Zarr 0\.6"):
        probe(tmp_path / "a.zarr", SETTINGS)


def test_an_axis_of_another_kind_must_have_one_place(zarr: Any, tmp_path: Path) -> None:
    store = write_image(zarr, tmp_path / "a.zarr", [planes(tissue(64, 80))])
    said = json.loads((store / ".zattrs").read_text())
    said["multiscales"][0]["axes"][0] = {"name": "angle", "type": "rotation"}
    (store / ".zattrs").write_text(json.dumps(said))
    with pytest.raises(Unsupported, match="neither t, c, z"):
        probe(store, SETTINGS)


@pytest.mark.parametrize("name", ["a.ozx", "a.ome.zarr.zip", "a.zarr.zip"])
def test_a_zipped_store_is_to_be_unpacked(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(b"PK\3\4")
    with pytest.raises(Unsupported, match="ZIP") as caught:
        probe(tmp_path / name, SETTINGS)
    assert "Unpack" in str(caught.value)


def test_without_the_extra_it_says_how_to_get_it(zarr: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = write_image(zarr, tmp_path / "a.zarr", [planes(tissue(64, 80))])
    monkeypatch.setitem(sys.modules, "zarr", None)
    with pytest.raises(ToolMissing) as caught:
        probe(store, SETTINGS)
    assert caught.value.exit_code == 5 and "pip install 'wsi-mimic[zarr]'" in str(caught.value)


def test_an_old_library_will_not_do(zarr: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(zarr, "__version__", "2.18.7")
    with pytest.raises(ToolMissing, match="too old"):
        chunks.library()


def test_scenes_of_a_store_are_not_merged(zarr: Any, tmp_path: Path) -> None:
    store = write_layout(zarr, tmp_path / "b.zarr", tissue(300, 400), tissue(220, 200), "0.4")
    path = store / "OME" / "METADATA.ome.xml"
    path.write_text(path.read_text(encoding="utf-8").replace("label image", "other"), encoding="utf-8")
    with pytest.raises(Unsupported, match="cannot be merged"):
        mimic.convert(store, tmp_path / "out", merge_scenes=True)


# Folders


@pytest.fixture
def scans(zarr: Any, tmp_path: Path) -> Path:
    folder = tmp_path / "scans"
    write_image(zarr, folder / "a.ome.zarr", [planes(tissue(64, 80))])
    write_layout(zarr, folder / "deep" / "b.zarr", tissue(100, 120), tissue(220, 200), "0.5")
    write_image(zarr, folder / "collection.zarr" / "one", [planes(tissue(64, 80))])
    write_group(folder / "collection.zarr", {})
    zarr.create_array(store=str(folder / "plain.zarr"), shape=(40, 40), chunks=(20, 20), dtype="u1")[:] = 1
    (folder / "plain.zarr" / "x.png").write_bytes(b"x")
    (folder / "a.ome.zarr" / "0" / "thumb.png").write_bytes(b"x")
    (folder / "c.png").write_bytes(b"x")
    write_group(folder / ".hidden.zarr", described("yx", [[1, 1]]))
    return folder


def test_a_store_is_one_slide_and_is_not_searched(scans: Path) -> None:
    found = list(find_slides(scans))
    assert found == sorted(found)
    names = [path.relative_to(scans).as_posix() for path in found]
    assert names == ["a.ome.zarr", "c.png", "collection.zarr/one", "deep/b.zarr"]


def test_requests_for_stores(scans: Path, tmp_path: Path) -> None:
    found = requests.expand([scans], tmp_path / "out", Options())
    outputs = {request.input.relative_to(scans).as_posix(): request.output for request in found.requests}
    assert outputs["deep/b.zarr"] == tmp_path / "out" / "deep" and not found.skipped
    alone = requests.expand([scans / "a.ome.zarr", scans / "plain.zarr"], None, Options())
    assert [request.input.name for request in alone.requests] == ["a.ome.zarr", "plain.zarr"]
    with pytest.raises(Unsupported, match="multiscales"):
        probe(scans / "plain.zarr", SETTINGS)
    with pytest.raises(UsageError, match="is a folder"):
        probe(scans, SETTINGS)


@pytest.mark.parametrize("name", ["a.ome.zarr/.zattrs", "a.ome.zarr/.zgroup", "deep/b.zarr/zarr.json"])
def test_a_document_may_be_named_for_its_store(scans: Path, name: str) -> None:
    assert probe(scans / name, SETTINGS).path == (scans / name).parent


def test_a_store_that_may_not_be_entered(scans: Path) -> None:
    if os.geteuid() == 0:
        pytest.skip("root may enter")
    (scans / "a.ome.zarr").chmod(0)
    try:
        assert scans / "a.ome.zarr" not in list(find_slides(scans))
        assert [path for path, _ in requests.expand([scans], None, Options()).skipped] == [scans / "a.ome.zarr"]
    finally:
        (scans / "a.ome.zarr").chmod(0o755)


def test_a_de_identified_store_tells_nothing(zarr: Any, tmp_path: Path) -> None:
    said = omero(RGB_COLOURS, labels=("Meier Hans", "Meier Hans", "Meier Hans"))
    store = write_image(
        zarr, tmp_path / "Meier_Hans_1234567.zarr", [planes(tissue(300, 340))], omero=said, name="Meier"
    )
    report = mimic.convert(store, tmp_path / "out", deidentify=True)
    (output,) = report.outputs
    assert b"Meier" not in output.read_bytes() and "Meier" not in output.name


# Any document

leaves = (
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.sampled_from(["0.4", "scale"])
)
values = st.recursive(leaves, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner))


def mutated(draw: st.DrawFn, document: Any) -> Any:
    """``document`` with one place of it replaced by anything, or left out."""
    if not isinstance(document, dict | list) or not document or draw(st.integers(0, 4)) == 0:
        return draw(values)
    copy = document.copy()
    key = draw(st.sampled_from(list(document) if isinstance(document, dict) else range(len(document))))
    if draw(st.integers(0, 5)) == 0:
        del copy[key]
    else:
        copy[key] = mutated(draw, document[key])
    return copy


@st.composite
def strange_images(draw: st.DrawFn) -> Json:
    made = described(CYX, [[1, 0.5, 0.5], [1, 1, 1]], omero=omero(RGB_COLOURS, windows=[(0, 9)] * 3))
    found = mutated(draw, made)
    return found if isinstance(found, dict) else {"multiscales": found}


@given(strange_images(), st.sampled_from([2, 3]))
@settings(max_examples=120)
def test_any_attributes_are_an_image_or_refused(said: Json, zarr_format: int) -> None:
    try:
        found = ngff.multiscale(said | {"zarr_format": zarr_format}, Path("a.zarr"))
    except (BadInput, Unsupported) as error:
        assert error.path == Path("a.zarr")
    else:
        assert found.axes.count("y") == found.axes.count("x") == 1 and found.paths
        assert found.scale is None or 0 < found.scale.x_um < 100


TWO = {
    "zarr_format": 2, "shape": [3, 64, 80], "chunks": [1, 64, 80], "dtype": "|u1", "fill_value": 0, "order": "C",
    "filters": None, "compressor": {"id": "zstd", "level": 1}, "dimension_separator": "/",
}  # fmt: skip
THREE = {
    "zarr_format": 3, "node_type": "array", "shape": [3, 64, 80], "data_type": "uint8", "fill_value": 0,
    "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [1, 64, 80]}},
    "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}},
    "codecs": [{"name": "bytes"}, {"name": "zstd", "configuration": {"level": 0}}], "attributes": {},
}  # fmt: skip


@given(data=st.data())
@settings(max_examples=80)
def test_any_array_document_is_read_or_refused(data: st.DataObject, tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("a")
    name, document = data.draw(st.sampled_from([(".zarray", TWO), ("zarr.json", THREE)]))
    strange = st.composite(lambda draw: mutated(draw, document))()
    (folder / name).write_text(json.dumps(data.draw(strange)))
    try:
        found = arrays.layout(folder)
    except (BadInput, Unsupported) as error:
        assert error.path in (folder, folder / name)
    else:
        assert len(found.grid) == len(found.shape) and arrays.absent(found)[0] >= 0
    shutil.rmtree(folder)
