"""``mimic edit`` killed, and the power cut, at every moment: the old slide or the new one, never a broken file.

Run as a script this module is what gets killed: it forks a child for every kill, so that 300 take seconds.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import openslide
import pytest
import tifffile

import mimic
from mimic.disk import Disk
from mimic.edit import Wish, edit, pending_bytes
from mimic.errors import VerificationFailed
from tests.test_rules import good_parts, histology, write_parts

VERSION = "9.8.7"
WISHES = {
    "edit": Wish(appmag=20, mpp_um=0.5, pairs=(("Title", "another"),), removes=("Time Zone",), drop_label=True),
    "deidentify": Wish(deidentify=True),
}
GONE = {"edit": (b"GMT+00:00", b"\nlabel "), "deidentify": (b"GMT+00:00", b"09:08:07", b"\nlabel ", b"\nmacro ")}
MODES = ("before", "half", "after")
"""Where in a write or fsync the process dies; of a write half the bytes are there then."""
WHOLE_BYTES = 8
"""A write of this size, aligned, is not torn: the offset in the header."""
SECTOR_BYTES = 512
RANDOM_KILLS = 30
POWER_CUTS = 300
CASES = [("classic", "edit"), ("big", "edit"), ("classic", "deidentify"), ("scanner", "edit")]

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork and kill -9")

Step = tuple[str, int, bytes]
"""A change of the file: "write" (offset, bytes), "sync", or "truncate" (size)."""


class Watched(Disk):
    """Tells ``heard`` of every change before it happens."""

    heard: Callable[[Watched, Step], None]

    def write_at(self, offset: int, data: bytes) -> None:
        self.heard(self, ("write", offset, data))
        super().write_at(offset, data)

    def sync(self) -> None:
        self.heard(self, ("sync", 0, b""))
        super().sync()

    def truncate(self, size_bytes: int) -> None:
        self.heard(self, ("truncate", size_bytes, b""))
        super().truncate(size_bytes)


class Deadly(Watched):
    """Kills its process at one of the changes."""

    def __init__(self, path: Path, *, point: int, mode: str) -> None:
        super().__init__(path)
        self._left, self._mode = point, mode

    def heard(self, _: Watched, step: Step) -> None:  # type: ignore[override]
        kind, offset, data = step
        if self._left == 0 and self._mode != "after":
            if self._mode == "half" and kind == "write" and len(data) > WHOLE_BYTES:
                Disk.write_at(self, offset, data[: len(data) // 2])
            os.kill(os.getpid(), signal.SIGKILL)
        if self._left == -1:
            os.kill(os.getpid(), signal.SIGKILL)
        self._left -= 1


def record(path: Path, wish: str, steps: list[Step] | None = None) -> list[Step]:
    """Edit ``path``; what was done to it, step by step."""
    steps = [] if steps is None else steps

    class Recorder(Watched):
        def heard(self, _: Watched, step: Step) -> None:  # type: ignore[override]
            steps.append(step)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys.modules["mimic.edit"], "Disk", Recorder)
        edit(path, WISHES[wish], version=VERSION)
    return steps


def forked(work: Callable[[], object]) -> int:
    """Process number of a child that does ``work``."""
    child = os.fork()
    if child:
        return child
    try:
        work()
        os._exit(0)
    finally:
        os._exit(1)


def kill_everywhere(source: Path, folder: Path, wish: str) -> None:
    """A copy of ``source`` in ``folder`` for every way to die; the script's part."""
    trial = folder / "whole.svs"
    shutil.copyfile(source, trial)
    started = time.monotonic()
    count = len(record(trial, wish))
    lasts_s = time.monotonic() - started
    for point in range(count):
        for mode in MODES:
            path = folder / f"{point:03}-{mode}.svs"
            shutil.copyfile(source, path)
            made = partial(Deadly, point=point, mode=mode)
            sys.modules["mimic.edit"].Disk = made  # type: ignore[attr-defined]
            child = forked(lambda path=path: edit(path, WISHES[wish], version=VERSION))  # type: ignore[misc]
            _, status = os.waitpid(child, 0)
            last = point == count - 1 and mode == "after"
            if os.WIFSIGNALED(status) == last:
                raise SystemExit(f"{path.name} ended with status {status}")
    sys.modules["mimic.edit"].Disk = Disk  # type: ignore[attr-defined]
    chance = random.Random(wish)
    for number in range(RANDOM_KILLS):
        path = folder / f"random-{number}.svs"
        shutil.copyfile(source, path)
        child = forked(lambda path=path: edit(path, WISHES[wish], version=VERSION))  # type: ignore[misc]
        time.sleep(chance.uniform(0, 1.5 * lasts_s))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


