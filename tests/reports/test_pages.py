"""Pages: all in one file, what comes from users is escaped, charts draw what their numbers say."""

import base64
import io
import re

import numpy as np
import pytest
from helpers.page_reading import PageReader, assert_self_contained, drawings
from PIL import Image

from semseg_diffusers.data.labels import LabelSet
from semseg_diffusers.reports.charts import (
    Bars,
    axis_header,
    bar_table,
    decade_ticks,
    line_chart,
    scale_mark,
    spread_mark,
    strip_table,
    ticks,
)
from semseg_diffusers.reports.figures import (
    PICTURE_SIDE,
    color_list,
    picture,
    picture_cards,
    picture_table,
    wide_picture,
)
from semseg_diffusers.reports.html import (
    bullets,
    commands,
    exact,
    facts,
    folded,
    number,
    page,
    paragraph,
    percent,
    section,
    settings_table,
    subheading,
    table,
    warning,
    write_page,
)


HOSTILE = "<script>alert('x')</script>\"><img src=http://a.b/c onerror=x>&{{ 7 * 7 }}"
NAN, INFINITY = float("nan"), float("inf")


def photo(width=48, height=32):
    """A smooth picture with a little noise, as photos are."""
    rows, columns = np.mgrid[0:height, 0:width]
    noise = np.random.default_rng(0).normal(0, 6, (height, width, 3))
    shade = np.stack([columns * 200 / width, rows * 200 / height, (rows + columns) * 100 / width], axis=-1)
    return Image.fromarray(np.clip(shade + noise, 0, 255).astype(np.uint8))


def decoded(img):
    """The picture inside an `<img>`."""
    return Image.open(io.BytesIO(base64.b64decode(re.search(r"base64,([^\"]+)", str(img))[1])))


def every_piece(text):
    """One of everything, with `text` wherever a text goes."""
    return [
        paragraph(text),
        warning(text),
        subheading(text),
        bullets([text]),
        commands([text]),
        facts({text: text}),
        folded(text, paragraph(text)),
        settings_table({text: {text: text}}, text),
        table([text, text], [[text, text], [text, 0.5]], text),
        bar_table([Bars(text, [0.5], [text])], [text], text, text, more=[text]),
        strip_table({text: [0.1, 0.2]}, text, mark=0.15, unit=text),
        line_chart({text: [(0, 1.0), (10, 2.0)]}, text, text, text),
        picture_table([text], [(text, [photo()])], text),
        picture_cards([(text, {text: photo()})]),
        color_list([text], [(1, 2, 3)]),
        picture(photo(), text),
        wide_picture(photo(), text, 2, text),
    ]


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.45321, "0.453"),
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
    assert [percent(value) for value in (None, NAN, 0.5, 1)] == ["–", "n/a", "50.0 %", "100 %"]
    assert [exact(value) for value in (0.1, 2.0, False, [], (1, 2.5), "a b")] == [
        "0.1",
        "2",
        "no",
        "–",
        "1, 2.5",
        "a b",
    ]


def test_text_of_users_is_escaped_everywhere():
    html = page(HOSTILE, [section(HOSTILE, *every_piece(HOSTILE), HOSTILE)], lead=HOSTILE, footer=HOSTILE)
    assert_self_contained(html)
    assert "<script" not in html
    assert "49" not in PageReader(html).text
    assert PageReader(html).text.count("<script>alert('x')</script>") > 20


def test_a_page_is_self_contained_and_says_its_language_and_width():
    html = page("A page", [section(f"Part {index}", *every_piece("text")) for index in range(3)])
    assert_self_contained(html)
    reader = PageReader(html)
    assert ("html", "lang", "en") in reader.attributes
    assert any("width=device-width" in value for value in reader.values("content"))
    assert [value for value in reader.values("href") if value.startswith("#")] == ["#part-0", "#part-1", "#part-2"]
    assert {"part-0", "part-1", "part-2"} <= set(reader.values("id"))
    assert "prefers-color-scheme: dark" in html
    assert "@media print" in html


def test_the_same_content_gives_the_same_bytes():
    assert len({page("A page", [section("Part", *every_piece("text"))]) for _ in range(2)}) == 1


def test_sections_need_titles_of_their_own():
    with pytest.raises(ValueError, match=r"need different titles; got a-b, a-b"):
        page("A page", [section("A b"), section("a B!")])


def test_a_page_is_written_whole_into_a_new_folder(tmp_path):
    write_page(tmp_path / "new" / "page.html", "<p>ü</p>")
    assert (tmp_path / "new" / "page.html").read_bytes() == "<p>ü</p>".encode()
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["page.html"]


