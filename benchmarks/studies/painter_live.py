"""Time the photo that the painter draws while one paints: from the end of a stroke until the new photo is shown.

Serves a model with `semseg-diffusers app`, and paints strokes of alternating classes in Chromium, each after the photo
of the one before; with an upscaler, the photo is the large one. Needs Playwright, which the extra `dev` brings, and
Chromium or Chrome on the PATH.

    .venv/bin/python benchmarks/studies/painter_live.py --model checkpoints/camvid128-turbo --output live.json
"""

import argparse
import os
import platform
import signal
import statistics
import subprocess
import sys
import time
from pathlib import Path

import gradio
import torch
from first_photo import PATIENCE, answers, free_port, wait_for
from painter_hand import BROWSERS, Hand, find_browser
from playwright.sync_api import Page, sync_playwright

from semseg_diffusers.utils.files import write_json


# Keeps the milliseconds from each end of a stroke until the photo of its mask is decoded.
CLOCK = """() => {
    const panel = document.querySelector('.painter .live'), photo = panel.querySelector('.live-photo');
    window.strokeTimes = [];
    let start = null;
    document.querySelector('.painter .mask').addEventListener('pointerup', () => (start = performance.now()), true);
    new MutationObserver(async () => {
        if (panel.ariaBusy !== 'false' || start === null) return;
        const from = start;
        start = null;
        await photo.decode();
        window.strokeTimes.push(performance.now() - from);
    }).observe(panel, { attributes: true, attributeFilter: ['aria-busy'] });
}"""


def measure(page: Page, address: str, num_strokes: int) -> dict:
    """Paint, and return the seconds of each stroke with what the page says of its photo."""
    page.goto(address)
    page.locator(".painter .palette button").first.wait_for()
    page.get_by_role("checkbox", name="Draw while I paint").set_checked(True)
    page.locator(".painter .live[aria-busy=false]").wait_for()
    size = page.evaluate("() => { const c = document.querySelector('.painter .mask'); return [c.height, c.width]; }")
    if size[0] != size[1]:
        raise SystemExit(f"error: expected a model of square images; this one generates {size[0]} x {size[1]}.")
    hand, side = Hand(page, size[1]), size[1]
    names = page.locator(".painter .palette button").all_text_contents()[:2]
    page.evaluate(CLOCK)
    for i in range(num_strokes):
        hand.choose(names[i % 2])
        row = (i + 1) * side // (num_strokes + 1)
        hand.drag((side // 4, row), (side * 3 // 4, row))
        page.wait_for_function("count => window.strokeTimes.length === count", arg=i + 1)
    seconds = [round(milliseconds / 1000, 3) for milliseconds in page.evaluate("window.strokeTimes")]
    photo = page.locator(".painter .live-status").text_content()
    return {"median": round(statistics.median(seconds), 3), "seconds": seconds, "photo": photo}


def run(model: str, upscaler: str, num_strokes: int, output: Path | None) -> None:
    chromium = find_browser()
    if chromium is None:
        raise SystemExit(f"error: there is no browser on the PATH; expected one of {', '.join(BROWSERS)}.")
    port = free_port()
    command = [
        sys.executable,
        "-m",
        "semseg_diffusers.cli",
        "app",
        "--model",
        model,
        "--upscaler",
        upscaler,
        "--port",
        str(port),
        "--output",
        "off",
    ]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    address = f"http://127.0.0.1:{port}/"
    try:
        wait_for("the page was served", lambda: answers(address), server)
        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
            page = browser.new_page(viewport={"width": 1200, "height": 900})
            page.set_default_timeout(PATIENCE * 1000)
            report = {"model": Path(model).name, **measure(page, address, num_strokes)}
            browser.close()
    finally:
        server.send_signal(signal.SIGINT)
        server.wait(60)
    versions = {"python": platform.python_version(), "torch": torch.__version__, "gradio": gradio.__version__}
    report |= {"cores": os.cpu_count(), "date": time.strftime("%Y-%m-%d"), "versions": versions}
    print(
        f"{report['median']:.2f} s from the end of a stroke to its photo (median of {num_strokes}); {report['photo']}"
    )
    if output is not None:
        write_json(output, report)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="run folder or Hub id")
    parser.add_argument("--upscaler", default="off", help="run folder or Hub id; default %(default)s")
    parser.add_argument("--strokes", type=int, default=10, help="default %(default)s")
    parser.add_argument("--output", type=Path, help="JSON file to write")
    args = parser.parse_args()
    run(args.model, args.upscaler, args.strokes, args.output)
