"""Model cards and data set cards: templates filled with what a folder knows, and the parts that a push writes anew.

A part stands between `<!-- begin NAME ... -->` and `<!-- end NAME -->`; what a user writes elsewhere is never touched.
"""

import re
from collections.abc import Mapping
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

import yaml
from huggingface_hub import DatasetCardData, ModelCardData
from jinja2 import Environment

from semseg_diffusers.data.labels import LabelSet
from semseg_diffusers.utils.files import package_version


MODEL_TEMPLATE = Path(__file__).parent / "templates" / "model_card.md"
DATASET_TEMPLATE = Path(__file__).parent / "templates" / "dataset_card.md"

BY_VARIANT = "; by `variant=` also "  # what follows names the weights that lie beside the pipeline's own

_METADATA = re.compile(r"\A---\n(.*?)^---\n", re.DOTALL | re.MULTILINE)


# Rendering ---------------------------------------------------------------------------------------------------------


def render_model_card(
    labels: LabelSet,
    *,
    title: str,
    source: str,
    license_name: str | None,
    network: str,
    parameters: int | None,
    scheduler_config: dict[str, Any] | None = None,
    training: dict[str, Any] | None = None,
    dataset_id: str | None = None,
    pipeline_class: str = "MaskGuidedDDPMPipeline",
    origin: str | None = None,
    attributes: Mapping[str, list[str]] | None = None,
) -> str:
    """Fill `model_card.md`.

    Args:
        labels: what the network draws.
        title: the card's first line.
        source: folder or repository id that `from_pretrained` takes.
        license_name: the Hub's name of the licence, where known.
        network: class of the network.
        parameters: how many weights it has, where known.
        scheduler_config: of the scheduler saved beside it; needed where no run tells more.
        training: what the training run knows, see the template; None for a pipeline saved without a run.
        dataset_id: the data set's id, where it is on the Hub.
        pipeline_class: class of the pipeline.
        origin: where weights of others come from, for a pipeline that was converted.
        attributes: values that the network knows of each attribute, as its config has them.
    """
    data = ModelCardData(
        library_name="diffusers",
        pipeline_tag="image-to-image",
        license=license_name,
        datasets=[dataset_id] if dataset_id else None,
        tags=["diffusers", "semantic-segmentation", "mask-to-image", "synthetic-data", "semseg-diffusers"],
    )
    return _render(
        MODEL_TEMPLATE,
        card_data=data.to_yaml(),
        title=title,
        version=package_version(),
        use=model_use(source, pipeline_class=pipeline_class),
        classes=class_table(labels),
        attributes=attributes,
        network=network,
        parameters="" if parameters is None else f", {parameters:,} parameters",
        scheduler=scheduler_config,
        training=training,
        origin=origin,
        results="None measured by the training run. `semseg-diffusers evaluate` compares samples with their masks.",
    )


def render_dataset_card(*, title: str, license_name: str | None, license_text: str, synthetic: bool) -> str:
    """Fill `dataset_card.md`; its parts are empty until `replace_part` fills them."""
    data = DatasetCardData(
        license=license_name,
        task_categories=["image-segmentation"],
        annotations_creators=["machine-generated"] if synthetic else None,
        tags=["semantic-segmentation", "semseg-diffusers", *(["synthetic"] if synthetic else [])],
        pretty_name=title,
    )
    return _render(
        DATASET_TEMPLATE, card_data=data.to_yaml(), title=title, license_text=license_text, synthetic=synthetic
    )


def _render(template: Path, **values: Any) -> str:
    text = template.read_text(encoding="utf-8")
    return Environment(keep_trailing_newline=True).from_string(text).render(**values)  # noqa: S701 (Markdown, not HTML)


def class_table(labels: LabelSet) -> str:
    """The label set as a Markdown table."""
    rows = [
        *((str(i), name, color) for i, (name, color) in enumerate(zip(labels.names, labels.colors, strict=True))),
        (str(labels.ignore_index), "unknown", labels.ignore_color),
    ]
    lines = [f"| {number} | {name} | {', '.join(map(str, color))} |" for number, name, color in rows]
    return "\n".join(["| id | class | colour (r, g, b) |", "|---:|---|---|", *lines])


# How the pipelines that edit photos are called; the others take a mask alone.
_CALLS = {
    "MaskGuidedImg2ImgPipeline": 'pipe("photo.png", "mask.png", strength=0.5)',
    "MaskGuidedInpaintPipeline": 'pipe("photo.png", "edited_mask.png", old_mask="mask.png")',
}


def model_use(
    source: str,
    revision: str | None = None,
    pipeline_class: str = "MaskGuidedDDPMPipeline",
    stored: str = "float32",
) -> str:
    """How to load a model, as the card says it.

    Args:
        source: folder or repository id that `from_pretrained` takes.
        revision: branch, where it is not the main one.
        pipeline_class: class of the pipeline.
        stored: what the weights are stored in.
    """
    pinned = f', revision="{revision}"' if revision else ""
    call = _CALLS.get(pipeline_class, 'pipe("mask.png")')
    half = (
        f"\n\nThe weights are stored in {stored}: `from_pretrained` makes float32 of them, and with\n"
        f"`dtype=torch.{stored}` they stay as they are, for a GPU."
    )
    half = "" if stored == "float32" else half
    return f"""```python
from semseg_diffusers import {pipeline_class}

pipe = {pipeline_class}.from_pretrained("{source}"{pinned})
image = {call}.images[0]  # masks: class ids, or the colours below
```

Without the package: `DiffusionPipeline.from_pretrained(x{pinned}, custom_pipeline=x, trust_remote_code=True)` with
`x = "{source}"` runs the code files that lie beside the weights; read them first.{half}"""


