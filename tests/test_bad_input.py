"""What is broken, closed, full or oddly named: a clear message, the documented exit code, nothing left behind."""

from __future__ import annotations

import errno
import json
import os
import random
import resource
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import openslide
import pytest
import tifffile

from tests.command import FULL_DISK_BYTES, Done, environment, files, mimic, mounted, picture, process, untouched
from tests.command import without_rights as without_rights_
from tests.conftest import SAMPLE_CZI

CORPUS = (
    "svs/CMU-1-Small-Region.svs",
    "czi/he_2k_jxr_lossless_10x.czi",
    "czi/rgb_no_metadata.czi",
    "dicom/multi_frame_jpeg2000_camelyon_challenge_image.dcm",
    "ndpi/test3-TRITC 2 (560).ndpi",
    "ometiff/OS-1-detail.ome.tif",
    "nd2/example-multichannel.nd2",
    "oib/test.oib",
    "rgb/hgsc_stromal_he.jpg",
)
SYSTEM_TMP = tempfile.gettempdir()
NAMES = (
    b"a b.png",
    b" lead.png",
    b"trail .png",
    b"q'uo\"te.png",
    b"-rf.png",
    b"--json.png",
    b"%s%n.png",
    b"$(id)`id`.png",
    b"back\\slash.png",
    b"[bold]x.png",
    b"a*?[1].png",
    b":smile:.png",
    "😀.png".encode(),
    "e\u0301.png".encode(),
    "\u202e\u0645\u0631\u062d.png".encode(),
    b"new\nline\ttab.png",
    b"\x1b[31mred.png",
    b"non\xff\xfeutf.png",
    b"CON.png",
    b"x" * 251 + b".png",
    ("é" * 125).encode() + b".png",
)
CZI_NAMES = (
    b"%s%n [1] <2-3>.czi",
    "😀 \u202e\u0645\u0631.czi".encode(),
    b"new\nline.czi",
    b"x" * 251 + b".czi",
    b"-o.czi",
)


@pytest.fixture(scope="module")
def without_rights() -> tuple[str, ...]:
    return without_rights_()


@pytest.fixture
def place(tmp_path: Path) -> Path:
    folder = tmp_path / "here"
    folder.mkdir()
    return folder


