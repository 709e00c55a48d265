"""What of a folder is published, on the Hub or as a folder to ship: is it a whole pipeline or data set of ours, which
files, and with what card."""

import hashlib
import json
import logging
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers.utils.dynamic_modules_utils import get_relative_imports
from safetensors import safe_open
from safetensors.torch import load_file

from semseg_diffusers.data.dataset_format import GENERATION_FILE, LABELS_FILE, SETTINGS_FILE, data_license
from semseg_diffusers.data.labels import LabelSet
from semseg_diffusers.hub import card_results, cards


logger = logging.getLogger(__name__)

CARD, INDEX = "README.md", "model_index.json"
OUR_PIPELINES = "MaskGuided"  # how the class names of our pipelines begin
WEIGHTS = (".safetensors", ".bin")
LOADED_FROM = "_name_or_path"  # in the config of a network that was loaded and saved again: a path of the machine
EXPORT_FILE = "export.json"  # marks a folder that `export` made, and may replace
SHEET_FILE = "samples.jpg"  # masks and what is drawn from them, in such a folder
RESULTS_FOLDER = "results"  # beside the card: what `evaluate` wrote


def read_json(path: str | os.PathLike) -> dict[str, Any]:
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as err:
        raise ValueError(f"'{path}' is not valid JSON: {err}.") from err
    return content if isinstance(content, dict) else {}


def merge_cards(card: str, there: str, repo_id: str, from_there: Sequence[str], not_from_there: Sequence[str]) -> str:
    """Fill what the metadata of a card leaves open from the card on the Hub, where one may have been edited."""
    ours, theirs = cards.metadata(card), cards.metadata(there)
    kept = {
        key: value
        for key, value in theirs.items()
        if key in from_there or (ours.get(key) is None and key not in not_from_there)
    }
    if cards.outside_parts(there) not in ("", cards.outside_parts(card)):
        logger.warning(f"{CARD} of '{repo_id}' said other things; they stay in its history on the Hub.")
    card = cards.with_metadata(card, **kept)
    if not cards.metadata(card).get("license"):
        logger.warning(f"the card of '{repo_id}' names no licence: write `license:` at the head of its {CARD}.")
    return card


# Models ----------------------------------------------------------------------------------------------------------


def check_model_folder(folder: Path) -> dict[str, Any]:
    """Return the `model_index.json` of a folder that holds a whole pipeline of ours.

    Raises:
        ValueError: it does not; the message says what is missing.
    """
    if not folder.is_dir():
        raise ValueError(f"there is no folder '{folder}'; wanted one that holds a model.")
    if not (folder / INDEX).is_file():
        if any(folder.glob("checkpoint-*")):
            hint = "The run is not finished: go on with it by --resume_from_checkpoint latest."
        else:
            hint = "Wanted a run folder of `semseg-diffusers train`, or what `pipe.save_pretrained` wrote."
        raise ValueError(f"'{folder}' holds no {INDEX}, so it is no saved pipeline. {hint}")
    index = read_json(folder / INDEX)
    if not str(index.get("_class_name")).startswith(OUR_PIPELINES):
        raise ValueError(
            f"'{folder}' holds a {index.get('_class_name')}, no pipeline of this package: diffusers "
            "itself publishes it, by `push_to_hub`."
        )
    wanted = code_files(folder)
    for name, (library, _) in components(index).items():
        wanted += [f"{name}/{library}.py"] if library != "diffusers" else []
        wanted += [f"{name}/{'scheduler_config.json' if name == 'scheduler' else 'config.json'}"]
    missing = [name for name in wanted if not (folder / name).is_file()]
    if not any(path.suffix in WEIGHTS for path in _whole_files(folder / "unet")):
        missing.append("unet/diffusion_pytorch_model.safetensors")
    if missing:
        raise ValueError(f"'{folder}' is no whole pipeline: {', '.join(missing)} is missing. Save it again.")
    return index


def components(index: Mapping[str, Any]) -> dict[str, list[str]]:
    return {name: entry for name, entry in index.items() if isinstance(entry, list) and entry[0] is not None}


def code_files(folder: Path) -> list[str]:
    """The pipeline's source and the files beside it that it imports; an older folder holds it in a single file."""
    source = folder / "pipeline.py"
    beside = get_relative_imports(source) if source.is_file() else []
    return ["pipeline.py", *(f"{name}.py" for name in sorted(beside))]


