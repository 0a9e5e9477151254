"""Whether a file is an ordinary picture, which needs no Bio-Formats: by its name, first bytes and TIFF tags."""

from __future__ import annotations

from pathlib import Path

from mimic.errors import BadInput
from mimic.structure import container
from mimic.structure.tiff import Page, pages

EXTENSIONS = {
    "png": (".png",),
    "jpeg": (".jpg", ".jpeg", ".jpe"),
    "tiff": (".tif", ".tiff"),
    "jp2": (".jp2", ".j2k"),
    "webp": (".webp",),
    "bmp": (".bmp",),
}

MAKERS = (
    "<ome", "aperio", "hamamatsu", "ndp.scan", "leica", "ventana", "<iscan", "trestle", "medscan", "philips",
    "<dataobject", "perkinelmer", "imagej=", "<metadata", "metamorph", "scanimage", "nikon", "zeiss", "olympus",
    "fluoview", "mikroscan", "3dhistech", "bio-formats",
)  # fmt: skip
"""In a description, make, model or software: instruments and programs whose scale and planes Bio-Formats knows."""

PRIVATE_TAGS = frozenset(
    (33471, 33560, 33628, 33629, 33630, 33631, 34118, 34361, 34362, 34412, 34680, 34682, 50838, 50839, 51023, 65420)
)
"""Olympus, STK, Zeiss SEM, FluoView, LSM, FEI, ImageJ, Fibics and NDPI keep scale and planes in these."""

COMPRESSIONS = frozenset((1, 2, 3, 4, 5, 7, 8, 32773, 32946, 50001))
"""None, CCITT, LZW, JPEG, Deflate, PackBits, WebP. PyPI's libvips has no zstd, LZMA or JPEG 2000 for TIFF."""

COLOUR_SAMPLES = {0: 1, 1: 1, 2: 3, 3: 1, 5: 4, 6: 3}
"""Samples a pixel without alpha, by photometric interpretation: greys, RGB, palette, CMYK, YCbCr."""


def ordinary(path: Path) -> str | None:
    """The container of an ordinary picture, None for anything else. Never raises."""
    try:
        found = container(path)
        if found is None or path.suffix.lower() not in EXTENSIONS.get(found, ()):
            return None
        return found if found != "tiff" or ordinary_tiff(pages(path)) else None
    except BadInput:
        return None


def ordinary_tiff(found: tuple[Page, ...]) -> bool:
    """One unsigned picture of up to 16 bits that no instrument signed, alone or with reduced copies of itself."""
    if not found:
        return False
    first = found[0]
    text = " ".join((first.description, first.make, first.model, first.software)).lower()
    if any(maker in text for maker in MAKERS) or first.tags & PRIVATE_TAGS:
        return False
    return _readable(first) and all(_copy_of(first, page) for page in found[1:])


def _readable(page: Page) -> bool:
    colours = COLOUR_SAMPLES.get(page.photometric if page.photometric is not None else -1)
    alpha = page.extra_samples in ((1,), (2,))
    return (
        colours is not None
        and page.samples == colours + alpha
        and page.sample_format == 1
        and page.bits in (1, 2, 4, 8, 16)
        and page.compression in COMPRESSIONS
    )


def _copy_of(first: Page, page: Page) -> bool:
    """Whether a page is a smaller one of the same picture: marked so, or halved, quartered ... in both directions."""
    if page.subfiletype & 1:
        return True
    if not page.width_px or not page.height_px or page.samples != first.samples:
        return False
    factor = round(first.width_px / page.width_px)
    if factor < 2 or factor & (factor - 1):
        return False
    off_x = abs(page.width_px - first.width_px / factor)
    off_y = abs(page.height_px - first.height_px / factor)
    return off_x <= 1 and off_y <= 1
