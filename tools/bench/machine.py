"""The facts that belong beside any number: machine, date, and versions of all that took part."""

from __future__ import annotations

import os
import platform
import subprocess
from datetime import UTC, datetime
from pathlib import Path

import psutil

from mimic import __version__, doctor, settings
from tools.bench.inputs import ROOT
from tools.bench.installs import Peer

TOLD = ("Java", "Bio-Formats", "libvips", "pylibCZIrw", "tiffcp")
"""Of what ``mimic doctor`` finds."""


def facts(installed: dict[str, Peer], threads: int) -> dict[str, str]:
    """Name -> value, all texts."""
    told = {
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "processor": processor(),
        "cores": f"{threads} of {psutil.cpu_count(logical=True)}",
        "memory": f"{psutil.virtual_memory().total / 2**30:.0f} GiB",
        "system": f"{platform.system()} {platform.release()}",
        "Python": platform.python_version(),
        "mimic": f"{__version__}{revision()}",
    }
    found = doctor.examine(settings.load())
    tools = {tool.name: tool.version or "missing" for tool in found if tool.name in TOLD}
    peers = {name: peer.version if peer.error is None else "not installed" for name, peer in installed.items()}
    return told | tools | peers


def processor() -> str:
    """The processor's name: /proc/cpuinfo's where there is one."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def revision() -> str:
    """ " at abc1234" when this is a checkout, with a + when it was changed."""
    words = ["git", "-C", str(ROOT), "describe", "--always", "--dirty=+", "--exclude=*"]
    try:
        said = subprocess.run(words, capture_output=True, text=True, check=True, env=os.environ | {"LC_ALL": "C"})
    except (OSError, subprocess.CalledProcessError):
        return ""
    return f" at {said.stdout.strip()}"


def sentence(told: dict[str, str]) -> str:
    """The facts as one sentence for under a table."""
    return "Measured with " + ", ".join(f"{name} {value}" for name, value in told.items()) + "."
