"""Folders that are published, on the Hub or as a folder to share: are they complete, which files, which weights."""

import hashlib
import inspect
import json
import os
import re
from collections.abc import Mapping
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

import diffusers
import torch
from diffusers.utils.dynamic_modules_utils import get_relative_imports
from safetensors import safe_open

from semseg_diffusers.data.dataset_format import GENERATION_FILE, LABELS_FILE, SETTINGS_FILE
from semseg_diffusers.data.labels import LabelSet
from semseg_diffusers.hub.weights import read_weights, stored_variants, weight_files
from semseg_diffusers.utils.files import read_json


CARD, INDEX, CODE = "README.md", "model_index.json", "pipeline.py"
OUR_PIPELINES = "MaskGuided"  # start of the class names of our pipelines
LOADED_FROM = "_name_or_path"  # in the config of a network that was loaded and saved again: a path of the machine
EXPORT_FILE = "export.json"  # marks a folder that `export` made, and may replace
SHEET_FILE = "samples.jpg"  # masks and samples of them, in such a folder
EXTREMES_FILE = "extremes.jpg"  # the images that agree best and worst with their masks
RESULTS_FOLDER = "results"  # beside the card: what `evaluate` wrote
# Columns of generated images that may be paths of this machine, while images get published
PATH_COLUMNS = ("model", "guide_model", "upscaler", "source_mask", "source_photo")
Contents = dict[str, Path | bytes]  # path in the repository -> file or content


def json_bytes(value: dict[str, Any]) -> bytes:
    """Return indented JSON as the bytes of a file."""
    return (json.dumps(value, indent=2) + "\n").encode()


