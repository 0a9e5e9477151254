"""Slides with compressed tiles, written by tifffile and pydicom, for the tests of passthrough."""

from __future__ import annotations

import struct
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import PIL.Image
import pydicom
import tifffile
from numpy.typing import NDArray
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate, encapsulate_extended
from pydicom.sequence import Sequence as DicomSequence
from pydicom.uid import JPEG2000, JPEGBaseline8Bit, VLWholeSlideMicroscopyImageStorage, generate_uid

from mimic.model import Image, Level, Slide
from tools.make_samples import histology, reduced

RGB = NDArray[np.uint8]
KINDS: dict[str, dict[str, Any]] = {
    "420": {"photometric": "ycbcr", "subsampling": (2, 2)},
    "422": {"photometric": "ycbcr", "subsampling": (2, 1)},
    "444": {"photometric": "ycbcr", "subsampling": (1, 1)},
    "rgb": {"photometric": "rgb", "compressionargs": {"outcolorspace": "rgb"}},
}
"""As tifffile is asked for it: YCbCr with its subsampling, and RGB as Aperio's."""


def ome_xml(width_px: int, height_px: int) -> str:
    """An OME document of one RGB picture, 0.25 um, 40x."""
    return f"""<?xml version="1.0" encoding="UTF-8"?>
<OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06">
 <Instrument ID="Instrument:0"><Objective ID="Objective:0" NominalMagnification="40.0"/></Instrument>
 <Image ID="Image:0" Name="scan"><InstrumentRef ID="Instrument:0"/><ObjectiveSettings ID="Objective:0"/>
  <Pixels ID="Pixels:0" DimensionOrder="XYCZT" Type="uint8" SizeX="{width_px}" SizeY="{height_px}" SizeC="3" SizeZ="1"
   SizeT="1" Interleaved="true" PhysicalSizeX="0.25" PhysicalSizeY="0.25">
   <Channel ID="Channel:0:0" SamplesPerPixel="3"/><TiffData IFD="0" PlaneCount="1"/>
  </Pixels></Image></OME>"""


def write_ome(
    path: Path,
    kind: str,
    *,
    size_px: tuple[int, int] = (700, 500),
    tile_px: int = 256,
    factors: Sequence[int] = (),
    **more: Any,
) -> RGB:
    """An OME-TIFF with JPEG tiles of that kind, whole ones, and levels in SubIFDs; the pixels that were coded."""
    pixels = histology(*size_px)
    options = {"tile": (tile_px, tile_px), "compression": "jpeg", "metadata": None, **KINDS[kind], **more}
    with tifffile.TiffWriter(path) as file:
        text = ome_xml(*size_px).encode()
        file.write(pixels, subifds=len(factors), description=text, **options)
        for factor in factors:
            file.write(reduced(pixels, factor), subfiletype=1, **options)
    return pixels


def write_j2k(path: Path, pixels: RGB, *, compression: int, photometric: str) -> None:
    """An Aperio-like SVS of JPEG 2000 codestreams: 33003 of YCbCr, others of RGB with the multi-component transform."""
    mixed = compression == 33003
    streams = []
    for tile in cut_tiles(pixels, 256).values():
        samples = np.asarray(PIL.Image.fromarray(tile).convert("YCbCr")) if mixed else tile
        streams.append(bytes(imagecodecs.jpeg2k_encode(samples, 45, codecformat="j2k", mct=not mixed)))
    size = f"{pixels.shape[1]}x{pixels.shape[0]}"
    text = (
        f"Aperio Image Library v10.0.50\r\n{size} [0,0 {size}] (256x256) J2K/YUV16 Q=70|AppMag = 40|MPP = 0.2500|A = b"
    )
    options: dict[str, Any] = {"tile": (256, 256), "compression": compression, "photometric": photometric}
    tifffile.imwrite(
        path, data=iter(streams), shape=pixels.shape, dtype="uint8", metadata=None, description=text, software=False,
        **options,
    )  # fmt: skip


