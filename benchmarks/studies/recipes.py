"""What each part of the training recipe brings: the paper's recipe, ours, and ours with one part left out or added.

Every arm trains on the same pairs with the same number of operations (forward and backward passes of its own network,
so a cheaper network sees more images), with each seed, and is read by `evaluate` on the validation split: same masks,
sampler, steps, guidance and judge. Arms were fixed here before any of them was trained, but for the last. What is done
stays: the same command goes on. Prints a table and writes `recipes.json` and `recipes.html`.

The paper's recipe is scaled: its network at a width that costs about what ours does, its schedule, loss, optimizer and
mask dropout as published, the start of its average at the same share of the run.
"""

import argparse
import dataclasses
import json
import os
import statistics
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from recipes_page import write_recipes_page
from torch.utils.flop_counter import FlopCounterMode

from semseg_diffusers.data.loading import load_pairs
from semseg_diffusers.pipelines.saved_files import write_text
from semseg_diffusers.training.averages import RAW
from semseg_diffusers.training.networks import build_network
from semseg_diffusers.training.options import PRESETS
from semseg_diffusers.training.settings import TrainingSettings


BATCH = 8
COMMON = {"train_batch_size": BATCH, "mixed_precision": "bf16", "preview_steps": 0, "logging_steps": 25}
OURS = {"lr_warmup_steps": 50}
PAPER_WIDTH = {"hidden_dim": 16, "emb_dim": 32}  # 3.4 GFLOP a forward pass at 128 x 128; our default takes 4.0
# name -> (what it is, settings beside COMMON)
ARMS = {
    "ours": ("the default recipe", OURS),
    "paper": ("the paper's recipe, its network 16 channels wide", {**PRESETS["paper"], **PAPER_WIDTH}),
    "epsilon": ("ours, without v prediction: the noise is predicted", {**OURS, "prediction_type": "epsilon"}),
    "no_min_snr": ("ours, without Min-SNR weights", {**OURS, "snr_gamma": None}),
    "no_patch_stem": ("ours, without the patch stem: all maps four times as large", {**OURS, "patch_size": 1}),
    "no_flip": ("ours, without mirrored pairs", {**OURS, "horizontal_flip": False}),
    # added after the others were begun, when group norms of one channel were found to keep the time out of the head
    "groups_4": ("ours, group norms of 4 groups in place of 16", {**OURS, "norm_num_groups": 4}),
}
# arms that take the last step's weights of another arm's training: name -> (what it is, arm)
RAW_WEIGHTS = {"no_ema": ("ours, without the average of the weights: the last step's", "ours")}


def arm_settings(arm: str, dataset: str, output_dir: str, seed: int, budget_gflop: float) -> TrainingSettings:
    """The settings of an arm, its steps chosen so that the operations of its forward passes sum up to the budget."""
    values = {**COMMON, **ARMS[arm][1], **{name: COMMON[name] for name in ("train_batch_size", "mixed_precision")}}
    settings = TrainingSettings(dataset=dataset, output_dir=output_dir, seed=seed, **values)
    steps = max(1, round(budget_gflop / (forward_gflop(settings) * BATCH)))
    start = settings.ema_start_step if settings.ema_warmup else round(0.01 * steps)  # the paper's 2,000 of 196,000
    return dataclasses.replace(settings, max_train_steps=steps, checkpointing_steps=100, ema_start_step=start)


def forward_gflop(settings: TrainingSettings) -> float:
    """Operations of one image's forward pass, two for a multiply-add."""
    pairs = load_pairs(settings.dataset, settings.train_split)
    unet = build_network(settings, pairs.labels, pairs.resolution).eval()
    mask = torch.zeros(1, *pairs.resolution, dtype=torch.long)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        unet(torch.zeros(1, 3, *pairs.resolution), 1, mask=mask)
    return counter.get_total_flops() / 1e9


def run(command: list[str], log: Path) -> None:
    """Run one of the package's commands on one thread; what it says goes to a file."""
    with log.open("a") as file:
        status = subprocess.run(
            [sys.executable, "-m", *command], stdout=file, stderr=file, env={**os.environ, "OMP_NUM_THREADS": "1"}
        ).returncode
    if status:
        raise RuntimeError(f"`{' '.join(command)}` ended with {status}; see {log}")


def write_config(args: argparse.Namespace, arm: str, seed: int) -> None:
    settings = arm_settings(arm, args.dataset, str(args.output / f"{arm}-{seed}"), seed, args.gflop)
    values = {**dataclasses.asdict(settings), "resume_from_checkpoint": "latest"}
    write_text(args.output / f"{arm}-{seed}.yaml", json.dumps(values))  # JSON is YAML too


def train_arm(args: argparse.Namespace, arm: str, seed: int) -> Path:
    folder, config = args.output / f"{arm}-{seed}", args.output / f"{arm}-{seed}.yaml"
    if not (folder / "model_index.json").exists():
        run(["semseg_diffusers.training", "--config", str(config)], args.output / f"{arm}-{seed}.log")
    return folder


def evaluate(args: argparse.Namespace, model: Path, arm: str, seed: int, more: tuple[str, ...] = ()) -> None:
    output = args.output / f"{arm}-{seed}-evaluation"
    if not (output / "results.json").exists():
        sampling = ["--scheduler", "DPMSolverMultistepScheduler", "--num_inference_steps", str(args.steps)]
        sampling += ["--guidance_scale", str(args.guidance_scale), "--num_masks", str(args.num_masks)]
        command = ["semseg_diffusers.evaluation", "--model", str(model), "--dataset", args.dataset, "--dtype"]
        command += ["bfloat16", "--segmenter", args.segmenter, "--features", *args.features, *sampling]
        run([*command, *more, "--seed", "0", "--output", str(output)], args.output / f"{arm}-{seed}.log")