@pytest.fixture(autouse=True)
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where this process puts temporary files: empty again after every command."""
    folder = tmp_path / "tmp"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    yield folder
    assert list(folder.iterdir()) == []


def refused(done: Done, code: int, *words: str) -> None:
    assert done.code == code, done
    message = done.message
    assert [word for word in words if word not in message] == [], message
    assert ". " in message, f"no remedy: {message}"


def write(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


BROKEN: dict[str, tuple[Callable[[Path], Path], int, tuple[str, ...]]] = {
    "missing": (lambda here: here / "none.czi", 3, ("none.czi", "no such file")),
    "empty": (lambda here: write(here / "empty.czi", b""), 3, ("empty.czi", "empty")),
    "empty picture": (lambda here: write(here / "empty.png", b""), 3, ("empty.png", "empty")),
    "random": (lambda here: write(here / "r.svs", random.Random(5).randbytes(9000)), 3, ("r.svs", "unknown bytes")),
    "random, no ending": (lambda here: write(here / "r", random.Random(5).randbytes(9000)), 4, ("r", "not know")),
    "text": (lambda here: write(here / "notes.czi", b"Slides of May\n" * 20), 3, ("notes.czi", "plain text")),
    "zeros": (lambda here: write(here / "zero.dcm", bytes(5000)), 3, ("zero.dcm", "zero bytes")),
    "other kind": (lambda here: picture(here / "p.png").rename(here / "p.czi"), 3, ("p.czi", "PNG")),
    "no slide in it": (lambda here: write(here / "readme.txt", b"hello").parent, 2, ("no slide in",)),
    "cut": (lambda here: write(here / "cut.czi", SAMPLE_CZI.read_bytes()[:1_400_000]), 3, ("cut.czi",)),
    "cut picture": (lambda here: _cut(picture(here / "cut.png")), 3, ("cut.png",)),
    "name too long": (lambda here: here / f"{'x' * 300}.png", 3, ("File name too long",)),
    "folder that is a file": (lambda here: write(here / "f", b"x") / "a.czi", 3, ("no such file",)),
}


def _cut(path: Path) -> Path:
    return write(path, path.read_bytes()[: path.stat().st_size * 6 // 10])


@pytest.mark.parametrize("kind", BROKEN)
def test_broken_input_is_refused_and_leaves_nothing(kind: str, place: Path, tmp_path: Path) -> None:
    make, code, words = BROKEN[kind]
    path = make(place)
    out = tmp_path / "out"
    with untouched(place):
        refused(mimic("convert", path, "-o", out, "--mpp", "0.5"), code, *words)
        if kind != "no slide in it":
            refused(mimic("info", path), code, *words)
    assert not out.exists()


@pytest.mark.parametrize("name", CORPUS)
def test_corpus_cut_short_is_never_converted(name: str, corpus_file: Callable[[str], Path], place: Path) -> None:
    path = corpus_file(name)
    cut = _cut(write(place / path.name, path.read_bytes()))
    with untouched(place):
        done = mimic("convert", cut, "--mpp", "0.5")
    assert done.code in (3, 4), done
    assert cut.name in done.message


def test_every_member_of_a_dicom_series_cut_short_is_noticed(corpus_file: Callable[[str], Path], place: Path) -> None:
    series = sorted(corpus_file("dicom/cmu_small_region_series").iterdir())
    for path in series:
        write(place / path.name, path.read_bytes())
    _cut(place / series[3].name)
    with untouched(place):
        done = mimic("convert", place / series[0].name)
    refused(done, 3, series[3].name)


@pytest.fixture
def common() -> Iterator[Path]:
    """A folder that others may enter, unlike pytest's own; ``out`` and ``tmp`` in it are theirs to write."""
    folder = Path(tempfile.mkdtemp(prefix="test-mimic-", dir=SYSTEM_TMP))
    folder.chmod(0o755)
    for name, mode in (("here", 0o755), ("out", 0o777), ("tmp", 0o777)):
        (folder / name).mkdir()
        (folder / name).chmod(mode)
    yield folder
    for path in folder.rglob("*"):
        path.chmod(0o755)
    shutil.rmtree(folder)


def test_unreadable_file(without_rights: tuple[str, ...], common: Path) -> None:
    here = common / "here"
    picture(here / "p.png").chmod(0)
    for command in (("convert", "p.png", "-o", common / "out"), ("info", "p.png"), ("check", "p.png")):
        done = process(*command, cwd=here, prefix=without_rights)
        refused(done, 3, "p.png", "ermission denied")
    assert files(common / "out") == {} == files(common / "tmp")
    (here / "p.png").chmod(0o644)
    assert process("info", "p.png", cwd=here, prefix=without_rights).code == 0


def test_folder_that_may_not_be_searched(without_rights: tuple[str, ...], common: Path) -> None:
    here = common / "here"
    picture(here / "p.png")
    picture(here / "closed" / "q.png").parent.chmod(0)
    argv = ("convert", ".", "--mpp", "0.5", "-o", common / "out", "--json")
    done = process(*argv, cwd=here, prefix=without_rights)
    reports = [each["report"] for each in map(json.loads, done.out.splitlines()) if each["event"] == "report"]
    assert done.code == 3 and [each["status"] for each in reports] == ["failed", "converted"], done
    assert "closed: the folder cannot be searched (Permission denied). Ask" in reports[0]["error"]
    refused(process("info", "closed/q.png", cwd=here, prefix=without_rights), 3, "q.png", "Permission denied")


def test_output_place_without_rights(without_rights: tuple[str, ...], common: Path) -> None:
    here = common / "here"
    picture(here / "p.png")
    here.chmod(0o555)
    with untouched(here, common / "tmp"):
        done = process("convert", "p.png", "--mpp", "0.5", cwd=here, prefix=without_rights)
    refused(done, 7, "p.svs", "Permission denied", "-o")


