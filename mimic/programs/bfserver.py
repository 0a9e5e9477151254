"""The child process that holds the JVM: Bio-Formats behind a pipe of JSON lines and a shared block of pixels.

Runs as ``python -m mimic.programs.bfserver``; its client is ``bfclient``. It may crash, hang or run out of memory:
the client then reports a clear error and starts another. It ends when its stdin does, so that no JVM outlives mimic.

    request   {"id": 1, "op": "read", ...}         answer   {"id": 1, "result": {...}, "warnings": [...]}
                                                            {"id": 1, "error": {"kind", "message"}, "warnings": [...]}

Java objects stop here: what crosses the pipe is plain JSON, what crosses the shared block is bytes.
"""

from __future__ import annotations

import json
import mmap
import os
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import LifoQueue
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
UNSUPPORTED = ("UnknownFormatException", "UnsupportedCompressionException", "MissingLibraryException")
GROUPED = ("DicomReader",)
"""Readers whose files belong together by an identifier inside them (SeriesInstanceUID), not by their names."""

Json = dict[str, Any]


class Server:
    """Open readers by handle. Requests run in threads; a reader is leased to one thread at a time."""

    def __init__(self, threads: int) -> None:
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="bf")
        self._threads = threads
        self._leases: dict[int, LifoQueue[Any]] = {}
        self._made: dict[int, list[Any]] = {}
        self._opened: dict[int, tuple[str, int]] = {}
        self._shared: mmap.mmap | None = None
        self._lock = threading.Lock()
        self._next_handle = 1
        self._log = _collect_warnings()
        self._out = _claim_stdout()

    def serve(self) -> None:
        """Answer requests until stdin ends."""
        for line in sys.stdin.buffer:
            request = json.loads(line)
            if request["op"] == "read":
                self._pool.submit(self._answer, request)
            else:
                self._answer(request)

    def _answer(self, request: Json) -> None:
        answer: Json = {"id": request["id"]}
        try:
            answer["result"] = getattr(self, f"op_{request['op']}")(request)
        except jpype.JException as error:
            answer["error"] = _describe(error)
        answer["warnings"] = self._drain_warnings()
        with self._lock:
            os.write(self._out, json.dumps(answer).encode() + b"\n")

    def _drain_warnings(self) -> list[str]:
        with jpype.synchronized(self._log):
            events = [f"{e.getFormattedMessage()}" for e in self._log.list if e.getLevel().toInt() >= WARN]
            self._log.list.clear()
        return events

    def op_hello(self, _: Json) -> Json:
        """Versions of what is running here."""
        return {
            "java": str(jpype.java.lang.System.getProperty("java.version")),
            "bioformats": str(jpype.JClass("loci.formats.FormatTools").VERSION),
        }

    def op_share(self, request: Json) -> Json:
        """Map the client's shared block; it may unlink the file after the answer."""
        with Path(request["file"]).open("r+b") as file:
            self._shared = mmap.mmap(file.fileno(), 0)
        return {}

    def op_probe(self, request: Json) -> Json:
        """Format, files, series and OME-XML of a file."""
        store = _metadata_store()
        reader = _new_reader(request["file"], store)
        try:
            return {
                "format": str(reader.getFormat()),
                "reader": str(reader.getReader().getClass().getSimpleName()),
                "files": [str(name) for name in reader.getUsedFiles()],
                "series": [_series(reader, index) for index in range(reader.getSeriesCount())],
                "xml": str(store.dumpXML()),
            }
        finally:
            reader.close()

    def op_open(self, request: Json) -> Json:
        """A handle on one series; readers are made when a thread first needs one."""
        handle = self._next_handle
        self._next_handle += 1
        self._opened[handle] = (request["file"], request["series"])
        self._leases[handle] = LifoQueue()
        self._made[handle] = []
        reader = self._lease(handle)
        reader.setSeries(request["series"])
        shape = _series(reader, request["series"])
        self._leases[handle].put(reader)
        return {"handle": handle, "series": shape}

    def _lease(self, handle: int) -> Any:
        with self._lock:
            if self._leases[handle].empty() and len(self._made[handle]) < self._threads:
                self._made[handle].append(None)
                fresh = len(self._made[handle]) - 1
            else:
                fresh = -1
        if fresh < 0:
            return self._leases[handle].get()
        path, series = self._opened[handle]
        reader = _new_reader(path, None)
        reader.setSeries(series)
        self._made[handle][fresh] = reader
        return reader

    def op_read(self, request: Json) -> Json:
        """Bytes of a box of plane 0, as Bio-Formats gives them, into the shared block at ``offset``."""
        if self._shared is None:
            return {"bytes": 0}
        reader = self._lease(request["handle"])
        try:
            data = reader.openBytes(request["plane"], *request["box"])
        finally:
            self._leases[request["handle"]].put(reader)
        size, offset = len(data), request["offset"]
        if size <= request["room"]:
            with memoryview(self._shared)[offset : offset + size] as view:
                jpype.nio.convertToDirectBuffer(view).put(data)
        return {"bytes": size}

    def op_close(self, request: Json) -> Json:
        """Close all readers of a handle; the client sends it when no read is under way."""
        for reader in self._made.pop(request["handle"]):
            if reader is not None:
                reader.close()
        del self._leases[request["handle"]]
        return {}


