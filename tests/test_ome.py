"""OME-XML facts: real documents of Bio-Formats 7.3.1, hostile ones, and odd ones."""

from __future__ import annotations

import socket
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from lxml import etree

from mimic import ome, omexml
from mimic.errors import BadInput
from mimic.model import Objective, Scale

DATA = Path(__file__).parent / "data" / "ome"
SLIDE = Path("slide.czi")
HEAD = f'<OME xmlns="{omexml.SCHEMA}">'
PIXELS = 'ID="Pixels:0" DimensionOrder="XYCZT" Type="uint8" SizeX="9" SizeY="8" SizeZ="1" SizeC="3" SizeT="1"'
CHANNEL = '<Channel ID="Channel:0:0" SamplesPerPixel="3"/>'


def load(name: str) -> ome.Document:
    return ome.parse((DATA / f"{name}.xml").read_bytes(), SLIDE)


def document(*, pixels: str = "", image: str = "", name: str = "", before: str = "") -> str:
    inner = f"{image}<Pixels {PIXELS} {pixels}>{CHANNEL}</Pixels>"
    return f'{HEAD}{before}<Image ID="Image:0" Name="{name}">{inner}</Image></OME>'


def only(xml: str | bytes) -> ome.OmeImage:
    (image,) = ome.parse(xml, SLIDE).images
    return image


def sized(x: str, unit: str | None, y: str | None = None) -> ome.Document:
    parts = [f'PhysicalSizeX="{x}" PhysicalSizeY="{x if y is None else y}"']
    parts += [f'PhysicalSizeXUnit="{unit}" PhysicalSizeYUnit="{unit}"'] if unit is not None else []
    return ome.parse(document(pixels=" ".join(parts)), SLIDE)


# Real documents


def test_slide_with_label_and_macro() -> None:
    scan, label, macro = load("czi_label_macro_20x").images
    assert (scan.size_x, scan.size_y, scan.role) == (8192, 6144, "scan")
    assert (scan.channels, scan.samples_per_pixel, scan.size_c) == (1, 3, 3)
    assert (scan.pixel_type, scan.significant_bits) == ("uint8", 8)
    assert scan.scale == Scale(0.44, 0.44, "file", "PhysicalSizeX = 0.44 um")
    assert scan.objective == Objective(20.0, "file", "NominalMagnification")
    assert scan.acquired == datetime(2021, 3, 4, 5, 6, 7)
    assert (label.role, label.size_x, label.size_y) == ("label", 387, 463)
    assert (macro.role, macro.size_x, macro.size_y) == ("macro", 1280, 431)


def test_label_and_macro_do_not_inherit_the_slides_scale_and_objective() -> None:
    for image in load("czi_sample_40x").images[1:] + load("ndpi_macro_mask").images[1:]:
        assert (image.scale, image.objective) == (None, None)


def test_dicom_is_in_millimetres_and_names_its_series() -> None:
    images = load("dicom_series").images
    assert [image.role for image in images] == ["scan", "thumbnail", "macro", "label"]
    assert images[0].scale == Scale(0.499, 0.499, "file", "PhysicalSizeX = 0.000499 mm")
    assert images[0].objective is None


def test_flattened_pyramid_gives_every_level_as_an_image() -> None:
    widths = [image.size_x for image in load("dicom_series_flat").images]
    assert widths == [2220, 1110, 555, 278, 139, 574, 1280, 387]


def test_coarse_overview_keeps_the_scale_it_states() -> None:
    (image,) = load("dicom_overview_29um").images
    assert image.scale is not None
    assert (image.scale.x_um, image.scale.y_um) == (28.969, 28.968)


def test_macro_mask_is_neither_scan_nor_macro() -> None:
    document = load("ndpi_macro_mask")
    assert [image.role for image in document.images] == ["scan", "macro", "thumbnail"]
    assert document.scanner == "C9600-12"
    assert document.images[0].scale == Scale(
        0.2281750559028887, 0.2281750559028887, "file", "PhysicalSizeX = 0.2281750559028887 um"
    )


