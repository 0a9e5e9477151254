"""Zarr arrays as their documents and files say: shape, type of samples, codecs, and which chunks are there.

Documents are judged before zarr-python sees them: a store may name any codec that is registered, and one of them
(pickle) runs what it unpacks. Only codecs of numbers are let through.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mimic.errors import BadInput, Unsupported

Json = dict[str, Any]

MAX_DOCUMENT_BYTES = 64 << 20
REMEDY = "Copy the store again, with every file of it, from where it was made"
CODECS_2 = frozenset(
    (
        *("blosc", "zstd", "zlib", "gzip", "bz2", "lzma", "lz4", "shuffle", "delta", "packbits", "fixedscaleoffset"),
        *("adler32", "crc32", "crc32c", "fletcher32", "jenkins_lookup3"),
    )
)
CODECS_3 = frozenset(
    (
        *("bytes", "transpose", "blosc", "zstd", "gzip", "crc32c", "sharding_indexed"),
        *(f"numcodecs.{name}" for name in CODECS_2),
    )
)
KINDS = {
    **{name: name for name in ("uint8", "int8", "uint16", "int16", "uint32", "int32")},
    "bool": "bit",
    "float16": "float",
    "float32": "float",
    "float64": "double",
    "complex64": "complex",
    "complex128": "double-complex",
}
"""OME's names of types."""
NUMPY_2 = {
    "b1": "bool",
    "u1": "uint8",
    "i1": "int8",
    "u2": "uint16",
    "i2": "int16",
    "u4": "uint32",
    "i4": "int32",
    "f2": "float16",
    "f4": "float32",
    "f8": "float64",
    "c8": "complex64",
    "c16": "complex128",
}
BITS = {"bit": 1, "float": 32, "double": 64, "complex": 64, "double-complex": 128}
BLOSC_HEADER_BYTES = 16
BLOSC_SIZE_AT = slice(12, 16)
"""Where a Blosc buffer states its own length (blosc.h, bytes 12 to 15, little-endian)."""


@dataclass(frozen=True, slots=True)
class Layout:
    """One array in ``folder``. ``stored`` is the shape of what one file holds: a chunk, or a shard of several.

    ``kind`` is OME's name of the type of samples. ``prefix`` and ``separator`` make the names of files.
    """

    folder: Path
    zarr_format: int
    shape: tuple[int, ...]
    stored: tuple[int, ...]
    chunk: tuple[int, ...]
    kind: str
    fill: float
    prefix: str
    separator: str
    blosc: bool

    @property
    def grid(self) -> tuple[int, ...]:
        """How many files there may be along each axis."""
        return tuple(math.ceil(size / part) for size, part in zip(self.shape, self.stored, strict=True))

    def file(self, place: Sequence[int]) -> Path:
        """The file of one chunk or shard, by its place in the grid."""
        return self.folder / (self.prefix + self.separator.join(map(str, place)))


def read(path: Path) -> Json:
    """A JSON document. Raises BadInput for one that is missing, too large, or none."""
    try:
        if path.stat().st_size > MAX_DOCUMENT_BYTES:
            raise BadInput("is too large for a metadata document", path, REMEDY)
        found = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise BadInput(f"cannot be read: {error.strerror or error}", path, REMEDY) from error
    except (ValueError, RecursionError) as error:
        raise BadInput(f"is no JSON document ({str(error)[:100]})", path, REMEDY) from error
    if not isinstance(found, dict):
        raise BadInput("is no JSON object", path, REMEDY)
    return found


def layout(folder: Path) -> Layout:
    """What the document of the array in ``folder`` says. Raises BadInput for one that is missing or damaged,
    Unsupported for samples, chunks and codecs that are not those of images."""
    try:
        if (folder / "zarr.json").is_file():
            return _three(folder, read(folder / "zarr.json"))
        if (folder / ".zarray").is_file():
            return _two(folder, read(folder / ".zarray"))
    except (KeyError, TypeError, AttributeError, IndexError) as error:
        raise BadInput(f"its array document is incomplete ({error})", folder, REMEDY) from error
    raise BadInput("there is no array", folder, REMEDY)


def _two(folder: Path, said: Json) -> Layout:
    filters, compressor = said.get("filters") or [], said.get("compressor")
    _refuse_codecs(
        folder, [each["id"] for each in (*filters, *([compressor] if compressor is not None else []))], CODECS_2
    )
    dtype = said["dtype"]
    found = re.fullmatch(r"[<>|]([a-z][0-9]{1,2})", dtype) if isinstance(dtype, str) else None
    shape = _sizes(folder, said["shape"], least=0)
    chunk = _sizes(folder, said["chunks"], least=1)
    return Layout(
        folder,
        2,
        shape,
        _same(folder, shape, chunk),
        chunk,
        _kind(folder, NUMPY_2.get(found[1]) if found else None, dtype),
        _fill(said.get("fill_value")),
        "",
        "/" if said.get("dimension_separator") == "/" else ".",
        compressor is not None and compressor["id"] == "blosc",
    )


