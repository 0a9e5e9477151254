"""colour and icc: the profile of any file, kept to the byte, or followed to sRGB as Pillow does on the whole image."""

from __future__ import annotations

import io
import struct
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
import openslide
import PIL.Image
import PIL.ImageCms
import pytest
import tifffile
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

import mimic
from mimic import colour, icc, settings, sources
from mimic.errors import BadInput
from mimic.model import Box, Options, Pixels
from mimic.plan import must_decode
from tests.conftest import module


def wide_profile(serial: str = "SN 770031", *, version: int = 2) -> bytes:
    """A matrix profile with primaries far from sRGB's, a gamma of 1.8, and texts about a device."""

    def xyz(*values: float) -> bytes:
        return b"XYZ \0\0\0\0" + struct.pack(">3i", *(round(value * 65536) for value in values))

    gamma = b"curv\0\0\0\0" + struct.pack(">IH", 1, round(1.8 * 256)) + b"\0\0"
    text = f"Scanner {serial}".encode()
    desc = b"desc\0\0\0\0" + struct.pack(">I", len(text) + 1) + text + b"\0" + bytes(78)
    tags = {
        b"desc": desc,
        b"cprt": b"text\0\0\0\0" + b"Made by Quillfeather 1953\0",
        b"wtpt": xyz(0.9642, 1.0, 0.8249),
        b"rXYZ": xyz(0.6097, 0.3111, 0.0195),
        b"gXYZ": xyz(0.2053, 0.6257, 0.0609),
        b"bXYZ": xyz(0.1492, 0.0632, 0.7446),
        **dict.fromkeys((b"rTRC", b"gTRC", b"bTRC"), gamma),
        b"zzzz": b"text\0\0\0\0private Ottoline\0",
    }
    header = bytearray(128)
    header[8:12] = bytes((version, 0x10, 0, 0))
    header[12:24] = b"mntrRGB XYZ "
    header[24:36] = struct.pack(">6H", 2019, 5, 6, 7, 8, 9)
    header[36:40] = b"acsp"
    header[48:56] = b"QUILL077"
    header[68:80] = struct.pack(">3I", 0xF6D6, 0x10000, 0xD32D)
    return icc._build(bytes(header), list(tags.items()))


PROFILE = wide_profile()


