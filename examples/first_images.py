"""First images: networks that come with the repository generate streets from masks, with several samplers.

Run `python examples/first_images.py`, or `make demo`, which starts with it. The masks are drawn by code, edited with
`edit`'s operations, or painted in the browser. Results: `demo/large.png`, photos of 512 x 512, each in `large/`, and
`demo/first.png`, with each mask and image in `first/`.
"""

import argparse
import time
from pathlib import Path

import numpy as np
import torch
from demo_masks import draw_masks
from PIL import Image

from semseg_diffusers import LabelSet, MaskGuidedUpscalePipeline
from semseg_diffusers.data.label_mapping import LabelMapping
from semseg_diffusers.generation.model import load_model, new_scheduler
from semseg_diffusers.masks.editing.edit import Context, parse_operation, run_operations
from semseg_diffusers.masks.editing.objects import Street
from semseg_diffusers.pipelines.mask_inputs import resize_ids
from semseg_diffusers.utils.images import image_grid, save_png


ROOT = Path(__file__).resolve().parent.parent
CHECKPOINTS = (ROOT / "checkpoints" / "camvid128", ROOT / "checkpoints" / "toy")  # the first that exists is used
STUDENT = "{}-turbo"  # beside it: the network that `distill` made of it, which is used first if it exists
PAINTED = Path(__file__).resolve().parent / "masks" / "painted.png"  # in CamVid's classes, by the painter
EDITED = "a high street"  # the scene that is changed, and how; points are x,y in pixels of a mask 128 wide
OPERATIONS = (
    "remove class=car number=1",  # the largest: those that are parked in a row
    "polygon class=car points=52,84;52,76;56,69;70,69;74,76;74,84;74,93;52,93",
)
UPSCALER = ROOT / "checkpoints" / "camvid-upscaler"  # enlarges images of the first of them
LARGE = 512  # side of its images
LARGE_MASKS = ("painted in the browser", "an avenue", EDITED, f"{EDITED}, edited")
SAMPLERS = {  # of the network itself: title -> (scheduler as in `generate --scheduler`, None for the saved one), steps
    "SDE-DPM-Solver++, 20 steps": (None, 20),
    "UniPC, 15 steps": ("UniPCMultistepScheduler", 15),
    "DDIM, 30 steps": ("DDIMScheduler", 30),
}
SEED = 0  # the same noise for all images: only mask and sampler differ


def find_checkpoint() -> Path:
    """Return the best network in `checkpoints/`; print a note if it is not the first choice."""
    found = next((folder for folder in CHECKPOINTS if (folder / "model_index.json").is_file()), None)
    if found is None:
        raise SystemExit(f"error: {' and '.join(map(str, CHECKPOINTS))} do not exist; restore them from git.")
    if found != CHECKPOINTS[0]:
        print(f"   {CHECKPOINTS[0]} does not exist: using {found}, which was trained on toy scenes", flush=True)
    return found


def edit(ids: np.ndarray, labels: LabelSet) -> np.ndarray:
    """Apply `OPERATIONS`, scaled to its size, to a mask (H, W)."""
    context = Context(Street.of(labels), np.random.default_rng(0))
    operations = [parse_operation(text) for text in OPERATIONS]
    for operation in operations:
        if "points" in operation.values:
            operation.values["points"] = [
                (x * ids.shape[1] / 128, y * ids.shape[0] / 128) for x, y in operation.values["points"]
            ]
    return run_operations(ids, operations, context)[0]


def make_masks(labels: LabelSet, size: int) -> dict[str, np.ndarray]:
    """Return all masks by title: class ids (size, size) uint8 of a label set with CamVid's names."""
    drawn = draw_masks(labels, size)
    masks = {EDITED: drawn[EDITED], f"{EDITED}, edited": edit(drawn[EDITED], labels), **drawn}
    camvid = LabelSet.from_preset("camvid")
    painted = camvid.encode(PAINTED)
    if labels != camvid:
        painted = LabelMapping(camvid, labels).map(painted)
    masks["painted in the browser"] = resize_ids(painted, size, size)
    return masks


def file_name(title: str) -> str:
    """Return the name of a file for the title of a mask."""
    return title.replace(" ", "_").replace(",", "")


