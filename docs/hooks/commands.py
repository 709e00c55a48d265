"""MkDocs hook: write a page for each command, with every option, from the parser that reads them."""

import argparse
import re
import textwrap

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

from semseg_diffusers.cli import COMMANDS, command_parser


FOLDER = "commands"


def _text(words: str) -> str:
    """Escape plain text for Markdown; only backticks keep their meaning."""
    parts = re.split(r"(`[^`]+`)", " ".join(words.split()))
    return "".join(part if i % 2 else re.sub(r"([\\*_<>|\[\]#])", r"\\\1", part) for i, part in enumerate(parts))


def _entry(parser: argparse.ArgumentParser, action: argparse.Action) -> str:
    """Return an option and its help as an entry of a definition list."""
    formatter = parser._get_formatter()
    value = "" if action.nargs == 0 else formatter._format_args(action, action.dest.upper())
    calls = [f"{name} {value}".strip() for name in action.option_strings] or [value]
    words = _text(formatter._expand_help(action)) if action.help else ""
    if action.choices is not None:
        words += f"{'; ' if words else ''}one of {', '.join(f'`{choice}`' for choice in action.choices)}"
    needed = "**Required.** " if action.required and action.option_strings else ""
    return f"{', '.join(f'`{call}`' for call in calls)}\n:   {needed}{words or 'On or off.'}\n"


def page_of(name: str) -> str:
    """Return the page of a command as Markdown."""
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
    rows = [f"| [`{name}`]({name}.md) | {_text(command[-1])} |" for name, command in COMMANDS.items()]
    introduction = "In the order of use. `semseg-diffusers COMMAND --help` prints the same options."
    return "\n".join(["# Commands", "", introduction, "", "| command | purpose |", "|---|---|", *rows, ""])


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Add the command pages to the navigation, under their overview."""
    reference = next(entry["Reference"] for entry in config.nav if "Reference" in entry)
    for entry in reference:
        if entry.get("Commands") == f"{FOLDER}/index.md":
            entry["Commands"] = [f"{FOLDER}/index.md", *(f"{FOLDER}/{name}.md" for name in COMMANDS)]
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages."""
    files.append(File.generated(config, f"{FOLDER}/index.md", content=_overview()))
    for name in COMMANDS:
        files.append(File.generated(config, f"{FOLDER}/{name}.md", content=page_of(name)))
    return files
