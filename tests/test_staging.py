"""staging: a private place, and the moment when the output gets its name."""

from __future__ import annotations

import errno
import os
import shutil
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from mimic import staging
from mimic.errors import OutputError
from tests.command import environment, files

PATIENT = {"overwrite": False, "inputs": ()}


def finished(folder: Path, data: bytes = b"new") -> Path:
    path = folder / staging.STAGED_NAME
    path.write_bytes(data)
    return path


def test_staged_then_published(tmp_path: Path) -> None:
    output = tmp_path / "a" / "b" / "x.svs"
    with staging.staged(output) as folder:
        assert folder.parent == output.parent, "on the same file system, so that the name is given at once"
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        staging.publish(finished(folder), output, overwrite=False)
    assert files(tmp_path) == {b"a/": b"", b"a/b/": b"", b"a/b/x.svs": b"new"}


def test_failure_removes_everything_that_was_made(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    with pytest.raises(KeyboardInterrupt), staging.staged(tmp_path / "a" / "b" / "c" / "x.svs") as folder:
        finished(folder)
        (folder / "deep").mkdir()
        raise KeyboardInterrupt
    assert files(tmp_path) == {b"a/": b""}


def test_failure_keeps_what_others_put_beside(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), staging.staged(tmp_path / "a" / "x.svs") as folder:
        (folder.parent / "other.svs").write_bytes(b"another's")
        raise KeyboardInterrupt
    assert files(tmp_path) == {b"a/": b"", b"a/other.svs": b"another's"}


def test_overwriting_is_one_step(tmp_path: Path) -> None:
    output = tmp_path / "x.svs"
    output.write_bytes(b"old")
    before = output.open("rb")
    with staging.staged(output) as folder, before:
        assert output.read_bytes() == b"old"
        staging.publish(finished(folder), output, overwrite=True)
        assert before.read() == b"old", "whoever has the old one open keeps it"
    assert output.read_bytes() == b"new"


def test_output_that_appears_meanwhile_is_not_replaced(tmp_path: Path) -> None:
    output = tmp_path / "x.svs"
    with staging.staged(output) as folder:
        output.write_bytes(b"another's")
        with pytest.raises(OutputError, match=r"x\.svs: appeared while .* --overwrite"):
            staging.publish(finished(folder), output, overwrite=False)
    assert files(tmp_path) == {b"x.svs": b"another's"}


@pytest.mark.parametrize("there", [False, True])
def test_file_system_without_links(there: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    called = []

    def refuse(*_: object) -> None:
        called.append(1)
        raise PermissionError(errno.EPERM, "exFAT has no links")

    monkeypatch.setattr(os, "link", refuse)
    output = tmp_path / "x.svs"
    with staging.staged(output) as folder:
        if there:
            output.write_bytes(b"another's")
            with pytest.raises(OutputError, match="appeared"):
                staging.publish(finished(folder), output, overwrite=False)
        else:
            staging.publish(finished(folder), output, overwrite=False)
    assert called and output.read_bytes() == (b"another's" if there else b"new")


def test_rights_are_those_of_any_new_file(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        with staging.staged(tmp_path / "x.svs") as folder:
            path = finished(folder)
            path.chmod(0o600)
            staging.publish(path, tmp_path / "x.svs", overwrite=False)
        assert os.umask(0o027) == 0o027, "the mask is as it was"
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "x.svs").stat().st_mode) == 0o640


def test_publishing_onto_a_folder_fails_whole(tmp_path: Path) -> None:
    output = tmp_path / "x.svs"
    with staging.staged(output) as folder:
        output.mkdir()
        with pytest.raises(OutputError, match=r"x\.svs: cannot be written \(Is a directory\)"):
            staging.publish(finished(folder), output, overwrite=True)
    assert files(tmp_path) == {b"x.svs/": b""}


def test_existing_output_is_refused(tmp_path: Path) -> None:
    output = tmp_path / "x.svs"
    staging.refuse_existing(output, **PATIENT)
    staging.refuse_existing(tmp_path / "none" / "x.svs", **PATIENT)
    output.write_bytes(b"old")
    with pytest.raises(OutputError, match="is there already"):
        staging.refuse_existing(output, **PATIENT)
    staging.refuse_existing(output, overwrite=True, inputs=(tmp_path / "other.czi",))


def test_dangling_link_counts_as_there(tmp_path: Path) -> None:
    (tmp_path / "x.svs").symlink_to(tmp_path / "none")
    with pytest.raises(OutputError, match="is there already"):
        staging.refuse_existing(tmp_path / "x.svs", **PATIENT)


@pytest.mark.parametrize("overwrite", [False, True])
def test_folder_and_own_input_are_refused(overwrite: bool, tmp_path: Path) -> None:
    (tmp_path / "d.svs").mkdir()
    with pytest.raises(OutputError, match="is a folder"):
        staging.refuse_existing(tmp_path / "d.svs", overwrite=overwrite, inputs=())
    source = tmp_path / "in.svs"
    source.write_bytes(b"source")
    (tmp_path / "link.svs").symlink_to(source)
    for output in (source, tmp_path / "link.svs", tmp_path / "d.svs" / ".." / "in.svs"):
        with pytest.raises(OutputError, match="its own input"):
            staging.refuse_existing(output, overwrite=overwrite, inputs=(tmp_path / "a.dcm", source))


def test_output_of_the_same_run_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    taken = {tmp_path / "x.svs": Path("one.czi")}
    with pytest.raises(OutputError, match=r"was made from one\.czi in this run"):
        staging.refuse_taken(Path("x.svs"), taken)
    staging.refuse_taken(Path("y.svs"), taken)


@pytest.mark.parametrize("output", ["f/x.svs", "f/g/x.svs", f"{'n' * 300}/x.svs"])
def test_place_that_cannot_be(output: str, tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"a file")
    with pytest.raises(OutputError) as caught, staging.staged(tmp_path / output):
        pytest.fail("staged in it")
    assert caught.value.remedy and caught.value.path == tmp_path / output
    assert files(tmp_path) == {b"f": b"a file"}


SLEEPER = """
import sys, time
from pathlib import Path
from typing import Any
from mimic import staging
with staging.staged(Path(sys.argv[1])) as folder:
    (folder / "slide.svs").write_bytes(b"half")
    print("ready", flush=True)
    time.sleep(60)
"""


def test_what_a_killed_conversion_left_is_swept(tmp_path: Path) -> None:
    """By the next conversion to the same output, and only when its owner is dead."""
    with subprocess.Popen(
        [sys.executable, "-c", SLEEPER, tmp_path / "x.svs"], env=environment(tmp_path / "tmp"), stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None and process.stdout.readline() == b"ready\n"
        (left,) = tmp_path.glob(".mimic-*")
        staging.sweep(tmp_path / "x.svs")
        assert left.is_dir(), "its owner lives"
        process.kill()
        process.wait()
    staging.sweep(tmp_path / "y.svs")
    assert left.is_dir(), "another output's"
    with staging.staged(tmp_path / "x.svs"):
        assert not left.exists()


@pytest.mark.parametrize("text", ["", "{", "[]", '{"host": "elsewhere", "output": "782e737673"}'])
def test_what_names_no_dead_owner_is_not_swept(text: str, tmp_path: Path) -> None:
    folder = tmp_path / ".mimic-x"
    folder.mkdir()
    (folder / "owner").write_text(text)
    staging.sweep(tmp_path / "x.svs")
    assert folder.is_dir()
    shutil.rmtree(folder)


def test_an_interrupt_as_the_folder_is_made(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    plain = Path.mkdir

    def interrupted(folder: Path, *words: Any, **options: Any) -> None:
        plain(folder, *words, **options)
        if folder.name.startswith(staging.PREFIX):
            raise KeyboardInterrupt

    monkeypatch.setattr(Path, "mkdir", interrupted)
    with pytest.raises(KeyboardInterrupt), staging.staged(tmp_path / "new" / "a.svs"):
        pytest.fail("it was interrupted before")
    assert list(tmp_path.iterdir()) == []
