"""The painter in a real browser: tools, objects, photos, samples and downloads, hostile files, narrow screens.

Needs Chromium or Chrome on the PATH, and Playwright; skipped without them.
"""

import io
import json
import time
import zipfile
from importlib import resources

import numpy as np
import pytest
from app.test_app import HOSTILE, file_of, photo_of
from helpers.app_place import LABELS, SIZE, STREET, served, tiny_sampler
from helpers.generation_places import draw_ids
from PIL import Image

from semseg_diffusers.app.inputs import pack_runs
from semseg_diffusers.masks.editing import shapes as drawing
from semseg_diffusers.pipelines.text_inputs import number_things


pytestmark = pytest.mark.slow
sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed; the extra `dev` brings it")
from helpers.app_visitor import Visitor  # noqa: E402


ROAD, SKY, CAR, PERSON, POLE = range(5)
UNKNOWN = 255


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("app")
    sampler = tiny_sampler()
    with served(folder, sampler) as address:
        yield address, folder, sampler


@pytest.fixture
def visitor(browser, place):
    visitor = Visitor(browser, place[0], 1280, 900)
    yield visitor
    visitor.leave()


def test_tools_paint_what_they_say_and_everything_can_be_undone(visitor):
    expected = STREET.copy()
    assert np.array_equal(visitor.ids(), expected)
    history = [expected.copy()]

    def after(shape, class_id: int) -> None:
        expected[shape] = class_id
        history.append(expected.copy())
        assert np.array_equal(visitor.ids(), expected)

    visitor.choose("car")
    visitor.slide(".brush-size", 3)
    visitor.drag((3, 12), (9, 12))
    after(drawing.stroke(SIZE, [(3, 12), (9, 12)], 1.5), CAR)
    visitor.tool("Box")
    visitor.choose("person")
    visitor.drag((12, 3), (10, 6))
    after(drawing.rectangle(SIZE, (12, 3), (10, 6)), PERSON)
    visitor.tool("Line")
    visitor.choose("pole")
    visitor.slide(".brush-size", 1)
    visitor.drag((1, 1), (6, 6))
    after(drawing.stroke(SIZE, [(1, 1), (6, 6)], 0.5), POLE)
    visitor.tool("Polygon")
    for corner in ((2, 8), (13, 8), (8, 11)):
        visitor.click(*corner)
    visitor.page.keyboard.press("Enter")
    after(drawing.polygon(SIZE, [(2, 8), (13, 8), (8, 11)]), POLE)
    visitor.tool("Fill")
    visitor.choose("car")
    visitor.click(8, 9)
    after(drawing.polygon(SIZE, [(2, 8), (13, 8), (8, 11)]), CAR)
    visitor.tool("Eraser")
    visitor.click(0, 15)
    after((15, 0), UNKNOWN)
    visitor.page.get_by_role("button", name="Clear").click()
    after(slice(None), UNKNOWN)

    visitor.page.get_by_role("button", name="Undo").click()
    for before in history[-3::-1]:
        visitor.page.keyboard.press("Control+z")
        assert np.array_equal(visitor.ids(), before)
    assert visitor.page.get_by_role("button", name="Undo").is_disabled()
    for later in history[1:3]:
        visitor.page.keyboard.press("Control+Shift+z")
        assert np.array_equal(visitor.ids(), later)
    visitor.tool("Pick")
    visitor.click(3, 12)
    assert visitor.page.locator(".painter .palette [aria-checked=true]").text_content() == "car"
    visitor.page.mouse.move(*visitor.point(3, 12))
    assert visitor.page.locator(".painter .status").text_content() == "car · x 3, y 12"