def test_two_scenes_are_two_scans() -> None:
    document = load("czi_two_scenes")
    assert [(image.name, image.role, image.size_z) for image in document.images] == [
        ("Scene #1", "scan", 2),
        ("Scene #2", "scan", 2),
    ]
    assert document.scanner is None  # an empty Microscope element


def test_calibrated_magnification_is_marked() -> None:
    (image,) = load("nd2_calibrated").images
    assert image.objective == Objective(20.0, "file", "CalibratedMagnification (calibrated)")
    assert (image.channels, image.samples_per_pixel, image.pixel_type) == (4, 1, "uint16")


def test_unknown_stays_unknown() -> None:
    for name in ("czi_no_scale", "jpeg_plain"):
        (image,) = load(name).images
        assert (image.scale, image.objective, image.acquired) == (None, None, None)
        assert load(name).warnings == ()


def test_both_axes_are_kept() -> None:
    scale = load("ometiff_no_objective").images[0].scale
    assert scale is not None
    assert (scale.x_um, scale.y_um) == (0.2270972430394695, 0.22710240047237298)


def test_other_real_documents() -> None:
    svs, _, macro = load("svs_small_region").images
    assert svs.acquired == datetime(2009, 12, 29, 9, 59, 15)
    assert svs.scale == Scale(0.499, 0.499, "file", "PhysicalSizeX = 0.499 um")
    assert macro.role == "macro"
    (oib,) = load("oib_confocal").images
    assert [channel.transmitted for channel in oib.channel_facts] == [False, False, True]
    assert [channel.name for channel in oib.channel_facts] == ["CH1", "CH2", "TD1"]
    assert (oib.significant_bits, oib.objective) == (12, Objective(40.0, "file", "NominalMagnification"))


def test_what_mimic_does_not_use_may_be_wrong() -> None:
    extra = '<Experimenter ID="?" UserName=""/><Instrument><Laser Type="?"/></Instrument><x:y xmlns:x="z"/>'
    xml = document(before=extra, image='<Description xml:lang="?"/>').replace("XYCZT", "ZZTOP")
    assert only(xml) == only(document())


def test_text_and_bytes_are_the_same() -> None:
    for file in sorted(DATA.glob("*.xml")):
        assert ome.parse(file.read_text(encoding="utf-8"), SLIDE) == ome.parse(file.read_bytes(), SLIDE)


@pytest.mark.parametrize("name", sorted(file.stem for file in DATA.glob("*.xml")))
def test_a_strict_reader_finds_the_same_facts(name: str) -> None:
    """ome-types validates against the whole schema, and knows nothing of how mimic reads."""
    from ome_types import from_xml
    from ome_types.model import OME

    root = omexml.read((DATA / f"{name}.xml").read_bytes(), SLIDE)
    omexml.strip(root)
    list(omexml.mend(root, units={*ome.UM_PER_UNIT, *ome.NO_LENGTH}, doubted=()))
    strict = from_xml(etree.tostring(root, encoding="utf-8"))
    assert isinstance(strict, OME)
    found = load(name)
    scopes = [box.microscope for box in strict.instruments if box.microscope is not None]
    told = [f"{scope.manufacturer or ''} {scope.model or ''}".strip() for scope in scopes]
    assert found.scanner == next((text for text in told if text), None)
    for ours, theirs in zip(found.images, strict.images, strict=True):
        pixels = theirs.pixels
        sizes = (pixels.size_x, pixels.size_y, pixels.size_z, pixels.size_c, pixels.size_t)
        assert (ours.size_x, ours.size_y, ours.size_z, ours.size_c, ours.size_t) == sizes
        assert (ours.pixel_type, ours.significant_bits) == (pixels.type.value, pixels.significant_bits)
        assert (ours.channels, ours.acquired) == (len(pixels.channels), theirs.acquisition_date)
        assert ours.samples_per_pixel == (pixels.channels[0].samples_per_pixel or 1 if pixels.channels else 1)
        if ours.scale is not None:
            for size_um, axis in ((ours.scale.x_um, "x"), (ours.scale.y_um, "y")):
                unit = getattr(pixels, f"physical_size_{axis}_unit").value
                assert size_um == pytest.approx(getattr(pixels, f"physical_size_{axis}") * ome.UM_PER_UNIT[unit])
        if ours.objective is not None:
            lenses = [lens for box in strict.instruments for lens in box.objectives]
            named = theirs.objective_settings.id if theirs.objective_settings is not None else None
            powers = {lens.nominal_magnification or lens.calibrated_magnification: lens.id for lens in lenses}
            assert powers[ours.objective.power] == (named or powers[ours.objective.power])


