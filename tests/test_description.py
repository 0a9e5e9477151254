"""ImageDescription text against the sample of svs-spec.md, a scanner's own text, and any text at all."""

from __future__ import annotations

import json
import os
import re
from dataclasses import replace
from pathlib import Path

import pytest
import tifffile
from hypothesis import given
from hypothesis import strategies as st

from mimic import description
from mimic.description import Description, format_description, parse
from mimic.errors import InternalError
from mimic.model import Scale

GOLDEN = Path(__file__).parent / "golden"


def sample() -> list[tuple[str, str]]:
    return [(page["kind"], page["text"]) for page in json.loads((GOLDEN / "spec_section_8.json").read_text())]


# The text


def test_the_specs_sample_is_written_byte_for_byte() -> None:
    values = (
        ("AppMag", "40"),
        ("StripeWidth", "256"),
        ("Filename", "slide001"),
        ("Date", "03/05/24"),
        ("Time", "09:08:07"),
        ("Time Zone", "GMT+00:00"),
        ("MPP", "0.2500"),
        ("Left", "0.000000"),
        ("Top", "0.000000"),
        ("OriginalWidth", "40000"),
        ("Originalheight", "30000"),
        ("ICC Profile", "sRGB"),
        ("Converter", "mimic 0.1"),
    )
    whole, crop, tile = (40000, 30000), (0, 0, 40000, 30000), (256, 256)
    baseline = Description("baseline", description.PREFIX, whole, crop, tile, None, "JPEG/YCC", 85, values)
    level = replace(baseline, kind="level", pairs=())
    made = [
        baseline,
        Description("thumbnail", scan_px=whole, size_px=(1024, 768), pairs=values),
        replace(level, size_px=(10000, 7500)),
        replace(level, size_px=(2500, 1875)),
        Description("label", size_px=(387, 463)),
        Description("macro", size_px=(1280, 431)),
    ]
    for each, (kind, expected) in zip(made, sample(), strict=True):
        assert format_description(each) == expected
        assert each.kind == kind
        assert parse(expected + "\0") == each


def test_a_scanners_own_text_is_understood() -> None:
    found = parse(
        "Aperio Image Library v11.2.1 \r\n46000x32914 [42673,5576 2220x2967] (240x240) JPEG/RGB Q=30;"
        "Aperio Image Library v10.0.51\r\n46920x33014 [0,100 46000x32914] (256x256) JPEG/RGB Q=30|AppMag = 20|"
        "Date = 12/29/09|MPP = 0.4990|OriginalWidth = 46920|OriginalWidth = 46000"
    )
    assert (found.kind, found.prefix) == ("baseline", "Aperio Image Library v11.2.1")
    assert (found.scan_px, found.crop_px) == ((46000, 32914), (42673, 5576, 2220, 2967))
    assert (found.tile_px, found.codec, found.quality) == ((240, 240), "JPEG/RGB", 30)
    assert found.values["MPP"] == "0.4990"
    assert found.values["OriginalWidth"] == "46000", "of two the last wins"
    assert len(found.pairs) == 5


@pytest.mark.parametrize(
    ("words", "kind", "size"),
    [
        (
            "Aperio Leica Biosystems GT450 v1.0.1 \r\n9x8 [0,0 9x8] (256x256) JPEG/YCC Q=91|AppMag = 40",
            "baseline",
            None,
        ),
        ("Aperio Image Library v10.0.51\r\n90x80 [0,0 90x80] (240x240) -> 22x20 J2K/KDU Q=70", "level", (22, 20)),
        ("Aperio Image Library v11.2.1 \n90x80 -> 57x46 - ;Aperio Image Library v10\r\n9x9", "thumbnail", (57, 46)),
        ("Aperio Image Library v11.2.1 \nlabel 387x463", "label", (387, 463)),
        ("Aperio Image Library v11.2.1 \r\nmacro 1280x431", "macro", (1280, 431)),
        ("Aperio Image Library v11.2.1 \nLabel", "label", None),
        ("Aperio Fake |MPP = 0.5", "unknown", None),
        ("ImageJ=1.53\nimages=3", "unknown", None),
        ("", "unknown", None),
    ],
)
def test_kinds(words: str, kind: str, size: tuple[int, int] | None) -> None:
    assert (parse(words).kind, parse(words).size_px) == (kind, size)


def test_a_token_without_equals_is_kept_apart() -> None:
    assert parse("Aperio Image Library v1\n|AppMag=20|label|MPP = 1|").stray == ("label", "")
    assert parse("Aperio Image Library v1\n|AppMag=20|label|MPP = 1|").values == {"AppMag": "20", "MPP": "1"}


@given(st.one_of(st.text(), st.text("0123456789x[], ()->|=;\r\nQJPEG/labelmacro٣")))
def test_parse_never_raises(words: str) -> None:
    parse(words)


