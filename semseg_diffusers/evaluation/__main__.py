"""`accelerate launch -m semseg_diffusers.evaluation ...`: evaluation on several processes."""

from semseg_diffusers.evaluation.evaluate import run
from semseg_diffusers.evaluation.settings import EvaluationSettings
from semseg_diffusers.utils.distributed import process_main


if __name__ == "__main__":
    process_main(EvaluationSettings, run, "python -m semseg_diffusers.evaluation")
