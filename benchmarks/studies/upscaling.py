"""An upscaler against bicubic interpolation, from reduced photos and generated images, at the size of its results.

Every arm enlarges the same small images of a split: its photos, reduced as `prepare` does, and images that a model
generated from the reduced masks. Agreement of thin classes is that of a segmentation network trained on large photos,
distances are in features of an ImageNet network that reads the large images. Differences to bicubic have the 95 %
interval of resampled masks; frames of one drive are no independent scenes, so the intervals are of these masks. With
`--direct`, a network that generates the large size from masks alone is compared, too. Finished work is kept: the
same command resumes. Prints the tables of docs/how_to/upscaling.md, writes `upscaling.json` and pictures.

    python benchmarks/studies/upscaling.py --model checkpoints/camvid128 --upscaler turbo=checkpoints/camvid-upscaler
        --dataset data/camvid512 --segmenter runs/segmenter512 --small_segmenter runs/segmenter --output upscaling

`--costs` measures seconds, memory and tiles instead, each arm in a process of its own.
"""

import argparse
import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from few_steps import SHEET_SEED, named_folder, one_thread, write_jpeg
from few_steps_figures import kernel_distances
from PIL import Image
from sampling import Read, Reader, agreement, confusion_counts, detail, difference, interval, interval_text, resampled
from torch.utils.flop_counter import FlopCounterMode

from semseg_diffusers import MaskGuidedUpscalePipeline, consistency_psnr
from semseg_diffusers.data.dataset import PairDataset, load_pairs
from semseg_diffusers.data.dataset_format import evenly_spaced
from semseg_diffusers.evaluation.fidelity import fid
from semseg_diffusers.evaluation.inputs import ImageSet, cached_inference, real_images
from semseg_diffusers.evaluation.segmentation.judge import load_judge
from semseg_diffusers.generation.model import load_model
from semseg_diffusers.pipelines.mask_inputs import resize_ids
from semseg_diffusers.pipelines.upscaling import enlarge
from semseg_diffusers.utils.files import code_commit, versions, write_json, written_beside
from semseg_diffusers.utils.images import image_grid


SOURCES = {"photos": "reduced photos", "generated": "generated images"}
BICUBIC, NO_MASK, AS_IT_IS, DIRECT = "bicubic", "without the mask", "not projected", "generated at this size"
THIN = ("pole", "traffic sign", "person")
SHEET_MASKS = 8


@dataclass(frozen=True)
class Arm:
    """One way to large images."""

    what: str  # its name in the tables
    folder: str | None = None  # of an upscaler, or of the model that generates the large size
    options: tuple[tuple[str, Any], ...] = ()  # of the pipeline
    has_mask: bool = True
    is_direct: bool = False


def build_arms(args: argparse.Namespace) -> dict[str, Arm]:
    """Return all arms by name, in the order in which they are sampled."""
    arms = {BICUBIC: Arm(BICUBIC)}
    for name, folder in args.upscaler:
        arms[name] = Arm(name, folder)
        if args.plain:
            continue
        arms[f"{name}-as-it-is"] = Arm(f"{name}, {AS_IT_IS}", folder, (("project", False),))
        arms[f"{name}-no-mask"] = Arm(f"{name}, {NO_MASK}", folder, has_mask=False)
        for level in args.noise_levels:
            arms[f"{name}-noise-{level}"] = Arm(f"{name}, noise level {level}", folder, (("noise_level", level),))
    for name, folder in args.direct:
        arms[name] = Arm(f"{name}, {DIRECT}", folder, is_direct=True)
    return arms


