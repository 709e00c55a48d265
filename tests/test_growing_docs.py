"""docs/growing.md: its commands exist with their options, and its table names the stages that there are."""

import argparse
import importlib
import re
import shlex
from pathlib import Path

import pytest

from semseg_diffusers.cli import COMMANDS
from semseg_diffusers.growth.stages import STAGES


ROOT = Path(__file__).resolve().parent.parent
PAGE = (ROOT / "docs" / "growing.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```bash\n(.*?)^```", PAGE, flags=re.MULTILINE | re.DOTALL)
LINES = [line for block in BLOCKS for line in block.splitlines()]


@pytest.mark.parametrize("line", [line for line in LINES if line.startswith("semseg-diffusers")])
def test_command_of_the_page_exists_with_its_options(line):
    _, name, *words = shlex.split(line)
    parser = argparse.ArgumentParser()
    importlib.import_module(COMMANDS[name][0]).add_arguments(parser)
    parser.parse_args(words)


def test_every_stage_is_on_the_page_with_its_command():
    told = re.findall(r"^\| `(\w+)` \| `(\w+)` \|", PAGE, flags=re.MULTILINE)
    assert dict(told) == STAGES
