"""Every scheduler of diffusers on trained networks, judged by the picture, beside what the package says of it before.

Noise levels: those of the checkpoints (cosine for checkpoints/toy, linear for checkpoints/camvid128), and for the toy
checkpoint three others: a network of v depends on the noisy image and its signal-to-noise ratio alone (Kingma and Gao
2023, section 3), so that the same weights serve other noise levels at the timestep of equal ratio, and predict epsilon
or the image after a change of variables. Every combination samples one mask without guidance, from the same noise, in
a loop without the package's checks. A picture has the detail (mean difference of neighbouring pixels) and the colours
(means of 8 x 8 blocks) of the reference: the model's own sampler at 50 steps, four seeds, in the same run. Finished
combinations are kept: the same command resumes. About 25 minutes on one core:

    python benchmarks/studies/schedulers.py --output schedulers

writes `schedulers.json`, `tables.md` (for docs/results/schedulers.md) and two sheets of thumbnails.
"""

import argparse
import inspect
import json
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import torch
from diffusers import DDPMScheduler
from PIL import Image, ImageDraw

from semseg_diffusers import MaskGuidedDDPMPipeline
from semseg_diffusers.generation.model import _schedulers, new_scheduler
from semseg_diffusers.pipelines.scheduler_trial import check_scheduler
from semseg_diffusers.toy.scenes import draw_scene
from semseg_diffusers.training.objective import build_sampler
from semseg_diffusers.utils.files import code_commit, versions, write_json


ROOT = Path(__file__).resolve().parent.parent.parent
MASK_SEED = 3  # of the toy scene whose mask is sampled
BLOCK = 8
DETAIL = (0.5, 2.0)  # of the reference's: less is blurred or flat, more is noise
MAX_COLOR = 2.0  # times the difference of the reference's seeds from their mean
LEVELS: dict[str, dict[str, Any]] = {
    "cosine": {"beta_schedule": "squaredcos_cap_v2"},
    "linear": {"beta_schedule": "linear"},
    "scaled linear": {"beta_schedule": "scaled_linear"},
    "zero SNR": {"beta_schedule": "linear", "rescale_betas_zero_snr": True, "timestep_spacing": "trailing"},
}
OPTIONS = (
    "", "use_karras_sigmas=true", "use_exponential_sigmas=true", "use_beta_sigmas=true", "use_lu_lambdas=true",
    "use_flow_sigmas=true", "solver_order=3", "algorithm_type=sde-dpmsolver++",
    "algorithm_type=dpmsolver,final_sigmas_type=sigma_min", "final_sigmas_type=sigma_min", "skip_prk_steps=true",
    "predict_x0=false", "interpolation_type=log_linear", "timestep_spacing=linspace", "timestep_spacing=leading",
    "timestep_spacing=trailing", "variance_type=fixed_large", "prediction_type=epsilon", "prediction_type=sample",
    "beta_schedule=linear", "beta_schedule=scaled_linear",
)  # fmt: skip


def saved_scheduler(level: str) -> Any:
    """Return the scheduler that a run of these noise levels is saved with."""
    return build_sampler(DDPMScheduler(prediction_type="v_prediction", clip_sample=False, **LEVELS[level]))


class Reexpressed:
    """A network of v at its own noise levels, as one of another prediction type at others."""

    def __init__(self, pipeline: Any, mask: torch.Tensor, trained: Any):
        self.unet, self.features = pipeline.unet, pipeline.unet.encode_mask(mask)
        self.own, self.levels = (torch.logit(each.alphas_cumprod.double()) for each in (pipeline.scheduler, trained))
        self.is_own = self.own.shape == self.levels.shape and torch.allclose(self.own, self.levels)
        self.prediction_type = trained.config.prediction_type

    def __call__(self, sample: torch.Tensor, timestep: Any) -> torch.Tensor:
        time = float(timestep)
        log_snr = np.interp(time, range(len(self.levels)), self.levels.clamp(-30, 30))
        if not self.is_own:
            time = float(np.interp(-log_snr, -self.own.numpy(), range(len(self.own))))
        v = self.unet(sample, torch.tensor(time), mask_features=self.features, return_dict=False)[0]
        alpha = 1 / (1 + np.exp(-log_snr))
        signal, noise = alpha**0.5, (1 - alpha) ** 0.5
        if self.prediction_type == "epsilon":
            return noise * sample + signal * v
        return v if self.prediction_type == "v_prediction" else signal * sample - noise * v


@torch.no_grad()
def sample(network: Reexpressed, scheduler: Any, steps: int, size: int, seed: int = 0) -> np.ndarray:
    """Return an image (H, W, 3) in [0, 1], not clipped."""
    generator = torch.Generator().manual_seed(seed)
    scheduler.set_timesteps(steps)
    latents = torch.randn(1, 3, size, size, generator=generator) * scheduler.init_noise_sigma
    extra = {"generator": generator} if "generator" in inspect.signature(scheduler.step).parameters else {}
    for t in scheduler.timesteps:
        output = network(scheduler.scale_model_input(latents, t).float(), t)
        latents = scheduler.step(output, t, latents, **extra, return_dict=False)[0]
    return (latents[0].permute(1, 2, 0) / 2 + 0.5).float().numpy()


