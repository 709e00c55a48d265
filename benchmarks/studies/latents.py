"""Pixels against the latents of autoencoders: what reconstructions lose, and networks of equal training compute.

`--autoencoder NAME=DIR` takes the photos of a split through an autoencoder and back: PSNR, SSIM, the agreement of a
segmentation network with the masks, by class, and the distance in features of an ImageNet network, against the photos
themselves. `--run NAME=DIR` draws an image of each mask with a trained model, from the same seeds, and compares it
with the first run; differences have the 95 % interval of resampled masks. Masks that are frames of one drive are no
independent scenes, so the intervals are of these masks. Seconds are of one CPU thread, in turns of all runs. Finished
work is kept: the same command resumes. Prints tables, writes `latents.json` and pictures of masks that a seed chose.

    python benchmarks/studies/latents.py --autoencoder kl=runs/streets-kl --autoencoder vq=runs/streets-vq
        --run pixels=runs/pixels --run kl=runs/latents-kl --run vq=runs/latents-vq
        --dataset data/camvid256 --segmenter runs/segmenter256 --output latents

`--costs` measures instead what networks cost at a large size, in pixels and on the latents of published autoencoders
(`--vae`, of which only the configs are read): operations, and with `--device cuda` seconds and memory.

    python benchmarks/studies/latents.py --costs --size 512x1024 --vae stabilityai/sd-vae-ft-mse madebyollin/taesd
        --device cuda --output latents
"""

import argparse
import gc
import json
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import diffusers
import torch
from few_steps import SHEET_SEED, named_folder, one_thread, write_jpeg
from few_steps_figures import kernel_distances
from sampling import Read, Reader, agreement, detail, difference, interval, interval_text, resampled
from torch.utils.flop_counter import FlopCounterMode
from upscaling import read_pixels, save, table

from semseg_diffusers.autoencoders.networks import reconstruct
from semseg_diffusers.data.dataset import load_pairs
from semseg_diffusers.data.dataset_format import evenly_spaced
from semseg_diffusers.data.labels import LabelSet
from semseg_diffusers.evaluation.evaluate import write_masks
from semseg_diffusers.evaluation.fidelity import fid, paired_psnr, paired_ssim
from semseg_diffusers.evaluation.inputs import ImageSet, generated_images, real_images
from semseg_diffusers.generation.generate import generate_dataset
from semseg_diffusers.generation.model import load_model
from semseg_diffusers.generation.settings import GenerationSettings
from semseg_diffusers.pipelines.latents import decode_latents, latent_channels, vae_factor
from semseg_diffusers.training.latents import load_vae
from semseg_diffusers.training.networks import build_network
from semseg_diffusers.training.settings import TrainingSettings
from semseg_diffusers.training.source_configs import read_config
from semseg_diffusers.utils.files import code_commit, versions, write_json
from semseg_diffusers.utils.images import image_grid, to_image


PHOTOS = "photos"
SHEET_MASKS = 8
SAMPLING = {"num_inference_steps": 20, "guidance_scale": 2.0}
LABELS = LabelSet.from_preset("cityscapes")  # of networks whose costs are measured


@dataclass(frozen=True)
class Kind:
    """What the costs of a network are measured of."""

    what: str
    vae: Any = None  # with random weights
    patch_size: int = 1


class Images:
    """The masks of the study, and the images of each arm, one PNG each."""

    def __init__(self, args: argparse.Namespace):
        self.args, self.pairs = args, load_pairs(args.dataset, args.split)
        real = real_images(self.pairs)
        self.stems = evenly_spaced(real.stems, args.num_masks)
        self.real = real.subset([real.stems.index(stem) for stem in self.stems])
        write_masks(args.output / "masks", self.real)

    def reconstruct(self, name: str, folder: str) -> ImageSet:
        """Return the photos as an autoencoder gives them back; what is missing is made."""
        files = [self.args.output / "reconstructions" / name / f"{each}.png" for each in self.real.names]
        files[0].parent.mkdir(parents=True, exist_ok=True)
        vae = None
        for index, file in enumerate(files):
            if not file.is_file():
                vae = vae or load_vae(folder)
                pixels, _ = reconstruct(vae, self.real.image(index)[None])
                save(to_image(pixels[0]), file)
        return replace(self.real, image=lambda index: read_pixels(files[index]))

    def draw(self, name: str, pipe: Any) -> ImageSet:
        """Return an image of each mask by a model; what is missing is drawn."""
        output = self.args.output / "generated" / name
        generate_dataset(
            pipe, self.args.output / "masks", output,
            GenerationSettings(*SAMPLING.values(), seed=self.args.seed), mask_labels=self.pairs.labels,
            batch_size=self.args.batch_size, contact_sheet_rows=0,
        )  # fmt: skip
        found = generated_images(output, self.pairs)
        return found.subset([found.stems.index(stem) for stem in self.stems])


