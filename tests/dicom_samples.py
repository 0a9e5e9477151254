"""DICOM whole-slide series as scanners write them: levels, thumbnail, overview and label, dated and numbered."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import pydicom
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence as DicomSequence
from pydicom.uid import ExplicitVRLittleEndian

from tests.coded_samples import cut_tiles, dicom_frames, write_dicom
from tools.make_samples import histology, reduced

RGB = NDArray[np.uint8]
SIZES = ((600, 420), (300, 210), (150, 105))
TILE_PX = 256
FLAVOURS = {"THUMBNAIL": (100, 70), "OVERVIEW": (160, 60), "LABEL": (60, 70)}
MOMENT = "20240102030405.123456"
JPEG_KINDS: dict[str, dict[str, Any]] = {
    "YBR_FULL_422": {"subsampling": "420"},
    "RGB": {"colorspace": "rgb", "outcolorspace": "rgb", "subsampling": "444"},
}


def coded(pixels: RGB, tile_px: int, kind: str) -> dict[tuple[int, int], bytes]:
    """Frames of a picture: JPEG of that photometric interpretation, "j2k", or "native"."""
    if kind == "j2k":
        return dicom_frames(pixels, tile_px, codec="j2k")
    tiles = cut_tiles(pixels, tile_px) if pixels.shape[0] != pixels.shape[1] else {(0, 0): pixels}
    return {place: _frame(tile, kind) for place, tile in tiles.items()}


def _frame(tile: RGB, kind: str) -> bytes:
    return tile.tobytes() if kind == "native" else bytes(imagecodecs.jpeg8_encode(tile, 85, **JPEG_KINDS[kind]))


def write_series(folder: Path, kind: str = "YBR_FULL_422", **more: Any) -> Path:
    """A series in ``folder``; its largest level is 0.dcm, then 1.dcm and 2.dcm, thumbnail, overview and label."""
    folder.mkdir(exist_ok=True)
    for number, size in enumerate(SIZES):
        picture = reduced(histology(*SIZES[0]), SIZES[0][0] // size[0])
        write_instance(folder / f"{number}.dcm", picture, kind=kind, number=number, **more)
    for number, (flavour, size) in enumerate(FLAVOURS.items(), start=len(SIZES)):
        beside = "YBR_FULL_422" if kind == "j2k" else kind
        write_instance(folder / f"{flavour}.dcm", histology(*size), flavour, kind=beside, number=number, **more)
    return folder / "0.dcm"


def write_instance(
    path: Path, picture: RGB, flavour: str = "VOLUME", *, kind: str = "YBR_FULL_422", number: int = 0, **more: Any
) -> None:
    """One instance; all but a volume are one frame."""
    height, width = picture.shape[:2]
    side = {} if flavour == "VOLUME" else {"Rows": height, "Columns": width}
    frames = coded(picture, TILE_PX, kind) if flavour == "VOLUME" else {(0, 0): _frame(picture, kind)}
    specimen, path_of_light = Dataset(), Dataset()
    specimen.SpecimenIdentifier = "S1"
    path_of_light.OpticalPathIdentifier, path_of_light.ObjectiveLensPower = "1", 40
    told = {
        "ImageType": ["ORIGINAL" if not number or side else "DERIVED", "PRIMARY", flavour, "NONE"],
        "InstanceNumber": number,
        "SeriesNumber": 3,
        "AcquisitionDateTime": MOMENT,
        "ContentDate": "20240102",
        "ContentTime": "030405",
        "SpecimenDescriptionSequence": DicomSequence([specimen]),
        "OpticalPathSequence": DicomSequence([path_of_light]),
        **side,
        **more,
    }
    told.setdefault("PhotometricInterpretation", {"j2k": "YBR_ICT", "native": "RGB"}.get(kind, kind))
    write_dicom(path, (width, height), frames, codec="j2k" if kind == "j2k" else "jpeg", **told)
    if kind == "native":
        change(path, lambda data: _as_native(data, list(frames.values())))


def _as_native(data: Dataset, frames: list[bytes]) -> None:
    data.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    data.PixelData = b"".join(frames)
    data["PixelData"].is_undefined_length = False


def change(path: Path, edit: Callable[[Dataset], None]) -> None:
    """An instance written again after ``edit``."""
    data = pydicom.dcmread(path)
    edit(data)
    pydicom.dcmwrite(path, data)