def _whole_files(folder: Path) -> list[Path]:
    """Files of a folder, without hidden ones and those that are being written."""
    half_written = re.compile(r"\.tmp(-\d+)?$|\.writing$")
    files = (path for path in sorted(folder.glob("*")) if path.is_file())
    return [path for path in files if not path.name.startswith(".") and not half_written.search(path.name)]


def model_files(folder: Path, index: Mapping[str, Any]) -> dict[str, Path | bytes]:
    """Path in the repository -> file or content, without the card and the previews."""
    contents: dict[str, Path | bytes] = {
        f"{name}/{path.name}": path for name in components(index) for path in _whole_files(folder / name)
    }
    for name in components(index):
        config = f"{name}/config.json"
        if config in contents and LOADED_FROM in (found := read_json(folder / config)):
            contents[config] = json_bytes({key: value for key, value in found.items() if key != LOADED_FROM})
    contents |= {name: folder / name for name in (INDEX, *code_files(folder))}
    exported = [name for name in (EXPORT_FILE, SHEET_FILE) if (folder / name).is_file()]
    if exported:  # its card names these
        exported += [f"{RESULTS_FOLDER}/{path.name}" for path in sorted((folder / RESULTS_FOLDER).glob("*.json"))]
    return contents | {name: folder / name for name in exported} | run_files(folder)


def run_files(folder: Path) -> dict[str, Path | bytes]:
    """What a training run left beside its pipeline: its log, and its settings without the machine's paths."""
    contents: dict[str, Path | bytes] = {}
    if (folder / "log.jsonl").is_file():
        contents["log.jsonl"] = folder / "log.jsonl"
    if (folder / "settings.json").is_file():
        contents["settings.json"] = json_bytes(cards.without_machine_paths(read_json(folder / "settings.json")))
    return contents


def json_bytes(value: dict[str, Any]) -> bytes:
    return (json.dumps(value, indent=2) + "\n").encode()


def read_scores(results: Sequence[str | os.PathLike] | None) -> dict[str, dict[str, Any]]:
    """Path beside the card -> what `evaluate` wrote, without the machine's paths.

    Raises:
        FileNotFoundError, ValueError: a file is not there, or is something else, or two would have one name.
    """
    paths = [Path(path) for path in results or ()]
    # `evaluate` calls all of its own alike, so they take their folder's name
    names = [f"{path.resolve().parent.name}.json" if path.name == "results.json" else path.name for path in paths]
    if len(set(names)) < len(names):
        raise ValueError("--results: two files have the same name; give each its own.")
    return {
        f"{RESULTS_FOLDER}/{name}": card_results.read_results(path) for name, path in zip(names, paths, strict=True)
    }


def model_card(
    folder: Path,
    index: dict[str, Any],
    repo_id: str,
    revision: str | None,
    scores: Mapping[str, dict],
    stored: str | None = None,
) -> str:
    """The folder's card, or a new one, with its parts written for this repository.

    Args:
        folder: that holds the model.
        index: its `model_index.json`.
        repo_id: repository, or folder, that `from_pretrained` takes.
        revision: branch, where it is not the main one.
        scores: from `read_scores`.
        stored: precision of the published weights, where it is not that of the folder's.
    """
    path = folder / CARD
    if path.is_file():
        card = path.read_text(encoding="utf-8")
    else:
        config = read_json(folder / "unet" / "config.json")
        card = cards.render_model_card(
            LabelSet.from_config(config),
            title=folder.resolve().name,
            source=repo_id,
            license_name=None,
            network=config.get("_class_name", ""),
            parameters=_count_parameters(folder / "unet"),
            scheduler_config=read_json(folder / "scheduler" / "scheduler_config.json"),
            pipeline_class=index["_class_name"],
            attributes=config.get("attributes"),
        )
    name = repo_id.split("/")[-1]
    card = card.replace(f"\n# {folder.resolve().name}\n", f"\n# {name}\n", 1)
    use = cards.model_use(repo_id, revision, index["_class_name"], stored or _stored_precision(folder / "unet"))
    card = cards.replace_part(card, "use", use)
    if scores:
        text = "\n\n".join(card_results.results_text(score, repo_id, file) for file, score in scores.items())
        if not cards.has_part(card, "results"):
            card += "\n## Results\n\n<!-- begin results -->\n<!-- end results -->\n"
        card = cards.replace_part(card, "results", text)
        card = cards.with_metadata(card, **{"model-index": card_results.model_index(repo_id, list(scores.values()))})
    return card


