"""The bioformats source: pixels against the truth, facts against the container, and files that mean harm."""

from __future__ import annotations

import io
import itertools
import os
import shutil
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import PIL.Image
import pytest
import tifffile
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st
from numpy.typing import NDArray

from mimic import structure
from mimic.errors import BadInput, MimicError, ToolFailed, Unsupported
from mimic.geometry import grid
from mimic.model import Box, Level, Pixels, Slide
from mimic.programs import bfclient
from mimic.settings import load
from mimic.sources import bioformats
from mimic.sources.bioformats import Reader, box_size
from mimic.structure import CziFacts, CziScene
from tests.conftest import module
from tools import czi_samples, make_samples
from tools.make_samples import Sample


@pytest.fixture(scope="module", autouse=True)
def _ended() -> Iterator[None]:
    yield
    bfclient.shutdown()


def probe(path: Path) -> Slide:
    return bioformats.probe(path, load())


@contextmanager
def reader(slide: Slide, index: int = 0, *, threads: int = 2) -> Iterator[Reader]:
    found = bioformats.open(slide, slide.images[index], threads=threads, settings=load(), scratch=Path("/nowhere"))
    with closing(found):
        yield found


def pixels_of(slide: Slide, index: int = 0, *, threads: int = 1) -> Pixels:
    """All of an image, box by box, on that many threads."""
    size = slide.images[index].levels[0]
    whole = np.full((size.height_px, size.width_px, 3), 77, np.uint8)

    def put(box: Box) -> None:
        whole[box.y_px : box.y_px + box.height_px, box.x_px : box.x_px + box.width_px] = found.read(box)

    with reader(slide, index, threads=threads) as found, ThreadPoolExecutor(threads) as pool:
        list(pool.map(put, found.boxes()))
    return whole


def off(one: Pixels, other: Pixels) -> float:
    """Mean difference in grey levels."""
    assert one.shape == other.shape
    return float(np.abs(one.astype(int) - other).mean())


# Pixels


@pytest.mark.parametrize(
    "name", ["czi_raw", "czi_zstd", "czi_jpegxr", "czi_jpegxr_lossy", "ome_tiff", "tiff", "svs", "dicom"]
)
def test_pixels_facts_and_files_are_the_samples(sample: Callable[[str], Sample], name: str) -> None:
    made = sample(name)
    slide = probe(made.path)
    found = pixels_of(slide)
    if made.exact:
        assert np.array_equal(found, made.pixels)
    else:
        assert off(found, made.pixels) < 0.6
    scan = slide.images[0]
    assert slide.scans() == (scan,) and made.path.absolute() in slide.files
    assert scan.scale is not None and scan.scale.x_um == pytest.approx(made.mpp_um)
    assert (scan.objective.power if scan.objective else None) == made.power


def test_label_and_macro(sample_czi: Path) -> None:
    slide = probe(sample_czi)
    assert [image.role for image in slide.images] == ["scan", "label", "macro"]
    for index in (1, 2):
        assert pixels_of(slide, index).std() > 5
        assert slide.images[index].scale is None


