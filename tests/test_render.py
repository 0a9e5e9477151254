"""Rendering without files: arithmetic against a formula written anew, decisions, options."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from mimic import ome, render, views
from mimic.errors import Unsupported, UsageError
from mimic.model import Box, Channel, ChannelView, Image, Level, Options, Rendering, Slide

KINDS = ("uint8", "int8", "uint16", "int16", "uint32", "int32", "float32", "float64")
WHITE, RED, GREEN, BLUE = (255, 255, 255), (255, 0, 0), (0, 255, 0), (0, 0, 255)


def naive(samples: list[NDArray[Any]], shown: Rendering) -> NDArray[np.float64]:
    """The formula of render.py's first lines, pixel by pixel in doubles."""
    light = np.zeros((*samples[0].shape, 3))
    for plane, view in zip(samples, shown.views, strict=True):
        part = (plane.astype(float) - view.low) / (view.high - view.low)  # type: ignore[operator]
        part = curve(np.where(np.isnan(part), 0, np.clip(part, 0, 1)), view.gamma)
        light += (1 - part if shown.inverted else part)[..., None] * np.array(view.colour)
    return np.minimum(light, 255)


def curve(part: Any, gamma: float) -> Any:
    """ZEISS's: a power, or below 1 one with a toe, whose a is where the iteration stands still."""
    if gamma >= 1:
        return part**gamma
    a = 224.0
    for _ in range(3000):
        a = ((a + 1) ** gamma - 1) / gamma**4
    return ((a * part + 1) ** gamma - 1) / ((a + 1) ** gamma - 1)


@pytest.mark.parametrize(("gamma", "a"), [(0.5, 224.0), (0.45, 287.806332841221)])
def test_toe_of_a_gamma(gamma: float, a: float) -> None:
    """For one half it can be solved: with s = sqrt(a + 1), s^2 - 1 = 16 (s - 1), so that s = 15. The other number is
    the one that ZEISS's library has for it."""
    light = np.linspace(0, 1, 500)
    assert render.bent(light, gamma) == pytest.approx(((a * light + 1) ** gamma - 1) / ((a + 1) ** gamma - 1), abs=1e-9)


@given(st.floats(0.02, 50), st.floats(0, 1), st.floats(0, 1))
def test_a_gamma_keeps_black_white_and_order(gamma: float, one: float, other: float) -> None:
    dark, low, high, light = render.bent(np.array([0, min(one, other), max(one, other), 1]), gamma)
    assert (dark, light) == (0, pytest.approx(1)) and -1e-12 <= dark <= low <= high <= light + 1e-12
    assert low <= min(one, other) + 1e-9 if gamma >= 1 else low >= min(one, other) - 1e-9


