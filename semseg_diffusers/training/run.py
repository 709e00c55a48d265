"""A training run: its inputs, its folder, and `Run`, which owns the state of training and everything that is written.

The folder holds the pipeline at its root, `settings.json`, `run.json` (what was known at the start), `status.json`,
`log.jsonl`, `previews/`, `run.html` and `checkpoint-<step>/`.
"""

import contextlib
import dataclasses
import json
import math
import os
import platform
import shutil
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import accelerate
import diffusers
import torch
from accelerate import Accelerator
from accelerate.logging import get_logger
from diffusers import DDPMScheduler
from diffusers.optimization import get_scheduler
from torch.utils.data import DataLoader

from semseg_diffusers.data.dataset import PairDataset, attribute_values, column_options, load_pairs, read_record
from semseg_diffusers.data.labels import LabelSet
from semseg_diffusers.hub.folders import weights_hash
from semseg_diffusers.pipelines.pipeline_mask_guided_ddpm import MaskGuidedDDPMPipeline
from semseg_diffusers.reports.run_folder import RECORD_FILE, STATUS_FILE, list_checkpoints, read_log
from semseg_diffusers.reports.run_page import page_at_end, update_run_page, write_run_page
from semseg_diffusers.training.base_model import BaseModel, load_base, load_first_weights
from semseg_diffusers.training.card import save_model_card
from semseg_diffusers.training.checkpoints import (
    STATE,
    atomic_write,
    find_checkpoint,
    load_checkpoint,
    remove_leftovers,
    save_checkpoint,
    set_aside_later,
)
from semseg_diffusers.training.class_balance import ClassBalance, ClassCounts, count_classes
from semseg_diffusers.training.dataset import ResumableBatchSampler, TrainingDataset, Warps
from semseg_diffusers.training.ema import EMA
from semseg_diffusers.training.hardware import (
    build_optimizer,
    check_regions,
    fit_optimizer_state,
    matrix_precision,
    save_contiguous,
)
from semseg_diffusers.training.monitor import DataTimer, LossMonitor, check_temporary_folder
from semseg_diffusers.training.networks import build_network, class_rarity, trained_weights
from semseg_diffusers.training.objective import build_noise_scheduler, build_sampler, largest_loss_weight
from semseg_diffusers.training.preemption import StopRequest, TrainingStoppedError, ignore_signals
from semseg_diffusers.training.preflight import collect_warnings
from semseg_diffusers.training.previews import remove_later_previews, save_preview, start_tracking
from semseg_diffusers.training.settings import ReportSettings, TrainingSettings
from semseg_diffusers.utils.distributed import run_on_all_ranks, run_on_main_rank
from semseg_diffusers.utils.files import exclusive_folder, package_version, write_json, write_text
from semseg_diffusers.utils.progress import progress_bar


logger = get_logger(__name__)

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
        "init_from", "base_model",
    )
)  # fmt: skip


# Inputs --------------------------------------------------------------------------------------------------------------


@dataclass
class Inputs:
    """What a run reads before its first step; everything that can be refused is refused here."""

    pairs: PairDataset
    preview_pairs: PairDataset
    preview_reason: str | None  # why previews use the training split, if they do
    source_format: str | None  # what the data was prepared from
    attributes: dict[str, list[str]]
    counts: ClassCounts | None
    balance: ClassBalance | None
    rarity: list[float] | None
    base: BaseModel | None
    unet: torch.nn.Module
    noise_scheduler: DDPMScheduler

    @property
    def external(self) -> dict[str, Any]:
        """What the network took from elsewhere, and must find again on resume, by the option that asked for it."""
        found = {name: getattr(self.unet.config, name, None) for name in ("attributes", "label_diffusion")}
        base = {name: weight for name, weight in self.unet.named_parameters() if not weight.requires_grad}
        return json.loads(json.dumps({**found, "base_model": weights_hash(base) if base else None}))


