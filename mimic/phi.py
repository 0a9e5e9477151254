"""What may name a person, a case or a device: which fields, which words of them, and whether bytes hold any. Pure.

What de-identified slides say is an allow-list (svs.py); this module is the second net under it. It knows the values
that were in the input, and looks for them in all that was written.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import TypeVar
from urllib.parse import quote

from mimic.model import Check, Objective, Plan, Report, Scale, Slide

REMOVED = "[removed]"
MIN_CHARS = 4
"""Shorter texts occur by chance; that they are not written is the allow-list's work."""
MIN_DIGITS = 6
"""Numbers with fewer digits are sizes, magnifications and so on."""
MIN_WORD_CHARS = 5
"""Of a longer text, words of this length are looked for as well."""
MIN_CODED_BYTES = 8
"""Looked for in compressed pixels too: in 4 GB of noise eight given letters, of either case, are met once in 2e7 files,
five of them in every one."""
MAX_VALUES = 4000

SAFE_SVS_KEYS = frozenset(
    (
        *("appmag", "mpp", "stripewidth", "left", "top", "linecameraskew", "lineareaxoffset", "lineareayoffset"),
        *(
            "focus offset",
            "originalwidth",
            "originalheight",
            "filtered",
            "offsetz",
            "totaldepth",
            "displaycolor",
            "edited",
        ),
        *("exposure time", "exposure scale", "gamma", "converter", "source format", "mpp source", "appmag source"),
        *("objective power", "deidentified", "rendering", "icc profile", "pixels", "missing tiles"),
        "converter key",
    )
)
"""Pairs of an Aperio description that tell about pixels only; every other one may tell about people or the device."""
IDENTIFYING = re.compile(
    r"user|name|author|owner|operator|patient|person|experimenter|barcode|serial|descri|comment|title|date|time(?!scale)"
    r"|label|document|keyword|\bid$|uid|path|file|host|computer|machine|institut|hospital|phone|mail|address|city|street"
    r"|customer|company|login|guid|uuid|subject|note|remark|accession|birth|sex|gender|age$|physician|specimen|case"
    r"|project|sample|block|study|artist|copyright|text|caption|staff|doctor|room|station|department",
    re.IGNORECASE,
)
"""Names of XML elements, attributes and keys whose values may identify. Too many do no harm: nothing of them is
written, they are only looked for."""

VOCABULARY = frozenset(
    (
        *("aperio", "image", "library", "aperio image library", "mimic", "slide", "slides", "label", "macro", "scan"),
        *("thumbnail", "image library", "jpeg", "ycc", "source", "format", "converter", "appmag", "originalwidth"),
        *("originalheight", "objective", "power", "derived", "option", "file", "files", "metadata", "picture", "name"),
        *("pixel", "pixels", "size", "none", "null", "true", "false", "unknown", "default", "nearest", "usual"),
        *("zeiss", "leica", "hamamatsu", "olympus", "philips", "ventana", "nikon", "microscope", "brightfield"),
        *("carl zeiss", "label image", "macro image", "overview", "volume", "series", "level", "levels", "image.tif"),
        *("removed", "profile", "deidentified", "de-identified", "channel", "channels", "colour", "color", "srgb"),
        *("converted", "verified", "checks", "written", "given", "input", "output", "scale", "magnification", "reads"),
        *("tiles", "every", "place", "first", "boxes", "agree", "bytes", "least", "quality", "holds", "present"),
    )
)
"""Words that mimic writes itself, or that name no one."""


@dataclass(frozen=True, slots=True, order=True)
class Trace:
    """A value of the input that may identify, and the name of the field in which it stands."""

    field: str
    value: str


@dataclass(frozen=True, slots=True)
class Needle:
    """Bytes to look for in lower case. ``strong`` ones are long enough for compressed data."""

    data: bytes
    strong: bool


def values(traces: Iterable[Trace]) -> tuple[str, ...]:
    """The distinct values of ``traces``, in their order, as ``Slide.personal`` has them."""
    return tuple(dict.fromkeys(trace.value for trace in traces))[:MAX_VALUES]


def fields(traces: Iterable[Trace]) -> tuple[str, ...]:
    """The distinct names of fields, sorted: what may be told of what was removed."""
    return tuple(sorted({trace.field for trace in traces}))


