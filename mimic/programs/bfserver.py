"""The child process that holds the JVM: Bio-Formats behind a pipe of JSON lines and a shared block of pixels.

Runs as ``python -m mimic.programs.bfserver``; its client is ``bfclient``. It may crash, hang or run out of memory:
the client then reports a clear error and starts another. It ends when its stdin does, whatever its threads are at, so
that no JVM outlives mimic.

    request   {"id": 1, "op": "read", ...}         answer   {"id": 1, "result": {...}, "warnings": [...]}
                                                            {"id": 1, "error": {"kind", "message"}, "warnings": [...]}

Java objects stop here: what crosses the pipe is plain JSON, what crosses a shared block is bytes.
"""

from __future__ import annotations

import json
import mmap
import os
import shutil
import sys
import threading
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from pathlib import Path
from queue import SimpleQueue
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
GROUPED = (
    *("DicomReader", "OMETiffReader", "CellSensReader", "FV1000Reader"),
    *("NDPISReader", "HamamatsuVMSReader", "AFIReader"),
)
"""Readers whose files belong together by what an index or an identifier inside them says, not by names that look alike:
those of sets.py. OMETiffReader takes a companion.ome for a TIFF when it may not group."""

NO_JAVA = 10
NO_BIOFORMATS = 11
"""Exit codes: the JVM did not start, the jar is not Bio-Formats'. Java's own are 1, and 3 for out of memory."""
MINE = "mimic-"
"""Begins the Java names of our threads; what a codec logs in threads of its own belongs to whoever asks first."""

Json = dict[str, Any]


class Series:
    """One series of one file: Java readers, leased to a thread at a time, and the block that takes their pixels.

    made --lease--> leased --release--> free --lease--> leased
                      +----release after close----> closed <--close-- free
    """

    def __init__(self, path: str, number: int, *, most: int) -> None:
        self._path = path
        self._number = number
        self._most = most
        self._made = 0
        self._closed = False
        self._free: SimpleQueue[Any] = SimpleQueue()
        self._lock = threading.Lock()
        self.block: mmap.mmap | None = None

    def lease(self) -> Any:
        """A reader that is ours until ``release``: a free one, else a new one while there are fewer than ``most``."""
        with self._lock:
            if self._closed:
                raise ValueError("read after close")
            grow = self._free.empty() and self._made < self._most
            self._made += grow
        if not grow:
            return self._free.get()
        try:
            reader = _new_reader(self._path, None)
        except jpype.JException:
            with self._lock:
                self._made -= 1
            raise
        reader.setSeries(self._number)
        return reader

    def release(self, reader: Any) -> None:
        """Give a reader back."""
        with self._lock:
            if not self._closed:
                self._free.put(reader)
                return
        reader.close()

    def close(self) -> None:
        """Close free readers now, leased ones at their release: native codecs crash when closed under way."""
        with self._lock:
            self._closed = True
        while not self._free.empty():
            self._free.get().close()
        if self.block is not None:
            with suppress(BufferError):  # Java may still hold a view of it: then it goes with that
                self.block.close()


