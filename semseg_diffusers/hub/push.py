"""Publish models and datasets on the Hugging Face Hub, with their cards, and load models from it.

The token comes from HF_TOKEN or `hf auth login`.
"""

import contextlib
import json
import os
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, hf_hub_download
from huggingface_hub.errors import HFValidationError, RepositoryNotFoundError
from huggingface_hub.utils import validate_repo_id

from semseg_diffusers.data.dataset import load_pairs, load_tables
from semseg_diffusers.data.dataset_format import LABELS_FILE, SYNTHETIC_FILE
from semseg_diffusers.hub import cards, folders
from semseg_diffusers.hub.settings import PushSettings
from semseg_diffusers.hub.weights import only_variant, stored_variants
from semseg_diffusers.pipelines.mask_guided_mixin import MaskGuidedMixin
from semseg_diffusers.pipelines.pipeline_mask_guided_ddpm import MaskGuidedDDPMPipeline
from semseg_diffusers.pipelines.pipeline_mask_guided_upscale import MaskGuidedUpscalePipeline
from semseg_diffusers.utils.files import read_json, read_json_lines, read_text, write_text
from semseg_diffusers.utils.hub_errors import LOG_IN, HubError, check_name, hub_errors


# What a repository may hold and still count as empty: files that the Hub's page writes when it creates one.
EMPTY_FILES = frozenset((".gitattributes", ".gitignore", folders.CARD, "LICENSE", "LICENSE.md", "LICENSE.txt"))
AGAIN = "Run the same command again: it resumes, and files that are already stored are not sent twice."


def prepare_repo(
    repo_id: str | None, *, default_name: str, repo_type: str = "model", private: bool | None = None
) -> str:
    """Create a repository, or check that an existing one may be written, before any work that ends in a push.

    Args:
        repo_id: "user/name", or "name" for one's own; None takes `default_name`.
        default_name: its name where `repo_id` is None; characters that the Hub does not allow become "-".
        repo_type: "model" or "dataset".
        private: visibility of a new repository; None leaves it to the Hub. An existing one must agree.

    Returns:
        the full id, "user/name".

    Raises:
        HubError: no token, a wrong one, or one that may not write there; no connection.
        ValueError: the repository holds something else, or is public and `private` is set; the name is not allowed.
    """
    name = repo_id or re.sub(r"[^\w.-]+|--+|\.\.+", "-", default_name, flags=re.ASCII).strip("-.") or "semseg"
    api = HfApi()
    action = f"preparing the {repo_type} '{name}' on the Hub"
    with hub_errors(action, name, repo_type):
        user = api.whoami()
        full = name if "/" in name else f"{user['name']}/{name}"
        if user.get("auth", {}).get("accessToken", {}).get("role") == "read":
            raise HubError(f"{action}: the token of '{user['name']}' may only read. Use one that may write. {LOG_IN}")
        try:
            found = api.repo_info(full, repo_type=repo_type)
        except RepositoryNotFoundError:
            return api.create_repo(full, repo_type=repo_type, private=private, exist_ok=True).repo_id
        owners = {user["name"], *(group["name"] for group in user.get("orgs", []))}
        if full.split("/")[0] not in owners:
            raise HubError(
                f"{action}: '{full}' is another user's; the token is for {' or '.join(sorted(owners))}. {LOG_IN}"
            )
        if private and not found.private:
            raise ValueError(
                f"--private: '{full}' exists and is public. Make it private on its page (Settings) first, or name "
                "another repository."
            )
        _check_content(full, {file.rfilename for file in found.siblings or ()}, repo_type)  # type: ignore[union-attr]
    return full


def _check_content(repo_id: str, files: set[str], repo_type: str) -> None:
    """Refuse a repository that holds anything but what we push there."""
    rest = sorted(files - EMPTY_FILES)
    if not rest or (repo_type == "dataset" and LABELS_FILE in files):
        return
    found = f"other files ({', '.join(rest[:4])}{', ...' if len(rest) > 4 else ''})"
    if repo_type == "model":
        config_file = next((name for name in (folders.INDEX, "config.json") if name in files), None)
        config = read_json(hf_hub_download(repo_id, config_file)) if config_file else {}
        name = config.get("_class_name") or next(iter(config.get("architectures") or ()), config.get("model_type"))
        if config_file == folders.INDEX and str(name).startswith(folders.OUR_PIPELINES):
            return
        found = f"a {name} ({config_file})" if name else found
    raise ValueError(
        f"'{repo_id}' on the Hub holds {found}; expected a {repo_type} of this package, or an empty "
        "repository. Nothing was pushed. Name another with --repo_id, or delete that one on its page."
    )


