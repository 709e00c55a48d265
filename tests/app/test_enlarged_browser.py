"""The painter with an upscaler in a real browser: the photo is shown small, then large, and large pairs are kept.

Needs Chromium or Chrome on the PATH, and Playwright; skipped without them.
"""

import io
import zipfile

import numpy as np
import pytest
from app.test_live_browser import STROKES, slowed
from helpers.app_place import few_step_sampler, served
from helpers.generation_places import LABELS, tiny_upscaler
from PIL import Image

from semseg_diffusers.app.sampler import SamplingRequest
from semseg_diffusers.app.shapes import plain_street


pytestmark = pytest.mark.slow
sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed; the extra `dev` brings it")
from helpers.app_visitor import Visitor  # noqa: E402


LARGE = (32, 32)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("app")
    sampler = few_step_sampler(upscaler=tiny_upscaler(), upscaler_name="runs/large")
    with served(folder, sampler, plain_street(LABELS, LARGE)) as address:
        yield address, sampler, folder


@pytest.fixture
def visitor(browser, place):
    visitor = Visitor(browser, place[0], 1200, 900, mask_size=LARGE)
    yield visitor
    visitor.leave()


def expected(sampler, ids) -> np.ndarray:
    """The first sample of a request at the seed of the page."""
    request = SamplingRequest(num_inference_steps=4, guidance_scale=1.0, num_images=1)
    return np.asarray([*sampler.generate(ids, request)][-1].image)


def test_the_photo_is_shown_small_while_it_is_enlarged_and_kept_large(visitor, place, tmp_path):
    status, photo = (visitor.page.locator(f".painter .live-{name}") for name in ("status", "photo"))
    sync_api.expect(visitor.page.locator("body")).to_contain_text("enlarged to 32 × 32 by runs/large")
    visitor.photo()
    with slowed(place[1].upscaler, 1.0):
        visitor.choose("car")
        visitor.drag((4, 4), (26, 4))
        sync_api.expect(status).to_have_text("tiny: 4 steps, seed 0; being enlarged by runs/large")
        assert photo.evaluate("image => image.decode().then(() => image.naturalWidth)") == 16
        assert visitor.page.locator(".painter .live").get_attribute("aria-busy") == "true"
        large = visitor.photo()
    sync_api.expect(status).to_have_text("tiny: 4 steps, seed 0; enlarged by runs/large")
    assert large.shape == (*LARGE, 3)
    assert np.array_equal(large, expected(place[1], visitor.ids()))
    visitor.generate(4)
    assert np.array_equal(visitor.samples()[0], large)
    with visitor.page.expect_download() as download:
        visitor.page.locator("#download").click()
    download.value.save_as(tmp_path / "kept.zip")
    with zipfile.ZipFile(tmp_path / "kept.zip") as archive:
        pairs = [name for name in archive.namelist() if name.endswith(".png") and "/" in name]
        assert {Image.open(io.BytesIO(archive.read(name))).size for name in pairs} == {LARGE}
    with visitor.page.expect_download() as download:
        visitor.page.get_by_role("button", name="Download mask").click()
    download.value.save_as(tmp_path / "mask.png")
    assert np.array_equal(np.asarray(Image.open(tmp_path / "mask.png")), visitor.ids())


def test_a_newer_stroke_drops_the_enlarging_and_nothing_queues_up(visitor, place):
    status = visitor.page.locator(".painter .live-status")
    visitor.photo()
    with slowed(place[1].upscaler, 2.0) as steps:
        for stroke in STROKES[:3]:
            before = len(steps)
            visitor.drag(*stroke, steps=1)
            sync_api.expect(status).to_contain_text("being enlarged")
            visitor.page.wait_for_function("document.querySelector('.painter .live').ariaBusy === 'true'")
            assert len(steps) <= before + 2
        final = visitor.photo()
        counted = len(steps)
        assert counted < 3 * 3
        visitor.page.wait_for_timeout(3000)
        assert len(steps) == counted
    assert np.array_equal(final, expected(place[1], visitor.ids()))


def test_a_long_stroke_drops_what_is_being_enlarged(visitor, place):
    photo = visitor.page.locator(".painter .live-photo")
    visitor.photo()
    before, seen = photo.get_attribute("src"), set()
    with slowed(place[1].upscaler, 2.0):
        visitor.choose("person")
        visitor.page.mouse.move(*visitor.point(2, 2))
        visitor.page.mouse.down()
        for i in range(1, 600):
            visitor.page.mouse.move(*visitor.point(2 + i % 28, 2 + i // 28))
            visitor.page.wait_for_timeout(20)
            seen.add(tuple(photo.evaluate("image => [image.src, image.complete ? image.naturalWidth : 0]")))
            if sum(width == 16 for _, width in seen) >= 3:
                break
        assert {width for url, width in seen if width and url != before} == {16}
        visitor.page.mouse.up()
    assert np.array_equal(visitor.photo(), expected(place[1], visitor.ids()))
