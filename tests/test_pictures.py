"""pictures: labels blanked or replaced, macros cut only where it is certain which end the label is on."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import numpy as np
import openslide
import PIL.Image
import PIL.ImageDraw
import pytest

import mimic
from mimic import pictures
from mimic.errors import BadInput, UsageError
from mimic.model import Pixels
from tests.conftest import SAMPLE_CZI
from tools.make_samples import label_picture


def writing(width_px: int = 380, height_px: int = 440) -> Pixels:
    return np.asarray(PIL.Image.fromarray(label_picture()).resize((width_px, height_px)))


def macro(*, label: Pixels | None = None, dark: bool = False, other_end: int | None = None) -> Pixels:
    """1280 x 431: glass with tissue in the middle; at the left a label, or what a scanner sees of it."""
    rng = np.random.default_rng(7)
    made = rng.integers(218, 236, (431, 1280, 3), np.uint8)
    made[100:300, 560:760] = (190, 90, 150)
    if label is not None:
        made[:, :330] = np.asarray(PIL.Image.fromarray(label).resize((330, 431)))
    if dark:
        made[:, :330] = rng.integers(0, 12, (431, 330, 3), np.uint8)
    if other_end is not None:
        made[:, -250:] = other_end
    return made


GREEN = np.full((440, 380, 3), (60, 140, 80), np.uint8)


@pytest.mark.parametrize("turn", ["as it is", "mirrored", "upright", "upside down"])
def test_the_end_with_the_label_is_cut_off(turn: str) -> None:
    turned: dict[str, Callable[[Pixels], Pixels]] = {
        "as it is": lambda picture: picture,
        "mirrored": lambda picture: picture[:, ::-1],
        "upright": lambda picture: picture.transpose(1, 0, 2),
        "upside down": lambda picture: picture[::-1, ::-1],
    }
    for made in (macro(dark=True), macro(label=GREEN)):
        marked = made.copy()
        marked[:, :330, 0] = np.maximum(made[:, :330, 0], 1)
        left = pictures.without_label(turned[turn](made), writing())
        assert left is not None
        wanted = turned[turn](made[:, left_cut(left, made) :])
        assert np.array_equal(left, wanted)
        assert min(left.shape[:2]) == 431 and max(left.shape[:2]) <= 1280 * 0.7
        assert (left == (190, 90, 150)).all(axis=2).sum() == 200 * 200  # the tissue is whole


def left_cut(left: Pixels, whole: Pixels) -> int:
    return whole.shape[1] - max(left.shape[:2])


@pytest.mark.parametrize(
    ("what", "made", "label"),
    [
        ("no label of its own", macro(dark=True), None),
        ("no end differs", macro(), writing()),
        ("both ends differ", macro(dark=True, other_end=10), writing()),
        ("far too small", macro(dark=True)[:30, :90], writing()),
        ("a whole dark macro", np.zeros((431, 1280, 3), np.uint8), writing()),
    ],
)
def test_what_is_not_certain_is_not_cut(what: str, made: Pixels, label: Pixels | None) -> None:
    assert pictures.without_label(made, label) is None, what


def test_a_label_seen_at_the_other_end_counts_against_the_dark_one() -> None:
    """A white label looks like glass; the dark end is the scanner's stage, and cutting it would keep the label."""
    white = writing(240, 280)
    made = macro(other_end=5)
    made[70:350, 30:270] = np.clip(white.astype(int) * 0.3 + 175, 0, 255).astype(np.uint8)
    assert pictures._label_ends(made) == (0, 250)
    assert pictures.without_label(made, white) is None


def test_real_macro_of_a_scanner(corpus_file: Callable[[str], Path]) -> None:
    with closing(openslide.OpenSlide(corpus_file("svs/CMU-1-Small-Region.svs"))) as slide:
        seen = {name: np.asarray(each.convert("RGB")) for name, each in slide.associated_images.items()}
    left = pictures.without_label(seen["macro"], seen["label"])
    assert left is not None and left.shape == (431, 896, 3)
    assert np.array_equal(left, seen["macro"][:, 384:])  # the label's dark end is 282 px, the tissue starts at 400


