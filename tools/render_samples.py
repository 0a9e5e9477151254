"""Small files whose pixels are not 8-bit RGB, written by real writers, with the samples that a correct reader gets."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from numpy.typing import NDArray
from PIL import Image

from tools.czi_samples import CZI_SEGMENT, build_czi, read_subblocks

MPP_UM = 0.25
BLOCK_PX = 256
CZI_HEADER = 512
FOUR = (
    # name, colour, black and white point as parts of 16 bits, all of which ZEISS's writer puts into the CZI
    ("DAPI", (0, 0, 255), (0.01, 0.30)),
    ("FITC", (0, 255, 0), (0.02, 0.25)),
    ("TRITC", (255, 64, 0), (0.01, 0.20)),
    ("Cy5", (255, 0, 255), (0.02, 0.40)),
)


@dataclass(frozen=True, slots=True)
class Raw:
    """A written file. ``samples`` has the axes of ``axes`` ("CYX", "TZYX", "YXS" ...)."""

    path: Path
    samples: NDArray[Any]
    axes: str


def tissue() -> NDArray[np.uint8]:
    """Real histology, 512 x 512."""
    from skimage import data

    return np.ascontiguousarray(data.immunohistochemistry()[..., :3])  # type: ignore[no-untyped-call]


def stains() -> NDArray[np.uint16]:
    """Four channels that look like fluorescence: the stains of real histology, told apart, with a camera's offset."""
    from skimage.color import rgb2hed

    hed = np.clip(rgb2hed(tissue()), 0, None)
    edges = np.abs(np.diff(grey().astype(float), axis=0, prepend=255.0))
    parts = [hed[..., 0], hed[..., 2], edges, np.roll(hed[::-1, ::-1, 2], 40, 1)]
    noise = np.random.default_rng(7).normal(500, 30, (4, *hed.shape[:2]))
    levels = [np.clip(part / np.percentile(part, 99.9), 0, 1.5) ** 1.5 for part in parts]
    gains = np.array([16000, 12000, 9000, 20000]).reshape(4, 1, 1)
    return np.asarray(np.clip(np.stack(levels) * gains + noise, 0, 65535), np.uint16)


def four_channel_czi(
    path: Path,
    *,
    display: bool = True,
    compression: str = "uncompressed:",
    hidden: Collection[int] = (),
    gammas: Mapping[int, float] | None = None,
    dark: bool = False,
) -> Raw:
    """A mosaic of 2 x 2 blocks in each of four 16-bit channels, with names and, if asked for, display settings.

    Channels in ``hidden`` are switched off; with ``dark`` the first block of the first holds zeros; ``gammas`` by
    channel are put where ZEN has them, as pylibCZIrw knows none.
    """
    from pylibCZIrw import czi

    samples = stains()
    samples[0, :BLOCK_PX, :BLOCK_PX] *= not dark
    settings = {
        index: czi.ChannelDisplaySettingsDataClass(
            index not in hidden, czi.TintingMode.Color, czi.Rgb8Color(*colour), *span
        )
        for index, (_, colour, span) in enumerate(FOUR)
    }
    with czi.create_czi(str(path), compression_options=compression) as file:
        for index, channel in enumerate(samples):
            for y in range(0, channel.shape[0], BLOCK_PX):
                for x in range(0, channel.shape[1], BLOCK_PX):
                    block = np.ascontiguousarray(channel[y : y + BLOCK_PX, x : x + BLOCK_PX, None])
                    file.write(block, location=(x, y), plane={"C": index, "Z": 0, "T": 0})
        names = {index: name for index, (name, *_) in enumerate(FOUR)}
        metres = MPP_UM * 1e-6
        extra = {"display_settings": settings} if display else {}
        file.write_metadata(channel_names=names, scale_x=metres, scale_y=metres, **extra)
    if gammas:
        _put_gammas(path, gammas)
    return Raw(path, samples, "CYX")


def _put_gammas(path: Path, gammas: Mapping[int, float]) -> None:
    raw = path.read_bytes()
    found = re.search(rb"<ImageDocument.*</ImageDocument>", raw, re.DOTALL)
    if found is None:
        raise ValueError(f"{path} has no metadata")
    parts = re.split("(?=</High>)", found[0].decode())
    for index, gamma in gammas.items():
        parts[index + 1] = parts[index + 1].replace("</High>", f"</High><Gamma>{gamma}</Gamma>", 1)
    blocks = read_subblocks(raw)
    path.write_bytes(build_czi(raw[: CZI_SEGMENT.size + CZI_HEADER], blocks, "".join(parts)))


