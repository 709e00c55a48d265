"""The painter in a real browser: what a reload keeps, zoom, keys, the mask as a file, contrast, what is in reach.

Needs Chromium or Chrome on the PATH, and Playwright; skipped without them.
"""

import itertools
import time
from pathlib import Path

import numpy as np
import pytest
from app.test_app import file_of, photo_of
from helpers.app_place import LABELS, STREET, served, tiny_sampler
from helpers.generation_places import draw_ids
from PIL import Image

from semseg_diffusers.app.inputs import pack_runs
from semseg_diffusers.models.unet_mask_guided import MaskGuidedUNet2DModel


pytestmark = pytest.mark.slow
sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed; the extra `dev` brings it")
from helpers.app_visitor import Visitor  # noqa: E402


CONTRAST = Path(__file__).resolve().parents[1].joinpath("helpers", "contrast.js").read_text(encoding="utf-8")
CAR, PERSON = 2, 3


@pytest.fixture(scope="module")
def sampler():
    return tiny_sampler()


@pytest.fixture(scope="module")
def place(tmp_path_factory, sampler):
    folder = tmp_path_factory.mktemp("app")
    with served(folder, sampler) as address:
        yield address, folder


@pytest.fixture
def visitor(browser, place):
    visitor = Visitor(browser, place[0], 1280, 800)
    yield visitor
    visitor.leave()


def overlap(first: dict, second: dict) -> bool:
    """Whether two boxes of the browser share a point."""
    return all(
        first[at] < second[at] + second[side] and second[at] < first[at] + first[side]
        for at, side in (("x", "width"), ("y", "height"))
    )


def mask_of(visitor) -> list[int]:
    """The runs of the mask on the canvas, which a photo may shine through."""
    return visitor.page.evaluate(
        "() => JSON.parse(sessionStorage[Object.keys(sessionStorage).find((key) => key.startsWith('painter '))]).runs"
    )


def test_a_reload_and_back_keep_mask_photo_samples_and_options(visitor, place):
    page, photo, ids = visitor.page, photo_of(5), draw_ids(6)
    visitor.load("Photo …", "photo.png", file_of(photo))
    visitor.sees("Paint over the photo")
    visitor.load("The photo's mask …", "mask.png", file_of(LABELS.decode(ids)))
    visitor.sees("This is the photo's mask")
    visitor.choose("car" if ids[2, 2] != CAR else "sky")
    visitor.slide(".brush-size", 1)
    visitor.click(2, 2)
    page.get_by_label("Seed", exact=True).fill("77")
    page.keyboard.press("Tab")
    visitor.generate(4)
    painted, samples = mask_of(visitor), visitor.samples()

    def sees_all() -> None:
        page.locator(".painter .palette button").first.wait_for()
        sync_api.expect(page.locator("#samples .grid-container img")).to_have_count(4)
        sync_api.expect(page.get_by_label("Seed", exact=True)).to_have_value("77")
        sync_api.expect(page.get_by_label("edit where the mask changed")).to_be_checked()
        sync_api.expect(page.locator(".painter .photo")).to_be_visible()
        assert all(np.array_equal(*pair) for pair in zip(visitor.samples(), samples, strict=True))

    page.reload()
    sees_all()
    sync_api.expect(page.locator(".painter .brush-value")).to_have_text("1 px")
    page.goto("about:blank")
    page.go_back()
    sees_all()
    visitor.generate(4)  # the same request: mask, photo and options are there
    assert all(np.array_equal(*pair) for pair in zip(visitor.samples(), samples, strict=True))
    page.get_by_role("button", name="Load a mask or a photo").click()
    page.get_by_role("button", name="Remove the photo").click()
    sync_api.expect(page.locator(".painter .photo")).to_be_hidden()
    assert mask_of(visitor) == painted
    page.reload()
    sync_api.expect(page.locator("#samples .grid-container img")).to_have_count(4)
    assert mask_of(visitor) == painted
    sync_api.expect(page.locator(".painter .photo")).to_be_hidden()


def test_another_visitor_starts_afresh_and_gets_nothing_of_the_first(browser, place, visitor):
    visitor.tool("Fill")
    visitor.choose("car")
    visitor.click(8, 0)
    visitor.generate(4)
    other = Visitor(browser, place[0], 1280, 800)
    assert np.array_equal(other.ids(), STREET)
    sync_api.expect(other.page.locator("#samples img")).to_have_count(0)
    other.leave()


