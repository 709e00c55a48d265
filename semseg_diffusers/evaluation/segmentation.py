"""A small segmentation network that reads class ids back from images: how far an image carries its mask.
SegFormer (Xie et al. 2021) of transformers, trained from random weights on the real photos of a data set."""

from collections.abc import Callable, Iterable
from itertools import zip_longest
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from transformers import SegformerConfig, SegformerForSemanticSegmentation

from semseg_diffusers.data.labels import LabelSet
from semseg_diffusers.evaluation.metrics import (
    SegmentationScores,
    new_confusion_matrix,
    scores_from_confusion_matrix,
    update_confusion_matrix,
)


MIN_CROP = 0.8  # a training crop keeps at least this share of each side
MIN_SIDE = 16  # pixels after upsampling: the first stage attends to 4 x 4 patches of 4 pixels
BRIGHTNESS = 0.2  # largest shift of a training image, in units of [-1, 1]
CONTRAST = 0.2  # largest relative change of a training image's contrast
WARMUP_SHARE = 0.1  # of the steps; the rest follows a cosine to zero


def to_float_images(images: torch.Tensor) -> torch.Tensor:
    """Return (B, 3, H, W) images in [-1, 1] from uint8 ones; float images are in [-1, 1] already."""
    return images.float() / 127.5 - 1 if images.dtype == torch.uint8 else images