def test_shapes_of_the_page_are_those_of_the_package(visitor):
    """Brush, polygon and connected parts of the script against those in Python, on points of all kinds."""
    raster = resources.files("semseg_diffusers.app").joinpath("canvas", "raster.js").read_text(encoding="utf-8")
    generator = np.random.default_rng(0)
    size = (19, 23)
    for _ in range(40):
        points = generator.integers(-4, 26, (int(generator.integers(3, 6)), 2)).tolist()
        radius = float(generator.uniform(0.5, 4))
        ids = generator.integers(0, 3, size)
        x, y = generator.integers(0, size[1]), generator.integers(0, size[0])
        drawn = visitor.page.evaluate(
            f"""([points, radius, height, width, ids, x, y]) => {{
                {raster}
                const stroke = new Int16Array(height * width), polygon = new Int16Array(height * width);
                points.slice(1).forEach((to, i) => drawStroke(stroke, width, height, points[i], to, radius, 1));
                fillPolygon(polygon, width, height, points, 1);
                return [stroke, polygon, connectedPart(ids, width, height, x, y)].map(packRuns);
            }}""",
            [points, radius, *size, ids.reshape(-1).tolist(), int(x), int(y)],
        )
        assert drawn[0] == pack_runs(drawing.stroke(size, points, radius).astype(np.uint8))
        assert drawn[1] == pack_runs(drawing.polygon(size, points).astype(np.uint8))
        things = number_things(ids == ids[y, x])
        assert drawn[2] == pack_runs((things == things[y, x]).astype(np.uint8))


def test_a_visitor_paints_places_generates_downloads_and_adds(visitor, place, tmp_path):
    visitor.page.get_by_role("radio", name="car, across", exact=True).click()
    visitor.slide(".shape-size", 4)
    visitor.click(8, 13)
    painted = visitor.ids()
    rows, columns = np.nonzero(painted != STREET)
    assert set(painted[rows, columns].tolist()) == {CAR}
    assert (rows.min(), rows.max()) == (10, 13)
    assert columns.min() + columns.max() == pytest.approx(16, abs=1)
    visitor.page.keyboard.press("Control+z")
    assert np.array_equal(visitor.ids(), STREET)
    visitor.page.keyboard.press("Control+y")

    visitor.generate(4)
    assert len(visitor.samples()) == 4
    visitor.page.screenshot(path=tmp_path / "drawn.png", full_page=True)
    with visitor.page.expect_download() as download:
        visitor.page.locator("#download").click()
    download.value.save_as(tmp_path / "drawn.zip")
    with zipfile.ZipFile(tmp_path / "drawn.zip") as archive:
        archive.extractall(tmp_path / "drawn")
    rows = [json.loads(line) for line in (tmp_path / "drawn" / "metadata.jsonl").read_text().splitlines()]
    assert len(rows) == 4
    for row, sample in zip(rows, visitor.samples(), strict=True):
        assert np.array_equal(LABELS.encode(tmp_path / "drawn" / row["mask_file_name"]), painted)
        assert np.array_equal(np.asarray(Image.open(tmp_path / "drawn" / row["image_file_name"])), sample)

    visitor.page.locator("#keep label", has_text="2").click()
    visitor.page.get_by_role("button", name="Add to the dataset").click()
    visitor.sees("3 added to painted")
    folder = place[1] / "painted"
    assert not (folder / rows[2]["image_file_name"]).exists()
    kept = (folder / rows[0]["image_file_name"]).read_bytes()
    assert kept == (tmp_path / "drawn" / rows[0]["image_file_name"]).read_bytes()


def test_a_photo_is_edited_where_it_is_painted_and_redrawn_by_strength(visitor):
    photo, ids = photo_of(5), draw_ids(6)
    visitor.load("Photo …", "photo.png", file_of(photo))
    visitor.sees("Paint over the photo")
    visitor.load("The photo's mask …", "mask.png", file_of(LABELS.decode(ids)))
    visitor.sees("This is the photo's mask")
    sync_api.expect(visitor.page.get_by_label("edit where the mask changed")).to_be_checked()
    visitor.page.get_by_role("button", name="Generate").click()
    visitor.refused("there is nothing to edit")
    visitor.choose("car" if ids[2, 2] != CAR else "sky")
    visitor.slide(".brush-size", 1)
    visitor.click(2, 2)
    visitor.generate(4)
    for sample in visitor.samples():
        different = (sample != np.asarray(photo)).any(axis=-1)
        assert different[:7, :7].any()
        assert not different[7:].any()
        assert not different[:, 7:].any()
    visitor.page.get_by_label("redraw the photo").click()
    visitor.page.get_by_label("number input for Strength: 0 keeps the photo, 1 keeps nothing of it").fill("0")
    visitor.page.keyboard.press("Tab")
    visitor.generate(4)
    assert all(np.array_equal(sample, np.asarray(photo)) for sample in visitor.samples())
    visitor.page.get_by_role("button", name="Remove the photo").click()
    sync_api.expect(visitor.page.get_by_label("a new photo")).to_be_checked()
    sync_api.expect(visitor.page.locator(".painter .photo")).to_be_hidden()


