"""The Aperio dialect against the byte-exact sample of svs-spec.md, a scanner's own text, and any text at all."""

from __future__ import annotations

import json
import os
import re
from dataclasses import asdict, replace
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path

import pytest
import tifffile
from hypothesis import given
from hypothesis import strategies as st

from mimic import svs
from mimic.errors import InternalError
from mimic.model import Image, Level, Objective, Page, Picture, Plan, Profile, Scale, Slide, Tag
from mimic.svs import Description, format_description, parse

GOLDEN = Path(__file__).parent / "golden"
TABLES = b"\xff\xd8\xff\xdb\x00\x02\xff\xd9"


QUARTER_UM = Scale(0.25, 0.25, "file", "Scaling/Items/Distance")
FORTY = Objective(40.0, "derived", "from 0.25 um/px")


def make_plan(
    levels: tuple[tuple[int, int], ...] = ((40000, 30000), (10000, 7500), (2500, 1875)),
    *,
    profile: Profile = "ycc",
    tile_px: int = 256,
    downsample: int = 4,
    thumbnail_px: tuple[int, int] = (1024, 768),
    pictures: tuple[Picture, ...] = (Picture("macro", 2, 1280, 431), Picture("label", 1, 387, 463)),
    scale: Scale | None = QUARTER_UM,
    objective: Objective | None = FORTY,
    acquired: datetime | None = datetime(2024, 3, 5, 9, 8, 7),
    quality: int = 80,
    source_format: str = "Zeiss CZI",
) -> Plan:
    """A Plan as plan.py would make it."""
    scan = Image(0, "scan", "scan", (Level(*levels[0]),), 3, True, "uint8", 8, scale=scale, objective=objective)
    path = Path("in.czi")
    return Plan(
        slide=Slide(path, (path,), source_format, "bioformats", (scan,)),
        output=Path("out.svs"),
        image_index=0,
        source="bioformats",
        profile=profile,
        quality=quality,
        tile_px=tile_px,
        downsample=downsample,
        levels=tuple(Level(*size, tile_px, tile_px, "jpeg", True) for size in levels),
        thumbnail_px=thumbnail_px,
        pictures=pictures,
        scale=scale,
        objective=objective,
        acquired=acquired,
        scratch_bytes=0,
        threads=1,
        verify="sample",
        reasons=(),
    )


def pages(plan: Plan, version: str = "0.1.0") -> tuple[Page, ...]:
    return svs.pages(plan, version=version, jpeg_tables=TABLES if plan.profile == "rgb" else None)


def tags(page: Page) -> dict[int, bytes | tuple[int, ...]]:
    return {tag.code: tag.value for tag in page.tags}


def text(page: Page) -> str:
    value = tags(page)[270]
    return value.decode("ascii") if isinstance(value, bytes) else ""


def pairs(page: Page) -> dict[str, str]:
    return dict(token.split(" = ") for token in text(page).split("|")[1:])


def sample() -> list[tuple[str, str]]:
    return [(page["kind"], page["text"]) for page in json.loads((GOLDEN / "spec_section_8.json").read_text())]


# The text


def test_the_specs_sample_is_written_byte_for_byte() -> None:
    values = (
        ("AppMag", "40"),
        ("StripeWidth", "256"),
        ("Filename", "slide001"),
        ("Date", "03/05/24"),
        ("Time", "09:08:07"),
        ("Time Zone", "GMT+00:00"),
        ("MPP", "0.2500"),
        ("Left", "0.000000"),
        ("Top", "0.000000"),
        ("OriginalWidth", "40000"),
        ("Originalheight", "30000"),
        ("ICC Profile", "sRGB"),
        ("Converter", "mimic 0.1"),
    )
    whole, crop, tile = (40000, 30000), (0, 0, 40000, 30000), (256, 256)
    baseline = Description("baseline", svs.PREFIX, whole, crop, tile, None, "JPEG/YCC", 85, values)
    level = replace(baseline, kind="level", pairs=())
    made = [
        baseline,
        Description("thumbnail", scan_px=whole, size_px=(1024, 768), pairs=values),
        replace(level, size_px=(10000, 7500)),
        replace(level, size_px=(2500, 1875)),
        Description("label", size_px=(387, 463)),
        Description("macro", size_px=(1280, 431)),
    ]
    for description, (kind, expected) in zip(made, sample(), strict=True):
        assert format_description(description) == expected
        assert description.kind == kind
        assert parse(expected + "\0") == description


