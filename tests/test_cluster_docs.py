"""The scripts in docs for clusters: run where their programs are, with the real command."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.command import PATIENCE_S, ROOT, environment, picture
from tests.conftest import SAMPLE_CZI, program

DOCS = ROOT / "docs"


@pytest.fixture
def command(tmp_path: Path) -> dict[str, str]:
    """An environment in which ``mimic`` is this tree's."""
    (tmp_path / "bin").mkdir()
    script = tmp_path / "bin" / "mimic"
    script.write_text(f'#!/bin/sh\nexec {sys.executable} -m mimic "$@"\n', encoding="utf-8")
    script.chmod(0o755)
    here = os.pathsep.join((str(script.parent), str(Path(sys.executable).parent), os.environ["PATH"]))
    return environment(tmp_path / "tmp", PATH=here)


@pytest.mark.skipif(sys.platform == "win32", reason="a shell script")
@pytest.mark.parametrize("first", [0, 1])
def test_slurm_array(first: int, command: dict[str, str], tmp_path: Path) -> None:
    """As Slurm starts it, task by task: the parts cover all slides, and a second run of a task does nothing."""
    lines = ["input,mpp", *(f"{picture(tmp_path / f'p{number}.png').name},0.5" for number in range(3))]
    (tmp_path / "slides.csv").write_text("\n".join(lines), encoding="utf-8")
    made: list[set[str]] = []
    for task in (first, first + 1, first):
        slurm = {"SLURM_ARRAY_TASK_ID": str(task), "SLURM_ARRAY_TASK_MIN": str(first), "SLURM_ARRAY_TASK_COUNT": "2"}
        done = subprocess.run(
            ["sh", DOCS / "slurm.sh", tmp_path / "slides.csv", "out"],
            env=command | slurm | {"SLURM_CPUS_PER_TASK": "1"},
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=PATIENCE_S,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        made.append({path.name for path in (tmp_path / "out").glob("*.svs")})
    assert made == [{"p0.svs", "p2.svs"}, {"p0.svs", "p1.svs", "p2.svs"}, {"p0.svs", "p1.svs", "p2.svs"}]
    assert "2 skipped" in done.stdout
    assert len(list((tmp_path / "out" / "reports").iterdir())) == 3


def test_snakemake_rule(command: dict[str, str], tmp_path: Path) -> None:
    """On the slide that ships with mimic; a second run finds nothing to do."""
    snakemake = shutil.which("snakemake", path=command["PATH"]) or program("snakemake")
    (tmp_path / "slides").mkdir()
    shutil.copy(SAMPLE_CZI, tmp_path / "slides")
    words = [snakemake, "--snakefile", DOCS / "Snakefile", "--cores", "2", "--config", "slides=slides", "output=out"]
    said = []
    for _ in range(2):
        done = subprocess.run(
            [*words, "options=--appmag 40"],
            env=command | {"HOME": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path / "cache")},
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=PATIENCE_S,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        said.append(done.stdout + done.stderr)
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"sample_40x.svs", "sample_40x.json"}
    assert "Nothing to be done" in said[1]


def test_nextflow_says_that_it_was_not_run() -> None:
    text = (DOCS / "nextflow" / "main.nf").read_text(encoding="utf-8")
    assert "never run" in text and "mimic convert" in text
