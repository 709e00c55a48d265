"""Folders that are published, on the Hub or as a folder to share: are they complete, which files, with what card."""

import hashlib
import inspect
import json
import logging
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import diffusers
import torch
from diffusers.utils.dynamic_modules_utils import get_relative_imports
from safetensors import safe_open
from safetensors.torch import load_file

from semseg_diffusers.data.dataset_format import GENERATION_FILE, LABELS_FILE, SETTINGS_FILE, data_license
from semseg_diffusers.data.labels import LabelSet
from semseg_diffusers.hub import cards
from semseg_diffusers.utils.files import read_json


logger = logging.getLogger(__name__)

CARD, INDEX, CODE = "README.md", "model_index.json", "pipeline.py"
OUR_PIPELINES = "MaskGuided"  # start of the class names of our pipelines
WEIGHTS = (".safetensors", ".bin")
LOADED_FROM = "_name_or_path"  # in the config of a network that was loaded and saved again: a path of the machine
EXPORT_FILE = "export.json"  # marks a folder that `export` made, and may replace
SHEET_FILE = "samples.jpg"  # masks and samples of them, in such a folder
RESULTS_FOLDER = "results"  # beside the card: what `evaluate` wrote


def json_bytes(value: dict[str, Any]) -> bytes:
    """Return indented JSON as the bytes of a file."""
    return (json.dumps(value, indent=2) + "\n").encode()


def merge_cards(card: str, there: str, repo_id: str, from_there: Sequence[str], not_from_there: Sequence[str]) -> str:
    """Fill missing metadata of a card from the card on the Hub, which may have been edited there."""
    ours, theirs = cards.metadata(card), cards.metadata(there)
    kept = {
        key: value
        for key, value in theirs.items()
        if key in from_there or (ours.get(key) is None and key not in not_from_there)
    }
    if cards.outside_parts(there) not in ("", cards.outside_parts(card)):
        logger.warning(f"{CARD} of '{repo_id}' had other text; it stays in its history on the Hub.")
    card = cards.with_metadata(card, **kept)
    if not cards.metadata(card).get("license"):
        logger.warning(f"the card of '{repo_id}' names no licence: write `license:` at the head of its {CARD}.")
    return card


# Models ----------------------------------------------------------------------------------------------------------


def check_model_folder(folder: Path) -> dict[str, Any]:
    """Return the `model_index.json` of a folder that holds a complete pipeline of ours, with or without code files.

    Raises:
        ValueError: it does not; the message says what is missing.
    """
    if not folder.is_dir():
        raise ValueError(f"there is no folder '{folder}'; expected one that holds a model.")
    if not (folder / INDEX).is_file():
        if any(folder.glob("checkpoint-*")):
            hint = "The run is not finished: resume it with --resume_from_checkpoint latest."
        else:
            hint = "Expected a run folder of `semseg-diffusers train`, or one that `pipe.save_pretrained` wrote."
        raise ValueError(f"'{folder}' holds no {INDEX}, so it is no saved pipeline. {hint}")
    index = read_json(folder / INDEX)
    if not str(index.get("_class_name")).startswith(OUR_PIPELINES):
        raise ValueError(
            f"'{folder}' holds a {index.get('_class_name')}, no pipeline of this package: use diffusers' own "
            "`push_to_hub`."
        )
    missing = [name for name, path in code_files(folder, index).items() if not path.is_file()]
    configs = [f"{name}/{'scheduler_config' if name == 'scheduler' else 'config'}.json" for name in components(index)]
    missing += [name for name in configs if not (folder / name).is_file()]
    if not any(path.suffix in WEIGHTS for path in _complete_files(folder / "unet")):
        missing.append("unet/diffusion_pytorch_model.safetensors")
    if missing:
        raise ValueError(f"'{folder}' is no complete pipeline: {', '.join(missing)} is missing. Save it again.")
    return index


def components(index: Mapping[str, Any]) -> dict[str, list[str]]:
    """Return the components of a `model_index.json`: name -> [library, class]."""
    return {name: entry for name, entry in index.items() if isinstance(entry, list) and entry[0] is not None}


def package_class(name: str, folder: Path) -> type:
    """Return the class of this package that a saved folder names.

    Raises:
        ValueError: there is none of this name.
    """
    cls = getattr(diffusers, name, None)  # where `semseg_diffusers.register` puts them
    if cls is None:
        raise ValueError(
            f"'{folder}' holds a {name}, which this package does not have. Was it saved by a newer version?"
        )
    return cls


