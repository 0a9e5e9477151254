"""The Aperio dialect: a Plan as TIFF directories, with what their descriptions say.

Every rule here is one of svs-spec.md, sections 1 to 4, where it says which readers need it.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from fractions import Fraction
from math import isfinite
from typing import Literal

from mimic import icc, views
from mimic.description import Description, clean, format_description, mpp_text
from mimic.errors import InternalError
from mimic.model import Coded, Level, Objective, Page, Picture, Plan, Scale, Tag

DEIDENTIFIED_KEYS = frozenset(
    (
        *("AppMag", "MPP", "OriginalWidth", "Originalheight", "ICC Profile", "Converter", "Rendering"),
        *("Source Format", "MPP Source", "AppMag Source", "Objective Power", "Deidentified"),
        *("Pixels", "Missing Tiles", "Converter Key"),
    )
)
"""All pairs that the description of a de-identified slide may have: none tells of people, devices or days."""


_ASCII, _SHORT, _LONG, _RATIONAL, _UNDEFINED = 2, 3, 4, 5, 7
_JPEG, _LZW, _J2K_YCC = 7, 5, 33003


def pages(plan: Plan, *, version: str, jpeg_tables: bytes | None = None) -> tuple[Page, ...]:
    """The directories of the output in their order: baseline, thumbnail, levels, label, macro.

    ``version`` is mimic's; ``jpeg_tables`` (tag 347) goes on tiled pages that are not copied (those have the plan's),
    and must be there for the "rgb" profile and for no other, unless tiles are copied: then all levels are alike.
    Raises InternalError for a plan that no Aperio file can follow.
    """
    if plan.coded is None and bool(jpeg_tables) != (plan.profile == "rgb"):
        raise InternalError(f"profile {plan.profile} {'with' if jpeg_tables else 'without'} JPEG tables")
    pairs = _pairs(plan, version)
    baseline, *smaller = plan.levels
    made = [
        _tiled(plan, 0, baseline, pairs, jpeg_tables),
        _stripped(plan, "thumbnail", plan.thumbnail_px, pairs),
        *(_tiled(plan, index, level, (), jpeg_tables) for index, level in enumerate(smaller, start=1)),
    ]
    for kind in ("label", "macro"):
        if picture := _picture(plan, kind):
            made.append(_stripped(plan, kind, (picture.width_px, picture.height_px), ()))
    return tuple(made)


def _pairs(plan: Plan, version: str) -> tuple[tuple[str, str], ...]:
    """The pairs of baseline and thumbnail: the same on both, as Bio-Formats lets the last one win.

    AppMag and MPP are never last: slideio wants a "|" after AppMag, others one after MPP. None tells about people.
    """
    wide, high = plan.levels[0].width_px, plan.levels[0].height_px
    appmag = appmag_of(plan.objective)
    found: dict[str, str | None] = {
        "AppMag": str(appmag) if appmag else None,
        **_moment(plan.acquired),
        "MPP": mpp_text(plan.scale) if plan.scale else None,
        "OriginalWidth": str(wide),
        "Originalheight": str(high),
        "ICC Profile": _profile_name(plan),
        "Converter": f"mimic {version}",
        "Rendering": _rendering(plan),
        "Pixels": _copied(plan),
        "Missing Tiles": _missing(plan),
        "Source Format": plan.slide.format,
        "MPP Source": _origin(plan.scale),
        "AppMag Source": _origin(plan.objective),
        "Objective Power": f"{plan.objective.power:g}" if plan.objective and plan.objective.power != appmag else None,
        "Converter Key": plan.key,
        "Deidentified": f"by mimic {version}" if plan.deidentify else None,
    }
    if plan.deidentify:
        found = {key: value for key, value in found.items() if key in DEIDENTIFIED_KEYS}
    cleaned = ((key, clean(value)) for key, value in found.items() if value)
    return tuple((key, value) for key, value in cleaned if value)


def _copied(plan: Plan) -> str | None:
    """Where compressed tiles are the source's own: there is no second loss."""
    if plan.coded is None:
        return None
    levels = (
        "all levels" if plan.copied_levels == len(plan.levels) else f"{plan.copied_levels} of {len(plan.levels)} levels"
    )
    return f"copied, not recompressed ({levels})"


