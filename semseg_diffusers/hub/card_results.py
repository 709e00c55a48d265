"""Results on a model card: what `semseg-diffusers agreement` wrote, as text with the commands that give it again,
and as the Hub's `model-index` metadata."""

import json
import shlex
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from huggingface_hub import EvalResult
from huggingface_hub.repocard_data import eval_results_to_model_index

from semseg_diffusers.hub.cards import without_machine_paths


ROWS = {
    "real": "real photos, their masks (ceiling)",
    "generated": "generated, their masks",
    "shuffled": "generated, masks of others (floor)",
}


def read_results(path: Path) -> dict[str, Any]:
    """Read what `semseg-diffusers agreement` wrote.

    Raises:
        FileNotFoundError: no such file.
        ValueError: it is something else.
    """
    try:
        results = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as err:
        raise ValueError(f"--results '{path}' is not valid JSON: {err}.") from err
    wanted = {"settings": None, "scores": ROWS, "resolution": ("generated",), "num_masks": None}
    missing = [key for key in wanted if not isinstance(results, dict) or key not in results]
    missing += [
        f"{key}.{name}"
        for key in wanted
        if key not in missing
        for name in wanted[key] or ()
        if name not in results[key]
    ]
    if missing:
        raise ValueError(
            f"--results '{path}' is no result of `semseg-diffusers agreement`: {', '.join(missing)} is missing."
        )
    return without_machine_paths(results)


def results_commands(results: dict[str, Any], model: str) -> list[str]:
    """The two commands that give these numbers: `generate` with this model, then `agreement`."""
    settings, generation = results["settings"], results.get("generation")
    masks = f"{settings['dataset']}/{settings['split']}/masks"
    if results["scores"]["real"]["num_images"] != results["num_masks"]:
        masks = "MASKS"  # not those of the split: the real photos were not narrowed to them
    commands = []
    if generation:
        options = {
            "model": model,
            "masks": masks,
            "output": settings["generated"],
            "num_images_per_mask": results["scores"]["generated"]["num_images"] // results["num_masks"],
        }
        kept = (
            "scheduler", "num_inference_steps", "guidance_scale", "guidance_start", "guidance_stop", "height", "width",
            "dtype", "seed",
        )  # fmt: skip
        options |= {name: generation[name] for name in kept if generation.get(name) is not None}
        commands.append(_command("generate", options))
    left_out = ("device", "save_segmenter")
    commands.append(
        _command(
            "agreement", {key: value for key, value in settings.items() if value is not None and key not in left_out}
        )
    )
    return commands


def _command(name: str, options: dict[str, Any]) -> str:
    words = [word for key, value in options.items() for word in (f"--{key}", str(value))]
    return f"semseg-diffusers {name} {shlex.join(words)}"


def results_text(results: dict[str, Any], model: str, file: str) -> str:
    """The Results section of a card for one file of results.

    Args:
        results: from `read_results`.
        model: repository id, or folder, that the command names.
        file: where the whole lies, beside the card.
    """
    settings, scores = results["settings"], results["scores"]
    height, width = results["resolution"]["generated"]
    table = [
        f"| {title} | {scores[name]['mean_iou']:.3f} | {scores[name]['pixel_accuracy']:.3f} "
        f"| {scores[name]['num_images']} |"
        for name, title in ROWS.items()
    ]
    classes = ", ".join(f"{name} {value:.2f}" for name, value in scores["generated"].get("iou", {}).items())
    absent = scores["generated"].get("absent") or []
    versions = ", ".join(f"{name} {version}" for name, version in results.get("versions", {}).items())
    commit = f", commit {results['commit'][:12]}" if results.get("commit") else ""
    lines = [
        f"Agreement with {results['num_masks']} masks of `{settings['dataset']}` (split `{settings['split']}`) at "
        f"{height} x {width} pixels, as a small segmentation network reads it that was trained on the real photos. "
        "It says how well images carry their masks, not how good they look.",
        "",
        "| images, scored against | mean IoU | pixel accuracy | images |",
        "|---|---|---|---|",
        *table,
        "",
        *([f"IoU of the generated images by class: {classes}."] if classes else []),
        *([f"Not in the masks, so not in the mean: {', '.join(absent)}."] if absent else []),
        "",
        "```bash",
        *results_commands(results, model),
        "```",
        "",
        f"All numbers and settings: [{file}]({file}). Versions: {versions}{commit}.",
        *(f"\n{note}" for note in results.get("notes", [])),
    ]
    return "\n".join(lines)


def model_index(model_name: str, all_results: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The Hub's `model-index` metadata: the scores of the generated images, not those of real photos."""
    rows = []
    for results in all_results:
        settings, generated = results["settings"], results["scores"]["generated"]
        for metric, title in (("mean_iou", "mean IoU"), ("pixel_accuracy", "pixel accuracy")):
            rows.append(
                EvalResult(
                    task_type="image-to-image",
                    task_name="images from segmentation masks",
                    dataset_type=PurePosixPath(settings["dataset"]).name,
                    dataset_name=PurePosixPath(settings["dataset"]).name,
                    dataset_split=settings["split"],
                    metric_type=metric,
                    metric_name=f"agreement, {title}",
                    metric_value=round(generated[metric], 6),
                    metric_args={"command": results_commands(results, model_name)[-1]},
                )
            )
    return eval_results_to_model_index(model_name.split("/")[-1], rows)
