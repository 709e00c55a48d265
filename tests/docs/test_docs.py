"""README.md and docs/: every command exists with its options, pictures are there and small, links lead somewhere."""

import re
import shlex
from pathlib import Path

import pytest
from helpers.page_blocks import PAGES, blocks_of
from PIL import Image

from semseg_diffusers import cli
from semseg_diffusers.masks.editing.edit import parse_operation
from semseg_diffusers.utils.settings import SettingsParser


LARGEST = 200_000  # bytes of a picture
# what may stand before a command's options -> the command
STARTS = {
    r"semseg-diffusers (\w+)": None,
    r"(?:accelerate launch (?:--\w+ \S+ )*)?train_accelerate\.py": "train",
    r"accelerate launch (?:--\w+ \S+ )*-m semseg_diffusers\.training": "train",
    r"accelerate launch (?:--\w+ \S+ )*-m semseg_diffusers\.generation": "generate",
    r"accelerate launch (?:--\w+ \S+ )*-m semseg_diffusers\.evaluation": "evaluate",
}


def lines_of(page: Path) -> list[str]:
    """Each line of a page's shell blocks, those that are not run included."""
    return [line for block in blocks_of(page) if block.language == "bash" for line in block.lines]


def command_of(line: str) -> tuple[str, list[str]] | None:
    """The command of ours that a line calls, and its options."""
    for start, command in STARTS.items():
        found = re.match(rf"(?:\w+=\S+ )*{start}(?= |$)", line)
        if found:
            return command or found[1], shlex.split(line[found.end() :], comments=True)
    return None


CALLS = [
    pytest.param(*called, id=f"{page.stem}: {line[:60]}")
    for page in PAGES
    for line in lines_of(page)
    if (called := command_of(line))
]


@pytest.mark.parametrize(("name", "words"), CALLS)
def test_command_of_a_page_exists_with_its_options(name, words):
    parser = cli.command_parser(name)
    args = parser.parse_settings(words) if isinstance(parser, SettingsParser) else parser.parse_args(words)
    for text in getattr(args, "operation", None) or []:
        parse_operation(text)


def test_most_lines_are_commands_of_ours():
    lines = [line for page in PAGES for line in lines_of(page)]
    other = [line for line in lines if not command_of(line)]
    assert len(CALLS) > 50
    starts = (
        "git clone ",
        "python3 -m venv ",
        "make ",
        "pip install ",
        "export ",
        "grep ",
        "python ",
        "cp ",
        "srun ",
        "hf ",
    )
    assert [line for line in other if not line.startswith(starts)] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_pictures_and_links_of_a_page_are_there(page):
    text = page.read_text(encoding="utf-8")
    for name in re.findall(r"!\[[^\]]*\]\((?!http)([^)]+)\)", text):
        Image.open(page.parent / name).verify()
        assert (page.parent / name).stat().st_size < LARGEST, name
    for target in re.findall(r"(?<!!)\[[^\]]*\]\(([^)]+)\)", text):
        if not target.startswith(
            ("http", "commands/", "../commands/")
        ):  # those are written with the site: test_site.py
            name, _, anchor = target.partition("#")
            linked = page.parent / name if name else page
            assert linked.exists(), target
            if anchor:
                headings = re.findall(r"^#+ (.+)$", linked.read_text(encoding="utf-8"), flags=re.MULTILINE)
                assert anchor in {re.sub(r"[^\w -]", "", each.lower()).replace(" ", "-") for each in headings}, target


def test_pages_beside_docs_link_to_files_as_the_site_needs_it():
    root = PAGES[0].parent
    navigation = (root / "mkdocs.yml").read_text(encoding="utf-8")
    for page in [*root.glob("checkpoints/**/README.md"), root / "notebooks" / "README.md", root / "CONTRIBUTING.md"]:
        assert f"repository/{page.relative_to(root).as_posix()}" in navigation
        for target in re.findall(r"\[[^\]]*\]\(([^)#]+)", page.read_text(encoding="utf-8")):
            assert target.startswith("http") or (page.parent / target).is_file(), (page, target)
