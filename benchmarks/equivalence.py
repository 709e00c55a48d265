"""Compare what this checkout computes with an earlier commit: weights, images, numbers and files must be equal.

    python benchmarks/equivalence.py [--baseline DIR] [--only train generate ...] [--output equivalence.json]

Each case runs the same commands with both checkouts, each in one process and one folder, on toy scenes and tiny
networks, and compares hashes: of every tensor, every pixel, every number. Versions, times, paths and sentences are
left out. Where a case reads folders of another one, both checkouts read what the baseline wrote: so what it saved is
loaded, resumed, exported and pushed as before. `--baseline` is a checkout of the earlier commit; without it, a
worktree of 2bcd8dd is made and removed again. Results of the baseline are kept in `--cache`, so that the next
comparison runs this checkout only. `--speed` compares the speed of training and sampling instead, in alternating
turns.
"""

import argparse
import hashlib
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image
from safetensors.numpy import load_file


ROOT = Path(__file__).resolve().parent.parent
DATA = Path(os.environ.get("SEMSEG_DATA", ROOT.parent / "shared" / "data"))
BASELINE = "2bcd8dd"
# Keys of JSON files that differ between two runs of the same code, or between two places.
VOLATILE = {
    "begun",  # codespell:ignore begun
    "versions", "version", "commit", "time", "seconds", "started", "date", "trained_seconds", "pid",
    "images_per_second", "data_wait_share", "train_seconds", "evaluation_seconds", "command", "commands", "identity",
    "note", "notes", "rule", "threshold_is", "fid_64_missing", "findings",  # sentences
}  # fmt: skip
ADDED = {"edited_region_hash"}  # keys that the baseline does not write
RENAMED = {  # keys of results that the baseline calls otherwise
    "frechet_distance": "fid", "kernel_distance": "kid", "kernel_distance_std": "kid_std",
    "kernel_distance_subset_size": "kid_subset_size",
}  # fmt: skip
TINY = "--block_out_channels 16 32 --attention_levels 1 --norm_num_groups 8 --stem_channels 8 --train_batch_size 4"
RUN = f"{TINY} --max_train_steps 30 --checkpointing_steps 15 --logging_steps 5 --preview_steps 0 --lr_warmup_steps 5"
RUN += " --dataloader_num_workers 0 --device cpu --dataset scenes"
SAMPLE = "--num_inference_steps 4 --device cpu --batch_size 4 --contact_sheet 0"
GENERATE = "generate --model model --masks big/val/masks --output"  # `model`: checkpoints/toy of the baseline


@dataclass(frozen=True)
class Case:
    """Commands, one per line, and the files to compare afterwards."""

    commands: str
    compare: tuple[str, ...]
    needs: tuple[str, ...] = ()  # other cases; the commands read their folders, as the baseline wrote them


