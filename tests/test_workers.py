"""pool and worker: slides beside each other; a crash or a hang costs one slide, tried again alone; nothing is left."""

from __future__ import annotations

import logging
import os
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from random import Random

import psutil
import pytest

from mimic import executors, pool, settings
from mimic.convert import convert
from mimic.model import Options, Progress, Report, Request
from tests.command import files, picture
from tests.conftest import SAMPLE_CZI

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="signals work otherwise there")

MPP = Options(mpp_um=0.5, threads=1)
SHM = Path("/dev/shm")
PATIENCE_S = 120.0
SHARED_S = 60.0
"""Other conversions on this machine have names there, too, but only for a moment."""


@pytest.fixture(autouse=True)
def temporary(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Fails when a run leaves anything in the temporary folder or in shared memory."""
    folder = tmp_path_factory.mktemp("temporary")
    monkeypatch.setattr("tempfile.tempdir", str(folder))
    shared = set(SHM.glob("mimic-*"))
    yield folder
    assert files(folder) == {}
    left = set(SHM.glob("mimic-*")) - shared
    ends = time.monotonic() + SHARED_S
    while any(path.exists() for path in left) and time.monotonic() < ends:
        time.sleep(0.05)
    assert [path for path in left if path.exists()] == []


def pictures(folder: Path, count: int, *, size_px: int = 600) -> list[Request]:
    made = [picture(folder / f"p{number}.png", width_px=size_px, height_px=size_px) for number in range(count)]
    return [Request(path, folder / "out", MPP) for path in made]


def silent(_: Request, __: Progress) -> None:
    pass


def done(
    requests: Sequence[Request], *, jobs: int, watch: executors.Watch = silent, **more: float
) -> dict[str, Report]:
    workers = pool.Pool(settings.load(), watch, jobs=jobs, **more)  # type: ignore[arg-type]
    return {request.input.name: report for request, report in workers.run(requests)}


class Killer:
    """A watcher that kills the worker of a slide in a stage, as often as it is told to."""

    def __init__(self, workers: Callable[[], pool.Pool], name: str, *, stage: str, times: int, number: int) -> None:
        self._workers, self._name, self._stage = workers, name, stage
        self.times, self._number = times, number
        self.beside: list[int] = []

    def __call__(self, request: Request, step: Progress) -> None:
        if self.times and request.input.name == self._name and step.stage == self._stage:
            self.times -= 1
            running = self._workers().pids
            self.beside.append(len(running))
            task = next(each for each in self._workers()._running if each.request.input == request.input)
            assert task.worker is not None
            os.kill(task.worker.pid, self._number)


def killed(
    requests: Sequence[Request], name: str, *, stage: str = "convert", times: int = 1, number: int = signal.SIGKILL
) -> tuple[dict[str, Report], Killer]:
    killer = Killer(lambda: workers, name, stage=stage, times=times, number=number)
    workers = pool.Pool(settings.load(), killer, jobs=2)
    reports = {request.input.name: report for request, report in workers.run(requests)}
    assert killer.times == 0
    return reports, killer


def test_the_same_as_in_one_process(tmp_path: Path) -> None:
    requests = pictures(tmp_path, 5)
    one = {each.input.name: report for each, report in executors.run(requests, settings.load(), silent)}
    first = {name: data for name, data in files(tmp_path / "out").items() if name.endswith(b".svs")}
    again = [replace(each, options=replace(MPP, overwrite=True)) for each in requests]
    steps: list[tuple[str, str]] = []
    two = done(again, jobs=2, watch=lambda request, step: steps.append((request.input.name, step.stage)))
    assert files(tmp_path / "out") == first, "byte for byte, and nothing else"
    assert [each.status for each in two.values()] == ["converted"] * 5
    assert two["p3.png"].input_sha256 == one["p3.png"].input_sha256
    assert {name for name, stage in steps if stage == "convert"} == set(two)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV])
def test_a_crash_costs_nothing_but_time(number: int, tmp_path: Path) -> None:
    reports, _ = killed(pictures(tmp_path, 4, size_px=1600), "p1.png", number=number)
    assert [each.status for each in reports.values()] == ["converted"] * 4
    assert list(reports)[-1] == "p1.png", "after all others, alone"
    assert pool.SECOND in reports["p1.png"].warnings and pool.SECOND not in reports["p0.png"].warnings
    assert set(files(tmp_path / "out")) == {f"p{number}.svs".encode() for number in range(4)}


def test_a_crash_with_a_jvm(tmp_path: Path) -> None:
    """The JVM is a process group of its own, and its worker cannot end it any more."""
    requests = [Request(SAMPLE_CZI, tmp_path / "out" / "deep" / f"{name}.svs", Options(threads=1)) for name in "ab"]
    before = {each.pid for each in psutil.Process().children(recursive=True)}
    jvms: list[psutil.Process] = []

    def watch(_: Request, step: Progress) -> None:
        if step.stage == "convert" and not jvms:
            task = workers._running[0]
            assert task.worker is not None
            jvms.extend(psutil.Process(task.worker.pid).children(recursive=True))
            os.kill(task.worker.pid, signal.SIGKILL)
        elif jvms and step.stage == pool.WAITING:
            alive = [each for each in jvms if each.is_running() and each.status() != psutil.STATUS_ZOMBIE]
            assert alive == [] and not (tmp_path / "out").exists()

    workers = pool.Pool(settings.load(), watch, jobs=1)
    reports = [report for _, report in workers.run(requests[:1])]
    assert [each.status for each in reports] == ["converted"] and jvms
    assert set(files(tmp_path / "out")) == {b"deep/", b"deep/a.svs"}
    _, alive = psutil.wait_procs(
        [each for each in psutil.Process().children(recursive=True) if each.pid not in before], timeout=PATIENCE_S
    )
    assert alive == []


def test_a_second_crash_is_a_failure(tmp_path: Path) -> None:
    reports, killer = killed(pictures(tmp_path, 3, size_px=1600), "p0.png", times=2)
    assert killer.beside[1] == 1, "the second try is alone"
    assert [reports[f"p{number}.png"].status for number in range(3)] == ["failed", "converted", "converted"]
    failure = reports["p0.png"]
    assert failure.exit_code == 6 and "was killed by signal 9, twice" in (failure.error or "")
    assert set(files(tmp_path / "out")) == {b"p1.svs", b"p2.svs"}


def test_a_hang(tmp_path: Path) -> None:
    """A stopped process tells nothing any more; the first try hangs, the second does not."""
    requests = pictures(tmp_path, 2, size_px=1600)
    stopped: list[str] = []

    def watch(request: Request, step: Progress) -> None:
        if not stopped and step.stage == "convert":
            stopped.append(request.input.name)
            task = next(each for each in workers._running if each.request.input == request.input)
            assert task.worker is not None
            os.kill(task.worker.pid, signal.SIGSTOP)

    workers = pool.Pool(settings.load(), watch, jobs=2, stall_s=3.0)
    reports = {request.input.name: report for request, report in workers.run(requests)}
    assert [each.status for each in reports.values()] == ["converted"] * 2
    assert pool.SECOND in reports[stopped[0]].warnings


def test_a_hang_beyond_the_deadline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool, "LATE_S", 0.5)
    (request,) = pictures(tmp_path, 1, size_px=1600)
    stopped: list[int] = []

    def watch(_: Request, step: Progress) -> None:
        if not stopped and step.stage == "convert":
            stopped.extend(workers.pids)
            os.kill(stopped[0], signal.SIGSTOP)

    workers = pool.Pool(settings.load(), watch, jobs=1)
    options = replace(MPP, deadline_s=2.0)
    ((_, report),) = workers.run([replace(request, options=options)])
    assert stopped and report.exit_code == 9 and "not done within 2 s" in (report.error or "")
    assert files(tmp_path).keys() == {b"p0.png"}


def test_killed_at_random(tmp_path: Path, pytestconfig: pytest.Config) -> None:
    """None is lost. ``--kills 20`` for more."""
    count = int(pytestconfig.getoption("--kills"))
    random = Random(4)
    requests = pictures(tmp_path, 8 + 4 * count)
    struck: list[str] = []
    workers = pool.Pool(settings.load(), silent, jobs=2)
    reports: dict[str, Report] = {}
    for request, report in workers.run(requests):
        reports[request.input.name] = report
        victims = [task for task in workers._running if task.worker is not None and not task.again]
        if victims and len(struck) < count and len(reports) >= 3 * (len(struck) + 1):
            time.sleep(random.uniform(0.0, 0.12))
            victim = random.choice(victims)
            assert victim.worker is not None
            struck.append(victim.request.input.name)
            os.kill(victim.worker.pid, signal.SIGKILL)
    assert len(struck) == count
    assert {each.status for each in reports.values()} == {"converted"} and len(reports) == len(requests)
    assert set(files(tmp_path / "out")) == {request.input.stem.encode() + b".svs" for request in requests}


def test_killed_between_the_name_and_the_report(tmp_path: Path) -> None:
    """What a dead worker has published is its own work: the second try may replace it. Nothing else may."""
    (request,) = pictures(tmp_path, 1, size_px=1600)

    def watch(_: Request, step: Progress) -> None:
        worker = workers._running[0].worker if workers._running else None
        if step.stage == "check" and worker is not None and not (tmp_path / "out" / "p0.svs").exists():
            (tmp_path / "out" / "p0.svs").write_bytes(b"published")
            worker._left.add(("output", str(tmp_path / "out" / "p0.svs")))
            os.kill(worker.pid, signal.SIGKILL)

    workers = pool.Pool(settings.load(), watch, jobs=1)
    ((_, report),) = workers.run([request])
    assert report.status == "converted" and (tmp_path / "out" / "p0.svs").stat().st_size > 1000


def test_workers_are_recycled(tmp_path: Path) -> None:
    pids: set[int] = set()
    workers = pool.Pool(settings.load(), lambda *_: pids.update(workers.pids), jobs=1, max_slides=2)
    assert len([*workers.run(pictures(tmp_path, 5))]) == 5
    assert len(pids) == 3


def test_a_caller_that_stops_listening(tmp_path: Path) -> None:
    """As Ctrl-C does it: everything ends, nothing is left."""
    requests = pictures(tmp_path, 3, size_px=2500)
    workers = pool.Pool(settings.load(), silent, jobs=2)
    with closing(workers.run(requests)) as reports:
        next(reports)
        pids = workers.pids
    assert pids and not any(psutil.pid_exists(pid) for pid in pids)
    left = {name for name in files(tmp_path) if not name.startswith(b"p")}
    assert len(left) <= 3 and all(name.endswith((b".svs", b"out/")) for name in left)


def test_a_worker_whose_supervisor_dies(tmp_path: Path) -> None:
    """Its stdin ends: it tidies up, as it does when it is asked to stop."""
    (request,) = pictures(tmp_path, 1, size_px=2500)
    worker = stopped_at_work(request)
    worker.retire()
    psutil.Process(worker.pid).resume()
    assert worker.wait(PATIENCE_S)
    assert files(tmp_path).keys() == {b"p0.png"}
    worker.clean_up()


def stopped_at_work(request: Request) -> pool.Worker:
    """A worker whose process was stopped while it was writing the slide; another one, where it was quicker than us."""
    assert request.output is not None
    for _ in range(20):
        worker = pool.Worker(settings.load(), pool.SimpleQueue())
        worker.convert(request)
        worker.send("answer", None)
        ends = time.monotonic() + PATIENCE_S
        while not request.output.exists() and time.monotonic() < ends:
            time.sleep(0.002)
        psutil.Process(worker.pid).suspend()
        if not [*request.output.glob("*.svs")]:
            return worker
        worker.clean_up()
        shutil.rmtree(request.output)
    raise AssertionError("no worker was stopped in time")


def companion(request: Request, files_: Sequence[Path], outputs: Sequence[Path]) -> pool.Task:
    task = pool.Task(0, request, None, again=False)
    task.asked = frozenset(files_), frozenset(outputs)
    return task


def test_claims_keep_the_order(tmp_path: Path) -> None:
    """A companion waits until the slide before it has told what it reads, and is left alone when that is converted; a
    second slide with the same output waits, too."""
    first, second = Request(tmp_path / "a.x"), Request(tmp_path / "a.y")
    one, two = pool.Task(0, first, None, again=False), companion(second, [second.input], [tmp_path / "a.svs"])
    two.index = 1
    workers = pool.Pool(settings.load(), silent, jobs=2)
    workers._requests, workers._running = [first, second], [one, two]
    workers._judge()
    assert two.holds is None, "the first has told nothing yet"
    one.asked = frozenset((first.input, second.input)), frozenset((tmp_path / "b.svs",))
    workers._judge()
    assert one.holds is not None and two.holds is None, "its input is being read"
    one.asked = Report(1, "converted", first.input, input_sha256={str(first.input): "", str(second.input): ""})
    workers._judge()
    assert two.holds == (frozenset(), frozenset()), "told to leave it"
    two.asked = executors.left_alone(second.input, "belongs to a.x")
    workers._judge()
    assert [report.status for _, report in workers._done] == ["converted", "skipped"]


def test_failed_before_its_turn(tmp_path: Path) -> None:
    """A companion that cannot be read alone is no failure when it belongs to a slide before it."""
    first, second = Request(tmp_path / "a.x"), Request(tmp_path / "a.y")
    one, two = pool.Task(0, first, None, again=False), pool.Task(1, second, None, again=False)
    two.asked = Report(1, "failed", second.input, exit_code=3)
    workers = pool.Pool(settings.load(), silent, jobs=2)
    workers._requests, workers._running = [first, second], [one, two]
    workers._judge()
    assert workers._done == []
    one.asked = frozenset((first.input, second.input)), frozenset()
    workers._judge()
    one.asked = Report(1, "converted", first.input, input_sha256={str(first.input): "", str(second.input): ""})
    workers._judge()
    assert [report.status for _, report in workers._done] == ["converted", "skipped"]


def test_same_output_twice(tmp_path: Path) -> None:
    requests = [replace(each, output=tmp_path / "x.svs") for each in pictures(tmp_path, 2)]
    reports = done([replace(each, options=replace(MPP, overwrite=True)) for each in requests], jobs=2)
    assert [reports[name].status for name in ("p0.png", "p1.png")] == ["converted", "failed"]
    assert "was made from p0.png in this run" in (reports["p1.png"].error or "")


def test_log_lines_arrive(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    bad = tmp_path / "Jane-Doe.png"
    bad.write_bytes(b"\x89PNG\r\n\x1a\n" + b"rubbish")
    named = Request(bad, tmp_path, MPP)
    with caplog.at_level(logging.DEBUG, logger="mimic"):
        done([named], jobs=1)
    assert "Jane-Doe" in caplog.text
    caplog.clear()
    with caplog.at_level(logging.DEBUG, logger="mimic"):
        reports = done([replace(named, options=replace(MPP, deidentify=True))], jobs=1)
    assert caplog.records and "Jane-Doe" not in caplog.text
    assert "Jane-Doe" not in str(*[report.error for report in reports.values()])


def test_one_slide_is_one_task(tmp_path: Path) -> None:
    """What a queue or a cluster calls needs nothing but what can be pickled."""
    import pickle

    (request,) = pictures(tmp_path, 1)
    task, arguments = pickle.loads(pickle.dumps((executors.run_one, (request, settings.load()))))
    report = pickle.loads(pickle.dumps(task(*arguments)))
    assert report.status == "converted"
    assert convert(replace(request, output=tmp_path / "y.svs"), settings.load()).results[0].written.sha256 != ""
