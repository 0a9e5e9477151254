"""manifest: a line a slide; what is wrong is told whole, with its line, before anything starts."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from mimic import manifest
from mimic.errors import BadInput, MimicError, UsageError
from mimic.model import Options
from mimic.requests import Found
from tests.command import mimic, picture

FLAGS = {"mpp": False, "quality": False, "grey": True, "label": False, "range": False, "scratch": False, "image": False}


def parse(words: Sequence[str]) -> Options:
    """Stands for the command line's own grammar, which the tests below go through."""
    found = Options()
    for word in words:
        name, _, value = word.removeprefix("--").partition("=")
        match name:
            case "mpp":
                found = replace(found, mpp_um=float(value))
            case "grey":
                found = replace(found, grey=True)
            case "label":
                found = replace(found, label="file", label_file=Path(value))
            case "image":
                found = replace(found, image_index=int(value))
            case "range":
                found = replace(found, ranges=(*found.ranges, (int(value[0]), 0.0, 1.0)))
    return found


def read(path: Path, output: Path | None = None) -> Found:
    return manifest.read(path, flags=FLAGS, parse=parse, output=output)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("a.png", "b.png", "sub/c.png"):
        picture(tmp_path / "lists" / name)
    return tmp_path / "lists"


def written(folder: Path, text: str, name: str = "m.csv") -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def test_csv(folder: Path) -> None:
    """Relative to the manifest, not to where one stands; a byte order mark and empty lines are no matter."""
    found = read(written(folder, "\ufeffinput,output,mpp,grey\n" + "a.png,out/x.svs,0.5,yes\n\n sub/c.png ,,,no\n"))
    first, second = found.requests
    assert (first.input, first.output) == (folder / "a.png", folder / "out" / "x.svs")
    assert (first.options.mpp_um, first.options.grey) == (0.5, True)
    assert (second.input, second.output, second.options) == (folder / "sub" / "c.png", None, Options())


@pytest.mark.parametrize("divider", [";", "\t"])
def test_other_dividers(divider: str, folder: Path) -> None:
    found = read(written(folder, divider.join(("input", "mpp")) + "\n" + divider.join(("a.png", "0.25")) + "\n"))
    assert found.requests[0].options.mpp_um == 0.25


def test_json_lines(folder: Path) -> None:
    text = '{"input": "a.png", "mpp": 0.5, "grey": true, "range": ["0:1-2", "1:3-4"]}\n\n'
    text += '{"input": "b.png", "grey": null}\n'
    first, second = read(written(folder, text, "m.jsonl")).requests
    assert (first.options.mpp_um, first.options.grey, len(first.options.ranges)) == (0.5, True, 2)
    assert second.options == Options()


def test_common_output(folder: Path, tmp_path: Path) -> None:
    first, second = read(written(folder, "input,output\na.png,\nb.png,here\n"), tmp_path / "out").requests
    assert (first.output, second.output) == (tmp_path / "out", folder / "here")


def test_label_files_are_relative_too(folder: Path) -> None:
    assert read(written(folder, "input,label\na.png,b.png\n")).requests[0].options.label_file == folder / "b.png"


def test_missing_input_costs_only_its_line(folder: Path) -> None:
    found = read(written(folder, "input\na.png\nnone.png\nb.png\n"))
    assert [each.input.name for each in found.requests] == ["a.png", "b.png"]
    ((path, error),) = found.skipped
    assert path.name == "none.png" and isinstance(error, BadInput) and "line 3 of m.csv" in str(error)


def test_same_name_from_two_folders(folder: Path) -> None:
    (folder / "a.tif").write_bytes((folder / "a.png").read_bytes())
    outputs = [each.output for each in read(written(folder, "input,output\na.png,o\na.tif,o\n")).requests]
    assert outputs == [folder / "o", folder / "o" / "a.tif.svs"]


def test_two_views_of_one_slide(folder: Path) -> None:
    found = read(written(folder, "input,output,image\na.png,x.svs,0\na.png,y.svs,1\n"))
    assert len(found.requests) == 2