WARN = 30000
"""logback's Level.WARN_INT."""


def _collect_warnings() -> Any:
    """Bio-Formats reports damaged blocks as log lines and returns black pixels, so its log is part of the answer."""
    factory = jpype.JClass("org.slf4j.LoggerFactory")
    root = factory.getLogger("ROOT")
    root.detachAndStopAllAppenders()
    root.setLevel(jpype.JClass("ch.qos.logback.classic.Level").WARN)
    appender = jpype.JClass("ch.qos.logback.core.read.ListAppender")()
    appender.setContext(root.getLoggerContext())
    appender.start()
    root.addAppender(appender)
    return appender


def _claim_stdout() -> int:
    """Keep the pipe to ourselves: whatever Java or a native codec prints goes to stderr."""
    mine = os.dup(1)
    os.dup2(2, 1)
    return mine


def _metadata_store() -> Any:
    services = jpype.JClass("loci.common.services.ServiceFactory")()
    return services.getInstance(jpype.JClass("loci.formats.services.OMEXMLService")).createOMEXMLMetadata()


def _reader_classes() -> Any:
    classes = jpype.JClass("loci.formats.ImageReader").getDefaultReaderClasses()
    for reader in list(classes.getClasses()):
        if str(reader.getSimpleName()) in DENIED:
            classes.removeClass(reader)
    return classes


def _new_reader(path: str, store: Any) -> Any:
    """An initialised reader: resolutions kept apart, files grouped only where an identifier inside them says so."""
    reader = jpype.JClass("loci.formats.ImageReader")(_reader_classes())
    reader.setFlattenedResolutions(False)
    reader.setOriginalMetadataPopulated(False)
    kind = str(reader.getReader(path).getClass().getSimpleName())
    reader.close()  # some readers stay open after being asked whether they know the file
    reader.setGroupFiles(kind in GROUPED)
    if store is not None:
        reader.setMetadataStore(store)
    try:
        reader.setId(path)
    except jpype.JException:
        reader.close()
        raise
    return reader


def _series(reader: Any, index: int) -> Json:
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
        "indexed": bool(reader.isIndexed()) and not bool(reader.isFalseColor()),
        "thumbnail": bool(reader.isThumbnailSeries()),
        "pixel_type": str(jpype.JClass("loci.formats.FormatTools").getPixelTypeString(reader.getPixelType())),
        "bits": reader.getBitsPerPixel(),
    }


def _describe(error: Any) -> Json:
    """What a Java exception means for the user; the innermost cause says most."""
    chain = [error]
    while chain[-1].getCause() is not None and len(chain) < 10:
        chain.append(chain[-1].getCause())
    names = [str(link.getClass().getSimpleName()) for link in chain]
    kind = "unsupported" if any(name in UNSUPPORTED for name in names) else "bad_input"
    message = next((str(link.getMessage()) for link in reversed(chain) if link.getMessage()), "")
    return {"kind": kind, "message": message, "exception": names[0]}


def main() -> None:
    """Start the JVM with the flags of argv (see ``jvm.java_flags``) and serve."""
    library, jar, threads, *flags = sys.argv[1:]
    jpype.startJVM(library, *flags, classpath=[jar], convertStrings=False)
    Server(int(threads)).serve()
    os._exit(0)  # a JVM thread stuck in a codec must not keep us


if __name__ == "__main__":
    main()
