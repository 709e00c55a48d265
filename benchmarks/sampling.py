"""What an image costs: the paper's sampler and network against this package's, and what each economy brings.

All draw from masks at 128 x 128 on the same machine; weights are random, which changes neither time nor operations.
Arms: steps, guidance inside an interval, features of the mask computed once or at each step (also for the networks
whose norms the mask modulates, `spade` and SDM's), batches of 1 and 16. Each is a process of its own, so that its peak
memory is its own. The paper's 1000 steps of two forward passes are timed over a few steps and multiplied up, since one
image takes about an hour on two cores. Then `generate` draws the same images in one process and in two, with one
thread each. Prints tables and writes JSON. With all networks and both batches it takes half an hour on two cores.
"""

import argparse
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from diffusers import DDPMScheduler
from torch.utils.flop_counter import FlopCounterMode

from semseg_diffusers import LabelSet, MaskGuidedDDPMPipeline, PaperUNet2DModel
from semseg_diffusers.models.published.unet_paper import paper_betas
from semseg_diffusers.toy.scenes import draw_scene
from semseg_diffusers.training.networks import build_network
from semseg_diffusers.training.objective import build_noise_scheduler, build_sampler
from semseg_diffusers.training.settings import TrainingSettings
from semseg_diffusers.utils.files import code_commit, versions, write_json
from semseg_diffusers.utils.images import save_png


SIZE = 128
PAPER_STEPS = 1000  # ancestral sampling, two separate forward passes a step
BATCH = 8  # of `generate`, in each process
LABELS = LabelSet.from_preset("bdd100k")
# Settings of the networks beside the paper's; one whose features of the mask are worth keeping gets both ways in ARMS.
NETWORKS = {"default": {}, "spade": {"mask_conditioning": "spade"}, "sdm": {"network": "sdm"}}


@dataclass(frozen=True)
class Arm:
    """One way to draw images."""

    network: str = "default"
    steps: int = 20
    batch: int = 1
    interval: tuple[float, float] = (0.0, 1.0)  # parts of the steps between which guidance acts
    cached: bool = True  # what depends on the mask alone is computed once

    @property
    def name(self) -> str:
        parts = [self.network, f"{self.steps} steps"]
        if self.interval != (0.0, 1.0):
            parts.append("guided from {:g} to {:g}".format(*self.interval))
        if not self.cached:
            parts.append("mask encoded at each step")
        return ", ".join(parts)


def arms(all_steps: list[int], batches: list[int], networks: list[str]) -> list[Arm]:
    few = min(all_steps, key=lambda steps: abs(steps - 20))
    return [
        arm
        for batch in batches
        for arm in (
            Arm("paper", PAPER_STEPS, batch),
            *(Arm(steps=steps, batch=batch) for steps in all_steps),
            Arm(steps=few, batch=batch, interval=(0.1, 0.8)),
            Arm(steps=few, batch=batch, cached=False),
            *(Arm(name, few, batch, cached=cached) for name in networks for cached in (True, False)),
        )
    ]


# An arm, in its process ----------------------------------------------------------------------------------------------


def paper_cost(mask: torch.Tensor, timed_steps: int) -> dict:
    """Cost of the paper's sampler for masks (B, H, W): two forward passes of its network a step, and the step."""
    unet = PaperUNet2DModel(num_classes=LABELS.num_classes).eval()
    scheduler = DDPMScheduler(trained_betas=paper_betas(), variance_type="fixed_large", clip_sample=False)
    scheduler.set_timesteps(PAPER_STEPS)
    sample = torch.randn(len(mask), 3, *mask.shape[-2:])
    before = peak_bytes()
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        unet(sample[:1], 1, mask=mask[:1])
        unet(sample[:1], 1)
    with torch.no_grad():
        start = time.perf_counter()
        for timestep in scheduler.timesteps[:timed_steps]:
            conditional = unet(sample, timestep, mask=mask).sample
            unconditional = unet(sample, timestep).sample
            guided = unconditional + 3 * (conditional - unconditional)
            sample = scheduler.step(guided, timestep, sample).prev_sample
        seconds = (time.perf_counter() - start) / timed_steps * PAPER_STEPS
    return {
        "timed_steps": timed_steps,
        "gflop": counter.get_total_flops() / 1e9 * PAPER_STEPS,
        "seconds": seconds / len(mask),
        "peak_bytes": (peak_bytes() - before) / len(mask),
        "parameters": sum(weight.numel() for weight in unet.parameters()),
    }


