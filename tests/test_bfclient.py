"""bfclient and bfserver: a real JVM in a real child, and every way in which it can die on us."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
import zipfile
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import tifffile

from mimic.errors import BadInput, MimicError, ToolFailed, ToolMissing, Unsupported
from mimic.programs import bfclient, jvm, shm
from mimic.programs.bfclient import Server, SharedBlock
from mimic.settings import Settings, load
from tests.conftest import program

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="signals")


@pytest.fixture(scope="module", autouse=True)
def _ended() -> Iterator[None]:
    yield
    bfclient.shutdown()


@pytest.fixture(name="own")
def own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A temporary folder of our own, for children and shared memory that nobody else has; all ended after the test."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(shm, "SHM", tmp_path / "shm")
    monkeypatch.setattr(bfclient, "_running", [])
    (tmp_path / "shm").mkdir()
    yield tmp_path
    bfclient.shutdown()
    assert leftovers(tmp_path) == []


def leftovers(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("mimic-*") if path.parent.name in (folder.name, "shm")]


def soon(told: Callable[[], bool], *, within_s: float = 60.0) -> bool:
    end = time.monotonic() + within_s
    while not told() and time.monotonic() < end:
        time.sleep(0.02)
    return told()


def gone(pid: int) -> bool:
    try:
        return bool(psutil.Process(pid).status() == psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return True


def read(server: Server, handle: int, box: tuple[int, int, int, int], shared: SharedBlock) -> bytes:
    """Bytes of a box as Bio-Formats gives them."""
    offset, size = shared.lease(), box[2] * box[3] * 3
    answer = server.ask("read", handle=handle, plane=(0, 0, 0), level=0, box=list(box), offset=offset, room=size)
    assert answer.result["bytes"] == size
    with shared.view(offset, size) as view:
        data = bytes(view)
    shared.release(offset)
    return data


def fake(code: str) -> Callable[[Server], list[str | Path]]:
    """Another program in the place of bfserver."""
    return lambda _: [sys.executable, "-c", code]


# Life


def test_hello_probe_open_read(sample_czi: Path) -> None:
    server = bfclient.server(load())
    hello = server.ask("hello").result
    assert hello["bioformats"] == "7.3.1" and hello["java"]
    found = server.ask("probe", sample_czi, file=str(sample_czi)).result
    assert (found["format"], found["reader"], found["files"]) == ("Zeiss CZI", "ZeissCZIReader", [str(sample_czi)])
    assert [level["width"] for level in found["series"][0]["levels"]] == [3072, 1536, 768]
    assert found["xml"].startswith("<?xml")
    handle, core = server.open(sample_czi, 0)
    shared = SharedBlock(server, handle, slots=2, slot_bytes=512 * 512 * 3)
    whole = read(server, handle, (0, 0, 512, 512), shared)
    part = read(server, handle, (128, 256, 64, 32), shared)
    shape = (3, 512, 512) if not core["interleaved"] else (512, 512, 3)
    pixels = np.frombuffer(whole, np.uint8).reshape(shape)
    piece = np.frombuffer(part, np.uint8).reshape((3, 32, 64) if not core["interleaved"] else (32, 64, 3))
    window = pixels[:, 256:288, 128:192] if not core["interleaved"] else pixels[256:288, 128:192]
    assert np.array_equal(piece, window) and piece.std() > 0
    server.drop(handle)
    shared.close()
    assert not server.busy and server.alive


def test_one_child_for_all(sample_czi: Path) -> None:
    first = bfclient.server(load())
    first.ask("probe", sample_czi, file=str(sample_czi))
    assert bfclient.server(load(), 1) is first


def test_a_name_that_java_cannot_have() -> None:
    name = Path(os.fsdecode(b"/tmp/\xff\xfe.dcm"))
    with pytest.raises(BadInput, match="not valid UTF-8") as caught:
        bfclient.server(load()).ask("probe", name, file=str(name))
    assert caught.value.remedy


def test_an_alias_for_a_name_that_java_cannot_have(tmp_path: Path, sample_czi: Path) -> None:
    odd = tmp_path / os.fsdecode(b"\xff\xfe a.czi")
    odd.symlink_to(sample_czi)
    server = bfclient.server(load())
    found = server.ask("probe", odd, file=str(odd)).result
    assert found["files"] == [str(odd)]
    handle, _ = server.open(odd, 0)
    shared = SharedBlock(server, handle, slots=1, slot_bytes=64 * 64 * 3)
    plain, _ = server.open(sample_czi, 0)
    other = SharedBlock(server, plain, slots=1, slot_bytes=64 * 64 * 3)
    box = (1000, 1000, 64, 64)
    assert read(server, handle, box, shared) == read(server, plain, box, other)
    for each, block in ((handle, shared), (plain, other)):
        server.drop(each)
        block.close()
    broken = tmp_path / os.fsdecode(b"\xff b.czi")
    broken.write_bytes(b"nothing")
    with pytest.raises((BadInput, Unsupported)) as caught:
        server.ask("probe", broken, file=str(broken))
    assert "alias-" not in str(caught.value)
    (tmp_path / os.fsdecode(b"\xff\xfe c.czi")).symlink_to(sample_czi)
    (tmp_path / os.fsdecode(b"\xff\xfe c (1).czi")).symlink_to(sample_czi)
    with pytest.raises(BadInput, match="with others beside it"):
        server.ask("probe", tmp_path / os.fsdecode(b"\xff\xfe c.czi"), file="")


def test_a_bug_in_the_child_is_an_answer_and_not_a_silence() -> None:
    server = bfclient.server(load())
    with pytest.raises(ToolFailed, match="KeyError"):
        server.ask("read", handle=999, plane=(0, 0, 0), level=0, box=[0, 0, 1, 1], offset=0, room=3)
    assert server.ask("hello").result


def test_missing_and_foreign_files(tmp_path: Path) -> None:
    server = bfclient.server(load())
    with pytest.raises((BadInput, Unsupported)) as caught:
        server.ask("probe", tmp_path / "gone.czi", file=str(tmp_path / "gone.czi"))
    assert "gone.czi" in str(caught.value)
    assert server.ask("hello").result


def test_children_of_other_settings(own: Path, sample_czi: Path) -> None:
    """An idle child gives way to one with other settings; a busy one is left alone."""
    plain, small = Settings(path=os.defpath), Settings(path=os.defpath, heap_mb=300)
    first = bfclient.server(plain)
    handle, _ = first.open(sample_czi, 0)
    second = bfclient.server(small)
    assert second is not first and first.alive
    assert first.ask("hello").result and second.ask("hello").result
    assert bfclient.server(plain) is first
    first.drop(handle)
    assert bfclient.server(small, 5).threads == 5
    assert not first.alive and not second.alive
    assert len(leftovers(own)) == 1


def test_shutdown_leaves_nothing(own: Path, sample_czi: Path) -> None:
    threads = threading.active_count()
    server = bfclient.server(load())
    handle, _ = server.open(sample_czi, 0)
    shared = SharedBlock(server, handle, slots=2, slot_bytes=1000)
    assert [path.name for path in own.iterdir() if path.name.startswith("mimic-jvm-")]
    assert list((own / "shm").iterdir()) == []  # has no name once both have it
    pid = server.pid
    bfclient.shutdown()
    shared.close()
    assert gone(pid) and leftovers(own) == [] and threading.active_count() == threads
    with pytest.raises(ToolFailed, match="was stopped"):
        server.ask("hello")
    server.drop(handle)
    bfclient.shutdown()


@pytest.mark.usefixtures("own")
def test_the_environment_does_not_steer_java(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JAVA_TOOL_OPTIONS", "-Xbogus")
    monkeypatch.setenv("_JAVA_OPTIONS", "-Xbogus")
    monkeypatch.setenv("CLASSPATH", "/nowhere")
    server = bfclient.server(load())
    assert server.ask("hello").result["java"]
    known = psutil.Process(server.pid).environ()
    assert not {"JAVA_TOOL_OPTIONS", "_JAVA_OPTIONS", "CLASSPATH"} & set(known)
    assert known["HOME"] == known["TMPDIR"]
    assert Path(known["TMPDIR"]).stat().st_mode & 0o777 == 0o700


# Only what is needed

EVERY_READER = "from mimic.programs import bfreaders, bfserver; bfreaders.CZI_READERS = (); bfserver.main()"
"""bfserver, which asks all of Bio-Formats' readers about a CZI."""
UNTOUCHED = """
import sys, jpype
from mimic.programs.bfserver import Reader
jpype.startJVM(sys.argv[1], classpath=[sys.argv[2]])
class Java:  # a reader that leaves alone what the file does not have
    def getPixelType(self): return 1
    def getRGBChannelCount(self): return 3
    def openBytes(self, index, array, x, y, width, height):
        if index == 0: jpype.java.util.Arrays.fill(array, jpype.JByte(7))
        return array
reader = Reader(Java())
print([sorted(set(map(int, reader.read(index, [0, 0, *size])))) for index, size in enumerate([(4, 5), (4, 5), (9, 9)])])
"""


