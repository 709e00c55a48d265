"""Time a new user's path from a clone to an image of a mask painted in the browser (docs/tutorials/painter.md).

Clones this checkout, runs `make app` in the clone, opens the page in Chromium, paints a street with the mouse (fill,
polygons, brush, things placed by a click, one undo), generates, and downloads the zip file. What is painted is always
the same. Needs Playwright, which the extra `dev` brings, and Chromium or Chrome on the PATH.

    .venv/bin/python benchmarks/studies/first_photo.py --output first_photo

writes `first_photo/steps.json`, `page.png` (the page at the end) and what was downloaded into `first_photo/painted`.
The seconds of set-up are mostly those of downloading packages. The hand of the script is quicker than a person's.
"""

import argparse
import json
import os
import signal
import socket
import subprocess
import tempfile
import time
import urllib.request
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from painter_hand import BROWSERS, Hand, find_browser
from PIL import Image
from playwright.sync_api import sync_playwright

from semseg_diffusers.utils.files import write_json


ROOT = Path(__file__).resolve().parent.parent.parent
SIDE = 128  # pixels of a mask; points and sizes below are in them, whatever the size of the canvas
PATIENCE = 900  # seconds for the longest step
# What is painted, from back to front: how, class or thing, points. A brush has a size, a thing a height.
STREET = (
    ("fill", "sky", [(64, 20)]),
    ("brush 12", "vegetation", [(49, 58), (55, 53), (62, 56), (70, 54), (75, 59), (60, 60)]),
    ("polygon", "building", [(0, 17), (14, 20), (15, 27), (30, 34), (31, 40), (43, 47), (52, 54), (52, 66), (0, 90)]),
    ("polygon", "building", [(127, 2), (112, 8), (111, 17), (94, 27), (80, 44), (71, 54), (71, 66), (127, 92)]),
    ("polygon", "road", [(0, 127), (0, 115), (57, 63), (66, 63), (127, 108), (127, 127)]),
    ("polygon", "sidewalk", [(0, 88), (50, 64), (58, 63), (0, 115)]),
    ("polygon", "sidewalk", [(127, 90), (73, 64), (65, 63), (127, 108)]),
    ("place 58", "tree", [(19, 94)]),
    ("brush 9", "vegetation", [(8, 40), (14, 34), (24, 36), (30, 44), (20, 48), (10, 47)]),
    ("place 12", "car", [(60, 75)]),
    ("place 24", "car", [(92, 96)]),
    ("place 20", "rider", [(70, 88)]),
    ("undo", "", []),  # too small, and too far to the right
    ("place 27", "rider", [(47, 92)]),
    ("place 26", "person", [(112, 103)]),
    ("place 52", "street lamp", [(80, 80)]),
    ("line 1", "pole", [(37, 84), (37, 49)]),
    ("box", "traffic sign", [(35, 46), (39, 51)]),
)  # fmt: skip


