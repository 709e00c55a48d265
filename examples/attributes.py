"""Night and rain on demand: train a small network on toy scenes in three looks, then sample unseen masks in each.

Run `python examples/attributes.py`. Everything is written below `attributes/`: the images `attributes/attributes.png`
(mask | one column per look, from the same noise), `attributes/results.json`, the trained pipeline
`attributes/run`. The exit code is 1 if night is not measurably darker, or rain not greyer.
"""

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import torch
from diffusers import DPMSolverMultistepScheduler
from PIL import Image

from semseg_diffusers.data.dataset import PairDataset, load_pairs
from semseg_diffusers.pipelines.pipeline_mask_guided_ddpm import MaskGuidedDDPMPipeline
from semseg_diffusers.utils.images import image_grid


ROOT = Path(__file__).resolve().parent.parent
SEMSEG_DIFFUSERS = (sys.executable, "-m", "semseg_diffusers.cli")  # what the console script `semseg-diffusers` runs
LOOKS = {
    "day": {"timeofday": "daytime", "weather": "clear"},
    "night": {"timeofday": "night", "weather": "clear"},
    "rain": {"timeofday": "daytime", "weather": "rainy"},
}
SHARE = 0.5  # of the difference between real images that generated ones must show
LUMA = (0.299, 0.587, 0.114)  # Rec. 601


def brightness(images: np.ndarray) -> np.ndarray:
    """Return the mean luminance of images (N, H, W, 3) in 0..1: (N,). Night is dark."""
    return (images @ np.array(LUMA)).mean(axis=(1, 2))


