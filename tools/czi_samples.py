"""Real CZI files for tests: tiles by ZEISS's own writer, then taken apart and put together again as a scanner's.

pylibCZIrw can write neither JPEG-XR, nor an objective or a date; so its segments are rewritten here.
"""

from __future__ import annotations

import io
import mmap
import struct
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import imagecodecs
import numpy as np
from numpy.typing import NDArray

RGB = NDArray[np.uint8]
"""Shape (height_px, width_px, 3)."""

MPP_UM = 0.25
POWER = 40
ACQUIRED = "2024-03-05T09:08:07"
CZI_TILE_PX = 512

CZI_SEGMENT = struct.Struct("<16sqq")
"""Segment header: name, allocated bytes, used bytes. Layout: ZEISS, "ZISRAW (CZI) File Format"."""
CZI_POINTERS_AT = CZI_SEGMENT.size + 52
"""In the file header: positions of the directory and of the metadata, update-pending flag, attachment directory."""
CZI_DIRECTORY_HEAD = 128
CZI_ENTRY = struct.Struct("<2siqii6si")
"""Directory entry: schema, pixel type, file position, file part, compression, pyramid type and spare, dimensions."""
CZI_DIMENSION = struct.Struct("<4siifi")
CZI_SUBBLOCK_HEAD = 256
CZI_ATTACHMENT = struct.Struct("<2s10xqi16s8s80s")
"""An attachment's entry: schema, file position, file part, a GUID, kind of its content, name."""
CZI_ATTACHMENT_HEAD = CZI_METADATA_HEAD = 256
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
    return list(iter_subblocks(czi))


def iter_subblocks(czi: bytes | mmap.mmap) -> Iterator[SubBlock]:
    """The same, one at a time: a file that is mapped need not fit into memory."""
    (at,) = struct.unpack_from("<q", czi, CZI_POINTERS_AT)
    at += CZI_SEGMENT.size
    (count,) = struct.unpack_from("<i", czi, at)
    at += CZI_DIRECTORY_HEAD
    for _ in range(count):
        entry = CZI_ENTRY.unpack_from(czi, at)
        size = CZI_ENTRY.size + CZI_DIMENSION.size * entry[-1]
        dimensions = czi[at + CZI_ENTRY.size : at + size]
        at += size
        body = entry[2] + CZI_SEGMENT.size
        metadata_size, _, data_size = struct.unpack_from("<iiq", czi, body)
        start = body + max(CZI_SUBBLOCK_HEAD, 16 + size)
        middle = start + metadata_size
        yield SubBlock(entry, dimensions, czi[start:middle], czi[middle : middle + data_size])


def build_czi(
    header: bytes, blocks: list[SubBlock], xml: str, *, attachments: Mapping[str, bytes] | None = None
) -> bytes:
    """A CZI of ``blocks`` with ``xml`` as its metadata; ``header`` is another CZI's file header segment.

    ``attachments`` are whole CZI files by their names: scanners call them "Label" and "SlidePreview".
    """
    out = io.BytesIO()
    stream_czi(out, header, blocks, xml, attachments=attachments)
    return out.getvalue()


def stream_czi(
    out: BinaryIO,
    header: bytes,
    blocks: Iterable[SubBlock],
    xml: str,
    *,
    attachments: Mapping[str, bytes] | None = None,
) -> None:
    """The same into a file, with one block in memory at a time."""
    out.write(header)

    def append(name: bytes, body: bytes) -> int:
        out.write(bytes(-out.tell() % 32))
        position = out.tell()
        out.write(CZI_SEGMENT.pack(name, len(body), len(body)) + body)
        return position

    directory = []
    for block in blocks:
        schema, pixel_type, _, part, compression, pyramid, count = block.entry
        position = out.tell() + -out.tell() % 32
        entry = CZI_ENTRY.pack(schema, pixel_type, position, part, compression, pyramid, count) + block.dimensions
        head = struct.pack("<iiq", len(block.metadata), 0, len(block.data)) + entry
        append(b"ZISRAWSUBBLOCK", head.ljust(CZI_SUBBLOCK_HEAD, b"\0") + block.metadata + block.data)
        directory.append(entry)
    text = xml.encode()
    metadata_at = append(b"ZISRAWMETADATA", struct.pack("<ii", len(text), 0).ljust(CZI_METADATA_HEAD, b"\0") + text)
    head = struct.pack("<i", len(directory)).ljust(CZI_DIRECTORY_HEAD, b"\0")
    directory_at = append(b"ZISRAWDIRECTORY", head + b"".join(directory))
    listed = []
    for number, (name, content) in enumerate((attachments or {}).items(), start=1):
        position = out.tell() + -out.tell() % 32
        entry = CZI_ATTACHMENT.pack(b"A1", position, 0, number.to_bytes(16, "little"), b"CZI", name.encode())
        head = (struct.pack("<i12x", len(content)) + entry).ljust(CZI_ATTACHMENT_HEAD, b"\0")
        append(b"ZISRAWATTACH", head + content)
        listed.append(entry)
    head = struct.pack("<i", len(listed)).ljust(CZI_ATTACHMENT_HEAD, b"\0")
    attachments_at = append(b"ZISRAWATTDIR", head + b"".join(listed)) if listed else 0
    out.seek(CZI_POINTERS_AT)
    out.write(struct.pack("<qqiq", directory_at, metadata_at, 0, attachments_at))


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


def attach(path: Path, pictures: Mapping[str, RGB]) -> None:
    """Put pictures into a CZI as a scanner does: each a small CZI of its own."""
    contents = {}
    for name, pixels in pictures.items():
        own = path.with_name(f"{path.stem}.{name}.czi")
        write_czi(own, pixels, "uncompressed:")
        contents[name] = own.read_bytes()
        own.unlink()
    raw = path.read_bytes()
    at = struct.unpack_from("<q", raw, CZI_POINTERS_AT + 8)[0] + CZI_SEGMENT.size
    (length,) = struct.unpack_from("<i", raw, at)
    xml = raw[at + CZI_METADATA_HEAD : at + CZI_METADATA_HEAD + length].decode()
    header = raw[: CZI_SEGMENT.size + 512]
    path.write_bytes(build_czi(header, read_subblocks(raw), xml, attachments=contents))


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