def test_private_parts_are_cut_away_first() -> None:
    root = omexml.read((DATA / "czi_no_scale.xml").read_bytes(), SLIDE)
    assert b"somebody" in etree.tostring(root)
    omexml.strip(root)
    assert b"somebody" not in etree.tostring(root)
    assert b"OriginalMetadata" not in etree.tostring(root)


# Roles


@pytest.mark.parametrize(
    ("name", "role"),
    [
        ("label image", "label"),
        ("LABEL", "label"),
        ("Label_Image", "label"),
        ("macro", "macro"),
        ("OVERVIEW", "macro"),
        ("overview image", "macro"),
        ("macro image", "macro"),
        ("macro mask image", "thumbnail"),
        ("THUMBNAIL", "thumbnail"),
        ("VOLUME", "scan"),
        ("", "scan"),
        ("Label-free scan.czi", "scan"),
        ("label free", "scan"),
        ("macro.tif", "scan"),
        ("macrophages", "scan"),
        ("image of the macro image", "scan"),
        ("Label 1, 20x", "scan"),
    ],
)
def test_roles_by_whole_name(name: str, role: str) -> None:
    assert ome.role_of(name) == role


def test_role_by_dicom_image_type() -> None:
    assert ome.role_of("series 4", "ORIGINAL\\PRIMARY\\LABEL\\NONE") == "label"
    assert ome.role_of("series 4", "DERIVED\\PRIMARY\\OVERVIEW\\RESAMPLED") == "macro"
    assert ome.role_of("series 4", "ORIGINAL\\PRIMARY\\VOLUME\\NONE") == "scan"
    assert ome.role_of("series 4", "the original label of the slide") == "scan"


def test_roles_of_a_vms_set_share_a_prefix() -> None:
    names = ["17 b full resolution", "17 b macro", "17 b map", "17 c macro"]
    body = "".join(f'<Image ID="Image:{n}" Name="{name}"><Pixels {PIXELS}/></Image>' for n, name in enumerate(names))
    images = ome.parse(f"{HEAD}{body}</OME>", SLIDE).images
    assert [image.role for image in images] == ["scan", "macro", "thumbnail", "scan"]


# Scale


@pytest.mark.parametrize(
    ("size", "unit", "um"),
    [
        ("0.25", None, 0.25),
        ("0.25", "µm", 0.25),
        ("0.25", "μm", 0.25),
        ("250", "nm", 0.25),
        ("2500", "Å", 0.25),
        ("2.5E-4", "mm", 0.25),
        ("2.5E-5", "cm", 0.25),
        ("2.5E-7", "m", 0.25),
        ("0.01", "thou", 0.254),
        ("1e-5", "in", 0.254),
        ("7.2e-4", "pt", 0.254),
        ("1.2e-4", "li", 0.254),
    ],
)
def test_units(size: str, unit: str | None, um: float) -> None:
    scale = sized(size, unit).images[0].scale
    assert scale is not None
    assert (scale.x_um, scale.y_um) == (um, um)


def test_every_unit_of_the_schema_is_known() -> None:
    from ome_types.model import UnitsLength

    assert {unit.value for unit in UnitsLength} == set(ome.UM_PER_UNIT) | ome.NO_LENGTH


