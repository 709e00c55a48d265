"""Trains segmentation networks, for `segmenter` and each arm of a `study`: labelled images, augmentation, loop.
One generator provides all randomness of the data, so a seed determines every batch.
"""

import itertools
import math
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from semseg_diffusers.data.labels import LabelSet
from semseg_diffusers.evaluation.metrics import SegmentationScores, score_pairs
from semseg_diffusers.evaluation.segmentation.networks import Preprocessing, autocast, compute_logits
from semseg_diffusers.evaluation.segmentation.synthetic import (
    SyntheticPairs,
    Teacher,
    mixed_batches,
    shuffled_batches,
)
from semseg_diffusers.evaluation.settings import Recipe, SegmenterTrainingOptions


WARMUP_SHARE = 0.1  # of the steps, then cosine decay to zero
WEIGHT_DECAY = 0.01
MAX_GRAD_NORM = 1.0
LOGGING_STEPS = 20  # steps averaged in a line of the log
VALIDATION_BATCH_SIZE = 16
POLY_POWER = 0.9
# Copy-paste takes classes that have less than this share of the pixels that they would have if all had the same.
RARE = 0.25
SCHEDULES = {
    "one_cycle": "linear warm-up, cosine to zero",
    "poly": f"linear warm-up, polynomial of power {POLY_POWER} to zero",
}


def describe_recipe(recipe: Recipe) -> dict[str, Any]:
    """Return what a training does, as JSON; saved with the results. What it leaves out is not listed."""
    added = ("encoder_lr_scale", "crop", "saturation", "copy_paste")
    neutral = Recipe()
    return {
        "optimizer": "AdamW",
        "weight_decay": WEIGHT_DECAY,
        "schedule": SCHEDULES[recipe.lr_scheduler],
        "warmup_share": WARMUP_SHARE,
        "max_grad_norm": MAX_GRAD_NORM,
        "loss": "cross entropy, classes weighted by 1 / sqrt(share of pixels)",
        "horizontal_flip": recipe.flip,
        "min_crop": 1 / recipe.scale[1],
        "brightness": recipe.brightness,
        "contrast": recipe.contrast,
        **({} if recipe.scale[0] == neutral.scale[0] else {"max_crop": 1 / recipe.scale[0]}),
        **{name: getattr(recipe, name) for name in added if getattr(recipe, name) != getattr(neutral, name)},
    }


class LabelledImages:
    """Image-mask pairs of one size, a `PairDataset` for example, with pixel counts of each class.

    Labels, resolution and counts are those of `like`, if given.
    """

    def __init__(self, pairs: Any, like: "LabelledImages | None" = None):
        if len(pairs) == 0:
            raise ValueError("expected at least one image-mask pair; the dataset is empty.")
        self.labels: LabelSet = (like or pairs).labels
        self.resolution: tuple[int, int] = (like or pairs).resolution  # height, width
        self._pairs = pairs
        counts = []
        for index in range(len(pairs)):
            mask = pairs[index]["mask"]
            counts.append(torch.bincount(mask[mask != self.labels.ignore_index], minlength=self.labels.num_classes))
        self.counts = torch.stack(counts)  # (N, num_classes), pixels of each class
        self.pixels = self.counts.sum(0)  # of each class, over all masks
        if self.pixels.sum() == 0:
            raise ValueError("the masks hold no labelled pixel, only unknown ones: there is nothing to train on.")
        if like is not None:
            self.pixels = like.pixels

    def __len__(self) -> int:
        return len(self._pairs)

    def batch(self, indices: Iterable[int]) -> tuple[torch.Tensor, torch.Tensor]:
        """Return images uint8 (B, 3, H, W) and masks int64 (B, H, W)."""
        pairs = [self._pairs[index] for index in indices]
        return torch.stack([pair["image"] for pair in pairs]), torch.stack([pair["mask"] for pair in pairs]).long()

    def class_weights(self) -> torch.Tensor:
        """Return 1 / sqrt(share of pixels) of each class, scaled to a mean of 1 over pixels; 0 for absent classes."""
        share = self.pixels / self.pixels.sum()
        weights = torch.where(share > 0, share.clamp(min=1e-12).rsqrt(), 0.0)
        return weights / (weights * share).sum()  # (num_classes,)

    def rare_classes(self) -> dict[int, list[int]]:
        """Return the rare classes that pairs show, each with the indices of these pairs."""
        limit = RARE * self.pixels.sum() / (self.pixels > 0).sum()
        found = {index: self.counts[:, index].nonzero()[:, 0].tolist() for index in range(len(self.pixels))}
        return {index: pairs for index, pairs in found.items() if pairs and self.pixels[index] < limit}