@dataclass(frozen=True, slots=True)
class Look:
    """What a file says and holds: texts, and compressed data by place, of baseline, thumbnail and levels."""

    texts: tuple[str, ...]
    data: tuple[tuple[tuple[int, ...], bytes], ...]
    region: bytes
    power: str
    pictures: frozenset[str]


def look(path: Path) -> Look:
    """By tifffile and OpenSlide; raises when either stumbles."""
    content = path.read_bytes()
    with tifffile.TiffFile(path) as tiff:
        texts = tuple(page.description for page in tiff.pages)
        data = tuple(
            (page.dataoffsets, b"".join(content[at : at + n] for at, n in zip(page.dataoffsets, page.databytecounts)))  # noqa: B905
            for page in tiff.pages
            if page.is_tiled or page.index == 1
        )
    with openslide.OpenSlide(path) as slide:
        region = np.asarray(slide.read_region((150, 130), 0, (300, 200))).tobytes()
        power = slide.properties["openslide.objective-power"]
        return Look(texts, data, region, power, frozenset(slide.associated_images))


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Callable[[str], Path]:
    folder = tmp_path_factory.mktemp("sources")

    def get(name: str) -> Path:
        path = folder / f"{name}.svs"
        if name == "scanner" and not path.exists():
            shutil.copyfile(request.getfixturevalue("corpus_file")("svs/CMU-1-Small-Region.svs"), path)
        elif not path.exists():
            write_parts(path, good_parts(histology(600, 600)), bigtiff=name == "big")
        return path

    return get


def judge(path: Path, old: Look, new: Look, wish: str) -> str:
    """Which one it is, and a failure for anything else; the same edit once more gives the new one, whole."""
    seen = look(path)
    assert seen in (old, new), path.name
    state = "old" if seen == old else "new"
    state += "+leftovers" if pending_bytes(path) else ""
    edit(path, WISHES[wish], version=VERSION)
    assert look(path) == new
    assert not pending_bytes(path)
    content = path.read_bytes()
    assert not [gone for gone in GONE[wish] if gone in content]
    return state


def edited(source: Path, folder: Path, wish: str) -> Look:
    path = folder / "edited.svs"
    shutil.copyfile(source, path)
    edit(path, WISHES[wish], version=VERSION)
    return look(path)