def tokens(personal: Iterable[str], said: str = "") -> tuple[str, ...]:
    """What to look for, longest first: each value, its dates in other spellings, and its longer words.

    ``said`` is text that has to be there (format names, sizes): a value that is part of it is left out.
    """
    said = said.casefold()
    found: dict[str, None] = {}
    for value in personal:
        text = " ".join(value.split())
        for part in (text, *_dates(text), *re.split(r"[\s^,;|=/\\<>\"'()\[\]{}:&?]+", text)):
            plain = part.strip(" .-_")
            if _telling(plain, whole=part is text) and plain.casefold() not in said:
                found.setdefault(plain)
    return tuple(sorted(found, key=lambda token: (-len(token), token)))


def _telling(text: str, *, whole: bool) -> bool:
    """Whether a text is long and odd enough for its being found to mean something."""
    digits = sum(char.isdigit() for char in text)
    letters = sum(char.isalpha() for char in text)
    if letters == 0:
        # 0.25, 2021-03-04T05, 1e-6: decimals are measures
        return digits >= MIN_DIGITS and re.fullmatch(r"[-+]?\d*[.,]\d+", text) is None
    if re.fullmatch(r"[-+]?[\d.,]+e[-+]?\d+", text, re.IGNORECASE) or text.casefold() in VOCABULARY:
        return False
    return len(text) >= (MIN_CHARS if whole else MIN_WORD_CHARS)


DATE_LAYOUTS = ("%Y-%m-%d", "%Y%m%d", "%m/%d/%y", "%m/%d/%Y", "%d.%m.%Y", "%Y:%m:%d", "%Y/%m/%d")
DATE = re.compile(
    r"\d{4}[-/:]\d\d[-/:]\d\d|(?<!\d)\d{8}(?!\d)|\d\d/\d\d/\d{4}|\d\d/\d\d/\d\d|\d\d\.\d\d\.\d{4}|\d{4}:\d\d:\d\d"
)


def _dates(text: str) -> Iterator[str]:
    for found in DATE.findall(text)[:4]:
        for layout in DATE_LAYOUTS:
            try:
                day = datetime.strptime(found, layout)
            except ValueError:
                continue
            if 1900 <= day.year <= 2100:
                yield from (day.strftime(other) for other in DATE_LAYOUTS)


def needles(found: Iterable[str]) -> dict[Needle, str]:
    """The bytes of each token in every coding that a file may have: UTF-8, Latin-1, UTF-16, percent, base64."""
    made: dict[Needle, str] = {}
    for token in found:
        cases = {token, token.lower(), token.upper()}  # lower() of bytes changes ASCII letters only
        plain = {case.encode("utf-8", "surrogateescape").lower() for case in cases}
        plain |= {case.encode("latin-1").lower() for case in cases if all(char <= "\xff" for char in case)}
        # both byte orders of ASCII letters hold "a\0b\0c"
        ends = ("utf-16-le", "utf-16-be")
        wide = {case.encode(end, "surrogatepass").lower().strip(b"\0") for case in cases for end in ends}
        for data in plain | wide:
            if len(data) >= MIN_CHARS:
                made.setdefault(Needle(data, len(data) >= MIN_CODED_BYTES), token)
        escaped = quote(token, errors="replace").lower().encode()
        for data in {escaped, quote(token, safe="", errors="replace").lower().encode()} - plain:
            made.setdefault(Needle(data, strong=False), token)
        for data in _base64(token):
            made.setdefault(Needle(data, strong=False), token)
    return made


