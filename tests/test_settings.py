"""settings: what the environment says, and nothing else reads it."""

from __future__ import annotations

import ast
import os
import pickle
from pathlib import Path

import pytest

import mimic
from mimic import settings

VARIABLES = ("MIMIC_JAVA", "MIMIC_BIOFORMATS", "MIMIC_BIOFORMATS2RAW", "MIMIC_SCRATCH", "MIMIC_HEAP_MB")


@pytest.fixture(autouse=True)
def _clean(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)


def test_nothing_set() -> None:
    found = settings.load()
    assert (found.java, found.bioformats, found.scratch, found.heap_mb) == (None, None, None, None)
    assert found.path == os.environ["PATH"]


def test_everything_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MIMIC_JAVA", "/opt/java")
    monkeypatch.setenv("MIMIC_BIOFORMATS", "~/bftools")
    monkeypatch.setenv("MIMIC_SCRATCH", "/mnt/big disk")
    monkeypatch.setenv("MIMIC_HEAP_MB", "2000")
    found = settings.load()
    assert (found.java, found.scratch, found.heap_mb) == (Path("/opt/java"), Path("/mnt/big disk"), 2000)
    assert found.bioformats == Path.home() / "bftools"


def test_an_empty_variable_is_not_set(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in VARIABLES:
        monkeypatch.setenv(name, "")
    assert settings.load() == settings.Settings(path=os.environ["PATH"], system_root=os.environ.get("SYSTEMROOT"))


@pytest.mark.parametrize("text", ["0", "-5", "2g", "1.5", "much", " "])
def test_a_heap_that_is_no_number_is_not_used(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setenv("MIMIC_HEAP_MB", text)
    assert settings.load().heap_mb is None


def test_no_path_at_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PATH")
    assert settings.load().path == os.defpath


def test_settings_travel_between_processes_and_compare_by_value() -> None:
    found = settings.Settings(java=Path("/opt/java"), heap_mb=1)
    assert pickle.loads(pickle.dumps(found)) == found
    assert found != settings.Settings(java=Path("/opt/java"))


def test_nobody_else_reads_the_environment() -> None:
    folder = Path(mimic.__file__).parent
    for path in folder.rglob("*.py"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        names = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
        if path.name != "settings.py":
            assert not names & {"environ", "environb", "getenv", "putenv"}, path
