"""Checkpoints of a run: written under another name and renamed, hashed, rotated, and loaded only if complete.

accelerate's `load_state` unpickles optimizer and RNG state, so a folder is loaded only if every file has the hash that
the run recorded.
"""

import contextlib
import json
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from accelerate.logging import get_logger
from accelerate.utils import RNG_STATE_NAME
from safetensors import SafetensorError

from semseg_diffusers.data.labels import LabelSet
from semseg_diffusers.pipelines.mask_guided_mixin import MaskGuidedMixin
from semseg_diffusers.reports.run_folder import SAVED, list_checkpoints
from semseg_diffusers.training.inputs import Inputs
from semseg_diffusers.training.networks import EMA
from semseg_diffusers.training.settings import LoopSettings
from semseg_diffusers.utils.files import follow_umask, hash_file, read_json


logger = get_logger(__name__)

HASHES, STATE = "hashes.json", "state.json"
LEFTOVERS = (".checkpoint-*.writing", ".checkpoint-*.removing", ".pipeline.writing", "*.tmp-*", "previews/*.tmp-*")
LISTING_TIMEOUT = 60  # seconds
# Settings that may differ between a checkpoint and the run that resumes it; any other would make it another run. Of
# the batch only the number of samples per step counts: how processes and accumulation share them may change.
CHANGEABLE_ON_RESUME = frozenset(
    (
        "dataset", "output_dir", "validation_split", "dataloader_num_workers", "decoded_gigabytes",
        "max_train_steps", "num_train_epochs", "checkpointing_steps", "checkpoints_total_limit",
        "resume_from_checkpoint", "logging_steps", "preview_steps", "preview_masks", "preview_samples",
        "preview_inference_steps", "preview_guidance_scale", "report_to", "device", "gradient_checkpointing",
        "torch_compile", "channels_last", "fused_optimizer", "allow_tf32",
        "train_batch_size", "gradient_accumulation_steps", "push_to_hub", "hub_model_id", "hub_private_repo",
        "init_from", "init_classes", "base_model", "model", "revision", "text_encoder",
        "text_encoder_by_reference", "features", "vae",
    )
)  # fmt: skip


@contextlib.contextmanager
def atomic_write(target: Path, staging: Path | None, run: Path) -> Iterator[None]:
    """If `target` cannot be written, as on a full disk, remove `staging` and report what is left, as an OSError."""
    try:
        yield
    except (OSError, RuntimeError, SafetensorError) as error:
        if staging is not None:
            shutil.rmtree(staging, ignore_errors=True)
        checkpoints = list_checkpoints(run)
        kept = f"{checkpoints[-1]} is complete" if checkpoints else "there is no earlier checkpoint"
        raise OSError(
            f"{target} could not be written: {error}; {kept}. Free disk space, or check its file size limit, then "
            "resume with --resume_from_checkpoint latest."
        ) from error


def save_pipeline(pipeline: MaskGuidedMixin, folder: Path, ema: EMA | None = None) -> None:
    """Save a pipeline, no file half-written, with the first average; other averages and raw weights are variants."""
    with staged(folder, folder / "unet", last="model_index.json") as staging:
        for variant in () if ema is None else ema.variants(pipeline.unet):
            pipeline.unet.save_pretrained(staging / "unet", variant=variant)
        pipeline.save_pretrained(staging)


@contextlib.contextmanager
def staged(folder: Path, target: Path, last: str) -> Iterator[Path]:
    """Yield a folder for files of `target`, then move them into `folder`; `last` marks that all are there."""
    staging = folder / ".pipeline.writing"
    shutil.rmtree(staging, ignore_errors=True)
    with atomic_write(target, staging, folder):
        yield staging
        follow_umask(staging)
        files = [path for path in staging.rglob("*") if path.is_file()]
        for path in sorted(files, key=lambda path: path.name == last):
            place = folder / path.relative_to(staging)
            place.parent.mkdir(parents=True, exist_ok=True)
            os.replace(path, place)
    shutil.rmtree(staging, ignore_errors=True)


