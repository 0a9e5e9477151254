#!/usr/bin/env python3
"""Write small slides in many formats, with real writers and real histology pixels, for tests and for trying mimic.

    tools/make_samples OUTDIR [--size PX] [name ...]

Every sample comes with its truth: the RGB pixels that a correct reader gets, the scale and the objective. The pixels
are scikit-image's ihc.png (an immunohistochemistry section that ships in its wheel), laid out as a quilt.
"""

from __future__ import annotations

import argparse
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import tifffile
from numpy.typing import NDArray
from PIL import Image, ImageDraw

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from tools.czi_samples import ACQUIRED, MPP_UM, POWER, RGB, attach, write_czi, write_jpeg_xr_czi

TIFF_TILE_PX = 256
LABEL_PX = (387, 463)
MACRO_PX = (1280, 431)
EXIF_ORIENTATION = 0x0112


@dataclass(frozen=True, slots=True)
class Sample:
    """One written slide and what is true of it. ``pixels`` are what a correct reader decodes at level 0.

    ``mpp_um`` and ``power`` are None where the file does not tell. ``exact`` is False when two correct decoders of the
    file may differ by a grey level or two (JPEG).
    """

    name: str
    path: Path
    pixels: NDArray[Any]
    mpp_um: float | None
    power: float | None
    exact: bool
    label: RGB | None = None
    macro: RGB | None = None


def histology(width_px: int, height_px: int) -> RGB:
    """Real tissue of any size: mirrored copies side by side, so that no seam shows, under a slow ramp of light.

    The ramp makes every place different from every other: a tile that lands a whole copy away is noticed.
    """
    from skimage import data  # costs a second, and only this needs it

    tissue: RGB = data.immunohistochemistry()[..., :3]  # type: ignore[no-untyped-call]
    below, right = max(0, height_px - tissue.shape[0]), max(0, width_px - tissue.shape[1])
    quilt = np.pad(tissue, ((0, below), (0, right), (0, 0)), mode="symmetric")[:height_px, :width_px]
    rows, columns = np.ogrid[:height_px, :width_px]
    light = 1.0 - 0.2 * rows / height_px - 0.2 * columns / width_px
    return np.ascontiguousarray((quilt * light[..., None]).astype(np.uint8))


def label_picture() -> RGB:
    """A slide's paper label: its colours and letters tell it from the macro and show any mirroring."""
    image = Image.new("RGB", LABEL_PX, (250, 248, 240))
    draw = ImageDraw.Draw(image)
    draw.rectangle((20, 20, 366, 120), fill=(20, 60, 160))
    for line, text in enumerate(("MIMIC TEST", "BLOCK A1", "HE")):
        draw.text((40, 180 + 60 * line), text, fill=(0, 0, 0), font_size=40)
    return np.asarray(image)


def macro_picture(scan: RGB) -> RGB:
    """A picture of the whole glass: the scan made small, on light glass, with a green label at the left."""
    image = Image.new("RGB", MACRO_PX, (225, 230, 232))
    image.paste((60, 140, 80), (0, 0, 340, MACRO_PX[1]))
    image.paste(Image.fromarray(scan).resize((400, 300), Image.Resampling.BOX), (600, 60))
    return np.asarray(image)


def reduced(pixels: RGB, factor: int) -> RGB:
    """``pixels`` made ``factor`` times smaller by area averaging, to floor(W/f) x floor(H/f)."""
    height, width = pixels.shape[0] // factor, pixels.shape[1] // factor
    blocks = pixels[: height * factor, : width * factor].reshape(height, factor, width, factor, 3)
    return np.ascontiguousarray((blocks.mean(axis=(1, 3)) + 0.5).astype(np.uint8))


# --- TIFF family -------------------------------------------------------------------------------------------------

APERIO = "Aperio Image Library v12.0.15"
SMALLEST_LEVEL_PX = 144
"""Below this, rounding down moves the ratio of sizes too far from a power of two for opentile."""


