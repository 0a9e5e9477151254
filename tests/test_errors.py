"""errors: the exit codes that the README promises, and messages that say what, where and what to do."""

from __future__ import annotations

import inspect
import pickle
from pathlib import Path

import pytest

from mimic import errors
from mimic.errors import MimicError

CODES = {
    "InternalError": (1, 500),
    "UsageError": (2, 400),
    "BadInput": (3, 422),
    "Unsupported": (4, 415),
    "ToolMissing": (5, 503),
    "ToolFailed": (6, 500),
    "OutputError": (7, 507),
    "VerificationFailed": (8, 500),
    "LimitReached": (9, 503),
    "Interrupted": (130, 499),
}
KINDS = [kind for _, kind in inspect.getmembers(errors, inspect.isclass) if issubclass(kind, MimicError)]


def test_the_documented_codes_and_no_others() -> None:
    found = {kind.__name__: (kind.exit_code, kind.http_status) for kind in KINDS if kind is not MimicError}
    assert found == CODES


def test_exit_codes_are_distinct() -> None:
    assert len({code for code, _ in CODES.values()}) == len(CODES)


def test_the_drawing_tells_the_truth() -> None:
    drawn = errors.__doc__ or ""
    for name, (code, status) in CODES.items():
        line = next(line for line in drawn.splitlines() if f" {name} " in line)
        assert f"{code} / {status}" in line


@pytest.mark.parametrize("kind", KINDS)
def test_an_error_crosses_processes_whole(kind: type[MimicError]) -> None:
    error = kind("it is broken", Path("/in/a.czi"), "Copy it again")
    back = pickle.loads(pickle.dumps(error))
    assert type(back) is kind
    assert (back.message, back.path, back.remedy, str(back)) == (error.message, error.path, error.remedy, str(error))


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (MimicError("it is broken", Path("/in/a.czi"), "Copy it again"), "/in/a.czi: it is broken. Copy it again"),
        (MimicError("it is broken", Path("/in/a.czi")), "/in/a.czi: it is broken"),
        (MimicError("it is broken", remedy="Copy it again"), "it is broken. Copy it again"),
        (MimicError("it is broken"), "it is broken"),
    ],
)
def test_messages(error: MimicError, text: str) -> None:
    assert str(error) == text