def gradient(width_px: int, height_px: int) -> Pixels:
    rows, columns = np.mgrid[:height_px, :width_px]
    return np.stack(
        [columns * 255 // max(1, width_px - 1), rows * 255 // max(1, height_px - 1), (rows * 7 + columns * 3) % 256], 2
    ).astype(np.uint8)


def pillow_srgb(pixels: Pixels, profile: bytes) -> Pixels:
    """The outside judge: the whole image at once."""
    return np.asarray(
        PIL.ImageCms.profileToProfile(
            PIL.Image.fromarray(pixels),
            PIL.ImageCms.ImageCmsProfile(io.BytesIO(profile)),
            PIL.ImageCms.createProfile("sRGB"),
            renderingIntent=PIL.ImageCms.Intent.RELATIVE_COLORIMETRIC,
            outputMode="RGB",
        )
    )


def write(path: Path, pixels: Pixels, profile: bytes = PROFILE) -> Path:
    PIL.Image.fromarray(pixels).save(path, icc_profile=profile)
    return path


def profile_tag(path: Path) -> bytes | None:
    with tifffile.TiffFile(path) as tiff:
        assert all(34675 not in page.tags for page in tiff.pages[1:])
        tag = tiff.pages[0].tags.get(34675)
        return None if tag is None else bytes(tag.value)


@pytest.mark.parametrize("ending", ["png", "jpg", "tif", "webp"])
def test_profile_is_found_in_every_picture(ending: str, tmp_path: Path) -> None:
    path = write(tmp_path / f"a.{ending}", gradient(64, 48))
    assert colour.profile_of((path,)) == PROFILE


def test_profile_of_many_jpeg_segments(tmp_path: Path) -> None:
    large = icc._build(PROFILE[:128], [*icc._tags(PROFILE), (b"blob", bytes(150_000))])
    assert colour.profile_of((write(tmp_path / "a.jpg", gradient(64, 48), large),)) == large


def test_no_profile_is_none(tmp_path: Path) -> None:
    PIL.Image.fromarray(gradient(64, 48)).save(tmp_path / "a.png")
    assert colour.profile_of((tmp_path / "a.png",)) is None
    (tmp_path / "b.xyz").write_bytes(b"what")
    assert colour.profile_of((tmp_path / "b.xyz",)) is None


def test_profile_of_dicom(tmp_path: Path) -> None:
    pydicom = module("pydicom")
    data = pydicom.Dataset()
    data.file_meta = pydicom.dataset.FileMetaDataset()
    data.file_meta.TransferSyntaxUID = "1.2.840.10008.1.2.1"
    data.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.77.1.6"
    data.file_meta.MediaStorageSOPInstanceUID = "1.2.3"
    item = pydicom.Dataset()
    item.ICCProfile = PROFILE if len(PROFILE) % 2 == 0 else PROFILE + b"\0"
    data.OpticalPathSequence = pydicom.Sequence([item])
    data.save_as(tmp_path / "a.dcm", enforce_file_format=True)
    found = colour.profile_of((tmp_path / "a.dcm",))
    assert found is not None and found[: len(PROFILE)] == PROFILE


def test_kept_profile_is_the_same_bytes_and_openslide_reads_it(tmp_path: Path) -> None:
    mimic.convert(write(tmp_path / "a.png", gradient(1500, 700)), mpp_um=0.5)
    assert profile_tag(tmp_path / "a.svs") == PROFILE
    with closing(openslide.OpenSlide(tmp_path / "a.svs")) as slide:
        assert slide.color_profile is not None and slide.color_profile.tobytes() == PROFILE
        assert slide.properties["aperio.ICC Profile"] == "Scanner SN 770031"
        # the thumbnail inherits it: both descriptions name the same one
        assert slide.associated_images["thumbnail"].info["icc_profile"] == PROFILE


def test_stripped_and_absent_profiles_leave_nothing(tmp_path: Path) -> None:
    source = write(tmp_path / "a.png", gradient(300, 200))
    mimic.convert(source, tmp_path / "strip.svs", mpp_um=0.5, icc="strip")
    PIL.Image.fromarray(gradient(300, 200)).save(tmp_path / "none.png")
    for wish in ("keep", "srgb", "strip"):
        mimic.convert(tmp_path / "none.png", tmp_path / f"{wish}.svs", mpp_um=0.5, icc=wish, overwrite=True)
    for name in ("keep", "srgb", "strip"):
        assert profile_tag(tmp_path / f"{name}.svs") is None
        assert b"ICC Profile" not in (tmp_path / f"{name}.svs").read_bytes()


def test_srgb_is_what_pillow_makes_of_the_whole_image(tmp_path: Path) -> None:
    pixels = gradient(1100, 900)
    source = write(tmp_path / "a.png", pixels)
    slide = mimic.probe(source)
    opened = sources.load("vips").open(slide, slide.images[0], threads=1, settings=settings.load(), scratch=tmp_path)
    wanted = pillow_srgb(pixels, PROFILE)
    assert not np.array_equal(wanted, pixels)
    with closing(colour.SrgbReader(opened, PROFILE, source)) as reader:
        for box in (Box(0, 0, 300, 200), Box(100, 150, 1000, 750), Box(1099, 899, 1, 1)):
            part = wanted[box.y_px : box.y_px + box.height_px, box.x_px : box.x_px + box.width_px]
            assert np.array_equal(reader.read(box), part)


def test_srgb_slide_shows_srgb_colours_and_says_so(tmp_path: Path) -> None:
    pixels = gradient(640, 512)
    done = mimic.convert(write(tmp_path / "a.png", pixels), mpp_um=0.5, icc="srgb", quality=95, verify="full")
    with closing(openslide.OpenSlide(tmp_path / "a.svs")) as slide:
        seen = np.asarray(slide.read_region((0, 0), 0, (640, 512)))[..., :3].astype(int)
        assert slide.properties["aperio.ICC Profile"] == "sRGB"
    assert np.abs(seen - pillow_srgb(pixels, PROFILE)).mean() < 4 < np.abs(seen - pixels).mean()
    written = profile_tag(tmp_path / "a.svs")
    assert written == colour.srgb_profile() and icc.name(written) == "sRGB"
    ours = pillow_srgb(pixels, written)
    assert np.abs(ours.astype(int) - pixels).max() <= 1  # it is sRGB indeed
    assert any("sRGB" in reason for reason in done.results[0].plan.reasons)


def test_a_profile_of_other_pixels_is_left_out(tmp_path: Path) -> None:
    grey = bytearray(PROFILE)
    grey[16:20] = b"GRAY"
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, gradient(300, 200), photometric="rgb", iccprofile=bytes(grey))
    done = mimic.convert(path, tmp_path / "a.svs", mpp_um=0.5)
    assert profile_tag(tmp_path / "a.svs") is None
    assert any("other pixels" in reason for reason in done.results[0].plan.reasons)


