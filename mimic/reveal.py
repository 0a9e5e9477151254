"""What a finished slide still tells of people, cases, devices and days: every text in it that mimic would not write.

Looks at the file as it is, whoever wrote it: descriptions, tags, pictures, profiles, and the bytes that no directory
refers to, where programs that only cut a link leave what they removed.
"""

from __future__ import annotations

import mmap
import re
from contextlib import closing
from pathlib import Path

from mimic import description, harvest, icc, sheets, tifffields
from mimic.errors import BadInput
from mimic.model import Check
from mimic.phi import SAFE_SVS_KEYS

MIN_TEXT_CHARS = 6
MAX_GAP_BYTES = 64 << 20
"""Of one gap; more than any description, less than what would keep a check busy."""
SHOWN_CHARS = 60
JPEG_HEADS = 64 << 10
MAX_ORPHAN_BYTES = 1024
"""A smaller gap without texts is padding; a larger one can be a picture that was only unlinked."""
TEXT_TAGS = frozenset((2, 1, 7))


def check(path: Path) -> tuple[Check, ...]:
    """One Check for each way in which a TIFF can tell of people; one that fails says what was found.

    A macro is suspect unless the file says that it was de-identified. Raises BadInput for a file that is no TIFF.
    """
    layout = sheets.read(path)
    try:
        with path.open("rb") as file, closing(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)) as data:
            parsed = tifffields.parse(data)
            if parsed is None:
                raise BadInput("is not a TIFF file", path, sheets.NO_TIFF)
            return (
                _description(layout),
                *_pictures(layout),
                _tags(data, parsed),
                _profiles(data, parsed),
                _tiles(data, parsed),
                _orphans(data, parsed),
            )
    except (OSError, ValueError) as error:
        raise BadInput(f"cannot be read: {error}", path, "Check the disk") from error


def _description(layout: sheets.Layout) -> Check:
    found = []
    for sheet in layout.sheets:
        text = (sheet.text or b"").split(b"\0", 1)[0].decode("latin-1")
        if not text.startswith("Aperio"):
            found += [f"{sheet.name}: {_shown(line)}" for line in text.splitlines() if line.strip()]
            continue
        for key, value in description.parse(text).pairs:
            if key.lower() not in SAFE_SVS_KEYS and value:
                found.append(f"{sheet.name}: {key} = {_shown(value)}")
    return sheets.rule("descriptions", _distinct(found), measured="no pair identifies", expected="only sizes and scale")


def _distinct(found: list[str]) -> list[str]:
    """The same pair on several directories is told once."""
    return list({text.partition(": ")[2]: text for text in reversed(found)}.values())[::-1]


def _pictures(layout: sheets.Layout) -> tuple[Check, ...]:
    labels, macros = layout.of("label"), layout.of("macro")
    others = layout.of("other")
    base = (layout.sheets[0].text or b"").decode("latin-1")
    cut = description.parse(base).values.get("Deidentified") is not None
    return (
        sheets.rule("label", [f"{each.name}: look at it" for each in labels], measured="absent", expected="absent"),
        sheets.rule(
            "macro",
            [f"{each.name}: the label may be on it" for each in macros],
            measured="absent",
            expected="absent, or without the label",
            must=not cut,
        ),
        sheets.rule(
            "other pictures", [f"{each.name}: look at it" for each in others], measured="none", expected="none"
        ),
    )


def _tags(data: mmap.mmap, parsed: tifffields.Parsed) -> Check:
    """Tags with texts, EXIF and GPS included, other than descriptions and profiles, which have their own checks."""
    found = []
    for field in parsed.fields:
        if field.tag in (270, 34675) or field.tag in harvest.BINARY_TAGS or field.length > harvest.MAX_VALUE_BYTES:
            continue
        raw = data[field.offset : field.offset + field.length]
        for trace in harvest.field_traces(field, raw):
            if trace.value.strip():
                found.append(f"{field.directory}: {trace.field} = {_shown(trace.value)}")
        if field.directory.startswith(("EXIF", "GPS")) and field.type not in TEXT_TAGS:
            found.append(f"{field.directory}: tag {field.tag}")
    return sheets.rule("tags", found, measured="no text", expected="no texts in tags, no EXIF, no XMP")


def _profiles(data: mmap.mmap, parsed: tifffields.Parsed) -> Check:
    """The texts of a colour profile: its makers' names do no harm, a serial number or day does, and nobody can tell."""
    found = []
    for field in parsed.fields:
        if field.tag != 34675:
            continue
        profile = data[field.offset : field.offset + field.length]
        if profile == icc.neutral(profile) or profile == icc.neutral(profile, icc.name(profile)):
            continue
        found += [f"{field.directory}: {_shown(text)}" for text in icc.texts(profile)]
    serial = any(re.search(r"\d{4,}", re.sub(r"copyright|\b(19|20)\d\d\b", "", text, flags=re.I)) for text in found)
    return sheets.rule(
        "colour profile", found, measured="none, or without texts", expected="no texts, or none that tells", must=serial
    )


def _tiles(data: mmap.mmap, parsed: tifffields.Parsed) -> Check:
    """Comments and application segments in JPEG tiles and strips."""
    found: dict[str, None] = {}
    for start, end in parsed.segments:
        if data[start : start + 3] != b"\xff\xd8\xff":
            continue
        for trace in harvest.jpeg(data[start : min(end, start + JPEG_HEADS)]):
            found.setdefault(f"{trace.field} = {_shown(trace.value)}")
    return sheets.rule("compressed pixels", list(found), measured="no texts", expected="no comments, no EXIF")


def _orphans(data: mmap.mmap, parsed: tifffields.Parsed) -> Check:
    found = []
    for start, end in tifffields.gaps([*parsed.spans, *parsed.segments], len(data)):
        raw = data[start : min(end, start + MAX_GAP_BYTES)]
        texts = [text for text in harvest.runs(raw) if len(text) >= MIN_TEXT_CHARS]
        if texts:
            found.append(f"{end - start} bytes at {start}: {_shown(texts[0])}")
        elif end - start >= MAX_ORPHAN_BYTES and raw.strip(b"\0"):
            found.append(f"{end - start} bytes at {start} of unknown content")
    return sheets.rule("orphaned bytes", found, measured="none with content", expected="nothing outside of directories")


def _shown(text: str) -> str:
    plain = " ".join(text.split())
    return plain if len(plain) <= SHOWN_CHARS else plain[: SHOWN_CHARS - 3] + "..."
