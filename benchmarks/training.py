"""What training costs: the loop of the paper's authors against this package's, on the same pairs, in one run.

Four arms, each a process of its own, so that its peak memory is its own:

- authors: their network (90.8 M parameters) in float32, their kind of loader (JPEG, and an RGB mask compared colour by
  colour into one-hot floats; 8 processes, or as many as there are cores), AdamW, an average of the weights kept one
  weight at a time. Their code is not used: it is rewritten from what it does, without the framework around it.
- same_network: this package's `train` on that network with what makes it fast here: bfloat16 where the processor has
  it, channels-last, the fused optimizer, and on a GPU compilation. What is compared with the authors' loop.
- default: `train` with every setting at its default.
- default_fast: the same with what makes it fast; on the CPU without channels-last, which slows narrow maps down.

The arms take turns, and all others are stopped meanwhile, their readers too; in between, a large matrix product and a
wide convolution show what the processor can do at best just then. On a machine that does other work, the ratio by the
cores' time (of the training process, without its readers) says more than wall-clock time, and one thread
(OMP_NUM_THREADS=1) more than several. Prints a table for the CPU, and for the GPU where there is one, and writes JSON.
A step of the authors' loop takes about 20 seconds on two cores: the defaults take 3 to 6 minutes there.
"""

import argparse
import json
import os
import platform
import resource
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from preparation import authors_item
from torch.utils.data import DataLoader, Dataset
from torch.utils.flop_counter import FlopCounterMode

from semseg_diffusers import LabelSet, PaperUNet2DModel
from semseg_diffusers.data.labels import PAPER
from semseg_diffusers.data.prepare import prepare_dataset
from semseg_diffusers.data.settings import PrepareSettings
from semseg_diffusers.models.published.unet_paper import paper_betas
from semseg_diffusers.toy.scenes import draw_scene
from semseg_diffusers.training.loop import train
from semseg_diffusers.training.monitor import DataTimer
from semseg_diffusers.training.networks import build_network
from semseg_diffusers.training.settings import TrainingSettings
from semseg_diffusers.utils.files import code_commit, versions, write_json
from semseg_diffusers.utils.settings import build_settings


SIZE = 128
ARMS = ("authors", "same_network", "default", "default_fast")
ENDLESS = {"max_train_steps": 10**6, "checkpointing_steps": 10**6, "preview_steps": 0}
WORTHWHILE = 1.2  # how much faster bfloat16 must be


# The arms, each in its process ------------------------------------------------------------------------------------


class Turns(DataTimer):
    """Batches that come only when it is this process's turn: one line "seconds" on stdin, one line of JSON back."""

    def __iter__(self) -> Iterator:
        batches = super().__iter__()
        print("ready", flush=True)
        for line in sys.stdin:
            start, busy, images, steps, first = time.perf_counter(), time.process_time(), 0, 0, self._seconds
            while True:
                batch = next(batches)
                images, steps = images + len(batch["image"]), steps + 1
                yield batch  # comes back when the step is done
                if time.perf_counter() - start >= float(line):
                    break
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
            if torch.cuda.is_initialized():
                torch.cuda.synchronize()
                peak = torch.cuda.max_memory_allocated()
            seconds = time.perf_counter() - start
            result = {"images": images, "steps": steps, "seconds": seconds, "peak_bytes": peak}
            result["core_seconds"] = time.process_time() - busy
            print("turn " + json.dumps({**result, "waited": self._seconds - first}), flush=True)


class AuthorsPairs(Dataset):
    """Photos and one-hot masks, read from their files each time."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.stems = sorted(path.stem for path in (folder / "images").iterdir())

    def __len__(self) -> int:
        return len(self.stems)

    def __getitem__(self, index: int) -> dict:
        image, one_hot = authors_item(self.folder, self.stems[index])
        return {"image": image, "mask": one_hot}


def run_authors(work: Path, device: str, batch_size: int) -> None:
    """The authors' loop, epoch after epoch (PAPER, section III-C, and its published code)."""
    torch.manual_seed(0)
    unet = PaperUNet2DModel(num_classes=len(PAPER)).to(device)
    average = PaperUNet2DModel(num_classes=len(PAPER)).to(device).requires_grad_(False)
    average.load_state_dict(unet.state_dict())
    optimizer = torch.optim.AdamW(unet.parameters(), lr=3e-4)
    alphas = torch.cumprod(1 - torch.tensor(paper_betas(), device=device), dim=0)
    loader = DataLoader(
        AuthorsPairs(work / "source"),
        batch_size=batch_size,
        shuffle=True,
        drop_last=True,
        num_workers=authors_workers(),
        persistent_workers=True,
        pin_memory=device == "cuda",
    )

    def epochs() -> Iterator[dict]:
        while True:
            yield from loader

    for batch in Turns(epochs()):
        image, one_hot = batch["image"].to(device), batch["mask"].to(device)
        timestep = torch.randint(1, 1000, (len(image),), device=device)
        noise = torch.randn_like(image)
        signal_share = alphas[timestep].sqrt().view(-1, 1, 1, 1)
        noise_share = (1 - alphas[timestep]).sqrt().view(-1, 1, 1, 1)
        mask = None if np.random.rand() < 0.1 else one_hot
        prediction = unet(signal_share * image + noise_share * noise, timestep, mask=mask).sample
        loss = F.mse_loss(noise, prediction)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        for kept, weight in zip(average.parameters(), unet.parameters(), strict=True):
            kept.data = kept.data * 0.995 + weight.data * 0.005


