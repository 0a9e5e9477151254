#!/usr/bin/env python3
"""Damage small slides in many ways, convert each, and count what became of them.

    tools/fuzz.py [--cuts 64] [--places 1000] [--formats czi,dicom,ndpi,svs] [--seed 1] [--jobs 2] [--json FILE]

Every slide is cut at even points, and overwritten at random places, one damage a file: a byte, 4 KiB of zeros, 4 KiB of
noise. What is converted nevertheless is compared with the conversion of the undamaged slide, pixel by pixel. The seed
makes it repeatable. The NDPI is made from the one that MIMIC_CORPUS holds; without it there is none.
"""

from __future__ import annotations

import argparse
import json
import os
import random
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

from mimic import settings
from mimic.convert import convert
from mimic.errors import MimicError
from mimic.model import Options, Request
from tools.make_samples import make_sample

SIZE_PX = 1000
BLOCK_BYTES = 4096
DEADLINE_S = 60.0
BLACK_PX = 64
"""A square of zeros of this side, where the undamaged slide is not black, is a dead block."""
CORPUS_NDPI = "ndpi/test3-TRITC 2 (560).ndpi"
NDPI_FROM = 2
"""The first directory of the corpus' NDPI that is kept: 992 x 1216 px instead of 3968 x 4864."""
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
            corpus = os.environ.get("MIMIC_CORPUS")
            if corpus:
                (place / "slide.ndpi").write_bytes(small_ndpi((Path(corpus) / CORPUS_NDPI).read_bytes()))
                made[name] = place / "slide.ndpi"
            continue
        sample = make_sample({"czi": "czi_jpegxr"}.get(name, name), place, size_px=SIZE_PX)
        made[name] = sample.path.parent if name == "dicom" else sample.path
    return made


def small_ndpi(raw: bytes) -> bytes:
    """The lower directories of an NDPI below 4 GiB as an NDPI of their own: bytes are kept, offsets moved."""
    sizes = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 7: 1, 9: 4, 10: 8, 11: 4, 12: 8}
    at, directories = struct.unpack_from("<I", raw, 4)[0], []
    while at:
        directories.append(at)
        at = struct.unpack_from("<I", raw, at + 2 + 12 * struct.unpack_from("<H", raw, at)[0])[0]
    kept = directories[NDPI_FROM:]
    places = set(kept)
    pointers = []  # positions of offsets
    for at in kept:
        count = struct.unpack_from("<H", raw, at)[0]
        for entry in range(at + 2, at + 2 + 12 * count, 12):
            tag, kind, number, value = struct.unpack_from("<HHII", raw, entry)
            if tag == 273 or sizes.get(kind, 1) * number > 4:
                pointers.append(entry + 8)
                places.add(value)
        pointers.append(at + 2 + 12 * count)
    start = min(places)
    out = bytearray(raw[:8] + raw[start:])
    for at in pointers:
        value = struct.unpack_from("<I", raw, at)[0]
        struct.pack_into("<I", out, at - start + 8, value - start + 8 if value else 0)
    struct.pack_into("<I", out, 4, kept[0] - start + 8)
    return bytes(out)


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
    total = [sum(each.result == result for each in outcomes) for result in shown]
    lines.append(f"| all | | {len(outcomes)} | {' | '.join(map(str, total))} |")
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
    parser.add_argument("--json", type=Path, metavar="FILE", help="every outcome, a line each")
    arguments = parser.parse_args()
    extra: tuple[tuple[str, object], ...] = (("passthrough", "never"),) if arguments.never_copy else ()
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
