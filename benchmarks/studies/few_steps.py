"""Few steps against twenty: distilled students and plain solvers beside the model that they were made from.

Every arm samples the same masks of a split, two images each, from the same noise, and is compared with the teacher
(20 guided steps of its saved sampler) mask by mask: differences have the 95 % interval of resampled masks, with both
images of a mask. Masks that are frames of one drive are no independent scenes, so the intervals are of these masks.
Finished work is kept: the same command resumes. Prints the tables of docs/results/few_steps.md and writes
`few_steps.json`, and a sheet of pictures of masks that a seed chose.

    python benchmarks/studies/few_steps.py --teacher checkpoints/camvid128 --student turbo=checkpoints/camvid128-turbo
        --dataset data/camvid128 --segmenter runs/segmenter --output few_steps

With `--ablation DIR DIR ...` the students are these runs by the names of their folders, and plain solvers and pictures
are left out.
"""

import argparse
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from few_steps_figures import class_colors, class_detail, fine_power, frechet_distances, kernel_distances, repetition
from PIL import Image
from sampling import (
    SAMPLERS,
    Read,
    Reader,
    detail,
    difference,
    interval,
    interval_text,
    mean_iou,
    resampled,
    scheduler_name,
)
from torch.utils.flop_counter import FlopCounterMode

from semseg_diffusers import PaperUNet2DModel
from semseg_diffusers.data.dataset import PairDataset, load_pairs
from semseg_diffusers.data.dataset_format import evenly_spaced
from semseg_diffusers.evaluation.diversity import diversity
from semseg_diffusers.evaluation.evaluate import THUMBNAILS, write_masks
from semseg_diffusers.evaluation.features import load_extractor
from semseg_diffusers.evaluation.inputs import ImageSet, cached_inference, generated_images, real_images
from semseg_diffusers.evaluation.memorization import nearest_by_pixels
from semseg_diffusers.generation.generate import generate_dataset
from semseg_diffusers.generation.model import load_model, model_revision, new_scheduler
from semseg_diffusers.generation.near_copies import thumbnails
from semseg_diffusers.generation.settings import NEAR_COPY_THRESHOLD, GenerationSettings
from semseg_diffusers.utils.files import code_commit, versions, write_json, written_beside
from semseg_diffusers.utils.images import image_grid


TEACHER, TEACHER_STEPS, TEACHER_SCALE = "teacher", 20, 2.0
IMAGES_PER_MASK = 2
PAPER_STEPS = 1000  # of two forward passes of the paper's network
FRECHET_RESAMPLINGS = 200  # for the standard deviation, of which the interval is made: duplicates bias each value
SHEET_MASKS, SHEET_SEED, SHEET_BYTES = 16, 0, 200_000
ROAD = "road"


@dataclass(frozen=True)
class Arm:
    """One way to sample."""

    group: str  # teacher, solver or student
    what: str  # its name in the tables
    model: str  # folder
    steps: int
    scale: float
    sampler: str | None = None  # of SAMPLERS; None: the saved one


def build_arms(args: argparse.Namespace) -> dict[str, Arm]:
    """Return all arms by name, in the order in which they are sampled."""
    teacher = f"teacher, {TEACHER_STEPS} steps"
    arms = {TEACHER: Arm(TEACHER, teacher, args.teacher, TEACHER_STEPS, TEACHER_SCALE)}
    students = dict(args.student) if args.ablation is None else {Path(each).name: each for each in args.ablation}
    for name, folder in students.items():
        for steps in args.steps:
            what = f"{name}, {steps} step{'s' * (steps > 1)}"
            arms[f"{name}_{steps}"] = Arm("student", what, folder, steps, 1.0)
    for sampler in () if args.ablation is not None else args.solvers:
        for steps in args.steps:
            name = SAMPLERS[sampler][0]
            if steps == 1 and sampler != args.solvers[0]:
                continue  # all solvers take the network's first prediction
            what = "teacher's first prediction, 1 step" if steps == 1 else f"teacher, {name}, {steps} steps"
            arms[f"{sampler}_{steps}"] = Arm("solver", what, args.teacher, steps, TEACHER_SCALE, sampler)
    return arms


# Sampling ------------------------------------------------------------------------------------------------------------