def convert_sample(folder: Path, **options: object) -> dict[str, Pixels]:
    mimic.convert(SAMPLE_CZI, folder / "out.svs", **options)
    with closing(openslide.OpenSlide(folder / "out.svs")) as slide:
        assert not slide.associated_images.keys() - {"thumbnail", "label", "macro"}
        return {name: np.asarray(each.convert("RGB")) for name, each in slide.associated_images.items()}


def test_redacted_label_keeps_its_size_and_nothing_else(tmp_path: Path) -> None:
    seen = convert_sample(tmp_path, label="redact", macro="drop")
    assert "macro" not in seen
    assert seen["label"].shape == (463, 387, 3) and (seen["label"] == pictures.BLANK).all()


def test_label_from_a_file(tmp_path: Path) -> None:
    own = PIL.Image.new("RGBA", (300, 200), (255, 0, 0, 255))
    PIL.ImageDraw.Draw(own).rectangle((0, 0, 149, 199), fill=(0, 0, 0, 0))
    own.save(tmp_path / "study label.png")
    seen = convert_sample(tmp_path, label="file", label_file=tmp_path / "study label.png")
    assert seen["label"].shape == (200, 300, 3)
    assert (seen["label"][:, :150] == 255).all() and (seen["label"][:, 150:] == (255, 0, 0)).all()
    assert "macro" in seen


def test_macro_that_cannot_be_cut_for_certain_is_left_out_and_told(tmp_path: Path) -> None:
    """The sample's tissue, at that end, looks as much like its label as the plain green of its macro's label does."""
    done = mimic.convert(SAMPLE_CZI, tmp_path / "out.svs", macro="crop-label")
    with closing(openslide.OpenSlide(tmp_path / "out.svs")) as slide:
        assert set(slide.associated_images) == {"thumbnail", "label"}
    assert any("macro was left out" in warning for warning in done.warnings)


def test_cropped_macro_in_a_slide(corpus_file: Callable[[str], Path], tmp_path: Path) -> None:
    source = corpus_file("svs/CMU-1-Small-Region.svs")
    mimic.convert(source, tmp_path / "out.svs", macro="crop-label", quality=95)
    with closing(openslide.OpenSlide(source)) as slide:
        whole = np.asarray(slide.associated_images["macro"].convert("RGB")).astype(int)
    with closing(openslide.OpenSlide(tmp_path / "out.svs")) as slide:
        seen = np.asarray(slide.associated_images["macro"].convert("RGB")).astype(int)
    assert seen.shape == (431, 896, 3) and np.abs(seen - whole[:, 384:]).mean() < 8


def test_wrong_wishes_are_told(tmp_path: Path) -> None:
    (tmp_path / "no.png").write_text("no picture")
    with pytest.raises(BadInput, match=r"no\.png"):
        mimic.plan(SAMPLE_CZI, label="file", label_file=tmp_path / "no.png")
    with pytest.raises(UsageError, match="--label"):
        mimic.plan(SAMPLE_CZI, label="file")
    PIL.Image.new("RGB", (30, 20)).save(tmp_path / "yes.png")
    with pytest.raises(UsageError, match="de-identified"):
        mimic.plan(SAMPLE_CZI, label="file", label_file=tmp_path / "yes.png", deidentify=True)


def test_tissue_over_most_of_the_glass_is_not_taken_for_glass() -> None:
    made = macro(label=GREEN)
    made[20:410, 420:800] = (190, 90, 150)
    left = pictures.without_label(made, writing())
    assert left is not None and np.array_equal(left, made[:, -left.shape[1] :])
    reaching = macro()  # a white label, and tissue that reaches the other edge of the glass
    rows, columns = np.mgrid[:431, :1280]
    reaching[(rows - 215) ** 2 + (columns - 1150) ** 2 < 200**2] = (190, 90, 150)
    assert pictures.without_label(reaching, np.full((400, 380, 3), 230, np.uint8)) is None