def share_tables(path: Path) -> None:
    """Rewrites a one-level TIFF so that its tables stand in JPEGTables (347) and its tiles are abbreviated."""
    with tifffile.TiffFile(path) as tiff:
        page = tiff.pages[0]
        assert isinstance(page, tifffile.TiffPage)
        tiles = [stream for stream, _ in raw_segments(tiff, page)]
        halves = [split(stream) for stream in tiles]
        assert len({tables for tables, _ in halves}) == 1
        shape, tile = page.shape, page.tile
        options: dict[str, Any] = {
            "photometric": page.photometric,
            "compression": "jpeg",
            "tile": tile,
            "description": page.description.encode(),
            "jpegtables": halves[0][0],
            "metadata": None,
        }
        if page.photometric == 6:
            options["subsampling"] = page.subsampling
        else:
            options["compressionargs"] = {"outcolorspace": "rgb"}
    tifffile.imwrite(path, data=iter([rest for _, rest in halves]), shape=shape, dtype="uint8", **options)


def split(stream: bytes) -> tuple[bytes, bytes]:
    """A JPEG as (SOI, DQT and DHT, EOI) and the rest, told by hand."""
    tables, rest, at = b"\xff\xd8", b"\xff\xd8", 2
    while stream[at + 1] != 0xDA:
        end = at + 2 + int.from_bytes(stream[at + 2 : at + 4], "big")
        if stream[at + 1] in (0xDB, 0xC4):
            tables += stream[at:end]
        else:
            rest += stream[at:end]
        at = end
    return tables + b"\xff\xd9", rest + stream[at:]


def raw_segments(tiff: tifffile.TiffFile, page: tifffile.TiffPage) -> list[tuple[bytes, int]]:
    """Bytes and offset of each tile."""
    found = []
    for offset, count in zip(page.dataoffsets, page.databytecounts, strict=True):
        tiff.filehandle.seek(offset)
        found.append((tiff.filehandle.read(count), offset))
    return found


def tiles_of(path: Path, series: int = 0, level: int = 0) -> list[bytes]:
    """The raw tiles of a level, by tifffile."""
    with tifffile.TiffFile(path) as tiff:
        page = tiff.series[series].levels[level].pages[0]
        assert page is not None
        return [stream for stream, _ in raw_segments(tiff, page.aspage())]


def as_slide(path: Path, sizes: Sequence[tuple[int, int]], format_name: str = "OME-TIFF", *files: Path) -> Slide:
    """What the ordinary source would tell of a file with one scan of these levels."""
    levels = tuple(Level(*size) for size in sizes)
    image = Image(0, "scan", "", levels, 3, True, "uint8", 8)
    return Slide(path, files or (path,), format_name, "bioformats", (image,))


def dicom_frames(pixels: RGB, tile_px: int, *, codec: str = "jpeg") -> dict[tuple[int, int], bytes]:
    """Coded tiles by (column, row): JPEG YCbCr 4:2:0 or JPEG 2000; those at the edges are padded with white."""
    found = {}
    for place, tile in cut_tiles(pixels, tile_px).items():
        if codec == "jpeg":
            found[place] = bytes(imagecodecs.jpeg8_encode(tile, 85, subsampling="420"))
        else:
            found[place] = bytes(imagecodecs.jpeg2k_encode(tile, 40, codecformat="j2k", mct=True))
    return found


