"""Images from a network that comes with the repository, then the full path on a laptop: data, training, sampling,
evaluation.

Run `make demo`, or `python examples/demo.py`. The toy network in `checkpoints/toy` was trained on streets in summer;
the demo fine-tunes it on a new dataset, toy scenes in the snow, and samples masks that neither training has seen.
Everything is written below `demo/`: photos of 512 x 512 `large.png`, images of several samplers `first.png`, the
result `demo.png` (mask | before training | after | original, and one mask edited by hand), the page
`evaluation/report.html`, the trained pipeline `run`. The exit code is 1 if the images do not follow their masks.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import torch
from diffusers import DPMSolverMultistepScheduler
from first_images import generate_first_images, generate_large_images
from PIL import Image, ImageDraw

from semseg_diffusers.data.dataset import PairDataset, load_pairs
from semseg_diffusers.data.labels import LabelSet
from semseg_diffusers.pipelines.pipeline_mask_guided_ddpm import MaskGuidedDDPMPipeline
from semseg_diffusers.utils.images import image_grid, save_png


ROOT = Path(__file__).resolve().parent.parent
SEMSEG_DIFFUSERS = (sys.executable, "-m", "semseg_diffusers.cli")  # what the console script `semseg-diffusers` runs
TOY_CHECKPOINT = ROOT / "checkpoints" / "toy"
MARGIN = 0.10  # mean IoU by which images must agree better with their own masks than with those of others
MARKER = ".made-by-demo"  # a folder that holds this file may be overwritten
NUM_INFERENCE_STEPS = 20
GUIDANCE_SCALE = 2.0
NUM_ROWS = 5  # unseen masks on the result, above the edited one
SNOW = {"road": 0.7, "sidewalk": 1.0, "terrain": 1.0, "vegetation": 0.8}  # class -> how much of it the snow covers
# The car that is painted into a street: corners, and boxes of the wheels, in shares of width and height.
CAR_BODY = ((0.1, 0.8), (0.12, 0.66), (0.17, 0.64), (0.21, 0.55), (0.33, 0.55), (0.38, 0.64), (0.43, 0.67), (0.4, 0.8))
WHEELS = ((0.14, 0.74, 0.20, 0.82), (0.33, 0.74, 0.39, 0.82))


def run_step(title: str, *command: str) -> None:
    """Run a command of the package as a user would, in its own process, and print how long it took."""
    print(f"\n== {title}\n   {' '.join(command)}", flush=True)
    start = time.perf_counter()
    result = subprocess.run(command, cwd=ROOT, check=False)
    if result.returncode:
        raise SystemExit(f"error: '{title}' ended with exit code {result.returncode}")
    print(f"   {time.perf_counter() - start:.0f} s", flush=True)


def free_cores() -> int:
    """Return how many cores other programs leave idle, at least 1: more threads than cores are far slower than one."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    busy = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
    return max(1, cores - int(busy))


def let_it_snow(scenes: Path) -> None:
    """Cover ground and trees of all images of a dataset with snow; the masks say where they are."""
    labels = LabelSet.from_json(scenes / "labels.json")
    cover = np.zeros(256, dtype=np.float32)
    for name, share in SNOW.items():
        cover[labels.label2id[name]] = share
    for path in scenes.glob("*/images/*.png"):
        image = np.asarray(Image.open(path).convert("RGB"), dtype=np.float32)  # (H, W, 3)
        share = cover[labels.encode(path.parent.parent / "masks" / path.name)][..., None]
        snow = (2.4 * image.mean(axis=2, keepdims=True) + 45) * np.array([0.96, 0.99, 1.04])  # bluish, dark at night
        image = (1 - share) * image + share * snow
        save_png(path, Image.fromarray(image.clip(0, 255).round().astype(np.uint8)))