class Sampling:
    """Samples arms with the models and masks of the command line."""

    def __init__(self, args: argparse.Namespace, pairs: PairDataset):
        self.args, self.pairs, self.arms, self.pipelines = args, pairs, build_arms(args), {}
        self.real = real_images(pairs)
        self.stems = evenly_spaced(self.real.stems, args.num_masks)
        places = [self.real.stems.index(stem) for stem in self.stems]
        write_masks(args.output / "masks", self.real.subset(places))
        self.masks = self.real.subset(places).masks()  # (M, H, W)

    def pipeline(self, arm: Arm) -> Any:
        """Return the pipeline of an arm, with its scheduler."""
        if arm.model not in self.pipelines:
            pipeline: Any = load_model(arm.model)
            pipeline.set_progress_bar_config(disable=True)
            self.pipelines[arm.model] = pipeline, pipeline.scheduler
        pipeline, saved = self.pipelines[arm.model]
        pipeline.scheduler = saved
        if arm.sampler is not None:
            pipeline.scheduler = new_scheduler(scheduler_name(arm.sampler), saved.config)
        return pipeline

    def sample(self, name: str) -> None:
        """Sample what is missing of an arm."""
        arm = self.arms[name]
        generate_dataset(
            self.pipeline(arm),
            self.args.output / "masks",
            self.args.output / name,
            GenerationSettings(arm.steps, arm.scale, seed=self.args.seed),
            mask_labels=self.pairs.labels,
            num_images_per_mask=IMAGES_PER_MASK,
            batch_size=self.args.batch_size,
            contact_sheet_rows=0,
        )

    def images(self, name: str) -> ImageSet:
        """Return the images of an arm, both of each mask together, in the order of the masks."""
        found = generated_images(self.args.output / name, self.pairs)
        names = [f"{stem}_{index}" for stem in self.stems for index in range(IMAGES_PER_MASK)]
        return found.subset([found.names.index(each) for each in names])

    def costs(self) -> dict[str, dict[str, float]]:
        """Return GFLOP and CPU seconds of an image of each arm: one thread, the least of some turns of all arms."""
        seconds: dict[str, list[float]] = {name: [] for name in self.arms}
        gflop = {}
        with one_thread():
            for turn in range(self.args.turns + 1):
                for name, arm in self.arms.items():
                    pipeline = self.pipeline(arm)

                    def sample(pipeline: Any = pipeline, arm: Arm = arm) -> None:
                        generator = torch.Generator().manual_seed(self.args.seed)
                        options = {"num_inference_steps": arm.steps, "guidance_scale": arm.scale}
                        pipeline(self.masks[:1], generator=generator, **options)

                    if turn == 0:  # also a warm-up
                        with FlopCounterMode(display=False) as counter:
                            sample()
                        gflop[name] = counter.get_total_flops() / 1e9
                        continue
                    start = time.process_time()  # whatever else the machine does
                    sample()
                    seconds[name].append(time.process_time() - start)
        paper = self.paper_gflop()
        return {
            name: {
                "gflop": gflop[name],
                "seconds": min(seconds[name]),
                "times_faster": min(seconds[TEACHER]) / min(seconds[name]),
                "times_less_compute": gflop[TEACHER] / gflop[name],
                "paper_share": gflop[name] / paper,
            }
            for name in self.arms
        }

    def paper_gflop(self) -> float:
        """Return the operations of the paper's sampling: two forward passes of its network in each of 1000 steps."""
        size, classes = self.pairs.resolution, self.pairs.labels.num_classes
        with torch.device("meta"):
            unet = PaperUNet2DModel(num_classes=classes)
            sample, mask = torch.empty(1, 3, *size), torch.empty(1, classes, *size)
            with torch.no_grad(), FlopCounterMode(display=False) as counter:
                unet(sample, torch.empty(1), mask=mask)
                unet(sample, torch.empty(1))
        return counter.get_total_flops() * PAPER_STEPS / 1e9


@contextmanager
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


# Figures -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Found:
    """What is known of some images, by each network."""

    read: Read  # with the features of --features
    own: torch.Tensor  # (N, D) features of the segmenter
    thumbnails: torch.Tensor  # (N, 1024)


