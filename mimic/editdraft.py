"""An edit worked out before a byte is written: new descriptions and directories, and what people see of the change."""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Literal

from mimic import edittext, sheets, wording
from mimic.edittext import Changes
from mimic.errors import Unsupported, UsageError
from mimic.ifds import Field, Ifd, Tree, flat
from mimic.ifds import read as read_directories
from mimic.sheets import DESCRIPTION, RESOLUTION_UNIT, X_RESOLUTION, Y_RESOLUTION, Layout, Sheet

ASCII, SHORT, RATIONAL = 2, 3, 5
CENTIMETRE = 3
CONVERT = "Make a slide of it first, with 'mimic convert'"
HOLDS_A_TEXT_BYTES = 6
"""A shorter string is met by chance in gigabytes of compressed pixels; it is searched with its key only."""
STRUCTURE_TAGS = frozenset(
    (
        *(254, 255, 256, 257, 258, 259, 262, 266, 270, 273, 274, 277, 278, 279, 282, 283, 284, 296, 317, 322, 323),
        *(324, 325, 330, 338, 339, 347, 512, 513, 514, 530, 531, 532, 32997, 34675),
    )
)
"""All that a de-identified directory keeps: no Software, Artist, DateTime, XMP, EXIF or private tags."""
OLD_JPEG_TABLES = (519, 520, 521)
ByteOrder = Literal["little", "big"]


@dataclass(frozen=True, slots=True)
class Wish:
    """What shall change. ``pairs`` (key, value) are set, ``removes`` are keys; ``deidentify`` keeps only pairs and
    tags that cannot tell of people, and drops label, macro and what is neither."""

    appmag: float | None = None
    mpp_um: float | None = None
    pairs: tuple[tuple[str, str], ...] = ()
    removes: tuple[str, ...] = ()
    drop_label: bool = False
    drop_macro: bool = False
    deidentify: bool = False

    def __bool__(self) -> bool:
        return self != Wish()


@dataclass(frozen=True, slots=True)
class Draft:
    """An edit worked out: ``texts`` and ``ifds`` of the directories that stay, by their order in the new file."""

    layout: Layout
    tree: Tree
    kept: tuple[Sheet, ...]
    texts: tuple[str | None, ...]
    ifds: tuple[Ifd, ...]
    difference: tuple[str, ...]
    notes: tuple[str, ...]
    dropped: tuple[str, ...]
    strings: tuple[bytes, ...] = ()


def draft(path: Path, wish: Wish, version: str) -> Draft:
    layout, tree = sheets.read(path), read_directories(path)
    base = layout.sheets[0]
    text = wording.text_of(base)
    if not text.startswith("Aperio"):
        raise Unsupported("has no Aperio description that could be edited", path, CONVERT)
    if wish.deidentify and any(tag in each.fields for each in flat(tree.ifds) for tag in OLD_JPEG_TABLES):
        raise Unsupported("has JPEG tables of the old kind, of unknown size", path, CONVERT)
    pairs = [*wish.pairs]
    pairs += [("AppMag", repr(wish.appmag))] if wish.appmag is not None else []
    pairs += [("MPP", repr(wish.mpp_um))] if wish.mpp_um is not None else []
    todo = edittext.changes(text, pairs, wish.removes, deidentify=wish.deidentify)
    kept = tuple(sheet for sheet in layout.sheets if not _goes(sheet, wish))
    dropped = tuple(sheet.kind for sheet in layout.sheets if _goes(sheet, wish))
    texts = tuple(_text(sheet, layout, kept, todo, stamp=f"mimic {version}") for sheet in kept)
    ifds = tuple(_ifd(tree.ifds[sheet.index], sheet, layout, new, todo) for sheet, new in zip(kept, texts, strict=True))
    if wish.deidentify:
        ifds = tuple(_bare(each) for each in ifds)
    made = Draft(layout, tree, kept, texts, ifds, (), _notes(layout, wish, todo), dropped)
    _refuse_broken(made)
    difference = tuple(_difference(made)) if _matters(made) else ()
    strings = tuple(_strings(made)) if wish.deidentify else ()
    return replace(made, difference=difference, strings=strings)


def _goes(sheet: Sheet, wish: Wish) -> bool:
    label, macro = wish.drop_label or wish.deidentify, wish.drop_macro or wish.deidentify
    return {"label": label, "macro": macro, "other": wish.deidentify}.get(sheet.kind, False)