@pytest.mark.usefixtures("own")
def test_the_reader_is_the_one_that_bio_formats_would_choose(
    monkeypatch: pytest.MonkeyPatch, sample_czi: Path, tmp_path: Path
) -> None:
    """A CZI's is asked alone; what is a CZI only by its name goes to all of them, as does a CZI under another name."""
    named, other = tmp_path / "text.czi", tmp_path / "sample.abc"
    tifffile.imwrite(named, np.zeros((64, 64), np.uint8))
    other.symlink_to(sample_czi)
    short = [bfclient.server(load()).ask("probe", file=str(path)).result for path in (sample_czi, named, other)]
    bfclient.shutdown()
    plain = Server._argv
    monkeypatch.setattr(Server, "_argv", lambda own: [sys.executable, "-P", "-c", EVERY_READER, *plain(own)[4:]])
    every = [bfclient.server(load()).ask("probe", file=str(path)).result for path in (sample_czi, named, other)]
    assert short == every
    assert [found["reader"] for found in short] == ["ZeissCZIReader", "TiffDelegateReader", "ZeissCZIReader"]


def test_no_pixel_of_the_box_before_is_seen() -> None:
    """The array that takes boxes is used again, and readers rely on it to be empty."""
    jar, java = jvm.find_bioformats(load()), jvm.find_java(load())
    argv = [sys.executable, "-c", UNTOUCHED, str(jvm.jvm_library(java)), str(jar)]
    environment = {**os.environ, "PYTHONPATH": str(Path(jvm.__file__).parents[2])}
    done = subprocess.run(argv, env=environment, capture_output=True, timeout=60, check=True, text=True)
    assert done.stdout.strip() == "[[7], [0], [0]]"