def code_files(folder: Path, index: Mapping[str, Any]) -> dict[str, Path]:
    """Return the code files of a pipeline, path in the repository -> file: the folder's own, else this package's.

    An exported folder holds none; an older one may hold all of the pipeline's code in a single file.
    """

    def with_siblings(name: str, source: Path) -> dict[str, Path]:
        siblings = sorted(get_relative_imports(source)) if source.is_file() else []
        return {name: source} | {f"{sibling}.py": source.parent / f"{sibling}.py" for sibling in siblings}

    ours = {name: entry for name, entry in components(index).items() if entry[0] != "diffusers"}
    modules = {f"{name}/{library}.py": cls for name, (library, cls) in ours.items()}
    if any((folder / name).is_file() for name in (CODE, *modules)):
        return with_siblings(CODE, folder / CODE) | {name: folder / name for name in modules}
    source = inspect.getsourcefile(package_class(index["_class_name"], folder))
    sources = {name: Path(inspect.getsourcefile(package_class(cls, folder))) for name, cls in modules.items()}
    return with_siblings(CODE, Path(source)) | sources


def _complete_files(folder: Path) -> list[Path]:
    """Return the files of a folder, without hidden ones and those that are being written."""
    half_written = re.compile(r"\.tmp(-\d+)?$|\.writing$")
    files = (path for path in sorted(folder.glob("*")) if path.is_file())
    return [path for path in files if not path.name.startswith(".") and not half_written.search(path.name)]


def model_files(folder: Path, index: Mapping[str, Any], with_code: bool = True) -> dict[str, Path | bytes]:
    """Return what is published of a model, without card and previews: path in the repository -> file or content."""
    contents: dict[str, Path | bytes] = {
        f"{name}/{path.name}": path
        for name in components(index)
        for path in _complete_files(folder / name)
        if path.suffix != ".py"
    }
    for name in components(index):
        config = f"{name}/config.json"
        if config in contents and LOADED_FROM in (found := read_json(folder / config)):
            contents[config] = json_bytes({key: value for key, value in found.items() if key != LOADED_FROM})
    contents[INDEX] = folder / INDEX
    exported = [name for name in (EXPORT_FILE, SHEET_FILE) if (folder / name).is_file()]
    if exported:  # its card names these
        exported += [f"{RESULTS_FOLDER}/{path.name}" for path in sorted((folder / RESULTS_FOLDER).glob("*.json"))]
    contents |= {name: folder / name for name in exported} | run_files(folder)
    return contents | code_files(folder, index) if with_code else contents


def run_files(folder: Path) -> dict[str, Path | bytes]:
    """Return what a training run left beside its pipeline: its log, and its settings without the machine's paths."""
    contents: dict[str, Path | bytes] = {}
    if (folder / "log.jsonl").is_file():
        contents["log.jsonl"] = folder / "log.jsonl"
    if (folder / "settings.json").is_file():
        contents["settings.json"] = json_bytes(cards.without_machine_paths(read_json(folder / "settings.json")))
    return contents


def read_scores(results: Sequence[str | os.PathLike]) -> dict[str, dict[str, Any]]:
    """Read files of `evaluate`: path beside the card -> results, without the machine's paths.

    Raises:
        FileNotFoundError, ValueError: a file does not exist, is something else, or two would get one name.
    """
    paths = [Path(path) for path in results]
    # `evaluate` calls all of them results.json, so they get their folder's name
    names = [f"{path.resolve().parent.name}.json" if path.name == "results.json" else path.name for path in paths]
    if len(set(names)) < len(names):
        raise ValueError("--results: two files have the same name; give each its own.")
    return {f"{RESULTS_FOLDER}/{name}": cards.read_results(path) for name, path in zip(names, paths, strict=True)}


def new_model_card(
    folder: Path,
    source: str,
    *,
    title: str | None = None,
    license_name: str | None = None,
    origin: str | None = None,
    run: Mapping[str, Any] | None = None,
) -> str:
    """Return the first card of a folder that holds a pipeline.

    Args:
        folder: the model.
        source: repository, or folder, that `from_pretrained` takes.
        title: the card's first line, if it is not the folder's name.
        license_name, origin, run: see `cards.render_model_card`.
    """
    return cards.render_model_card(
        read_json(folder / "unet" / "config.json"),
        title=title or folder.resolve().name,
        source=source,
        pipeline_class=read_json(folder / INDEX)["_class_name"],
        parameters=_stored_weights(folder / "unet")[0],
        scheduler_config=read_json(folder / "scheduler" / "scheduler_config.json"),
        license_name=license_name,
        origin=origin,
        run=run,
    )


def model_card(
    folder: Path,
    index: dict[str, Any],
    repo_id: str,
    revision: str | None,
    scores: Mapping[str, dict],
    stored: str | None = None,
    has_code: bool = True,
) -> str:
    """Return the folder's card, or a new one, with its parts written for a repository.

    Args:
        folder: the model.
        index: its `model_index.json`.
        repo_id: repository, or folder, that `from_pretrained` takes.
        revision: branch, if it is not the main one.
        scores: from `read_scores`.
        stored: dtype of the published weights, if it is not the folder's.
        has_code: whether code files are published beside the weights.
    """
    path, dtype = folder / CARD, _stored_weights(folder / "unet")[1]
    card = path.read_text(encoding="utf-8") if path.is_file() else new_model_card(folder, repo_id)
    name = repo_id.split("/")[-1]
    card = card.replace(f"\n# {folder.resolve().name}\n", f"\n# {name}\n", 1)
    use = cards.model_use(repo_id, revision, index["_class_name"], stored or dtype, has_code)
    card = cards.replace_part(card, "use", use)
    if scores:
        text = "\n\n".join(cards.results_text(score, repo_id, file) for file, score in scores.items())
        if not cards.has_part(card, "results"):
            card += "\n## Results\n\n<!-- begin results -->\n<!-- end results -->\n"
        card = cards.replace_part(card, "results", text)
        card = cards.with_metadata(card, **{"model-index": cards.model_index(repo_id, list(scores.values()))})
    return card