class Figures:
    """Computes the figures of arms; networks need not read again what they have read."""

    def __init__(self, args: argparse.Namespace, sampling: Sampling):
        self.args, self.sampling, self.pairs = args, sampling, sampling.pairs
        self.reader, self.segmenter = Reader(args, self.pairs), load_extractor(args.segmenter)
        self.weights = resampled(len(sampling.stems), args.seed)
        self.photos = self.find(sampling.real)
        self.photos_of_masks = self.photos.read.of(sampling.stems).images
        photos = self.photos_of_masks, sampling.masks, self.pairs.labels.num_classes
        self.colors, self.class_detail = class_colors(*photos), class_detail(*photos)
        self.train = load_pairs(args.dataset, "train")

    def find(self, images: ImageSet) -> Found:
        identity, folder = self.segmenter.describe(), self.reader.cache
        own = cached_inference(self.segmenter, images, identity=identity, folder=folder)
        small = cached_inference(thumbnails, images, identity=THUMBNAILS, folder=folder)
        return Found(self.reader.read(images), own, small)

    @cached_property
    def teacher(self) -> Found:
        return self.find(self.sampling.images(TEACHER))

    @cached_property
    def teacher_distances(self) -> dict[str, torch.Tensor]:
        return self.distances(self.teacher)

    @cached_property
    def train_thumbnails(self) -> torch.Tensor:
        return cached_inference(thumbnails, real_images(self.train), identity=THUMBNAILS, folder=self.reader.cache)

    def by_mask(self, values: torch.Tensor) -> torch.Tensor:
        """Return values (N, ...) of images as (M, K, ...)."""
        return values.view(len(self.sampling.stems), IMAGES_PER_MASK, *values.shape[1:])

    def of(self, name: str) -> dict[str, Any]:
        """Return all figures of an arm."""
        found, teacher = self.find(self.sampling.images(name)), self.teacher
        pixels, masks = found.read.images, self.sampling.masks.repeat_interleave(IMAGES_PER_MASK, 0)
        matrices = found.read.matrices
        values: dict[str, Any] = {"mean_iou": mean_iou(matrices.sum(0)).item(), "against_teacher": {}}
        is_teacher = name == TEACHER
        if not is_teacher:
            both = [self.whole_masks(each.read) for each in (found, teacher)]
            values["against_teacher"] |= difference(both[0], both[1], self.args.seed)
        for key, value in self.distances(found).items():
            of_set = normal_interval if key.startswith("frechet") else interval
            values[key] = value[0].item()
            if not is_teacher:
                gap = value - self.teacher_distances[key]
                values["against_teacher"][key] = of_set(gap[0], gap[1:])
        values["diversity"] = self.diversity_share(found, teacher)
        copies = nearest_by_pixels(
            found.thumbnails, self.sampling.images(name).names, self.train_thumbnails, real_images(self.train).stems,
            self.photos.thumbnails,
        )  # fmt: skip
        values["near_copies"] = sum(each < NEAR_COPY_THRESHOLD for each in copies.distances["generated"])
        values["nearest_copy"] = copies.distances["generated"][0]
        values["closer_than_held_out"] = copies.num_closer
        return values | self.defects(pixels, masks)

    def whole_masks(self, read: Read) -> Read:
        """Return counts of both images of each mask together, for intervals of resampled masks."""
        first = slice(None, None, IMAGES_PER_MASK)
        counts = self.by_mask(read.matrices).sum(1)
        return Read(read.stems[first], counts, read.features[first], read.images[first])

    def distances(self, found: Found) -> dict[str, torch.Tensor]:
        """Return each distance to the photos, (1 + S,): of all masks once, then of the resampled masks."""
        weights = torch.cat([torch.ones(1, len(self.sampling.stems), dtype=torch.float64), self.weights])
        values = {}
        for network, features, photos in (
            ("features", found.read.features, self.photos.read.features),
            ("segmenter", found.own, self.photos.own),
        ):
            rows = self.by_mask(features)
            values[f"kernel_{network}"] = kernel_distances(rows, photos, weights)
            values[f"frechet_{network}"] = frechet_distances(rows, photos, weights[: 1 + FRECHET_RESAMPLINGS])
        return values

    def diversity_share(self, found: Found, teacher: Found) -> dict[str, float]:
        """Return the distance between images of a mask, as a share of the teacher's, with its interval."""
        of_masks = []
        for each in (found, teacher):
            pairs = self.by_mask(each.read.features)
            names = ["mask"] * IMAGES_PER_MASK
            of_masks.append(torch.tensor([diversity(pair, names).within_masks for pair in pairs], dtype=torch.float64))
        arm, reference = of_masks
        share = interval(arm.sum() / reference.sum(), (self.weights @ arm) / (self.weights @ reference))
        return {"share": share.pop("difference"), **share}

    def defects(self, pixels: torch.Tensor, masks: torch.Tensor) -> dict[str, Any]:
        """Return how colours and fine structure of images of the masks differ from those of their photos."""
        names = self.pairs.labels.names
        shifts = (class_colors(pixels, masks, len(names)) - self.colors).square().sum(1).sqrt()  # CIE 1976
        of_classes = class_detail(pixels, masks, len(names)) / self.class_detail

        def named(values: torch.Tensor) -> dict[str, float]:
            return {name: value.item() for name, value in zip(names, values, strict=True) if value.isfinite()}

        return {
            "color_drift": named(shifts),
            "class_detail": named(of_classes),
            "detail": (detail(pixels).mean() / detail(self.photos_of_masks).mean()).item(),
            "fine_power": fine_power(pixels) / fine_power(self.photos_of_masks),
            "repetition": repetition(pixels).mean().item(),
        }


