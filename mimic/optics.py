"""Scale and objective of a scan, a sentence for every choice: of the file, of the user, derived. Pure.

Scale comes before magnification and is never invented; magnification may be derived from it, and is marked so.
"""

from __future__ import annotations

import math

from mimic.errors import BadInput, Unsupported
from mimic.model import Image, Level, Objective, Options, Scale, Slide
from mimic.views import Say

ANISOTROPY_MAX = 0.01
"""Aperio has one MPP for both axes; svs-spec.md, section 4."""
USUAL_POWERS = (1.0, 2.0, 4.0, 5.0, 10.0, 20.0, 40.0, 60.0, 80.0, 100.0)
"""What readers mean by AppMag, which must be a whole number: no 1.25x, no 2.5x; and 63x cannot be told from 60x."""
POWER_TIMES_MPP_UM = 10.0
"""Slide scanners sample 10 um a pixel of a virtual sensor: 40x at 0.25 um (0.22 to 0.275), 20x at 0.5, 10x at 1."""
AGREEMENT = (6.4, 13.5)
"""Objective power times MPP of a plain light path. Seen: Aperio 0.499 x 20 = 10.0, Hamamatsu 0.228 x 40 = 9.1, Zeiss
0.44 x 20 = 8.8, confocals 7.1 to 7.8, a Nikon with the common 6.5 um camera 0.323 x 20 = 6.47. A power that is wrong
by a factor of two gives 5 or 20. Outside, an aperture boost, an optovar or a camera adapter is at work, or one of the
two is wrong."""
APPMAG_MIN = 0.5
"""Less would be written as AppMag 0."""
MPP_RANGE_UM = (0.001, 1000.0)
"""What an Aperio description can say; far more than a microscope's 0.02 to 50."""


def decide_scale(slide: Slide, image: Image, options: Options, *, say: Say, warn: Say) -> Scale | None:
    """The output's scale, alike on both axes; None only where the user allows it.

    Raises BadInput for a file that states none, Unsupported for pixels that are not square.
    """
    if options.mpp_um is not None:
        say(f"scale {options.mpp_um:g} um/px was given with --mpp" + _instead_of(image.scale))
        return Scale(options.mpp_um, options.mpp_um, "option", "--mpp")
    found = image.scale
    if found is None:
        if options.no_scale:
            say("the file states no scale, and --no-scale allows a slide without")
            warn("written without a scale: viewers will measure in pixels")
            return None
        remedy = "Give the micrometres of a pixel with --mpp, or convert without a scale with --no-scale"
        raise BadInput("the file does not state its scale", slide.path, remedy)
    if not _square(found):
        return _squared(slide, image, found, options, say=say)
    mean_um = round(math.sqrt(found.x_um * found.y_um), 9)
    both = f" (the mean of {found.x_um:g} and {found.y_um:g})" if found.x_um != found.y_um else ""
    say(f"scale {mean_um:g} um/px{both} comes from the file: {found.note or 'its metadata'}")
    return Scale(mean_um, mean_um, found.origin, found.note)


def _squared(slide: Slide, image: Image, found: Scale, options: Options, *, say: Say) -> Scale:
    if not options.square:
        message = f"its pixels are not square: {found.x_um:g} x {found.y_um:g} um, and an SVS has one scale"
        remedy = "Resample it to square pixels with --square, or give the scale that shall count with --mpp"
        raise Unsupported(message, slide.path, remedy)
    finer_um = min(found.x_um, found.y_um)
    size, squared = image.levels[0], scan_size(image, options)
    say(
        f"pixels of {found.x_um:g} x {found.y_um:g} um are resampled to square ones of {finer_um:g} um, the finer "
        f"scale: {size.width_px} x {size.height_px} px become {squared.width_px} x {squared.height_px}"
    )
    return Scale(finer_um, finer_um, found.origin, found.note)


def _square(scale: Scale) -> bool:
    return max(scale.x_um, scale.y_um) / min(scale.x_um, scale.y_um) <= 1 + ANISOTROPY_MAX


def scan_size(image: Image, options: Options) -> Level:
    """Level 0 of the output: the image's own, or stretched along one axis where ``--square`` makes pixels square."""
    size, scale = image.levels[0], image.scale
    if not options.square or options.mpp_um is not None or scale is None or _square(scale):
        return size
    finer_um = min(scale.x_um, scale.y_um)
    return Level(round(size.width_px * scale.x_um / finer_um), round(size.height_px * scale.y_um / finer_um))


def _instead_of(found: Scale | None) -> str:
    return f" and replaces {found.x_um:g} um/px of the file" if found is not None else ""


def decide_objective(image: Image, options: Options, scale: Scale | None, *, say: Say, warn: Say) -> Objective | None:
    """The user's objective, else the file's, else the usual one for ``scale``; None where nothing tells."""
    if options.appmag is not None:
        found = f" and replaces {image.objective.power:g}x of the file" if image.objective is not None else ""
        say(f"magnification {options.appmag:g}x was given with --appmag{found}")
        objective = Objective(options.appmag, "option", "--appmag")
    elif image.objective is not None and image.objective.power >= APPMAG_MIN:
        objective = image.objective
        say(f"magnification {objective.power:g}x comes from the file: {objective.note or 'its metadata'}")
    else:
        return _derive_objective(scale, say=say, warn=warn)
    if objective.power != int(objective.power):
        say(f"AppMag must be a whole number: {objective.power:g} is written as {int(objective.power + 0.5)}")
    if scale is not None and not agree(scale.x_um, objective.power):
        usual = POWER_TIMES_MPP_UM / scale.x_um
        warn(
            f"{scale.x_um:g} um/px and {objective.power:g}x do not fit each other ({scale.x_um:g} um/px is usual at "
            f"about {usual:.3g}x): an aperture boost, an optovar or a camera adapter can be the cause, else one of "
            "them is wrong; trust the scale, and mend the magnification with --appmag if it is wrong"
        )
    return objective


def _derive_objective(scale: Scale | None, *, say: Say, warn: Say) -> Objective | None:
    power = nearest_power(scale.x_um) if scale is not None else None
    if scale is None or power is None:
        say("magnification is unknown and not written")
        warn("written without a magnification: HistoQC needs one, give it with --appmag")
        return None
    note = f"nearest usual objective to {scale.x_um:g} um/px"
    say(f"magnification {power:g}x is derived: {note}; the file names no objective")
    warn(f"magnification {power:g}x is derived from the scale; give the real one with --appmag if you know it")
    return Objective(power, "derived", note)


def nearest_power(mpp_um: float) -> float | None:
    """The usual objective nearest to 10 um / MPP on a log scale; None beyond the range of objectives."""
    wanted = POWER_TIMES_MPP_UM / mpp_um
    nearest = min(USUAL_POWERS, key=lambda power: abs(math.log(power / wanted)))
    return nearest if 0.5 <= nearest / wanted <= 2 else None


def agree(mpp_um: float, power: float) -> bool:
    """Whether a scale and an objective fit each other in a plain light path."""
    return AGREEMENT[0] <= mpp_um * power <= AGREEMENT[1]
