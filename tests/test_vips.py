"""Ordinary pictures, written by other people's writers and compared with what these say was written."""

from __future__ import annotations

import os
import struct
import subprocess
import sys
import zlib
from datetime import datetime
from pathlib import Path

import imagecodecs
import numpy as np
import pytest
import pyvips
import tifffile
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageCms, ImageOps

from mimic import libvips, plain
from mimic.errors import BadInput, MimicError, OutputError, Unsupported
from mimic.model import Pixels
from mimic.settings import Settings
from mimic.sources import vips

SETTINGS = Settings()


def tissue(height: int = 700, width: int = 500) -> Pixels:
    """Smooth colours with noise: compresses like a picture, and no two rows are the same."""
    y, x = np.mgrid[0:height, 0:width]
    noise = np.random.default_rng(7).integers(0, 24, (height, width, 3))
    planes = np.stack((120 + 60 * np.sin(x / 37), 90 + 60 * np.cos(y / 23), 140 + 50 * np.sin((x + y) / 51)), axis=2)
    return np.asarray(planes + noise, np.uint8)


def reader(path: Path, scratch: Path) -> vips.VipsReader | plain.Reader:
    slide = vips.probe(path, SETTINGS)
    return vips.open(slide, slide.images[0], threads=2, settings=SETTINGS, scratch=scratch)


def read(path: Path, scratch: Path | None = None) -> Pixels:
    """The whole picture in the reader's own boxes."""
    opened = reader(path, scratch or path.parent)
    boxes = opened.boxes()
    pixels = np.zeros((boxes[-1].y_px + boxes[-1].height_px, boxes[-1].x_px + boxes[-1].width_px, 3), np.uint8)
    try:
        for box in boxes:
            pixels[box.y_px : box.y_px + box.height_px, box.x_px : box.x_px + box.width_px] = opened.read(box)
        return pixels
    finally:
        opened.close()