def _text(sheet: Sheet, layout: Layout, kept: tuple[Sheet, ...], todo: Changes, *, stamp: str) -> str | None:
    """The new description of a directory; None: it has none.

    All that carry pairs get the same ones: readers let the last directory win.
    """
    text = wording.text_of(sheet)
    if sheet.index == 0 or wording.pairs_of(sheet):
        return edittext.changed(text, todo, stamp=stamp)
    if text and todo.only is not None:
        return edittext.first_lines(text)
    alone = len(kept) < len(layout.sheets) and sheet.kind in ("label", "macro")
    if not text and alone:  # Bio-Formats takes the first picture without a text for the label, whatever it is
        prefix = wording.text_of(layout.sheets[0]).splitlines()[0].rstrip()
        return f"{prefix}\n{sheet.kind} {sheet.width_px}x{sheet.height_px}"
    return text or None


def _ifd(ifd: Ifd, sheet: Sheet, layout: Layout, text: str | None, todo: Changes) -> Ifd:
    if text is not None and text != wording.text_of(sheet):
        value = text.encode("latin-1") + b"\0"
        ifd = ifd.having(Field(DESCRIPTION, ASCII, len(value), value=value))
    if "MPP" in todo.removes:
        ifd = ifd.without(X_RESOLUTION, Y_RESOLUTION, RESOLUTION_UNIT) if _scaled(sheet, layout) else ifd
    elif "MPP" in todo.sets and _scaled(sheet, layout):
        for field_ in _resolution(layout.order, _per_cm(sheet, layout, todo.sets["MPP"])):
            ifd = ifd.having(field_)
    children = tuple(_child(child, layout, todo) for child in ifd.children)
    return replace(ifd, children=children)


def _child(ifd: Ifd, layout: Layout, todo: Changes) -> Ifd:
    """A SubIFD keeps what it has, unless its description is one that would have to change too."""
    if DESCRIPTION in ifd.fields and todo:
        raise Unsupported("has descriptions in SubIFDs, where no Aperio reader looks", layout.path, CONVERT)
    return ifd


def _scaled(sheet: Sheet, layout: Layout) -> bool:
    """Resolution tags are kept right where they are there, and made on the baseline of mimic's files."""
    if sheet.kind not in ("baseline", "level", "thumbnail"):
        return False
    ours = (wording.value_of(layout.sheets[0], "Converter") or "").startswith("mimic ")
    return X_RESOLUTION in sheet.fields or Y_RESOLUTION in sheet.fields or (sheet.index == 0 and ours)


def _per_cm(sheet: Sheet, layout: Layout, mpp: str) -> Fraction:
    """Pixels per centimetre of a directory; some writers repeat the baseline's on every level, others scale it."""
    base = layout.sheets[0]
    per_cm = 10_000 / Fraction(mpp)
    return per_cm if sheet.resolution == base.resolution else per_cm * Fraction(sheet.width_px, base.width_px)


def _resolution(order: str, per_cm: Fraction) -> tuple[Field, ...]:
    bounded = per_cm.limit_denominator(max(1, min(2**32 - 1, int((2**32 - 1) / (per_cm + 1)))))
    byte_order: ByteOrder = "little" if order == "<" else "big"
    value = b"".join(part.to_bytes(4, byte_order) for part in (bounded.numerator, bounded.denominator))
    unit = CENTIMETRE.to_bytes(2, byte_order)
    return (
        Field(X_RESOLUTION, RATIONAL, 1, value=value),
        Field(Y_RESOLUTION, RATIONAL, 1, value=value),
        Field(RESOLUTION_UNIT, SHORT, 1, value=unit),
    )


def _bare(ifd: Ifd) -> Ifd:
    stripped = ifd.without(*(ifd.fields.keys() - STRUCTURE_TAGS))
    return replace(stripped, children=tuple(_bare(child) for child in stripped.children))


def _notes(layout: Layout, wish: Wish, todo: Changes) -> tuple[str, ...]:
    base, notes = layout.sheets[0], []
    there = dict(wording.pairs_of(base))
    notes += [
        f"there is no {key} to remove"
        for key in wish.removes
        if not any(each.casefold() == key.strip().casefold() for each in there)
    ]
    for kind, drop in (("label", wish.drop_label), ("macro", wish.drop_macro)):
        if drop and not layout.of(kind):  # type: ignore[arg-type]
            notes.append(f"there is no {kind} to drop")
    if wish.drop_label and layout.of("macro") and not (wish.drop_macro or wish.deidentify):
        notes.append("the macro stays, and may show the label too: --macro drop")
    if "MPP" in todo.sets and "AppMag" not in todo.sets and "AppMag" in there:
        notes.append(f"AppMag stays {there['AppMag']}")
    return tuple(notes)


