"""Arms of a study: the same training but for one thing, with equal operations, each read by `evaluate`.

Finished work is kept: the same command resumes. An arm's run is `<arm>-<seed>/` in the study's folder, its evaluation
`<arm>-<seed>-evaluation/`, what both said `<arm>-<seed>.log`; `options.json` is what all share.
"""

import argparse
import dataclasses
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from diffusers.training_utils import compute_snr
from torch.utils.flop_counter import FlopCounterMode

from semseg_diffusers.backbones.image_backbone import ImageBackbone
from semseg_diffusers.data.dataset import load_pairs
from semseg_diffusers.reports.findings import read_distances
from semseg_diffusers.training.base_model import load_base
from semseg_diffusers.training.networks import build_network
from semseg_diffusers.training.objective import PERCEPTUAL_MIN_SNR, build_noise_scheduler
from semseg_diffusers.training.settings import TrainingSettings
from semseg_diffusers.utils.files import read_json, write_json, write_text
from semseg_diffusers.utils.settings import differences


BATCH = 8
# options that every arm of a study shares
KEPT = ("dataset", "segmenter", "features", "gflop", "num_masks", "steps", "guidance_scale")
COMMON = {"train_batch_size": BATCH, "mixed_precision": "bf16", "preview_steps": 0, "logging_steps": 25}


def study_parser(description: str, required: bool = True) -> argparse.ArgumentParser:
    """Options that every study of arms takes; `required`: whether the data must be given."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", required=required, help="prepared folder with the splits train and val")
    parser.add_argument("--segmenter", required=required, help="the judge: a folder of `semseg-diffusers segmenter`")
    parser.add_argument("--features", required=required, nargs="+", help="networks that fidelity is measured with")
    parser.add_argument("--output", required=required, type=Path, help="folder to make, or to continue")
    parser.add_argument("--gflop", type=float, default=16_000, help="of all forward passes of a training (16000)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1], help="default 0 1")
    parser.add_argument("--jobs", type=int, default=2, help="arms at once, each on one thread (2)")
    parser.add_argument("--num_masks", type=int, default=51, help="of the validation split (51)")
    parser.add_argument("--steps", type=int, default=20, help="sampling steps (20)")
    parser.add_argument("--guidance_scale", type=float, default=3.0, help="default 3")
    return parser


def forward_gflop(settings: TrainingSettings) -> float:
    """Operations of one image's forward pass, two for a multiply-add."""
    pairs = load_pairs(settings.dataset, settings.train_split)
    base = None if settings.base_model is None else load_base(settings).unet
    unet = build_network(settings, pairs.labels, pairs.resolution, base=base).eval()
    mask = torch.zeros(1, *pairs.resolution, dtype=torch.long)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        unet(torch.zeros(1, 3, *pairs.resolution), 1, mask=mask)
        # of samples with little noise: forward for both images, back to one of them: a third of a training pass
        if settings.perceptual_weight:
            scheduler = build_noise_scheduler(settings)
            snr = compute_snr(scheduler, torch.arange(settings.num_train_timesteps))
            before = counter.get_total_flops()
            ImageBackbone.from_name(settings.perceptual_backbone)(torch.zeros(1, 3, *pairs.resolution))
            backbone = counter.get_total_flops() - before
            return (before + backbone * (snr > PERCEPTUAL_MIN_SNR).float().mean().item()) / 1e9
    return counter.get_total_flops() / 1e9


def with_budget(settings: TrainingSettings, gflop: float) -> TrainingSettings:
    """The settings with as many steps as make the operations of the forward passes sum up to the budget."""
    steps = max(1, round(gflop / (forward_gflop(settings) * settings.train_batch_size)))
    return dataclasses.replace(settings, max_train_steps=steps, checkpointing_steps=100)


def train(folder: Path, settings: TrainingSettings) -> None:
    """Train a run, or resume it, unless it is finished."""
    config = folder.with_name(f"{folder.name}.yaml")
    values = {**dataclasses.asdict(settings), "resume_from_checkpoint": "latest"}
    write_text(config, json.dumps(values))  # JSON is YAML too
    if not (folder / "model_index.json").exists():
        _run(["semseg_diffusers.training", "--config", str(config)], folder.with_name(f"{folder.name}.log"))


