"""De-identification: texts planted in every kind of input, none of which may be in the output, its report, its log."""

from __future__ import annotations

import base64
import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import PIL.Image
import PIL.PngImagePlugin
import pytest
import tifffile
from click.testing import CliRunner
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

import mimic
from mimic import cli, harvest, phi, privacy, reveal, tifffields
from mimic import svs as dialect
from mimic.errors import VerificationFailed
from mimic.model import Pixels, Slide
from tests.conftest import SAMPLE_CZI, module
from tests.test_colour import wide_profile
from tools.make_samples import Sample

PLANTED = (
    *("Quillfeather^Ottoline", "Ottoline Quillfeather", "oquillfeather", "ottoline@stjude-hosp.example", "S23-778812"),
    *("ACC-5519-Z", "MRN0099172", "1953-07-09", "Dr. Vandersloot", "pvandersloot", "St. Jude Pathology", "SN-990317-Q"),
    *("XB-4471-KL", "BlockTango7", "DIAG melanoma relapse", "Ward Kestrel 9", "WS-PATHO-0042", "Room Basilisk"),
    *(
        "Krankenhaus Sankt Ägid",
        "7710338412",
        "Ulmenweg 12 Lindau",
        "ChartNo88123",
        "Trial-ZEPHYR-031",
        "OR-Heliotrope",
    ),
    *(
        "D:\\Scans\\Quillfeather\\raw",
        "caseworker Imelda",
        "Next of kin Barnaby",
        "Insurer-OMEGA-55",
        "Study-PELICAN-7",
    ),
    "Lot-FIREFLY-2201",
)
"""Thirty."""
FILE_NAME = "Marchbanks_Eulalia_S99-31415"


def hidden_in(data: bytes, texts: tuple[str, ...]) -> list[tuple[str, str]]:
    """The judge, of its own mind: which of ``texts``, or words of them, are in ``data``, and in which coding."""
    lower = data.lower()
    found = []
    for text in texts:
        for part in {text, *(word for word in text.replace("^", " ").replace("\\", " ").split() if len(word) > 6)}:
            plain = part.lower()
            codings = {
                "utf-8": plain.encode(),
                "latin-1": plain.encode("latin-1"),
                "utf-16-le": plain.encode("utf-16-le"),
                "utf-16-be": plain.encode("utf-16-be"),
                "percent": quote(plain).encode().lower(),
                "json": json.dumps(plain)[1:-1].encode(),
                "base64": base64.b64encode(part.encode())[:-4].lower() if len(part) >= 9 else plain.encode(),
            }
            found += [(part, name) for name, coded in codings.items() if coded in lower]
    return found


def pixels(width_px: int = 320, height_px: int = 256) -> Pixels:
    rows, columns = np.mgrid[:height_px, :width_px]
    return np.stack([columns % 256, rows % 256, (rows + columns) % 256], 2).astype(np.uint8)


def exif() -> PIL.Image.Exif:
    made = PIL.Image.Exif()
    for tag, text in zip((270, 271, 272, 305, 315, 316, 33432), PLANTED, strict=False):
        made[tag] = text.encode("ascii", "replace").decode()
    made[306] = "1953:07:09 11:22:33"
    made.get_ifd(0x8769).update({0x9003: "1953:07:09 11:22:33", 0xA431: PLANTED[11], 0xA430: PLANTED[8]})
    return made


def png(path: Path) -> Path:
    info = PIL.PngImagePlugin.PngInfo()
    for index, text in enumerate(PLANTED):
        (info.add_itxt if index % 3 == 0 else info.add_text)(f"key{index}", text, zip=index % 2 == 0)
    PIL.Image.fromarray(pixels()).save(path, pnginfo=info, exif=exif(), icc_profile=wide_profile("SN-990317-Q"))
    return path


