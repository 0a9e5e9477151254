"""The spine: probe, plan, read, encode, write, verify, publish, report."""

from __future__ import annotations

import stat
import time
from collections.abc import Callable, Iterable
from contextlib import ExitStack, closing
from dataclasses import replace
from pathlib import Path

from mimic import colour, icc, merge, passthrough, pictures, privacy, provenance, report, sources, staging
from mimic.deadline import Deadline
from mimic.errors import BadInput
from mimic.job import Job, Watch
from mimic.model import Options, Plan, Report, Request, Slide, Tool
from mimic.plan import plan
from mimic.probe import probe
from mimic.programs import bfclient
from mimic.programs.run import cores
from mimic.settings import Settings

Claim = Callable[[tuple[Path, ...], tuple[Path, ...]], None]
"""Called with the files that are read and the outputs that will be made, before one is; raises to stop it."""


def free(_files: tuple[Path, ...], _outputs: tuple[Path, ...]) -> None:
    """The claim of a conversion that is the only one."""


def convert(request: Request, settings: Settings, watch: Watch = lambda _: None, *, claim: Claim = free) -> Report:
    """Convert one input, every scan image of it, and report. Raises MimicError; then no output of it is left.

    ``claim`` is how the conversions of one run keep out of each other's way.
    """
    with privacy.guarded(request) as guard, Deadline(request.options.deadline_s, request.input) as deadline:
        return _convert(request, settings, watch, claim, guard=guard, deadline=deadline)


def _convert(
    request: Request,
    settings: Settings,
    watch: Watch,
    claim: Claim,
    *,
    guard: privacy.Guard | None,
    deadline: Deadline,
) -> Report:
    started = time.monotonic()
    bfclient.expect(request.options.threads)
    before = _stamps((request.input,))
    slide = probe(request.input, settings, source=request.options.source)
    before = _stamps(slide.files) | before
    plans = plan_slide(slide, request, guard)
    claim(slide.files, tuple(each.output for each in plans))
    for each in plans:
        staging.refuse_existing(each.output, overwrite=request.options.overwrite, inputs=slide.files)
    with closing(report.Digests(slide.files, wanted=request.digest)) as digests, ExitStack() as places:
        folders = [places.enter_context(staging.staged(each.output)) for each in plans]
        made = zip(plans, folders, strict=True)
        jobs = [Job(each, folder, request, settings, watch, deadline) for each, folder in made]
        results = tuple(job.run() for job in jobs)
        input_sha256 = digests.result()
        _refuse_changed(before)
        deadline.check()
        for job in jobs:
            staging.publish(job.staged, job.plan.output, overwrite=request.options.overwrite)
    return Report(
        schema=report.SCHEMA,
        status="converted",
        input=request.input,
        results=results,
        tools=_tools(slide, plans, settings) if request.digest else (),
        warnings=tuple(dict.fromkeys(warning for each in results for warning in each.plan.warnings)),
        input_sha256=input_sha256,
        seconds_s=round(time.monotonic() - started, 3),
    )


def _stamps(paths: Iterable[Path]) -> dict[Path, tuple[int, int] | None]:
    """Size and time of change of every file among ``paths``; None for one that is not there."""
    found: dict[Path, tuple[int, int] | None] = {}
    for path in paths:
        try:
            told = path.stat()
        except OSError:
            found[path] = None
        else:
            if not stat.S_ISDIR(told.st_mode):  # one may get the output into it
                found[path] = (told.st_size, told.st_mtime_ns)
    return found


def _refuse_changed(before: dict[Path, tuple[int, int] | None]) -> None:
    """Raises BadInput for a file that was written to since: its parts may be those of two slides.

    A digest could not tell: it is computed once, of what is there at some time or other.
    """
    for path, told in _stamps(before).items():
        if told != before[path]:
            raise BadInput("has changed while it was converted", path, "Convert it again when nothing writes to it")


def _tools(slide: Slide, plans: tuple[Plan, ...], settings: Settings) -> tuple[Tool, ...]:
    """What read the slide, or its compressed tiles, and the libraries."""
    copying = next((passthrough.tools(each) for each in plans if each.coded is not None), ())
    return (*sources.load(slide.source).tools(settings), *copying, *report.libraries())


def plan_slide(slide: Slide, request: Request, guard: privacy.Guard | None = None) -> tuple[Plan, ...]:
    """Plans for ``request``, with as many threads as this machine has cores unless it says otherwise.

    What must not be planned with (names, with ``--deidentify``) is taken out of ``slide`` first.
    """
    options = request.options
    slide = merge.merged(slide) if options.merge_scenes else slide
    threads = options.threads or cores()
    if not options.deidentify:
        made = plan(slide, options, output=request.output, threads=threads, label_px=_label_px(options))
    else:
        guard = guard or privacy.Guard(request)
        slide = guard.learn(slide)
        made = plan(slide, options, output=request.output, threads=threads, stem=privacy.alias(slide))
        made = tuple(privacy.told(each, guard, request) for each in made)
    return provenance.keyed(tuple(_with_profile(each, request) for each in made), request)


def _label_px(options: Options) -> tuple[int, int] | None:
    """(width, height) of ``--label FILE``."""
    if options.label != "file" or options.label_file is None:
        return None
    height_px, width_px, _ = pictures.read_file(options.label_file).shape
    return width_px, height_px


def _with_profile(plan: Plan, request: Request) -> Plan:
    """The profile as it is written: sRGB's after the pixels have gone there, and without texts when de-identified."""
    if plan.icc_profile is None:
        return plan
    if request.options.icc == "srgb":
        return replace(plan, icc_profile=colour.srgb_profile())
    return replace(plan, icc_profile=icc.neutral(plan.icc_profile)) if plan.deidentify else plan
