"""The spine: probe, plan, read, encode, write, verify, publish, report."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from mimic import __version__, encode, pyramid, report, rules, sources, staging, stream, svs, verify
from mimic.errors import LimitReached
from mimic.model import Check, Picture, Plan, Progress, Report, Request, Result, Slide, Stage, Written
from mimic.plan import plan
from mimic.probe import probe
from mimic.settings import Settings
from mimic.writer import TiffWriter

FRESH_BOXES = 8
"""Samples that are read again through a reader opened anew: they catch a reader that errs the same way all along."""

Watch = Callable[[Progress], None]


def convert(
    request: Request, settings: Settings, watch: Watch = lambda _: None, *, taken: Mapping[Path, Path] | None = None
) -> Report:
    """Convert one input, every scan image of it, and report. Raises MimicError; then no output of it is left.

    ``taken`` maps outputs that the same run has already made to their inputs: they are not replaced.
    """
    started = time.monotonic()
    slide = probe(request.input, settings, source=request.options.source)
    plans = plan_slide(slide, request)
    for each in plans:
        staging.refuse_taken(each.output, taken or {})
        staging.refuse_existing(each.output, overwrite=request.options.overwrite, inputs=slide.files)
    with closing(report.Digests(slide.files)) as digests, ExitStack() as places:
        jobs = [_Job(each, request, settings, watch, places.enter_context(staging.staged(each.output))) for each in plans]
        written = [job.run() for job in jobs]
        input_sha256 = digests.result()
        for job in jobs:
            staging.publish(job.staged, job.plan.output, overwrite=request.options.overwrite)
    return Report(
        schema=report.SCHEMA,
        status="converted",
        input=request.input,
        results=tuple(written),
        tools=(*sources.load(slide.source).tools(settings), *report.libraries()),
        warnings=tuple(dict.fromkeys(warning for each in plans for warning in each.warnings)),
        input_sha256=input_sha256,
        seconds_s=round(time.monotonic() - started, 3),
    )


def plan_slide(slide: Slide, request: Request) -> tuple[Plan, ...]:
    """Plans for ``request``, with as many threads as this machine has cores unless it says otherwise."""
    threads = request.options.threads or len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 0
    return plan(slide, request.options, output=request.output, threads=threads or os.cpu_count() or 1)


@dataclass
class _Job:
    """One output in the making, in its private ``folder`` beside its final place."""

    plan: Plan
    request: Request
    settings: Settings
    watch: Watch
    folder: Path
    stages: list[Stage] = field(default_factory=list)

    @property
    def staged(self) -> Path:
        return self.folder / staging.STAGED_NAME

    def run(self) -> Result:
        """Write the slide, prove it, and tell."""
        started = time.monotonic()
        keeper = verify.SampleKeeper(self.plan.levels[0].width_px, self.plan.levels[0].height_px, self.plan.tile_px)
        with self._stage("convert"):
            written = self._write(keeper, started)
        with self._stage("verify"):
            checks = self._verify(keeper)
        verify.raise_if_failed(checks, self.plan.output)
        renamed = Written(self.plan.output, written.bytes, written.sha256, written.tiles, written.bigtiff)
        return Result(self.plan, renamed, checks, tuple(self.stages))

    def _write(self, keeper: verify.SampleKeeper, started: float) -> Written:
        deadline_s = self.request.options.deadline_s

        def watch(progress: Progress) -> None:
            if deadline_s is not None and time.monotonic() - started > deadline_s:
                raise LimitReached(f"not done within {deadline_s:g} s", self.plan.slide.path, "Raise the deadline")
            self.watch(progress)

        with closing(TiffWriter(self.staged)) as writer:
            with self._reader(self.plan.image_index) as reader:
                smallest = stream.write_levels(self.plan, reader, writer, keeper=keeper, watch=watch)
            thumbnail = pyramid.thumbnail(smallest, self.plan.thumbnail_px)
            writer.add_strip("thumbnail", encode.strip(thumbnail, self.plan))
            for picture in self.plan.pictures:
                writer.add_strip(picture.role, self._picture(picture))
            return writer.finish(svs.pages(self.plan, version=__version__))

    def _picture(self, picture: Picture) -> bytes:
        with self._reader(picture.image_index) as reader:
            pixels = pyramid.thumbnail(stream.read_whole(reader), (picture.width_px, picture.height_px))
        if picture.role == "label":
            return encode.lzw(pixels)
        return encode.jpeg(pixels, quality=self.plan.quality, profile=self.plan.profile)

    @contextmanager
    def _reader(self, image_index: int) -> Iterator[sources.PixelReader]:
        slide = self.plan.slide
        image = next(image for image in slide.images if image.index == image_index)
        scratch = self.request.options.scratch or self.settings.scratch or self.folder
        with tempfile.TemporaryDirectory(prefix="mimic-", dir=scratch) as private:
            opened = sources.load(slide.source).open(
                slide, image, threads=self.plan.threads, settings=self.settings, scratch=Path(private)
            )
            with closing(opened) as reader:
                yield reader

    def _verify(self, keeper: verify.SampleKeeper) -> tuple[Check, ...]:
        structure = rules.structure(self.staged)
        ...
        return structure

    @contextmanager
    def _stage(self, name: str) -> Iterator[None]:
        started = time.monotonic()
        yield
        self.stages.append(Stage(name, round(time.monotonic() - started, 3)))