class Figures:
    """Computes the figures of arms; networks need not read again what they have read."""

    def __init__(self, args: argparse.Namespace, images: Images):
        self.args, self.names = args, images.pairs.labels.names
        self.reader = Reader(args, images.pairs)
        every = torch.ones(1, len(images.real), dtype=torch.float64)
        self.weights = torch.cat([every, resampled(len(images.real), args.seed)])  # all masks once, then resampled
        self.photos = self.reader.read(images.real)

    def distances(self, read: Read) -> torch.Tensor:
        """Return the kernel distance to the photos for each weighting of the masks."""
        return kernel_distances(read.features[:, None], self.photos.features, self.weights)

    def of(self, read: Read, reference: Read | None) -> dict[str, Any]:
        """Return what is said of the images of an arm, and of its differences to a reference."""
        distances = self.distances(read)
        values: dict[str, Any] = {
            **agreement(read.matrices, self.names),
            "kernel_distance": distances[0].item(),
            "frechet_distance": fid(self.photos.features, read.features),
            "detail": (detail(read.images).mean() / detail(self.photos.images).mean()).item(),
        }
        if reference is not None:
            gap = distances - self.distances(reference)
            values["against"] = {
                "mean_iou": difference(read, reference, self.args.seed)["mean_iou"],
                "kernel_distance": interval(gap[0], gap[1:]),
            }
        return values


# Cost of the runs ----------------------------------------------------------------------------------------------------


