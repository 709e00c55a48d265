"""MkDocs hook: include files of the repository outside docs/ that the docs link to, under repository/.

So a link works in the repository and on the site alike. Markdown files become pages, whose links are followed in turn;
everything else is copied. README.md is the front page of the repository, index.md that of the site: a link to one
becomes a link to the other.
"""

import posixpath
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page


FOLDER = "repository"
ROOT = Path(__file__).resolve().parent.parent.parent
LINK = re.compile(r"(\]\()([^)#\s]+)([^)]*\))")  # ](target, #anchor)
CODE = re.compile(r"(^```.*?^```|`[^`\n]+`)", flags=re.MULTILINE | re.DOTALL)  # links in code are not links


def _in_repository(page: str, target: str) -> str:
    """Return the repository path of a link on a page of the site; pages of the site are in docs/."""
    path = page.removeprefix(f"{FOLDER}/") if page.startswith(f"{FOLDER}/") else f"docs/{page}"
    return posixpath.normpath(posixpath.join(posixpath.dirname(path), target))


def _on_site(path: str) -> str:
    """Return where a file of the repository is on the site."""
    if path in ("README.md", "docs/index.md"):
        return "index.md"
    return path.removeprefix("docs/") if path.startswith("docs/") else f"{FOLDER}/{path}"


def _links(text: str) -> list[str]:
    found = LINK.findall(CODE.sub("", text))
    return [target for _, target, _ in found if not re.match(r"\w+:", target)]


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the files that are linked, and those in the navigation."""
    pending = [(file.src_uri, Path(file.abs_src_path)) for file in files.documentation_pages()]
    named = re.findall(rf"{FOLDER}/[\w./-]+", str(config.nav))
    waiting = [name.removeprefix(f"{FOLDER}/") for name in named]
    while pending or waiting:
        if pending:
            page, file = pending.pop()
            waiting += [_in_repository(page, target) for target in _links(file.read_text(encoding="utf-8"))]
            continue
        path = waiting.pop()
        name = _on_site(path)
        source = ROOT / path
        if name.startswith(f"{FOLDER}/") and files.get_file_from_path(name) is None and source.is_file():
            files.append(File.generated(config, name, abs_src_path=str(source)))
            if name.endswith(".md"):
                pending.append((name, source))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:  # noqa: ARG001
    """Rewrite links to where their files are on the site."""

    def moved(match: re.Match) -> str:
        start, target, end = match.groups()
        if re.match(r"\w+:", target):
            return match[0]
        name = _on_site(_in_repository(page.file.src_uri, target))
        return f"{start}{posixpath.relpath(name, posixpath.dirname(page.file.src_uri) or '.')}{end}"

    parts = CODE.split(markdown)  # text, code, text, ...
    return "".join(part if i % 2 else LINK.sub(moved, part) for i, part in enumerate(parts))
