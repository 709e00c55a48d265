"""The painter in a real browser, with a model that reads texts: about the street, classes and things.

Needs Chromium or Chrome on the PATH, and Playwright; skipped without them.
"""

import numpy as np
import pytest
from helpers.app_place import LABELS, LIMITS, served, tiny_sampler
from helpers.generation_places import tiny_pipeline
from helpers.text_encoders import tiny_text_encoder

from semseg_diffusers.app.sampler import Sampler, SamplingRequest
from semseg_diffusers.generation.output_folder import read_metadata


pytestmark = pytest.mark.slow
sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed; the extra `dev` brings it")
from helpers.app_visitor import Visitor  # noqa: E402


ROAD, SKY, CAR = range(3)
STREET = np.full((16, 16), ROAD, dtype=np.uint8)
STREET[:6] = SKY
STREET[8:11, 1:5] = STREET[8:11, 9:13] = CAR


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("app")
    sampler = Sampler(tiny_pipeline(encoder=tiny_text_encoder(tmp_path_factory.mktemp("vocabulary"))), LIMITS)
    with served(folder, sampler, STREET) as address:
        yield address, folder, sampler


@pytest.fixture
def visitor(browser, place):
    visitor = Visitor(browser, place[0], 1280, 800)
    yield visitor
    visitor.leave()


def write(visitor: Visitor, name: str, text: str) -> None:
    field = visitor.page.get_by_role("textbox", name=name, exact=True)
    field.fill(text)
    field.press("Enter")


def test_texts_about_street_class_and_thing_reach_the_image_and_its_row(visitor, place):
    page = visitor.page
    write(visitor, "Prompt", "a rainy evening")
    write(visitor, "Not (negative prompt)", "a blue house")
    visitor.choose("sky")
    write(visitor, "Class sky", "the night")
    visitor.tool("Describe")
    visitor.click(10, 9)
    sync_api.expect(page.get_by_role("textbox", name="This car", exact=True)).to_be_focused()
    page.keyboard.type("a red car")  # letters are no shortcuts here
    visitor.click(2, 9)
    sync_api.expect(page.get_by_role("textbox", name="This car", exact=True)).to_have_value("")
    visitor.click(12, 10)  # another pixel of the first one
    sync_api.expect(page.get_by_role("textbox", name="This car", exact=True)).to_have_value("a red car")
    sync_api.expect(page.locator(".painter .status")).to_have_text("car · x 12, y 10 · “a red car”")
    visitor.generate(4)
    request = SamplingRequest(
        num_images=4,
        prompt="a rainy evening",
        negative_prompt="a blue house",
        class_prompts={"sky": "the night"},
        thing_prompts={(10, 9): "a red car"},
    )
    samples = visitor.samples()
    for shown, sample in zip(samples, place[2].generate(STREET, request), strict=True):
        assert np.array_equal(shown, np.asarray(sample.image))
    page.reload()
    page.locator(".painter .palette button").first.wait_for()
    sync_api.expect(page.get_by_role("textbox", name="Prompt", exact=True)).to_have_value("a rainy evening")
    sync_api.expect(page.get_by_role("textbox", name="Not (negative prompt)")).to_have_value("a blue house")
    sync_api.expect(page.locator("#samples .grid-container img")).to_have_count(4)
    page.get_by_role("button", name="Add to the dataset").click()
    visitor.sees("4 added")
    rows = read_metadata(place[1] / "painted")
    assert {row["prompt"] for row in rows} == {"a rainy evening"}
    assert {row["negative_prompt"] for row in rows} == {"a blue house"}
    assert rows[0]["region_prompts"] == [
        {"class": "sky", "thing": -1, "text": "the night"},
        {"class": "car", "thing": 1, "text": "a red car"},
    ]


