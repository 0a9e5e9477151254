"""plan: every decision with its reason, every refusal with its remedy, and the geometry for slides of any size."""

from __future__ import annotations

import ast
import inspect
import math
import sys
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from mimic.errors import BadInput, MimicError, Unsupported, UsageError
from mimic.geometry import level_sizes, thumbnail_size
from mimic.model import Image, Level, Objective, Options, Plan, Role, Scale, Slide
from mimic.naming import output_stem
from mimic.optics import USUAL_POWERS, agree, nearest_power
from mimic.plan import plan

SCALE = Scale(0.25, 0.25, "file", "PhysicalSizeX = 0.25 um")
FORTY = Objective(40.0, "file", "NominalMagnification")
PURE_MODULES = {
    *("__future__", "math", "collections.abc", "dataclasses", "pathlib"),
    *(
        "mimic.copying",
        "mimic.errors",
        "mimic.geometry",
        "mimic.icc",
        "mimic.jpegs",
        "mimic.model",
        "mimic.naming",
        "mimic.optics",
    ),
    "mimic.views",
}


def image(index: int = 0, role: Role = "scan", **changes: Any) -> Image:
    found = Image(
        index=index, role=role, name="", levels=(Level(40_000, 30_000),), channels=3, rgb=True, pixel_type="uint8",
        bits=8, scale=SCALE, objective=FORTY,
    )  # fmt: skip
    return replace(found, **changes)


def slide(*images: Image, path: Path = Path("/in/slide.czi"), **changes: Any) -> Slide:
    found = Slide(path, (path,), "Zeiss CZI", "bioformats", images or (image(),))
    return replace(found, **changes)


def one(found: Slide, options: Options | None = None, *, output: Path | None = None) -> Plan:
    plans = plan(found, options or Options(), output=output, threads=2)
    assert len(plans) == 1
    return plans[0]


def sized(width_px: int, height_px: int, **changes: Any) -> Slide:
    return slide(image(levels=(Level(width_px, height_px),), **changes))


def refusal(kind: type[MimicError], found: Slide, options: Options | None = None, output: Path | None = None) -> str:
    """The message of a refusal, which must name the file or the option, and say what to do."""
    with pytest.raises(kind) as caught:
        plan(found, options or Options(), output=output, threads=2)
    assert type(caught.value) is kind
    return str(caught.value)


def told(sentences: tuple[str, ...], *words: str) -> str:
    """The one sentence that has all the words."""
    found = [sentence for sentence in sentences if all(word in sentence for word in words)]
    assert len(found) == 1, (words, sentences)
    return found[0]


# Every choice has a reason


