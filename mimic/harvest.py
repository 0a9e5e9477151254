"""Every text of an input file that may name a person, a case or a device, with the field in which it stands.

Too much is better than too little: nothing of it is written, it is what a de-identified output is searched for. Each
format is read by its own structure, and whatever else there is by words around it.
"""

from __future__ import annotations

import mmap
import re
import struct
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

from lxml import etree

from mimic import icc, tifffields
from mimic.errors import BadInput, ToolMissing
from mimic.model import Slide
from mimic.phi import IDENTIFYING, SAFE_SVS_KEYS, Trace

TIFF_NAMES = {
    269: "DocumentName", 270: "ImageDescription", 271: "Make", 272: "Model", 285: "PageName", 305: "Software",
    306: "DateTime", 315: "Artist", 316: "HostComputer", 700: "XMP", 33432: "Copyright", 33723: "IPTC",
    34377: "Photoshop", 34675: "ICC profile", 36867: "DateTimeOriginal", 36868: "DateTimeDigitized",
    37500: "MakerNote", 37510: "UserComment", 40091: "XPTitle", 40092: "XPComment", 40093: "XPAuthor",
    40094: "XPKeywords", 40095: "XPSubject", 42016: "ImageUniqueID", 42032: "CameraOwnerName", 42033: "SerialNumber",
    42037: "LensSerialNumber", 50838: "ImageJ counts", 50839: "ImageJ metadata", 65442: "NDPI serial number",
    65449: "NDPI properties", 65468: "NDPI barcode",
}  # fmt: skip
BINARY_TAGS = frozenset((273, 279, 324, 325, 347, 519, 520, 521, 529, 532))
MAX_VALUE_BYTES = 64 << 20
MAX_TEXT_CHARS = 400
"""A longer text is looked for line by line and word by word."""
HEAD_BYTES, TAIL_BYTES = 8 << 20, 8 << 20
"""Where formats that are not known here keep their texts."""
MAX_XML_BYTES = 256 << 20
SAFE_DICOM = frozenset(
    (
        *("SpecificCharacterSet", "ImageType", "SOPClassUID", "TransferSyntaxUID", "MediaStorageSOPClassUID"),
        *("Modality", "PhotometricInterpretation", "LossyImageCompressionMethod", "DimensionOrganizationType"),
        *("CodingSchemeDesignator", "CodeMeaning", "CodeValue", "Manufacturer", "ImplementationClassUID"),
        *("ImplementationVersionName", "ContainerIdentifierTypeCodeSequence", "FrameType", "BurnedInAnnotation"),
        *("LossyImageCompression", "PositionReferenceIndicator", "ColorSpace", "FocusMethod", "OpticalPathIdentifier"),
    )
)
DICOM_TEXTS = frozenset(
    ("AE", "AS", "CS", "DA", "DT", "LO", "LT", "PN", "SH", "ST", "TM", "UC", "UI", "UR", "UT", "UN")
)
NOT_PERSONAL = re.compile(
    r"[-+]?[\d.,]{1,5}|[-+]?\d*\.\d+([eE][-+]?\d+)?|true|false|yes|no|none|null|\W*", re.IGNORECASE
)
TAGGED = re.compile(r"<([A-Za-z][\w:.-]{1,60})(?:\s[^<>]{0,200})?>([^<>\x00]{2,400})</")
VALUED = re.compile(r"""<([A-Za-z][\w:.-]{1,60})\s[^<>]{0,200}?\bvalue\s*=\s*["']([^"'<>]{2,400})["']""")
QUOTED = re.compile(r'"([A-Za-z][\w .-]{1,60})"\s*:\s*"([^"\\\x00-\x1f]{2,400})"')
ASSIGNED = re.compile(r"""([A-Za-z][\w .-]{1,40}?)\s*[=:]\s*["']?([^"'<>|\r\n\x00-\x1f]{2,200})""")


def traces(path: Path, slide: Slide) -> tuple[Trace, ...]:
    """What ``path``, the other files of ``slide`` and its facts say that may identify. Raises BadInput, ToolMissing.

    File names count: labs name slides by case numbers and patients.
    """
    found: list[Trace] = []
    for file in dict.fromkeys((path, *slide.files)):
        found += (Trace("file name", file.stem), Trace("file name", file.name))
        found += _of_file(file)
    found += (Trace("image name", image.name) for image in slide.images if image.name)
    found += (Trace("channel name", each.name) for image in slide.images for each in image.channel_facts if each.name)
    found += (Trace("date", image.acquired.isoformat()) for image in slide.images if image.acquired)
    if slide.scanner:
        found.append(Trace("scanner", slide.scanner))
    clean = (Trace(trace.field, " ".join(trace.value.split())) for trace in found)
    return tuple(dict.fromkeys(trace for trace in clean if not NOT_PERSONAL.fullmatch(trace.value)))