def test_number_columns_are_aligned_on_the_decimal_point():
    html = str(table(["a", "b", "c"], [["x", 0.453, "y"], ["x", 12.0, 1.0], ["x", 302.0, "z"], ["x", None, "z"]]))
    cells = re.findall(r'<td class="number">(?:<span style="padding-right:([\d.]+)ch">)?([^<]+)', html)
    assert cells == [("", "0.453"), ("2.0", "12.0"), ("3.5", "302"), ("", "–")]
    assert 'scope="col" class="number"' in html
    assert html.count('scope="row"') == 4


def test_a_row_that_does_not_fit_its_table_is_refused():
    with pytest.raises(ValueError, match="a table of 2 columns got a row of 1 cells"):
        table(["a", "b"], [["x"]])
    with pytest.raises(ValueError, match="a table of 2 pictures a row got 1 in the row 'r'"):
        picture_table(["a", "b"], [("r", [photo()])])


# Pictures ------------------------------------------------------------------------------------------------------------


def test_masks_keep_every_pixel_and_photos_become_jpeg():
    labels = LabelSet.from_preset("camvid")
    ids = np.random.default_rng(0).integers(0, 11, (24, 40)).astype(np.uint8)
    mask = picture(labels.decode(ids), "a mask")
    assert decoded(mask).format == "PNG"
    assert np.array_equal(np.asarray(decoded(mask)), ids)
    assert 'class="sharp"' in mask
    assert 'width="40" height="24" alt="a mask"' in mask
    assert decoded(picture(photo(), "a photo")).format == "JPEG"
    assert decoded(picture(Image.new("RGB", (64, 64), "red"), "a plain area")).format == "PNG"


def test_large_pictures_are_reduced_and_masks_stay_among_their_classes():
    labels = LabelSet.from_preset("camvid")
    ids = np.random.default_rng(0).integers(0, 11, (300, 1000)).astype(np.uint8)
    mask = decoded(picture(labels.decode(ids), "a mask"))
    assert mask.size == (PICTURE_SIDE, 96)
    assert set(np.unique(np.asarray(mask))) <= set(range(11))
    assert decoded(picture(photo(1000, 300), "a photo")).size == (PICTURE_SIDE, 96)


def test_every_picture_says_what_it_shows():
    html = str(picture_table(["mask", "photo"], [("scene 1", [photo(), None]), ("", [None, photo()])]))
    assert PageReader(html).values("alt") == ["mask: scene 1", "photo"]


# Charts --------------------------------------------------------------------------------------------------------------


def widths(html):
    return [[float(bar.get("width").rstrip("%")) for bar in svg.iter("rect")] for svg in drawings(html)]


def test_bars_are_as_long_as_their_values():
    rows = [Bars("road", [0.873, 0.25, 0.0]), Bars("sky", [1.0, None, NAN])]
    assert widths(str(bar_table(rows, ["real", "generated", "floor"], maximum=1.0))) == [[87.3, 25, 0], [100]]
    assert widths(str(bar_table([Bars("a", [30]), Bars("b", [7.5])], ["count"]))) == [[100], [25]]


def test_bars_stand_in_a_table_with_their_values():
    text = PageReader(str(bar_table([Bars("road", [0.873, 12], ["5 %"])], ["real", "count"], more=["share"]))).text
    assert "0.873" in text
    assert "12" in text
    assert text.endswith("5 %")


def test_bars_of_nothing_are_a_table_all_the_same():
    assert widths(str(bar_table([Bars("road", [None]), Bars("sky", [0])], ["real"]))) == [[], [0]]


def test_values_below_zero_are_refused_as_bars():
    with pytest.raises(ValueError, match=r"bars show values from 0 on; got -0\.5"):
        bar_table([Bars("road", [-0.5])], ["real"])


def test_floor_value_and_ceiling_stand_where_their_numbers_are():
    mark = scale_mark(0.1, 0.4, 0.5)
    (svg,) = drawings(str(mark))
    assert [circle.get("cx") for circle in svg.iter("circle")] == ["40.0%"]
    assert [(line.get("x1"), line.get("x2")) for line in svg.iter("line")][1:] == [
        ("10.0%", "50.0%"), ("10.0%", "10.0%"), ("50.0%", "50.0%")
    ]  # fmt: skip
    assert svg.get("aria-label") == "0.400 on a line from 0 to 1, floor 0.100, ceiling 0.500"
    assert list(drawings(str(scale_mark(None, NAN, None)))[0].iter("circle")) == []