def jpeg(path: Path) -> Path:
    xmp = "<x:xmpmeta xmlns:x='adobe:ns:meta/'>" + "".join(f"<Description>{text}</Description>" for text in PLANTED)
    comment = " / ".join(PLANTED).encode()
    PIL.Image.fromarray(pixels()).save(
        path, exif=exif(), comment=comment, xmp=(xmp + "</x:xmpmeta>").encode(), icc_profile=wide_profile("SN-990317-Q")
    )
    return path


def plain_tiff(path: Path) -> Path:
    ascii_tags = [(tag, text) for tag, text in zip((269, 271, 272, 285, 315, 316, 33432), PLANTED, strict=False)]
    tags = [(tag, 2, 0, text.encode("ascii", "replace").decode(), True) for tag, text in ascii_tags]
    tags += [(65000 + index, 2, 0, text.encode("utf-8"), True) for index, text in enumerate(PLANTED)]
    tags += [(40092, 1, None, PLANTED[13].encode("utf-16-le"), True)]
    tifffile.imwrite(
        path, pixels(), photometric="rgb", description="\n".join(f"note {n} = {t}" for n, t in enumerate(PLANTED[:9])),
        software=PLANTED[11], datetime="1953:07:09 11:22:33", extratags=tags, tile=(128, 128), metadata=None,
        iccprofile=wide_profile("SN-990317-Q"),
    )  # fmt: skip
    return path


def svs(path: Path) -> Path:
    """An SVS with every usual key, a label and a macro."""
    keys = ("Filename", "Title", "User", "Barcode", "ScanScope ID", "DSR ID", "ImageID", "Slide", "Rack", "Patient")
    pairs = [f"{keys[n % len(keys)]}{'' if n < len(keys) else n} = {text}" for n, text in enumerate(PLANTED)]
    head = "Aperio Image Library v12.0.15"
    text = f"{head} \r\n320x256 [0,0 320x256] (128x128) JPEG/RGB Q=80|AppMag = 20|" + "|".join(pairs)
    text = (text + "|Date = 07/09/53|Time = 11:22:33|MPP = 0.5000|Left = 1.0").encode("latin-1")
    jpeg_rgb: dict[str, Any] = {"compression": "jpeg", "compressionargs": {"outcolorspace": "rgb"}}
    common: dict[str, Any] = {"photometric": "rgb", "metadata": None, "software": False}
    with tifffile.TiffWriter(path) as tiff:
        tiff.write(pixels(), description=text, tile=(128, 128), subfiletype=0, **jpeg_rgb, **common)
        tiff.write(pixels(160, 128), description=text, rowsperstrip=128, subfiletype=0, **jpeg_rgb, **common)
        for name, kind in (("label", 1), ("macro", 9)):
            picture = {"rowsperstrip": 100, "description": f"{head}\n{name} 200x100", "subfiletype": kind}
            tiff.write(pixels(200, 100), compression="lzw", **picture, **common)
    return path


def ome_tiff(path: Path) -> Path:
    keys = "".join(
        f'<XMLAnnotation ID="Annotation:{n}"><Value><OriginalMetadata><Key>note {n}</Key><Value>{text}</Value>'
        "</OriginalMetadata></Value></XMLAnnotation>"
        for n, text in enumerate(PLANTED)
    )
    xml = f"""<?xml version="1.0" encoding="UTF-8"?>
<OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06">
 <Experimenter ID="Experimenter:0" FirstName="Ottoline" LastName="Quillfeather" Email="{PLANTED[3]}"
  UserName="{PLANTED[2]}" Institution="{PLANTED[10]}"/>
 <Instrument ID="Instrument:0"><Microscope Manufacturer="{PLANTED[9]}" SerialNumber="{PLANTED[11]}"/></Instrument>
 <Image ID="Image:0" Name="{PLANTED[4]}"><AcquisitionDate>1953-07-09T11:22:33</AcquisitionDate>
  <Description>{PLANTED[14]}</Description><ExperimenterRef ID="Experimenter:0"/><InstrumentRef ID="Instrument:0"/>
  <Pixels ID="Pixels:0" DimensionOrder="XYCZT" Type="uint8" SizeX="320" SizeY="256" SizeC="3" SizeZ="1" SizeT="1"
   PhysicalSizeX="0.5" PhysicalSizeY="0.5" Interleaved="true">
   <Channel ID="Channel:0:0" Name="{PLANTED[13]}" SamplesPerPixel="3"/><TiffData IFD="0" PlaneCount="1"/>
  </Pixels></Image>
 <StructuredAnnotations>{keys}</StructuredAnnotations></OME>"""
    tifffile.imwrite(path, pixels(), photometric="rgb", description=xml.encode(), metadata=None, tile=(128, 128))
    return path