def _of_file(path: Path) -> list[Trace]:
    if path.is_dir():  # a Zarr store, of which the documents are looked into
        return []
    try:
        with path.open("rb") as file:
            if not path.stat().st_size:
                return []
            with closing(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)) as data:
                return list(_of_data(data, path))
    except (OSError, ValueError) as error:
        raise BadInput(f"cannot be read: {error}", path, "Check the disk or the network share") from error


def _of_data(data: mmap.mmap, path: Path) -> Iterator[Trace]:
    kinds: tuple[tuple[bytes, int, Callable[[mmap.mmap], Iterator[Trace]]], ...] = (
        (b"ZISRAWFILE", 0, _czi),
        (b"\x89PNG\r\n\x1a\n", 0, _png),
        (b"\xff\xd8\xff", 0, jpeg),
        (b"RIFF", 0, _webp),
    )
    if data[128:132] == b"DICM" or path.suffix.lower() in (".dcm", ".dicom"):
        yield from _dicom(path)
        return
    if data[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
        yield from tiff(data, wide=len(data) >= 1 << 32 and path.suffix.lower() == ".ndpi")
        return
    for magic, at, reader in kinds:
        if data[at : at + len(magic)] == magic:
            yield from reader(data)
            return
    yield from _anything(data)


# TIFF and EXIF


def tiff(data: tifffields.Buffer, *, wide: bool = False) -> Iterator[Trace]:
    """Texts of every tag of every directory, EXIF and GPS included."""
    parsed = tifffields.parse(data, wide=wide)
    for field in parsed.fields if parsed is not None else ():
        if field.tag not in BINARY_TAGS and field.length <= MAX_VALUE_BYTES:
            yield from field_traces(field, data[field.offset : field.offset + field.length])


def field_traces(field: tifffields.Field, raw: bytes) -> Iterator[Trace]:
    """What one TIFF field says."""
    name = TIFF_NAMES.get(field.tag, f"tag {field.tag}")
    if field.tag == 34675:
        yield from (Trace(name, text) for text in icc.texts(raw))
    elif field.type == 2 or field.tag in (270, 700):
        for part in raw.split(b"\0"):
            yield from described(name, _decoded(part))
    elif field.type in (1, 7):
        yield from (Trace(name, text) for text in runs(raw))


def described(name: str, text: str) -> Iterator[Trace]:
    """What an ImageDescription or another long text says: Aperio's pairs, XML, or lines."""
    text = text.strip()
    if not text:
        return
    if text.startswith("Aperio"):
        for token in text.split("|")[1:]:
            key, _, value = token.partition("=")
            if key.strip().lower() not in SAFE_SVS_KEYS:
                yield Trace(key.strip(), value.strip())
    elif "<" in text[:200] and ">" in text:
        yield from xml(text.encode("utf-8", "replace"))
    else:
        if len(text) <= MAX_TEXT_CHARS:
            yield Trace(name, text)
        for line in text.splitlines() if "\n" in text or len(text) > MAX_TEXT_CHARS else ():
            _, sign, value = line.partition("=")
            yield Trace(name, (value if sign else line).strip()[:MAX_TEXT_CHARS])


def runs(raw: bytes) -> list[str]:
    """Readable texts of six characters and more in bytes of any kind, in ASCII and in UTF-16."""
    found = [
        run.decode("utf-8", "ignore") for run in re.findall(rb"[\x20-\x7e\x80-\xf4]{6,400}", raw) if _readable(run)
    ]
    found += [run.decode("utf-16-le") for run in re.findall(rb"(?:[\x20-\x7e]\x00){4,400}", raw)]
    found += [run.decode("utf-16-be") for run in re.findall(rb"(?:\x00[\x20-\x7e]){4,400}", raw)]
    return found


def _readable(run: bytes) -> bool:
    """Whether a run of bytes looks like words and not like packed numbers."""
    good = sum(byte in b" .-_:/@,^" or 48 <= byte <= 57 or 65 <= byte <= 90 or 97 <= byte <= 122 for byte in run)
    return good >= 0.8 * len(run)


def _decoded(raw: bytes) -> str:
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError:
        return raw.decode("latin-1")


# XML


def xml(raw: bytes) -> Iterator[Trace]:
    """Elements and attributes whose names tell that they may identify, and values whose keys do."""
    parser = etree.XMLParser(
        resolve_entities=False, no_network=True, load_dtd=False, dtd_validation=False, huge_tree=True, recover=True
    )
    try:
        root = etree.fromstring(raw.strip(b"\0 \t\r\n"), parser)
    except (etree.XMLSyntaxError, ValueError):
        root = None
    if root is None:
        yield from _words(_decoded(raw))
        return
    for element in root.iter(etree.Element):
        name = _local(element.tag)
        for key, value in element.attrib.items():
            if IDENTIFYING.search(_local(key)) or IDENTIFYING.search(name):
                yield Trace(_local(key), str(value))
        text = (element.text or "").strip()
        if text and (IDENTIFYING.search(name) or _keyed(element)):
            yield from ([Trace(name, text)] if len(text) <= MAX_TEXT_CHARS else described(name, text))


def _keyed(element: etree._Element) -> bool:
    """Whether a sibling or attribute called key or name says that this value identifies."""
    parent = element.getparent()
    keys = [element.get(key) for key in ("Key", "key", "Name", "name", "K")]
    if parent is not None:
        keys += [
            each.text for each in parent if isinstance(each.tag, str) and _local(each.tag).lower() in ("key", "name")
        ]
    return any(IDENTIFYING.search(key) for key in keys if key)


def _local(tag: Any) -> str:
    return str(tag).rpartition("}")[2]


def _words(text: str) -> Iterator[Trace]:
    """Keys and values in text of no known structure."""
    for pattern in (TAGGED, VALUED, QUOTED, ASSIGNED):
        for found in pattern.finditer(text):
            if IDENTIFYING.search(found[1]):
                # a key in free text may be a name itself, and names of fields are told
                yield Trace("text" if pattern is ASSIGNED else found[1].strip(), found[2].strip())


# Other containers


def _czi(data: mmap.mmap) -> Iterator[Trace]:
    """The XML, and the names of attachments. Layout: see structure/czi.py."""
    try:
        metadata_at, _, attachments_at = struct.unpack_from("<qiq", data, 32 + 60)
        if metadata_at:
            (length,) = struct.unpack_from("<i", data, metadata_at + 32)
            start = metadata_at + 32 + 256
            yield from xml(data[start : start + min(max(length, 0), MAX_XML_BYTES)])
        if attachments_at:
            (count,) = struct.unpack_from("<i", data, attachments_at + 32)
            for index in range(max(0, min(count, 1000))):
                entry = attachments_at + 32 + 256 + 128 * index
                raw = data[entry + 48 : entry + 128]
                yield Trace("attachment name", _decoded(raw.split(b"\0", 1)[0]))
    except struct.error:
        return


def _png(data: mmap.mmap) -> Iterator[Trace]:
    at = 8
    while at + 12 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, at)
        raw = data[at + 8 : at + 8 + min(length, MAX_VALUE_BYTES)] if kind not in (b"IDAT", b"PLTE") else b""
        if kind == b"eXIf":
            yield from tiff(raw)
        elif kind in (b"tEXt", b"zTXt", b"iTXt"):
            key, _, rest = raw.partition(b"\0")
            yield from described(_decoded(key), _png_text(kind, rest))
        elif kind == b"iCCP":
            profile = _inflated(raw.partition(b"\0")[2][1:])
            yield from (Trace("ICC profile", text) for text in icc.texts(profile))
        elif kind == b"tIME" and len(raw) == 7:
            yield Trace("tIME", "{:04}-{:02}-{:02}T{:02}:{:02}:{:02}".format(*struct.unpack(">H5B", raw)))
        elif kind not in (b"IDAT", b"PLTE", b"IHDR", b"IEND"):
            yield from (Trace(kind.decode("latin-1"), text) for text in runs(raw))
        at += 12 + length