def one(args: argparse.Namespace, arm: str, seed: int) -> None:
    """Train an arm with a seed, and evaluate it and what is made from it."""
    folder = train_arm(args, arm, seed)
    evaluate(args, folder, arm, seed)
    for name, (_, source) in RAW_WEIGHTS.items():
        if source == arm:
            evaluate(args, folder, name, seed, ("--variant", RAW))


def figures(results: dict) -> dict:
    """What the table holds of one evaluation."""
    generated, reference = results["agreement"]["generated"], results["fidelity"][0]["references"][0]
    return {
        "mean_iou": generated["mean_iou"],
        "pixel_accuracy": generated["pixel_accuracy"],
        "iou": generated["iou"],
        "fid": reference["generated"]["fid"],
        "kid": reference["generated"]["kid"],
    }


def collect(args: argparse.Namespace) -> dict:
    """All that is done so far, by arm and seed, with means over seeds."""
    arms, first, last = {}, None, None
    for arm, (what, _) in {**ARMS, **RAW_WEIGHTS}.items():
        runs = []
        for seed in args.seeds:
            path = args.output / f"{arm}-{seed}-evaluation" / "results.json"
            if not path.exists():
                continue
            last = json.loads(path.read_text())
            first = first or last
            trained = args.output / f"{RAW_WEIGHTS[arm][1] if arm in RAW_WEIGHTS else arm}-{seed}"
            log = [json.loads(line) for line in (trained / "log.jsonl").read_text().splitlines()]
            settings = json.loads((trained / "settings.json").read_text())
            runs.append(
                {
                    "seed": seed,
                    **figures(last),
                    "training": {
                        "steps": settings["max_train_steps"],
                        "images": settings["max_train_steps"] * BATCH,
                        "trained_seconds": log[-1]["trained_seconds"],
                        "loss": log[-1]["loss"],
                    },
                }
            )
        if runs:
            mean = {name: statistics.mean(one[name] for one in runs) for name in ("mean_iou", "pixel_accuracy", "fid")}
            arms[arm] = {"what": what, "changes": ARMS.get(arm, (what, {}))[1], "mean": mean, "runs": runs}
    record = {"kind": "recipes", "budget_gflop": args.gflop, "batch": BATCH, "seeds": args.seeds, "arms": arms}
    if last is not None:
        record |= {name: last[name] for name in ("commit", "versions", "resolution", "segmenter", "data")}
        record["generation"] = {
            name: last["generation"][name] for name in ("scheduler", "num_inference_steps", "guidance_scale", "seed")
        }
        record["num_masks"] = last["data"]["num_masks"]
        record["ceiling"], record["floor"] = (
            {name: first["agreement"][row][name] for name in ("mean_iou", "pixel_accuracy")}
            for row in ("real", "shuffled")
        )
    return record


def table(record: dict) -> str:
    """The results as Markdown, the best arm first."""
    lines = ["| arm | mean IoU of each seed | pixel accuracy | FID | images seen |", "|---|---|---|---|---|"]
    for arm in sorted(record["arms"].values(), key=lambda arm: -arm["mean"]["mean_iou"]):
        ious, mean = ", ".join(f"{one['mean_iou']:.3f}" for one in arm["runs"]), arm["mean"]
        images = arm["runs"][0]["training"]["images"]
        lines.append(f"| {arm['what']} | {ious} | {mean['pixel_accuracy']:.3f} | {mean['fid']:.1f} | {images:,} |")
    for name, row in (("real photos", "ceiling"), ("images of the default recipe against masks of others", "floor")):
        lines.append(f"| {name} | {record[row]['mean_iou']:.3f} | {record[row]['pixel_accuracy']:.3f} | | |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", required=True, help="prepared folder with the splits train and val")
    parser.add_argument("--segmenter", required=True, help="the judge: a folder of `semseg-diffusers segmenter`")
    parser.add_argument("--features", nargs="+", required=True, help="networks that fidelity is measured with")
    parser.add_argument("--output", type=Path, required=True, help="folder to make, or to continue")
    parser.add_argument("--gflop", type=float, default=16_000, help="of all forward passes of a training (16000)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1], help="default 0 1")
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS), help="default: all")
    parser.add_argument("--jobs", type=int, default=2, help="arms at once, each on one thread (2)")
    parser.add_argument("--num_masks", type=int, default=51, help="of the validation split (51)")
    parser.add_argument("--steps", type=int, default=20, help="sampling steps (20)")
    parser.add_argument("--guidance_scale", type=float, default=3.0, help="default 3")
    args = parser.parse_args()
    args.output.mkdir(parents=True, exist_ok=True)
    order = [(arm, seed) for seed in args.seeds for arm in args.arms]
    for job in order:
        write_config(args, *job)
    with ThreadPoolExecutor(args.jobs) as pool:
        for _ in pool.map(lambda job: one(args, *job), order):
            write_text(args.output / "recipes.json", json.dumps(collect(args), indent=1) + "\n")
    record = collect(args)
    write_recipes_page(args.output / "recipes.html", record, args.dataset, args.output)
    print(table(record))


if __name__ == "__main__":
    main()
