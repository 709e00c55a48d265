"""Model cards and dataset cards: templates filled with what a folder knows, and the parts that a push rewrites.

A part is between `<!-- begin NAME ... -->` and `<!-- end NAME -->`; what a user writes elsewhere is never changed.
"""

import logging
import os
import re
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path, PurePosixPath
from typing import Any

import yaml
from huggingface_hub import DatasetCardData, EvalResult, ModelCardData
from huggingface_hub.repocard_data import eval_results_to_model_index
from jinja2 import Environment, FileSystemLoader

from semseg_diffusers.data.dataset_format import data_license
from semseg_diffusers.data.labels import LabelSet
from semseg_diffusers.hub.folders import CARD, INDEX, RESULTS_FOLDER, stored_weights, without_machine_paths
from semseg_diffusers.reports.findings import ROWS, read_distances, results_commands, results_table
from semseg_diffusers.utils.files import package_version, read_json, read_text
from semseg_diffusers.utils.settings import describe_value


logger = logging.getLogger(__name__)

BY_VARIANT = "; by `variant=` also "  # followed by the names of the weights that are saved beside the pipeline's own
UPSCALER = "MaskGuidedUpscalePipeline"
# How the pipelines that edit images are called; the others take a mask alone.
CALLS = {
    "MaskGuidedImg2ImgPipeline": 'pipe("photo.png", "mask.png", strength=0.5)',
    UPSCALER: 'pipe("small.png", "large_mask.png")',
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


def escape(name: str) -> str:
    """Return a name, such as that of a class, as Markdown shows it, also in a table."""
    return re.sub(r"([\\`*_\[\]<>|#~])", r"\\\1", " ".join(name.split()))


_TEMPLATES.filters |= {
    "describe_value": describe_value, "escape": escape, "local_name": local_name,
    "results_commands": results_commands, "results_table": results_table,
}  # fmt: skip


def render(template: str, **values: Any) -> str:
    """Fill a template of hub/templates/."""
    return _TEMPLATES.get_template(template).render(**values)


def new_model_card(
    folder: Path,
    source: str,
    *,
    title: str | None = None,
    license_name: str | None = None,
    origin: str | None = None,
    run: Mapping[str, Any] | None = None,
) -> str:
    """Return the first card of a folder that holds a pipeline, which `from_pretrained` loads from `source`.

    `origin` says where the weights of a converted pipeline come from; `run` is what a training run knows, with
    `data_license` a sentence and `averages` the variant and decay of each weight average, the pipeline's first.
    """
    config, dataset = read_json(folder / "unet" / "config.json"), run["settings"].dataset if run else ""
    data = ModelCardData(
        library_name="diffusers",
        pipeline_tag="image-to-image",
        license=license_name,
        datasets=[dataset] if dataset.count("/") == 1 and not Path(dataset).is_dir() else None,
        tags=[
            "diffusers",
            "semantic-segmentation",
            "mask-to-image",
            "synthetic-data",
            "semseg-diffusers",
            *(["super-resolution"] if config.get("upscale_factor") else []),
        ],
    )
    text = render(
        "model_card.md",
        card_data=data.to_yaml(),
        title=title or folder.resolve().name,
        version=package_version(),
        versions=", ".join(f"{name} {version(name)}" for name in ("torch", "diffusers", "accelerate")),
        use=model_use(source, read_json(folder / INDEX)),
        labels=LabelSet.from_config(config),
        config=config,
        parameters=stored_weights(folder / "unet")[0],
        scheduler=read_json(folder / "scheduler" / "scheduler_config.json"),
        origin=origin,
        run=run,
        by_variant=BY_VARIANT,
    )
    return text + "\n"


def new_autoencoder_card(
    folder: Path, results: Mapping[str, Any], *, license_name: str | None, run: Mapping[str, Any], **facts: Any
) -> str:
    """Return the card of a trained autoencoder: `results` are its measures, `run` as of `new_model_card`.

    `facts` are `pictures`, the file of them, and `shown`, how much the differences there are enhanced.
    """
    dataset = run["settings"].dataset
    data = ModelCardData(
        library_name="diffusers",
        license=license_name,
        datasets=[dataset] if dataset.count("/") == 1 and not Path(dataset).is_dir() else None,
        tags=["diffusers", "autoencoder", "vae", "semseg-diffusers"],
    )
    text = render(
        "autoencoder_card.md",
        card_data=data.to_yaml(),
        title=folder.resolve().name,
        version=package_version(),
        versions=", ".join(f"{name} {version(name)}" for name in ("torch", "diffusers", "accelerate")),
        results=results,
        run=run,
        by_variant=BY_VARIANT,
        **facts,
    )
    return text + "\n"


def model_card(
    folder: Path, source: str, scores: Mapping[str, dict], revision: str | None = None, stored: str | None = None,
    has_code: bool = True, has_variants: bool = True, index: Mapping[str, Any] | None = None,
) -> str:  # fmt: skip
    """Return the folder's card, or a new one, with its parts written for publishing.

    `stored` and `index` are dtype and `model_index.json` of what is published, if they are not the folder's; `scores`
    are from `read_scores`.
    """
    card = read_text(folder / CARD) if (folder / CARD).is_file() else new_model_card(folder, source)
    card = card.replace(f"\n# {folder.resolve().name}\n", f"\n# {source.split('/')[-1]}\n", 1)
    stored = stored or stored_weights(folder / "unet")[1]
    index = index or read_json(folder / INDEX)
    use = model_use(source, index, revision=revision, stored=stored, has_code=has_code)
    card = replace_part(card, "use", use)
    if scores:
        if not has_part(card, "results"):
            card += "\n## Results\n\n<!-- begin results -->\n<!-- end results -->\n"
        facts = {"model": source, "is_upscaler": index["_class_name"] == UPSCALER}
        texts = [render("results.md", results=score, file=file, **facts) for file, score in scores.items()]
        card = replace_part(card, "results", "\n\n".join(texts))
        card = with_metadata(card, **{"model-index": model_index(source, list(scores.values()), facts["is_upscaler"])})
    if not has_variants:
        card = re.sub(rf"{re.escape(BY_VARIANT)}[^|\n]*(?= \|)", "", card)
    return card


def model_use(source: str, index: Mapping[str, Any], **values: Any) -> str:
    """Return the part of a card on loading a pipeline, given its `model_index.json`."""
    pipeline = index["_class_name"]
    call = CALLS.get(pipeline, 'pipe("mask.png")')
    defaults = {"revision": None, "stored": "float32", "has_code": True}
    facts = {"source": source, "pipeline": pipeline, "call": call, "index": index}
    return render("model_use.md", **facts, **defaults | values)


def dataset_card(
    folder: Path,
    repo_id: str,
    revision: str | None,
    labels: LabelSet,
    record: dict[str, Any],
    counts: Mapping[str, int],
    card_there: str,
) -> str:
    """Return the card in the folder, else the one on the Hub, else a new one, with its parts written for a push."""
    if (folder / CARD).is_file():
        card = read_text(folder / CARD)
    elif has_part(card_there, "content"):
        card = card_there
    else:
        synthetic = "guidance_scale" in record
        license_name, license_text = data_license(None if synthetic else record.get("format"))
        if synthetic:
            model_card_file = Path(record.get("model", "")) / CARD
            if model_card_file.is_file():
                license_name = metadata(read_text(model_card_file)).get("license")
            license_text = "Images carry the licence of their model's training data"
            license_text += f": {license_name}." if license_name else ". It is not known here: fill it in."
        data = DatasetCardData(
            license=license_name,
            task_categories=["image-segmentation"],
            annotations_creators=["machine-generated"] if synthetic else None,
            tags=["semantic-segmentation", "semseg-diffusers", *(["synthetic"] if synthetic else [])],
            pretty_name=repo_id.split("/")[-1],
        )
        facts = {"title": data.pretty_name, "license_text": license_text, "synthetic": synthetic}
        card = render("dataset_card.md", card_data=data.to_yaml(), **facts) + "\n"
    card = replace_part(card, "use", render("dataset_use.md", repo_id=repo_id, revision=revision))
    return replace_part(card, "content", dataset_content(labels, record, counts))


def dataset_content(labels: LabelSet, record: dict[str, Any], counts: Mapping[str, int]) -> str:
    """Return the part of a card on a dataset's pairs (split -> number), how they were made, and their classes."""
    size = record.get("resolution")
    if "guidance_scale" in record:
        size = [record["height"], record["width"]]
    size = " x ".join(map(str, size)) if isinstance(size, list) else None
    return render("dataset_content.md", labels=labels, record=without_machine_paths(record), counts=counts, size=size)


def read_scores(results: Sequence[str | os.PathLike]) -> dict[str, dict[str, Any]]:
    """Read files of `evaluate`: path beside the card -> results, without the machine's paths."""
    paths = [Path(path) for path in results]
    # `evaluate` calls all of them results.json, so they get their folder's name
    names = [f"{path.resolve().parent.name}.json" if path.name == "results.json" else path.name for path in paths]
    if len(set(names)) < len(names):
        raise ValueError("--results: two files have the same name; give each its own.")
    scores = {}
    for name, path in zip(names, paths, strict=True):
        try:
            content = read_json(path)
        except ValueError as err:
            raise ValueError(f"--results {err}") from err
        missing = [key for key in RESULT_KEYS if key not in content]
        for key, parts in RESULT_KEYS.items():
            missing += [f"{key}.{part}" for part in parts if key in content and part not in content[key]]
        if missing:
            raise ValueError(
                f"--results '{path}' was not written by `semseg-diffusers evaluate`: {', '.join(missing)} is missing."
            )
        scores[f"{RESULTS_FOLDER}/{name}"] = without_machine_paths(content)
    return scores


def model_index(
    model_name: str, all_results: Sequence[dict[str, Any]], is_upscaler: bool = False
) -> list[dict[str, Any]]:
    """Return the Hub's `model-index` metadata: the scores of the generated images, not those of real images."""
    rows = []
    for results in all_results:
        settings, generated = results["settings"], results["agreement"]["generated"]
        dataset = PurePosixPath(settings["dataset"]).name
        named = (("mean_iou", "agreement, mean IoU"), ("pixel_accuracy", "agreement, pixel accuracy"))
        metrics = [(key, title, generated[key]) for key, title in named]
        for entry in map(read_distances, results["fidelity"]):
            reference = entry["references"][0]
            of = f"of {entry['features']['name']}, {reference['n']} images"
            metrics += [
                (entry["keys"][key], f"{name} {of}", reference["generated"][key])
                for key, name in entry["names"].items()
            ]
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
                metric_args={"command": results_commands(results, model_name, is_upscaler=is_upscaler)[-1]},
            )
            for metric, title, value in metrics
        ]
    return eval_results_to_model_index(model_name.split("/")[-1], rows)


