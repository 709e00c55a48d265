"""Statistics of masks against a flood fill and counts by hand, the rules, the command."""

import dataclasses
import json

import numpy as np
import pytest
from helpers.page_reading import assert_self_contained
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image

from semseg_diffusers import LabelSet, cli
from semseg_diffusers.data.dataset import load_pairs
from semseg_diffusers.masks.components import find_objects
from semseg_diffusers.masks.statistics.counts import (
    RULES,
    class_figures,
    class_pixels_of_each,
    collect_statistics,
    count_pixels,
    heat_grid,
    heat_maps,
    underrepresented_classes,
    unknown_share,
)
from semseg_diffusers.masks.statistics.stats import (
    log_position,
    plot_statistics,
    say_few_once,
    write_statistics_page,
)


THREE = LabelSet(("road", "pole", "train"), ((1, 1, 1), (2, 2, 2), (3, 3, 3)))


def flood_fill(ids: np.ndarray, ignore_index: int = 255) -> tuple[np.ndarray, list[int], list[int]]:
    """Objects the plain way: numbers of the pixels, classes, sizes."""
    numbers, classes, sizes = np.zeros(ids.shape, int), [], []
    for start in np.ndindex(ids.shape):
        if numbers[start] or ids[start] == ignore_index:
            continue
        classes.append(int(ids[start]))
        sizes.append(0)
        numbers[start] = len(classes)
        open_ends = [start]
        while open_ends:
            y, x = open_ends.pop()
            sizes[-1] += 1
            for near in np.ndindex(3, 3):
                other = (y + near[0] - 1, x + near[1] - 1)
                inside = 0 <= other[0] < ids.shape[0] and 0 <= other[1] < ids.shape[1]
                if inside and not numbers[other] and ids[other] == ids[start]:
                    numbers[other] = len(classes)
                    open_ends.append(other)
    return numbers, classes, sizes


def collect(masks, labels=THREE, **options):
    masks = [np.array(mask, dtype=np.uint8) for mask in masks]
    return collect_statistics(masks.__getitem__, len(masks), labels, **options)


# Objects


@settings(max_examples=150, deadline=None)
@given(arrays(np.uint8, st.tuples(st.integers(1, 9), st.integers(1, 9)), elements=st.sampled_from([0, 1, 255])))
def test_objects_are_those_of_a_flood_fill(ids):
    numbers, classes, sizes = flood_fill(ids)
    found = find_objects(ids)
    assert np.array_equal(found.numbers, numbers)
    assert (found.classes.tolist(), found.sizes.tolist()) == (classes, sizes)


def test_a_spiral_is_one_object():
    ids = np.zeros((41, 41), dtype=np.uint8)
    y, x, step = 20, 20, 2
    for turn in range(18):  # arms two pixels apart: rows join late and from all sides
        dy, dx = ((0, 1), (1, 0), (0, -1), (-1, 0))[turn % 4]
        for _ in range(step):
            ids[y, x] = 1
            y, x = y + dy, x + dx
        step += 2 * (turn % 2)
    found = find_objects(ids)
    assert np.array_equal(found.numbers, flood_fill(ids)[0])
    assert (found.classes == 1).sum() == 1


def test_ends_of_rows_do_not_touch_the_next_row():
    assert find_objects(np.array([[0, 0, 1], [0, 0, 0], [1, 0, 0]])).classes.tolist() == [0, 1, 1]


# Figures

MASKS = [[[0, 0, 0, 1], [0, 0, 0, 1]], [[0, 0, 0, 0], [1, 255, 1, 0]]]


def test_statistics_match_a_count_by_hand():
    statistics = collect(MASKS)
    road, pole, train = class_figures(statistics)
    assert (road.pixels, road.pixel_share, road.images, road.image_share) == (11, 11 / 15, 2, 1)
    assert (pole.pixels, pole.objects, pole.objects_per_image, pole.median_object) == (4, 3, 1.5, 1)
    assert (pole.typical_object, pole.typical_object_share, pole.edge_share) == (1, 1 / 8, 1)
    assert (train.pixels, train.images, train.objects, train.median_object, train.spread) == (0, 0, 0, 0, 0)
    assert unknown_share(statistics) == 1 / 16
    assert statistics.frames == {(2, 4): 2}


