"""Export a trained model as a folder to share, with a card that shows its results and samples of a few masks.

It generates, so it may import the layers that use the rest of this package.
"""

import io
import logging
import random
import shutil
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from semseg_diffusers.data.dataset_format import find_masks, label_file_near
from semseg_diffusers.data.labels import LabelSet
from semseg_diffusers.generation.generate import generate_dataset
from semseg_diffusers.generation.model import model_revision
from semseg_diffusers.generation.settings import GenerationSettings, Inputs
from semseg_diffusers.hub import cards, folders
from semseg_diffusers.hub.push import load_pipeline
from semseg_diffusers.hub.settings import ExportSettings, SheetOptions
from semseg_diffusers.hub.text_encoders import check_same_encoder, load_text_encoder, source_of
from semseg_diffusers.hub.weights import only_variant
from semseg_diffusers.pipelines.mask_inputs import open_image
from semseg_diffusers.utils.distributed import choose_device
from semseg_diffusers.utils.files import check_output, follow_umask, new_folder, read_json, versions
from semseg_diffusers.utils.images import BACKGROUND, GAP, image_grid


logger = logging.getLogger(__name__)

KIND = "exported model"
RUN_PAGE = "run.html"  # what `semseg-diffusers report` writes into a run folder
MAX_SHEET_BYTES = 400_000  # the card's image is loaded by everyone who opens the page
SHEET_WIDTH = 1400  # pixels; as many masks in a row as fit
CELL_SIZE = 128  # pixels; smaller images are enlarged to it
SAMPLED = ("num_inference_steps", "guidance_scale", "guidance_start", "guidance_stop", "seed")
ENLARGED = ("upscaler_steps", "noise_level")  # of an upscaler
LARGEST_CELL = 256  # pixels; larger images among the best and worst are reduced to it
QUALITIES = range(92, 39, -4)  # of JPEG, best first


def choose_masks(settings: SheetOptions) -> tuple[list[Path], int]:
    """Return the masks of the sheet, sorted by name, and the number of masks that they are chosen from."""
    paths = find_masks(str(settings.masks))
    if len(paths) < settings.num_masks:
        raise ValueError(
            f"'{settings.masks}' holds {len(paths)} masks; expected at least --num_masks {settings.num_masks}. Use "
            "another folder, or fewer."
        )
    return sorted(random.Random(settings.seed).sample(paths, settings.num_masks)), len(paths)


def make_sheet(
    pipeline: Any, settings: SheetOptions, mask_labels: LabelSet | None = None, upscaler: Any = None
) -> tuple[bytes, dict[str, Any]]:
    """Generate samples, arrange them beside their masks, and return a JPEG of at most 400 kB, and its record.

    With an upscaler, the samples of the pipeline are enlarged.
    """
    paths, of = choose_masks(settings)
    steps, scale = pipeline.resolve_sampling()
    generation = GenerationSettings(num_inference_steps=steps, guidance_scale=scale, seed=settings.seed)
    blocks = _draw(pipeline, paths, generation, settings, settings.samples, mask_labels, upscaler)
    shown = pipeline if upscaler is None else upscaler
    algorithm = shown.scheduler.config.get("algorithm_type")
    steps, scale = shown.resolve_sampling()
    record = {
        **({} if upscaler is None else {"generator": settings.generator}),
        "masks": [path.stem for path in paths],
        "of": of,
        "samples": settings.samples,
        "seed": settings.seed,
        "scheduler": type(shown.scheduler).__name__ + (f" ({algorithm})" if algorithm else ""),
        "num_inference_steps": steps,
        "guidance_scale": scale,
    }
    return _small_jpeg(_arrange(blocks, LabelSet.from_config(pipeline.unet.config))), record


