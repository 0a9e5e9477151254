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

from mimic.programs.bfreaders import kind_of, metadata_store, new_reader, series_facts

UNSUPPORTED = ("UnknownFormatException", "UnsupportedCompressionException", "MissingLibraryException")
NO_JAVA = 10
NO_BIOFORMATS = 11
"""Exit codes: the JVM did not start, the jar is not Bio-Formats'. Java's own are 1, and 3 for out of memory."""
MINE = "mimic-"
"""Begins the Java names of our threads; what a codec logs in threads of its own belongs to whoever asks first."""

Json = dict[str, Any]


class Reader:
    """A Java reader and the array that takes its boxes, which Java would otherwise make, and collect, for each box."""

    def __init__(self, java: Any) -> None:
        self.java = java
        self._array: Any = None

    def read(self, index: int, box: list[int]) -> Any:
        """A Java array with the bytes of a box, good until the next box is read."""
        sample = jpype.JClass("loci.formats.FormatTools").getBytesPerPixel(self.java.getPixelType())
        size = box[2] * box[3] * self.java.getRGBChannelCount() * sample
        if self._array is None or len(self._array) != size:
            self._array = None  # before the new one is there
            self._array = jpype.JByte[size]
        else:  # as a new one would be: readers leave alone what the file does not have
            jpype.java.util.Arrays.fill(self._array, jpype.JByte(0))
        return self.java.openBytes(index, self._array, *box)


class Series:
    """One series of one file: Java readers, leased to a thread at a time, and the block that takes their pixels.

    made --lease--> leased --release--> free --lease--> leased
                      +----release after close----> closed <--close-- free
    """

    def __init__(self, path: str, number: int, *, most: int, kind: str | None = None) -> None:
        """``kind`` names the Java class that likely reads the file."""
        self._path = path
        self._number = number
        self._most = most
        self._made = 0
        self._closed = False
        self._kind = kind
        self._free: SimpleQueue[Reader] = SimpleQueue()
        self._lock = threading.Lock()
        self.block: mmap.mmap | None = None

    def lease(self) -> Reader:
        """A reader that is ours until ``release``: a free one, else a new one while there are fewer than ``most``."""
        with self._lock:
            if self._closed:
                raise ValueError("read after close")
            grow = self._free.empty() and self._made < self._most
            self._made += grow
        if not grow:
            return self._free.get()
        try:
            java = new_reader(self._path, None, likely=self._kind)
        except jpype.JException:
            with self._lock:
                self._made -= 1
            raise
        self._kind = kind_of(java)
        java.setSeries(self._number)
        return Reader(java)

    def release(self, reader: Reader) -> None:
        """Give a reader back."""
        with self._lock:
            if not self._closed:
                self._free.put(reader)
                return
        reader.java.close()

    def close(self) -> None:
        """Close free readers now, leased ones at their release: native codecs crash when closed under way."""
        with self._lock:
            self._closed = True
        while not self._free.empty():
            self._free.get().java.close()
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
        self._probed: tuple[str, str] | None = None
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
        store = metadata_store()
        reader = new_reader(request["file"], store)
        self._probed = request["file"], kind_of(reader)
        try:
            return {
                "format": str(reader.getFormat()),
                "reader": str(reader.getReader().getClass().getSimpleName()),
                "files": [str(name) for name in reader.getUsedFiles()],
                "series": [series_facts(reader, index) for index in range(reader.getSeriesCount())],
                "xml": str(store.dumpXML()),
            }
        finally:
            reader.close()

    def op_open(self, request: Json) -> Json:
        """A handle on one series; more readers of it are made when a thread first needs one."""
        kind = self._probed[1] if self._probed is not None and self._probed[0] == request["file"] else None
        series = Series(request["file"], request["series"], most=self._threads, kind=kind)
        reader = series.lease()
        shape = series_facts(reader.java, request["series"])
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
            java = reader.java
            if java.getResolution() != request["level"]:
                java.setResolution(request["level"])
            data = reader.read(java.getIndex(*request["plane"]), request["box"])
            size, offset = len(data), request["offset"]
            interleaved = bool(java.isInterleaved())  # of this level: an NDPI's lower ones differ from its largest
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


def _describe(error: Any) -> Json:
    """What a Java exception means for the user; the innermost cause says most."""
    chain = [error]
    while chain[-1].getCause() is not None and len(chain) < 10:
        chain.append(chain[-1].getCause())
    names = [str(link.getClass().getSimpleName()) for link in chain]
    kind = "unsupported" if any(name in UNSUPPORTED for name in names) else "bad_input"
    message = next((str(link.getMessage()) for link in reversed(chain) if link.getMessage()), "")
    if "UnsatisfiedLinkError" in names or "failed to load Turbo JPEG" in message:
        kind = "no_decoder"
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