def _base64(token: str) -> Iterator[bytes]:
    """The part of base64 text that does not depend on what stands around ``token``, at each of three alignments.

    Case matters there, but not to a search in lower case: eight characters are still 1 in 2e11.
    """
    data = token.encode("utf-8", "surrogateescape")
    for shift in range(3):
        part = data[(3 - shift) % 3 :]
        part = part[: len(part) // 3 * 3]
        if len(part) >= 9:
            yield base64.b64encode(part).lower()


def find(chunk: bytes, wanted: Iterable[Needle]) -> list[Needle]:
    """Those of ``wanted`` that are in ``chunk``, whatever the case."""
    lower = chunk.lower()
    return [needle for needle in wanted if needle.data in lower]


def check(found: Iterable[str], searched: int, bytes_: int) -> Check:
    """The verdict of a scan; names no value, only how many there are."""
    count = len(set(found))
    measured = f"{count} of {searched} found" if count else f"none of {searched} texts in {bytes_} bytes"
    return Check("no personal text", count == 0, measured, "nothing of what identifies in the input is in the output")


def removed_sentence(traces: Iterable[Trace]) -> str:
    """What a report may say of that which was left out: names of fields, and how many values."""
    traces = tuple(traces)
    names = [name for name in fields(traces) if re.fullmatch(r"[A-Za-z][A-Za-z0-9 _./@-]{0,40}", name)]
    shown = ", ".join(names[:40]) + (f" and {len(names) - 40} more fields" if len(names) > 40 else "")
    return f"{len(values(traces))} values that may identify are not written, from: {shown or 'no known field'}"


class Redactor:
    """Takes what is personal out of texts."""

    def __init__(self, wanted: Iterable[str] = ()) -> None:
        self._pattern: re.Pattern[str] | None = None
        self._tokens: set[str] = set()
        self.learn(wanted)

    def learn(self, wanted: Iterable[str]) -> None:
        """Further texts to take out."""
        self._tokens |= {token for token in wanted if len(token) >= MIN_CHARS}
        if self._tokens:
            longest_first = sorted(self._tokens, key=lambda token: (-len(token), token))
            self._pattern = re.compile("|".join(map(re.escape, longest_first)), re.IGNORECASE)

    def __call__(self, text: str) -> str:
        return self._pattern.sub(REMOVED, text) if self._pattern is not None else text


def anonymous(slide: Slide, personal: tuple[str, ...]) -> Slide:
    """The facts that planning needs, without names, moments and devices; ``path`` and ``files`` must stay real."""
    images = tuple(
        replace(
            image,
            name="",
            acquired=None,
            scale=_bare(image.scale),
            objective=_bare(image.objective),
            channel_facts=tuple(replace(channel, name="") for channel in image.channel_facts),
        )
        for image in slide.images
    )
    redact = Redactor(tokens(personal))
    warnings = tuple(redact(warning) for warning in slide.warnings)
    return replace(slide, images=images, scanner=None, warnings=warnings, personal=personal)


Fact = TypeVar("Fact", Scale, Objective)


def _bare(fact: Fact | None) -> Fact | None:
    return None if fact is None else replace(fact, note="")


def presentable(report: Report) -> Report:
    """A report as it may leave this computer: of de-identified slides no path, name or text of the input is in it."""
    if not any(result.plan.deidentify for result in report.results):
        return report
    results = []
    for result in report.results:
        redact = Redactor(tokens(result.plan.slide.personal, spoken(result.plan)))
        checks = tuple(replace(each, measured=redact(each.measured)) for each in result.checks)
        written = replace(result.written, path=Path(result.written.path.name))
        results.append(replace(result, plan=_presentable_plan(result.plan, redact), checks=checks, written=written))
    first = results[0].plan
    redact = Redactor(tokens(report.results[0].plan.slide.personal))
    digests = {f"file {index}": digest for index, digest in enumerate(report.input_sha256.values(), start=1)}
    return replace(
        report,
        input=first.slide.path,
        results=tuple(results),
        warnings=tuple(redact(warning) for warning in report.warnings),
        input_sha256=digests,
        error=redact(report.error) if report.error else None,
    )


def _presentable_plan(plan: Plan, redact: Redactor) -> Plan:
    slide = plan.slide
    files = tuple(Path(f"file {index}") for index, _ in enumerate(slide.files, start=1))
    slide = replace(slide, path=Path("deidentified"), files=files, personal=(), icc_profile=None)
    return replace(
        plan,
        slide=slide,
        output=Path(plan.output.name),
        reasons=tuple(redact(reason) for reason in plan.reasons),
        warnings=tuple(redact(warning) for warning in plan.warnings),
    )


def presentable_plan(plan: Plan) -> Plan:
    """``presentable`` for a plan alone."""
    if not plan.deidentify:
        return plan
    return _presentable_plan(plan, Redactor(tokens(plan.slide.personal, spoken(plan))))


def spoken(plan: Plan) -> str:
    """All that a de-identified slide has to say: its format, sizes and scale. A value among them is no trace."""
    sizes = " ".join(f"{level.width_px}x{level.height_px}" for level in plan.levels)
    pictures = " ".join(f"{picture.width_px}x{picture.height_px}" for picture in plan.pictures)
    scale = f"{plan.scale.x_um:.10f}" if plan.scale is not None else ""
    thumbnail = f"{plan.thumbnail_px[0]}x{plan.thumbnail_px[1]}"
    return f"{plan.slide.format} {sizes} {pictures} {thumbnail} {scale} {plan.tile_px}x{plan.tile_px}"