def paste_rare(
    images: torch.Tensor, masks: torch.Tensor, pairs: LabelledImages, probability: float, seed: int, position: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Paste the pixels of a rare class of another pair into some of the images, with their labels.

    They keep their place, or are mirrored: objects have a plausible position and size (ClassMix, Olsson et al. 2021).

    Args:
        images: uint8 (B, 3, H, W).
        masks: (B, H, W).
        pairs: to paste from, their rare classes with equal probability.
        probability: of each image.
        seed: with the position of an image in the training, determines what it gets.
        position: of the first image.
    """
    images, masks, rare = images.clone(), masks.clone(), pairs.rare_classes()
    for offset in range(len(images) if rare else 0):
        generator = np.random.default_rng([seed % 2**64, position + offset])
        if generator.random() >= probability:
            continue
        label = [*rare][generator.integers(len(rare))]
        image, mask = pairs.batch([rare[label][generator.integers(len(rare[label]))]])
        if generator.random() < 0.5:
            image, mask = image.flip(3), mask.flip(2)
        pasted = mask[0] == label  # (H, W)
        images[offset] = torch.where(pasted, image[0], images[offset])
        masks[offset] = torch.where(pasted, mask[0], masks[offset])
    return images, masks


def augment(
    images: torch.Tensor,
    masks: torch.Tensor,
    generator: torch.Generator,
    input_size: tuple[int, int],
    recipe: Recipe = Recipe(),  # noqa: B008  # immutable
    ignore_index: int = 255,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Flip, rescale and crop each pair, and jitter the colours of the image, float in 0..255.

    The images are returned at `input_size`; masks keep their size. A crop has the same share of both. Pixels outside
    of a reduced image are unknown.
    """
    batch, device = len(images), images.device
    smallest, largest = 1 / recipe.scale[1], 1 / recipe.scale[0]
    # share of each side that is seen; above 1, the image is somewhere in the frame
    size = (smallest + (largest - smallest) * torch.rand(batch, generator=generator)) * recipe.crop
    center = (torch.rand(batch, 2, generator=generator) * 2 - 1) * (1 - size).abs()[:, None]
    flip = torch.where(torch.rand(batch, generator=generator) < recipe.flip, -1.0, 1.0)
    contrast, brightness = (torch.rand(2, batch, 1, 1, 1, generator=generator) * 2 - 1).to(device).unbind()
    theta = torch.zeros(batch, 2, 3)
    theta[:, 0, 0], theta[:, 1, 1], theta[:, :, 2] = size * flip, size, center
    theta = theta.to(device)

    grid = F.affine_grid(theta, [batch, 3, *crop_size(input_size, recipe.crop)], align_corners=False)  # (B, h, w, 2)
    images = F.grid_sample(images, grid, mode="bilinear", padding_mode="border", align_corners=False)
    images = images * (1 + recipe.contrast * contrast) + recipe.brightness * brightness
    if recipe.saturation:
        change = (torch.rand(batch, 1, 1, 1, generator=generator) * 2 - 1).to(device)
        grey = images.mean(1, keepdim=True)
        images = grey + (images - grey) * (1 + recipe.saturation * change)
    size_of_mask = [max(1, round(side * recipe.crop)) for side in masks.shape[1:]]
    grid = F.affine_grid(theta, [batch, 1, *size_of_mask], align_corners=False)
    masks = masks[:, None].float()
    masks = F.grid_sample(masks, grid, mode="nearest", padding_mode="border", align_corners=False)[:, 0].long()
    if largest > 1:
        masks = torch.where((grid.abs() > 1).any(-1), ignore_index, masks)
    return images, masks


def crop_size(size: tuple[int, int], share: float) -> tuple[int, int]:
    """Return height and width of crops of a share of each side, multiples of 16 if they are smaller."""
    if share == 1:
        return size
    height, width = (max(16, round(side * share / 16) * 16) for side in size)
    return height, width


@dataclass
class History:
    """Progress of a training."""

    steps: int = 0  # optimizer steps taken
    best_step: int | None = None  # step of the kept weights; None without validation
    scores: SegmentationScores | None = None  # of these weights on the validation split
    log: list[dict[str, Any]] = field(default_factory=list)  # lines of `log.jsonl`
    relabelled: float | None = None  # share of the pixels that a teacher has read to which it gave another label


def score_network(
    network: torch.nn.Module, preprocessing: Preprocessing, pairs: LabelledImages, mixed_precision: str = "no"
) -> SegmentationScores:
    """Score a network's predictions against masks; it is switched to evaluation mode."""
    device = next(network.eval().parameters()).device

    def read() -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        for start in range(0, len(pairs), VALIDATION_BATCH_SIZE):
            images, masks = pairs.batch(range(start, min(start + VALIDATION_BATCH_SIZE, len(pairs))))
            with torch.no_grad(), autocast(device, mixed_precision):
                logits = compute_logits(network, preprocessing(images.to(device)), pairs.resolution)
            yield from zip(logits.argmax(1).cpu(), masks, strict=True)

    return score_pairs(read(), pairs.labels.names, pairs.labels.ignore_index)


def train_segmenter(
    network: torch.nn.Module,
    preprocessing: Preprocessing,
    train: LabelledImages,
    validation: LabelledImages | None = None,
    *,
    max_train_steps: int = 2000,
    train_batch_size: int = 8,
    learning_rate: float = 1e-3,
    validation_steps: int = 200,
    seed: int = 0,
    mixed_precision: str = "no",
    recipe: Recipe = Recipe(),  # noqa: B008  # immutable
    synthetic: SyntheticPairs | None = None,
    recolor: Callable[[torch.Tensor, int], torch.Tensor] | None = None,
    name: str = "the segmentation network",
    on_log: Callable[[dict[str, Any]], None] | None = None,
    should_stop: Callable[[], bool] = lambda: False,
) -> History:
    """Train a network in place; it ends with its best weights, in evaluation mode.

    Args:
        network: any transformers network for semantic segmentation with the classes of the data, on its device.
        preprocessing: of the network; its size is the input size.
        train: pairs to train on.
        validation: pairs that select the best weights; without them the last weights are kept.
        max_train_steps: optimizer steps, at least 1.
        train_batch_size: pairs per step, at least 2: BatchNorm over a single pooled map has no variance.
        learning_rate: peak rate, after the warm-up.
        validation_steps: steps between validations; the last step is always validated.
        seed: of order, augmentation and dropout. The global random state stays as it was.
        mixed_precision: "no", or "bf16" for bfloat16 autocast.
        recipe: learning rates and augmentation.
        synthetic: which pairs are synthetic, and how they are used; None: all pairs are equal.
        recolor: changes the colours of the images of a step, uint8 (B, 3, H, W), given the position of the first.
        name: of the network, for errors.
        on_log: called with each line of the log.
        should_stop: called after each step; True ends the training.

    Raises:
        ValueError: an option out of range, validation pairs with other classes, or a loss that is not finite.
    """
    SegmenterTrainingOptions(  # raises for an option out of range
        max_train_steps=max_train_steps,
        train_batch_size=train_batch_size,
        learning_rate=learning_rate,
        mixed_precision=mixed_precision,
        **recipe._asdict(),
    )
    if validation_steps < 1:
        raise ValueError(f"--validation_steps must be 1 or more; got {validation_steps}.")
    if validation is not None and validation.labels != train.labels:
        raise ValueError("expected one label set; training and validation pairs have different ones.")
    device = next(network.parameters()).device
    input_size = preprocessing.input_size(*train.resolution)
    _check_input_size(network, crop_size(input_size, recipe.crop))
    ignore_index = train.labels.ignore_index
    class_weights = train.class_weights().to(device)
    optimizer = torch.optim.AdamW(
        _parameter_groups(network, learning_rate, recipe.encoder_lr_scale), lr=learning_rate, weight_decay=WEIGHT_DECAY
    )
    schedule = _make_schedule(optimizer, max_train_steps, recipe.lr_scheduler)
    generator = torch.Generator().manual_seed(seed)
    teacher = None
    if synthetic is None:
        batches = shuffled_batches(len(train), train_batch_size, generator)
    else:
        batches = mixed_batches(synthetic, train_batch_size, generator)
        if synthetic.relabel is not None:
            teacher = Teacher(network, preprocessing, synthetic, max_train_steps, mixed_precision)
    history, best, losses, started = History(), None, [], time.monotonic()

    def log(**values: Any) -> None:
        line = {"step": history.steps, **values, "seconds": round(time.monotonic() - started, 2)}
        history.log.append(line)
        if on_log is not None:
            on_log(line)

    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)  # dropout and stochastic depth
        network.train()
        for step, indices in enumerate(itertools.islice(batches, max_train_steps), start=1):
            history.steps, is_last = step, step == max_train_steps
            images, masks = train.batch(indices)
            if teacher is not None and step > teacher.start:
                masks = teacher.relabel(indices, images, masks)
            position = (step - 1) * train_batch_size
            if recipe.copy_paste:
                images, masks = paste_rare(images, masks, train, recipe.copy_paste, seed, position)
            if recolor is not None:
                images = recolor(images, position)
            images, masks = augment(
                images.to(device).float(), masks.to(device), generator, input_size, recipe, ignore_index
            )
            with autocast(device, mixed_precision):
                size = (masks.shape[1], masks.shape[2])
                logits = compute_logits(network, preprocessing.normalize(images), size)  # (B, C, *size)
            loss = F.cross_entropy(logits, masks, class_weights, ignore_index=ignore_index, reduction="sum")
            weight = class_weights[masks[masks != ignore_index]].sum()
            loss = loss / weight.clamp(min=1)  # if all pixels are unknown, the mean would be 0 / 0
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(network.parameters(), MAX_GRAD_NORM)
            rate = schedule.get_last_lr()[0]
            optimizer.step()
            if teacher is not None:
                teacher.update(network)
            schedule.step()
            losses.append(loss.detach())
            stop = should_stop()
            if step % LOGGING_STEPS == 0 or is_last:
                mean_loss = torch.stack(losses).mean().item()
                if not math.isfinite(mean_loss):
                    raise ValueError(
                        f"{name} diverged: at step {step} its loss is {mean_loss}. Lower --learning_rate (it is "
                        f"{learning_rate:g}) or omit --mixed_precision."
                    )
                log(loss=mean_loss, learning_rate=rate)
                losses.clear()
            if validation is not None and not stop and (step % validation_steps == 0 or is_last):
                scores = score_network(network, preprocessing, validation, mixed_precision)
                network.train()
                log(mean_iou=scores.mean_iou, pixel_accuracy=scores.pixel_accuracy)
                if history.scores is None or scores.mean_iou > history.scores.mean_iou:
                    history.best_step, history.scores = step, scores
                    best = {name: value.detach().cpu().clone() for name, value in network.state_dict().items()}
            if stop:
                break
    if best is not None:
        network.load_state_dict(best)
    network.eval()
    if teacher is not None and teacher.num_read:
        history.relabelled = teacher.num_changed / teacher.num_read
    return history