def cut_tiles(pixels: RGB, tile_px: int) -> dict[tuple[int, int], RGB]:
    """Pixels of each tile by (column, row), row by row; those at the edges are padded with white."""
    rows, columns = -(-pixels.shape[0] // tile_px), -(-pixels.shape[1] // tile_px)
    padded = np.full((rows * tile_px, columns * tile_px, 3), 255, np.uint8)
    padded[: pixels.shape[0], : pixels.shape[1]] = pixels
    return {
        (column, row): np.ascontiguousarray(padded[row * tile_px :, column * tile_px :][:tile_px, :tile_px])
        for row in range(rows)
        for column in range(columns)
    }


def write_dicom(
    path: Path,
    size_px: tuple[int, int],
    frames: dict[tuple[int, int], bytes],
    *,
    tile_px: int = 256,
    sparse: bool = False,
    table: str = "basic",
    fragments: int = 1,
    part: tuple[str, int, int, int] | None = None,
    codec: str = "jpeg",
    series: str = "1.2.3.4",
    **more: Any,
) -> None:
    """A whole-slide instance. ``frames`` are in the file's order; ``table`` is "basic", "extended" or "none"; ``part``
    is (UID, number, parts, first frame) of a concatenation."""
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = JPEGBaseline8Bit if codec == "jpeg" else JPEG2000
    meta.MediaStorageSOPClassUID = VLWholeSlideMicroscopyImageStorage
    meta.MediaStorageSOPInstanceUID = generate_uid(entropy_srcs=[path.name, uuid.uuid4().hex])
    found = Dataset()
    found.file_meta = meta
    found.SOPClassUID, found.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
    found.StudyInstanceUID, found.SeriesInstanceUID, found.Modality = "1.2.3", series, "SM"
    found.FrameOfReferenceUID = "1.2.3.5"
    found.ImageType = ["ORIGINAL", "PRIMARY", "VOLUME", "NONE"]
    found.Rows = found.Columns = tile_px
    found.NumberOfFrames = len(frames)
    found.SamplesPerPixel, found.PlanarConfiguration = 3, 0
    found.BitsAllocated = found.BitsStored = 8
    found.HighBit, found.PixelRepresentation = 7, 0
    found.PhotometricInterpretation = "YBR_FULL_422" if codec == "jpeg" else "YBR_ICT"
    found.TotalPixelMatrixColumns, found.TotalPixelMatrixRows = size_px
    found.TotalPixelMatrixFocalPlanes = found.NumberOfOpticalPaths = 1
    found.ImagedVolumeWidth, found.ImagedVolumeHeight = size_px[0] * 0.00025, size_px[1] * 0.00025
    measures = Dataset()
    measures.PixelSpacing, measures.SliceThickness = [0.00025, 0.00025], 0.001
    shared = Dataset()
    shared.PixelMeasuresSequence = DicomSequence([measures])
    found.SharedFunctionalGroupsSequence = DicomSequence([shared])
    found.DimensionOrganizationType = "TILED_SPARSE" if sparse else "TILED_FULL"
    if sparse:
        found.PerFrameFunctionalGroupsSequence = DicomSequence([_place(at, tile_px) for at in frames])
    if part is not None:
        found.ConcatenationUID, found.InConcatenationNumber, found.InConcatenationTotalNumber = part[:3]
        found.ConcatenationFrameOffsetNumber = part[3]
    streams = list(frames.values())
    if table == "extended":
        found.PixelData, found.ExtendedOffsetTable, found.ExtendedOffsetTableLengths = encapsulate_extended(streams)
    elif b"" in streams:  # pydicom will not write an empty frame
        items = (struct.pack("<HHI", 0xFFFE, 0xE000, len(data) + len(data) % 2) + data for data in (b"", *streams))
        found.PixelData = b"".join(item + b"\0" * (len(item) % 2) for item in items)
    else:
        found.PixelData = encapsulate(streams, fragments_per_frame=fragments, has_bot=table == "basic")
    found["PixelData"].VR = "OB"
    found["PixelData"].is_undefined_length = True
    for key, value in more.items():
        setattr(found, key, value)
    pydicom.dcmwrite(path, found, enforce_file_format=True)


def _place(at: tuple[int, int], tile_px: int) -> Dataset:
    position, group = Dataset(), Dataset()
    position.ColumnPositionInTotalImagePixelMatrix = at[0] * tile_px + 1
    position.RowPositionInTotalImagePixelMatrix = at[1] * tile_px + 1
    position.XOffsetInSlideCoordinateSystem = position.YOffsetInSlideCoordinateSystem = 0
    position.ZOffsetInSlideCoordinateSystem = 0
    group.PlanePositionSlideSequence = DicomSequence([position])
    return group
