"""A first day with data of one's own: from photos and masks with classes of other names to images, in one script.

Run `python examples/first_day.py KITTI OUTPUT`, with the folder of KITTI's semantic benchmark, which holds `training`.
It copies 60 pairs into `OUTPUT/my streets`, with blanks in their names and label ids in their masks, and runs the
commands of a first day on them: six classes of one's own, by a mapping file; a check; statistics; training from the
network that comes with the checkout; images of unseen masks; masks with more of the rare class; a dry run of `grow`.
Then a browser of the size of a desktop and of a phone generates on the painter's page, where Playwright and Chromium
are installed. All pictures stay in OUTPUT; `minutes.json` holds how long each step took.
"""

import argparse
import json
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path


ROOT = Path(__file__).resolve().parent.parent
SEMSEG_DIFFUSERS = (sys.executable, "-m", "semseg_diffusers.cli")  # what the console script `semseg-diffusers` runs
CHECKPOINT = ROOT / "checkpoints" / "camvid128"
RARE = "dynamic thing"
LABELS = {
    "drivable": {"color": "#804080", "kind": "road"},
    "walkway": {"color": "#f423e8", "kind": "sidewalk"},
    "structure": {"color": "#464646"},
    "nature": {"color": "#6b8e23"},
    "sky": {"color": "#4682b4"},
    RARE: {"color": "#00008e", "kind": "vehicle"},
}
MAPPING = {  # numbers are label ids of Cityscapes, which KITTI shares
    "drivable": [7, 9, 10],
    "walkway": [8],
    "structure": list(range(11, 21)),
    "nature": [21, 22],
    "sky": [23],
    RARE: list(range(24, 34)),
}
# For `train --init_from`: structure covers several classes of CamVid, by no name that says so.
FIRST_CLASSES = {"structure": ["building", "fence", "pole", "traffic sign"], RARE: ["car", "person", "rider"]}

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
WINDOWS = {"desktop": (1280, 800), "phone": (390, 844)}
PATIENCE = 300  # seconds, for the page and for a photo


def copy_pairs(kitti: Path, folder: Path, count: int) -> None:
    """Copy evenly spaced pairs into images/ and masks/, under names with blanks."""
    images = sorted(path for path in (kitti / "training" / "image_2").iterdir() if path.suffix in (".png", ".jpg"))
    for image in images[:: max(1, len(images) // count)][:count]:
        for path, own in ((image, "images"), (kitti / "training" / "semantic" / f"{image.stem}.png", "masks")):
            (folder / own).mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, folder / own / f"street {path.name.replace('_', ' ')}")


def run_day(kitti: Path, output: Path, num_pairs: int, steps: int, resolution: str, options: list[str]) -> dict:
    """Run each step as a command of its own; return the minutes of each."""
    source, dataset, run = output / "my streets", output / "dataset", output / "run"
    copy_pairs(kitti, source, num_pairs)
    files = {"labels.json": LABELS, "mapping.json": MAPPING, "first classes.json": FIRST_CLASSES}
    for name, content in files.items():
        (output / name).write_text(json.dumps(content, indent=2) + "\n")
    mapping = ("--mapping", output / "mapping.json")
    enriched = output / "enriched"
    commands = {
        "check": ["--source", source, *mapping],
        "prepare": ["--source", source, *mapping, "--map_to", output / "labels.json", "--resolution", resolution,
                    "--val_fraction", 0.2, "--output", dataset],
        "stats": ["--dataset", dataset, "--output", output / "statistics"],
        "train": ["--dataset", dataset, "--init_from", CHECKPOINT, "--init_classes", output / "first classes.json",
                  "--output_dir", run, "--max_train_steps", steps, "--lr_warmup_steps", 5, "--train_batch_size", 4,
                  "--preview_steps", 0, "--dataloader_num_workers", 0, *options],
        "generate": ["--model", run, "--masks", dataset / "val" / "masks", "--output", output / "images"],
        "enrich": ["--dataset", dataset, "--output", enriched, "--num_masks", 12, "--target", f"{RARE}=2"],
        "grow": ["--dataset", dataset, "--model", run, "--output", output / "grown", "--target", f"{RARE}=2",
                 "--dry_run"],
    }  # fmt: skip
    minutes = {}
    for name, words in commands.items():
        print(f"\n== {name}", flush=True)
        start = time.perf_counter()
        result = subprocess.run([*SEMSEG_DIFFUSERS, name, *map(str, words)], check=False)
        if result.returncode:
            raise SystemExit(f"error: {name} ended with exit code {result.returncode}")
        minutes[name] = round((time.perf_counter() - start) / 60, 2)
    return minutes


def is_served(address: str) -> bool:
    """Return whether a page answers."""
    try:
        return urllib.request.urlopen(address, timeout=5).status == 200
    except OSError:
        return False


def use_painter(run: Path, output: Path) -> bool:
    """Generate on the painter's page in windows of each size, and keep pictures of it; False without a browser."""
    browser_file = next(filter(None, map(shutil.which, BROWSERS)), None)
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        browser_file = None
    if browser_file is None:
        print("not run: it needs Playwright, and Chromium or Chrome on the PATH")
        return False
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    address = f"http://127.0.0.1:{port}/"
    words = ["--model", run, "--upscaler", "off", "--output", output / "painted", "--port", port]
    server = subprocess.Popen([*SEMSEG_DIFFUSERS, "app", *map(str, words)])
    try:
        end = time.monotonic() + PATIENCE
        while not is_served(address):
            if server.poll() is not None or time.monotonic() > end:
                raise SystemExit(f"error: the painter ended, or took more than {PATIENCE} s to start")
            time.sleep(0.5)
        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=browser_file, args=["--no-sandbox"])
            for name, (width, height) in WINDOWS.items():
                page = browser.new_page(viewport={"width": width, "height": height})
                page.set_default_timeout(PATIENCE * 1000)
                page.goto(address)
                page.locator(".painter .palette button").first.wait_for()
                page.get_by_role("button", name="Generate", exact=True).click()
                page.locator("#samples .grid-container img").first.wait_for()
                page.screenshot(path=output / f"painter_{name}.png", full_page=True)
                page.close()
            browser.close()
    finally:
        server.send_signal(signal.SIGINT)
        server.wait(PATIENCE)
    return True


def main() -> None:
    """Run the day and print the minutes of each step."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("kitti", type=Path, help="folder that holds training/image_2 and training/semantic")
    parser.add_argument("output", type=Path, help="new folder")
    parser.add_argument("--num_pairs", type=int, default=60)
    parser.add_argument("--max_train_steps", type=int, default=30)
    parser.add_argument("--resolution", default="96x320")
    args, options = parser.parse_known_args()  # others are options of `train`
    args.output.mkdir(parents=True)
    minutes = run_day(args.kitti, args.output, args.num_pairs, args.max_train_steps, args.resolution, options)
    print("\n== painter", flush=True)
    start = time.perf_counter()
    if use_painter(args.output / "run", args.output):
        minutes["painter"] = round((time.perf_counter() - start) / 60, 2)
    (args.output / "minutes.json").write_text(json.dumps(minutes, indent=2) + "\n")
    print("\nminutes: " + ", ".join(f"{name} {value:g}" for name, value in minutes.items()))


if __name__ == "__main__":
    main()
