"""The console script: one line of error, exit code 2, and a fast answer to --help."""

import dataclasses
import re
import shutil
import subprocess
import sys
import types
from pathlib import Path

import pytest

from semseg_diffusers import cli
from semseg_diffusers.utils.settings import Settings, option


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrySettings(Settings):
    """A command for this test."""

    number: int = option(1, help="a number")


@pytest.fixture
def command(monkeypatch):
    """Install a command `try`; returns a function that sets what it runs."""

    def install(run):
        module = types.ModuleType("try")
        module.TrySettings, module.run = TrySettings, run
        for name in ("settings", "run"):
            monkeypatch.setitem(sys.modules, f"semseg_diffusers.try.{name}", module)
        monkeypatch.setitem(cli.COMMANDS, "try", cli.Command("try:TrySettings", "run:run", "tried"))

    return install


def test_options_reach_the_command_and_its_exit_code_is_returned(command):
    seen = []
    command(lambda args: seen.append(args.number))
    assert cli.main(["try", "--number", "7"]) == 0
    command(lambda args: args.number)
    assert cli.main(["try", "--number", "3"]) == 3
    assert seen == [7]


@pytest.mark.parametrize("error", [ValueError("wrong\n  input"), FileNotFoundError(2, "No such file", "a.png")])
def test_a_wrong_input_is_one_line_on_stderr_and_exit_code_2(command, capsys, error):
    def run(args):
        raise error

    command(run)
    assert cli.main(["try"]) == 2
    captured = capsys.readouterr()
    assert re.fullmatch(r"error: [^\n]+\n", captured.err)
    assert captured.out == ""


def test_debug_shows_the_whole_traceback(command, monkeypatch):
    def run(args):
        raise ValueError("wrong input")

    command(run)
    monkeypatch.setenv("SEMSEG_DEBUG", "1")
    with pytest.raises(ValueError, match="wrong input"):
        cli.main(["try"])


def test_ctrl_c_is_one_line_and_exit_code_130(command, capsys):
    def run(args):
        raise KeyboardInterrupt

    command(run)
    assert cli.main(["try"]) == 130
    assert capsys.readouterr().err == "interrupted\n"


def test_a_bug_is_not_dressed_up_as_wrong_input(command):
    def run(args):
        raise KeyError("bug")

    command(run)
    with pytest.raises(KeyError):
        cli.main(["try"])


def test_a_missing_extra_is_named(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "torchmetrics", None)
    for name in [name for name in sys.modules if name.startswith("semseg_diffusers.evaluation")]:
        monkeypatch.delitem(sys.modules, name)
    assert cli.main(["evaluate", "--dataset", "a", "--generated", "b", "--output", "c"]) == 2
    assert "semseg-diffusers[eval]" in capsys.readouterr().err


def test_version_is_that_of_the_package(capsys):
    from semseg_diffusers import __version__

    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out == f"semseg-diffusers {__version__}\n"


def test_no_command_shows_the_help_and_fails(capsys):
    assert cli.main([]) == 2
    assert "generate" in capsys.readouterr().err


def test_an_unknown_command_fails_with_the_list(capsys):
    with pytest.raises(SystemExit) as exit_info:
        cli.main(["draw"])
    assert exit_info.value.code == 2
    assert "prepare" in capsys.readouterr().err


@pytest.mark.parametrize("name", list(cli.COMMANDS))
def test_every_command_answers_help(name, capsys):
    with pytest.raises(SystemExit) as exit_info:
        cli.main([name, "--help"])
    assert exit_info.value.code == 0
    assert f"semseg-diffusers {name}" in capsys.readouterr().out


def test_every_option_of_generate_is_read():
    from semseg_diffusers.generation import generate, settings

    source = "".join(Path(module.__file__).read_text(encoding="utf-8") for module in (generate, settings))
    names = [field.name for field in dataclasses.fields(settings.GenerateOptions)]
    values = {
        "num_inference_steps": 7, "guidance_scale": 3.0, "guidance_start": 0.1, "guidance_stop": 0.9, "height": 32,
        "width": 48, "seed": 5, "variant": "raw", "attribute_guidance_scale": 1.5, "conditioning_scale": 0.5,
        "strength": 0.6,
    }  # fmt: skip
    unread = [name for name in names if not re.search(rf"(self|options)\.{name}\b", source)]
    assert {*unread} - {*values} == set()
    given = {name: value for name, value in values.items() if name in names}
    read = settings.GenerateOptions(model="m", masks="d", output="o", photos="p", **given).generation_settings()
    assert {name: getattr(read, name) for name in given} == given


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], *([name, "--help"] for name in cli.COMMANDS)])
def test_the_console_script_answers_without_loading_torch(arguments):
    """The real script in its own process; `-X importtime` writes a line for each module that is loaded."""
    script = shutil.which("semseg-diffusers", path=Path(sys.executable).parent)
    result = subprocess.run(
        [sys.executable, "-X", "importtime", script, *arguments], capture_output=True, text=True, check=True
    )
    loaded = {line.rpartition("|")[2].strip() for line in result.stderr.splitlines()}
    assert "semseg_diffusers.cli" in loaded
    assert not {"torch", "diffusers", "numpy", "datasets", "transformers"} & loaded
    assert "semseg-diffusers" in result.stdout
