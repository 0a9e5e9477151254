"""A folder as a table: every slide once, nothing stops it, nothing in it is executed by a browser or a spreadsheet."""

from __future__ import annotations

import base64
import csv
import hashlib
import io
import json
import math
import re
import shutil
import sys
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest
import tifffile
from click.testing import CliRunner
from hypothesis import given
from hypothesis import settings as how
from hypothesis import strategies as st
from lxml import etree, html
from PIL import Image as Picture

from mimic import sets, settings, survey_page, survey_plot
from mimic.cli import app
from mimic.errors import BadInput, ToolMissing, UsageError
from mimic.model import Image, Level, Objective, Scale, Slide
from mimic.programs import bfclient
from mimic.survey import COLUMNS, FORMULA, SCHEMA, Row, Survey, csv_cell, judge, summarise, survey, to_csv, write_text
from tests.coded_samples import write_ome

PIXELS = np.random.default_rng(3).integers(120, 256, (512, 512, 3)).astype(np.uint8)
HOSTILE = (
    "<script>alert(1)<_script>.svs",
    "\"onmouseover=alert(1) x='.svs",
    "=cmd|' _C calc'!A0.svs",
    "&lt;b&gt;.svs",
    'a,b;c"d.svs',
    "new\nline.svs",
    "\u202egnp.svs",
    "]]>--><!--.svs",
)


def aperio(path: Path, mpp_um: float | None = 0.25, appmag: float | None = 40, *, quality: int = 80) -> Path:
    """A real, small SVS."""
    pairs = [f"|AppMag = {appmag:g}"] * (appmag is not None) + [f"|MPP = {mpp_um:g}"] * (mpp_um is not None)
    text = f"Aperio Image Library v12.0.15 \r\n512x512 [0,0 512x512] (256x256) JPEG/RGB Q={quality}" + "".join(pairs)
    tifffile.imwrite(
        path, PIXELS, tile=(256, 256), photometric="rgb", compression="jpeg", compressionargs={"level": quality},
        description=text, metadata=None,
    )  # fmt: skip
    return path


def picture(path: Path) -> Path:
    Picture.fromarray(PIXELS).save(path)
    return path


def run(folder: Path) -> Survey:
    return survey(folder, settings.load())