@pytest.mark.usefixtures("own")
def test_a_child_is_as_large_as_what_is_expected_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bfclient, "cores", lambda: 3)
    monkeypatch.setattr(bfclient, "_expected", None)
    monkeypatch.setattr(bfclient, "_brief", False)
    assert bfclient.server(load()).threads == 3
    bfclient.expect(1)
    assert bfclient.server(load()).threads == 3  # kept
    bfclient.shutdown()
    small = bfclient.server(load())
    assert small.threads == 1 and "-XX:ActiveProcessorCount=1" in small._argv()
    assert bfclient.server(load(), 1) is small
    bfclient.expect(4)
    assert bfclient.server(load()).threads == 4 and not small.alive


@pytest.mark.usefixtures("own")
def test_a_child_for_a_few_questions_gives_way(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bfclient, "_expected", 1)
    bfclient.expect(1, brief=True)
    brief = bfclient.server(load())
    assert bfclient.server(load()) is brief and "-XX:TieredStopAtLevel=1" in brief._argv()
    bfclient.expect(1)
    able = bfclient.server(load())
    assert able is not brief and not brief.alive and "-XX:TieredStopAtLevel=1" not in able._argv()
    bfclient.expect(1, brief=True)
    assert bfclient.server(load()) is able
    bfclient.expect(None)


@pytest.mark.usefixtures("own")
def test_a_worn_child_is_replaced_when_nobody_needs_it(monkeypatch: pytest.MonkeyPatch, sample_czi: Path) -> None:
    monkeypatch.setattr(bfclient, "PROBES_MAX", 2)
    first = bfclient.server(load())
    first.ask("probe", sample_czi, file=str(sample_czi))
    assert bfclient.server(load()) is first
    handle, _ = first.open(sample_czi, 0)
    first.ask("probe", sample_czi, file=str(sample_czi))
    assert first.worn and bfclient.server(load()) is first
    first.drop(handle)
    assert bfclient.server(load()) is not first and not first.alive