@pytest.fixture
def without_plain(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every TIFF is libvips'."""
    monkeypatch.setattr(plain, "layout", lambda _: None)


def psnr(one: NDArray[np.uint8], two: NDArray[np.uint8]) -> float:
    error = np.mean((one.astype(float) - two) ** 2)
    return float(10 * np.log10(255**2 / error)) if error else 99.0


@pytest.mark.parametrize("name", ["a.png", "a.tif", "a.TIFF", "a.bmp", "lossless.webp", "a.jp2", "a.j2k"])
def test_lossless_formats_give_their_exact_pixels(tmp_path: Path, name: str) -> None:
    path, pixels = tmp_path / name, tissue()
    if path.suffix in (".jp2", ".j2k"):
        path.write_bytes(imagecodecs.jpeg2k_encode(pixels, reversible=True, level=0, codecformat=path.suffix[1:]))
    else:
        Image.fromarray(pixels).save(path, **({"lossless": True} if path.suffix == ".webp" else {}))
    assert vips.claims(path)
    slide = vips.probe(path, SETTINGS)
    image = slide.images[0]
    assert (image.levels[0].width_px, image.levels[0].height_px) == (500, 700)
    assert (image.channels, image.rgb, image.pixel_type, image.bits, image.role) == (3, True, "uint8", 8, "scan")
    assert slide.format.endswith(" picture") and slide.files == (path,) and slide.source == "vips"
    assert np.array_equal(read(path), pixels)


@pytest.mark.parametrize("progressive", [False, True])
def test_jpeg_decodes_as_pillow_does(tmp_path: Path, progressive: bool) -> None:
    path = tmp_path / "a.jpg"
    Image.fromarray(tissue()).save(path, quality=90, progressive=progressive)
    assert psnr(read(path), np.asarray(Image.open(path))) > 45


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", [".jpg", ".tif", ".png", ".webp"])
def test_exif_orientation_is_applied(tmp_path: Path, orientation: int, suffix: str) -> None:
    path = tmp_path / f"a{suffix}"
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    extra = {"lossless": True} if suffix == ".webp" else {}
    Image.fromarray(tissue(300, 200)).save(path, exif=exif, **extra)
    expected = np.asarray(ImageOps.exif_transpose(Image.open(path)))
    level = vips.probe(path, SETTINGS).images[0].levels[0]
    assert (level.height_px, level.width_px) == expected.shape[:2]
    assert psnr(read(path), expected) > 45


@pytest.mark.parametrize("rows", [1, 7, 43, 100, 300, 700])
@pytest.mark.parametrize("tiled", [False, True])
@pytest.mark.usefixtures("without_plain")
def test_bands_need_not_fit_strips_or_tiles(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rows: int, tiled: bool
) -> None:
    monkeypatch.setattr(vips, "BAND_BYTES", 1)
    path, pixels = tmp_path / "a.tif", tissue()
    layout = {"tile": (-(-rows // 16) * 16, 64)} if tiled else {"rowsperstrip": rows}
    tifffile.imwrite(path, pixels, photometric="rgb", compression="lzw", **layout)
    assert len(reader(path, tmp_path).boxes()) == (1 if tiled and rows == 700 else 2 if tiled and rows == 300 else 3)
    assert np.array_equal(read(path), pixels)


def test_boxes_side_by_side_decode_the_picture_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, pixels, loads = tmp_path / "a.png", tissue(), []
    Image.fromarray(pixels).save(path)
    opened, load = reader(path, tmp_path), vips.VipsReader._start
    monkeypatch.setattr(vips.VipsReader, "_start", lambda self: loads.append(1) or load(self))
    for y in range(0, 700, 100):
        for x in range(0, 500, 100):
            assert np.array_equal(opened.read(vips.Box(x, y, 100, 100)), pixels[y : y + 100, x : x + 100])
    assert not loads
    opened.read(vips.Box(0, 0, 500, 10))
    assert loads == [1]


def test_a_full_or_missing_scratch_is_an_output_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vips, "IN_MEMORY_BYTES", 1000)
    path, exif = tmp_path / "a.png", Image.Exif()
    exif[ExifTags.Base.Orientation] = 3
    Image.fromarray(tissue(64, 64)).save(path, exif=exif)
    with pytest.raises(OutputError):
        read(path, tmp_path / "missing")


def test_a_large_turned_picture_goes_through_scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vips, "IN_MEMORY_BYTES", 1000)
    path, scratch = tmp_path / "a.png", tmp_path / "scratch"
    scratch.mkdir()
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    Image.fromarray(tissue()).save(path, exif=exif)
    assert np.array_equal(read(path, scratch), np.asarray(ImageOps.exif_transpose(Image.open(path))))
    assert len(list(scratch.iterdir())) == 1


@pytest.mark.parametrize("suffix", [".png", ".tif", ".webp", ".bmp"])
def test_alpha_is_flattened_on_white(tmp_path: Path, suffix: str) -> None:
    path, pixels = tmp_path / f"a{suffix}", np.dstack((tissue(), np.full((700, 500), 255, np.uint8)))
    pixels[:300, :, 3] = 0
    pixels[300:350, :, 3] = 128
    if suffix == ".bmp":
        _write_bmp_with_alpha(path, pixels)
    else:
        Image.fromarray(pixels).save(path, **({"lossless": True, "exact": True} if suffix == ".webp" else {}))
    got, colour = read(path), pixels[..., :3].astype(float)
    assert (got[:300] == 255).all()
    assert np.abs(got[300:350] - (colour[300:350] * 128 + 255 * 127) / 255).max() <= 1
    assert np.array_equal(got[350:], pixels[350:, :, :3])


def _write_bmp_with_alpha(path: Path, rgba: NDArray[np.uint8]) -> None:
    """A V4 bitmap with alpha mask, bottom row first; Pillow writes none."""
    height, width = rgba.shape[:2]
    masks = struct.pack("<4I", 0xFF0000, 0xFF00, 0xFF, 0xFF000000)
    head = struct.pack("<IiiHHIIiiII", 108, width, height, 1, 32, 3, 0, 2835, 2835, 0, 0) + masks + b"BGRs".ljust(52)
    body = np.ascontiguousarray(rgba[::-1, :, [2, 1, 0, 3]]).tobytes()
    path.write_bytes(b"BM" + struct.pack("<IHHI", 14 + len(head) + len(body), 0, 0, 14 + len(head)) + head + body)


@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_sixteen_bits_are_scaled_and_rounded(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a{suffix}"
    deep = np.random.default_rng(3).integers(0, 65536, (300, 256, 3)).astype(np.uint16)
    deep[0, :, 0] = np.arange(256) * 257
    if suffix == ".png":
        path.write_bytes(imagecodecs.png_encode(deep))
    else:
        tifffile.imwrite(path, deep, photometric="rgb", compression="deflate")
    assert vips.claims(path)
    got = read(path)
    assert np.array_equal(got, np.round(deep / 257).astype(np.uint8))
    assert got[0, :, 0].tolist() == list(range(256))
    assert vips.probe(path, SETTINGS).warnings


def test_sixteen_bits_with_alpha(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    deep = np.full((64, 64, 4), 65535, np.uint16)
    deep[..., 0], deep[:32, :, 3] = 257 * 10, 0
    path.write_bytes(imagecodecs.png_encode(deep))
    got = read(path)
    assert (got[:32] == 255).all() and (got[32:] == (10, 255, 255)).all()


@pytest.mark.parametrize("mode", ["L", "1", "P", "LA", "I;16"])
@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_greys_and_palettes_become_rgb(tmp_path: Path, mode: str, suffix: str) -> None:
    path, source = tmp_path / f"a{suffix}", Image.fromarray(tissue())
    if mode == "I;16":
        grey = source.convert("L")
        Image.fromarray(np.asarray(grey).astype(np.uint16) * 257).save(path)
        expected = grey.convert("RGB")
    else:
        converted = source.convert("L").convert("LA") if mode == "LA" else source.convert(mode)
        converted.save(path)
        expected = converted.convert("RGB")
    assert vips.claims(path)
    assert np.array_equal(read(path), np.asarray(expected))


@pytest.mark.parametrize("profiled", [False, True])
@pytest.mark.parametrize("suffix", [".jpg", ".tif"])
def test_cmyk_becomes_srgb(tmp_path: Path, suffix: str, profiled: bool) -> None:
    path = tmp_path / f"a{suffix}"
    if profiled:
        profile = pyvips.Image.black(8, 8, bands=3).copy(interpretation="srgb").icc_export(output_profile="cmyk")
        icc = {"icc_profile": profile.get("icc-profile-data")}
    else:
        icc = {}
    cmyk = np.zeros((80, 100, 4), np.uint8)
    cmyk[:, 50:, 1] = 255  # left: no ink, right: magenta
    Image.fromarray(cmyk, "CMYK").save(path, **icc, **({"quality": 95} if suffix == ".jpg" else {}))
    assert vips.claims(path)
    got = read(path).astype(int)
    assert got[:, :40].min() >= 250
    red, green, blue = got[:, 60:].reshape(-1, 3).mean(axis=0)
    assert red > 180 and green < 80 and blue > 80


def test_an_rgb_profile_leaves_the_pixels_alone(tmp_path: Path) -> None:
    path, pixels = tmp_path / "a.png", tissue()
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    Image.fromarray(pixels).save(path, icc_profile=profile)
    assert np.array_equal(read(path), pixels)


@pytest.mark.parametrize("kind", [np.float32, np.int32, np.uint32, np.int16])
def test_samples_without_a_colour_are_unsupported(tmp_path: Path, kind: type) -> None:
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, np.zeros((64, 64), kind), photometric="minisblack", metadata=None)
    assert not vips.claims(path)
    with pytest.raises(Unsupported):
        vips.probe(path, SETTINGS)


def test_tiled_pyramid_is_one_picture(tmp_path: Path) -> None:
    path, pixels = tmp_path / "a.tif", tissue(1100, 900)
    image = pyvips.Image.new_from_array(pixels).copy(interpretation="srgb")
    image.tiffsave(str(path), tile=True, pyramid=True, compression="deflate", tile_width=128, tile_height=128)
    assert vips.claims(path)
    level = vips.probe(path, SETTINGS).images[0].levels
    assert len(level) == 1 and (level[0].tile_width_px, level[0].codec) == (128, "deflate")
    assert np.array_equal(read(path), pixels)


@pytest.mark.parametrize(
    ("description", "shape"),
    [
        ('<?xml version="1.0"?><OME xmlns="x"/>', (64, 64, 3)),
        ("Aperio Image Library v12.0.15", (64, 64, 3)),
        ("ImageJ=1.54\nunit=micron", (64, 64, 3)),
        ("<PerkinElmer-QPI-ImageDescription>", (64, 64, 3)),
        ("", (5, 64, 64, 3)),
    ],
)
def test_instrument_tiffs_and_stacks_go_to_bioformats(tmp_path: Path, description: str, shape: tuple[int, ...]) -> None:
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, np.zeros(shape, np.uint8), photometric="rgb", description=description, metadata=None)
    assert not vips.claims(path)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.png", b""),
        ("a.jpg", b"text"),
        ("a.txt", b"\x89PNG\r\n\x1a\n"),
        ("a.tif", b"II*\0\xff\xff"),
        ("no.png", None),
    ],
)
def test_claims_never_raises(tmp_path: Path, name: str, content: bytes | None) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    assert not vips.claims(tmp_path / name)
    assert not vips.claims(tmp_path)