@pytest.mark.parametrize("decision", [plan, agree, level_sizes, output_stem], ids=lambda each: str(each.__module__))
def test_plan_is_pure(decision: Callable[..., object]) -> None:
    tree = ast.parse(inspect.getsource(sys.modules[decision.__module__]))
    imported = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    imported |= {node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert imported <= PURE_MODULES


def test_every_choice_has_a_reason() -> None:
    made = one(slide(image(), image(1, "label", name="label image", levels=(Level(387, 463),))))
    told(made.reasons, "Zeiss CZI", "bioformats", "image 0")
    told(made.reasons, "scale 0.25 um/px", "PhysicalSizeX")
    told(made.reasons, "magnification 40x", "NominalMagnification")
    told(made.reasons, "3 levels", "40000 x 30000", "10000 x 7500", "2500 x 1875", "factor of 4")
    told(made.reasons, "JPEG", "YCbCr 4:2:0", "quality 80", "256 px tiles")
    told(made.reasons, "label", "image 1", "387 x 463")
    assert made.warnings == ()


@pytest.mark.parametrize(
    "options",
    [
        Options(), Options(mpp_um=0.5), Options(appmag=20), Options(no_scale=True), Options(profile="rgb"),
        Options(downsample=2), Options(tile_px=512, quality=95), Options(image_index=0), Options(label="drop"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("scale", [SCALE, None])
@pytest.mark.parametrize("objective", [FORTY, None])
def test_reasons_never_lack_a_choice(options: Options, scale: Scale | None, objective: Objective | None) -> None:
    found = slide(image(scale=scale, objective=objective))
    if scale is None and options.mpp_um is None and not options.no_scale:
        refusal(BadInput, found, options)
        return
    text = "\n".join(one(found, options).reasons)
    for word in ("read by bioformats", "scale", "magnification", "level", "JPEG", "tiles"):
        assert word in text


def test_facts_are_carried_over() -> None:
    when = datetime(2024, 3, 5, 9, 8, 7)
    options = Options(profile="rgb", quality=91, tile_px=512, downsample=2, verify="full")
    made = plan(slide(image(acquired=when)), options, output=None, threads=7)[0]
    assert (made.profile, made.quality, made.tile_px, made.downsample, made.verify) == ("rgb", 91, 512, 2, "full")
    assert (made.acquired, made.threads, made.source, made.image_index) == (when, 7, "bioformats", 0)
    assert made.image is made.slide.images[0]
    assert {(level.tile_width_px, level.tile_height_px) for level in made.levels} == {(512, 512)}
    assert made.scratch_bytes > 40_000 * 30_000 / 10


def test_a_scratch_tiff_needs_more_room() -> None:
    least = 40_000 * 30_000 * 3
    assert one(slide(source="bfconvert")).scratch_bytes > least > one(slide()).scratch_bytes


def test_warnings_of_the_slide_are_kept() -> None:
    assert "a doubt" in one(slide(warnings=("a doubt",))).warnings


def test_companions_are_told() -> None:
    files = tuple(Path(f"/in/{name}") for name in ("a.dcm", "b.dcm", "c.dcm"))
    told(one(slide(files=files)).reasons, "3 files belong together")


# Scale


def test_scale_comes_from_the_file() -> None:
    made = one(slide(image(scale=Scale(0.2282, 0.2274, "file", "somewhere"))))
    assert made.scale is not None
    assert made.scale.x_um == made.scale.y_um == pytest.approx(math.sqrt(0.2282 * 0.2274), abs=1e-9)
    assert (made.scale.origin, made.scale.note) == ("file", "somewhere")
    told(made.reasons, "0.2282", "0.2274", "mean")


def test_a_given_scale_wins_and_says_so() -> None:
    made = one(slide(), Options(mpp_um=0.5))
    assert made.scale == Scale(0.5, 0.5, "option", "--mpp")
    told(made.reasons, "0.5 um/px", "--mpp", "replaces 0.25")


def test_no_scale_stops_with_both_remedies() -> None:
    text = refusal(BadInput, slide(image(scale=None)))
    assert "--mpp" in text and "--no-scale" in text and "slide.czi" in text
    assert BadInput.exit_code == 3


def test_no_scale_by_wish_warns() -> None:
    made = one(slide(image(scale=None)), Options(no_scale=True))
    assert made.scale is None
    told(made.warnings, "without a scale")
    told(made.reasons, "no scale", "--no-scale")


def test_a_stated_scale_is_used_even_when_none_would_do() -> None:
    assert one(slide(), Options(no_scale=True)).scale == SCALE


@pytest.mark.parametrize(("x_um", "y_um"), [(0.25, 0.2526), (0.2526, 0.25), (0.5, 0.25), (0.25, 0.5)])
def test_oblong_pixels_are_refused_with_both_numbers(x_um: float, y_um: float) -> None:
    text = refusal(Unsupported, slide(image(scale=Scale(x_um, y_um, "file"))))
    assert f"{x_um:g}" in text and f"{y_um:g}" in text and "--mpp" in text


@pytest.mark.parametrize(("x_um", "y_um"), [(0.25, 0.2524), (0.2524, 0.25), (0.028969, 0.028968)])
def test_nearly_square_pixels_are_taken(x_um: float, y_um: float) -> None:
    made = one(slide(image(scale=Scale(x_um, y_um, "file"))))
    assert made.scale is not None and min(x_um, y_um) <= made.scale.x_um <= max(x_um, y_um)


def test_a_given_scale_helps_oblong_pixels() -> None:
    made = one(slide(image(scale=Scale(0.5, 0.25, "file"))), Options(mpp_um=0.3))
    assert made.scale == Scale(0.3, 0.3, "option", "--mpp")


# Magnification


def test_magnification_from_the_file() -> None:
    made = one(slide())
    assert made.objective == FORTY and made.warnings == ()


def test_a_given_magnification_wins_and_says_so() -> None:
    made = one(slide(), Options(appmag=20, mpp_um=0.5))
    assert made.objective == Objective(20, "option", "--appmag")
    told(made.reasons, "20x", "--appmag", "replaces 40x")


def test_magnification_is_derived_and_marked() -> None:
    made = one(slide(image(objective=None)))
    assert made.objective is not None
    assert (made.objective.power, made.objective.origin) == (40.0, "derived")
    told(made.reasons, "40x is derived", "0.25 um/px")
    told(made.warnings, "derived", "--appmag")


@pytest.mark.parametrize("scale", [None, Scale(28.97, 28.97, "file")])
def test_magnification_may_stay_unknown(scale: Scale | None) -> None:
    made = one(slide(image(objective=None, scale=scale)), Options(no_scale=True))
    assert made.objective is None
    told(made.warnings, "without a magnification", "--appmag")


@pytest.mark.parametrize(("mpp_um", "power"), [(0.22, 20.0), (0.5, 40.0), (0.25, 10.0), (0.33, 20.0001 * 3)])
def test_a_disagreement_names_both_numbers(mpp_um: float, power: float) -> None:
    """0.22 um at 20x is a scanner's aperture boost or optovar: converted, and the doubt is told."""
    found = slide(image(scale=Scale(mpp_um, mpp_um, "file"), objective=Objective(power, "file")))
    made = one(found)
    warning = told(made.warnings, "do not fit")
    assert f"{mpp_um:g} um/px" in warning and f"{power:g}x" in warning and "--appmag" in warning
    assert made.scale is not None and made.objective is not None
    assert (made.scale.x_um, made.objective.power) == (mpp_um, power)


def test_options_may_disagree_too() -> None:
    told(one(slide(), Options(mpp_um=0.25, appmag=20)).warnings, "0.25 um/px", "20x")


@pytest.mark.parametrize(
    ("mpp_um", "power", "expected"),
    [
        (0.22, 40, True), (0.44, 20, True), (0.499, 20, True), (0.2282, 40, True), (0.3234, 20, True),
        (0.177, 40, True), (0.25, 20, False), (0.5, 40, False), (0.25, 4, False), (1.0, 40, False), (28.97, 1, False),
    ],
)  # fmt: skip
def test_agree(mpp_um: float, power: float, expected: bool) -> None:
    assert agree(mpp_um, power) is expected


@pytest.mark.parametrize(
    ("mpp_um", "power"),
    [
        (0.12, 80), (0.17, 60), (0.22, 40), (0.2282, 40), (0.25, 40), (0.275, 40), (0.44, 20), (0.499, 20),
        (0.55, 20), (0.88, 10), (1.0, 10), (2.0, 5), (2.5, 4), (4.0, 2), (8.0, 1), (0.05, 100), (28.97, None),
        (0.001, None),
    ],
)  # fmt: skip
def test_nearest_power(mpp_um: float, power: float | None) -> None:
    assert nearest_power(mpp_um) == power


@given(st.floats(0.001, 1000))
def test_nearest_power_is_a_whole_number_and_no_other_is_nearer(mpp_um: float) -> None:
    power = nearest_power(mpp_um)
    wanted = 10 / mpp_um
    if power is None:
        assert not 0.5 <= wanted <= 200
        return
    assert power == int(power)
    off = abs(math.log(power / wanted))
    assert all(off <= abs(math.log(other / wanted)) + 1e-9 for other in USUAL_POWERS)
    assert off <= math.log(2) + 1e-9


def test_a_broken_power_is_told_as_it_is_written() -> None:
    made = one(slide(image(objective=Objective(2.5, "file"), scale=Scale(4.0, 4.0, "file"))))
    assert made.objective == Objective(2.5, "file")
    told(made.reasons, "2.5", "written as 3")


def test_a_power_that_would_be_zero_is_not_believed() -> None:
    made = one(slide(image(objective=Objective(0.1, "file"))))
    assert made.objective is not None and made.objective.origin == "derived"


# Which images, and their names


def test_several_scans_become_numbered_files() -> None:
    label = image(2, "label", levels=(Level(387, 463),))
    plans = plan(slide(image(0), image(1), label, image(3)), Options(), output=None, threads=1)
    assert [made.output for made in plans] == [Path(f"/in/slide_s{n}.svs") for n in (1, 2, 3)]
    assert [made.image_index for made in plans] == [0, 1, 3]
    assert all(made.pictures[0].image_index == 2 for made in plans)
    told(plans[0].reasons, "3 scan images", "--image")


def test_one_of_several_scans_keeps_its_number() -> None:
    label = image(1, "label", levels=(Level(387, 463),))
    found = slide(image(0), label, image(2))
    made = one(found, Options(image_index=2))
    assert (made.output.name, made.image_index) == ("slide_s2.svs", 2)
    assert one(found, Options(image_index=2), output=Path("/out/mine.svs")).output == Path("/out/mine.svs")


def test_the_only_scan_needs_no_number() -> None:
    assert one(slide(), Options(image_index=0)).output == Path("/in/slide.svs")


def test_an_unknown_image_lists_the_known() -> None:
    text = refusal(UsageError, slide(image(0), image(3)), Options(image_index=7))
    assert "no image 7" in text and "0, 3" in text


def test_no_scan_lists_the_images_with_their_roles() -> None:
    text = refusal(Unsupported, slide(image(0, "label"), image(1, "thumbnail")))
    assert "0 (label)" in text and "1 (thumbnail)" in text and "--image" in text


def test_a_picture_is_converted_when_asked_for_and_is_not_its_own_label() -> None:
    made = one(slide(image(0), image(1, "label", levels=(Level(387, 463),))), Options(image_index=1))
    assert (made.image_index, made.pictures, made.output.name) == (1, (), "slide.svs")


def test_several_scans_do_not_fit_into_one_file() -> None:
    text = refusal(UsageError, slide(image(0), image(1)), output=Path("/out/x.svs"))
    assert "2 scan images" in text and "--image" in text and "folder" in text


@pytest.mark.parametrize(
    ("name", "stem"),
    [
        ("slide.czi", "slide"), ("a.ome.tif", "a"), ("a.OME.TIFF", "a"), ("a.b.czi", "a.b"), ("1.2.3.dcm", "1.2.3"),
        ("1.2.840.10008.5", "1.2.840.10008.5"), ("slide", "slide"), (".ome.tif", ".ome"), ("-x.tif", "-x"),
        ("a b (1).ndpi", "a b (1)"), ("%s.tif", "%s"), ("scan 🔬.czi", "scan 🔬"), ("x.svs", "x"),
        (".hidden", ".hidden"),
    ],
)  # fmt: skip
def test_output_stem(name: str, stem: str) -> None:
    assert output_stem(Path("/in") / name) == stem
    made = one(slide(path=Path("/in") / name))
    assert made.output == Path("/in") / f"{stem}.svs"


def test_uids_without_an_ending_do_not_collide() -> None:
    names = {one(slide(path=Path(f"/in/1.2.840.{last}"))).output for last in (1, 2, 3)}
    assert len(names) == 3


@pytest.mark.parametrize(
    ("output", "expected"),
    [
        (None, "/in/slide.svs"),
        ("/out/other.svs", "/out/other.svs"),
        ("/out", "/out/slide.svs"),
        ("/out/2024.03.05", "/out/2024.03.05/slide.svs"),
        ("/out/dr.who", "/out/dr.who/slide.svs"),
        ("out", "out/slide.svs"),
    ],
)
def test_where_the_output_goes(output: str | None, expected: str) -> None:
    assert one(slide(), output=Path(output) if output else None).output == Path(expected)


@pytest.mark.parametrize("name", ["x.SVS", "x.Svs", "x.tif", "x.TIFF", "x.czi", "x.ndpi", "x.png", "x.jpeg", "x.dcm"])
def test_endings_that_readers_would_refuse(name: str) -> None:
    text = refusal(UsageError, slide(), output=Path("/out") / name)
    assert name in text and ".svs" in text


# What is not a slide


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"channels": 1, "rgb": False}, ("1 channel of uint8",)),
        ({"channels": 4, "rgb": False, "pixel_type": "uint16"}, ("4 channels of uint16",)),
        ({"pixel_type": "uint16", "bits": 16}, ("uint16",)),
        ({"channels": 3, "rgb": False}, ("3 channels",)),
        ({"channels": 4}, ("4 channels",)),
        ({"channels": 6}, ("6 channels",)),
        ({"channels": 1, "pixel_type": "complex"}, ("1 channel of complex",)),
        ({"pixel_type": "int8"}, ("int8",)),
        ({"pixel_type": "float", "bits": 32}, ("float",)),
        ({"z_planes": 5}, ("5 focus planes", "1 time")),
        ({"t_frames": 3}, ("3 time points", "1 focus")),
        ({"levels": (Level(15, 4000),)}, ("15 x 4000", "16")),
        ({"levels": (Level(4000, 15),)}, ("4000 x 15",)),
        ({"levels": (Level(2**31, 4000),)}, ("2147483648",)),
    ],
)
@pytest.mark.parametrize("source", ["vips", "bfconvert"])
def test_what_is_not_a_slide_is_refused(source: str, changes: dict[str, Any], words: tuple[str, ...]) -> None:
    """By sources that do not render; those that do are in test_render."""
    text = refusal(Unsupported, slide(image(5, name="odd", **changes), source=source))
    assert all(word in text for word in words)
    assert "image 5 (odd)" in text and "slide.czi" in text
    assert Unsupported.exit_code == 4