# Death


def asked(server: Server, count: int, **request: Any) -> list[Future[Any]]:
    """Requests under way in threads of their own."""
    pool = ThreadPoolExecutor(count)
    futures = [pool.submit(server.ask, "hello", Path(f"/in/{n}.czi"), **request) for n in range(count)]
    assert soon(lambda: len(server._waiting) == count)
    pool.shutdown(wait=False)
    return futures


@pytest.mark.usefixtures("own")
def test_a_crash_fails_all_who_wait_and_the_next_request_gets_a_new_child(sample_czi: Path) -> None:
    server = bfclient.server(load())
    server.ask("hello")
    os.kill(server.pid, signal.SIGSTOP)  # so that nothing is answered before it dies
    futures = asked(server, 3)
    os.kill(server.pid, signal.SIGKILL)
    for number, future in enumerate(futures):
        with pytest.raises(ToolFailed, match="killed from outside") as caught:
            future.result(10)
        assert caught.value.path == Path(f"/in/{number}.czi") and caught.value.remedy
    assert soon(lambda: not server.alive)
    following = bfclient.server(load())
    assert following.pid != server.pid
    assert following.ask("probe", sample_czi, file=str(sample_czi)).result["format"] == "Zeiss CZI"


@pytest.mark.usefixtures("own")
def test_a_native_crash_is_told_as_one() -> None:
    server = bfclient.server(load())
    server.ask("hello")
    os.kill(server.pid, signal.SIGSTOP)
    futures = asked(server, 1)
    os.kill(server.pid, signal.SIGABRT)
    os.kill(server.pid, signal.SIGCONT)
    with pytest.raises(ToolFailed, match="crashed") as caught:
        futures[0].result(20)
    assert "Copy the file again" in str(caught.value)


def test_a_hang_is_ended(own: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    server = bfclient.server(load())
    server.ask("hello")
    monkeypatch.setattr(bfclient, "STALL_S", 0.5)
    monkeypatch.setattr(bfclient, "START_S", 0.5)
    os.kill(server.pid, signal.SIGSTOP)
    started = time.monotonic()
    for future in asked(server, 2):
        with pytest.raises(ToolFailed, match="gave no answer and was stopped"):
            future.result(60)
    assert time.monotonic() - started < 60
    assert gone(server.pid) and not server.alive and leftovers(own) == []


def test_dropping_a_series_frees_its_readers_at_once(sample_czi: Path) -> None:
    """A box that takes long must not hold Ctrl-C up; the child lives on, for the others."""
    server = bfclient.server(load())
    handle, _ = server.open(sample_czi, 0)
    os.kill(server.pid, signal.SIGSTOP)
    try:
        future = asked(server, 1, handle=handle)[0]
        server.drop(handle)
        with pytest.raises(ToolFailed, match="closed while it was read"):
            future.result(60)  # the child, stopped, would answer after STALL_S only
    finally:
        os.kill(server.pid, signal.SIGCONT)
    assert server.ask("hello").result and not server.busy


def test_closing_under_way_neither_crashes_the_child_nor_loses_an_answer(sample_czi: Path) -> None:
    server = bfclient.server(load(), 4)
    for _ in range(5):
        handle, _ = server.open(sample_czi, 0)
        shared = SharedBlock(server, handle, slots=4, slot_bytes=1024 * 1024 * 3)
        with ThreadPoolExecutor(4) as pool:
            futures = [pool.submit(read, server, handle, (0, 0, 1024, 1024), shared) for _ in range(4)]
            time.sleep(0.02)
            server.drop(handle)
            for future in futures:
                error = future.exception(20)
                assert error is None or isinstance(error, ToolFailed)
        shared.close()
    assert server.alive and server.ask("hello").result


def test_out_of_memory(own: Path) -> None:
    path = own / "large.tif"
    tifffile.imwrite(path, np.zeros((7000, 7000, 3), np.uint8), photometric="rgb", tile=(512, 512), compression="zlib")
    server = bfclient.server(replace(load(), heap_mb=64))
    handle, _ = server.open(path, 0)
    with pytest.raises(ToolFailed, match="ran out of memory") as caught:
        server.ask("read", path, handle=handle, plane=(0, 0, 0), level=0, box=[0, 0, 7000, 7000], offset=0, room=0)
    assert "MIMIC_HEAP_MB" in str(caught.value) and caught.value.exit_code == 6
    assert soon(lambda: not server.alive)


def test_the_child_ends_with_its_parent(tmp_path: Path) -> None:
    """kill -9, so that nothing of ours can clean up: the child does, its own folder too."""
    script = (
        "import time\nfrom mimic.programs import bfclient\nfrom mimic.settings import load\n"
        "server = bfclient.server(load())\nserver.ask('hello')\nprint(server.pid, flush=True)\ntime.sleep(60)"
    )
    environment = jvm.environment(load(), tmp_path)
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, env=environment) as process:
        assert process.stdout is not None
        pid = int(process.stdout.readline())
        assert not gone(pid) and leftovers(tmp_path)
        process.kill()
    assert soon(lambda: gone(pid))
    assert soon(lambda: not leftovers(tmp_path))


