"""The painter in a real browser draws while one paints: the newest stroke wins, for each visitor.

Needs Chromium or Chrome on the PATH, and Playwright; skipped without them.
"""

import contextlib
import time
from collections.abc import Iterator

import numpy as np
import pytest
from app.test_app import file_of, photo_of
from helpers.app_place import LABELS, STREET, few_step_sampler, served, tiny_sampler
from helpers.generation_places import draw_ids

from semseg_diffusers.app.sampler import EDIT, REDRAW, Photo, SamplingRequest


pytestmark = pytest.mark.slow
sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed; the extra `dev` brings it")
from helpers.app_visitor import PATIENCE, Visitor  # noqa: E402


STEPS = 4
STROKES = [((2, 2 + i), (13, 2 + i)) for i in range(10)]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("app")
    sampler = few_step_sampler()
    with served(folder, sampler) as address:
        yield address, sampler


@pytest.fixture
def visitor(browser, place):
    visitor = Visitor(browser, place[0], 1200, 900)
    yield visitor
    visitor.leave()


def expected(sampler, ids, seed: int = 0, photo: Photo | None = None, **options) -> np.ndarray:
    """The first sample of a request at the seed of the page."""
    recommended = {"num_inference_steps": STEPS, "guidance_scale": 1.0, "num_images": 1}
    (sample,) = sampler.generate(ids, SamplingRequest(seed=seed, **recommended, **options), photo)
    return np.asarray(sample.image)


def requests(visitor: Visitor) -> list[str]:
    """What the page has asked the handlers for."""
    return [url for url in visitor.asked if "queue/join" in url or "/run/" in url]


@contextlib.contextmanager
def slowed(pipeline, seconds: float) -> Iterator[list]:
    """Let each step take so long, as a network of real size does; the list gets an entry for each."""
    steps: list[float] = []

    def wait(*_) -> None:
        steps.append(time.monotonic())
        time.sleep(seconds)

    hook = pipeline.unet.register_forward_pre_hook(wait)
    try:
        yield steps
    finally:
        hook.remove()


def test_each_stroke_updates_the_photo_and_the_seed_stays(visitor, place):
    assert np.array_equal(visitor.photo(), expected(place[1], STREET))
    for i, stroke in enumerate(STROKES):
        visitor.choose(("car", "person")[i % 2])
        visitor.drag(*stroke)
        assert np.array_equal(visitor.photo(), expected(place[1], visitor.ids()))
    status = visitor.page.locator(".painter .live-status")
    sync_api.expect(status).to_have_text("tiny: 4 steps, seed 0")
    sync_api.expect(visitor.page.locator("body")).to_contain_text("tiny · 16 × 16 pixels (height × width) · 4 steps")
    visitor.generate(4)
    assert np.array_equal(visitor.samples()[0], visitor.photo())


def test_strokes_during_sampling_replace_each_other_and_the_last_photo_is_of_the_last_stroke(visitor, place):
    visitor.photo()
    with slowed(place[1].pipeline, 1.0) as steps:
        for stroke in STROKES:
            visitor.drag(*stroke, steps=1)
        final = visitor.photo()
        assert len(steps) < STEPS * len(STROKES)
        counted = len(steps)
        visitor.page.wait_for_timeout(3000)
        assert len(steps) == counted  # nothing was queued
    assert np.array_equal(final, expected(place[1], visitor.ids()))
    assert np.array_equal(visitor.photo(), final)


