"""Results of `semseg-diffusers evaluate` as text: a Markdown table, and the commands that reproduce them."""

import shlex
from typing import Any

from semseg_diffusers.reports.render import NOTHING, number


ROWS = ("shuffled", "generated", "real")  # floor, value, ceiling


def results_table(results: dict[str, Any]) -> str:
    """Return agreement and fidelity as a Markdown table: each row with its floor and, if there is one, its ceiling."""
    lines = ["| measure | better | floor | generated | ceiling |", "|---|---|---:|---:|---:|"]
    agreement = results["agreement"]
    for key, name in (("mean_iou", "mean IoU"), ("pixel_accuracy", "pixel accuracy")):
        values = [number(agreement[row][key]) for row in ROWS]
        lines.append(f"| {name} | higher | {' | '.join(values)} |")
    for entry in results["fidelity"]:
        for reference in entry["references"]:
            where = f"{reference['reference']} ({entry['features']['name']})".replace("|", "\\|")
            for key in ("fid", "kid"):
                floor, value = reference["floor"][key], reference["generated"][key]
                lines.append(f"| {key.upper()} to {where} | lower | {number(floor)} | {number(value)} | {NOTHING} |")
    return "\n".join(lines)


def results_commands(results: dict[str, Any], model: str, separator: str = " ") -> list[str]:
    """Return the command that reproduces these numbers with a model, after `generate` where images were given.

    Args:
        results: what `evaluate` wrote.
        model: repository id, or folder, that the commands name.
        separator: between two options.
    """
    settings, generation = dict(results["settings"]), results.get("generation")
    commands = []
    if settings.get("model"):
        settings["model"] = model
    elif generation:
        kept = (
            "scheduler", "num_inference_steps", "guidance_scale", "guidance_start", "guidance_stop", "height", "width",
            "dtype", "seed", "variant",
        )  # fmt: skip
        options = {
            "model": model,
            "masks": f"{settings['dataset']}/{settings['split']}/masks",
            "output": settings["generated"],
            "num_images_per_mask": results["data"]["num_generated"] // results["data"]["num_masks"],
            **{name: generation[name] for name in kept if generation.get(name) is not None},
        }
        commands.append(_command("generate", options, separator))
    commands.append(_command("evaluate", settings, separator))
    return commands


def _command(name: str, options: dict[str, Any], separator: str) -> str:
    words = []
    for key, value in options.items():
        if key == "features" and not value:
            value = ["none"]
        if key == "segmenter_size" and value is not None:
            value = "x".join(map(str, value))
        if value is not None:
            words.append(shlex.join([f"--{key}", *map(str, value if isinstance(value, list) else (value,))]))
    return separator.join([f"semseg-diffusers {name}", *words])
