"""Scales and shifts photo and mask alike, and tells the network of it where it is to draw unchanged photos.

Geometric part of EDM's augmentation (Karras et al. 2022, appendix F.2): with a probability the network is told each
warp by a vector, which is zero in sampling, so that warps do not leak into what it draws.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch.utils.data import Dataset, Sampler

from semseg_diffusers.data.dataset import PairDataset, attribute_numbers
from semseg_diffusers.models.unet_mask_guided import diffuse_labels


AUGMENT_DIM = 3  # entries of the vector: enlargement, shift to the right, shift down, each from -1 to 1


class Warp(NamedTuple):
    """One warp about the centre of the frame."""

    scale: float  # more than 1 enlarges
    right: int  # pixels
    down: int  # pixels


@dataclass(frozen=True)
class Warps:
    """How pairs are scaled and shifted."""

    scale: float  # enlarged or reduced by up to this factor more than 1: 0.25 is 0.8 to 1.25
    translate: float  # shifted by up to this share of the width and the height
    probability: float | None  # of each kind of warp, told to the network; None warps every pair and tells nothing

    def draw(self, generator: torch.Generator, size: tuple[int, int]) -> tuple[Warp, torch.Tensor]:
        """Draw a warp for a frame of (height, width), and the vector that describes it (`AUGMENT_DIM`,)."""
        (height, width), limit = size, 1.0 if self.probability is None else self.probability
        draws = torch.rand(5, generator=generator).tolist()
        enlargement, right, down = (2 * draw - 1 for draw in draws[2:])
        if draws[0] >= limit:
            enlargement = 0.0
        if draws[1] >= limit:
            right = down = 0.0
        most_right, most_down = self.translate * width, self.translate * height
        warp = Warp((1 + self.scale) ** enlargement, round(right * most_right), round(down * most_down))
        vector = (
            enlargement if self.scale else 0.0,
            warp.right / most_right if most_right else 0.0,
            warp.down / most_down if most_down else 0.0,
        )
        return warp, torch.tensor(vector, dtype=torch.float32)


def _sources(length: int, scale: float, shift: int, steps: int = 1) -> torch.Tensor:
    """Where in a side of `length` pixels each pixel of the result comes from, `steps` places a pixel, in float64."""
    places = (torch.arange(length * steps, dtype=torch.float64) + 0.5) / steps
    return (places - length / 2 - shift) / scale + length / 2  # 0 is the left edge of the first pixel


def warp_image(image: torch.Tensor, warp: Warp) -> torch.Tensor:
    """Warp a photo (C, H, W): bilinear, averaged over the area where it is reduced, reflected from outside."""
    height, width = image.shape[-2:]
    steps = math.ceil(1 / warp.scale) if warp.scale < 1 else 1
    x = _sources(width, warp.scale, warp.right, steps) * 2 / width - 1
    y = _sources(height, warp.scale, warp.down, steps) * 2 / height - 1
    grid = torch.stack([x.expand(len(y), -1), y[:, None].expand(-1, len(x))], dim=-1).float()  # (H', W', 2)
    warped = F.grid_sample(image[None], grid[None], mode="bilinear", padding_mode="reflection", align_corners=False)
    return F.avg_pool2d(warped, steps)[0] if steps > 1 else warped[0]  # (C, H, W)


def warp_mask(mask: torch.Tensor, warp: Warp, unknown: int) -> torch.Tensor:
    """Warp class ids (H, W): the nearest, and `unknown` from outside."""
    height, width = mask.shape
    rows = _sources(height, warp.scale, warp.down).floor().long()  # (H,)
    columns = _sources(width, warp.scale, warp.right).floor().long()  # (W,)
    inside = ((rows >= 0) & (rows < height))[:, None] & ((columns >= 0) & (columns < width))
    warped = mask[rows.clamp(0, height - 1)][:, columns.clamp(0, width - 1)]
    return torch.where(inside, warped, torch.full_like(warped, unknown))


# streams of random numbers that must not repeat each other
ORDER, SAMPLE, BATCH, FORWARD, CROP, CLASS, WARP, ABLATION, LABELS, ATTRIBUTES = range(10)


def stream(seed: int, kind: int, index: int) -> torch.Generator:
    """A CPU generator for one purpose and one index; SplitMix64 keeps neighbouring indices apart."""
    state = (seed * 0x9E3779B97F4A7C15 + kind * 0xD1B54A32D192ED03 + index * 0x8CB92BA72F3D8DD7) & 0xFFFFFFFFFFFFFFFF
    state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & 0xFFFFFFFFFFFFFFFF
    state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & 0xFFFFFFFFFFFFFFFF
    return torch.Generator().manual_seed((state ^ (state >> 31)) & 0x7FFFFFFFFFFFFFFF)


class ResumableBatchSampler(Sampler):
    """The batches of one process, from one forward pass on: lists of (position, index of the pair).

    Every pair is seen once an epoch; a batch may span the end of one epoch and the start of the next. With `draw`,
    each position gets the pair that it names instead.

    Args:
        num_pairs: pairs in the data set, 1 or more.
        batch_size: samples a process and a forward pass.
        num_batches: forward passes of the whole run.
        seed: seed of the run.
        process_index, num_processes: whose share this is.
        start_batch: forward passes already done.
        draw: gives the index of the pair from (seed, position), as `ClassBalance.draw` does.
    """

    def __init__(
        self,
        num_pairs: int,
        batch_size: int,
        num_batches: int,
        seed: int,
        process_index: int = 0,
        num_processes: int = 1,
        start_batch: int = 0,
        draw: Callable[[int, int], int] | None = None,
    ):
        self.num_pairs = num_pairs
        self.batch_size = batch_size
        self.num_batches = num_batches
        self.seed = seed
        self.process_index = process_index
        self.num_processes = num_processes
        self.start_batch = start_batch
        self.draw = draw

    def __len__(self) -> int:
        return self.num_batches - self.start_batch

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        epoch, order = -1, torch.empty(0)
        for batch in range(self.start_batch, self.num_batches):
            first = (batch * self.num_processes + self.process_index) * self.batch_size
            keys = []
            for position in range(first, first + self.batch_size):
                if self.draw is not None:
                    keys.append((position, self.draw(self.seed, position)))
                    continue
                if position // self.num_pairs != epoch:
                    epoch = position // self.num_pairs
                    order = torch.randperm(self.num_pairs, generator=stream(self.seed, ORDER, epoch))
                keys.append((position, int(order[position % self.num_pairs])))
            yield keys


def cut(pair: dict, top: int, left: int, size: tuple[int, int]) -> dict:
    """A part of a pair, photo and mask alike; `size` is (height, width)."""
    rows, columns = slice(top, top + size[0]), slice(left, left + size[1])
    return {**pair, "image": pair["image"][:, rows, columns], "mask": pair["mask"][rows, columns]}


def random_part(pair: dict, size: tuple[int, int], seed: int, position: int) -> dict:
    """Cut a part out of a pair; where is a function of (seed, position), each place as likely as another."""
    generator = stream(seed, CROP, position)
    spare = [whole - part for whole, part in zip(pair["mask"].shape, size, strict=True)]
    top, left = (int(torch.randint(0, most + 1, (), generator=generator)) for most in spare)
    return cut(pair, top, left, size)


def central_part(pair: dict, size: tuple[int, int]) -> dict:
    """Cut the middle out of a pair."""
    top, left = ((whole - part) // 2 for whole, part in zip(pair["mask"].shape, size, strict=True))
    return cut(pair, top, left, size)


class TrainingDataset(Dataset):
    """Pairs with everything random already drawn, ready for one forward pass.

    Args:
        pairs: the data set.
        seed: seed of the run.
        horizontal_flip: mirror half of the pairs.
        random_crop: (height, width) of a part to cut out of each pair; None takes the whole.
        mask_dropout: share of masks filled with "unknown".
        mask_dropout_group: samples that are dropped together: 1, or those of one optimizer step (the paper's way).
        min_timestep, num_train_timesteps: timesteps are drawn from [min_timestep, num_train_timesteps).
        warps: how photo and mask are scaled and shifted; None leaves them.
        mask_ablation: probability of each class of a mask to be made unknown in it (Konz et al. 2024).
        label_diffusion: rarity of each class, by which masks lose pixels as the noise grows; None keeps them whole.
        attributes: name -> values, as the network's config has them; None for a network without.
        attribute_dropout: share of the values of each attribute that are made unknown.

    Item `(position, index)`: `image` (3, H, W) in [-1, 1], `mask` (H, W) ids, `noise` (3, H, W), `timestep`, `stem`,
    `attributes` (A,) where the network has A of them, `augmentation` (`AUGMENT_DIM`,) where warps are told to it.
    """

    def __init__(
        self,
        pairs: PairDataset,
        seed: int,
        horizontal_flip: bool,
        random_crop: tuple[int, int] | None,
        mask_dropout: float,
        mask_dropout_group: int,
        min_timestep: int,
        num_train_timesteps: int,
        warps: Warps | None = None,
        mask_ablation: float = 0.0,
        label_diffusion: Sequence[float] | None = None,
        attributes: Mapping[str, Sequence[str]] | None = None,
        attribute_dropout: float = 0.0,
    ):
        self.pairs = pairs
        self.seed = seed
        self.horizontal_flip = horizontal_flip
        self.random_crop = random_crop
        self.mask_dropout = mask_dropout
        self.mask_dropout_group = mask_dropout_group
        self.min_timestep = min_timestep
        self.num_train_timesteps = num_train_timesteps
        self.warps = warps
        self.mask_ablation = mask_ablation
        self.label_diffusion = None if label_diffusion is None else torch.tensor(label_diffusion)
        self.attribute_numbers = attribute_numbers(pairs, attributes) if attributes else None  # (N, A)
        self.attribute_dropout = attribute_dropout

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, key: tuple[int, int]) -> dict:
        position, index = key
        pair = self.pairs[index]
        if self.random_crop is not None:
            pair = random_part(pair, self.random_crop, self.seed, position)
        generator = stream(self.seed, SAMPLE, position)
        image = pair["image"].float() / 127.5 - 1  # (3, H, W)
        mask = pair["mask"].long()  # (H, W)
        mirrored = torch.rand((), generator=generator) < 0.5
        if self.horizontal_flip and mirrored:
            image, mask = image.flip(-1), mask.flip(-1)
        timestep = torch.randint(self.min_timestep, self.num_train_timesteps, (), generator=generator)
        noise = torch.randn(image.shape, generator=generator)
        conditions = {}
        unknown = self.pairs.labels.ignore_index
        if self.warps is not None:
            warp, vector = self.warps.draw(stream(self.seed, WARP, position), mask.shape)
            image, mask = warp_image(image, warp), warp_mask(mask, warp, unknown)
            if self.warps.probability is not None:
                conditions["augmentation"] = vector
        if self.mask_ablation:
            draws = torch.rand(self.pairs.labels.num_classes, generator=stream(self.seed, ABLATION, position))
            mask = mask.masked_fill(torch.isin(mask, (draws < self.mask_ablation).nonzero().flatten()), unknown)
        if self.label_diffusion is not None:
            fading = torch.rand(mask.shape, generator=stream(self.seed, LABELS, position))
            tau = timestep / self.num_train_timesteps
            mask = diffuse_labels(mask[None], tau, fading[None], self.label_diffusion)[0]
        if self.attribute_numbers is not None:
            numbers = self.attribute_numbers[index]
            dropped = torch.rand(len(numbers), generator=stream(self.seed, ATTRIBUTES, position))
            conditions["attributes"] = numbers.masked_fill(dropped < self.attribute_dropout, -1)
        group = stream(self.seed, BATCH, position // self.mask_dropout_group)
        if torch.rand((), generator=group) < self.mask_dropout:
            mask = torch.full_like(mask, unknown)
        return {
            "image": image.contiguous(),
            "mask": mask.contiguous(),
            "noise": noise,
            "timestep": timestep,
            "stem": pair["stem"],
            **conditions,
        }