def load_inputs(settings: TrainingSettings, accelerator: Accelerator) -> Inputs:
    """Read the data and build the network that fits it. Called by every process.

    Raises:
        ValueError, OSError: what cannot be read, or does not go together; in the first process where it occurs.
    """

    def read_data() -> tuple[PairDataset, PairDataset, str | None]:
        columns = column_options(settings)
        pairs = load_pairs(settings.dataset, settings.train_split, **columns)
        return pairs, *_preview_pairs(settings, pairs, columns)

    def read_all() -> Inputs:
        pairs, preview_pairs, reason = data or read_data()
        attributes = attribute_values(pairs, settings.attributes)
        counts = balance = rarity = None
        if settings.class_balanced_sampling or settings.label_diffusion:
            counts = count_classes(pairs, every_mask=True, num_workers=max(1, settings.dataloader_num_workers))
        if settings.class_balanced_sampling:
            balance = ClassBalance(counts.pixels, settings.class_balance_temperature, settings.class_balance_min_share)
        if settings.label_diffusion:
            rarity = class_rarity(counts.pixels)
        base = None if settings.base_model is None else load_base(settings)
        size = _sample_size(settings, pairs, preview_pairs)
        unet = build_network(settings, pairs.labels, size, attributes, rarity, None if base is None else base.unet)
        check_regions(accelerator, unet)
        noise_scheduler = base.noise_scheduler if base is not None else None
        return Inputs(
            pairs, preview_pairs, reason, read_record(settings.dataset).get("format"), attributes, counts, balance,
            rarity, base, unet, noise_scheduler or build_noise_scheduler(settings),
        )  # fmt: skip

    run_on_all_ranks(lambda: check_temporary_folder(settings.dataloader_num_workers))
    # one process of a machine builds the table of `datasets`, then the others find it
    data = run_on_all_ranks(read_data if accelerator.is_local_main_process else lambda: None)
    inputs = run_on_all_ranks(read_all)
    if settings.gradient_checkpointing:
        inputs.unet.enable_gradient_checkpointing()
    if settings.channels_last:
        inputs.unet.to(memory_format=torch.channels_last)
    return inputs


def _preview_pairs(settings: TrainingSettings, pairs: PairDataset, columns: dict) -> tuple[PairDataset, str | None]:
    """Return the split whose masks the previews use, and why it is the training split, if it is."""
    if not settings.preview_steps:
        return pairs, None
    if settings.validation_split == settings.train_split:
        return pairs, f"--validation_split is {settings.validation_split} as well"
    try:
        return load_pairs(settings.dataset, settings.validation_split, **columns), None
    except (FileNotFoundError, ValueError) as error:
        return pairs, str(error).rstrip(".")


def _sample_size(settings: TrainingSettings, pairs: PairDataset, preview_pairs: PairDataset) -> tuple[int, int]:
    """Return height and width of what the network sees: whole images, which have one size, or crops of them."""
    if settings.random_crop_size is None:
        return pairs.resolution
    for split in (pairs, preview_pairs):
        split.check_holds(*settings.random_crop_size)
    return settings.random_crop_size


# The folder ----------------------------------------------------------------------------------------------------------


class RunLog:
    """`log.jsonl` of a run: one JSON line per interval; a resumed run drops the lines after its checkpoint."""

    def __init__(self, path: Path, step: int, enabled: bool):
        self.path = path
        self.enabled = enabled
        if enabled:
            kept = [line for line in read_log(path) if line["step"] <= step]
            write_text(path, "".join(json.dumps(line) + "\n" for line in kept))

    def write(self, values: dict) -> None:
        """Append a line."""
        if self.enabled:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(values) + "\n")


@contextlib.contextmanager
def run_status(run: Path, accelerator: Accelerator) -> Iterator[dict]:
    """Keep `status.json` up to date: "running", then "finished", "stopped" or "failed". Called by every process.

    A killed run leaves "running" behind. The yielded dictionary (`step`) is written too. The main process writes; the
    others write only why they failed.
    """
    status: dict = {"step": 0}

    def write(state: str, reason: str | None) -> None:
        stamp = datetime.now(timezone.utc).isoformat(timespec="seconds")
        record = {"status": state, "reason": reason, **status, "time": stamp, "pid": os.getpid()}
        write_text(run / STATUS_FILE, json.dumps(record, indent=2) + "\n")

    if accelerator.is_main_process:
        write("running", None)
    accelerator.wait_for_everyone()  # so that no process fails into the status of an earlier run
    try:
        yield status
    except TrainingStoppedError as stopped:
        if accelerator.is_main_process:
            write("stopped", stopped.reason)
        raise
    except BaseException as error:
        with contextlib.suppress(OSError):  # the disk may be the reason
            before = json.loads((run / STATUS_FILE).read_text(encoding="utf-8"))["status"]
            if before != "failed":  # else another process has recorded the cause, and this is a consequence
                write("failed", f"{type(error).__name__}: {error}")
        raise
    if accelerator.is_main_process:
        write("finished", None)


