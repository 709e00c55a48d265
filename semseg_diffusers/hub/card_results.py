"""Results on a model card: what `semseg-diffusers evaluate` wrote, as text with the command that gives it again,
and as the Hub's `model-index` metadata."""

import json
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from huggingface_hub import EvalResult
from huggingface_hub.repocard_data import eval_results_to_model_index

from semseg_diffusers.hub.cards import without_machine_paths
from semseg_diffusers.reports.evaluation_text import ROWS, results_commands, results_table


# Parts of `results.json` that a card reads, and what must be in them.
WANTED = {
    "settings": ("dataset", "split", "segmenter"),
    "agreement": ROWS,
    "fidelity": (),
    "resolution": (),
    "data": ("num_masks",),
    "segmenter": ("name",),
}


def read_results(path: Path) -> dict[str, Any]:
    """Read what `semseg-diffusers evaluate` wrote.

    Raises:
        FileNotFoundError: no such file.
        ValueError: it is something else.
    """
    try:
        results = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as err:
        raise ValueError(f"--results '{path}' is not valid JSON: {err}.") from err
    missing = [key for key in WANTED if not isinstance(results, dict) or key not in results]
    missing += [
        f"{key}.{name}"
        for key, names in WANTED.items()
        if key not in missing
        for name in names
        if name not in results[key]
    ]
    if missing:
        raise ValueError(
            f"--results '{path}' is no result of `semseg-diffusers evaluate`: {', '.join(missing)} is missing."
        )
    return without_machine_paths(results)


def results_text(results: dict[str, Any], model: str, file: str) -> str:
    """The Results section of a card for one file of results.

    Args:
        results: from `read_results`.
        model: repository id, or folder, that the command names.
        file: where the whole lies, beside the card.
    """
    settings, generated, judge = results["settings"], results["agreement"]["generated"], results["segmenter"]
    height, width = results["resolution"]
    classes = ", ".join(f"{name} {value:.2f}" for name, value in generated.get("iou", {}).items())
    absent = generated.get("absent") or []
    versions = ", ".join(f"{name} {version}" for name, version in results.get("versions", {}).items())
    commit = f", commit {results['commit'][:12]}" if results.get("commit") else ""
    lines = [
        f"{results['data']['num_masks']} masks of `{settings['dataset']}` (split `{settings['split']}`) at {height} x "
        f"{width} pixels. Agreement, as `{judge['name']}` reads it, says how well images carry their masks; FID and "
        "KID say how far they are from photos, and are to be compared with the floor only, of the same features and "
        "number of images.",
        "",
        results_table(results),
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
        settings, generated = results["settings"], results["agreement"]["generated"]
        dataset = PurePosixPath(settings["dataset"]).name
        metrics = [
            ("mean_iou", "agreement, mean IoU", generated["mean_iou"]),
            ("pixel_accuracy", "agreement, pixel accuracy", generated["pixel_accuracy"]),
        ]
        for entry in results["fidelity"]:
            reference = entry["references"][0]
            name = f"{entry['features']['name']}, {reference['n']} images"
            metrics += [(key, f"{key.upper()} of {name}", reference["generated"][key]) for key in ("fid", "kid")]
        rows += [
            EvalResult(
                task_type="image-to-image",
                task_name="images from segmentation masks",
                dataset_type=dataset,
                dataset_name=dataset,
                dataset_split=settings["split"],
                metric_type=metric,
                metric_name=title,
                metric_value=round(value, 6),
                metric_args={"command": results_commands(results, model_name)[-1]},
            )
            for metric, title, value in metrics
        ]
    return eval_results_to_model_index(model_name.split("/")[-1], rows)