def new_segmenter(labels: LabelSet, seed: int = 0, upsampling: int = 1) -> SegformerForSemanticSegmentation:
    """Build a random SegFormer of 0.8 M parameters that knows the label set.

    Args:
        labels: saved in the config as `id2label`, and whole as `label_set`.
        seed: of the initial weights; the global random state is left as it was.
        upsampling: images are enlarged by this factor first, since SegFormer's logits have stride 4; in the config.
    """
    config = SegformerConfig(
        id2label=labels.id2label,
        label2id=labels.label2id,
        hidden_sizes=[32, 64, 96, 128],
        depths=[1, 1, 1, 1],
        num_attention_heads=[1, 2, 3, 4],
        sr_ratios=[4, 2, 1, 1],  # half of the original's: images here are small
        decoder_hidden_size=64,
        drop_path_rate=0.0,  # a network this small and trained this briefly underfits
        classifier_dropout_prob=0.0,
        semantic_loss_ignore_index=labels.ignore_index,
        label_set=labels.to_config(),
        upsampling=upsampling,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return SegformerForSemanticSegmentation(config)


def load_segmenter(folder: str, labels: LabelSet) -> SegformerForSemanticSegmentation:
    """Load a segmenter that `save_pretrained` wrote.

    Args:
        folder: folder or Hub id of a network made by `train_segmenter`.
        labels: what it has to know.

    Raises:
        ValueError: where the network was trained on other classes, or is not one of ours.
    """
    model = SegformerForSemanticSegmentation.from_pretrained(folder)
    if not hasattr(model.config, "upsampling"):
        raise ValueError(
            f"segmenter {folder!r} was not made by semseg_diffusers; train one and keep it (--save_segmenter)"
        )
    check_classes(model, labels, source=str(folder))
    return model.eval()


def check_classes(model: SegformerForSemanticSegmentation, labels: LabelSet, source: str = "segmenter") -> None:
    """Refuse a segmenter whose class names differ from the label set's, naming the first difference."""
    known = [model.config.id2label[index] for index in sorted(model.config.id2label)]
    for index, (ours, wanted) in enumerate(zip_longest(known, labels.names)):
        if ours != wanted:
            raise ValueError(
                f"{source} knows {len(known)} classes and the data {labels.num_classes}: class {index} is {ours!r} "
                f"there and {wanted!r} in the data. Train a segmenter on this data set (leave --segmenter away)."
            )


def logits_of(model: SegformerForSemanticSegmentation, images: torch.Tensor) -> torch.Tensor:
    """Return class logits at the size of the images.

    Args:
        model: network of `new_segmenter`.
        images: (B, 3, H, W), float in [-1, 1].

    Raises:
        ValueError: for images of less than `MIN_SIDE` pixels a side.
    """
    height, width = images.shape[-2:]
    if min(height, width) * model.config.upsampling < MIN_SIDE:
        raise ValueError(f"the segmenter reads images from {MIN_SIDE} pixels a side on; got {height} x {width}")
    enlarged = F.interpolate(images, scale_factor=model.config.upsampling, mode="bilinear")
    logits = model(pixel_values=enlarged).logits  # (B, num_classes, H * upsampling / 4, W * upsampling / 4)
    return F.interpolate(logits, (height, width), mode="bilinear")  # (B, num_classes, H, W)


def balanced_class_weights(dataset: Any) -> torch.Tensor:
    """Return one over the square root of each class's share of pixels, scaled so that the mean over pixels is 1.

    Rare classes then count more, without the few pixels of the rarest taking over. An absent class gets 0.
    """
    num_classes = dataset.labels.num_classes
    counts = torch.zeros(num_classes, dtype=torch.float64)
    for index in range(len(dataset)):
        mask = dataset[index]["mask"].long()
        counts += torch.bincount(mask[mask != dataset.labels.ignore_index], minlength=num_classes)
    share = counts / counts.sum().clamp(min=1)
    weights = torch.where(share > 0, share.clamp(min=1e-12).rsqrt(), 0.0)
    return (weights / (weights * share).sum().clamp(min=1e-12)).float()


@torch.no_grad()
def predict(model: SegformerForSemanticSegmentation, images: torch.Tensor) -> torch.Tensor:
    """Read class ids (B, H, W) from images (B, 3, H, W), uint8 or float in [-1, 1]; the model keeps its mode."""
    images = to_float_images(images).to(model.device, model.dtype)
    return logits_of(model, images).argmax(1)


def augment(
    images: torch.Tensor, masks: torch.Tensor, generator: torch.Generator
) -> tuple[torch.Tensor, torch.Tensor]:
    """Flip, crop and enlarge, and change the light of each sample, image and mask alike in geometry.

    Args:
        images: (B, 3, H, W), float in [-1, 1].
        masks: (B, H, W), integer ids; nearest, so no id is invented.
        generator: on CPU.
    """
    batch = len(images)
    size = MIN_CROP + (1 - MIN_CROP) * torch.rand(batch, generator=generator)  # share of each side
    center = (torch.rand(batch, 2, generator=generator) * 2 - 1) * (1 - size)[:, None]  # crops stay inside the frame
    flip = torch.where(torch.rand(batch, generator=generator) < 0.5, -1.0, 1.0)
    theta = torch.zeros(batch, 2, 3)
    theta[:, 0, 0], theta[:, 1, 1], theta[:, :, 2] = size * flip, size, center
    grid = F.affine_grid(theta, list(images.shape), align_corners=False)  # (B, H, W, 2)
    images = F.grid_sample(images, grid, mode="bilinear", padding_mode="border", align_corners=False)
    cropped = F.grid_sample(
        masks[:, None].float(), grid, mode="nearest", padding_mode="border", align_corners=False
    )  # (B, 1, H, W)
    contrast, brightness = (torch.rand(2, batch, 1, 1, 1, generator=generator) * 2 - 1).unbind()
    images = images * (1 + CONTRAST * contrast) + BRIGHTNESS * brightness
    return images, cropped[:, 0].long()


def train_segmenter(
    dataset: Any,
    *,
    num_steps: int = 800,
    batch_size: int = 4,
    learning_rate: float = 3e-3,
    seed: int = 0,
    device: str | torch.device = "cpu",
    upsampling: int = 1,
    class_weights: torch.Tensor | None = None,
    on_step: Callable[[int, float], None] | None = None,
) -> SegformerForSemanticSegmentation:
    """Train a segmenter on real photos and their masks.

    Args:
        dataset: `PairDataset`: `labels`, `len`, and items with `image` uint8 (3, H, W) and `mask` (H, W).
        num_steps: optimizer steps, at least 1.
        batch_size: pictures a step, drawn in epochs, each in its own order. Small ones and more steps learn more a
            minute here.
        learning_rate: highest rate of AdamW, after a linear warm-up and before a cosine to zero.
        seed: of weights, order and augmentation: the same seed gives the same network on the same machine.
        device: where to train.
        upsampling: see `new_segmenter`.
        class_weights: (num_classes,) weights of the loss, such as `balanced_class_weights`; all alike by default.
        on_step: called with (step, loss) after each step.

    Returns:
        The network in evaluation mode, on `device`.

    Raises:
        ValueError: for an empty data set, or a number of steps or a batch size below 1.
    """
    if len(dataset) == 0:
        raise ValueError("a segmenter needs at least one labelled photo to train on; the data set is empty")
    if num_steps < 1 or batch_size < 1:
        raise ValueError(f"num_steps and batch_size must be at least 1; got {num_steps} and {batch_size}")
    model = new_segmenter(dataset.labels, seed, upsampling).to(device).train()
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, learning_rate, total_steps=max(num_steps, 2), pct_start=WARMUP_SHARE, cycle_momentum=False
    )
    weights = torch.ones(dataset.labels.num_classes) if class_weights is None else class_weights
    weights = weights.to(device, torch.float32)
    ignore_index = dataset.labels.ignore_index
    order: list[int] = []
    for step in range(1, num_steps + 1):
        while len(order) < batch_size:
            order += torch.randperm(len(dataset), generator=generator).tolist()
        items = [dataset[index] for index in order[:batch_size]]
        del order[:batch_size]
        images = to_float_images(torch.stack([item["image"] for item in items]))  # (B, 3, H, W)
        masks = torch.stack([item["mask"] for item in items])  # (B, H, W)
        images, masks = augment(images, masks, generator)
        logits = logits_of(model, images.to(device))
        masks = masks.to(device)
        loss = F.cross_entropy(logits, masks, weights, ignore_index=ignore_index, reduction="sum")
        weight = weights[masks[masks != ignore_index]].sum()
        loss = loss / weight.clamp(min=1)  # a crop may hold unknown pixels only, where the mean would be 0 / 0
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if on_step is not None:
            on_step(step, loss.item())
    return model.eval()