def authors_workers() -> int:
    return min(8, os.cpu_count() or 1)


def arm_settings(arm: str, work: Path, device: str, batch_size: int, precision: str) -> TrainingSettings:
    """The settings of one of our arms."""
    # on the CPU channels-last helps wide convolutions and hinders narrow ones
    fast = {"mixed_precision": precision, "fused_optimizer": True}
    fast |= {"channels_last": device == "cuda" or arm == "same_network"}
    if device == "cuda":
        fast |= {"torch_compile": "inductor", "allow_tf32": torch.cuda.get_device_capability() >= (8, 0)}
        fast |= {"dataloader_num_workers": authors_workers()}
    changes = {
        "same_network": {**TrainingSettings.PRESETS["paper"], "train_batch_size": batch_size, **fast},
        "default": {"mixed_precision": "no"},
        "default_fast": fast,
    }[arm]
    output = str(work / f"{arm}-{device}")
    place = {"dataset": str(work / "prepared"), "output_dir": output, "device": "cpu" if device == "cpu" else None}
    return build_settings(TrainingSettings, (f"arm {arm}", {**place, **changes, **ENDLESS}))


def run_arm(args: argparse.Namespace) -> None:
    """Be one of the arms."""
    if args.arm == "authors":
        run_authors(args.work, args.device, args.batch)
    else:
        # our loop as it is; only its batches wait for their turn
        with mock.patch("semseg_diffusers.training.run.DataTimer", Turns):
            train(arm_settings(args.arm, args.work, args.device, args.batch, args.precision))


# Turns ------------------------------------------------------------------------------------------------------------


class Arm:
    """A process that trains in its turns, and is stopped between them with all that it started."""

    def __init__(self, name: str, work: Path, device: str, batch: int, precision: str):
        self.name = name
        self.turns: list[dict] = []
        options = ["--arm", name, "--work", work, "--device", device, "--batch", batch, "--precision", precision]
        self.errors = work / f"{name}-{device}.txt"
        with self.errors.open("w") as errors:
            self.process = subprocess.Popen(
                [sys.executable, __file__, *map(str, options)],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True, start_new_session=True,
            )  # fmt: skip
        self._wait_for("ready")
        self._signal(signal.SIGSTOP)

    def take_turn(self, seconds: float, count: bool) -> None:
        """Train for some seconds, one step at least."""
        self._signal(signal.SIGCONT)
        self.process.stdin.write(f"{seconds}\n")
        self.process.stdin.flush()
        result = json.loads(self._wait_for("turn").removeprefix("turn "))
        self._signal(signal.SIGSTOP)
        if count:
            self.turns.append(result)

    def end(self) -> None:
        self._signal(signal.SIGKILL)
        self.process.communicate()

    def _signal(self, number: int) -> None:
        os.killpg(self.process.pid, number)

    def _wait_for(self, word: str) -> str:
        for line in self.process.stdout:
            if line.startswith(word):
                return line
        raise RuntimeError(f"arm {self.name} ended:\n{self.errors.read_text()[-2000:]}")


