"""Small whole files of every container, by their usual writers, and readers that judge what is left of a cut one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import pydicom
import pydicom.encaps
import pydicom.uid
import tifffile
from PIL import Image
from pylibCZIrw import czi as pylibczi


def pixels(height: int = 96, width: int = 80) -> np.ndarray:
    return np.random.default_rng(5).integers(1, 255, (height, width, 3)).astype(np.uint8)


def sample_czi(path: Path, data: np.ndarray, *places: tuple[int, int]) -> None:
    """A mosaic of one picture at ``places`` (x, y), written by ZEISS' own library."""
    with pylibczi.create_czi(str(path)) as file:
        for place in places or ((0, 0),):
            file.write(data=np.ascontiguousarray(data[..., ::-1]), location=place)
        file.write_metadata(document_name="sample", scale_x=4e-7, scale_y=4e-7)


def sample_dicom(path: Path, *, frames: int = 4, native: bool = False, **more: Any) -> None:
    """A 2 x 2 tiled whole-slide instance by pydicom."""
    uid = pydicom.uid.generate_uid()
    meta = pydicom.dataset.FileMetaDataset()
    meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.77.1.6"
    meta.MediaStorageSOPInstanceUID = uid
    meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian if native else pydicom.uid.JPEG2000Lossless
    data = pydicom.dataset.FileDataset(str(path), {}, file_meta=meta, preamble=b"\0" * 128)
    data.SOPClassUID, data.SOPInstanceUID, data.SeriesInstanceUID = meta.MediaStorageSOPClassUID, uid, "1.2.3.4"
    data.ImageType = ["ORIGINAL", "PRIMARY", "VOLUME", "NONE"]
    data.Rows = data.Columns = 32
    data.TotalPixelMatrixColumns, data.TotalPixelMatrixRows = 60, 50
    data.SamplesPerPixel, data.BitsAllocated, data.BitsStored, data.HighBit = 3, 8, 8, 7
    data.PixelRepresentation, data.PlanarConfiguration, data.PhotometricInterpretation = 0, 0, "RGB"
    data.NumberOfFrames, data.DimensionOrganizationType = frames, "TILED_FULL"
    optical = pydicom.dataset.Dataset()
    optical.OpticalPathIdentifier = "1"
    data.OpticalPathSequence = pydicom.sequence.Sequence([optical])
    data.OpticalPathSequence.is_undefined_length = True
    for name, value in more.items():
        setattr(data, name, value)
    tiles = [pixels(32, 32) for _ in range(4)]
    if native:
        data.PixelData = np.stack(tiles).tobytes()
    else:
        coded = [imagecodecs.jpeg2k_encode(tile, reversible=True, level=0, codecformat="j2k") for tile in tiles]
        data.PixelData = pydicom.encaps.encapsulate(coded)
        data["PixelData"].is_undefined_length = True
    data.save_as(path, enforce_file_format=True)


def save(path: Path, **options: Any) -> None:
    Image.fromarray(pixels()).save(path, **options)


def jp2(path: Path) -> None:
    path.write_bytes(imagecodecs.jpeg2k_encode(pixels(), reversible=True, level=0, codecformat=path.suffix[1:]))


def tiff(path: Path, **options: Any) -> None:
    tifffile.imwrite(path, pixels(), photometric="rgb", **options)


def pyramid(path: Path) -> None:
    with tifffile.TiffWriter(path) as file:
        file.write(pixels(), photometric="rgb", tile=(32, 32), subifds=1, compression="lzw")
        file.write(pixels()[::2, ::2], photometric="rgb", tile=(32, 32), subfiletype=1, compression="lzw")


def separate(path: Path) -> None:
    tifffile.imwrite(path, np.moveaxis(pixels(), 2, 0), photometric="rgb", planarconfig="separate", rowsperstrip=32)


def same_planes(path: Path) -> bool:
    return np.array_equal(np.moveaxis(tifffile.imread(path), 0, 2), pixels())


def same_tiff(path: Path) -> bool:
    with tifffile.TiffFile(path) as file:
        return np.array_equal(file.pages[0].asarray(), pixels())


def same_picture(path: Path) -> bool:
    with Image.open(path) as picture:
        return np.array_equal(np.asarray(picture.convert("RGB")), pixels())


def same_jpeg(path: Path) -> bool:
    with Image.open(path) as picture:
        return bool(np.asarray(picture).shape == (96, 80, 3))  # Pillow raises for a cut one


def same_czi(path: Path) -> bool:
    with pylibczi.open_czi(str(path)) as file:
        return np.array_equal(file.read()[..., ::-1], pixels())


def same_dicom(path: Path) -> bool:
    # not the property of that name: wsidicom switches it off for the whole process (config.future_behavior)
    return len(pydicom.pixels.pixel_array(path)) == 4


SAMPLES: dict[str, tuple[str, Callable[[Path], None], Callable[[Path], bool]]] = {
    "strips": ("tif", lambda path: tiff(path, rowsperstrip=16), same_tiff),
    "tiles": ("tif", lambda path: tiff(path, tile=(32, 32), compression="deflate"), same_tiff),
    "big endian": ("tif", lambda path: tiff(path, byteorder=">", tile=(32, 32)), same_tiff),
    "bigtiff": ("btf", lambda path: tiff(path, bigtiff=True, tile=(32, 32), compression="lzw"), same_tiff),
    "big endian bigtiff": ("tif", lambda path: tiff(path, bigtiff=True, byteorder=">", rowsperstrip=7), same_tiff),
    "subifds": ("tif", pyramid, same_tiff),
    "planes": ("tif", separate, same_planes),
    "png": ("png", save, same_picture),
    "bmp": ("bmp", save, same_picture),
    "webp": ("webp", lambda path: save(path, lossless=True), same_picture),
    "jpeg": ("jpg", lambda path: save(path, quality=90), same_jpeg),
    "progressive": ("jpg", lambda path: save(path, quality=90, progressive=True), same_jpeg),
    "jp2": ("jp2", jp2, same_picture),
    "j2k": ("j2k", jp2, same_picture),
    "czi": ("czi", lambda path: sample_czi(path, pixels()), same_czi),
    "dicom": ("dcm", sample_dicom, same_dicom),
    "native dicom": ("dcm", lambda path: sample_dicom(path, native=True), same_dicom),
}