def czi(path: Path) -> Path:
    """The sample that ships, its XML replaced by one that has the texts: a new segment at the end, and a new link."""
    data = bytearray(SAMPLE_CZI.read_bytes())
    (at,) = struct.unpack_from("<q", data, 32 + 60)
    (length,) = struct.unpack_from("<i", data, at + 32)
    xml = bytes(data[at + 288 : at + 288 + length]).decode()
    names = ("UserName", "Name", "Barcode", "Description", "SerialNumber", "Comment", "Title", "Author", "Keywords")
    extra = "".join(f"<{names[n % len(names)]}>{text}</{names[n % len(names)]}>" for n, text in enumerate(PLANTED))
    document = f"<Document>{extra}<CreationDate>1953-07-09T11:22:33</CreationDate></Document>"
    raw = xml.replace("<Information>", f"<Information>{document}", 1).encode()
    assert PLANTED[0].encode() in raw
    body = struct.pack("<ii", len(raw), 0) + bytes(248) + raw
    body += bytes(-len(body) % 32)
    data += bytes(-len(data) % 32)
    struct.pack_into("<q", data, 32 + 60, len(data))
    data += struct.pack("<16sqq", b"ZISRAWMETADATA", len(body), len(body)) + body
    path.write_bytes(data)
    return path


DICOM_KEYWORDS = (
    *("PatientName", "PatientComments", "OperatorsName", "InstitutionAddress", "AccessionNumber", "StudyID"),
    *("PatientID", "PatientBirthDate", "ReferringPhysicianName", "NameOfPhysiciansReadingStudy", "InstitutionName"),
    *("DeviceSerialNumber", "ContainerIdentifier", "SeriesDescription", "StudyDescription", "CurrentPatientLocation"),
    *("StationName", "InstitutionalDepartmentName", "AdditionalPatientHistory", "IssuerOfPatientID"),
    *("PatientAddress", "ProtocolName", "ClinicalTrialProtocolID", "PerformedStationName", "DerivationDescription"),
    *(
        "RequestingPhysician",
        "ImageComments",
        "InsurancePlanIdentification",
        "ClinicalTrialProtocolName",
        "SoftwareVersions",
    ),
)


def dicom(path: Path, sample: Callable[[str], Sample]) -> Path:
    """A real series, each of its files with the texts in the tags for them, a sequence and a private tag."""
    pydicom = module("pydicom")
    path.mkdir()
    series = sample("dicom").path
    series = series if series.is_dir() else series.parent
    for index, file in enumerate(sorted(series.iterdir())):
        data = pydicom.dcmread(file)
        data.SpecificCharacterSet = "ISO_IR 192"
        for keyword, text in zip(DICOM_KEYWORDS, PLANTED, strict=True):
            setattr(data, keyword, text.replace("-", "") if keyword == "PatientBirthDate" else text)
        item = pydicom.Dataset()
        item.SpecimenIdentifier, item.SpecimenShortDescription = PLANTED[4], PLANTED[14]
        data.SpecimenDescriptionSequence = pydicom.Sequence([item])
        data.private_block(0x0099, PLANTED[15][:16], create=True).add_new(1, "LO", PLANTED[16])
        data.save_as(path / f"{FILE_NAME}_{index}.dcm")
    return path