def _refuse_broken(made: Draft) -> None:
    """Raises UsageError when a rule about descriptions that holds now would not hold any more."""
    after = replace(
        made.layout,
        sheets=tuple(
            replace(sheet, index=index, text=None if text is None else text.encode("latin-1") + b"\0")
            for index, (sheet, text) in enumerate(zip(made.kept, made.texts, strict=True))
        ),
    )
    broken_now = {each.name for each in wording.check(made.layout) if not each.passed}
    for each in wording.check(after):
        if each.must and not each.passed and each.name not in broken_now | {"resolution tags"}:
            message = f"the description would break a rule of readers ({each.name}: {each.measured})"
            raise UsageError(message, made.layout.path, f"It must be: {each.expected}")


def _matters(made: Draft) -> bool:
    """Whether anything but the note that the file was edited would change."""
    if made.dropped:
        return True
    for sheet, text, new in zip(made.kept, made.texts, made.ifds, strict=True):
        old_fields = made.tree.ifds[sheet.index].fields
        if _unstamped(text or "") != _unstamped(wording.text_of(sheet)) or old_fields.keys() != new.fields.keys():
            return True
        for tag, each in new.fields.items():
            if tag != DESCRIPTION and each.value is not None and each.value != _old_value(made, old_fields[tag]):
                return True
    return False


def _unstamped(text: str) -> list[str]:
    return [line for line in edittext.shown(text) if not line.startswith(f"|{edittext.EDITED} = ")]


def _old_value(made: Draft, old: Field) -> bytes:
    if old.place is None:
        return old.slot[: old.length_bytes]
    with made.tree.path.open("rb") as file:
        file.seek(old.place)
        return file.read(old.length_bytes)


def _difference(made: Draft) -> Iterator[str]:
    after = {sheet.index: number for number, sheet in enumerate(made.kept)}
    for sheet in made.layout.sheets:
        old = [*edittext.shown(wording.text_of(sheet)), *_tag_lines(made, made.tree.ifds[sheet.index])]
        new: list[str] = []
        if sheet.index in after:
            number = after[sheet.index]
            new = [*edittext.shown(made.texts[number] or ""), *_tag_lines(made, made.ifds[number])]
        else:
            old.append(f"{len(sheet.offsets)} tiles or strips, {int(sheet.counts.sum())} bytes")
        yield from difflib.unified_diff(old, new, sheet.name, sheet.name if new else "dropped", n=1, lineterm="")


def _tag_lines(made: Draft, ifd: Ifd) -> list[str]:
    """Resolution in figures, and the other tags that may go by their numbers."""
    lines = []
    order: ByteOrder = "little" if made.tree.order == "<" else "big"
    for tag, name in ((X_RESOLUTION, "XResolution"), (Y_RESOLUTION, "YResolution"), (RESOLUTION_UNIT, "unit")):
        each = ifd.fields.get(tag)
        if each is None:
            continue
        raw = each.value if each.value is not None else _old_value(made, each)
        numbers = [int.from_bytes(part, order) for part in (raw[:4], raw[4:8]) if part]
        lines.append(f"{name} {'/'.join(map(str, numbers))}")
    return lines + [f"tag {tag}" for tag in sorted(ifd.fields.keys() - STRUCTURE_TAGS)]


def _strings(made: Draft) -> Iterator[bytes]:
    """Every value of the old descriptions, and pair, that the new ones have not got."""
    remains = "\n".join(text or "" for text in made.texts)
    found: set[str] = set()
    for sheet in made.layout.sheets:
        for key, value in wording.pairs_of(sheet):
            found |= {f"{key} = {value}"} | ({value} if len(value) >= HOLDS_A_TEXT_BYTES else set())
    for old in flat(made.tree.ifds):
        texts = [each for tag, each in old.fields.items() if each.type == ASCII and tag not in STRUCTURE_TAGS]
        values = (_old_value(made, each).strip(b"\0 ").decode("latin-1") for each in texts)
        found |= {value for value in values if len(value) >= HOLDS_A_TEXT_BYTES}
    yield from (each.encode("latin-1") for each in sorted(found) if each not in remains)