def save_pipeline(pipeline: MaskGuidedDDPMPipeline, folder: Path, ema: EMA | None = None) -> None:
    """Save a pipeline under another name and move it into place file by file, so that no file is half-written.

    With averages the pipeline gets the weights of the first; the network's own and further averages are saved beside
    them as diffusers' variants: `unet/diffusion_pytorch_model.raw.safetensors`, which `variant="raw"` loads.
    """
    staging = folder / ".pipeline.writing"
    shutil.rmtree(staging, ignore_errors=True)
    with atomic_write(folder / "unet", staging, folder):
        for variant in () if ema is None else ema.variants(pipeline.unet):
            pipeline.unet.save_pretrained(staging / "unet", variant=variant)
        pipeline.save_pretrained(staging)
        files = [path for path in staging.rglob("*") if path.is_file()]
        for path in sorted(files, key=lambda path: path.name == "model_index.json"):  # last: it marks completeness
            target = folder / path.relative_to(staging)
            target.parent.mkdir(parents=True, exist_ok=True)
            os.replace(path, target)
    shutil.rmtree(staging, ignore_errors=True)


def checkpoint_to_resume(
    settings: TrainingSettings, inputs: Inputs, run: Path, samples_per_step: int, external: dict[str, Any]
) -> Path | None:
    """Return the checkpoint to resume from, or None.

    Raises:
        ValueError: the folder holds a run that is not to be resumed, or the checkpoint belongs to another run.
    """
    in_use = bool(list_checkpoints(run)) or (run / "model_index.json").exists()
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
    state = json.loads((checkpoint / STATE).read_text(encoding="utf-8"))
    if difference := _difference(settings, inputs, state, samples_per_step, external):
        raise ValueError(f"{checkpoint} {difference}")
    return checkpoint


def _difference(
    settings: TrainingSettings, inputs: Inputs, state: dict[str, Any], samples_per_step: int, external: dict[str, Any]
) -> str | None:
    """Return why a checkpoint belongs to another run than this one; None if it does not."""
    again = "Resume with the dataset of the run, or start a new run in another folder."
    trained, given = LabelSet.from_config(state["labels"]), inputs.pairs.labels
    if trained != given:
        return (
            f"has {trained.num_classes} classes ({', '.join(trained.names[:3])}, ...), the data has "
            f"{given.num_classes} ({', '.join(given.names[:3])}, ...). {again}"
        )
    if state["num_pairs"] != len(inputs.pairs):
        return f"was trained on {state['num_pairs']} pairs, the dataset now has {len(inputs.pairs)}. {again}"
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
    saved, now = {**default_settings(), **state["settings"]}, settings.to_dict()
    differing = [name for name in now if name not in CHANGEABLE_ON_RESUME and saved[name] != now[name]]
    if differing:
        values = ", ".join(f"--{name} {saved[name]} (now {now[name]})" for name in differing)
        return f"belongs to a run with other settings: {values}. Use the same, or start a new run."
    if inputs.balance is not None and state["class_pixels"] != inputs.balance.digest:
        return f"sampled its pairs by the classes of other masks: they have changed since. {again}"
    for name, here in external.items():
        if state.get(name) == here:
            continue
        if name == "base_model":
            return (
                f"belongs to a run on another base: the weights of --base_model {settings.base_model} differ. Resume "
                "with the base of the run, or start a new run in another folder."
            )
        return f"found other --{name} in its data: {state.get(name)} (now {here}). {again}"
    return None


def default_settings() -> dict[str, Any]:
    """Return the default of each setting, as JSON values."""
    fields = dataclasses.fields(TrainingSettings)
    defaults = {one.name: None if one.default is dataclasses.MISSING else one.default for one in fields}
    return json.loads(json.dumps(defaults))


def _device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{device.type}, {os.cpu_count()} cores" if device.type == "cpu" else device.type


# The run -------------------------------------------------------------------------------------------------------------