PREPARED = ("**/*.png", "**/*.jpg", "**/*.jsonl", "**/labels.json")
CASES = {
    "toy": Case(
        "toy --output scenes --resolution 32 --num_train 24 --num_val 8\n"
        "toy --output wide --resolution 48x80 --num_train 4 --num_val 2",
        ("scenes/**/*.png", "scenes/**/*.jsonl", "wide/**/*.png"),
    ),
    "prepare": Case(
        "prepare --source scenes --format datasets --map_to camvid --resolution 16x24 --output mapped\n"
        f"prepare --source {DATA}/camvid --resolution 48 --output camvid --num_workers 1\n"
        f"prepare --source {DATA}/camvid_full --resolution 64 --output camvid_full --num_workers 1\n"
        f"prepare --source {DATA}/kitti --resolution native --output kitti --num_workers 1\n"
        f"prepare --source {DATA}/bdd100k_samples --format paper --resolution 64 --output samples --num_workers 1",
        tuple(
            f"{name}/{pattern}"
            for name in ("mapped", "camvid", "camvid_full", "kitti", "samples")
            for pattern in PREPARED
        ),
        ("toy",),
    ),
    "masks": Case(
        "stats --dataset scenes --output stats\n"
        "edit --masks scenes/val/masks --dataset scenes --output edited --operation 'remove class=car number=all' "
        "--operation 'ellipse class=person center=16,24 radii=2,4' --seed 3\n"
        "toy --output many --resolution 64 --num_train 90 --num_val 2\n"
        "enrich --dataset many --output enriched --num_masks 6 --wish person=2 car=1.5 --seed 1\n"
        "clean --masks scenes/val/masks --labels bdd100k --output cleaned\n"
        "labels --preset camvid --output legend",
        ("stats/*.json", "edited/masks/*.png", "edited/*.json", "enriched/**/masks/*.png", "enriched/*.json*",
         "cleaned/masks/*.png", "cleaned/*.json", "legend/*.json", "legend/*.gpl"),
        ("toy",),
    ),  # fmt: skip
    "train": Case(f"train {RUN} --output_dir run", ("run/**/*.safetensors", "run/log.jsonl"), ("toy",)),
    "train-ema": Case(
        f"train {RUN} --output_dir run --ema_decays 0.9 0.99 --gradient_accumulation_steps 2 --random_crop 16",
        ("run/**/*.safetensors", "run/log.jsonl"), ("toy",),
    ),
    "train-paper": Case(
        "train --preset paper --hidden_dim 32 --emb_dim 32 --dataset scenes --output_dir run --train_batch_size 4 "
        "--max_train_steps 30 --preview_steps 0 --ema_start_step 10 --dataloader_num_workers 0 --device cpu",
        ("run/**/*.safetensors", "run/log.jsonl"), ("toy",),
    ),
    "train-attributes": Case(
        f"train {RUN} --output_dir run --attributes weather timeofday --class_balanced_sampling --label_diffusion "
        "--mask_pyramid --coordinate_channels --mask_ablation 0.2 --class_loss_weighting --augment_scale 0.2 "
        "--augment_translate 0.1 --augment_probability 0.3 --rescale_betas_zero_snr",
        ("run/**/*.safetensors", "run/log.jsonl"), ("toy",),
    ),
    "train-spade": Case(
        f"train {RUN} --output_dir run --mask_conditioning spade --mixed_precision bf16 --preview_steps 15",
        ("run/**/*.safetensors", "run/log.jsonl", ), ("toy",),
    ),
    "train-sdm": Case(
        "train --network sdm --block_out_channels 32 32 --attention_levels 1 --attention_head_dim 16 --dataset scenes "
        "--output_dir run --train_batch_size 2 --max_train_steps 30 --preview_steps 0 --dataloader_num_workers 0 "
        "--device cpu",
        ("run/**/*.safetensors", "run/log.jsonl"), ("toy",),
    ),
    "train-control": Case(
        f"!base\ntrain {RUN.replace(TINY, '--train_batch_size 4')} --output_dir run --base_model base",
        ("run/**/*.safetensors", "run/log.jsonl"), ("toy",),
    ),
    "train-resumed": Case(
        f"train {RUN.replace('max_train_steps 30', 'max_train_steps 15')} --lr_scheduler constant --output_dir run\n"
        f"train {RUN} --lr_scheduler constant --output_dir run --resume_from_checkpoint latest\n"
        f"train {RUN} --lr_scheduler constant --output_dir straight\n"
        "!same run straight",
        ("run/**/*.safetensors", "run/log.jsonl"), ("toy",),
    ),
    "launchers": Case(
        f"$ accelerate launch --cpu --num_processes 2 --num_machines 1 --mixed_precision no --dynamo_backend no "
        f"-m semseg_diffusers.training {RUN.replace('train_batch_size 4', 'train_batch_size 2')} --output_dir two\n"
        f"$ python -m semseg_diffusers.training {RUN.replace('steps 30', 'steps 10')} --output_dir one\n"
        f"$ python -m semseg_diffusers.generation --model one --masks scenes/val/masks --output new {SAMPLE}",
        ("two/**/*.safetensors", "one/**/*.safetensors", "new/images/*.png"), ("toy",),
    ),
    "resume-of-baseline": Case(
        f"!copy ../train-resumed/run run\ntrain {RUN.replace('max_train_steps 30', 'max_train_steps 40')} "
        "--lr_scheduler constant --output_dir run --resume_from_checkpoint latest",
        ("run/**/*.safetensors", "run/log.jsonl"), ("toy", "train-resumed"),
    ),
    "generate": Case(
        f"{GENERATE} default {SAMPLE} --num_images_per_mask 2\n"
        f"{GENERATE} ddim {SAMPLE} --scheduler DDIMScheduler "
        "--guidance_start 0.2 --guidance_stop 0.8\n"
        f"{GENERATE} euler {SAMPLE} --scheduler EulerDiscreteScheduler "
        "--attributes timeofday=night --attribute_guidance_scale 1.5\n"
        f"{GENERATE} grid {SAMPLE} --variations guidance_scale=1,3 "
        "weather=clear,rainy --scheduler DDPMScheduler\n"
        f"edit --masks big/val/masks --dataset big --output edited --operation 'remove class=car number=all' "
        "--operation 'rectangle class=bus first=8,30 last=30,50'\n"
        f"generate --model model --masks edited/masks --output inpainted {SAMPLE} --edit "
        "--photos big/val --feather 2\n"
        f"{GENERATE} redrawn {SAMPLE} --photos big/val --strength 0.6\n"
        f"{GENERATE} bf16 {SAMPLE} --dtype bfloat16 --training_set big",
        tuple(f"{name}/{part}" for name in ("default", "ddim", "euler", "grid", "inpainted", "redrawn", "bf16")
              for part in ("**/*.png", "metadata.jsonl")),
        ("model",),
    ),  # fmt: skip
    "generate-networks": Case(
        f"generate --model ../train-sdm/run --masks ../toy/scenes/val/masks --output sdm {SAMPLE}\n"
        f"generate --model ../train-control/run --masks ../toy/scenes/val/masks --output control {SAMPLE} "
        "--conditioning_scale 0.7\n"
        f"generate --model ../train-spade/run --masks ../toy/scenes/val/masks --output spade {SAMPLE} --variant raw\n"
        f"generate --model ../train-attributes/run --masks ../toy/scenes/val/masks --output fading {SAMPLE}\n"
        f"generate --model ../train/run --masks ../toy/scenes/val/masks --output guided {SAMPLE} "
        "--guide_model ../train/run --guide_variant raw",
        ("*/images/*.png", "*/masks/*.png"),
        ("toy", "train", "train-sdm", "train-control", "train-spade", "train-attributes"),
    ),
    "segmenter": Case(
        "segmenter --dataset scenes --output judge --architecture segformer-mini --max_train_steps 12 "
        "--train_batch_size 4 --validation_steps 6 --device cpu --input_size 32\n"
        "segmenter --dataset scenes --output other --architecture mobilevit-deeplabv3-xxs --max_train_steps 4 "
        "--train_batch_size 4 --validation_split none --device cpu --input_size 32",
        ("judge/*.safetensors", "other/*.safetensors"), ("toy",),
    ),
    "evaluate": Case(
        f"{GENERATE} new {SAMPLE} --num_images_per_mask 2\n"
        f"generate --model model --masks big/train/masks --output more {SAMPLE}\n"
        "segmenter --dataset big --output judge --architecture segformer-mini --max_train_steps 20 "
        "--train_batch_size 4 --device cpu --input_size 64\n"
        "evaluate --generated new --dataset big --segmenter judge --features judge --output evaluation --device cpu\n"
        f"evaluate --model model --dataset big --segmenter judge --features none --output sampled --device cpu "
        "--num_inference_steps 2 --num_masks 4\n"
        "filter --generated more --dataset big --segmenter judge --output filtered --minimum_kept 0 --device cpu\n"
        "study --dataset big --generated more --filtered filtered --output study --architecture segformer-mini "
        "--max_train_steps 4 --train_batch_size 4 --seeds 0 1 --device cpu --jobs 1 --input_size native\n"
        "merge --dataset big --generated filtered --output merged",
        ("evaluation/results.json", "sampled/results.json", "filtered/**/*.png", "filtered/*.jsonl",
         "filtered/filter.json",
         "study/results.json", "merged/**/*.png", "merged/**/*.jsonl"),
        ("model",),
    ),  # fmt: skip
    "model": Case("toy --output big --resolution 64 --num_train 12 --num_val 6\n!model", ("big/**/*.png",)),
    "export": Case(
        "export --model ../train/run --output exported --masks ../toy/scenes/val/masks --num_masks 1 --samples 1",
        ("exported/unet/*.safetensors",), ("toy", "train"),
    ),
    "push": Case(
        "!copy ../train/run run\n!copy ../train-control/run control\n"
        "!push --model run --repo_id alice/run\n!push --model control --repo_id alice/control\n"
        "!push --model ../export/exported --repo_id alice/exported\n!push --dataset scenes --repo_id alice/scenes",
        ("pushed/**/*.safetensors", "pushed/**/*.json", "pushed/**/*.parquet"),
        ("toy", "train", "train-control", "export"),
    ),
    "loading": Case("!loading", ("*.png",), ("toy", "train", "train-control", "export", "model")),
}  # fmt: skip

