"""The rules of ImageDescription: svs-spec section 4, on the raw bytes.

Readers pick these texts apart with regular expressions of their own, so the bytes are judged, not what a parser of
mimic's makes of them.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import datetime

from mimic.model import Check
from mimic.sheets import MAX_TEXT_BYTES, RESOLUTION_UNIT, X_RESOLUTION, Y_RESOLUTION, Layout, Sheet, faults, rule

PREFIXES = ("Aperio Image Library ", "Aperio Leica Biosystems ")
"""What scanners write: the first up to the AT2, the second the GT450. HALO and Bio-Formats look for the first."""

GEOMETRY = re.compile(
    r"\d+x\d+ \[\d+,\d+ (?P<width>\d+)x(?P<height>\d+)\] \((?P<tile>\d+x\d+)\)(?: -> (?P<level>\d+x\d+))? \S+ Q=\d+"
)
THUMBNAIL = re.compile(r"(?P<width>\d+)x(?P<height>\d+) -> (?P<level>\d+x\d+) - ")
PAIR = re.compile(r"[^=|]*[^=|\s] = (?!.* = ).*", re.DOTALL)
FORBIDDEN = ("imagej", "<ome ")
NUMBERS = ("Left", "Top", "Exposure Time", "Exposure Scale")
RESOLUTION_TOLERANCE = 0.002
"""MPP has four decimals: 0.2 % at 0.025 um, the finest scanners know."""


def check(layout: Layout) -> tuple[Check, ...]:
    """One Check per rule of section 4, and of resolution tags against MPP."""
    sheets = layout.sheets
    pairs = [(sheet, key, value) for sheet in sheets for key, value in pairs_of(sheet)]
    return (
        *_presence(layout),
        rule(
            "description encoding",
            faults(sheets, _encoding),
            expected="7-bit ASCII, ends with its only NUL, under 1 MiB",
        ),
        rule(
            "description prefix",
            faults(sheets, _prefix),
            expected="every text starts with 'Aperio Image Library ' (GT450: 'Aperio Leica Biosystems ')",
        ),
        *_lines(layout),
        *_geometry(layout),
        rule("description pairs", faults(sheets, _pairs), expected="every | is followed by 'key = value', none trails"),
        rule(
            "description duplicate keys",
            faults(sheets, _duplicates),
            expected="no key twice, for readers take the last",
            must=False,
        ),
        rule(
            "description words label and macro",
            faults([sheet for sheet in sheets if sheet.kind not in ("label", "macro")], _stray_words),
            expected="only in the descriptions of label and macro (Bio-Formats sorts by them)",
        ),
        rule("description foreign words", faults(sheets, _foreign), expected="no 'ImageJ', no '<OME '", must=False),
        *_appmag(layout),
        *_mpp(layout),
        _values("Date", pairs, _date_fault, expected="MM/DD/YY or MM/DD/YYYY"),
        _values("Time", pairs, _time_fault, expected="HH:MM:SS"),
        _values("Time Zone", pairs, _matches(r"GMT[+-]\d\d:?\d\d"), expected="GMT+HH:MM"),
        _values("DisplayColor", pairs, _matches(r"\d+"), expected="a decimal integer"),
        rule(
            "stage and exposure",
            [f"{sheet.name}: {key} = {value}" for sheet, key, value in pairs if key in NUMBERS and not _decimal(value)],
            expected=f"{', '.join(NUMBERS)} are decimal numbers",
        ),
        rule(
            "no Z keys",
            [f"{sheet.name}: {key}" for sheet, key, _ in pairs if key in ("OffsetZ", "TotalDepth")],
            expected="OffsetZ and TotalDepth absent (they switch Bio-Formats to Z stacks)",
            must=False,
        ),
        _agreement(pairs),
        _resolution(layout),
    )


def text_of(sheet: Sheet) -> str:
    """Description without its NUL, every byte a character; empty when there is none."""
    return (sheet.text or b"").split(b"\0", 1)[0].decode("latin-1")


def tokens_of(sheet: Sheet) -> list[str]:
    """What follows each ``|``."""
    return text_of(sheet).split("|")[1:]


def pairs_of(sheet: Sheet) -> list[tuple[str, str]]:
    """Keys and values, stripped, in their order; tokens without ``=`` are left out."""
    split = [token.partition("=") for token in tokens_of(sheet)]
    return [(key.strip(), value.strip()) for key, sign, value in split if sign]


def value_of(sheet: Sheet, key: str) -> str | None:
    """The value readers take: the last of that key."""
    return dict(pairs_of(sheet)).get(key)


def mpp_of(sheet: Sheet) -> float | None:
    """MPP as a positive number, None when it is absent or malformed."""
    text = value_of(sheet, "MPP") or ""
    return float(text) if re.fullmatch(r"\d+(\.\d+)?", text) and float(text) > 0 else None


def _presence(layout: Layout) -> tuple[Check, ...]:
    needed = faults(layout.of("baseline", "thumbnail", "level"), lambda sheet: None if text_of(sheet) else "none")
    extra = layout.of("label", "macro", "other")
    bare = [sheet for sheet in extra if not text_of(sheet)]
    # the GT450 leaves both out: Bio-Formats takes the first bare IFD for the label and the next for the macro
    guessed = [sheet.kind for sheet in extra] == ["label", "macro"] and len(bare) == 2
    return (
        rule("descriptions", needed, expected="on the baseline, the thumbnail and every level"),
        rule(
            "descriptions of label and macro",
            [f"{sheet.name}: none" for sheet in bare],
            expected="on each (only label and macro together may do without, as the GT450's)",
            must=not guessed,
        ),
    )


def _encoding(sheet: Sheet) -> str | None:
    raw = sheet.text
    if raw is None:
        return None
    if len(raw) > MAX_TEXT_BYTES:
        return "1 MiB or longer"
    if not raw.endswith(b"\0") or b"\0" in raw.rstrip(b"\0"):
        return "not NUL-terminated, or NUL inside"
    return None if raw.isascii() else "not 7-bit ASCII"


def _prefix(sheet: Sheet) -> str | None:
    text = text_of(sheet)
    return f"starts {text[:24]!r}" if text and not text.startswith(PREFIXES) else None


def _lines(layout: Layout) -> tuple[Check, ...]:
    def crlf(sheet: Sheet) -> str | None:
        return None if not text_of(sheet) or _first_break(sheet) == "\r\n" else _shown(sheet)

    def bare_lf(sheet: Sheet) -> str | None:
        return None if not text_of(sheet) or _first_break(sheet) == "\n" else _shown(sheet)

    def associated(sheet: Sheet) -> str | None:
        text = text_of(sheet)
        second = text.partition("\n")[2]
        good = not text or ("\r" not in text and second == f"{sheet.kind} {sheet.width_px}x{sheet.height_px}")
        return None if good else repr(text[:60])

    return (
        rule(
            "line ends of levels",
            faults(layout.of("baseline", "level"), crlf),
            expected="CR LF after the first line",
            must=False,
        ),
        rule("line end of the thumbnail", faults(layout.of("thumbnail"), bare_lf), expected="LF", must=False),
        rule(
            "label and macro text",
            faults(layout.of("label", "macro"), associated),
            expected="bare LF, then 'label WxH' or 'macro WxH' (OpenSlide 3.4 loses them after CR LF)",
        ),
    )


def _first_break(sheet: Sheet) -> str:
    found = re.search(r"\r\n|\r|\n", text_of(sheet))
    return found[0] if found else ""


def _shown(sheet: Sheet) -> str:
    return repr(_first_break(sheet)) if _first_break(sheet) else "no line end"


def _geometry(layout: Layout) -> tuple[Check, ...]:
    base = layout.sheets[0]
    wrong: list[str] = []
    absent: list[str] = []
    for sheet in layout.of("baseline", "level", "thumbnail"):
        lines = re.split(r"\r\n|\n", text_of(sheet), maxsplit=1)
        pattern = THUMBNAIL if sheet.kind == "thumbnail" else GEOMETRY
        found = pattern.match(lines[1]) if len(lines) == 2 else None
        if found is None:
            absent.append(f"{sheet.name}: none")
            continue
        said = (int(found["width"]), int(found["height"]), found["level"])
        own = None if sheet.kind == "baseline" else f"{sheet.width_px}x{sheet.height_px}"
        if said != (base.width_px, base.height_px, own):
            wrong.append(f"{sheet.name}: {found[0][:60]}")
        elif sheet.tiled and found["tile"] != f"{sheet.tile_width_px}x{sheet.tile_height_px}":
            wrong.append(f"{sheet.name}: tiles {found['tile']}")
    return (
        rule(
            "description geometry",
            absent,
            expected="'OWxOH [X,Y WxH] (TWxTH) CODEC Q=q', with '-> wxh' on levels; thumbnail 'WxH -> wxh - '",
            must=False,
        ),
        rule("description sizes", wrong, expected="where a size is written, it is the size of the directory"),
    )


def _pairs(sheet: Sheet) -> str | None:
    wrong = [token for token in tokens_of(sheet) if not PAIR.fullmatch(token)]
    return f"|{wrong[0][:40]!r}" if wrong else None


def _duplicates(sheet: Sheet) -> str | None:
    keys = [key for key, _ in pairs_of(sheet)]
    twice = sorted({key for key in keys if keys.count(key) > 1})
    return ", ".join(twice) if twice else None


def _stray_words(sheet: Sheet) -> str | None:
    for token in re.split(r"[|\r\n]", text_of(sheet)):
        if "=" not in token and re.search("label|macro", token, re.IGNORECASE):
            return repr(token[:40])
    return None


def _foreign(sheet: Sheet) -> str | None:
    text = text_of(sheet).lower()
    return next((word for word in FORBIDDEN if word in text), None)


def _appmag(layout: Layout) -> tuple[Check, ...]:
    base = layout.sheets[0]
    said = value_of(base, "AppMag")
    return (
        Check("AppMag present", said is not None, said or "none", "in the baseline's description", must=False),
        rule(
            "AppMag",
            [f"{base.name}: {said!r}"] if said is not None and not re.fullmatch(r"[1-9]\d*", said) else [],
            measured=said or "none",
            expected="a whole number (slideio reads 40.0 as 0)",
        ),
        rule("AppMag place", _last(layout, "AppMag"), expected="not the last pair (slideio)"),
    )


def _mpp(layout: Layout) -> tuple[Check, ...]:
    base = layout.sheets[0]
    said = value_of(base, "MPP")
    good = said is None or (re.fullmatch(r"\d+\.\d+", said) is not None and float(said) > 0)
    return (
        Check("MPP present", said is not None, said or "none", "in the baseline's description (opentile)", must=False),
        Check("MPP", good, said or "none", "a positive decimal number like 0.2500, no exponent"),
        rule("MPP place", _last(layout, "MPP"), expected="not the last pair"),
    )


def _last(layout: Layout, key: str) -> list[str]:
    ends = [(sheet, pairs_of(sheet)) for sheet in layout.sheets]
    return [f"{sheet.name}: last" for sheet, pairs in ends if pairs and pairs[-1][0] == key]


def _values(
    name: str,
    pairs: list[tuple[Sheet, str, str]],
    bad: Callable[[str], bool],
    *,
    expected: str,
) -> Check:
    wrong = [f"{sheet.name}: {value!r}" for sheet, found, value in pairs if found == name and bad(value)]
    return rule(name, wrong, expected=expected)


def _matches(pattern: str) -> Callable[[str], bool]:
    return lambda value: re.fullmatch(pattern, value) is None


def _date_fault(value: str) -> bool:
    year = "%y" if re.fullmatch(r"\d\d/\d\d/\d\d", value) else "%Y"
    return re.fullmatch(r"\d\d/\d\d/\d\d(\d\d)?", value) is None or not _parses(value, f"%m/%d/{year}")


def _time_fault(value: str) -> bool:
    return re.fullmatch(r"\d\d:\d\d:\d\d", value) is None or not _parses(value, "%H:%M:%S")


def _parses(value: str, layout: str) -> bool:
    try:
        datetime.strptime(value, layout)
    except ValueError:
        return False
    return True


def _decimal(value: str) -> bool:
    return re.fullmatch(r"[+-]?\d+(\.\d+)?", value) is not None


def _agreement(pairs: list[tuple[Sheet, str, str]]) -> Check:
    wrong = []
    for key in ("AppMag", "Date", "Time"):
        said = sorted({value for _, found, value in pairs if found == key})
        if len(said) > 1:
            wrong.append(f"{key}: {', '.join(said)}")
    return rule("repeated values", wrong, expected="AppMag, Date and Time the same wherever they stand")


def _resolution(layout: Layout) -> Check:
    """cuCIM takes the scale from these tags and not from MPP, openwholeslide demands that they agree."""
    base = layout.sheets[0]
    mpp, found = mpp_of(base), base.resolution
    expected = "XResolution and YResolution 10000/MPP per centimetre, or neither"
    if X_RESOLUTION not in base.fields and Y_RESOLUTION not in base.fields:
        return Check("resolution tags", True, "absent", expected)
    unit = base.number(RESOLUTION_UNIT)
    measured = f"{found[0]} x {found[1]} per unit {unit}, MPP {mpp}"
    if mpp is None:
        # without MPP nothing contradicts them, unless they claim a scale: unit 1 means that they do not
        return Check("resolution tags", unit == 1, measured, expected)
    right = 10000 / mpp
    good = unit == 3 and all(value and abs(value / right - 1) <= RESOLUTION_TOLERANCE for value in found)
    return Check("resolution tags", good, measured, expected)
