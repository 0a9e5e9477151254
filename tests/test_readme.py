"""The README's commands and tables are what mimic does."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from mimic import errors
from mimic.cli import app

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def test_first_command_converts_the_sample(tmp_path: Path) -> None:
    """All but the two set-up steps, which test_packaging does: here mimic is installed already."""
    command = next(block for block in blocks("sh") if "mimic convert tests/data" in block)
    setup, install, convert = (part.strip() for part in command.split("&&"))
    assert setup == "python3 -m venv .venv" and install == ".venv/bin/pip install -q ."
    argv = shlex.split(convert)
    assert argv[0] == ".venv/bin/mimic"
    argv = [argument if argument != "sample.svs" else str(tmp_path / "sample.svs") for argument in argv[1:]]
    done = subprocess.run([sys.executable, "-m", "mimic", *argv], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "3072 x 2304 px" in done.stdout and (tmp_path / "sample.svs").stat().st_size > 500_000


def commands() -> list[str]:
    return [line.split("#")[0].strip() for block in blocks("sh") for line in block.splitlines() if "mimic " in line]


def test_every_command_exists_with_its_options() -> None:
    known = app.commands
    for line in commands():
        words = shlex.split(line[line.index("mimic ") :])
        if words[1] in known:
            options = {name for param in known[words[1]].params for name in (*param.opts, *param.secondary_opts)}
            unknown = [word for word in words[2:] if word.startswith("-") and word not in options]
            assert not unknown, line
        else:
            pytest.fail(f"no such command: {line}")


def test_options_of_the_table_exist() -> None:
    convert = app.commands["convert"]
    options = {name for param in convert.params for name in param.opts}
    table = README[README.index("| option of `convert`") : README.index("From Python:")]
    named = set(re.findall(r"`(-{1,2}[a-z-]+)", table))
    assert len(named) > 12 and named <= options


def test_python_example_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (example,) = blocks("python")
    (tmp_path / "slide.czi").write_bytes((ROOT / "tests" / "data" / "sample_40x.czi").read_bytes())
    monkeypatch.chdir(tmp_path)
    exec(compile(example, "README.md", "exec"), {})
    assert (tmp_path / "out" / "slide.svs").exists()


def test_exit_codes_are_the_errors() -> None:
    table = README[README.index("| code | meaning |") : README.index("Of several slides")]
    documented = {int(code) for code in re.findall(r"^\| (\d+) \|", table, re.MULTILINE)}
    real = {kind.exit_code for kind in errors.MimicError.__subclasses__()}
    assert documented == {0, *real}


def test_environment_variables_are_the_settings() -> None:
    source = (ROOT / "mimic" / "settings.py").read_text(encoding="utf-8")
    assert set(re.findall(r"`(MIMIC_[A-Z_]+)`", README)) == set(re.findall(r'"(MIMIC_[A-Z_]+)"', source))


def test_pictures_and_files_that_are_named_are_there() -> None:
    for name in re.findall(r"\]\(([^)#]+)\)", README):
        assert (ROOT / name).exists(), name
