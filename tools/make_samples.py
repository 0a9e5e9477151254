#!/usr/bin/env python3
"""Write small slides in many formats, with real writers and real histology pixels, for tests and for trying mimic.

    tools/make_samples OUTDIR [--size PX] [name ...]

Every sample comes with its truth: the RGB pixels that a correct reader gets, the scale and the objective. The pixels
are scikit-image's ihc.png (an immunohistochemistry section that ships in its wheel), laid out as a quilt.
"""

from __future__ import annotations

import argparse
import struct
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

RGB = NDArray[np.uint8]
"""Shape (height_px, width_px, 3)."""

MPP_UM = 0.25
POWER = 40
CZI_TILE_PX = 512
TIFF_TILE_PX = 256
ACQUIRED = "2024-03-05T09:08:07"
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


# --- CZI ---------------------------------------------------------------------------------------------------------

CZI_SEGMENT = struct.Struct("<16sqq")
"""Segment header: name, allocated bytes, used bytes. Layout: ZEISS, "ZISRAW (CZI) File Format"."""
CZI_POINTERS_AT = CZI_SEGMENT.size + 52
"""In the file header: positions of the directory and of the metadata, update-pending flag, attachment directory."""
CZI_DIRECTORY_HEAD = 128
CZI_ENTRY = struct.Struct("<2siqii6si")
"""Directory entry: schema, pixel type, file position, file part, compression, pyramid type and spare, dimensions."""
CZI_DIMENSION = struct.Struct("<4siifi")
CZI_SUBBLOCK_HEAD = 256
CZI_JPEG_XR = 4
WIC_24BPP_BGR = bytes.fromhex("24c3dd6f034efe4bb1853d77768dc90c")
WIC_24BPP_RGB = bytes.fromhex("24c3dd6f034efe4bb1853d77768dc90d")


@dataclass(frozen=True, slots=True)
class SubBlock:
    """One tile of a CZI: its directory entry, that entry's dimensions, and its two payloads."""

    entry: tuple[Any, ...]
    dimensions: bytes
    metadata: bytes
    data: bytes

    def size_px(self) -> tuple[int, int]:
        """Stored (width, height)."""
        fields = [CZI_DIMENSION.unpack_from(self.dimensions, at) for at in range(0, len(self.dimensions), 20)]
        stored = {name.rstrip(b"\0"): kept or size for name, _, size, _, kept in fields}
        return stored[b"X"], stored[b"Y"]


def read_subblocks(czi: bytes) -> list[SubBlock]:
    """Every tile that the directory of ``czi`` names."""
    (at,) = struct.unpack_from("<q", czi, CZI_POINTERS_AT)
    at += CZI_SEGMENT.size
    (count,) = struct.unpack_from("<i", czi, at)
    at += CZI_DIRECTORY_HEAD
    blocks = []
    for _ in range(count):
        entry = CZI_ENTRY.unpack_from(czi, at)
        size = CZI_ENTRY.size + CZI_DIMENSION.size * entry[-1]
        dimensions = czi[at + CZI_ENTRY.size : at + size]
        at += size
        body = entry[2] + CZI_SEGMENT.size
        metadata_size, _, data_size = struct.unpack_from("<iiq", czi, body)
        start = body + max(CZI_SUBBLOCK_HEAD, 16 + size)
        middle = start + metadata_size
        blocks.append(SubBlock(entry, dimensions, czi[start:middle], czi[middle : middle + data_size]))
    return blocks


def build_czi(header: bytes, blocks: list[SubBlock], xml: str) -> bytes:
    """A CZI of ``blocks`` with ``xml`` as its metadata; ``header`` is another CZI's file header segment."""
    out = bytearray(header)

    def append(name: bytes, body: bytes) -> int:
        out.extend(bytes(-len(out) % 32))
        position = len(out)
        out.extend(CZI_SEGMENT.pack(name, len(body), len(body)) + body)
        return position

    directory = []
    for block in blocks:
        schema, pixel_type, _, part, compression, pyramid, count = block.entry
        position = len(out) + -len(out) % 32
        entry = CZI_ENTRY.pack(schema, pixel_type, position, part, compression, pyramid, count) + block.dimensions
        head = struct.pack("<iiq", len(block.metadata), 0, len(block.data)) + entry
        append(b"ZISRAWSUBBLOCK", head.ljust(CZI_SUBBLOCK_HEAD, b"\0") + block.metadata + block.data)
        directory.append(entry)
    text = xml.encode()
    metadata_at = append(b"ZISRAWMETADATA", struct.pack("<ii", len(text), 0).ljust(256, b"\0") + text)
    head = struct.pack("<i", len(blocks)).ljust(CZI_DIRECTORY_HEAD, b"\0")
    directory_at = append(b"ZISRAWDIRECTORY", head + b"".join(directory))
    struct.pack_into("<qqiq", out, CZI_POINTERS_AT, directory_at, metadata_at, 0, 0)
    return bytes(out)


