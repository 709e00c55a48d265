"""Settings of commands: what counts as given, and values out of range."""

import argparse
import dataclasses
import json

import pytest

from semseg_diffusers import cli
from semseg_diffusers.autoencoders.settings import AutoencoderSettings
from semseg_diffusers.data.settings import PrepareSettings
from semseg_diffusers.distillation.settings import DistillationSettings
from semseg_diffusers.evaluation.settings import EvaluationSettings, FilterCommandSettings
from semseg_diffusers.generation.settings import GenerateOptions
from semseg_diffusers.training.settings import TrainingSettings
from semseg_diffusers.utils.settings import Settings, SettingsParser, differences, option


@dataclasses.dataclass(frozen=True, kw_only=True)
class Ranged(Settings):
    """Try ranges."""

    share: float = option(0.5, at_least=0, at_most=1, help="share")
    rate: float = option(0.1, above=0, below=2, help="rate")


def parse(settings: type[Settings], *words: str) -> Settings:
    return SettingsParser(settings).parse_settings([*words])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--share", "1.5"), "--share must be between 0 and 1; got 1.5."),
        (("--share", "nan"), "--share must be between 0 and 1; got nan."),
        (("--rate", "0"), "--rate must be more than 0 and less than 2; got 0.0."),
    ],
)
def test_a_value_out_of_range_is_refused_with_its_range(words, message):
    with pytest.raises(ValueError, match=f"^{message}$"):
        parse(Ranged, *words)


@pytest.mark.parametrize(
    ("settings", "words", "message"),
    [
        (
            GenerateOptions,
            ("--model", "m", "--masks", "d", "--output", "o", "--edit_margin", "4"),
            "--edit_margin: only with --edit",
        ),
        (
            TrainingSettings,
            ("--dataset", "d", "--output_dir", "o", "--spade_channels", "32"),
            "--spade_channels needs --mask_conditioning spade",
        ),
        (
            TrainingSettings,
            ("--dataset", "d", "--output_dir", "o", "--hub_model_id", "alice/streets"),
            "--hub_model_id needs --push_to_hub",
        ),
        (
            TrainingSettings,
            ("--dataset", "d", "--output_dir", "o", "--class_loss_min_snr", "0.01"),
            "--class_loss_min_snr needs --class_loss_weighting",
        ),
    ],
)
def test_an_option_without_the_one_it_belongs_to_is_refused_even_at_its_default(settings, words, message):
    with pytest.raises(ValueError, match=message):
        parse(settings, *words)
    assert parse(settings, *words[:-2])


def test_settings_of_a_file_may_name_every_option(tmp_path):
    saved = parse(TrainingSettings, "--dataset", "d", "--output_dir", "o")
    (tmp_path / "settings.json").write_text(json.dumps(saved.to_dict()))
    assert parse(TrainingSettings, "--config", str(tmp_path / "settings.json")) == saved


def test_no_and_off_in_a_file_are_the_words_that_the_command_line_takes(tmp_path):
    file = tmp_path / "options.yaml"
    file.write_text("mixed_precision: no\ntorch_compile: no\nuse_ema: off\nhorizontal_flip: true\n")
    read = parse(TrainingSettings, "--dataset", "d", "--output_dir", "o", "--config", str(file))
    assert (read.mixed_precision, read.torch_compile, read.use_ema, read.horizontal_flip) == ("no", "no", False, True)
    file.write_text("seed: 1\nseed: 2\n")
    with pytest.raises(ValueError, match="'seed' occurs twice"):
        parse(TrainingSettings, "--dataset", "d", "--output_dir", "o", "--config", str(file))


@pytest.mark.parametrize("settings", [AutoencoderSettings, DistillationSettings])
def test_passes_over_the_data_replace_a_default_number_of_steps(settings):
    required = ("--dataset", "d", "--output_dir", "o", *(("--model", "m") if settings is DistillationSettings else ()))
    assert parse(settings, *required).max_train_steps
    assert parse(settings, *required, "--num_train_epochs", "5").max_train_steps is None
    assert parse(settings, *required, "--num_train_epochs", "5", "--max_train_steps", "9").max_train_steps == 9


@pytest.mark.parametrize("path", ["-x", "--model", "a [1]::*", "-1", "{x}=y", " "])
def test_paths_of_any_form_survive_the_command_line(path):
    options = GenerateOptions(model=path, masks=path, output=path)
    assert parse(GenerateOptions, *options.to_arguments()) == options


@pytest.mark.parametrize("command", cli.COMMANDS)
def test_help_lists_many_options_in_groups(command):
    parser = SettingsParser(cli.load_settings(command))
    listed = [action for action in parser._optionals._group_actions if action.help != argparse.SUPPRESS]
    assert len(listed) <= 14, "options that belong together need a class with a `_group` of its own"


@pytest.mark.parametrize(
    ("settings", "name", "words"),
    [
        (PrepareSettings, "resolution", ("--source", "s", "--output", "o")),
        (EvaluationSettings, "segmenter_size", ("--dataset", "d", "--output", "o", "--generated", "g")),
        (FilterCommandSettings, "segmenter_size", ("--dataset", "d", "--output", "o", "--generated", "g")),
    ],
)
def test_sizes_are_read_from_the_command_line_and_from_files_and_written_again(settings, name, words, tmp_path):
    wide = parse(settings, *words, f"--{name}", "96x160")
    assert getattr(wide, name) == (96, 160)
    assert parse(settings, *wide.to_arguments()) == wide
    for text, expected in (("96x160", (96, 160)), ("[96, 160]", (96, 160)), ("160", (160, 160))):
        (tmp_path / "options.yaml").write_text(f"{name}: {text}\n")
        assert getattr(parse(settings, *words, "--config", str(tmp_path / "options.yaml")), name) == expected


def test_a_size_at_which_a_network_reads_is_a_number_of_pixels():
    with pytest.raises(ValueError, match="--segmenter_size: expected a number .256. or HxW .256x512.; got native"):
        parse(
            FilterCommandSettings, "--dataset", "d", "--output", "o", "--generated", "g", "--segmenter_size", "native"
        )


def test_two_spellings_of_a_path_are_no_difference():
    saved = {"masks": "./data/masks/", "features": ["runs/judge"], "steps": 4, "prompt": ""}
    assert differences(saved, {**saved, "masks": "data/masks", "features": ("./runs/judge",)}) == ""
    assert differences(saved, {**saved, "masks": "data", "prompt": None}) == (
        "masks: ./data/masks/ there, data now; prompt:  there, None now"
    )