def _profile_name(plan: Plan) -> str | None:
    """The thumbnail inherits the baseline's profile where both descriptions give it the same name (OpenSlide)."""
    return None if plan.icc_profile is None else clean(icc.name(plan.icc_profile)) or "unnamed"


def _rendering(plan: Plan) -> str | None:
    """How the colours were made, for pixels that were not 8-bit RGB: nobody may take them for a stain's."""
    return None if plan.rendering is None else views.text(plan.image, plan.rendering, names=not plan.deidentify)


def appmag_of(objective: Objective | None) -> int | None:
    """Power as an integer, half rounded up: readers take "40.0" for 0. None when it is unknown or would be 0."""
    if objective is None:
        return None
    if not isfinite(objective.power) or objective.power <= 0:
        raise InternalError(f"an objective cannot have power {objective.power}")
    return int(objective.power + 0.5) or None


def _origin(fact: Scale | Objective | None) -> str | None:
    if fact is None:
        return None
    return f"{fact.origin}: {fact.note}" if fact.note else fact.origin


def _moment(acquired: datetime | None) -> dict[str, str | None]:
    if acquired is None:
        return {}
    offset = acquired.utcoffset()
    return {
        "Date": f"{acquired:%m/%d}/{acquired.year % 100:02}",
        "Time": f"{acquired:%H:%M:%S}",
        "Time Zone": None if offset is None else _zone(offset),
    }


def _zone(offset: timedelta) -> str:
    minutes = round(abs(offset).total_seconds() / 60)
    return f"GMT{'-' if offset < timedelta() else '+'}{minutes // 60:02}:{minutes % 60:02}"


def _missing(plan: Plan) -> str | None:
    """How many places the source has not, and what they are: with ``--allow-missing`` also those that are damaged."""
    count = plan.slide.missing_tiles if plan.allow_missing else plan.coded.missing if plan.coded is not None else 0
    blank = "white" if plan.rendering is None else "black"
    return f"{count} {blank}" if count else None


def _picture(plan: Plan, kind: str) -> Picture | None:
    """The plan's label or macro: one of each at most, and nothing else has a place in an Aperio file."""
    if strange := [picture.role for picture in plan.pictures if picture.role not in ("label", "macro")]:
        raise InternalError(f"an Aperio file has no place for a picture of role {strange[0]}")
    found = [picture for picture in plan.pictures if picture.role == kind]
    if len(found) > 1:
        raise InternalError(f"the plan has {len(found)} pictures of role {kind}")
    return found[0] if found else None