def test_a_mask_is_loaded_and_hostile_files_are_refused_in_words(visitor, place):
    ids = draw_ids(9)
    visitor.load("Mask …", "../../mask<b>.png", file_of(LABELS.decode(ids)))
    visitor.page.wait_for_function("() => !document.querySelector('[data-do=undo]').disabled")
    assert np.array_equal(visitor.ids(), ids)
    unsupported = "not an image in a supported format"
    for kind, message in (("zip", unsupported), ("svg", unsupported), ("large", "expected at most 512 per side")):
        visitor.load("Mask …", "mask.png", HOSTILE[kind])
        visitor.refused(message)
    visitor.load("Mask …", "mask.png", file_of(photo_of(1)))
    visitor.refused("colours that no class has")
    visitor.load("Photo …", "photo.png", HOSTILE["svg"])
    visitor.refused(unsupported)
    assert visitor.page.evaluate("window.evil") is None
    assert np.array_equal(visitor.ids(), ids)
    visitor.load("Mask …", "mask.png", HOSTILE["heavy"])  # the server closes the door before it is read
    visitor.page.wait_for_timeout(1000)
    visitor.said = [text for text in visitor.said if "413" not in text]
    assert np.array_equal(visitor.ids(), ids)
    assert {path.name for path in place[1].iterdir()} <= {"files", "painted"}


def test_a_request_is_cancelled_between_two_steps(visitor, place):
    visitor.page.get_by_role("button", name="Steps, guidance, scheduler").click()
    visitor.page.get_by_label("number input for Steps").fill("50")
    visitor.page.keyboard.press("Tab")
    slow = place[2].pipeline.unet.register_forward_pre_hook(lambda *_: time.sleep(0.2))  # as a network of real size
    visitor.page.get_by_role("button", name="Generate").click()
    visitor.page.locator("#message", has_text="step").wait_for()
    visitor.page.get_by_role("button", name="Cancel").click()
    visitor.sees("Cancelled;")
    slow.remove()


def test_a_waiting_request_is_cancelled_and_the_next_one_takes_its_place(browser, place, visitor, tmp_path):
    other = Visitor(browser, place[0], 1280, 900)
    generate = visitor.page.get_by_role("button", name="Generate")
    with place[2]._lock:  # the other's drawing does not end
        other.page.get_by_role("button", name="Generate").click()
        other.page.locator("#message", has_text="processing").wait_for()
        before = sum("queue/join" in url for url in visitor.asked)
        generate.dblclick()  # which asks once
        visitor.page.locator("#message", has_text="queue").wait_for()
        assert sum("queue/join" in url for url in visitor.asked) == before + 1
        visitor.page.get_by_role("button", name="Cancel").click()
        visitor.sees("Cancelled: nothing is being generated.")
        visitor.tool("Fill")
        visitor.choose("car")
        visitor.click(8, 0)
        painted = visitor.ids()
        generate.click()
        visitor.page.locator("#message", has_text="queue").wait_for()
        other.page.get_by_role("button", name="Cancel").click()
        other.sees("Cancelling …")
    other.sees("Cancelled; 0 of 4 generated.")
    other.leave()

    visitor.sees("4 generated.")
    with visitor.page.expect_download() as download:
        visitor.page.locator("#download").click()
    download.value.save_as(tmp_path / "drawn.zip")
    with zipfile.ZipFile(tmp_path / "drawn.zip") as archive:
        masks = [name for name in archive.namelist() if name.startswith("masks/")]
        drawn = Image.open(io.BytesIO(archive.read(masks[0])))
        assert np.array_equal(np.asarray(drawn), painted)


def test_fingers_paint_on_a_narrow_screen(browser, place, tmp_path):
    visitor = Visitor(browser, place[0], 390, 844, touch=True)
    visitor.page.locator("[data-tool=fill]").tap()
    visitor.page.locator(".painter .palette button", has_text="person").tap()
    visitor.page.touchscreen.tap(*visitor.point(8, 0))
    assert (visitor.ids()[STREET[0, 8] == STREET][:3] == PERSON).all()
    wide = visitor.page.evaluate("document.documentElement.scrollWidth")
    assert wide <= 390
    visitor.page.screenshot(path=tmp_path / "narrow.png", full_page=True)
    visitor.leave()