@pytest.mark.parametrize("unit", ["pixel", "reference frame"])
def test_units_that_are_no_length_mean_unknown(unit: str) -> None:
    result = sized("1", unit)
    assert (result.images[0].scale, result.warnings) == (None, ())


@pytest.mark.parametrize("size", ["0", "-0.5", "NaN", "INF", "-INF", "abc", "", "1e999"])
def test_sizes_that_are_none_are_dropped_with_a_warning(size: str) -> None:
    result = sized(size, "µm")
    assert result.images[0].scale is None
    assert len(result.warnings) == 2
    assert "PhysicalSizeX" in result.warnings[0]


def test_unknown_unit_is_dropped_with_a_warning() -> None:
    result = sized("0.5", "?m")
    assert result.images[0].scale is None
    assert "'?m'" in result.warnings[0]


@pytest.mark.parametrize("size", ["352.8", "264.583", "84.6667", "42.33", "25.4", "100", "1e9", "1e-9", "1e308"])
def test_print_resolutions_and_absurd_sizes_are_dropped_with_a_warning_that_names_them(size: str) -> None:
    result = sized(size, "µm")
    assert result.images[0].scale is None
    (warning,) = result.warnings
    assert f"{float(size):.6g} um" in warning


def test_one_axis_is_not_enough() -> None:
    result = ome.parse(document(pixels='PhysicalSizeX="0.5"'), SLIDE)
    assert result.images[0].scale is None
    assert "one axis" in result.warnings[0]


def test_exactly_one_micrometre_is_kept_with_a_warning() -> None:
    result = sized("1.0", None)
    assert result.images[0].scale is not None
    assert "exactly 1 um" in result.warnings[0]
    assert sized("1.0", "µm", "1.01").warnings == ()


def test_no_warnings_about_images_that_are_no_scan() -> None:
    xml = document(pixels='PhysicalSizeX="0" PhysicalSizeY="352.8"', name="label image")
    assert ome.parse(xml, SLIDE).warnings == ()


# Objective

LENSES = (
    '<Instrument ID="Instrument:0"><Objective ID="Objective:0" NominalMagnification="10"/>'
    '<Objective ID="Objective:1" NominalMagnification="40" CalibratedMagnification="41.2"/></Instrument>'
    '<Instrument ID="Instrument:1"><Objective ID="Objective:2" CalibratedMagnification="20"/></Instrument>'
)


@pytest.mark.parametrize(
    ("links", "power", "note"),
    [
        ('<ObjectiveSettings ID="Objective:1"/>', 40.0, "NominalMagnification"),
        ('<ObjectiveSettings ID="Objective:0"/>', 10.0, "NominalMagnification"),
        ('<InstrumentRef ID="Instrument:0"/><ObjectiveSettings ID="Objective:2"/>', 20.0, "(calibrated)"),
        ('<InstrumentRef ID="Instrument:1"/>', 20.0, "only objective"),
    ],
)
def test_objective_is_the_one_the_image_names(links: str, power: float, note: str) -> None:
    objective = only(document(image=links, before=LENSES)).objective
    assert objective is not None
    assert (objective.power, objective.origin) == (power, "file")
    assert note in objective.note


@pytest.mark.parametrize("links", ["", '<InstrumentRef ID="Instrument:0"/>', '<InstrumentRef ID="Instrument:9"/>'])
def test_objective_is_not_guessed_among_several(links: str) -> None:
    assert only(document(image=links, before=LENSES)).objective is None


@pytest.mark.parametrize("value", ["0", "-20", "NaN", "INF", "twenty", ""])
def test_impossible_magnification_is_unknown(value: str) -> None:
    lens = f'<Instrument ID="Instrument:0"><Objective ID="Objective:0" NominalMagnification="{value}"/></Instrument>'
    assert only(document(image='<ObjectiveSettings ID="Objective:0"/>', before=lens)).objective is None