def detail(image: np.ndarray) -> float:
    return float(np.abs(np.diff(image, axis=0)).mean() + np.abs(np.diff(image, axis=1)).mean())


def blocks(image: np.ndarray) -> np.ndarray:
    size = image.shape[0] // BLOCK
    return image.clip(0, 1).reshape(size, BLOCK, size, BLOCK, 3).mean(axis=(1, 3))


class Reference:
    """Samples of the model's own sampler, which others are compared with."""

    def __init__(self, images: list[np.ndarray]):
        self.detail = float(np.mean([detail(image.clip(0, 1)) for image in images]))
        self.mean = np.mean([blocks(image) for image in images], axis=0)
        self.spread = float(np.mean([self.distance(image) for image in images]))

    def distance(self, image: np.ndarray) -> float:
        return float(np.sqrt(np.square(blocks(image) - self.mean).mean()))

    def judge(self, image: np.ndarray) -> dict[str, Any]:
        """Return the numbers of an image, and whether it is a picture."""
        if not np.isfinite(image).all():
            return {"finite": False, "picture": False}
        numbers = {"detail": detail(image.clip(0, 1)) / self.detail, "color": self.distance(image) / self.spread}
        good = DETAIL[0] <= numbers["detail"] <= DETAIL[1] and numbers["color"] <= MAX_COLOR
        return {key: round(value, 3) for key, value in numbers.items()} | {"finite": True, "picture": bool(good)}


def combinations(own_levels: bool) -> Iterator[tuple[str, int]]:
    """Yield each scheduler with an option, as `generate --scheduler` takes it, and a number of steps."""
    for name, each in _schedulers(dir(diffusers)).items():
        takes = inspect.signature(each.__init__).parameters
        for options in OPTIONS:
            if all(part.partition("=")[0] in takes for part in filter(None, options.split(","))):
                for steps in (20, 10, 50) if own_levels and not options else (20, 10) if own_levels else (20,):
                    yield f"{name}:{options}".rstrip(":"), steps


def try_one(name: str, steps: int, trained: Any, network: Reexpressed, reference: Reference, size: int):
    """Return what the package says of a scheduler, what it samples, and the image."""
    row: dict[str, Any] = {"scheduler": name, "steps": steps, "refused": None}
    try:
        scheduler = new_scheduler(name, trained.config)
    except (ValueError, ImportError) as err:
        return row | {"refused": str(err), "before": "its settings"}, None
    try:
        check_scheduler(scheduler, steps, trained)
    except ValueError as err:
        row |= {"refused": str(err), "before": "the trial"}
    try:
        image = sample(network, scheduler, steps, size)
    except Exception as err:  # noqa: BLE001  what a user would see as a traceback
        return row | {"error": f"{type(err).__name__}: {err}"[:200], "picture": False}, None
    return row | reference.judge(image), image


def run(output: Path, threads: int) -> None:
    torch.set_num_threads(threads)
    diffusers.utils.logging.set_verbosity_error()
    warnings.simplefilter("ignore")
    rows_file = output / "rows.jsonl"
    (output / "images").mkdir(parents=True, exist_ok=True)
    done = {}
    if rows_file.is_file():
        done = {row["key"]: row for row in map(json.loads, rows_file.read_text().splitlines())}
    start, references = time.perf_counter(), {}
    for checkpoint, level in [("toy", level) for level in LEVELS] + [("camvid128", "linear")]:
        pipeline: Any = MaskGuidedDDPMPipeline.from_pretrained(ROOT / "checkpoints" / checkpoint)
        size = pipeline.unet.config.sample_size
        ids = draw_scene(MASK_SEED, (size, size))[1]
        if checkpoint == "camvid128":
            ids = Image.open(sorted((ROOT / "examples/masks").glob("*.png"))[0])
        mask = pipeline.prepare_masks(ids, size, size)
        own = checkpoint == "camvid128" or level == "cosine"
        trained = saved_scheduler(level)
        network = Reexpressed(pipeline, mask, trained)
        seeds = range(1, 5) if checkpoint == "toy" else range(1, 3)
        steps = 50 if checkpoint == "toy" else 20
        references[f"{checkpoint}, {level}"] = reference = Reference(
            [sample(network, saved_scheduler(level), steps, size, seed) for seed in seeds]
        )
        for name, steps in combinations(own and checkpoint == "toy"):
            if checkpoint == "camvid128" and ":" in name:
                continue
            key = f"{checkpoint}, {level}, {name}, {steps}"
            if key in done:
                continue
            row, image = try_one(name, steps, trained, network, reference, size)
            done[key] = {"key": key, "checkpoint": checkpoint, "levels": level, "own_levels": own, **row}
            if image is not None:
                pixels = (np.nan_to_num(image).clip(0, 1) * 255).astype(np.uint8)
                Image.fromarray(pixels).save(output / "images" / f"{len(done):04}.png")
                done[key]["image"] = f"{len(done):04}.png"
            with rows_file.open("a") as file:
                file.write(json.dumps(done[key]) + "\n")
    write_results(output, list(done.values()), references, time.perf_counter() - start)