def write_svs(path: Path, pixels: RGB, *, profile: str = "rgb") -> Sample:
    """An Aperio SVS laid out as the scanner's own: baseline, thumbnail, one or two more levels, label, macro.

    ``profile`` "rgb" is JPEG without colour transform, "ycc" is YCbCr 4:2:0.
    """
    levels = [pixels, reduced(pixels, 4)]
    if min(pixels.shape[:2]) // 16 >= SMALLEST_LEVEL_PX:
        levels.append(reduced(pixels, 16))
    label, macro = label_picture(), macro_picture(pixels)
    height, width = pixels.shape[:2]
    size = f"{width}x{height}"
    small = np.asarray(Image.fromarray(pixels).resize((levels[-1].shape[1] - 1, levels[-1].shape[0] - 1)))
    geometry = f"{APERIO} \r\n{size} [0,0 {size}] ({TIFF_TILE_PX}x{TIFF_TILE_PX})"
    codec = f"JPEG/{profile.upper()} Q=90"
    day, time = "03/05/24", "09:08:07"
    pairs = f"|AppMag = {POWER}|Date = {day}|Time = {time}|Time Zone = GMT+00:00|MPP = {MPP_UM:.4f}|Left = 0.000000"
    # tifffile turns RGB into YCbCr for JPEG unless told the colour space to write
    jpeg: dict[str, Any] = {"compression": "jpeg", "photometric": "rgb"}
    if profile == "rgb":
        jpeg["compressionargs"] = {"level": 90, "outcolorspace": "rgb"}
    else:
        jpeg |= {"subsampling": (2, 2), "compressionargs": {"level": 90}}
    tiled = {"tile": (TIFF_TILE_PX, TIFF_TILE_PX), **jpeg}
    per_cm: dict[str, Any] = {"resolution": (10000 / MPP_UM, 10000 / MPP_UM), "resolutionunit": "CENTIMETER"}
    strip = {"rowsperstrip": small.shape[0], **jpeg}
    with tifffile.TiffWriter(path, byteorder="<") as file:

        def add(data: RGB, description: str, subfiletype: int = 0, **options: Any) -> None:
            file.write(data, description=description, subfiletype=subfiletype, metadata=None, software=False, **options)

        add(pixels, f"{geometry} {codec}{pairs}", **tiled, **per_cm)
        thumbnail = f"{APERIO}\n{size} -> {small.shape[1]}x{small.shape[0]} - {pairs}"
        add(small, thumbnail, **strip)
        for level in levels[1:]:
            add(level, f"{geometry} -> {level.shape[1]}x{level.shape[0]} {codec}", **tiled)
        label_text = f"{APERIO}\nlabel {label.shape[1]}x{label.shape[0]}"
        macro_text = f"{APERIO}\nmacro {macro.shape[1]}x{macro.shape[0]}"
        whole: dict[str, Any] = {
            "photometric": "rgb",
            "compression": "lzw",
            "predictor": 2,
            "rowsperstrip": label.shape[0],
        }
        add(label, label_text, subfiletype=1, **whole)
        add(macro, macro_text, subfiletype=9, **(jpeg | {"rowsperstrip": macro.shape[0]}))
    return Sample(path.stem, path, tifffile.imread(path, key=0), MPP_UM, POWER, False, label, macro)


def write_ome_tiff(path: Path, pixels: RGB) -> None:
    """An OME-TIFF with its pyramid in SubIFDs, physical size and objective; Deflate, so pixel-exact."""
    height, width = pixels.shape[:2]
    xml = f"""<?xml version="1.0" encoding="UTF-8"?>
<OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06" Creator="mimic make_samples">
 <Instrument ID="Instrument:0">
  <Objective ID="Objective:0" NominalMagnification="{POWER}.0" LensNA="0.95" Immersion="Air"/>
 </Instrument>
 <Image ID="Image:0" Name="scan">
  <AcquisitionDate>{ACQUIRED}</AcquisitionDate>
  <InstrumentRef ID="Instrument:0"/><ObjectiveSettings ID="Objective:0"/>
  <Pixels ID="Pixels:0" DimensionOrder="XYCZT" Type="uint8" SizeX="{width}" SizeY="{height}" SizeC="3" SizeZ="1"
   SizeT="1" Interleaved="true" PhysicalSizeX="{MPP_UM}" PhysicalSizeXUnit="\u00b5m" PhysicalSizeY="{MPP_UM}"
   PhysicalSizeYUnit="\u00b5m">
   <Channel ID="Channel:0:0" SamplesPerPixel="3"/>
   <TiffData IFD="0" PlaneCount="1"/>
  </Pixels>
 </Image>
</OME>"""
    options: dict[str, Any] = {"photometric": "rgb", "tile": (TIFF_TILE_PX, TIFF_TILE_PX), "compression": "zlib"}
    with tifffile.TiffWriter(path) as file:
        file.write(pixels, subifds=2, description=xml.encode(), metadata=None, **options)
        for factor in (2, 4):
            file.write(reduced(pixels, factor), subfiletype=1, metadata=None, **options)