def paint_car(ids: np.ndarray, labels: LabelSet) -> np.ndarray:
    """Paint a car into a mask (H, W), as with an editor's polygon tool: in a P-mode image the index is the id."""
    image = labels.decode(ids)
    draw = ImageDraw.Draw(image)
    height, width = ids.shape
    car = labels.names.index("car")
    draw.polygon([(x * width, y * height) for x, y in CAR_BODY], fill=car)
    for left, top, right, bottom in WHEELS:
        draw.ellipse((left * width, top * height, right * width, bottom * height), fill=car)
    return np.asarray(image)


def find_free_street(pairs: PairDataset) -> int:
    """Return the scene with the most ground at the place of the car and the fewest other cars."""
    car = pairs.labels.names.index("car")
    ground = [pairs.labels.names.index(name) for name in ("road", "sidewalk", "terrain")]
    freedom = []
    for index in range(len(pairs)):
        ids = pairs[index]["mask"].numpy()
        place = paint_car(np.zeros_like(ids), pairs.labels) == car
        freedom.append(np.isin(ids[place], ground).mean() - (ids == car).mean())
    return int(np.argmax(freedom))


def sample(model: Path, masks: np.ndarray, seeds: list[int]) -> list[Image.Image]:
    """Sample one image per mask, (N, H, W) class ids, with the library; equal seeds start from the same noise."""
    pipeline = MaskGuidedDDPMPipeline.from_pretrained(model)
    pipeline.scheduler = DPMSolverMultistepScheduler.from_config(pipeline.scheduler.config)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline(
        torch.from_numpy(masks),
        num_inference_steps=NUM_INFERENCE_STEPS,
        guidance_scale=GUIDANCE_SCALE,
        generator=[torch.Generator().manual_seed(seed) for seed in seeds],
    ).images