def test_the_child_ends_with_a_process_that_forgot_it(tmp_path: Path) -> None:
    script = (
        "from mimic.programs import bfclient\nfrom mimic.settings import load\n"
        "server = bfclient.server(load())\nserver.ask('hello')\nprint(server.pid, flush=True)"
    )
    environment = jvm.environment(load(), tmp_path)
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, timeout=120, check=True)
    assert gone(int(done.stdout)) and leftovers(tmp_path) == [] and done.stderr == b""


@pytest.mark.parametrize(
    ("code", "kind", "words"),
    [
        ("import sys; sys.stdin.readline(); print('{\"id\": 1, \"resu', end='')", ToolFailed, "ended (0)"),
        ("import sys; sys.stderr.write('first\\nlast words\\n'); sys.exit(1)", ToolFailed, "last words"),
        ("import sys; sys.exit('java.lang.OutOfMemoryError: Java heap space')", ToolFailed, "MIMIC_HEAP_MB"),
        ("import sys; sys.exit(3)", ToolFailed, "ran out of memory"),
        ("import os; os.abort()", ToolFailed, "crashed (-6)"),
        ("import os; os._exit(10)", ToolMissing, "MIMIC_JAVA"),
        ("import os; os._exit(11)", ToolMissing, "MIMIC_BIOFORMATS"),
    ],
)
@pytest.mark.usefixtures("own")
def test_every_end_has_its_message(
    monkeypatch: pytest.MonkeyPatch, code: str, kind: type[MimicError], words: str
) -> None:
    monkeypatch.setattr(Server, "_argv", fake(code))
    with pytest.raises(kind) as caught:
        bfclient.server(load()).ask("hello", Path("/in/a.czi"))
    assert words in str(caught.value) and "Traceback" not in str(caught.value)


@pytest.mark.usefixtures("own")
def test_a_child_that_died_before_it_was_asked_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Server, "_argv", fake("import os; os._exit(10)"))
    server = bfclient.server(load())
    assert soon(lambda: not server.alive)
    with pytest.raises(ToolMissing, match="Java does not start"):
        server._reader.join(10)
        server.ask("hello", Path("/in/a.czi"))


def test_exit_codes_are_the_childs() -> None:
    from mimic.programs import bfserver

    assert (bfclient.NO_JAVA, bfclient.NO_BIOFORMATS) == (bfserver.NO_JAVA, bfserver.NO_BIOFORMATS)


# Other Javas, other jars


@pytest.mark.usefixtures("own")
def test_the_systems_java() -> None:
    java = Path(program("java"))
    hello = bfclient.server(replace(load(), java=java)).ask("hello").result
    assert hello["bioformats"] == "7.3.1"
    assert hello["java"] == jvm.java_version(java) or hello["java"].startswith(str(jvm.java_version(java)))


def test_a_jar_of_the_users_own(own: Path) -> None:
    folder = own / "bftools"
    folder.mkdir()
    (folder / jvm.JAR).symlink_to(jvm.find_bioformats(load()))
    assert bfclient.server(replace(load(), bioformats=folder)).ask("hello").result["bioformats"] == "7.3.1"


