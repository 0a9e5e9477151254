"""Bio-Formats' readers: which of them reads a file, how it is set up, and what it says of a series.

Part of the child process (``bfserver``): the JVM runs. Java objects come and go here, and nowhere else.
"""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Any

import jpype

DENIED = (
    # Not microscopes' formats: they make pictures up, follow names to other files, or unpack archives (threats.md).
    "FakeReader",
    "FilePatternReader",
    "ZipReader",
    "TextReader",
    "URLReader",
    "JavaReader",
    "ScriptReader",
    "XLEFReader",  # CVE-2026-22186: follows external XML entities before 8.5.0
)
GROUPED = (
    *("DicomReader", "OMETiffReader", "CellSensReader", "FV1000Reader"),
    *("NDPISReader", "HamamatsuVMSReader", "AFIReader"),
)
"""Readers whose files belong together by what an index or an identifier inside them says, not by names that look alike:
those of sets.py. OMETiffReader takes a companion.ome for a TIFF when it may not group."""

CZI_MAGIC = b"ZISRAWFILE"
CZI_READERS = ("ch.epfl.biop.formats.in.ZeissQuickStartCZIReader", "loci.formats.in.ZeissCZIReader")
"""Those of Bio-Formats' readers.txt, the first of which its jar does not hold but one of the user's own may."""

MOST_TINTS = 16
"""Channels of which one pixel each is read for their colour; spectral images have more, and no colours."""
Json = dict[str, Any]


def metadata_store() -> Any:
    services = jpype.JClass("loci.common.services.ServiceFactory")()
    return services.getInstance(jpype.JClass("loci.formats.services.OMEXMLService")).createOMEXMLMetadata()


def _reader_class(path: str, likely: str | None) -> Any:
    """The Java class of the first reader that knows ``path``, as Bio-Formats itself would choose it.

    To ask its 170 readers costs 0.3 s of CPU the first time, most of it for loading them. So one that is ``likely``, or
    that nobody else can be, is asked alone first; only what it says no to goes to the whole list. Raises Java's
    UnknownFormatException.
    """
    for name in (likely, *_only(path)):
        if name is not None and _is_there(name):
            alone = jpype.JClass("loci.formats.ClassList")(jpype.JClass("loci.formats.IFormatReader"))
            alone.addClass(jpype.JClass(name))
            with suppress(jpype.JException):
                return _asked(alone, path)
    classes = jpype.JClass("loci.formats.ImageReader").getDefaultReaderClasses()
    for reader in list(classes.getClasses()):
        if str(reader.getSimpleName()) in DENIED:
            classes.removeClass(reader)
    return _asked(classes, path)


def kind_of(reader: Any) -> str:
    return str(reader.getReader().getClass().getName())


def _asked(classes: Any, path: str) -> Any:
    readers = jpype.JClass("loci.formats.ImageReader")(classes)
    try:
        return readers.getReader(path).getClass()
    finally:
        readers.close()  # some readers stay open after being asked whether they know the file


def _only(path: str) -> tuple[str, ...]:
    """Names of the only classes that know such a file, in the order of Bio-Formats' own list."""
    if not path.lower().endswith(".czi"):
        return ()
    with suppress(OSError), Path(path).open("rb") as file:
        return CZI_READERS if file.read(len(CZI_MAGIC)) == CZI_MAGIC else ()
    return ()


def _is_there(name: str) -> bool:
    try:
        jpype.JClass(name)
    except TypeError:  # JPype's word for a class that is not there
        return False
    return True


def new_reader(path: str, store: Any, *, likely: str | None = None) -> Any:
    """An initialised reader: resolutions kept apart, files grouped only where an identifier inside them says so."""
    kind = _reader_class(path, likely)
    classes = jpype.JClass("loci.formats.ClassList")(jpype.JClass("loci.formats.IFormatReader"))
    classes.addClass(kind)
    reader = jpype.JClass("loci.formats.ImageReader")(classes)
    reader.setFlattenedResolutions(False)
    reader.setOriginalMetadataPopulated(False)
    reader.setGroupFiles(str(kind.getSimpleName()) in GROUPED)
    if store is not None:
        reader.setMetadataStore(store)
    try:
        reader.setId(path)
    except jpype.JException:
        reader.close()
        raise
    return reader


def series_facts(reader: Any, index: int) -> Json:
    """Core metadata of a series and its resolutions."""
    reader.setSeries(index)
    levels = []
    for resolution in range(reader.getResolutionCount()):
        reader.setResolution(resolution)
        levels.append(
            {
                "width": reader.getSizeX(),
                "height": reader.getSizeY(),
                "tile": [reader.getOptimalTileWidth(), reader.getOptimalTileHeight()],
            }
        )
    reader.setResolution(0)
    return {
        "levels": levels,
        "rgb": bool(reader.isRGB()),
        "rgb_channels": reader.getRGBChannelCount(),
        "channels": reader.getSizeC(),
        "z": reader.getSizeZ(),
        "t": reader.getSizeT(),
        "planes": reader.getImageCount(),
        "interleaved": bool(reader.isInterleaved()),
        "palette": _palette(reader),
        "tints": _tints(reader),
        "little_endian": bool(reader.isLittleEndian()),
        "thumbnail": bool(reader.isThumbnailSeries()),
        "pixel_type": str(jpype.JClass("loci.formats.FormatTools").getPixelTypeString(reader.getPixelType())),
        "bits": reader.getBitsPerPixel(),
    }


def _palette(reader: Any) -> list[list[int]] | None:
    """Red, green and blue, 0 to 255, of each value of an image whose samples are numbers of colours.

    An 8-bit table counts also where Bio-Formats calls it false colour, as it does for every palette of a TIFF: looking
    a tint up gives that tint. Some readers know the table only after a plane was read.
    """
    if not reader.isIndexed() or reader.getSizeC() != 1:
        return None
    reader.openBytes(0, 0, 0, 1, 1)
    found = _table(reader, wide=not reader.isFalseColor())
    return found if found and any(map(any, found)) else None


def _table(reader: Any, *, wide: bool) -> list[list[int]] | None:
    """The lookup table of the plane that was read last, in 8 bits; that of 16-bit samples if ``wide``."""
    if (table := reader.get8BitLookupTable()) is not None:
        return [[int(value) & 0xFF for value in part] for part in table][:3]
    if wide and (table := reader.get16BitLookupTable()) is not None:
        return [[(int(value) & 0xFFFF) >> 8 for value in part] for part in table][:3]
    return None


def _tints(reader: Any) -> list[list[int] | None]:
    """The colour of the largest value of each channel that the file tints."""
    if not (reader.isIndexed() and reader.isFalseColor()) or reader.isRGB() or reader.getSizeC() > MOST_TINTS:
        return []
    tints: list[list[int] | None] = []
    for channel in range(reader.getSizeC()):
        reader.openBytes(reader.getIndex(0, channel, 0), 0, 0, 1, 1)
        table = _table(reader, wide=True)
        colour = [part[-1] for part in table] if table else []
        tints.append(colour if len(colour) == 3 and len(set(colour)) > 1 else None)  # grey is no tint
    return tints
