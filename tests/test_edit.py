"""``mimic edit``: other people's readers see the new values, no pixel changes or moves, and what went is gone."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import openslide
import pytest
import pyvips
import tifffile
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

from mimic import description, disk, edittext, ifds, rules, svs, tiffedit, verify
from mimic.cli import app
from mimic.edit import Edited, Wish, _by_openslide, edit
from mimic.errors import BadInput, MimicError, OutputError, Unsupported, UsageError, VerificationFailed
from mimic.model import Picture
from mimic.writer import _directories, _Placed
from tests.readers import libraries
from tests.test_rules import good_parts, histology, write_parts
from tests.test_svs import make_plan
from tests.test_writer import write_slide

PREFIX = "Aperio Image Library v12.0.15 \r\n"
VERSION = "9.8.7"
FORTY = Wish(appmag=40, mpp_um=0.26)


def run(path: Path, wish: Wish, **options: object) -> Edited:
    return edit(path, wish, version=VERSION, **options)  # type: ignore[arg-type]


def segments(path: Path, *, without: tuple[str, ...] = ()) -> list[tuple[tuple[int, int], tuple[int, ...], bytes]]:
    """Size, offsets and compressed bytes of every directory that stays."""
    content = path.read_bytes()
    found = []
    with tifffile.TiffFile(path) as tiff:
        for page in tiff.pages:
            if not any(f"\n{kind} " in page.description for kind in without):
                places = tuple(zip(page.dataoffsets, page.databytecounts, strict=True))
                data = b"".join(content[at : at + count] for at, count in places)
                found.append(((page.imagewidth, page.imagelength), page.dataoffsets, data))
    return found


def texts(path: Path) -> list[str]:
    with tifffile.TiffFile(path) as tiff:
        return [page.description for page in tiff.pages]


def properties(path: Path) -> dict[str, str]:
    with openslide.OpenSlide(path) as slide:
        return dict(slide.properties)


def make_own(folder: Path, *, big: bool = False) -> Path:
    """A file of mimic's own writer."""
    plan = make_plan(
        ((2501, 2403), (625, 600), (156, 150)),
        thumbnail_px=(120, 115),
        pictures=(Picture("label", 1, 387, 463), Picture("macro", 2, 1280, 431)),
    )
    path = folder / "own.svs"
    write_slide(path, plan, histology(2501, 2403), 0 if big else 2**31)
    return path


def make_vips(folder: Path) -> Path:
    """A vips pyramid, given Aperio's description as people do with tifftools."""
    picture = pyvips.Image.new_from_array(histology(1200, 1000)).copy(xres=4000, yres=4000)
    text = f"{PREFIX}1200x1000 [0,0 1200x1000] (256x256) JPEG/YCC Q=75|AppMag = 20|MPP = 0.2500|Title = Smith, J."
    picture.set_type(pyvips.GValue.gstr_type, "image-description", text)
    path = folder / "vips.tif"
    picture.tiffsave(str(path), tile=True, tile_width=256, tile_height=256, pyramid=True, compression="jpeg")
    return path


def make_other(folder: Path, *, byteorder: str = "<", bigtiff: bool = False) -> Path:
    return write_parts(folder / "other.svs", good_parts(histology(1200, 1000)), byteorder=byteorder, bigtiff=bigtiff)


MAKERS: dict[str, Callable[[Path], Path]] = {
    "own": make_own,
    "own-big": lambda folder: make_own(folder, big=True),
    "vips": make_vips,
    "tifffile": make_other,
    "tifffile-big": lambda folder: make_other(folder, bigtiff=True),
    "big-endian": lambda folder: make_other(folder, byteorder=">"),
    "big-endian-big": lambda folder: make_other(folder, byteorder=">", bigtiff=True),
}


OPENSLIDE_READS = MAKERS.keys() - {"big-endian"}
"""OpenSlide knows big-endian files as BigTIFF only, edited or not."""