def _parameter_groups(network: torch.nn.Module, learning_rate: float, encoder_lr_scale: float) -> list[dict[str, Any]]:
    """Return the parameters as one group, or those of the head and of the encoder as two."""
    if encoder_lr_scale == 1:
        return [{"params": [*network.parameters()]}]
    encoder = getattr(network, "base_model", network)
    if encoder is network:
        raise ValueError(
            f"--encoder_lr_scale {encoder_lr_scale:g}: a {type(network).__name__} names no encoder; omit the option."
        )
    own = {id(parameter) for parameter in encoder.parameters()}
    head = [parameter for parameter in network.parameters() if id(parameter) not in own]
    rate = learning_rate * encoder_lr_scale
    return [{"params": head}, {"params": [*encoder.parameters()], "lr": rate}]


def _make_schedule(
    optimizer: torch.optim.Optimizer, max_train_steps: int, name: str
) -> torch.optim.lr_scheduler.LRScheduler:
    total_steps = max(max_train_steps, 2)
    # torch divides by the warm-up steps minus one: a single one becomes two
    warmup_share = 2 / total_steps if total_steps * WARMUP_SHARE == 1 else WARMUP_SHARE
    if name == "poly":
        warmup_steps = max(1, round(total_steps * warmup_share))
        return torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda step: min(1, (step + 1) / warmup_steps) * max(0, 1 - step / total_steps) ** POLY_POWER
        )
    peaks = [group["lr"] for group in optimizer.param_groups]
    return torch.optim.lr_scheduler.OneCycleLR(
        optimizer, peaks, total_steps=total_steps, pct_start=warmup_share, cycle_momentum=False
    )


@torch.no_grad()
def _check_input_size(network: torch.nn.Module, size: tuple[int, int]) -> None:
    """Raise if the input is smaller than some layer's window."""
    device = next(network.parameters()).device
    try:
        network.eval()(pixel_values=torch.zeros(1, 3, *size, device=device))
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as err:
        raise ValueError(
            f"a {type(network).__name__} cannot read an input of {size[0]} x {size[1]} pixels ({err}). Give a larger "
            "--input_size."
        ) from err
