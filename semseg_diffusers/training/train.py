"""`semseg-diffusers train`, `accelerate launch train_accelerate.py`: train, and upload the result if asked to."""

import logging
import os
import sys
from pathlib import Path

from semseg_diffusers.hub.push import prepare_repo, push_model
from semseg_diffusers.training.loop import train
from semseg_diffusers.training.monitor import TrainingDivergedError
from semseg_diffusers.training.preemption import TrainingStoppedError
from semseg_diffusers.training.settings import TrainingSettings
from semseg_diffusers.utils.distributed import PeerError, process_main


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