class Run:
    """The state of a training run: network, optimizer, schedule, averages, step, log, checkpoints.

    A context manager, which holds the run folder, handles termination signals and records how the run ends. Every
    method is called by every process.

    Args:
        settings: of the run.
        accelerator: of the run.
        inputs: data and network.
        trackers: names of accelerate's trackers.

    Raises:
        ValueError: the folder is in use, or holds another run.
    """

    def __init__(
        self, settings: TrainingSettings, accelerator: Accelerator, inputs: Inputs, trackers: list[str]
    ) -> None:
        self.settings, self.accelerator, self.inputs, self.trackers = settings, accelerator, inputs, trackers
        self.folder = Path(settings.output_dir)
        self.accumulation = settings.gradient_accumulation_steps
        self.samples_per_step = settings.train_batch_size * self.accumulation * accelerator.num_processes
        epochs = math.ceil(settings.num_train_epochs * len(inputs.pairs) / self.samples_per_step)
        self.num_steps = settings.max_train_steps or epochs
        self.noise_scheduler = inputs.noise_scheduler
        self.external = inputs.external
        self.step, self.trained_seconds, self.mean_loss = 0, 0.0, math.nan

    def __enter__(self) -> "Run":
        with contextlib.ExitStack() as stack:
            checkpoint = run_on_main_rank(lambda: self._open_folder(stack))
            if checkpoint is None and self.settings.init_from is not None:
                self._load_first_weights()
            threads = max(1, self.settings.dataloader_num_workers)
            counts = self.inputs.counts or run_on_main_rank(
                lambda: count_classes(self.inputs.pairs, every_mask=False, num_workers=threads)
            )
            stack.enter_context(page_at_end(self.folder, self.accelerator, default_settings()))
            stack.enter_context(matrix_precision(self.settings))
            self.stop_request = stack.enter_context(StopRequest(self.accelerator))
            self.status = stack.enter_context(run_status(self.folder, self.accelerator))
            if self.accelerator.is_main_process:
                self._write_record(counts)
            if self.trackers:
                start_tracking(self.accelerator, self.settings, self.folder)
            logger.info(
                f"{self.accelerator.num_processes} process(es) on {self.accelerator.device.type}, "
                f"{self.samples_per_step} samples a step"
            )
            self._prepare()
            if checkpoint is not None:
                self._resume(checkpoint)
            self._start_log()
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *exception: Any) -> bool | None:
        return self._stack.__exit__(*exception)

    # Start

    def _open_folder(self, stack: contextlib.ExitStack) -> Path | None:
        """Lock the folder and return the checkpoint to resume from; in the main process only."""
        stack.enter_context(exclusive_folder(self.folder, "training into"))
        checkpoint = checkpoint_to_resume(
            self.settings, self.inputs, self.folder, self.samples_per_step, self.external
        )
        remove_leftovers(self.folder)
        return checkpoint

    def _load_first_weights(self) -> None:
        source = self.settings.init_from
        kept, unused = run_on_all_ranks(lambda: load_first_weights(self.inputs.unet, source))
        logger.info(f"initial weights are those of {source}")
        if kept:
            logger.info(f"weights initialised randomly: {', '.join(kept)}")
        if unused:
            logger.info(f"weights of {source} without a counterpart here: {', '.join(unused)}")

    def _write_record(self, counts: ClassCounts) -> None:
        """Write `settings.json` and `run.json`, with the warnings, which are logged too."""
        settings, inputs, unet = self.settings, self.inputs, self.inputs.unet
        write_json(self.folder / "settings.json", settings.to_dict())
        warnings = collect_warnings(
            settings, inputs.pairs, counts, attributes=inputs.attributes, num_steps=self.num_steps,
            num_weights=sum(weight.numel() for weight in trained_weights(unet)),
            samples_per_step=self.samples_per_step, preview_pairs=inputs.preview_pairs,
            preview_reason=inputs.preview_reason, base=inputs.base,
        )  # fmt: skip
        for text in warnings:
            logger.warning(f"warning: {text}")
        labels, size = inputs.pairs.labels, unet.config.sample_size
        rows = zip(
            labels.names, labels.colors, counts.class_pixels.tolist(), counts.masks_of_class.tolist(), strict=True
        )
        record = {
            "begun": datetime.now(timezone.utc).isoformat(timespec="seconds"),  # codespell:ignore begun
            "num_steps": self.num_steps,
            "samples_per_step": self.samples_per_step,
            "num_pairs": counts.num_masks,
            "source_format": inputs.source_format,
            "network": type(unet).__name__,
            "num_weights": sum(weight.numel() for weight in unet.parameters()),
            "size": [size, size] if isinstance(size, int) else list(size),
            "masks_counted": len(counts.pixels),
            "unknown_pixels": int(counts.pixels[:, -1].sum()),
            "classes": [
                {"name": name, "color": list(color), "pixels": pixels, "masks": masks}
                for name, color, pixels, masks in rows
            ],
            "warnings": warnings,
            "num_processes": self.accelerator.num_processes,
            "device": _device_name(self.accelerator.device),
            "mixed_precision": self.accelerator.mixed_precision,
            "versions": {
                "semseg_diffusers": package_version(),
                "torch": torch.__version__,
                "diffusers": diffusers.__version__,
                "accelerate": accelerate.__version__,
                "python": platform.python_version(),
            },
        }
        write_text(self.folder / RECORD_FILE, json.dumps(record, indent=2) + "\n")

    def _prepare(self) -> None:
        """Set up optimizer, learning rate schedule and weight averages."""
        settings, accelerator = self.settings, self.accelerator
        optimizer = build_optimizer(settings, self.inputs.unet)
        self.lr_scheduler = get_scheduler(
            settings.lr_scheduler,
            optimizer,
            num_warmup_steps=settings.lr_warmup_steps,
            num_training_steps=self.num_steps,
        )
        self.unet, self.optimizer = accelerator.prepare(self.inputs.unet, optimizer)
        self.network = accelerator.unwrap_model(self.unet, keep_torch_compile=False)  # the same weights
        save_contiguous(accelerator)
        self.ema = EMA(self.network, settings) if settings.use_ema else None

    def _resume(self, checkpoint: Path) -> None:
        state = load_checkpoint(checkpoint, self.accelerator, self.ema)
        self.step, self.trained_seconds, self.mean_loss = state["step"], state["trained_seconds"], state["loss"]
        fit_optimizer_state(self.settings, self.optimizer)
        self.accelerator.step = (
            self.step * self.accumulation
        )  # counts forward passes, whose share of a step may change
        schedule = {**self.lr_scheduler.state_dict(), "last_epoch": self.step, "_step_count": self.step + 1}
        self.lr_scheduler.load_state_dict(schedule)
        rates = zip(self.lr_scheduler.base_lrs, self.lr_scheduler.lr_lambdas, strict=True)
        for group, (base, factor) in zip(self.optimizer.param_groups, rates, strict=True):
            group["lr"] = base * factor(self.step)
        logger.info(f"resumed {checkpoint} at step {self.step}")
        if self.accelerator.is_main_process:
            set_aside_later(self.folder, self.step)
            remove_later_previews(self.folder, self.step)

    def _start_log(self) -> None:
        accelerator = self.accelerator
        self.log_file = RunLog(self.folder / "log.jsonl", self.step, enabled=accelerator.is_main_process)
        self.losses = LossMonitor(accelerator, self.folder, self.accumulation, largest_loss_weight(self.settings))
        self.bar = progress_bar(
            total=self.num_steps, initial=self.step, desc="steps", disable=not accelerator.is_local_main_process
        )
        self.batches = self._load_batches()
        self._interval_start, self._interval_images = time.monotonic(), 0
        self._start = time.monotonic() - self.trained_seconds

    def _load_batches(self) -> DataTimer:
        """Return the batches still to come."""
        settings, inputs, accelerator = self.settings, self.inputs, self.accelerator
        inputs.pairs.keep_decoded(int(settings.decoded_gigabytes * 1e9))
        warps = Warps(settings.augment_scale, settings.augment_translate, settings.augment_probability)
        dataset = TrainingDataset(
            inputs.pairs,
            seed=settings.seed,
            horizontal_flip=settings.horizontal_flip,
            crop_size=settings.random_crop_size,
            mask_dropout=settings.mask_dropout,
            mask_dropout_group=self.samples_per_step if settings.mask_dropout_unit == "batch" else 1,
            min_timestep=settings.min_timestep,
            num_train_timesteps=settings.num_train_timesteps,
            warps=warps if warps.scale or warps.translate else None,
            mask_ablation=settings.mask_ablation,
            label_diffusion=inputs.rarity,
            attributes=inputs.attributes,
            attribute_dropout=settings.attribute_dropout,
        )
        sampler = ResumableBatchSampler(
            num_pairs=len(inputs.pairs),
            batch_size=settings.train_batch_size,
            num_batches=self.num_steps * self.accumulation,
            seed=settings.seed,
            process_index=accelerator.process_index,
            num_processes=accelerator.num_processes,
            start_batch=self.step * self.accumulation,
            sample_pair=None if inputs.balance is None else inputs.balance.sample_pair,
        )
        loader = DataLoader(
            dataset,
            batch_sampler=sampler,
            num_workers=settings.dataloader_num_workers,
            worker_init_fn=ignore_signals,
            pin_memory=accelerator.device.type == "cuda",
        )
        return DataTimer(loader)

    # In the loop

    @property
    def is_last_step(self) -> bool:
        return self.step == self.num_steps

    def is_due(self, interval: int) -> bool:
        """Return whether something that is done every `interval` steps, and at the end, is due; 0 is never."""
        return bool(interval) and (self.step % interval == 0 or self.is_last_step)

    def add_loss(self, micro_step: int, loss: torch.Tensor, stems: list[str]) -> None:
        """Record the loss of a forward pass."""
        self.losses.add(micro_step, loss, stems)
        self._interval_images += len(stems) * self.accelerator.num_processes

    def end_step(self) -> None:
        """Update schedule, averages and progress after an optimizer step."""
        self.step += 1
        self.status["step"] = self.step
        self.lr_scheduler.step()
        if self.ema is not None:
            self.ema.step(self.network)
        self.bar.update()

    def log(self) -> None:
        """Write the interval's loss, learning rate and speed to `log.jsonl` and the trackers.

        Raises:
            TrainingDivergedError: the loss is not finite, or exploded.
        """
        self.mean_loss = self.losses.mean()
        seconds = time.monotonic() - self._interval_start
        speed = self._interval_images / seconds
        values = {
            "loss": self.mean_loss,
            "learning_rate": self.lr_scheduler.get_last_lr()[0],
            "images_per_second": speed,
            "data_wait_share": self.batches.share_of(seconds),
        }
        self.log_file.write({"step": self.step, **values, "trained_seconds": time.monotonic() - self._start})
        self.accelerator.log(values, step=self.step)
        self.bar.set_postfix(loss=f"{self.mean_loss:.4f}", images_per_s=f"{speed:.1f}")
        self._interval_start, self._interval_images = time.monotonic(), 0

    def save(self) -> None:
        """Write a checkpoint.

        Raises:
            TrainingDivergedError: the weights are not finite.
            OSError: it could not be written; the one before is complete.
        """
        self.losses.check_weights(self.network, self.step)
        balance = self.inputs.balance
        state = {
            "trained_seconds": time.monotonic() - self._start,
            "settings": dataclasses.asdict(self.settings),
            "labels": self.inputs.pairs.labels.to_config(),
            "num_pairs": len(self.inputs.pairs),
            "class_pixels": None if balance is None else balance.digest,
            **self.external,
            "samples_per_step": self.samples_per_step,
            "loss": self.mean_loss,
        }
        limit = self.settings.checkpoints_total_limit
        save_checkpoint(self.folder, self.step, self.accelerator, self.ema, state, limit)

    def stop(self) -> None:
        """End the run early, after its checkpoint.

        Raises:
            TrainingStoppedError: always.
        """
        self.stop_request.shutdown()
        raise self.stop_request.stopped(self.step)

    def preview(self) -> None:
        """Sample a preview and hand it to the trackers."""
        if self.accelerator.is_main_process:
            save_preview(
                self.settings, self.network, self.noise_scheduler, self.ema, self.inputs.preview_pairs,
                self.accelerator, self.folder, self.step,
            )  # fmt: skip
        self.accelerator.wait_for_everyone()
        self.unet.train()

    def update_page(self) -> None:
        """Write `run.html`."""
        if self.accelerator.is_main_process:
            update_run_page(self.folder, default_settings())

    def finish(self) -> None:
        """Save the pipeline with the averaged weights, the others beside them, and its model card."""
        self.bar.close()
        self.accelerator.wait_for_everyone()
        settings, network = self.settings, self.network
        if self.accelerator.is_main_process:
            network.to(memory_format=torch.contiguous_format)  # required by safetensors
            paper = settings.noise_schedule == "paper"
            scheduler = self.noise_scheduler if paper else build_sampler(self.noise_scheduler)
            pipeline = MaskGuidedDDPMPipeline(unet=network.float().eval(), scheduler=scheduler)
            save_pipeline(pipeline, self.folder, self.ema)
            save_model_card(
                self.folder,
                settings=settings,
                unet=network,
                source_format=self.inputs.source_format,
                num_pairs=len(self.inputs.pairs),
                step=self.step,
                samples_per_step=self.samples_per_step,
                trained_seconds=time.monotonic() - self._start,
                loss=self.mean_loss,
            )
        self.stop_request.shutdown()


def report(settings: ReportSettings) -> None:
    """Write the report of a run, whether it is in progress, has ended, or was killed."""
    output = None if settings.output is None else Path(settings.output)
    sys.stdout.write(f"{write_run_page(Path(settings.run), output, default_settings())}\n")