@pytest.mark.parametrize(
    ("text", "name", "words"),
    [
        ("input,qualty\na.png,3\n", "m.csv", "line 2: there is no option 'qualty'. Did you mean quality"),
        ("file\na.png\n", "m.csv", "there is no option 'file'"),
        ("mpp\n0.5\n", "m.csv", "line 2: names no input"),
        ("input,mpp\n,0.5\n", "m.csv", "line 2: names no input"),
        ("input,mpp,mpp\na.png,1,1\n", "m.csv", "has the column 'mpp' twice"),
        ("input,mpp\na.png,1,2\n", "m.csv", "line 2 has 3 columns, the header 2"),
        ('input\n"a.png\n', "m.csv", "is no CSV"),
        ("input,grey\na.png,perhaps\n", "m.csv", "line 2: grey can be yes or no, not 'perhaps'"),
        ("input,output\na.png,x.svs\nb.png,x.svs\n", "m.csv", "line 3: goes into the same output as line 2"),
        ("input,output\na.png,o\na.png,o\n", "m.csv", "line 3: goes into the same output as line 2"),
        ("input\n.\n", "m.csv", "line 2"),
        ("input\n", "m.csv", "names no slide"),
        ("", "m.csv", "names no slide"),
        ("{\n", "m.jsonl", "line 1 is no JSON"),
        ("[1]\n", "m.jsonl", "line 1 is no JSON object"),
    ],
)
def test_what_is_wrong(text: str, name: str, words: str, folder: Path) -> None:
    with pytest.raises(UsageError) as caught:
        read(written(folder, text, name))
    assert words in str(caught.value) and name in str(caught.value)


def test_all_faults_at_once(folder: Path) -> None:
    with pytest.raises(UsageError) as caught:
        read(written(folder, "input,grey\n,1\na.png,perhaps\nb.png,1\n"))
    assert "line 2" in str(caught.value) and "line 3" in str(caught.value) and "line 4" not in str(caught.value)


@pytest.mark.parametrize("data", [b"\xff\xfe\x00bad", None])
def test_no_manifest(data: bytes | None, tmp_path: Path) -> None:
    path = tmp_path / "m.csv"
    if data is not None:
        path.write_bytes(data)
    with pytest.raises(MimicError) as caught:
        read(path)
    assert caught.value.exit_code == 3


def test_the_command_s_own_grammar(folder: Path) -> None:
    """Options are declared once, for ``convert``: a manifest knows them all."""
    text = "input,output,mpp,quality,rgb-jpeg,tile,appmag\na.png,o/a.svs,0.5,90,yes,128,20\nb.png,o/b.svs,,,,,\n"
    done = mimic("batch", "--manifest", written(folder, text), "--mpp", "0.25", "--json")
    assert done.code == 0, done.err
    events = [event for event in map(json.loads, done.out.splitlines()) if event["event"] == "report"]
    plans = {Path(each["report"]["input"]).name: each["report"]["results"][0]["plan"] for each in events}
    assert [plans["a.png"][name] for name in ("quality", "profile", "tile_px")] == [90, "rgb", 128]
    assert plans["a.png"]["scale"]["x_um"] == 0.5 and plans["b.png"]["scale"]["x_um"] == 0.25
    assert plans["b.png"]["quality"] == 80


@pytest.mark.parametrize(
    ("text", "words", "said"),
    [
        ("input,mpp\na.png,wide\n", (), "line 2: "),
        ("input,jobs\na.png,3\n", (), "there is no option 'jobs'"),
        ("input\na.png\n", ("--qualty", "3"), "No such option '--qualty'"),
        ("input\na.png\n", ("b.png",), "b.png is no option"),
        ("input\na.png\n", ("--shard", "3/2"), "--shard 3/2 is no part of a whole"),
        ("input\na.png\n", ("--report-dir", "x.json"), "--report-dir names a folder"),
    ],
)
def test_nothing_is_started(text: str, words: tuple[str, ...], said: str, folder: Path) -> None:
    before = set(folder.rglob("*"))
    done = mimic("batch", "--manifest", written(folder, text), *words)
    assert done.code == 2 and said in done.err, done.err
    assert set(folder.rglob("*")) - before == {folder / "m.csv"}
