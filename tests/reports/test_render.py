"""Pages: all in one file, what comes from users is escaped, marks and plots show their numbers."""

import base64
import io
import re

import numpy as np
import pytest
from helpers.page_reading import PageReader, assert_self_contained, drawings
from PIL import Image

from semseg_diffusers.data.labels import LabelSet
from semseg_diffusers.reports.plots import line_plot
from semseg_diffusers.reports.render import (
    IMAGE_SIDE,
    SHEET_SIDE,
    TEMPLATES,
    BarRow,
    axis_ticks,
    embed,
    exact,
    flatten,
    number,
    percent,
    render,
    write_page,
)


HOSTILE = "<script>alert('x')</script>\"><img src=http://a.b/c onerror=x>&{{ 7 * 7 }}"
NAN, INFINITY = float("nan"), float("inf")
PIECES = """
{{ ui.bullets([text]) }}
{{ ui.findings([{"topic": text, "text": text}]) }}
{{ ui.warning(text) }}
{{ ui.commands([text]) }}
{{ ui.definitions({text: text}) }}
{% call ui.details(text) %}<p>{{ text }}</p>{% endcall %}
{{ ui.settings_table({text: {text: text}}, text) }}
{{ ui.table([text, text], [[text, text], [text, 0.5]], text) }}
{{ ui.bar_table(rows, [text], text, text, more=[text]) }}
{{ ui.series_name(text, 0) }}
{{ ui.plot(plot, text) }}
{{ ui.image_table([text], [(text, [photo])], text) }}
{{ ui.image_cards([(text, {text: photo})]) }}
{{ ui.color_list([(text, (1, 2, 3))]) }}
{{ ui.image(photo, text) }}
{{ ui.sheet(photo, text, 2) }}
"""


def photo(width=48, height=32):
    """A smooth image with a little noise, as photos are."""
    rows, columns = np.mgrid[0:height, 0:width]
    noise = np.random.default_rng(0).normal(0, 6, (height, width, 3))
    shade = np.stack([columns * 200 / width, rows * 200 / height, (rows + columns) * 100 / width], axis=-1)
    return Image.fromarray(np.clip(shade + noise, 0, 255).astype(np.uint8))


def decoded(source):
    """The image in a data URI."""
    return Image.open(io.BytesIO(base64.b64decode(re.search(r"base64,([^\"]+)", source)[1])))


@pytest.fixture
def page(tmp_path):
    """Return a function that renders a page of these sections, whose content uses the macros as `ui`."""

    def page_of(sections, title="A page", lead="", footer="", **context):
        parts = [
            f"{{% call ui.section(titles[{index}]) %}}{content}{{% endcall %}}"
            for index, content in enumerate(sections.values())
        ]
        template = tmp_path / "template.html.j2"
        template.write_text(
            "{% extends 'base.html.j2' %}{% import 'macros.html.j2' as ui with context %}"
            f"{{% block content %}}{''.join(parts)}{{% endblock %}}"
        )
        return render(template, titles=list(sections), title=title, lead=lead, footer=footer, **context)

    return page_of


@pytest.fixture
def piece(page):
    """Return a function that renders one macro."""
    return lambda content, **context: re.search(r"</h2>(.*)</section>", page({"a": content}, **context), re.S)[1]


def every_piece(page, text, count=1, **more):
    titles = [text] if count == 1 else [f"Part {index}" for index in range(count)]
    context = {
        "rows": [BarRow(text, [0.5], [text], (1, 2, 3))],
        "plot": line_plot({text: [(0, 1.0), (5, None), (10, 2.0)]}, text, text),
        "photo": photo(),
    }
    return page(dict.fromkeys(titles, PIECES), text=text, **context, **more)


# Text ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.45321, "0.453"),
        (12.0, "12.0"),
        (0.00999, "0.00999"),
        (61234.5, "61,200"),
        (202, "202"),
        (0.9996, "1.00"),
        (0.00099951, "0.00100"),
        (99.96, "100"),
        (1234567.0, "1,230,000"),
        (-0.0123, "-0.0123"),
        (1.2345e-9, "1.23e-09"),
        (0.0, "0"),
        (1234567, "1,234,567"),
        (None, "–"),
        (NAN, "n/a"),
        (INFINITY, "∞"),
        (-INFINITY, "-∞"),
    ],
)
def test_a_measured_number_has_three_significant_digits_and_a_count_all_of_its_own(value, text):
    assert number(value) == text


def test_shares_and_settings_are_written_as_they_are_read():
    shares = [percent(value) for value in (None, NAN, 0.0123, 0.5, 1, 0)]
    assert shares == ["–", "n/a", "1.23 %", "50.0 %", "100 %", "0 %"]
    texts = [exact(value) for value in (0.1, 2.0, False, True, [], ["a", 1], (1, 2.5), "a b", None, 1000000)]
    assert texts == ["0.1", "2", "no", "yes", "–", "a, 1", "1, 2.5", "a b", "–", "1000000"]
    assert flatten({"a": 1, "b": {"c": 2, "d": {}}}) == [("a", 1), ("b.c", 2), ("b.d", None)]