def our_cost(arm: Arm, mask: torch.Tensor, repeats: int) -> dict:
    """Cost of an image through the pipeline, guidance on, everything counted and timed; masks (B, H, W)."""
    settings = TrainingSettings(dataset="none", output_dir="none", **NETWORKS[arm.network])  # neither is opened
    unet = build_network(settings, LABELS, tuple(mask.shape[-2:])).eval()
    if not arm.cached and arm.network == "sdm":
        unet.disable_modulation_cache()
    elif not arm.cached:
        unet._hf_hook = None  # as where hooks move the weights: `forward` is given the masks
    pipe = MaskGuidedDDPMPipeline(unet, build_sampler(build_noise_scheduler(settings)))
    pipe.set_progress_bar_config(disable=True)
    start, stop = arm.interval
    sampling = {"num_inference_steps": arm.steps, "guidance_start": start, "guidance_stop": stop}
    before = peak_bytes()
    with FlopCounterMode(display=False) as counter:
        pipe(mask[:1], **sampling)
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        pipe(mask, **sampling)
        times.append((time.perf_counter() - start) / len(mask))
    return {
        "gflop": counter.get_total_flops() / 1e9,
        "seconds": statistics.median(times),
        "peak_bytes": (peak_bytes() - before) / len(mask),
        "parameters": sum(weight.numel() for weight in unet.parameters()),
    }


