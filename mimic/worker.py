"""A worker process: slides in, progress and reports out, one slide at a time. Its other end is pool.py.

    idle --run--> converting --claim--> waiting --answer--> converting --done--> idle
    any --stdin's end--> tidying up --> ended

The supervisor's death, a Ctrl-C there and a worker's retirement look the same from here: stdin ends. What this process
would leave behind if it were killed is told as it comes and goes (leftovers.py).
"""

from __future__ import annotations

import logging
import logging.handlers
import os
import pickle
import signal
import sys
import threading
import time
from pathlib import Path
from queue import SimpleQueue
from typing import Any, Literal, cast

from mimic import interrupts, leftovers
from mimic.convert import Claim
from mimic.errors import Interrupted, MimicError
from mimic.executors import run_one
from mimic.model import Progress, Report, Request
from mimic.programs import bfclient
from mimic.settings import Settings

EVERY_S = 0.1
"""Between two messages about the same stage: a screen shows no more."""

ToWorker = (
    tuple[Literal["settings"], Settings, int]
    | tuple[Literal["run"], Request]
    | tuple[Literal["answer"], MimicError | None]
)
FromWorker = (
    tuple[Literal["progress"], Progress]
    | tuple[Literal["log"], logging.LogRecord]
    | tuple[Literal["left"], leftovers.Kind, str, bool]
    | tuple[Literal["claim"], tuple[Path, ...], tuple[Path, ...]]
    | tuple[Literal["done"], Report]
)


class Channel:
    """Both directions. Stdin and stdout are taken away from everybody else, so that a library that prints breaks
    nothing."""

    def __init__(self) -> None:
        self._in, self._out = os.fdopen(os.dup(0), "rb"), os.dup(1)
        nothing = os.open(os.devnull, os.O_RDWR)
        os.dup2(nothing, 0)
        os.dup2(nothing, 1)
        self._lock = threading.Lock()
        self.inbox: SimpleQueue[Any] = SimpleQueue()
        threading.Thread(target=self._listen, daemon=True, name="mimic-worker-inbox").start()

    def _listen(self) -> None:
        try:
            while True:
                self.inbox.put(pickle.load(self._in))
        except (EOFError, OSError, pickle.UnpicklingError):
            self.inbox.put(None)
            if hasattr(signal, "pthread_kill"):
                signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGTERM)
            else:
                os._exit(Interrupted.exit_code)

    def send(self, *message: object) -> None:
        """From any thread. What nobody hears any more is dropped: ``_listen`` ends us then."""
        data = memoryview(pickle.dumps(message))
        with self._lock:
            try:
                while data:
                    data = data[os.write(self._out, data) :]
            except OSError:
                return

    def put_nowait(self, record: logging.LogRecord) -> None:
        """A log record that is ready to be sent: what a QueueHandler asks of a queue."""
        self.send("log", record)


class Watch:
    """Tells progress, not more often than it is looked at."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self._stage, self._said = "", 0.0

    def __call__(self, _request: Request, step: Progress) -> None:
        now = time.monotonic()
        if step.stage != self._stage or now - self._said >= EVERY_S:
            self._stage, self._said = step.stage, now
            self._channel.send("progress", step)


def main() -> None:
    """Convert what comes, until stdin ends."""
    signal.signal(signal.SIGTERM, _interrupt)
    for name in ("SIGINT", "SIGHUP"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    channel = Channel()
    leftovers.listen(lambda kind, what, there: channel.send("left", kind, what, there))
    try:
        settings: Settings | None = None
        while (message := channel.inbox.get()) is not None:
            if message[0] == "settings":
                settings = message[1]
                _log_to(channel, message[2])
            elif settings is not None:
                channel.send("done", run_one(message[1], settings, Watch(channel), _claim(channel)))
    except KeyboardInterrupt:
        pass
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        bfclient.shutdown()


def _interrupt(*_: object) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # once: tidying up must not be interrupted
    interrupts.interrupt()


def _log_to(channel: Channel, level: int) -> None:
    """Records go to the supervisor's log, through our own handler: de-identification puts its filter on it."""
    handler = logging.handlers.QueueHandler(cast(Any, channel))
    logging.getLogger().addHandler(handler if level else logging.NullHandler())
    logging.getLogger("mimic").setLevel(level)


def _claim(channel: Channel) -> Claim:
    def claim(files: tuple[Path, ...], outputs: tuple[Path, ...]) -> None:
        channel.send("claim", files, outputs)
        answer = channel.inbox.get()
        if answer is None:
            raise Interrupted("stopped")
        if answer[1] is not None:
            raise answer[1]

    return claim


if __name__ == "__main__":
    main()
    sys.exit(0)
