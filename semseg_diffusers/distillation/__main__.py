"""`accelerate launch -m semseg_diffusers.distillation ...`: distillation on several processes."""

from semseg_diffusers.distillation.distill import run
from semseg_diffusers.distillation.settings import DistillationSettings
from semseg_diffusers.utils.distributed import process_main


if __name__ == "__main__":
    process_main(DistillationSettings, run, "python -m semseg_diffusers.distillation")
