"""The edge of every command: failures become one message and an exit code, signals an orderly end."""

from __future__ import annotations

import logging
import math
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from click.exceptions import Exit

from mimic import interrupts
from mimic.errors import InternalError, Interrupted, MimicError, UsageError

log = logging.getLogger("mimic")

TIDY_S = 5.0
"""Further Ctrl-Cs count only after this: people press it twice, and tidying up takes a fraction of it."""


@contextmanager
def edge(log_file: Path | None) -> Iterator[None]:
    """Where every failure becomes one message and an exit code; a traceback goes to the log file only."""
    with _interruptible():
        try:
            with _logging(log_file):
                yield
        except (KeyboardInterrupt, Interrupted):
            _tell("interrupted; nothing unfinished was left behind")
            raise Exit(Interrupted.exit_code) from None
        except MimicError as error:
            _tell(error)
            raise Exit(error.exit_code) from None
        finally:
            bfclient = sys.modules.get("mimic.programs.bfclient")
            if bfclient is not None:
                bfclient.shutdown()


def _tell(failure: MimicError | str) -> None:
    from mimic import screen

    screen.error(failure)


@contextmanager
def _logging(log_file: Path | None) -> Iterator[None]:
    """Log into the file, if one is asked for; whatever nobody foresaw becomes an InternalError."""
    handler = _handler(log_file)
    root = logging.getLogger()
    root.addHandler(handler)
    try:
        yield
    except (MimicError, Exit, BrokenPipeError):
        raise
    except Exception as error:
        log.exception("a bug in mimic")
        text = f"a bug in mimic: {type(error).__name__}: {error}"
        raise InternalError(text, remedy="Please report it, with the --log-file") from error
    finally:
        root.removeHandler(handler)
        log.setLevel(logging.NOTSET)
        handler.close()


def _handler(log_file: Path | None) -> logging.Handler:
    if log_file is None:
        return logging.NullHandler()  # else Python prints warnings and tracebacks itself
    try:
        handler = logging.FileHandler(log_file, encoding="utf-8", errors="backslashreplace")
    except OSError as error:
        raise UsageError(f"cannot be written as a log ({error.strerror})", log_file, "Name another") from error
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s %(message)s"))
    log.setLevel(logging.DEBUG)
    return handler


@contextmanager
def _interruptible() -> Iterator[None]:
    """SIGTERM and SIGHUP end a conversion as Ctrl-C does; a second one must not end the tidying up.

    What the caller has told to be ignored (nohup, a shell's background jobs) stays ignored.
    """
    last_s = -math.inf
    interrupts.forget()

    def interrupt(*_: object) -> None:
        nonlocal last_s
        if time.monotonic() - last_s > TIDY_S:
            last_s = time.monotonic()
            interrupts.interrupt()

    numbers = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
    before = {number: signal.getsignal(number) for number in numbers}
    heard = [number for number in numbers if before[number] is not signal.SIG_IGN]
    for number in heard:
        signal.signal(number, interrupt)
    try:
        yield
    finally:
        for number in heard:
            signal.signal(number, before[number])