@contextlib.contextmanager
def _repository(
    folder: Path, repo_id: str | None, repo_type: str, revision: str | None, private: bool | None
) -> Iterator[tuple[str, set[str], str]]:
    """Prepare a repository and its branch for a push of a folder; yield its id, its files and the text of its card."""
    repo_id = prepare_repo(repo_id, default_name=folder.resolve().name, repo_type=repo_type, private=private)
    api, card = HfApi(), ""
    with hub_errors(f"pushing '{folder}' to '{repo_id}'", repo_id, repo_type, revision=revision, again=AGAIN):
        if revision is not None:
            api.create_branch(repo_id, branch=revision, repo_type=repo_type, exist_ok=True)
        found = api.repo_info(repo_id, repo_type=repo_type, revision=revision)
        files = {file.rfilename for file in found.siblings or ()}  # type: ignore[union-attr]
        if folders.CARD in files:
            path = hf_hub_download(repo_id, folders.CARD, repo_type=repo_type, revision=revision)
            card = read_text(path)
        yield repo_id, files, card


def push_model(
    folder: str | os.PathLike,
    repo_id: str | None,
    *,
    revision: str | None = None,
    commit_message: str | None = None,
    private: bool | None = None,
    results: Sequence[str | os.PathLike] | None = None,
) -> str:
    """Push a saved pipeline in one commit: weights, configs, code files, settings, log, newest preview, and the card.

    Code files that the folder does not hold are those of this package. The card's marked parts are rewritten, in the
    folder too; the rest of it is the user's. Files that an earlier push left beside the network and the scheduler are
    deleted. Checkpoints and tracker logs are never pushed. A preview shows real images of the data, so it is pushed
    only if the card names a licence.

    Args:
        folder: a run folder, or one that `save_pretrained` or `export` wrote.
        repo_id: "user/name"; None takes the folder's name.
        revision: branch, created if necessary.
        commit_message: title of the commit.
        private: see `prepare_repo`.
        results: files that `semseg-diffusers evaluate` wrote, for the card's Results.

    Returns:
        URL of the commit.

    Raises:
        ValueError: the folder holds no complete pipeline, or the results are for other weights; see `prepare_repo`.
        HubError: the Hub, or the connection, failed.
    """
    folder = Path(folder)
    index, scores = _check_model(folder, results or ())
    with _repository(folder, repo_id, "model", revision, private) as (repo_id, there, card_there):
        contents = _model_contents(folder, repo_id, revision, index, scores, card_there)
        write_text(folder / folders.CARD, contents[folders.CARD].decode())  # type: ignore[union-attr]
        owned = tuple(f"{part}/" for part in (*folders.components(index), "previews"))
        stale = sorted(name for name in there if name.startswith(owned) and name not in contents)
        commit = HfApi().create_commit(
            repo_id,
            [
                *(CommitOperationDelete(name) for name in stale),
                *(CommitOperationAdd(name, content) for name, content in sorted(contents.items())),
            ],
            commit_message=commit_message or f"Push {index['_class_name']}",
            revision=revision,
        )
    return commit.commit_url


