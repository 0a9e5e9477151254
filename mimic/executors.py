"""Many requests: one bad slide stops nothing."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from mimic import privacy, report
from mimic.convert import convert
from mimic.errors import InternalError, MimicError
from mimic.model import Progress, Report, Request
from mimic.programs import bfclient
from mimic.settings import Settings

log = logging.getLogger(__name__)

Watch = Callable[[Request, Progress], None]


def run(requests: Iterable[Request], settings: Settings, watch: Watch) -> Iterator[Report]:
    """A report for each request, in order, one after the other in this process.

    A file that an earlier slide of the run was read from is skipped: it is a companion, not a slide. An output that
    the run has written itself is never replaced, whatever the options say.
    """
    used: dict[Path, Path] = {}
    made: dict[Path, Path] = {}
    try:
        for request in requests:
            owner = used.get(request.input.absolute())
            if owner is not None:
                yield left_alone(_named(request), f"belongs to {_named(request, owner).name} and was read with it")
                continue
            done = _attempt(request, settings, watch, made)
            used |= {Path(name): request.input for name in done.input_sha256}
            made |= {output.absolute(): _named(request) for output in done.outputs}
            yield done
    finally:
        bfclient.shutdown()


def _attempt(request: Request, settings: Settings, watch: Watch, made: dict[Path, Path]) -> Report:
    """``convert`` with every failure turned into a report: the edge, where one slide's bug must not stop the rest."""
    started = time.monotonic()
    try:
        return convert(request, settings, lambda progress: watch(request, progress), taken=made)
    except MimicError as error:
        return failed(request, error, time.monotonic() - started)
    except BrokenPipeError:  # of the watcher: nobody listens any more
        raise
    except Exception as error:
        log.exception("a bug in mimic")
        silent = request.options.deidentify
        text = f"a bug in mimic: {type(error).__name__}" + ("" if silent else f": {error}")
        bug = InternalError(text, None if silent else request.input, "Please report it, with the --log-file")
        return failed(request, bug, time.monotonic() - started)


def _named(request: Request, path: Path | None = None) -> Path:
    """What a report calls the input, or another file of the run: nothing, where names may not get out."""
    return Path(privacy.UNNAMED) if request.options.deidentify else path or request.input


def failed(request: Request, error: MimicError, seconds_s: float) -> Report:
    """The report of a failure."""
    log.info("%s", error)
    seconds_s, code = round(seconds_s, 3), error.exit_code
    return Report(report.SCHEMA, "failed", _named(request), seconds_s=seconds_s, error=str(error), exit_code=code)


def left_alone(path: Path, reason: str | MimicError) -> Report:
    """The report of what was never tried: a file that is skipped, a folder that cannot be searched."""
    if isinstance(reason, MimicError):
        return failed(Request(path), reason, 0.0)
    return Report(report.SCHEMA, "skipped", path, warnings=(reason,))