def _three(folder: Path, said: Json) -> Layout:
    if said.get("node_type") != "array":
        raise BadInput("there is a group where an array should be", folder, REMEDY)
    codecs = said["codecs"]
    _refuse_codecs(folder, list(_names(codecs)), CODECS_3)
    if said["chunk_grid"]["name"] != "regular":
        raise Unsupported("its chunks are not all of one size", folder, "Write it with a regular grid of chunks")
    shape = _sizes(folder, said["shape"], least=0)
    stored = _sizes(folder, said["chunk_grid"]["configuration"]["chunk_shape"], least=1)
    sharded = codecs[0]["name"] == "sharding_indexed"
    chunk = _sizes(folder, codecs[0]["configuration"]["chunk_shape"], least=1) if sharded else stored
    encoding = said["chunk_key_encoding"]
    usual = "/" if encoding["name"] == "default" else "."
    separator = (encoding.get("configuration") or {}).get("separator", usual)
    if encoding["name"] not in ("default", "v2") or separator not in ("/", "."):
        raise Unsupported("names its chunks in a way that is not known", folder)
    kind = said["data_type"]
    return Layout(
        folder,
        3,
        shape,
        _same(folder, shape, stored),
        _same(folder, shape, chunk),
        _kind(folder, kind if isinstance(kind, str) else None, kind),
        _fill(said.get("fill_value")),
        f"c{separator}" if encoding["name"] == "default" else "",
        separator,
        codecs[-1]["name"] == "blosc",
    )


def _names(codecs: Sequence[Json]) -> Iterator[str]:
    """Names of codecs, those inside of shards too."""
    for each in codecs:
        yield each["name"]
        inside = each.get("configuration") or {}
        for key in ("codecs", "index_codecs"):
            yield from _names(inside.get(key) or [])


def _refuse_codecs(folder: Path, names: Sequence[object], known: frozenset[str]) -> None:
    for name in names:
        if name not in known:
            message = f"its chunks are packed with {str(name)[:60]!r}, which is not read here"
            raise Unsupported(message, folder, "Write it again with Blosc, Zstandard or gzip")


def _sizes(folder: Path, listed: object, *, least: int) -> tuple[int, ...]:
    sound = isinstance(listed, list) and 0 < len(listed) <= 32
    if not sound or not all(type(each) is int and least <= each < 1 << 48 for each in listed):  # type: ignore[attr-defined]
        raise BadInput(f"states a size that is none: {str(listed)[:60]}", folder, REMEDY)
    return tuple(listed)  # type: ignore[arg-type]


def _same(folder: Path, shape: tuple[int, ...], chunk: tuple[int, ...]) -> tuple[int, ...]:
    if len(shape) != len(chunk):
        raise BadInput(f"has {len(shape)} axes, and chunks of {len(chunk)}", folder, REMEDY)
    return chunk


def _kind(folder: Path, numpy_name: str | None, stated: object) -> str:
    if numpy_name not in KINDS:
        remedy = "Write it again as 8, 16 or 32 bit numbers"
        raise Unsupported(f"has samples of type {str(stated)[:40]}", folder, remedy)
    return KINDS[numpy_name]


def _fill(stated: object) -> float:
    """The value of chunks that are not stored; 0 where none is stated."""
    if isinstance(stated, str):
        return math.nan if stated == "NaN" else math.inf if stated == "Infinity" else 0.0
    return float(stated) if isinstance(stated, int | float) and abs(stated) < 1e300 else 0.0


def bits(kind: str) -> int:
    """Bits of a sample."""
    return BITS.get(kind) or int(kind.lstrip("uint"))


def absent(array: Layout) -> tuple[int, int]:
    """How many chunks (or shards) are not stored, and how many there would be. Looks at names only."""
    total = math.prod(array.grid)
    return total - sum(_within(name, array) for name in _files(array)), total


def _files(array: Layout) -> Iterator[str]:
    """Names of the files of an array, as ``Layout.file`` makes them."""
    for folder, _, files in os.walk(array.folder):
        inside = Path(folder).relative_to(array.folder).parts
        for name in files:
            yield "/".join((*inside, name))


def _within(name: str, array: Layout) -> bool:
    if not name.startswith(array.prefix):
        return False
    parts = name.removeprefix(array.prefix).split(array.separator)
    return len(parts) == len(array.grid) and all(
        part.isascii() and part.isdecimal() and len(part) < 15 and int(part) < count and part == str(int(part))
        for part, count in zip(parts, array.grid, strict=True)
    )


def cut_short(array: Layout, place: Sequence[int]) -> str | None:
    """Why the file of a chunk cannot be whole, told from its head; None where nothing tells, or it is not stored.

    Blosc itself reads on beyond the end of what it is given (seen with numcodecs 0.16: a chunk without its last byte).
    """
    path = array.file(place)
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            head = file.read(BLOSC_HEADER_BYTES)
    except FileNotFoundError:
        return None
    except OSError as error:
        return f"cannot be read ({error.strerror or error})"
    if not size:
        return "is empty"
    if not array.blosc:
        return None
    stated = int.from_bytes(head[BLOSC_SIZE_AT], "little") if len(head) == BLOSC_HEADER_BYTES else 0
    return None if stated == size else f"has {size} bytes of {stated}" if stated else "has no Blosc header"
