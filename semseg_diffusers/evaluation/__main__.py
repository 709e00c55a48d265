"""`accelerate launch -m semseg_diffusers.evaluation ...`: evaluation on several processes."""

from semseg_diffusers.evaluation import evaluate as command
from semseg_diffusers.utils.distributed import process_main


if __name__ == "__main__":
    process_main(command, "python -m semseg_diffusers.evaluation")
