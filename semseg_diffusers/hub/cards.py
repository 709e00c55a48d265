"""Model cards and dataset cards: templates filled with what a folder knows, and the parts that a push rewrites.

A part is between `<!-- begin NAME ... -->` and `<!-- end NAME -->`; what a user writes elsewhere is never changed.
"""

import json
import re
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

import yaml
from huggingface_hub import DatasetCardData, EvalResult, ModelCardData
from huggingface_hub.repocard_data import eval_results_to_model_index
from jinja2 import Environment, FileSystemLoader

from semseg_diffusers.data.labels import LabelSet
from semseg_diffusers.reports.evaluation_text import ROWS, results_commands, results_table
from semseg_diffusers.utils.files import package_version


BY_VARIANT = "; by `variant=` also "  # followed by the names of the weights that are saved beside the pipeline's own
# How the pipelines that edit images are called; the others take a mask alone.
CALLS = {
    "MaskGuidedImg2ImgPipeline": 'pipe("photo.png", "mask.png", strength=0.5)',
    "MaskGuidedInpaintPipeline": 'pipe("photo.png", "edited_mask.png", old_mask="mask.png")',
}
# Keys of `results.json` that a card reads, and what each must hold.
RESULT_KEYS = {
    "settings": ("dataset", "split", "segmenter"),
    "agreement": ROWS,
    "fidelity": (),
    "resolution": (),
    "data": ("num_masks",),
    "segmenter": ("name",),
}
_METADATA = re.compile(r"\A---\n(.*?)^---\n", re.DOTALL | re.MULTILINE)
_TEMPLATES = Environment(  # noqa: S701  Markdown, not HTML
    loader=FileSystemLoader(Path(__file__).parent / "templates")
)


def local_name(source: str) -> str:
    """Return the name of a local folder, or the Hub id that `source` is."""
    return Path(source).resolve().name if Path(source).is_dir() else without_machine_paths(source)


_TEMPLATES.filters["local_name"] = local_name


def render(template: str, **values: Any) -> str:
    """Fill a template of hub/templates/."""
    return _TEMPLATES.get_template(template).render(**values)


# Rendering ---------------------------------------------------------------------------------------------------------


def render_model_card(
    config: Mapping[str, Any],
    *,
    title: str,
    source: str,
    pipeline_class: str = "MaskGuidedDDPMPipeline",
    parameters: int | None = None,
    scheduler_config: Mapping[str, Any] | None = None,
    license_name: str | None = None,
    origin: str | None = None,
    run: Mapping[str, Any] | None = None,
) -> str:
    """Fill `model_card.md`.

    Args:
        config: of the network, as saved: label set, attributes, size and class.
        title: the card's first line.
        source: folder or repository id that `from_pretrained` takes.
        pipeline_class: class of the pipeline.
        parameters: number of the network's weights, if known.
        scheduler_config: of the scheduler saved beside it; needed without `run`.
        license_name: the Hub's name of the licence, if known.
        origin: where weights of others come from, for a converted pipeline.
        run: what a training run knows: `settings`, `num_pairs`, `data_license` (a sentence), `step`,
            `samples_per_step`, `averages` (variant and decay of each weight average, that of the pipeline first),
            `trained_seconds` and `loss`; None for a pipeline saved without a run.
    """
    size = config.get("sample_size")
    height, width = (size, size) if isinstance(size, int) else size or (None, None)
    dataset = run["settings"].dataset if run else ""
    data = ModelCardData(
        library_name="diffusers",
        pipeline_tag="image-to-image",
        license=license_name,
        datasets=[dataset] if dataset.count("/") == 1 and not Path(dataset).is_dir() else None,
        tags=["diffusers", "semantic-segmentation", "mask-to-image", "synthetic-data", "semseg-diffusers"],
    )
    versions = ", ".join(f"{name} {version(name)}" for name in ("torch", "diffusers", "accelerate"))
    text = render(
        "model_card.md",
        card_data=data.to_yaml(),
        title=title,
        version=package_version(),
        versions=versions,
        use=model_use(source, pipeline_class=pipeline_class),
        labels=LabelSet.from_config(config),
        attributes=config.get("attributes"),
        network=config.get("_class_name", ""),
        height=height,
        width=width,
        parameters=parameters,
        scheduler=scheduler_config,
        origin=origin,
        run=run,
        by_variant=BY_VARIANT,
    )
    return text + "\n"


def model_use(
    source: str,
    revision: str | None = None,
    pipeline_class: str = "MaskGuidedDDPMPipeline",
    stored: str = "float32",
    has_code: bool = True,
) -> str:
    """Return the part of a card on loading a model.

    Args:
        source: folder or repository id that `from_pretrained` takes.
        revision: branch, if it is not the main one.
        pipeline_class: class of the pipeline.
        stored: dtype of the stored weights.
        has_code: whether code files are saved beside the weights.
    """
    call = CALLS.get(pipeline_class, 'pipe("mask.png")')
    return render(
        "model_use.md", source=source, revision=revision, pipeline=pipeline_class, call=call, stored=stored,
        has_code=has_code,
    )  # fmt: skip


def without_variants(card: str) -> str:
    """Return a card for a folder that holds the pipeline's own weights alone."""
    return re.sub(rf"{re.escape(BY_VARIANT)}[^|\n]*(?= \|)", "", card)


