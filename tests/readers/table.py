"""All readers, by the names that tests have for them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from tests.readers import Seen, libraries, programs

READERS: dict[str, Callable[[Path], Seen]] = {
    "openslide": libraries.see_openslide,
    "openslide-3.4.1": programs.see_openslide_tools,
    "bioformats": programs.see_bioformats,
    "tifffile": libraries.see_tifffile,
    "tiffslide": libraries.see_tiffslide,
    "opentile": libraries.see_opentile,
    "cucim": libraries.see_cucim,
    "large_image": libraries.see_large_image,
    "slideio": libraries.see_slideio,
    "vips": programs.see_vips,
    "pyvips": libraries.see_pyvips,
    "libtiff": programs.see_libtiff,
    "imagemagick": programs.see_imagemagick,
    "gimp": programs.see_gimp,
}