@pytest.fixture
def starts(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """A number for every JVM that is started from here on."""
    bfclient.shutdown()
    found: list[int] = []

    class Counted(bfclient.Server):
        def __init__(self, *args: object, **options: object) -> None:
            found.append(len(found))
            super().__init__(*args, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(bfclient, "Server", Counted)
    yield found
    bfclient.shutdown()


def fake_row(name: str, um: float | None, power: float | None, **facts: object) -> Row:
    return replace(judge(image(um, power)), file=name, format="Aperio SVS", **facts)  # type: ignore[arg-type]


def image(um: float | None, power: float | None, y_um: float | None = None) -> Image:
    scale = Scale(um, y_um or um, "file", "MPP") if um is not None else None
    objective = Objective(power, "file", "AppMag") if power is not None else None
    return Image(0, "scan", "", (Level(900, 700),), 3, True, "uint8", 8, scale=scale, objective=objective)


def fake_survey(*rows: Row) -> Survey:
    made = datetime(2024, 5, 6, tzinfo=UTC)
    return Survey(SCHEMA, Path("/slides"), made, 1.5, summarise(rows), rows)


# --- rows --------------------------------------------------------------------------------------------------------

CORPUS = {
    # file: (format, size, um/px, magnification, consistent, label, macro, levels, quality)
    "czi/he_8k_jxr_pyramid_label_20x.czi": ("Zeiss CZI", (8192, 6144), 0.44, 20, True, True, True, 5, None),
    "czi/he_2k_jxr_lossless_10x.czi": ("Zeiss CZI", (2048, 2048), 0.88, 10, True, False, False, 3, None),
    "czi/rgb_no_metadata.czi": ("Zeiss CZI", (639, 513), None, None, None, False, False, 1, None),
    "czi/two_scenes_u16_z2.czi": ("Zeiss CZI", (251, 251), 0.195644, 40, True, False, False, 1, None),
    "ndpi/test3-TRITC 2 (560).ndpi": ("Hamamatsu NDPI", (3968, 4864), 0.228175, 40, True, False, True, 4, 90),
    "nd2/example-multichannel.nd2": ("Nikon ND2", (256, 256), 0.32339, 20, True, False, False, 1, None),
    "oib/test.oib": ("Olympus FV1000", (256, 256), 0.177, 40, True, False, False, 1, None),
    "ometiff/OS-1-detail.ome.tif": ("OME-TIFF", (1101, 1101), 0.2271, None, None, False, False, 1, 75),
    "rgb/hgsc_stromal_he.jpg": ("JPEG picture", (1500, 1500), None, None, None, False, False, 1, 95),
    "svs/CMU-1-Small-Region.svs": ("Aperio SVS", (2220, 2967), 0.499, 20, True, True, True, 1, 30),
}


def test_corpus(corpus: Path, starts: list[int]) -> None:
    found = run(corpus)
    rows = {row.file: row for row in found.rows}
    assert len(starts) == 1
    for name, (kind, size, um, power, consistent, label, macro, levels, quality) in CORPUS.items():
        row = rows.pop(name)
        assert (row.format, (row.width_px, row.height_px), row.error) == (kind, size, None)
        assert row.scale_um == (um if um is None else pytest.approx(um, rel=1e-4)) and row.magnification == power
        assert (row.consistent, row.label, row.macro, row.levels) == (consistent, label, macro, levels)
        assert row.quality == quality
        assert row.size_bytes == (corpus / name).stat().st_size
    dicom = [row for name, row in rows.items() if "cmu_small_region_series" in name]
    assert len(dicom) == 1 and dicom[0].files == 8 and dicom[0].label and dicom[0].macro and dicom[0].quality == 30
    assert dicom[0].size_bytes == sum(path.stat().st_size for path in (corpus / dicom[0].file).parent.iterdir())
    assert sorted(found.summary.failed) == ["broken/CMU_truncated_60pct.svs", "broken/histolab_broken.svs"]
    assert "cut short" in (rows["broken/CMU_truncated_60pct.svs"].error or "")
    assert found.summary.slides == len(found.rows) == 14 and found.exit_code == 0
    assert found.summary.formats["Zeiss CZI"] == 4 and found.summary.magnifications["40x"] == 3


def test_one_jvm_for_many_slides_broken_ones_among_them(tmp_path: Path, starts: list[int]) -> None:
    for number in range(4):
        aperio(tmp_path / f"s{number}.svs", 0.25, 40 if number else 20, quality=70)
    cut = (tmp_path / "s1.svs").read_bytes()
    (tmp_path / "broken.svs").write_bytes(cut[: len(cut) // 2])
    (tmp_path / "noise.czi").write_bytes(bytes(range(256)) * 9)
    picture(tmp_path / "p.png")
    for number in range(2):
        write_ome(tmp_path / f"o{number}.ome.tif", "420")
    found = run(tmp_path)
    assert len(starts) == 1
    others = ["broken.svs", "noise.czi", "o0.ome.tif", "o1.ome.tif", "p.png"]
    assert [row.file for row in found.rows] == [*others, *(f"s{n}.svs" for n in range(4))]
    assert found.summary.failed == ("broken.svs", "noise.czi") and found.summary.inconsistent == ("s0.svs",)
    good = found.rows[-1]
    assert (good.codec, good.quality, good.lossy, good.consistent, good.product_um) == ("jpeg", 70, True, True, 10.0)
    assert good.scale_from and "0.25" in good.scale_from and good.magnification_from


def test_svs_start_no_jvm(tmp_path: Path, starts: list[int]) -> None:
    for number in range(3):
        aperio(tmp_path / f"s{number}.svs", 0.25, 40, quality=70)
    found = run(tmp_path)
    assert not starts and len(found.rows) == 3 and not found.summary.failed


def test_pictures_start_no_jvm(tmp_path: Path, starts: list[int]) -> None:
    for name in ("a.png", "b.jpg", "c.bmp", "d.webp"):
        picture(tmp_path / name)
    tifffile.imwrite(tmp_path / "e.tif", PIXELS, photometric="rgb")
    found = run(tmp_path)
    assert not starts and len(found.rows) == 5 and not found.summary.failed


def test_companions_are_no_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("a.tif", "b.vsi", "c.tif", "d.tif"):
        picture(tmp_path / name) if name != "b.vsi" else (tmp_path / name).write_bytes(b"x")
    members = {"b.vsi": ("a.tif", "b.vsi", "c.tif")}

    def probe(path: Path, _settings: object) -> Slide:
        files = tuple(tmp_path / name for name in members.get(path.name, (path.name,)))
        return Slide(path, files, "fake", "vips", (image(0.25, 40),))

    monkeypatch.setattr(sys.modules["mimic.survey"], "probe", probe)
    monkeypatch.setattr(sets, "Detector", type("None", (), {"find": lambda *_: None}))
    found = run(tmp_path)
    assert [(row.file, row.files) for row in found.rows] == [("b.vsi", 3), ("d.tif", 1)]


def test_a_set_without_its_companions_is_one_row_that_says_so(tmp_path: Path, starts: list[int]) -> None:
    (tmp_path / "slide.oif").write_text('[ProfileSaveInfo]\nIniFileName0="slide.oif.files/s_1.pty"\n')
    found = run(tmp_path)
    assert [row.file for row in found.rows] == ["slide.oif"] and found.rows[0].error
    assert "slide.oif.files" in found.rows[0].error and not starts


def test_a_dicom_series_with_a_broken_file_says_so_in_few_rows(corpus: Path, tmp_path: Path) -> None:
    for path in (corpus / "dicom/cmu_small_region_series").iterdir():
        shutil.copy(path, tmp_path)
    broken = max(tmp_path.iterdir(), key=lambda path: path.stat().st_size)
    broken.write_bytes(broken.read_bytes()[:-5000])
    found = run(tmp_path)
    assert 1 <= len(found.rows) <= 2
    assert broken.name in {row.file for row in found.rows if row.error}


def test_a_bug_is_a_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    picture(tmp_path / "a.png")
    picture(tmp_path / "b.png")

    def probe(path: Path, _settings: object) -> Slide:
        if path.name == "a.png":
            raise KeyError("nobody thought of this")
        return Slide(path, (path,), "fake", "vips", (image(0.25, 40),))

    monkeypatch.setattr(sys.modules["mimic.survey"], "probe", probe)
    found = run(tmp_path)
    assert "a bug in mimic" in (found.rows[0].error or "") and found.rows[1].error is None


def test_without_java_it_is_no_survey(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    picture(tmp_path / "a.png")

    def probe(path: Path, _settings: object) -> Slide:
        raise ToolMissing("no Java", path)

    monkeypatch.setattr(sys.modules["mimic.survey"], "probe", probe)
    assert run(tmp_path).exit_code == ToolMissing.exit_code


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such names")
def test_hostile_names(tmp_path: Path) -> None:
    for name in HOSTILE:
        aperio(tmp_path / name, 0.25, 20)
    found = run(tmp_path)
    assert {row.file for row in found.rows} == set(HOSTILE) and not found.summary.failed
    lines = list(csv.DictReader(io.StringIO(to_csv(found.rows))))
    assert {line["file"].removeprefix("'") for line in lines} == set(HOSTILE)
    assert not any(line["file"].startswith(FORMULA) for line in lines)
    tree = html.document_fromstring(survey_page.page(found))
    assert len(tree.xpath("//script")) == 1 and not tree.xpath("//b[not(ancestor::*[@class])]")
    assert not [name for node in tree.iter(etree.Element) for name in node.attrib if name.startswith("on")]
    cells = tree.xpath("//table[@id='slides']//td[1]/text()")
    assert "<script>alert(1)<_script>.svs" in cells and "\\u202egnp.svs" in cells and "new\\nline.svs" in cells


@pytest.mark.skipif(sys.platform in ("win32", "darwin"), reason="names there are Unicode")
def test_a_name_that_is_no_text(tmp_path: Path) -> None:
    path = Path(str(tmp_path) + "/caf\udce9.png")
    picture(tmp_path / "a.png").rename(path)
    found = run(tmp_path)
    write_text(to_csv(found.rows), tmp_path / "t.csv")
    write_text(survey_page.page(found), tmp_path / "t.html")
    assert b"caf\\udce9.png" in (tmp_path / "t.csv").read_bytes()
    assert b"caf\\udce9.png" in (tmp_path / "t.html").read_bytes()


def test_names_of_nothing(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no such folder"):
        run(tmp_path / "missing")
    with pytest.raises(UsageError, match="is a file"):
        run(picture(tmp_path / "a.png"))
    with pytest.raises((BadInput, UsageError)):
        run(tmp_path / ("x" * 300))


# --- verdicts ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("um", "y_um", "power", "verdict", "words"),
    [
        (0.25, None, 40.0, True, None),
        (0.499, None, 20.0, True, None),
        (0.25, None, 20.0, False, "0.25 um is usual at about 40x, not at 20x"),
        (0.5, None, 40.0, False, "about 20x, not at 40x"),
        (0.25, 0.26, 40.0, False, "not square"),
        (0.25, 0.2501, 40.0, True, None),
        (None, None, 40.0, None, "no scale in the file"),
        (0.25, None, None, None, "no magnification in the file"),
        (None, None, None, None, "no scale and no magnification"),
        (0.25, None, 0.0, False, "not at 0x"),
    ],
)
def test_verdicts(
    um: float | None, y_um: float | None, power: float | None, verdict: bool | None, words: str | None
) -> None:
    row = judge(image(um, power, y_um))
    assert row.consistent is verdict
    assert (row.doubt is None) == (words is None) and (words or "") in (row.doubt or "")


# --- CSV ---------------------------------------------------------------------------------------------------------


@given(st.text(), st.tuples(st.text(max_size=20), st.text(max_size=20)), st.floats(allow_nan=False))
def test_every_csv_is_read_back_and_holds_no_formula(name: str, warnings: tuple[str, str], value: float) -> None:
    row = Row(name, scale_um=value, warnings=warnings, error=name, size_bytes=-5)
    (line,) = csv.DictReader(io.StringIO(to_csv([row]), newline=""))
    assert line["size_bytes"] == "-5" and float(line["scale_um"]) == pytest.approx(value, rel=1e-5)
    for cell in (line["file"], line["warnings"], line["error"]):
        assert not cell.lstrip(" ").startswith(FORMULA)
    assert line["file"].removeprefix("'" if name.lstrip(" ").startswith(FORMULA) else "") == printable(name)


def printable(text: str) -> str:
    return text.encode("utf-8", "backslashreplace").decode().replace("\0", "\\0")


def test_csv_cells() -> None:
    when = datetime(2024, 1, 2, 3, 4, 5)
    values = [None, True, False, -2, 0.25, 1 / 3, when, ("a", "b"), "=1+1", "  @x", "plain"]
    texts = ["", "yes", "no", "-2", "0.25", "0.333333", "2024-01-02 03:04:05", "a; b", "'=1+1", "'  @x", "plain"]
    assert [csv_cell(value) for value in values] == texts


# --- the page ----------------------------------------------------------------------------------------------------


def outliers() -> Survey:
    rows = [fake_row(f"at2/{number}.svs", 0.2527, 40.0, size_bytes=10**9) for number in range(30)]
    rows += [fake_row(f"gt/{number}.svs", 0.5022, 20.0) for number in range(5)]
    rows += [fake_row("at2/halved.svs", 0.2527, 20.0), fake_row("zeiss/boost.czi", 0.11, 20.0)]
    rows += [fake_row("misc/noscale.tif", None, 20.0), fake_row("misc/nomag.tif", 0.3, None), Row("bad.svs", error="x")]
    return fake_survey(*rows)


def test_the_page_is_whole_and_alone() -> None:
    found = outliers()
    text = survey_page.page(found)
    tree = html.document_fromstring(text)
    assert len(tree.xpath("//table[@id='slides']/tbody/tr")) == len(found.rows)
    assert not tree.xpath("//@src | //@href | //link | //iframe | //object | //@style")
    assert "http" not in re.sub(r"http-equiv", "", text) and "url(" not in re.sub(r"url\(#plot\)", "", text)
    (policy,) = tree.xpath("//meta[@http-equiv='Content-Security-Policy']/@content")
    assert policy.startswith("default-src 'none'")
    for tag in ("script", "style"):
        body = re.search(f"<{tag}>(.*?)</{tag}>", text, re.DOTALL)
        assert body is not None
        digest = base64.b64encode(hashlib.sha256(body[1].encode()).digest()).decode()
        assert f"{tag}-src 'sha256-{digest}'" in policy
    assert [node.text_content() for node in tree.xpath("//*[@class='card alarm']")] == ["2inconsistent"]


def test_every_row_has_a_cell_for_every_heading() -> None:
    tree = html.document_fromstring(survey_page.page(outliers()))
    heads = tree.xpath("//table[@id='slides']/thead//th")
    for row in tree.xpath("//table[@id='slides']/tbody/tr"):
        assert len(row) == len(heads)
        for head, cell in zip(heads, row, strict=True):
            value = cell.get("data-v")
            assert value == "" or head.get("data-kind") != "number" or math.isfinite(float(value))


def svg(found: Survey) -> etree._Element:
    return etree.fromstring(survey_plot.scatter(found.rows))


def test_outliers_stand_out() -> None:
    tree = svg(outliers())
    bad = tree.xpath("//g[@class='mark bad']")
    assert len(bad) == 2 and all(mark.find("polygon") is not None for mark in bad)
    labels = {node.text for node in tree.xpath("//text[@class='outlier']")}
    assert labels == {"halved.svs", "boost.czi"}
    good = tree.xpath("//g[@class='mark good']")
    assert sorted(int(mark.findtext("text")) for mark in good) == [5, 30]
    assert len(tree.xpath("//g[@class='mark open']")) == 2
    numbers = [int(number) for mark in tree.xpath("//g/@data-rows") for number in mark.split()]
    assert sorted(numbers) == list(range(39))  # all but the broken one


def test_the_band_holds_what_is_consistent_and_nothing_else() -> None:
    tree = svg(outliers())
    (band,) = tree.xpath("//polygon[@class='band']/@points")
    (x0, low0), (x1, low1), (_, high1), (_, high0) = [tuple(map(float, pair.split(","))) for pair in band.split()]
    for mark in tree.xpath("//g[contains(@class, 'good') or contains(@class, 'bad')]"):
        circle = mark.find("circle")
        if circle is not None:
            x, y = float(circle.get("cx")), float(circle.get("cy"))
        else:
            top, right = (tuple(map(float, pair.split(","))) for pair in mark.find("polygon").get("points").split()[:2])
            x, y = top[0], right[1]
        part = (x - x0) / (x1 - x0)
        inside = high0 + part * (high1 - high0) <= y <= low0 + part * (low1 - low0)
        assert inside == ("good" in mark.get("class"))


ROWS = st.lists(
    st.builds(
        fake_row,
        st.text(max_size=60),
        st.one_of(st.none(), st.floats(1e-4, 1e4)),
        st.one_of(st.none(), st.floats(0, 1e4)),
    ),
    max_size=40,
)


@how(max_examples=40)
@given(ROWS)
def test_any_rows_make_a_page(rows: list[Row]) -> None:
    found = fake_survey(*rows)
    tree = html.document_fromstring(survey_page.page(found))
    assert len(tree.xpath("//table[@id='slides']/tbody/tr")) == len(rows)
    drawing = survey_plot.scatter(rows)
    if drawing.startswith("<svg"):
        for circle in etree.fromstring(drawing).iter("circle"):
            assert 0 <= float(circle.get("cx") or -1) <= survey_plot.WIDTH
            assert 0 <= float(circle.get("cy") or -1) <= survey_plot.HEIGHT


def test_labels_do_not_hide_each_other() -> None:
    rows = [fake_row(f"outlier number {number}.svs", 0.25 + number / 100, 10.0) for number in range(8)]
    boxes = []
    for node in svg(fake_survey(*rows)).xpath("//text[@class='outlier']"):
        left, base = float(node.get("x")), float(node.get("y"))
        boxes.append((left, base - 11, left + len(node.text) * survey_plot.CHAR_PX, base + 3))
    assert len(boxes) == 8
    for index, one in enumerate(boxes):
        for other in boxes[:index]:
            assert not (one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3])


# --- the command -------------------------------------------------------------------------------------------------


def test_command(tmp_path: Path) -> None:
    slides = tmp_path / "slides"
    slides.mkdir()
    picture(slides / "a.png")
    (slides / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    plain = CliRunner().invoke(app, ["survey", str(slides)])
    assert plain.exit_code == 0 and "2 slides" in plain.stdout and "broken.png" in plain.stdout
    out, page = tmp_path / "t.csv", tmp_path / "t.html"
    both = CliRunner().invoke(app, ["survey", str(slides), "--csv", str(out), "--html", str(page)])
    assert both.exit_code == 0 and page.read_text().startswith("<!DOCTYPE html>")
    told = CliRunner().invoke(app, ["survey", str(slides), "--csv", "-"])
    assert told.exit_code == 0 and told.stdout.splitlines() == out.read_text().splitlines()
    as_json = json.loads(CliRunner().invoke(app, ["survey", str(slides), "--json"]).stdout)
    assert [row["file"] for row in as_json["rows"]] == ["a.png", "broken.png"]
    assert as_json["summary"]["failed"] == ["broken.png"] and as_json["rows"][1]["exit_code"] == 3


def test_command_on_an_empty_folder(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["survey", str(tmp_path), "--html", str(tmp_path / "t.html")])
    assert result.exit_code == 0 and "0 slides" in result.stdout
    assert "nothing to draw" in (tmp_path / "t.html").read_text()
    told = CliRunner().invoke(app, ["survey", str(tmp_path), "--csv", "-"]).stdout
    assert told.splitlines() == [",".join(COLUMNS)]


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (["--csv", "-", "--json"], 2),
        (["--csv", "a.svs"], 2),
        (["--html", "."], 2),
        (["--html", "no/such/folder/a.html"], 7),
    ],
)
def test_command_refuses(words: list[str], code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.svs").write_bytes(b"precious")
    assert CliRunner().invoke(app, ["survey", str(tmp_path), *words]).exit_code == code
    assert (tmp_path / "a.svs").read_bytes() == b"precious" and not list(tmp_path.glob(".mimic*"))