def render_dataset_card(*, title: str, license_name: str | None, license_text: str, synthetic: bool) -> str:
    """Fill `dataset_card.md`; its parts are empty until `replace_part` fills them."""
    data = DatasetCardData(
        license=license_name,
        task_categories=["image-segmentation"],
        annotations_creators=["machine-generated"] if synthetic else None,
        tags=["semantic-segmentation", "semseg-diffusers", *(["synthetic"] if synthetic else [])],
        pretty_name=title,
    )
    return (
        render(
            "dataset_card.md", card_data=data.to_yaml(), title=title, license_text=license_text, synthetic=synthetic
        )
        + "\n"
    )


def dataset_use(repo_id: str, revision: str | None = None) -> str:
    """Return the part of a card on loading a dataset and training with it."""
    return render("dataset_use.md", repo_id=repo_id, revision=revision)


def dataset_content(labels: LabelSet, record: dict[str, Any], counts: Mapping[str, int]) -> str:
    """Return the part of a card on a dataset's pairs, how they were made, and their classes.

    Args:
        labels: of the masks.
        record: `prepare.json` or `generation.json`.
        counts: split -> number of pairs.
    """
    resolution = record.get("resolution")
    if "guidance_scale" in record:
        size = f"{record['height']} x {record['width']}"
    else:
        size = " x ".join(map(str, resolution)) if isinstance(resolution, list) else None
    return render("dataset_content.md", labels=labels, record=without_machine_paths(record), counts=counts, size=size)


# Results -----------------------------------------------------------------------------------------------------------


def read_results(path: Path) -> dict[str, Any]:
    """Read what `semseg-diffusers evaluate` wrote, without paths of the machine.

    Raises:
        FileNotFoundError: no such file.
        ValueError: it is something else.
    """
    try:
        results = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as err:
        raise ValueError(f"--results '{path}' is not valid JSON: {err}.") from err
    found = results if isinstance(results, dict) else {}
    missing = [key for key in RESULT_KEYS if key not in found]
    for key, names in RESULT_KEYS.items():
        missing += [f"{key}.{name}" for name in names if key in found and name not in found[key]]
    if missing:
        raise ValueError(
            f"--results '{path}' was not written by `semseg-diffusers evaluate`: {', '.join(missing)} is missing."
        )
    return without_machine_paths(results)


def results_text(results: dict[str, Any], model: str, file: str) -> str:
    """Return the Results section of a card for one file of results.

    Args:
        results: from `read_results`.
        model: repository id, or folder, that the commands name.
        file: the file of all results, relative to the card.
    """
    table, commands = results_table(results), results_commands(results, model)
    return render("results.md", results=results, table=table, commands=commands, file=file)


def model_index(model_name: str, all_results: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the Hub's `model-index` metadata: the scores of the generated images, not those of real images."""
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


# Parts and metadata ------------------------------------------------------------------------------------------------


def replace_part(card: str, name: str, content: str) -> str:
    """Rewrite a marked part; a card without that part is unchanged."""
    pattern = re.compile(rf"(<!-- begin {name}\b[^\n]*-->\n).*?(<!-- end {name} -->)", re.DOTALL)
    return pattern.sub(lambda match: f"{match[1]}{content}\n{match[2]}", card, count=1)


def has_part(card: str, name: str) -> bool:
    """Return whether a card has a marked part."""
    return replace_part(card, name, "\0") != card


def metadata(card: str) -> dict[str, Any]:
    """Return the YAML block at the head of a card; empty if there is none.

    Raises:
        ValueError: the block is no YAML, or no mapping.
    """
    block = _METADATA.match(card.replace("\r\n", "\n"))
    try:
        values = yaml.safe_load(block[1]) if block else None
    except yaml.YAMLError as err:
        raise ValueError(
            f"the metadata at the head of README.md is no valid YAML: {' '.join(str(err).split())}"
        ) from err
    if values is not None and not isinstance(values, dict):
        raise ValueError("the metadata at the head of README.md must be `key: value` lines.")
    return values or {}


def with_metadata(card: str, **changes: Any) -> str:
    """Set keys of the metadata; a card where nothing changes keeps its block exactly."""
    before = metadata(card)
    after = {**before, **changes}
    if after == before:
        return card
    text = card.replace("\r\n", "\n")
    block = _METADATA.match(text)
    dumped = yaml.safe_dump(after, sort_keys=False, allow_unicode=True, width=10_000)
    return f"---\n{dumped}---\n{text[block.end() :] if block else text}"


def outside_parts(card: str) -> str:
    """Return what a user may have written: the card without its metadata and its marked parts."""
    text = _METADATA.sub("", card.replace("\r\n", "\n"))
    return re.sub(r"<!-- begin (\w+)\b[^\n]*-->\n.*?<!-- end \1 -->", "", text, flags=re.DOTALL).strip()


def without_machine_paths(value: Any) -> Any:
    """Shorten absolute paths in a JSON value to their last part, so that no folders of a machine are published.

    Example:
        >>> without_machine_paths({"dataset": "/home/alice/data/camvid128", "output": "runs/a", "seed": 0})
        {'dataset': 'camvid128', 'output': 'runs/a', 'seed': 0}
    """
    if isinstance(value, dict):
        return {key: without_machine_paths(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [without_machine_paths(entry) for entry in value]
    if isinstance(value, str):
        for kind in (PurePosixPath, PureWindowsPath):
            if kind(value).is_absolute() or value.startswith("~"):
                return kind(value).name
    return value