@pytest.fixture(scope="module")
def originals(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    made: dict[str, Path] = {}

    def get(name: str) -> Path:
        if name not in made:
            made[name] = MAKERS[name](tmp_path_factory.mktemp(name))
        return made[name]

    return get


@pytest.fixture
def copy_of(originals: Callable[[str], Path], tmp_path: Path) -> Callable[[str], Path]:
    """A fresh copy of one of the slides."""

    def get(name: str) -> Path:
        source = originals(name)
        path = tmp_path / source.name
        path.write_bytes(source.read_bytes())
        return path

    return get


@pytest.fixture
def cmu(corpus_file: Callable[[str], Path], tmp_path: Path) -> Path:
    """The scanner's own file, to be written to."""
    path = tmp_path / "cmu.svs"
    path.write_bytes(corpus_file("svs/CMU-1-Small-Region.svs").read_bytes())
    return path


@pytest.mark.parametrize("name", MAKERS)
def test_new_scale_is_seen_and_pixels_stay(name: str, copy_of: Callable[[str], Path]) -> None:
    path = copy_of(name)
    before, size = segments(path), path.stat().st_size
    levels = [text for text in texts(path) if "AppMag" in text]
    done = run(path, FORTY)
    assert done.written
    assert segments(path) == before
    assert path.stat().st_size - size == pytest.approx(done.appended_bytes, abs=8)
    assert done.appended_bytes < 8192 + 16 * sum(len(page[1]) for page in before)
    after = [text for text in texts(path) if "AppMag" in text]
    assert len(after) == len(levels)
    for text in after:
        values = description.parse(text).values
        assert (values["AppMag"], values["MPP"], values["Edited"]) == ("40", "0.2600", f"mimic {VERSION}")
    if name in OPENSLIDE_READS:
        said = properties(path)
        assert (said["openslide.vendor"], said["openslide.objective-power"]) == ("aperio", "40")
        assert float(said["openslide.mpp-x"]) == 0.26
    if name != "vips":
        broken = {each.name for each in verify.failed(rules.structure(path))}
        assert broken <= ({"byte order"} if name.startswith("big-endian") else set())


def test_resolution_tags_follow_on_every_level(copy_of: Callable[[str], Path]) -> None:
    path = copy_of("vips")
    run(path, Wish(mpp_um=0.5, removes=("Title",)))
    assert b"Smith" not in path.read_bytes()
    with tifffile.TiffFile(path) as tiff:
        pages = list(tiff.pages)
    assert len(pages) == 4
    for page in pages:
        assert page.resolutionunit == 3
        assert page.resolution == (20000, 20000)  # vips repeats the baseline's on every level


def test_resolution_tags_keep_their_relation(tmp_path: Path) -> None:
    parts = good_parts(histology(1200, 1000))
    parts["level"] |= {"resolution": (10000, 10000), "resolutionunit": "CENTIMETER"}
    path = write_parts(tmp_path / "scaled.svs", parts)
    run(path, Wish(mpp_um=0.5))
    with tifffile.TiffFile(path) as tiff:
        assert [tiff.pages[index].resolution for index in (0, 2)] == [(20000, 20000), (5000, 5000)]


def test_without_mpp_no_tag_claims_a_scale(copy_of: Callable[[str], Path]) -> None:
    path = copy_of("own")
    run(path, Wish(removes=("MPP",)))
    with tifffile.TiffFile(path) as tiff:
        assert not {282, 283, 296} & {tag.code for tag in tiff.pages[0].tags.values()}
    assert "MPP" not in texts(path)[0]
    assert "openslide.mpp-x" not in properties(path)


def test_provenance_stays_true(copy_of: Callable[[str], Path]) -> None:
    path = copy_of("own")
    assert "derived" not in properties(path)["aperio.MPP Source"]
    run(path, FORTY)
    said = properties(path)
    assert said["aperio.Converter"] == "mimic 0.1.0"
    assert said["aperio.Edited"] == f"mimic {VERSION}"
    assert said["aperio.MPP Source"] == said["aperio.AppMag Source"] == edittext.BY_HAND


@pytest.mark.parametrize("name", ["own", "own-big", "tifffile"])
def test_label_goes_without_a_trace(name: str, copy_of: Callable[[str], Path]) -> None:
    path = copy_of(name)
    with tifffile.TiffFile(path) as tiff:
        label = next(page for page in tiff.pages if "\nlabel " in page.description)
        content = path.read_bytes()
        strips = [content[at : at + n] for at, n in zip(label.dataoffsets, label.databytecounts, strict=True)]
    before = segments(path, without=("label",))
    done = run(path, Wish(drop_label=True))
    assert done.dropped == ("label",)
    assert any("macro" in note for note in done.notes)
    content = path.read_bytes()
    assert all(strip[at : at + 16] not in content for strip in strips for at in range(0, len(strip) - 16, 4096))
    assert b"label" not in content
    assert segments(path) == before
    with openslide.OpenSlide(path) as slide:
        assert set(slide.associated_images) == {"thumbnail", "macro"}
    assert not verify.failed(verify.check(path))


def test_scanners_own_slide(cmu: Path) -> None:
    before = segments(cmu, without=("label", "macro"))
    with openslide.OpenSlide(cmu) as slide:
        pixels = np.asarray(slide.read_region((900, 700), 0, (300, 300)))
    wish = Wish(appmag=40, pairs=(("MPP", "0.25"), ("Filename", "case 7")), removes=("User",))
    done = run(cmu, replace(wish, drop_label=True, drop_macro=True))
    assert done.dropped == ("label", "macro")
    assert segments(cmu) == before
    said = properties(cmu)
    assert said["openslide.objective-power"] == "40"
    assert float(said["openslide.mpp-x"]) == 0.25
    assert said["aperio.Filename"] == "case 7"
    assert said["aperio.ScanScope ID"] == "CPAPERIOCS"
    assert not {key for key in said if "User" in key}
    content = cmu.read_bytes()
    for gone in (b"b414003d", b"= CMU-1", b"AppMag = 20", b"0.4990"):
        assert gone not in content
    with openslide.OpenSlide(cmu) as slide:
        assert np.array_equal(np.asarray(slide.read_region((900, 700), 0, (300, 300))), pixels)
        assert set(slide.associated_images) == {"thumbnail"}
    assert not verify.failed(verify.check(cmu))


@pytest.mark.parametrize("look", ["openslide", "tifffile", "tiffslide", "opentile", "slideio", "large_image", "pyvips"])
def test_every_reader_agrees(look: str, originals: Callable[[str], Path], tmp_path: Path) -> None:
    path, seen = originals("own"), getattr(libraries, f"see_{look}")
    new = tmp_path / "new.svs"
    run(path, FORTY, output=new)
    before, after = seen(path), seen(new)
    assert (before.size, before.levels, before.names) == (after.size, after.levels, after.names)
    assert np.array_equal(before.pixels, after.pixels)
    assert before.pictures.keys() == after.pictures.keys()
    for name, picture in before.pictures.items():
        assert np.array_equal(picture, after.pictures[name])
    assert after.mpp_um == pytest.approx((0.26, 0.26), rel=1e-4)
    if look != "pyvips":
        assert after.power == 40


PLANTED = [f"planted{number:02}secret" for number in range(30)]


def make_planted(path: Path) -> Path:
    """Thirty strings of people: in known and unknown pairs, in other tags, on the thumbnail, and in bytes in no use."""
    parts = good_parts(histology(1200, 1000))
    pairs = "".join(f"|Key {number} = {word}" for number, word in enumerate(PLANTED[:20]))
    pairs += f"|Title = {PLANTED[20]}|User = Dr. {PLANTED[21]}|AppMag = 40"
    for part in ("baseline", "thumbnail"):
        parts[part]["description"] += pairs
    parts["level"]["software"] = PLANTED[22]
    parts["baseline"]["extratags"] = [(315, 2, None, PLANTED[23], True), (65000, 7, 14, PLANTED[24].encode(), True)]
    parts["baseline"]["datetime"] = "2001:02:03 04:05:06"
    parts["label"]["description"] += f"|Patient = {PLANTED[25]}"
    parts["macro"]["description"] += f";{PLANTED[26]}"
    write_parts(path, parts)
    with path.open("ab") as file:
        file.write("".join(PLANTED[27:]).encode())
    return path


def test_nothing_of_people_is_left(tmp_path: Path) -> None:
    path = make_planted(tmp_path / "planted.svs")
    content = path.read_bytes()
    assert all(word.encode() in content for word in PLANTED)
    before = segments(path, without=("label", "macro"))
    done = run(path, Wish(deidentify=True))
    assert done.searched > 20
    assert done.dropped == ("label", "macro")
    content = path.read_bytes()
    assert not [word for word in PLANTED if word.encode() in content]
    assert b"2001:02:03" not in content
    assert segments(path) == before
    said = properties(path)
    assert said["openslide.objective-power"] == "40"
    assert float(said["openslide.mpp-x"]) == 0.25
    assert "aperio.Date" not in said
    assert not verify.failed(verify.check(path))


def test_what_pixel_data_hide_is_told(tmp_path: Path) -> None:
    """A comment in a tile is pixel data, which an edit never touches."""
    parts = good_parts(histology(1200, 1000))
    parts["baseline"]["description"] = parts["baseline"]["description"] + "|Title = planted secret"
    path = write_parts(tmp_path / "tile.svs", parts)
    with tifffile.TiffFile(path) as tiff:
        at = tiff.pages[0].dataoffsets[3] + 200
    with path.open("r+b") as file:
        file.seek(at)
        file.write(b"planted secret")
    content = path.read_bytes()
    with pytest.raises(VerificationFailed, match=f"byte {at}"):
        run(path, Wish(deidentify=True))
    assert path.read_bytes() == content
    new = tmp_path / "new.svs"
    with pytest.raises(VerificationFailed):
        run(path, Wish(deidentify=True), output=new)
    assert not new.exists()


def test_dry_run_shows_and_writes_nothing(copy_of: Callable[[str], Path]) -> None:
    path = copy_of("own")
    content, moment = path.read_bytes(), path.stat().st_mtime_ns
    result = CliRunner().invoke(app, ["edit", str(path), "--appmag", "20", "--label", "drop", "--dry-run"])
    assert result.exit_code == 0, result.output
    lines = result.output.splitlines()
    assert lines[:2] == ["--- IFD0 baseline", "+++ IFD0 baseline"]
    assert lines.count("-|AppMag = 40") == lines.count("+|AppMag = 20") == 2
    assert "+++ dropped" in lines
    assert not [line for line in lines if "IFD2" in line]
    assert (path.read_bytes(), path.stat().st_mtime_ns) == (content, moment)


def test_command(copy_of: Callable[[str], Path], tmp_path: Path) -> None:
    path, new = copy_of("own"), tmp_path / "new.svs"
    content = path.read_bytes()
    call = ["edit", str(path), "--set", "Case Note=a|b=c\n\N{MICRO SIGN}", "--remove", "date", "--macro", "drop"]
    result = CliRunner().invoke(app, [*call, "-o", str(new)])
    assert result.exit_code == 0, result.output
    assert "macro dropped" in result.output
    assert properties(new)["aperio.Case Note"] == "a/b=c u"
    assert "aperio.Date" not in properties(new)
    assert path.read_bytes() == content
    assert CliRunner().invoke(app, [*call, "-o", str(new)]).exit_code == OutputError.exit_code
    assert CliRunner().invoke(app, [*call, "-o", str(path), "--overwrite"]).exit_code == OutputError.exit_code
    assert CliRunner().invoke(app, [*call, "-o", str(new), "--overwrite"]).exit_code == 0
    assert CliRunner().invoke(app, ["edit", str(new), "--json", "--label", "drop"]).exit_code == 0
    assert CliRunner().invoke(app, ["edit", str(new), "--label", "redact"]).exit_code == UsageError.exit_code
    assert CliRunner().invoke(app, ["edit", str(new), "--set", "nothing"]).exit_code == UsageError.exit_code


def test_nothing_to_do(copy_of: Callable[[str], Path]) -> None:
    path = copy_of("own")
    content = path.read_bytes()
    with pytest.raises(UsageError, match="nothing to change"):
        run(path, Wish())
    assert not run(path, Wish(mpp_um=0.25, removes=("User",))).written
    assert path.read_bytes() == content
    assert run(path, FORTY).written
    content = path.read_bytes()
    assert not run(path, FORTY).written
    assert path.read_bytes() == content


@pytest.mark.parametrize(
    ("wish", "said"),
    [
        (Wish(appmag=12.5), "whole numbers"),
        (Wish(appmag=0), "whole numbers"),
        (Wish(appmag=float("nan")), "whole numbers"),
        (Wish(mpp_um=0), "MPP"),
        (Wish(mpp_um=float("inf")), "MPP"),
        (Wish(pairs=(("appmag", "forty"),)), "AppMag cannot become 'forty'"),
        (Wish(pairs=(("Date", "1.4.2024"),)), "Date"),
        (Wish(pairs=(("DisplayColor", "red"),)), "DisplayColor"),
        (Wish(pairs=(("a=b", "c"),)), "name of a value"),
        (Wish(pairs=(("", "c"),)), "name of a value"),
        (Wish(pairs=(("Title", " \n"),)), "cannot become"),
        (Wish(pairs=(("Converter", "none"),)), "no scanner's original"),
        (Wish(removes=("edited",)), "no scanner's original"),
        (Wish(appmag=20, removes=("AppMag",)), "set and removed"),
        (Wish(appmag=20, pairs=(("AppMag", "40"),)), "shall become"),
    ],
)
def test_wishes_that_readers_would_not_bear(wish: Wish, said: str, copy_of: Callable[[str], Path]) -> None:
    path = copy_of("tifffile")
    content = path.read_bytes()
    with pytest.raises(UsageError, match=said):
        run(path, wish)
    assert path.read_bytes() == content


def test_foreign_files_are_refused(tmp_path: Path, copy_of: Callable[[str], Path]) -> None:
    text = tmp_path / "text.svs"
    text.write_text("no slide")
    with pytest.raises(BadInput, match="not a TIFF"):
        run(text, FORTY)
    with pytest.raises(BadInput, match="no such file"):
        run(tmp_path / "none.svs", FORTY)
    plain = tmp_path / "plain.tif"
    tifffile.imwrite(plain, histology(300, 200), metadata=None)
    with pytest.raises(Unsupported, match=r"no Aperio description.*mimic convert"):
        run(plain, FORTY)
    cut = copy_of("vips")  # directories first, so that they are there, and tiles are not
    os.truncate(cut, cut.stat().st_size - 5000)
    content = cut.read_bytes()
    with pytest.raises(BadInput):
        run(cut, FORTY)
    assert cut.read_bytes() == content


def test_write_protected(copy_of: Callable[[str], Path], tmp_path: Path) -> None:
    path = copy_of("tifffile")
    path.chmod(0o444)
    with pytest.raises(OutputError, match="-o"):
        run(path, FORTY)
    run(path, FORTY, output=tmp_path / "new.svs")
    assert properties(tmp_path / "new.svs")["aperio.AppMag"] == "40"


def test_one_edit_at_a_time(copy_of: Callable[[str], Path], tmp_path: Path) -> None:
    path = copy_of("tifffile")
    with disk.Disk(path):
        with pytest.raises(OutputError, match="another process"):
            run(path, FORTY)
        with pytest.raises(OutputError, match="another process"):
            run(path, FORTY, output=tmp_path / "new.svs")
    assert run(path, FORTY).written


@pytest.mark.parametrize("room_bytes", [0, 1, 700])
def test_full_disk_leaves_the_file_as_it_was(
    room_bytes: int, copy_of: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = copy_of("own")
    content, left, write = path.read_bytes(), [room_bytes], os.write

    def full(file: int, data: memoryview) -> int:
        if len(data) <= 8:  # the offset in the header takes no room
            return write(file, data)
        if not left[0]:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        done = write(file, data[: left[0]])
        left[0] -= done
        return done

    monkeypatch.setattr(disk.os, "write", full)
    with pytest.raises(OutputError, match="Free some space"):
        run(path, FORTY)
    monkeypatch.undo()
    assert path.read_bytes() == content


@pytest.mark.skipif(sys.platform == "win32", reason="resource limits are POSIX")
def test_file_that_may_not_grow(copy_of: Callable[[str], Path]) -> None:
    path = copy_of("own")
    content = path.read_bytes()
    script = (
        "import resource, sys; size = int(sys.argv.pop()); resource.setrlimit(resource.RLIMIT_FSIZE, (size, size));"
        "from mimic.cli import main; main()"
    )
    command = [sys.executable, "-c", script, "edit", str(path), "--appmag", "20", str(len(content) + 300)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == OutputError.exit_code, done.stderr
    assert "Traceback" not in done.stderr
    assert path.read_bytes() == content


def test_taken_back_when_a_reader_disagrees(copy_of: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch) -> None:
    path = copy_of("own")
    content = path.read_bytes()
    answers = iter([_by_openslide(path), None])
    monkeypatch.setattr(sys.modules["mimic.edit"], "_by_openslide", lambda _: next(answers))
    with pytest.raises(VerificationFailed, match="taken back: OpenSlide"):
        run(path, replace(FORTY, drop_label=True))
    assert path.read_bytes() == content


def make_sparse(path: Path, *, end: int, big: bool = False) -> Path:
    """A slide of ``end`` bytes whose tiles are holes, directories last, as a scanner's."""
    plan = make_plan(((60000, 50000), (15000, 12500), (3750, 3125)))
    made = svs.pages(plan, version="0.1.0")
    total = sum(page.segments for page in made)
    step = (end - 600_000) // total
    at, placed = 16, []
    for page in made:
        places = at + step * np.arange(page.segments, dtype=np.uint64)
        counts = np.full(page.segments, step - 1 if page.level in (0, 1) else 1001, np.uint64)
        placed.append(_Placed(places, counts, np.zeros(page.segments, np.uint32)))
        at += step * page.segments
    at += at % 2
    layout, _ = _directories(made, placed, at, big=big)
    with path.open("wb") as file:
        file.write(b"II\x2b\0\x08\0\0\0" + at.to_bytes(8, "little") if big else b"II*\0" + at.to_bytes(4, "little"))
        file.seek(at)
        file.write(layout)
    return path


@pytest.mark.parametrize("big", [False, True], ids=["classic", "big"])
def test_four_gigabytes_take_a_few_kilobytes(big: bool, tmp_path: Path) -> None:
    path = make_sparse(tmp_path / "large.svs", end=5_000_000_000 if big else 4_100_000_000, big=big)
    if not hasattr(path.stat(), "st_blocks") or path.stat().st_blocks * 512 > 100 << 20:
        pytest.skip("this file system has no holes")
    before, blocks = ifds.read(path), path.stat().st_blocks
    assert path.stat().st_size > (4_900_000_000 if big else 4_000_000_000)
    done = run(path, replace(FORTY, drop_label=True))
    assert done.written
    assert (path.stat().st_blocks - blocks) * 512 < 200_000
    assert done.appended_bytes < 20_000
    assert done.wiped_bytes < 20_000
    assert properties(path)["openslide.objective-power"] == "40"
    after = ifds.read(path)
    for old, new in zip(before.ifds[:4], after.ifds[:4], strict=True):
        assert np.array_equal(old.segments, new.segments)


def test_classic_file_at_its_end(tmp_path: Path) -> None:
    path = make_sparse(tmp_path / "full.svs", end=4_200_000_000)
    os.truncate(path, (1 << 32) - 1000)
    with pytest.raises(Unsupported, match=r"4 GiB.*mimic convert"):
        run(path, FORTY)
    assert path.stat().st_size == (1 << 32) - 1000
    assert properties(path)["aperio.AppMag"] == "40"  # still readable
    assert properties(path)["aperio.MPP"] == "0.2500"


def test_bare_macro_gets_its_name(tmp_path: Path) -> None:
    """As the GT450 writes: Bio-Formats would take a macro without a text for the label once that is gone."""
    parts = good_parts(histology(1200, 1000))
    for part in ("label", "macro"):
        parts[part]["description"] = None
    path = write_parts(tmp_path / "gt450.svs", parts)
    run(path, Wish(drop_label=True))
    assert texts(path)[-1].splitlines()[-1] == "macro 300x100"
    assert not verify.failed(verify.check(path))


def test_shared_values_are_not_wiped(tmp_path: Path) -> None:
    """Two directories may share a description, or a label its strip with another: what one still needs stays."""
    path = make_other(tmp_path)
    tree = ifds.read(path)
    label, macro = tree.ifds[3], tree.ifds[4]
    sharing = label.having(macro.fields[273]).having(macro.fields[279])
    with disk.Disk(path) as held:
        tiffedit.commit(held, tree, [*tree.ifds[:3], sharing, macro], proof=lambda: None)
    before = segments(path, without=("label",))
    run(path, Wish(drop_label=True))
    assert segments(path) == before
    assert before[-1][2].strip(b"\0")


@pytest.mark.parametrize(("byteorder", "bigtiff"), [("<", False), ("<", True), (">", False)])
def test_subifds_move_with_their_directory(byteorder: str, bigtiff: bool, tmp_path: Path) -> None:
    parts = good_parts(histology(1200, 1000))
    parts["baseline"]["subifds"] = 2
    inner = {key: value for key, value in parts["level"].items() if key != "description"}
    order = [parts["baseline"], inner, inner | {"data": inner["data"][:160]}, parts["thumbnail"], parts["label"]]
    path = write_parts(tmp_path / "sub.svs", dict(enumerate(order)), byteorder=byteorder, bigtiff=bigtiff)  # type: ignore[arg-type]
    with tifffile.TiffFile(path) as tiff:
        before = [(page.shape, page.dataoffsets, page.asarray()) for page in tiff.pages[0].pages]
    run(path, replace(FORTY, drop_label=True))
    with tifffile.TiffFile(path) as tiff:
        after = [(page.shape, page.dataoffsets, page.asarray()) for page in tiff.pages[0].pages]
        assert len(tiff.pages) == 2
    assert len(after) == len(before) == 2
    for old, new in zip(before, after, strict=True):
        assert old[:2] == new[:2]
        assert np.array_equal(old[2], new[2])
    parts["baseline"]["subifds"] = 1
    described = write_parts(tmp_path / "told.svs", dict(enumerate([parts["baseline"], parts["level"]])))  # type: ignore[arg-type]
    with pytest.raises(Unsupported, match="SubIFDs"):
        run(described, FORTY)


KEYS = st.sampled_from(["AppMag", "Title", "Filename", "MPP", "Left", "Date"]) | st.text(max_size=8)
TEXTS = st.text(max_size=30) | st.sampled_from(
    ["40", "0.25", "|", " = ", "a|b = c", "label", "\r\n\0", "é", "03/05/24"]
)
TOKENS = st.lists(st.tuples(KEYS, TEXTS).map(lambda pair: f"{pair[0]} = {pair[1]}".replace("|", "/")), max_size=6)


@settings(max_examples=300)
@given(TOKENS, st.lists(st.tuples(KEYS, TEXTS), max_size=4), st.lists(KEYS, max_size=3))
def test_any_pairs(tokens: list[str], pairs: list[tuple[str, str]], removes: list[str]) -> None:
    """Whatever is asked for: refused, or it is there, what was removed is not, and the rest is left to the byte."""
    text = "|".join([f"{PREFIX}12x10 [0,0 12x10] (256x256) JPEG/YCC Q=80", *tokens])
    try:
        todo = edittext.changes(text, pairs, removes)
    except UsageError:
        return
    new = edittext.changed(text, todo, stamp="mimic 1")
    found = description.parse(new)
    values = found.values
    assert {key: values[key] for key in todo.sets} == dict(todo.sets)
    assert not todo.removes & values.keys()
    assert found.pairs[-1] == ("Edited", "mimic 1")
    for key, value in todo.sets.items():
        assert f"{key}{value}".isascii()
        assert not set("|\r\n\0") & set(f"{key}{value}")
        assert sum(each == key for each, _ in found.pairs) == 1
    touched = {*todo.sets, *todo.removes, "Edited"}
    kept = [token for token in text.split("|")[1:] if description.parse(f"|{token}").pairs[0][0] not in touched]
    assert [token for token in new.split("|")[1:] if description.parse(f"|{token}").pairs[0][0] not in touched] == [
        *kept[:-1],
        *([kept[-1].rstrip("\0\r\n ")] if kept and kept[-1] == tokens[-1] else kept[-1:]),
    ]
    assert edittext.changed(new, todo, stamp="mimic 1") == new


@settings(max_examples=25)
@given(st.lists(st.tuples(KEYS, TEXTS), min_size=1, max_size=3), st.lists(KEYS, max_size=2))
def test_any_wish_leaves_a_slide(
    tmp_path_factory: pytest.TempPathFactory,
    small: bytes,
    pairs: list[tuple[str, str]],
    removes: list[str],
) -> None:
    path = tmp_path_factory.mktemp("wish") / "slide.svs"
    path.write_bytes(small)
    try:
        run(path, Wish(pairs=tuple(pairs), removes=tuple(removes)))
    except MimicError as error:
        assert error.exit_code == UsageError.exit_code
        assert path.read_bytes() == small
        return
    assert not verify.failed(rules.structure(path))


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return write_parts(tmp_path_factory.mktemp("small") / "small.svs", good_parts(histology(600, 600))).read_bytes()