KINDS = ("png", "jpg", "tif", "svs", "ome.tif", "czi", "dicom")


@pytest.fixture
def planted(tmp_path: Path, sample: Callable[[str], Sample]) -> Callable[[str], Path]:
    makers: dict[str, Callable[[Path], Path]] = {
        "png": png, "jpg": jpeg, "tif": plain_tiff, "svs": svs, "ome.tif": ome_tiff, "czi": czi,
    }  # fmt: skip

    def make(kind: str) -> Path:
        folder = tmp_path / "in" / "Quillfeather Ottoline"
        folder.mkdir(parents=True)
        if kind == "dicom":
            return dicom(folder / FILE_NAME, sample)
        return makers[kind](folder / f"{FILE_NAME}.{kind}")

    return make


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_planted_is_in_output_report_or_log(kind: str, planted: Callable[[str], Path], tmp_path: Path) -> None:
    source, out = planted(kind), tmp_path / "out"
    out.mkdir()
    inputs = b"".join(file.read_bytes() for file in ([source] if source.is_file() else sorted(source.iterdir())))
    assert len(hidden_in(inputs, PLANTED)) >= 10  # that judge finds them where they are
    words = [str(source), "-o", str(out), "--deidentify", "--report", str(out / "report.json"), "--json"]
    words += ["--log-file", str(out / "log.txt"), *(["--mpp", "0.5"] if kind in ("png", "jpg", "tif") else [])]
    done = CliRunner().invoke(cli.app, ["convert", *words])
    assert done.exit_code == 0, done.output
    made = sorted(each.name for each in out.iterdir())
    assert len(made) == 3 and made[2].startswith("slide_") and made[2].endswith(".svs")
    for file in out.iterdir():
        assert hidden_in(file.read_bytes(), (*PLANTED, FILE_NAME, "07/09/53", "11:22:33", "19530709")) == [], file.name
    assert hidden_in(done.output.encode(), (*PLANTED, FILE_NAME)) == []
    report = json.loads((out / "report.json").read_text())
    result = report["results"][0]
    assert report["status"] == "converted" and result["plan"]["deidentify"] and not result["plan"]["pictures"]
    search = next(check for check in result["checks"] if check["name"] == "no personal text")
    searched = int(search["measured"].split("none of ")[1].split()[0])
    assert search["passed"] and searched >= 20
    assert any("values that may identify are not written" in reason for reason in result["plan"]["reasons"])
    assert [check for check in reveal.check(out / made[2]) if not check.passed] == []


@pytest.mark.parametrize("kind", KINDS)
def test_harvest_knows_what_was_planted(kind: str, planted: Callable[[str], Path]) -> None:
    """The second net: the texts are not only not written, they are known and looked for."""
    source = planted(kind)
    file = source if source.is_file() else sorted(source.iterdir())[0]
    known = phi.values(harvest.traces(file, Slide(file, (file,), "x", "x", ())))
    text = "\n".join(known).lower()
    missing = [each for each in PLANTED if each.lower() not in text and each.replace("-", "") not in text]
    few = {"png": 0, "jpg": 0, "tif": 0, "svs": 0, "ome.tif": 0, "czi": 0, "dicom": 0}
    assert len(missing) <= few[kind], missing


def test_failures_tell_nothing_either(planted: Callable[[str], Path], tmp_path: Path) -> None:
    source = planted("png")
    words = [str(source), "-o", str(tmp_path / "out"), "--deidentify", "--report", str(tmp_path / "r.json")]
    done = CliRunner().invoke(cli.app, ["convert", *words, "--log-file", str(tmp_path / "log.txt")])
    assert done.exit_code == 3 and "--mpp" in done.output
    for data in (done.output.encode(), (tmp_path / "r.json").read_bytes(), (tmp_path / "log.txt").read_bytes()):
        assert hidden_in(data, (*PLANTED, FILE_NAME)) == []


