#!/usr/bin/env python3
"""Damage small slides in many ways, convert each, and count what became of them.

    python -m tools.fuzz [--cuts 64] [--places 1000] [--formats czi,dicom,ndpi,svs] [--seed 1] [--jobs 2] [--json FILE]

Every slide is cut at even points, and overwritten at random places, one damage a file: a byte, 4 KiB of zeros, 4 KiB of
noise. What is converted nevertheless is compared with the conversion of the undamaged slide, pixel by pixel. The seed
makes it repeatable.
"""

from __future__ import annotations

import argparse
import io
import json
import random
import re
import shutil
import struct
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import closing
from dataclasses import asdict, dataclass
from functools import lru_cache
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import openslide
from numpy.typing import NDArray
from PIL import Image

from mimic import settings
from mimic.convert import convert
from mimic.errors import MimicError
from mimic.model import Options, Request
from tools.czi_samples import (
    CZI_DIMENSION,
    CZI_SEGMENT,
    MPP_UM,
    RGB,
    SubBlock,
    build_czi,
    czi_xml,
    read_subblocks,
    to_jpeg_xr,
)
from tools.make_samples import histology, macro_picture, make_sample, reduced

SIZE_PX = 1000
BLOCK_BYTES = 4096
DEADLINE_S = 60.0
BLACK_PX = 64
"""A square of zeros of this side, where the undamaged slide is not black, is a dead block."""
NDPI_PX = (2304, 512)
"""Wider than 2048 px: Bio-Formats then decodes each row of blocks on its own, as in real slides."""
KINDS = ("byte", "zeros", "noise")
FORMATS = ("czi", "dicom", "ndpi", "svs")
EXIT_CODES = (2, 3, 4, 5, 6, 7, 8, 9)
"""Those of errors.py, without 1 (a bug) and 130 (nobody interrupts)."""


