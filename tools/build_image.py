#!/usr/bin/env python3
"""Build mimic's container image with docker, podman or buildah, whichever works here.

    tools/build_image [--tag mimic] [--base-from-debootstrap]

What this machine needs to reach its package mirrors (certificates, pip's index and proxy, and apt's settings where it
is the same Debian) goes into the build as secrets, which no layer keeps. The tools of the finished image are asked for
their versions, and the answer becomes its label ``mimic.tools``.
"""

from __future__ import annotations

import argparse
import ast
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BASE = "debian:bookworm-slim"
SUITE = "bookworm"
ENGINES = ("docker", "podman", "buildah")
TOOLS_LABEL = "mimic.tools"
TOOLS = {
    "mimic": "mimic",
    "Python": "Python",
    "Java": "Java",
    "Bio-Formats": "Bio-Formats",
    "libvips": "libvips",
    "openslide-bin": "OpenSlide",
    "tiffcp": "libtiff",
}
"""What ``mimic doctor`` calls a tool, and what the label does; openslide-bin's version is OpenSlide's and a build."""
PIP_SETTINGS = ("cert", "index-url", "extra-index-url", "proxy", "trusted-host", "timeout", "default-timeout")
PIP_SECTIONS = ("global", ":env:")
"""In pip's own order of precedence."""
SLIM = ("usr/share/man", "usr/share/locale", "usr/share/info", "usr/share/groff")
"""What the slim variant of the base leaves out, beside all documents but licences."""


class BuildError(Exception):
    """The image cannot be built; the message says what to do."""


def main() -> int:
    """Build, label, and say what was built."""
    arguments = _arguments()
    try:
        engine = find_engine()
        with tempfile.TemporaryDirectory(prefix="mimic-image-") as folder:
            provide_base(engine, Path(folder), pull=not arguments.base_from_debootstrap)
            tools = build(engine, arguments.tag, Path(folder))
    except BuildError as error:
        print(f"build_image: {error}", file=sys.stderr)
        return 1
    print(f"{arguments.tag}, built with {engine}: {tools}")
    return 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Build mimic's container image with docker, podman or buildah.")
    parser.add_argument("--tag", default="mimic", help="name of the image")
    parser.add_argument(
        "--base-from-debootstrap",
        action="store_true",
        help=f"do not pull {BASE}: make it with debootstrap (as root) unless it is there",
    )
    return parser.parse_args()


def find_engine() -> str:
    """The first of ENGINES that works: a docker without its daemon is passed over. Raises BuildError."""
    for engine in ENGINES:
        if shutil.which(engine) and _try(engine, "info"):
            return engine
    raise BuildError("none of docker, podman and buildah works here; on Debian and Ubuntu: apt install buildah")


def has_image(engine: str, name: str) -> bool:
    """Whether the engine's own storage holds the image."""
    return _try(
        *([engine, "inspect", "--type", "image"] if engine == "buildah" else [engine, "image", "inspect"]), name
    )


def provide_base(engine: str, folder: Path, *, pull: bool) -> None:
    """See that BASE is in the engine's storage: there already, pulled, or made. Raises BuildError."""
    if has_image(engine, BASE) or (pull and _try(engine, "pull", BASE)):
        return
    if not shutil.which("debootstrap") or os.geteuid() != 0:
        raise BuildError(f"{BASE} cannot be pulled; to make it instead, install debootstrap and run this as root")
    base = folder / "base"
    http_proxy = _apt_option("Acquire::http::Proxy")
    mirror = [uri for _, uri, suite, _ in _apt_sources() if suite == SUITE][:1]
    env = {**os.environ, **({"http_proxy": http_proxy} if http_proxy else {})}
    _run("debootstrap", "--variant=minbase", SUITE, base, *mirror, env=env)
    _slim(base)
    packed = folder / "base.tar"
    _run("tar", "--numeric-owner", "-C", base, "-cf", packed, ".")
    if engine == "buildah":
        container = _output("buildah", "from", "scratch").strip()
        _run("buildah", "add", "-q", container, packed, "/")
        _run("buildah", "commit", "-q", "--rm", container, BASE)
    else:
        _run(engine, "import", packed, BASE)
    packed.unlink()
    shutil.rmtree(base)


def _slim(base: Path) -> None:
    """Leave out, now and in later installations, what the slim variant does."""
    excluded = [f"path-exclude=/{folder}/*" for folder in (*SLIM, "usr/share/doc")]
    (base / "etc/dpkg/dpkg.cfg.d/slim").write_text(
        "\n".join([*excluded, "path-include=/usr/share/doc/*/copyright", ""])
    )
    for name in (*SLIM, "var/cache/apt/archives", "var/lib/apt/lists"):
        shutil.rmtree(base / name, ignore_errors=True)
        (base / name).mkdir()
    for path in (base / "usr/share/doc").rglob("*"):
        if path.name != "copyright" and not path.is_dir():
            path.unlink()


def build(engine: str, tag: str, folder: Path) -> str:
    """The image under its tag, labelled; returns the label's JSON. Raises BuildError."""
    unlabelled = "mimic-unlabelled"
    secrets = [f"--secret=id={path.name},src={path}" for path in write_secrets(folder)]
    _run(*_build_command(engine), *secrets, "-t", unlabelled, "-f", ROOT / "docker" / "Dockerfile", ROOT)
    try:
        tools = versions(engine, unlabelled)
        labels = {TOOLS_LABEL: json.dumps(tools), "org.opencontainers.image.version": tools["mimic"]}
        (folder / "Dockerfile").write_text(f"FROM {unlabelled}\n")
        arguments = [f"--label={name}={value}" for name, value in labels.items()]
        _run(*_build_command(engine), *arguments, "-t", tag, "-f", folder / "Dockerfile", folder)
    finally:
        _run(engine, "rmi", unlabelled)
    return labels[TOOLS_LABEL]