def test_odd_and_doubled_ids_do_no_harm() -> None:
    lens = '<Instrument ID="scope"><Objective ID="nosepiece ²" NominalMagnification="20"/></Instrument>' * 2
    xml = document(image='<InstrumentRef ID="scope"/><ObjectiveSettings ID="nosepiece ²"/>', before=lens)
    image = only(xml.replace("Image:0", "my image"))
    assert image.objective == Objective(20.0, "file", "NominalMagnification")
    assert image.id == "my image"


# Date and scanner


@pytest.mark.parametrize(
    ("text", "moment"),
    [
        ("2017-02-07T13:07:45", datetime(2017, 2, 7, 13, 7, 45)),
        ("2017-02-07T13:07:45.250", datetime(2017, 2, 7, 13, 7, 45, 250_000)),
        ("2017-02-07T13:07:45Z", datetime(2017, 2, 7, 13, 7, 45, tzinfo=UTC)),
        ("1970-01-01T00:00:00", None),
        ("0001-01-01T00:00:00Z", None),
        ("yesterday", None),
        ("", None),
    ],
)
def test_acquisition_date(text: str, moment: datetime | None) -> None:
    acquired = only(document(image=f"<AcquisitionDate>{text}</AcquisitionDate>")).acquired
    assert acquired == moment
    if acquired is not None and moment is not None:
        assert (acquired.tzinfo is None) == (moment.tzinfo is None)


def test_scanner_is_manufacturer_and_model() -> None:
    scope = '<Instrument ID="Instrument:0"><Microscope Manufacturer=" Zeiss " Model="Axio Scan.Z1"/></Instrument>'
    assert ome.parse(document(before=scope), SLIDE).scanner == "Zeiss Axio Scan.Z1"


# Hostile and broken documents

BOMB = "".join(f'<!ENTITY e{n} "{f"&e{n - 1};" * 10 if n else "ha"}">' for n in range(10))


@pytest.mark.parametrize(
    "prolog",
    [
        f"<!DOCTYPE OME [{BOMB}]>",
        '<!DOCTYPE OME [<!ENTITY x SYSTEM "file:///etc/passwd">]>',
        '<!DOCTYPE OME SYSTEM "http://127.0.0.1:9/ome.dtd">',
        "<!DOCTYPE OME>",
        "<!-- <OME --><!DOCTYPE OME>",
        f"<!-- <OME --><!DOCTYPE OME [{BOMB}]>",
    ],
)
@pytest.mark.parametrize("name", ["plain", "&x;", "&e9;"])
def test_doctype_is_refused(prolog: str, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "socket", lambda *_a, **_k: pytest.fail("a document reached for the network"))
    with pytest.raises(BadInput):
        ome.parse(prolog + document(name=name), SLIDE)


def test_every_truncation_of_a_real_document_is_bad_input() -> None:
    whole = (DATA / "svs_small_region.xml").read_bytes().rstrip()
    for length in range(0, len(whole), 37):
        with pytest.raises(BadInput):
            ome.parse(whole[:length], SLIDE)


@pytest.mark.parametrize(
    "xml",
    [
        "",
        "no xml",
        "<html/>",
        f"{HEAD}</OME>",
        f'{HEAD}<Image ID="Image:0"/></OME>',
        '<OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2010-06"><Image ID="Image:0"/></OME>',
        document().replace('SizeX="9"', ""),
        document().replace('SizeX="9"', 'SizeX="0"'),
        document().replace('SizeX="9"', 'SizeX="4294967296"'),
        document().replace('SizeX="9"', 'SizeX="' + "9" * 5000 + '"'),
        document().replace('SizeX="9"', 'SizeX="1_0"'),
        document().replace("uint8", "uint7"),
        document().replace('SamplesPerPixel="3"', 'SamplesPerPixel="-3"'),
        "<a>" * 5000,
        b"\xff\xfe<\x00O\x00",
        b"\x00" * 100,
    ],
)
def test_nonsense_is_bad_input_with_path_and_remedy(xml: str | bytes) -> None:
    with pytest.raises(BadInput) as caught:
        ome.parse(xml, SLIDE)
    assert caught.value.path == SLIDE
    assert caught.value.remedy
    assert len(str(caught.value)) < 500