def bgr48_czi(path: Path, *, holes: bool = False) -> Raw:
    """16-bit RGB, of which half was never scanned if ``holes``; the truth is white there."""
    from pylibCZIrw import czi

    pixels = tissue().astype(np.uint16) * 257
    places = [(x, y) for y in (0, BLOCK_PX) for x in (0, BLOCK_PX)]
    truth = np.full_like(pixels, 65535)
    with czi.create_czi(str(path)) as file:
        for x, y in places[:: 3 if holes else 1]:
            block = pixels[y : y + BLOCK_PX, x : x + BLOCK_PX]
            truth[y : y + BLOCK_PX, x : x + BLOCK_PX] = block
            file.write(np.ascontiguousarray(block[..., ::-1]), location=(x, y))
        file.write_metadata(scale_x=MPP_UM * 1e-6, scale_y=MPP_UM * 1e-6)
    return Raw(path, truth, "YXS")


def _ome(path: Path, samples: NDArray[Any], axes: str, **words: Any) -> Raw:
    metadata = {"axes": axes, "PhysicalSizeX": MPP_UM, "PhysicalSizeY": MPP_UM}
    tifffile.imwrite(path, samples, metadata=metadata, **words)
    return Raw(path, samples, axes)


def grey() -> NDArray[np.uint8]:
    """The tissue's luminance."""
    return np.asarray(Image.fromarray(tissue()).convert("L"))


def rgb16_tiff(path: Path) -> Raw:
    """Planar, big-endian 16-bit RGB."""
    pixels = np.moveaxis(tissue().astype(np.uint16) * 257, -1, 0)
    return _ome(path, pixels, "CYX", photometric="rgb", planarconfig="separate", byteorder=">")


def rgb12_tiff(path: Path) -> Raw:
    """12 significant bits of 16."""
    pixels = tissue().astype(np.uint16) * 257 >> 4
    tifffile.imwrite(path, pixels, photometric="rgb", metadata=None, description=_xml12(pixels.shape))
    return Raw(path, pixels, "YXS")


def _xml12(shape: tuple[int, ...]) -> str:
    high, wide, _ = shape
    return (
        '<?xml version="1.0" encoding="UTF-8"?><OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06">'
        f'<Image ID="Image:0"><Pixels ID="Pixels:0" DimensionOrder="XYCZT" Type="uint16" SignificantBits="12" '
        f'SizeX="{wide}" SizeY="{high}" SizeC="3" SizeZ="1" SizeT="1" PhysicalSizeX="{MPP_UM}" '
        f'PhysicalSizeY="{MPP_UM}" BigEndian="false" Interleaved="true">'
        '<Channel ID="Channel:0:0" SamplesPerPixel="3"/><TiffData/></Pixels></Image></OME>'
    )


def float_tiff(path: Path) -> Raw:
    """Floats, a few of which are no numbers."""
    samples = (grey() / 255).astype(np.float32)
    samples[:2, :50] = np.nan
    return _ome(path, samples, "YX")


def int16_tiff(path: Path) -> Raw:
    """Signed, big-endian, mostly below zero."""
    return _ome(path, grey().astype(np.int16) * 100 - 20000, "YX", byteorder=">")


def stack_tiff(path: Path) -> Raw:
    """Five focus planes at two time points, in which the picture moves down."""
    plane = grey()
    samples = np.stack([[np.roll(plane, 7 * (z + 10 * t), 0) for z in range(5)] for t in range(2)])
    return _ome(path, samples, "TZYX")


def rgb_stack_tiff(path: Path) -> Raw:
    """Three focus planes of 8-bit RGB."""
    return _ome(path, np.stack([np.roll(tissue(), 50 * z, 0) for z in range(3)]), "ZYXS", photometric="rgb")


def white_is_zero_tiff(path: Path, *, compression: str | None = None) -> Raw:
    """8-bit grey whose 0 is white; the truth is what is to be seen."""
    tifffile.imwrite(path, 255 - grey(), photometric="miniswhite", compression=compression, tile=(128, 128))
    return Raw(path, grey(), "YX")


def palette(path: Path) -> Raw:
    """200 colours by number: BMP, GIF or TIFF by the name's ending."""
    picture = Image.fromarray(tissue()).quantize(200)
    picture.save(path)
    return Raw(path, np.asarray(picture.convert("RGB")), "YXS")


WRITERS: dict[str, Callable[[Path], Raw]] = {
    "four.czi": four_channel_czi,
    "bgr48.czi": bgr48_czi,
    "rgb16.ome.tif": rgb16_tiff,
    "rgb12.ome.tif": rgb12_tiff,
    "float.ome.tif": float_tiff,
    "int16.ome.tif": int16_tiff,
    "stack.ome.tif": stack_tiff,
    "rgbz.ome.tif": rgb_stack_tiff,
    "white.tif": white_is_zero_tiff,
    "palette.bmp": palette,
    "palette.gif": palette,
    "palette.tif": palette,
}
