"""Warm-up, then counted rounds in which every contender runs once, each round in another order.

What disturbs the machine for a while then meets everybody, and nobody always runs after the same neighbour. A slow
peer that no goal needs in every round has fewer, and one that does not come to an end is given up; the table says so.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from tools.bench import peers
from tools.bench.inputs import Input, files
from tools.bench.installs import Peer
from tools.bench.meter import LOG, Measured, disk_bytes, run
from tools.bench.peers import Contender, Task
from tools.bench.quality import Quality, judge

CHUNK_BYTES = 1 << 24
Tell = Callable[[str], None]


@dataclass
class Row:
    """One contender on one input. ``inner`` has what each counted run said of itself: scaled limits.

    ``stages`` is what the warm-up said of itself: seconds of mimic's stages.

    ``error`` is why there are no numbers, or why there are no more of them; ``note`` why there are few;
    ``gave_up_s`` after how long it was stopped, None when it was not.
    """

    name: str
    title: str
    converts: bool
    runs: list[Measured] = field(default_factory=list)
    inner: list[dict[str, float]] = field(default_factory=list)
    scratch_bytes: list[int] = field(default_factory=list)
    output_bytes: int | None = None
    quality: Quality = field(default_factory=Quality)
    error: str | None = None
    note: str | None = None
    gave_up_s: float | None = None
    stages: dict[str, float] = field(default_factory=dict)

    @property
    def walls_s(self) -> list[float]:
        return [each.wall_s for each in self.runs]

    @property
    def peak_bytes(self) -> int:
        """The most memory of any run."""
        return max(each.peak_bytes for each in self.runs)

    def cpu_s(self, at: int) -> float:
        """Processor time of a counted run; of encoding alone, scaled up."""
        return self.inner[at].get("encode_cpu_s", self.runs[at].cpu_s) if self.inner else self.runs[at].cpu_s


@dataclass(frozen=True, slots=True)
class Rules:
    """How much is measured: counted ``runs``, cores, and seconds: that any run may take (``deadline_s``), that a run of
    others' converters may (``patience_s``), and that all counted runs of one of those may together where no goal needs
    every round (``slow_s``). None: no limit."""

    runs: int
    threads: int
    deadline_s: float
    patience_s: float | None = None
    slow_s: float | None = None

    def counted(self, contender: Contender, kind: str, warm_s: float) -> int:
        """Rounds that a contender has after a warm-up of ``warm_s``; 0: the warm-up must do."""
        if self.slow_s is None or contender.needs_all(kind):
            return self.runs
        return min(self.runs, int(self.slow_s / max(warm_s, 1e-9)))

    def limit_s(self, contender: Contender, kind: str) -> float:
        """Seconds after which a run is given up."""
        patient = self.patience_s is None or contender.needs_all(kind)
        return self.deadline_s if patient else min(self.deadline_s, self.patience_s or self.deadline_s)


def play(
    made: Input,
    contenders: Sequence[Contender],
    installed: dict[str, Peer],
    rules: Rules,
    *,
    place: Path,
    tell: Tell,
    sample: Path | None = None,
) -> list[Row]:
    """All rounds of one input; ``place`` is a folder for the runs, each of which is removed when it has been seen."""
    rows = {each.name: Row(each.name, each.title, each.converts) for each in contenders}
    for each in contenders:
        rows[each.name].error = _cannot(each, made, installed)
    pythons = {name: peer.python for name, peer in installed.items()}
    rounds = dict.fromkeys(rows, rules.runs)
    for turn in range(rules.runs + 1):
        for each in _order(contenders, turn):
            row = rows[each.name]
            if row.error or turn > rounds[each.name]:
                continue
            task = Task(made, place / f"{made.kind}-{each.name}", rules.threads, pythons, sample)
            took_s = _turn(each, replace(task, warm_up=turn == 0), row, rules)
            if turn == 0 and row.error is None:
                rounds[each.name] = rules.counted(each, made.kind, took_s)
                row.note = _few(rounds[each.name], rules)
            tell(f"{made.kind} round {turn}/{rules.runs} {each.name}: {row.error or f'{took_s:.2f} s'}")
    return list(rows.values())


def _few(rounds: int, rules: Rules) -> str | None:
    if rounds == rules.runs:
        return None
    return f"slow: {rounds} rounds" if rounds else "slow: its first run"


def _order(contenders: Sequence[Contender], turn: int) -> list[Contender]:
    start = turn % len(contenders)
    return [*contenders[start:], *contenders[:start]]


def _cannot(contender: Contender, made: Input, installed: dict[str, Peer]) -> str | None:
    if contender.kinds is not None and made.kind not in contender.kinds:
        return "makes no sense for this input"
    if contender.venv is not None and (error := installed[contender.venv].error):
        return f"cannot be installed: {error}"
    return peers.missing(contender)


def _turn(contender: Contender, task: Task, row: Row, rules: Rules) -> float:
    """One run, and the seconds that it took. The warm-up's output is judged; a warm-up that fails is the contender's
    last run, and one that leaves no time for another counts."""
    shutil.rmtree(task.folder, ignore_errors=True)
    task.output.parent.mkdir(parents=True)
    _warm(task.made.path)
    limit_s = rules.limit_s(contender, task.made.kind)
    measured = run(contender.steps(task), task.folder, deadline_s=limit_s)
    row.error = measured.error or _no_output(contender, task)
    row.gave_up_s = limit_s if measured.gave_up else None
    said = inner(task.folder) if row.error is None else {}
    if task.warm_up:
        row.stages = said
    if row.error is None and (not task.warm_up or rules.counted(contender, task.made.kind, measured.wall_s) == 0):
        row.runs.append(replace(measured, wall_s=said.get("encode_s", measured.wall_s)))
        row.inner.append(said)
        row.scratch_bytes.append(max(0, measured.peak_disk_bytes - disk_bytes(task.output.parent)))
    if row.error is None and task.warm_up and contender.converts:
        row.output_bytes = sum(path.stat().st_size for path in files(task.output))
        row.quality = judge(task.made, task.output)
    shutil.rmtree(task.folder)
    return measured.wall_s


def _no_output(contender: Contender, task: Task) -> str | None:
    if contender.name in ("decode", "encode") or (task.output.exists() and files(task.output)):
        return None
    return "it ended well and wrote nothing"


def _warm(path: Path) -> None:
    """The input in the page cache, and nobody else's output on its way to the disk."""
    if hasattr(os, "sync"):
        os.sync()
    for each in files(path):
        with each.open("rb") as file:
            while file.read(CHUNK_BYTES):
                pass


