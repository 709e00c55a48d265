"""Ways for a mask to enter the network, held against each other: what they cost, and how fast they learn.

Without options it measures costs alone, with random weights: parameters, operations of a forward pass and of a
sampling step (whose mask features are there already), images/s in training, seconds an image at 20 steps with the
features of the mask encoded once, and at each step. The networks take turns. It prints a table and writes JSON.

With --dataset, --segmenter, --features and --output each way is trained too: on the same pairs, with the same number
of operations (forward passes of its own network, so a cheaper one sees more images), with each seed, and read by
`evaluate` on the validation split: same masks, sampler, steps, guidance and judge. Arms were fixed here before any of
them was trained. Finished work is kept: the same command resumes. It writes `conditioning.json`
and `conditioning.html`.

- SDM's network has no patch stem, so even at its narrowest a forward pass takes nine times the operations of ours;
  `sdm_images` lets it see as many images as the default does, for nine times the operations.
- ControlNet needs a network that generates without masks: a plain U-Net, trained on the same photos with the same
  number of operations, which are not counted. `plain` is that U-Net with the mask added in its stem, trained from
  nothing.
"""

import argparse
import dataclasses
import functools
import platform
import statistics
import time
from pathlib import Path

import diffusers
import torch
from diffusers import DPMSolverMultistepScheduler, UNet2DModel
from studies.arms import COMMON, collect, evaluate, run_arms, study_parser, train, with_budget
from studies.arms_page import by_agreement, write_arms_page
from torch.utils.flop_counter import FlopCounterMode

from semseg_diffusers import LabelSet, MaskGuidedDDPMPipeline, MaskGuidedUNet2DModel
from semseg_diffusers.models.unet_mask_control import MaskControlNetModel
from semseg_diffusers.training.networks import build_network
from semseg_diffusers.training.settings import TrainingSettings
from semseg_diffusers.training.source_configs import control_defaults
from semseg_diffusers.utils.files import write_json


SIZE = 128
BATCH = 8
SMALL_SHARE = 0.03  # classes that fill less of the masks are small or thin
PLAIN = {"patch_size": 1, "block_out_channels": (16, 32, 64, 128, 192)}  # 4.6 GFLOP a forward pass at 128 x 128
SDM = {
    "network": "sdm", "block_out_channels": (32, 32, 64, 64), "layers_per_block": 1, "attention_levels": 1,
    "attention_head_dim": 32,
}  # fmt: skip
# name -> (what it is, settings of its network)
WAYS = {
    "add": ("added in the stem (the default)", {}),
    "concat": ("joined to the image's channels", {"mask_conditioning": "concat"}),
    "spade": ("added in the stem, and norms of the decoder modulated", {"mask_conditioning": "spade"}),
    "sdm": ("SDM's network, its narrowest", SDM),
    "plain": ("added in the stem of a U-Net without patches", PLAIN),
    "control": ("ControlNet on that U-Net, frozen", PLAIN),
}
# arms beside the ways themselves: name -> (what it is, way, name of the arm whose number of images it takes)
AS_MANY_IMAGES = {"sdm_images": ("SDM's network, as many images as the default", "sdm", "add")}
RECIPE = {**COMMON, "lr_warmup_steps": 50}


# What they cost ---------------------------------------------------------------------------------------------------


def network_of(way: str, labels: LabelSet) -> torch.nn.Module:
    """The untrained network of a way."""
    if way == "control":
        return MaskControlNetModel.from_unet(
            plain_unet(network_of("plain", labels)), num_classes=labels.num_classes, **labels.to_config()
        )
    settings = TrainingSettings(dataset="none", output_dir="none", **WAYS[way][1])  # neither is opened
    return build_network(settings, labels, (SIZE, SIZE))


def plain_unet(masked: MaskGuidedUNet2DModel) -> UNet2DModel:
    """The part of a network that knows nothing of masks, as diffusers' own class."""
    unet = UNet2DModel.from_config(
        {name: masked.config[name] for name in UNet2DModel().config if name in masked.config}
    )
    own = unet.state_dict()
    unet.load_state_dict({name: weight for name, weight in masked.state_dict().items() if name in own})
    return unet


