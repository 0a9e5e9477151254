"""run: the one door to programs. Real processes: a deadline, Ctrl-C and a crash leave none of them behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from mimic.errors import LimitReached, ToolMissing
from mimic.programs import run as run_module
from mimic.programs.run import Completed, Tail, kill, run, spawn

ENV = {"PATH": os.defpath, "LC_ALL": "C.UTF-8"}
FAMILY = """
import os, signal, subprocess, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
child = subprocess.Popen([sys.executable, "-c", "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); "
                          "print('ready', flush=True); time.sleep(60)"])
print(child.pid, flush=True)
time.sleep(float(sys.argv[1]))
"""
"""A program with a grandchild that inherits its pipes; both are deaf to SIGTERM."""


def python(code: str, *words: str, **options: object) -> Completed:
    options = {"env": ENV, "cwd": Path.cwd(), "deadline_s": 30.0, **options}
    return run([sys.executable, "-c", code, *words], **options)  # type: ignore[arg-type]


def gone(pid: int) -> bool:
    try:
        return bool(psutil.Process(pid).status() == psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return True


def soon(told: Callable[[], bool], *, within_s: float = 60.0) -> bool:
    end = time.monotonic() + within_s
    while not told() and time.monotonic() < end:
        time.sleep(0.02)
    return told()


def test_what_a_program_says_and_how_it_ends(tmp_path: Path) -> None:
    code = "import os, sys; print(os.getcwd()); print('wé', file=sys.stderr); print(sorted(os.environ)); sys.exit(3)"
    done = python(code, cwd=tmp_path)
    assert done.returncode == 3
    assert done.stdout.splitlines() == [str(tmp_path), str(sorted(ENV))]
    assert done.stderr == "wé"
    assert done.argv[0] == sys.executable and 0 < done.seconds_s < 30


def test_a_program_that_is_not_there() -> None:
    with pytest.raises(ToolMissing, match="no-such-program") as caught:
        run(["/nowhere/no-such-program"], env=ENV, cwd=Path.cwd())
    assert caught.value.remedy and caught.value.exit_code == 5


def test_a_file_that_is_no_program(tmp_path: Path) -> None:
    plain = tmp_path / "plain"
    plain.write_text("nothing")
    with pytest.raises(ToolMissing, match="cannot be started: Permission denied"):
        run([plain], env=ENV, cwd=tmp_path)


def test_a_deadline_kills_the_whole_family() -> None:
    seen: list[str] = []
    started = time.monotonic()
    with pytest.raises(LimitReached, match="did not end within 1 s") as caught:
        python(FAMILY, "60", deadline_s=1.0, watch=seen.append)
    assert caught.value.remedy and caught.value.exit_code == 9
    assert time.monotonic() - started < 40
    pid = next(int(line) for line in seen if line.isdecimal())
    assert "ready" in seen
    assert soon(lambda: gone(pid))


def test_a_grandchild_does_not_outlive_its_parent() -> None:
    """A wrapper script that ends, or dies, must not leave its java behind, nor keep us waiting for its pipe."""
    started = time.monotonic()
    done = python(FAMILY, "0.5")
    assert done.returncode == 0 and time.monotonic() - started < 40
    pid = next(int(line) for line in done.stdout.splitlines() if line.isdecimal())
    assert soon(lambda: gone(pid))


def test_an_interrupt_kills_the_group(monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[subprocess.Popen[bytes]] = []

    def interrupted(process: subprocess.Popen[bytes], timeout: float | None = None) -> int:
        if not started:
            started.append(process)
            time.sleep(0.5)
            raise KeyboardInterrupt
        return plain_wait(process, timeout)

    plain_wait = subprocess.Popen.wait
    monkeypatch.setattr(subprocess.Popen, "wait", interrupted)
    with pytest.raises(KeyboardInterrupt):
        python("import time; time.sleep(60)")
    assert gone(started[0].pid)


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")
def test_an_interrupt_while_it_is_being_started(monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[subprocess.Popen[bytes]] = []

    def interrupted(*words: Any, **options: Any) -> subprocess.Popen[bytes]:
        started.append(spawn(*words, **options))
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.3)
        return started[0]

    monkeypatch.setattr(run_module, "spawn", interrupted)
    with pytest.raises(KeyboardInterrupt):
        python("import time; time.sleep(60)")
    assert gone(started[0].pid)
    for pipe in (started[0].stdout, started[0].stderr):
        assert pipe is not None
        pipe.close()


def test_an_interrupt_between_its_pipes(monkeypatch: pytest.MonkeyPatch) -> None:
    streams: list[Any] = []

    def interrupted(stream: Any, **options: Any) -> Tail:
        streams.append(stream)
        if len(streams) == 2:
            raise KeyboardInterrupt
        return Tail(stream, **options)

    monkeypatch.setattr(run_module, "Tail", interrupted)
    with pytest.raises(KeyboardInterrupt):
        python("import time; time.sleep(60)")
    assert streams[0].closed
    streams[1].close()
    assert not psutil.Process().children()


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")
def test_ctrl_c_at_the_terminal_reaches_only_us(tmp_path: Path) -> None:
    """A real SIGINT: the program, in a group of its own, is killed by us and not by the signal."""
    script = (
        "import sys\nfrom pathlib import Path\nfrom mimic.programs.run import run\n"
        "run([sys.executable, '-c', 'import os, time; print(os.getpid(), flush=True); time.sleep(60)'],"
        " env={}, cwd=Path.cwd(), watch=lambda line: print(line, flush=True))"
    )
    environment = {**ENV, "PYTHONPATH": os.pathsep.join(entry for entry in sys.path if entry)}
    with subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment, cwd=tmp_path
    ) as process:
        assert process.stdout is not None
        pid = int(process.stdout.readline())
        process.send_signal(signal.SIGINT)
        _, stderr = process.communicate(timeout=60)
    assert b"KeyboardInterrupt" in stderr
    assert soon(lambda: gone(pid))


def test_only_the_last_lines_are_kept() -> None:
    code = "import sys\nfor n in range(5000): print('out', n); print('err', n, file=sys.stderr)"
    done = python(code)
    assert done.stdout.splitlines() == [f"out {n}" for n in range(4800, 5000)]
    assert done.stderr.splitlines() == [f"err {n}" for n in range(4800, 5000)]
    assert len(python(code, stdout_lines=10_000).stdout.splitlines()) == 5000


def test_much_output_on_both_streams_does_not_block() -> None:
    done = python("import sys\nfor n in range(300): print('e' * 99_999, file=sys.stderr); print('o' * 99_999)")
    assert done.returncode == 0
    assert len(done.stdout) == len(done.stderr) == 200 * 100_000 - 1


def test_output_without_a_line_end_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_module, "LINE_MAX_BYTES", 1000)
    assert len(python("import sys; sys.stdout.write('x' * 5_000_000)").stdout) == 200 * 1000


def test_a_long_line_comes_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    """showinf writes an OME-XML of many megabytes as one line; a letter of two bytes may lie across two pieces."""
    monkeypatch.setattr(run_module, "LINE_MAX_BYTES", 1001)
    text = "µ" * 20_000
    assert python(f"print('µ' * {len(text)})", stdout_lines=1000).stdout == text


def test_line_ends_of_windows() -> None:
    assert python(r"import os; os.write(1, b'a\r\nb\r\n\r\n')").stdout == "a\nb\n"


def test_bytes_that_are_no_text() -> None:
    assert python(r"import os; os.write(1, b'a\xff\xfeb\n')").stdout == "a��b"


def test_watch_sees_each_line_as_it_comes() -> None:
    seen: list[tuple[float, str]] = []
    code = "import time\nfor n in range(3): print(n, flush=True); time.sleep(0.4)"
    python(code, watch=lambda line: seen.append((time.monotonic(), line)))
    assert [line for _, line in seen] == ["0", "1", "2"]
    assert seen[2][0] - seen[0][0] > 0.5


def test_nothing_is_read_from_our_stdin() -> None:
    assert python("import sys; print(repr(sys.stdin.read()))").stdout == "''"


def test_no_thread_and_no_descriptor_is_left() -> None:
    python("print(1)")
    threads, descriptors = threading.active_count(), psutil.Process().num_fds()
    for _ in range(5):
        python("print(1)")
    assert threading.active_count() == threads and psutil.Process().num_fds() == descriptors


def test_kill_is_safe_on_the_dead(tmp_path: Path) -> None:
    process = spawn([sys.executable, "-c", "pass"], env=ENV, cwd=tmp_path)
    process.wait(60)
    kill(process, grace_s=1.0)
    kill(process)
    assert process.returncode == 0
    assert process.stdout is not None and process.stderr is not None
    for stream in (process.stdout, process.stderr):
        Tail(stream).close()


def test_grace_lets_a_program_clean_up() -> None:
    code = "import signal, sys, time\nsignal.signal(signal.SIGTERM, lambda *_: sys.exit('clean'))"
    code += "\nprint('ready', flush=True); time.sleep(60)"
    process = spawn([sys.executable, "-c", code], env=ENV, cwd=Path.cwd())
    assert process.stdout is not None and process.stderr is not None
    tails = Tail(process.stdout), Tail(process.stderr)
    assert soon(lambda: tails[0].text() == "ready", within_s=60)
    kill(process, grace_s=30.0)
    assert (process.returncode, tails[1].text()) == (1, "clean")
    for tail in tails:
        tail.close()
