"""`semseg-diffusers train`, `accelerate launch train_accelerate.py`: the options, and one call of the loop."""

import argparse
import sys

from semseg_diffusers.training.settings import add_arguments, settings_from


__all__ = ["add_arguments", "main", "run"]


def run(args: argparse.Namespace) -> int:
    """Check the settings, train, and say where the result lies."""
    settings = settings_from(args)

    from semseg_diffusers.training.loop import train  # torch is needed only from here on

    folder = train(settings)
    sys.stderr.write(f"saved {folder}\n")
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
        sys.stderr.write(f"error: {error}\n")
        sys.exit(2)
    sys.exit(status)
