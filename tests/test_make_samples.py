"""The samples are what they claim, by other people's readers: else every test that trusts them is worth nothing."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType

import numpy as np
import pytest

from tools.make_samples import MPP_UM, POWER, SAMPLES, Sample, histology

Samples = Callable[[str], Sample]
Modules = Callable[[str], ModuleType]


@pytest.mark.parametrize("name", [name for name in SAMPLES if name.startswith("czi_")])
def test_libczi_reads_the_pixels_scale_and_objective(name: str, sample: Samples, require_module: Modules) -> None:
    made = sample(name)
    with require_module("pylibCZIrw.czi").open_czi(str(made.path)) as document:
        pixels = document.read()[..., ::-1]
        about = document.metadata["ImageDocument"]["Metadata"]
    assert np.array_equal(pixels, made.pixels)
    assert float(about["Scaling"]["Items"]["Distance"][0]["Value"]) == pytest.approx(MPP_UM * 1e-6)
    objective = about["Information"]["Instrument"]["Objectives"]["Objective"]
    assert float(objective["NominalMagnification"]) == POWER


def test_pydicom_reads_a_whole_series(sample: Samples, require_module: Modules) -> None:
    made = sample("dicom")
    files = [require_module("pydicom").dcmread(path) for path in made.path.parent.glob("*.dcm")]
    kinds = sorted(file.ImageType[2] for file in files)
    assert kinds == ["LABEL", "OVERVIEW", "THUMBNAIL", "VOLUME", "VOLUME"]
    base = max(files, key=lambda file: int(file.TotalPixelMatrixColumns))
    assert (base.TotalPixelMatrixRows, base.TotalPixelMatrixColumns) == made.pixels.shape[:2]
    spacing = base.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0].PixelSpacing
    assert float(spacing[0]) == pytest.approx(MPP_UM / 1000)


def test_pillow_turns_the_rotated_jpeg_upright(sample: Samples, require_module: Modules) -> None:
    made = sample("jpeg_rotated")
    with require_module("PIL.Image").open(made.path) as image:
        upright = np.asarray(require_module("PIL.ImageOps").exif_transpose(image))
    assert np.array_equal(upright, made.pixels)


def test_every_place_of_the_tissue_is_different() -> None:
    """A tile that lands a whole copy away must be noticed."""
    pixels = histology(2048, 1100).astype(int)
    assert np.abs(pixels[:, :1024] - pixels[:, 1024:]).mean() > 5