def save_checkpoint(
    run: Path, step: int, accelerator: Accelerator, ema: EMA | None, state: dict[str, Any], total_limit: int | None
) -> None:
    """Write `checkpoint-<step>` with the loop's `state`, then remove the oldest. Called by every process."""
    target, staging = run / f"checkpoint-{step}", run / f".checkpoint-{step}.writing"
    if accelerator.is_main_process:
        shutil.rmtree(staging, ignore_errors=True)
    accelerator.wait_for_everyone()
    own = staging if accelerator.is_main_process else None  # only the main process removes shared files
    with atomic_write(target, own, run):
        accelerator.save_state(str(staging))
    accelerator.wait_for_everyone()  # every process writes its random state there
    if accelerator.is_main_process:
        with atomic_write(target, own, run):
            follow_umask(staging)
            paths = [staging / f"{RNG_STATE_NAME}_{i}.pkl" for i in range(accelerator.num_processes)]
            end = time.monotonic() + LISTING_TIMEOUT
            while missing := [path for path in paths if not path.is_file()]:  # not yet shown by a network file system
                if time.monotonic() > end:
                    raise OSError(f"{missing[0]} was written by another process and is not visible here")
                time.sleep(0.1)
            if ema is not None:
                state = {**state, **ema.save(staging)}
            (staging / STATE).write_text(json.dumps({"step": step, **state}, indent=2))
            files = sorted(path for path in staging.rglob("*") if path.is_file())
            hashes = {path.relative_to(staging).as_posix(): hash_file(path) for path in files}
            (staging / HASHES).write_text(json.dumps(hashes, indent=2))
            _remove(target)
            os.replace(staging, target)
    if accelerator.is_main_process and total_limit is not None:
        for old in list_checkpoints(run)[:-total_limit]:
            _remove(old)
    accelerator.wait_for_everyone()


def _remove(checkpoint: Path) -> None:
    """Rename a checkpoint before its files are removed, so that a kill in between leaves no incomplete one."""
    if checkpoint.exists():
        hidden = checkpoint.with_name(f".{checkpoint.name}.removing")
        shutil.rmtree(hidden, ignore_errors=True)
        os.replace(checkpoint, hidden)
        shutil.rmtree(hidden, ignore_errors=True)


def remove_leftovers(run: Path) -> None:
    """Remove what a killed run was writing or removing; only the owner of the folder may call this."""
    for pattern in LEFTOVERS:
        for path in run.glob(pattern):
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)


def set_aside_later(run: Path, step: int) -> None:
    """Rename the checkpoints after `step`, which do not belong to a run resumed there."""
    for path in list_checkpoints(run):
        if int(path.name.removeprefix("checkpoint-")) > step:
            aside = path.with_name(f"{path.name}.set-aside")
            shutil.rmtree(aside, ignore_errors=True)
            os.replace(path, aside)
            logger.warning(f"{path} is later than the resumed step: renamed to {aside.name}")


def verify(checkpoint: Path) -> None:
    """Raise ValueError, naming the file, unless every file is there with the hash that the run wrote."""
    try:
        hashes = dict(json.loads((checkpoint / HASHES).read_text()))
    except (OSError, ValueError, TypeError) as error:
        raise ValueError(
            f"{checkpoint} has no readable {HASHES}: it is not a checkpoint of this package, or it is "
            "incomplete. Only our own checkpoints are resumed, because optimizer state is a pickle."
        ) from error
    present = {path.relative_to(checkpoint).as_posix() for path in checkpoint.rglob("*") if path.is_file()} - {HASHES}
    for name in sorted(present ^ set(hashes)):
        raise ValueError(f"{checkpoint / name} is {'not in ' + HASHES if name in present else 'missing'}.")
    for name, digest in hashes.items():
        if hash_file(checkpoint / name) != digest:
            raise ValueError(f"{checkpoint / name} is not what the run wrote (its hash differs); it is not resumed.")


def find_checkpoint(run: Path, which: str) -> Path | None:
    """Return the checkpoint of `--resume_from_checkpoint`: `latest` is the newest complete one, or None."""
    if which != "latest":
        for path in (Path(which), run / which):
            if path.is_dir():
                verify(path)
                return path
        raise FileNotFoundError(f"--resume_from_checkpoint {which}: no such folder; `latest` selects the newest.")
    for path in reversed(list_checkpoints(run)):
        try:
            verify(path)
        except ValueError as error:
            logger.warning(f"skipped: {error}")
        else:
            return path
    return None


