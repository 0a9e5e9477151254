"""What ``mimic edit`` does to an ImageDescription: pairs set and removed, everything else left to the byte. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from math import isfinite

from mimic import description
from mimic.errors import InternalError, Unsupported, UsageError
from mimic.model import Scale

EDITED = "Edited"
PROTECTED = ("Converter", EDITED)
"""They say that no scanner wrote this: nobody may mistake a mimic, or an edited file, for an original."""
BY_HAND = "option: mimic edit"
MAX_APPMAG = 1000

NUMERIC_KEYS = frozenset(
    ("AppMag", "MPP", "StripeWidth", "OriginalWidth", "Originalheight", "OriginalHeight", "Filtered", "Left", "Top")
)
MIMIC_KEYS = frozenset(
    ("Source Format", "MPP Source", "AppMag Source", "Objective Power", "ICC Profile", "Rendering", "Deidentified")
)
"""What a de-identified description keeps: numbers of the picture, and, in mimic's own files, where they came from.
Camera skews and offsets go: they are as good as a serial number."""

_PREFIX = re.compile(r"Aperio (Image Library|Leica Biosystems)( GT450( DX)?)?( v?\d+(\.\d+){0,3})? ?")
_GEOMETRY = re.compile(
    r"(\d+x\d+)?( ?\[\d+,\d+ \d+x\d+\])?( ?\(\d+x\d+\))?( ?-> ?\d+x\d+)?( [A-Z0-9]{1,8}/[A-Za-z0-9]{1,8})?"
    r"( ?Q ?= ?\d+)?( ?- ?)? ?"
)
_NUMBER = re.compile(r"[+-]?\d+(\.\d+)?")


@dataclass(frozen=True, slots=True)
class Changes:
    """What happens to the pairs: ``sets`` have their final texts; ``only`` names the keys that may stay, with numbers
    for values, and ``texts`` those that may stay whatever they say; None: all may."""

    sets: Mapping[str, str] = field(default_factory=dict)
    removes: frozenset[str] = frozenset()
    only: frozenset[str] | None = None
    texts: frozenset[str] = frozenset()

    def __bool__(self) -> bool:
        return bool(self.sets or self.removes) or self.only is not None


def changes(
    text: str, pairs: Iterable[tuple[str, str]], removes: Iterable[str], *, deidentify: bool = False
) -> Changes:
    """The wishes of a user about the description ``text`` of the baseline. Raises UsageError."""
    now = description.parse(text).values
    there = list(now)
    sets: dict[str, str] = {}
    for wanted, said in pairs:
        key = _key(wanted, there)
        value = _value(key, said)
        if sets.get(key, value) != value:
            raise UsageError(f"{key} shall become {sets[key]} and {value}", remedy="Say one of them")
        sets[key] = value
    gone = {_key(each, there) for each in removes}
    if both := sorted(gone & sets.keys()):
        raise UsageError(f"{both[0]} shall be set and removed", remedy="Say one of them")
    for name, detail in (("AppMag", "Objective Power"), ("MPP", None)):
        origin = f"{name} Source"
        confirmed = sets.get(name) == now.get(name) and not now.get(origin, "").startswith("derived")
        if name in sets and origin in there and origin not in sets and not confirmed:
            sets[origin] = BY_HAND
        if name in gone:
            gone.add(origin)
        if name in sets.keys() | gone and detail and detail not in sets:
            gone.add(detail)
    if not deidentify:
        return Changes(sets, frozenset(gone))
    own = MIMIC_KEYS if now.get("Converter", "").startswith("mimic ") else frozenset()
    return Changes(sets, frozenset(gone), NUMERIC_KEYS, own | {"Converter"})


def _key(wanted: str, there: Iterable[str]) -> str:
    """The key as the file or Aperio spells it: readers tell "appmag" from "AppMag"."""
    key = wanted.strip()
    if not key or "=" in key or description.clean(key) != key:
        raise UsageError(f"{wanted!r} cannot be the name of a value", remedy="Use letters, digits and spaces")
    known = [*there, "AppMag", "MPP", *PROTECTED]
    if key not in known:
        key = next((each for each in known if each.casefold() == key.casefold()), key)
    if key in PROTECTED:
        raise UsageError(f"{key} tells that the file is no scanner's original, and stays", remedy="Leave it out")
    return key


def _value(key: str, said: str) -> str:
    if key == "AppMag":
        return appmag_text(_float(key, said))
    if key == "MPP":
        return mpp_text(_float(key, said))
    value = description.clean(said)
    if not value:
        raise UsageError(f"{key} cannot become {said!r}", remedy=f"Say a text, or take it away with --remove '{key}'")
    return value


def _float(key: str, said: str) -> float:
    try:
        return float(said)
    except ValueError:
        raise UsageError(f"{key} cannot become {said!r}", remedy="Say a number") from None


def appmag_text(power: float) -> str:
    """AppMag as readers take it, a whole number. Raises UsageError."""
    if not isfinite(power) or power != int(power) or not 1 <= power <= MAX_APPMAG:
        message = f"AppMag cannot become {power:g}: readers take whole numbers from 1 to {MAX_APPMAG}"
        raise UsageError(message, remedy="Say the nearest one")
    return str(int(power))


def mpp_text(mpp_um: float) -> str:
    """MPP as a decimal number. Raises UsageError."""
    try:
        return description.mpp_text(Scale(mpp_um, mpp_um, "option"))
    except InternalError as error:
        raise UsageError(f"MPP cannot become {mpp_um:g}", remedy="Say micrometres a pixel, like 0.25") from error


def changed(text: str, todo: Changes, *, stamp: str) -> str:
    """``text`` with its pairs changed, and ``Edited = stamp`` as the last pair, so that AppMag and MPP are not.

    Of a key that is there twice one remains. A closing ``|`` goes: readers stumble over it.
    """
    head, *tokens = text.rstrip("\0\r\n |").split("|") if "|" in text else [text.rstrip("\0\r\n ")]
    open_sets, made = dict(todo.sets), []
    for token in tokens:
        key, sign, value = (part.strip() for part in token.partition("="))
        if key in todo.sets:
            made += [f"{key} = {open_sets.pop(key)}"] if key in open_sets else []
        elif key not in todo.removes and key != EDITED and _allowed(todo, key, sign, value):
            made.append(token)
    made += [f"{key} = {value}" for key, value in open_sets.items()]
    return "|".join([head if todo.only is None else _head(head), *made, f"{EDITED} = {stamp}"])


def _allowed(todo: Changes, key: str, sign: str, value: str) -> bool:
    if not sign:
        return bool(key) and todo.only is None
    if todo.only is None or key in todo.texts:
        return True
    return key in todo.only and _NUMBER.fullmatch(value) is not None


def first_lines(text: str) -> str:
    """A description without pairs, of which only what the Aperio dialect knows is left."""
    return _head(text.rstrip("\0\r\n ").partition("|")[0])


def _head(head: str) -> str:
    """The first lines, without entries of the history (they are divided by ";") that hold anything but geometry."""
    newest, *older = head.split(";")
    kept = [entry for entry in older if _plain(entry)]
    if not _plain(newest):
        prefix, line_end, body = newest.partition("\n")
        prefix = prefix.rstrip("\r ")
        good = _PREFIX.fullmatch(prefix) is not None
        shown = _GEOMETRY.match(body)
        if not good and not prefix.startswith("Aperio"):
            raise Unsupported("its description does not begin as Aperio's", remedy="Convert it with --deidentify")
        newest = (prefix if good else description.PREFIX) + line_end + (shown[0] if shown else "")
    return ";".join([newest, *kept])


def _plain(entry: str) -> bool:
    prefix, _, body = entry.replace("\r\n", "\n").partition("\n")
    return bool(_PREFIX.fullmatch(prefix) and _GEOMETRY.fullmatch(body))


def shown(text: str) -> list[str]:
    """A description in lines, a pair each, for people to compare."""
    head, *tokens = text.split("|")
    lines = [line.strip() for line in re.split(r"\r\n|\r|\n", head)]
    return [*(line for line in lines if line), *(f"|{token}" for token in tokens)]