def test_a_text_stays_with_its_thing_while_the_mask_changes(visitor, place):
    page = visitor.page
    visitor.tool("Describe")
    visitor.click(10, 9)
    write(visitor, "This car", "a red car")
    visitor.choose("car")
    visitor.tool("Box")
    visitor.drag((6, 12), (7, 14))  # a car between the two: the described one is the third now
    ids = STREET.copy()
    ids[12:15, 6:8] = CAR
    assert np.array_equal(visitor.ids(), ids)
    visitor.generate(4)
    request = SamplingRequest(num_images=4, thing_prompts={(10, 9): "a red car"})
    expected = [sample.image for sample in place[2].generate(ids, request)]
    assert all(np.array_equal(*pair) for pair in zip(visitor.samples(), map(np.asarray, expected), strict=True))
    visitor.choose("road")
    visitor.drag((9, 8), (12, 10))
    visitor.generate(4)  # without the car, without its text
    expected = [sample.image for sample in place[2].generate(visitor.ids(), SamplingRequest(num_images=4))]
    assert all(np.array_equal(*pair) for pair in zip(visitor.samples(), map(np.asarray, expected), strict=True))
    page.get_by_role("button", name="Undo").click()
    visitor.tool("Describe")
    visitor.click(10, 9)
    sync_api.expect(page.get_by_role("textbox", name="This car", exact=True)).to_have_value("a red car")


def test_a_text_that_is_too_long_is_refused_in_one_line_and_shown_beside_the_live_photo(visitor):
    write(visitor, "Prompt", "a red car at night " * 4)
    visitor.page.get_by_role("button", name="Generate").click()
    visitor.refused("has 22 tokens; this text encoder reads at most 12: shorten it.")
    visitor.page.get_by_role("checkbox", name="Draw while I paint").check()
    sync_api.expect(visitor.page.locator(".painter .live-status")).to_contain_text("reads at most 12: shorten it.")
    write(visitor, "Prompt", "the night")  # a changed text is drawn at once
    sync_api.expect(visitor.page.locator(".painter .live-status")).to_contain_text("steps, seed 0")


def test_lines_canvas_and_generate_are_seen_together_without_scrolling(visitor):
    page = visitor.page
    assert page.evaluate("document.documentElement.scrollWidth") <= 1280
    page.evaluate("window.scrollTo(0, 0)")
    names = ("Prompt", "Not (negative prompt)", "Class road")
    fields = [page.get_by_role("textbox", name=name, exact=True) for name in names]
    for part in (*fields, page.locator(".painter .stage"), page.get_by_role("button", name="Generate")):
        box = part.bounding_box()
        assert box["y"] >= 0
        assert box["y"] + box["height"] <= 800
    assert len({field.bounding_box()["y"] for field in fields}) == 1


def test_on_a_phone_all_tools_are_in_reach_and_nothing_is_wider_than_the_screen(browser, place):
    visitor = Visitor(browser, place[0], 390, 844, touch=True)
    assert visitor.page.evaluate("document.documentElement.scrollWidth") <= 390
    visitor.page.get_by_role("button", name="Describe", exact=True).tap()
    visitor.page.touchscreen.tap(*visitor.point(10, 9))
    sync_api.expect(visitor.page.get_by_role("textbox", name="This car", exact=True)).to_be_focused()
    visitor.leave()


def test_a_model_that_reads_no_texts_has_no_lines_for_them(browser, tmp_path):
    with served(tmp_path, tiny_sampler()) as address:
        visitor = Visitor(browser, address, 1280, 800)
        sync_api.expect(visitor.page.locator(".painter .texts")).to_be_hidden()
        sync_api.expect(visitor.page.locator("[data-tool=describe]")).to_be_hidden()
        visitor.page.keyboard.press("d")
        sync_api.expect(visitor.page.get_by_role("button", name="Brush", exact=True)).to_have_attribute(
            "aria-pressed", "true"
        )
        visitor.leave()


def test_names_of_classes_reach_the_labels(visitor):
    for name in LABELS.names:
        visitor.choose(name)
        sync_api.expect(visitor.page.get_by_role("textbox", name=f"Class {name}", exact=True)).to_be_enabled()
    visitor.choose("unknown")
    sync_api.expect(visitor.page.get_by_role("textbox", name="Class unknown", exact=True)).to_be_disabled()
