"""report: JSON that says all, files that are whole, digests beside the work."""

from __future__ import annotations

import hashlib
import json
import os
import time
from datetime import datetime
from pathlib import Path

import pytest

from mimic import report
from mimic.errors import BadInput, InternalError, Interrupted, OutputError, UsageError
from mimic.model import Check, Level, Objective, Report, Scale, Tool
from tests.command import files


def made(name: str = "a.czi") -> Report:
    return Report(1, "failed", Path(name), error="nothing works", exit_code=3, input_sha256={"a.czi": "00ff"})


def test_every_kind_of_value() -> None:
    value = {
        Path("k"): (Level(4, 3, codec="jpeg"), [Scale(0.25, 0.25, "file"), None], True),
        "when": datetime(2024, 5, 17, 12, 30),
        "who": Objective(20.0, "derived", "é😀"),
    }
    told = json.loads(report.to_json(value))
    assert told["k"][0] == {"width_px": 4, "height_px": 3, "tile_width_px": None, "tile_height_px": None} | {
        "codec": "jpeg",
        "lossy": None,
    }
    assert told["k"][1][1] is None and told["k"][2] is True and told["when"] == "2024-05-17T12:30:00"
    assert told["who"]["note"] == "é😀" and "é😀" in report.to_json(value), "readable, not escaped"


def test_what_has_no_json_is_a_bug_and_not_a_guess() -> None:
    with pytest.raises(InternalError, match="set cannot be written"):
        report.to_json({"pixels": {1}})
    assert "SHA-256 6e340b9cffb37a98" in report.to_json({"profile": b"\0"})


def test_report_is_plain_json() -> None:
    told = json.loads(report.to_json(made()))
    assert told["input_sha256"] == {"a.czi": "00ff"} and told["exit_code"] == 3 and told["schema"] == report.SCHEMA
    check = Check("rule", True, "1", "1")
    assert json.loads(report.to_json(check)) == {"name": "rule", "passed": True, "measured": "1", "expected": "1"} | {
        "must": True
    }


def test_name_that_is_no_text_comes_back(tmp_path: Path) -> None:
    name = os.fsdecode(b"non\xff\xfeutf.czi")
    report.write(made(name), tmp_path / "r.json")
    told = json.loads((tmp_path / "r.json").read_text(encoding="utf-8"))
    assert os.fsencode(told["input"]) == b"non\xff\xfeutf.czi"


def test_file_is_whole_or_not_there(tmp_path: Path) -> None:
    path = tmp_path / "r.json"
    report.write(made(), path)
    with pytest.raises(InternalError):
        report.write({"pixels": {1}}, path)
    assert json.loads(path.read_text())["input"] == "a.czi"
    path.unlink()
    path.mkdir()
    with pytest.raises(OutputError, match=r"r\.json: cannot be written"):
        report.write(made(), path)
    assert files(tmp_path) == {b"r.json/": b""}
    with pytest.raises(OutputError, match="No such file"):
        report.write(made(), tmp_path / "none" / "r.json")


def test_sink_of_one_slide(tmp_path: Path) -> None:
    sink = report.Sink(tmp_path / "new" / "r.json", several=False)
    sink.add(made())
    assert json.loads((tmp_path / "new" / "r.json").read_text())["input"] == "a.czi"


def test_sink_of_several_in_one_file(tmp_path: Path) -> None:
    """Written after each: what is done is told when the run is interrupted later."""
    sink = report.Sink(tmp_path / "r.json", several=True)
    for count, name in enumerate(("a.czi", "b.czi"), 1):
        sink.add(made(name))
        assert len(json.loads((tmp_path / "r.json").read_text())) == count


def test_sink_in_a_folder(tmp_path: Path) -> None:
    sink = report.Sink(tmp_path / "reports", several=True)
    for name in ("x/a.czi", "y/a.czi", "z/A.czi", "é" * 120 + ".czi", os.fsdecode(b"n\xff.czi")):
        sink.add(made(name))
    names = {os.fsdecode(name) for name in files(tmp_path / "reports")}
    assert names == {"a.czi.json", "a.czi-2.json", "A.czi-3.json", "é" * 100 + ".json", "n.czi.json"}
    assert json.loads((tmp_path / "reports" / "a.czi-2.json").read_text())["input"] == "y/a.czi"


def test_folder_that_is_called_json_is_a_folder(tmp_path: Path) -> None:
    (tmp_path / "all.json").mkdir()
    report.Sink(tmp_path / "all.json", several=False).add(made())
    assert set(files(tmp_path)) == {b"all.json/", b"all.json/a.czi.json"}


@pytest.mark.parametrize("target", ["f/r.json", "f/reports", "f"])
def test_sink_that_cannot_be_is_told_at_once(target: str, tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"a file")
    with pytest.raises(UsageError, match="cannot be a place for reports"):
        report.Sink(tmp_path / target, several=True)


def test_digests(tmp_path: Path) -> None:
    contents = {"a": b"", "b": b"x" * (report.CHUNK_BYTES * 2 + 1)}
    for name, data in contents.items():
        (tmp_path / name).write_bytes(data)
    digests = report.Digests([tmp_path / name for name in contents])
    found = digests.result()
    digests.close()
    assert found == {str(tmp_path / name): hashlib.sha256(data).hexdigest() for name, data in contents.items()}


def test_digest_of_what_is_gone(tmp_path: Path) -> None:
    digests = report.Digests([tmp_path / "none"])
    with pytest.raises(BadInput, match=r"none: cannot be read: No such file"):
        digests.result()
    digests.close()


def test_digests_stop_when_closed(tmp_path: Path) -> None:
    path = tmp_path / "large"
    with path.open("wb") as file:
        file.truncate(64 << 30)  # a hole: minutes to read
    digests = report.Digests([path])
    time.sleep(0.05)
    started = time.monotonic()
    digests.close()
    assert time.monotonic() - started < 20
    with pytest.raises(Interrupted):
        digests.result()


def test_versions() -> None:
    tools = {tool.name: tool for tool in report.libraries()}
    assert {"mimic", "Python", "numpy", "imagecodecs", "openslide-python"} <= tools.keys()
    assert all(tool.version for tool in tools.values())
    assert isinstance(tools["mimic"], Tool)
