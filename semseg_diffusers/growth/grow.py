"""From a data set to a better segmentation network, in one command: what the masks lack, new masks that have more of
it, images of them, a filter, a study of what they bring, and the data set grown by them.

  semseg-diffusers grow --dataset data/camvid128 --model runs/camvid128 --output grown
  semseg-diffusers grow --dataset data/camvid128 --output grown --set train.max_train_steps=6000 study.jobs=2

Without --model a diffusion model is trained first. Every stage is a command of this package in a folder of its own
(`statistics`, `train`, `enrich`, `generate`, `segmenter`, `filter`, `study`, `merge`), printed before it runs, so that
each can be looked at, done by hand or done otherwise. The same command goes on where an interrupted one ended.
`index.html` puts together what they found; `grow.json` keeps which are done.
"""

import argparse
import subprocess
import sys
from pathlib import Path

from semseg_diffusers.data.dataset import add_column_arguments, column_options, load_pairs
from semseg_diffusers.growth.merge import record_of_photos
from semseg_diffusers.growth.settings import GrowSettings, default_wishes, make_stage
from semseg_diffusers.growth.stages import LAUNCHED, STAGES, Progress, Stage, read_changes
from semseg_diffusers.reports.growth_page import write_growth_page
from semseg_diffusers.utils.distributed import exclusive_folder, route_signals


STATE_FILE, PAGE_FILE = "grow.json", "index.html"


class StageError(ValueError):
    """A stage has ended with an error, which it has told itself."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--dataset", required=True, metavar="DIR|ID", help="prepared folder, or a data set on the Hub")
    add_column_arguments(parser)
    parser.add_argument("--output", required=True, type=Path, metavar="DIR", help="folder to make, or to go on in")
    parser.add_argument("--model", metavar="DIR|ID", help="diffusion model (default: one is trained first)")
    parser.add_argument("--masks", metavar="DIR", help="masks to draw from (default: new ones are made)")
    parser.add_argument(
        "--filter_segmenter", metavar="DIR|ID", help="network that filters (default: one is trained first)"
    )
    parser.add_argument("--num_masks", type=int, help="new masks (default: as many as there are training photos)")
    parser.add_argument("--num_images_per_mask", type=int, default=2, help="default %(default)s")
    parser.add_argument(
        "--wish",
        nargs="+",
        default=[],
        metavar="CLASS=TIMES",
        help="what the new masks are to have more of (default: four times of each weak class that can be placed)",
    )
    parser.add_argument(
        "--amounts",
        nargs="+",
        type=float,
        default=[1.0],
        help="synthetic images in the study, as multiples of the photos (default 1)",
    )
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2], help="of the study (default 0 1 2)")
    parser.add_argument("--seed", type=int, default=0, help="of all other stages (default %(default)s)")
    parser.add_argument("--device", help="default: GPU if any")
    parser.add_argument(
        "--set",
        nargs="+",
        default=[],
        metavar="STAGE.OPTION=VALUE",
        help="any other option of a stage's command; values with commas between them, true for a switch",
    )
    parser.add_argument("--until", choices=list(STAGES), help="last stage to do now (default: all)")
    parser.add_argument(
        "--config_file", metavar="FILE", help="accelerate's, to train and generate in several processes"
    )
    parser.add_argument("--dry_run", action="store_true", help="print the commands, and do nothing")


def run(args: argparse.Namespace) -> int:
    settings = GrowSettings(
        dataset=args.dataset,
        output=args.output,
        model=args.model,
        masks=args.masks,
        filter_segmenter=args.filter_segmenter,
        num_masks=args.num_masks,
        num_images_per_mask=args.num_images_per_mask,
        wish=tuple(args.wish),
        amounts=tuple(args.amounts),
        seeds=tuple(args.seeds),
        seed=args.seed,
        device=args.device,
        image_column=args.image_column,
        mask_column=args.mask_column,
        labels=args.labels,
        changes=read_changes(args.set),
    )
    if args.until is not None and args.until not in settings.stages:
        raise ValueError(f"--until {args.until}: there is no such stage, since its result was given.")
    if args.config_file is not None and not Path(args.config_file).is_file():
        raise ValueError(f"--config_file: there is no file '{args.config_file}'.")
    record_of_photos(settings.dataset)
    pairs = load_pairs(settings.dataset, "train", **column_options(args))
    num_masks = settings.num_masks or len(pairs)
    check = [make_stage(settings, name, settings.wish or ["CLASS=4"], num_masks) for name in settings.stages]
    for stage in check:
        stage.check()
    wish = settings.wish or (default_wishes(pairs) if settings.masks is None else ())
    stages = [make_stage(settings, name, wish, num_masks) for name in settings.stages]
    if args.dry_run:
        sys.stdout.write("".join(f"{stage.command}\n" for stage in stages))
        return 0
    with exclusive_folder(settings.output, "growing in"):
        progress = Progress(settings.output / STATE_FILE)
        for stage in stages:
            progress.check(stage)
            if not progress.is_done(stage.name):
                progress.note(stage, done=False)
                do_stage(stage, args.config_file)
                progress.note(stage, done=True)
            if stage.name == args.until:
                break
        write_growth_page(settings.output / PAGE_FILE, settings, stages, progress)
    sys.stdout.write(f"page: {settings.output / PAGE_FILE}\n")
    return 0


def do_stage(stage: Stage, config_file: str | None) -> None:
    """Run a stage's command in a process of its own, unless its folder is complete.

    Raises:
        StageError: it ended with an error.
    """
    if stage.is_complete:
        return
    sys.stdout.write(f"\n[{stage.name}] {stage.command}\n")
    sys.stdout.flush()
    words = [sys.executable, "-m", "semseg_diffusers.cli", *stage.arguments]
    if config_file is not None and stage.name in LAUNCHED:
        launcher = ["accelerate.commands.launch", "--config_file", config_file, "-m", LAUNCHED[stage.name]]
        words = [sys.executable, "-m", *launcher, *stage.arguments[1:]]
    process = subprocess.Popen(words)
    try:
        with route_signals(lambda number, _: process.send_signal(number)):
            status = process.wait()
    except KeyboardInterrupt:  # the terminal has told the stage as well
        process.wait()
        raise
    if status:
        raise StageError(
            f"stage {stage.name} ended with {status}; what it said stands above. The same command goes on from there."
        )