def test_text_of_users_is_escaped_everywhere(page):
    html = every_piece(page, HOSTILE, title=HOSTILE, lead=HOSTILE, footer=HOSTILE)
    assert_self_contained(html)
    assert "<script" not in html
    assert "49" not in PageReader(html).text
    assert PageReader(html).text.count("<script>alert('x')</script>") > 20


def test_a_page_is_self_contained_and_says_its_language_and_width(page):
    html = every_piece(page, "text", count=3)
    assert_self_contained(html)
    reader = PageReader(html)
    assert ("html", "lang", "en") in reader.attributes
    assert any("width=device-width" in value for value in reader.values("content"))
    links = [value for value in reader.values("href") if value.startswith("#")]
    assert links == ["#part-0", "#part-1", "#part-2"]
    assert {"part-0", "part-1", "part-2"} <= set(reader.values("id"))
    assert "prefers-color-scheme: dark" in html
    assert "@media print" in html


def test_the_same_content_gives_the_same_bytes(page):
    assert len({every_piece(page, "text") for _ in range(2)}) == 1


def test_a_name_that_a_template_misspells_is_an_error(page):
    with pytest.raises(Exception, match="'no_such_name' is undefined"):
        page({"a": "{{ no_such_name }}"})


def test_every_template_of_a_page_extends_the_base():
    names = {path.name for path in TEMPLATES.glob("*.j2")} - {"base.html.j2", "macros.html.j2"}
    assert names
    assert all((TEMPLATES / name).read_text().startswith('{% extends "base.html.j2" %}') for name in names)


def test_a_page_is_written_whole_into_a_new_folder(tmp_path):
    template = tmp_path / "template"
    template.write_text("<p>{{ text }}</p>")
    write_page(tmp_path / "new" / "page.html", template, text="ü")
    assert (tmp_path / "new" / "page.html").read_bytes() == "<p>ü</p>".encode()
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["page.html"]


# Tables --------------------------------------------------------------------------------------------------------------


def test_number_columns_are_aligned_on_the_decimal_point(piece):
    rows = [["x", 0.453, "y"], ["x", 12.0, 1.0], ["x", 302.0, "z"], ["x", None, "z"]]
    html = piece("{{ ui.table(['a', 'b', 'c'], rows) }}", rows=rows)
    cells = re.findall(r'<td class="number">(?:<span style="padding-right:([\d.]+)ch">)?([^<]+)', html)
    assert cells == [("", "0.453"), ("2.0", "12.0"), ("3.5", "302"), ("", "–")]
    assert 'scope="col" class="number"' in html
    assert html.count('scope="row"') == 4


def test_a_row_that_does_not_fit_its_table_is_refused(piece):
    with pytest.raises(ValueError, match="expected 2 cells in each row of a table, got 1"):
        piece("{{ ui.table(['a', 'b'], [['x']]) }}")


def bar_table(piece, rows, series, **options):
    call = "{{ ui.bar_table(rows, series, maximum=maximum, more=more) }}"
    return piece(call, rows=rows, series=series, **{"maximum": None, "more": [], **options})


def widths(html):
    return [[float(bar.get("width").rstrip("%")) for bar in svg.iter("rect")] for svg in drawings(html)]


def test_bars_are_as_long_as_their_values(piece):
    rows = [BarRow("road", [0.873, 0.25, 0.0]), BarRow("sky", [1.0, None, NAN])]
    assert widths(bar_table(piece, rows, ["real", "generated", "floor"], maximum=1.0)) == [[87.3, 25, 0], [100]]
    assert widths(bar_table(piece, [BarRow("a", [40]), BarRow("b", [10])], ["count"])) == [[100], [25]]


def test_bars_are_in_a_table_with_their_values(piece):
    html = bar_table(piece, [BarRow("road", [0.873, 12], ["5 %"])], ["real", "count"], more=["share"])
    text = PageReader(html).text
    assert "0.873" in text
    assert "12" in text
    assert text.endswith("5 %")


def test_bars_of_nothing_are_a_table_all_the_same(piece):
    assert widths(bar_table(piece, [BarRow("road", [None]), BarRow("sky", [0])], ["real"])) == [[], [0]]