def test_a_scanners_own_text_is_understood() -> None:
    found = parse(
        "Aperio Image Library v11.2.1 \r\n46000x32914 [42673,5576 2220x2967] (240x240) JPEG/RGB Q=30;"
        "Aperio Image Library v10.0.51\r\n46920x33014 [0,100 46000x32914] (256x256) JPEG/RGB Q=30|AppMag = 20|"
        "Date = 12/29/09|MPP = 0.4990|OriginalWidth = 46920|OriginalWidth = 46000"
    )
    assert (found.kind, found.prefix) == ("baseline", "Aperio Image Library v11.2.1")
    assert (found.scan_px, found.crop_px) == ((46000, 32914), (42673, 5576, 2220, 2967))
    assert (found.tile_px, found.codec, found.quality) == ((240, 240), "JPEG/RGB", 30)
    assert found.values["MPP"] == "0.4990"
    assert found.values["OriginalWidth"] == "46000", "of two the last wins"
    assert len(found.pairs) == 5


@pytest.mark.parametrize(
    ("words", "kind", "size"),
    [
        (
            "Aperio Leica Biosystems GT450 v1.0.1 \r\n9x8 [0,0 9x8] (256x256) JPEG/YCC Q=91|AppMag = 40",
            "baseline",
            None,
        ),
        ("Aperio Image Library v10.0.51\r\n90x80 [0,0 90x80] (240x240) -> 22x20 J2K/KDU Q=70", "level", (22, 20)),
        ("Aperio Image Library v11.2.1 \n90x80 -> 57x46 - ;Aperio Image Library v10\r\n9x9", "thumbnail", (57, 46)),
        ("Aperio Image Library v11.2.1 \nlabel 387x463", "label", (387, 463)),
        ("Aperio Image Library v11.2.1 \r\nmacro 1280x431", "macro", (1280, 431)),
        ("Aperio Image Library v11.2.1 \nLabel", "label", None),
        ("Aperio Fake |MPP = 0.5", "unknown", None),
        ("ImageJ=1.53\nimages=3", "unknown", None),
        ("", "unknown", None),
    ],
)
def test_kinds(words: str, kind: str, size: tuple[int, int] | None) -> None:
    assert (parse(words).kind, parse(words).size_px) == (kind, size)


def test_a_token_without_equals_is_kept_apart() -> None:
    assert parse("Aperio Image Library v1\n|AppMag=20|label|MPP = 1|").stray == ("label", "")
    assert parse("Aperio Image Library v1\n|AppMag=20|label|MPP = 1|").values == {"AppMag": "20", "MPP": "1"}


@given(st.one_of(st.text(), st.text("0123456789x[], ()->|=;\r\nQJPEG/labelmacro٣")))
def test_parse_never_raises(words: str) -> None:
    parse(words)


_side = st.integers(0, 2**31 - 1)
_size = st.tuples(_side, _side)
_value = st.text(min_size=1).map(svs.clean).filter(bool)
_key = _value.map(lambda value: value.replace("=", "")).map(svs.clean).filter(bool)
_pairs = st.lists(st.tuples(_key, _value), max_size=5).map(tuple)
_prefix = st.sampled_from([svs.PREFIX, "Aperio Leica Biosystems GT450 v1.0.1"])
_codec = st.sampled_from(["JPEG/YCC", "JPEG/RGB", "J2K/YUV16"])
_crop = st.tuples(_side, _side, _side, _side)
_descriptions = st.one_of(
    st.builds(Description, st.sampled_from(["label", "macro"]), _prefix, size_px=_size),
    st.builds(Description, st.just("thumbnail"), _prefix, scan_px=_size, size_px=_size, pairs=_pairs),
    st.builds(
        Description,
        st.just("level"),
        _prefix,
        scan_px=_size,
        crop_px=_crop,
        tile_px=_size,
        size_px=_size,
        codec=_codec,
        quality=_side,
    ),
    st.builds(
        Description,
        st.just("baseline"),
        _prefix,
        scan_px=_size,
        crop_px=_crop,
        tile_px=_size,
        codec=_codec,
        quality=_side,
        pairs=_pairs,
    ),
)


@given(_descriptions)
def test_what_is_written_is_read_back(description: Description) -> None:
    assert parse(format_description(description)) == description


@pytest.mark.parametrize(
    "description",
    [
        Description("unknown"),
        Description("label"),
        Description("baseline"),
        Description("baseline", scan_px=(1, 1), crop_px=(0, 0, 1, 1), tile_px=(256, 256)),
        Description("thumbnail", scan_px=(1, 1), size_px=(1, 1), pairs=(("Note", "a|b"),)),
        Description("thumbnail", scan_px=(1, 1), size_px=(1, 1), pairs=(("Note", ""),)),
        Description("thumbnail", scan_px=(1, 1), size_px=(1, 1), pairs=(("No=te", "a"),)),
    ],
)
def test_half_a_description_is_refused(description: Description) -> None:
    with pytest.raises(InternalError):
        format_description(description)


# Values


