"""Filters generated images by what a segmentation network predicts, and writes the filtered dataset."""

import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
import torch

from semseg_diffusers.data.dataset import MissingSplitError, PairDataset, column_options, load_pairs
from semseg_diffusers.data.dataset_format import plain_load_note
from semseg_diffusers.data.labels import LabelSet
from semseg_diffusers.data.settings import SPLITS
from semseg_diffusers.evaluation.features import check_reads
from semseg_diffusers.evaluation.filtering import rules
from semseg_diffusers.evaluation.filtering.filter_page import choose_examples, example_pictures, write_filter_page
from semseg_diffusers.evaluation.filtering.output import (
    PAGE_FILE,
    READ,
    check_output,
    filter_masks,
    publish,
    read_generated,
)
from semseg_diffusers.evaluation.inputs import check_one_size, generated_images
from semseg_diffusers.evaluation.segmentation.judge import Judge, load_judge
from semseg_diffusers.evaluation.segmentation.segmenter import ensure_segmenter
from semseg_diffusers.evaluation.settings import (
    FILTER_SEED,
    REFERENCE_SPLIT,
    SEGMENTER_FOLDER,
    FilterCommandSettings,
    FilterSettings,
)
from semseg_diffusers.generation.model import DTYPES
from semseg_diffusers.generation.output_folder import NO_SETTINGS, sole_run
from semseg_diffusers.utils.distributed import choose_device
from semseg_diffusers.utils.files import code_commit, hash_json, is_temporary, versions, write_json


@dataclass(frozen=True)
class Real:
    """The real images that losses are measured on.

    Args:
        pairs: images the generator was trained on; their mean class losses set the thresholds.
        name: dataset and split, for the record.
        reference: images that neither network was trained on, to measure what the rule keeps of them; None skips it.
        reference_name: dataset and split of these.
    """

    pairs: PairDataset
    name: str
    reference: PairDataset | None = None
    reference_name: str | None = None