def _stored_weights(folder: Path) -> tuple[int | None, str]:
    """Return number and dtype of a folder's own weights, from the headers of safetensors files; (None, "float32")."""
    total, dtype = 0, ""
    for path in (path for path in _complete_files(folder) if re.fullmatch(r"[^.]+\.safetensors", path.name)):
        with safe_open(path, framework="pt") as file:
            slices = [file.get_slice(key) for key in file.keys()]  # noqa: SIM118
            total += sum(torch.Size(part.get_shape()).numel() for part in slices)
            dtype = dtype or next((part.get_dtype() for part in slices), "")
    return total or None, {"F16": "float16", "BF16": "bfloat16"}.get(dtype, "float32")


def weights_hash(weights: Mapping[str, torch.Tensor]) -> str:
    """Hash weights by name, dtype and value, whatever file holds them; `generate` records it beside its images."""
    digest = hashlib.sha256()
    for name, tensor in sorted(weights.items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return f"sha256:{digest.hexdigest()[:16]}"


def stored_hash(folder: Path) -> str | None:
    """Return the hash of a folder's weights as they compute, in float32; None if they are in no single file."""
    weights = folder / "unet" / "diffusion_pytorch_model.safetensors"
    if not weights.is_file():
        return None
    return weights_hash({name: tensor.float() for name, tensor in load_file(weights).items()})


def check_weights(results: Mapping[str, Any], path: str | os.PathLike, *folders: Path) -> str | None:
    """Refuse results of images from other weights than those of a folder, where the results say which.

    Args:
        results: from `evaluate`.
        path: of their file, for messages.
        folders: that hold the weights; of two, one holds the rounded form of the other's.

    Returns:
        the hash of the weights that generated, if it is known to be that of one of the folders.
    """
    generation = results.get("generation") or {}
    if generation.get("variant") is not None:
        raise ValueError(
            f"--results '{path}' is for the weights `{generation['variant']}`; '{folders[0]}' loads others. Use "
            "results of those, made without --variant."
        )
    scored = str(generation.get("revision"))
    ours = [digest for digest in map(stored_hash, folders) if digest is not None]
    if not scored.startswith("sha256:") or generation.get("dtype") != "float32" or not ours:
        return None
    if scored not in ours:
        raise ValueError(
            f"--results '{path}' is for other weights ({scored}) than '{folders[0]}' holds ({ours[0]}). Generate with "
            "this model and run `semseg-diffusers evaluate` again."
        )
    return scored


# Datasets ----------------------------------------------------------------------------------------------------------


def check_dataset_folder(folder: Path) -> tuple[LabelSet, str]:
    """Return the label set of a dataset of ours, and the file that records how it was made.

    Raises:
        ValueError: it is none; the message says what is missing.
    """
    if not folder.is_dir():
        raise ValueError(f"there is no folder '{folder}' to push.")
    record_file = next((name for name in (SETTINGS_FILE, GENERATION_FILE) if (folder / name).is_file()), None)
    if record_file is None or not (folder / LABELS_FILE).is_file():
        missing = LABELS_FILE if record_file else f"{SETTINGS_FILE} or {GENERATION_FILE}"
        hint = " It holds a model: push it with --model." if (folder / INDEX).is_file() else ""
        raise ValueError(
            f"'{folder}' was not made by `semseg-diffusers prepare` or `generate`: it holds no {missing}.{hint}"
        )
    return LabelSet.from_json(folder / LABELS_FILE), record_file


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
    synthetic = "guidance_scale" in record
    path = folder / CARD
    if path.is_file():
        card = path.read_text(encoding="utf-8")
    elif cards.has_part(card_there, "content"):
        card = card_there
    else:
        license_name, license_text = data_license(None if synthetic else record.get("format"))
        if synthetic:
            card_of_model = Path(record.get("model", "")) / CARD
            if card_of_model.is_file():
                license_name = cards.metadata(card_of_model.read_text(encoding="utf-8")).get("license")
            license_text = "Images carry the licence of their model's training data"
            license_text += f": {license_name}." if license_name else ". It is not known here: fill it in."
        card = cards.render_dataset_card(
            title=repo_id.split("/")[-1], license_name=license_name, license_text=license_text, synthetic=synthetic
        )
    card = cards.replace_part(card, "use", cards.dataset_use(repo_id, revision))
    return cards.replace_part(card, "content", cards.dataset_content(labels, record, counts))