class Steps:
    """Seconds of each step, printed as they come."""

    def __init__(self):
        self.seconds: dict[str, float] = {}

    @contextmanager
    def step(self, title: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self.seconds[title] = round(time.perf_counter() - start, 1)
        print(f"{self.seconds[title]:8.1f} s  {title}", flush=True)


def wait_for(what: str, there, server: subprocess.Popen) -> None:
    """Look until it is there; the server must not end before."""
    end = time.monotonic() + PATIENCE
    while not there():
        if server.poll() is not None or time.monotonic() > end:
            raise SystemExit(f"error: `make app` ended, or took more than {PATIENCE} s, before {what}.")
        time.sleep(0.1)


def answers(address: str) -> bool:
    try:
        return urllib.request.urlopen(address, timeout=5).status == 200
    except OSError:
        return False


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def paint(hand: Hand, how: str, what: str, points: list[tuple[int, int]], scale: float) -> None:
    """One entry of `STREET`, on a canvas with so many pixels to one of `SIDE`."""
    tool, _, size = how.partition(" ")
    if tool == "undo":
        hand.page.keyboard.press("Control+z")
    elif tool == "place":
        things = hand.page.get_by_role("radiogroup", name="Objects")
        things.get_by_role("radio", name=what, exact=True).click()
        hand.slide(".shape-size", round(int(size) * scale))
        hand.click(*points[0])
    else:
        hand.tool(tool.capitalize())
        hand.choose(what)
        if size:
            hand.slide(".brush-size", round(int(size) * scale))
        draw(hand, tool, points)


def draw(hand: Hand, tool: str, points: list[tuple[int, int]]) -> None:
    """Use the tool that is chosen."""
    if tool in ("brush", "line", "box"):
        hand.drag(*points, steps=8)
        return
    for point in points:
        hand.click(*point)
    if tool == "polygon":
        hand.page.keyboard.press("Enter")


def paint_and_take_away(address: str, chromium: str, output: Path, steps: Steps) -> None:
    """What the user does in the browser."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1280, "height": 1000}, accept_downloads=True)
        page.set_default_timeout(PATIENCE * 1000)
        with steps.step("the page in the browser"):
            page.goto(address)
            page.locator(".painter .palette button").first.wait_for()
            page.get_by_role("button", name="Generate").wait_for()
        with steps.step(f"a street of {len(STREET)} strokes"):
            page.get_by_role("button", name="Clear").click()
            hand = Hand(page, SIDE)
            scale = page.evaluate("document.querySelector('.painter .mask').width") / SIDE
            for stroke in STREET:
                paint(hand, *stroke, scale)
            hand.tool("Brush")
        page.screenshot(path=output / "painted.png")
        samples = page.locator("#samples .grid-container img")
        with steps.step("the first photo"):
            page.get_by_role("button", name="Generate").click()
            samples.first.wait_for()
        with steps.step("three more"):
            page.locator("#message", has_text="4 generated.").wait_for()
        with steps.step("the download"), page.expect_download() as download:
            page.locator("#download").click()
        download.value.save_as(output / "painted.zip")
        page.mouse.move(5, 5)
        page.wait_for_timeout(1000)
        page.screenshot(path=output / "page.png", full_page=True)
        browser.close()


def versions_of(python: Path) -> dict[str, str]:
    """What the clone's environment holds."""
    code = (
        "import json, platform, torch, gradio; print(json.dumps({'python': platform.python_version(), "
        "'torch': torch.__version__, 'gradio': gradio.__version__}))"
    )
    return json.loads(subprocess.run([python, "-c", code], check=True, capture_output=True, text=True).stdout)


def run(output: Path, source: str, python: str) -> None:
    chromium = find_browser()
    if chromium is None:
        raise SystemExit(f"error: there is no browser on the PATH; expected one of {', '.join(BROWSERS)}.")
    output.mkdir(parents=True, exist_ok=True)
    steps, port = Steps(), free_port()
    with tempfile.TemporaryDirectory() as folder:
        clone = Path(folder) / "semseg_diffusers"
        with steps.step("`git clone`"):
            subprocess.run(["git", "clone", "--quiet", source, str(clone)], check=True)
        command = ["make", "app", f"PYTHON={python}", f"ARGS=--port {port}"]
        log = (output / "make_app.log").open("w")
        server = subprocess.Popen(command, cwd=clone, stdout=log, stderr=log, start_new_session=True)
        try:
            with steps.step("`make app`, once: set-up"):
                wait_for("the set-up was done", (clone / ".venv" / ".installed").is_file, server)
            address = f"http://127.0.0.1:{port}/"
            with steps.step("`make app`: the page is served"):
                wait_for("the page was served", lambda: answers(address), server)
            paint_and_take_away(address, chromium, output, steps)
            versions = versions_of(clone / ".venv" / "bin" / "python")
        finally:
            if server.poll() is None:
                os.killpg(server.pid, signal.SIGINT)
                server.wait(60)
            log.close()
    with zipfile.ZipFile(output / "painted.zip") as archive:
        archive.extractall(output / "painted")
    images = sorted((output / "painted" / "images").glob("*.png"))
    report = {
        "seconds": steps.seconds,
        "sum": round(sum(steps.seconds.values()), 1),
        "strokes": len(STREET),
        "images": len(images),
        "size": list(Image.open(images[0]).size),
        "cores": os.cpu_count(),
        "versions": versions,
    }
    write_json(output / "steps.json", report)
    print(f"{report['sum']:8.1f} s  in all; {len(images)} photos in {output / 'painted' / 'images'}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("first_photo"), help="folder (default %(default)s)")
    parser.add_argument("--source", default=str(ROOT), help="what is cloned (default: this checkout)")
    parser.add_argument("--python", default="python3", help="as in `make PYTHON=...` (default %(default)s)")
    args = parser.parse_args()
    run(args.output, args.source, args.python)