def evaluate(args: argparse.Namespace, model: Path, name: str, more: tuple[str, ...] = ()) -> None:
    """Read what a model generates, unless that is done."""
    output = args.output / f"{name}-evaluation"
    if not (output / "results.json").exists():
        sampling = ["--scheduler", "DPMSolverMultistepScheduler", "--num_inference_steps", str(args.steps)]
        sampling += ["--guidance_scale", str(args.guidance_scale), "--guidance_start", "0", "--guidance_stop", "1"]
        command = ["semseg_diffusers.evaluation", "--model", str(model), "--dataset", args.dataset, "--dtype"]
        command += ["bfloat16", "--segmenter", args.segmenter, "--features", *args.features, *sampling]
        command += ["--num_masks", str(args.num_masks), *more, "--seed", "0", "--output", str(output)]
        _run(command, args.output / f"{name}.log")


def _run(command: list[str], log: Path) -> None:
    with log.open("a") as file:
        status = subprocess.run(
            [sys.executable, "-m", *command], stdout=file, stderr=file, env={**os.environ, "OMP_NUM_THREADS": "1"}
        ).returncode
    if status:
        raise RuntimeError(f"`{' '.join(command)}` ended with {status}; see {log}")


def run_arms(
    args: argparse.Namespace,
    one: Callable[[str, int], None],
    after: Callable[[], None],
    order: list[tuple[str, int]],
) -> None:
    """Call `one` with each arm and seed, several at once, and `after` by itself as they end in their order.

    Raises:
        ValueError: the folder holds arms of a study with other options, which would be read as this one's.
    """
    path, options = args.output / "options.json", {name: getattr(args, name) for name in KEPT}
    if path.exists() and (saved := read_json(path)) != options:
        raise ValueError(
            f"'{path}' is of a study with other options ({differences(saved, options)}). Choose another --output, or "
            "remove the file if nothing in the folder was made with them."
        )
    write_json(path, options)
    with ThreadPoolExecutor(args.jobs) as pool:
        for _ in pool.map(lambda job: one(*job), order):
            after()


def collect(args: argparse.Namespace, kind: str, arms: Mapping[str, tuple[str, dict, str]]) -> dict:
    """All that is done so far, by arm and seed, with means over seeds.

    Args:
        args: of `study_parser`.
        kind: of the record.
        arms: name -> (what it is, what its settings change, name of the arm whose runs it reads).
    """
    found, first, last = {}, None, None
    for arm, (what, changes, trained_as) in arms.items():
        runs = []
        for seed in args.seeds:
            path = args.output / f"{arm}-{seed}-evaluation" / "results.json"
            if not path.exists():
                continue
            last = json.loads(path.read_text())
            first = first or last
            trained = args.output / f"{trained_as}-{seed}"
            log = [json.loads(line) for line in (trained / "log.jsonl").read_text().splitlines()]
            steps = json.loads((trained / "settings.json").read_text())["max_train_steps"]
            training = {"steps": steps, "images": steps * BATCH, "loss": log[-1]["loss"]}
            runs.append({"seed": seed, **_figures(last), "training": training})
        if runs:
            mean = {name: statistics.mean(run[name] for run in runs) for name in ("mean_iou", "pixel_accuracy", "fid")}
            found[arm] = {"what": what, "changes": changes, "mean": mean, "runs": runs}
    record = {"kind": kind, "budget_gflop": args.gflop, "batch": BATCH, "seeds": args.seeds, "arms": found}
    if last is not None:
        record |= {name: last[name] for name in ("commit", "versions", "resolution", "segmenter", "data")}
        record["generation"] = {
            name: last["generation"][name] for name in ("scheduler", "num_inference_steps", "guidance_scale", "seed")
        }
        record["num_masks"] = last["data"]["num_masks"]
        record["pixel_share"] = last["agreement"]["generated"]["pixel_share"]
        record["ceiling"], record["floor"] = (
            {name: first["agreement"][row][name] for name in ("mean_iou", "pixel_accuracy", "iou")}
            for row in ("real", "shuffled")
        )
    return record


def _figures(results: dict) -> dict:
    generated, reference = results["agreement"]["generated"], read_distances(results["fidelity"][0])["references"][0]
    return {
        "mean_iou": generated["mean_iou"],
        "pixel_accuracy": generated["pixel_accuracy"],
        "iou": generated["iou"],
        "fid": reference["generated"]["frechet"],
        "kid": reference["generated"]["kernel"],
    }