_side = st.integers(0, 2**31 - 1)
_size = st.tuples(_side, _side)
_value = st.text(min_size=1).map(description.clean).filter(bool)
_key = _value.map(lambda value: value.replace("=", "")).map(description.clean).filter(bool)
_pairs = st.lists(st.tuples(_key, _value), max_size=5).map(tuple)
_prefix = st.sampled_from([description.PREFIX, "Aperio Leica Biosystems GT450 v1.0.1"])
_codec = st.sampled_from(["JPEG/YCC", "JPEG/RGB", "J2K/YUV16"])
_crop = st.tuples(_side, _side, _side, _side)
_descriptions = st.one_of(
    st.builds(Description, st.sampled_from(["label", "macro"]), _prefix, size_px=_size),
    st.builds(Description, st.just("thumbnail"), _prefix, scan_px=_size, size_px=_size, pairs=_pairs),
    st.builds(
        Description,
        st.just("level"),
        _prefix,
        scan_px=_size,
        crop_px=_crop,
        tile_px=_size,
        size_px=_size,
        codec=_codec,
        quality=_side,
    ),
    st.builds(
        Description,
        st.just("baseline"),
        _prefix,
        scan_px=_size,
        crop_px=_crop,
        tile_px=_size,
        codec=_codec,
        quality=_side,
        pairs=_pairs,
    ),
)


@given(_descriptions)
def test_what_is_written_is_read_back(made: Description) -> None:
    assert parse(format_description(made)) == made


@pytest.mark.parametrize(
    "half",
    [
        Description("unknown"),
        Description("label"),
        Description("baseline"),
        Description("baseline", scan_px=(1, 1), crop_px=(0, 0, 1, 1), tile_px=(256, 256)),
        Description("thumbnail", scan_px=(1, 1), size_px=(1, 1), pairs=(("Note", "a|b"),)),
        Description("thumbnail", scan_px=(1, 1), size_px=(1, 1), pairs=(("Note", ""),)),
        Description("thumbnail", scan_px=(1, 1), size_px=(1, 1), pairs=(("No=te", "a"),)),
    ],
)
def test_half_a_description_is_refused(half: Description) -> None:
    with pytest.raises(InternalError):
        format_description(half)


# Values


@given(st.text())
def test_cleaned_values_are_harmless(words: str) -> None:
    cleaned = description.clean(words)
    assert re.fullmatch(r"[\x20-\x7e]*", cleaned)
    assert not re.search(r"\||<| = |label|macro|imagej", f" {cleaned} ", re.IGNORECASE)
    assert cleaned == cleaned.strip()
    assert description.clean(cleaned) == cleaned


@pytest.mark.parametrize(
    ("words", "cleaned"),
    [
        ("Zeiss CZI", "Zeiss CZI"),
        ("0.22 µm/px", "0.22 um/px"),
        ("Müller\r\n|AppMag = 2", "Muller /AppMag=2"),
        ("label image", "la-bel image"),
        ("<OME xmlns", "(OME xmlns"),
        ("日本\0x", "?? x"),
        ("x" * 300, "x" * 200),
        (" = ", ""),
    ],
)
def test_cleaning(words: str, cleaned: str) -> None:
    assert description.clean(words) == cleaned


@pytest.mark.parametrize(
    ("x", "y", "expected"),
    [
        (0.25, 0.25, "0.2500"),
        (0.499, 0.499, "0.4990"),
        (0.228175, 0.228175, "0.228175"),
        (0.227097, 0.227102, "0.2271"),
        (0.028969, 0.028969, "0.028969"),
        (1.0, 1.0, "1.0000"),
        (0.4, 0.402, "0.4010"),
        (0.00012, 0.00012, "0.00012"),
        (0.00001234, 0.00001234, "0.00001234"),
        (325.0, 325.0, "325.0000"),
    ],
)
def test_mpp_text(x: float, y: float, expected: str) -> None:
    assert description.mpp_text(Scale(x, y, "file")) == expected


@given(st.floats(description.MIN_MPP_UM, description.MAX_MPP_UM))
def test_mpp_text_is_exact_enough(mpp_um: float) -> None:
    words = description.mpp_text(Scale(mpp_um, mpp_um, "file"))
    assert re.fullmatch(r"\d+\.\d{4,}", words)
    assert float(words) == pytest.approx(mpp_um, rel=1.01e-4)


@pytest.mark.parametrize("mpp_um", [0.0, -1.0, float("nan"), float("inf"), 1e-6, 1e6])
def test_an_impossible_scale_is_refused(mpp_um: float) -> None:
    with pytest.raises(InternalError):
        description.mpp_text(Scale(mpp_um, mpp_um, "file"))


def test_a_real_slide() -> None:
    """The scanner's own file, as tifffile hands out its descriptions."""
    corpus = os.environ.get("MIMIC_CORPUS")
    if not corpus:
        pytest.skip("MIMIC_CORPUS is not set")
    with tifffile.TiffFile(Path(corpus) / "svs" / "CMU-1-Small-Region.svs") as tiff:
        found = [parse(page.description) for page in tiff.pages if isinstance(page, tifffile.TiffPage)]
    assert [page.kind for page in found] == ["baseline", "thumbnail", "label", "macro"]
    assert found[0].values["AppMag"] == found[1].values["AppMag"] == "20"
    assert found[0].values["MPP"] == "0.4990"
    assert found[2].size_px == (387, 463)
    assert not any(page.stray for page in found)