def normal_interval(value: torch.Tensor, samples: torch.Tensor) -> dict[str, float]:
    """Return a difference with the 95 % interval of the standard deviation of what resampled masks give."""
    reach = 1.96 * samples.std().item()
    return {"difference": value.item(), "low": value.item() - reach, "high": value.item() + reach}


def collect(args: argparse.Namespace, sampling: Sampling) -> dict[str, Any]:
    """Return all results."""
    figures, costs = Figures(args, sampling), sampling.costs()
    arms = {}
    for name, arm in sampling.arms.items():
        pipeline = sampling.pipeline(arm)
        sampler = {"scheduler": type(pipeline.scheduler).__name__, "revision": model_revision(pipeline.unet)}
        arms[name] = {**asdict(arm), "model": Path(arm.model).name, **sampler, **figures.of(name), **costs[name]}
    photos = figures.photos.read.of(sampling.stems)
    return {
        "kind": "few_steps",
        "arms": arms,
        "photos": {
            "mean_iou": mean_iou(photos.matrices.sum(0)).item(),
            "repetition": repetition(photos.images).mean().item(),
        },
        "seed": args.seed,
        "split": args.split,
        "resolution": list(sampling.pairs.resolution),
        "num_masks": len(sampling.stems),
        "images_per_mask": IMAGES_PER_MASK,
        "num_photos": len(sampling.pairs),
        "num_training_photos": len(figures.train),
        "near_copy_threshold": NEAR_COPY_THRESHOLD,
        "turns": args.turns,
        "segmenter": figures.reader.judge.describe(sampling.pairs.resolution),
        "features": {"features": figures.reader.extractor.describe(), "segmenter": figures.segmenter.describe()},
        "commit": code_commit(),
        "versions": versions("torch", "diffusers", "transformers"),
    }


# Tables and pictures -------------------------------------------------------------------------------------------------


def tables(record: dict[str, Any]) -> str:
    """Return the results as Markdown: the tables of docs/results/few_steps.md."""
    name = record["features"]["features"]["name"]
    parts = [
        table(
            ["arm", "mean IoU", "less the teacher", f"kernel distance ({name})", "less the teacher",
             "kernel distance (segmenter)", "less the teacher"],
            record,
            lambda arm: [f"{arm['mean_iou']:.3f}", less(arm, "mean_iou"),
                         f"{arm['kernel_features']:.3f}", less(arm, "kernel_features"),
                         f"{arm['kernel_segmenter']:.3f}", less(arm, "kernel_segmenter")],
        ),
        table(
            ["arm", f"Fréchet distance ({name})", "less the teacher", "Fréchet distance (segmenter)",
             "less the teacher", "diversity, share of the teacher's", "near-copies"],
            record,
            lambda arm: [f"{arm['frechet_features']:.3g}", less(arm, "frechet_features", ".2f"),
                         f"{arm['frechet_segmenter']:.3g}", less(arm, "frechet_segmenter", ".2f"),
                         "{share:.2f} ({low:.2f} to {high:.2f})".format(**arm["diversity"]), str(arm["near_copies"])],
        ),
        table(
            ["arm", "colour of the road", "largest difference of a class", "detail", "largest of a class",
             "power of the highest octave", "repetition"],
            record,
            lambda arm: [f"{arm['color_drift'][ROAD]:.1f}" if ROAD in arm["color_drift"] else "",
                         largest(arm["color_drift"], ".1f"),
                         f"{arm['detail']:.2f}", largest(arm["class_detail"], ".2f"),
                         f"{arm['fine_power']:.2f}", f"{arm['repetition']:.3f}"],
        ),
        table(
            ["arm", "GFLOP", "of the teacher's", "CPU seconds", "times faster", "share of the paper's compute"],
            record,
            lambda arm: [f"{arm['gflop']:,.1f}", f"1/{arm['times_less_compute']:.1f}", f"{arm['seconds']:.3f}",
                         f"{arm['times_faster']:.1f}", f"1/{1 / arm['paper_share']:,.0f}"],
        ),
    ]  # fmt: skip
    photos = record["photos"]
    parts.append(f"Photos: mean IoU {photos['mean_iou']:.3f}, repetition {photos['repetition']:.3f}.")
    return "\n\n".join(parts)


