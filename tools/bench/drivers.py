"""Peers that have no command of their own, driven as their documentation says. Runs in the peer's Python: no mimic."""

from __future__ import annotations

import sys
from pathlib import Path

QUALITY, TILE_PX = 80, 256
SLIDEIO_DRIVERS = {".czi": "CZI", ".svs": "SVS", ".tif": "GDAL", ".png": "GDAL", ".jpg": "GDAL", "": "DCM"}


def vips(source: str, target: str) -> None:
    """``vips tiffsave --tile --pyramid --compression jpeg --Q 80``, read in one pass, which is its fastest."""
    import pyvips

    image = pyvips.Image.new_from_file(source, access="sequential")
    image.tiffsave(
        target,
        tile=True,
        tile_width=TILE_PX,
        tile_height=TILE_PX,
        pyramid=True,
        compression="jpeg",
        Q=QUALITY,
        bigtiff=image.width * image.height > 2_000_000_000,
    )


def slideio(source: str, target: str) -> None:
    """Its converter to SVS, with as many levels as it chooses."""
    import slideio as library

    parameters = library.SVSJpegParameters()
    parameters.quality = QUALITY
    parameters.tile_width = parameters.tile_height = TILE_PX
    scene = library.open_slide(source, SLIDEIO_DRIVERS[Path(source).suffix]).get_scene(0)
    library.convert_scene(scene, parameters, target)


if __name__ == "__main__":
    {"vips": vips, "slideio": slideio}[sys.argv[1]](*sys.argv[2:])
