"""De-identification around a conversion: what is learnt of the input, a name that tells nothing, silence in errors and
logs, and the search of the output's bytes.

    guard --learn(slide)--> knows what is personal --> plan, errors, log lines without it --search(output)--> a Check
"""

from __future__ import annotations

import hashlib
import logging
import mmap
import traceback
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path

from mimic import phi, tifffields
from mimic.errors import BadInput, MimicError
from mimic.model import Check, Plan, Request, Slide

CHUNK_BYTES = 16 << 20
ALIAS_DIGITS = 8
HEAD_BYTES = 64 << 10
"""Of a tile: comments stand before the pixels."""
UNNAMED = "a slide that is to be de-identified"


def alias(slide: Slide) -> str:
    """A name for a slide that tells nothing, and is the same for the same bytes. Raises BadInput."""
    return alias_of(next((file for file in (slide.path, *slide.files) if file.is_file()), slide.path))


def alias_of(path: Path) -> str:
    """The name for the slide whose first file is ``path``. Raises BadInput."""
    digest = hashlib.sha256()
    try:
        with path.open("rb") as file:
            while chunk := file.read(CHUNK_BYTES):
                digest.update(chunk)
    except OSError as error:
        raise BadInput(f"cannot be read: {error.strerror or error}", path) from error
    return f"slide_{digest.hexdigest()[:ALIAS_DIGITS]}"


class Guard:
    """What is known of one input that is to be de-identified."""

    def __init__(self, request: Request) -> None:
        self._path = request.input
        self.redact = phi.Redactor()
        self.traces: tuple[phi.Trace, ...] = ()
        self._hide(request.input)

    def _hide(self, path: Path) -> None:
        """A file is not named, nor the folder in which it lies."""
        whole = path.absolute()
        self.redact.learn((str(path), str(whole), path.name, path.stem, str(whole.parent)))

    def learn(self, slide: Slide) -> Slide:
        """The slide's facts without names, with what must not get out in ``personal``. Raises BadInput, ToolMissing."""
        from mimic import harvest  # with lxml; most slides keep their names

        for file in slide.files:
            self._hide(file)
        self.traces = harvest.traces(slide.path, slide)
        personal = phi.values(self.traces)
        self.redact.learn(phi.tokens(personal))
        return phi.anonymous(slide, personal)

    def hidden(self, error: MimicError) -> MimicError:
        """The same error without a word of the input."""
        remedy = self.redact(error.remedy) if error.remedy else None
        silent = error.path is not None and self.redact(str(error.path)) == str(error.path)
        return type(error)(self.redact(error.message), error.path if silent else Path(UNNAMED), remedy)


@contextmanager
def guarded(request: Request) -> Iterator[Guard | None]:
    """A Guard when ``request`` asks for de-identification: errors and log lines then leave without personal texts.

    After an error that nobody foresaw the log stays guarded, for it is told there after this.
    """
    if not request.options.deidentify:
        yield None
        return
    guard = Guard(request)
    hide = _LogFilter(guard.redact)
    handlers = list(logging.getLogger().handlers)
    for handler in handlers:
        handler.addFilter(hide)
    try:
        yield guard
    except MimicError as error:
        for handler in handlers:
            handler.removeFilter(hide)
        raise guard.hidden(error) from None
    for handler in handlers:
        handler.removeFilter(hide)


class _LogFilter(logging.Filter):
    """Takes personal texts out of records and their tracebacks."""

    def __init__(self, redact: phi.Redactor) -> None:
        super().__init__()
        self._redact = redact

    def filter(self, record: logging.LogRecord) -> bool:
        record.msg, record.args = self._redact(record.getMessage()), ()
        if record.exc_info and record.exc_info[1] is not None:
            record.exc_text = self._redact("".join(traceback.format_exception(record.exc_info[1])))
            record.exc_info = None
        return True


def told(plan: Plan, guard: Guard, request: Request) -> Plan:
    """``plan`` with what was left out among its reasons: names of fields, never values."""
    said = [phi.removed_sentence(guard.traces)]
    if request.output is None or plan.output != request.output:
        said.append(f"the output is named {plan.output.name}, after its input's digest, as names of files identify")
    return replace(plan, reasons=(*plan.reasons, *said))


def search(path: Path, plan: Plan) -> tuple[Check, ...]:
    """Whether any personal text of the input is in the bytes of ``path``, in any coding and case; and whether tiles
    that were copied carry comments of their own, which nobody has read.

    Compressed pixels are searched for long texts only: short ones are met in them by chance. Raises BadInput.
    """
    wanted = phi.needles(phi.tokens(plan.slide.personal, phi.spoken(plan)))
    found: set[str] = set()
    try:
        with path.open("rb") as file, closing(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)) as data:
            strong = [needle for needle in wanted if needle.strong]
            found |= {wanted[needle] for needle in _within(data, ((0, len(data)),), strong)}
            parsed = tifffields.parse(data)
            texts = tifffields.gaps(parsed.segments, len(data)) if parsed is not None else [(0, len(data))]
            found |= {wanted[needle] for needle in _within(data, texts, list(wanted))}
            size = len(data)
            comments = sum(_has_texts(data, span) for span in (parsed.segments if parsed is not None else ()))
    except (OSError, ValueError) as error:
        raise BadInput(f"cannot be read: {error}", path) from error
    tiles = f"comments in {comments} tiles" if comments else "none"
    expected = "no comments in compressed tiles (else use --passthrough never)"
    return phi.check(found, len(set(wanted.values())), size), Check("no texts in tiles", not comments, tiles, expected)


def _has_texts(data: mmap.mmap, span: tifffields.Span) -> bool:
    from mimic import harvest

    head = data[span[0] : min(span[1], span[0] + HEAD_BYTES)]
    return head[:2] == b"\xff\xd8" and any(harvest.jpeg(head))


def _within(
    data: mmap.mmap, spans: tuple[tifffields.Span, ...] | list[tifffields.Span], wanted: list[phi.Needle]
) -> Iterator[phi.Needle]:
    overlap = max((len(needle.data) for needle in wanted), default=1) - 1
    for start, end in spans:
        for at in range(start, end, CHUNK_BYTES):
            yield from phi.find(data[at : min(end, at + CHUNK_BYTES + overlap)], wanted)
