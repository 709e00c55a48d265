"""Write a trained model as a folder to ship: weights in half precision, code files, settings, and a card that shows
its results and what it draws. It loads like any other, and `push` publishes it as it is.

  semseg-diffusers export --model RUN --output checkpoints/streets --results evaluation/results.json --masks DIR
"""

import argparse
import logging
import os
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import diffusers
import torch

import semseg_diffusers
from semseg_diffusers.data.labels import PRESET_NAMES, LabelSet
from semseg_diffusers.hub import cards
from semseg_diffusers.hub.folders import (
    CARD,
    EXPORT_FILE,
    RESULTS_FOLDER,
    SHEET_FILE,
    check_model_folder,
    check_weights,
    json_bytes,
    model_card,
    model_files,
    read_scores,
    run_files,
    stored_hash,
)
from semseg_diffusers.hub.push import load_pipeline
from semseg_diffusers.hub.sample_sheet import SheetSettings, choose_masks, draw_sheet
from semseg_diffusers.utils.files import check_output, new_folder, package_version


logger = logging.getLogger(__name__)

KIND = "exported model"
RUN_PAGE = "run.html"  # what `semseg-diffusers report` writes into a run folder
DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32}


def export_model(
    folder: str | os.PathLike,
    output: str | os.PathLike,
    *,
    dtype: str = "float16",
    results: Sequence[str | os.PathLike] | None = None,
    sheet: SheetSettings | None = None,
    batch_size: int = 8,
    device: str | torch.device = "cpu",
    overwrite: bool = False,
) -> Path:
    """Write a model as a folder to ship: whole, or not at all.

    It holds the pipeline's own weights (none of `variant=`) as safetensors, configs, the code files of this package,
    settings, log and page of the run, the card, `results/`, `samples.jpg`, and `export.json`, which says how it was
    made. The page shows photos of the data, so it goes along only where the card names a licence.

    Args:
        folder: a run folder, or what `save_pretrained` wrote.
        output: the folder to make; it must not exist, or be empty. As it is given, if it is no absolute path, the card
            names it for `from_pretrained`.
        dtype: what the weights are stored in: float16, bfloat16 or float32. `from_pretrained` makes float32 of them.
        results: files that `semseg-diffusers evaluate` wrote of these weights, or of those before they were rounded.
        sheet: masks to draw samples from, for the card's picture; None leaves it away.
        batch_size: images a forward, of the sheet.
        device: that the sheet is drawn on.
        overwrite: replace a folder that `export` made, and only such a one.

    Returns:
        the folder.

    Raises:
        ValueError: `folder` holds no whole pipeline of ours, the results are of other weights, the weights do not fit
            into `dtype`, too few masks, or something else stands at `output`.
        FileNotFoundError: no such results or masks.
    """
    folder, named = Path(folder), Path(output)
    if dtype not in DTYPES:
        raise ValueError(f"--dtype {dtype}: wanted one of {', '.join(DTYPES)}.")
    index = check_model_folder(folder)
    pipeline_class = getattr(semseg_diffusers, index["_class_name"], None)
    if pipeline_class is None:
        raise ValueError(
            f"'{folder}' holds a {index['_class_name']}, which this package does not have. Was it saved "
            "by a newer one?"
        )
    scores = read_scores(results)
    if sheet is not None:
        choose_masks(sheet)  # there, or refused before any work
    output = check_output(output, overwrite, EXPORT_FILE, KIND)

    with new_folder(output, EXPORT_FILE, KIND, overwrite) as made:
        # 1. Weights, configs and code files; then what the run says of itself
        pipeline = pipeline_class.from_pretrained(folder)
        round_weights(pipeline.unet, dtype)
        pipeline.save_pretrained(made)
        for name, content in (model_files(made, index) | run_files(folder)).items():
            write(made / name, content)
        before, after = stored_hash(folder), stored_hash(made)
        for path, score in zip(results or (), scores.values(), strict=True):
            scored = check_weights(score, path, folder, made)
            if scored is not None and scored != after:
                score["notes"] = [*score.get("notes", []), f"Measured before the weights were rounded to {dtype}."]
        # 2. The card
        source = cards.without_machine_paths(os.fspath(named))
        card = cards.without_variants(model_card(folder, index, source, None, scores, stored=dtype))
        if not cards.metadata(card).get("license"):
            logger.warning(f"the card names no licence: write `license:` at the head of '{output / CARD}'.")
        elif (folder / RUN_PAGE).is_file():
            write(made / RUN_PAGE, folder / RUN_PAGE)
        record: dict[str, Any] = {"dtype": dtype, "weights": after, "weights_before": before}
        if sheet is not None:
            drawing = load_pipeline(made).to(device)
            data, record["sheet"] = draw_sheet(drawing, sheet, batch_size)
            write(made / SHEET_FILE, data)
            card = cards.replace_part(
                card, "preview", f"![Masks and samples]({SHEET_FILE})\n\n{_caption(record, card)}"
            )
        elif cards.has_part(card, "preview"):
            card = cards.replace_part(card, "preview", "")  # its picture is of other weights, and stays behind
        write(made / CARD, card.encode())
        if not scores:  # the card still shows those it had
            for path in sorted((folder / RESULTS_FOLDER).glob("*.json")):
                write(made / RESULTS_FOLDER / path.name, path)
        for name, score in scores.items():
            write(made / name, json_bytes(score))
        record["versions"] = {
            "semseg_diffusers": package_version(),
            "torch": torch.__version__,
            "diffusers": diffusers.__version__,
        }
        write(made / EXPORT_FILE, json_bytes(record))
    return output