# Properties

ODD = st.one_of(
    st.text(alphabet=st.characters(codec="utf-8", exclude_categories=["Cc", "Cs"]), max_size=12),
    st.floats(width=64).map(repr),
    st.integers(-(2**70), 2**70).map(str),
    st.sampled_from(
        ["NaN", "INF", "-0", "1_0", "٣", "²", "Image:0", "Objective:0", "2021-03-04T05:06:07", "µm", "xsi"]
    ),
)
SOURCES = [file.read_bytes() for file in sorted(DATA.glob("*.xml"))]


def parse_or_refuse(xml: str | bytes) -> None:
    try:
        result = ome.parse(xml, SLIDE)
    except BadInput:
        return
    for image in result.images:
        if image.scale is not None:
            assert min(image.scale.x_um, image.scale.y_um) >= ome.SMALLEST_UM
            assert max(image.scale.x_um, image.scale.y_um) <= ome.LARGEST_UM
        if image.objective is not None:
            assert image.objective.power > 0
        assert min(image.size_x, image.size_y, image.samples_per_pixel) > 0


@settings(max_examples=150)
@given(source=st.sampled_from(SOURCES), data=st.data())
def test_any_attribute_may_say_anything(source: bytes, data: st.DataObject) -> None:
    root = etree.fromstring(source)
    elements = list(root.iter("*"))
    for _ in range(data.draw(st.integers(1, 4))):
        element = elements[data.draw(st.integers(0, len(elements) - 1))]
        known = [name for _, names in omexml.KEPT.values() for name in sorted(names)]
        name = data.draw(st.sampled_from(sorted(set(known) | set(map(str, element.attrib)))))
        element.set(name, data.draw(ODD))
        if data.draw(st.booleans()):
            element.text = data.draw(ODD)
    parse_or_refuse(etree.tostring(root))


@settings(max_examples=80)
@given(source=st.sampled_from(SOURCES), data=st.data())
def test_any_element_may_be_missing_doubled_or_moved(source: bytes, data: st.DataObject) -> None:
    root = etree.fromstring(source)
    for _ in range(data.draw(st.integers(1, 3))):
        elements = list(root.iter("*"))[1:]
        if not elements:
            break
        element = elements[data.draw(st.integers(0, len(elements) - 1))]
        parent = element.getparent()
        assert parent is not None
        copy = etree.fromstring(etree.tostring(element))
        match data.draw(st.sampled_from(["missing", "doubled", "moved"])):
            case "missing":
                parent.remove(element)
            case "doubled":
                parent.append(copy)
            case _:
                elements[data.draw(st.integers(0, len(elements) - 1))].append(copy)
    parse_or_refuse(etree.tostring(root))


@settings(max_examples=80)
@given(source=st.sampled_from(SOURCES), data=st.data())
def test_flipped_bytes(source: bytes, data: st.DataObject) -> None:
    flipped = bytearray(source)
    for _ in range(data.draw(st.integers(1, 5))):
        flipped[data.draw(st.integers(0, len(source) - 1))] = data.draw(st.integers(0, 255))
    parse_or_refuse(bytes(flipped))


@settings(max_examples=80)
@given(um=st.floats(0.002, 20.0), unit=st.sampled_from(sorted(set(ome.UM_PER_UNIT) - ome.NO_LENGTH)))
def test_a_size_comes_back_from_any_unit(um: float, unit: str) -> None:
    value = um / float(ome.UM_PER_UNIT[unit])
    scale = sized(repr(value), unit).images[0].scale
    assert scale is not None
    assert scale.x_um == pytest.approx(um, rel=1e-12)