class Server:
    """Open series by handle. Reads run in a pool, all else one after the other in a thread of its own."""

    def __init__(self, threads: int, out: int) -> None:
        """``out`` is the descriptor that answers go to."""
        self._threads = threads
        self._reads = ThreadPoolExecutor(threads, thread_name_prefix=f"{MINE}read", initializer=_name_thread)
        self._rest = ThreadPoolExecutor(1, thread_name_prefix=f"{MINE}rest", initializer=_name_thread)
        self._opened: dict[int, Series] = {}
        self._next_handle = 1
        self._lock = threading.Lock()
        self._log = _collect_warnings()
        self._out = out

    def serve(self) -> None:
        """Answer requests until stdin ends."""
        for line in sys.stdin.buffer:
            request = json.loads(line)
            answer: Json = {"id": request["id"]}
            pool = self._reads if request["op"] == "read" else self._rest
            pool.submit(self._work, request, answer).add_done_callback(partial(self._reply, answer))

    def _work(self, request: Json, answer: Json) -> None:
        try:
            answer["result"] = getattr(self, f"op_{request['op']}")(request)
        finally:
            answer["warnings"] = self._drain_warnings()

    def _reply(self, answer: Json, done: Future[None]) -> None:
        """Send an answer, whatever happened: a request without one would wait for ever."""
        error = done.exception()
        if isinstance(error, jpype.JException):
            answer["error"] = _describe(error)
        elif error is not None:
            answer["error"] = {"kind": "bug", "message": str(error), "exception": type(error).__name__}
        line = memoryview(json.dumps(answer).encode() + b"\n")
        with self._lock:
            while line:
                line = line[os.write(self._out, line) :]

    def _drain_warnings(self) -> list[str]:
        """What was logged since in this thread, and in threads that are not ours."""
        me = threading.current_thread().name
        mine: list[Any] = []
        others: list[Any] = []
        with jpype.synchronized(self._log):
            for event in self._log.list:
                thread = str(event.getThreadName())
                (mine if thread == me or not thread.startswith(MINE) else others).append(event)
            self._log.list.clear()
            for event in others:
                self._log.list.add(event)
        return [str(event.getFormattedMessage()) for event in mine if event.getLevel().toInt() >= WARN]

    def op_hello(self, _: Json) -> Json:
        """Versions of what is running here."""
        return {
            "java": str(jpype.java.lang.System.getProperty("java.version")),
            "bioformats": str(jpype.JClass("loci.formats.FormatTools").VERSION),
        }

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
        """A handle on one series; more readers of it are made when a thread first needs one."""
        series = Series(request["file"], request["series"], most=self._threads)
        reader = series.lease()
        shape = _series(reader, request["series"])
        series.release(reader)
        handle, self._next_handle = self._next_handle, self._next_handle + 1
        self._opened[handle] = series
        return {"handle": handle, "series": shape}

    def op_share(self, request: Json) -> Json:
        """Map the block of a handle; the client may unlink the file after the answer."""
        with Path(request["file"]).open("r+b") as file:
            self._opened[request["handle"]].block = mmap.mmap(file.fileno(), 0)
        return {}

    def op_read(self, request: Json) -> Json:
        """Bytes of a box of plane z, c, t of a level, as they are, into the handle's block at ``offset``."""
        series = self._opened[request["handle"]]
        reader = series.lease()
        try:
            if reader.getResolution() != request["level"]:
                reader.setResolution(request["level"])
            data = reader.openBytes(reader.getIndex(*request["plane"]), *request["box"])
            size, offset = len(data), request["offset"]
            interleaved = bool(reader.isInterleaved())  # of this level: an NDPI's lower ones differ from its largest
            if series.block is not None and size <= request["room"]:
                with memoryview(series.block)[offset : offset + size] as view:
                    jpype.nio.convertToDirectBuffer(view).put(data)
        finally:
            series.release(reader)
        return {"bytes": size, "interleaved": interleaved}

    def op_close(self, request: Json) -> Json:
        """Close all readers of a handle; reads that are under way end first, and nobody waits for them."""
        self._opened.pop(request["handle"]).close()
        return {}


MOST_TINTS = 16
"""Channels of which one pixel each is read for their colour; spectral images have more, and no colours."""
WARN = 30000
"""logback's Level.WARN_INT."""


def _name_thread() -> None:
    """Give Java our thread's name, by which its log tells who was at work."""
    jpype.java.lang.Thread.currentThread().setName(threading.current_thread().name)


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
    """Start the JVM with the flags of argv (see ``jvm.java_flags``) and serve; remove our private folder at the end."""
    library, jar, threads, tmp, *flags = sys.argv[1:]
    out = _claim_stdout()
    try:
        jpype.startJVM(library, *flags, classpath=[jar], convertStrings=False)
    except (OSError, RuntimeError, ValueError) as error:
        print(f"the JVM did not start: {error}", file=sys.stderr)
        sys.exit(NO_JAVA)
    try:
        server = Server(int(threads), out)
    except TypeError as error:  # JPype's word for a class that is not there
        print(error, file=sys.stderr, flush=True)
        os._exit(NO_BIOFORMATS)
    server.serve()
    shutil.rmtree(tmp, ignore_errors=True)  # the client does so too, unless it was killed
    os._exit(0)  # a JVM thread stuck in a codec must not keep us


if __name__ == "__main__":
    main()