def test_typical_object_is_robust_to_specks():
    ids = np.zeros((20, 20), dtype=np.uint8)
    ids[5:15, 5:15] = 1
    ids[0, ::2] = 1
    pole = class_figures(collect([ids]))[1]
    assert (pole.objects, pole.median_object, pole.typical_object) == (11, 1, 100)


def test_heat_map_is_the_chance_of_a_class_among_labelled_pixels():
    heat = heat_maps(collect(MASKS))
    assert heat.shape == (3, 2, 4)
    assert heat[1].tolist() == [[0, 0, 0, 0.5], [0.5, 0, 0.5, 0.5]]
    assert heat.sum(axis=0).tolist() == [[1, 1, 1, 1], [1, 1, 1, 1]]


def test_masks_of_other_sizes_share_one_heat_map():
    small, large = np.zeros((4, 8)), np.zeros((40, 80))
    small[:2], large[:20] = 1, 1
    statistics = collect([small, large])
    assert heat_maps(statistics)[1][:, 0].tolist() == [1, 1, 0, 0]
    assert statistics.frames == {(4, 8): 1, (40, 80): 1}


def test_spread_is_the_share_of_the_frame_for_an_even_class():
    ids = np.zeros((32, 32), dtype=np.uint8)
    ids[:8] = 1
    assert class_figures(collect([ids]))[1].spread == pytest.approx(0.25)


@pytest.mark.parametrize("size", [(128, 128), (720, 1280), (8, 8192), (16, 32)])
def test_heat_grid_never_has_more_cells_than_pixels(size):
    grid = heat_grid(*size)
    assert max(grid) <= 32
    assert all(1 <= cells <= side for cells, side in zip(grid, size, strict=True))
    assert (heat_grid(720, 1280), heat_grid(16, 32)) == ((18, 32), (16, 32))


def test_group_statistics_are_those_of_its_masks():
    weather = ["rainy", "clear", None, "clear"]
    masks = [MASKS[0], MASKS[1], MASKS[0], MASKS[1]]
    statistics = collect(masks, attributes={"weather": weather, "camera": ["a"] * 4, "file": list("1234")})
    assert statistics.groups == [("weather", "clear"), ("weather", "not given"), ("weather", "rainy")]
    alone = collect([MASKS[1], MASKS[1]])
    assert class_figures(statistics, ("weather", "clear")) == class_figures(alone)
    assert np.array_equal(heat_maps(statistics, ("weather", "clear")), heat_maps(alone))
    assert unknown_share(statistics, ("weather", "clear")) == 1 / 8


@settings(max_examples=30, deadline=None)
@given(arrays(np.uint8, (5, 6, 7), elements=st.sampled_from([0, 1, 2, 255])), st.sampled_from([1, 3]))
def test_counts_add_up_whatever_the_threads(masks, num_workers):
    statistics = collect(masks, num_workers=num_workers)
    assert (statistics.pixels.sum(axis=1) == 42).all()
    assert np.array_equal(statistics.cells[None].sum(axis=(1, 2)), statistics.pixels.sum(axis=0))
    for index in range(3):
        own = statistics.object_sizes[statistics.object_classes == index]
        assert own.sum() == statistics.pixels[:, index].sum()
    assert np.array_equal(class_pixels_of_each(masks.__getitem__, 5, 3, num_workers), statistics.pixels)


def test_no_masks_are_refused():
    with pytest.raises(ValueError, match="expected at least one mask; got none"):
        collect([])


# Rules