def test_floor_value_and_ceiling_are_where_their_numbers_are(piece):
    (svg,) = drawings(piece("{{ ui.between(0.1, 0.4, 0.5, [0, 1]) }}"))
    assert [circle.get("cx") for circle in svg.iter("circle")] == ["40.0%"]
    lines = [(line.get("x1"), line.get("x2")) for line in svg.iter("line")][1:]
    assert lines == [("10.0%", "50.0%"), ("10.0%", "10.0%"), ("50.0%", "50.0%")]
    assert svg.get("aria-label") == "0.400 on a line from 0 to 1, floor 0.100, ceiling 0.500"
    (nothing,) = drawings(piece("{{ ui.between(none, nan, none, [0, 1]) }}", nan=NAN))
    assert list(nothing.iter("circle")) == []


def test_a_spread_has_its_mean_interval_values_and_mark_where_their_numbers_are(piece):
    (svg,) = drawings(piece("{{ ui.spread(0.05, 0.02, 0.08, [0.04, 0.06], 0.1, [0.0, 0.1, 0.2]) }}"))
    assert [circle.get("cx") for circle in svg.iter("circle")] == ["20.0%", "30.0%", "25.0%"]
    lines = [(line.get("class"), line.get("x1"), line.get("x2")) for line in svg.iter("line")][1:]
    assert lines == [("mark", "50.0%", "50.0%"), ("l1 thick faded", "10.0%", "40.0%")]
    assert svg.get("aria-label") == "0.0500, interval 0.0200 to 0.0800, single results 0.0400, 0.0600"
    (alone,) = drawings(piece("{{ ui.spread(0.05, none, none, [], none, [0.0, 0.2]) }}"))
    assert (len(list(alone.iter("line"))), alone.get("aria-label")) == (1, "0.0500")
    assert PageReader(piece("{{ ui.axis_header([0.0, 0.1, 0.2]) }}")).text == "0 0.1 0.2"


def test_a_strip_has_a_tick_for_each_value(piece):
    (svg,) = drawings(piece("{{ ui.strip([0.1, 0.2, 0.4], [0.1, 0.4], 0.3, 0) }}"))
    ticks = [line.get("x1") for line in svg.iter("line") if line.get("class") == "l0"]
    assert ticks == ["0.0%", "33.33%", "100.0%"]
    assert [line.get("x1") for line in svg.iter("line") if line.get("class") == "mark"] == ["66.67%"]


@pytest.mark.parametrize(("low", "high"), [(0, 1), (0, 1e-7), (-3, 12345), (5, 5), (0, 0), (0.999, 1.001)])
def test_an_axis_covers_its_values_with_few_round_numbers(low, high):
    axis = axis_ticks(low, high)
    assert axis[0] <= low <= high <= axis[-1]
    assert 2 <= len(axis) <= 8
    assert axis == sorted(set(axis))
    assert axis_ticks(0, 0.93) == [0.0, 0.25, 0.5, 0.75, 1.0]
    assert axis_ticks(0, 5000) == [0.0, 2000.0, 4000.0, 6000.0]


# Images --------------------------------------------------------------------------------------------------------------


def test_masks_keep_every_pixel_and_photos_become_jpeg(piece):
    labels = LabelSet.from_preset("camvid")
    ids = np.random.default_rng(0).integers(0, 11, (24, 40)).astype(np.uint8)
    mask = piece("{{ ui.image(mask, 'a mask') }}", mask=labels.decode(ids))
    assert decoded(mask).format == "PNG"
    assert np.array_equal(np.asarray(decoded(mask)), ids)
    assert 'class="sharp"' in mask
    assert 'width="40" height="24" alt="a mask"' in mask
    assert decoded(embed(photo()).source).format == "JPEG"
    assert decoded(embed(Image.new("RGB", (64, 64), "red")).source).format == "PNG"


def test_large_images_are_reduced_and_masks_keep_their_classes():
    labels = LabelSet.from_preset("camvid")
    ids = np.random.default_rng(0).integers(0, 11, (300, 1000)).astype(np.uint8)
    mask = decoded(embed(labels.decode(ids)).source)
    assert mask.size == (IMAGE_SIDE, 96)
    assert set(np.unique(np.asarray(mask))) <= set(range(11))
    assert decoded(embed(photo(1000, 300)).source).size == (IMAGE_SIDE, 96)
    assert max(decoded(embed(Image.new("RGB", (9000, 300)), is_sheet=True).source).size) == SHEET_SIDE


def test_every_image_says_what_it_shows(piece):
    rows = [("scene 1", [photo(), None]), ("", [None, photo()])]
    html = piece("{{ ui.image_table(['mask', 'photo'], rows) }}", rows=rows)
    assert PageReader(html).values("alt") == ["mask: scene 1", "photo"]


def test_a_sheet_is_shown_at_its_own_size_at_most_and_scrolled_where_it_is_wide(piece):
    html = piece("{{ ui.sheet(sheet, 'a sheet', 10) }}", sheet=Image.new("RGB", (1000, 300)))
    assert "min-width:45.0rem;max-width:1000px" in html
    assert decoded(html).size == (1000, 300)