def write_pyramid_tiff(path: Path, pixels: RGB) -> None:
    """A plain tiled pyramid as libvips writes it: levels in the main chain, scale in the resolution tags."""
    options: dict[str, Any] = {"photometric": "rgb", "tile": (TIFF_TILE_PX, TIFF_TILE_PX), "compression": "zlib"}
    with tifffile.TiffWriter(path) as file:
        for factor in (1, 2, 4):
            density = 10000 / (MPP_UM * factor)
            level = pixels if factor == 1 else reduced(pixels, factor)
            options |= {"resolution": (density, density), "resolutionunit": "CENTIMETER"}
            file.write(level, subfiletype=int(factor > 1), metadata=None, **options)


# --- the samples -------------------------------------------------------------------------------------------------


def czi_raw(path: Path, pixels: RGB) -> Sample:
    """Uncompressed CZI mosaic."""
    write_czi(path, pixels, "uncompressed:")
    return Sample("czi_raw", path, pixels, MPP_UM, POWER, True)


def czi_zstd(path: Path, pixels: RGB) -> Sample:
    """Zstd-compressed CZI mosaic."""
    write_czi(path, pixels, "zstd1:ExplicitLevel=1")
    return Sample("czi_zstd", path, pixels, MPP_UM, POWER, True)


def czi_jpegxr(path: Path, pixels: RGB) -> Sample:
    """Lossless JPEG-XR CZI mosaic."""
    decoded = write_jpeg_xr_czi(path, pixels, 1.0)
    if not np.array_equal(decoded, pixels):
        raise ValueError(f"{path}: lossless JPEG-XR did not give the pixels back")
    return Sample("czi_jpegxr", path, pixels, MPP_UM, POWER, True)


def czi_jpegxr_lossy(path: Path, pixels: RGB) -> Sample:
    """Lossy JPEG-XR CZI mosaic, as a scanner's."""
    return Sample("czi_jpegxr_lossy", path, write_jpeg_xr_czi(path, pixels, 0.85), MPP_UM, POWER, True)


def czi_label(path: Path, pixels: RGB) -> Sample:
    """Zstd-compressed CZI mosaic with a label and a macro, as a slide scanner attaches them."""
    write_czi(path, pixels, "zstd1:ExplicitLevel=1")
    label, macro = label_picture(), macro_picture(pixels)
    attach(path, {"Label": label, "SlidePreview": macro})
    return Sample("czi_label", path, pixels, MPP_UM, POWER, True, label, macro)


def dicom(path: Path, pixels: RGB) -> Sample:
    """A DICOM whole-slide series in folder ``path``, made by wsidicomizer from an SVS; ``Sample.path`` is the base."""
    with warnings.catch_warnings():
        # wsidicom 0.31 imports names that pydicom 3 has deprecated
        warnings.simplefilter("ignore", DeprecationWarning)
        from wsidicomizer import WsiDicomizer

        svs = write_svs(path.with_suffix(".source.svs"), pixels)
        path.mkdir(exist_ok=True)
        with WsiDicomizer.open(svs.path) as slide:
            files = [Path(file) for file in slide.save(path)]
    svs.path.unlink()
    base = max(files, key=lambda file: file.stat().st_size)
    return Sample("dicom", base, svs.pixels, MPP_UM, None, False, svs.label, svs.macro)


