"""First pictures from a network that is there, then the whole way on a laptop: toy scenes, a small network, images
from masks it has never seen, a measure.

Run `make demo`, or `python examples/demo.py`. Everything is written below `demo/`: the first pictures
`demo/first.png`, the picture `demo/demo.png` (mask | generated | original, and one mask edited by hand), the page
`demo/evaluation/report.html`, the trained pipeline `demo/run`. It ends with exit code 1 where the images do not carry
their masks.
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
from diffusers import DPMSolverMultistepScheduler
from first_pictures import draw_first_pictures
from PIL import Image, ImageDraw

from semseg_diffusers.data.dataset import PairDataset, load_pairs
from semseg_diffusers.data.labels import LabelSet
from semseg_diffusers.generation.generate import GenerationSettings, generate_dataset
from semseg_diffusers.pipelines.mask_inputs import open_image
from semseg_diffusers.pipelines.pipeline_mask_guided_ddpm import MaskGuidedDDPMPipeline
from semseg_diffusers.utils.images import image_grid


ROOT = Path(__file__).resolve().parent.parent
SEMSEG_DIFFUSERS = (sys.executable, "-m", "semseg_diffusers.cli")  # what the console script `semseg-diffusers` runs
MARGIN = 0.10  # mean IoU by which generated images must beat the same images against the masks of others
MARKER = ".made-by-demo"  # a folder that holds this file may be made anew
NUM_INFERENCE_STEPS = 20
GUIDANCE_SCALE = 2.0
PICTURE_ROWS = 5  # unseen masks on the picture, above the edited one
# The car that is painted into a street: corners, and boxes of the wheels, in shares of width and height.
CAR_BODY = ((0.1, 0.8), (0.12, 0.66), (0.17, 0.64), (0.21, 0.55), (0.33, 0.55), (0.38, 0.64), (0.43, 0.67), (0.4, 0.8))
WHEELS = ((0.14, 0.74, 0.20, 0.82), (0.33, 0.74, 0.39, 0.82))


def run_step(title: str, *command: str) -> None:
    """Run a command of the package as a user would, in a process of its own, and say how long it took."""
    print(f"\n== {title}\n   {' '.join(command)}", flush=True)
    start = time.perf_counter()
    result = subprocess.run(command, cwd=ROOT, check=False)
    if result.returncode:
        raise SystemExit(f"error: '{title}' ended with exit code {result.returncode}")
    print(f"   {time.perf_counter() - start:.0f} s", flush=True)


def paint_car(ids: np.ndarray, labels: LabelSet) -> np.ndarray:
    """Paint a car into a mask (H, W), as with an editor's polygon tool: in a P-mode picture the index is the id."""
    picture = labels.decode(ids)
    draw = ImageDraw.Draw(picture)
    height, width = ids.shape
    car = labels.names.index("car")
    draw.polygon([(x * width, y * height) for x, y in CAR_BODY], fill=car)
    for left, top, right, bottom in WHEELS:
        draw.ellipse((left * width, top * height, right * width, bottom * height), fill=car)
    return np.asarray(picture)


def find_free_street(pairs: PairDataset) -> int:
    """Return the scene that has most ground where the car will stand, and fewest cars."""
    car = pairs.labels.names.index("car")
    ground = [pairs.labels.names.index(name) for name in ("road", "sidewalk", "terrain")]
    freedom = []
    for index in range(len(pairs)):
        ids = pairs[index]["mask"].numpy()
        place = paint_car(np.zeros_like(ids), pairs.labels) == car
        freedom.append(np.isin(ids[place], ground).mean() - (ids == car).mean())
    return int(np.argmax(freedom))


def generate_before_and_after(run: Path, val: PairDataset, street: int, output: Path) -> None:
    """Generate from the mask of a street and from the same mask with a car painted in, by the library this time.

    Images are seeded by the name of their mask, here one name in two folders: so the edit is all that differs.
    """
    pipeline = MaskGuidedDDPMPipeline.from_pretrained(run)
    pipeline.scheduler = DPMSolverMultistepScheduler.from_config(pipeline.scheduler.config)
    settings = GenerationSettings(num_inference_steps=NUM_INFERENCE_STEPS, guidance_scale=GUIDANCE_SCALE)
    before = val[street]["mask"].numpy()
    for name, ids in (("before", before), ("edited", paint_car(before, val.labels))):
        (output / name).mkdir()
        val.labels.decode(ids).save(output / name / "street.png")
        generate_dataset(pipeline, output / name, output / f"generated_{name}", settings, contact_sheet_rows=0)