def test_each_rule_finds_the_class_made_for_it():
    names = ("background", "never", "rare", "few", "thin", "corner", "sunny")
    labels = LabelSet(names, tuple((i, i, i) for i in range(1, 8)))
    masks = np.zeros((120, 120, 120), dtype=np.uint8)
    masks[:, 0, 0] = 2  # one pixel everywhere
    masks[:50, 4:44, :] = 3  # large, but in 50 images
    masks[:80, 48:80, :56] = 6
    masks[:, :, 5::10] = 4  # lines from top to bottom
    masks[:, 90:, 90:] = 5
    weather = ["clear"] * 80 + ["foggy"] * 40
    found = {
        weak.name: weak for weak in underrepresented_classes(collect(masks, labels, attributes={"weather": weather}))
    }
    rules = {name: {reason.rule for reason in weak.reasons} for name, weak in found.items()}
    assert rules == {
        "never": {"never seen"},
        "rare": {"rare", "small", "thin", "one place"},
        "few": {"few images", "one-sided"},
        "thin": {"thin"},
        "corner": {"one place"},
        "sunny": {"few images", "one-sided"},
    }
    assert found["sunny"].reasons[-1].text == "in 0 of 40 images with weather foggy; expected 27"
    assert set().union(*rules.values()) == set(RULES)


def test_a_balanced_dataset_has_no_underrepresented_class():
    masks = np.zeros((100, 32, 32), dtype=np.uint8)
    masks[:, 8:24], masks[:, 24:] = 1, 2
    assert underrepresented_classes(collect(masks)) == []


def test_few_masks_are_said_once_and_not_for_each_class():
    masks = np.zeros((10, 32, 32), dtype=np.uint8)
    masks[:, 8:24], masks[:, 24:] = 1, 2
    masks[:, 0, 0] = 2
    rare = LabelSet(("a", "b", "c", "d"), tuple((i, i, i) for i in range(1, 5)))
    found = underrepresented_classes(collect(masks, rare))
    assert len(found) == 4
    kept, sentence = say_few_once(found, 10)
    assert [(entry.name, [reason.rule for reason in entry.reasons]) for entry in kept] == [("d", ["never seen"])]
    assert sentence.startswith("10 masks: with fewer than 100, every class is in few images.")
    assert say_few_once(found, 100) == (found, None)


# The command


@pytest.fixture(scope="module")
def written(toy, tmp_path_factory):
    output = tmp_path_factory.mktemp("stats") / "new" / "folder"
    assert cli.main(["stats", "--dataset", str(toy), "--output", str(output), "--num_workers", "2"]) == 0
    return output


def test_json_matches_the_library(toy, written):
    pairs = load_pairs(toy)
    record = json.loads((written / "stats.json").read_text())
    statistics = collect_statistics(pairs.mask, len(pairs), pairs.labels, pairs.attributes)
    expected = [{"id": i, **dataclasses.asdict(row)} for i, row in enumerate(class_figures(statistics))]
    assert record["classes"] == expected
    assert record["sizes"] == [{"height": 16, "width": 32, "masks": 6}]
    assert sum(group["num_masks"] for group in record["groups"] if group["attribute"] == "weather") == 6
    assert record["weak_classes"][0]["reasons"][0]["rule"] in record["rules"]


def test_arrays_are_the_heat_maps_and_the_pixels_of_each_mask(toy, written):
    pairs = load_pairs(toy)
    arrays = np.load(written / "stats.npz")
    assert arrays["stems"].tolist() == pairs.stems
    assert np.array_equal(arrays["pixels"][3], count_pixels(pairs.mask(3), 19))
    assert arrays["heat"].shape == (19, 16, 32)
    groups = json.loads((written / "stats.json").read_text())["groups"]
    names = {f"heat:{group['attribute']}={group['value']}" for group in groups}
    assert set(arrays.files) == {"stems", "pixels", "heat", *names}


def test_the_table_holds_the_figures_of_the_classes(written):
    lines = (written / "stats.csv").read_text().splitlines()
    classes = json.loads((written / "stats.json").read_text())["classes"]
    assert lines[0].split(",") == [name for name in classes[0] if name != "id"]
    assert [line.split(",")[0] for line in lines[1:]] == [row["name"] for row in classes]
    assert [int(line.split(",")[1]) for line in lines[1:]] == [row["pixels"] for row in classes]


