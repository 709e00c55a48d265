"""What lies in a run folder and what may go on there: settings, log, the saved pipeline, the checkpoint to resume."""

import contextlib
import dataclasses
import json
import os
import platform
import shutil
from collections.abc import Iterator, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import accelerate
import diffusers
import torch
from accelerate import Accelerator

from semseg_diffusers.data.dataset import PairDataset
from semseg_diffusers.data.dataset_format import package_version
from semseg_diffusers.data.labels import LabelSet
from semseg_diffusers.hub.folders import weights_hash
from semseg_diffusers.pipelines.pipeline_mask_guided_ddpm import MaskGuidedDDPMPipeline
from semseg_diffusers.pipelines.portable import write_text
from semseg_diffusers.training.checkpoints import (
    STATE,
    atomic_write,
    find_checkpoint,
    list_checkpoints,
)
from semseg_diffusers.training.class_balance import ClassBalance, ClassCounts
from semseg_diffusers.training.ema import EMA
from semseg_diffusers.training.preemption import TrainingStoppedError
from semseg_diffusers.training.settings import TrainingSettings


STATUS_FILE = "status.json"

# Settings that may differ between a checkpoint and the run that resumes it; any other would make it another run. Of
# the batch only the samples a step count: how processes and accumulation share them may change.
CHANGEABLE_ON_RESUME = frozenset(
    (
        "dataset", "output_dir", "validation_split", "dataloader_num_workers", "decoded_gigabytes",
        "max_train_steps", "num_train_epochs", "checkpointing_steps", "checkpoints_total_limit",
        "resume_from_checkpoint", "logging_steps", "preview_steps", "preview_masks", "preview_samples",
        "preview_inference_steps", "preview_guidance_scale", "report_to", "device", "gradient_checkpointing",
        "torch_compile", "channels_last", "fused_optimizer", "allow_tf32",
        "train_batch_size", "gradient_accumulation_steps", "push_to_hub", "hub_model_id", "hub_private_repo",
        "init_from", "base_model",
    )
)  # fmt: skip


class RunLog:
    """`log.jsonl` of a run: one JSON line an interval; a resumed run drops the lines after its checkpoint."""

    def __init__(self, path: Path, step: int, enabled: bool):
        self.path = path
        self.enabled = enabled
        self.last: dict = {}
        if enabled:
            kept = [line for line in read_log(path) if line["step"] <= step]
            self.last = kept[-1] if kept else {}
            write_text(path, "".join(json.dumps(line) + "\n" for line in kept))

    def write(self, values: dict) -> None:
        self.last = values
        if self.enabled:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(values) + "\n")


def read_log(path: Path) -> list[dict]:
    """The lines of a log; the last one may be cut off, where a run was killed while it wrote."""
    if not path.is_file():
        return []
    lines = []
    for text in path.read_text(encoding="utf-8").splitlines():
        try:
            lines.append(json.loads(text))
        except json.JSONDecodeError:
            break
    return lines


@contextlib.contextmanager
def run_status(run: Path, accelerator: Accelerator) -> Iterator[dict]:
    """Keep `status.json` of a run folder true: "running", then "finished", "stopped" or "failed". In every process.

    A killed run leaves "running" behind. What the caller puts into the dictionary (`step`) is written as well. The
    main process writes; the others write only why they failed.

    Args:
        run: run folder, which this launch alone may write to.
        accelerator: of the run.
    """
    status: dict = {"step": 0}

    def write(state: str, reason: str | None) -> None:
        stamp = datetime.now(timezone.utc).isoformat(timespec="seconds")
        record = {"status": state, "reason": reason, **status, "time": stamp, "pid": os.getpid()}
        write_text(run / STATUS_FILE, json.dumps(record, indent=2) + "\n")

    if accelerator.is_main_process:
        write("running", None)
    accelerator.wait_for_everyone()  # nobody fails into the status of an earlier run
    try:
        yield status
    except TrainingStoppedError as stopped:
        if accelerator.is_main_process:
            write("stopped", stopped.reason)
        raise
    except BaseException as error:
        with contextlib.suppress(OSError):  # the disk may be what failed
            before = json.loads((run / STATUS_FILE).read_text(encoding="utf-8"))["status"]
            if before != "failed":  # else another process said why, and this is what came of it
                write("failed", f"{type(error).__name__}: {error}")
        raise
    if accelerator.is_main_process:
        write("finished", None)


