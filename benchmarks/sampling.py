"""What an image costs: the paper's sampler and network against this package's defaults, in one run.

Both pipelines draw from the same mask at 128 x 128 on the same machine. The paper's 1000 steps of two forward passes
are timed over a few steps and multiplied up, since one image takes about an hour on two cores. Prints a table and
writes JSON; weights are random, which changes neither time nor operations.
"""

import argparse
import json
import platform
import time
from pathlib import Path

import diffusers
import torch
from diffusers import DDPMScheduler, DPMSolverMultistepScheduler
from torch.utils.flop_counter import FlopCounterMode

from semseg_diffusers import LabelSet, MaskGuidedDDPMPipeline, PaperUNet2DModel
from semseg_diffusers.models.unet_paper import paper_betas
from semseg_diffusers.pipelines.saved_files import write_text
from semseg_diffusers.training.networks import build_network
from semseg_diffusers.training.settings import TrainingSettings


PAPER_STEPS = 1000  # ancestral sampling, two separate forward passes a step


def paper_cost(labels: LabelSet, mask: torch.Tensor, timed_steps: int) -> dict:
    """Cost of one image of the paper's sampler: two forward passes of its network a step, and the scheduler's step."""
    unet = PaperUNet2DModel(num_classes=labels.num_classes).eval()
    scheduler = DDPMScheduler(trained_betas=paper_betas(), variance_type="fixed_large", clip_sample=False)
    scheduler.set_timesteps(PAPER_STEPS)
    sample = torch.randn(1, 3, *mask.shape[-2:])
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        unet(sample, 1, mask=mask)
        unet(sample, 1)
    with torch.no_grad():
        begin = time.perf_counter()
        for timestep in scheduler.timesteps[:timed_steps]:
            conditional = unet(sample, timestep, mask=mask).sample
            unconditional = unet(sample, timestep).sample
            guided = unconditional + 3 * (conditional - unconditional)
            sample = scheduler.step(guided, timestep, sample).prev_sample
        seconds = (time.perf_counter() - begin) / timed_steps * PAPER_STEPS
    return {
        "steps": PAPER_STEPS,
        "timed_steps": timed_steps,
        "gflop": counter.get_total_flops() / 1e9 * PAPER_STEPS,
        "seconds": seconds,
        "parameters": sum(weight.numel() for weight in unet.parameters()),
    }


def our_cost(labels: LabelSet, mask: torch.Tensor, steps: int, repeats: int) -> dict:
    """Cost of one image of the default network through the pipeline, guidance on, everything timed."""
    settings = TrainingSettings(dataset="none", output_dir="none")  # neither is opened: only the network is built
    unet = build_network(settings, labels, tuple(mask.shape[-2:])).eval()
    scheduler = DPMSolverMultistepScheduler(prediction_type=settings.prediction_type)
    pipe = MaskGuidedDDPMPipeline(unet, scheduler)
    pipe.set_progress_bar_config(disable=True)
    with FlopCounterMode(display=False) as counter:
        pipe(mask, num_inference_steps=steps)
    times = []
    for _ in range(repeats):
        begin = time.perf_counter()
        pipe(mask, num_inference_steps=steps)
        times.append(time.perf_counter() - begin)
    return {
        "steps": steps,
        "gflop": counter.get_total_flops() / 1e9,
        "seconds": sorted(times)[len(times) // 2],
        "parameters": sum(weight.numel() for weight in unet.parameters()),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, nargs="+", default=[10, 20, 50], help="of our sampler (default 10 20 50)")
    parser.add_argument("--timed_steps", type=int, default=3, help="of the paper's sampler (default 3)")
    parser.add_argument("--repeats", type=int, default=3, help="of our sampler; the median counts (default 3)")
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/sampling.json"))
    args = parser.parse_args()
    labels = LabelSet.from_preset("bdd100k")
    mask = torch.randint(0, labels.num_classes, (1, 128, 128), generator=torch.Generator().manual_seed(0))
    paper = paper_cost(labels, mask, args.timed_steps)
    rows = [our_cost(labels, mask, steps, args.repeats) for steps in args.steps]
    for row in rows:
        row |= {"times_less_compute": paper["gflop"] / row["gflop"], "times_faster": paper["seconds"] / row["seconds"]}
    print("| sampler | steps | GFLOP an image | seconds an image | less compute | faster |")
    print("|---|---|---|---|---|---|")
    print(f"| the paper's | {PAPER_STEPS} | {paper['gflop']:,.0f} | {paper['seconds']:,.0f} | 1 | 1 |")
    for row in rows:
        print(
            f"| default network, DPM-Solver++ | {row['steps']} | {row['gflop']:,.0f} | {row['seconds']:.1f} | "
            f"{row['times_less_compute']:,.0f} | {row['times_faster']:,.0f} |"
        )
    results = {
        "paper": paper,
        "default": rows,
        "resolution": [128, 128],
        "num_threads": torch.get_num_threads(),
        "machine": platform.machine(),
        "versions": {"torch": torch.__version__, "diffusers": diffusers.__version__},
    }
    args.output.parent.mkdir(parents=True, exist_ok=True)
    write_text(args.output, json.dumps(results, indent=2) + "\n")
    print(f"written: {args.output}")


if __name__ == "__main__":
    main()