def _png_text(kind: bytes, rest: bytes) -> str:
    if kind == b"tEXt":
        return _decoded(rest)
    if kind == b"zTXt":
        return _decoded(_inflated(rest[1:]))
    packed, text = rest[:1] == b"\1", rest[2:].split(b"\0", 2)[-1]
    return _decoded(_inflated(text) if packed else text)


def _inflated(raw: bytes) -> bytes:
    try:
        return zlib.decompressobj().decompress(raw, MAX_VALUE_BYTES)
    except zlib.error:
        return b""


def jpeg(data: tifffields.Buffer) -> Iterator[Trace]:
    """What a JPEG's comments and application segments say, up to its first scan."""
    at, profile = 2, b""
    while at + 4 <= len(data) and data[at] == 0xFF and data[at + 1] not in (0xDA, 0xD9):
        (length,) = struct.unpack_from(">H", data, at + 2)
        code, raw = data[at + 1], data[at + 4 : at + 2 + length]
        if code == 0xFE:
            yield from described("JPEG comment", _decoded(raw.strip(b"\0")))
        elif code == 0xE1 and raw.startswith(b"Exif\0\0"):
            yield from tiff(raw[6:])
        elif code == 0xE1 and b"<" in raw[:100]:
            yield from xml(raw[raw.index(b"<") :])
        elif code == 0xE2 and raw.startswith(b"ICC_PROFILE\0"):
            profile += raw[14:]
        elif 0xE0 < code < 0xF0 and code != 0xEE:
            yield from (Trace(f"JPEG APP{code - 0xE0}", text) for text in runs(raw))
        at += 2 + length if code != 0xFF else 1
    yield from (Trace("ICC profile", text) for text in icc.texts(profile))