def agreement(
    model: SegformerForSemanticSegmentation,
    images: Iterable[torch.Tensor],
    masks: Iterable[torch.Tensor],
    labels: LabelSet,
    batch_size: int = 16,
) -> SegmentationScores:
    """Score what the network reads from images against masks, with one confusion matrix over all.

    Args:
        model: network of `train_segmenter`, in evaluation mode.
        images: uint8 (3, H, W) each, or float in [-1, 1]; a (B, 3, H, W) tensor is one such iterable.
        masks: (H, W) integer ids each, as many as images, of the image's size.
        labels: the classes of the masks.
        batch_size: images a forward; consecutive images of one size share it.

    Raises:
        ValueError: for other classes, another number of images than masks, sizes that differ, or no labelled pixel.
    """
    check_classes(model, labels)
    matrix = new_confusion_matrix(labels.num_classes, labels.ignore_index)
    pairs = iter(zip(images, masks, strict=True))
    num_images = 0
    batch: list[tuple[torch.Tensor, torch.Tensor]] = []

    def flush() -> None:
        if batch:
            predictions = predict(model, torch.stack([image for image, _ in batch]))
            update_confusion_matrix(matrix, predictions.cpu(), torch.stack([mask for _, mask in batch]))
            batch.clear()

    for image, mask in pairs:
        if image.shape[-2:] != mask.shape:
            raise ValueError(
                f"image {num_images} is {tuple(image.shape[-2:])} and its mask {tuple(mask.shape)} (height, width): "
                "they must be of one size"
            )
        if batch and (len(batch) == batch_size or batch[0][1].shape != mask.shape):
            flush()
        batch.append((image, mask))
        num_images += 1
    flush()
    return scores_from_confusion_matrix(matrix.compute(), labels.names, num_images)