# What runs in a process: commands of the console script, and steps that are no command.
PROCESS = r"""
import json, os, shlex, shutil, subprocess, sys
from pathlib import Path
lines, root, baseline = json.loads(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3])
if any(line.startswith("!push") for line in lines):  # before anything imports huggingface_hub
    sys.path.insert(0, str(root / "tests" / "helpers"))
    from hub_server import HubServer
    server = HubServer().__enter__()
    os.environ |= server.environment(Path("hub_home").resolve())
import torch
torch.use_deterministic_algorithms(True, warn_only=True)
from semseg_diffusers import cli

def base():
    from diffusers import DDPMScheduler, UNet2DModel
    torch.manual_seed(0)
    unet = UNet2DModel(sample_size=32, block_out_channels=(16, 32),
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"), layers_per_block=1, norm_num_groups=8, attention_head_dim=8)
    unet.save_pretrained("base/unet"); DDPMScheduler().save_pretrained("base/scheduler")

def model():
    shutil.copytree(baseline / "checkpoints" / "toy", "model")

def copy(source, target):
    shutil.copytree(source, target)

def push(*options):
    from semseg_diffusers import cli
    if cli.main(["push", *options]):
        sys.exit(f"push {options} failed")
    repo = options[-1]
    for path, blob in server.repos["dataset" if "--dataset" in options else "model", repo].files().items():
        file = Path("pushed", repo, path)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(blob.data)

def same(first, second):
    for path in Path(first, "unet").glob("*.safetensors"):
        if path.read_bytes() != Path(second, "unet", path.name).read_bytes():
            sys.exit(f"{path} is not that of {second}")

def loading():
    import semseg_diffusers
    from diffusers import DiffusionPipeline
    from semseg_diffusers import MaskGuidedDDPMPipeline, MaskGuidedImg2ImgPipeline, MaskGuidedInpaintPipeline
    mask = sorted(Path("../toy/scenes/val/masks").glob("*.png"))[0]
    def draw(name, pipe):
        image = pipe(str(mask), num_inference_steps=2, generator=torch.Generator().manual_seed(0)).images[0]
        image.save(f"{name}.png")
    for name, folder in (("run", "../train/run"), ("control", "../train-control/run"),
                         ("export", "../export/exported"),
                         ("toy", "../model/model")):
        draw(f"{name}-class", MaskGuidedDDPMPipeline.from_pretrained(folder))
        draw(f"{name}-diffusers", DiffusionPipeline.from_pretrained(folder))
        code = DiffusionPipeline.from_pretrained(folder, custom_pipeline=folder, trust_remote_code=True)
        assert type(code).__module__.startswith("diffusers_modules"), type(code)
        draw(f"{name}-code", code)
        MaskGuidedImg2ImgPipeline.from_pretrained(folder), MaskGuidedInpaintPipeline.from_pretrained(folder)

for line in lines:
    if line.startswith("!"):
        name, *words = shlex.split(line[1:])
        {each.__name__: each for each in (base, model, copy, push, same, loading)}[name](*words)
        continue
    if line.startswith("$"):
        program, *words = shlex.split(line[1:])
        program = sys.executable if program == "python" else str(Path(sys.executable).with_name(program))
        subprocess.run([program, *words], check=True)
        continue
    from accelerate.state import AcceleratorState
    AcceleratorState._reset_state(reset_partial_state=True)
    code = cli.main(shlex.split(line))
    if code:
        sys.exit(f"exit code {code}: {line}")
"""


