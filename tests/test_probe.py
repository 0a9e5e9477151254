"""probe: which files may be slides, who reads them, and names that are none."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from mimic import probe as probe_function
from mimic import sources
from mimic.errors import BadInput, MimicError, UsageError
from mimic.probe import SUFFIXES, find_slides, probe
from mimic.settings import load
from tools.make_samples import Sample


def test_the_library_shows_the_same_probe() -> None:
    assert callable(probe_function)


@pytest.mark.parametrize(
    ("name", "kind", "words"),
    [
        ("missing.czi", BadInput, "no such file"),
        ("x" * 300 + ".czi", BadInput, "too long"),
        ("nul\0.czi", BadInput, "no such file"),
        ("a/b/c.czi", BadInput, "no such file"),
        ("file.txt/inside.czi", BadInput, "no such file"),
        (".", UsageError, "is a folder"),
    ],
)
def test_names_of_nothing(tmp_path: Path, name: str, kind: type[MimicError], words: str) -> None:
    (tmp_path / "file.txt").write_text("text")
    with pytest.raises(kind, match=words) as caught:
        probe(tmp_path / name, load())
    assert caught.value.path == tmp_path / name and caught.value.remedy


@pytest.mark.skipif(sys.platform == "win32", reason="no named pipes in a folder")
def test_a_pipe_is_no_slide_and_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    with pytest.raises(BadInput, match="regular file"):
        probe(tmp_path / "pipe.png", load())


def test_a_link_to_nothing(tmp_path: Path) -> None:
    (tmp_path / "link.czi").symlink_to(tmp_path / "gone.czi")
    with pytest.raises(BadInput, match="no such file"):
        probe(tmp_path / "link.czi", load())


def test_a_link_in_a_circle(tmp_path: Path) -> None:
    (tmp_path / "a.czi").symlink_to(tmp_path / "b.czi")
    (tmp_path / "b.czi").symlink_to(tmp_path / "a.czi")
    with pytest.raises(BadInput):
        probe(tmp_path / "a.czi", load())


def test_an_unknown_source(sample: Callable[[str], Sample]) -> None:
    with pytest.raises(UsageError, match="no source named 'magic'") as caught:
        probe(sample("png").path, load(), source="magic")
    assert "bioformats" in str(caught.value)


def test_an_ordinary_picture_needs_no_jvm(sample: Callable[[str], Sample]) -> None:
    found = sample("png")
    slide = probe(found.path, load())
    assert slide.source == "vips"
    assert (slide.images[0].levels[0].height_px, slide.images[0].levels[0].width_px) == found.pixels.shape[:2]


@pytest.mark.parametrize(
    ("name", "source"),
    [
        ("png", "vips"), ("png16", "vips"), ("jpeg_rotated", "vips"), ("tiff", "vips"), ("czi_raw", "czi"),
        ("dicom", "openslide"), ("svs", "openslide"), ("ome_tiff", "bioformats"),
    ],
)  # fmt: skip
def test_who_reads_what(sample: Callable[[str], Sample], name: str, source: str) -> None:
    assert sources.choose(sample(name).path) == source


def test_every_source_keeps_the_protocol() -> None:
    for name in sources.ORDER:
        module = sources.load(name)
        assert all(callable(getattr(module, function)) for function in ("claims", "probe", "open", "tools"))


def test_finding_slides_in_a_folder(tmp_path: Path) -> None:
    wanted = ["b.czi", "A.SVS", "deep/er/c.ome.tif", "deep/d.png", "1.2.840.1"]
    others = ["notes.txt", ".hidden.czi", ".git/x.czi", "deep/.cache/y.svs", "e.czi.bak", "f.fake", "g.zip", "short"]
    for name in wanted + others:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")
    (tmp_path / "1.2.840.1").write_bytes(bytes(128) + b"DICM")
    (tmp_path / "folder.czi").mkdir()
    found = list(find_slides(tmp_path))
    assert found == sorted(found)
    assert {str(path.relative_to(tmp_path)) for path in found} == set(wanted)


def test_a_hidden_folder_may_be_named(tmp_path: Path) -> None:
    (tmp_path / ".scans").mkdir()
    (tmp_path / ".scans" / "a.czi").write_bytes(b"x")
    assert [path.name for path in find_slides(tmp_path / ".scans")] == ["a.czi"]


def test_a_circle_of_folders_ends(tmp_path: Path) -> None:
    (tmp_path / "a.czi").write_bytes(b"x")
    (tmp_path / "again").symlink_to(tmp_path, target_is_directory=True)
    assert [path.name for path in find_slides(tmp_path)] == ["a.czi"]


def test_the_formats_that_make_pictures_up_are_not_searched_for() -> None:
    assert not SUFFIXES & {".fake", ".pattern", ".txt", ".csv", ".zip", ".gz", ".bz2", ".xml", ".ome"}