def peak_bytes() -> int:
    """The most memory that this process has held so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def run_arm(arm: Arm, timed_steps: int, repeats: int) -> None:
    """Be one of the arms: a line of JSON comes last."""
    random = torch.Generator().manual_seed(0)
    mask = torch.randint(0, LABELS.num_classes, (arm.batch, SIZE, SIZE), generator=random)
    once = arm.batch > 1  # a batch takes long enough
    if arm.network == "paper":
        cost = paper_cost(mask, 1 if once else timed_steps)
    else:
        cost = our_cost(arm, mask, 1 if once else repeats)
    print(json.dumps({"name": arm.name, **asdict(arm), **cost}))


def measure(arm: Arm, args: argparse.Namespace) -> dict:
    options = ["--timed_steps", str(args.timed_steps), "--repeats", str(args.repeats)]
    command = [sys.executable, __file__, "--arm", json.dumps(asdict(arm)), *options]
    return json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()[-1])


# Processes -----------------------------------------------------------------------------------------------------------


def process_scaling(work: Path, num_masks: int, steps: int) -> dict:
    """Images a second of `generate` in one process and in two, one thread each, after the first batch of each."""
    settings = TrainingSettings(dataset="none", output_dir="none")
    unet = build_network(settings, LABELS, (SIZE, SIZE))
    pipe = MaskGuidedDDPMPipeline(unet, build_sampler(build_noise_scheduler(settings)))
    pipe.save_pretrained(work / "model")
    (work / "masks").mkdir()
    for seed in range(num_masks):
        _, ids, *_ = draw_scene(seed=seed, size=(SIZE, SIZE))
        save_png(work / "masks" / f"scene{seed:04}.png", LABELS.decode(ids))
    rates = {}
    for count in (1, 2):
        output = work / f"generated-{count}"
        command = ["-m", "semseg_diffusers.generation", "--model", work / "model", "--masks", work / "masks"]
        command += ["--output", output, "--num_inference_steps", steps, "--batch_size", BATCH, "--device", "cpu"]
        if count > 1:
            config = Path(__file__).parents[1] / "configs" / "accelerate" / "cpu_processes.yaml"
            command = ["-m", "accelerate.commands.launch", "--config_file", config, *command]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        subprocess.run([sys.executable, *map(str, command)], env=environment, check=True, capture_output=True)
        rates[count] = rate_of(sorted((output / "images").iterdir()), count)
    return {
        "images": num_masks,
        "steps": steps,
        "batch": BATCH,
        "images_per_second": rates,
        "times_one_process": rates[2] / rates[1],
    }


def rate_of(files: list[Path], count: int) -> float:
    """Images a second from when every process has drawn its first batch to when the last image is there.

    Args:
        files: images in the order of their masks, of which each process has drawn every `count`-th.
        count: processes.
    """
    written = [sorted(path.stat().st_mtime_ns for path in files[index::count]) for index in range(count)]
    start = max(times[BATCH - 1] for times in written)
    later = [moment for times in written for moment in times if moment > start]
    return len(later) / (max(later) - start) * 1e9


# Entry ---------------------------------------------------------------------------------------------------------------


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, nargs="+", default=[10, 20, 50], help="of our sampler (default 10 20 50)")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 16], help="images at a time (default 1 16)")
    others = [name for name in NETWORKS if name != "default"]
    parser.add_argument(
        "--networks",
        nargs="*",
        choices=others,
        default=others,
        help="beside the paper's and the default (default: all)",
    )
    parser.add_argument("--timed_steps", type=int, default=3, help="of the paper's sampler (default 3)")
    parser.add_argument("--repeats", type=int, default=3, help="of our sampler; the median counts (default 3)")
    parser.add_argument("--masks", type=int, default=128, help="that `generate` draws for the processes (default 128)")
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/sampling.json"))
    parser.add_argument("--arm", type=json.loads, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.arm:
        run_arm(Arm(**{**args.arm, "interval": tuple(args.arm["interval"])}), args.timed_steps, args.repeats)
        return
    if args.masks < 4 * BATCH:
        parser.error(f"--masks {args.masks}: expected at least two batches of {BATCH} for each of two processes")
    load = os.getloadavg()[0]
    rows = []
    for arm in arms(args.steps, args.batches, args.networks):
        print(f"{arm.name}, batch {arm.batch}", file=sys.stderr, flush=True)
        rows.append(measure(arm, args))
    work = Path(tempfile.mkdtemp(prefix="sampling-"))
    try:
        scaling = process_scaling(work, args.masks, min(args.steps, key=lambda steps: abs(steps - 20)))
    finally:
        shutil.rmtree(work)
    for row in rows:
        paper = next(one for one in rows if one["network"] == "paper" and one["batch"] == row["batch"])
        row["times_less_compute"] = paper["gflop"] / row["gflop"]
        row["times_faster"] = paper["seconds"] / row["seconds"]
    print_tables(rows, scaling)
    results = {
        "arms": rows,
        "processes": scaling,
        "resolution": [SIZE, SIZE],
        "num_threads": torch.get_num_threads(),
        "machine": {"cores": os.cpu_count(), "load_before": load},
        "versions": versions("torch", "diffusers", "accelerate"),
        "commit": code_commit(),
    }
    args.output.parent.mkdir(parents=True, exist_ok=True)
    write_json(args.output, results)
    print(f"written: {args.output}")


def print_tables(rows: list[dict], scaling: dict) -> None:
    print("| sampler | batch | GFLOP an image | seconds an image | peak MB an image | less compute | faster |")
    print("|---|---|---|---|---|---|---|")
    for row in rows:
        print(
            f"| {row['name']} | {row['batch']} | {row['gflop']:,.0f} | {row['seconds']:,.2f} | "
            f"{row['peak_bytes'] / 1e6:,.0f} | {row['times_less_compute']:,.0f} | {row['times_faster']:,.0f} |"
        )
    one, two = scaling["images_per_second"].values()
    print(
        f"\n`generate`, one thread a process: {one:.3g} images/s in one process, {two:.3g} in two, "
        f"{scaling['times_one_process']:.2f} times"
    )


if __name__ == "__main__":
    main()
