"""The spine: probe, plan, read, encode, write, verify, publish, report."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast

from mimic import (
    __version__,
    encode,
    pyramid,
    render,
    report,
    reread,
    rules,
    sources,
    staging,
    stream,
    svs,
    verify,
    views,
)
from mimic.errors import BadInput, LimitReached, OutputError, VerificationFailed
from mimic.model import (
    Check,
    Image,
    Picture,
    Plan,
    Progress,
    Rendering,
    Report,
    Request,
    Result,
    Sample,
    Slide,
    Stage,
    Written,
)
from mimic.plan import plan
from mimic.probe import probe
from mimic.samples import SampleKeeper
from mimic.settings import Settings
from mimic.sources import PixelReader
from mimic.writer import TiffWriter

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
        folders = [places.enter_context(staging.staged(each.output)) for each in plans]
        jobs = [_Job(each, folder, request, settings, watch) for each, folder in zip(plans, folders, strict=True)]
        results = tuple(job.run() for job in jobs)
        input_sha256 = digests.result()
        for job in jobs:
            staging.publish(job.staged, job.plan.output, overwrite=request.options.overwrite)
    return Report(
        schema=report.SCHEMA,
        status="converted",
        input=request.input,
        results=results,
        tools=(*sources.load(slide.source).tools(settings), *report.libraries()),
        warnings=tuple(dict.fromkeys(warning for each in plans for warning in each.warnings)),
        input_sha256=input_sha256,
        seconds_s=round(time.monotonic() - started, 3),
    )


def plan_slide(slide: Slide, request: Request) -> tuple[Plan, ...]:
    """Plans for ``request``, with as many threads as this machine has cores unless it says otherwise."""
    return plan(slide, request.options, output=request.output, threads=request.options.threads or _cores())


def _cores() -> int:
    """Cores that this process may use: fewer than the machine's in a container or a batch job."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


@dataclass
class _Job:
    """One output in the making, in its private ``folder`` beside its final place."""

    plan: Plan
    folder: Path
    request: Request
    settings: Settings
    watch: Watch
    started: float = 0.0

    @property
    def staged(self) -> Path:
        return self.folder / staging.STAGED_NAME

    def run(self) -> Result:
        """Write the slide, prove it, and tell. Errors name the final output, not the staged file."""
        self.started = time.monotonic()
        size = self.plan.levels[0]
        keeper = SampleKeeper(size.width_px, size.height_px, self.plan.tile_px)
        try:
            self._resolve()
            written = self._write(keeper)
            converted = time.monotonic()
            checks = self._verify(keeper.samples())
        except (BadInput, OutputError) as error:
            if error.path != self.staged:
                raise
            kind = VerificationFailed if isinstance(error, BadInput) else OutputError
            raise kind(error.message, self.plan.output, error.remedy) from error
        verify.raise_if_failed(checks, self.plan.output)
        stages = (
            Stage("convert", round(converted - self.started, 3)),
            Stage("verify", round(time.monotonic() - converted, 3)),
        )
        return Result(self.plan, replace(written, path=self.plan.output), checks, stages)

    def _tick(self, progress: Progress) -> None:
        deadline_s = self.request.options.deadline_s
        if deadline_s is not None and time.monotonic() - self.started > deadline_s:
            raise LimitReached(f"not done within {deadline_s:g} s", self.plan.slide.path, "Raise the deadline")
        self.watch(progress)

    def _resolve(self) -> None:
        """Measure the display ranges that the file does not state, once, before any pixel is written."""
        if self.plan.rendering is None:
            return
        with self._planes(self.plan.image, self.plan.rendering) as planes:
            self.plan = replace(self.plan, rendering=render.resolve(planes, self.plan.image, self.plan.rendering))

    def _write(self, keeper: SampleKeeper) -> Written:
        plan = self.plan
        tables = encode.jpeg_tables(plan.quality) if plan.profile == "rgb" else None
        with TiffWriter(self.staged) as writer:
            with self._reader(plan.image_index) as reader:
                smallest = stream.write_levels(plan, reader, writer, keeper=keeper, watch=self._tick)
            thumbnail = pyramid.thumbnail(smallest, plan.thumbnail_px)
            writer.add_strip("thumbnail", encode.jpeg(thumbnail, quality=plan.quality, profile=plan.profile))
            for picture in plan.pictures:
                writer.add_strip(picture.role, self._picture(picture))
            return writer.finish(svs.pages(plan, version=__version__, jpeg_tables=tables))

    def _picture(self, picture: Picture) -> bytes:
        with self._reader(picture.image_index) as reader:
            pixels = pyramid.thumbnail(stream.read_whole(reader), (picture.width_px, picture.height_px))
        if picture.role == "label":
            return encode.lzw(pixels)
        return encode.jpeg(pixels, quality=self.plan.quality, profile=self.plan.profile)

    @contextmanager
    def _reader(self, image_index: int) -> Iterator[PixelReader]:
        slide = self.plan.slide
        image = next(image for image in slide.images if image.index == image_index)
        rendering = self.plan.rendering if image == self.plan.image else views.of_picture(slide, image)
        if rendering is not None:
            with self._planes(image, rendering) as planes:
                yield render.Rendered(planes, render.resolve(planes, image, rendering), image)
            return
        with self._private() as private:
            opened = sources.load(slide.source).open(
                slide, image, threads=self.plan.threads, settings=self.settings, scratch=private
            )
            with closing(opened) as reader:
                yield reader

    @contextmanager
    def _planes(self, image: Image, rendering: Rendering) -> Iterator[render.PlaneReader]:
        """Samples of ``image`` from a source that renders (``views.can_render``)."""
        source = cast(render.PlaneSource, sources.load(self.plan.slide.source))
        with self._private() as private:
            opened = source.open_planes(
                self.plan.slide,
                image,
                rendering,
                threads=self.plan.threads,
                settings=self.settings,
                scratch=private,
            )
            with closing(opened) as planes:
                yield planes

    @contextmanager
    def _private(self) -> Iterator[Path]:
        """A folder for a source's scratch files, gone afterwards."""
        scratch = (self.request.options.scratch or self.settings.scratch or self.folder).absolute()
        try:
            place = tempfile.TemporaryDirectory(prefix="mimic-", dir=scratch)
        except OSError as error:
            raise OutputError(f"no scratch there ({error.strerror})", scratch, "Name another with --scratch") from error
        with place as private:
            yield Path(private)

    def _verify(self, samples: tuple[Sample, ...]) -> tuple[Check, ...]:
        plan = self.plan
        structure = rules.structure(self.staged, threads=plan.threads, progress=self._tick)
        seen = verify.readers(self.staged, plan)
        caught = verify.pixels(self.staged, samples, quality=plan.quality, profile=plan.profile)
        with self._reader(plan.image_index) as reader:
            again: tuple[Check, ...] = (reread.sample(reader, samples),)
        if plan.verify == "full":
            with self._reader(plan.image_index) as reader:
                again += reread.everything(self.staged, plan, reader, watch=self._tick)
        return (*structure, *seen, *caught, *again)