def without_variants(card: str) -> str:
    """The card of a folder that holds the pipeline's own weights alone."""
    return re.sub(rf"{re.escape(BY_VARIANT)}[^|\n]*(?= \|)", "", card)


def dataset_use(repo_id: str, revision: str | None = None) -> str:
    """How to load and train on a data set, as the card says it."""
    pinned = f', revision="{revision}"' if revision else ""
    return f"""```python
from semseg_diffusers.data.dataset import load_pairs

pairs = load_pairs("{repo_id}", "train"{pinned})
pair = pairs[0]  # "image" uint8 (3, H, W), "mask" class ids uint8 (H, W), "stem"
```

`datasets.load_dataset("{repo_id}"{pinned})` gives the same as pictures: `image`, and `mask`, whose pixel values are
class ids. To train: `accelerate launch train_accelerate.py --dataset {repo_id} --output_dir RUN`."""


def dataset_content(labels: LabelSet, record: dict[str, Any], counts: Mapping[str, int]) -> str:
    """How many pairs, how they were made, and their classes.

    Args:
        labels: of the masks.
        record: `prepare.json` or `generation.json`.
        counts: split -> pairs.
    """
    if "guidance_scale" in record:
        size = f"{record['height']} x {record['width']}"
        how = (
            f"Drawn by `{without_machine_paths(record['model'])}` (revision {record['revision']}) with "
            f"{record['scheduler']}, {record['num_inference_steps']} steps, guidance {record['guidance_scale']:g} "
            f"from {record['guidance_start']:g} to {record['guidance_stop']:g} of them, seed {record['seed']}, "
            f"{record['dtype']}. {_made_otherwise(record)}Each row names its seed and mask; `generation.json` holds "
            "all settings."
        )
    else:
        resolution = record.get("resolution")
        size = " x ".join(map(str, resolution)) if isinstance(resolution, list) else "their own"
        command = "toy" if record.get("format") == "toy" else f"prepare --format {record.get('format')}"
        small = f" {record['enlarged']} pairs were smaller and were enlarged." if record.get("enlarged") else ""
        how = f"Made by `semseg-diffusers {command}`; `prepare.json` holds all settings.{small}{_grown(record)}"
    rows = [f"| {split} | {count} |" for split, count in counts.items()]
    sizes = f"Height x width: {size} pixels." if size != "their own" else "Pictures keep their own size."
    return "\n".join(["| split | pairs |", "|---|---:|", *rows, "", sizes, how, "", class_table(labels)])


def _grown(record: dict[str, Any]) -> str:
    """What of a data set is no photo."""
    drawn = record.get("synthetic")
    if not drawn:
        return ""
    return (
        f" {drawn['count']} pairs of the split {drawn['split']} are synthetic (column `synthetic`), drawn by "
        f"`{without_machine_paths(drawn['model'])}` (revision {drawn['revision']}, licence "
        f"{drawn['license'] or 'not known'}); `synthetic.jsonl` says how."
    )


def _made_otherwise(record: dict[str, Any]) -> str:
    """What of a generated data set is not drawn from noise at one setting, or not as it was drawn."""
    told = ""
    if record.get("variations"):
        values = {name: ", ".join(map(str, given)) for name, given in record["variations"].items()}
        told += f"Varied for each mask: {'; '.join(f'{name} {value}' for name, value in values.items())}. "
    if record.get("painted"):
        told += "Masks were painted by hand, and settings differ from image to image: these are those of the first. "
    if record.get("edit"):
        told += "Real photos were made anew only where their masks had been edited. "
    if record.get("strength") is not None:
        told += f"Real photos were redrawn at strength {record['strength']:g}. "
    if record.get("filter"):
        told += (
            f"Of {record['filter']['num_images']} images {record['filter']['num_kept']} were kept, and labels that a "
            "segmentation network did not find in them became unknown. "
        )
    return told


# Parts and metadata ------------------------------------------------------------------------------------------------


def replace_part(card: str, name: str, content: str) -> str:
    """Write a marked part anew; a card without that part stays as it is."""
    pattern = re.compile(rf"(<!-- begin {name}\b[^\n]*-->\n).*?(<!-- end {name} -->)", re.DOTALL)
    return pattern.sub(lambda match: f"{match[1]}{content}\n{match[2]}", card, count=1)


def has_part(card: str, name: str) -> bool:
    return replace_part(card, name, "\0") != card


def metadata(card: str) -> dict[str, Any]:
    """The YAML block at the head of a card; empty where there is none.

    Raises:
        ValueError: the block is no YAML, or no list of keys.
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
    """Set keys of the metadata; a card where nothing changes keeps its block to the last character."""
    before = metadata(card)
    after = {**before, **changes}
    if after == before:
        return card
    text = card.replace("\r\n", "\n")
    block = _METADATA.match(text)
    dumped = yaml.safe_dump(after, sort_keys=False, allow_unicode=True, width=10_000)
    return f"---\n{dumped}---\n{text[block.end() :] if block else text}"


def outside_parts(card: str) -> str:
    """What a user may have written: the card without its metadata and its marked parts."""
    text = _METADATA.sub("", card.replace("\r\n", "\n"))
    return re.sub(r"<!-- begin (\w+)\b[^\n]*-->\n.*?<!-- end \1 -->", "", text, flags=re.DOTALL).strip()


def without_machine_paths(value: Any) -> Any:
    """Shorten absolute paths in a JSON value to their last part: what is published names no machine's folders.

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
