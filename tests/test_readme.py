"""The README's Python blocks run as printed, and its commands are ones that exist, with options that exist."""

import argparse
import importlib
import re
import shlex
from pathlib import Path

import pytest
from diffusers import DDPMScheduler
from PIL import Image

from semseg_diffusers import LabelSet, MaskGuidedDDPMPipeline, MaskGuidedUNet2DModel
from semseg_diffusers.cli import COMMANDS


ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
PYTHON = re.findall(r"^```python\n(.*?)^```", README, flags=re.MULTILINE | re.DOTALL)
SHELL = [
    line
    for block in re.findall(r"^```bash\n(.*?)^```", README, flags=re.MULTILINE | re.DOTALL)
    for line in block.splitlines()
    if line.strip()
]


@pytest.fixture
def demo_run(tmp_path):
    """What `make demo` leaves behind, untrained: a pipeline for 64 x 64 scenes of 19 classes in demo/run."""
    labels = LabelSet.from_preset("bdd100k")
    unet = MaskGuidedUNet2DModel(
        sample_size=64,
        num_classes=labels.num_classes,
        block_out_channels=(8, 16),
        down_block_types=("DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D"),
        layers_per_block=1,
        norm_num_groups=4,
        patch_size=2,
        stem_channels=4,
        **labels.to_config(),
    )
    MaskGuidedDDPMPipeline(unet, DDPMScheduler()).save_pretrained(tmp_path / "demo" / "run")
    return tmp_path


def test_first_sample_of_the_readme_runs_as_printed(demo_run, monkeypatch):
    monkeypatch.chdir(demo_run)
    exec(PYTHON[0], {})
    assert Image.open("street.png").size == (64, 64)


@pytest.mark.parametrize("block", PYTHON[1:])
def test_other_python_blocks_run_as_printed(block, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    names = {}
    exec(block, names)
    assert len(names["images"]) == 2


@pytest.mark.parametrize("line", [line for line in SHELL if line.startswith("semseg-diffusers")])
def test_command_of_the_readme_exists_with_its_options(line):
    _, command, *words = shlex.split(line, comments=True)
    parser = argparse.ArgumentParser()
    importlib.import_module(COMMANDS[command][0]).add_arguments(parser)
    parser.parse_args(words)


@pytest.mark.parametrize("line", [line for line in SHELL if line.startswith("accelerate launch")])
def test_launched_command_of_the_readme_exists_with_its_options(line):
    words = shlex.split(line)[2:]
    if words[0] == "--config_file":
        assert (ROOT / words[1]).is_file()
        words = words[2:]
    parser = argparse.ArgumentParser()
    if words[0] == "-m":
        importlib.import_module(f"{words[1]}.command").add_arguments(parser)
        parser.parse_args(words[2:])
    else:
        assert (ROOT / words[0]).is_file()
        importlib.import_module(COMMANDS["train"][0]).add_arguments(parser)
        parser.parse_args(words[1:])


def test_make_targets_of_the_readme_exist():
    targets = [line.split()[1] for line in SHELL if line.startswith("make ")]
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert targets == ["demo", "test"]
    assert all(re.search(rf"^{target}:", makefile, flags=re.MULTILINE) for target in targets)


def test_pictures_of_the_readme_are_there():
    for path in re.findall(r"!\[[^\]]*\]\(([^)]+)\)", README):
        Image.open(ROOT / path).verify()