def _build_command(engine: str) -> list[str]:
    if engine == "buildah":
        # chroot needs no runtime; without layers, since the second stage alone is worth keeping
        return ["buildah", "bud", "--isolation=chroot", "--layers=false", "--pull-never"]
    return [engine, "build", *(["--pull=never"] if engine == "podman" else [])]


def versions(engine: str, image: str) -> dict[str, str]:
    """What ``mimic doctor`` in the image says of the tools, all started. Raises BuildError when one is amiss."""
    doctor = ["mimic", "doctor", "--json"]
    if engine == "buildah":
        container = _output("buildah", "from", "--pull-never", image).strip()
        try:
            said = _output("buildah", "run", "--isolation=chroot", container, "--", *doctor)
        finally:
            _run("buildah", "rm", container)
    else:
        said = _output(engine, "run", "--rm", "--network=none", image, *doctor[1:])
    found = {tool["name"]: tool["version"] for tool in json.loads(said) if tool["works"]}
    if missing := [name for name in TOOLS if not found.get(name)]:
        raise BuildError(f"not in the image, or without a version: {', '.join(missing)}")
    return {label: found[name] for name, label in TOOLS.items()}


def write_secrets(folder: Path) -> list[Path]:
    """This machine's settings as files for the build, those that it has; each file's name is its secret's id."""
    files: dict[str, str] = {}
    pip = pip_settings()
    if cert := pip.get("cert"):
        files["ca.pem"] = Path(cert).read_text(encoding="utf-8")
        pip["cert"] = "/run/secrets/ca.pem"
    if pip:
        files["pip.conf"] = "\n".join(["[global]", *(f"{name} = {value}" for name, value in pip.items()), ""])
    if sources := _apt_sources():
        files["sources.list"] = "".join(" ".join(fields) + "\n" for fields in sources)
        files["apt.conf"] = apt_settings()
    for name, text in files.items():
        (folder / name).write_text(text, encoding="utf-8")
        (folder / name).chmod(0o600)  # an index's URL may hold a password
    return [folder / name for name in files]


def pip_settings() -> dict[str, str]:
    """Certificate and index settings of this machine's pip; folders of this machine mean nothing in the build."""
    listed = subprocess.run(
        [sys.executable, "-m", "pip", "config", "list"], capture_output=True, text=True, check=False
    )
    sections: dict[str, dict[str, str]] = {section: {} for section in PIP_SECTIONS}
    for section, name, value in re.findall(r"^(.+?)\.([a-z-]+)=(.+)$", listed.stdout, re.MULTILINE):
        if section in sections and name in PIP_SETTINGS:
            sections[section][name] = str(ast.literal_eval(value))
    settings = {name: value for section in PIP_SECTIONS for name, value in sections[section].items()}
    for variable in ("PIP_CERT", "SSL_CERT_FILE"):
        if "cert" not in settings and os.environ.get(variable):
            settings["cert"] = os.environ[variable]
    for name in ("index-url", "extra-index-url"):
        urls = [url for url in settings.pop(name, "").split() if not url.startswith("file:")]
        if urls:
            settings[name] = " ".join(urls)
    return settings


def apt_settings() -> str:
    """apt's settings for the build: our sources instead of the base's, this machine's proxies and word on old lists."""
    lines = ['Dir::Etc::sourcelist "/run/secrets/sources.list";', 'Dir::Etc::sourceparts "-";']
    names = ["Acquire::http::Proxy", "Acquire::https::Proxy", "Acquire::Check-Valid-Until", "Acquire::Check-Date"]
    lines += [f'{name} "{value}";' for name in names if (value := _apt_option(name))]
    return "\n".join([*lines, ""])


def _apt_option(name: str) -> str:
    if not shutil.which("apt-config"):
        return ""
    found = re.search(rf'^{name} "(.+)";$', _output("apt-config", "dump", name), re.MULTILINE)
    return found.group(1) if found else ""


def _apt_sources() -> list[tuple[str, str, str, str]]:
    """This machine's sources of SUITE's packages as (deb, URI, suite, component); none where it is another system."""
    if not shutil.which("apt-get"):
        return []
    fields = "$(TARGET_OF)|$(REPO_URI)|$(RELEASE)|$(COMPONENT)"
    said = _output("apt-get", "indextargets", "--format", fields, "Created-By: Packages", "Origin: Debian")
    lines = [tuple(line.split("|")) for line in said.splitlines()]
    return [(line[0], line[1], line[2], line[3]) for line in lines if line[2].split("-")[0] == SUITE]


def _try(*argv: str | Path) -> bool:
    return subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, check=False).returncode == 0


def _output(*argv: str | Path) -> str:
    return _done(argv, subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False))


def _run(*argv: str | Path, env: dict[str, str] | None = None) -> None:
    """Run with everything it says on our stderr: a build is long."""
    command = [os.fspath(part) for part in argv]
    _done(
        command, subprocess.run(command, stdin=subprocess.DEVNULL, stdout=sys.stderr, text=True, env=env, check=False)
    )


def _done(argv: Sequence[str | Path], done: subprocess.CompletedProcess[str]) -> str:
    if done.returncode != 0:
        raise BuildError(
            f"{argv[0]} {argv[1]} failed (exit code {done.returncode}) {(done.stderr or '').strip()[-2000:]}"
        )
    return done.stdout or ""


if __name__ == "__main__":
    sys.exit(main())
