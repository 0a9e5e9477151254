"""Readers that install from PyPI."""

from __future__ import annotations

import importlib.metadata
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np

from tests.conftest import absent, module
from tests.readers import BOX, RGB, Seen, cut, rgb

X, Y, WIDTH, HEIGHT = BOX
CUCIM_SCRIPT = """
import json, sys
import numpy as np
from cucim import CuImage
import cucim
path, (x, y, width, height) = sys.argv[1], json.loads(sys.argv[2])
slide = CuImage(path)
pictures = {name: np.asarray(slide.associated_image(name)).tolist() for name in slide.associated_images}
print(json.dumps({
    "version": cucim.__version__,
    "levels": slide.resolutions["level_dimensions"],
    "spacing": slide.spacing("XY"), "unit": slide.spacing_units("XY"),
    "kinds": list(slide.metadata), "aperio": slide.metadata.get("aperio", {}),
    "pixels": np.asarray(slide.read_region((x, y), (width, height), 0)).tolist(),
    "pictures": pictures,
}))
"""


def version(distribution: str) -> str:
    return importlib.metadata.version(distribution)


def see_openslide(path: Path) -> Seen:
    """openslide-python with the library of openslide-bin."""
    openslide = module("openslide")
    with openslide.OpenSlide(path) as slide:
        pictures = {name: rgb(np.asarray(image)) for name, image in slide.associated_images.items()}
        return Seen(
            reader=f"OpenSlide {openslide.__library_version__}",
            recognised=slide.properties["openslide.vendor"],
            size=slide.dimensions,
            levels=slide.level_dimensions,
            mpp_um=(float(slide.properties["openslide.mpp-x"]), float(slide.properties["openslide.mpp-y"])),
            power=float(slide.properties["openslide.objective-power"]),
            names=tuple(sorted(pictures)),
            pixels=rgb(np.asarray(slide.read_region((X, Y), 0, (WIDTH, HEIGHT)))),
            pictures=pictures,
        )


def see_tifffile(path: Path) -> Seen:
    tifffile = module("tifffile")
    with tifffile.TiffFile(path) as file:
        series = {one.name.lower(): one for one in file.series}
        text = tifffile.tifffile.svs_description_metadata(file.pages[0].description)
        others = {name: one.asarray() for name, one in series.items() if name != "baseline"}
        return Seen(
            reader=f"tifffile {tifffile.__version__}",
            recognised="svs" if file.is_svs else None,
            size=series["baseline"].shape[1::-1],
            levels=tuple(level.shape[1::-1] for level in series["baseline"].levels),
            mpp_um=(text["MPP"], text["MPP"]),
            power=text["AppMag"],
            names=tuple(sorted(others)),
            pixels=cut(series["baseline"].asarray()),
            pictures=others,
        )


def see_tiffslide(path: Path) -> Seen:
    tiffslide = module("tiffslide")
    with tiffslide.TiffSlide(path) as slide:
        pictures = {name: rgb(np.asarray(image)) for name, image in slide.associated_images.items()}
        return Seen(
            reader=f"tiffslide {version('tiffslide')}",
            recognised=slide.properties["tiffslide.vendor"],
            size=slide.dimensions,
            levels=slide.level_dimensions,
            mpp_um=(slide.properties["tiffslide.mpp-x"], slide.properties["tiffslide.mpp-y"]),
            power=float(slide.properties["tiffslide.objective-power"]),
            names=tuple(sorted(pictures)),
            pixels=rgb(np.asarray(slide.read_region((X, Y), 0, (WIDTH, HEIGHT)))),
            pictures=pictures,
        )


