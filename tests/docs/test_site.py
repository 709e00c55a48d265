"""The docs as a site: built without a warning, complete, no link leads nowhere, nothing comes from other hosts."""

import argparse
import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urldefrag

import pytest

import semseg_diffusers
from semseg_diffusers.cli import COMMANDS, command_parser


pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]


class Page(HTMLParser):
    """The ids, the links and what a browser would fetch of a page."""

    def __init__(self, path: Path):
        super().__init__()
        self.path, self.ids, self.links, self.fetched = path, set(), [], []
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        self.ids |= {given[name] for name in ("id", "name") if given.get(name)}
        if tag == "a" and given.get("href"):
            self.links.append(given["href"])
        if tag in ("script", "img", "iframe", "source") and given.get("src"):
            self.fetched.append(given["src"])
        if tag == "link" and given.get("rel") not in ("canonical", "prev", "next"):
            self.fetched.append(given["href"])


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    """The site, built as `make docs` builds it."""
    folder = tmp_path_factory.mktemp("docs") / "site"
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    assert "WARNING" not in done.stdout + done.stderr
    return folder


@pytest.fixture(scope="module")
def pages(site) -> dict[Path, Page]:
    """The pages that mkdocs wrote; those of results are others' own."""
    paths = [path for path in site.rglob("*.html") if "results" not in path.parts]
    return {path: Page(path) for path in paths}


def test_no_link_leads_nowhere(site, pages):
    broken = []
    for page in pages.values():
        if page.path.name == "404.html":  # its links start with /
            continue
        for link in page.links + page.fetched:
            target, anchor = urldefrag(unquote(link))
            if re.match(r"(https?|mailto|data|javascript):", target):
                continue
            path = (page.path.parent / target.partition("?")[0]).resolve() if target else page.path
            path = path / "index.html" if path.is_dir() else path
            if not path.is_file() or (anchor and path in pages and anchor not in pages[path].ids):
                broken.append(f"{page.path.relative_to(site)}: {link}")
    assert broken == []


def test_nothing_is_fetched_from_another_host(site, pages):
    fetched = {source for page in pages.values() for source in page.fetched}
    assert {source for source in fetched if re.match(r"(https?:)?//", source)} == set()
    for style in site.rglob("*.css"):
        assert not re.search(r"url\([\"']?(https?:)?//|@import", style.read_text(encoding="utf-8")), style.name


def test_every_public_name_of_the_package_is_on_a_page_of_the_api(site, pages):
    ids = {name for path, page in pages.items() if path.parent.name == "reference" for name in page.ids}
    for name in semseg_diffusers.__all__:
        public = getattr(semseg_diffusers, name)
        assert f"{public.__module__}.{name}" in ids


@pytest.mark.parametrize("name", COMMANDS)
def test_every_option_of_a_command_is_on_its_page(site, name):
    parser = command_parser(name)
    text = (site / "commands" / f"{name}.html").read_text(encoding="utf-8")
    actions = [action for action in parser._actions if action.dest != "help" and action.help != argparse.SUPPRESS]
    options = [option for action in actions for option in action.option_strings]
    assert [option for option in options if f"<code>{option}" not in text] == []
    assert f'href="{name}.html"' in (site / "commands" / "index.html").read_text(encoding="utf-8")


def test_fields_of_settings_say_what_they_are(site):
    text = (site / "reference" / "training.html").read_text(encoding="utf-8")
    assert "images per process and forward pass" in text
    text = (site / "reference" / "growth.html").read_text(encoding="utf-8")
    assert "diffusion model (default: one is trained first)" in text


def test_search_finds_an_option_without_a_server(site):
    index = (site / "search" / "search_index.js").read_text(encoding="utf-8")
    assert "num_images_per_mask" in index
    assert (site / "assets" / "iframe-worker.js").is_file()
