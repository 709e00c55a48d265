"""A run of the training loop: its state, its folder, and all that it writes, whatever is trained.

The run folder holds the pipeline at its root, `settings.json`, `run.json` (what was known at the start),
`status.json`, `log.jsonl`, `previews/`, `run.html` and `checkpoint-<step>/`.
"""

import contextlib
import json
import math
import os
import platform
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import torch
from accelerate import Accelerator
from accelerate.logging import get_logger
from diffusers.optimization import get_scheduler
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from semseg_diffusers.data.dataset_format import data_license
from semseg_diffusers.data.label_mapping import read_mapping
from semseg_diffusers.hub.cards import new_model_card
from semseg_diffusers.hub.folders import CARD
from semseg_diffusers.pipelines.mask_guided_mixin import MaskGuidedMixin
from semseg_diffusers.reports.run_folder import RECORD_FILE, STATUS_FILE, list_previews, preview_path, read_log
from semseg_diffusers.reports.run_page import page_at_end, update_run_page
from semseg_diffusers.training import checkpoints, hardware
from semseg_diffusers.training.base_model import load_first_weights
from semseg_diffusers.training.class_balance import ClassCounts, count_classes
from semseg_diffusers.training.dataset import (
    FORWARD,
    ResumableBatchSampler,
    TrainingDataset,
    collate_samples,
    make_generator,
)
from semseg_diffusers.training.inputs import Inputs
from semseg_diffusers.training.low_res import LowRes
from semseg_diffusers.training.monitor import (
    DataTimer,
    LossMonitor,
    StopRequest,
    TrainingStoppedError,
    ignore_signals,
)
from semseg_diffusers.training.networks import EMA, variant_name
from semseg_diffusers.training.previews import log_preview, start_tracking
from semseg_diffusers.utils.distributed import run_on_all_ranks, run_on_main_rank
from semseg_diffusers.utils.files import exclusive_folder, read_json, versions, write_json, write_text
from semseg_diffusers.utils.images import save_png
from semseg_diffusers.utils.progress import progress_bar


PAGE_SECONDS = 30.0  # at least, between two pages of an active run: one takes a second, as many small steps do

logger = get_logger(__name__)

R = TypeVar("R", bound="Run")