def see_opentile(path: Path) -> Seen:
    """opentile gives compressed and decoded tiles, not boxes."""
    opentile = module("opentile")
    try:
        slide = opentile.OpenTile.open(path)
    except (RuntimeError, OSError) as error:  # what PyTurboJPEG raises where its library is not installed
        absent(f"libturbojpeg for opentile ({error})")
    with slide:
        base = slide.get_level(0)
        tile = base.tile_size
        columns, rows = range(X // tile.width, (X + WIDTH - 1) // tile.width + 1), range(Y // tile.height, 5)
        patch = np.vstack([np.hstack([base.get_decoded_tile((c, r)) for c in columns]) for r in rows])
        left, top = X - columns[0] * tile.width, Y - rows[0] * tile.height
        singles = {"label": slide.labels, "macro": slide.overviews, "thumbnail": slide.thumbnails}
        return Seen(
            reader=f"opentile {version('opentile')}",
            recognised=slide.format.value,
            size=(base.image_size.width, base.image_size.height),
            levels=tuple((level.image_size.width, level.image_size.height) for level in slide.levels),
            mpp_um=(base.mpp.width, base.mpp.height),
            power=slide.metadata.magnification,
            names=tuple(sorted(name for name, images in singles.items() if len(images) == 1)),
            pixels=patch[top : top + HEIGHT, left : left + WIDTH],
            pictures={name: images[0].get_decoded_tile((0, 0)) for name, images in singles.items() if images},
        )


def see_slideio(path: Path) -> Seen:
    slideio = module("slideio")
    slide = slideio.open_slide(str(path), "SVS")
    scene = slide.get_scene(0)
    zooms = [scene.get_zoom_level_info(index).size for index in range(scene.num_zoom_levels)]
    names = slide.get_aux_image_names()
    pictures: dict[str, RGB] = {name.lower(): slide.get_aux_image_raster(name) for name in names}
    return Seen(
        reader=f"slideio {version('slideio')}",
        recognised="SVS",
        size=scene.size,
        levels=tuple((zoom.width, zoom.height) for zoom in zooms),
        mpp_um=(scene.resolution[0] * 1e6, scene.resolution[1] * 1e6),
        power=scene.magnification,
        names=tuple(sorted(pictures)),
        pixels=scene.read_block(BOX, (WIDTH, HEIGHT)),
        pictures=pictures,
    )


def see_large_image(path: Path) -> Seen:
    """large_image's OpenSlide source; it has its own idea of levels, each half of the one above."""
    source = module("large_image_source_openslide").open(str(path))
    region = {"left": X, "top": Y, "width": WIDTH, "height": HEIGHT}
    pixels, _ = source.getRegion(region=region, format="numpy")
    about = source.getMetadata()
    pictures = {
        name: rgb(source.getAssociatedImage(name, format="numpy")[0]) for name in source.getAssociatedImagesList()
    }
    return Seen(
        reader=f"large_image {version('large-image')}, OpenSlide source",
        recognised=source.getInternalMetadata()["openslide"]["openslide.vendor"],
        size=(about["sizeX"], about["sizeY"]),
        mpp_um=(about["mm_x"] * 1000, about["mm_y"] * 1000),
        power=about["magnification"],
        names=tuple(sorted(pictures)),
        pixels=rgb(pixels),
        pictures=pictures,
    )


def see_cucim(path: Path) -> Seen:
    """The last cuCIM that asks for no CUDA, on the CPU."""
    module("cucim")
    return _cucim(path, None)


def see_newest_cucim(path: Path, library: Path) -> Seen:
    """A newer cuCIM, unpacked into ``library`` without the 2 GB of CUDA that it asks for and does not need here."""
    return _cucim(path, library)


def _cucim(path: Path, library: Path | None) -> Seen:
    """In a process of its own: two versions cannot live in one, and it keeps its files open."""
    env = dict(os.environ) | ({"PYTHONPATH": str(library)} if library else {})
    command = [sys.executable, "-c", CUCIM_SCRIPT, str(path), json.dumps(BOX)]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=120, check=True)
    seen = json.loads(done.stdout.splitlines()[-1])
    if seen["unit"] != ["micrometer", "micrometer"]:
        raise ValueError(f"cuCIM gives the spacing in {seen['unit']}")
    pictures = {name: rgb(np.asarray(image, np.uint8)) for name, image in seen["pictures"].items()}
    return Seen(
        reader=f"cuCIM {seen['version']}, CPU",
        recognised="aperio" if "aperio" in seen["kinds"] else None,
        size=tuple(seen["levels"][0]),
        levels=tuple(tuple(level) for level in seen["levels"]),
        mpp_um=(seen["spacing"][0], seen["spacing"][1]),
        power=float(seen["aperio"]["AppMag"]),
        names=tuple(sorted(pictures)),
        pixels=rgb(np.asarray(seen["pixels"], np.uint8)),
        pictures=pictures,
    )


def see_pyvips(path: Path) -> Seen:
    """libvips from PyPI has no OpenSlide: it reads the TIFF, page by page."""
    pyvips = module("pyvips")
    base = pyvips.Image.new_from_file(str(path), fail_on="warning")
    pages = [pyvips.Image.tiffload(str(path), page=page) for page in range(base.get("n-pages"))]
    return Seen(
        reader=f"libvips {pyvips.version(0)}.{pyvips.version(1)}.{pyvips.version(2)} (PyPI), TIFF loader",
        size=(base.width, base.height),
        levels=tuple((page.width, page.height) for page in (pages[0], *pages[2:-2])),
        mpp_um=(1000 / base.xres, 1000 / base.yres),  # xres: pixels per millimetre
        pixels=base.crop(*BOX).numpy(),
        pictures={"label": pages[-2].numpy(), "macro": pages[-1].numpy()},
    )
