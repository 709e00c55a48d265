"""Few steps against many: agreement with the mask, fidelity and cost of samplers, steps, guidance, interval and guide.

Every arm draws the same masks of a split with the same weights and from the same noise, and is held against the arms
of 1000 and 250 steps and the default, mask by mask: the difference of the mean IoU of the whole set (one confusion
matrix), and of the means over masks, with the 95 % interval of 10,000 resamplings of the masks. Masks that are frames
of one drive are no independent scenes, so the intervals are of these masks. Arms were fixed here before any was drawn,
but for the last group, and the guidance scale at which samplers are compared, which a pilot on 16 masks of the
training split gave. Finished work is kept: the same command resumes. Prints tables, and writes `sampling.json`,
`sampling.html` and two sheets of pictures.
"""

import argparse
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from sampling_page import write_sampling_page, write_sheets
from torch.utils.flop_counter import FlopCounterMode

from semseg_diffusers.data.dataset import PairDataset, load_pairs
from semseg_diffusers.data.dataset_format import evenly_spaced
from semseg_diffusers.evaluation.evaluate import write_masks
from semseg_diffusers.evaluation.features import extract, load_extractor
from semseg_diffusers.evaluation.fidelity import fid, kid
from semseg_diffusers.evaluation.inputs import ImageSet, cached_inference, generated_images, real_images
from semseg_diffusers.evaluation.metrics import new_confusion_matrix, update_confusion_matrix
from semseg_diffusers.evaluation.segmentation.judge import Judge, load_judge
from semseg_diffusers.generation.generate import generate_dataset
from semseg_diffusers.generation.model import DTYPES, load_guide, load_model, new_scheduler, speed_up
from semseg_diffusers.generation.settings import GenerationSettings, Inputs
from semseg_diffusers.utils.files import code_commit, versions, write_json


SCALE = 2.0  # guidance scale at which samplers, steps and intervals are compared
RESAMPLINGS = 10_000
SAMPLERS = {
    "dpm": ("DPM-Solver++ 2M", "DPMSolverMultistepScheduler", {"algorithm_type": "dpmsolver++"}),
    "unipc": ("UniPC", "UniPCMultistepScheduler", {}),
    # it steps by a fixed number of timesteps, which the others' spacing (linspace) does not keep to
    "ddim": ("DDIM", "DDIMScheduler", {"timestep_spacing": "trailing"}),
    "sde": ("SDE-DPM-Solver++ 2M", "DPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++"}),
    "ddpm": ("DDPM, ancestral", "DDPMScheduler", {}),
}
SAMPLERS_AND_STEPS = "Samplers and steps"
ODE = ("dpm", "unipc", "ddim")  # those that solve the same differential equation, so that images can be compared


@dataclass(frozen=True)
class Arm:
    """One way to sample."""

    group: str  # its table
    what: str
    sampler: str = "dpm"
    steps: int = 20
    scale: float = SCALE
    interval: tuple[float, float] = (0.0, 1.0)  # parts of the steps between which guidance acts
    options: dict[str, Any] = field(default_factory=dict)  # of the scheduler's config
    guide: bool = False  # guidance leads away from the weaker network, and no longer from no mask
    half: bool = False  # the dearest draw every second mask only

    @property
    def passes(self) -> int:
        """Forward passes of an image; a guide of the same size counts like the network itself."""
        first, end = (int(part * self.steps) for part in self.interval)
        return self.steps + (end - first if self.scale != 1 else 0)


def _grid(sampler: str, *all_steps: int, half: bool = False) -> dict[str, Arm]:
    what, group = SAMPLERS[sampler][0], SAMPLERS_AND_STEPS
    return {
        f"{sampler}_{steps}": Arm(group, f"{what}, {steps} steps", sampler, steps, half=half) for steps in all_steps
    }