@dataclass(frozen=True, slots=True)
class Damage:
    """``kind`` is "cut" or one of KINDS; ``at`` counts bytes from the beginning of all files of the slide, by name."""

    format: str
    kind: str
    at: int
    seed: int


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one damaged slide. ``result`` is "refused", "same" (as from the undamaged slide), "facts" (same
    pixels of the scan, other scale, magnification, label or macro), "differs", or a fault: "black", "bug", "left" (a
    file stayed), "slow", "code" (an exit code that no documentation has)."""

    damage: Damage
    result: str
    code: int
    said: str
    seconds_s: float


FAULTS = ("black", "bug", "left", "slow", "code")


def write_slides(folder: Path, formats: Iterable[str]) -> dict[str, Path]:
    """Small slides to be damaged, each in a folder of its own; DICOM is that folder."""
    made: dict[str, Path] = {}
    for name in formats:
        place = folder / name
        place.mkdir(parents=True)
        if name == "ndpi":
            made[name] = place / "slide.ndpi"
            write_ndpi(made[name], histology(*NDPI_PX))
            continue
        sample = make_sample({"czi": "czi_jpegxr"}.get(name, name), place, size_px=SIZE_PX)
        if name == "czi":
            add_pyramid(sample.path, sample.pixels)
        if name == "dicom":  # UIDs are made anew each time; without them the order of files is always the same
            for number, file in enumerate(sorted(place.rglob("*.dcm"), key=lambda each: -each.stat().st_size)):
                file.rename(file.with_name(f"{number}.dcm"))
        made[name] = sample.path.parent if name == "dicom" else sample.path
    return made


def add_pyramid(path: Path, pixels: RGB) -> None:
    """Give a CZI lower levels, each one subblock over the whole picture, as scanners write them."""
    raw = path.read_bytes()
    blocks = read_subblocks(raw)
    for factor in (2, 4):
        small = reduced(pixels, factor)
        height, width = small.shape[:2]
        sizes = {b"X": (width * factor, width), b"Y": (height * factor, height)}
        dimensions = b""
        for name, *rest in (
            CZI_DIMENSION.unpack_from(blocks[0].dimensions, at) for at in range(0, len(blocks[0].dimensions), 20)
        ):
            if name.rstrip(b"\0") != b"M":
                size, kept = sizes.get(name.rstrip(b"\0"), (rest[1], rest[3]))
                dimensions += CZI_DIMENSION.pack(name, 0, size, 0.0, kept)
        schema, pixel_type, _, part, _, pyramid, _ = blocks[0].entry
        entry = (schema, pixel_type, 0, part, 0, b"\2" + pyramid[1:], len(dimensions) // CZI_DIMENSION.size)
        block = SubBlock(entry, dimensions, b"", np.ascontiguousarray(small[..., ::-1]).tobytes())
        blocks.append(to_jpeg_xr(block, 1.0))
    xml = czi_xml(pixels.shape[1], pixels.shape[0], len(blocks))
    path.write_bytes(build_czi(raw[: CZI_SEGMENT.size + 512], blocks, xml))


def write_ndpi(path: Path, pixels: RGB) -> None:
    """An NDPI as Hamamatsu lays it out: each level one JPEG strip, with a restart marker after every row of blocks and
    their places in a tag, then the macro; directories whose offsets have 64 bits."""
    out = bytearray(b"II*\0" + bytes(8))
    link = 4
    levels = [(reduced(pixels, factor) if factor > 1 else pixels, 40.0 / factor) for factor in (1, 2, 4)]
    for picture, lens in (*levels, (macro_picture(pixels), -1.0)):
        coded = io.BytesIO()
        Image.fromarray(picture).save(coded, "JPEG", quality=90, subsampling="4:4:4", restart_marker_rows=1)
        raw = coded.getvalue()
        at = raw.index(b"\xff\xda")
        first = at + 2 + int.from_bytes(raw[at + 2 : at + 4], "big")
        starts = [first, *(first + found.end() for found in re.finditer(rb"\xff[\xd0-\xd7]", raw[first:]))]
        height, width = picture.shape[:2]
        per_cm = round(10000 / MPP_UM * max(lens, 0.4) / 40)
        fields: list[tuple[int, int, int, bytes]] = [
            (256, 4, 1, struct.pack("<I", width)),
            (257, 4, 1, struct.pack("<I", height)),
            (258, 3, 3, struct.pack("<HHH", 8, 8, 8)),
            (259, 3, 1, struct.pack("<H", 7)),
            (262, 3, 1, struct.pack("<H", 6)),
            (271, 2, 10, b"Hamamatsu\0"),
            (272, 2, 9, b"C9600-12\0"),
            (273, 4, 1, struct.pack("<I", len(out))),
            (277, 3, 1, struct.pack("<H", 3)),
            (278, 4, 1, struct.pack("<I", height)),
            (279, 4, 1, struct.pack("<I", len(raw))),
            (282, 5, 1, struct.pack("<II", per_cm, 1)),
            (283, 5, 1, struct.pack("<II", per_cm, 1)),
            (296, 3, 1, struct.pack("<H", 3)),
            (530, 3, 2, struct.pack("<HH", 1, 1)),
            (65420, 4, 1, struct.pack("<I", 1)),
            (65421, 11, 1, struct.pack("<f", lens)),
            (65424, 9, 1, bytes(4)),  # the focal plane, without which OpenSlide opens no NDPI
            (65426, 4, len(starts), struct.pack(f"<{len(starts)}I", *starts)),
        ]
        out += raw
        entries = b""
        for tag, kind, count, value in fields:
            where = value.ljust(4, b"\0") if len(value) <= 4 else struct.pack("<I", len(out))
            entries += struct.pack("<HHI", tag, kind, count) + where
            out += value if len(value) > 4 else b""
        struct.pack_into("<Q", out, link, len(out))
        link = len(out) + 2 + len(entries)
        out += struct.pack("<H", len(fields)) + entries + bytes(8) + bytes(4 * len(fields))
    path.write_bytes(out)


def members(slide: Path) -> list[Path]:
    """The files of a slide, by name."""
    return sorted(slide.iterdir()) if slide.is_dir() else [slide]


def plan_cuts(name: str, slide: Path, count: int) -> list[Damage]:
    """Even points over all bytes of the slide; of a series the file that holds the point is cut there."""
    total = sum(path.stat().st_size for path in members(slide))
    return [Damage(name, "cut", total * (number + 1) // (count + 1), 0) for number in range(count)]


def plan_places(slides: dict[str, Path], count: int, seed: int) -> list[Damage]:
    """Random places, evenly spread over formats and kinds."""
    chance = random.Random(seed)
    damages = []
    for number in range(count):
        name = list(slides)[number % len(slides)]
        total = sum(path.stat().st_size for path in members(slides[name]))
        kind = KINDS[number // len(slides) % len(KINDS)]
        damages.append(Damage(name, kind, chance.randrange(total), chance.randrange(1 << 30)))
    return damages


def damaged(slide: Path, damage: Damage, folder: Path) -> Path:
    """A damaged copy of the slide in ``folder``; the file or folder to convert."""
    at = damage.at
    copy = folder / slide.name
    if slide.is_dir():
        copy.mkdir()
    for path in members(slide):
        raw = bytearray(path.read_bytes())
        if 0 <= at < len(raw):
            _spoil(raw, at, damage)
        at -= path.stat().st_size
        (copy / path.name if slide.is_dir() else copy).write_bytes(raw)
    return copy


def _spoil(raw: bytearray, at: int, damage: Damage) -> None:
    chance = random.Random(damage.seed)
    end = min(len(raw), at + BLOCK_BYTES)
    if damage.kind == "cut":
        del raw[at:]
    elif damage.kind == "byte":
        raw[at] ^= chance.randrange(1, 256)
    else:
        raw[at:end] = bytes(end - at) if damage.kind == "zeros" else chance.randbytes(end - at)


@dataclass(frozen=True, slots=True, eq=False)
class Seen:
    """What OpenSlide sees of a finished slide."""

    pixels: NDArray[np.uint8]
    facts: tuple[str | None, ...]
    pictures: dict[str, bytes]


def look(path: Path) -> Seen:
    """The scan's level 0, scale and magnification, and the associated images except for the thumbnail."""
    with closing(openslide.OpenSlide(path)) as slide:
        pixels = np.asarray(slide.read_region((0, 0), 0, slide.dimensions))[..., :3]
        facts = tuple(slide.properties.get(key) for key in ("aperio.MPP", "aperio.AppMag"))
        pictures = {name: each.tobytes() for name, each in slide.associated_images.items() if name != "thumbnail"}
    return Seen(pixels, facts, pictures)