def test_read_only_file_system(place: Path) -> None:
    picture(place / "p.png")
    with mounted(place.parent / "ro", "ro,size=1m") as folder:
        done = mimic("convert", place / "p.png", "--mpp", "0.5", "-o", folder)
        refused(done, 7, "p.svs", os.strerror(errno.EROFS), "another folder")
        assert files(folder) == {}


def test_full_disk(place: Path) -> None:
    picture(place / "p.png", width_px=900, height_px=900)
    with mounted(place.parent / "full", f"size={FULL_DISK_BYTES}") as folder:
        (folder / "p.svs").write_bytes(b"an earlier output")
        with untouched(folder):
            done = mimic("convert", place / "p.png", "--mpp", "0.5", "-o", folder, "--overwrite")
        refused(done, 7, str(folder / "p.svs"), os.strerror(errno.ENOSPC), "Free some space")


def test_file_size_limit(place: Path) -> None:
    """RLIMIT_FSIZE stands for quotas and FAT; Python ignores the signal that comes with it."""
    picture(place / "p.png", width_px=900, height_px=900)
    limit = f"import resource; resource.setrlimit(resource.RLIMIT_FSIZE, ({FULL_DISK_BYTES}, {FULL_DISK_BYTES}));"
    script = f"{limit} from mimic.cli import main; main()"
    argv = [sys.executable, "-c", script, "convert", "p.png", "--mpp", "0.5"]
    with untouched(place):
        env = environment(place.parent / "tmp")
        done = subprocess.run(argv, cwd=place, env=env, capture_output=True, text=True, check=False)
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] == resource.RLIM_INFINITY
    refused(Done(done.returncode, done.stdout, done.stderr), 7, "p.svs", os.strerror(errno.EFBIG))


def test_existing_output_is_kept_without_overwrite(place: Path) -> None:
    picture(place / "p.png")
    write(place / "p.svs", b"mine")
    with untouched(place):
        refused(mimic("convert", place / "p.png", "--mpp", "0.5"), 7, "p.svs", "is there already", "--overwrite")
    assert mimic("convert", place / "p.png", "--mpp", "0.5", "--overwrite").code == 0
    assert openslide.OpenSlide(place / "p.svs").dimensions == (400, 300)


def test_existing_output_survives_a_failing_overwrite(place: Path) -> None:
    """The file's structure is sound: only decoding tells, when the output is half written."""
    path = place / "p.tif"
    pixels = np.random.default_rng(7).integers(0, 255, (800, 800, 3), dtype=np.uint8)
    tifffile.imwrite(path, pixels, photometric="rgb", compression="zlib", rowsperstrip=16)
    data = bytearray(path.read_bytes())
    middle = len(data) * 3 // 4
    data[middle : middle + 400] = bytes(400)
    write(path, bytes(data))
    write(place / "p.svs", b"an earlier output")
    with untouched(place):
        refused(mimic("convert", path, "--mpp", "0.5", "--overwrite"), 3, "p.tif", "damaged")


def test_output_is_never_its_input(place: Path, corpus_file: Callable[[str], Path]) -> None:
    path = write(place / "CMU.svs", corpus_file("svs/CMU-1-Small-Region.svs").read_bytes())
    os.link(path, place / "twin.svs")
    (place / "link.svs").symlink_to(path)
    with untouched(place):
        refused(mimic("convert", path), 7, "own input", "-o")
        for name in ("CMU.svs", "twin.svs", "link.svs"):
            done = mimic("convert", path, "--overwrite", "-o", place / name)
            refused(done, 7, name, "own input")


OUTPUTS = {
    "name too long": (f"{'x' * 252}.svs", 7, ("File name too long", "shorter")),
    "below a file": ("p.png/out/", 7, ("Not a directory", "-o")),
    "a folder": ("folder.svs", 7, ("is a folder",)),
    "other ending": ("out.tif", 2, ("out.tif", ".svs")),
    "ending in capitals": ("OUT.SVS", 2, ("OUT.SVS", ".svs")),
}