DEFAULT = "sde_20"
REFERENCES = (DEFAULT, "ddpm_1000", "ddim_1000", "ddpm_250", "ddim_250")
AROUND = "Around the default"
SHORT = {"ddpm_250": "250 steps of DDPM", "ddpm_1000": "1000 steps of DDPM"}
IN_TABLES = (DEFAULT, "ddpm_250", "ddpm_1000")  # of the references; all are in the JSON and on the page
ARMS = {
    **_grid("dpm", 10, 20, 50),
    **{
        f"scale_{scale:g}": Arm("Guidance scale", f"scale {scale:g}", scale=scale)
        for scale in (1.0, 1.5, 2.0, 3.0, 4.5)
        if scale != SCALE
    },
    **_grid("ddpm", 250),
    **{
        f"interval_{start:g}_{stop:g}_{scale:g}": Arm(
            "Guidance interval", f"scale {scale:g} from {start:g} to {stop:g}", scale=scale, interval=(start, stop)
        )
        for scale, start, stop in ((2.0, 0.0, 0.5), (2.0, 0.0, 0.8), (2.0, 0.1, 0.8), (2.0, 0.2, 1.0), (3.0, 0.1, 0.8))
    },
    **{
        f"guide_{scale:g}": Arm(
            "Autoguidance", f"away from a weaker network, scale {scale:g}", scale=scale, guide=True
        )
        for scale in (1.5, 2.0, 3.0)
    },
    **_grid("unipc", 10, 20, 50),
    **_grid("ddpm", 1000, half=True),
    **_grid("ddim", 250),
    **_grid("sde", 20, 50),
    **_grid("ddpm", 10, 20, 50),
    **{
        f"threshold_{scale:g}": Arm(
            "Options", f"dynamic thresholding, scale {scale:g}", scale=scale, options={"thresholding": True}
        )
        for scale in (2.0, 4.5)
    },
    **_grid("ddim", 10, 20, 50),
    **{
        f"{name}_{steps}": Arm("Options", f"{what}, {steps} steps", sampler, steps, options=options)
        for steps in (10, 20)
        for name, sampler, what, options in (
            ("dpm_trailing", "dpm", "trailing timesteps", {"timestep_spacing": "trailing"}),
            ("dpm_karras", "dpm", "sigmas of Karras", {"use_karras_sigmas": True}),
            ("dpm_lu", "dpm", "lambdas of Lu", {"use_lu_lambdas": True}),
            ("dpm_order_3", "dpm", "third order", {"solver_order": 3}),
        )
    },
    "ddim_linspace_20": Arm(  # in 10 steps it leaves so much noise that it is refused
        "Options", "DDIM, timesteps of linspace, 20 steps", "ddim", options={"timestep_spacing": "linspace"}
    ),
    **_grid("ddim", 1000, half=True),
    # added when the tables of the above showed that samplers which add noise again agree better
    **_grid("sde", 10),
    **{f"sde_scale_{scale:g}": Arm(AROUND, f"scale {scale:g}", "sde", scale=scale) for scale in (1.0, 1.5, 3.0)},
    **{
        f"sde_interval_{start:g}_{stop:g}": Arm(
            AROUND, f"scale {SCALE:g} from {start:g} to {stop:g}", "sde", interval=(start, stop)
        )
        for start, stop in ((0.2, 1.0), (0.4, 1.0), (0.1, 0.8))
    },
    **{
        f"sde_guide_{scale:g}_{start:g}": Arm(
            AROUND,
            f"away from a weaker network, scale {scale:g} from {start:g} to 1",
            "sde",
            scale=scale,
            interval=(start, 1.0),
            guide=True,
        )
        for scale, start in ((2.0, 0.0), (2.0, 0.5), (1.5, 0.5))
    },
    "sde_threshold": Arm(AROUND, "dynamic thresholding", "sde", options={"thresholding": True}),
}  # in the order in which they are drawn