def ome_tiff(path: Path, pixels: RGB) -> Sample:
    """OME-TIFF with SubIFD pyramid."""
    write_ome_tiff(path, pixels)
    return Sample("ome_tiff", path, pixels, MPP_UM, POWER, True)


def svs(path: Path, pixels: RGB) -> Sample:
    """Aperio SVS with label and macro."""
    return write_svs(path, pixels)


def tiff(path: Path, pixels: RGB) -> Sample:
    """Plain tiled pyramid TIFF; its resolution tags are believable, and are all the scale it has."""
    write_pyramid_tiff(path, pixels)
    return Sample("tiff", path, pixels, MPP_UM, None, True)


def png(path: Path, pixels: RGB) -> Sample:
    """8-bit PNG without any scale."""
    Image.fromarray(pixels).save(path)
    return Sample("png", path, pixels, None, None, True)


def png16(path: Path, pixels: RGB) -> Sample:
    """16-bit PNG whose low bytes are not zero; ``Sample.pixels`` are the 16-bit values."""
    wide = pixels.astype(np.uint16) * 256 + pixels[::-1]
    path.write_bytes(imagecodecs.png_encode(wide))
    return Sample("png16", path, wide, None, None, True)


def jpeg_rotated(path: Path, pixels: RGB) -> Sample:
    """JPEG stored lying on its side, with EXIF orientation 6: a correct reader turns it clockwise."""
    exif = Image.Exif()
    exif[EXIF_ORIENTATION] = 6
    Image.fromarray(np.rot90(pixels)).save(path, quality=95, exif=exif)
    return Sample("jpeg_rotated", path, np.rot90(np.asarray(Image.open(path)), -1), None, None, False)


SAMPLES: dict[str, tuple[str, Callable[[Path, RGB], Sample]]] = {
    "czi_raw": ("czi_raw.czi", czi_raw),
    "czi_zstd": ("czi_zstd.czi", czi_zstd),
    "czi_jpegxr": ("czi_jpegxr.czi", czi_jpegxr),
    "czi_jpegxr_lossy": ("czi_jpegxr_lossy.czi", czi_jpegxr_lossy),
    "czi_label": ("czi_label.czi", czi_label),
    "dicom": ("dicom", dicom),
    "ome_tiff": ("ome_tiff.ome.tif", ome_tiff),
    "svs": ("svs.svs", svs),
    "tiff": ("tiff.tif", tiff),
    "png": ("png.png", png),
    "png16": ("png16.png", png16),
    "jpeg_rotated": ("jpeg_rotated.jpg", jpeg_rotated),
}
"""Name -> file name and writer."""


def make_sample(name: str, folder: Path, *, size_px: int = 2000) -> Sample:
    """Write the sample called ``name`` into ``folder``: ``size_px`` wide, three quarters of it high."""
    file_name, write = SAMPLES[name]
    return write(folder / file_name, histology(size_px, size_px * 3 // 4))


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="make_samples", description="Write small real slides in many formats.")
    parser.add_argument("folder", type=Path, metavar="OUTDIR")
    parser.add_argument("names", nargs="*", metavar="name", help=f"which ones (default: all): {', '.join(SAMPLES)}")
    parser.add_argument(
        "--size", type=int, default=2000, metavar="PX", help="width; height is 3/4 of it (default 2000)"
    )
    arguments = parser.parse_intermixed_args()  # names may follow --size
    if unknown := set(arguments.names) - set(SAMPLES):
        parser.error(f"no sample is called {', '.join(sorted(unknown))}; there are {', '.join(SAMPLES)}")
    arguments.folder.mkdir(parents=True, exist_ok=True)
    for name in arguments.names or SAMPLES:
        made = make_sample(name, arguments.folder, size_px=arguments.size)
        height, width = made.pixels.shape[:2]
        print(f"{name}: {made.path}, {width} x {height} px, MPP {made.mpp_um}, objective {made.power}")


if __name__ == "__main__":
    main()