@pytest.mark.parametrize("kind", OUTPUTS)
def test_output_that_cannot_be(kind: str, place: Path) -> None:
    name, code, words = OUTPUTS[kind]
    picture(place / "p.png")
    (place / "folder.svs").mkdir()
    with untouched(place):
        refused(mimic("convert", place / "p.png", "--mpp", "0.5", "-o", f"{place}/{name}"), code, *words)


def test_name_that_grows_too_long(place: Path) -> None:
    """255 bytes without an ending: with one it is no name any more."""
    path = picture(place / ("x" * 255))
    with untouched(place):
        refused(mimic("convert", path, "--mpp", "0.5"), 7, "File name too long", "shorter")
    assert mimic("convert", path, "--mpp", "0.5", "-o", place / "short.svs").code == 0


def test_scratch_log_and_report_that_cannot_be(place: Path) -> None:
    path = picture(place / "p.png")
    argv = ("convert", path, "--mpp", "0.5")
    with untouched(place):
        refused(mimic(*argv, "--scratch", place / "none"), 7, "none", "--scratch")
        refused(mimic(*argv, "--log-file", place / "none" / "log"), 2, "log", "No such file")
        refused(mimic(*argv, "--report", path / "x.json"), 2, "x.json", "report")


@pytest.mark.parametrize("name", NAMES)
def test_nasty_name(name: bytes, place: Path) -> None:
    picture(Path(os.fsdecode(os.fsencode(place) + b"/" + name)))
    done = mimic("convert", os.fsencode(place) + b"/" + name, "--mpp", "0.5", "-o", place, "--quiet")
    assert done.code == 0 and done.err == "", done
    output = name[: -len(b".png")] + b".svs"
    assert set(files(place)) == {name, output}
    line, note = done.out.splitlines()
    assert "-> " in line and line.isprintable() and note.startswith("  note: ")
    if name.isascii() and name.decode().isprintable():
        assert name.decode() in line, "shown as it is, and not as markup"
    # the report of it is JSON that names the very file
    report = place / "r.json"
    assert mimic("convert", place / os.fsdecode(name), "--mpp", "0.5", "--overwrite", "--report", report).code == 0
    assert os.fsencode(json.loads(report.read_text())["input"]) == os.fsencode(place) + b"/" + name


def test_names_from_a_shell(place: Path) -> None:
    """As relative words of a real command, in the C locale."""
    for name in (b"-rf.png", "😀 %s.png".encode(), b"non\xffutf.png"):
        picture(place / os.fsdecode(name))
        env = environment(place.parent / "tmp") | {"LC_ALL": "C", "LANG": "C"}
        done = process("convert", "--mpp", "0.5", "--quiet", "--", name, cwd=place, env=env)
        assert done.code == 0 and done.err == "", done
        assert (place / os.fsdecode(name[:-4] + b".svs")).exists()


@pytest.mark.parametrize("name", CZI_NAMES)
def test_nasty_name_reaches_java(name: bytes, place: Path) -> None:
    path = place / os.fsdecode(name)
    write(path, SAMPLE_CZI.read_bytes())
    assert mimic("info", path, "--source", "bioformats").code == 0
    if name == CZI_NAMES[0]:
        assert mimic("convert", path, "--source", "bioformats").code == 0
        assert set(files(place)) == {name, name[:-4] + b".svs"}


def test_name_that_java_cannot_have(place: Path) -> None:
    """A file of its own gets an alias; one of several is refused."""
    path = write(place / os.fsdecode(b"non\xff\xfeutf.czi"), SAMPLE_CZI.read_bytes())
    done = mimic("convert", path)
    assert (done.code, done.err) == (0, "")
    assert set(files(place)) == {b"non\xff\xfeutf.czi", b"non\xff\xfeutf.svs"}
    parts = [place / os.fsdecode(name) for name in (b"x\xff.czi", b"x\xff (1).czi")]
    for part in parts:
        write(part, SAMPLE_CZI.read_bytes())
    with untouched(place):
        refused(mimic("convert", parts[0], "--source", "bioformats"), 3, "not valid UTF-8", "Rename it")