def czi_xml(width_px: int, height_px: int, tiles: int) -> str:
    """Metadata as a brightfield scanner writes it; pylibCZIrw itself cannot write an objective or a date."""
    metres = f"{MPP_UM * 1e-6:.6e}"
    return f"""<?xml version="1.0" encoding="utf-8"?>
<ImageDocument><Metadata>
 <Information>
  <Image>
   <SizeX>{width_px}</SizeX><SizeY>{height_px}</SizeY><SizeC>1</SizeC><SizeM>{tiles}</SizeM>
   <PixelType>Bgr24</PixelType><ComponentBitCount>8</ComponentBitCount>
   <AcquisitionDateAndTime>{ACQUIRED}Z</AcquisitionDateAndTime>
   <ObjectiveSettings><ObjectiveRef Id="Objective:1"/></ObjectiveSettings>
   <Dimensions><Channels>
    <Channel Id="Channel:0" Name="TL Brightfield"><PixelType>Bgr24</PixelType></Channel>
   </Channels></Dimensions>
  </Image>
  <Instrument><Objectives>
   <Objective Id="Objective:1" Name="Plan-Apochromat {POWER}x">
    <LensNA>0.95</LensNA><NominalMagnification>{POWER}</NominalMagnification><Immersion>Air</Immersion>
   </Objective>
  </Objectives></Instrument>
 </Information>
 <Scaling><Items>
  <Distance Id="X"><Value>{metres}</Value></Distance>
  <Distance Id="Y"><Value>{metres}</Value></Distance>
 </Items></Scaling>
</Metadata></ImageDocument>"""


def write_czi(path: Path, pixels: RGB, compression: str) -> None:
    """A mosaic by ZEISS's writer (``compression``: "uncompressed:" or "zstd1:..."), then our metadata in it."""
    from pylibCZIrw import czi as zeiss

    with zeiss.create_czi(str(path), exist_ok=True, compression_options=compression) as document:
        for y in range(0, pixels.shape[0], CZI_TILE_PX):
            for x in range(0, pixels.shape[1], CZI_TILE_PX):
                tile = pixels[y : y + CZI_TILE_PX, x : x + CZI_TILE_PX, ::-1]
                document.write(np.ascontiguousarray(tile), location=(x, y))
        document.write_metadata(path.stem, scale_x=MPP_UM * 1e-6, scale_y=MPP_UM * 1e-6)
    written = path.read_bytes()
    blocks = read_subblocks(written)
    xml = czi_xml(pixels.shape[1], pixels.shape[0], len(blocks))
    path.write_bytes(build_czi(written[: CZI_SEGMENT.size + 512], blocks, xml))


def to_jpeg_xr(block: SubBlock, level: float) -> SubBlock:
    """``block`` recompressed as a slide scanner does; ``level`` 1.0 is lossless."""
    width, height = block.size_px()
    bgr = np.frombuffer(block.data, np.uint8).reshape(height, width, 3)
    coded = imagecodecs.jpegxr_encode(np.ascontiguousarray(bgr[..., ::-1]), level=level, photometric="RGB")
    # A CZI's Bgr24 must be called 24bppBGR inside too, or libCZI refuses the tile; the stored channels are the same
    # either way.
    coded = bytes(coded).replace(WIC_24BPP_RGB, WIC_24BPP_BGR, 1)
    schema, pixel_type, position, part, _, pyramid, count = block.entry
    entry = (schema, pixel_type, position, part, CZI_JPEG_XR, pyramid, count)
    return SubBlock(entry, block.dimensions, block.metadata, coded)


def write_jpeg_xr_czi(path: Path, pixels: RGB, level: float) -> RGB:
    """A JPEG-XR CZI of ``pixels``; returns what it decodes to."""
    write_czi(path, pixels, "uncompressed:")
    raw = path.read_bytes()
    blocks = [to_jpeg_xr(block, level) for block in read_subblocks(raw)]
    xml = czi_xml(pixels.shape[1], pixels.shape[0], len(blocks))
    path.write_bytes(build_czi(raw[: CZI_SEGMENT.size + 512], blocks, xml))
    decoded = np.empty_like(pixels)
    for number, block in enumerate(blocks):
        row, column = divmod(number, -(-pixels.shape[1] // CZI_TILE_PX))
        tile = imagecodecs.jpegxr_decode(block.data.replace(WIC_24BPP_BGR, WIC_24BPP_RGB, 1))
        y, x = row * CZI_TILE_PX, column * CZI_TILE_PX
        decoded[y : y + tile.shape[0], x : x + tile.shape[1]] = tile
    return decoded


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
    arguments = parser.parse_args()
    if unknown := set(arguments.names) - set(SAMPLES):
        parser.error(f"no sample is called {', '.join(sorted(unknown))}; there are {', '.join(SAMPLES)}")
    arguments.folder.mkdir(parents=True, exist_ok=True)
    for name in arguments.names or SAMPLES:
        made = make_sample(name, arguments.folder, size_px=arguments.size)
        height, width = made.pixels.shape[:2]
        print(f"{name}: {made.path}, {width} x {height} px, MPP {made.mpp_um}, objective {made.power}")


if __name__ == "__main__":
    main()