def ceilings(device: str, dtype: torch.dtype) -> dict[str, float]:
    """GFLOP/s of a large matrix product and of a wide convolution: of a core on the CPU, by its own time.

    Different libraries are behind them, and the one for products may not use all that a processor has.
    """
    size, clock = (1024, time.process_time) if device == "cpu" else (8192, time.perf_counter)
    first, second = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    maps = torch.randn(4, 512, 32, 32, device=device).to(dtype, memory_format=torch.channels_last)
    kernel = torch.randn(512, 512, 3, 3, device=device).to(dtype, memory_format=torch.channels_last)
    ways = {
        "matrix_product": (lambda: torch.mm(first, second), 2 * size**3),
        "convolution": (lambda: F.conv2d(maps, kernel, padding=1), 2 * maps.numel() * 512 * 9),
    }
    best = dict.fromkeys(ways, 0.0)
    for name, (compute, operations) in ways.items():
        for _ in range(4):  # the first one is slow
            start = clock()
            compute()
            if device == "cuda":
                torch.cuda.synchronize()
            best[name] = max(best[name], operations / (clock() - start) / 1e9)
    return best


def gflop_of_a_step(arm: str, size: int) -> float:
    """GFLOP of an image, forward and backward, 2 a multiply-add; counted without computing."""
    labels = LabelSet.from_preset("paper")
    settings = TrainingSettings(dataset="none", output_dir="none")  # neither is opened: only the network is built
    with torch.device("meta"):
        if arm in ("authors", "same_network"):
            unet = PaperUNet2DModel(num_classes=labels.num_classes)
        else:
            unet = build_network(settings, labels, (size, size))
        image, mask = torch.empty(1, 3, size, size), torch.empty(1, size, size, dtype=torch.long)
        with FlopCounterMode(display=False) as counter:
            unet(image, torch.zeros(1), mask=mask).sample.sum().backward()
    return counter.get_total_flops() / 1e9


def compare(work: Path, device: str, batch: int, turns: int, seconds: float, size: int) -> dict:
    """Images/s, memory and arithmetic of each arm on one device."""
    dtypes = {"float32": torch.float32, "bfloat16": torch.bfloat16}
    measured = {name: [ceilings(device, dtype)] for name, dtype in dtypes.items()}
    faster = max(measured["bfloat16"][0].values()) > WORTHWHILE * max(measured["float32"][0].values())
    precision = "bf16" if faster else "no"
    used = ("float32", "bfloat16") if faster else ("float32",)  # what a processor emulates takes minutes to measure
    arms: list[Arm] = []
    try:
        for name in ARMS:
            arms.append(Arm(name, work, device, batch, precision))
            arms[-1].take_turn(seconds, count=False)
        for _ in range(turns):
            for arm in arms:
                arm.take_turn(seconds, count=True)
            for name in used:
                measured[name].append(ceilings(device, dtypes[name]))
    finally:
        for arm in arms:
            arm.end()
    ceiling = {
        name: {way: max(each[way] for each in values) for way in values[0]} for name, values in measured.items()
    }
    rows = {}
    for arm in arms:
        rates = [turn["images"] / turn["seconds"] for turn in arm.turns]
        is_fast = arm.name in ("same_network", "default_fast")
        dtype = "bfloat16" if is_fast and faster else "float32"
        gflop = gflop_of_a_step(arm.name, size)
        per_core = statistics.median(turn["images"] / turn["core_seconds"] for turn in arm.turns)
        speed = gflop * (per_core if device == "cpu" else statistics.median(rates))
        rows[arm.name] = {
            "images_per_second": statistics.median(rates),
            "each_turn": rates,
            "images_per_core_second": per_core,
            "peak_gigabytes": max(turn["peak_bytes"] for turn in arm.turns) / 1e9,
            "data_wait_share": sum(turn["waited"] for turn in arm.turns) / sum(turn["seconds"] for turn in arm.turns),
            "gflop_an_image": gflop,
            "gflop_per_second": speed,  # of a core on the CPU
            "precision": dtype,
            "share_of_ceiling": speed / max(ceiling[dtype].values()),
            "batch": batch if arm.name in ("authors", "same_network") else TrainingSettings.train_batch_size,
        }
    for row in rows.values():
        each = [ours / theirs for ours, theirs in zip(row["each_turn"], rows["authors"]["each_turn"], strict=True)]
        row |= {"ratio": statistics.median(each), "ratio_each_turn": each}
        per_core = rows["authors"]["images_per_core_second"]
        row["ratio_of_core_seconds"] = row["images_per_core_second"] / per_core
    return {"device": device_name(device), "arms": rows, "ceiling_gflop_per_second": ceiling}


def device_name(device: str) -> str:
    if device == "cuda":
        return torch.cuda.get_device_name()
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    model = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.machine())
    return f"{model}, {torch.get_num_threads()} threads, {torch.backends.cpu.get_cpu_capability()}"


