"""The recipe as programs: for real on the sample slide, and against fakes named after the failure they fake."""

from __future__ import annotations

import os
import shutil
import stat
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st

from mimic.errors import BadInput, LimitReached, MimicError, OutputError, ToolFailed, ToolMissing, Unsupported
from mimic.model import Box, Image, Level, Slide
from mimic.programs import bfclient, bftools, jvm, libtiff, run
from mimic.settings import Settings
from mimic.sources import bfconvert, bioformats

SAMPLE = Path(__file__).parent / "data" / "sample_40x.czi"
SETTINGS = Settings(path=os.environ.get("PATH", os.defpath))
WIDTH, HEIGHT = 300, 200

LISTING = """Checking file format [DICOM]
Initializing reader
DicomReader initializing /in/a.dcm
Reading core metadata
filename = /in/a.dcm
Used files:
\t/in/a.dcm
\t/in/b c.dcm
Series count = 2
Series #0 :
\tResolutions = 5
\t\tsizeX[0] = 2220
\t\tsizeX[1] = 1110
\tImage count = 1
\tThumbnail series = false
Series #1 :
\tImage count = 1
\tThumbnail series = true
"""

posix = pytest.mark.skipif(os.name == "nt", reason="the fakes are shell scripts")


def need(program: str) -> None:
    if shutil.which(program) is None:
        if os.environ.get("MIMIC_REQUIRE_TOOLS"):
            pytest.fail(f"{program} is missing")
        pytest.skip(f"{program} is missing")


@pytest.fixture(scope="module", autouse=True)
def no_jvm_left() -> Iterator[None]:
    yield
    bfclient.shutdown()


# What the programs say


def test_listing_is_read() -> None:
    core = bftools.parse_core(LISTING)
    assert core == bftools.Core("DICOM", (Path("/in/a.dcm"), Path("/in/b c.dcm")), (5, 1), (False, True))
    assert [core.flat(series) for series in range(2)] == [0, 5]


@given(st.text(max_size=300))
def test_any_listing_gives_a_core(text: str) -> None:
    core = bftools.parse_core(text + LISTING)
    assert len(core.resolutions) == len(core.thumbnails) >= 2


@given(st.integers(1, 100_000))
def test_tiles_are_multiples_of_16_and_smaller_than_the_image(size_px: int) -> None:
    tile = bftools.tile_px(size_px)
    assert tile % 16 == 0
    assert 16 <= tile <= bftools.TILE_PX
    assert tile < size_px or size_px <= 16


@pytest.mark.parametrize(
    ("code", "stderr", "kind"),
    [
        (3, "", ToolFailed),
        (1, "java.lang.OutOfMemoryError: Java heap space", ToolFailed),
        (-9, "", ToolFailed),
        (137, "", ToolFailed),
        (1, "java.io.IOException: No space left on device", OutputError),
        (1, "Error: Could not find or load main class loci.formats.tools.ImageInfo", ToolMissing),
        (127, "showinf: line 9: java: command not found", ToolMissing),
        (1, 'Exception in thread "main" loci.formats.UnknownFormatException: Unknown file format: /a', Unsupported),
        (1, 'Exception in thread "main" loci.formats.FormatException: No IFDs found', BadInput),
        (1, "", BadInput),
        (0, "java.io.EOFException: Attempting to read beyond end of file", BadInput),
    ],
)
def test_ends_of_a_program(code: int, stderr: str, kind: type[MimicError]) -> None:
    error = bftools.failure(run.Completed(("/x/bfconvert",), code, "", stderr, 0.1), Path("/in/slide.czi"))
    assert type(error) is kind
    assert error.message


def test_a_name_with_error_in_it_is_no_trouble() -> None:
    path = Path("/in/Error WARN.czi")
    said = f"{path}\nZeissCZIReader initializing {path}\n[done]"
    assert bftools.trouble(run.Completed(("bfconvert",), 0, said, "", 0.1), path) is None


# The scratch TIFF


def image_array(seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8)


