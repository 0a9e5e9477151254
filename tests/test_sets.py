"""Slides of several files: any member leads to the slide, a missing one is named."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import tifffile
from hypothesis import given
from hypothesis import strategies as st

import mimic
from mimic import requests, sets
from mimic.cli import main
from mimic.errors import BadInput, Unsupported, UsageError
from mimic.model import Options
from tools.czi_samples import MPP_UM
from tools.make_samples import Sample, histology

SLIDEDAT = (
    "\ufeff[GENERAL]\r\nSLIDE_ID = X\r\n[HIERARCHICAL]\r\nINDEXFILE = Index.dat\r\n[DATAFILE]\r\nFILE_COUNT = 2\r\n"
)
SLIDEDAT += "FILE_0 = Data0000.dat\r\nFILE_1 = Data0001.dat\r\n"
VMS = "[Virtual Microscope Specimen]\nNoJpegColumns=2\nImageFile=a.jpg\nImageFile(1,0)=C:\\scans\\a(1,0).jpg\n"
VMS += "MapFile=a_map2.jpg\nOptimisationFile=a.opt\nMacroImage=a_macro.jpg\n"
NDPIS = "[NanoZoomer Digital Pathology Image Set]\r\nNoImages=2\r\nImage0=a-DAPI.ndpi\r\nImage1=a-FITC.ndpi\r\n"
AFI = "<ImageList><Image><Path>a &amp; b.svs</Path><ID>1</ID></Image><Image><Path>c.svs</Path></Image></ImageList>"


def put(folder: Path, *names: str, text: str = "x") -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text, encoding="utf-8")
    return folder / names[0]


def mirax(folder: Path) -> Path:
    put(folder, "s 1/Index.dat", "s 1/Data0000.dat", "s 1/Data0001.dat")
    put(folder, "s 1/Slidedat.ini", text=SLIDEDAT)
    return put(folder, "s 1.mrxs")


def vsi(folder: Path) -> Path:
    return put(folder, "a.vsi", "_a_/stack1/frame_t.ets", "_a_/stack10001/frame_t.ets")


def vms(folder: Path) -> Path:
    put(folder, "a.jpg", "a(1,0).jpg", "a_map2.jpg", "a_macro.jpg")
    return put(folder, "a.vms", text=VMS)


def ndpis(folder: Path) -> Path:
    put(folder, "a-DAPI.ndpi", "a-FITC.ndpi")
    return put(folder, "a.ndpis", text=NDPIS)


def oif(folder: Path) -> Path:
    put(folder, "a.oif.files/s_C001.pty", "a.oif.files/s_C001.tif", "a.oif.files/a.roi")
    text = '[ProfileSaveInfo]\r\nIniFileName0="a.oif.files\\s_C001.pty"\r\n'
    (folder / "a.oif").write_bytes(text.encode("utf-16"))
    return folder / "a.oif"


def afi(folder: Path) -> Path:
    put(folder, "a & b.svs", "c.svs")
    return put(folder, "a.afi", text=AFI)


MADE = {make.__name__: make for make in (mirax, vsi, vms, ndpis, oif, afi)}


@pytest.mark.parametrize("name", MADE)
def test_every_member_leads_to_the_slide(name: str, tmp_path: Path) -> None:
    slide = MADE[name](tmp_path)
    found = sets.find(slide)
    assert found is not None and found.path == slide and not found.missing
    everything = {path for path in tmp_path.rglob("*") if path.is_file()}
    assert set(found.files) == everything and len(everything) >= 3
    for member in everything:
        assert sets.whole(member) == slide
    for folder in {path.parent for path in everything} - {tmp_path} | {
        path for path in tmp_path.iterdir() if path.is_dir()
    }:
        if folder.name.startswith("stack"):
            continue
        assert sets.whole(folder) == slide
    assert [each.input for each in requests.expand([tmp_path], None, Options()).requests] == [slide]
    assert [each.input for each in requests.expand(sorted(everything), None, Options()).requests] == [slide]


@pytest.mark.parametrize("name", MADE)
def test_missing_member_is_named(name: str, tmp_path: Path) -> None:
    slide = MADE[name](tmp_path)
    for member in sorted(path for path in tmp_path.rglob("*") if path.is_file()):
        if name == "vsi" and member.suffix == ".ets":  # how many there should be is not told: only none is too few
            continue
        if member.name in ("a.roi", "s_C001.tif") and name == "oif":
            continue
        away = tmp_path / ".away"
        member.rename(away)
        others = [path for path in tmp_path.rglob("*") if path.is_file() and path != away]
        alone = name == "mirax" and member.name == sets.MIRAX_INI  # the folder's other files have usual names only
        if alone or (
            member == slide and name in ("vms", "ndpis", "afi")
        ):  # nothing tells any more that they belong together
            assert all(sets.find(other) is None for other in others if other != slide)
        else:
            for other in others:
                with pytest.raises(BadInput) as caught:
                    sets.whole(other)
                assert member.name in str(caught.value) and caught.value.exit_code == 3 and caught.value.remedy
        away.rename(member)
    assert sets.whole(slide) == slide


@pytest.mark.parametrize(("name", "folder"), [("mirax", "s 1"), ("vsi", "_a_"), ("oif", "a.oif.files")])
def test_folder_that_is_missing_is_refused_before_any_decoder(
    name: str, folder: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    slide = MADE[name](tmp_path)
    shutil.rmtree(tmp_path / folder)
    slide.write_bytes((Path(__file__).parent / "data" / "sample_40x.czi").read_bytes()[:4096])
    with pytest.raises(SystemExit) as caught, pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["mimic", "convert", str(slide)])
        main()
    said = capsys.readouterr().err
    assert caught.value.code == 3 and f"{folder}" in said and "missing" in said and "Traceback" not in said
    assert sorted(tmp_path.iterdir()) == [slide]


def test_counts_of_what_is_there_are_told(tmp_path: Path) -> None:
    slide = mirax(tmp_path)
    (tmp_path / "s 1" / "Data0001.dat").unlink()
    with pytest.raises(BadInput, match=r"s 1/Data0001\.dat is missing \(4 of 5 files are there\)") as caught:
        sets.whole(slide)
    assert caught.value.path == slide


def test_whole_mirax_is_not_taken_for_the_jpeg_that_it_begins_with(tmp_path: Path) -> None:
    slide = mirax(tmp_path)
    PIL.Image.fromarray(histology(64, 64)).save(slide, "JPEG")
    with pytest.raises(Unsupported, match="MIRAX"):
        mimic.probe(slide)


def test_a_slide_in_a_data_folder_is_its_own(tmp_path: Path) -> None:
    mirax(tmp_path)
    assert sets.find(put(tmp_path, "s 1/other.czi")) is None
    assert sets.find(put(tmp_path, "plain.jpg")) is None and sets.find(tmp_path) is None


@given(st.text(), st.binary(max_size=200))
def test_parsers_take_any_text(text: str, raw: bytes) -> None:
    for each in (text, raw.decode("latin-1")):
        for parse in (sets.mirax_names, sets.hamamatsu_names, sets.ndpis_names, sets.oif_names, sets.afi_names):
            assert all("/" not in name and "\\" not in name for name in parse(each))
        assert isinstance(sets.ome_names(each), tuple)


@given(st.lists(st.text("abcXYZ019_-. ", min_size=1).map(str.strip).filter(lambda name: name.strip(". ")), max_size=8))
def test_names_come_back(names: list[str]) -> None:
    lines = "".join(f"FILE_{number} = {name}\n" for number, name in enumerate(names))
    text = f"[DATAFILE]\nFILE_COUNT = {len(names)}\n{lines}"
    assert sets.mirax_names(text) == ("Index.dat", *names)
    assert sets.ndpis_names("".join(f"Image{number}={name}\n" for number, name in enumerate(names))) == tuple(names)


# --- DICOM: a series that wsidicomizer wrote ------------------------------------------------------------------------


@pytest.fixture(scope="module")
def series(sample: Callable[[str], Sample], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cases") / "case 1"
    shutil.copytree(sample("dicom").path.parent, folder)
    return folder


def test_any_file_of_a_series_and_its_folder_are_one_slide(series: Path, tmp_path: Path) -> None:
    members = sorted(series.iterdir())
    main = {sets.whole(each) for each in (series, *members)}
    assert len(main) == 1 and len(members) >= 4
    with_out = [requests.expand([each], tmp_path, Options()).requests for each in (series, series.parent, *members)]
    assert all(len(each) == 1 and each[0].input == next(iter(main)) and each[0].output == tmp_path for each in with_out)
    assert len(requests.expand([series, *members], None, Options()).requests) == 1
    done = mimic.convert(series, tmp_path)
    assert done.outputs == (tmp_path / "case 1.svs",) and len(done.input_sha256) == len(members)
    again = mimic.convert(members[-1], tmp_path / "member.svs")
    assert again.results[0].written.sha256 == done.results[0].written.sha256
    assert mimic.plan(series)[0].output == series.parent / "case 1.svs" == mimic.plan(members[1])[0].output


def test_two_series_in_a_folder_are_named_by_their_files(series: Path, tmp_path: Path) -> None:
    import pydicom

    folder = tmp_path / "both"
    shutil.copytree(series, folder)
    for number, path in enumerate(sorted(series.iterdir())):
        data = pydicom.dcmread(path)
        data.SeriesInstanceUID = "1.2.3.4"
        data.save_as(folder / f"other {number}.dcm")
    assert sets.find(folder) is None
    found = requests.expand([folder], None, Options()).requests
    assert len(found) == 2
    outputs = [each.output for each in found]
    assert None not in outputs and len(set(outputs)) == 2 and all(each and each.parent == folder for each in outputs)


def test_part_of_a_concatenation_is_missed(series: Path, tmp_path: Path) -> None:
    import pydicom

    for number in (1, 3):
        data = pydicom.dcmread(min(series.iterdir(), key=lambda path: path.stat().st_size))
        data.ConcatenationUID, data.InConcatenationNumber, data.InConcatenationTotalNumber = "1.2.3", number, 3
        data.save_as(tmp_path / f"{number}.dcm")
    with pytest.raises(BadInput, match="part 2 of 3 is missing"):
        sets.whole(tmp_path / "1.dcm")


def test_folder_of_slides_is_no_slide(tmp_path: Path) -> None:
    put(tmp_path, "a.svs", "b.czi")
    assert sets.find(tmp_path) is None
    with pytest.raises(UsageError, match="is a folder"):
        mimic.probe(tmp_path)


# --- OME: metadata in one file, planes in another, written by tifffile ----------------------------------------------


def companion(folder: Path, *, names: tuple[str, ...] = ("planes.ome.tif",)) -> Path:
    pixels = histology(600, 400)
    binary = '<?xml version="1.0" encoding="UTF-8"?><OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06">'
    binary += (
        '<BinaryOnly MetadataFile="slide.companion.ome" UUID="urn:uuid:8f9c1d1e-0000-4000-8000-000000000001"/></OME>'
    )
    blocks = ""
    for number, name in enumerate(names):
        tifffile.imwrite(folder / name, pixels, photometric="rgb", description=binary, metadata=None)
        uuid = f"urn:uuid:8f9c1d1e-0000-4000-8000-00000000001{number}"
        blocks += f"""<Image ID="Image:{number}" Name="{number}"><Pixels ID="Pixels:{number}" DimensionOrder="XYCZT"
         Type="uint8" SizeX="600" SizeY="400" SizeC="3" SizeZ="1" SizeT="1" PhysicalSizeX="{MPP_UM}"
         PhysicalSizeY="{MPP_UM}" Interleaved="true"><Channel ID="Channel:{number}:0" SamplesPerPixel="3"/>
         <TiffData IFD="0" PlaneCount="1"><UUID FileName="{name}">{uuid}</UUID></TiffData></Pixels></Image>"""
    xml = f"""<?xml version="1.0" encoding="UTF-8"?><OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06"
     UUID="urn:uuid:8f9c1d1e-0000-4000-8000-000000000001">{blocks}</OME>"""
    (folder / "slide.companion.ome").write_text(xml, encoding="utf-8")
    return folder / "slide.companion.ome"


def test_companion_ome_and_its_tiff_are_one_slide(tmp_path: Path) -> None:
    main_file = companion(tmp_path)
    planes = tmp_path / "planes.ome.tif"
    assert sets.whole(planes) == sets.whole(main_file) == main_file
    assert [each.input for each in requests.expand([tmp_path], None, Options()).requests] == [main_file]
    done = mimic.convert(planes, tmp_path / "out")
    assert set(done.input_sha256) == {str(planes), str(main_file)}
    with tifffile.TiffFile(done.outputs[0]) as tiff:
        difference = np.abs(tiff.pages.first.asarray().astype(int) - histology(600, 400)).mean()
    assert difference < 8


@pytest.mark.parametrize("gone", ["planes.ome.tif", "slide.companion.ome"])
def test_half_a_companion_set_is_refused(gone: str, tmp_path: Path) -> None:
    companion(tmp_path)
    (tmp_path / gone).unlink()
    with pytest.raises(BadInput, match="missing") as caught:
        mimic.probe(next(tmp_path.iterdir()))
    assert gone in str(caught.value)


def test_ome_tiff_of_several_files(tmp_path: Path) -> None:
    names = ("b.ome.tif", "a.ome.tif")
    blocks = "".join(f'<TiffData><UUID FileName="{name}">urn:uuid:{name}</UUID></TiffData>' for name in names)
    for name in names:
        tifffile.imwrite(tmp_path / name, histology(64, 64), description=f"<OME>{blocks}</OME>", metadata=None)
    assert sets.whole(tmp_path / "a.ome.tif") == tmp_path / "b.ome.tif"
    (tmp_path / "a.ome.tif").unlink()
    with pytest.raises(BadInput, match=r"a\.ome\.tif is missing"):
        sets.whole(tmp_path / "b.ome.tif")


def test_single_ome_tiff_may_be_renamed(tmp_path: Path) -> None:
    text = '<OME><TiffData><UUID FileName="old.ome.tif">urn:uuid:1</UUID></TiffData></OME>'
    tifffile.imwrite(tmp_path / "new.ome.tif", histology(64, 64), description=text, metadata=None)
    assert sets.find(tmp_path / "new.ome.tif") is None
