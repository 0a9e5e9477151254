"""A plan as Aperio directories: golden tags, and what every reader's rule asks of any plan."""

from __future__ import annotations

import json
import re
from dataclasses import asdict
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mimic import svs
from mimic.description import MAX_MPP_UM, MIN_MPP_UM, parse
from mimic.errors import InternalError
from mimic.model import Image, Level, Objective, Page, Picture, Plan, Profile, Scale, Slide, Tag

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


@given(st.floats(MIN_MPP_UM, MAX_MPP_UM))
def test_resolution_tags_are_exact_enough(mpp_um: float) -> None:
    baseline = pages(make_plan(scale=Scale(mpp_um, mpp_um, "file")))[0]
    resolution = tags(baseline)[282]
    assert isinstance(resolution, tuple)
    numerator, denominator = resolution
    assert 0 < numerator < 2**32
    assert 0 < denominator < 2**32
    assert numerator / denominator == pytest.approx(10_000 / float(pairs(baseline)["MPP"]), rel=1e-4)


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
