"""(Slide, Options) -> Plans: every decision with its reason, every refusal that needs no pixel. Pure."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from mimic.copying import holes, jpeg_profile, kept, reason_against, sentences
from mimic.errors import BadInput, Unsupported, UsageError
from mimic.geometry import belongs, fit, level_sizes, thumbnail_size
from mimic.icc import is_rgb
from mimic.jpegs import JPEG
from mimic.model import Coded, Image, Level, Options, Picture, Plan, Role, Slide
from mimic.naming import name_outputs
from mimic.optics import APPMAG_MIN, MPP_RANGE_UM, decide_objective, decide_scale, scan_size
from mimic.views import can_render, plain
from mimic.views import decide as decide_rendering

PICTURE_MAX_PX = 8192
"""large_image refuses a larger label or macro."""
SCAN_MIN_PX = 16
"""Below this nothing is left for a thumbnail that must be lower than the picture."""
SCAN_MAX_PX = 2**31 - 1
BYTES_PER_PIXEL = 0.5
"""Generous estimate of JPEG at quality 80 with its pyramid; noise takes more, glass far less."""


@dataclass(slots=True)
class _Why:
    """Collects a sentence for every choice."""

    reasons: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    def say(self, sentence: str) -> None:
        self.reasons.append(sentence)

    def warn(self, sentence: str) -> None:
        self.warnings.append(sentence)


def plan(
    slide: Slide,
    options: Options,
    *,
    output: Path | None,
    threads: int,
    stem: str | None = None,
    label_px: tuple[int, int] | None = None,
) -> tuple[Plan, ...]:
    """One Plan for every scan image to be converted, in the file's order.

    ``output`` is a file that ends in .svs, a folder, or None for the input's own folder; ``stem`` replaces the input's
    name where the output's is made from it; ``label_px`` is the size of ``--label FILE``. Raises UsageError, BadInput
    (no scale) or Unsupported (too small, or samples that are no intensities), each with a remedy.
    """
    _check_options(options)
    images = _choose_images(slide, options)
    outputs = name_outputs(slide, images, output, options, stem)
    return tuple(
        _plan_image(slide, image, options, output=path, threads=threads, label_px=label_px)
        for image, path in zip(images, outputs, strict=True)
    )


def _check_options(options: Options) -> None:
    if not 1 <= options.quality <= 100:
        raise UsageError(f"quality {options.quality} is not between 1 and 100", remedy="80 is usual")
    if options.tile_px % 16 or not 16 <= options.tile_px <= 4096:
        raise UsageError(f"tile size {options.tile_px} is not a multiple of 16 up to 4096", remedy="256 is usual")
    if options.mpp_um is not None and not MPP_RANGE_UM[0] <= options.mpp_um <= MPP_RANGE_UM[1]:
        limits = f"from {MPP_RANGE_UM[0]:g} to {MPP_RANGE_UM[1]:g}"
        raise UsageError(f"--mpp {options.mpp_um:g} is no size of a pixel", remedy=f"Give micrometres, {limits}")
    if options.appmag is not None and not APPMAG_MIN <= options.appmag < 10_000:
        raise UsageError(f"--appmag {options.appmag:g} is no objective's power", remedy="Give 40 for a 40x")
    if options.merge_scenes and options.image_index is not None:
        raise UsageError("--image and --merge-scenes exclude each other", remedy="Leave one of them out")
    if options.threads is not None and options.threads < 1:
        raise UsageError(f"{options.threads} threads cannot work", remedy="Give 1 or more")
    if options.label == "file" and options.label_file is None:
        raise UsageError("the label shall come from a file, and none is named", remedy="Name a picture with --label")
    if options.label == "file" and options.deidentify:
        remedy = "Use --label redact, or leave one of them out"
        raise UsageError("a de-identified slide has no label, so --label FILE cannot be kept", remedy=remedy)


def _choose_images(slide: Slide, options: Options) -> tuple[Image, ...]:
    if options.image_index is not None:
        found = tuple(image for image in slide.images if image.index == options.image_index)
        if not found:
            known = ", ".join(str(image.index) for image in slide.images)
            raise UsageError(f"there is no image {options.image_index}", slide.path, f"It has the images {known}")
        return found
    scans = slide.scans()
    if not scans:
        roles = ", ".join(f"{image.index} ({image.role})" for image in slide.images) or "none"
        remedy = f"Choose one with --image; the file has {roles}"
        raise Unsupported("no image in it is a scan of tissue", slide.path, remedy)
    return scans


def _plan_image(
    slide: Slide,
    image: Image,
    options: Options,
    *,
    output: Path,
    threads: int,
    label_px: tuple[int, int] | None,
) -> Plan:
    _refuse_what_cannot_be_written(slide, image)
    why = _Why(warnings=list(slide.warnings))
    _explain_source(slide, image, why)
    rendering = decide_rendering(slide, image, options, say=why.say, warn=why.warn)
    scale = decide_scale(slide, image, options, say=why.say, warn=why.warn)
    objective = decide_objective(image, options, scale, say=why.say, warn=why.warn)
    coded = _decide_passthrough(slide, image, options, why, rendered=rendering is not None)
    levels = _decide_levels(scan_size(image, options), options, why, coded)
    width_px, height_px = levels[0].width_px, levels[0].height_px
    pictures = _decide_pictures(slide, image, options, why, label_px)
    profile = _decide_profile(slide, options, why, rendered=rendering is not None)
    raw_bytes = width_px * height_px * 3
    by_program = slide.source in ("bfconvert", "bioformats2raw")
    scratch = int(raw_bytes / 3 * BYTES_PER_PIXEL) + (2 * raw_bytes if by_program else 0)
    return Plan(
        slide=slide,
        output=output,
        image_index=image.index,
        source=slide.source,
        profile=options.profile if coded is None else jpeg_profile(coded),
        quality=options.quality,
        tile_px=options.tile_px if coded is None else coded.tile_px,
        downsample=options.downsample,
        levels=levels,
        thumbnail_px=thumbnail_size(levels),
        pictures=pictures,
        scale=scale,
        objective=objective,
        acquired=image.acquired,
        scratch_bytes=scratch,
        threads=threads,
        verify=options.verify,
        reasons=tuple(why.reasons),
        warnings=tuple(why.warnings),
        coded=coded,
        copied_levels=len(coded.levels) if coded is not None else 0,
        rendering=rendering,
        icc_profile=profile,
        deidentify=options.deidentify,
        allow_missing=options.allow_missing,
    )


def _refuse_what_cannot_be_written(slide: Slide, image: Image) -> None:
    name = f"image {image.index}" + (f" ({image.name})" if image.name else "")
    size = image.levels[0]
    if not all(SCAN_MIN_PX <= side <= SCAN_MAX_PX for side in (size.width_px, size.height_px)):
        limits = f"{SCAN_MIN_PX} to {SCAN_MAX_PX} px a side"
        raise Unsupported(f"{name} is {size.width_px} x {size.height_px} px; a slide has {limits}", slide.path)


def _explain_source(slide: Slide, image: Image, why: _Why) -> None:
    name = f" ({image.name})" if image.name else ""
    if image.index < 0:
        why.say(f"{slide.format}, read by {slide.source}; {image.name} are put on one canvas, as --merge-scenes asks")
    else:
        why.say(
            f"{slide.format}, read by {slide.source}; image {image.index}{name} of {len(slide.images)} is converted"
        )
    scans = len(slide.scans())
    if scans > 1:
        why.say(f"the file has {scans} scan images; each becomes a file of its own unless --image chooses one")
    if len(slide.files) > 1:
        why.say(f"{len(slide.files)} files belong together and are read as one slide")


def must_decode(slide: Slide, image: Image, options: Options) -> str | None:
    """Why an option changes pixels, so that no compressed tile may be copied; None when none does."""
    if options.icc == "srgb" and slide.icc_profile is not None and is_rgb(slide.icc_profile):
        return "--icc srgb changes its colours"
    if scan_size(image, options) != image.levels[0]:
        return "--square changes its size"
    return None


def _decide_profile(slide: Slide, options: Options, why: _Why, *, rendered: bool) -> bytes | None:
    """The colour profile to be written; with ``--icc srgb`` it is the one the pixels have before."""
    profile = slide.icc_profile
    if profile is None:
        return None
    if rendered or not is_rgb(profile):
        why.say("the file's colour profile is for other pixels than those written, and is left out")
        return None
    if options.icc == "strip":
        why.say("the file's colour profile is left out, as --icc strip asks")
        return None
    if options.icc == "srgb":
        why.say("colours are taken to sRGB by the file's own colour profile, as --icc srgb asks; not label and macro")
    else:
        bare = ", without the texts in it" if options.deidentify else ""
        why.say(f"the file's colour profile ({len(profile)} bytes) is kept{bare}")
    return profile


def _decide_passthrough(slide: Slide, image: Image, options: Options, why: _Why, *, rendered: bool) -> Coded | None:
    """The compressed tiles that are copied, with the levels that are; None when pixels are decoded and encoded."""
    changed = "its pixels are rendered" if rendered else must_decode(slide, image, options)
    reason = reason_against(slide, image, options, must_decode=changed)
    if reason is None and slide.coded is not None:
        coded = kept(slide.coded, belongs=belongs)
        if coded.missing:
            why.warn(holes(coded))
        return coded
    if options.passthrough == "require":
        remedy = "Leave --passthrough require out to decode and encode it once"
        raise Unsupported(f"its compressed tiles cannot be copied: {reason}", slide.path, remedy)
    missing = slide.missing_tiles or (slide.coded.missing if slide.coded is not None else 0)
    if missing and not options.allow_missing:
        remedy = "Export it again as a whole from its own software, or convert what is there with --allow-missing"
        raise BadInput(f"{missing} of its tiles are empty and would come out black", slide.path, remedy)
    colour = "YCbCr 4:2:0" if options.profile == "ycc" else "RGB 4:4:4 with shared tables"
    if options.codec == "jp2k" and (slide.coded is None or slide.coded.compression == JPEG):
        why.say("--codec jp2k lets JPEG 2000 tiles be copied, of which there are none: JPEG is written")
    because = f" ({reason})" if slide.coded is not None else ""
    how = f"JPEG {colour}, quality {options.quality}, {options.tile_px} px tiles"
    why.say(f"pixels are decoded and encoded once as {how}{because}")
    return None


def _decide_levels(size: Level, options: Options, why: _Why, coded: Coded | None) -> tuple[Level, ...]:
    own = () if coded is None else coded.levels
    first = tuple((level.width_px, level.height_px) for level in own)
    sizes = level_sizes(size.width_px, size.height_px, options.downsample, first=first)
    text = ", ".join(f"{width} x {height}" for width, height in sizes)
    apart = f", a factor of {options.downsample} apart" if len(own) < 2 and len(sizes) > 1 else ""
    why.say(f"{len(sizes)} level{'s' if len(sizes) > 1 else ''}: {text} px{apart}")
    tile, codec = (options.tile_px, "jpeg") if coded is None else (coded.tile_px, coded.levels[0].codec)
    levels = (*own, *(Level(width, height, tile, tile, codec, True) for width, height in sizes[len(own) :]))
    for sentence in sentences(coded, levels, quality=options.quality) if coded is not None else ():
        why.say(sentence)
    return levels


def _decide_pictures(
    slide: Slide, image: Image, options: Options, why: _Why, label_px: tuple[int, int] | None
) -> tuple[Picture, ...]:
    label = _decide_label(slide, image, options, why, label_px)
    macro = _decide_macro(slide, image, options, why)
    return tuple(picture for picture in (label, macro) if picture is not None)


def _decide_label(
    slide: Slide, image: Image, options: Options, why: _Why, label_px: tuple[int, int] | None
) -> Picture | None:
    if options.label == "file" and label_px is not None:
        width, height = fit(*label_px, (PICTURE_MAX_PX, PICTURE_MAX_PX))
        why.say(f"the label is the picture given with --label, {width} x {height} px")
        return Picture("label", -1, width, height)
    found = _largest(slide, image, "label")
    if found is None:
        return None
    if options.label == "drop":
        why.say("the label is left out, as --label drop asks")
        return None
    if options.label == "redact":
        width, height = fit(found.levels[0].width_px, found.levels[0].height_px, (PICTURE_MAX_PX, PICTURE_MAX_PX))
        why.say(f"the label is blanked, {width} x {height} px, as --label redact asks")
        return Picture("label", found.index, width, height)
    if options.deidentify:
        why.say("the label is left out: it names people")
        return None
    return _kept_picture(slide, found, why)


def _decide_macro(slide: Slide, image: Image, options: Options, why: _Why) -> Picture | None:
    found = _largest(slide, image, "macro")
    if found is None:
        return None
    if options.macro == "drop":
        why.say("the macro is left out, as --macro drop asks")
        return None
    if options.deidentify and options.macro == "keep":
        why.say("the macro is left out, as the label can be on it; --macro crop-label keeps the rest of it")
        return None
    picture = _kept_picture(slide, found, why)
    if picture is not None and options.macro == "crop-label":
        why.say(
            "the end of the macro with the label is cut off; if it cannot be told for certain, the macro is dropped"
        )
    return picture


def _largest(slide: Slide, image: Image, role: Role) -> Image | None:
    found = [other for other in slide.images if other.role == role and other.index != image.index]
    return max(found, key=lambda other: other.levels[0].width_px * other.levels[0].height_px, default=None)


def _kept_picture(slide: Slide, found: Image, why: _Why) -> Picture | None:
    if not (plain(found) or can_render(slide, found)):
        why.warn(f"the {found.role} (image {found.index}) is not 8-bit RGB and was left out")
        return None
    width, height = fit(found.levels[0].width_px, found.levels[0].height_px, (PICTURE_MAX_PX, PICTURE_MAX_PX))
    why.say(f"the {found.role} is image {found.index} ({found.name or 'unnamed'}), {width} x {height} px")
    return Picture(found.role, found.index, width, height)
