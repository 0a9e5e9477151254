"""requests: words, files and folders -> what is a slide of its own, and where its output goes."""

from __future__ import annotations

import os
from pathlib import Path

import pydicom
import pydicom.uid
import pytest

from mimic import requests
from mimic.errors import BadInput, UsageError
from mimic.model import Options
from mimic.requests import Found
from tests.structure_samples import sample_dicom

OPTIONS = Options(mpp_um=0.5)


def make(folder: Path, *names: str) -> Path:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"not looked at")
    return folder


def expand(*paths: Path, output: Path | None = None) -> Found:
    return requests.expand(paths, output, OPTIONS)


def places(found: Found, folder: Path) -> dict[str, str | None]:
    """Inputs and outputs relative to a folder."""
    told = {}
    for request in found.requests:
        output = request.output
        inside = output is not None and output.is_relative_to(folder)
        told[str(request.input.relative_to(folder))] = str(output.relative_to(folder)) if output and inside else None
    return told


def test_files_are_taken_as_they_are(tmp_path: Path) -> None:
    """Whatever their ending; one that is missing is for convert to tell."""
    make(tmp_path, "a.czi", "b.strange", "c.svs")
    paths = [tmp_path / name for name in ("b.strange", "a.czi", "c.svs", "none.czi")]
    found = expand(*paths)
    assert [each.input for each in found.requests] == paths and found.skipped == ()
    assert {each.output for each in found.requests} == {None} and found.requests[0].options is OPTIONS


def test_folder(tmp_path: Path) -> None:
    make(tmp_path, "b.CZI", "a.ndpi", "deep/er/c.tif", "notes.txt", ".hidden.czi", ".staged/slide.svs", "d/readme")
    assert places(expand(tmp_path), tmp_path) == {"a.ndpi": None, "b.CZI": None, "deep/er/c.tif": None}


def test_folders_keep_their_shape_in_the_output_folder(tmp_path: Path) -> None:
    make(tmp_path / "in", "a.czi", "x/a.czi", "x/y/a.czi")
    found = expand(tmp_path / "in", output=tmp_path / "out")
    assert places(found, tmp_path) == {"in/a.czi": "out", "in/x/a.czi": "out/x", "in/x/y/a.czi": "out/x/y"}


def test_output_folder_within_the_input_folder_is_not_searched(tmp_path: Path) -> None:
    make(tmp_path, "a.czi", "out/b.svs", "out/x/c.svs")
    assert places(expand(tmp_path, output=tmp_path / "out"), tmp_path) == {"a.czi": "out"}


def test_svs_in_a_folder_is_skipped_with_a_reason(tmp_path: Path) -> None:
    make(tmp_path, "a.czi", "a.svs", "deep/b.svs")
    found = expand(tmp_path)
    assert places(found, tmp_path) == {"a.czi": None}
    assert [path.name for path, _ in found.skipped] == ["a.svs", "b.svs"]
    assert all("-o" in str(reason) for _, reason in found.skipped)
    assert set(places(expand(tmp_path, output=tmp_path / "out"), tmp_path)) == {"a.czi", "a.svs", "deep/b.svs"}


def test_nothing_in_it(tmp_path: Path) -> None:
    assert expand(make(tmp_path, "notes.txt")) == Found(())


def test_a_file_named_twice_is_one_slide(tmp_path: Path) -> None:
    make(tmp_path, "a.czi")
    assert len(expand(tmp_path / "a.czi", tmp_path, tmp_path / "a.czi").requests) == 1


def test_one_file_for_one_slide_only(tmp_path: Path) -> None:
    make(tmp_path, "a.czi", "b.czi")
    one = expand(tmp_path / "a.czi", output=tmp_path / "x.svs")
    assert one.requests[0].output == tmp_path / "x.svs"
    with pytest.raises(UsageError, match="2 slides cannot go into the one file"):
        expand(tmp_path, output=tmp_path / "x.svs")