def test_kind_is_refused_before_scale() -> None:
    refusal(Unsupported, slide(image(channels=1, rgb=False, scale=None), source="bfconvert"))


@pytest.mark.parametrize(
    "options",
    [
        Options(quality=0), Options(quality=101), Options(tile_px=0), Options(tile_px=250), Options(tile_px=8192),
        Options(tile_px=-256), Options(mpp_um=0.0), Options(mpp_um=-1.0), Options(mpp_um=float("nan")),
        Options(mpp_um=float("inf")), Options(mpp_um=0.000499), Options(appmag=0.0), Options(appmag=-20),
        Options(appmag=float("nan")), Options(appmag=float("inf")), Options(appmag=0.4), Options(threads=0),
    ],
)  # fmt: skip
def test_options_without_sense(options: Options) -> None:
    text = refusal(UsageError, slide(), options)
    assert ". " in text  # a remedy follows


# Label and macro


def pictures(found: Slide, options: Options | None = None) -> dict[str, tuple[int, int, int]]:
    made = one(found, options)
    return {each.role: (each.image_index, each.width_px, each.height_px) for each in made.pictures}


def test_label_and_macro_are_kept_with_their_sizes() -> None:
    label, macro = image(1, "label", levels=(Level(387, 463),)), image(2, "macro", levels=(Level(1280, 431),))
    assert pictures(slide(image(), macro, label)) == {"label": (1, 387, 463), "macro": (2, 1280, 431)}