def scheduler_name(sampler: str, **options: Any) -> str:
    """Return the name of a sampler's scheduler with its options and further ones, as `new_scheduler` takes it."""
    _, scheduler, own = SAMPLERS[sampler]
    values = {**own, **options}
    texts = (f"{name}={value if isinstance(value, str) else json.dumps(value)}" for name, value in values.items())
    return f"{scheduler}:{','.join(texts)}"


# Drawing -------------------------------------------------------------------------------------------------------------


class Sampling:
    """Draws arms, with the networks and masks of the command line."""

    def __init__(self, args: argparse.Namespace, pairs: PairDataset):
        self.args, self.pairs = args, pairs
        self.pipeline = load_model(args.model, dtype=DTYPES[args.dtype])
        self.scheduler_config = self.pipeline.scheduler.config
        self.guide = None if args.guide is None else load_guide(args.guide, None, self.pipeline)
        networks = [self.pipeline.unet, *([] if self.guide is None else [self.guide])]
        speed_up(*networks, torch_compile=False, channels_last=args.channels_last)
        real = real_images(pairs)
        stems = evenly_spaced(real.stems, args.num_masks)
        self.stems = {"all": stems, "half": stems[::2]}
        for name, chosen in self.stems.items():
            write_masks(args.output / "masks" / name, real.subset(list(map(real.stems.index, chosen))))

    def stems_of(self, arm: Arm) -> list[str]:
        return self.stems["half" if arm.half else "all"]

    def draw(self, name: str) -> None:
        """Draw what is missing of an arm."""
        arm = ARMS[name]
        name_and_options = scheduler_name(arm.sampler, **arm.options)
        self.pipeline.scheduler = new_scheduler(name_and_options, self.scheduler_config)
        start, stop = arm.interval
        settings = GenerationSettings(arm.steps, arm.scale, start, stop, seed=self.args.seed)
        guide = {"guide": self.guide, "guide_name": self.args.guide} if arm.guide else {}
        generate_dataset(
            self.pipeline,
            self.args.output / "masks" / ("half" if arm.half else "all"),
            self.args.output / name,
            settings,
            inputs=Inputs(**guide),
            mask_labels=self.pairs.labels,
            batch_size=self.args.batch_size,
            contact_sheet_rows=0,
        )

    def gflop(self) -> tuple[float, float]:
        """Operations of a forward pass of one image, and of encoding its mask; two for a multiply-add."""
        unet, (height, width) = self.pipeline.unet, self.pairs.resolution
        sample = torch.zeros(1, unet.config.in_channels, height, width, dtype=unet.dtype)
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            features = unet.encode_mask(torch.zeros(1, height, width, dtype=torch.long))
            encoding = counter.get_total_flops()
            unet(sample, 1, mask_features=features)
        return (counter.get_total_flops() - encoding) / 1e9, encoding / 1e9


# Figures -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Read:
    """What is known of the images of one arm, or of photos; N images by name of their masks."""

    stems: tuple[str, ...]
    matrices: torch.Tensor  # (N, C, C + 1) counts: rows ground truth, columns what the judge reads, last: no class
    features: torch.Tensor  # (N, D)
    images: torch.Tensor  # uint8 (N, 3, H, W)

    def of(self, stems: list[str]) -> "Read":
        places = [self.stems.index(stem) for stem in stems]
        return Read(tuple(stems), self.matrices[places], self.features[places], self.images[places])


class Reader:
    """Judge and feature network, which need not read again what they have read."""

    def __init__(self, args: argparse.Namespace, pairs: PairDataset, input_size: tuple[int, int] | None = None):
        self.judge: Judge = load_judge(args.segmenter, pairs.labels)
        self.extractor = load_extractor(args.features, input_size=input_size)
        self.cache, self.pairs = args.output / "cache", pairs

    def read(self, images: ImageSet) -> Read:
        identity = self.judge.identity(self.pairs.resolution)
        found = cached_inference(self.judge.read, images, identity=identity, folder=self.cache)
        features = cached_inference(self.extractor, images, identity=self.extractor.describe(), folder=self.cache)
        pixels = torch.stack([images.image(index) for index in range(len(images))])
        return Read(images.stems, confusion_counts(images, found), features, pixels)