def test_a_long_stroke_updates_the_photo_before_it_ends(visitor):
    before = visitor.photo()
    visitor.choose("car")
    visitor.page.mouse.move(*visitor.point(2, 2))
    visitor.page.mouse.down()
    for i in range(1, 120):
        visitor.page.mouse.move(*visitor.point(2 + i % 12, 2 + i // 12))
        visitor.page.wait_for_timeout(20)
        url = visitor.page.locator(".painter .live-photo").get_attribute("src")
        if i == 1:
            first = url
        if url != first:
            break
    assert url != first
    visitor.page.mouse.up()
    assert not np.array_equal(visitor.photo(), before)


def test_two_visitors_get_photos_of_their_own_masks_and_none_waits_for_all_strokes_of_the_other(
    browser, place, visitor
):
    other = Visitor(browser, place[0], 1200, 900)
    visitor.photo(), other.photo()
    with slowed(place[1].pipeline, 0.1):
        for i, stroke in enumerate(STROKES):
            visitor.drag(*stroke, steps=1)
            if i == 3:
                other.tool("Fill")
                other.choose("person")
                other.click(8, 0)
            if i > 3 and other.page.locator(".painter .live").get_attribute("aria-busy") == "false":
                break
        else:
            pytest.fail("the other waited for all strokes")
        photos = visitor.photo(), other.photo()
    for each, photo in zip((visitor, other), photos, strict=True):
        assert np.array_equal(photo, expected(place[1], each.ids()))
    assert not np.array_equal(*photos)
    other.leave()


def test_undo_clear_examples_and_loaded_masks_count_as_strokes(visitor, place):
    visitor.photo()
    visitor.tool("Fill")
    visitor.choose("car")
    visitor.click(8, 0)
    painted = visitor.photo()
    visitor.page.keyboard.press("Control+z")
    assert np.array_equal(visitor.photo(), expected(place[1], STREET))
    visitor.page.keyboard.press("Control+y")
    assert np.array_equal(visitor.photo(), painted)
    visitor.page.get_by_role("button", name="Clear").click()
    assert np.array_equal(visitor.photo(), expected(place[1], np.full_like(STREET, 255)))
    visitor.page.get_by_role("button", name="plain street").click()
    assert np.array_equal(visitor.photo(), expected(place[1], STREET))
    before = visitor.page.locator(".painter .live-photo").get_attribute("src")
    visitor.load("Mask …", "mask.png", file_of(LABELS.decode(draw_ids(9))))
    sync_api.expect(visitor.page.locator(".painter .live-photo")).not_to_have_attribute("src", before)
    assert np.array_equal(visitor.photo(), expected(place[1], draw_ids(9)))


def test_another_photo_and_the_seed_field_change_the_seed_which_then_stays(visitor, place):
    first, status = visitor.photo(), visitor.page.locator(".painter .live-status")
    visitor.page.get_by_role("button", name="Another photo").click()
    sync_api.expect(status).to_contain_text("seed 1")
    assert np.array_equal(visitor.photo(), expected(place[1], STREET, seed=1))
    assert not np.array_equal(visitor.photo(), first)
    sync_api.expect(visitor.page.get_by_label("Seed", exact=True)).to_have_value("1")
    visitor.drag((2, 2), (9, 2))
    assert np.array_equal(visitor.photo(), expected(place[1], visitor.ids(), seed=1))
    visitor.page.get_by_label("Seed", exact=True).fill("7")
    sync_api.expect(status).to_contain_text("seed 7")
    assert np.array_equal(visitor.photo(), expected(place[1], visitor.ids(), seed=7))


def test_photos_are_edited_and_redrawn_while_one_paints_and_errors_are_shown_once(visitor, place):
    photo, ids, status = photo_of(5), draw_ids(6), visitor.page.locator(".painter .live-status")
    visitor.photo()
    visitor.page.get_by_label("redraw the photo").click()
    for stroke in STROKES[:3]:
        visitor.drag(*stroke)
        sync_api.expect(status).to_contain_text("load one first")
    sync_api.expect(visitor.page.locator(".painter .live")).to_contain_class("outdated")
    assert visitor.page.locator(".toast-body").count() == 0

    visitor.load("Photo …", "photo.png", file_of(photo))
    visitor.sees("Paint over the photo")
    visitor.load("The photo's mask …", "mask.png", file_of(LABELS.decode(ids)))
    visitor.sees("This is the photo's mask")
    sync_api.expect(status).to_contain_text("there is nothing to edit")
    assert visitor.page.locator(".toast-body").count() == 0
    name = "car" if ids[2, 2] != 2 else "sky"
    visitor.choose(name)
    visitor.slide(".brush-size", 1)
    visitor.click(2, 2)
    sync_api.expect(status).to_contain_text("4 steps")
    changed = ids.copy()
    changed[2, 2] = LABELS.label2id[name]
    assert np.array_equal(visitor.photo(), expected(place[1], changed, photo=Photo(photo, ids), mode=EDIT))
    different = (visitor.photo() != np.asarray(photo)).any(axis=-1)
    assert different.any()
    assert not different[7:].any()

    visitor.page.get_by_label("redraw the photo").click()
    visitor.page.wait_for_function("document.querySelector('.painter .live').ariaBusy === 'true'")
    assert np.array_equal(visitor.photo(), expected(place[1], changed, photo=Photo(photo, ids), mode=REDRAW))


@pytest.mark.parametrize("width", [1200, 400])
def test_mask_and_photo_are_seen_together(browser, place, width, tmp_path):
    visitor = Visitor(browser, place[0], width, 844)
    visitor.photo()
    stage = visitor.page.locator(".painter .stage")
    photo = visitor.page.get_by_role("figure", name="Photo of the mask")
    assert visitor.page.evaluate("document.documentElement.scrollWidth") <= width
    visitor.page.evaluate("document.querySelector('.painter .stage').scrollIntoView()")
    for box in (stage.bounding_box(), photo.bounding_box()):
        assert box["x"] >= 0
        assert box["x"] + box["width"] <= width
        assert box["y"] >= -1
        assert box["y"] + box["height"] <= 844
    sync_api.expect(visitor.page.get_by_role("checkbox", name="Draw while I paint")).to_be_checked()
    sync_api.expect(photo.get_by_role("img", name="What the model generates from the mask")).to_be_visible()
    sync_api.expect(photo.get_by_role("status")).to_have_text("tiny: 4 steps, seed 0")
    visitor.page.screenshot(path=tmp_path / "live.png", full_page=True)
    visitor.leave()


def test_drawing_is_switched_off_by_an_unexpected_error_which_is_shown_once(visitor, place, monkeypatch):
    visitor.photo()

    def fail(*_):
        raise AssertionError("a bug")

    monkeypatch.setattr(place[1], "generate", fail)
    visitor.drag(*STROKES[0])
    box = visitor.page.get_by_role("checkbox", name="Draw while I paint")
    sync_api.expect(box).not_to_be_checked(timeout=PATIENCE)
    asked, status = requests(visitor), visitor.page.locator(".painter .live-status")
    sync_api.expect(status).to_contain_text("ended by an error of the server")
    for stroke in STROKES[1:4]:
        visitor.drag(*stroke)
    visitor.page.wait_for_timeout(1000)
    assert requests(visitor) == asked
    monkeypatch.undo()
    box.check()
    assert np.array_equal(visitor.photo(), expected(place[1], visitor.ids()))


def test_a_model_of_twenty_steps_draws_while_one_paints_only_if_asked(browser, tmp_path):
    sampler = tiny_sampler()
    with served(tmp_path, sampler) as address:
        visitor = Visitor(browser, address, 1200, 900)
        box = visitor.page.get_by_role("checkbox", name="Draw while I paint")
        sync_api.expect(box).not_to_be_checked()
        sync_api.expect(visitor.page.locator(".painter .live")).to_be_hidden()
        visitor.page.wait_for_timeout(3000)  # for what the page asks when it opens; its event stream never ends
        asked = requests(visitor)
        visitor.drag(*STROKES[0])
        visitor.page.wait_for_timeout(1000)
        assert requests(visitor) == asked
        visitor.generate(4)
        box.check()
        assert np.array_equal(visitor.photo(), visitor.samples()[0])
        visitor.leave()
