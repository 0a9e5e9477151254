"""Many requests: one bad slide stops nothing.

``run_one`` is one slide as one task: all that a worker process, a queue or a cluster needs to call. ``run`` does many
of them in this process, one after the other; pool.py does them in several.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Generator, Iterable
from functools import partial
from pathlib import Path

from mimic import interrupts, privacy, report, staging
from mimic.convert import Claim, convert, free
from mimic.errors import InternalError, MimicError
from mimic.model import Progress, Report, Request
from mimic.programs import bfclient
from mimic.settings import Settings

log = logging.getLogger(__name__)

Watch = Callable[[Request, Progress], None]


class LeftAlone(MimicError):
    """No failure: the input was read as a part of another slide of the run."""

    exit_code = 0
    http_status = 200


class Claims:
    """What the slides of a run have read and made so far.

    A file that an earlier slide was read from is skipped: it is a companion, not a slide. An output that the run has
    written itself is never replaced, whatever the options say.
    """

    def __init__(self) -> None:
        self._read: dict[Path, Path] = {}
        self._made: dict[Path, Path] = {}

    def owner(self, request: Request) -> str | None:
        """Why the input is to be left alone, if it is."""
        owner = self._read.get(request.input.absolute())
        same = owner is None or owner == request.input  # a manifest may ask for two views of one slide
        return None if same else f"belongs to {named(request, owner).name} and was read with it"

    def check(self, request: Request, outputs: Iterable[Path]) -> None:
        """Raises LeftAlone or OutputError when ``request`` may not go on."""
        reason = self.owner(request)
        if reason is not None:
            raise LeftAlone(reason)
        for output in outputs:
            staging.refuse_taken(output, self._made)

    def settle(self, request: Request, done: Report) -> None:
        """Take note of what became of ``request``."""
        self._read |= {Path(name).absolute(): request.input for name in done.input_sha256}
        self._made |= {output.absolute(): named(request) for output in done.outputs}


def run(requests: Iterable[Request], settings: Settings, watch: Watch) -> Generator[tuple[Request, Report]]:
    """A report for each request, in order, one after the other in this process."""
    claims = Claims()
    try:
        for request in requests:
            interrupts.check()
            reason = claims.owner(request)
            if reason is not None:
                yield request, left_alone(named(request), reason)
                continue
            done = run_one(request, settings, watch, partial(_claim, claims, request))
            claims.settle(request, done)
            yield request, done
    finally:
        bfclient.shutdown()


def _claim(claims: Claims, request: Request, _: tuple[Path, ...], outputs: tuple[Path, ...]) -> None:
    claims.check(request, outputs)


def run_one(
    request: Request, settings: Settings, watch: Watch = lambda _request, _progress: None, claim: Claim = free
) -> Report:
    """``convert`` with every failure turned into a report: the edge, where one slide's bug must not stop the rest."""
    started = time.monotonic()
    try:
        return convert(request, settings, lambda progress: watch(request, progress), claim=claim)
    except LeftAlone as alone:
        return left_alone(named(request), alone.message)
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


def named(request: Request, path: Path | None = None) -> Path:
    """What a report calls the input, or another file of the run: nothing, where names may not get out."""
    return Path(privacy.UNNAMED) if request.options.deidentify else path or request.input


def failed(request: Request, error: MimicError, seconds_s: float) -> Report:
    """The report of a failure."""
    log.info("%s", error)
    seconds_s, code = round(seconds_s, 3), error.exit_code
    return Report(report.SCHEMA, "failed", named(request), seconds_s=seconds_s, error=str(error), exit_code=code)


def left_alone(path: Path, reason: str | MimicError) -> Report:
    """The report of what was never tried: a file that is skipped, a folder that cannot be searched."""
    if isinstance(reason, MimicError):
        return failed(Request(path), reason, 0.0)
    return Report(report.SCHEMA, "skipped", path, warnings=(reason,))
