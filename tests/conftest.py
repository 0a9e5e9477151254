"""What all tests share: the corpus, the tools, the samples, and a watch over what is left behind."""

from __future__ import annotations

import importlib
import os
import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import NoReturn

import psutil
import pytest
from hypothesis import HealthCheck, settings

from mimic.staging import PREFIX
from tools.make_samples import Sample, make_sample

settings.register_profile("mimic", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("mimic")  # how long an example takes tells how busy the machine is, not whether mimic is right

SAMPLE_CZI = Path(__file__).parent / "data" / "sample_40x.czi"
SAMPLE_SIZE_PX = 1500
GRACE_S = 20.0
"""A child that was told to stop may take this long; a JVM under load needs a second or two."""
HELPERS_OF_PYTHON = ("multiprocessing.resource_tracker", "multiprocessing.forkserver")
"""Live until the interpreter ends, by design."""


@pytest.fixture(autouse=True)
def hear_ctrl_c() -> None:
    """``mimic.cli.main`` ends deaf to it, as does a shell's background job, and children inherit that."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--kills", default="5", help="How many workers tests/test_workers.py kills at random.")


def absent(what: str) -> NoReturn:
    """Something outside mimic is not there: a skip at a desk, a failure where MIMIC_REQUIRE_TOOLS=1 (CI)."""
    if os.environ.get("MIMIC_REQUIRE_TOOLS") == "1":
        pytest.fail(f"{what} is missing, and MIMIC_REQUIRE_TOOLS=1")
    pytest.skip(f"{what} is missing")


def program(name: str) -> str:
    """Absolute path of an external program, or ``absent``."""
    return shutil.which(name) or absent(f"the program {name}")


def module(name: str) -> ModuleType:
    """An imported third-party module, or ``absent`` (OSError: its shared library is not there)."""
    try:
        return importlib.import_module(name)
    except (ImportError, OSError) as error:
        absent(f"the module {name} ({error})")


@pytest.fixture(scope="session")
def require_tool() -> Callable[[str], str]:
    """``require_tool("tiffinfo")`` -> its path; skips at a desk, fails in CI when it is missing."""
    return program


@pytest.fixture(scope="session")
def require_module() -> Callable[[str], ModuleType]:
    """``require_module("slideio")`` -> the module; skips at a desk, fails in CI when it is missing."""
    return module


@pytest.fixture(scope="session")
def corpus() -> Path:
    """The folder of real slides that MIMIC_CORPUS names; skips when it is not set, fails when it is not there."""
    named = os.environ.get("MIMIC_CORPUS")
    if not named:
        pytest.skip("MIMIC_CORPUS is not set")
    folder = Path(named).resolve()
    if not folder.is_dir():
        pytest.fail(f"MIMIC_CORPUS names {folder}, which is no folder")
    return folder


@pytest.fixture(scope="session")
def corpus_file(corpus: Path) -> Callable[[str], Path]:
    """``corpus_file("czi/x.czi")`` -> its path; a missing file is a failure, not a skip."""

    def find(name: str) -> Path:
        path = corpus / name
        if not path.exists():
            pytest.fail(f"the corpus has no {name}")
        return path

    return find


@pytest.fixture(scope="session")
def sample(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Sample]:
    """``sample("czi_raw")`` -> a slide and its truth, written once a session (tools/make_samples.py)."""
    folder = tmp_path_factory.mktemp("samples")
    made: dict[str, Sample] = {}

    def get(name: str) -> Sample:
        if name not in made:
            try:
                made[name] = make_sample(name, folder, size_px=SAMPLE_SIZE_PX)
            except ImportError as error:
                absent(f"a writer of the sample {name} ({error})")
        return made[name]

    return get


@pytest.fixture(scope="session")
def sample_czi() -> Path:
    """The slide that ships with mimic: 3072 x 2304 px, 40x, 0.22 um, label 387 x 463, macro 960 x 323."""
    return SAMPLE_CZI


def children() -> set[psutil.Process]:
    """Living descendants of this process, Python's own helpers aside."""
    found = set()
    for process in psutil.Process().children(recursive=True):
        try:
            helper = any(name in " ".join(process.cmdline()) for name in HELPERS_OF_PYTHON)
            if not helper and process.status() != psutil.STATUS_ZOMBIE:
                found.add(process)
        except psutil.NoSuchProcess:
            continue
    return found


def staging(base: Path) -> set[Path]:
    """Folders of unfinished conversions below ``base``."""
    return set(base.rglob(f"{PREFIX}*"))


@pytest.fixture(scope="module", autouse=True)
def nothing_left_behind(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Fails a test module that leaves a process running or a staging folder on disk."""
    base = tmp_path_factory.getbasetemp()
    running, folders = children(), staging(base)
    yield
    if client := sys.modules.get("mimic.programs.bfclient"):
        client.shutdown()  # one JVM serves the whole process, by design
    _, alive = psutil.wait_procs(children() - running, timeout=GRACE_S)
    left = [f"process {process.pid}: {' '.join(process.cmdline())[:200]}" for process in alive if process.is_running()]
    left += [f"folder {path}" for path in staging(base) - folders]
    if left:
        pytest.fail("left behind: " + "; ".join(left))


@pytest.fixture
def jvm_starts(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """The threads of every child with a JVM that is started from here on."""
    from mimic.programs import bfclient

    bfclient.shutdown()
    found: list[int] = []

    class Counted(bfclient.Server):
        def __init__(self, *args: object, **options: object) -> None:
            super().__init__(*args, **options)  # type: ignore[arg-type]
            found.append(self.threads)

    monkeypatch.setattr(bfclient, "Server", Counted)
    monkeypatch.setattr(bfclient, "_expected", None)
    yield found
    bfclient.shutdown()