def save_pipeline(pipeline: MaskGuidedDDPMPipeline, folder: Path, averages: EMA | None = None) -> None:
    """Save a pipeline beside its place and move it there, file by file, so that no file is ever half-written.

    With averages the pipeline gets the weights of the first. The network's own and the further averages go beside
    them as diffusers' variants: `unet/diffusion_pytorch_model.raw.safetensors`, which `variant="raw"` loads.
    """
    staging = folder / ".pipeline.writing"
    shutil.rmtree(staging, ignore_errors=True)
    with atomic_write(folder / "unet", staging, folder):
        for variant in () if averages is None else averages.variants(pipeline.unet):
            pipeline.unet.save_pretrained(staging / "unet", variant=variant)
        pipeline.save_pretrained(staging)
        files = [path for path in staging.rglob("*") if path.is_file()]
        for path in sorted(files, key=lambda path: path.name == "model_index.json"):  # last: it says that all is there
            target = folder / path.relative_to(staging)
            target.parent.mkdir(parents=True, exist_ok=True)
            os.replace(path, target)
    shutil.rmtree(staging, ignore_errors=True)


def external_inputs(unet: torch.nn.Module) -> dict:
    """What a run took from elsewhere, and must find again to go on from a checkpoint, by the option that asked for it.

    Of the training split, what the network's config holds of it; of a base model, a hash of its weights.
    """
    found = {name: getattr(unet.config, name, None) for name in ("attributes", "label_diffusion")}
    base = {name: weight for name, weight in unet.named_parameters() if not weight.requires_grad}
    found["base_model"] = weights_hash(base) if base else None
    return json.loads(json.dumps(found))


def folder_to_resume(
    settings: TrainingSettings,
    pairs: PairDataset,
    run: Path,
    samples_per_step: int,
    balance: ClassBalance | None,
    found: dict,
    sharded: bool,
) -> Path | None:
    """The checkpoint to go on from, or None; a run folder in use is not overwritten without a word."""
    in_use = bool(list_checkpoints(run)) or (run / "model_index.json").exists()
    if settings.resume_from_checkpoint is None:
        if in_use:
            raise ValueError(
                f"--output_dir {run} already holds a run. Go on with it by --resume_from_checkpoint latest, or name "
                "another folder."
            )
        return None
    checkpoint = find_checkpoint(run, settings.resume_from_checkpoint)
    if checkpoint is None:
        if in_use:
            raise ValueError(
                f"{run} holds a run, but no whole checkpoint to go on from. Move it away to start again, or name "
                "another --output_dir."
            )
        return None
    state = json.loads((checkpoint / STATE).read_text(encoding="utf-8"))
    trained, given = LabelSet.from_config(state["labels"]), pairs.labels
    if trained != given:
        raise ValueError(
            f"{checkpoint} draws {trained.num_classes} classes ({', '.join(trained.names[:3])}, ...), the data has "
            f"{given.num_classes} ({', '.join(given.names[:3])}, ...). Resume with the data set of the run, or start "
            "a new run in another folder."
        )
    if state["num_pairs"] != len(pairs):
        raise ValueError(
            f"{checkpoint} was trained on {state['num_pairs']} pairs, the data set now has {len(pairs)}. Resume with "
            "the data set of the run, or start a new run in another folder."
        )
    if state["samples_per_step"] != samples_per_step:
        raise ValueError(
            f"{checkpoint} saw {state['samples_per_step']} samples a step, this run would see {samples_per_step} "
            "(--train_batch_size x --gradient_accumulation_steps x processes). Choose them so that the product is the "
            "same."
        )
    if state.get("sharded", False) != sharded:
        kinds = {False: "whole weights in every process", True: "weights in shards (FSDP)"}
        raise ValueError(
            f"{checkpoint} is of a run with {kinds[not sharded]}, this one has {kinds[sharded]}; neither reads the "
            "other's optimizer. Resume with the configuration of accelerate that the run had, or begin a new one with "
            "its saved weights by --init_from."
        )
    # a setting that came after the checkpoint was written had the effect of its default
    defaults = json.loads(json.dumps({one.name: one.default for one in dataclasses.fields(TrainingSettings)}))
    saved, now = {**defaults, **state["settings"]}, json.loads(settings.to_json())
    differing = [name for name in now if name not in CHANGEABLE_ON_RESUME and saved[name] != now[name]]
    if differing:
        was = ", ".join(f"--{name} {saved[name]} (now {now[name]})" for name in differing)
        raise ValueError(f"{checkpoint} is of a run with other settings: {was}. Give the same, or start a new run.")
    if balance is not None and state["class_pixels"] != balance.digest:
        raise ValueError(
            f"{checkpoint} drew its pairs by the classes of other masks: they have changed since, so the run would "
            "not go on as it began. Resume with the data set of the run, or start a new run in another folder."
        )
    for name, here in found.items():
        if state.get(name) == here:
            continue
        if name == "base_model":
            raise ValueError(
                f"{checkpoint} is of a run on another base: the weights of --base_model {settings.base_model} are "
                "others. Resume with the base of the run, or start a new run in another folder."
            )
        raise ValueError(
            f"{checkpoint} found other --{name} in its data: {state.get(name)} (now {here}). Resume with the data set "
            "of the run, or start a new run in another folder."
        )
    return checkpoint