def test_the_folder_contains_only_the_five_files(written):
    expected = ["index.html", "stats.csv", "stats.json", "stats.npz", "stats.png"]
    assert sorted(path.name for path in written.iterdir()) == expected
    with Image.open(written / "stats.png") as image:
        assert image.width > 1000


def test_split_and_underrepresented_classes_are_printed(toy, tmp_path, capsys):
    assert cli.main(["stats", "--dataset", str(toy), "--split", "val", "--output", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    assert "toy (val): 2 masks of 16 x 32, 0.0% unknown" in printed
    assert "underrepresented: train (never seen: no pixel in any mask)" in printed


def test_bad_input_is_refused(toy, tmp_path, capsys):
    assert cli.main(["stats", "--dataset", str(toy), "--output", str(tmp_path), "--num_workers", "0"]) == 2
    assert cli.main(["stats", "--dataset", str(toy), "--output", str(tmp_path), "--split", "dusk"]) == 2
    errors = capsys.readouterr().err
    assert "--num_workers must be 1 or more; got 0" in errors
    assert "has no split 'dusk'" in errors


def test_figure_is_plotted_for_any_classes():
    labels = LabelSet(("a name that is far too long for the column of names", "b"), ((250, 250, 250), (9, 9, 9)))
    image = plot_statistics(collect([np.full((9, 31), 255)], labels), "nothing known")
    assert image.getpixel((2, 2)) == (255, 255, 255)
    assert image.height > 250


def test_figure_has_bars_in_the_colors_of_the_classes_as_long_as_their_shares():
    masks = np.zeros((4, 20, 20), dtype=np.uint8)
    masks[:, 18:] = 1  # a tenth of the pixels
    labels = LabelSet(("a", "b"), ((250, 0, 10), (10, 0, 250)))
    image = np.asarray(plot_statistics(collect(masks, labels), "two classes"))
    lengths = []
    for color in labels.colors:
        rows = (image == color).all(-1)
        columns = np.flatnonzero(rows[rows.sum(1).argmax()])
        bars = np.split(columns, np.flatnonzero(np.diff(columns) > 20) + 1)  # shares of pixels, of images
        lengths.append([bar[-1] - bar[0] for bar in bars])
    (pixels_a, images_a), (pixels_b, images_b) = lengths
    assert pixels_b / pixels_a == pytest.approx(log_position(0.1) / log_position(0.9), rel=0.02)
    assert images_a == images_b


def test_the_same_statistics_give_the_same_figure():
    images = [plot_statistics(collect(MASKS), "twice").tobytes() for _ in range(2)]
    assert images[0] == images[1]


def test_page_lists_underrepresented_classes_with_reasons_rules_and_conditions(written):
    html = (written / "index.html").read_text()
    record = json.loads((written / "stats.json").read_text())
    for entry in record["weak_classes"]:
        own = [reason for reason in entry["reasons"] if reason["rule"] != "few images"]  # of all, where masks are few
        assert all(f"<b>{reason['rule']}</b>: {reason['text']}" in html for reason in own)
    assert "every class is in few images" in html
    assert all(f"<b>{rule}</b>" in html for rule in record["rules"])
    assert "clear: " in html
    assert_self_contained(html)
    samples = 2 * min(6, record["num_masks"])  # images and masks
    assert html.count("<img") == sum(row["pixels"] > 0 for row in record["classes"]) + samples
    assert html.count('alt="image: ') == html.count('alt="mask: ') == samples // 2
    assert "://" not in html  # nothing is loaded from anywhere


def test_page_escapes_names_and_works_without_findings(tmp_path):
    labels = LabelSet(("<b>", "pole", "train"), THREE.colors)
    masks = np.zeros((100, 32, 32), dtype=np.uint8)
    masks[:, 8:24], masks[:, 24:] = 1, 2
    write_statistics_page(tmp_path / "page.html", collect(masks, labels), [], "a & b")
    html = (tmp_path / "page.html").read_text()
    assert_self_contained(html)
    assert "&lt;b&gt;" in html
    assert "a &amp; b" in html
    assert "No class matches a rule." in html
    assert "By condition" not in html