def table(heads: list[str], record: dict[str, Any], cells: Callable[[dict[str, Any]], list[str]]) -> str:
    rows = [[arm["what"], *cells(arm)] for arm in record["arms"].values()]
    return "\n".join(f"| {' | '.join(row)} |" for row in (heads, ["---", *["---:"] * (len(heads) - 1)], *rows))


def less(arm: dict[str, Any], figure: str, digits: str = ".3f") -> str:
    """Return a difference to the teacher with its interval; nothing for the teacher."""
    return interval_text(arm["against_teacher"].get(figure), digits)


def largest(values: dict[str, float], digits: str) -> str:
    """Return the largest value of a class, with its name."""
    name = max(values, key=lambda each: values[each])
    return f"{values[name]:{digits}} ({name})"


def write_sheet(sampling: Sampling, path: Path) -> None:
    """Write masks that a seed chose with images of the teacher and the first student, and photos, as a small JPEG."""
    student = next((arm.model for arm in sampling.arms.values() if arm.group == "student"), None)
    shown = {name: arm for name, arm in sampling.arms.items() if name == TEACHER or arm.model == student}
    random = torch.Generator().manual_seed(SHEET_SEED)
    chosen = torch.randperm(len(sampling.stems), generator=random)[:SHEET_MASKS].sort().values.tolist()
    images = {name: sampling.images(name) for name in shown}
    rows = []
    for place in chosen:
        photo = sampling.real.image(sampling.real.stems.index(sampling.stems[place]))
        generated = [each.image(place * IMAGES_PER_MASK) for each in images.values()]
        rows.append([sampling.pairs.labels.decode(sampling.masks[place].numpy()), *generated, photo])
    write_jpeg(image_grid(rows, ["mask", *(arm.what for arm in shown.values()), "photo"]), path)


def write_jpeg(sheet: Image.Image, path: Path) -> None:
    """Write a JPEG of the best quality that docs have room for."""
    with written_beside(path) as temporary:
        for quality in range(90, 20, -5):
            sheet.convert("RGB").save(temporary, "jpeg", quality=quality, optimize=True)
            if temporary.stat().st_size < SHEET_BYTES:
                break


def named_folder(text: str) -> tuple[str, str]:
    name, _, folder = text.partition("=")
    if not name or not folder:
        raise argparse.ArgumentTypeError(f"expected NAME=FOLDER, got '{text}'.")
    return name, folder


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--teacher", required=True, help="run folder or Hub id that the students were distilled from")
    students = parser.add_mutually_exclusive_group()
    students.add_argument(
        "--student", type=named_folder, action="append", default=[], metavar="NAME=DIR", help="as often as needed"
    )
    students.add_argument("--ablation", nargs="+", metavar="DIR", help="run folders, in place of students and solvers")
    parser.add_argument("--dataset", required=True, help="prepared folder with the splits train and val")
    parser.add_argument("--segmenter", required=True, help="the judge: a folder of `semseg-diffusers segmenter`")
    parser.add_argument("--features", default="efficientnet-lite2", help="as of `evaluate` (efficientnet-lite2)")
    parser.add_argument("--output", type=Path, required=True, help="folder to make, or to continue")
    parser.add_argument("--steps", type=int, nargs="+", default=[1, 2, 4], help="default 1 2 4")
    parser.add_argument("--solvers", nargs="*", choices=SAMPLERS, default=["sde", "ddim", "dpm"])
    parser.add_argument("--split", default="val", help="default val")
    parser.add_argument("--num_masks", type=int, help="of the split, at even distances (default: all)")
    parser.add_argument("--batch_size", type=int, default=8, help="default 8")
    parser.add_argument("--turns", type=int, default=5, help="of timing; the fastest counts (5)")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    args.output.mkdir(parents=True, exist_ok=True)
    sampling = Sampling(args, load_pairs(args.dataset, args.split))
    for name in sampling.arms:
        start = time.perf_counter()
        sampling.sample(name)
        print(f"{name}: {time.perf_counter() - start:.0f} s", flush=True)
    record = collect(args, sampling)
    write_json(args.output / "few_steps.json", record)
    if args.ablation is None:
        write_sheet(sampling, args.output / "few_steps.jpg")
    print(tables(record))


if __name__ == "__main__":
    main()
