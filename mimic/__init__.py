"""mimic: any microscopy image in, a complete and verified Aperio SVS mimic out.

    import mimic

    report = mimic.convert("slide.czi", "out/", quality=85)
    slide = mimic.probe("slide.czi")
    plans = mimic.plan("slide.czi")

They behave as the commands of the same names; options are the fields of ``mimic.Options``. Every failure is a
``mimic.errors.MimicError``. Nothing heavy is imported, and no JVM started, before it is needed.
"""

from __future__ import annotations

import sys
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mimic import errors as errors
    from mimic.model import Options, Plan, Progress, Report, Slide

__version__ = "0.1.0"
__all__ = ["Options", "Plan", "Progress", "Report", "Slide", "convert", "errors", "plan", "probe"]

FUNCTIONS = ("convert", "plan", "probe")
"""Named as the modules that do their work."""


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


def _request(path: str | Path, output: str | Path | None, options: dict[str, Any]) -> Any:
    place = None if output is None else Path(output)
    return _stage("model").Request(Path(path), place, _stage("requests").options(**options))


def _stage(name: str) -> Any:
    return import_module(f"mimic.{name}")


def __getattr__(name: str) -> Any:
    if name == "errors":
        return _stage("errors")
    if name in __all__:
        return getattr(_stage("model"), name)
    raise AttributeError(f"module 'mimic' has no attribute {name!r}")


class _Package(ModuleType):
    """Keeps ``mimic.convert`` the function: importing the module of that name would put itself in its place."""

    def __setattr__(self, name: str, value: object) -> None:
        if not (name in FUNCTIONS and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