def test_a_leak_fails_the_conversion(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Were the allow-list broken, the search would tell, without the value, and no output would be left."""
    source = svs(tmp_path / f"{FILE_NAME}.svs")
    true = dialect.format_description
    monkeypatch.setattr(dialect, "format_description", lambda each: true(each) + "|Note = s23-778812")
    with pytest.raises(VerificationFailed) as caught:
        mimic.convert(source, tmp_path / "out.svs", deidentify=True, passthrough="never")
    assert "no personal text: 1 of" in str(caught.value) and "778812" not in str(caught.value)
    assert not (tmp_path / "out.svs").exists()


CODINGS: dict[str, Callable[[str], bytes]] = {
    "utf-8": str.encode,
    "upper": lambda text: text.upper().encode(),
    "latin-1": lambda text: text.encode("latin-1"),
    "utf-16-le": lambda text: text.encode("utf-16-le"),
    "utf-16-be": lambda text: text.encode("utf-16-be"),
    "percent": lambda text: quote(text).encode(),
    "base64": lambda text: base64.b64encode(b"ab" + text.encode() + b"c"),
}


@pytest.mark.parametrize("coding", CODINGS)
def test_every_coding_is_found(coding: str) -> None:
    for text in PLANTED:
        wanted = phi.needles(phi.tokens([text]))
        assert phi.find(b"\0\xff..." + CODINGS[coding](text) + b"\xd9" * 9, wanted), text
        assert not phi.find(b"Aperio Image Library v12.0.15 \r\n320x256 [0,0 320x256] (256x256)" * 9, wanted)


@given(st.text(st.characters(codec="latin-1", categories=("L", "N")), min_size=6, max_size=40), st.binary(max_size=50))
@hypothesis_settings(max_examples=200)
def test_any_text_is_found_wherever_it_stands(text: str, around: bytes) -> None:
    found = phi.tokens([text])
    if not found:  # a number that is a measure, or a word of mimic's own
        assert text.casefold() in phi.VOCABULARY or not any(char.isalpha() for char in text) or "e" in text.lower()
        return
    for coding in ("utf-8", "utf-16-le", "utf-16-be"):
        assert phi.find(around + text.encode(coding) + around, phi.needles(found))


def test_dates_are_looked_for_in_every_spelling() -> None:
    for text in ("1953-07-09T11:22:33", "19530709", "07/09/1953", "1953:07:09 11:22:33"):
        assert {"1953-07-09", "19530709", "07/09/53", "09.07.1953"} <= {*phi.tokens([text])}


@pytest.mark.parametrize("text", ["40", "0.25", "abc", "2220", "1.5e-06", "true", "Aperio", "label", "0.2500000001"])
def test_what_matches_by_chance_is_not_looked_for(text: str) -> None:
    assert phi.tokens([text]) == ()


def test_short_needles_are_kept_out_of_compressed_pixels(tmp_path: Path) -> None:
    """ "Iris" in a tile's bytes is chance, in a tag it is a name."""
    done = mimic.convert(png(tmp_path / "a.png"), tmp_path / "a.svs", mpp_um=0.5, deidentify=True)
    plan = done.results[0].plan
    data = (tmp_path / "a.svs").read_bytes()
    parsed = tifffields.parse(data)
    assert parsed is not None
    start, end = parsed.segments[0]
    from dataclasses import replace

    told = replace(plan, slide=replace(plan.slide, personal=("Iris", "Quillfeather")))
    for at, text, found in ((start + 700, b"iris", False), (start + 700, b"QUILLFEATHER", True), (0, b"", False)):
        changed = tmp_path / "b.svs"
        changed.write_bytes(data[:at] + text + data[at + len(text) :])
        assert end - start > 800 and privacy.search(changed, told)[0].passed != found
    changed.write_bytes(data + b"\0Iris\0")
    assert not privacy.search(changed, told)[0].passed


def test_copied_tiles_with_comments_are_told(tmp_path: Path) -> None:
    path = jpeg_tiles(tmp_path / "a.svs", b"\xff\xfe\x00\x0eJane Quill 7")
    done = mimic.convert(png(tmp_path / "a.png"), tmp_path / "b.svs", mpp_um=0.5, deidentify=True)
    assert not privacy.search(path, done.results[0].plan)[1].passed
    assert privacy.search(tmp_path / "b.svs", done.results[0].plan)[1].passed
    assert not next(check for check in reveal.check(path) if check.name == "compressed pixels").passed


def jpeg_tiles(path: Path, segment: bytes) -> Path:
    """A TIFF of one JPEG strip with a segment behind its SOI."""
    import io

    file = io.BytesIO()
    PIL.Image.fromarray(pixels(128, 128)).save(file, "JPEG")
    coded = file.getvalue()[:2] + segment + file.getvalue()[2:]
    tifffile.imwrite(
        path, iter([coded]), shape=(128, 128, 3), dtype=np.uint8, tile=(128, 128), photometric="ycbcr",
        compression="jpeg", metadata=None, software=False,
    )  # fmt: skip
    return path


def broken(path: Path) -> set[str]:
    return {check.name for check in reveal.check(path) if not check.passed}


def test_check_phi_tells_what_a_slide_reveals(tmp_path: Path) -> None:
    assert broken(svs(tmp_path / "a.svs")) == {"descriptions", "label", "macro"}
    tagged = plain_tiff(tmp_path / "b.svs")
    assert broken(tagged) >= {"descriptions", "tags", "colour profile"}
    told = next(check for check in reveal.check(tmp_path / "a.svs") if check.name == "descriptions")
    assert "Filename = Quillfeather^Ottoline" in told.measured
    done = CliRunner().invoke(cli.app, ["check", "--phi", str(tmp_path / "a.svs")])
    assert done.exit_code == 8


def test_check_phi_finds_what_no_directory_refers_to(tmp_path: Path) -> None:
    mimic.convert(png(tmp_path / "a.png"), tmp_path / "a.svs", mpp_um=0.5, deidentify=True)
    assert broken(tmp_path / "a.svs") == set()
    done = CliRunner().invoke(cli.app, ["check", "--phi", str(tmp_path / "a.svs")])
    assert done.exit_code == 0
    data = (tmp_path / "a.svs").read_bytes()
    (tmp_path / "b.svs").write_bytes(data + b"|Filename = Jane Quill")
    (tmp_path / "c.svs").write_bytes(data + np.random.default_rng(1).bytes(5000))
    assert broken(tmp_path / "b.svs") == broken(tmp_path / "c.svs") == {"orphaned bytes"}


def test_plan_tells_names_of_fields_and_no_value(tmp_path: Path) -> None:
    made = mimic.plan(svs(tmp_path / f"{FILE_NAME}.svs"), deidentify=True)[0]
    told = next(reason for reason in made.reasons if "not written" in reason)
    assert "ScanScope ID" in told and "Barcode" in told and hidden_in(" ".join(made.reasons).encode(), PLANTED) == []
    assert made.output.name.startswith("slide_") and made.output.parent == tmp_path and made.acquired is None


@given(st.binary(max_size=600))
@hypothesis_settings(max_examples=300)
def test_any_bytes_are_no_trouble(data: bytes) -> None:
    for head in (b"II*\0\x08\0\0\0", b"MM\0+\0\x08\0\0\0\0\0\0\0\0\0\x10", b"\xff\xd8\xff\xe1", b""):
        list(harvest.tiff(head + data))
        list(harvest.jpeg(head + data))
        list(harvest.xml(b"<a>" + data))
        harvest.runs(data)
