"""What each part of a distillation brings: equal operations with one part left out, or another discriminator.

Every arm distils the same model on the same pairs. Forward and backward passes of student, teacher, frozen features
and discriminator sum up to the same number of operations, so a cheaper step is taken more often. Finished work is
kept: the same command resumes. Trains only; `few_steps.py --ablation` compares the runs.
"""

import argparse
import dataclasses
import itertools
import tempfile
from pathlib import Path
from typing import Any

from accelerate.state import AcceleratorState
from torch.utils.flop_counter import FlopCounterMode

from semseg_diffusers.distillation.distill import distill
from semseg_diffusers.distillation.settings import DistillationSettings
from semseg_diffusers.utils.files import code_commit, write_json


# name -> options beside those of the command line; fixed before any was trained
ARMS: dict[str, dict[str, Any]] = {
    "both": {"discriminator": "both"},
    "projected": {"discriminator": "projected"},
    "segmentation": {"discriminator": "segmentation"},
    "no_discriminator": {"adversarial_weight": 0.0},
    "no_distillation": {"discriminator": "both", "distillation_weight": 0.0},
}


def distill_here(settings: DistillationSettings) -> Path:
    """Distill in this process, which may do so again."""
    try:
        return distill(settings)
    finally:
        AcceleratorState._reset_state(reset_partial_state=True)


def gflop_of_a_step(settings: DistillationSettings) -> float:
    """Operations of an optimizer step, two for a multiply-add."""
    with tempfile.TemporaryDirectory() as folder, FlopCounterMode(display=False) as counter:
        distill_here(
            dataclasses.replace(
                settings, output_dir=f"{folder}/run", max_train_steps=1, dataloader_num_workers=0,
                resume_from_checkpoint=None,
            )
        )  # fmt: skip
    return counter.get_total_flops() / 1e9


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="checkpoints/camvid128", help="the teacher")
    parser.add_argument("--dataset", required=True, help="prepared folder with the splits train and val")
    parser.add_argument("--output", required=True, type=Path, help="folder to make, or to continue")
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS), help="default: all")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1], help="default 0 1")
    parser.add_argument("--gflop", type=float, default=20_000, help="of a training (20000)")
    args = parser.parse_args()
    for seed, arm in itertools.product(args.seeds, args.arms):
        folder = args.output / f"{arm}-{seed}"
        settings = DistillationSettings(
            model=args.model, dataset=args.dataset, output_dir=str(folder), seed=seed, preview_steps=0,
            checkpointing_steps=50, resume_from_checkpoint="latest", **ARMS[arm],
        )  # fmt: skip
        step = gflop_of_a_step(settings)
        steps = max(1, round(args.gflop / step))
        print(f"{folder.name}: {steps} steps of {step:.0f} GFLOP", flush=True)
        if not (folder / "model_index.json").exists():
            distill_here(dataclasses.replace(settings, max_train_steps=steps))
        record = {"arm": arm, "seed": seed, "options": ARMS[arm], "steps": steps, "gflop_per_step": step}
        write_json(folder / "arm.json", {**record, "budget_gflop": args.gflop, "commit": code_commit()})


if __name__ == "__main__":
    main()