def make_extremes(
    pipeline: Any,
    settings: SheetOptions,
    scores: Mapping[str, Any],
    mask_labels: LabelSet | None = None,
    upscaler: Any = None,
) -> bytes:
    """Generate the images again that `evaluate` found to agree best and worst with their masks; returns a JPEG.

    With an upscaler, the images of the pipeline are enlarged.

    Raises:
        ValueError: a mask of these images is not among those of the settings, or the pipeline, whose images an
            upscaler enlarges, has other weights than the one that was evaluated.
    """
    examples, sampled = scores["examples"], scores["generation"]
    by_stem = {path.stem: path for path in find_masks(str(settings.masks))}
    stems = [[entry["stem"] for entry in examples[end]] for end in ("best", "worst")]
    if missing := [stem for row in stems for stem in row if stem not in by_stem]:
        raise ValueError(
            f"'{settings.masks}' holds no mask '{missing[0]}', whose image is among the best or worst of --results. "
            "Give the masks that were evaluated."
        )
    if upscaler is not None and (ours := model_revision(pipeline.unet)) != sampled["revision"]:
        raise ValueError(
            f"--generator '{settings.generator}' has other weights ({ours}) than the model whose enlarged images "
            f"--results is for ({sampled['revision']}). Give that one."
        )
    names = SAMPLED + ENLARGED
    generation = GenerationSettings(**{name: sampled[name] for name in names if name in sampled})
    best, worst = stems
    blocks = _draw(pipeline, [by_stem[stem] for stem in best + worst], generation, settings, 1, mask_labels, upscaler)
    cells = [[_reduced(image) for image in block] for block in blocks]
    rows = [sum(cells[: len(best)], []), sum(cells[len(best) :], [])]
    return _small_jpeg(image_grid(rows, row_labels=["best", "worst"], cell_size=CELL_SIZE))


def _reduced(image: Image.Image) -> Image.Image:
    """Return an image whose long side has at most `LARGEST_CELL` pixels; ids of classes are not mixed."""
    scale = LARGEST_CELL / max(image.size)
    return image if scale >= 1 else image.resize([round(side * scale) for side in image.size])


def _can_be_drawn_again(scores: Mapping[str, Any], pipeline: Any, enlarged: bool) -> bool:
    """Whether a model gives the best and worst images of an evaluation again: from masks, by its own scheduler."""
    sampled, examples = scores.get("generation") or {}, scores.get("examples") or {}
    entries = [*examples.get("best", ()), *examples.get("worst", ())]
    others = {field.name for field in fields(GenerationSettings)} - {*SAMPLED, "height", "width", "image_format"}
    others |= {"guide_model", "scheduler_options"}
    others -= set(ENLARGED)
    return (
        bool(entries)
        and sampled.get("scheduler") == type(pipeline.scheduler).__name__
        and (sampled.get("upscaler") is not None) == enlarged
        and all(sampled.get(name) is None for name in others)
        and all(entry["image"] == f"{entry['stem']}_0" for entry in entries)  # none was filtered or varied
    )


def _draw(
    pipeline: Any,
    paths: Sequence[Path],
    generation: GenerationSettings,
    settings: SheetOptions,
    samples: int,
    mask_labels: LabelSet | None,
    upscaler: Any = None,
) -> list[list[Image.Image]]:
    """Return each mask with its samples."""
    with tempfile.TemporaryDirectory() as folder:
        chosen, generated = Path(folder, "chosen", "masks"), Path(folder, "generated")
        chosen.mkdir(parents=True)
        for path in paths:
            shutil.copy(path, chosen)
        if near := label_file_near(paths[0].parent, str(settings.masks)):  # so that masks of other classes are refused
            shutil.copy(near, chosen)
        generate_dataset(
            pipeline,
            chosen,
            generated,
            generation,
            inputs=Inputs(upscaler=upscaler),
            mask_labels=mask_labels,
            num_images_per_mask=samples,
            batch_size=settings.batch_size,
            contact_sheet_rows=0,
            show_progress=True,
        )
        return [
            [
                open_image(generated / "masks" / f"{path.stem}_0.png"),
                *(open_image(generated / "images" / f"{path.stem}_{k}.png") for k in range(samples)),
            ]
            for path in paths
        ]