def training_step(pipe: Any, batch_size: int) -> Callable[[], None]:
    """Return a forward and a backward pass of a run's network, as in training on latents that are cached."""
    unet = pipe.unet.train().requires_grad_(True)
    height, width = (side // pipe.vae_scale_factor for side in pipe.sample_size)
    sample = torch.randn(
        batch_size, unet.config.in_channels, height, width, generator=torch.Generator().manual_seed(0)
    )
    mask = torch.zeros(batch_size, *pipe.sample_size, dtype=torch.long)
    steps = torch.full((batch_size,), 500)

    def step() -> None:
        unet.zero_grad()
        (unet(sample, steps, mask=mask).sample - sample).square().mean().backward()

    return step


def trained(folder: str) -> dict[str, Any]:
    """Return steps and images of a run; the training of its autoencoder is no part of them."""
    lines = [json.loads(line) for line in (Path(folder) / "log.jsonl").read_text().splitlines()]
    settings = json.loads((Path(folder) / "settings.json").read_text())
    steps = max(line["step"] for line in lines)
    return {"steps": steps, "images": steps * settings["train_batch_size"], "batch_size": settings["train_batch_size"]}


def least_seconds(cases: dict[str, Callable[[], Any]], turns: int) -> dict[str, float]:
    """Return the least CPU seconds of each case in some turns of all, after one to warm up."""
    seconds: dict[str, list[float]] = {name: [] for name in cases}
    with one_thread():
        for turn in range(turns + 1):
            for name, case in cases.items():
                start = time.process_time()  # whatever else the machine does
                case()
                if turn:
                    seconds[name].append(time.process_time() - start)
    return {name: min(values) for name, values in seconds.items()}


def costs_of_runs(args: argparse.Namespace, pipes: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Return what an image and a step of training cost, and the compute of each training."""
    found: dict[str, dict[str, Any]] = {name: trained(folder) for name, folder in args.run}
    sampling, decoding, steps = {}, {}, {}
    for name, pipe in pipes.items():
        mask = torch.zeros(1, *pipe.sample_size, dtype=torch.long)
        generate = partial(pipe, mask, generator=torch.Generator().manual_seed(0), **SAMPLING)
        with FlopCounterMode(display=False) as counter:
            generate()
        found[name]["gflop"] = counter.get_total_flops() / 1e9
        sampling[name], steps[name] = generate, training_step(pipe, found[name]["batch_size"])
        if pipe.vae is not None:
            latents = torch.zeros(
                1, pipe.unet.config.in_channels, *(side // pipe.vae_scale_factor for side in pipe.sample_size)
            )
            decoding[name] = partial(decode_latents, pipe.vae, latents, pipe.unet.config)
    with torch.no_grad():
        seconds = {
            "image_seconds": least_seconds(sampling, args.turns),
            "decoding_seconds": least_seconds(decoding, args.turns),
        }
    seconds["step_seconds"] = least_seconds(steps, args.turns)
    for key, values in seconds.items():
        for name, value in values.items():
            found[name][key] = value
    for values in found.values():
        values["images_per_second"] = values["batch_size"] / values["step_seconds"]
        values["training_hours"] = values["steps"] * values["step_seconds"] / 3600
    return found


# Results -------------------------------------------------------------------------------------------------------------


def collect(args: argparse.Namespace, images: Images) -> dict[str, Any]:
    """Return the figures of all arms, and write the pictures."""
    figures = Figures(args, images)
    record: dict[str, Any] = {
        "kind": "latents",
        "command": " ".join(["python", *sys.argv]),
        "commit": code_commit(),
        "versions": versions("torch", "diffusers"),
        "masks": len(images.real),
        "size": list(images.pairs.resolution),
        "seed": args.seed,
        "segmenter": figures.reader.judge.describe(images.pairs.resolution),
        "features": figures.reader.extractor.describe(),
        PHOTOS: figures.of(figures.photos, None),
        "autoencoders": {},
        "runs": {},
    }
    sheets: dict[str, dict[str, ImageSet]] = {"reconstructions": {}, "generated": {}}
    for name, folder in args.autoencoder:
        sheets["reconstructions"][name] = found = images.reconstruct(name, folder)
        read = figures.reader.read(found)
        both = [list(each.images) for each in (read, figures.photos)]
        results = json.loads((Path(folder) / "results.json").read_text())
        record["autoencoders"][name] = {
            **figures.of(read, figures.photos),
            "psnr": paired_psnr(*both),
            "ssim": paired_ssim(*both),
            "card": {key: results[key] for key in ("psnr", "ssim", "codebook") if key in results},
            "parameters": load_vae(folder).num_parameters(),
        }
    reference, pipes = None, {}
    for name, folder in args.run:
        pipes[name] = load_model(folder).to(torch.float32)
        pipes[name].set_progress_bar_config(disable=True)
        sheets["generated"][name] = found = images.draw(name, pipes[name])
        read = figures.reader.read(found)
        record["runs"][name] = figures.of(read, reference)
        reference = reference or read
    if pipes:
        for name, values in costs_of_runs(args, pipes).items():
            record["runs"][name] |= values
    for name, sets in sheets.items():
        if sets:
            write_sheet(images, sets, args.output / f"latents_{name}.jpg")
    return record


def write_sheet(images: Images, sets: dict[str, ImageSet], path: Path) -> None:
    """Write masks that a seed chose, with their photos and the images of each arm."""
    random = torch.Generator().manual_seed(SHEET_SEED)
    chosen = torch.randperm(len(images.real), generator=random)[:SHEET_MASKS].sort().values.tolist()
    labels = images.pairs.labels
    rows = [
        [
            labels.decode(images.real.mask(place).numpy()),
            *(each.image(place) for each in (images.real, *sets.values())),
        ]
        for place in chosen
    ]
    write_jpeg(image_grid(rows, ["mask", "photo", *sets]), path)


def tables(record: dict[str, Any]) -> str:
    """Return the results as Markdown: the tables of docs/results/latents.md."""
    parts, names = [], [*record[PHOTOS]["iou"]]
    if record["autoencoders"]:
        rows = [
            [
                name,
                f"{values['parameters'] / 1e6:.1f} M",
                f"{values['psnr']:.1f}",
                f"{values['ssim']:.3f}",
                f"{values['mean_iou']:.3f}",
                interval_text(values["against"]["mean_iou"]),
                f"{values['kernel_distance']:.3f}",
                f"{values['detail']:.2f}",
            ]
            for name, values in record["autoencoders"].items()
        ]
        photos = record[PHOTOS]
        rows.insert(0, [PHOTOS, "", "", "", f"{photos['mean_iou']:.3f}", "", "", "1.00"])
        heads = ["", "parameters", "PSNR, dB", "SSIM", "mean IoU", "less the photos", "kernel distance", "detail"]
        parts.append(table(heads, rows))
        sources = {PHOTOS: photos, **record["autoencoders"]}
        rows = [[label, *(f"{values['iou'][label]:.3f}" for values in sources.values())] for label in names]
        parts.append(table(["IoU", *sources], rows))
    if record["runs"]:
        heads = ["", "mean IoU", "less the first", "kernel distance", "less the first", "detail"]
        rows = [
            [
                name,
                f"{values['mean_iou']:.3f}",
                interval_text(values.get("against", {}).get("mean_iou")),
                f"{values['kernel_distance']:.3f}",
                interval_text(values.get("against", {}).get("kernel_distance")),
                f"{values['detail']:.2f}",
            ]
            for name, values in record["runs"].items()
        ]
        parts.append(table(heads, rows))
        heads = [
            "",
            "seconds an image",
            "of these, decoding",
            "GFLOP an image",
            "images a second in training",
            "steps",
            "hours",
        ]
        rows = [
            [
                name,
                f"{values['image_seconds']:.2f}",
                f"{values['decoding_seconds']:.2f}" if "decoding_seconds" in values else "",
                f"{values['gflop']:.0f}",
                f"{values['images_per_second']:.1f}",
                f"{values['steps']:,}",
                f"{values['training_hours']:.2f}",
            ]
            for name, values in record["runs"].items()
        ]
        parts.append(table(heads, rows))
    return "\n\n".join(parts)


# Costs at large sizes ------------------------------------------------------------------------------------------------


def random_vae(source: str) -> Any:
    """Return an autoencoder with random weights by the config of a folder or a Hub id."""
    config, _ = read_config(source, "--vae", "config.json", "vae/config.json", "vqvae/config.json") or ({}, "")
    return getattr(diffusers, config["_class_name"]).from_config(config).requires_grad_(False).eval()


def kinds(args: argparse.Namespace) -> Iterator[Kind]:
    """Yield the networks whose costs are measured."""
    for patch_size in args.patch_sizes:
        yield Kind(f"pixels, patches of {patch_size}", patch_size=patch_size)
    for source in args.vae:
        vae = random_vae(source)
        yield Kind(f"latents of {type(vae).__name__}, 1/{vae_factor(vae)}", vae)


def passes(kind: Kind, args: argparse.Namespace, device: str) -> dict[str, Callable[[], Any]]:
    """Return the passes of a batch whose costs are measured, of networks on a device."""
    (height, width), count = args.size, args.batch_size
    latents: Any = None
    shape: tuple[int, ...] = (3, height, width)
    if kind.vae is not None:
        factor = vae_factor(kind.vae)
        shape = (latent_channels(kind.vae), height // factor, width // factor)
        latents = SimpleNamespace(factor=factor, size=lambda *_: shape)
    settings = TrainingSettings(
        dataset="", output_dir="", patch_size=kind.patch_size, block_out_channels=tuple(args.block_out_channels)
    )
    with torch.device(device):
        unet = build_network(settings, LABELS, (height, width), latents=latents)
        sample, mask = torch.zeros(count, *shape), torch.zeros(count, height, width, dtype=torch.long)
        time_steps, image = torch.full((count,), 500), torch.zeros(count, 3, height, width)
    found: dict[str, Callable[[], Any]] = {
        "forward": torch.no_grad()(lambda: unet(sample, time_steps, mask=mask).sample),
        "training": lambda: unet(sample, time_steps, mask=mask).sample.mean().backward(),
    }
    if kind.vae is not None:
        vae = kind.vae.to(device)
        found["decoding"] = torch.no_grad()(lambda: vae.decode(sample).sample)
        found["encoding"] = torch.no_grad()(lambda: vae.encode(image))
    return found


def cost(kind: Kind, args: argparse.Namespace) -> dict[str, float]:
    """Return operations, and on a device seconds and memory, of an image and of a step of training."""
    found: dict[str, float] = {}
    with torch.device("meta"):
        counted = replace(kind, vae=kind.vae and type(kind.vae).from_config(kind.vae.config))
    for name, run in passes(counted, args, "meta").items():  # operations are counted without computing
        with FlopCounterMode(display=False) as counter:
            run()
        found[f"{name}_gflop"] = counter.get_total_flops() / args.batch_size / 1e9
    if args.device == "meta":
        return found
    for name, run in passes(kind, args, args.device).items():
        if args.device.startswith("cuda"):
            found |= {f"{name}_{key}": value for key, value in on_gpu(run, args).items()}
        else:
            found[f"{name}_seconds"] = least_seconds({name: run}, args.turns)[name] / args.batch_size
    return found


def on_gpu(run: Callable[[], Any], args: argparse.Namespace) -> dict[str, float]:
    """Return seconds of an image in bfloat16, the least of some turns after a first one, and memory of the batch."""
    seconds = []
    gc.collect()
    torch.cuda.reset_peak_memory_stats()
    for _ in range(args.turns + 1):
        torch.cuda.synchronize()
        start = time.perf_counter()
        with torch.autocast("cuda", torch.bfloat16):
            run()
        torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
    return {"seconds": min(seconds[1:]) / args.batch_size, "memory_mb": torch.cuda.max_memory_allocated() / 2**20}


def costs_table(record: dict[str, Any]) -> str:
    """Return the costs as Markdown: an image of twenty guided steps, and an image in training."""
    rows = []
    timed = any("forward_seconds" in values for values in record["networks"].values())
    for what, values in record["networks"].items():
        cells = [what]
        for key, digits in (("gflop", ",.0f"), *([("seconds", ".4f")] if timed else [])):
            drawing = 2 * SAMPLING["num_inference_steps"] * values[f"forward_{key}"]
            cells += [
                format(values[f"forward_{key}"], digits),
                format(values[f"decoding_{key}"], digits) if f"decoding_{key}" in values else "",
                format(drawing + values.get(f"decoding_{key}", 0), digits),
                format(values[f"training_{key}"], digits),
            ]
        rows.append(cells)
    units = ["GFLOP", *(["seconds"] if timed else [])]
    heads = [f"{what}, {unit}" for unit in units for what in ("a forward pass", "decoding", "an image", "in training")]
    return table(["", *heads], rows)


def parsed_size(text: str) -> tuple[int, int]:
    height, _, width = text.partition("x")
    return int(height), int(width or height)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for option, what in (("--autoencoder", "folder of `autoencoder`"), ("--run", "run folder of `train`")):
        parser.add_argument(
            option,
            type=named_folder,
            action="append",
            default=[],
            metavar="NAME=DIR",
            help=f"{what}, as often as needed",
        )
    parser.add_argument("--dataset", help="prepared folder of the size of the runs")
    parser.add_argument("--segmenter", help="the judge: trained on photos of this size")
    parser.add_argument("--features", default="efficientnet-lite2", help="as of `evaluate` (efficientnet-lite2)")
    parser.add_argument("--output", type=Path, required=True, help="folder to make, or to continue")
    parser.add_argument("--split", default="val", help="default val")
    parser.add_argument("--num_masks", type=int, help="of the split, at even distances (default: all)")
    parser.add_argument("--batch_size", type=int, default=4, help="default 4")
    parser.add_argument("--turns", type=int, default=3, help="of timing; the fastest counts (3)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--costs", action="store_true", help="measure costs at a large size instead")
    parser.add_argument("--vae", nargs="*", default=[], help="folders or Hub ids, whose configs are read for --costs")
    parser.add_argument("--size", type=parsed_size, default=(512, 1024), metavar="HxW", help="of --costs (512x1024)")
    parser.add_argument("--patch_sizes", type=int, nargs="*", default=[4, 8], help="in pixels, of --costs (4 8)")
    parser.add_argument("--block_out_channels", type=int, nargs="+", default=[128, 256, 384, 512], help="of --costs")
    parser.add_argument("--device", default="meta", help="of --costs; meta only counts operations (meta)")
    args = parser.parse_args()
    args.output.mkdir(parents=True, exist_ok=True)
    if args.costs:
        record = {
            "kind": "latents_costs",
            "command": " ".join(["python", *sys.argv]),
            "commit": code_commit(),
            "versions": versions("torch", "diffusers"),
            "size": list(args.size),
            "batch_size": args.batch_size,
            "device": torch.cuda.get_device_name() if args.device.startswith("cuda") else args.device,
            "networks": {kind.what: cost(kind, args) for kind in kinds(args)},
        }
        write_json(args.output / "latents_costs.json", record)
        print(costs_table(record))
        return
    record = collect(args, Images(args))
    write_json(args.output / "latents.json", record)
    print(tables(record))


if __name__ == "__main__":
    main()