@pytest.mark.parametrize("kind", ["text", "zip"])
def test_a_jar_without_bio_formats(own: Path, kind: str) -> None:
    jar = own / "other.jar"
    if kind == "zip":
        with zipfile.ZipFile(jar, "w") as archive:
            archive.writestr("a.txt", "a")
    else:
        jar.write_text("no jar")
    with pytest.raises(ToolMissing, match="no Bio-Formats") as caught:
        bfclient.server(replace(load(), bioformats=jar)).ask("hello")
    assert caught.value.exit_code == 5 and "MIMIC_BIOFORMATS" in str(caught.value)


def test_a_java_that_does_not_start(own: Path) -> None:
    home = own / "jdk"
    (home / "bin").mkdir(parents=True)
    (home / "bin" / "java").write_text("")
    (home / "lib" / "server").mkdir(parents=True)
    (home / "lib" / "server" / "libjvm.so").write_text("no library")
    with pytest.raises(ToolMissing, match="Java does not start") as caught:
        bfclient.server(replace(load(), java=home)).ask("hello")
    assert caught.value.exit_code == 5 and "MIMIC_JAVA" in str(caught.value)


@pytest.mark.parametrize("name", ["java", "bioformats"])
def test_nothing_where_a_variable_points(own: Path, name: str) -> None:
    wrong = {name: own / "nowhere"}
    with pytest.raises(ToolMissing, match="nowhere") as caught:
        bfclient.server(replace(load(), **wrong))  # type: ignore[arg-type]
    assert caught.value.exit_code == 5 and leftovers(own) == []


@pytest.mark.usefixtures("own")
def test_a_heap_too_small_for_any_java() -> None:
    with pytest.raises(ToolFailed, match="heap"):
        bfclient.server(replace(load(), heap_mb=1)).ask("hello")


# What is not a microscope's format


def test_formats_that_invent_pictures_are_refused(tmp_path: Path, sample_czi: Path) -> None:
    """A 0-byte .fake is a picture of any size; .pattern reads any file; text holds anything."""
    (tmp_path / "b&sizeX=200000&sizeY=200000.fake").touch()
    (tmp_path / "a.fake").write_text("sizeX=100\n")
    (tmp_path / "secret.tif").write_bytes(b"")
    (tmp_path / "a.pattern").write_text(str(sample_czi))
    (tmp_path / "a.txt").write_text("x,y,value\n" + "".join(f"{n},{n},1\n" for n in range(50)))
    (tmp_path / "a.csv").write_text("x,y,value\n" + "".join(f"{n},{n},1\n" for n in range(50)))
    (tmp_path / "page.url").write_text("http://127.0.0.1:1/a.tif")
    server = bfclient.server(load())
    for path in sorted(tmp_path.iterdir()):
        if path.name == "secret.tif":
            continue
        with pytest.raises(Unsupported):
            server.ask("probe", path, file=str(path))


# Shared memory


def test_memory_elsewhere_when_there_is_no_shm(own: Path, monkeypatch: pytest.MonkeyPatch, sample_czi: Path) -> None:
    monkeypatch.setattr(shm, "SHM", own / "absent")
    server = bfclient.server(load())
    handle, _ = server.open(sample_czi, 0)
    shared = SharedBlock(server, handle, slots=1, slot_bytes=64 * 64 * 3)
    assert any(read(server, handle, (1000, 1000, 64, 64), shared))
    shared.close()


@pytest.mark.skipif(not hasattr(os, "posix_fallocate"), reason="no way to reserve on this system")
@pytest.mark.parametrize("full", [1, 2])
def test_memory_elsewhere_when_shm_is_full(own: Path, monkeypatch: pytest.MonkeyPatch, full: int) -> None:
    """As in a container with its 64 MB of /dev/shm. Where nothing is left at all, nothing is left behind either."""
    left = [full]

    def reserve(descriptor: int, offset: int, size: int) -> None:
        left[0] -= 1
        if left[0] >= 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        plain(descriptor, offset, size)

    plain = os.posix_fallocate
    monkeypatch.setattr(os, "posix_fallocate", reserve)
    if full == 2:
        with pytest.raises(ToolFailed, match="1 MiB of shared memory") as caught:
            shm.reserve(1 << 20)
        assert caught.value.remedy
        return
    path, descriptor = shm.reserve(1 << 20)
    assert path.parent == own and path.stat().st_size == 1 << 20
    os.close(descriptor)
    path.unlink()