def make_result(run: Path, val: PairDataset, output: Path) -> Path:
    """Sample unseen masks and an edited one before and after training; return the file of the contact sheet."""
    street = find_free_street(val)
    chosen = [row * len(val) // NUM_ROWS for row in range(min(NUM_ROWS, len(val)))]
    masks = [val[index]["mask"].numpy() for index in [*chosen, street]]
    masks = np.stack([*masks, paint_car(masks[-1], val.labels)])
    originals = [Image.fromarray(val[index]["image"].permute(1, 2, 0).numpy()) for index in [*chosen, street]]
    seeds = [*range(len(chosen) + 1), len(chosen)]  # the edited mask has the seed of the street: only the edit differs
    before, after = (sample(model, masks, seeds) for model in (TOY_CHECKPOINT, run))
    titles = [*(f"unseen mask {number + 1}" for number in range(len(chosen))), "a street", "a car painted in"]
    rows = [
        [val.labels.decode(ids), *images]
        for ids, *images in zip(masks, before, after, [*originals, None], strict=True)
    ]
    for title, (mask, _, image, _) in zip(titles[-2:], rows[-2:], strict=True):
        folder = output / title.replace(" ", "_")
        folder.mkdir()
        save_png(folder / "mask.png", mask)
        save_png(folder / "image.png", image)
    path = output / "demo.png"
    save_png(path, image_grid(rows, ["mask", "before training", "after training", "original"], titles, cell_size=192))
    return path


def main() -> int:
    """Run all steps and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=ROOT / "demo", help="folder, overwritten (default: demo)")
    parser.add_argument("--num_train", type=int, default=600, help="training scenes (default %(default)s)")
    parser.add_argument("--num_val", type=int, default=48, help="unseen scenes, 2 or more (default %(default)s)")
    parser.add_argument("--max_train_steps", type=int, default=200, help="of the network (default %(default)s)")
    parser.add_argument("--segmenter_steps", type=int, default=800, help="of the segmenter (default %(default)s)")
    parser.add_argument("--first_steps", type=int, help="of each sampler of the first images (default: its own)")
    parser.add_argument("--margin", type=float, default=MARGIN, help="smallest lead in mean IoU (default %(default)s)")
    args = parser.parse_args()
    start = time.perf_counter()
    output = args.output.resolve()
    if output.exists() and any(output.iterdir()):
        if not (output / MARKER).is_file():
            raise SystemExit(f"error: '{output}' holds files that the demo did not write; give another --output")
        shutil.rmtree(output)
    output.mkdir(parents=True, exist_ok=True)
    (output / MARKER).touch()
    scenes, run = output / "scenes", output / "run"

    print("\n== 0. first images, from a network that comes with the repository", flush=True)
    large = generate_large_images(output, start, args.first_steps)
    first = generate_first_images(output, start, args.first_steps)

    run_step(
        "1. a dataset: toy scenes with exact masks",
        *(*SEMSEG_DIFFUSERS, "toy", "--output", str(scenes), "--resolution", "64"),
        *("--num_train", str(args.num_train), "--num_val", str(args.num_val)),
    )
    let_it_snow(scenes)
    print("   snow on ground and trees, which the toy network has never seen", flush=True)

    cores = int(os.environ.get("OMP_NUM_THREADS") or free_cores())
    run_step(
        "2. fine-tune the toy network on it",
        *(sys.executable, "-m", "accelerate.commands.launch", "--cpu", "--num_processes", "1", "--num_machines", "1"),
        *("--mixed_precision", "no", "--dynamo_backend", "no", "--num_cpu_threads_per_process", str(cores)),
        *("train_accelerate.py", "--dataset", str(scenes), "--output_dir", str(run)),
        *("--init_from", str(TOY_CHECKPOINT), "--patch_size", "2", "--stem_channels", "16"),
        *("--block_out_channels", "32", "64", "96", "--attention_levels", "1", "--norm_num_groups", "8"),
        *("--noise_schedule", "squaredcos_cap_v2", "--snr_gamma", "none", "--ema_decay", "0.98"),
        *("--max_train_steps", str(args.max_train_steps), "--train_batch_size", "8"),
        *("--learning_rate", "5e-4", "--lr_warmup_steps", "20", "--preview_steps", "0"),
    )

    run_step(
        "3. images from unseen masks",
        *(*SEMSEG_DIFFUSERS, "generate", "--model", str(run), "--masks", str(scenes / "val" / "masks")),
        *("--output", str(output / "generated"), "--scheduler", "DPMSolverMultistepScheduler"),
        *("--num_inference_steps", str(NUM_INFERENCE_STEPS), "--guidance_scale", str(GUIDANCE_SCALE)),
        *("--batch_size", "24", "--device", "cpu"),
    )

    print("\n== 4. before and after training, and a mask edited by hand", flush=True)
    result = make_result(run, load_pairs(scenes, "val"), output)

    run_step(
        "5. a small segmentation network, trained on the originals",
        *(*SEMSEG_DIFFUSERS, "segmenter", "--dataset", str(scenes), "--output", str(output / "segmenter")),
        *("--architecture", "segformer-mini", "--max_train_steps", str(args.segmenter_steps)),
        *("--train_batch_size", "4", "--device", "cpu"),
    )

    run_step(
        "6. do the images follow their masks?",
        *(*SEMSEG_DIFFUSERS, "evaluate", "--dataset", str(scenes), "--generated", str(output / "generated")),
        *("--segmenter", str(output / "segmenter"), "--features", str(output / "segmenter")),
        *("--output", str(output / "evaluation"), "--device", "cpu"),
    )

    scores = json.loads((output / "evaluation" / "results.json").read_text(encoding="utf-8"))["agreement"]
    lead = scores["generated"]["mean_iou"] - scores["shuffled"]["mean_iou"]
    print(f"\nTotal: {time.perf_counter() - start:.0f} s.")
    report = output / "evaluation" / "report.html"
    for name, path in {
        "Photos": large,
        "First images": first,
        "Result": result,
        "Report": report,
        "Model": run,
    }.items():
        if path is not None:
            print(f"{name + ':':13} {path}")
    if lead < args.margin:
        print(
            f"error: the images agree better with their own masks than with those of others by {lead:.3f} mean IoU; "
            f"expected at least {args.margin:.2f}. Train the network for longer.",
            file=sys.stderr,
        )
        return 1
    print(
        f"The images agree better with their own masks than with those of others by {lead:.3f} mean IoU "
        f"(expected at least {args.margin:.2f})."
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