@pytest.mark.parametrize(
    ("dpi", "size_um"),
    [(25.4e3 / 0.25, 0.25), (25.4e3 / 0.5, 0.5), (72, None), (300, None), (4800, None), (9600, None), (25.4e5, None)],
)
@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_resolution_tags_count_only_for_a_microscope(
    tmp_path: Path, suffix: str, dpi: float, size_um: float | None
) -> None:
    path = tmp_path / f"a{suffix}"
    Image.fromarray(tissue(64, 64)).save(path, dpi=(dpi, dpi))
    scale = vips.probe(path, SETTINGS).images[0].scale
    if size_um is None:
        assert scale is None
    else:
        assert scale is not None and scale.x_um == pytest.approx(size_um, rel=1e-4)
        assert scale.origin == "file" and "resolution tags" in scale.note


def test_a_tiff_resolution_without_a_unit_is_no_scale(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, tissue(64, 64), photometric="rgb", resolution=(4000, 4000), resolutionunit=1, metadata=None)
    assert vips.claims(path) and vips.probe(path, SETTINGS).images[0].scale is None
    tifffile.imwrite(path, tissue(64, 64), photometric="rgb", resolution=(40000, 20000), resolutionunit=3)
    scale = vips.probe(path, SETTINGS).images[0].scale
    assert scale is not None and (scale.x_um, scale.y_um) == (0.25, 0.5)