def checkpoint_to_resume(settings: LoopSettings, inputs: Inputs, run: Path, samples_per_step: int) -> Path | None:
    """Return the checkpoint to resume from, or None; refuse a folder, or a checkpoint, of another run."""
    in_use = bool(list_checkpoints(run)) or any((run / name).exists() for name in SAVED)
    if settings.resume_from_checkpoint is None:
        if in_use:
            raise ValueError(
                f"--output_dir {run} already holds a run. Resume it with --resume_from_checkpoint latest, or choose "
                "another folder."
            )
        return None
    checkpoint = find_checkpoint(run, settings.resume_from_checkpoint)
    if checkpoint is None:
        if in_use:
            raise ValueError(
                f"{run} holds a run, but no complete checkpoint to resume from. Move it away to start again, or "
                "choose another --output_dir."
            )
        return None
    if difference := _difference(read_json(checkpoint / STATE), settings, inputs, samples_per_step):
        raise ValueError(f"{checkpoint} {difference}")
    return checkpoint


def _difference(state: dict[str, Any], settings: LoopSettings, inputs: Inputs, samples_per_step: int) -> str | None:
    """Return why a checkpoint belongs to another run than this one; None if it does not."""
    again = "Resume with the dataset of the run, or start a new run in another folder."
    here = inputs.fingerprint
    trained, given = LabelSet.from_config(state["labels"]), inputs.pairs.labels
    if trained != given:
        return (
            f"has {trained.num_classes} classes ({', '.join(trained.names[:3])}, ...), the data has "
            f"{given.num_classes} ({', '.join(given.names[:3])}, ...). {again}"
        )
    if state["num_pairs"] != here["num_pairs"]:
        return f"was trained on {state['num_pairs']} pairs, the dataset now has {here['num_pairs']}. {again}"
    if state["samples_per_step"] != samples_per_step:
        return (
            f"saw {state['samples_per_step']} samples per step, this run would see {samples_per_step} "
            "(--train_batch_size x --gradient_accumulation_steps x processes). Choose them so that the product is the "
            "same."
        )
    if state.get("sharded", False):
        return (
            "belongs to a run with sharded weights (FSDP), whose optimizer state cannot be loaded. Start a new run "
            "from its saved weights with --init_from."
        )
    # a setting added after the checkpoint was written had the effect of its default
    saved, now = {**settings.defaults(), **state["settings"]}, settings.to_dict()
    differing = [name for name in now if name not in CHANGEABLE_ON_RESUME and saved[name] != now[name]]
    if differing:
        values = ", ".join(f"--{name} {saved[name]} (now {now[name]})" for name in differing)
        return (
            f"belongs to a run with other settings: {values}. Use the same, or start a new run from these "
            "weights in another folder: --init_from."
        )
    if state.get("class_pixels") != here["class_pixels"]:
        return f"sampled its pairs by the classes of other masks: they have changed since. {again}"
    for name in ("base_model", "teacher"):
        if state.get(name) != here.get(name):
            option = "--base_model" if name == "base_model" else "--model"
            return (
                f"belongs to a run on another model: the weights of {option} differ. Resume with that of the run, or "
                "start a new run in another folder."
            )
    if state.get("vae") != here["vae"]:
        return (
            "was trained on the latents of another autoencoder: the weights of --vae differ. Resume with that of the "
            "run, or start a new run in another folder."
        )
    if state.get("captions") != here["captions"]:
        return (
            "was trained with other captions, or another --text_encoder, than this run found. Resume with those of "
            "the run, or start a new run in another folder."
        )
    if state.get("masks", here["masks"]) != here["masks"]:  # older checkpoints have none
        return (
            "was trained on other files: masks, or sizes of image files, have changed since (other changes of images "
            f"are not checked). {again}"
        )
    for name in ("attributes", "label_diffusion"):
        if state.get(name) != here[name]:
            return f"found other --{name} in its data: {state.get(name)} (now {here[name]}). {again}"
    return None


def load_checkpoint(checkpoint: Path, accelerator: Accelerator, ema: EMA | None) -> dict[str, Any]:
    """Restore network, optimizer, scaler and averages from a verified checkpoint; return its JSON state."""
    state = read_json(checkpoint / STATE)
    accelerator.load_state(str(checkpoint))
    if ema is not None:
        ema.load(checkpoint, state)
    return state
