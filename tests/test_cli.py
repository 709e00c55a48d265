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
from semseg_diffusers.utils.settings import Settings, as_list, option


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


def test_a_list_of_errors_is_a_list_with_a_line_each(command, capsys):
    def run(args):
        raise ValueError(as_list("2 masks cannot be used", ["a is\n  wrong", "b"]) + "\nNothing was\n  done.")

    command(run)
    assert cli.main(["try"]) == 2
    expected = "error: 2 masks cannot be used:\n  - a is wrong\n  - b\n  Nothing was done.\n"
    assert capsys.readouterr().err == expected


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("try", "interrupted\n"),
        ("generate", "interrupted: what is done stays, and the same command resumes\n"),
        (
            "train",
            "interrupted: the same command with --resume_from_checkpoint latest resumes at the last checkpoint\n",
        ),
    ],
)
def test_ctrl_c_is_one_line_that_says_how_to_continue_and_exit_code_130(command, monkeypatch, capsys, name, expected):
    def run(args):
        raise KeyboardInterrupt

    command(run)
    monkeypatch.setitem(cli.COMMANDS, name, cli.COMMANDS["try"])
    assert cli.main([name]) == 130
    assert capsys.readouterr().err == expected


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["generat"], "unknown command 'generat'; expected one of prepare, .*Did you mean generate\\?"),
        (["generate", "--guidence_scale", "3"], "--guidence_scale 3. Did you mean --guidance_scale\\?"),
        (["stats", "--xyzzy"], "unrecognized arguments: --xyzzy\\.?\\n"),
    ],
)
def test_a_slip_of_the_pen_is_answered_with_what_was_meant(arguments, expected, capsys):
    with pytest.raises(SystemExit) as exit_info:
        cli.main(arguments)
    assert exit_info.value.code == 2
    assert re.search(expected, capsys.readouterr().err)


def test_a_wrong_choice_and_a_wrong_name_in_a_file_are_answered_likewise(tmp_path):
    parser, needed = cli.command_parser("generate"), ["--model", "a", "--masks", "b", "--output", "c"]
    with pytest.raises(ValueError, match="got 'bfloat61'. Did you mean bfloat16\\?"):
        parser.parse_settings([*needed, "--dtype", "bfloat61"])
    (tmp_path / "a.yaml").write_text("num_masq: 3\n")
    with pytest.raises(ValueError, match="unknown option\\(s\\) num_masq. Did you mean num_masks\\?"):
        parser.parse_settings([*needed, "--config", str(tmp_path / "a.yaml")])


@pytest.mark.parametrize(
    ("name", "arguments", "expected"),
    [
        ("train", ["--dataset", "d", "--output", "o"], {"output_dir": "o"}),
        ("train", ["--dataset", "d", "--output_dir", "o", "--num_workers", "3"], {"dataloader_num_workers": 3}),
        ("train", ["--dataset", "d", "--output_dir", "o", "--dtype", "bfloat16"], {"mixed_precision": "bf16"}),
        ("generate", ["--model", "a", "--masks", "b", "--output_dir", "c"], {"output": "c"}),
        ("app", ["--mixed_precision", "bf16"], {"dtype": "bfloat16"}),
        ("app", ["--dtype", "fp16"], {"dtype": "float16"}),
    ],
)
def test_output_workers_and_precision_have_one_name_in_all_commands(name, arguments, expected, tmp_path):
    settings = cli.command_parser(name).parse_settings(arguments)
    assert {key: getattr(settings, key) for key in expected} == expected
    options = dict(zip([word.removeprefix("--") for word in arguments[::2]], arguments[1::2], strict=True))
    (tmp_path / "a.yaml").write_text("".join(f"{key}: {value}\n" for key, value in options.items()))
    assert cli.command_parser(name).parse_settings(["--config", str(tmp_path / "a.yaml")]) == settings


def test_help_shows_the_type_of_a_value(capsys):
    with pytest.raises(SystemExit):
        cli.main(["train", "--help"])
    text = capsys.readouterr().out
    assert "--max_train_steps N" in text
    assert "--learning_rate X" in text


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
        "strength": 0.6, "upscaler_steps": 3, "noise_level": 5, "image_format": "jpg", "negative_prompt": "night",
        "prompt_guidance_scale": 2.5,
    }  # fmt: skip
    unread = [name for name in names if not re.search(rf"(self|options)\.{name}\b", source)]
    assert {*unread} - {*values} == set()
    given = {name: value for name, value in values.items() if name in names}
    read = settings.GenerateOptions(
        model="m", masks="d", output="o", photos="p", upscaler="u", **given
    ).generation_settings()
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