def _options(extra: tuple[tuple[str, object], ...]) -> Options:
    # the NDPI's coarser level states another objective than its scale; nothing else needs help
    return Options(threads=1, deadline_s=DEADLINE_S, **dict(extra))  # type: ignore[arg-type]


@lru_cache(maxsize=8)
def truth(slide: Path, extra: tuple[tuple[str, object], ...]) -> Seen:
    """The undamaged slide's conversion; once a process."""
    with tempfile.TemporaryDirectory(prefix="mimic-fuzz-") as folder:
        output = Path(folder) / "truth.svs"
        convert(Request(slide, output, _options(extra)), settings.load())
        return look(output)


def attempt(slide: Path, damage: Damage, extra: tuple[tuple[str, object], ...] = ()) -> Outcome:
    """Damage, convert, judge."""
    whole = truth(slide, extra)
    with tempfile.TemporaryDirectory(prefix="mimic-fuzz-") as name:
        folder = Path(name)
        (folder / "in").mkdir()
        (folder / "out").mkdir()
        copy = damaged(slide, damage, folder / "in")
        before = sorted((folder / "in").rglob("*"))
        output = folder / "out" / "made.svs"
        started, code, said = time.monotonic(), 0, ""
        try:
            done = convert(Request(copy, output, _options(extra)), settings.load())
            said = "; ".join(done.warnings)
        except MimicError as error:
            code, said = error.exit_code, str(error).replace(str(folder), "")
        except Exception as error:  # noqa: BLE001 - what is looked for
            code, said = 1, f"{type(error).__name__}: {error}"
        seconds = time.monotonic() - started
        left = sorted((folder / "out").iterdir()) != ([output] if not code else [])
        left = left or sorted((folder / "in").rglob("*")) != before
        result = _judged(whole, output, code=code, left=left, seconds=seconds)
    return Outcome(damage, result, code, said[:300], round(seconds, 3))


def _judged(whole: Seen, output: Path, *, code: int, left: bool, seconds: float) -> str:
    if code == 1:
        return "bug"
    if left:
        return "left"
    if seconds > DEADLINE_S + 5:
        return "slow"
    if code:
        return "refused" if code in EXIT_CODES else "code"
    seen = look(output)
    if seen.pixels.shape == whole.pixels.shape and np.array_equal(seen.pixels, whole.pixels):
        return "same" if (seen.facts, seen.pictures) == (whole.facts, whole.pictures) else "facts"
    return "black" if has_dead_block(seen.pixels, whole.pixels) else "differs"