def draw_picture(val: PairDataset, street: int, output: Path) -> Path:
    """Lay out mask | generated | original, then the street before and after the edit; returns the file."""

    def original(index: int) -> Image.Image:
        return Image.fromarray(val[index]["image"].permute(1, 2, 0).numpy())

    def generated(folder: str, stem: str) -> list[Image.Image]:
        folders = (output / folder / "masks", output / folder / "images")
        return [open_image(path / f"{stem}_0.png") for path in folders]

    chosen = [row * len(val) // PICTURE_ROWS for row in range(min(PICTURE_ROWS, len(val)))]
    rows = [[*generated("generated", val.stems[index]), original(index)] for index in chosen]
    rows.append([*generated("generated_before", "street"), original(street)])
    rows.append([*generated("generated_edited", "street"), None])
    titles = [*(f"unseen mask {number + 1}" for number in range(len(chosen))), "a street", "a car painted in"]
    path = output / "demo.png"
    image_grid(rows, ["mask", "generated", "original"], titles, cell_size=192).save(path)
    return path


def main() -> int:
    """Run the steps; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=ROOT / "demo", help="folder, made anew (default: demo)")
    parser.add_argument("--num_train", type=int, default=1000, help="training scenes (default %(default)s)")
    parser.add_argument("--num_val", type=int, default=48, help="unseen scenes, 2 or more (default %(default)s)")
    parser.add_argument("--max_train_steps", type=int, default=600, help="of the network (default %(default)s)")
    parser.add_argument("--segmenter_steps", type=int, default=800, help="of the judge (default %(default)s)")
    parser.add_argument("--first_steps", type=int, help="of every sampler of the first pictures (default: its own)")
    parser.add_argument("--margin", type=float, default=MARGIN, help="mean IoU to win by (default %(default)s)")
    args = parser.parse_args()
    begin = time.perf_counter()
    output = args.output.resolve()
    if output.exists() and any(output.iterdir()):
        if not (output / MARKER).is_file():
            raise SystemExit(f"error: '{output}' holds something that is not a demo's; give another --output")
        shutil.rmtree(output)
    output.mkdir(parents=True, exist_ok=True)
    (output / MARKER).touch()
    scenes, run = output / "scenes", output / "run"

    print("\n== 0. first pictures, from a network that is there", flush=True)
    first = draw_first_pictures(output, begin, args.first_steps)

    run_step(
        "1. toy scenes with exact masks",
        *(*SEMSEG_DIFFUSERS, "toy", "--output", str(scenes), "--resolution", "64"),
        *("--num_train", str(args.num_train), "--num_val", str(args.num_val)),
    )

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    run_step(
        "2. train a small network, with the script that trains large ones",
        *(sys.executable, "-m", "accelerate.commands.launch", "--cpu", "--num_processes", "1", "--num_machines", "1"),
        *("--mixed_precision", "no", "--dynamo_backend", "no", "--num_cpu_threads_per_process", str(cores)),
        *("train_accelerate.py", "--dataset", str(scenes), "--output_dir", str(run)),
        *("--patch_size", "2", "--block_out_channels", "32", "64", "96", "--attention_levels", "1"),
        *("--max_train_steps", str(args.max_train_steps), "--train_batch_size", "8"),
        *("--learning_rate", "1e-3", "--lr_warmup_steps", "50", "--preview_steps", "0"),
    )

    run_step(
        "3. images from unseen masks",
        *(*SEMSEG_DIFFUSERS, "generate", "--model", str(run), "--masks", str(scenes / "val" / "masks")),
        *("--output", str(output / "generated"), "--scheduler", "DPMSolverMultistepScheduler"),
        *("--num_inference_steps", str(NUM_INFERENCE_STEPS), "--guidance_scale", str(GUIDANCE_SCALE)),
        *("--batch_size", "24", "--device", "cpu"),
    )

    print("\n== 4. a mask edited by hand", flush=True)
    val = load_pairs(scenes, "val")
    street = find_free_street(val)
    generate_before_and_after(run, val, street, output)

    run_step(
        "5. a judge: a small segmentation network that learns from the originals",
        *(*SEMSEG_DIFFUSERS, "segmenter", "--dataset", str(scenes), "--output", str(output / "segmenter")),
        *("--architecture", "segformer-mini", "--max_train_steps", str(args.segmenter_steps)),
        *("--train_batch_size", "4", "--device", "cpu"),
    )

    run_step(
        "6. do the images carry their masks?",
        *(*SEMSEG_DIFFUSERS, "evaluate", "--dataset", str(scenes), "--generated", str(output / "generated")),
        *("--segmenter", str(output / "segmenter"), "--features", str(output / "segmenter")),
        *("--output", str(output / "evaluation"), "--device", "cpu"),
    )

    picture = draw_picture(val, street, output)
    scores = json.loads((output / "evaluation" / "results.json").read_text(encoding="utf-8"))["agreement"]
    won = scores["generated"]["mean_iou"] - scores["shuffled"]["mean_iou"]
    print(
        f"\nAll of it took {time.perf_counter() - begin:.0f} s.\nThe first:   {first}\nThe picture: {picture}\n"
        f"The page:    {output / 'evaluation' / 'report.html'}\nThe model:   {run}"
    )
    if won < args.margin:
        print(
            f"error: generated images agree with their masks by only {won:.3f} mean IoU more than with the masks of "
            f"others; wanted {args.margin:.2f}. The network has not learned to follow masks: train it for longer.",
            file=sys.stderr,
        )
        return 1
    print(f"Images agree with their masks by {won:.3f} mean IoU more than with others; wanted {args.margin:.2f}.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
