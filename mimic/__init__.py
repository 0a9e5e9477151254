"""mimic: any microscopy image in, a complete and verified Aperio SVS mimic out.

    import mimic

    report = mimic.convert("slide.czi", "out/", quality=85)
    slide = mimic.probe("slide.czi")
    plans = mimic.plan("slide.czi")
    checks = mimic.check("slide.svs")
    edited = mimic.edit("slide.svs", appmag=20, drop_label=True)
    survey = mimic.survey("scans/")

They behave as the commands of the same names; options are the fields of ``mimic.Options``,
those of an edit the fields of ``mimic.Wish``. Every failure is a
``mimic.errors.MimicError``. Nothing heavy is imported, and no JVM started, before it is needed.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mimic import errors as errors
    from mimic.edit import Edited, Wish
    from mimic.model import Check, Options, Plan, Progress, Report, Slide
    from mimic.survey import Survey

__version__ = "0.1.0"
__all__ = [
    "Check",
    "Edited",
    "Options",
    "Plan",
    "Progress",
    "Report",
    "Slide",
    "Survey",
    "Wish",
    "check",
    "convert",
    "edit",
    "errors",
    "plan",
    "probe",
    "survey",
]

FUNCTIONS = ("convert", "edit", "plan", "probe", "survey")
"""Named as the modules that do their work."""
HOMES = {"Edited": "edit", "Wish": "edit", "Survey": "survey"}
"""Modules of the types that are not in ``model``."""


def probe(path: str | Path, *, source: str | None = None) -> Slide:
    """What a file is: images, sizes, scale, objective, label; no pixel is decoded. Raises MimicError."""
    return _stage("probe").probe(Path(path), _stage("settings").load(), source=source)  # type: ignore[no-any-return]


def plan(path: str | Path, output: str | Path | None = None, **options: Any) -> tuple[Plan, ...]:
    """What convert would do, and why: one Plan for every scan image. Raises MimicError."""
    request = _request(path, output, options)
    slide = probe(request.input, source=request.options.source)
    return _stage("convert").plan_slide(slide, request)  # type: ignore[no-any-return]


def convert(path: str | Path, output: str | Path | None = None, **options: Any) -> Report:
    """Convert one slide to ``output`` (an .svs file, a folder, or None: beside the input), verified.

    ``watch``, one of the options, is called with every ``Progress``. Raises MimicError; no output is left then.
    """
    watch = options.pop("watch", lambda _: None)
    request = _request(path, output, options)
    return _stage("convert").convert(request, _stage("settings").load(), watch)  # type: ignore[no-any-return]


def check(path: str | Path, *, phi: bool = False) -> tuple[Check, ...]:
    """Every rule that readers of SVS have, or with ``phi`` what a finished slide reveals of people, cases and devices.

    A Check that is a ``must`` and has not passed is a fault. Raises BadInput for a file that is no TIFF.
    """
    return _stage("reveal" if phi else "verify").check(Path(path))  # type: ignore[no-any-return]


def edit(
    path: str | Path,
    output: str | Path | None = None,
    *,
    overwrite: bool = False,
    dry_run: bool = False,
    **wishes: Any,
) -> Edited:
    """Change metadata of a slide, in place or in a copy named ``output``; pixels are untouched, a crash does no harm.

    ``wishes`` are fields of ``mimic.Wish``, its ``pairs`` also as a mapping. Raises MimicError; then the file is as
    it was.
    """
    module, place = _stage("edit"), None if output is None else Path(output)
    options = {"output": place, "overwrite": overwrite, "dry_run": dry_run}
    return module.edit(Path(path), module.wish(**wishes), version=__version__, **options)  # type: ignore[no-any-return]


def survey(folder: str | Path, watch: Callable[[int, int, Path], None] = lambda *_: None) -> Survey:
    """A row for every slide below ``folder``: what it is, and whether scale and magnification fit; no pixel is read.

    ``watch`` is called before each file with its number, how many there are, and its path. Raises MimicError when there
    is no such folder; a broken file is a row with its error.
    """
    return _stage("survey").survey(Path(folder), _stage("settings").load(), watch)  # type: ignore[no-any-return]


def _request(path: str | Path, output: str | Path | None, options: dict[str, Any]) -> Any:
    place = None if output is None else Path(output)
    return _stage("model").Request(Path(path), place, _stage("requests").options(**options))


def _stage(name: str) -> Any:
    return import_module(f"mimic.{name}")


def __getattr__(name: str) -> Any:
    if name == "errors":
        return _stage("errors")
    if name in __all__:
        return getattr(_stage(HOMES.get(name, "model")), name)
    raise AttributeError(f"module 'mimic' has no attribute {name!r}")


class _Package(ModuleType):
    """Keeps ``mimic.convert`` the function: importing the module of that name would put itself in its place."""

    def __setattr__(self, name: str, value: object) -> None:
        if not (name in FUNCTIONS and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