def has_dead_block(seen: NDArray[np.uint8], whole: NDArray[np.uint8]) -> bool:
    """Whether a square of BLACK_PX is zero in the one and not in the other."""
    if seen.shape != whole.shape:
        return False
    rows, columns = (side // BLACK_PX * BLACK_PX for side in seen.shape[:2])

    def brightest(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
        squares = pixels[:rows, :columns].reshape(rows // BLACK_PX, BLACK_PX, columns // BLACK_PX, BLACK_PX, 3)
        return np.asarray(squares.max(axis=(1, 3, 4)))

    return bool(((brightest(seen) == 0) & (brightest(whole) > 0)).any())


def _work(task: tuple[Path, Damage, tuple[tuple[str, object], ...]]) -> Outcome:
    return attempt(*task)


def sweep(
    slides: dict[str, Path], damages: Sequence[Damage], *, jobs: int = 1, extra: tuple[tuple[str, object], ...] = ()
) -> Iterator[Outcome]:
    """An outcome for each damage; in this process, or in ``jobs`` of them with a JVM each."""
    tasks = [(slides[damage.format], damage, extra) for damage in damages]
    if jobs == 1:
        yield from map(_work, tasks)
        return
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool:
        yield from pool.map(_work, tasks, chunksize=8)


def table(outcomes: Sequence[Outcome]) -> str:
    """Counts by format and kind, as Markdown."""
    columns = ("refused", "same", "facts", "differs", *FAULTS)
    shown = [column for column in columns if column not in FAULTS or any(each.result == column for each in outcomes)]
    lines = [f"| slide | damage | files | {' | '.join(shown)} |", "|" + "---|" * (len(shown) + 3)]
    counts = Counter((each.damage.format, each.damage.kind, each.result) for each in outcomes)
    for name in FORMATS:
        for kind in ("cut", *KINDS):
            row = [counts[name, kind, result] for result in shown]
            if total := sum(counts[name, kind, result] for result in columns):
                lines.append(f"| {name} | {kind} | {total} | {' | '.join(map(str, row))} |")
    sums = [str(sum(each.result == result for each in outcomes)) for result in shown]
    lines.append(f"| all | | {len(outcomes)} | {' | '.join(sums)} |")
    return "\n".join(lines)


def main() -> int:
    """The command line; the exit code is 1 when a rule was broken."""
    parser = argparse.ArgumentParser(prog="fuzz", description="Damage small slides, convert them, count.")
    parser.add_argument("--cuts", type=int, default=64, help="points at which each slide is cut (default 64)")
    parser.add_argument("--places", type=int, default=1000, help="places overwritten, over all slides (default 1000)")
    parser.add_argument("--formats", default=",".join(FORMATS), help="some of " + ",".join(FORMATS))
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--never-copy", action="store_true", help="decode and encode, also what could be copied")
    parser.add_argument("--source", help="read by this one, e.g. bioformats where czi would be chosen")
    parser.add_argument("--json", type=Path, metavar="FILE", help="every outcome, a line each")
    arguments = parser.parse_args()
    extra: tuple[tuple[str, object], ...] = (("passthrough", "never"),) if arguments.never_copy else ()
    if arguments.source:
        extra += (("source", arguments.source),)
    folder = Path(tempfile.mkdtemp(prefix="mimic-fuzz-slides-"))
    started = time.monotonic()
    try:
        slides = write_slides(folder, arguments.formats.split(","))
        damages = [cut for name, slide in slides.items() for cut in plan_cuts(name, slide, arguments.cuts)]
        damages += plan_places(slides, arguments.places, arguments.seed)
        outcomes = []
        for outcome in sweep(slides, damages, jobs=arguments.jobs, extra=extra):
            outcomes.append(outcome)
            if arguments.json is not None:
                with arguments.json.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(asdict(outcome)) + "\n")
            if len(outcomes) % 100 == 0:
                print(f"{len(outcomes)} of {len(damages)}, {time.monotonic() - started:.0f} s", file=sys.stderr)
    finally:
        shutil.rmtree(folder)
    print(table(outcomes))
    print(f"\n{len(outcomes)} files, {time.monotonic() - started:.0f} s, seed {arguments.seed}")
    broken = [each for each in outcomes if each.result in FAULTS]
    broken += [each for each in outcomes if each.damage.kind == "cut" and each.result == "differs"]
    for each in broken:
        print(f"BROKEN {each}")
    return int(bool(broken))


if __name__ == "__main__":
    sys.exit(main())