def colourfulness(images: np.ndarray) -> np.ndarray:
    """Return the mean range of red, green and blue of images (N, H, W, 3): (N,). Rain is grey.

    Areas of 8 x 8 pixels are averaged first, so that coloured noise does not count as colour.
    """
    number, height, width, _ = images.shape
    areas = images.reshape(number, height // 8, 8, width // 8, 8, 3).mean(axis=(2, 4))
    return (areas.max(axis=3) - areas.min(axis=3)).mean(axis=(1, 2))


# question: (measure, the look that has more of it, the look that has less)
QUESTIONS = {"night is darker": (brightness, "day", "night"), "rain is greyer": (colourfulness, "day", "rain")}


def run_command(*words: str) -> None:
    """Run `semseg-diffusers WORDS` as a user would, in its own process."""
    print(f"== semseg-diffusers {' '.join(words)}", flush=True)
    if code := subprocess.run([*SEMSEG_DIFFUSERS, *words], cwd=ROOT, check=False).returncode:
        raise SystemExit(f"error: 'semseg-diffusers {words[0]}' ended with exit code {code}")


def keep_looks(scenes: Path) -> None:
    """Remove all training scenes but those of `LOOKS`, so that a short training sees each look often."""
    table = scenes / "train" / "metadata.jsonl"
    rows = [json.loads(line) for line in table.read_text(encoding="utf-8").splitlines()]
    kept = [row for row in rows if any(look.items() <= row.items() for look in LOOKS.values())]
    for row in rows:
        if row not in kept:
            for name in ("image_file_name", "mask_file_name"):
                (scenes / "train" / row[name]).unlink()
    table.write_text("".join(json.dumps(row) + "\n" for row in kept), encoding="utf-8")


def real_images(scenes: Path, look: dict[str, str]) -> np.ndarray:
    """Return the training images of a look, (N, H, W, 3) in 0..1."""
    pairs = load_pairs(scenes, "train")
    matches = [all(pairs.attributes[name][i] == look[name] for name in look) for i in range(len(pairs))]
    images = [pairs[i]["image"].permute(1, 2, 0).numpy() for i in np.flatnonzero(matches)]
    if not images:
        raise SystemExit(f"error: no training scene is {look}; give more --num_train")
    return np.stack(images) / 255


def sample(
    run: Path, val: PairDataset, num_inference_steps: int, guidance_scale: float, attribute_guidance_scale: float
) -> dict[str, np.ndarray]:
    """Sample the same masks in each look, from the same noise: look -> (N, H, W, 3) in 0..1."""
    pipeline = MaskGuidedDDPMPipeline.from_pretrained(run)
    pipeline.scheduler = DPMSolverMultistepScheduler.from_config(pipeline.scheduler.config)
    masks = torch.stack([val[index]["mask"] for index in range(len(val))])
    return {
        look: pipeline(
            masks,
            num_inference_steps=num_inference_steps,
            guidance_scale=guidance_scale,
            attribute_guidance_scale=attribute_guidance_scale,
            generator=[torch.Generator().manual_seed(index) for index in range(len(val))],
            attributes=attributes,
            output_type="np",
        ).images
        for look, attributes in LOOKS.items()
    }


def main() -> int:
    """Run all steps and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=ROOT / "attributes", help="folder, new (default: attributes)")
    parser.add_argument("--resolution", type=int, default=64, help="side in pixels, of 8s (default %(default)s)")
    parser.add_argument("--num_train", type=int, default=1200, help="scenes; half are used (default %(default)s)")
    parser.add_argument("--num_val", type=int, default=16, help="unseen masks to sample (default %(default)s)")
    parser.add_argument("--max_train_steps", type=int, default=700, help="of the network (default %(default)s)")
    parser.add_argument("--block_out_channels", type=int, nargs="+", default=(32, 64), help="widths (default 32 64)")
    parser.add_argument("--num_inference_steps", type=int, default=12, help="of sampling (default %(default)s)")
    parser.add_argument("--guidance_scale", type=float, default=1.5, help="of the mask (default %(default)s)")
    parser.add_argument(
        "--attribute_guidance_scale", type=float, default=2.0, help="of the look (default %(default)s)"
    )
    parser.add_argument("--share", type=float, default=SHARE, help="of the real difference (default %(default)s)")
    args = parser.parse_args()
    output, start = args.output.resolve(), time.perf_counter()
    if output.exists() and any(output.iterdir()):
        raise SystemExit(f"error: '{output}' is not empty; give another --output, or remove it")
    scenes, run = output / "scenes", output / "run"
    run_command(
        *("toy", "--output", str(scenes), "--resolution", str(args.resolution)),
        *("--num_train", str(args.num_train), "--num_val", str(args.num_val)),
    )
    keep_looks(scenes)
    run_command(
        *("train", "--dataset", str(scenes), "--output_dir", str(run), "--attributes", "timeofday", "weather"),
        *("--stem_channels", "8", "--norm_num_groups", "2", "--attention_levels", "0", "--preview_steps", "0"),
        *("--block_out_channels", *map(str, args.block_out_channels), "--device", "cpu"),
        *("--max_train_steps", str(args.max_train_steps), "--train_batch_size", "16", "--ema_decay", "0.99"),
        *("--learning_rate", "2e-3", "--lr_warmup_steps", "50"),
        # Min-SNR gives the noisiest steps little weight, and these decide on light and colour
        *("--snr_gamma", "none"),
    )

    val = load_pairs(scenes, "val")
    generated = sample(run, val, args.num_inference_steps, args.guidance_scale, args.attribute_guidance_scale)
    results = {"options": {name: str(value) for name, value in vars(args).items()}, "num_images": len(val)}
    for question, (measure, more, less) in QUESTIONS.items():
        real = [measure(real_images(scenes, LOOKS[look])) for look in (more, less)]
        ours = [measure(generated[look]) for look in (more, less)]
        results[question] = {
            "measure": measure.__name__,
            "real": {look: float(values.mean()) for look, values in zip((more, less), real, strict=True)},
            "generated": {look: float(values.mean()) for look, values in zip((more, less), ours, strict=True)},
            # how often a real image of one look exceeds one of the other, and for how many masks generated ones do
            "real_separated": float((real[0][:, None] > real[1]).mean()),
            "streets_separated": float((ours[0] > ours[1]).mean()),
            "share": float((ours[0].mean() - ours[1].mean()) / (real[0].mean() - real[1].mean())),
        }
    results["seconds"] = round(time.perf_counter() - start)
    (output / "results.json").write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    rows = [
        [
            val.labels.decode(val[index]["mask"].numpy()),
            *(Image.fromarray((generated[look][index] * 255).round().astype(np.uint8)) for look in LOOKS),
        ]
        for index in range(min(len(val), 6))
    ]
    image_grid(rows, ["mask", *LOOKS], cell_size=192).save(output / "attributes.png")

    missed = [question for question in QUESTIONS if not results[question]["share"] >= args.share]
    for question in QUESTIONS:
        found = results[question]
        print(
            f"{question}: {found['share']:.0%} of the difference between real images by {found['measure']} (expected "
            f"{args.share:.0%}), in {found['streets_separated']:.0%} of the masks"
        )
    if missed:
        print(f"error: too small a difference: {', '.join(missed)}. Train the network for longer.", file=sys.stderr)
    print(f"Result: {output / 'attributes.png'}")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