def test_the_exif_date_is_the_acquisition(tmp_path: Path) -> None:
    path, exif = tmp_path / "a.jpg", Image.Exif()
    exif.get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.DateTimeOriginal] = "2021:03:04 05:06:07"
    Image.fromarray(tissue(64, 64)).save(path, exif=exif)
    assert vips.probe(path, SETTINGS).images[0].acquired == datetime(2021, 3, 4, 5, 6, 7)


def test_bands_cover_the_picture_and_can_be_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vips, "BAND_BYTES", 500 * 3 * 256)
    path, pixels = tmp_path / "a.png", tissue()
    Image.fromarray(pixels).save(path)
    first = reader(path, tmp_path)
    bands = first.boxes()
    assert [(box.y_px, box.height_px) for box in bands] == [(0, 256), (256, 256), (512, 188)]
    for box in (bands[0], bands[1], bands[2], bands[1], bands[0]):  # and back up
        assert np.array_equal(first.read(box), pixels[box.y_px : box.y_px + box.height_px])
    first.close()
    second = reader(path, tmp_path)  # starts in the middle, with a box of its own
    box = vips.Box(100, 300, 64, 50)
    assert np.array_equal(second.read(box), pixels[300:350, 100:164])
    for x, y, width, height in (
        (0, 310, 500, 40),
        (400, 340, 100, 60),
        (0, 340, 90, 60),
        (7, 390, 80, 200),
        (0, 0, 9, 9),
    ):
        got = second.read(vips.Box(x, y, width, height))  # inside the rows at hand, across their end, above them
        assert np.array_equal(got, pixels[y : y + height, x : x + width])
    second.close()
    second.close()
    with pytest.raises(ValueError, match="closed"):
        second.read(box)


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.tif", "a.bmp", "a.webp", "a.jp2"])
def test_a_cut_picture_is_bad_input_with_a_clean_message(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    if path.suffix == ".jp2":
        path.write_bytes(imagecodecs.jpeg2k_encode(tissue(), reversible=True, level=0, codecformat="jp2"))
    else:
        Image.fromarray(tissue()).save(path)
    whole = path.read_bytes()
    for part in (0.3, 0.6, 0.9):
        path.write_bytes(whole[: int(len(whole) * part)])
        with pytest.raises(BadInput) as caught:
            read(path)
        assert "\n" not in str(caught.value) and "Vips" not in str(caught.value)


@pytest.mark.parametrize("tile", [(128, 128), None])
@pytest.mark.parametrize("compression", ["lzw", "jpeg"])
@pytest.mark.usefixtures("without_plain")
def test_a_tile_that_libvips_leaves_blank_is_bad_input(
    tmp_path: Path, compression: str, tile: tuple[int, int] | None
) -> None:
    path = tmp_path / "a.tif"
    strip = None if tile else 128
    tifffile.imwrite(path, tissue(), photometric="rgb", compression=compression, tile=tile, rowsperstrip=strip)
    with tifffile.TiffFile(path) as file:
        middle = len(file.pages[0].dataoffsets) // 2
        at = file.pages[0].dataoffsets[middle] + file.pages[0].databytecounts[middle] // 2
    with path.open("r+b") as raw:
        raw.seek(at)
        raw.write(b"\xff\x00" * 12 + b"\xff\xff" * 8)
    with pytest.raises(BadInput):
        read(path)
    Image.fromarray(tissue(64, 64)).save(tmp_path / "sound.png")
    assert read(tmp_path / "sound.png").shape == (64, 64, 3)  # the log is clean again


def test_a_damaged_jpeg_scan_is_bad_input_and_a_trailer_is_not(tmp_path: Path) -> None:
    path = tmp_path / "a.jpg"
    Image.fromarray(tissue()).save(path, quality=90)
    whole = path.read_bytes()
    middle = len(whole) // 2
    path.write_bytes(whole[:middle] + b"\xff\xd5" + b"\x00\x55" * 40 + whole[middle + 82 :])
    with pytest.raises(BadInput):
        read(path)
    path.write_bytes(whole + b"\0" * 100 + b"trailer of a camera")
    assert read(path).shape == (700, 500, 3)
    path.write_bytes(whole[:-2] + b"\x12\x34\xff\xd9")
    assert read(path).shape == (700, 500, 3)


@pytest.mark.parametrize("last", [False, True])
def test_image_data_that_do_not_match_their_checksum_are_bad_input(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, last: bool
) -> None:
    """Nothing else is wrong, and the pixels would be the right ones: only who looks at the checksums can tell."""
    path = tmp_path / "a.png"
    Image.fromarray(tissue(900, 700)).save(path, compress_level=0)
    whole = bytearray(path.read_bytes())
    starts = [at - 4 for at in range(len(whole)) if whole[at : at + 4] == b"IDAT"]
    at = starts[-1 if last else len(starts) // 2]
    whole[at + 8 + struct.unpack_from(">I", whole, at)[0]] ^= 1
    path.write_bytes(whole)
    assert len(starts) > 2 and vips.probe(path, SETTINGS)
    with pytest.raises(BadInput, match=f"chunk at byte {at} does not match its checksum"):
        read(path)
    assert libvips.checks_sums()  # tried, not assumed; one that does not is not relied upon
    monkeypatch.setattr(libvips, "checks_sums", lambda: False)
    with pytest.raises(BadInput, match="checksum"):
        reader(path, tmp_path)


def test_a_bad_colour_profile_does_no_harm(tmp_path: Path) -> None:
    path, pixels = tmp_path / "a.png", tissue(64, 64)
    Image.fromarray(pixels).save(path)
    data = zlib.compress(b"no profile at all" * 20)
    body = b"iCCPbad\0\0" + data
    chunk = struct.pack(">I", len(body) - 4) + body + struct.pack(">I", zlib.crc32(body))
    whole = path.read_bytes()
    path.write_bytes(whole[:33] + chunk + whole[33:])
    assert np.array_equal(read(path), pixels)


def test_names_that_trip_libvips(tmp_path: Path) -> None:
    pixels = tissue(64, 64)
    for name in ("a b[page=1].png", "-x.png", "%s.png", "é😀'\".png", "x[n=2]"):
        path = tmp_path / name
        Image.fromarray(pixels).save(path, format="PNG")
        assert np.array_equal(read(path), pixels)
    raw = os.fsencode(tmp_path) + b"/\xff\xfe.png"
    with open(raw, "wb") as file:  # noqa: PTH123 (a name that is no text)
        Image.fromarray(pixels).save(file, format="PNG")
    assert np.array_equal(read(Path(os.fsdecode(raw))), pixels)


def test_a_rewritten_file_is_read_anew(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    for pixels in (tissue(64, 64), 255 - tissue(64, 64)):
        Image.fromarray(pixels).save(path)
        assert np.array_equal(read(path), pixels)
    opened = vips.probe(path, SETTINGS)
    Image.fromarray(tissue(65, 64)).save(path)
    with pytest.raises(BadInput, match="64 x 65 pixels now"):
        vips.open(opened, opened.images[0], threads=1, settings=SETTINGS, scratch=tmp_path)


def test_the_source_imports_nothing_heavy_and_says_its_version() -> None:
    code = "import sys, mimic.sources.vips; print(sorted({'pyvips', 'PIL', 'jpype'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
    names = {tool.name: tool.version for tool in vips.tools(SETTINGS)}
    assert names.keys() == {"libvips", "pyvips", "imagecodecs"} and all(names.values())


@pytest.mark.parametrize("decoder", ["without_plain", "tmp_path"])
def test_damage_prints_nothing(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], request: pytest.FixtureRequest, decoder: str
) -> None:
    request.getfixturevalue(decoder)
    path = tmp_path / "a.tif"
    Image.fromarray(tissue()).save(path, compression="tiff_lzw")
    whole = bytearray(path.read_bytes())
    whole[2000:2100] = b"\xff" * 100
    path.write_bytes(whole)
    with pytest.raises(MimicError):
        read(path)
    assert capfd.readouterr() == ("", "")


def test_the_corpus_picture() -> None:
    corpus = os.environ.get("MIMIC_CORPUS")
    if not corpus:
        pytest.skip("MIMIC_CORPUS is not set")
    path = Path(corpus) / "rgb" / "hgsc_stromal_he.jpg"
    assert vips.claims(path)
    image = vips.probe(path, SETTINGS).images[0]
    assert (image.levels[0].width_px, image.levels[0].height_px, image.scale) == (1500, 1500, None)
    assert psnr(read(path), np.asarray(Image.open(path))) > 45
    for other in ("svs/CMU-1-Small-Region.svs", "ometiff/OS-1-detail.ome.tif", "ndpi/test3-TRITC 2 (560).ndpi"):
        assert (Path(corpus) / other).is_file() and not vips.claims(Path(corpus) / other)


@pytest.mark.parametrize(("skipped", "harmless"), [(4, True), (12, False), (2454, False)])
def test_jpeg_whose_decoder_skipped_much_is_damaged(skipped: int, harmless: bool) -> None:
    """libjpeg only warns: a few bytes are padding, 2454 were seen after 4000 bytes in the middle had been zeroed."""
    line = f"VipsJpeg: Corrupt JPEG data: {skipped} extraneous bytes before marker 0xd9"
    assert bool(libvips.HARMLESS.search(line)) == harmless