class Cost:
    """A way's network, and what was measured of it so far."""

    def __init__(self, way: str, labels: LabelSet, steps: int):
        self.unet, self.steps = network_of(way, labels), steps
        for parameter in self.unet.parameters():  # what starts at zero costs as much as what does not
            if parameter.requires_grad and not parameter.any():
                torch.nn.init.normal_(parameter, std=0.02)
        self.mask = torch.randint(0, labels.num_classes, (BATCH, SIZE, SIZE))
        self.sample, self.timestep = torch.randn(BATCH, 3, SIZE, SIZE), torch.randint(0, 1000, (BATCH,))
        trained = [parameter for parameter in self.unet.parameters() if parameter.requires_grad]
        self.optimizer = torch.optim.AdamW(trained, lr=1e-9)
        self.scheduler = DPMSolverMultistepScheduler()
        self.figures = {
            "parameters": self.unet.num_parameters(),
            "trained_parameters": sum(parameter.numel() for parameter in trained),
            **self.operations(),
        }
        self.forget_times()

    def forget_times(self) -> None:
        self.training_seconds: list[float] = []
        self.sampling_seconds: dict[bool, list[float]] = {True: [], False: []}  # by whether features were cached

    @torch.no_grad()
    def operations(self) -> dict[str, float]:
        """GFLOP of one image's forward pass, with its mask and with the features of it."""
        self.unet.eval()
        one, mask = self.sample[:1], self.mask[:1]
        with FlopCounterMode(display=False) as whole:
            self.unet(one, 1, mask=mask)
        features = self.unet.encode_mask(mask, dtype=one.dtype)
        with FlopCounterMode(display=False) as cached:
            self.unet(one, 1, mask_features=features)
        return {"gflop": whole.get_total_flops() / 1e9, "gflop_cached": cached.get_total_flops() / 1e9}

    def train_once(self) -> None:
        """Time one step of training, forward, backward, optimizer, on a batch of `BATCH`."""
        self.unet.train()
        start = time.perf_counter()
        loss = self.unet(self.sample, self.timestep, mask=self.mask).sample.square().mean()
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.training_seconds.append(time.perf_counter() - start)

    @torch.no_grad()
    def sample_once(self, cached: bool) -> None:
        """Time one image, guided at every step: the mask encoded once, or encoded again at each step."""
        self.unet.eval()
        start = time.perf_counter()
        masks = torch.cat([self.mask[:1], torch.full_like(self.mask[:1], 255)])  # with its mask, and without
        mask_inputs = {"mask_features": self.unet.encode_mask(masks)} if cached else {"mask": masks}
        self.scheduler.set_timesteps(self.steps)
        sample = self.sample[:1]
        for timestep in self.scheduler.timesteps:
            masked, unmasked = self.unet(torch.cat([sample] * 2), timestep, **mask_inputs).sample[:, :3].chunk(2)
            sample = self.scheduler.step(unmasked + 3 * (masked - unmasked), timestep, sample).prev_sample
        self.sampling_seconds[cached].append(time.perf_counter() - start)

    def results(self) -> dict:
        """All figures; times are medians over the turns, the ratio that of each turn."""
        pairs = list(zip(self.sampling_seconds[False], self.sampling_seconds[True], strict=True))
        return {
            **self.figures,
            "training_images_per_second": BATCH / statistics.median(self.training_seconds),
            "seconds_an_image": statistics.median(self.sampling_seconds[True]),
            "seconds_an_image_uncached": statistics.median(self.sampling_seconds[False]),
            "times_faster_cached": statistics.median(uncached / cached for uncached, cached in pairs),
            "times_faster_cached_each_turn": [uncached / cached for uncached, cached in pairs],
        }


def measure_costs(ways: list[str], turns: int, steps: int) -> dict[str, dict]:
    """Time the networks in turns, after one turn that is not counted."""
    labels = LabelSet.from_preset("camvid")
    torch.manual_seed(0)
    costs = {way: Cost(way, labels, steps) for way in ways}
    for turn in range(turns + 1):
        for cost in costs.values():
            cost.train_once()
            for cached in (True, False):
                cost.sample_once(cached)
            if turn == 0:
                cost.forget_times()
    return {way: cost.results() for way, cost in costs.items()}