def test_dicom_against_pydicom(corpus: Path) -> None:
    """The frames of the base level, taken out by pydicom and decoded by Pillow."""
    pydicom, encaps = module("pydicom"), module("pydicom.encaps")
    folder = corpus / "dicom" / "cmu_small_region_series"
    files = sorted(folder.glob("*.dcm"))
    headers = {path: pydicom.dcmread(path) for path in files}
    base = max(files, key=lambda path: headers[path].TotalPixelMatrixColumns)
    header = headers[base]
    slide = probe(base)
    assert set(slide.files) == set(files) and len(files) == 8
    across, down = -(-header.TotalPixelMatrixColumns // header.Columns), -(-header.TotalPixelMatrixRows // header.Rows)
    truth = np.zeros((down * header.Rows, across * header.Columns, 3), np.uint8)
    frames = encaps.generate_frames(header.PixelData, number_of_frames=int(header.NumberOfFrames))
    for number, frame in enumerate(frames):
        y, x = (part * side for part, side in zip(divmod(number, across), (header.Rows, header.Columns), strict=True))
        truth[y : y + header.Rows, x : x + header.Columns] = np.asarray(
            PIL.Image.open(io.BytesIO(frame)).convert("RGB")
        )
    truth = truth[: header.TotalPixelMatrixRows, : header.TotalPixelMatrixColumns]
    assert off(pixels_of(slide, threads=2), truth) < 0.6
    assert {image.role for image in slide.images} == {"scan", "thumbnail", "macro", "label"}
    scale = slide.scans()[0].scale
    assert scale is not None and scale.x_um == pytest.approx(0.499)


@pytest.mark.parametrize("name", ["czi_jpegxr", "ome_tiff"])
def test_four_threads_read_what_one_reads(sample: Callable[[str], Sample], name: str) -> None:
    """Off the grid too, from one reader, many times over: every box is a piece of the truth."""
    made = sample(name)
    slide = probe(made.path)
    high, wide = made.pixels.shape[:2]
    rng = np.random.default_rng(5)
    boxes = [
        Box(x := int(rng.integers(0, wide - 1)), y := int(rng.integers(0, high - 1)),
            int(rng.integers(1, min(300, wide - x) + 1)), int(rng.integers(1, min(300, high - y) + 1)))
        for _ in range(40)
    ]  # fmt: skip
    with reader(slide, threads=4) as found, ThreadPoolExecutor(4) as pool:
        for box, pixels in zip(boxes, pool.map(found.read, boxes), strict=True):
            truth = made.pixels[box.y_px : box.y_px + box.height_px, box.x_px : box.x_px + box.width_px]
            assert np.array_equal(pixels, truth), box


def test_two_readers_at_once_do_not_mix_their_pixels(sample: Callable[[str], Sample]) -> None:
    """Each has memory of its own with the child; a library's user may well convert two slides in two threads."""
    raw, tiff = sample("czi_raw"), sample("svs")
    slides, box = (probe(raw.path), probe(tiff.path)), Box(100, 100, 700, 700)
    with reader(slides[0]) as first, reader(slides[1]) as second, ThreadPoolExecutor(4) as pool:
        alone = first.read(box), second.read(box)
        turns = list(itertools.islice(itertools.cycle([(first, 0), (second, 1)]), 60))
        for (_, number), pixels in zip(turns, pool.map(lambda turn: turn[0].read(box), turns), strict=True):
            assert np.array_equal(pixels, alone[number])
    assert off(alone[0], alone[1]) > 0


def test_a_box_larger_than_a_slot_comes_in_parts(
    sample: Callable[[str], Sample], monkeypatch: pytest.MonkeyPatch
) -> None:
    made = sample("czi_raw")
    monkeypatch.setattr(bioformats, "BOX_MIN_PX", 512)
    with reader(probe(made.path), threads=1) as found:
        assert max(box.width_px for box in found.boxes()) == 512
        assert np.array_equal(found.read(Box(3, 5, 1400, 1100)), made.pixels[5:1105, 3:1403])


def test_a_closed_reader_reads_nothing(sample_czi: Path) -> None:
    with reader(probe(sample_czi)) as found:
        found.close()
        with pytest.raises(ToolFailed, match="closed"):
            found.read(Box(0, 0, 10, 10))
        found.close()


def test_what_is_not_rgb_is_not_opened(corpus_file: Callable[[str], Path]) -> None:
    slide = probe(corpus_file("czi/two_scenes_u16_z2.czi"))
    assert [image.z_planes for image in slide.images] == [2, 2]
    with pytest.raises(Unsupported, match="not 8-bit RGB"), reader(slide):
        pass
    assert not bfclient.server(load()).busy


def test_tools_name_themselves() -> None:
    java, formats = bioformats.tools(load())
    assert (formats.name, formats.version) == ("Bio-Formats", "7.3.1") and java.version and java.path


# Boxes


def test_boxes_of_a_czi_are_whole_tiles_and_wide(sample_czi: Path) -> None:
    slide = probe(sample_czi)
    czi = structure.check(sample_czi).czi
    assert czi is not None
    with reader(slide) as found:
        boxes = found.boxes()
    assert max(box.width_px for box in boxes) >= 2048
    assert all(box.x_px % czi.tile_width_px == 0 and box.y_px % czi.tile_height_px == 0 for box in boxes)


@given(
    width=st.integers(1, 300_000), height=st.integers(1, 300_000),
    tile=st.tuples(st.integers(1, 9000) | st.none(), st.integers(1, 9000) | st.none()),
)  # fmt: skip
def test_a_box_is_never_too_large_and_keeps_to_the_tiles(
    width: int, height: int, tile: tuple[int | None, int | None]
) -> None:
    wide, high = box_size(Level(width, height, *tile), None)
    assert 1 <= wide <= width and 1 <= high <= height
    assert wide == width or wide % (tile[0] or 1) == 0
    assert wide >= min(width, 2048)
    assert wide * high * 3 <= max(bioformats.BOX_MAX_BYTES, wide * 3)
    if wide * high * 3 < bioformats.BOX_MAX_BYTES // 2 and (tile[1] or 1) <= 512:
        assert high >= min(height, 2048 - 512)


def test_a_czis_own_tiles_count() -> None:
    czi = CziFacts(None, None, 0, 0, 0, 0, (), np.zeros((0, 7), np.int64), 1600, 1200, 0)
    assert box_size(Level(50_000, 50_000, 1024, 1024), czi) == (3200, 2400)


def mosaic_facts(across: int, down: int, *, step_px: int, tile_px: int = 2048, channels: int = 1) -> CziFacts:
    """A CZI of square blocks that lie ``step_px`` apart."""
    places = [(0, x * step_px, y * step_px, tile_px, tile_px, 3, 4) for y in range(down) for x in range(across)]
    wide, high = (count * step_px + tile_px - step_px for count in (across, down))
    scene = CziScene(0, 0, 0, wide, high, covered_px=wide * high)
    return CziFacts(None, None, 0, 0, wide, high, (scene,), np.array(places * channels, np.int64), tile_px, tile_px, 0)


def decodes(czi: CziFacts, boxes: Sequence[Box]) -> NDArray[np.int64]:
    """In how many boxes each block lies: each read of a box decodes all that it touches."""
    x, y, wide, high = (czi.subblocks[:, column, None] for column in range(1, 5))
    left, top = (np.array([getattr(box, name) for box in boxes]) for name in ("x_px", "y_px"))
    right, below = (np.array([getattr(box, name) for box in boxes]) for name in ("width_px", "height_px"))
    touched = (x < left + right) & (y < top + below) & (x + wide > left) & (y + high > top)
    return np.asarray(touched.sum(axis=1), np.int64)


@pytest.mark.parametrize("channels", [1, 3])
def test_blocks_side_by_side_are_decoded_once(channels: int) -> None:
    czi = mosaic_facts(18, 16, step_px=2048, channels=channels)
    size = Level(czi.width_px, czi.height_px)
    assert (decodes(czi, grid(size, box_size(size, czi))) == 1).all()


@pytest.mark.parametrize(("pixel_bytes", "most"), [(2, 2.3), (3, 2.6), (6, 3.4)])
def test_blocks_that_overlap_are_decoded_as_seldom_as_memory_allows(pixel_bytes: int, most: float) -> None:
    czi = mosaic_facts(18, 16, step_px=1843)
    size = Level(czi.width_px, czi.height_px)
    box = box_size(size, czi, pixel_bytes=pixel_bytes)
    assert box[0] * box[1] * pixel_bytes <= bioformats.BOX_MAX_BYTES
    assert decodes(czi, grid(size, box)).mean() < most < decodes(czi, grid(size, (2048, 2048))).mean()


def test_the_convert_pass_reads_each_pixel_once_and_decodes_each_block_once(
    sample_czi: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Box] = []

    def ask(self: bfclient.Server, op: str, path: Path | None = None, **request: Any) -> bfclient.Answer:
        if op == "read":
            asked.append(Box(*request["box"]))
        return plain(self, op, path, **request)

    plain = bfclient.Server.ask
    monkeypatch.setattr(bfclient.Server, "ask", ask)
    slide = probe(sample_czi)
    size, czi = slide.images[0].levels[0], structure.check(sample_czi).czi
    assert czi is not None and len(czi.subblocks) > 4
    pixels_of(slide, threads=2)
    assert sum(box.width_px * box.height_px for box in asked) == size.width_px * size.height_px
    assert (decodes(czi, asked) == 1).all()


@examples(max_examples=100)
@given(st.integers(1, 60), st.integers(1, 60), st.integers(1, 70), st.integers(1, 70))
def test_a_grid_covers_each_pixel_once(width: int, height: int, across: int, down: int) -> None:
    seen = np.zeros((height, width), int)
    for box in grid(Level(width, height), (across, down)):
        assert 1 <= box.width_px <= across and 1 <= box.height_px <= down
        seen[box.y_px : box.y_px + box.height_px, box.x_px : box.x_px + box.width_px] += 1
    assert (seen == 1).all()


# The container's own word


@pytest.mark.parametrize(("change", "words"), [({"width_px": 1536}, "3072 x 2304"), ({"height_px": 1152}, "1152 px")])
def test_sizes_that_differ_from_the_containers_are_refused(
    sample_czi: Path, monkeypatch: pytest.MonkeyPatch, change: dict[str, int], words: str
) -> None:
    plain = structure.check

    def halved(path: Path) -> structure.Facts:
        facts = plain(path)
        assert facts.czi is not None
        scene = replace(facts.czi.scenes[0], **change)
        return replace(facts, czi=replace(facts.czi, scenes=(scene,)))

    monkeypatch.setattr(structure, "check", halved)
    with pytest.raises(BadInput, match=words) as caught:
        probe(sample_czi)
    assert "1536" in str(caught.value) or "1152" in str(caught.value)


def czi_with_holes(path: Path, missing: set[tuple[int, int]]) -> Pixels:
    """A JPEG-XR mosaic of 4 x 3 tiles of 256 px without some of them; returns what is true of it."""
    czi = module("pylibCZIrw.czi")
    truth = make_samples.histology(1024, 768)
    with czi.create_czi(str(path), compression_options="uncompressed:") as document:
        for row, column in itertools.product(range(3), range(4)):
            y, x = row * 256, column * 256
            if (column, row) in missing:
                truth[y : y + 256, x : x + 256] = 255
                continue
            document.write(np.ascontiguousarray(truth[y : y + 256, x : x + 256, ::-1]), location=(x, y))
        document.write_metadata("holes", scale_x=0.25e-6, scale_y=0.25e-6)
    return truth


def test_holes_of_a_mosaic_are_white_and_told(tmp_path: Path) -> None:
    truth = czi_with_holes(tmp_path / "holes.czi", {(1, 1), (2, 1), (3, 2)})
    slide = probe(tmp_path / "holes.czi")
    assert np.array_equal(pixels_of(slide), truth)
    assert [text for text in slide.warnings if "25.0%" in text and "not scanned" in text]


def rebuilt(made: Sample, path: Path, change: Callable[[int, bytes], bytes]) -> Path:
    """A copy of a CZI whose tiles' compressed data went through ``change`` (number, data)."""
    whole = made.path.read_bytes()
    blocks = czi_samples.read_subblocks(whole)
    blocks = [replace(block, data=change(number, block.data)) for number, block in enumerate(blocks)]
    height, width = made.pixels.shape[:2]
    xml = czi_samples.czi_xml(width, height, len(blocks))
    path.write_bytes(czi_samples.build_czi(whole[: czi_samples.CZI_SEGMENT.size + 512], blocks, xml))
    return path


def test_a_czi_can_be_rebuilt(sample: Callable[[str], Sample], tmp_path: Path) -> None:
    made = sample("czi_jpegxr")
    assert np.array_equal(pixels_of(probe(rebuilt(made, tmp_path / "a.czi", lambda _, data: data))), made.pixels)


def test_a_block_that_cannot_be_decoded_is_refused(sample: Callable[[str], Sample], tmp_path: Path) -> None:
    """Bio-Formats logs it and returns black."""
    path = rebuilt(
        sample("czi_jpegxr"), tmp_path / "a.czi", lambda n, data: b"\xff" * 400 + data[400:] if n == 2 else data
    )
    with pytest.raises(BadInput, match="damage") as caught:
        pixels_of(probe(path))
    assert caught.value.path == path and caught.value.remedy


def test_a_block_that_comes_back_black_is_refused(sample: Callable[[str], Sample], tmp_path: Path) -> None:
    """The same without a word in the log."""
    made = sample("czi_jpegxr")
    black = imagecodecs.jpegxr_encode(np.zeros((512, 512, 3), np.uint8), level=1.0, photometric="RGB")
    black = bytes(black).replace(czi_samples.WIC_24BPP_RGB, czi_samples.WIC_24BPP_BGR, 1)
    path = rebuilt(made, tmp_path / "a.czi", lambda n, data: black if n == 1 else data)
    with pytest.raises(BadInput, match="x=512, y=0 came back black"):
        pixels_of(probe(path))


def test_a_damaged_body_never_harms_us(sample: Callable[[str], Sample], tmp_path: Path) -> None:
    """The native codec may crash on it, and takes the child along (seen: SIGABRT); some damage gives wrong pixels that
    nobody can tell from right ones. Whatever comes, it is an error of ours or pixels, and the next slide is read."""
    made = sample("czi_jpegxr")

    def zeroed(number: int, data: bytes) -> bytes:
        at = len(data) // 3
        return data[:at] + bytes(4096) + data[at + 4096 :] if number == 0 else data

    slide = probe(rebuilt(made, tmp_path / "a.czi", zeroed))
    try:
        assert not np.array_equal(pixels_of(slide, threads=2), made.pixels)
    except (BadInput, ToolFailed) as error:
        assert error.path == slide.path and error.remedy and "Traceback" not in str(error)
    assert np.array_equal(pixels_of(probe(made.path)), made.pixels)


# Names and neighbours


@pytest.mark.parametrize(
    "name",
    [
        "a b (1).czi",
        "scan 🔬 é.czi",
        "-rf.czi",
        "%s%n.czi",
        'it\'s "x".czi',
        "<1-3>.czi",
        "a\nb.czi",
        "x" * 251 + ".czi",
    ],
)
def test_hostile_names(sample_czi: Path, tmp_path: Path, name: str) -> None:
    path = Path(shutil.copy(sample_czi, tmp_path / name))
    slide = probe(path)
    assert slide.files == (path,)
    with reader(slide) as found:
        assert found.read(Box(1000, 1000, 64, 64)).std() > 0
    assert [each.name for each in tmp_path.iterdir()] == [name]


def test_a_name_that_is_no_text(sample_czi: Path, tmp_path: Path) -> None:
    path = tmp_path / os.fsdecode(b"\xff\xfe.czi")
    try:
        shutil.copy(sample_czi, path)
    except OSError:
        pytest.skip("this file system takes no such name")
    slide = probe(path)
    assert slide.path == path and slide.files == (path,)
    with reader(slide) as found, reader(probe(sample_czi)) as plain:
        box = Box(1000, 1000, 64, 64)
        assert np.array_equal(found.read(box), plain.read(box))
    path.rename(tmp_path / os.fsdecode(b"\xff\xfe.vsi"))
    with pytest.raises(BadInput, match="UTF-8"):
        probe(tmp_path / os.fsdecode(b"\xff\xfe.vsi"))


def test_memo_files_are_neither_read_nor_written(sample_czi: Path, tmp_path: Path) -> None:
    """CVE-2026-22187: a .bfmemo is deserialised as it is."""
    path = Path(shutil.copy(sample_czi, tmp_path / "a.czi"))
    memo = tmp_path / ".a.czi.bfmemo"
    memo.write_bytes(b"no memo")
    slide = probe(path)
    with reader(slide) as found:
        found.read(Box(0, 0, 64, 64))
    assert memo.read_bytes() == b"no memo" and slide.files == (path,) and slide.warnings == ()
    assert {each.name for each in tmp_path.iterdir()} == {"a.czi", ".a.czi.bfmemo"}


def test_options_beside_the_file_are_told(sample_czi: Path, tmp_path: Path) -> None:
    path = Path(shutil.copy(sample_czi, tmp_path / "a.czi"))
    (tmp_path / "a.czi.bfoptions").write_text("zeissczi.autostitch=false\n")
    try:
        assert any("a.czi.bfoptions" in text for text in probe(path).warnings)
    except BadInput as error:  # and it does change what Bio-Formats says: then the container's word wins
        assert "directory" in str(error)


def test_neighbours_are_not_grouped(sample: Callable[[str], Sample], tmp_path: Path) -> None:
    """slide_1 and slide_2 look like a series to Bio-Formats."""
    for number in (1, 2, 3):
        shutil.copy(sample("tiff").path, tmp_path / f"slide_{number}.tif")
    assert probe(tmp_path / "slide_2.tif").files == (tmp_path / "slide_2.tif",)


@pytest.mark.parametrize("name", ["slide.czi.zip", "slide.zip", "slide.czi.gz", "slide.gz", "slide.bz2", "odd.name"])
def test_archives_are_refused(sample_czi: Path, tmp_path: Path, name: str) -> None:
    """Bio-Formats unpacks them on its own, so that no check of ours would see the slide inside."""
    import bz2
    import gzip
    import zipfile

    path = tmp_path / name
    data = sample_czi.read_bytes()
    if name.endswith(("zip", "name")):
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("slide.czi", data)
    else:
        path.write_bytes(gzip.compress(data, 1) if name.endswith("gz") else bz2.compress(data, 1))
    with pytest.raises(Unsupported, match="Unpack it first"):
        probe(path)


# Files that mean harm

CANARY = "CANARY-7d1f"
PIXELS = (
    '<Pixels ID="Pixels:0" DimensionOrder="XYCZT" Type="uint8" SizeX="64" SizeY="64" SizeC="3" SizeZ="1" SizeT="1" '
    'PhysicalSizeX="0.5" PhysicalSizeY="0.5"><Channel ID="Channel:0:0" SamplesPerPixel="3"/>{data}</Pixels>'
)
OME = '<OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06">{body}</OME>'
NEAR = '<TiffData IFD="0" PlaneCount="1"/>'


@pytest.fixture
def listener() -> Iterator[tuple[int, list[bytes]]]:
    """(port, what came in) of a server on the loopback that nobody should call."""
    calls: list[bytes] = []
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            while True:
                try:
                    connection, _ = server.accept()
                except OSError:
                    return
                with connection:
                    calls.append(connection.recv(100))

        threading.Thread(target=serve, daemon=True).start()
        yield server.getsockname()[1], calls
        server.shutdown(socket.SHUT_RDWR)


def ome_tiff(path: Path, xml: str) -> Path:
    tifffile.imwrite(
        path, np.full((64, 64, 3), 99, np.uint8), photometric="rgb", description=xml.encode(), metadata=None
    )
    return path


@contextmanager
def harmless(folder: Path) -> Iterator[None]:
    """Whatever is probed: it ends soon, with facts or an error of ours, and the canary is in neither."""
    (folder / "canary.txt").write_text(CANARY)
    started = time.monotonic()
    yield
    assert time.monotonic() - started < 60


def told(path: Path) -> str:
    """All that a probe says, as text."""
    try:
        return repr(probe(path))
    except MimicError as error:
        assert error.exit_code in (3, 4), error
        return str(error)


@pytest.mark.parametrize("kind", ["file", "http", "parameter", "dtd"])
@pytest.mark.parametrize("ending", [".ome.tif", ".companion.ome"])
def test_external_entities(tmp_path: Path, listener: tuple[int, list[bytes]], kind: str, ending: str) -> None:
    port, calls = listener
    canary, address = (tmp_path / "canary.txt").as_uri(), f"http://127.0.0.1:{port}/x.dtd"
    doctype = {
        "file": f'<!DOCTYPE OME [<!ENTITY x SYSTEM "{canary}">]>',
        "http": f'<!DOCTYPE OME [<!ENTITY x SYSTEM "{address}">]>',
        "parameter": f'<!DOCTYPE OME [<!ENTITY % x SYSTEM "{address}"> %x;]>',
        "dtd": f'<!DOCTYPE OME SYSTEM "{address}">',
    }[kind]
    name = "&x;" if kind in ("file", "http") else "n"
    body = f'<Image ID="Image:0" Name="n"><Description>{name}</Description>{PIXELS.format(data=NEAR)}</Image>'
    xml = f'<?xml version="1.0" encoding="UTF-8"?>{doctype}{OME.format(body=body)}'
    with harmless(tmp_path):
        path = tmp_path / f"evil{ending}"
        if ending == ".ome.tif":
            ome_tiff(path, xml)
        else:
            path.write_text(xml)
        assert CANARY not in told(path)
    assert calls == []


@pytest.mark.parametrize("ending", [".ome.tif", ".companion.ome"])
def test_an_entity_bomb(tmp_path: Path, ending: str) -> None:
    lines = "".join(f'<!ENTITY b{n} "{f"&b{n - 1};" * 10}">' for n in range(1, 12))
    body = f'<Image ID="Image:0"><Description>&b11;</Description>{PIXELS.format(data=NEAR)}</Image>'
    xml = f'<?xml version="1.0"?><!DOCTYPE OME [<!ENTITY b0 "{"lol" * 10}">{lines}]>{OME.format(body=body)}'
    with harmless(tmp_path):
        path = tmp_path / f"bomb{ending}"
        if ending == ".ome.tif":
            ome_tiff(path, xml)
        else:
            path.write_text(xml)
        assert len(told(path)) < 10_000
    assert bfclient.server(load()).ask("hello").result


@pytest.mark.parametrize("where", ["../secret.tif", "{tmp}/secret.tif", "http://127.0.0.1:{port}/a.tif"])
def test_files_elsewhere_are_not_pulled_in(tmp_path: Path, listener: tuple[int, list[bytes]], where: str) -> None:
    """An OME-TIFF names its parts by path; one from elsewhere must not show our other pictures."""
    port, calls = listener
    tifffile.imwrite(tmp_path / "secret.tif", np.full((64, 64, 3), 200, np.uint8), photometric="rgb")
    (tmp_path / "in").mkdir()
    name = where.format(tmp=tmp_path, port=port)
    data = (
        f'<TiffData IFD="0" PlaneCount="1"><UUID FileName="{name}">'
        "urn:uuid:00000000-0000-0000-0000-000000000001</UUID></TiffData>"
    )
    path = ome_tiff(
        tmp_path / "in" / "evil.ome.tif", OME.format(body=f'<Image ID="Image:0">{PIXELS.format(data=data)}</Image>')
    )
    try:
        slide = probe(path)
    except MimicError as error:
        assert error.exit_code in (3, 4)
    else:
        assert slide.files == (path,)
        try:
            assert not (pixels_of(slide) == 200).any()
        except MimicError as error:
            assert error.exit_code in (3, 4)
    assert calls == []


def test_absurd_sizes_are_facts_and_not_memory(tmp_path: Path) -> None:
    """A header that claims 2^30 px a side costs nothing to refuse or to tell."""
    path = tmp_path / "huge.ndpi"
    entries = [(256, 4, 1 << 30), (257, 4, 1 << 30), (258, 3, 8), (259, 3, 1), (262, 3, 1), (273, 4, 8), (277, 3, 1)]
    entries += [(278, 4, 1 << 30), (279, 4, 100)]
    body = struct.pack("<H", len(entries)) + b"".join(struct.pack("<HHII", tag, kind, 1, v) for tag, kind, v in entries)
    path.write_bytes(b"II*\0" + struct.pack("<I", 200) + bytes(192) + body + bytes(4))
    with harmless(tmp_path):
        told(path)
    assert bfclient.server(load()).ask("hello").result