def test_same_stem_gets_names_of_their_own(tmp_path: Path) -> None:
    """Told apart as file systems do that ignore case."""
    make(tmp_path, "a.czi", "A.ndpi", "a.ome.tif", "sub/a.czi")
    told = places(expand(tmp_path), tmp_path)
    assert told == {"A.ndpi": None, "a.czi": "a.czi.svs", "a.ome.tif": "a.ome.tif.svs", "sub/a.czi": None}


def test_files_of_two_folders_into_one(tmp_path: Path) -> None:
    make(tmp_path, "x/a.czi", "y/a.ndpi")
    found = expand(tmp_path / "x" / "a.czi", tmp_path / "y" / "a.ndpi", output=tmp_path / "out")
    assert places(found, tmp_path) == {"x/a.czi": "out", "y/a.ndpi": "out/a.ndpi.svs"}


def series(folder: Path, name: str, members: int = 3) -> list[Path]:
    """Members of one DICOM series, some without an ending."""
    folder.mkdir(parents=True, exist_ok=True)
    uid = pydicom.uid.generate_uid(entropy_srcs=[name])
    paths = [folder / f"{name}{number}{'.dcm' if number else ''}" for number in range(members)]
    for path in paths:
        sample_dicom(path, SeriesInstanceUID=uid)
    return paths


@pytest.mark.parametrize("way", ["folder", "a member", "members", "all and the folder"])
def test_dicom_series_is_one_slide(way: str, tmp_path: Path) -> None:
    members = series(tmp_path / "s", "m")
    named = {"folder": [tmp_path], "a member": members[1:2], "members": members[1:]}.get(way, [*members, tmp_path])
    found = expand(*named)
    assert [each.input for each in found.requests] == [members[0]]


def test_two_series_are_two_slides(tmp_path: Path) -> None:
    """In one folder, too; and the same series copied into two folders is two slides."""
    series(tmp_path / "x", "a")
    series(tmp_path / "x", "b")
    series(tmp_path / "y", "a")
    assert [str(each.input.relative_to(tmp_path)) for each in expand(tmp_path).requests] == ["x/a0", "x/b0", "y/a0"]


def test_folder_that_cannot_be_searched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rights do not stop root: the refusal is a fake."""
    make(tmp_path, "a.czi", "closed/b.czi", "lost+found/c.txt", ".trash/d.czi")
    real = os.scandir
    asked = []

    def refuse(path: str | Path) -> object:
        asked.append(Path(path).name)
        if Path(path).name in ("closed", "lost+found", ".trash"):
            raise PermissionError(13, "Permission denied", str(path))
        return real(path)

    monkeypatch.setattr(os, "scandir", refuse)
    found = expand(tmp_path)
    assert "closed" in asked
    assert [path.name for path, _ in found.skipped] == ["closed"]
    reason = found.skipped[0][1]
    assert isinstance(reason, BadInput) and "cannot be searched (Permission denied)" in str(reason)


def test_damaged_dicom_stands_for_itself(tmp_path: Path) -> None:
    (tmp_path / "a.dcm").write_bytes(bytes(128) + b"DICM" + b"\xff" * 40)
    (tmp_path / "b.dcm").write_bytes(b"")
    assert len(expand(tmp_path).requests) == 2


def test_options_from_words() -> None:
    assert requests.options() == Options()
    assert requests.options(quality=90, downsample=2, label="drop").downsample == 2


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"qualty": 90}, "there is no option qualty"),
        ({"zz": 1, "a": 2}, "there is no option a, zz"),
        ({"downsample": 3}, "downsample cannot be 3. It can be 2 or 4"),
        ({"label": "burn"}, "label cannot be 'burn'. It can be keep or drop"),
        ({"profile": "cmyk"}, "ycc or rgb"),
        ({"verify": "none"}, "sample or full"),
    ],
)
def test_options_that_cannot_be(fields: dict[str, object], words: str) -> None:
    with pytest.raises(UsageError) as caught:
        requests.options(**fields)
    assert words in str(caught.value)