def confusion_counts(images: ImageSet, predictions: torch.Tensor) -> torch.Tensor:
    """Counts (N, C, C + 1) of each image's classes, and of what was predicted for them, as in `Read`."""
    labels, matrices = images.labels, []
    for index, prediction in enumerate(predictions):
        matrix = new_confusion_matrix(labels.num_classes, labels.ignore_index)
        update_confusion_matrix(matrix, prediction, images.mask(index))
        matrices.append(matrix.compute()[:-1])  # (C, C + 1)
    return torch.stack(matrices)


def class_iou(matrices: torch.Tensor) -> torch.Tensor:
    """IoU of each class, of counts (..., C, C + 1): (..., C)."""
    counts = matrices.double()
    correct, truth, read = counts.diagonal(dim1=-2, dim2=-1), counts.sum(-1), counts.sum(-2)[..., :-1]
    return correct / (truth + read - correct).clamp(min=1)


def mean_iou(matrices: torch.Tensor) -> torch.Tensor:
    """Mean IoU over the classes that masks hold, of counts (..., C, C + 1): (...)."""
    present = matrices.sum(-1) > 0
    return torch.where(present, class_iou(matrices), 0).sum(-1) / present.sum(-1)


def agreement(matrices: torch.Tensor, names: Sequence[str]) -> dict[str, Any]:
    """Mean IoU, and the IoU of each class that masks hold, of counts of images (N, C, C + 1)."""
    counts = matrices.sum(0)
    iou, present = class_iou(counts), counts.sum(1) > 0
    return {
        "mean_iou": mean_iou(counts).item(),
        "iou": {name: iou[index].item() for index, name in enumerate(names) if present[index]},
    }


def accuracy(matrices: torch.Tensor) -> torch.Tensor:
    """Share of the labelled pixels that are read as their class, of counts (..., C, C + 1): (...)."""
    counts = matrices.double()
    return counts.diagonal(dim1=-2, dim2=-1).sum(-1) / counts.sum((-2, -1))


def detail(images: torch.Tensor) -> torch.Tensor:
    """Mean difference of neighbouring pixels of images (N, 3, H, W), in levels of 255: (N,)."""
    levels = images.double()
    return (levels.diff(dim=-1).abs().mean((1, 2, 3)) + levels.diff(dim=-2).abs().mean((1, 2, 3))) / 2


def contrast(images: torch.Tensor) -> torch.Tensor:
    """Standard deviation of the brightness of images (N, 3, H, W), in levels of 255: (N,)."""
    return images.double().mean(1).flatten(1).std(1)


def resampled(count: int, seed: int) -> torch.Tensor:
    """How often each mask is taken in each resampling, (RESAMPLINGS, count)."""
    random = torch.Generator().manual_seed(seed)
    chosen = torch.randint(count, (RESAMPLINGS, count), generator=random)
    return torch.zeros(RESAMPLINGS, count, dtype=torch.float64).scatter_add_(
        1, chosen, torch.ones(RESAMPLINGS, count, dtype=torch.float64)
    )