def without_machine_paths(value: Any) -> Any:
    """Shorten absolute paths in a JSON value to their last part, so that no folders of a machine are published."""
    if isinstance(value, dict):
        return {key: without_machine_paths(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [without_machine_paths(entry) for entry in value]
    if isinstance(value, str):
        for kind in (PurePosixPath, PureWindowsPath):
            if kind(value).is_absolute() or value.startswith("~"):
                return kind(value).name
    return value


def check_model_folder(folder: Path) -> dict[str, Any]:
    """Return the `model_index.json` of a folder that holds a complete pipeline of ours, with or without code files."""
    if not folder.is_dir():
        raise ValueError(f"there is no folder '{folder}'; expected one that holds a model.")
    if not (folder / INDEX).is_file():
        hint = "Expected a run folder of `semseg-diffusers train`, or one that `pipe.save_pretrained` wrote."
        if any(folder.glob("checkpoint-*")):
            hint = "The run is not finished: resume it with --resume_from_checkpoint latest."
        raise ValueError(f"'{folder}' holds no {INDEX}, so it is no saved pipeline. {hint}")
    index = read_json(folder / INDEX)
    if not str(index.get("_class_name")).startswith(OUR_PIPELINES):
        raise ValueError(
            f"'{folder}' holds a {index.get('_class_name')}, no pipeline of this package: use diffusers' own "
            "`push_to_hub`."
        )
    missing = [name for name, path in code_files(folder, index).items() if not path.is_file()]
    named = {"scheduler": "scheduler_config", "tokenizer": "tokenizer_config"}
    configs = [f"{name}/{named.get(name, 'config')}.json" for name in components(index)]
    missing += [name for name in configs if not (folder / name).is_file()]
    variants = stored_variants(str(folder), "unet")
    if not variants:
        missing.append("unet/diffusion_pytorch_model.safetensors")
    for variant in variants:
        weight_files(folder / "unet", variant=variant or None)  # names a missing shard
    if missing:
        raise ValueError(f"'{folder}' is no complete pipeline: {', '.join(missing)} is missing. Save it again.")
    return index


def components(index: Mapping[str, Any]) -> dict[str, list[str]]:
    """Return the components of a `model_index.json`: name -> [library, class]."""
    return {name: entry for name, entry in index.items() if isinstance(entry, list) and isinstance(entry[0], str)}


def package_class(name: str, folder: Path) -> Any:
    """Return the class of this package that a saved folder names."""
    cls = getattr(diffusers, name, None)  # where `semseg_diffusers.register` puts them
    if cls is None:
        raise ValueError(
            f"'{folder}' holds a {name}, which this package does not have. Was it saved by a newer version?"
        )
    return cls


def code_files(folder: Path, index: Mapping[str, Any]) -> dict[str, Path]:
    """Return the code files of a pipeline, path in the repository -> file: the folder's own, else this package's."""
    modules = {
        f"{name}/{library}.py": cls
        for name, (library, cls) in components(index).items()
        if library not in ("diffusers", "transformers")
    }
    if any((folder / name).is_file() for name in (CODE, *modules)):
        sources = {name: folder / name for name in (CODE, *modules)}
    else:
        classes = {CODE: index["_class_name"], **modules}
        sources = {name: Path(inspect.getfile(package_class(cls, folder))) for name, cls in classes.items()}
    pipeline = sources[CODE]
    siblings = sorted(get_relative_imports(pipeline)) if pipeline.is_file() else []
    return sources | {f"{name}.py": pipeline.parent / f"{name}.py" for name in siblings}


def _complete_files(folder: Path) -> list[Path]:
    """Return the files of a folder, without hidden ones and those that are being written."""
    half_written = re.compile(r"\.tmp(-\d+)?$|\.writing$")
    files = (path for path in sorted(folder.glob("*")) if path.is_file())
    return [path for path in files if not path.name.startswith(".") and not half_written.search(path.name)]


def model_files(folder: Path, index: Mapping[str, Any], with_code: bool = True) -> Contents:
    """Return what is published of a model, without card and previews."""
    contents: Contents = {INDEX: folder / INDEX}
    paths = (path for name in components(index) for path in _complete_files(folder / name))
    for path in (path for path in paths if path.suffix != ".py"):
        name = f"{path.parent.name}/{path.name}"
        contents[name] = path
        if path.name == "config.json" and LOADED_FROM in (found := read_json(path)):
            contents[name] = json_bytes({key: value for key, value in found.items() if key != LOADED_FROM})
    names = (EXPORT_FILE, SHEET_FILE, EXTREMES_FILE)
    exported: Contents = {name: folder / name for name in names if (folder / name).is_file()}
    if exported:  # its card names these
        exported |= result_files(folder)
    contents |= exported | run_files(folder)
    if with_code:
        contents.update(code_files(folder, index))
    return contents


def result_files(folder: Path) -> Contents:
    """Return the results beside a card."""
    return {f"{RESULTS_FOLDER}/{path.name}": path for path in sorted((folder / RESULTS_FOLDER).glob("*.json"))}


def run_files(folder: Path) -> Contents:
    """Return what a training run left beside its pipeline: its log, and its settings without the machine's paths."""
    contents: Contents = {path.name: path for path in folder.glob("log.jsonl")}
    if (folder / "settings.json").is_file():
        contents["settings.json"] = json_bytes(without_machine_paths(read_json(folder / "settings.json")))
    return contents


def stored_weights(folder: Path) -> tuple[int | None, str]:
    """Return number and dtype of a folder's own weights, from the headers of safetensors files; (None, "float32")."""
    total, dtype = 0, ""
    for path in weight_files(folder):
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
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return f"sha256:{digest.hexdigest()[:16]}"


def stored_hash(folder: Path) -> str | None:
    """Return the hash of a folder's own weights as they compute, in float32; None without, and for pickles."""
    files = weight_files(folder / "unet")
    return weights_hash({name: tensor.float() for name, tensor in read_weights(files).items()}) if files else None


def check_weights(results: Mapping[str, Any], path: str | os.PathLike, *folders: Path) -> str | None:
    """Refuse results for other weights than a folder's, given both before and after rounding; return their hash.

    Those of an upscaler are results of images that it enlarged.
    """
    generation = results.get("generation") or {}
    if generation.get("variant") is not None:
        raise ValueError(
            f"--results '{path}' is for the weights `{generation['variant']}`; '{folders[0]}' loads others. Use "
            "results of those, made without --variant."
        )
    is_upscaler = package_class(read_json(folders[0] / INDEX)["_class_name"], folders[0]).is_upscaler
    if is_upscaler and generation.get("upscaler_revision") is None:
        raise ValueError(
            f"--results '{path}' is for images that no upscaler enlarged, and '{folders[0]}' is one. Run "
            "`semseg-diffusers evaluate --upscaler` with it."
        )
    scored = str(generation.get("upscaler_revision" if is_upscaler else "revision"))
    ours = [digest for digest in map(stored_hash, folders) if digest is not None]
    if not scored.startswith("sha256:") or generation.get("dtype") != "float32" or not ours:
        return None
    if scored not in ours:
        raise ValueError(
            f"--results '{path}' is for other weights ({scored}) than '{folders[0]}' holds ({ours[0]}). Generate with "
            "this model and run `semseg-diffusers evaluate` again."
        )
    return scored


def check_dataset_folder(folder: Path) -> tuple[LabelSet, str]:
    """Return the label set of a dataset of ours, and the file that records how it was made."""
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
