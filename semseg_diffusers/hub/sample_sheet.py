"""The picture on the card of a shipped model: masks chosen by a seed, not by taste, samples of each, and the legend.

Images are drawn by `generate_dataset`, each from its own seed, so the same call gives the same picture.
"""

import io
import random
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from semseg_diffusers.data.dataset_format import LABELS_FILE, label_file_near
from semseg_diffusers.data.labels import LabelSet
from semseg_diffusers.data.mask_files import find_masks
from semseg_diffusers.generation.generate import generate_dataset
from semseg_diffusers.generation.settings import GenerationSettings
from semseg_diffusers.pipelines.mask_inputs import open_image
from semseg_diffusers.utils.images import BACKGROUND, GAP, image_grid


MOST_BYTES = 400_000  # a card's picture is loaded by everyone who opens the page
WIDTH = 1400  # pixels; a second mask stands in a row where this leaves room for it
CELL_SIZE = 128  # pixels; smaller images are enlarged to it
QUALITIES = range(92, 39, -4)  # of JPEG, best first


@dataclass(frozen=True)
class SheetSettings:
    """What is on the sheet."""

    masks: Path  # folder of masks, with its sub-folders, or one mask file
    num_masks: int = 16
    samples: int = 4  # of each mask
    seed: int = 0  # chooses the masks, and begins the seed of each image
    mask_labels: LabelSet | None = None  # the classes that the masks are in, where these are not the model's


def choose_masks(settings: SheetSettings) -> tuple[list[Path], int]:
    """The masks of the sheet in order of their names, and of how many they are.

    Raises:
        FileNotFoundError, ValueError: no masks, or too few.
    """
    if settings.num_masks < 1 or settings.samples < 1:
        raise ValueError(
            f"--num_masks and --samples must be 1 or more; got {settings.num_masks} and {settings.samples}."
        )
    paths = find_masks(settings.masks)
    if len(paths) < settings.num_masks:
        raise ValueError(
            f"'{settings.masks}' holds {len(paths)} masks, and --num_masks {settings.num_masks} are wanted. Give "
            "another folder, or fewer."
        )
    return sorted(random.Random(settings.seed).sample(paths, settings.num_masks)), len(paths)


def draw_sheet(pipeline: Any, settings: SheetSettings, batch_size: int = 8) -> tuple[bytes, dict[str, Any]]:
    """Draw samples and lay them out beside their masks, above the legend.

    Args:
        pipeline: mask-guided pipeline, with the scheduler to draw with, on the device to draw on.
        settings: what is on the sheet.
        batch_size: images a forward.

    Returns:
        JPEG of at most 400 kB, and what it shows, for the record: `masks` (their names), `of` (how many there were to
        choose from), `samples`, `seed`, `scheduler`, `num_inference_steps`, `guidance_scale`.

    Raises:
        FileNotFoundError, ValueError: no masks, too few, or ones that the model cannot read.
    """
    paths, of = choose_masks(settings)
    generation = GenerationSettings(seed=settings.seed)
    with tempfile.TemporaryDirectory() as place:
        chosen, drawn = Path(place, "chosen", "masks"), Path(place, "drawn")
        chosen.mkdir(parents=True)
        for path in paths:
            shutil.copy(path, chosen)
        if near := label_file_near(paths[0].parent, settings.masks):  # so that masks of other classes are refused
            LabelSet.from_json(near).save_json(chosen / LABELS_FILE)
        generate_dataset(
            pipeline,
            chosen,
            drawn,
            generation,
            mask_labels=settings.mask_labels,
            num_images_per_mask=settings.samples,
            batch_size=batch_size,
            contact_sheet_rows=0,
            show_progress=True,
        )
        blocks = []
        for path in paths:
            images = [open_image(drawn / "images" / f"{path.stem}_{k}.png") for k in range(settings.samples)]
            blocks.append([open_image(drawn / "masks" / f"{path.stem}_0.png"), *images])
    record = {
        "masks": [path.stem for path in paths],
        "of": of,
        "samples": settings.samples,
        "seed": settings.seed,
        "scheduler": scheduler_name(pipeline.scheduler),
        "num_inference_steps": generation.num_inference_steps,
        "guidance_scale": generation.guidance_scale,
    }
    return _jpeg(_lay_out(blocks, LabelSet.from_config(pipeline.unet.config))), record


def scheduler_name(scheduler: Any) -> str:
    """The class of a scheduler, with its algorithm where it knows several."""
    kind = scheduler.config.get("algorithm_type")
    return f"{type(scheduler).__name__} ({kind})" if kind else type(scheduler).__name__


def _lay_out(blocks: list[list[Image.Image]], labels: LabelSet) -> Image.Image:
    """Blocks of a mask and its samples, as many in a row as fit, above the legend."""
    columns = len(blocks[0])
    width, height = blocks[0][0].size
    cell = round(width * max(1.0, CELL_SIZE / min(width, height))) + GAP
    most = max(1, WIDTH // (columns * cell))
    in_a_row = -(-len(blocks) // -(-len(blocks) // most))  # so that rows are of one length, as far as they can be
    rows = [sum(blocks[start : start + in_a_row], []) for start in range(0, len(blocks), in_a_row)]
    headers = ["mask", *(f"sample {k + 1}" for k in range(columns - 1))] * in_a_row
    grid = image_grid(rows, headers, cell_size=CELL_SIZE)
    legend = labels.legend()
    for number in range(labels.num_classes + 1, 0, -1):
        if (wide := labels.legend(columns=number)).width <= grid.width:
            legend = wide
            break
    sheet = Image.new("RGB", (max(grid.width, legend.width), grid.height + legend.height), BACKGROUND)
    sheet.paste(grid, (0, 0))
    sheet.paste(legend, (0, grid.height))
    return sheet


def _jpeg(sheet: Image.Image) -> bytes:
    """The best JPEG that is small enough; without subsampling of colours, whose masks have thin lines."""
    for quality in QUALITIES:
        data = io.BytesIO()
        sheet.save(data, format="jpeg", quality=quality, subsampling=0, optimize=True)
        if data.tell() <= MOST_BYTES:
            return data.getvalue()
    raise ValueError(
        f"a sheet of {sheet.width} x {sheet.height} pixels does not fit into {MOST_BYTES // 1000} kB. Give fewer "
        "--num_masks or --samples."
    )
