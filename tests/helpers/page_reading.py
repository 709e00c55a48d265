"""Reads HTML pages back in tests: text, attributes, open tags, numbers, drawings."""

import re
import xml.etree.ElementTree as ET
from html.parser import HTMLParser


VOID = {"meta", "link", "img", "br"}
SVG_VOID = {"rect", "line", "path", "circle", "g", "use"}


class PageReader(HTMLParser):
    """The content of a page: `text`, `tags`, `attributes`; fails where a tag is closed that is not open."""

    def __init__(self, html: str):
        super().__init__()
        self.tags, self.attributes, self.open, self._texts = [], [], [], []
        self.feed(html)
        self.close()
        self.text = " ".join(" ".join(self._texts).split())

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, name, value) for name, value in attrs]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        assert tag in SVG_VOID, f"<{tag}/> closes nothing in HTML"
        self.tags.append(tag)
        self.attributes += [(tag, name, value) for name, value in attrs]

    def handle_endtag(self, tag):
        assert self.open, f"</{tag}> without a start"
        assert self.open[-1] == tag, f"</{tag}> inside <{self.open[-1]}>"
        self.open.pop()

    def handle_data(self, data):
        if not self.open or self.open[-1] != "style":
            self._texts.append(data)

    def values(self, name: str) -> list[str]:
        """All values of an attribute, in order."""
        return [value for _, attribute, value in self.attributes if attribute == name]


def numbers_in(text: str) -> set[str]:
    """The numbers of a text as they are written."""
    return set(re.findall(r"(?<![\w.])-?\d+(?:,\d{3})*(?:\.\d+)?(?:e-?\d+)?", text))


def drawings(html: str) -> list[ET.Element]:
    """The inline SVGs of a page."""
    return [ET.fromstring(svg) for svg in re.findall(r"<svg.*?</svg>", html, re.DOTALL)]


def assert_self_contained(html: str) -> None:
    """Nothing is loaded from outside the file, nothing runs, and every tag is closed."""
    reader = PageReader(html)
    assert reader.open == []
    ids = reader.values("id")
    assert len(set(ids)) == len(ids)
    assert not {"script", "iframe", "object", "embed"} & set(reader.tags)
    for tag, name, value in reader.attributes:
        assert not name.startswith("on"), f"<{tag} {name}> runs a script"
        if name in ("src", "href", "srcset", "poster", "data"):
            assert value.startswith(("data:", "#")), f"<{tag} {name}> loads {value[:80]}"
    style = "".join(re.findall(r"<style>.*?</style>", html, re.DOTALL))
    assert "url(" not in style
    assert "@import" not in style