class Run:
    """The state of a training run: networks, optimizers, schedules, averages, step, log, checkpoints.

    A context manager, which holds the run folder, handles termination signals and records how the run ends; it refuses
    a folder that is in use, or holds another run. Every method is called by every process. What is trained is up to
    the subclass: its networks, their first weights, their samples and the pipeline in the end.
    """

    command: ClassVar[str]  # of the console script

    def __init__(self, settings: Any, accelerator: Accelerator, inputs: Inputs, trackers: list[str]) -> None:
        self.settings, self.accelerator, self.inputs, self.trackers = settings, accelerator, inputs, trackers
        self.folder = Path(settings.output_dir)
        self.noise_scheduler = inputs.noise_scheduler
        self.accumulation = settings.gradient_accumulation_steps
        self.samples_per_step = settings.train_batch_size * self.accumulation * accelerator.num_processes
        of_epochs = math.ceil(settings.num_train_epochs * len(inputs.pairs) / self.samples_per_step)
        self.num_steps = settings.max_train_steps or of_epochs
        self.step, self.mean_loss = 0, math.nan
        self._trained_before = 0.0  # seconds

    def __enter__(self: R) -> R:
        settings, accelerator = self.settings, self.accelerator
        if accelerator.mixed_precision == "fp16" and len(self.networks()) > 1:
            raise ValueError(
                "--mixed_precision fp16 is not for a run with a discriminator: its losses would share one scale. Use "
                "bf16 or no."
            )
        with contextlib.ExitStack() as stack:
            checkpoint = run_on_main_rank(lambda: self._open_folder(stack))
            if checkpoint is None:
                self.load_first_weights()
            threads = max(1, settings.dataloader_num_workers)
            counts = self.inputs.counts or run_on_main_rank(
                lambda: count_classes(self.inputs.pairs, every_mask=False, num_workers=threads)
            )
            stack.enter_context(page_at_end(self.folder, accelerator, settings.defaults()))
            stack.enter_context(hardware.matrix_precision(settings))
            self.stop_request = stack.enter_context(StopRequest(accelerator))
            stack.enter_context(self._keep_status())
            if accelerator.is_main_process:
                self._write_record(counts)
            if self.trackers:
                start_tracking(accelerator, settings, self.folder)
            logger.info(
                f"{accelerator.num_processes} process(es) on {accelerator.device.type}, "
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

    def _open_folder(self, stack: contextlib.ExitStack) -> Path | None:
        """Lock the folder and return the checkpoint to resume from; in the main process only."""
        stack.enter_context(exclusive_folder(self.folder, "training into"))
        checkpoint = checkpoints.checkpoint_to_resume(self.settings, self.inputs, self.folder, self.samples_per_step)
        checkpoints.remove_leftovers(self.folder)
        return checkpoint

    @contextlib.contextmanager
    def _keep_status(self) -> Iterator[None]:
        """Keep `status.json` up to date: "running" (also if killed), then "finished", "stopped" or "failed"."""
        path, is_main = self.folder / STATUS_FILE, self.accelerator.is_main_process

        def write(status: str, reason: str | None) -> None:
            stamp = {"time": datetime.now(timezone.utc).isoformat(timespec="seconds"), "pid": os.getpid()}
            write_json(path, {"status": status, "reason": reason, "step": self.step, **stamp})

        if is_main:
            write("running", None)
        self.accelerator.wait_for_everyone()  # so that no process fails into the status of an earlier run
        try:
            yield
        except TrainingStoppedError as stopped:
            if is_main:
                write("stopped", stopped.reason)
            raise
        except BaseException as error:
            with contextlib.suppress(OSError):  # the disk may be the reason
                if read_json(path)["status"] != "failed":  # else this is a consequence of another process's failure
                    write("failed", f"{type(error).__name__}: {error}")
            raise
        if is_main:
            write("finished", None)

    def _write_record(self, counts: ClassCounts) -> None:
        """Write `settings.json` and `run.json`, with the warnings, which are logged too."""
        settings, inputs, device = self.settings, self.inputs, self.accelerator.device
        write_json(self.folder / "settings.json", settings.to_dict())
        warnings = self.collect_warnings(counts)
        for text in warnings:
            logger.warning(f"warning: {text}")
        device_name = f"{device.type}, {os.cpu_count()} cores" if device.type == "cpu" else device.type
        labels = inputs.pairs.labels
        rows = zip(
            labels.names, labels.colors, counts.class_pixels.tolist(), counts.masks_of_class.tolist(), strict=True
        )
        record = {
            "command": self.command,
            "defaults": settings.defaults(),
            "begun": datetime.now(timezone.utc).isoformat(timespec="seconds"),  # codespell:ignore begun
            "num_steps": self.num_steps,
            "samples_per_step": self.samples_per_step,
            "num_pairs": counts.num_masks,
            "source_format": inputs.source_format,
            "network": type(inputs.unet).__name__,
            "num_weights": sum(weight.numel() for weight in inputs.unet.parameters()),
            "size": list(settings.random_crop_size or inputs.pairs.resolution),
            "masks_counted": len(counts.pixels),
            "unknown_pixels": int(counts.pixels[:, -1].sum()),
            "classes": [
                {"name": name, "color": list(color), "pixels": pixels, "masks": masks}
                for name, color, pixels, masks in rows
            ],
            "warnings": warnings,
            "num_processes": self.accelerator.num_processes,
            "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device_name,
            "mixed_precision": self.accelerator.mixed_precision,
            "versions": {**versions("torch", "diffusers", "accelerate"), "python": platform.python_version()},
        }
        write_json(self.folder / RECORD_FILE, record)

    # what is trained

    def load_first_weights(self) -> None:
        """Load the weights of `init_from` into the network of a new run."""
        source = self.settings.init_from
        if source is None:
            return
        file = getattr(self.settings, "init_classes", None)  # distillation keeps the classes
        mapping = None if file is None else run_on_all_ranks(lambda: read_mapping(file))
        kept, unused = run_on_all_ranks(lambda: load_first_weights(self.inputs.unet, str(source), mapping))
        logger.info(f"initial weights are those of {source}")
        if kept:
            logger.info(f"weights that it does not have, which stay as they were made: {', '.join(kept)}")
        if unused:
            logger.info(f"weights of {source} without a counterpart here: {', '.join(unused)}")

    def networks(self) -> Sequence[tuple[torch.nn.Module, float]]:
        """Return the networks with their learning rates; the first one is sampled and saved."""
        return [(self.inputs.unet, self.settings.learning_rate)]

    @property
    def largest_loss_weight(self) -> float:
        """Return the largest weight of a sample's loss, which is near 1 for a network that predicts zeros."""
        return 1.0

    def training_dataset(self) -> Dataset:
        """Return the samples of the run."""
        settings, inputs = self.settings, self.inputs
        low_res = LowRes.of(inputs.unet, settings, inputs.pairs)
        return TrainingDataset(
            inputs.pairs, settings, self.samples_per_step, inputs.attributes, inputs.rarity, low_res, inputs.captions,
            inputs.latents,
        )  # fmt: skip

    def collect_warnings(self, counts: ClassCounts) -> list[str]:  # noqa: ARG002
        """Return the warnings of the run, the most serious first."""
        return []

    def sample_preview(self) -> Image.Image:
        """Return the preview of the current weights; called in the main process only."""
        raise NotImplementedError

    def pipeline(self) -> MaskGuidedMixin:
        """Return the pipeline that is saved at the end."""
        raise NotImplementedError

    def card_facts(self) -> dict[str, Any]:
        """Return what the model card says beside the settings."""
        return {}

    # state

    def _prepare(self) -> None:
        """Set up optimizers, learning rate schedules and weight averages."""
        settings, accelerator = self.settings, self.accelerator
        networks, rates = zip(*self.networks(), strict=True)
        optimizers = [hardware.build_optimizer(settings, *each) for each in zip(networks, rates, strict=True)]
        self.lr_schedulers = [
            get_scheduler(
                settings.lr_scheduler,
                optimizer,
                num_warmup_steps=settings.lr_warmup_steps,
                num_training_steps=self.num_steps,
            )
            for optimizer in optimizers
        ]
        prepared = accelerator.prepare(*networks, *optimizers)
        self.models, self.optimizers = prepared[: len(networks)], prepared[len(networks) :]
        self.unet = self.models[0]
        self.network = accelerator.unwrap_model(self.unet, keep_torch_compile=False)  # the same weights
        hardware.save_contiguous(accelerator)
        self.ema = EMA(self.network, settings) if settings.use_ema else None

    def _resume(self, checkpoint: Path) -> None:
        state = checkpoints.load_checkpoint(checkpoint, self.accelerator, self.ema)
        self.step, self._trained_before, self.mean_loss = state["step"], state["trained_seconds"], state["loss"]
        if self.inputs.latents is not None:
            self.inputs.scale_latents(state["latents"])  # as measured first: another device rounds otherwise
        # counts forward passes, whose share of a step may change
        self.accelerator.step = self.step * self.accumulation
        for optimizer, lr_scheduler in zip(self.optimizers, self.lr_schedulers, strict=True):
            hardware.fit_optimizer_state(self.settings, optimizer)
            schedule = {**lr_scheduler.state_dict(), "last_epoch": self.step, "_step_count": self.step + 1}
            lr_scheduler.load_state_dict(schedule)
            rates = zip(lr_scheduler.base_lrs, lr_scheduler.lr_lambdas, strict=True)
            for group, (base, factor) in zip(optimizer.param_groups, rates, strict=True):
                group["lr"] = base * factor(self.step)
        logger.info(f"resumed {checkpoint} at step {self.step}")
        if self.accelerator.is_main_process:
            checkpoints.set_aside_later(self.folder, self.step)
            for later, path in list_previews(self.folder):
                if later > self.step:  # sampled again
                    path.unlink()

    def _start_log(self) -> None:
        """Set up log, progress bar, loss monitor and the batches still to come."""
        accelerator, self.log_file = self.accelerator, self.folder / "log.jsonl"
        if accelerator.is_main_process:  # lines after the checkpoint are written again
            kept = [line for line in read_log(self.log_file) if line["step"] <= self.step]
            write_text(self.log_file, "".join(json.dumps(line) + "\n" for line in kept))
        self.losses = LossMonitor(accelerator, self.folder, self.accumulation, self.largest_loss_weight)
        self.bar = progress_bar(
            total=self.num_steps, initial=self.step, desc="steps", disable=not accelerator.is_local_main_process
        )
        settings, inputs = self.settings, self.inputs
        inputs.pairs.keep_decoded(int(settings.decoded_gigabytes * 1e9))
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
            self.training_dataset(),
            batch_sampler=sampler,
            collate_fn=collate_samples,
            num_workers=settings.dataloader_num_workers,
            worker_init_fn=ignore_signals,
            pin_memory=accelerator.device.type == "cuda",
        )
        self.batches = DataTimer(loader)
        self._interval_start, self._interval_images = time.monotonic(), 0
        self._terms: dict[str, list[torch.Tensor]] = {}  # name -> values of the interval
        self._start = time.monotonic() - self._trained_before
        self._page_written = time.monotonic()

    @property
    def trained_seconds(self) -> float:
        """Return the duration of the training so far, without the time between runs."""
        return time.monotonic() - self._start

    @property
    def is_last_step(self) -> bool:
        """Return whether the last optimizer step is done."""
        return self.step == self.num_steps

    def is_due(self, interval: int) -> bool:
        """Return whether something that is done every `interval` steps, and at the end, is due; 0 is never."""
        return bool(interval) and (self.step % interval == 0 or self.is_last_step)

    def optimize(self, step: Callable[[dict[str, Any]], dict[str, torch.Tensor]]) -> None:
        """Take the remaining steps, with log, checkpoints and previews, and save the pipeline.

        `step` takes a batch and returns its loss, as "loss", and other values to log; it calls `backward` and
        `update`. Torch's global random numbers are those of the batch.
        """
        accelerator = self.accelerator
        for model in self.models:
            model.train()
        # a micro step is one forward pass; every `gradient_accumulation_steps` of them make an optimizer step
        for micro_step, batch in enumerate(self.batches, start=self.step * self.accumulation):
            batch = hardware.to_device(batch, accelerator.device, self.settings.channels_last)
            position = micro_step * accelerator.num_processes + accelerator.process_index
            torch.manual_seed(make_generator(self.settings.seed, FORWARD, position).initial_seed())
            with accelerator.accumulate(*self.models):
                values = step(batch)
            self._add(micro_step, values, batch["stem"])
            if accelerator.sync_gradients:
                self._end_step()
        self.finish()

    def update(self, index: int = 0) -> None:
        """Change the weights of a network, the first by default, by its gradients, once these are complete."""
        settings, accelerator = self.settings, self.accelerator
        if accelerator.sync_gradients and settings.max_grad_norm is not None:
            accelerator.clip_grad_norm_(self.models[index].parameters(), settings.max_grad_norm)
        self.optimizers[index].step()
        self.optimizers[index].zero_grad(set_to_none=True)

    def _add(self, micro_step: int, values: dict[str, torch.Tensor], stems: list[str]) -> None:
        """Record the values of a forward pass."""
        self.losses.add(micro_step, values["loss"], stems)
        for name, value in values.items():
            if name != "loss":
                self._terms.setdefault(name, []).append(value.detach().float())
        self._interval_images += len(stems) * self.accelerator.num_processes

    def _end_step(self) -> None:
        """Update schedules, averages and progress after an optimizer step, and write what is due."""
        self.step += 1
        for lr_scheduler in self.lr_schedulers:
            lr_scheduler.step()
        if self.ema is not None:
            self.ema.step(self.network)
        self.bar.update()
        stop_now = self.stop_request.requested() and not self.is_last_step
        save_now = stop_now or self.is_due(self.settings.checkpointing_steps)
        preview_now = self.is_due(self.settings.preview_steps)
        if save_now or self.step % self.settings.logging_steps == 0:
            self.log()
        if save_now:
            self.save()
        if stop_now:
            self.stop()
        if preview_now:
            self.preview()
        if (save_now or preview_now) and self.accelerator.is_main_process:
            self._update_page()

    def _update_page(self) -> None:
        """Write the page, unless it is recent, or will be written right away because the run ends."""
        if not self.is_last_step and time.monotonic() - self._page_written >= PAGE_SECONDS:
            update_run_page(self.folder, self.settings.defaults())
            self._page_written = time.monotonic()

    def log(self) -> None:
        """Write the interval's loss, learning rate and speed to `log.jsonl` and the trackers."""
        self.mean_loss = self.losses.mean()
        seconds = time.monotonic() - self._interval_start
        speed = self._interval_images / seconds
        values = {
            "loss": self.mean_loss,
            **self._mean_terms(),
            "learning_rate": self.lr_schedulers[0].get_last_lr()[0],
            "images_per_second": speed,
            "data_wait_share": self.batches.share_of(seconds),
        }
        if self.accelerator.is_main_process:
            line = json.dumps({"step": self.step, **values, "trained_seconds": self.trained_seconds})
            with self.log_file.open("a", encoding="utf-8") as file:
                file.write(line + "\n")
        self.accelerator.log(values, step=self.step)
        self.bar.set_postfix(loss=f"{self.mean_loss:.4f}", images_per_s=f"{speed:.1f}")
        self._interval_start, self._interval_images = time.monotonic(), 0

    def _mean_terms(self) -> dict[str, float]:
        """Return the mean of each other value over the interval and all processes, and start the next."""
        terms, self._terms = self._terms, {}
        means = {name: torch.stack(values).mean()[None] for name, values in terms.items()}
        return {name: self.accelerator.gather(mean).mean().item() for name, mean in means.items()}

    def save(self) -> None:
        """Write a checkpoint; refuse weights that are not finite."""
        for model in self.models:
            self.losses.check_weights(model, self.step)
        state = {
            "trained_seconds": self.trained_seconds,
            "settings": self.settings.to_dict(),
            **self.inputs.fingerprint,
            "samples_per_step": self.samples_per_step,
            "loss": self.mean_loss,
        }
        limit = self.settings.checkpoints_total_limit
        checkpoints.save_checkpoint(self.folder, self.step, self.accelerator, self.ema, state, limit)

    def stop(self) -> None:
        """End the run early, after its checkpoint, with a `TrainingStoppedError`."""
        self.stop_request.shutdown()
        raise TrainingStoppedError(self.stop_request.number, self.step)

    def preview(self) -> None:
        """Sample a preview and hand it to the trackers."""
        if self.accelerator.is_main_process:
            image = self.sample_preview()
            path = preview_path(self.folder, self.step)
            path.parent.mkdir(exist_ok=True)
            save_png(path, image)
            log_preview(self.accelerator, image, self.step)
        self.accelerator.wait_for_everyone()
        for model in self.models:
            model.train()

    def finish(self) -> None:
        """Save what was trained, with its model card, and leave the group of processes."""
        self.bar.close()
        self.accelerator.wait_for_everyone()
        if self.accelerator.is_main_process:
            self.network.to(memory_format=torch.contiguous_format)  # required by safetensors
            self.save_model()
        self.stop_request.shutdown()

    def save_model(self) -> None:
        """Save the pipeline with the averaged weights, the others beside them, and its model card."""
        checkpoints.save_pipeline(self.pipeline(), self.folder, self.ema)
        license_name, facts = self.run_facts()
        card = new_model_card(self.folder, self.folder.name, license_name=license_name, run=facts)
        write_text(self.folder / CARD, card)

    def run_facts(self) -> tuple[str | None, dict[str, Any]]:
        """Return the licence of the data, if known, and what a model card says of the run."""
        license_name, license_text = data_license(self.inputs.source_format, "these weights")
        return license_name, {
            "command": self.command,
            "settings": self.settings,
            "num_pairs": len(self.inputs.pairs),
            "data_license": license_text,
            "step": self.step,
            "samples_per_step": self.samples_per_step,
            "averages": [(variant_name(decay), decay) for decay in self.settings.ema_lengths],
            "trained_seconds": self.trained_seconds,
            "loss": self.mean_loss,
            **self.card_facts(),
        }