def _tiled(plan: Plan, index: int, level: Level, pairs: tuple[tuple[str, str], ...], jpeg_tables: bytes | None) -> Page:
    wide, high, tile_px = plan.levels[0].width_px, plan.levels[0].height_px, plan.tile_px
    copied = plan.coded if plan.coded is not None and index < plan.copied_levels else None
    tables = jpeg_tables if copied is None else copied.jpeg_tables
    description = Description(
        kind="level" if index else "baseline",
        scan_px=(wide, high),
        crop_px=(0, 0, wide, high),
        tile_px=(tile_px, tile_px),
        size_px=(level.width_px, level.height_px) if index else None,
        codec=_codec_name(plan),
        quality=plan.quality if copied is None else copied.quality,
        pairs=pairs,
    )
    tags = [
        *_common(description, (level.width_px, level.height_px), subfile=0),
        *(_jpeg(plan) if _is_jpeg(plan.coded) else _jpeg_2000(plan.coded)),
        *(_resolution(plan.scale) if plan.scale and not index else ()),
        *([Tag(34675, _UNDEFINED, plan.icc_profile)] if plan.icc_profile and not index else []),
        Tag(322, _SHORT, (tile_px,)),
        Tag(323, _SHORT, (tile_px,)),
        *([Tag(347, _UNDEFINED, tables)] if tables else []),
    ]
    segments = -(-level.width_px // tile_px) * -(-level.height_px // tile_px)
    return Page("level" if index else "baseline", index, _sorted(tags), segments)


def _stripped(
    plan: Plan,
    kind: Literal["thumbnail", "label", "macro"],
    size_px: tuple[int, int],
    pairs: tuple[tuple[str, str], ...],
) -> Page:
    """A page of one strip: opentile reads no more than the first of a label."""
    scan_px = (plan.levels[0].width_px, plan.levels[0].height_px) if kind == "thumbnail" else None
    description = Description(kind=kind, scan_px=scan_px, size_px=size_px, pairs=pairs)
    tags = [
        *_common(description, size_px, subfile={"thumbnail": 0, "label": 1, "macro": 9}[kind]),
        *(_lzw() if kind == "label" else _jpeg(plan)),
        Tag(278, _LONG, (size_px[1],)),
    ]
    return Page(kind, None, _sorted(tags), 1)


def _common(description: Description, size_px: tuple[int, int], *, subfile: int) -> tuple[Tag, ...]:
    """Tags of every page, all explicit: readers take an absent 254 for "label" and fail on others."""
    return (
        Tag(254, _LONG, (subfile,)),
        Tag(256, _LONG, (size_px[0],)),
        Tag(257, _LONG, (size_px[1],)),
        Tag(258, _SHORT, (8, 8, 8)),
        Tag(270, _ASCII, format_description(description).encode("ascii")),
        Tag(277, _SHORT, (3,)),
        Tag(284, _SHORT, (1,)),
    )


def _jpeg(plan: Plan) -> tuple[Tag, ...]:
    if plan.profile == "rgb":
        return (Tag(259, _SHORT, (_JPEG,)), Tag(262, _SHORT, (2,)))
    subsampling = (2, 2) if plan.coded is None or plan.coded.subsampling is None else plan.coded.subsampling
    return (Tag(259, _SHORT, (_JPEG,)), Tag(262, _SHORT, (6,)), Tag(530, _SHORT, subsampling))


def _is_jpeg(coded: Coded | None) -> bool:
    return coded is None or coded.compression == _JPEG


def _jpeg_2000(coded: Coded | None) -> tuple[Tag, ...]:
    """Aperio's own numbers: raw codestreams of YCbCr or of RGB. Subsampling is the codestream's own matter."""
    if coded is None:
        raise InternalError("JPEG 2000 is only copied")
    return (Tag(259, _SHORT, (coded.compression,)), Tag(262, _SHORT, (coded.photometric,)))


def _codec_name(plan: Plan) -> str:
    """JPEG as genuine files have it; there JPEG 2000 names the encoder, which is not known of copied tiles."""
    if plan.coded is not None and not _is_jpeg(plan.coded):
        return "J2K/YCC" if plan.coded.compression == _J2K_YCC else "J2K/RGB"
    return f"JPEG/{plan.profile.upper()}"


def _lzw() -> tuple[Tag, ...]:
    return (Tag(259, _SHORT, (_LZW,)), Tag(262, _SHORT, (2,)), Tag(317, _SHORT, (2,)))


def _resolution(scale: Scale) -> tuple[Tag, ...]:
    """Pixels per cm, from the very MPP that the text states: cuCIM trusts these tags, openwholeslide compares them."""
    per_cm = 10_000 / Fraction(mpp_text(scale))
    bounded = per_cm.limit_denominator(max(1, min(2**32 - 1, int((2**32 - 1) / (per_cm + 1)))))
    value = (bounded.numerator, bounded.denominator)
    return (Tag(282, _RATIONAL, value), Tag(283, _RATIONAL, value), Tag(296, _SHORT, (3,)))


def _sorted(tags: list[Tag]) -> tuple[Tag, ...]:
    return tuple(sorted(tags, key=lambda tag: tag.code))