RECORD_FILE = "run.json"


def write_record(
    run: Path,
    accelerator: Accelerator,
    labels: LabelSet,
    counts: ClassCounts,
    *,
    unet: torch.nn.Module,
    source_format: str | None,
    num_steps: int,
    samples_per_step: int,
    warnings: Sequence[str],
) -> None:
    """Write `run.json`; a run that is resumed writes it anew.

    Args:
        run: run folder.
        accelerator: of the run.
        labels: of the masks.
        counts: what the training masks hold.
        unet: the network.
        source_format: what the data was prepared from (`camvid`, `toy`, ...), where known.
        num_steps: optimizer steps of the whole run.
        samples_per_step: images an optimizer step.
        warnings: what `collect_warnings` says.
    """
    size = unet.config.sample_size
    record = {
        "begun": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "num_steps": num_steps,
        "samples_per_step": samples_per_step,
        "num_pairs": counts.num_masks,
        "source_format": source_format,
        "network": type(unet).__name__,
        "num_weights": sum(weight.numel() for weight in unet.parameters()),
        "size": [size, size] if isinstance(size, int) else list(size),
        "masks_counted": len(counts.pixels),
        "unknown_pixels": int(counts.pixels[:, -1].sum()),
        "classes": [
            {"name": name, "color": list(color), "pixels": pixels, "masks": masks}
            for name, color, pixels, masks in zip(
                labels.names,
                labels.colors,
                counts.class_pixels.tolist(),
                counts.masks_of_class.tolist(),
                strict=True,
            )
        ],
        "warnings": list(warnings),
        "num_processes": accelerator.num_processes,
        "device": _device_name(accelerator.device),
        "mixed_precision": accelerator.mixed_precision,
        "versions": {
            "semseg_diffusers": package_version(),
            "torch": torch.__version__,
            "diffusers": diffusers.__version__,
            "accelerate": accelerate.__version__,
            "python": platform.python_version(),
        },
    }
    write_text(run / RECORD_FILE, json.dumps(record, indent=2) + "\n")


def read_record_of(run: Path) -> dict[str, Any] | None:
    """What `write_record` wrote; None in the folder of a run that began before there was such a file."""
    path = run / RECORD_FILE
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


def _device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{device.type}, {os.cpu_count()} cores" if device.type == "cpu" else device.type
