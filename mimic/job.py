"""One output in the making: its pixels and pictures read, written as tiles, proved against the source.

write -> staged file -> verify -> Result        (``convert`` gives the file its name)
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing, contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, cast

from mimic import (
    __version__,
    colour,
    encode,
    imports,
    leftovers,
    memory,
    merge,
    missing,
    passthrough,
    pictures,
    pyramid,
    render,
    report,
    resample,
    sources,
    staging,
    stream,
    structure,
    svs,
    views,
)
from mimic.deadline import Deadline
from mimic.errors import BadInput, OutputError, VerificationFailed
from mimic.model import (
    Check,
    Image,
    Picture,
    Pixels,
    Plan,
    Progress,
    Rendering,
    Request,
    Result,
    Role,
    Sample,
    Slide,
    Stage,
    Written,
)
from mimic.samples import SampleKeeper
from mimic.settings import Settings
from mimic.sources import PixelReader, TileReader
from mimic.writer import TiffWriter

if TYPE_CHECKING:
    from mimic.streams import Sums

PROOF = "mimic.proof"
"""Needed after the last pixel, and loaded while the first ones are read."""
STRICTLY = frozenset(("tiff", "dicom"))
"""Containers of which ``sidepictures`` knows the labels and macros."""

Watch = Callable[[Progress], None]


@dataclass
class Job:
    """One output in the making, in its private ``folder`` beside its final place."""

    plan: Plan
    folder: Path
    request: Request
    settings: Settings
    watch: Watch
    deadline: Deadline
    started: float = 0.0
    _missing: missing.Missing = field(default_factory=missing.Missing)
    _witnessed: tuple[Check, ...] = ()

    @property
    def staged(self) -> Path:
        return self.folder / staging.STAGED_NAME

    def run(self) -> Result:
        """Write the slide, prove it, and tell. Errors name the final output, not the staged file."""
        with memory.kept():
            return self._run()

    def _run(self) -> Result:
        self.started = time.monotonic()
        size = self.plan.levels[0]
        keeper = SampleKeeper(size.width_px, size.height_px, self.plan.tile_px)
        try:
            self._prove_source()
            self._resolve()
            written, sums = self._write(keeper)
            converted = time.monotonic()
            with closing(report.Digests((self.staged,), wanted=self.request.digest)) as digests:
                checks = self._prove(keeper.samples(), sums)
                sha256 = digests.result()[str(self.staged)]
        except (BadInput, OutputError) as error:
            if error.path != self.staged:
                raise
            kind = VerificationFailed if isinstance(error, BadInput) else OutputError
            raise kind(error.message, self.plan.output, error.remedy) from error
        stages = (
            Stage("convert", round(converted - self.started, 3)),
            Stage("verify", round(time.monotonic() - converted, 3)),
        )
        return Result(self.plan, replace(written, path=self.plan.output, sha256=sha256), checks, stages)

    def _tick(self, progress: Progress) -> None:
        self.deadline.check()
        self.watch(progress)

    def _prove_source(self) -> None:
        """Decode strictly what Bio-Formats reads in silence; with ``--allow-missing``, find out what is not there."""
        plan = self.plan
        if plan.pictures and not plan.allow_missing and STRICTLY & set(map(structure.container, plan.slide.files)):
            from mimic import sidepictures  # with pydicom and tifffile, a third of what others need to start

            sidepictures.prove(plan.slide)
        if plan.coded is not None or plan.image.index < 0:
            return  # copied tiles are all decoded; scenes are of formats that are read otherwise

        def watch() -> None:
            self._tick(Progress("check", 0, 1))

        if plan.allow_missing:
            found = missing.declared(plan.slide, plan.image, threads=plan.threads, watch=watch)
            self._missing.boxes.update(found)
        else:
            missing.prove(plan.slide, plan.image, threads=plan.threads, watch=watch)

    def _count_missing(self) -> None:
        """The plan then says how many places are not there."""
        count = self._missing.count
        if count:
            text = f"{count} damaged or missing {'tile is' if count == 1 else 'tiles are'} left blank"
            slide = replace(self.plan.slide, missing_tiles=count)
            self.plan = replace(self.plan, slide=slide, warnings=(*self.plan.warnings, text))

    def _resolve(self) -> None:
        """Measure the display ranges that the file does not state, once, before any pixel is written."""
        if self.plan.rendering is None:
            return
        with self._planes(self.plan.image, self.plan.rendering) as planes:
            self.plan = replace(self.plan, rendering=render.resolve(planes, self.plan.image, self.plan.rendering))

    def _write(self, keeper: SampleKeeper) -> tuple[Written, Sums]:
        """The staged file, without its digest, and the CRC-32 of all that was put into it."""
        associated = self._associated()
        plan = self.plan
        tables = encode.jpeg_tables(plan.quality) if plan.profile == "rgb" else None
        if plan.coded is not None:
            tables = passthrough.shared_tables(plan)
        with TiffWriter(self.staged) as writer:
            smallest = self._levels(writer, keeper)
            self._count_missing()
            writer.add_strip("thumbnail", self._jpeg(pyramid.thumbnail(smallest, plan.thumbnail_px)))
            for role, coded in associated.items():
                writer.add_strip(role, coded)
            written = writer.finish(svs.pages(self.plan, version=__version__, jpeg_tables=tables), digest=False)
            return written, writer.sums

    def _levels(self, writer: TiffWriter, keeper: SampleKeeper) -> Pixels:
        """Write the tiles, copied or encoded; the smallest level for the thumbnail."""
        if self.plan.coded is not None:
            return self._copy(writer)
        passthrough.refuse_misread(self.plan)
        with self._loading(), self._scan() as reader:
            return stream.write_levels(self.plan, reader, writer, keeper=keeper, watch=self._tick)

    def _loading(self) -> AbstractContextManager[None]:
        """What is needed at the end: the proof, and the versions that a report tells."""
        return imports.behind(PROOF, then=report.libraries if self.request.digest else None)

    def _copy(self, writer: TiffWriter) -> Pixels:
        """Copied tiles are decoded while they are copied, and compared with the lower level at once."""
        from mimic import stored

        plan = self.plan
        with (
            self._loading(),
            closing(self._tiles()) as tiles,
            stored.witness(plan, threads=plan.threads, settings=self.settings) as told,
        ):
            add = told.add if told is not None else None
            smallest = passthrough.write_levels(plan, tiles, writer, watch=self._tick, witness=add)
            self._witnessed = told.checks() if told is not None else ()
        return smallest

    def _jpeg(self, pixels: Pixels) -> bytes:
        """A thumbnail or macro, in the colours of the tiles."""
        if self.plan.coded is not None:
            return passthrough.strip(self.plan, pixels)
        return encode.jpeg(pixels, quality=self.plan.quality, profile=self.plan.profile)

    def _associated(self) -> dict[Role, bytes]:
        """Label and macro as they are written; the plan then has their true sizes, for only pixels tell what a macro
        without its label is."""
        coded: dict[Role, bytes] = {}
        kept: list[Picture] = []
        for picture in self.plan.pictures:
            pixels = self._picture(picture)
            if pixels is None:
                text = "the macro was left out: it is not certain where its label is"
                self.plan = replace(self.plan, warnings=(*self.plan.warnings, text))
                continue
            kept.append(replace(picture, width_px=pixels.shape[1], height_px=pixels.shape[0]))
            coded[picture.role] = encode.lzw(pixels) if picture.role == "label" else self._jpeg(pixels)
        self.plan = replace(self.plan, pictures=tuple(kept))
        return coded

    def _picture(self, picture: Picture) -> Pixels | None:
        """Pixels of a label or macro as the options want it; None for a macro that cannot be cut for certain."""
        options, size_px = self.request.options, (picture.width_px, picture.height_px)
        if picture.role == "label" and options.label == "redact":
            return pictures.blank(*size_px)
        if picture.role == "label" and options.label == "file" and options.label_file is not None:
            return pyramid.thumbnail(pictures.read_file(options.label_file), size_px)
        pixels = pyramid.thumbnail(self._whole(picture.image_index), size_px)
        if picture.role != "macro" or options.macro != "crop-label":
            return pixels
        labels = [image for image in self.plan.slide.images if image.role == "label"]
        return pictures.without_label(pixels, self._whole(labels[0].index) if labels else None)

    def _whole(self, image_index: int) -> Pixels:
        with self._reader(image_index) as reader:
            return stream.read_whole(reader)

    @contextmanager
    def _scan(self) -> Iterator[PixelReader]:
        """The scan's pixels as they are written: in sRGB and square where the options ask for it."""
        plan = self.plan
        with self._reader(plan.image_index) as opened:
            reader = opened
            if self.request.options.icc == "srgb" and plan.icc_profile is not None and plan.slide.icc_profile:
                reader = colour.SrgbReader(reader, plan.slide.icc_profile, plan.slide.path)
            source, size = plan.image.levels[0], plan.levels[0]
            source_px, size_px = (source.width_px, source.height_px), (size.width_px, size.height_px)
            if source_px != size_px:
                reader = resample.SquareReader(reader, source_px=source_px, size_px=size_px)
            yield reader

    @contextmanager
    def _reader(self, image_index: int) -> Iterator[PixelReader]:
        slide = self.plan.slide
        image = next(image for image in slide.images if image.index == image_index)
        rendering = self.plan.rendering if image == self.plan.image else views.of_picture(slide, image)
        if rendering is not None:
            with self._planes(image, rendering) as planes:
                rendered = render.Rendered(planes, render.resolve(planes, image, rendering), image)
                yield self._mended(rendered, image)
            return
        with self._private() as private:
            opened = _source(slide, image).open(
                slide, image, threads=self.plan.threads, settings=self.settings, scratch=private
            )
            with closing(opened) as reader:
                yield self._mended(reader, image)

    def _mended(self, reader: PixelReader, image: Image) -> PixelReader:
        """With ``--allow-missing`` a reader of the scan that leaves blank what cannot be read."""
        if not self.plan.allow_missing or image != self.plan.image:
            return reader
        if self.plan.slide.format == missing.NDPI and self._missing.boxes:
            from mimic import strips

            return strips.Reader(self.plan.slide.path, image.levels[0], self._missing.boxes)
        tiles = missing.pieces(self.plan.slide, image)
        return missing.Mended(reader, tiles, self._missing, fill=missing.WHITE if image.rgb else 0)

    def _tiles(self) -> TileReader:
        tiles = passthrough.open_tiles(self.plan)
        return missing.MendedTiles(tiles, self.plan, self._missing) if self.plan.allow_missing else tiles

    @contextmanager
    def _planes(self, image: Image, rendering: Rendering) -> Iterator[render.PlaneReader]:
        """Samples of ``image`` from a source that renders (``views.can_render``)."""
        source = cast(render.PlaneSource, _source(self.plan.slide, image))
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
        leftovers.made("folder", place.name)
        with place as private:
            yield Path(private)
        leftovers.gone("folder", place.name)

    def _prove(self, samples: tuple[Sample, ...], sums: Sums | None) -> tuple[Check, ...]:
        from mimic import proof  # loaded while pixels were read

        plan, tick = self.plan, self._tick
        if plan.coded is None:
            return proof.encoded(self.staged, plan, samples, sums, scan=self._scan, settings=self.settings, watch=tick)
        ordinary = partial(self._reader, plan.image_index)
        with closing(self._tiles()) as tiles:
            return proof.copied(self.staged, plan, tiles, sums, witnessed=self._witnessed, scan=ordinary, watch=tick)


def _source(slide: Slide, image: Image) -> sources.Source:
    """Who opens an image: the slide's source, or for a canvas of scenes the one that puts them on it."""
    return cast(sources.Source, merge) if merge.is_merged(image) else sources.load(slide.source)