def test_a_profile_that_cannot_be_used_is_refused_for_srgb_only(tmp_path: Path) -> None:
    broken = icc._build(PROFILE[:128], [(b"desc", dict(icc._tags(PROFILE))[b"desc"])])
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, gradient(300, 200), photometric="rgb", iccprofile=broken)
    mimic.convert(path, tmp_path / "keep.svs", mpp_um=0.5)
    assert profile_tag(tmp_path / "keep.svs") == broken
    with pytest.raises(BadInput, match="--icc"):
        mimic.convert(path, tmp_path / "srgb.svs", mpp_um=0.5, icc="srgb")
    assert not (tmp_path / "srgb.svs").exists()


@pytest.mark.parametrize("version", [2, 4])
def test_neutral_profile_has_the_colours_and_none_of_the_words(version: int) -> None:
    profile = wide_profile(version=version)
    bare = icc.neutral(profile)
    for word in (
        b"770031",
        b"Quillfeather",
        b"Ottoline",
        b"QUILL077",
        b"Scanner",
        struct.pack(">6H", 2019, 5, 6, 7, 8, 9),
    ):
        assert word in profile and word not in bare
        assert word.decode("latin-1").encode("utf-16-be") not in bare
    pixels = gradient(64, 64)
    assert np.array_equal(pillow_srgb(pixels, bare), pillow_srgb(pixels, profile))
    assert icc.neutral(bare) == bare and icc.name(bare) == icc.NEUTRAL_NAME


def test_decoding_is_forced_by_srgb_with_a_profile_only(tmp_path: Path) -> None:
    slide = mimic.probe(write(tmp_path / "a.png", gradient(64, 48)))
    wishes: tuple[Literal["keep", "srgb", "strip"], ...] = ("keep", "srgb", "strip")
    changed = {wish: must_decode(slide, slide.images[0], Options(icc=wish)) for wish in wishes}
    assert changed == {"keep": None, "srgb": "--icc srgb changes its colours", "strip": None}
    bare = replace(slide, icc_profile=None)
    assert must_decode(bare, bare.images[0], Options(icc="srgb")) is None


@given(st.binary(max_size=400))
@hypothesis_settings(max_examples=200)
def test_any_bytes_are_no_trouble(data: bytes) -> None:
    for profile in (data, PROFILE[:128] + data, PROFILE[: len(PROFILE) - len(data)]):
        icc.is_rgb(profile), icc.name(profile), icc.texts(profile)
        if icc.is_profile(profile):
            icc.neutral(profile)