@pytest.mark.parametrize(("name", "wish"), CASES)
def test_killed_anywhere(name: str, wish: str, sources: Callable[[str], Path], tmp_path: Path) -> None:
    source = sources(name)
    folder = tmp_path / "killed"
    folder.mkdir()
    command = [sys.executable, "-m", "tests.test_edit_kill", str(source), str(folder), wish]
    done = subprocess.run(
        command, cwd=Path(__file__).parents[1], capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    old, new = look(source), edited(source, tmp_path, wish)
    assert old != new
    assert old.region == new.region
    states = {path.name: judge(path, old, new, wish) for path in sorted(folder.iterdir())}
    assert len(states) > 1 + RANDOM_KILLS + 3 * 8
    assert set(states.values()) == {"old", "old+leftovers", "new", "new+leftovers"}
    assert states["000-before.svs"] == "old"
    assert states["002-before.svs"] == "old+leftovers"  # the block is there, the offset not switched
    assert states["002-after.svs"] == "new+leftovers"
    assert states["whole.svs"] == "new"


def disks_after(content: bytes, steps: list[Step], chance: random.Random) -> Iterator[bytes]:
    """What may be on the disk when the power is cut: all up to an fsync that returned, and of later writes any, torn at
    sectors; the file may be longer already, with zeros."""
    for _ in range(POWER_CUTS):
        cut = chance.randrange(len(steps) + 1)
        synced = max((index for index in range(cut) if steps[index][0] == "sync"), default=0)
        disk = bytearray(content)
        for index, (kind, offset, data) in enumerate(steps[:cut]):
            if kind == "sync" or (index > synced and chance.random() < 0.5):
                continue
            if kind == "truncate":
                del disk[offset:]
                continue
            end = offset + len(data)
            disk += bytes(max(0, end - len(disk)))
            tears = index > synced and len(data) > WHOLE_BYTES
            disk[offset:end] = torn(disk[offset:end], data, chance) if tears else data
        yield bytes(disk)


def torn(before: bytes, after: bytes, chance: random.Random) -> bytearray:
    """Some sectors of ``after`` over ``before``."""
    made = bytearray(before)
    for at in range(0, len(after), SECTOR_BYTES):
        if chance.random() < 0.5:
            made[at : at + SECTOR_BYTES] = after[at : at + SECTOR_BYTES]
    return made


@pytest.mark.parametrize(("name", "wish"), CASES[:3])
def test_power_cut_anywhere(name: str, wish: str, sources: Callable[[str], Path], tmp_path: Path) -> None:
    source = sources(name)
    path = tmp_path / "slide.svs"
    shutil.copyfile(source, path)
    steps = record(path, wish)
    old, new = look(source), look(path)
    states = set()
    for content in {*disks_after(source.read_bytes(), steps, random.Random(name + wish))}:
        path.write_bytes(content)
        seen = look(path)
        assert seen in (old, new)
        states.add((seen == new, pending_bytes(path) > 0))
        edit(path, WISHES[wish], version=VERSION)
        assert look(path) == new
        assert not [gone for gone in GONE[wish] if gone in path.read_bytes()]
    assert states == {(False, False), (False, True), (True, True), (True, False)}


def test_check_tells_of_an_edit_that_was_cut_off(sources: Callable[[str], Path], tmp_path: Path) -> None:
    source, path = sources("classic"), tmp_path / "slide.svs"
    shutil.copyfile(source, path)
    steps = record(path, "edit")
    cut = []
    for content in disks_after(source.read_bytes(), steps, random.Random(1)):
        path.write_bytes(content)
        cut += [content] if pending_bytes(path) else []
    assert len(cut) > 2
    for content, passed in ((source.read_bytes(), True), (cut[0], False), (cut[-1], False)):
        path.write_bytes(content)
        told = next(each for each in mimic.check(path) if each.name == "no unfinished edit")
        assert told.passed is passed and told.must is False
    assert str(pending_bytes(path)) in told.measured and "mimic edit" in told.measured


def test_power_cut_while_it_is_taken_back(sources: Callable[[str], Path], tmp_path: Path) -> None:
    """A reader refuses what was written: the way back is as safe as the way there."""
    source, path = sources("classic"), tmp_path / "slide.svs"
    shutil.copyfile(source, path)
    steps: list[Step] = []
    answers = iter([(True, 5), None])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys.modules["mimic.edit"], "_by_tifffile", lambda _: next(answers))
        with pytest.raises(VerificationFailed):
            record(path, "edit", steps)
    assert [kind for kind, _, _ in steps] == ["write", "sync", "write", "sync", "write", "sync", "truncate", "sync"]
    assert path.read_bytes() == source.read_bytes()
    old, new = look(source), edited(source, tmp_path, "edit")
    for content in {*disks_after(source.read_bytes(), steps, random.Random(1))}:
        path.write_bytes(content)
        assert look(path) in (old, new)
        edit(path, WISHES["edit"], version=VERSION)
        assert look(path) == new


def test_the_measure_itself(sources: Callable[[str], Path], tmp_path: Path) -> None:
    """An edit that wipes before it switches would not pass."""
    source, path = sources("classic"), tmp_path / "slide.svs"
    shutil.copyfile(source, path)
    steps = record(path, "edit")
    switch = next(index for index, step in enumerate(steps) if step[1] == 4)
    wrong = [*steps[switch + 2 :], *steps[: switch + 2]]
    old, new = look(source), look(path)
    broken = 0
    for content in disks_after(source.read_bytes(), wrong, random.Random(0)):
        path.write_bytes(content)
        try:
            broken += look(path) not in (old, new)
        except (tifffile.TiffFileError, openslide.OpenSlideError, IndexError, KeyError):
            broken += 1
    assert broken > POWER_CUTS // 10


if __name__ == "__main__":
    kill_everywhere(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3])
