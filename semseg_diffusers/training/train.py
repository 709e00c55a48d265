"""`semseg-diffusers train`, `accelerate launch train_accelerate.py`: the options, and one call of the loop."""

import argparse
import logging
import os
import sys
from pathlib import Path

from semseg_diffusers.training.settings import add_arguments, settings_from


__all__ = ["add_arguments", "main", "run"]


def run(args: argparse.Namespace) -> int:
    """Check the settings, train, say where the result lies, and upload it where that is asked for."""
    settings = settings_from(args)
    logging.basicConfig(format="%(message)s")
    logging.getLogger("semseg_diffusers").setLevel(logging.INFO)

    from semseg_diffusers.training.loop import train
    from semseg_diffusers.training.monitor import TrainingDivergedError
    from semseg_diffusers.training.preemption import TrainingStoppedError
    from semseg_diffusers.utils.distributed import PeerError  # torch is needed only from here on

    is_main = int(os.environ.get("RANK", 0)) == 0
    repo_id = None
    if settings.push_to_hub and is_main:
        from semseg_diffusers.hub.push import prepare_repo

        # before the training: a wrong token must not be found out after it
        repo_id = prepare_repo(
            settings.hub_model_id,
            default_name=Path(settings.output_dir).name,
            private=settings.hub_private_repo or None,
        )
    try:
        folder = train(settings)
    except TrainingStoppedError as stopped:
        if is_main:
            sys.stderr.write(f"{stopped}; saved. Go on with the same command and --resume_from_checkpoint latest\n")
        return stopped.exit_code
    except PeerError:
        return 2  # the other one says why
    except TrainingDivergedError:
        if is_main:
            raise
        return 2  # all say the same
    if is_main:
        sys.stderr.write(f"saved {folder}\n")
        if repo_id is not None:
            from semseg_diffusers.hub.push import push_model

            sys.stderr.write(f"pushed {push_model(folder, repo_id)}\n")
    return 0


def main() -> None:
    """Entry point of a process that `accelerate launch` starts."""
    parser = argparse.ArgumentParser(
        prog="train_accelerate.py", description="Train a mask-guided diffusion network on (photo, mask) pairs."
    )
    add_arguments(parser)
    args = parser.parse_args()

    try:
        status = run(args)
    except (ValueError, OSError) as error:
        process = f" in process {os.environ['RANK']}" if int(os.environ.get("WORLD_SIZE", 1)) > 1 else ""
        sys.stderr.write(f"error{process}: {error}\n")
        status = 2

    from semseg_diffusers.utils.distributed import end

    end(status)