@given(st.text())
def test_cleaned_values_are_harmless(words: str) -> None:
    cleaned = svs.clean(words)
    assert re.fullmatch(r"[\x20-\x7e]*", cleaned)
    assert not re.search(r"\||<| = |label|macro|imagej", f" {cleaned} ", re.IGNORECASE)
    assert cleaned == cleaned.strip()
    assert svs.clean(cleaned) == cleaned


@pytest.mark.parametrize(
    ("words", "cleaned"),
    [
        ("Zeiss CZI", "Zeiss CZI"),
        ("0.22 µm/px", "0.22 um/px"),
        ("Müller\r\n|AppMag = 2", "Muller /AppMag=2"),
        ("label image", "la-bel image"),
        ("<OME xmlns", "(OME xmlns"),
        ("日本\0x", "?? x"),
        ("x" * 300, "x" * 200),
        (" = ", ""),
    ],
)
def test_cleaning(words: str, cleaned: str) -> None:
    assert svs.clean(words) == cleaned


@pytest.mark.parametrize(
    ("x", "y", "expected"),
    [
        (0.25, 0.25, "0.2500"),
        (0.499, 0.499, "0.4990"),
        (0.228175, 0.228175, "0.228175"),
        (0.227097, 0.227102, "0.2271"),
        (0.028969, 0.028969, "0.028969"),
        (1.0, 1.0, "1.0000"),
        (0.4, 0.402, "0.4010"),
        (0.00012, 0.00012, "0.00012"),
        (0.00001234, 0.00001234, "0.00001234"),
        (325.0, 325.0, "325.0000"),
    ],
)
def test_mpp_text(x: float, y: float, expected: str) -> None:
    assert svs.mpp_text(Scale(x, y, "file")) == expected


@given(st.floats(svs.MIN_MPP_UM, svs.MAX_MPP_UM))
def test_mpp_text_and_tags_are_exact_enough(mpp_um: float) -> None:
    scale = Scale(mpp_um, mpp_um, "file")
    words = svs.mpp_text(scale)
    assert re.fullmatch(r"\d+\.\d{4,}", words)
    assert float(words) == pytest.approx(mpp_um, rel=1.01e-4)
    resolution = tags(pages(make_plan(scale=scale))[0])[282]
    assert isinstance(resolution, tuple)
    numerator, denominator = resolution
    assert 0 < numerator < 2**32
    assert 0 < denominator < 2**32
    assert numerator / denominator == pytest.approx(10_000 / float(words), rel=1e-4)


@pytest.mark.parametrize("mpp_um", [0.0, -1.0, float("nan"), float("inf"), 1e-6, 1e6])
def test_an_impossible_scale_is_refused(mpp_um: float) -> None:
    with pytest.raises(InternalError):
        svs.mpp_text(Scale(mpp_um, mpp_um, "file"))


# The pages


def test_pages_are_golden() -> None:
    """Every tag of both profiles, for eyes to judge when they change."""
    made = {profile: [_readable(page) for page in pages(make_plan(profile=profile))] for profile in ("ycc", "rgb")}
    assert made == json.loads((GOLDEN / "pages.json").read_text())


def _readable(page: Page) -> dict[str, object]:
    values = [_line(tag) for tag in page.tags]
    return {**{key: value for key, value in asdict(page).items() if key != "tags"}, "tags": values}


def _line(tag: Tag) -> str:
    value = tag.value.decode("latin-1") if isinstance(tag.value, bytes) else " ".join(map(str, tag.value))
    return f"{tag.code} type {tag.type}: {value}"


@pytest.mark.parametrize("profile", ["ycc", "rgb"])
def test_tiled_pages_agree(profile: Profile) -> None:
    """large_image compares these tags, and whether they are there."""
    tiled = [tags(page) for page in pages(make_plan(profile=profile)) if page.level is not None]
    for code in (258, 259, 262, 274, 277, 284, 322, 323, 347, 530):
        assert len({page.get(code) for page in tiled}) == 1, code
    assert [page.get(282) is not None for page in tiled] == [True, False, False]


def test_order_and_segments() -> None:
    made = pages(make_plan())
    assert [page.kind for page in made] == ["baseline", "thumbnail", "level", "level", "label", "macro"]
    assert [page.level for page in made] == [0, None, 1, 2, None, None]
    assert [page.segments for page in made] == [157 * 118, 1, 40 * 30, 10 * 8, 1, 1]
    assert [tags(page)[254] for page in made] == [(0,), (0,), (0,), (0,), (1,), (9,)]
    for page in made:
        codes = [tag.code for tag in page.tags]
        assert codes == sorted(set(codes))


def test_without_pictures_or_levels() -> None:
    assert [page.kind for page in pages(make_plan(((300, 200),), pictures=()))] == ["baseline", "thumbnail"]