def _count_parameters(folder: Path) -> int | None:
    """How many weights the safetensors files of a folder hold, read from their headers; None where there are none."""
    total = 0
    for path in (path for path in _whole_files(folder) if re.fullmatch(r"[^.]+\.safetensors", path.name)):
        with safe_open(path, framework="pt") as file:
            total += sum(torch.Size(file.get_slice(key).get_shape()).numel() for key in file.keys())  # noqa: SIM118
    return total or None


def _stored_precision(folder: Path) -> str:
    """What the weights of a folder are stored in, as torch calls it; "float32" where it cannot be told."""
    for path in (path for path in _whole_files(folder) if re.fullmatch(r"[^.]+\.safetensors", path.name)):
        with safe_open(path, framework="pt") as file:
            kinds = {file.get_slice(key).get_dtype() for key in file.keys()}  # noqa: SIM118
        return {"F16": "float16", "BF16": "bfloat16"}.get(next(iter(kinds), ""), "float32")
    return "float32"


def weights_hash(weights: Mapping[str, torch.Tensor]) -> str:
    """A hash of weights by name, type and value, whatever file they lie in: `generate` writes it beside its images."""
    digest = hashlib.sha256()
    for name, tensor in sorted(weights.items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return f"sha256:{digest.hexdigest()[:16]}"


def stored_hash(folder: Path) -> str | None:
    """The hash of a folder's weights as they are computed with, in float32; None where they lie in no single file."""
    weights = folder / "unet" / "diffusion_pytorch_model.safetensors"
    if not weights.is_file():
        return None
    return weights_hash({name: tensor.float() for name, tensor in load_file(weights).items()})


def check_weights(results: Mapping[str, Any], path: str | os.PathLike, *folders: Path) -> str | None:
    """Refuse results of images that other weights drew than those of a folder, where the results say which.

    Args:
        results: from `evaluate`.
        path: of their file, for messages.
        folders: that hold the weights, one the rounded form of the other where there are two.

    Returns:
        the hash of the weights that drew, where it is known that they are of one of the folders.
    """
    generation = results.get("generation") or {}
    if generation.get("variant") is not None:
        raise ValueError(
            f"--results '{path}' is of the weights `{generation['variant']}`; '{folders[0]}' loads with others. Give "
            "results of those, made without --variant."
        )
    scored = str(generation.get("revision"))
    ours = [digest for digest in map(stored_hash, folders) if digest is not None]
    if not scored.startswith("sha256:") or generation.get("dtype") != "float32" or not ours:
        return None
    if scored not in ours:
        raise ValueError(
            f"--results '{path}' is of other weights ({scored}) than '{folders[0]}' holds ({ours[0]}). Generate with "
            "this model and run `semseg-diffusers evaluate` again."
        )
    return scored


# Data sets ---------------------------------------------------------------------------------------------------------


def check_dataset_folder(folder: Path) -> tuple[LabelSet, str]:
    """Return the label set of a data set of ours, and which file says how it was made.

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
            f"'{folder}' is no data set that `semseg-diffusers prepare` or `generate` made: it holds no "
            f"{missing}.{hint}"
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
    """The card in the folder, else the one on the Hub, else a new one, with its parts written for this push."""
    synthetic = "guidance_scale" in record
    path = folder / CARD
    if path.is_file():
        card = path.read_text(encoding="utf-8")
    elif cards.has_part(card_there, "content"):
        card = card_there
    else:
        license_name, license_text = data_license(None if synthetic else record.get("format"))
        card_of_model = Path(record.get("model", "")) / CARD
        if synthetic and card_of_model.is_file():
            license_name = cards.metadata(card_of_model.read_text(encoding="utf-8")).get("license")
        if synthetic:
            license_text = "Images carry the licence of what their model was trained on"
            license_text += f": {license_name}." if license_name else ". It is not known here: fill it in."
        card = cards.render_dataset_card(
            title=repo_id.split("/")[-1], license_name=license_name, license_text=license_text, synthetic=synthetic
        )
    card = cards.replace_part(card, "use", cards.dataset_use(repo_id, revision))
    return cards.replace_part(card, "content", cards.dataset_content(labels, record, counts))
