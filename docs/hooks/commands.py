"""A hook of mkdocs: the pages of the commands, with every option, made from the parsers that read them."""

import argparse
import re
import textwrap

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

from semseg_diffusers.cli import COMMANDS, command_parser


FOLDER = "commands"


def _text(words: str) -> str:
    """Plain text as Markdown: nothing in it is markup but what stands in backticks."""
    parts = re.split(r"(`[^`]+`)", " ".join(words.split()))
    return "".join(part if i % 2 else re.sub(r"([\\*_<>|\[\]#])", r"\\\1", part) for i, part in enumerate(parts))


def _entry(parser: argparse.ArgumentParser, action: argparse.Action) -> str:
    """An option and what it does, as an entry of a definition list."""
    formatter = parser._get_formatter()
    value = "" if action.nargs == 0 else formatter._format_args(action, action.dest.upper())
    calls = [f"{name} {value}".strip() for name in action.option_strings] or [value]
    words = _text(formatter._expand_help(action)) if action.help else ""
    if action.choices is not None:
        words += f"{'; ' if words else ''}one of {', '.join(f'`{choice}`' for choice in action.choices)}"
    needed = "**Needed.** " if action.required and action.option_strings else ""
    return f"{', '.join(f'`{call}`' for call in calls)}\n:   {needed}{words or 'On or off.'}\n"


def page_of(name: str) -> str:
    """The page of a command, in Markdown."""
    parser = command_parser(name)
    lines = [f"# {name}", "", _described(parser.description), ""]
    for group in parser._action_groups:
        actions = [each for each in group._group_actions if each.help is not argparse.SUPPRESS and each.dest != "help"]
        if actions:
            lines += [f"## {group.title.capitalize()}", ""]
            lines += [_text(group.description), ""] if group.description else []
            lines += [_entry(parser, action) for action in actions]
    for group in parser._mutually_exclusive_groups:
        names = ", ".join(f"`{action.option_strings[-1]}`" for action in group._group_actions if action.option_strings)
        lines += [f"{'One' if group.required else 'At most one'} of {names}.", ""]
    return "\n".join(lines)


def _described(text: str | None) -> str:
    """A command's description: paragraphs as they are, what is set in from the margin as a block of code."""
    blocks = re.split(r"\n\s*\n", textwrap.dedent(text or "").strip())
    shown = []
    for block in blocks:
        for set_in, lines in _runs(block.splitlines()):
            shown.append(
                "```text\n" + textwrap.dedent("\n".join(lines)) + "\n```" if set_in else _text("\n".join(lines))
            )
    return "\n\n".join(shown)


def _runs(lines: list[str]) -> list[tuple[bool, list[str]]]:
    """Neighbouring lines that stand at the margin, or that are set in."""
    runs: list[tuple[bool, list[str]]] = []
    for line in lines:
        set_in = line.startswith("  ")
        if not runs or runs[-1][0] != set_in:
            runs.append((set_in, []))
        runs[-1][1].append(line)
    return runs


def _overview() -> str:
    rows = [f"| [`{name}`]({name}.md) | {_text(told)} |" for name, (*_, told) in COMMANDS.items()]
    told = (
        "In the order of use. `semseg-diffusers COMMAND --help` prints what stands on these pages: both are made from "
    )
    return "\n".join(["# Commands", "", f"{told}the same parsers.", "", "| command | for |", "|---|---|", *rows, ""])


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Put the commands into the navigation, where their overview stands."""
    for entry in config.nav:
        if entry.get("Commands") == f"{FOLDER}/index.md":
            entry["Commands"] = [f"{FOLDER}/index.md", *(f"{FOLDER}/{name}.md" for name in COMMANDS)]
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Write the pages."""
    files.append(File.generated(config, f"{FOLDER}/index.md", content=_overview()))
    for name in COMMANDS:
        files.append(File.generated(config, f"{FOLDER}/{name}.md", content=page_of(name)))
    return files