def replace_part(card: str, name: str, content: str) -> str:
    """Rewrite a marked part; a card without that part is unchanged."""
    pattern = re.compile(rf"(<!-- begin {name}\b[^\n]*-->\r?\n).*?(<!-- end {name} -->)", re.DOTALL)
    return pattern.sub(lambda match: f"{match[1]}{content}\n{match[2]}", card, count=1)


def has_part(card: str, name: str) -> bool:
    """Return whether a card has a marked part."""
    return replace_part(card, name, "\0") != card


def metadata(card: str) -> dict[str, Any]:
    """Return the YAML block at the head of a card; empty if there is none."""
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


def merge(
    card: str, there: str, repo_id: str, from_there: Sequence[str] = (), not_from_there: Sequence[str] = ()
) -> str:
    """Fill missing metadata of a card from the one on the Hub, whose values of `from_there` take precedence."""
    ours, theirs = metadata(card), metadata(there)
    kept = {
        key: value
        for key, value in theirs.items()
        if key in from_there or (ours.get(key) is None and key not in not_from_there)
    }
    if outside_parts(there) not in ("", outside_parts(card)):
        logger.warning(f"README.md of '{repo_id}' had other text; it stays in its history on the Hub.")
    card = with_metadata(card, **kept)
    if not metadata(card).get("license"):
        logger.warning(f"the card of '{repo_id}' names no licence: write `license:` at the head of its README.md.")
    return card
