"""What each part of the training recipe brings: the paper's recipe, ours, and ours with one part left out or added.

Every arm trains on the same pairs with the same number of operations (forward passes of its own network, so a cheaper
network sees more images), with each seed, and is read by `evaluate` on the validation split: same masks, sampler,
steps, guidance and judge. Arms were fixed here before any of them was trained, but for the last two of `ARMS`, which
were added later. Finished work is kept: the same command resumes. Prints a table and writes `recipes.json` and
`recipes.html`.

The paper's recipe is scaled: its network at a width that costs about what ours does, its schedule, loss, optimizer and
mask dropout as published, the start of its average at the same share of the run.
"""

import argparse
import dataclasses

from arms import COMMON, collect, evaluate, run_arms, study_parser, train, with_budget
from arms_page import by_agreement, write_arms_page

from semseg_diffusers.training.networks import RAW
from semseg_diffusers.training.settings import TrainingSettings
from semseg_diffusers.utils.files import write_json


OURS = {"lr_warmup_steps": 50}
PAPER_WIDTH = {"hidden_dim": 16, "emb_dim": 32}  # 3.4 GFLOP a forward pass at 128 x 128; our default takes 4.0
# name -> (what it is, settings beside COMMON)
ARMS = {
    "ours": ("the default recipe", OURS),
    "paper": (
        "the paper's recipe, its network 16 channels wide",
        {**TrainingSettings.PRESETS["paper"], **PAPER_WIDTH},
    ),
    "epsilon": ("ours, without v prediction: the noise is predicted", {**OURS, "prediction_type": "epsilon"}),
    "no_min_snr": ("ours, without Min-SNR weights", {**OURS, "snr_gamma": None}),
    "no_patch_stem": ("ours, without the patch stem: all maps four times as large", {**OURS, "patch_size": 1}),
    "no_flip": ("ours, without mirrored pairs", {**OURS, "horizontal_flip": False}),
    # added after the others were started, when group norms of one channel were found to keep the time out of the head
    "groups_4": ("ours, group norms of 4 groups in place of 16", {**OURS, "norm_num_groups": 4}),
    # added later; judge it by other --features than those of its loss
    "perceptual": ("ours, with a perceptual loss of weight 0.1", {**OURS, "perceptual_weight": 0.1}),
}
# arms that take the last step's weights of another arm's training: name -> (what it is, arm)
RAW_WEIGHTS = {"no_ema": ("ours, without the average of the weights: the last step's", "ours")}


def arm_settings(args: argparse.Namespace, arm: str, seed: int) -> TrainingSettings:
    """The settings of an arm, its steps chosen so that the operations of its forward passes sum up to the budget."""
    values = {**COMMON, **ARMS[arm][1], **{name: COMMON[name] for name in ("train_batch_size", "mixed_precision")}}
    folder = str(args.output / f"{arm}-{seed}")
    settings = with_budget(TrainingSettings(dataset=args.dataset, output_dir=folder, seed=seed, **values), args.gflop)
    if settings.ema_warmup:
        return settings
    return dataclasses.replace(settings, ema_start_step=round(0.01 * settings.max_train_steps))  # 2,000 of 196,000


def collect_all(args: argparse.Namespace) -> dict:
    arms = {arm: (what, changes, arm) for arm, (what, changes) in ARMS.items()}
    arms |= {arm: (what, {}, source) for arm, (what, source) in RAW_WEIGHTS.items()}
    return collect(args, "recipes", arms)


def table(record: dict) -> str:
    """The results as Markdown, the best arm first."""
    lines = ["| arm | mean IoU of each seed | pixel accuracy | FID | images seen |", "|---|---|---|---|---|"]
    for _, arm in by_agreement(record):
        ious, mean = ", ".join(f"{one['mean_iou']:.3f}" for one in arm["runs"]), arm["mean"]
        images = arm["runs"][0]["training"]["images"]
        lines.append(f"| {arm['what']} | {ious} | {mean['pixel_accuracy']:.3f} | {mean['fid']:.1f} | {images:,} |")
    for name, row in (("real photos", "ceiling"), ("images of the default recipe against masks of others", "floor")):
        lines.append(f"| {name} | {record[row]['mean_iou']:.3f} | {record[row]['pixel_accuracy']:.3f} | | |")
    return "\n".join(lines)


def main() -> None:
    parser = study_parser(__doc__)
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS), help="default: all")
    args = parser.parse_args()
    args.output.mkdir(parents=True, exist_ok=True)

    def one(arm: str, seed: int) -> None:
        folder = args.output / f"{arm}-{seed}"
        train(folder, arm_settings(args, arm, seed))
        evaluate(args, folder, folder.name)
        for name, (_, source) in RAW_WEIGHTS.items():
            if source == arm:
                evaluate(args, folder, f"{name}-{seed}", ("--variant", RAW))

    def after() -> None:
        write_json(args.output / "recipes.json", collect_all(args))

    run_arms(args, one, after, [(arm, seed) for seed in args.seeds for arm in args.arms])
    record = collect_all(args)
    write_json(args.output / "recipes.json", record)
    write_arms_page(args.output / "recipes.html", "Recipes of training", record, args.dataset, args.output)
    print(table(record))


if __name__ == "__main__":
    main()