def test_a_zoomed_mask_is_painted_under_the_pointer_and_moved_by_the_wheel(visitor):
    page, stage = visitor.page, visitor.page.locator(".painter .stage")
    before = stage.bounding_box()
    visitor.choose("car")
    visitor.slide(".brush-size", 1)
    page.mouse.move(*visitor.point(12, 3))
    page.keyboard.down("Control")
    page.mouse.wheel(0, -600)
    page.keyboard.up("Control")
    sync_api.expect(page.locator(".painter .zoom-value")).to_have_text("800 %")
    assert stage.bounding_box() == before
    sync_api.expect(page.locator(".painter .status")).to_contain_text("x 12, y 3")
    page.mouse.down()
    page.mouse.up()
    expected = STREET.copy()
    expected[3, 12] = CAR
    assert np.array_equal(visitor.ids(), expected)
    left = stage.evaluate("stage => stage.scrollLeft")
    page.mouse.wheel(120, 0)
    page.wait_for_function("left => document.querySelector('.painter .stage').scrollLeft > left", arg=left)
    for _ in range(3):
        page.get_by_role("button", name="Zoom out").click()
    sync_api.expect(page.get_by_role("button", name="Zoom out")).to_be_disabled()
    page.keyboard.press("+")
    sync_api.expect(page.locator(".painter .zoom-value")).to_have_text("200 %")


@pytest.mark.parametrize("tool", ["Brush", "Fill", "Polygon", "Object"])
def test_two_fingers_zoom_and_leave_the_mask_as_it_was(browser, place, tool):
    visitor = Visitor(browser, place[0], 390, 844, touch=True)
    client = visitor.context.new_cdp_session(visitor.page)
    visitor.page.locator(".painter .palette button", has_text="person").tap()
    if tool == "Object":
        visitor.page.locator(".painter .shapes button").first.tap()
    elif tool != "Brush":
        visitor.tool(tool)
    (x, y), (x2, y2) = visitor.point(6, 8), visitor.point(9, 8)

    def touch(kind: str, *points: tuple[float, float]) -> None:
        named = [{"x": x, "y": y, "id": number} for number, (x, y) in enumerate(points)]
        client.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": named})

    touch("touchStart", (x, y))
    touch("touchStart", (x, y), (x2, y2))
    for i in range(1, 6):
        touch("touchMove", (x - 8 * i, y), (x2 + 8 * i, y2))
    touch("touchEnd")
    assert float(visitor.page.locator(".painter .zoom-value").text_content().rstrip(" %")) > 150
    assert np.array_equal(visitor.ids(), STREET)
    assert mask_of(visitor) == pack_runs(STREET)
    sync_api.expect(visitor.page.get_by_role("button", name="Undo")).to_be_disabled()
    if tool == "Polygon":  # no corner is left: two more make no area
        for at in ((2, 2), (12, 2)):
            visitor.page.touchscreen.tap(*visitor.point(*at))
        visitor.page.keyboard.press("Enter")
        assert np.array_equal(visitor.ids(), STREET)
    visitor.leave()


def test_the_painter_works_where_the_browser_keeps_nothing(browser, place):
    visitor = Visitor(browser, place[0], 1280, 800)
    visitor.page.add_init_script(
        "Object.defineProperty(window, 'sessionStorage', { get() { throw new DOMException('no', 'SecurityError'); } })"
    )
    visitor.page.reload()
    visitor.page.locator(".painter .palette button").first.wait_for()
    visitor.tool("Fill")
    visitor.choose("car")
    visitor.click(8, 0)
    visitor.page.get_by_label("Seed", exact=True).fill("77")
    visitor.page.keyboard.press("Tab")
    visitor.generate(4)
    assert len(visitor.samples()) == 4
    assert visitor.ids()[0, 8] == CAR
    visitor.leave()


def test_digits_choose_classes_which_show_their_key(visitor):
    chosen = visitor.page.locator(".painter .palette [aria-checked=true]")
    visitor.page.locator(".painter").focus()
    for key, name in (("2", "car"), ("3", "person"), ("0", "road")):
        visitor.page.keyboard.press(key)
        sync_api.expect(chosen).to_have_text(name)
        assert chosen.get_attribute("data-key") == key
    visitor.page.get_by_label("Seed", exact=True).fill("2")  # typing elsewhere chooses nothing
    sync_api.expect(chosen).to_have_text("road")