# Entry ------------------------------------------------------------------------------------------------------------


def write_pairs(work: Path, count: int, size: int) -> None:
    """The same scenes in the authors' format, and prepared by this package from that."""
    source = work / "source"
    colors = np.array(list(PAPER.values()), dtype=np.uint8)
    for part in ("images", "masks"):
        (source / part).mkdir(parents=True)
    (source / "semsegs").symlink_to("masks")
    for seed in range(count):
        photo, ids, *_ = draw_scene(seed=seed, size=(size, size))
        photo.save(source / "images" / f"scene{seed:04}.jpg", quality=90)
        picture = colors[np.where(ids < len(PAPER), ids, 0)]
        Image.fromarray(picture).save(source / "masks" / f"scene{seed:04}.png")
    (source / "colormap.json").write_text(json.dumps({name: list(color) for name, color in PAPER.items()}))
    place = {"source": str(source), "output": str(work / "prepared")}
    prepare_dataset(PrepareSettings(**place, format="paper", resolution=(size, size)))


def fitting_batch(device: str) -> int:
    """The paper's 50 where it fits: the network takes about 1.5 GB an image in float32. 4 on the CPU, for the time."""
    return 4 if device == "cpu" else min(50, int(torch.cuda.get_device_properties(0).total_memory / 2e9))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--turns", type=int, default=3, help="of each arm, after one that is not counted (default 3)")
    parser.add_argument("--seconds", type=float, help="of a turn, at the least (default: 1 on CPU, 20 on GPU)")
    parser.add_argument("--batch", type=int, help="of the paper's network (default: 4 on CPU, 50 or what fits on GPU)")
    parser.add_argument("--pairs", type=int, default=64, help="scenes that are drawn (default 64)")
    parser.add_argument("--size", type=int, default=SIZE, help=f"side of the images in pixels (default {SIZE})")
    parser.add_argument("--device", choices=("cpu", "cuda"), help="only this one")
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/training.json"))
    parser.add_argument("--arm", choices=ARMS, help=argparse.SUPPRESS)
    parser.add_argument("--work", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--precision", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.arm:
        run_arm(args)
        return
    devices = [args.device] if args.device else ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
    load = os.getloadavg()[0]
    work = Path(tempfile.mkdtemp(prefix="training-"))
    try:
        write_pairs(work, args.pairs, args.size)
        results = {}
        for device in devices:
            batch = args.batch or fitting_batch(device)
            seconds = args.seconds if args.seconds is not None else (1.0 if device == "cpu" else 20.0)
            results[device] = compare(work, device, batch, args.turns, seconds, args.size)
            print_table(results[device])
    finally:
        shutil.rmtree(work)
    record = {
        **results,
        "settings": {"turns": args.turns, "seconds": args.seconds, "pairs": args.pairs, "size": [args.size] * 2},
        "authors_workers": authors_workers(),
        "machine": {"cores": os.cpu_count(), "platform": platform.platform(), "load_before": load},
        "versions": versions("torch", "diffusers", "accelerate"),
        "commit": code_commit(),
    }
    args.output.parent.mkdir(parents=True, exist_ok=True)
    write_json(args.output, record)
    print(f"written: {args.output}")


def print_table(result: dict) -> None:
    print(f"\n{result['device']}. GFLOP/s{' of one core' if 'threads' in result['device'] else ''}, at best:", end="")
    for dtype, ways in result["ceiling_gflop_per_second"].items():
        print(
            f" {dtype} {ways['matrix_product']:,.0f} in products, {ways['convolution']:,.0f} in convolutions;", end=""
        )
    print()
    columns = ("arm", "images/s", "times the authors'", "by cores' time", "peak GB", "waits for data")
    columns += ("GFLOP an image", "GFLOP/s", "of ceiling")
    print(f"| {' | '.join(columns)} |")
    print("|---" * len(columns) + "|")
    for name, row in result["arms"].items():
        each = row["ratio_each_turn"]
        cells = (
            f"{name} (batch {row['batch']}, {row['precision']})",
            f"{row['images_per_second']:.3g}",
            f"{row['ratio']:.1f} ({min(each):.1f} to {max(each):.1f})",
            f"{row['ratio_of_core_seconds']:.1f}",
            f"{row['peak_gigabytes']:.1f}",
            f"{row['data_wait_share']:.0%}",
            f"{row['gflop_an_image']:.0f}",
            f"{row['gflop_per_second']:,.0f}",
            f"{row['share_of_ceiling']:.0%}",
        )
        print(f"| {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
