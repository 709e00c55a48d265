"""The code blocks of README.md and docs/: found with their markers, and run as printed.

A block is run, or the line above it says why not: `<!-- not run by the tests: reason -->`. Bash lines that call a
command of ours run in this process, those that train or start a script in a forked one, everything else in a shell of
its own; options that make a line short come after those that are printed.
"""

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from helpers.training_runs import TINY, start
from semseg_diffusers import cli


ROOT = Path(__file__).resolve().parents[2]
FOLDERS = ("docs", "docs/tutorials", "docs/how_to", "docs/results")
PAGES = [ROOT / "README.md", *sorted(page for folder in FOLDERS for page in ROOT.glob(f"{folder}/*.md"))]
LANGUAGES = ("bash", "python")
# What makes lines of every page short: part of the line -> options that come after those printed.
TRAIN = " ".join(
    f"--{name} {' '.join(map(str, value)) if isinstance(value, tuple) else value}" for name, value in TINY.items()
)
SHORTER = {
    "train_accelerate.py": TRAIN,
    "semseg-diffusers train": TRAIN,
    "semseg-diffusers generate": "--num_inference_steps 2 --device cpu",
    "semseg_diffusers.generation": "--num_inference_steps 2",
    "semseg-diffusers evaluate --model": "--num_inference_steps 2",
    "semseg_diffusers.evaluation": "--num_inference_steps 2",
    "semseg-diffusers segmenter": "--max_train_steps 2 --train_batch_size 2 --input_size native --device cpu",
    # nothing that untrained models generate would be kept
    "semseg-diffusers filter": "--minimum_kept 0 --segmenter_steps 1 --device cpu",
    "semseg-diffusers study": "--architecture segformer-mini --max_train_steps 1 --seeds 0 1 --device cpu --jobs 1",
    "semseg-diffusers enrich": "--num_masks 2",
}
# First words of the lines that run in a forked process -> what is run there.
FORKED = {
    ("semseg-diffusers",): ("-m", "semseg_diffusers.cli"),
    ("accelerate", "launch"): ("-m", "accelerate.commands.launch"),
    ("python",): (),
}
_BLOCK = re.compile(
    r"(?:^<!-- not run by the tests: (?P<reason>[^\n]+) -->\n)?^```(?P<language>\w*)\n(?P<code>.*?)^```$",
    flags=re.MULTILINE | re.DOTALL,
)


@dataclass(frozen=True)
class Block:
    """A fenced block of a page."""

    language: str
    code: str
    reason: str | None  # why it is not run; None: it is

    @property
    def lines(self) -> list[str]:
        """The lines of a bash block, those that end in a backslash joined, without comments."""
        lines = self.code.replace("\\\n", " ").splitlines()
        return [line for line in lines if line.strip() and not line.startswith("#")]


def blocks_of(page: Path) -> list[Block]:
    """All fenced blocks, from top to bottom."""
    text = page.read_text(encoding="utf-8")
    return [Block(found["language"], found["code"], found["reason"]) for found in _BLOCK.finditer(text)]


def blocks_to_run(page: Path) -> list[Block]:
    """The blocks that carry no marker."""
    return [block for block in blocks_of(page) if block.language in LANGUAGES and block.reason is None]


def run_page(page: Path, options: Mapping[str, str], environment: Mapping[str, str] | None = None) -> dict:
    """Run a page's blocks in the working directory.

    Args:
        page: the page.
        options: part of a line -> options that come after it; all that fit are given.
        environment: variables for the lines; with them, commands of ours too run in processes of their own.

    Returns:
        the names that its python blocks defined, in one namespace.
    """
    names: dict = {}
    for block in blocks_to_run(page):
        if block.language == "python":
            exec(block.code, names)
            continue
        for line in block.lines:
            run_line(" ".join([line, *(more for part, more in options.items() if part in line)]), environment)
    return names


def run_line(line: str, environment: Mapping[str, str] | None = None) -> str:
    """Run one line; returns what it wrote, where it ran in a process of its own."""
    words = shlex.split(line)
    if words[0] == "semseg-diffusers" and words[1] != "train" and environment is None:
        assert cli.main(words[1:]) == 0, line
        return ""
    for start_of_line, module in FORKED.items():
        if words[: len(start_of_line)] == [*start_of_line] and not set("|&;<>$`*?#") & set(line):
            process = start(*module, *words[len(start_of_line) :], **(environment or {}))
            output, _ = process.communicate(timeout=600)
            assert process.returncode == 0, f"{line}\n{output[-4000:]}"
            return output
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    variables = {**os.environ, "PATH": path, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **(environment or {})}
    done = subprocess.run(line, shell=True, env=variables, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, f"{line}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
    return done.stdout + done.stderr