def test_thumbnails_of_the_file_are_not_used() -> None:
    assert pictures(slide(image(), image(1, "thumbnail", levels=(Level(1024, 768),)))) == {}


@pytest.mark.parametrize("role", ["label", "macro"])
def test_dropping_one_keeps_the_other(role: Role) -> None:
    found = slide(image(), image(1, "label", levels=(Level(9, 9),)), image(2, "macro", levels=(Level(9, 9),)))
    options = Options(label="drop") if role == "label" else Options(macro="drop")
    assert set(pictures(found, options)) == {"label", "macro"} - {role}
    told(one(found, options).reasons, role, "left out")


def test_dropping_what_is_not_there_says_nothing() -> None:
    assert "left out" not in " ".join(one(slide(), Options(label="drop")).reasons)


def test_of_several_macros_the_largest_is_taken() -> None:
    small, large = image(1, "macro", levels=(Level(100, 100),)), image(2, "macro", levels=(Level(50, 1000),))
    assert pictures(slide(image(), small, large)) == {"macro": (2, 50, 1000)}


@pytest.mark.parametrize("changes", [{"rgb": False, "channels": 1}, {"pixel_type": "uint16"}, {"channels": 4}])
def test_a_picture_that_is_not_rgb_is_left_out_with_a_warning(changes: dict[str, Any]) -> None:
    found = slide(image(), image(1, "macro", **changes), source="bfconvert")
    assert pictures(found) == {}
    told(one(found).warnings, "macro", "image 1", "left out")


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((8192, 8192), (8192, 8192)),
        ((16_384, 100), (8192, 50)),
        ((10_000, 20_000), (4096, 8192)),
        ((90_000, 1), (8192, 1)),
    ],
)
def test_a_large_picture_shrinks(size: tuple[int, int], expected: tuple[int, int]) -> None:
    width, height = pictures(slide(image(), image(1, "macro", levels=(Level(*size),))))["macro"][1:]
    assert (width, height) == expected


