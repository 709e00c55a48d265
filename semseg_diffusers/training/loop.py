"""Training of a mask-guided network: settings -> inputs -> run -> steps -> pipeline; the commands train and report.

`Run` (training/run.py) does what every run needs; here is what a diffusion network adds. `train` uploads the run on
request.
"""

import logging
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from accelerate.logging import get_logger
from PIL import Image

from semseg_diffusers.backbones.image_backbone import ImageBackbone
from semseg_diffusers.hub.push import prepare_repo, push_model
from semseg_diffusers.pipelines.mask_guided_mixin import GUIDANCE_SCALE, NUM_INFERENCE_STEPS, MaskGuidedMixin
from semseg_diffusers.reports.run_page import write_run_page
from semseg_diffusers.training import hardware
from semseg_diffusers.training.class_balance import ClassCounts
from semseg_diffusers.training.inputs import load_inputs
from semseg_diffusers.training.monitor import TrainingDivergedError, TrainingStoppedError
from semseg_diffusers.training.networks import build_pipeline
from semseg_diffusers.training.objective import (
    ClassWeighting,
    PerceptualLoss,
    build_sampler,
    diffusion_loss,
    largest_loss_weight,
)
from semseg_diffusers.training.preflight import collect_warnings
from semseg_diffusers.training.previews import parse_trackers, preview_pairs, preview_sheet, sample_images
from semseg_diffusers.training.run import Run
from semseg_diffusers.training.settings import LoopSettings, ReportSettings, TrainingSettings
from semseg_diffusers.utils.distributed import PeerError, process_main


logger = get_logger(__name__)


class TrainingRun(Run):
    """A run that trains a mask-guided diffusion network."""

    command = "train"

    @property
    def largest_loss_weight(self) -> float:
        """Return the largest weight of a sample's loss."""
        return largest_loss_weight(self.settings)

    def collect_warnings(self, counts: ClassCounts) -> list[str]:
        """Return the warnings of the run, the most serious first."""
        return collect_warnings(self.settings, self.inputs, counts, self.num_steps, self.samples_per_step)

    def sample_preview(self) -> Image.Image:
        """Return samples of some masks by the sampler that is saved."""
        settings, pairs = self.settings, preview_pairs(self.settings, self.inputs.preview_pairs, self.network)
        pipeline = build_pipeline(self.network, build_sampler(self.noise_scheduler), **self.inputs.components)
        images = sample_images(
            pipeline, self.inputs.preview_pairs, pairs, settings.preview_samples, settings.seed, self.ema,
            captions=self.inputs.preview_captions, num_inference_steps=settings.preview_inference_steps,
            guidance_scale=settings.preview_guidance_scale,
        )  # fmt: skip
        return preview_sheet(self.inputs.pairs.labels, pairs, images, ["sample"] * settings.preview_samples)

    def pipeline(self) -> MaskGuidedMixin:
        """Return the pipeline that is saved at the end."""
        paper = self.settings.noise_schedule == "paper"
        scheduler = self.noise_scheduler if paper else build_sampler(self.noise_scheduler)
        return build_pipeline(
            self.network.float().eval(), scheduler, default_num_inference_steps=NUM_INFERENCE_STEPS,
            default_guidance_scale=GUIDANCE_SCALE if self.settings.upscale_factor is None else 1.0,
            **self.inputs.components,
        )  # fmt: skip


def train(settings: TrainingSettings) -> Path:
    """Train a network and save its pipeline.

    Args:
        settings: of the run.

    Returns:
        the run folder: pipeline and card at its root, the report `run.html`, `settings.json`, `log.jsonl`,
        `previews/`, `checkpoint-<step>/`.

    Raises:
        ValueError: settings, data and network do not go together; a checkpoint of another run; a folder in use.
        FileNotFoundError: no such dataset, or no such checkpoint.
        TrainingDivergedError: the loss is not finite, or exploded.
        TrainingStoppedError: a termination signal arrived; a checkpoint is saved.
        OSError: a checkpoint could not be written; the one before is complete.
    """
    trackers = parse_trackers(settings.report_to)
    accelerator = hardware.build_accelerator(settings, Path(settings.output_dir), trackers)
    inputs = load_inputs(settings, accelerator)
    class_weighting = None
    if settings.class_loss_weighting:
        class_weighting = ClassWeighting(
            inputs.pairs.labels.num_classes, settings.class_loss_weight_max, settings.class_loss_min_snr
        )

    perceptual = None
    if settings.perceptual_weight:
        backbone = ImageBackbone.from_name(settings.perceptual_backbone, device=accelerator.device)
        perceptual = PerceptualLoss(backbone, settings.perceptual_weight)

    residual_scale = getattr(inputs.unet.config, "residual_scale", None)
    with TrainingRun(settings, accelerator, inputs, trackers) as run:

        def step(batch: dict[str, Any]) -> dict[str, torch.Tensor]:
            if inputs.latents is not None and "latents" not in batch:
                batch["latents"] = inputs.latents.encode(batch)  # in float32
            with accelerator.autocast():
                losses = diffusion_loss(
                    run.unet,
                    run.noise_scheduler,
                    batch,
                    settings.snr_gamma,
                    class_weighting,
                    perceptual,
                    residual_scale,
                )
                loss = losses.mean()
            accelerator.backward(loss)
            run.update()
            return {"loss": loss}

        run.optimize(step)
    return run.folder


def run(settings: TrainingSettings) -> int:
    """Train, and upload the run if the settings say so; returns the exit code of this process."""
    return run_and_push(settings, train)


def run_and_push(settings: LoopSettings, train: Callable[[Any], Path]) -> int:
    """Call a training function, and upload the run if the settings say so; returns the exit code of this process."""
    logging.basicConfig(format="%(message)s")
    logging.getLogger("semseg_diffusers").setLevel(logging.INFO)
    is_main = int(os.environ.get("RANK", 0)) == 0
    repo_id = None
    if settings.push_to_hub and is_main:  # before training, so that a wrong token fails early
        repo_id = prepare_repo(
            settings.hub_model_id,
            default_name=Path(settings.output_dir).name,
            private=settings.hub_private_repo or None,
        )
    try:
        folder = train(settings)
    except TrainingStoppedError as stopped:
        if is_main:
            sys.stderr.write(f"{stopped}; saved. Resume with the same command and --resume_from_checkpoint latest\n")
        return stopped.exit_code
    except PeerError:
        return 2  # the other process reports the cause
    except TrainingDivergedError:
        if is_main:
            raise
        return 2  # every process raises it; the main one reports it
    if is_main:
        sys.stderr.write(f"saved {folder}\n")
        if repo_id is not None:
            sys.stderr.write(f"pushed {push_model(folder, repo_id)}\n")
    return 0


def report(settings: ReportSettings) -> None:
    """Write the report of a run, whether it is in progress, has ended, or was killed."""
    output = None if settings.output is None else Path(settings.output)
    sys.stdout.write(f"{write_run_page(Path(settings.run), output, TrainingSettings.defaults())}\n")


def main() -> None:
    """Entry point of a process that `accelerate launch` starts."""
    process_main(TrainingSettings, run, "train_accelerate.py")
