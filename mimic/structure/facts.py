"""What a check of a container learns on its way; counts and positions, nothing decoded."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class CziScene:
    """Bounding box of the full-resolution subblocks of one scene, in the file's own pixel coordinates.

    ``index`` is the scene's number S, None in a file without scenes. ``covered_px`` is the area that subblocks really
    cover, the least over all planes; None where it would take too long to tell. Where it is less than the box,
    Bio-Formats reads black there.
    """

    index: int | None
    x_px: int
    y_px: int
    width_px: int
    height_px: int
    covered_px: int | None

    @property
    def covered(self) -> bool | None:
        """Whether subblocks cover the whole box."""
        return None if self.covered_px is None else self.covered_px == self.width_px * self.height_px


@dataclass(frozen=True, slots=True)
class CziDisplay:
    """How a CZI's own software shows one channel: ``low`` and ``high`` are parts (0 to 1) of what its pixel type holds,
    ``gamma`` is the exponent of the curve between them, ``colour`` is red, green, blue, ``hidden``: it is switched off.
    """

    index: int
    low: float | None = None
    high: float | None = None
    gamma: float = 1.0
    colour: tuple[int, int, int] | None = None
    hidden: bool = False


@dataclass(frozen=True, slots=True, eq=False)
class CziFacts:
    """A CZI by its own directory and XML.

    ``xml_*_px`` are Information/Image/SizeX and SizeY (all scenes together), None when the XML has none.
    ``subblocks`` are the full-resolution ones of every plane: int64 rows of scene (-1 for none), x, y, width, height,
    pixel type, compression (numbers of the format: 3 and 4 are Bgr24 and JPEG-XR); ``empty`` are those without data.
    ``tile_*_px`` are their medians. ``power`` is that of the objective that is meant, None where there is only one.
    """

    xml_width_px: int | None
    xml_height_px: int | None
    x_px: int
    y_px: int
    width_px: int
    height_px: int
    scenes: tuple[CziScene, ...]
    subblocks: NDArray[np.int64]
    tile_width_px: int
    tile_height_px: int
    pyramid_subblocks: int
    display: tuple[CziDisplay, ...] = ()
    empty: NDArray[np.int64] | None = None
    power: float | None = None

    @property
    def covered(self) -> bool | None:
        """Whether every scene is covered; None when that is not known of one."""
        told = [scene.covered for scene in self.scenes]
        return False if False in told else None if None in told else True


@dataclass(frozen=True, slots=True)
class DicomFacts:
    """A DICOM instance by its own header. ``matrix_*_px`` is the total pixel matrix of a whole-slide image;
    ``concatenation`` the UID of the whole of which this is a part, the part's number (from 1) and how many there are
    (0: not told)."""

    sop_class_uid: str | None
    series_instance_uid: str | None
    transfer_syntax_uid: str | None
    image_type: str | None
    frames: int
    columns_px: int
    rows_px: int
    matrix_width_px: int | None
    matrix_height_px: int | None
    concatenation: tuple[str, int, int] | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Facts:
    """A file whose container holds together.

    ``container`` is "tiff", "czi", "dicom", "jpeg", "png", "jp2", "webp", "bmp", "ole", "nd2", or None for one that is
    not checked. ``directories`` counts TIFF directories, SubIFDs included. ``missing_tiles`` counts tiles, strips or
    frames that the file itself declares empty: readers make them black or white.
    """

    container: str | None
    size_bytes: int
    directories: int = 0
    missing_tiles: int = 0
    czi: CziFacts | None = None
    dicom: DicomFacts | None = None