def run(checkout: Path, case: Case, folder: Path, baseline: Path) -> None:
    """Run the commands of a case in a folder with one checkout."""
    environment = {
        **os.environ, "PYTHONPATH": str(checkout), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1",
        "HF_DATASETS_OFFLINE": "1", "HF_HOME": str(folder.parent / ".hf"), "TOKENIZERS_PARALLELISM": "false",
    }  # fmt: skip
    lines = [line for line in case.commands.splitlines() if str(DATA) not in line or DATA.is_dir()]
    arguments = [sys.executable, "-c", PROCESS, json.dumps(lines), str(ROOT), str(baseline)]
    done = subprocess.run(arguments, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{folder.name} with {checkout}:\n{done.stdout[-2000:]}\n{done.stderr[-3000:]}")


def steady(value):
    """Return a JSON value without what differs between two runs of the same code."""
    if isinstance(value, dict):
        named = {RENAMED.get(key, key): item for key, item in value.items() if key not in VOLATILE | ADDED}
        return {key: steady(item) for key, item in sorted(named.items())}
    return [steady(item) for item in value] if isinstance(value, list) else value


def digest(path: Path) -> str:
    """Return a hash of a file's content: tensors, pixels or JSON values, else bytes."""
    if path.suffix == ".safetensors":
        tensors = load_file(path)
        parts = [f"{name} {tensors[name].dtype}".encode() + tensors[name].tobytes() for name in sorted(tensors)]
        content = b"".join(parts)
    elif path.suffix in (".png", ".jpg"):
        with Image.open(path) as image:
            content = image.mode.encode() + np.asarray(image).tobytes() + bytes(image.getpalette() or b"")
    elif path.suffix == ".json":
        content = json.dumps(steady(json.loads(path.read_text()))).encode()
    elif path.suffix == ".jsonl":
        content = json.dumps([steady(json.loads(line)) for line in path.read_text().splitlines()]).encode()
    else:
        content = path.read_bytes()
    return hashlib.sha256(content).hexdigest()


def digests(folder: Path, patterns: Sequence[str]) -> dict[str, str]:
    """Return the hash of every file that the patterns name."""
    files = {path for pattern in patterns for path in folder.glob(pattern) if path.is_file()}
    return {str(path.relative_to(folder)): digest(path) for path in sorted(files)}


class Comparison:
    """Runs cases with both checkouts; folders of the baseline are kept in the cache."""

    def __init__(self, baseline: Path, cache: Path, work: Path):
        self.baseline, self.cache, self.work = baseline, cache, work

    def of_baseline(self, name: str) -> dict[str, str]:
        """Return the hashes of a case with the baseline, run in the cache unless that is done."""
        case = CASES[name]
        needed = [self.of_baseline(other) for other in case.needs]
        recipe = json.dumps([case.commands, case.compare, needed, PROCESS, sorted(VOLATILE)])
        record = self.cache / f"{name}-{hashlib.sha256(recipe.encode()).hexdigest()[:12]}.json"
        if not record.is_file():
            found = self.result(name, self.baseline, self.cache)
            record.write_text(json.dumps(found, indent=1))
        return json.loads(record.read_text())

    def of_candidate(self, name: str) -> dict[str, str]:
        """Return the hashes of a case with this checkout, beside copies of what the baseline made of its needs."""
        root = self.work / f"of-{name}"
        for other in CASES[name].needs:
            shutil.copytree(self.cache / other, root / other, symlinks=True)
        return self.result(name, ROOT, root)

    def result(self, name: str, checkout: Path, root: Path) -> dict[str, str]:
        """Run a case in `root/name`; returns its hashes."""
        folder, case = root / name, CASES[name]
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        for other in case.needs:
            for path in (root / other).iterdir():
                if path.name in ("scenes", "wide", "big", "model") and not (folder / path.name).exists():
                    (folder / path.name).symlink_to(Path("..") / other / path.name)
        run(checkout, case, folder, self.baseline)
        found = digests(folder, case.compare)
        if not found:
            raise RuntimeError(f"{name}: the commands wrote none of {', '.join(case.compare)}")
        return found

    def compare(self, name: str) -> dict[str, object]:
        """Compare one case; returns its record."""
        start = time.monotonic()
        try:
            old, new = self.of_baseline(name), self.of_candidate(name)
        except RuntimeError as err:
            return {"case": name, "equal": False, "why": str(err)}
        differing = sorted(file for file in {*old, *new} if old.get(file) != new.get(file))
        return {
            "case": name, "equal": not differing, "files": len(old), "differing": differing,
            "seconds": round(time.monotonic() - start, 1),
        }  # fmt: skip


@contextmanager
def baseline_checkout(given: Path | None) -> Iterator[Path]:
    """Give the checkout of the baseline: the given one, or a worktree that is removed afterwards."""
    if given is not None:
        yield given.resolve()
        return
    with tempfile.TemporaryDirectory() as parent:
        folder = Path(parent) / "baseline"
        subprocess.run(["git", "-C", ROOT, "worktree", "add", "--detach", folder, BASELINE], check=True)
        try:
            yield folder
        finally:
            subprocess.run(["git", "-C", ROOT, "worktree", "remove", "--force", folder], check=True)


SPEED = r"""
import sys, time
from pathlib import Path
import torch
from accelerate.state import AcceleratorState
what, data = sys.argv[1:]
if what == "training":
    from semseg_diffusers.training.loop import train
    from semseg_diffusers.training.settings import TrainingSettings
    import tempfile, json
    with tempfile.TemporaryDirectory() as run:
        settings = dict(dataset=data, output_dir=run, train_batch_size=8, max_train_steps=24, logging_steps=4,
                        preview_steps=0, dataloader_num_workers=0, device="cpu", checkpointing_steps=24)
        train(TrainingSettings(**settings))
        lines = [json.loads(line) for line in (Path(run) / "log.jsonl").read_text().splitlines()]
        print("SPEED", sorted(line["images_per_second"] for line in lines[1:])[len(lines[1:]) // 2])
else:
    from semseg_diffusers import MaskGuidedDDPMPipeline, MaskGuidedUNet2DModel
    from diffusers import DPMSolverMultistepScheduler
    torch.manual_seed(0)
    unet = MaskGuidedUNet2DModel(sample_size=128, num_classes=19, block_out_channels=(32, 64, 128, 192),
        down_block_types=("DownBlock2D",) * 2 + ("AttnDownBlock2D",) * 2, layers_per_block=1, norm_num_groups=16,
        up_block_types=("AttnUpBlock2D",) * 2 + ("UpBlock2D",) * 2, attention_head_dim=32, patch_size=2,
        stem_channels=16)
    pipe = MaskGuidedDDPMPipeline(unet, DPMSolverMultistepScheduler(algorithm_type="sde-dpmsolver++"))
    pipe.set_progress_bar_config(disable=True)
    mask = torch.zeros(128, 128, dtype=torch.uint8)
    times = []
    for _ in range(6):
        start = time.perf_counter(); pipe(mask, num_inference_steps=10); times.append(time.perf_counter() - start)
    print("SPEED", 1 / sorted(times)[len(times) // 2])
"""


def speed(baseline: Path, folder: Path, turns: int) -> dict[str, object]:
    """Time training (images/s) and sampling (images/s) of both checkouts in alternating turns."""
    environment = {**os.environ, "OMP_NUM_THREADS": "2", "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}
    data = folder / "data"
    toy = [sys.executable, "-m", "semseg_diffusers.cli", "toy", "--output", data, "--resolution", "128"]
    toy += ["--num_train", "64", "--num_val", "4"]
    subprocess.run(toy, env={**environment, "PYTHONPATH": str(ROOT)}, cwd=folder, check=True, capture_output=True)
    record: dict[str, object] = {}
    for what in ("training", "sampling"):
        found: dict[str, list[float]] = {"baseline": [], "candidate": []}
        for _ in range(turns):
            for name, checkout in (("baseline", baseline), ("candidate", ROOT)):
                arguments = [sys.executable, "-c", SPEED, what, str(data)]
                variables = {**environment, "PYTHONPATH": str(checkout)}
                text = subprocess.run(
                    arguments, env=variables, cwd=folder, capture_output=True, text=True, check=True
                ).stdout
                found[name].append(float(text.split("SPEED ")[1].split()[0]))
        ratio = statistics.median(found["candidate"]) / statistics.median(found["baseline"])
        record[what] = {**found, "ratio": round(ratio, 4)}
        print(f"{what}: {ratio:.3f} times the baseline's images per second, {turns} turns")
    return record


def main() -> int:
    """Compare, print a line for each case, write JSON; returns 1 where something differs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--baseline", type=Path, help=f"checkout to compare with (default: a worktree of {BASELINE})")
    parser.add_argument("--only", nargs="+", choices=list(CASES), default=list(CASES), metavar="CASE", help="cases")
    parser.add_argument("--cache", type=Path, help="folder that keeps the baseline's results (default: temporary)")
    parser.add_argument("--speed", action="store_true", help="compare speed instead")
    parser.add_argument("--turns", type=int, default=3, help="of --speed (default 3)")
    parser.add_argument("--output", type=Path, help="JSON file for the results")
    args = parser.parse_args()
    with baseline_checkout(args.baseline) as baseline, tempfile.TemporaryDirectory() as work:
        if args.speed:
            results: object = speed(baseline, Path(work), args.turns)
            failed = any(each["ratio"] < 0.98 for each in results.values())
        else:
            cache = (args.cache or Path(work) / "baseline").resolve()
            comparison = Comparison(baseline, cache, Path(work) / "candidate")
            results, failed = [], False
            for name in args.only:
                record = comparison.compare(name)
                results.append(record)
                failed |= not record["equal"]
                why = record.get("why") or ", ".join(record.get("differing", [])[:6])
                print(f"{name}: {'equal' if record['equal'] else f'DIFFERENT: {why}'}", flush=True)
    if args.output is not None:
        args.output.write_text(json.dumps(results, indent=2) + "\n")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