def round_weights(unet: torch.nn.Module, dtype: str) -> None:
    """Bring the weights of a network to a precision, in place.

    Raises:
        ValueError: some are too large for it.
    """
    unet.to(DTYPES[dtype])
    lost = [name for name, tensor in unet.state_dict().items() if not tensor.isfinite().all()]
    if lost:
        raise ValueError(f"--dtype {dtype} cannot hold the weights {', '.join(lost[:3])}: take bfloat16 or float32.")


def write(path: Path, content: Path | bytes) -> None:
    """Write a file of the folder in the making; one that stands there already stays."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content != path:
        shutil.copyfile(content, path)


def _caption(record: dict[str, Any], card: str) -> str:
    """What the sheet shows, as the card says it."""
    sheet, stored = record["sheet"], record["dtype"]
    license_name = cards.metadata(card).get("license")
    licence = f"\nLicence of the weights and of what they draw: {license_name}." if license_name else ""
    rounded = "" if stored == "float32" else f", rounded to {stored}"
    return (
        f"*{len(sheet['masks'])} of {sheet['of']} masks, chosen by seed {sheet['seed']}, and the first samples of "
        f"each, none left out.\nDrawn by the weights as they lie here{rounded}: {sheet['scheduler']},\n"
        f"{sheet['num_inference_steps']} steps, guidance {sheet['guidance_scale']:g}.{licence}*"
    )


DEFAULTS = SheetSettings.__dataclass_fields__


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `semseg-diffusers export`."""
    parser.add_argument("--model", required=True, metavar="RUN", help="run folder, or what save_pretrained wrote")
    parser.add_argument(
        "--output", required=True, metavar="DIR", help="folder to make; the card names it as it is given here"
    )
    parser.add_argument(
        "--dtype", choices=list(DTYPES), default="float16", help="what weights are stored in (default %(default)s)"
    )
    parser.add_argument(
        "--results", nargs="+", metavar="FILE", help="results.json that `evaluate` wrote of this model, for its card"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace a folder that this command made")
    sheet = parser.add_argument_group("the card's picture")
    sheet.add_argument("--masks", metavar="DIR", help="masks to choose from (default: no picture)")
    sheet.add_argument(
        "--mask_labels",
        metavar="PRESET|FILE",
        help=f"their label set, where it is another than the model's: {', '.join(PRESET_NAMES)}, or a JSON file",
    )
    for name, text in (
        ("num_masks", "masks on it"),
        ("samples", "samples of each"),
        ("seed", "chooses the masks, and begins the seeds of the samples"),
    ):
        sheet.add_argument(f"--{name}", type=int, metavar="N", help=f"{text} (default {DEFAULTS[name].default})")
    sheet.add_argument("--batch_size", type=int, default=8, help="images a forward (default %(default)s)")
    sheet.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="default: GPU if any")


def run(args: argparse.Namespace) -> None:
    """Export, and say where it is and how large."""
    given = {name: getattr(args, name) for name in ("mask_labels", "num_masks", "samples", "seed")}
    given = {name: value for name, value in given.items() if value is not None}
    if given and args.masks is None:
        raise ValueError(
            f"{', '.join(f'--{name}' for name in given)}: only with --masks. Give it, or leave them away."
        )
    if "mask_labels" in given:
        given["mask_labels"] = LabelSet.from_name(given["mask_labels"])
    sheet = None if args.masks is None else SheetSettings(Path(args.masks), **given)
    folder = export_model(
        args.model,
        args.output,
        dtype=args.dtype,
        results=args.results,
        sheet=sheet,
        batch_size=args.batch_size,
        device=args.device,
        overwrite=args.overwrite,
    )
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    sys.stdout.write(f"{args.output}: {size / 1e6:.1f} MB, weights in {args.dtype}\n")