def filter_dataset(
    generated: str | os.PathLike,
    real: Real,
    segmenter: Judge,
    output: str | os.PathLike,
    settings: FilterSettings | None = None,
    *,
    judged_by: Mapping[str, Any] | None = None,
    class_losses: str | os.PathLike | None = None,
    dtype: torch.dtype = torch.float32,
    batch_size: int = 8,
    seed: int = 0,
    show_progress: bool = False,
) -> dict[str, Any]:
    """Write a copy of a generated dataset in which labels that a network does not confirm are unknown.

    The same call resumes an interrupted run, and updates the output after images were added. The generated folder is
    not modified.

    Args:
        generated: folder written by `generate`.
        real: real images with masks, of the same size and classes.
        segmenter: the network that filters, from `load_judge`.
        output: folder to create or resume.
        settings: how strictly to filter.
        judged_by: name and hash of the network that evaluates later, for the record.
        class_losses: another folder filtered with this network and these real images, whose losses are reused.
        dtype: of the network.
        batch_size: images per forward pass; changes losses only by rounding.
        seed: of the example images on the page.
        show_progress: show progress bars on stderr.

    Returns:
        the content of `filter.json`.

    Raises:
        FileNotFoundError: no such folder.
        ValueError: folders, sizes, classes or network do not match; an output with other settings.
    """
    settings, generated, output = settings or FilterSettings(), Path(generated), Path(output)
    reader = rules.LossReader(segmenter, batch_size, show_progress)
    started = datetime.now(timezone.utc).isoformat(timespec="seconds")

    # 1. Check all inputs
    if batch_size < 1:
        raise ValueError(f"--batch_size must be at least 1; got {batch_size}.")
    rows, generation = read_generated(generated)
    images, labels = generated_images(generated, real.pairs), real.pairs.labels
    zeros = torch.zeros(2, *real.pairs.resolution, dtype=torch.uint8)
    name = segmenter.describe(real.pairs.resolution)["name"]
    check_reads(lambda noise: segmenter.losses(noise, zeros), f"--segmenter '{name}'", real.pairs.resolution)
    key = rules.losses_key(segmenter, dtype, real.pairs)
    recorded = {
        **{field.name: getattr(settings, field.name) for field in fields(FilterSettings)},
        "segmenter_sha256": segmenter.weights_sha256,
        "class_losses": key,  # of the segmenter, its input size and the real images
        "images": hash_json({name: value for name, value in generation.items() if name not in NO_SETTINGS})[:16],
    }
    check_output(output, generated, recorded)
    losses = rules.find_class_losses(output if class_losses is None else class_losses, key)
    if losses is None and class_losses is not None:
        raise ValueError(
            f"--class_losses '{os.fspath(class_losses)}' holds no {rules.FILTER_FILE} with the class losses of this "
            "segmenter on these images. Give a folder that was filtered with both, or omit the option to compute them."
        )

    with sole_run(output, "filtering into"):
        for path in filter(is_temporary, (output / READ).glob("*")):
            path.unlink(missing_ok=True)

        # 2. Mean losses of each class on real images, and thresholds from them
        losses = losses or rules.compute_class_losses(reader, real.pairs, key)
        thresholds = losses.thresholds(settings.tolerance_margin, settings.keep_unchecked)
        record: dict[str, Any] = {
            "kind": "filter",
            "settings": recorded,
            "segmenter_sha256": segmenter.weights_sha256,
            "segmenter": segmenter.describe(real.pairs.resolution),
            "judge": None if judged_by is None else dict(judged_by),
            "generated": os.fspath(generated),
            "real": real.name,
            "class_losses": asdict(losses),
        }
        write_json(output / rules.FILTER_FILE, record)  # first: it marks the folder as ours
        (output / READ).mkdir(exist_ok=True)
        reference = None
        if real.reference is not None:
            reference = {"name": real.reference_name, **rules.kept_share_on_real(reader, real.reference, thresholds)}

        # 3. Filter the masks of the images, then choose the images
        scored = filter_masks(reader, images, rows, generated, output, thresholds, real.pairs)
        hardness = {image.stem: rules.mask_hardness(np.array(image.pixels), losses.array()) for image in scored}
        ranks = rules.ranks_of(hardness)
        reasons = rules.reasons_to_drop(scored, settings.minimum_kept, ranks if settings.resample else None)

        # 4. Write dataset, page and record
        groups = ([image for image in scored if (image.name in reasons) == drop] for drop in (False, True))
        kept, dropped = (_rows(rows, group, hardness, ranks, reasons, labels) for group in groups)
        summary = {name: value for name, value in recorded.items() if name not in ("class_losses", "images")}
        summary |= {"num_images": len(scored), "num_kept": len(kept)}
        publish(output, generated, labels, {**generation, "filter": summary}, kept, dropped)
        record |= {
            "reference": reference,
            "results": _results(scored, reasons, labels),
            "seed": seed,
            "commit": code_commit(),
            "versions": versions("torch", "transformers"),
            "started": started,
        }
        examples = choose_examples(scored, reasons, seed)
        pictures = example_pictures(examples, images, rows, segmenter, thresholds, real.pairs)
        write_filter_page(output / PAGE_FILE, record, scored, reasons, examples, pictures, labels)
        write_json(output / rules.FILTER_FILE, record)
    return record


def _rows(
    rows: Sequence[Mapping[str, Any]],
    images: Sequence[rules.Scored],
    hardness: Mapping[str, float | None],
    ranks: Mapping[str, int],
    reasons: Mapping[str, str],
    labels: LabelSet,
) -> list[dict[str, Any]]:
    """Return the metadata rows of kept or of dropped images, with their scores."""
    row_of = {Path(row["image_file_name"]).stem: row for row in rows}
    present = [name for label, name in enumerate(labels.names) if any(image.pixels[label] for image in images)]
    result = []
    for image in images:
        shares = rules.kept_shares(np.array(image.pixels), np.array(image.kept), labels)
        hard = hardness[image.stem]
        row = {
            **row_of[image.name],
            "segmenter_loss": image.loss,
            "kept_share": shares["kept_share"],
            "kept_share_by_class": {name: shares["kept_share_by_class"].get(name) for name in present},
            "mask_hardness": None if hard is None else round(hard, 6),
            "mask_rank": ranks[image.stem],
        }
        result.append(row | ({"reason": reasons[image.name]} if image.name in reasons else {}))
    return result