def write(path: Path, *, planar: bool = False, tile: tuple[int, int] | None = (64, 48)) -> np.ndarray:
    pixels = image_array()
    data = np.moveaxis(pixels, 2, 0) if planar else pixels
    kind = "separate" if planar else "contig"
    tifffile.imwrite(path, data, photometric="rgb", planarconfig=kind, tile=tile, metadata=None)
    return pixels


@settings(max_examples=60)
@given(data=st.data())
def test_any_box_is_read_in_any_order(data: st.DataObject, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("scratch") / "s.tif"
    pixels = write(path)
    reader = bfconvert.Reader(bfconvert.layout(path, Level(WIDTH, HEIGHT)), None)
    x, y = data.draw(st.integers(0, WIDTH - 1)), data.draw(st.integers(0, HEIGHT - 1))
    box = Box(x, y, data.draw(st.integers(1, WIDTH - x)), data.draw(st.integers(1, HEIGHT - y)))
    assert np.array_equal(reader.read(box), pixels[y : y + box.height_px, x : x + box.width_px])
    covered = np.zeros((HEIGHT, WIDTH), int)
    for part in reader.boxes():
        covered[part.y_px : part.y_px + part.height_px, part.x_px : part.x_px + part.width_px] += 1
    assert (covered == 1).all()
    reader.close()
    assert not path.exists()


def test_boxes_of_a_large_scratch_are_whole_tiles_of_about_2048_px() -> None:
    plan = bfconvert.Layout(Path("x"), 5000, 3000, 1024, 1024, True, False, ())
    boxes = bfconvert.Reader.boxes(type("R", (), {"_plan": plan})())
    assert [(box.width_px, box.height_px) for box in boxes[:3]] == [(2048, 2048), (2048, 2048), (904, 2048)]


def cut(path: Path) -> None:
    write(path)
    os.truncate(path, path.stat().st_size // 2)


def stripped(path: Path) -> None:
    write(path, tile=None)


def other_size(path: Path) -> None:
    tifffile.imwrite(path, image_array()[:-1], photometric="rgb", tile=(64, 48), metadata=None)


def sixteen_bit(path: Path) -> None:
    tifffile.imwrite(path, image_array().astype(np.uint16), photometric="rgb", tile=(64, 48), metadata=None)


def empty(path: Path) -> None:
    path.touch()


def text(path: Path) -> None:
    path.write_text("II* but not really a TIFF at all")


@pytest.mark.parametrize("damage", [cut, stripped, other_size, sixteen_bit, empty, text])
def test_a_scratch_that_is_not_what_was_asked_for_is_refused(damage: Callable[[Path], None], tmp_path: Path) -> None:
    path = tmp_path / "s.tif"
    damage(path)
    with pytest.raises(ToolFailed):
        bfconvert.layout(path, Level(WIDTH, HEIGHT))


def test_tiffcp_makes_a_planar_scratch_contiguous(tmp_path: Path) -> None:
    need("tiffcp")
    pixels = write(tmp_path / "planar.tif", planar=True)
    assert not bfconvert.layout(tmp_path / "planar.tif", Level(WIDTH, HEIGHT)).contiguous
    for big in (False, True):
        target = tmp_path / f"contig{big}.tif"
        libtiff.make_contiguous(tmp_path / "planar.tif", target, big=big, settings=SETTINGS, deadline_s=30.0)
        plan = bfconvert.layout(target, Level(WIDTH, HEIGHT))
        assert (plan.contiguous, plan.big) == (True, big)
        reader = bfconvert.Reader(plan, None)
        assert np.array_equal(reader.read(Box(0, 0, WIDTH, HEIGHT)), pixels)
        reader.close()


def test_tiffcp_missing_names_the_remedy(tmp_path: Path) -> None:
    with pytest.raises(ToolMissing, match="libtiff-tools"):
        libtiff.find_tiffcp(Settings(path=str(tmp_path)))


# Fakes: a bftools folder whose bfconvert fails in its own way; showinf lists one series


def fake_bftools(folder: Path, bfconvert_body: str) -> Settings:
    folder.mkdir()
    listing = folder / "listing.txt"
    listing.write_text("Checking file format [Fake]\nSeries count = 1\nSeries #0 :\n\tImage count = 1\n")
    (folder / jvm.JAR).touch()
    for name, body in (("showinf", f"cat '{listing}'"), ("bfconvert", f"for last; do :; done\n{bfconvert_body}")):
        script = folder / name
        script.write_text(f"#!/bin/sh\necho \"$0 $*\" >> '{folder}/calls'\n{body}\n")
        script.chmod(script.stat().st_mode | stat.S_IXUSR)
    return replace(SETTINGS, bioformats=folder)


def fake_slide(folder: Path) -> Slide:
    path = folder / "slide.strange"
    path.write_bytes(b"\x01\x02strange")
    image = Image(0, "scan", "", (Level(WIDTH, HEIGHT),), 3, True, "uint8", 8)
    return Slide(path, (path,), "Fake", "bfconvert", (image,))


def convert_with(body: str, folder: Path) -> bfconvert.Reader:
    chosen = fake_bftools(folder / "bftools", body)
    slide = fake_slide(folder)
    scratch = folder / "scratch"
    scratch.mkdir()
    try:
        return bfconvert.open(slide, slide.images[0], threads=1, settings=chosen, scratch=scratch)
    finally:
        assert "bfconvert -no-upgrade" in (folder / "bftools" / "calls").read_text(), "the fake was not called"


@posix
@pytest.mark.parametrize(
    ("failure", "body", "kind"),
    [
        ("exit_0_writes_nothing", "echo '[done]'", ToolFailed),
        ("exit_0_writes_half", "head -c 90000 '{whole}' > \"$last\"; echo '[done]'", ToolFailed),
        ("exit_0_not_done", "cp '{whole}' \"$last\"", BadInput),
        ("exit_0_with_exception", "cp '{whole}' \"$last\"; echo 'java.io.EOFException' >&2; echo '[done]'", BadInput),
        ("exit_0_with_warning", "cp '{whole}' \"$last\"; echo 'WARN could not decode'; echo '[done]'", BadInput),
        ("dies_of_memory", "exit 3", ToolFailed),
        ("is_killed", "kill -9 $$", ToolFailed),
        ("disk_full", "echo 'java.io.IOException: No space left on device' >&2; exit 1", OutputError),
    ],
)
def test_failures_leave_nothing_behind(failure: str, body: str, kind: type[MimicError], tmp_path: Path) -> None:
    whole = tmp_path / f"{failure}.tif"
    write(whole)
    with pytest.raises(kind):
        convert_with(body.format(whole=whole), tmp_path)
    assert list((tmp_path / "scratch").iterdir()) == []


@posix
def test_a_hanging_grandchild_dies_at_the_deadline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bftools, "deadline_s", lambda *_size: 0.5)
    started = time.monotonic()
    with pytest.raises(LimitReached):
        convert_with(f"sh -c 'echo $$ > {tmp_path}/pid; sleep 60' & wait", tmp_path)
    assert time.monotonic() - started < 40
    pid = int((tmp_path / "pid").read_text())
    for _ in range(50):
        state = Path(f"/proc/{pid}/stat")
        if not state.exists() or state.read_text().split()[2] == "Z":
            break
        time.sleep(0.05)
    else:
        pytest.fail("the grandchild is alive")
    assert list((tmp_path / "scratch").iterdir()) == []


@posix
def test_a_planar_result_goes_through_tiffcp(tmp_path: Path) -> None:
    need("tiffcp")
    whole = tmp_path / "planar.tif"
    pixels = write(whole, planar=True)
    reader = convert_with(f"cp '{whole}' \"$last\"; echo '[done]'", tmp_path)
    assert np.array_equal(reader.read(Box(0, 0, WIDTH, HEIGHT)), pixels)
    assert len(list((tmp_path / "scratch").iterdir())) == 1
    reader.close()
    assert list((tmp_path / "scratch").iterdir()) == []


# The real programs


@pytest.fixture(scope="module")
def slide() -> Slide:
    return bfconvert.probe(SAMPLE, SETTINGS)


def test_facts_are_those_of_the_other_source(slide: Slide) -> None:
    other = bioformats.probe(SAMPLE, SETTINGS)
    plain = [replace(image, levels=image.levels[:1]) for image in slide.images]
    theirs = [
        replace(image, levels=(Level(image.levels[0].width_px, image.levels[0].height_px),)) for image in other.images
    ]
    assert plain == theirs
    assert (slide.format, slide.files, slide.warnings) == (other.format, other.files, other.warnings)


def test_every_image_of_the_sample_is_pixel_identical(slide: Slide, tmp_path: Path) -> None:
    for image in (slide.images[0], slide.images[2]):
        reader = bfconvert.open(slide, image, threads=1, settings=SETTINGS, scratch=tmp_path)
        oracle = bioformats.open(slide, image, threads=1, settings=SETTINGS, scratch=tmp_path)
        for box in oracle.boxes():
            pixels = reader.read(box)
            assert pixels.any()
            assert np.array_equal(pixels, oracle.read(box))
        oracle.close()
        reader.close()
    assert list(tmp_path.iterdir()) == []


@posix
def test_an_installed_bftools_folder_is_used(slide: Slide, tmp_path: Path) -> None:
    folder = tmp_path / "bf tools"
    folder.mkdir()
    (folder / jvm.JAR).symlink_to(jvm.BUNDLED_JAR)
    for name, main in bftools.MAIN_CLASS.items():
        script = folder / name  # the real one is bash -> bash -> java
        inner = f'java -Xmx$BF_MAX_MEM $BF_FLAGS -cp "{folder}/{jvm.JAR}" {main} "$@"'
        script.write_text(f"#!/bin/sh\necho {name} >> '{folder}/calls'\n{inner}\n")
        script.chmod(0o755)
    chosen = replace(SETTINGS, bioformats=folder)
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    label = slide.images[1]
    reader = bfconvert.open(slide, label, threads=1, settings=chosen, scratch=scratch)
    pixels = reader.read(Box(0, 0, 387, 463))
    reader.close()
    oracle = bioformats.open(slide, label, threads=1, settings=SETTINGS, scratch=scratch)
    assert np.array_equal(pixels, oracle.read(Box(0, 0, 387, 463)))
    oracle.close()
    assert (folder / "calls").read_text().split() == ["showinf", "bfconvert"]


def test_what_is_not_rgb_is_refused_before_anything_runs(slide: Slide, tmp_path: Path) -> None:
    image = replace(slide.images[0], pixel_type="uint16")
    with pytest.raises(Unsupported):
        bfconvert.open(slide, image, threads=1, settings=Settings(path=""), scratch=tmp_path)


def test_an_unknown_format_is_unsupported(tmp_path: Path) -> None:
    path = tmp_path / "-notes %s.unknown"
    path.write_text("no image")
    with pytest.raises(Unsupported):
        bfconvert.probe(path, SETTINGS)


def test_the_tools_name_themselves() -> None:
    need("tiffcp")
    versions = {tool.name: tool.version for tool in bfconvert.tools(SETTINGS)}
    assert versions["Bio-Formats"] == "7.3.1"
    assert versions["Java"]
    assert versions["tiffcp"]


@pytest.mark.parametrize(
    ("name", "index"), [("svs/CMU-1-Small-Region.svs", 2), ("dicom/cmu_small_region_series", 0)], ids=["svs", "dicom"]
)
def test_corpus_planar_macro_and_dicom_series(name: str, index: int, tmp_path: Path) -> None:
    corpus = os.environ.get("MIMIC_CORPUS")
    if not corpus:
        pytest.skip("MIMIC_CORPUS is not set")
    path = Path(corpus) / name
    path = min(path.glob("*.dcm")) if path.is_dir() else path
    assert path.is_file()
    slide = bfconvert.probe(path, SETTINGS)
    reader = bfconvert.open(slide, slide.images[index], threads=1, settings=SETTINGS, scratch=tmp_path)
    oracle = bioformats.open(slide, slide.images[index], threads=1, settings=SETTINGS, scratch=tmp_path)
    assert all(np.array_equal(reader.read(box), oracle.read(box)) for box in oracle.boxes())
    oracle.close()
    reader.close()