@settings(max_examples=60)
@given(
    kind=st.sampled_from(KINDS),
    colours=st.lists(st.tuples(*[st.sampled_from((0, 51, 255))] * 3), min_size=1, max_size=4),
    low=st.integers(-3000, 3000),
    span=st.integers(1, 70000),
    gamma=st.sampled_from((1.0, 1.0, 0.45, 0.7, 2.2)),
    inverted=st.booleans(),
    seed=st.integers(0, 9),
)
def test_compose_is_the_formula(
    kind: str, colours: Any, low: int, span: int, gamma: float, inverted: bool, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    spread = 127 if kind == "int8" else 255 if kind == "uint8" else 30000
    start = -spread if kind.startswith(("int", "float")) else 0
    samples = [rng.integers(start, spread, (300, 7)).astype(kind) for _ in colours]
    shown = Rendering(
        tuple(ChannelView(i, colour, low, low + span, gamma) for i, colour in enumerate(colours)), inverted=inverted
    )
    got = render.compose(samples, shown)
    assert got.dtype == np.uint8 and got.shape == (300, 7, 3)
    assert np.abs(got - naive(samples, shown)).max() <= 0.51


def test_whole_range_rgb_is_untouched_and_16_bits_keep_white() -> None:
    every = np.arange(256, dtype=np.uint8).reshape(16, 16)
    full = [ChannelView(i, colour, 0, 255) for i, colour in enumerate((RED, GREEN, BLUE))]
    assert np.array_equal(render.compose([every, every.T, 255 - every], Rendering(tuple(full)))[..., 0], every)
    wide = [ChannelView(i, colour, 0, 65535) for i, colour in enumerate((RED, GREEN, BLUE))]
    got = render.compose([every.astype(np.uint16) * 257] * 3, Rendering(tuple(wide)))
    assert np.array_equal(got, np.dstack([every] * 3))


def test_nan_is_black_and_infinity_is_clipped() -> None:
    plane = np.array([[np.nan, np.inf, -np.inf, 0.5]], np.float32)
    got = render.compose([plane], Rendering((ChannelView(0, WHITE, 0, 1),)))
    assert got[0, :, 0].tolist() == [0, 255, 0, 128]


def test_a_range_that_is_not_known_is_a_bug() -> None:
    with pytest.raises(ValueError, match="channel 3"):
        render.compose([np.zeros((2, 2), np.uint16)], Rendering((ChannelView(3, RED),)))


def test_percentiles_leave_out_zeros_of_unsigned_and_what_is_no_number() -> None:
    assert render.percentiles(np.array([0] * 900 + list(range(100, 200)), np.uint16)) == (100, 199)
    assert render.percentiles(np.array([-5.0, np.nan, 5.0, np.inf])) == pytest.approx((-4.99, 4.99), abs=0.02)
    assert render.percentiles(np.zeros(10, np.uint8)) == (0, 1)
    assert render.percentiles(np.array([-7, -7, -7], np.int16)) == (-7, -7)


class Fake:
    """A PlaneReader over an array [level][z, channel, y, x] that remembers what it was asked for."""

    sequential = False

    def __init__(self, *levels: NDArray[Any]) -> None:
        self.levels = levels
        self.asked: list[tuple[Box, int, int]] = []

    def boxes(self) -> list[Box]:
        return [Box(0, 0, self.levels[0].shape[3], self.levels[0].shape[2])]

    def samples(self, box: Box, channels: Any, *, z: int, t: int, level: int = 0) -> list[NDArray[Any]]:  # noqa: ARG002
        self.asked.append((box, z, level))
        rows, columns = slice(box.y_px, box.y_px + box.height_px), slice(box.x_px, box.x_px + box.width_px)
        return [self.levels[level][z, channel, rows, columns] for channel in channels]

    def close(self) -> None: ...


def image(channels: int = 1, kind: str = "uint16", **changes: Any) -> Image:
    fields: dict[str, Any] = {
        "index": 0, "role": "scan", "name": "", "levels": (Level(700, 500),), "channels": channels, "rgb": False,
        "pixel_type": kind, "bits": np.dtype(render.DTYPES.get(kind, "uint8")).itemsize * 8, **changes,
    }  # fmt: skip
    return Image(**fields)


def test_ranges_are_measured_on_the_smallest_level_with_enough_pixels_and_only_where_unknown() -> None:
    rng = np.random.default_rng(1)
    large = rng.integers(1, 60000, (1, 2, 1400, 1400)).astype(np.uint16)
    fake = Fake(large, large[..., ::2, ::2] // 2 + 1, large[..., ::8, ::8])
    found = image(2, levels=(Level(1400, 1400), Level(700, 700), Level(175, 175)))
    wanted = Rendering((ChannelView(0, RED, 5, 9), ChannelView(1, GREEN)))
    done = render.resolve(fake, found, wanted)
    assert {level for _, _, level in fake.asked} == {1}
    truth = np.percentile(fake.levels[1][0, 1], (0.1, 99.9))
    assert done.views[0] == wanted.views[0]
    assert done.views[1].low == np.floor(truth[0]) and done.views[1].high == np.ceil(truth[1])
    fake.asked.clear()
    assert render.resolve(fake, found, done) == done and not fake.asked


def test_of_a_plane_without_pyramid_an_even_grid_is_measured() -> None:
    boxes = render.measured_boxes(Level(100_000, 60_000))
    area = sum(box.width_px * box.height_px for box in boxes)
    assert 0.5 * render.MEASURED_MAX_PX < area < 2 * render.MEASURED_MAX_PX
    assert max(box.x_px for box in boxes) > 90_000 and max(box.y_px for box in boxes) > 50_000
    whole = render.measured_boxes(Level(1300, 700))
    assert sum(box.width_px * box.height_px for box in whole) == 1300 * 700


def test_maximum_over_focus_planes() -> None:
    data = np.random.default_rng(2).integers(0, 255, (4, 1, 30, 20)).astype(np.uint8)
    shown = Rendering((ChannelView(0, WHITE, 0, 255),), z="max")
    reader = render.Rendered(Fake(data), shown, image(kind="uint8", z_planes=4))
    assert np.array_equal(reader.read(Box(3, 5, 10, 8))[..., 1], data.max(0)[0, 5:13, 3:13])


def decide(found: Image, source: str = "bioformats", **options: Any) -> tuple[Rendering | None, list[str]]:
    said: list[str] = []
    slide = Slide(Path("/in/a.czi"), (Path("/in/a.czi"),), "Zeiss CZI", source, (found,))
    return views.decide(slide, found, Options(**options), say=said.append, warn=said.append), said


def shown(found: Image, **options: Any) -> Rendering:
    got, _ = decide(found, **options)
    assert got is not None
    return got


def spans(got: Rendering) -> list[tuple[float | None, float | None]]:
    return [(view.low, view.high) for view in got.views]


def test_eight_bit_rgb_is_left_alone() -> None:
    assert decide(image(3, "uint8", rgb=True)) == (None, [])
    assert decide(image(3, "uint8", rgb=True), source="vips") == (None, [])


@pytest.mark.parametrize(("bits", "high"), [(16, 65535), (12, 4095), (10, 1023)])
def test_rgb_is_scaled_by_its_significant_bits(bits: int, high: int) -> None:
    got = shown(image(3, "uint16", rgb=True, bits=bits))
    assert spans(got) == [(0, high)] * 3 and [view.colour for view in got.views] == [RED, GREEN, BLUE]


def test_alpha_is_left_out() -> None:
    got, said = decide(image(4, "uint8", rgb=True))
    assert got is not None and [view.index for view in got.views] == [0, 1, 2]
    assert any("transparency" in sentence for sentence in said)


def test_grey_of_8_bits_is_not_stretched_but_other_grey_is() -> None:
    assert spans(shown(image(1, "uint8"))) == [(0, 255)]
    assert spans(shown(image(1, "uint16"))) == [(None, None)]
    assert spans(shown(image(1, "float"))) == [(None, None)]
    assert spans(shown(image(2, "uint8"))) == [(None, None)] * 2


def test_three_planes_called_red_green_and_blue_are_a_picture() -> None:
    facts = tuple(Channel(index, colour=colour) for index, colour in enumerate((RED, GREEN, BLUE)))
    assert spans(shown(image(3, "uint8", channel_facts=facts))) == [(0, 255)] * 3
    dyes = tuple(Channel(each.index, colour=each.colour, emission_nm=500.0) for each in facts)
    assert spans(shown(image(3, "uint8", channel_facts=dyes))) == [(None, None)] * 3


def test_the_files_range_counts_unless_it_is_the_whole_of_16_bits() -> None:
    assert spans(shown(image(channel_facts=(Channel(0, low=100, high=4000),)))) == [(100, 4000)]
    assert spans(shown(image(channel_facts=(Channel(0, low=0, high=65535),)))) == [(None, None)]
    asked = shown(image(channel_facts=(Channel(0, low=100, high=4000),)), ranges=((0, 1.0, 2.0),))
    assert spans(asked) == [(1, 2)]


def colours(*facts: Channel) -> list[tuple[int, int, int]]:
    return [view.colour for view in shown(image(len(facts), channel_facts=facts)).views]


def test_colours_of_the_file_then_of_emission_then_the_usual_ones() -> None:
    assert colours(Channel(0), Channel(1), Channel(2), Channel(3)) == [BLUE, GREEN, RED, WHITE]
    assert colours(Channel(0, emission_nm=670), Channel(1, emission_nm=461), Channel(2, emission_nm=519)) == [
        RED, BLUE, GREEN,
    ]  # fmt: skip
    assert colours(Channel(0, colour=(9, 9, 9)), Channel(1, emission_nm=461)) == [(9, 9, 9), BLUE]
    # two reds: the second gives way
    assert colours(Channel(0, emission_nm=580), Channel(1, emission_nm=670)) == [RED, BLUE]
    # white everywhere is nobody's choice
    assert colours(Channel(0, colour=WHITE), Channel(1, colour=WHITE)) == [BLUE, GREEN]


def test_transmitted_light_is_left_out_unless_it_is_all_or_asked_for() -> None:
    facts = (Channel(0, "DAPI", BLUE, 461.0), Channel(1, "BF", WHITE), Channel(2, "TD1", transmitted=True))
    found = image(3, channel_facts=facts)
    got, said = decide(found)
    assert got is not None and [view.index for view in got.views] == [0]
    assert "channel 1 (BF), channel 2 (TD1)" in said[0]
    assert [view.index for view in shown(found, channels=(1, 0)).views] == [1, 0]
    assert len(shown(image(1, channel_facts=(Channel(0, "TD", transmitted=True),))).views) == 1


def test_hidden_channels_are_left_out_unless_they_are_all_or_asked_for() -> None:
    facts = (Channel(0, "DAPI", BLUE), Channel(1, "FITC", GREEN, hidden=True), Channel(2, "BF", transmitted=True))
    found = image(3, channel_facts=facts)
    got, said = decide(found)
    assert got is not None and [(view.index, view.colour) for view in got.views] == [(0, BLUE)]
    assert "channel 1 (FITC), hidden in the file's own display settings" in said[0] and "channel 2 (BF)" in said[1]
    assert [view.index for view in shown(found, channels=(0, 1)).views] == [0, 1]
    all_hidden = tuple(Channel(index, hidden=True) for index in range(2))
    assert len(shown(image(2, channel_facts=all_hidden)).views) == 2


def test_gamma_belongs_to_the_range_of_the_file() -> None:
    facts = (Channel(0, low=100, high=4000, gamma=0.45), Channel(1, low=0, high=65535, gamma=2.2))
    found = image(2, channel_facts=facts)
    got, said = decide(found, ranges=((0, 1.0, 2.0),))
    assert got is not None and [view.gamma for view in got.views] == [1, 2.2] and spans(got) == [(1, 2), (0, 65535)]
    assert ["gamma" in text for text in said if "is shown in" in text] == [False, True]
    assert "ch0 0000FF 100-4000 gamma 0.45, ch1" in views.text(found, shown(found))


def test_planes_are_chosen_and_told() -> None:
    stack = image(z_planes=5, t_frames=3)
    got, said = decide(stack)
    assert got is not None and (got.z, got.t) == (2, 0)
    assert "middle" in said[0] and "--t" in said[1]
    assert shown(stack, z=4, t=2).z == 4 and shown(stack, z="max").z == "max"
    assert shown(image(3, "uint8", rgb=True, z_planes=2)).z == 1
    assert any("glass" in text for text in decide(image(3, "uint8", rgb=True, z_planes=2), z="max")[1])


@pytest.mark.parametrize(
    "options",
    [
        {"z": 5}, {"z": -1}, {"z": "top"}, {"t": 1}, {"channels": (2,)}, {"channels": ()}, {"channels": (0, 0)},
        {"colours": (RED,)}, {"ranges": ((2, 0.0, 1.0),)}, {"ranges": ((0, 5.0, 5.0),)},
        {"ranges": ((0, 0.0, 1.0), (0, 0.0, 2.0))},
    ],
)  # fmt: skip
def test_what_does_not_exist_is_a_usage_error(options: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        decide(image(2, z_planes=5), **options)


def test_what_cannot_be_rendered_is_unsupported() -> None:
    with pytest.raises(Unsupported, match="no intensities"):
        decide(image(1, "complex"))
    with pytest.raises(Unsupported, match="--source bioformats"):
        decide(image(1), source="bfconvert")


def test_grey_of_rgb_is_its_luminance() -> None:
    got = shown(image(3, "uint8", rgb=True), grey=True)
    white = [np.full((1, 1), 255, np.uint8)] * 3
    assert render.compose(white, got).tolist() == [[[255, 255, 255]]]


def test_options_in_words() -> None:
    assert views.parse_channels("0,2") == (0, 2)
    assert views.parse_colours("ff0000,#00FF00") == (RED, GREEN)
    assert views.parse_range("0:120-4000") == (0, 120, 4000)
    assert views.parse_range("3:-1.5e2--20") == (3, -150, -20)
    assert [views.parse_z(text) for text in ("3", "max", "middle")] == [3, "max", "middle"]


@pytest.mark.parametrize(("parse", "text"), [
    (views.parse_channels, "0,,2"), (views.parse_channels, "a"), (views.parse_channels, ""),
    (views.parse_colours, "red"), (views.parse_colours, "FF00"), (views.parse_range, "0:1"), (views.parse_range, "1-2"),
    (views.parse_z, "-1"), (views.parse_z, "best"),
])  # fmt: skip
def test_words_that_make_no_sense(parse: Any, text: str) -> None:
    with pytest.raises(UsageError):
        parse(text)


@given(st.text(max_size=30))
def test_parsers_of_options_never_fail_otherwise(text: str) -> None:
    for parse in (views.parse_channels, views.parse_colours, views.parse_range, views.parse_z):
        try:
            parse(text)  # type: ignore[operator]
        except UsageError:
            continue


@given(st.integers(0, 255), st.integers(0, 255), st.integers(0, 255), st.integers(0, 255))
def test_omes_signed_colour(red: int, green: int, blue: int, alpha: int) -> None:
    unsigned = red << 24 | green << 16 | blue << 8 | alpha
    signed = unsigned - 2**32 if unsigned >= 2**31 else unsigned
    expected = (red, green, blue) if red or green or blue else None
    assert ome.colour(str(signed)) == ome.colour(str(unsigned)) == expected


def test_what_is_no_colour() -> None:
    assert [ome.colour(text) for text in (None, "", "red", "1e3", str(2**32), "99999999999")] == [None] * 6


def test_text_for_the_description() -> None:
    found = image(2, z_planes=5, channel_facts=(Channel(0, "DAPI"), Channel(1, "x", transmitted=True)))
    got = Rendering((ChannelView(0, BLUE, 120, 4000), ChannelView(1, GREEN)), z=3)
    assert views.text(found, got) == "ch0 DAPI 0000FF 120-4000, ch1 x 00FF00 auto; z 3"
    assert "DAPI" not in views.text(found, got, names=False)