def _webp(data: mmap.mmap) -> Iterator[Trace]:
    at = 12
    while at + 8 <= len(data):
        kind, length = struct.unpack_from("<4sI", data, at)
        raw = data[at + 8 : at + 8 + min(length, MAX_VALUE_BYTES)] if kind in (b"EXIF", b"XMP ") else b""
        yield from tiff(raw.removeprefix(b"Exif\0\0")) if kind == b"EXIF" else xml(raw) if raw else ()
        at += 8 + length + length % 2


def _dicom(path: Path) -> Iterator[Trace]:
    """Every text of the header, sequences and private elements included; pixels are not read."""
    try:
        import pydicom
    except ImportError as error:
        raise ToolMissing("pydicom is not installed", path, "Run: pip install pydicom") from error
    try:
        data = pydicom.dcmread(path, stop_before_pixels=True, force=True)
    except (pydicom.errors.InvalidDicomError, OSError, ValueError, struct.error, KeyError, AttributeError) as error:
        raise BadInput(f"its DICOM header cannot be read: {error}", path) from error
    yield from _elements(data.file_meta if hasattr(data, "file_meta") else ())
    yield from _elements(data)


def _elements(data: Iterable[Any]) -> Iterator[Trace]:
    for element in data:
        name = str(element.keyword or f"({element.tag.group:04X},{element.tag.element:04X})")
        if element.VR == "SQ":
            for item in element.value:
                yield from _elements(item)
        elif element.keyword == "ICCProfile":
            yield from (Trace("ICC profile", text) for text in icc.texts(bytes(element.value or b"")))
        elif isinstance(element.value, bytes):
            yield from (Trace(name, text) for text in runs(element.value[:MAX_VALUE_BYTES]))
        elif element.VR in DICOM_TEXTS and name not in SAFE_DICOM and element.value:
            many = element.value if not isinstance(element.value, str) and element.VM > 1 else [element.value]
            yield from (Trace(name, text) for each in many if _useful(text := str(each), element.VR))


def _useful(text: str, kind: str) -> bool:
    """UIDs of the standard itself name a syntax; code strings are of a fixed set."""
    return kind != "CS" and not text.startswith("1.2.840.10008.")


def _anything(data: mmap.mmap) -> Iterator[Trace]:
    """Keys and values by their looks at both ends of a file (ND2, LIF, OIB, VSI ...), in UTF-8 and UTF-16."""
    parts = [data[:HEAD_BYTES]]
    if len(data) > HEAD_BYTES:
        parts.append(data[max(HEAD_BYTES, len(data) - TAIL_BYTES) :])
    for part in parts:
        yield from _words(part.decode("latin-1"))
        for text in re.findall(rb"(?:[\x20-\x7e\r\n\t]\x00){16,}", part):
            yield from _words(text.decode("utf-16-le"))
