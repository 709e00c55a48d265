"""The training loop: settings -> inputs -> run -> steps -> pipeline; and the command, which uploads it if asked to.

`inputs.py` reads data and network; `run.py` has the state and all that is written.
"""

import logging
import os
import sys
from pathlib import Path

import torch

from semseg_diffusers.hub.push import prepare_repo, push_model
from semseg_diffusers.training.dataset import FORWARD, make_generator
from semseg_diffusers.training.hardware import build_accelerator, to_device
from semseg_diffusers.training.inputs import load_inputs
from semseg_diffusers.training.monitor import TrainingDivergedError, TrainingStoppedError
from semseg_diffusers.training.objective import ClassWeighting, diffusion_loss
from semseg_diffusers.training.previews import parse_trackers
from semseg_diffusers.training.run import Run
from semseg_diffusers.training.settings import TrainingSettings
from semseg_diffusers.utils.distributed import PeerError, process_main


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
    accelerator = build_accelerator(settings, Path(settings.output_dir), trackers)
    inputs = load_inputs(settings, accelerator)
    class_weighting = None
    if settings.class_loss_weighting:
        class_weighting = ClassWeighting(
            inputs.pairs.labels.num_classes, settings.class_loss_weight_max, settings.class_loss_min_snr
        )

    with Run(settings, accelerator, inputs, trackers) as run:
        run.unet.train()
        # a micro step is one forward pass; every `gradient_accumulation_steps` of them make an optimizer step
        for micro_step, batch in enumerate(run.batches, start=run.step * run.accumulation):
            batch = to_device(batch, accelerator.device, settings.channels_last)
            position = micro_step * accelerator.num_processes + accelerator.process_index
            torch.manual_seed(make_generator(settings.seed, FORWARD, position).initial_seed())
            with accelerator.accumulate(run.unet):
                with accelerator.autocast():
                    loss = diffusion_loss(
                        run.unet, run.noise_scheduler, batch, settings.snr_gamma, class_weighting
                    ).mean()
                accelerator.backward(loss)
                if accelerator.sync_gradients and settings.max_grad_norm is not None:
                    accelerator.clip_grad_norm_(run.unet.parameters(), settings.max_grad_norm)
                run.optimizer.step()
                run.optimizer.zero_grad(set_to_none=True)
            run.add_loss(micro_step, loss, batch["stem"])
            if not accelerator.sync_gradients:
                continue

            run.end_step()
            stop_now = run.stop_request.requested() and not run.is_last_step
            save_now = stop_now or run.is_due(settings.checkpointing_steps)
            preview_now = run.is_due(settings.preview_steps)
            if save_now or run.step % settings.logging_steps == 0:
                run.log()
            if save_now:
                run.save()
            if stop_now:
                run.stop()
            if preview_now:
                run.preview()
            if save_now or preview_now:
                run.update_page()
        run.finish()
    return run.folder


def run(settings: TrainingSettings) -> int:
    """Train, and upload the run if the settings say so; returns the exit code of this process."""
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


def main() -> None:
    """Entry point of a process that `accelerate launch` starts."""
    process_main(TrainingSettings, run, "train_accelerate.py")