def write_results(output: Path, rows: list[dict], references: dict[str, Reference], seconds: float) -> None:
    """Judge all rows by what the package says today, and write the JSON, the tables and the sheets."""
    for row in rows:
        if "detail" in row:
            row["picture"] = DETAIL[0] <= row["detail"] <= DETAIL[1] and row["color"] <= MAX_COLOR
        if row.get("before") != "its settings":
            trained, row["refused"], row["before"] = saved_scheduler(row["levels"]), None, None
            try:
                check_scheduler(new_scheduler(row["scheduler"], trained.config), row["steps"], trained)
            except ValueError as err:
                row |= {"refused": str(err).partition(" steps: ")[2].partition(" Use other")[0], "before": "the trial"}
        row["refused"] = row["refused"] and row["refused"][:160]
    numbers = {name: {"detail": each.detail, "spread": each.spread} for name, each in references.items()}
    keys = ("checkpoint", "levels", "scheduler", "steps", "refused", "before", "picture", "detail", "color", "error")
    kept = [{key: row[key] for key in keys if row.get(key) is not None} for row in rows]
    record = {"code": code_commit(), "versions": versions(), "seconds": round(seconds)}
    write_json(output / "schedulers.json", {**record, "references": numbers, "rows": kept})
    (output / "tables.md").write_text(tables(rows))
    own = [row for row in rows if row["checkpoint"] == "toy" and row["levels"] == "cosine" and "image" in row]
    accepted = [row for row in own if not row["refused"] and row["steps"] == 20 and ":" not in row["scheduler"]]
    write_sheet(output, accepted, "schedulers_accepted.jpg")
    refused = [
        row for row in own if row["refused"] and not row["picture"] and not row["refused"].startswith("its noise")
    ]
    chosen = {(row["scheduler"].partition(":")[0], row["refused"].split(" the ")[-1][:9]): row for row in refused}
    write_sheet(output, list(chosen.values())[:30], "schedulers_refused.jpg")


def tables(rows: list[dict]) -> str:
    """Return the counts, each scheduler without options at 20 steps, and what the verdicts do not agree on."""
    lines = ["| network, noise levels | tried | refused by settings | refused by the trial | accepted, a picture "
             "| accepted, no picture | refused by the trial, a picture |", "|---|" + "---:|" * 6]  # fmt: skip
    groups = list(dict.fromkeys((row["checkpoint"], row["levels"]) for row in rows))
    for group in groups:
        found = [row for row in rows if (row["checkpoint"], row["levels"]) == group]
        refused = [row for row in found if row.get("before") == "the trial"]
        accepted = [row for row in found if not row["refused"]]
        counts = [len(found), len(found) - len(refused) - len(accepted), len(refused)]
        counts += [sum(row["picture"] for row in accepted), sum(not row["picture"] for row in accepted)]
        counts.append(sum(row["picture"] for row in refused))
        lines.append(f"| {', '.join(group)} | " + " | ".join(map(str, counts)) + " |")
    lines += ["", "| scheduler, 20 steps | " + " | ".join(f"{one}, {two}" for one, two in groups) + " |"]
    lines += ["|---|" + "---|" * len(groups)]
    cells = {(row["scheduler"], row["checkpoint"], row["levels"]): row for row in rows if row["steps"] == 20}
    for name in dict.fromkeys(row["scheduler"] for row in rows if ":" not in row["scheduler"]):
        shown = [cell(cells.get((name, *group))) for group in groups]
        if any("refused by settings" not in each for each in shown):
            lines.append(f"| `{name}` | " + " | ".join(shown) + " |")
    lines += ["", "Accepted, and no picture by the numbers:", ""]
    lines += [
        f"- {row['checkpoint']}, {row['levels']}: `{row['scheduler']}`, {row['steps']} steps (detail "
        f"{row.get('detail')}, colour {row.get('color')})"
        for row in rows if not row["refused"] and not row["picture"]
    ]  # fmt: skip
    return "\n".join(lines) + "\n"


def cell(row: dict | None) -> str:
    if row is None:
        return ""
    if row.get("before") == "its settings":
        return "refused by settings"
    number = f"{row['detail']:.2f}" if "detail" in row else "error"
    return f"refused ({number})" if row["refused"] else number if row["picture"] else f"**{number}**"


def write_sheet(output: Path, rows: list[dict], name: str, columns: int = 6, side: int = 128) -> None:
    """Write images with their names below, twice as large as they were sampled."""
    sheet = Image.new("RGB", (columns * (side + 32), -(-len(rows) // columns) * (side + 36)), "white")
    draw = ImageDraw.Draw(sheet)
    for i, row in enumerate(rows):
        x, y = i % columns * (side + 32), i // columns * (side + 36)
        sheet.paste(Image.open(output / "images" / row["image"]).resize((side, side)), (x, y))
        label, _, option = row["scheduler"].replace("Scheduler", "").partition(":")
        draw.text((x, y + side + 2), f"{label}\n{option[:26] or row['steps']}", fill="black")
    sheet.save(output / name, quality=70)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    run(args.output, args.threads)