def interval(value: torch.Tensor, samples: torch.Tensor) -> dict[str, float]:
    """A difference, with the 95 % interval of what resampled masks give."""
    low, high = torch.quantile(samples, torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    return {"difference": value.item(), "low": low, "high": high}


def difference(arm: Read, reference: Read, seed: int) -> dict[str, Any]:
    """Arm less reference over the same masks, each figure with its 95 % interval of resampled masks."""
    weights = resampled(len(arm.stems), seed)
    both = [read.matrices.double() for read in (arm, reference)]

    def of_set(figure: Callable[[torch.Tensor], torch.Tensor]) -> dict[str, float]:
        value = figure(both[0].sum(0)) - figure(both[1].sum(0))
        samples = [figure(torch.einsum("rn,nij->rij", weights, counts)) for counts in both]
        return interval(value, samples[0] - samples[1])

    def of_masks(values: torch.Tensor) -> dict[str, float]:
        return interval(values.mean(), weights @ values / len(values))

    return {
        "masks": len(arm.stems),
        "mean_iou": of_set(mean_iou),
        "mask_mean_iou": of_masks(mean_iou(both[0]) - mean_iou(both[1])),
        "mask_accuracy": of_masks(accuracy(both[0]) - accuracy(both[1])),
    }


def figures(read: Read, photos_of: Read, all_photos: torch.Tensor, seed: int) -> dict[str, Any]:
    """What is said of an arm alone: agreement, distance to the photos by features, detail and contrast by theirs."""
    kernel = kid(all_photos, read.features, seed=seed)
    return {
        "mean_iou": mean_iou(read.matrices.sum(0)).item(),
        "accuracy": accuracy(read.matrices.sum(0)).item(),
        "mask_mean_iou": mean_iou(read.matrices).mean().item(),
        "mask_accuracy": accuracy(read.matrices).mean().item(),
        "kid": kernel.mean,
        "kid_std": kernel.std,
        "fid": fid(all_photos, read.features),
        "detail": (detail(read.images).mean() / detail(photos_of.images).mean()).item(),
        "contrast": (contrast(read.images).mean() / contrast(photos_of.images).mean()).item(),
    }


def distance(images: torch.Tensor, others: torch.Tensor) -> float:
    """Root mean square difference of images (N, 3, H, W) in levels of 255, mean over images."""
    return (images.double() - others.double()).square().mean((1, 2, 3)).sqrt().mean().item()


def collect(args: argparse.Namespace, sampling: Sampling, reader: Reader) -> dict[str, Any]:
    """All that is done so far."""
    pairs = sampling.pairs
    real = reader.read(real_images(pairs))
    train = load_pairs(args.dataset, "train")
    others = real_images(train).subset([place * len(train) // args.num_masks for place in range(args.num_masks)])
    features = extract(reader.extractor, (others.image(index) for index in range(len(others))))
    read, arms = {}, {}
    for name in ARMS:
        if (args.output / name / "metadata.jsonl").exists():
            images = generated_images(args.output / name, pairs)
            if len(images) == len(sampling.stems_of(ARMS[name])):
                read[name] = reader.read(images)
    of_pass, of_encoding = sampling.gflop()
    for name, found in read.items():
        arm, stems = ARMS[name], list(found.stems)
        encodings = (
            2 if arm.scale != 1 else 1
        )  # the mask by the network and, guided, none by it or the mask by the guide
        gflop = arm.passes * of_pass + encodings * of_encoding
        values = {**asdict(arm), "masks": len(stems), "passes": arm.passes, "gflop": gflop}
        values |= figures(found, real.of(stems), real.features, args.seed)
        values["against"] = {}
        for reference in REFERENCES:
            if reference in read and reference != name:
                shared = [stem for stem in stems if stem in read[reference].stems]
                values["against"][reference] = difference(found.of(shared), read[reference].of(shared), args.seed)
        same_equation = arm.sampler in ODE and not arm.guide and not arm.options and arm.interval == (0.0, 1.0)
        if same_equation and arm.scale == SCALE and "ddim_1000" in read and name != "ddim_1000":
            shared = [stem for stem in stems if stem in read["ddim_1000"].stems]
            values["from_solution"] = distance(found.of(shared).images, read["ddim_1000"].of(shared).images)
        arms[name] = values
    of_masks = real.of(sampling.stems["all"])
    return {
        "kind": "sampling",
        "arms": arms,
        "real": {**figures(of_masks, of_masks, real.features, args.seed), "kid": None, "fid": None},
        "floor": {"fid": fid(real.features, features), "kid": kid(real.features, features, seed=args.seed).mean},
        "gflop_a_pass": of_pass,
        "references": [name for name in REFERENCES if name in read],
        "dtype": args.dtype,
        "seed": args.seed,
        "split": args.split,
        "resolution": list(pairs.resolution),
        "num_masks": args.num_masks,
        "num_photos": len(pairs),
        "segmenter": reader.judge.describe(pairs.resolution),
        "features": reader.extractor.describe(),
        "commit": code_commit(),
        "versions": versions("torch", "diffusers", "transformers", "torchmetrics"),
    }


def tables(record: dict[str, Any]) -> str:
    """The results as Markdown, a table for each group of arms: those of docs/results/sampling.md."""
    references = [name for name in IN_TABLES if name in record["arms"]]
    heads = ["less the default" if name == DEFAULT else f"less {SHORT[name]}" for name in references]
    lines = []
    for group in dict.fromkeys(arm["group"] for arm in record["arms"].values()):
        lines += [f"\n{group}\n", f"| arm | GFLOP | mean IoU | {' | '.join(heads)} | KID | detail |"]
        lines.append("|---" + "|---:" * (4 + len(heads)) + "|")
        order = sorted(
            record["arms"].items(), key=lambda item: (list(SAMPLERS).index(item[1]["sampler"]), item[1]["steps"])
        )
        for name, arm in order if group == SAMPLERS_AND_STEPS else record["arms"].items():
            if arm["group"] == group or name == (DEFAULT if group == AROUND else "dpm_20"):
                cells = [arm["what"], f"{arm['gflop']:,.0f}", f"{arm['mean_iou']:.3f}"]
                cells += [interval_text(arm["against"].get(reference, {}).get("mean_iou")) for reference in references]
                lines.append(f"| {' | '.join(cells)} | {arm['kid']:.3f} | {arm['detail']:.2f} |")
    real, floor = record["real"], record["floor"]
    lines.append(f"\nPhotos: mean IoU {real['mean_iou']:.3f}. As many training photos: KID {floor['kid']:.3f}.")
    return "\n".join(lines)


def interval_text(found: dict[str, float] | None, digits: str = ".3f") -> str:
    """A difference with its interval."""
    if found is None:
        return ""
    value, low, high = (f"{found[key]:+{digits}}" for key in ("difference", "low", "high"))
    return f"{value} ({low} to {high})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="run folder or Hub id")
    parser.add_argument("--guide", help="a weaker model of the same data, for autoguidance; without it, none")
    parser.add_argument("--dataset", required=True, help="prepared folder with the splits train and val")
    parser.add_argument("--segmenter", required=True, help="the judge: a folder of `semseg-diffusers segmenter`")
    parser.add_argument("--features", required=True, help="network that fidelity is measured with")
    parser.add_argument("--output", type=Path, required=True, help="folder to make, or to continue")
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS), help="default: all")
    parser.add_argument("--split", default="val", help="default val")
    parser.add_argument("--dtype", choices=DTYPES, default="float32", help="of the network (default float32)")
    parser.add_argument("--num_masks", type=int, default=32, help="of the split, at even distances (default 32)")
    parser.add_argument("--channels_last", action="store_true", help="as generate takes it")
    parser.add_argument("--batch_size", type=int, default=8, help="default 8")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    args.output.mkdir(parents=True, exist_ok=True)
    pairs = load_pairs(args.dataset, args.split)
    sampling, reader = Sampling(args, pairs), Reader(args, pairs)
    for name in args.arms:
        if ARMS[name].guide and args.guide is None:
            continue
        start = time.perf_counter()
        sampling.draw(name)
        print(f"{name}: {time.perf_counter() - start:.0f} s", flush=True)
    record = collect(args, sampling, reader)
    write_json(args.output / "sampling.json", record)
    write_sampling_page(args.output / "sampling.html", record, pairs, args.dataset, args.output)
    write_sheets(record, pairs, args.output)
    print(tables(record))


if __name__ == "__main__":
    main()