def _small_jpeg(sheet: Image.Image) -> bytes:
    for quality in QUALITIES:
        data = io.BytesIO()  # colours are not subsampled, since masks have thin lines
        sheet.save(data, format="jpeg", quality=quality, subsampling=0, optimize=True)
        if data.tell() <= MAX_SHEET_BYTES:
            return data.getvalue()
    raise ValueError(
        f"a sheet of {sheet.width} x {sheet.height} pixels does not fit into {MAX_SHEET_BYTES // 1000} kB. Use fewer "
        "--num_masks or --samples."
    )


def _arrange(blocks: list[list[Image.Image]], labels: LabelSet) -> Image.Image:
    """Arrange blocks of a mask and its samples, as many in a row as fit, above the legend."""
    columns = len(blocks[0])
    width, height = blocks[0][0].size
    cell = round(width * max(1.0, CELL_SIZE / min(width, height))) + GAP
    most = max(1, SHEET_WIDTH // (columns * cell))
    in_a_row = -(-len(blocks) // -(-len(blocks) // most))  # rows as equal as possible
    rows = [sum(blocks[start : start + in_a_row], []) for start in range(0, len(blocks), in_a_row)]
    headers = ["mask", *(f"sample {k + 1}" for k in range(columns - 1))] * in_a_row
    grid = image_grid(rows, headers, cell_size=CELL_SIZE)
    legends = (labels.legend(columns=number) for number in range(labels.num_classes + 1, 0, -1))
    legend = next((wide for wide in legends if wide.width <= grid.width), None) or labels.legend()
    sheet = Image.new("RGB", (max(grid.width, legend.width), grid.height + legend.height), BACKGROUND)
    sheet.paste(grid, (0, 0))
    sheet.paste(legend, (0, grid.height))
    return sheet


def export_model(settings: ExportSettings) -> Path:
    """Write a model as a folder to share; after an error nothing of it remains.

    It holds the pipeline's own weights (no variants) as safetensors, configs, settings, log and page of the run, the
    card, `results/`, `samples.jpg`, with results also `extremes.jpg` (the images that agree best and worst), and
    `export.json`, which records how it was made. It holds no code files: `push` adds them. The page shows real images
    of the data, so it is copied only if the card names a licence.

    Args:
        settings: see `ExportSettings`.

    Returns:
        the folder.

    Raises:
        ValueError: the model is no complete pipeline of ours, the results are for other weights, the weights do not
            fit into the dtype, too few masks, or something else is at the output.
        FileNotFoundError: no such results or masks.
    """
    folder, dtype = Path(settings.model), settings.dtype
    index = folders.check_model_folder(folder)
    pipeline_class = folders.package_class(index["_class_name"], folder)
    scores = cards.read_scores(settings.results)
    if settings.generator is not None and not pipeline_class.is_upscaler:
        raise ValueError(f"--generator is for upscalers, and '{folder}' generates images itself. Omit it.")
    if pipeline_class.is_upscaler and (settings.masks is None) != (settings.generator is None):
        raise ValueError(
            f"'{folder}' is an upscaler, which enlarges images of another model: for an image on the card, give both "
            "--masks and --generator."
        )
    if settings.masks is not None:
        choose_masks(settings)  # checked before any work, like the next ones
        mask_labels = None if settings.mask_labels is None else LabelSet.from_name(settings.mask_labels)
    if settings.text_encoder_id is not None and "text_encoder" not in index:
        raise ValueError(f"--text_encoder_id: '{folder}' holds no text encoder. Omit it.")
    output = check_output(settings.output, settings.overwrite, folders.EXPORT_FILE, KIND)

    with new_folder(output, folders.EXPORT_FILE, KIND, settings.overwrite) as made:
        # 1. Weights and configs
        pipeline = pipeline_class.from_pretrained(folder, variant=only_variant(str(folder), "unet"))
        pipeline.unet.to(getattr(torch, dtype))
        lost = [name for name, tensor in pipeline.unet.state_dict().items() if not tensor.isfinite().all()]
        if lost:
            raise ValueError(
                f"--dtype {dtype} cannot hold the weights {', '.join(lost[:3])}: use bfloat16 or float32."
            )
        if (name := settings.text_encoder_id) is not None:
            encoder = load_text_encoder(name, "--text_encoder_id")
            check_same_encoder(name, *encoder, pipeline)
            pipeline.register_text_encoder(*encoder, source_of(name))
        pipeline.save_pretrained(made)
        index = read_json(made / folders.INDEX)
        follow_umask(made)
        for path in [*made.rglob("*.py")]:
            path.unlink()
        before, after = folders.stored_hash(folder), folders.stored_hash(made)
        for file, score in zip(settings.results, scores.values(), strict=True):
            scored = folders.check_weights(score, file, folder, made)
            if scored is not None and scored != after:
                score["notes"] = [*score.get("notes", []), f"Measured before the weights were rounded to {dtype}."]
        # 2. The card, and what it shows; log, settings and page of the run
        source = folders.without_machine_paths(settings.output)
        card = cards.model_card(folder, source, scores, stored=dtype, has_code=False, has_variants=False, index=index)
        license_name = cards.metadata(card).get("license")
        if not license_name:
            logger.warning(f"the card names no licence: write `license:` at the head of '{output / folders.CARD}'.")
        record: dict[str, Any] = {"dtype": dtype, "weights": after, "weights_before": before}
        contents = folders.model_files(made, index, with_code=False) | folders.run_files(folder)
        preview = ""  # the image of the folder's own card shows other weights
        if settings.masks is not None:
            device = choose_device(settings.device)
            shown = load_pipeline(made, upscaler=None).to(device)
            generator, upscaler = shown, None
            if settings.generator is not None:
                generator, upscaler = load_pipeline(settings.generator).to(device), shown
            about = {"dtype": dtype, "license_name": license_name, "examples": None}
            again = [score for score in scores.values() if _can_be_drawn_again(score, generator, bool(upscaler))]
            if again:  # first: it refuses masks that are not there
                contents[folders.EXTREMES_FILE] = make_extremes(generator, settings, again[0], mask_labels, upscaler)
                about |= {"examples": again[0]["examples"], "extremes": folders.EXTREMES_FILE}
            contents[folders.SHEET_FILE], record["sheet"] = make_sheet(generator, settings, mask_labels, upscaler)
            about["sheet"] = record["sheet"]
            preview = cards.render("sheet.md", file=folders.SHEET_FILE, **about)
        if preview or cards.has_part(card, "preview"):
            card = cards.replace_part(card, "preview", preview)
        contents[folders.CARD] = card.encode()
        contents |= {name: folders.json_bytes(score) for name, score in scores.items()}
        if not scores:  # the card still shows those it had
            contents |= folders.result_files(folder)
        if license_name and (folder / RUN_PAGE).is_file():
            contents[RUN_PAGE] = folder / RUN_PAGE
        record["versions"] = versions("torch", "diffusers")
        contents[folders.EXPORT_FILE] = folders.json_bytes(record)
        for name, content in contents.items():
            (made / name).parent.mkdir(exist_ok=True)
            if isinstance(content, bytes):
                (made / name).write_bytes(content)
            elif content != made / name:
                shutil.copyfile(content, made / name)
    return output


def export(settings: ExportSettings) -> None:
    """Run the command `export`: write the folder and print its size."""
    folder = export_model(settings)
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    sys.stdout.write(f"{settings.output}: {size / 1e6:.1f} MB, weights in {settings.dtype}\n")