def test_a_spread_has_its_value_interval_single_results_and_mark_where_their_numbers_are():
    mark = spread_mark([0.0, 0.1, 0.2], 0.05, 0.02, 0.08, [0.04, 0.06], mark=0.1)
    (svg,) = drawings(str(mark))
    assert [circle.get("cx") for circle in svg.iter("circle")] == ["20.0%", "30.0%", "25.0%"]
    assert [(line.get("class"), line.get("x1"), line.get("x2")) for line in svg.iter("line")][1:] == [
        ("mark", "50.0%", "50.0%"), ("l1", "10.0%", "40.0%")
    ]  # fmt: skip
    assert svg.get("aria-label") == "0.0500, interval 0.0200 to 0.0800, single results 0.0400, 0.0600"
    (alone,) = drawings(str(spread_mark([0.0, 0.2], 0.05)))
    assert (len(list(alone.iter("line"))), alone.get("aria-label")) == (1, "0.0500")
    assert PageReader(str(axis_header([0.0, 0.1, 0.2]))).text == "0 0.1 0.2"


def test_a_strip_has_a_tick_for_each_value_and_names_least_and_median():
    html = str(strip_table({"real": [0.4, 0.2, 0.1, NAN], "none": []}, mark=0.3))
    first, second = drawings(html)
    ticks_drawn = [line.get("x1") for line in first.iter("line") if line.get("class") == "l0"]
    assert ticks_drawn == ["0.0%", "33.33%", "100.0%"]
    assert [line.get("x1") for line in second.iter("line") if line.get("class") == "mark"] == ["66.67%"]
    assert "3 0.100 0.200" in PageReader(html).text


def test_lines_run_through_their_points_and_break_where_there_is_none():
    points = [(0, 0.0), (50, 1.0), (60, None), (70, NAN), (80, 0.5), (100, 0.75)]
    html = str(line_chart({"loss": points, "one": [(20, 0.2)]}, "step", "loss"))
    paths = [path.get("d") for path in drawings(html)[-1].iter("path") if "grid" not in path.get("class")]
    assert paths == ["M0 100 L50 0", "M80 50 L100 25", "M20 80h0"]
    (text,) = [value for value in PageReader(html).values("aria-label") if value]
    assert "loss from 0 at 0 to 0.750 at 100, least 0, most 1.00" in text


def test_a_seventh_line_differs_by_its_dashes():
    html = str(line_chart({f"run {index}": [(0, index), (1, index)] for index in range(7)}, "step", "loss"))
    paths = [path for path in drawings(html)[-1].iter("path") if "grid" not in path.get("class")]
    looks = [(path.get("class"), path.get("stroke-dasharray")) for path in paths]
    assert len(set(looks)) == 7


def test_a_line_chart_without_a_point_is_refused():
    with pytest.raises(ValueError, match="needs at least one finite point; got none in loss"):
        line_chart({"loss": [(0, NAN), (1, None)]}, "step", "loss")


def test_on_a_logarithmic_axis_equal_ratios_are_equal_steps():
    html = str(line_chart({"loss": [(0, 1.0), (50, 0.1), (100, 0.01)]}, "step", "loss", logarithmic=True))
    paths = [path.get("d") for path in drawings(html)[-1].iter("path") if "grid" not in path.get("class")]
    assert paths == ["M0 0 L50 50 L100 100"]
    with pytest.raises(ValueError, match="a logarithmic axis shows values above 0; got 0"):
        line_chart({"loss": [(0, 1.0), (50, 0.0)]}, "step", "loss", logarithmic=True)


@pytest.mark.parametrize(("low", "high"), [(0.013, 0.6), (1, 1), (0.5, 0.5), (1e-6, 3e4), (0.999, 1.001), (7, 9)])
def test_a_logarithmic_axis_covers_its_values_with_few_round_numbers(low, high):
    axis = decade_ticks(low, high)
    assert axis[0] <= low <= high <= axis[-1]
    assert 2 <= len(axis) <= 12
    assert axis == sorted(set(axis))


def test_a_sheet_is_shown_at_its_own_size_at_most_and_scrolled_where_it_is_wide():
    html = str(wide_picture(Image.new("RGB", (1000, 300)), "a sheet", columns=10))
    assert "min-width:45.0rem;max-width:1000px" in html
    assert decoded(html).size == (1000, 300)
    assert max(decoded(str(wide_picture(Image.new("RGB", (9000, 300)), "a sheet", columns=10))).size) == 2000


@pytest.mark.parametrize(("low", "high"), [(0, 1), (0, 1e-7), (-3, 12345), (5, 5), (0, 0), (0.999, 1.001)])
def test_an_axis_covers_its_values_with_few_round_numbers(low, high):
    axis = ticks(low, high)
    assert axis[0] <= low <= high <= axis[-1]
    assert 2 <= len(axis) <= 8
    assert axis == sorted(set(axis))