def _check_model(folder: Path, results: Sequence[str | os.PathLike]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the index of a folder that can be pushed, and the results of its weights."""
    index = folders.check_model_folder(folder)
    if "" not in stored_variants(str(folder), "unet"):
        raise ValueError(
            f"'{folder}' holds no weights but a variant, which `from_pretrained` of its id would not find. `export` "
            "writes them as its own; push that folder."
        )
    scores = cards.read_scores(results)
    for path, score in zip(results, scores.values(), strict=True):
        folders.check_weights(score, path, folder)
    return index, scores


def _model_contents(
    folder: Path, repo_id: str, revision: str | None, index: dict[str, Any], scores: dict[str, Any], card_there: str
) -> dict[str, Any]:
    """Return the files of a push, the card among them, by their names in the repository."""
    card = cards.model_card(folder, repo_id, scores, revision)
    card = cards.merge(card, card_there, repo_id, not_from_there=("model-index",))
    contents: dict[str, Any] = dict(folders.model_files(folder, index))
    preview = max(folder.glob("previews/[!.]*.png"), default=None)
    license_name = cards.metadata(card).get("license")
    if preview is not None and license_name:
        contents[f"previews/{preview.name}"] = preview
        caption = f"*The run's last preview: masks, samples, and images of its data (licence: {license_name}).*"
        caption = f"![mask, samples, image](previews/{preview.name})\n\n{caption}"
        card = cards.replace_part(card, "preview", caption)
    contents[folders.CARD] = card.encode()
    return contents | {name: folders.json_bytes(score) for name, score in scores.items()}


def push_dataset(
    folder: str | os.PathLike,
    repo_id: str | None,
    *,
    revision: str | None = None,
    commit_message: str | None = None,
    private: bool | None = None,
) -> str:
    """Push a prepared or generated folder as Parquet, the files' bytes unchanged, with label set, record and card.

    The Hub allows 10,000 files in a folder, which public datasets exceed; so the pairs go through `datasets`.

    Args:
        folder: one that `semseg-diffusers prepare`, `toy` or `generate` wrote.
        repo_id: "user/name"; None takes the folder's name.
        revision: branch, created if necessary.
        commit_message: title of the commit.
        private: see `prepare_repo`.

    Returns:
        URL of the commit.

    Raises:
        ValueError: the folder is no dataset of ours, or see `prepare_repo`.
        HubError: the Hub, or the connection, failed.
    """
    folder = Path(folder)
    tables = _pushed_tables(folder)
    with _repository(folder, repo_id, "dataset", revision, private) as (repo_id, _, card_there):
        # 1. card and label set, so that after a broken connection the repository is known to be ours
        files = _dataset_contents(folder, repo_id, revision, tables, card_there)
        HfApi().create_commit(
            repo_id,
            [CommitOperationAdd(name, content) for name, content in files.items()],
            commit_message=f"{commit_message or 'Push dataset'}: card and label set",
            repo_type="dataset",
            revision=revision,
        )
        # 2. the pairs; `datasets` adds `configs` and `dataset_info` to the card's metadata
        commit = tables.push_to_hub(repo_id, revision=revision, commit_message=commit_message or "Push dataset")
    return commit.commit_url


def _pushed_tables(folder: Path) -> Any:
    """Return the tables of a dataset that can be pushed, without paths of this machine."""
    import datasets  # here: slow to import, and not needed to push a model

    folders.check_dataset_folder(folder)
    tables = datasets.DatasetDict(load_tables(str(folder)))
    for split in tables:
        _ = load_pairs(folder, split)[0]  # checks columns, label set and sizes
        for column in {*folders.PATH_COLUMNS} & set(tables[split].column_names):
            before = tables[split][column][:]
            if (values := folders.without_machine_paths(before)) != before:
                tables[split] = tables[split].remove_columns(column).add_column(column, values)
    return tables


def _dataset_contents(
    folder: Path, repo_id: str, revision: str | None, tables: Any, card_there: str
) -> dict[str, bytes]:
    """Return the files of a push besides the pairs: card, label set, records."""
    labels, record_file = folders.check_dataset_folder(folder)
    record = read_json(folder / record_file)
    counts = {split: len(table) for split, table in tables.items()}
    card = cards.dataset_card(folder, repo_id, revision, labels, record, counts, card_there)
    card = cards.merge(card, card_there, repo_id, from_there=("configs", "dataset_info"))
    files = {
        folders.CARD: card.encode(),
        LABELS_FILE: folders.json_bytes(labels.to_config()),
        record_file: folders.json_bytes(folders.without_machine_paths(record)),
    }
    if (folder / SYNTHETIC_FILE).is_file():
        lines = read_json_lines(folder / SYNTHETIC_FILE)
        rows = (json.dumps(folders.without_machine_paths(line)) for line in lines)
        files[SYNTHETIC_FILE] = "".join(f"{row}\n" for row in rows).encode()
    return files


def describe_push(settings: PushSettings) -> str:
    """Return what a push to an empty repository would send, and the card, without a connection."""
    try:
        validate_repo_id(settings.repo_id)
    except HFValidationError as err:
        raise ValueError(f"--repo_id: {err}") from err
    folder, pairs = Path(str(settings.model or settings.dataset)), ""
    contents: dict[str, Any]
    if settings.model is not None:
        index, scores = _check_model(folder, settings.results)
        contents = _model_contents(folder, settings.repo_id, settings.revision, index, scores, "")
    else:
        tables = _pushed_tables(folder)
        contents = _dataset_contents(folder, settings.repo_id, settings.revision, tables, "")
        pairs = "".join(f"  {len(table):>12,}  pairs of {split}, as Parquet\n" for split, table in tables.items())
    sizes = {
        name: len(content) if isinstance(content, bytes) else Path(content).stat().st_size
        for name, content in sorted(contents.items())
    }
    listed = "".join(f"  {size:>12,}  {name}\n" for name, size in sizes.items())
    kind = "model" if settings.model is not None else "dataset"
    card = contents[folders.CARD].decode()
    return f"would push the {kind} {settings.repo_id}, bytes and files:\n{listed}{pairs}\n{card.rstrip()}\n"


def load_pipeline(
    model: str | os.PathLike,
    *,
    revision: str | None = None,
    variant: str | None = None,
    upscaler: bool | None = False,
    **kwargs: Any,
) -> MaskGuidedMixin:
    """Load a pipeline from a folder or the Hub; errors of the id or the connection come with a hint.

    Args:
        model: folder, or "user/name".
        revision: branch, tag or commit on the Hub.
        variant: weights saved beside the pipeline's own: `raw`, or an average such as `ema_0_9999`.
        upscaler: True for one that enlarges images, False for one that generates them, None for either.
        **kwargs: for `from_pretrained`.

    Returns:
        the pipeline.

    Raises:
        ValueError: no such folder, it holds another pipeline, or no such weights.
        HubError: the Hub has no such model, or denies access.
    """
    name = os.fspath(model)
    check_name(name)
    if Path(name).is_dir() and not Path(name, folders.INDEX).is_file():
        alone = Path(name, "config.json").is_file()
        raise ValueError(
            f"'{name}' holds no {folders.INDEX}; expected the folder that `train` or `pipe.save_pretrained` wrote."
            + (" A network alone does not say how its images were noised." if alone else "")
        )
    with hub_errors(f"loading the model '{name}'", name, revision=revision):
        found = MaskGuidedDDPMPipeline.load_config(name, revision=revision).get("_class_name")
        if not str(found).startswith(folders.OUR_PIPELINES):
            raise ValueError(
                f"'{name}' holds a {found}; expected a pipeline of this package, such as MaskGuidedDDPMPipeline."
            )
        pipeline = MaskGuidedUpscalePipeline if found == "MaskGuidedUpscalePipeline" else MaskGuidedDDPMPipeline
        if upscaler is not None and upscaler != pipeline.is_upscaler:
            other = "it generates images: train one with --upscale_factor"
            if pipeline.is_upscaler:
                other = "it enlarges the images of another model: give it as --upscaler, or use it in Python"
            raise ValueError(
                f"'{name}' is {'an' if pipeline.is_upscaler else 'no'} upscaler; {other} ({pipeline.__name__})."
            )
        if variant is None and Path(name).is_dir():
            variant = only_variant(name, "unet")
        elif variant is not None and Path(name).is_dir():  # diffusers would accept a prefix
            variants = [found for found in stored_variants(name, "unet") if found]
            if variant not in variants:
                there = f"it holds {', '.join(variants)}" if variants else "it holds only its own, without --variant"
                raise ValueError(f"'{name}' holds no weights `{variant}`; {there}.")
        try:
            return pipeline.from_pretrained(name, revision=revision, variant=variant, **kwargs)
        except ValueError as error:
            if f"`variant={variant}`" in str(error):
                raise ValueError(f"'{name}' holds no weights `{variant}`; its card lists those it holds.") from error
            raise
        except OSError:
            if variant is not None or Path(name).is_dir():
                raise
            variant = only_variant(name, "unet", revision=revision)
            if variant is None:
                raise
            return pipeline.from_pretrained(name, revision=revision, variant=variant, **kwargs)


def push(settings: PushSettings) -> None:
    """Run the command `push`: publish a model or a dataset and print its address."""
    if settings.dry_run:
        sys.stdout.write(describe_push(settings))
        return
    private = settings.private or None
    where: dict[str, Any] = {"revision": settings.revision, "commit_message": settings.commit_message}
    if settings.model is not None:
        url = push_model(settings.model, settings.repo_id, results=settings.results, private=private, **where)
    else:
        url = push_dataset(str(settings.dataset), settings.repo_id, private=private, **where)
    sys.stdout.write(f"pushed: {url}\n")
