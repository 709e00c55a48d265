"""`accelerate launch -m semseg_diffusers.generation ...`: generation on several processes."""

from semseg_diffusers.generation.generate import run
from semseg_diffusers.generation.settings import GenerateOptions
from semseg_diffusers.utils.distributed import process_main


if __name__ == "__main__":
    process_main(GenerateOptions, run, "python -m semseg_diffusers.generation")