def generate_large_images(output: Path, start: float, num_inference_steps: int | None = None) -> Path | None:
    """Generate a photo of 512 x 512 of each mask: a small one, then enlarged; None without the upscaler.

    Args:
        output: folder for `large.png` and `large/<mask>.png`.
        start: `time.perf_counter()` once libraries were loaded, for the printed times.
        num_inference_steps: of the small photo, in place of those that its network recommends.

    Returns:
        the path of the contact sheet.
    """
    if not all((folder / "model_index.json").is_file() for folder in (CHECKPOINTS[0], UPSCALER)):
        return None
    pipeline, upscaler = load_model(str(CHECKPOINTS[0])), MaskGuidedUpscalePipeline.from_pretrained(UPSCALER)
    labels, small_size = LabelSet.from_config(pipeline.unet.config), pipeline.unet.config.sample_size
    folder = output / "large"
    folder.mkdir(parents=True, exist_ok=True)
    cells: list[Image.Image] = []
    since = time.perf_counter()
    masks = make_masks(labels, LARGE)
    for each in (pipeline, upscaler):
        each.set_progress_bar_config(disable=True)
    for title in LARGE_MASKS:
        ids, generator = masks[title], torch.Generator().manual_seed(SEED)
        mask = torch.from_numpy(resize_ids(ids, small_size, small_size))
        small = pipeline(mask, num_inference_steps=num_inference_steps, generator=generator).images[0]
        image = upscaler(small, torch.from_numpy(ids), generator=generator).images[0]
        save_png(folder / f"{file_name(title)}.png", image)
        if not cells:
            seconds = time.perf_counter() - start
            print(f"   the first photo of 512 x 512, {seconds:.0f} s after all libraries were loaded", flush=True)
        cells += [labels.decode(ids), image]
    print(f"   {(time.perf_counter() - since) / len(LARGE_MASKS):.1f} s a photo of 512 x 512", flush=True)
    sheet = output / "large.png"
    save_png(sheet, image_grid([cells[i : i + 4] for i in range(0, len(cells), 4)], cell_size=LARGE))
    return sheet


def generate_first_images(output: Path, start: float, num_inference_steps: int | None = None) -> Path:
    """Generate each mask with the student in its few steps, if there is one, and with each sampler, from equal noise.

    Args:
        output: folder for `first.png`, `first/<mask>.png` and `first/<mask>_<sampler>.png`.
        start: `time.perf_counter()` once libraries were loaded, for the printed times.
        num_inference_steps: of each sampler, in place of its own.

    Returns:
        the path of the contact sheet.
    """
    checkpoint = find_checkpoint()
    student = Path(STUDENT.format(checkpoint))
    pipeline = load_model(str(checkpoint))
    columns = []  # title, pipeline, scheduler, steps
    if (student / "model_index.json").is_file():
        quick = load_model(str(student))
        steps = quick.resolve_sampling()[0]
        columns.append((f"distilled, {steps} steps", quick, quick.scheduler, steps))
    for title, (name, steps) in SAMPLERS.items():
        scheduler = new_scheduler(name, pipeline.scheduler.config) if name else pipeline.scheduler
        columns.append((title, pipeline, scheduler, steps))
    labels = LabelSet.from_config(pipeline.unet.config)
    masks = make_masks(labels, pipeline.unet.config.sample_size)
    folder = output / "first"
    folder.mkdir(parents=True, exist_ok=True)
    rows = {title: [labels.decode(ids)] for title, ids in masks.items()}
    for number, (column, sampler, scheduler, steps) in enumerate(columns, 1):
        sampler.set_progress_bar_config(disable=True)
        sampler.scheduler = scheduler
        since = time.perf_counter()
        for index, (title, ids) in enumerate(masks.items()):
            image = sampler(
                torch.from_numpy(ids),
                num_inference_steps=num_inference_steps or steps,
                generator=torch.Generator().manual_seed(SEED),
            ).images[0]
            rows[title].append(image)
            name = file_name(title)
            save_png(folder / f"{name}.png", rows[title][0])
            save_png(folder / f"{name}_{number}.png", image)
            if number == 1 and index == 0:
                seconds = time.perf_counter() - start
                print(f"   the first image, {seconds:.0f} s after all libraries were loaded", flush=True)
        print(f"   {column}: {(time.perf_counter() - since) / len(masks):.1f} s an image", flush=True)
    sheet = output / "first.png"
    save_png(sheet, image_grid([*rows.values()], ["mask", *(title for title, *_ in columns)], [*rows], cell_size=192))
    print(f"   {len(masks) * len(columns)} images after {time.perf_counter() - start:.0f} s: {sheet}", flush=True)
    return sheet


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=ROOT / "demo", help="folder (default: demo)")
    folder, start = parser.parse_args().output, time.perf_counter()
    generate_large_images(folder, start)
    generate_first_images(folder, start)