def test_facts_are_the_same_on_baseline_and_thumbnail() -> None:
    baseline, thumbnail, *others = pages(make_plan())
    assert pairs(baseline) == pairs(thumbnail)
    assert pairs(baseline) == {
        "AppMag": "40",
        "Date": "03/05/24",
        "Time": "09:08:07",
        "MPP": "0.2500",
        "OriginalWidth": "40000",
        "Originalheight": "30000",
        "Converter": "mimic 0.1.0",
        "Source Format": "Zeiss CZI",
        "MPP Source": "file: Scaling/Items/Distance",
        "AppMag Source": "derived: from 0.25 um/px",
    }
    assert not any(pairs(page) for page in others)


def test_unknown_facts_are_absent() -> None:
    made = pages(make_plan(scale=None, objective=None, acquired=None))
    assert list(pairs(made[0])) == ["OriginalWidth", "Originalheight", "Converter", "Source Format"]
    assert not {282, 283, 296} & set(tags(made[0]))


@pytest.mark.parametrize("scale", [None, Scale(0.5, 0.5, "option")])
@pytest.mark.parametrize("objective", [None, Objective(20.0, "option")])
def test_appmag_and_mpp_are_never_last(scale: Scale | None, objective: Objective | None) -> None:
    for page in pages(make_plan(scale=scale, objective=objective))[:2]:
        assert list(pairs(page))[-1] not in ("AppMag", "MPP")
        assert ("MPP" in pairs(page), "AppMag" in pairs(page)) == (scale is not None, objective is not None)


@pytest.mark.parametrize(
    ("power", "appmag", "exact"),
    [(40.0, "40", None), (2.5, "3", "2.5"), (63.4, "63", "63.4"), (1.25, "1", "1.25"), (0.4, None, "0.4")],
)
def test_appmag_is_an_integer(power: float, appmag: str | None, exact: str | None) -> None:
    found = pairs(pages(make_plan(objective=Objective(power, "file")))[0])
    assert (found.get("AppMag"), found.get("Objective Power")) == (appmag, exact)


@pytest.mark.parametrize("power", [0.0, -20.0, float("nan"), float("inf")])
def test_an_impossible_objective_is_refused(power: float) -> None:
    with pytest.raises(InternalError):
        pages(make_plan(objective=Objective(power, "file")))


@pytest.mark.parametrize(
    ("zone", "expected"),
    [
        (None, None),
        (UTC, "GMT+00:00"),
        (timezone(timedelta(hours=-5)), "GMT-05:00"),
        (timezone(timedelta(hours=5, minutes=45)), "GMT+05:45"),
    ],
)
def test_time_zone_only_when_known(zone: timezone | None, expected: str | None) -> None:
    found = pairs(pages(make_plan(acquired=datetime(1999, 12, 31, 23, 59, 58, tzinfo=zone)))[0])
    assert (found["Date"], found["Time"], found.get("Time Zone")) == ("12/31/99", "23:59:58", expected)


def test_hostile_facts_stay_values() -> None:
    hostile = Scale(0.25, 0.25, "file", "x|AppMag = 2|label\r\nmacro 1x1\0")
    made = pages(make_plan(scale=hostile, source_format="<OME ImageJ| = "))
    assert pairs(made[0])["AppMag"] == "40"
    assert [parse(text(page)).kind for page in made] == [page.kind for page in made]
    for page in made[:4]:
        assert not re.search("label|macro|imagej|<ome", text(page), re.IGNORECASE)


@pytest.mark.parametrize(
    "plan",
    [
        make_plan(pictures=(Picture("thumbnail", 1, 10, 10),)),
        make_plan(pictures=(Picture("label", 1, 10, 10), Picture("label", 2, 10, 10))),
    ],
)
def test_pictures_without_a_place_are_refused(plan: Plan) -> None:
    with pytest.raises(InternalError):
        pages(plan)


@pytest.mark.parametrize(("profile", "tables"), [("ycc", TABLES), ("rgb", None), ("rgb", b"")])
def test_tables_belong_to_the_rgb_profile(profile: Profile, tables: bytes | None) -> None:
    with pytest.raises(InternalError):
        svs.pages(make_plan(profile=profile), version="0", jpeg_tables=tables)


def test_a_real_slide() -> None:
    """The scanner's own file, as tifffile hands out its descriptions."""
    corpus = os.environ.get("MIMIC_CORPUS")
    if not corpus:
        pytest.skip("MIMIC_CORPUS is not set")
    with tifffile.TiffFile(Path(corpus) / "svs" / "CMU-1-Small-Region.svs") as tiff:
        found = [parse(page.description) for page in tiff.pages if isinstance(page, tifffile.TiffPage)]
    assert [page.kind for page in found] == ["baseline", "thumbnail", "label", "macro"]
    assert found[0].values["AppMag"] == found[1].values["AppMag"] == "20"
    assert found[0].values["MPP"] == "0.4990"
    assert found[2].size_px == (387, 463)
    assert not any(page.stray for page in found)
