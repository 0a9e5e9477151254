"""Containers that are whole pass; cut ones are refused wherever a pixel could be lost; garbage never does more."""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from mimic.errors import BadInput
from mimic.structure import Facts, check, container
from mimic.structure.ordinary import ordinary
from tests.structure_samples import SAMPLES, pixels, tiff

CUTS = 64
HEADS = (
    *(b"II*\0", b"MM\0*", b"II+\0\x08\0\0\0", b"MM\0+\0\x08\0\0", b"ZISRAWFILE", b"\0" * 128 + b"DICM"),
    *(b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"RIFF\xff\0\0\0WEBP", b"BM", b"\0\0\0\x0cjP  \r\n\x87\n"),
    *(b"\xff\x4f\xff\x51", b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", b"\xda\xce\xbe\x0a", b""),
)


@pytest.fixture(params=SAMPLES)
def sample(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, Callable[[Path], bool]]:
    suffix, write, same = SAMPLES[request.param]
    path = tmp_path / f"a.{suffix}"
    write(path)
    return path, same


def test_whole_samples_pass(sample: tuple[Path, Callable[[Path], bool]]) -> None:
    path, same = sample
    facts = check(path)
    assert facts.container == container(path) is not None and facts.size_bytes == path.stat().st_size
    assert facts.missing_tiles == 0 and same(path)


def test_a_cut_passes_only_when_no_pixel_is_lost(sample: tuple[Path, Callable[[Path], bool]]) -> None:
    path, same = sample
    size = path.stat().st_size
    for cut in sorted({size * part // CUTS for part in range(CUTS)} | {size - 1, size - 2, size - 7}, reverse=True):
        os.truncate(path, cut)
        try:
            check(path)
        except BadInput as error:
            assert str(path) in str(error) and error.remedy
        else:
            assert same(path), f"{cut} of {size} bytes"


def test_random_mutations_are_refused_or_pass(sample: tuple[Path, Callable[[Path], bool]]) -> None:
    path, _ = sample
    whole = path.read_bytes()
    dice = random.Random(11)
    for _round in range(500):
        damaged = bytearray(whole)
        for _each in range(dice.randint(1, 6)):
            span = dice.choice((64, min(1024, len(whole)), len(whole)))
            at = dice.randrange(span)
            damaged[dice.choice((at, len(whole) - 1 - at))] = dice.choice((0, 1, 0x7F, 0x80, 0xFF, dice.randrange(256)))
        path.write_bytes(damaged)
        try:
            check(path)
            ordinary(path)
        except BadInput:
            continue


@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(
    head=st.sampled_from(HEADS),
    body=st.binary(max_size=600),
)
def test_any_bytes_are_refused_or_pass(tmp_path: Path, head: bytes, body: bytes) -> None:
    path = tmp_path / "a"
    path.write_bytes(head + body)
    try:
        assert isinstance(check(path), Facts)
    except BadInput as error:
        assert error.path == path and error.remedy


@pytest.mark.parametrize(
    ("name", "content", "what"),
    [
        ("a.czi", b"hello, this is text\n" * 9, "is named .czi but holds plain text"),
        ("a.svs", b"\x01\xff\x17" * 50, "is named .svs but holds unknown bytes"),
        ("a.ndpi", b"\0" * 2000, "is named .ndpi but holds only zero bytes"),
        ("a.dcm", b"no dicom here, really" * 9, "is named .dcm but holds plain text"),
        ("a.png", b"\x89PN", "is named .png but holds unknown bytes"),
        ("a.czi", b"\xff\xd8\xff\xe0", "is named .czi but holds a JPEG picture"),
        ("a.nd2", b"text", "is named .nd2 but holds plain text"),
        ("a.tif", b"", "the file is empty"),
    ],
)
def test_a_name_is_a_promise(tmp_path: Path, name: str, content: bytes, what: str) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(BadInput, match=what):
        check(path)


def test_a_picture_under_another_pictures_name_passes(tmp_path: Path) -> None:
    Image.fromarray(pixels()).save(tmp_path / "a.jpg", format="PNG")
    assert check(tmp_path / "a.jpg").container == "png"


def test_places_that_are_no_file(tmp_path: Path) -> None:
    for path, what in (
        (tmp_path / "no.svs", "no such file"),
        (tmp_path, "directory"),
        (Path("a\0b"), "no such file|cannot be opened"),
    ):
        with pytest.raises(BadInput, match=what):
            check(path)
    os.mkfifo(tmp_path / "pipe.tif")
    with pytest.raises(BadInput, match="not a regular file"):
        check(tmp_path / "pipe.tif")
    with pytest.raises(BadInput):
        check(tmp_path / ("x" * 300))


def test_a_file_that_may_not_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.tif"
    tiff(path)

    def refuse(*_args: object, **_options: object) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "open", refuse)  # the tests run as root, who may read everything
    with pytest.raises(BadInput, match="permission denied"):
        check(path)


def test_an_unknown_container_is_let_through(tmp_path: Path) -> None:
    path = tmp_path / "a.lif"
    path.write_bytes(b"\x70\0\0\0whatever")
    assert (check(path).container, check(path).size_bytes) == (None, 12)


# the corpus


def corpus() -> Path:
    folder = os.environ.get("MIMIC_CORPUS")
    if not folder:
        pytest.skip("MIMIC_CORPUS is not set")
    return Path(folder)


def corpus_files() -> list[Path]:
    folders = ("svs", "czi", "dicom", "ndpi", "ometiff", "nd2", "oib", "rgb")
    files = [path for name in folders for path in sorted((corpus() / name).rglob("*")) if path.is_file()]
    assert len(files) == 19
    return files


def test_corpus_files_pass_and_broken_ones_do_not() -> None:
    for path in corpus_files():
        facts = check(path)
        assert facts.missing_tiles == 0 and (facts.container is not None)
    for path, what in (("histolab_broken.svs", "is named .svs but"), ("CMU_truncated_60pct.svs", "cut short")):
        with pytest.raises(BadInput, match=what):
            check(corpus() / "broken" / path)


def test_corpus_facts() -> None:
    eight = check(corpus() / "czi" / "he_8k_jxr_pyramid_label_20x.czi").czi
    assert eight is not None and eight.covered
    assert (eight.width_px, eight.height_px, eight.tile_width_px, eight.tile_height_px) == (8192, 6144, 2048, 1536)
    assert (eight.xml_width_px, eight.xml_height_px, len(eight.subblocks)) == (8192, 6144, 16)
    scenes = check(corpus() / "czi" / "two_scenes_u16_z2.czi").czi
    assert scenes is not None and [scene.index for scene in scenes.scenes] == [0, 1]
    series = {check(path).dicom for path in (corpus() / "dicom" / "cmu_small_region_series").iterdir()}
    assert len({facts.series_instance_uid for facts in series if facts}) == 1 and len(series) == 8
    assert check(corpus() / "svs" / "CMU-1-Small-Region.svs").directories == 4


def test_corpus_cuts_pass_only_in_padding(tmp_path: Path) -> None:
    shipped = Path(__file__).parent / "data" / "sample_40x.czi"
    for source in [shipped, *corpus_files()]:
        whole = source.read_bytes()
        path = tmp_path / f"a{source.suffix}"
        path.write_bytes(whole)
        for part in reversed(range(1, CUTS)):
            cut = len(whole) * part // CUTS
            os.truncate(path, cut)
            try:
                check(path)
            except BadInput:
                continue
            assert not whole[cut:].strip(b"\0"), f"{source} cut at {cut} passes"


def test_the_shipped_sample_cut_anywhere_is_refused(tmp_path: Path) -> None:
    whole = (Path(__file__).parent / "data" / "sample_40x.czi").read_bytes()
    path = tmp_path / "a.czi"
    path.write_bytes(whole)
    facts = check(path).czi
    assert facts is not None and facts.covered and (facts.width_px, facts.height_px) == (3072, 2304)
    for part in reversed(range(CUTS)):
        os.truncate(path, len(whole) * part // CUTS)
        with pytest.raises(BadInput):
            check(path)