# Geometry

sides = st.one_of(st.integers(16, 200_000), st.integers(16, 2_000))


@settings(max_examples=500)
@given(width_px=sides, height_px=sides, downsample=st.sampled_from([2, 4]))
@example(16, 16, 4)
@example(1024, 768, 4)
@example(1025, 768, 4)
@example(2000, 1500, 4)
@example(200_000, 200_000, 4)
@example(200_000, 16, 2)
@example(16, 200_000, 2)
@example(40_000, 30_000, 4)
@example(577, 576, 4)
def test_geometry_of_any_size(width_px: int, height_px: int, downsample: int) -> None:
    sizes = level_sizes(width_px, height_px, downsample)
    assert sizes[0] == (width_px, height_px)
    for upper, lower in pairwise(sizes):
        assert lower == (upper[0] // downsample, upper[1] // downsample)
    for place, size in enumerate(sizes):  # the file's own rule: whole factors of level 0
        factor = downsample**place
        assert size == (width_px // factor, height_px // factor)
    assert all(min(size) >= 144 for size in sizes[1:])
    if max(width_px, height_px) > 1024 and min(width_px, height_px) // downsample >= 144:
        assert len(sizes) > 1
    if max(width_px, height_px) / min(width_px, height_px) <= 14:
        assert max(sizes[-1]) <= 8192  # large_image, OpenSlide's quickhash
    wide, high = thumbnail_size(tuple(Level(*size) for size in sizes))
    assert 1 <= wide <= 1024 and 1 <= high <= 768
    assert high < sizes[-1][1] and wide <= sizes[-1][0]
    if min(wide, high) > 30:  # the shape is kept, as far as whole pixels can
        assert wide / high == pytest.approx(width_px / height_px, rel=0.1)


@settings(max_examples=200)
@given(width_px=sides, height_px=sides, downsample=st.sampled_from([2, 4]), tile_px=st.sampled_from([256, 512]))
def test_plans_of_any_size(width_px: int, height_px: int, downsample: Literal[2, 4], tile_px: int) -> None:
    made = one(sized(width_px, height_px), Options(downsample=downsample, tile_px=tile_px))
    assert made.levels[0] == Level(width_px, height_px, tile_px, tile_px, "jpeg", True)
    assert made.thumbnail_px[1] < made.levels[-1].height_px


@pytest.mark.parametrize(
    ("size", "sizes"),
    [
        ((46_000, 32_914), [(46_000, 32_914), (11_500, 8_228), (2_875, 2_057)]),  # as the scanner wrote CMU-1
        ((40_000, 30_000), [(40_000, 30_000), (10_000, 7_500), (2_500, 1_875)]),
        ((2_220, 2_967), [(2_220, 2_967), (555, 741)]),
        ((1_000, 750), [(1_000, 750)]),
        ((1_500, 500), [(1_500, 500)]),
    ],
)
def test_known_geometries(size: tuple[int, int], sizes: list[tuple[int, int]]) -> None:
    assert list(level_sizes(*size, 4)) == sizes