def _results(scored: Sequence[rules.Scored], reasons: Mapping[str, str], labels: LabelSet) -> dict[str, Any]:
    """Return the counts of kept and dropped images, pixels and labels."""
    before = np.array([image.pixels for image in scored])  # (N, num_classes)
    after = np.array([image.kept for image in scored])
    is_kept = np.array([image.name not in reasons for image in scored])
    kept_before, kept_after = before[is_kept].sum(0), after[is_kept].sum(0)  # (num_classes,)
    shares = [image.kept_share for image in scored if image.kept_share is not None]
    return {
        "num_images": len(scored),
        "num_kept": int(is_kept.sum()),
        "num_masks": len({image.stem for image in scored}),
        "num_masks_kept": len({image.stem for image in scored if image.name not in reasons}),
        "num_dropped": {reason: list(reasons.values()).count(reason) for reason in rules.REASONS},
        **rules.kept_shares(before.sum(0), after.sum(0), labels),  # of all images, dropped ones too
        "least_kept_share": None if not shares else round(min(shares), 6),
        "kept_share_of_kept_images": rules.kept_shares(kept_before, kept_after, labels)["kept_share"],
        "pixels": dict(zip(labels.names, before.sum(0).tolist(), strict=True)),
        "pixels_left": dict(zip(labels.names, kept_after.tolist(), strict=True)),
    }


def run(settings: FilterCommandSettings) -> int:
    """Filter and print a summary; returns 1 if no image is kept, else 0."""
    device = choose_device(settings.device)
    columns, dtype = column_options(settings), DTYPES[settings.dtype]
    pairs = load_pairs(settings.dataset, settings.split, **columns)
    reference, reference_name = None, None
    split = settings.reference_split or REFERENCE_SPLIT
    if split != "none" and (settings.reference_split or SPLITS.get(settings.split, settings.split) != REFERENCE_SPLIT):
        try:
            reference = load_pairs(settings.dataset, split, **columns)
            check_one_size(pairs, reference)
            reference_name = f"{settings.dataset} ({split})"
        except MissingSplitError:
            if settings.reference_split:
                raise
    later = None
    if settings.judge is not None:
        later = load_judge(settings.judge, pairs.labels, revision=settings.judge_revision, option="--judge")
    segmenter = settings.segmenter
    if segmenter is None:
        generated, output = Path(settings.generated), Path(settings.output)
        read_generated(generated)  # all that can be checked without it
        generated_images(generated, pairs)
        check_output(output, generated)
        segmenter = str(output.parent / SEGMENTER_FOLDER)  # beside: the output is a dataset
        ensure_segmenter(settings.default_segmenter(segmenter, "train", FILTER_SEED, device))
    judge = load_judge(
        segmenter,
        pairs.labels,
        revision=settings.segmenter_revision,
        input_size=settings.segmenter_size,
        device=device,
        dtype=dtype,
    )
    judged_by = None
    if later is not None:
        judged_by = {"name": settings.judge, "weights_sha256": later.weights_sha256}
        if later.weights_sha256 == judge.weights_sha256 and not settings.allow_same_network:
            raise ValueError(
                f"--judge '{settings.judge}' is the network that filters the images ({judge.weights_sha256}): it "
                "selected what it agrees with, so its scores of them, or of a network trained on them, are no "
                "evidence. Train another one (`semseg-diffusers segmenter` with another --architecture), or give "
                "--allow_same_network."
            )
    record = filter_dataset(
        settings.generated,
        Real(pairs, f"{settings.dataset} ({settings.split})", reference, reference_name),
        judge,
        settings.output,
        settings,
        judged_by=judged_by,
        class_losses=settings.class_losses,
        dtype=dtype,
        batch_size=settings.batch_size,
        seed=settings.seed,
        show_progress=True,
    )
    results, of_real = record["results"], record["reference"]
    text = f"{results['num_kept']} of {results['num_images']} images kept"
    dropped = [f"{count} {reason}" for reason, count in results["num_dropped"].items() if count]
    text += f" (dropped: {', '.join(dropped)})" if dropped else ""
    if results["kept_share"] is not None:
        text += f"; {100 * results['kept_share']:.1f} % of the labelled pixels keep their label"
    if of_real is not None and of_real["kept_share"] is not None:
        text += f", of real images {100 * of_real['kept_share']:.1f} %"
    sys.stdout.write(f"{text}\n{settings.output}, page: {settings.output}/{PAGE_FILE}\n")
    sys.stdout.write(plain_load_note(settings.output))
    return 0 if results["num_kept"] else 1
