"""What a run has measured: kept as JSON after every input, so that one that was cut off can go on."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from tools.bench.meter import Measured
from tools.bench.quality import Quality
from tools.bench.ratios import Spread, ratios, spread
from tools.bench.rounds import Row

SCHEMA = 2
SAME = ("processor", "cores", "mimic")
"""Facts that must be the same for numbers to stand in one table."""


@dataclass(frozen=True, slots=True)
class Result:
    """All rows of one input. ``also``: mimic alone, on another size than the rest."""

    kind: str
    size: str
    width_px: int
    height_px: int
    bytes: int
    rows: tuple[Row, ...]
    threads: int = 1
    also: bool = False

    def row(self, name: str) -> Row | None:
        """The contender's row, if it has numbers."""
        return next((row for row in self.rows if row.name == name and row.runs), None)

    def any_row(self, name: str) -> Row | None:
        """The contender's row, if it took part."""
        return next((row for row in self.rows if row.name == name), None)

    def ratio(self, name: str, other: str) -> Spread | None:
        """Time of ``name`` over that of ``other``, round by round; None when one of them has no numbers."""
        first, second = self.row(name), self.row(other)
        return None if first is None or second is None else spread(ratios(first.walls_s, second.walls_s))

    def floors_s(self) -> list[float]:
        """Processor time of decoding alone and of encoding alone over the cores that share it, round by round."""
        decode, encode = self.row("decode"), self.row("encode")
        if decode is None or encode is None:
            return []
        rounds = range(min(len(decode.runs), len(encode.runs)))
        return [(decode.cpu_s(at) + encode.cpu_s(at)) / self.threads for at in rounds]

    def at_least(self, name: str) -> float | None:
        """How many times mimic's slowest time ``name`` had when it was given up; None when it was not."""
        given_up, ours = self.any_row(name), self.row("mimic")
        if given_up is None or given_up.gave_up_s is None or ours is None:
            return None
        return given_up.gave_up_s / max(ours.walls_s)


@dataclass
class Run:
    """Everything of one run, or of one that was cut off and went on."""

    about: dict[str, str]
    notes: list[str] = field(default_factory=list)
    results: list[Result] = field(default_factory=list)
    commands: list[Row] = field(default_factory=list)

    def has(self, kind: str, size: str) -> bool:
        """Whether an input has been measured already."""
        return any((each.kind, each.size) == (kind, size) for each in self.results)


def save(path: Path, run: Run) -> None:
    """Write ``run`` as JSON."""
    path.write_text(json.dumps({"schema": SCHEMA} | asdict(run), indent=1) + "\n")


def load(path: Path, about: Mapping[str, str]) -> Run:
    """What ``path`` holds. Raises ValueError when it is of another machine, another mimic or another bench."""
    told = json.loads(path.read_text())
    if told.get("schema") != SCHEMA:
        raise ValueError(f"{path.name} is of another version of the bench")
    if changed := [name for name in SAME if told["about"].get(name) != about.get(name)]:
        raise ValueError(f"{path.name} was measured with another {', '.join(changed)}")
    results = [Result(**{**each, "rows": tuple(_rows(each["rows"]))}) for each in told["results"]]
    return Run(told["about"], told["notes"], results, _rows(told["commands"]))


def _rows(told: Sequence[dict[str, Any]]) -> list[Row]:
    def measured(run: dict[str, Any]) -> Measured:
        return Measured(**{**run, "steps_s": tuple(run["steps_s"])})

    return [
        Row(**{**row, "runs": [measured(run) for run in row["runs"]], "quality": Quality(**row["quality"])})
        for row in told
    ]