def test_the_mask_is_downloaded_as_class_ids_with_the_palette_of_the_label_set(visitor, tmp_path):
    visitor.load("Mask …", "mask.png", file_of(LABELS.decode(draw_ids(9))))
    visitor.page.wait_for_function("() => !document.querySelector('[data-do=undo]').disabled")
    visitor.choose("person")
    visitor.tool("Eraser")
    visitor.click(4, 4)
    with visitor.page.expect_download() as download:
        visitor.page.get_by_role("button", name="Download mask").click()
    assert download.value.suggested_filename == "mask.png"
    download.value.save_as(tmp_path / "mask.png")
    saved = Image.open(tmp_path / "mask.png")
    expected = LABELS.decode(visitor.ids())
    assert (saved.mode, saved.size, saved.getpalette()) == ("P", expected.size, expected.getpalette())
    assert np.array_equal(np.asarray(saved), np.asarray(expected))


def test_a_button_chooses_another_seed(visitor):
    seed = visitor.page.get_by_label("Seed", exact=True)
    seen = {seed.input_value()}
    for _ in range(3):
        visitor.page.get_by_role("button", name="Random seed").click()
        sync_api.expect(seed).not_to_have_value(max(seen))
        seen.add(seed.input_value())
    assert len(seen) > 2


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
def test_all_text_has_a_contrast_of_at_least_aa(browser, place, scheme, width):
    visitor = Visitor(browser, f"{place[0]}?__theme={scheme}", width, 844)
    visitor.page.get_by_role("button", name="Steps, guidance, scheduler").click()
    visitor.page.get_by_role("button", name="Load a mask or a photo").click()
    visitor.generate(4)
    visitor.page.wait_for_timeout(500)  # colours change slowly
    found = visitor.page.evaluate(CONTRAST)
    assert len(found) > 50
    assert [text for text in found if text[0] < text[1]] == []
    visitor.address = place[0]
    visitor.leave()


def test_on_a_phone_generate_is_always_in_reach_and_covers_nothing(browser, place):
    visitor = Visitor(browser, place[0], 390, 844, touch=True)
    button = visitor.page.get_by_role("button", name="Generate", exact=True)
    for part in (0, 0.3, 0.6, 1):
        visitor.page.evaluate("part => scrollTo(0, part * document.body.scrollHeight)", part)
        sync_api.expect(button).to_be_in_viewport(ratio=1)
    footer = visitor.page.locator("footer").bounding_box()  # at the end of the page nothing is under the buttons
    assert not overlap(footer, visitor.page.locator("#actions").bounding_box())
    visitor.leave()


# The boxes of the bar, of the samples done and of the seconds, and the one around them, once all are shown.
PROGRESS = """() => {
    const parts = ['.progress-bar-wrap', '.progress-level-inner', '.progress-text', '*'];
    const boxes = parts.map((part) => document.querySelector(`#message ${part}`)?.getBoundingClientRect());
    return boxes.every((box) => box?.width && box.height) && boxes.map((box) => box.toJSON());
}"""


@pytest.mark.parametrize("width", [1280, 390])
def test_the_text_of_the_progress_is_beside_its_bar(browser, place, width, monkeypatch):
    forward = MaskGuidedUNet2DModel.forward

    def slow_forward(*args, **kwargs):  # a fast machine would be done before the page shows anything
        time.sleep(0.02)
        return forward(*args, **kwargs)

    monkeypatch.setattr(MaskGuidedUNet2DModel, "forward", slow_forward)
    visitor = Visitor(browser, place[0], width, 844)
    visitor.page.get_by_role("button", name="Steps, guidance, scheduler").click()
    visitor.page.get_by_label("number input for Steps").fill("50")
    visitor.page.keyboard.press("Tab")
    visitor.page.get_by_role("button", name="Generate", exact=True).click()
    *shown, around = visitor.page.wait_for_function(PROGRESS, polling=10).json_value()
    for first, second in itertools.combinations(shown, 2):
        assert not overlap(first, second)
    heights = sorted((box["y"], box["y"] + box["height"]) for box in shown)
    assert all(below[0] - above[1] < 16 for above, below in itertools.pairwise(heights)), "far from the bar"
    assert all(around["x"] <= box["x"] and box["right"] <= around["right"] for box in shown)
    assert around["y"] <= heights[0][0]
    assert heights[-1][1] <= around["bottom"]
    visitor.sees("4 generated.")
    visitor.leave()