def inner(folder: Path) -> dict[str, float]:
    """What a run said of itself: mimic's report, or the last line of a limit."""
    report = folder / peers.REPORT
    if report.exists():
        told = json.loads(report.read_text())
        stages = {f"{stage['name']}_s": stage["seconds_s"] for stage in told["results"][0]["stages"]}
        return stages | {"report_s": told["seconds_s"]}
    log = folder / LOG
    last = log.read_text(errors="replace").splitlines()[-1:] if log.exists() else []
    if not last or not last[0].startswith("{"):
        return {}
    return {str(name): float(value) for name, value in json.loads(last[0]).items()}


def commands(named: Mapping[str, Path], rules: Rules, *, place: Path, tell: Tell) -> list[Row]:
    """The small commands, whose processor time is what counts: ``--help``, and ``info`` of each named file."""
    words: dict[str, tuple[str | Path, ...]] = {"mimic --help": ("--help",)}
    words |= {f"mimic info {name}": ("info", path) for name, path in named.items()}
    rows = {name: Row(name, name, converts=False) for name in words}
    for turn in range(rules.runs + 1):
        for name, said in words.items():
            folder = place / "command"
            folder.mkdir(parents=True, exist_ok=True)
            measured = run([peers.mimic_words(*said)], folder, deadline_s=rules.deadline_s)
            rows[name].error = rows[name].error or measured.error
            if turn:
                rows[name].runs.append(measured)
            shutil.rmtree(folder)
        tell(f"commands round {turn}/{rules.runs}")
    return list(rows.values())