class Sampling:
    """Samples the arms of a split, one PNG an image."""

    def __init__(self, args: argparse.Namespace, pairs: PairDataset):
        self.args, self.pairs, self.arms = args, pairs, build_arms(args)
        real = real_images(pairs)
        stems = evenly_spaced(real.stems, args.num_masks)
        self.real = real.subset([real.stems.index(stem) for stem in stems])
        self.small_size = tuple(side // args.factor for side in pairs.resolution)
        self.pipelines: dict[str, Any] = {}

    def write_small(self) -> None:
        """Write the small images of both sources."""
        width, height = reversed(self.small_size)
        for index, name in enumerate(self.real.names):
            if (file := self.file("photos", "small", name)) is not None:
                photo = Image.fromarray(self.real.image(index).permute(1, 2, 0).numpy())
                save(photo.resize((width, height), Image.Resampling.LANCZOS), file)
            if (file := self.file("generated", "small", name)) is not None:
                ids = resize_ids(self.real.mask(index).numpy(), height, width)
                save(self.pipeline(self.args.model)(ids, generator=self.generator(index)).images[0], file)

    def sample(self, arm_name: str, source: str) -> None:
        """Sample what is missing of an arm."""
        arm = self.arms[arm_name]
        for index, name in enumerate(self.real.names):
            file = self.file(source, arm_name, name)
            if file is None:
                continue
            small = Image.open(self.folder(source, "small") / f"{name}.png")
            mask = self.real.mask(index)[None] if arm.has_mask else None
            if arm.folder is None:
                save(bicubic(small, self.pairs.resolution), file)
                continue
            given = {"generator": self.generator(index), **dict(arm.options)}
            if self.args.steps is not None:
                given["num_inference_steps"] = self.args.steps
            pipe = self.pipeline(arm.folder)
            if arm.is_direct:  # trained on crops, whose size it would generate
                height, width = self.pairs.resolution
                save(pipe(mask, height=height, width=width, **given).images[0], file)
            else:
                save(pipe(small, mask, **given).images[0], file)

    def generator(self, index: int) -> torch.Generator:
        return torch.Generator().manual_seed(self.args.seed + index)

    def pipeline(self, folder: str) -> Any:
        if folder not in self.pipelines:
            is_upscaler = any(arm.folder == folder and not arm.is_direct for arm in self.arms.values())
            pipe = MaskGuidedUpscalePipeline.from_pretrained(folder) if is_upscaler else load_model(folder)
            pipe.to(torch.float32).set_progress_bar_config(disable=True)
            self.pipelines[folder] = pipe
        return self.pipelines[folder]

    def folder(self, source: str, arm: str) -> Path:
        return self.args.output / source / arm

    def file(self, source: str, arm: str, name: str) -> Path | None:
        """Return the file of an image that is still to be sampled; None if it is there."""
        file = self.folder(source, arm) / f"{name}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        return None if file.is_file() else file

    def images(self, source: str, arm: str) -> ImageSet:
        """Return the images of an arm with the large masks."""
        files = [self.folder(source, arm) / f"{name}.png" for name in self.real.names]
        return replace(self.real, image=lambda index: read_pixels(files[index]))

    def sources_of(self, arm: Arm) -> list[str]:
        return ["generated"] if arm.is_direct else list(SOURCES)


def save(image: Image.Image, file: Path) -> None:
    with written_beside(file) as temporary:
        image.save(temporary, "png")


def read_pixels(file: Path) -> torch.Tensor:
    """Return uint8 pixels (3, H, W) of a file."""
    return torch.from_numpy(np.array(Image.open(file).convert("RGB"))).permute(2, 0, 1)


def bicubic(small: Image.Image, size: tuple[int, int]) -> Image.Image:
    """Enlarge as the upscaler sees an image enlarged."""
    pixels = torch.from_numpy(np.array(small)).permute(2, 0, 1)[None] / 255
    large = enlarge(pixels, *size).clamp(0, 1)[0].permute(1, 2, 0)
    return Image.fromarray((large * 255).round().to(torch.uint8).numpy())


# Figures -------------------------------------------------------------------------------------------------------------


class Figures:
    """Computes the figures of arms; networks need not read again what they have read."""

    def __init__(self, args: argparse.Namespace, sampling: Sampling):
        self.args, self.sampling, self.names = args, sampling, sampling.pairs.labels.names
        self.reader = Reader(args, sampling.pairs, sampling.pairs.resolution)
        every = torch.ones(1, len(sampling.real), dtype=torch.float64)
        self.weights = torch.cat([every, resampled(len(sampling.real), args.seed)])  # all masks once, then resampled
        self.photos = self.reader.read(sampling.real)

    def distances(self, read: Read) -> torch.Tensor:
        """Return the kernel distance to the photos for each weighting of the masks."""
        return kernel_distances(read.features[:, None], self.photos.features, self.weights)

    def of(self, source: str, arm: str, bicubic_read: Read | None) -> tuple[Read, dict[str, Any]]:
        """Return all figures of an arm."""
        sampling = self.sampling
        read = self.reader.read(sampling.images(source, arm))
        values = agreement(read.matrices, self.names)
        distances = self.distances(read)
        values["kernel_distance"] = distances[0].item()
        values["frechet_distance"] = fid(self.photos.features, read.features)
        values["detail"] = (detail(read.images).mean() / detail(self.photos.images).mean()).item()
        small = [sampling.folder(source, "small") / f"{name}.png" for name in sampling.real.names]
        large = [sampling.folder(source, arm) / f"{name}.png" for name in sampling.real.names]
        if not sampling.arms[arm].is_direct:
            values["consistency_psnr"] = float(np.mean(consistency_psnr(large, small)))
        if source == "photos":
            errors = (read.images.double() - self.photos.images.double()).square().mean((1, 2, 3)) / 255**2
            values["psnr"] = (-10 * errors.log10()).mean().item()
        if bicubic_read is not None:
            values["against_bicubic"] = difference(read, bicubic_read, self.args.seed)
            gap = distances - self.distances(bicubic_read)
            values["against_bicubic"]["kernel_distance"] = interval(gap[0], gap[1:])
        return read, values

    def of_small(self, source: str) -> dict[str, Any]:
        """Return the agreement of the small images, by the network trained on small photos."""
        sampling = self.sampling
        judge = load_judge(self.args.small_segmenter, sampling.pairs.labels)
        height, width = sampling.small_size
        masks = [resize_ids(sampling.real.mask(index).numpy(), height, width) for index in range(len(sampling.real))]
        images = replace(
            sampling.images(source, "small"), mask=lambda index: torch.from_numpy(masks[index].astype(np.uint8))
        )
        identity = judge.identity(sampling.small_size)
        found = cached_inference(judge.read, images, identity=identity, folder=self.reader.cache)
        return agreement(confusion_counts(images, found), self.names)


def collect(args: argparse.Namespace, sampling: Sampling) -> dict[str, Any]:
    """Return the figures of all arms."""
    figures = Figures(args, sampling)
    found: dict[str, Any] = {}
    for source in SOURCES:
        found[source] = {}
        bicubic_read = None
        for name, arm in sampling.arms.items():
            if source in sampling.sources_of(arm):
                read, found[source][name] = figures.of(source, name, bicubic_read)
                bicubic_read = read if name == BICUBIC else bicubic_read
    photos = agreement(figures.photos.matrices, figures.names)
    return {
        "command": " ".join(["python", *sys.argv]),
        "commit": code_commit(),
        "versions": versions(),
        "masks": len(sampling.real),
        "size": list(sampling.pairs.resolution),
        "features": figures.reader.extractor.describe(),
        "photos": photos,
        "small": {source: figures.of_small(source) for source in SOURCES},
        "arms": {name: arm.what for name, arm in sampling.arms.items()},
        "results": found,
    }


def tables(record: dict[str, Any]) -> str:
    """Return the tables as Markdown."""
    heads = ["", "mean IoU", *THIN, "kernel distance", "Fréchet distance", "detail", "consistency, dB", "PSNR, dB"]
    parts = []
    for source, title in SOURCES.items():
        rows = [["photos", *agreement_cells(record["photos"]), "", "", "1.00", "", ""]]
        rows += [["the small ones", *agreement_cells(record["small"][source]), "", "", "", "", ""]]
        for name, values in record["results"][source].items():
            rows.append(
                [
                    record["arms"][name],
                    *agreement_cells(values),
                    f"{values['kernel_distance']:.2f}",
                    f"{values['frechet_distance']:.1f}",
                    f"{values['detail']:.2f}",
                    f"{values['consistency_psnr']:.1f}" if "consistency_psnr" in values else "",
                    f"{values['psnr']:.2f}" if "psnr" in values else "",
                ]
            )
        parts.append(f"From {title}:\n\n{table(heads, rows)}")
        rows = [
            [
                record["arms"][name],
                interval_text(values["against_bicubic"]["mean_iou"]),
                interval_text(values["against_bicubic"]["kernel_distance"], ".2f"),
            ]
            for name, values in record["results"][source].items()
            if "against_bicubic" in values
        ]
        parts.append(table(["less bicubic", "mean IoU", "kernel distance"], rows))
    return "\n\n".join(parts)


def agreement_cells(values: dict[str, Any]) -> list[str]:
    return [f"{values['mean_iou']:.3f}", *(f"{values['iou'].get(name, float('nan')):.3f}" for name in THIN)]


def table(heads: list[str], rows: list[list[str]]) -> str:
    lines = (heads, ["---", *["---:"] * (len(heads) - 1)], *rows)
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def write_sheets(sampling: Sampling, folder: Path, arm: str) -> None:
    """Write masks that a seed chose, two a picture at full size, with generated images; and two photos."""
    random = torch.Generator().manual_seed(SHEET_SEED)
    chosen = torch.randperm(len(sampling.real), generator=random)[:SHEET_MASKS].sort().values.tolist()
    generated, photos = [], []
    for place in chosen:
        enlarged = {
            source: [sampling.images(source, each).image(place) for each in (BICUBIC, arm)] for source in SOURCES
        }
        generated.append([sampling.pairs.labels.decode(sampling.real.mask(place).numpy()), *enlarged["generated"]])
        photos.append([*enlarged["photos"], sampling.real.image(place)])
    headers = ["mask", "generated, bicubic", "generated, upscaled"]
    for number in range(len(chosen) // 2):
        write_jpeg(image_grid(generated[2 * number : 2 * number + 2], headers), folder / f"upscaling_{number + 1}.jpg")
    headers = ["photo reduced, bicubic", "photo reduced, upscaled", "photo"]
    write_jpeg(image_grid(photos[:: len(chosen) // 2], headers), folder / "upscaling_photos.jpg")


# Costs ---------------------------------------------------------------------------------------------------------------


def measure(given: SimpleNamespace) -> dict[str, float]:
    """Return seconds, operations and memory of an image, in this process."""
    pipe = MaskGuidedUpscalePipeline.from_pretrained(given.folder).to(torch.float32)
    pipe.set_progress_bar_config(disable=True)
    factor = pipe.unet.config.upscale_factor
    small = np.random.default_rng(0).integers(0, 256, (given.height // factor, given.width // factor, 3), np.uint8)
    mask = torch.zeros(given.batch, given.height, given.width, dtype=torch.long)
    options = {} if given.tile is None else {"tile_size": given.tile}
    pipe(small[:32, :32], mask[:1, : 32 * factor, : 32 * factor])  # what the first call allocates for good
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    seconds = []
    with FlopCounterMode(display=False) as counter:
        pipe([small] * given.batch, mask, **options)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with one_thread():
        for _ in range(given.turns):
            start = time.process_time()
            pipe([small] * given.batch, mask, **options)
            seconds.append((time.process_time() - start) / given.batch)
    return {
        "cpu_seconds": min(seconds),
        "gflop": counter.get_total_flops() / given.batch / 1e9,
        "memory_mb": (peak - before) / 1024,
    }


def tile_difference(folder: str, sampling: Sampling, tile: int) -> dict[str, float]:
    """Return how an image of tiles differs from the whole, in shares of the range of pixels: mean and largest."""
    pipe = sampling.pipeline(folder)
    means, largest = [], []
    for index in range(len(sampling.real)):
        small = Image.open(sampling.folder("photos", "small") / f"{sampling.real.names[index]}.png")
        both = [
            pipe(small, sampling.real.mask(index)[None], generator=sampling.generator(index), output_type="pt", **each)
            for each in ({}, {"tile_size": tile})
        ]
        gap = (both[0].images - both[1].images).abs()
        means.append(gap.mean().item())
        largest.append(gap.max().item())
    return {"mean": float(np.mean(means)), "largest": max(largest)}


def costs(args: argparse.Namespace, sampling: Sampling) -> dict[str, Any]:
    """Return what an image costs: whole and in tiles, batches, and a wide frame."""
    height, width = sampling.pairs.resolution
    cases = {
        f"{height} x {width}": {"height": height, "width": width},
        f"{height} x {width}, batches of 4": {"height": height, "width": width, "batch": 4},
        f"{height} x {width}, tiles of 256": {"height": height, "width": width, "tile": 256},
        "384 x 1248": {"height": 384, "width": 1248},
        "384 x 1248, tiles of 256": {"height": 384, "width": 1248, "tile": 256},
    }
    found: dict[str, Any] = {}
    for name, folder in args.upscaler:
        found[name] = {"cases": {}, "tiles": {}}
        for case, values in cases.items():
            given = {"folder": folder, "batch": 1, "tile": None, "turns": args.turns, **values}
            words = [sys.executable, __file__, "--measure", json.dumps(given)]
            finished = subprocess.run(words, capture_output=True, text=True, check=True)
            found[name]["cases"][case] = json.loads(finished.stdout.splitlines()[-1])
        for tile in (128, 256):
            found[name]["tiles"][tile] = tile_difference(folder, sampling, tile)
    return {"command": " ".join(["python", *sys.argv]), "commit": code_commit(), "versions": versions(), **found}


def costs_tables(args: argparse.Namespace, record: dict[str, Any]) -> str:
    rows, tiles = [], []
    for name, _ in args.upscaler:
        for case, values in record[name]["cases"].items():
            memory = f"{values['memory_mb']:,.0f}"
            rows.append([f"{name}, {case}", f"{values['cpu_seconds']:.2f}", f"{values['gflop']:,.0f}", memory])
        for tile, values in record[name]["tiles"].items():
            tiles.append([f"{name}, tiles of {tile}", f"{values['mean']:.4f}", f"{values['largest']:.3f}"])
    parts = [table(["an image", "CPU seconds", "GFLOP", "memory, MB"], rows)]
    parts.append(table(["difference to the whole frame, of the range of pixels", "mean", "largest"], tiles))
    return "\n\n".join(parts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="the model that generates the small images, by what it recommends")
    parser.add_argument("--upscaler", type=named_folder, action="append", default=[], metavar="NAME=DIR")
    parser.add_argument("--direct", type=named_folder, action="append", default=[], metavar="NAME=DIR")
    parser.add_argument("--dataset", help="prepared folder of the large size with the split val")
    parser.add_argument("--segmenter", help="the judge: trained on the large photos")
    parser.add_argument("--small_segmenter", help="the judge of the small images")
    parser.add_argument("--features", default="efficientnet-lite2", help="as of `evaluate` (efficientnet-lite2)")
    parser.add_argument("--output", type=Path, help="folder to make, or to continue")
    parser.add_argument("--plain", action="store_true", help="each upscaler as it is used by default, and no more")
    parser.add_argument("--steps", type=int, help="of upscalers and --direct (default: what they recommend)")
    parser.add_argument("--noise_levels", type=int, nargs="*", default=[], help="more noise levels to try")
    parser.add_argument("--factor", type=int, default=4, help="of the upscalers (4)")
    parser.add_argument("--split", default="val", help="default val")
    parser.add_argument("--num_masks", type=int, help="of the split, at even distances (default: all)")
    parser.add_argument("--turns", type=int, default=3, help="of timing; the fastest counts (3)")
    parser.add_argument("--costs", action="store_true", help="measure costs, with --num_masks images in tiles")
    parser.add_argument("--measure", help=argparse.SUPPRESS)  # a case of --costs, as JSON
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    if args.measure is not None:
        print(json.dumps(measure(SimpleNamespace(**json.loads(args.measure)))))
        return
    args.output.mkdir(parents=True, exist_ok=True)
    sampling = Sampling(args, load_pairs(args.dataset, args.split))
    sampling.write_small()
    if args.costs:
        record = costs(args, sampling)
        write_json(args.output / "upscaling_costs.json", record)
        print(costs_tables(args, record))
        return
    sample_all(sampling)
    record = collect(args, sampling)
    write_json(args.output / "upscaling.json", record)
    if args.upscaler:
        write_sheets(sampling, args.output, args.upscaler[0][0])
    print(tables(record))


def sample_all(sampling: Sampling, report: Callable[[str], None] = print) -> None:
    for name, arm in sampling.arms.items():
        for source in sampling.sources_of(arm):
            start = time.perf_counter()
            sampling.sample(name, source)
            report(f"{source}, {name}: {time.perf_counter() - start:.0f} s")


if __name__ == "__main__":
    main()