@pytest.mark.parametrize("width", [1280, 390])
def test_a_refusal_covers_neither_tools_nor_buttons(browser, place, width):
    visitor = Visitor(browser, place[0], width, 844)
    visitor.load("Mask …", "mask.png", file_of(photo_of(1)))
    toast = visitor.page.locator(".toast-body", has_text="colours that no class has")
    toast.wait_for()
    visitor.page.evaluate("scrollTo(0, 0)")
    visitor.page.wait_for_timeout(1000)  # it slides in
    boxes = [visitor.page.locator(each).first.bounding_box() for each in (".painter .bar", "#generate", "#cancel")]
    assert not any(overlap(toast.bounding_box(), box) for box in boxes)
    toast.locator(".toast-close").click()
    visitor.leave()


def test_on_a_phone_the_canvas_is_below_a_line_of_title_and_two_rows_of_tools(browser, place):
    visitor = Visitor(browser, place[0], 390, 844, touch=True)
    title, bar, stage = (visitor.page.locator(each).first.bounding_box() for each in ("h2", ".painter .bar", ".stage"))
    assert title["height"] < 40
    buttons = visitor.page.locator(".painter .bar").first.get_by_role("button").all()
    assert len({round(button.bounding_box()["y"]) for button in buttons}) == 2
    assert bar["height"] < 80
    assert stage["y"] < 200
    for button in buttons:  # those that do not fit are reached by moving their row
        button.scroll_into_view_if_needed()
        sync_api.expect(button).to_be_in_viewport(ratio=1)
    assert visitor.page.evaluate("document.documentElement.scrollWidth") == 390
    visitor.leave()


@pytest.mark.parametrize("width", [1280, 390])
def test_the_button_for_another_seed_is_in_the_box_of_its_field(browser, place, width):
    visitor = Visitor(browser, place[0], width, 844)
    button = visitor.page.get_by_role("button", name="Random seed").element_handle()
    # both at once: the page moves them while it loads
    boxes = "(field, button) => [field, button].map(each => each.getBoundingClientRect().toJSON())"
    field, box = visitor.page.get_by_label("Seed", exact=True).evaluate(boxes, button)
    assert box["y"] == pytest.approx(field["y"], abs=2)
    assert box["height"] == pytest.approx(field["height"], abs=2)
    assert 0 < box["x"] - field["x"] - field["width"] < 24
    visitor.leave()


def test_sizes_are_height_by_width_everywhere(visitor):
    status = visitor.page.locator(".painter .status")
    sync_api.expect(status).to_have_text("16 × 16 pixels (height × width)")
    sync_api.expect(visitor.page.locator("body")).to_contain_text("tiny · 16 × 16 pixels (height × width)")
    visitor.page.get_by_role("button", name="Clear").click()
    visitor.page.mouse.move(1, 1)
    sync_api.expect(status).to_contain_text("nothing is painted yet: choose a class, and paint or fill")


def test_a_wide_mask_uses_the_column_and_its_classes_stand_below(browser, tmp_path):
    sampler = tiny_sampler()
    sampler.size = (96, 320)
    street = np.full(sampler.size, PERSON, dtype=np.uint8)
    with served(tmp_path, sampler, street) as address:
        visitor = Visitor(browser, address, 1280, 800)
        column = visitor.page.locator("#painting").bounding_box()
        stage = visitor.page.locator(".painter .stage").bounding_box()
        palette = visitor.page.locator(".painter .palette").bounding_box()
        assert stage["width"] > 0.9 * column["width"]
        assert stage["width"] / stage["height"] == pytest.approx(320 / 96, rel=0.02)
        assert palette["y"] >= stage["y"] + stage["height"]
        visitor.page.screenshot(path=tmp_path / "wide.png")
        visitor.leave()


@pytest.mark.parametrize("live", [False, True])
def test_a_screen_of_1280_by_800_shows_the_whole_page_without_scrolling(browser, place, live):
    visitor = Visitor(browser, place[0], 1280, 800)
    visitor.page.locator(".live-box").set_checked(live)
    visitor.generate(4)
    visitor.page.locator("#keep").wait_for()
    sync_api.expect(visitor.page.locator("#samples .grid-container img")).to_have_count(4)
    assert visitor.page.evaluate("document.documentElement.scrollHeight") == 800
    objects, height = visitor.page.locator(".objects summary"), visitor.page.locator(".objects .size")
    text = objects.evaluate(
        "element => { const range = document.createRange(); range.selectNodeContents(element);"
        " return range.getBoundingClientRect().right; }"
    )
    assert text < height.bounding_box()["x"]
    visitor.leave()