def cost_table(costs: dict[str, dict]) -> str:
    """The costs as Markdown."""
    lines = [
        "| way | parameters (trained) | GFLOP a forward pass | with cached features | training images/s | seconds an "
        "image | uncached | faster cached |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for way, cost in costs.items():
        parameters, trained = cost["parameters"] / 1e6, cost["trained_parameters"] / 1e6
        seconds, uncached = cost["seconds_an_image"], cost["seconds_an_image_uncached"]
        lines.append(
            f"| {WAYS[way][0]} | {parameters:.1f} M ({trained:.1f} M) | {cost['gflop']:.1f} | "
            f"{cost['gflop_cached']:.1f} | {cost['training_images_per_second']:.1f} | {seconds:.2f} | "
            f"{uncached:.2f} | {cost['times_faster_cached']:.2f} |"
        )
    return "\n".join(lines)


# How they learn ---------------------------------------------------------------------------------------------------


def settings_of(args: argparse.Namespace, way: str, folder: Path, seed: int, **more) -> TrainingSettings:
    values = {**RECIPE, **WAYS[way][1], **more}
    settings = TrainingSettings(dataset=args.dataset, output_dir=str(folder), seed=seed, **values)
    return with_budget(settings, args.gflop)


def train_base(args: argparse.Namespace, seed: int) -> Path:
    """Train the base of the ControlNet: a plain U-Net trained without masks, saved as diffusers' own class."""
    run, base = args.output / f"base-{seed}", args.output / f"base-{seed}-unet"
    train(run, settings_of(args, "plain", run, seed, mask_dropout=1.0))
    if not base.exists():
        pipe = MaskGuidedDDPMPipeline.from_pretrained(run)
        beside = base.with_name(f"{base.name}.part")
        plain_unet(pipe.unet).save_pretrained(beside / "unet")
        pipe.scheduler.save_pretrained(beside / "scheduler")
        beside.rename(base)
    return base


def train_and_read(args: argparse.Namespace, arm: str, seed: int) -> None:
    """Train an arm with a seed, and evaluate it."""
    folder = args.output / f"{arm}-{seed}"
    if arm in AS_MANY_IMAGES:
        _, way, like = AS_MANY_IMAGES[arm]
        steps = settings_of(args, like, folder, seed).max_train_steps
        settings = dataclasses.replace(settings_of(args, way, folder, seed), max_train_steps=steps)
    elif arm == "control":
        base = str(train_base(args, seed))
        values = {**RECIPE, **control_defaults(base), "base_model": base}
        settings = TrainingSettings(dataset=args.dataset, output_dir=str(folder), seed=seed, **values)
        settings = with_budget(settings, args.gflop)
    else:
        settings = settings_of(args, arm, folder, seed)
    train(folder, settings)
    evaluate(args, folder, folder.name)


def small_classes(record: dict) -> list[str]:
    """Classes that fill little of the masks: poles, signs, people."""
    return [name for name, share in record["pixel_share"].items() if 0 < share < SMALL_SHARE]


def arms_table(record: dict) -> str:
    """What the arms generated, as Markdown, the best first."""
    small = small_classes(record)
    lines = [
        "| way | mean IoU of each seed | pixel accuracy | IoU of small classes | FID | images seen |",
        "|---|---|---|---|---|---|",
    ]
    for _, arm in by_agreement(record):
        ious = ", ".join(f"{run['mean_iou']:.3f}" for run in arm["runs"])
        thin = statistics.mean(statistics.mean(run["iou"][name] or 0 for name in small) for run in arm["runs"])
        mean, images = arm["mean"], arm["runs"][0]["training"]["images"]
        lines.append(
            f"| {arm['what']} | {ious} | {mean['pixel_accuracy']:.3f} | {thin:.3f} | {mean['fid']:.1f} | {images:,} |"
        )
    for name, row in (("real photos", "ceiling"), ("images of the default against masks of others", "floor")):
        bound = record[row]
        thin = statistics.mean(bound["iou"][name] or 0 for name in small)
        lines.append(f"| {name} | {bound['mean_iou']:.3f} | {bound['pixel_accuracy']:.3f} | {thin:.3f} | | |")
    return "\n".join([*lines, "", f"Small classes: {', '.join(small)}."])


def compare(args: argparse.Namespace) -> dict:
    """Train and read all arms; the record of them, which is written after each."""
    arms = {way: (what, changes, way) for way, (what, changes) in WAYS.items()}
    arms |= {arm: (what, WAYS[way][1], arm) for arm, (what, way, _) in AS_MANY_IMAGES.items()}
    args.output.mkdir(parents=True, exist_ok=True)

    def after() -> None:
        write_json(args.output / "conditioning.json", collect(args, "conditioning", arms))

    run_arms(
        args, functools.partial(train_and_read, args), after, [(arm, seed) for seed in args.seeds for arm in args.arms]
    )
    return collect(args, "conditioning", arms)


def main() -> None:
    parser = study_parser(__doc__, required=False)
    parser.add_argument(
        "--arms", nargs="+", choices=[*WAYS, *AS_MANY_IMAGES], default=list(WAYS), help="of those trained"
    )
    parser.add_argument("--turns", type=int, default=5, help="of each network, for times (5)")
    args = parser.parse_args()
    missing = [name for name in ("segmenter", "features", "output") if args.dataset and not getattr(args, name)]
    if missing:
        parser.error(f"to train, --dataset also needs --{', --'.join(missing)}")
    record = {"kind": "conditioning"} if args.dataset is None else compare(args)
    output = Path("benchmarks/results") if args.output is None else args.output
    record["costs"] = measure_costs(list(WAYS), args.turns, args.steps)
    record["machine"] = {
        "machine": platform.machine(), "num_threads": torch.get_num_threads(), "torch": torch.__version__,
        "diffusers": diffusers.__version__, "resolution": [SIZE, SIZE], "training_batch": BATCH, "steps": args.steps,
    }  # fmt: skip
    print(cost_table(record["costs"]))
    if args.dataset is not None:
        print(f"\n{arms_table(record)}")
        title = "Ways for a mask to enter the network"
        write_arms_page(output / "conditioning.html", title, record, args.dataset, output)
    output.mkdir(parents=True, exist_ok=True)
    write_json(output / "conditioning.json", record)
    print(f"written: {output / 'conditioning.json'}")


if __name__ == "__main__":
    main()
