"""Metadata of a finished slide changed; no pixel is touched.

Any TIFF with Aperio descriptions will do, mimic's or not. How a crash is survived is tiffedit's business; here is what
to write, the proof that other people's readers see it, and that what went is gone.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import openslide
import tifffile

from mimic import description, ifds, sheets, staging, tiffedit, wording
from mimic.disk import Disk
from mimic.editdraft import Draft, Wish, draft
from mimic.errors import MimicError, OutputError, UsageError, VerificationFailed, writing_failed
from mimic.sheets import Layout

__all__ = ["Edited", "Wish", "edit", "pending_bytes", "wish"]

SCAN_BYTES = 16 << 20
NO_RANGES = np.zeros((0, 2), np.int64)
MAX_OPENSLIDE_PX = 16_384
"""OpenSlide aborts the process over a tile that it cannot allocate; no slide has one of this size."""
TIFFFILE_ERRORS = (tifffile.TiffFileError, OSError, ValueError, LookupError, TypeError, AttributeError)


@dataclass(frozen=True, slots=True)
class Edited:
    """What an edit did, or with ``written`` False would do: ``difference`` as unified diff, a block a directory.

    ``finished_bytes`` were left by an earlier edit that was cut off, and are wiped now; ``searched`` counts the strings
    that were looked for in every byte of a de-identified file, and not found.
    """

    path: Path
    written: bool
    difference: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    dropped: tuple[str, ...] = ()
    appended_bytes: int = 0
    wiped_bytes: int = 0
    finished_bytes: int = 0
    searched: int = 0


def wish(**fields: Any) -> Wish:
    """A Wish from words; ``pairs`` may be a mapping. Raises UsageError for a word that does not exist."""
    unknown = sorted(set(fields) - set(Wish.__dataclass_fields__))
    if unknown:
        raise UsageError(f"there is no option {', '.join(unknown)}", remedy="See mimic.Wish")
    pairs = fields.get("pairs", ())
    made = Wish(**fields | {"removes": tuple(fields.get("removes", ()))})
    return replace(made, pairs=tuple(pairs.items() if isinstance(pairs, Mapping) else pairs))


def edit(
    path: Path,
    wish: Wish,
    *,
    version: str,
    output: Path | None = None,
    overwrite: bool = False,
    dry_run: bool = False,
) -> Edited:
    """Change ``path`` in place, or a copy of it named ``output`` (a file or a folder).

    Raises UsageError, BadInput, Unsupported, OutputError, and VerificationFailed; then the file is as it was, except
    when a de-identified one still holds what it should not, which the error says. ``version`` is mimic's.
    """
    if dry_run:
        return _told(path, wish, version)
    if output is None:
        return _in_place(path, wish, version)
    output = output / path.name if output.is_dir() else output
    staging.refuse_existing(output, overwrite=overwrite, inputs=(path,))
    sheets.read(path)
    with staging.staged(output) as folder:
        copy = folder / f"slide{output.suffix or '.svs'}"
        with Disk(path, write=False):
            _copy(path, copy)
        try:
            done = _in_place(copy, wish, version)
        except MimicError as error:
            raise type(error)(error.message, path, error.remedy) from error
        staging.publish(copy, output, overwrite=overwrite)
    return replace(done, path=output, written=True)


def pending_bytes(path: Path) -> int:
    """Bytes of old metadata and pictures that an edit left when it was cut off; the next edit wipes them."""
    left = tiffedit.leftovers(tree := ifds.read(path))
    tail = 0 if left.cut_bytes is None else tree.size_bytes - left.cut_bytes
    return sum(end - start for start, end in left.ranges) + tail


def _copy(path: Path, copy: Path) -> None:
    try:
        shutil.copyfile(path, copy)
    except OSError as error:
        raise writing_failed(error, copy) from error


def _told(path: Path, wish: Wish, version: str) -> Edited:
    left = pending_bytes(path) if sheets.read(path) else 0
    made = draft(path, wish, version)
    return Edited(path, False, made.difference, made.notes, made.dropped, finished_bytes=left)


def _in_place(path: Path, wish: Wish, version: str) -> Edited:
    with Disk(path) as disk:
        sheets.read(path)
        left = pending_bytes(path)
        if not left and not wish:
            raise UsageError("nothing to change", path, "Say what, for example --appmag 20 or --label drop")
        tree = ifds.read(path)
        if found := tiffedit.leftovers(tree):
            tiffedit.finish(disk, found, tree.first)
        made = draft(path, wish, version)
        done = Edited(path, bool(left), made.difference, made.notes, made.dropped, finished_bytes=left)
        if made.difference or wish.deidentify:
            before = _seen(made.layout)
            if wish.deidentify:  # what pixel data hold cannot be helped here: better told while nothing has changed
                _search(path, made.strings, but=ifds.orphans(made.tree, made.ifds, gaps=True))
            wiped = tiffedit.commit(
                disk, made.tree, made.ifds, proof=lambda: _prove(made, before), gaps=wish.deidentify
            )
            appended = path.stat().st_size - made.tree.size_bytes
            done = replace(done, written=True, wiped_bytes=wiped, appended_bytes=appended)
        if wish.deidentify:
            _search(path, made.strings)
            done = replace(done, searched=len(made.strings))
        return done


@dataclass(frozen=True, slots=True)
class _Seen:
    """What OpenSlide and tifffile make of a file; None: they do not open it."""

    openslide: tuple[str, tuple[tuple[int, int], ...], frozenset[str], str | None, str | None] | None
    tifffile: tuple[bool, int] | None


def _seen(layout: Layout) -> _Seen:
    sizes = [(sheet.tile_width_px, sheet.tile_height_px) for sheet in layout.sheets]
    safe = all(max(size) <= MAX_OPENSLIDE_PX for size in sizes)
    return _Seen(_by_openslide(layout.path) if safe else None, _by_tifffile(layout.path))


def _by_openslide(
    path: Path,
) -> tuple[str, tuple[tuple[int, int], ...], frozenset[str], str | None, str | None] | None:
    try:
        with closing(openslide.OpenSlide(path)) as slide:
            said = slide.properties
            names = frozenset(slide.associated_images)
            mpp, power = said.get(openslide.PROPERTY_NAME_MPP_X), said.get(openslide.PROPERTY_NAME_OBJECTIVE_POWER)
            return said.get(openslide.PROPERTY_NAME_VENDOR, ""), slide.level_dimensions, names, mpp, power
    except (openslide.OpenSlideError, OSError):
        return None


def _by_tifffile(path: Path) -> tuple[bool, int] | None:
    try:
        with tifffile.TiffFile(path) as tiff:
            return tiff.is_svs, len(tiff.pages)
    except TIFFFILE_ERRORS:
        return None


def _prove(made: Draft, before: _Seen) -> None:
    """Raises VerificationFailed unless the file now says what it should, with every tile where it was."""
    path = made.layout.path
    now = sheets.read(path)
    wrong = [*_unlike(made, now), *_misread(made, before, _seen(now))]
    if wrong:
        message = f"the edit did not come out right, and was taken back: {'; '.join(wrong[:3])}"
        raise VerificationFailed(message, path, "Please report it")


def _unlike(made: Draft, now: Layout) -> Iterator[str]:
    if len(now.sheets) != len(made.kept):
        yield f"{len(now.sheets)} directories instead of {len(made.kept)}"
        return
    for was, text, new, ifd in zip(made.kept, made.texts, now.sheets, made.ifds, strict=True):
        touched = {tag for tag, each in ifd.fields.items() if each.value is not None} | {ifds.SUBIFDS}
        if (wording.text_of(new) or None) != (text or None):
            yield f"{new.name} has another description"
        if not (np.array_equal(was.offsets, new.offsets) and np.array_equal(was.counts, new.counts)):
            yield f"{new.name} has moved tiles"
        if new.fields.keys() != ifd.fields.keys():
            yield f"{new.name} has other tags"
        if any(was.fields[tag] != value for tag, value in new.fields.items() if tag not in touched):
            yield f"{new.name} has other values"


def _misread(made: Draft, before: _Seen, now: _Seen) -> Iterator[str]:
    if before.tifffile is not None and now.tifffile != (before.tifffile[0], len(made.kept)):
        yield f"tifffile sees {now.tifffile}"
    if before.openslide is None:
        return
    vendor, levels, names, mpp, power = before.openslide
    if vendor == "aperio":
        names -= frozenset(made.dropped)
        pairs = description.parse(made.texts[0] or "").values
        mpp, power = pairs.get("MPP"), pairs.get("AppMag")
    if now.openslide is None or now.openslide[:3] != (vendor, levels, names):
        yield f"OpenSlide sees {now.openslide}"
    elif not (_equal(now.openslide[3], mpp) and _equal(now.openslide[4], power)):
        yield f"OpenSlide reads MPP {now.openslide[3]} and magnification {now.openslide[4]}"


def _equal(seen: str | None, wanted: str | None) -> bool:
    try:
        return seen == wanted or (seen is not None and wanted is not None and float(seen) == float(wanted))
    except ValueError:
        return seen is None or seen == wanted


def _search(path: Path, strings: Iterable[bytes], *, but: ifds.Ranges = NO_RANGES) -> None:
    """Raises VerificationFailed when a removed string, in 8 or in 16 bits a letter, is in the file but in ``but``."""
    wanted = [form for each in strings for form in (each, each.decode("latin-1").encode("utf-16-le"))]
    overlap = max((len(each) for each in wanted), default=1) - 1
    at, kept = 0, b""
    try:
        with path.open("rb") as file:
            while part := file.read(SCAN_BYTES):
                window = kept + _blanked(part, at, but)
                for found in (window.find(each) for each in wanted):
                    if found >= 0:
                        place = at - len(kept) + found
                        message = (
                            f"what should go is also at byte {place}, in pixel data or a table, where no edit goes"
                        )
                        raise VerificationFailed(message, path, "Make a new file with 'mimic convert --deidentify'")
                at += len(part)
                kept = window[-overlap:] if overlap else b""
    except OSError as error:
        raise OutputError(f"cannot be read again ({error.strerror})", path, "Check that disk") from error


def _blanked(part: bytes, at: int, ranges: ifds.Ranges) -> bytes:
    """``part`` of a file, from byte ``at``, with zeros where ``ranges`` (ascending) will be wiped."""
    first = int(np.searchsorted(ranges[:, 1], at, "right"))
    last = int(np.searchsorted(ranges[:, 0], at + len(part), "left"))
    if first >= last:
        return part
    made = bytearray(part)
    for start, end in (ranges[first:last] - at).clip(0, len(part)).tolist():
        made[start:end] = bytes(end - start)
    return bytes(made)
