"""Training samples: which pair is at which position of a run, and everything random about it, as pure functions of
(seed, position); with the geometric part of EDM's augmentation (Karras et al. 2022, appendix F.2), which conditions
the network on each warp by a vector that is zero in sampling, so that warps do not leak into samples.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch.utils.data import Dataset, Sampler, default_collate

from semseg_diffusers.data.dataset import PairDataset, attribute_numbers
from semseg_diffusers.masks.components import find_objects
from semseg_diffusers.models.unet_mask_guided import diffuse_labels
from semseg_diffusers.training.captions import Captions
from semseg_diffusers.training.latents import Latents
from semseg_diffusers.training.low_res import LowRes


AUGMENT_DIM = 3  # entries of the vector: enlargement, shift to the right, shift down, each in [-1, 1]


class Warp(NamedTuple):
    """A warp about the centre of the frame."""

    scale: float  # more than 1 enlarges
    right: int  # pixels
    down: int  # pixels


@dataclass(frozen=True)
class Warps:
    """Distribution of warps."""

    scale: float  # by a factor of up to 1 plus this: 0.25 is 0.8 to 1.25
    translate: float  # shifted by up to this share of the width and the height
    probability: float | None  # of each kind of warp, conditioned on; None warps every pair without conditioning

    def sample(self, generator: torch.Generator, size: tuple[int, int]) -> tuple[Warp, torch.Tensor]:
        """Sample a warp for a frame of (height, width), and the vector that describes it (`AUGMENT_DIM`,)."""
        (height, width), limit = size, 1.0 if self.probability is None else self.probability
        numbers = torch.rand(5, generator=generator).tolist()
        enlargement, right, down = (2 * number - 1 for number in numbers[2:])
        if numbers[0] >= limit:
            enlargement = 0.0
        if numbers[1] >= limit:
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
    """Return the source coordinate of each pixel of a side of `length`, `steps` per pixel, in float64."""
    places = (torch.arange(length * steps, dtype=torch.float64) + 0.5) / steps
    return (places - length / 2 - shift) / scale + length / 2  # 0 is the left edge of the first pixel


def warp_image(image: torch.Tensor, warp: Warp) -> torch.Tensor:
    """Warp an image (C, H, W): bilinear, area-averaged if reduced, reflected at the borders."""
    height, width = image.shape[-2:]
    steps = math.ceil(1 / warp.scale) if warp.scale < 1 else 1
    x = _sources(width, warp.scale, warp.right, steps) * 2 / width - 1
    y = _sources(height, warp.scale, warp.down, steps) * 2 / height - 1
    grid = torch.stack([x.expand(len(y), -1), y[:, None].expand(-1, len(x))], dim=-1).float()  # (H', W', 2)
    warped = F.grid_sample(image[None], grid[None], mode="bilinear", padding_mode="reflection", align_corners=False)
    return F.avg_pool2d(warped, steps)[0] if steps > 1 else warped[0]  # (C, H, W)


def warp_mask(mask: torch.Tensor, warp: Warp, unknown: int) -> torch.Tensor:
    """Warp class ids (H, W): nearest neighbour, and `unknown` outside."""
    height, width = mask.shape
    rows = _sources(height, warp.scale, warp.down).floor().long()  # (H,)
    columns = _sources(width, warp.scale, warp.right).floor().long()  # (W,)
    inside = ((rows >= 0) & (rows < height))[:, None] & ((columns >= 0) & (columns < width))
    warped = mask[rows.clamp(0, height - 1)][:, columns.clamp(0, width - 1)]
    return torch.where(inside, warped, torch.full_like(warped, unknown))


# kinds of random streams, which must not repeat each other
ORDER, SAMPLE, BATCH, FORWARD, CROP, CLASS, WARP, ABLATION, LABELS, ATTRIBUTES, WINDOW, TEACHER, PARTNER = range(13)
LOW_RES, TEXT_CHOICE, CODEBOOK, LATENTS = 13, 14, 15, 16


def make_generator(seed: int, kind: int, index: int) -> torch.Generator:
    """Return a CPU generator for one purpose and one index; SplitMix64 decorrelates neighbouring indices."""
    state = (seed * 0x9E3779B97F4A7C15 + kind * 0xD1B54A32D192ED03 + index * 0x8CB92BA72F3D8DD7) & 0xFFFFFFFFFFFFFFFF
    state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & 0xFFFFFFFFFFFFFFFF
    state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & 0xFFFFFFFFFFFFFFFF
    return torch.Generator().manual_seed((state ^ (state >> 31)) & 0x7FFFFFFFFFFFFFFF)


@dataclass(eq=False)
class ResumableBatchSampler(Sampler[list[tuple[int, int]]]):
    """Batches of one process, starting at any forward pass: lists of (position, index of the pair).

    Every pair is seen once per epoch; a batch may span the end of one epoch and the start of the next. With
    `sample_pair`, each position gets the pair that it returns instead.
    """

    num_pairs: int  # in the dataset, 1 or more
    batch_size: int  # samples per process and forward pass
    num_batches: int  # forward passes of the run
    seed: int
    process_index: int = 0
    num_processes: int = 1
    start_batch: int = 0  # forward passes already done
    sample_pair: Callable[[int, int], int] | None = None  # (seed, position) -> index, `ClassBalance.sample_pair`

    def __len__(self) -> int:
        return self.num_batches - self.start_batch

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        epoch, order = -1, torch.empty(0)
        for batch in range(self.start_batch, self.num_batches):
            first = (batch * self.num_processes + self.process_index) * self.batch_size
            keys = []
            for position in range(first, first + self.batch_size):
                if self.sample_pair is not None:
                    keys.append((position, self.sample_pair(self.seed, position)))
                    continue
                if position // self.num_pairs != epoch:
                    epoch = position // self.num_pairs
                    order = torch.randperm(self.num_pairs, generator=make_generator(self.seed, ORDER, epoch))
                keys.append((position, int(order[position % self.num_pairs])))
            yield keys


def crop(pair: dict[str, Any], top: int, left: int, size: tuple[int, int]) -> dict[str, Any]:
    """Crop a pair, image and mask alike; `size` is (height, width)."""
    rows, columns = slice(top, top + size[0]), slice(left, left + size[1])
    return {**pair, "image": pair["image"][:, rows, columns], "mask": pair["mask"][rows, columns]}


# Mask-ablated training of Konz et al. 2024, which leaves out each class by itself. Here the number of classes or
# objects that stay is log-uniform, since people paint one thing alone.
def keep_a_part(mask: torch.Tensor, unknown: int, generator: torch.Generator) -> torch.Tensor:
    """Keep random classes of a mask (H, W) of ids, or random connected objects, at least one; the rest is unknown."""
    by_object, share = torch.rand(2, generator=generator, dtype=torch.float64).tolist()
    numbers = mask
    if by_object < 0.5:
        numbers = torch.from_numpy(find_objects(mask.numpy(), unknown).numbers).long()
    found = numbers[mask != unknown].unique()
    order = torch.randperm(len(found), generator=generator)
    kept = found[order[: int(len(found) ** share)]]
    return mask.where(torch.isin(numbers, kept) & (mask != unknown), unknown)


class TrainingDataset(Dataset):
    """Pairs with everything random already sampled, ready for a forward pass.

    With `--mask_dropout_unit batch`, `samples_per_step` masks are dropped together (as in the paper). `attributes` are
    those of the network's config; by the `rarity` of each class, masks lose pixels as the noise grows.

    Item `(position, index)`: `image` (3, H, W) in [-1, 1], `mask` (H, W) ids, `noise` (3, H, W), `timestep`, `stem`,
    `attributes` (A,) if the network has A of them, `augmentation` (`AUGMENT_DIM`,) if it is conditioned on warps,
    `window` (3,) in [0, 1) if there is a perceptual loss: size and place of the crop that it sees; for an upscaler
    `low_res` (3, H, W) and `noise_level`; `whole_mask` (H, W) if `keeps_whole_masks` and `mask` may be partial; with
    `captions` what `Captions.sample` returns, texts only about what `mask_ablation` left of the mask.

    With `latents` of (C, h, w), `noise` has their size; `latents` are those of the image where they are cached, else
    `latent_noise`, unit noise to sample them with, is beside the image.
    """

    keeps_whole_masks = False

    def __init__(
        self,
        pairs: PairDataset,
        settings: Any,
        samples_per_step: int = 1,
        attributes: Mapping[str, Sequence[str]] | None = None,
        rarity: Sequence[float] | None = None,
        low_res: LowRes | None = None,
        captions: Captions | None = None,
        latents: Latents | None = None,
    ):
        self.pairs, self.settings, self.low_res, self.captions = pairs, settings, low_res, captions
        self.latents = latents
        self.crop_size = settings.random_crop_size
        self.dropped_together = samples_per_step if settings.mask_dropout_unit == "batch" else 1
        warps = Warps(settings.augment_scale, settings.augment_translate, settings.augment_probability)
        self.warps = warps if warps.scale or warps.translate else None
        self.rarity = None if rarity is None else torch.tensor(rarity)
        self.attribute_numbers = attribute_numbers(pairs, attributes) if attributes else None  # (N, A)

    def __len__(self) -> int:
        return len(self.pairs)

    def sample_timestep(self, generator: torch.Generator) -> torch.Tensor:
        """Sample a timestep, uniformly."""
        return torch.randint(self.settings.min_timestep, self.settings.num_train_timesteps, (), generator=generator)

    def _read(self, position: int, index: int) -> dict[str, Any]:
        """Read a pair or a random crop of one, its `corner`, and for an upscaler `low_res` (3, h, w) uint8."""
        if self.latents is not None and self.latents.is_cached:
            return {
                "mask": torch.from_numpy(self.pairs.mask(index)),
                "stem": self.pairs.stems[index],
                "corner": (0, 0),
            }
        if self.crop_size is None and self.low_res is None:
            return {**self.pairs[index], "corner": (0, 0)}
        size, low_res = self.pairs.sizes[index], self.low_res
        height, width = self.crop_size or size
        generator, step = make_generator(self.settings.seed, CROP, position), 1 if low_res is None else low_res.factor
        spare = size[0] - height, size[1] - width
        top, left = (int(torch.randint(0, most // step + 1, (), generator=generator)) * step for most in spare)
        margin = 0 if low_res is None else low_res.margin
        rows, columns = (
            slice(max(top - margin, 0), top + height + margin),
            slice(max(left - margin, 0), left + width + margin),
        )
        pair = self.pairs.read(index, rows, columns)
        y, x = top - rows.start, left - columns.start
        window, pair = pair["image"], {**crop(pair, y, x, (height, width)), "corner": (top, left)}
        if low_res is not None:
            number = torch.rand((), generator=generator).item()
            box = (x, y, x + width, y + height)
            pair["low_res"] = low_res.read(window.permute(1, 2, 0).numpy(), box, (top, left), pair["stem"], number)
        return pair

    def __getitem__(self, key: tuple[int, int]) -> dict[str, Any]:
        (position, index), settings, labels = key, self.settings, self.pairs.labels
        seed, unknown = settings.seed, labels.ignore_index
        pair = self._read(position, index)
        generator = make_generator(seed, SAMPLE, position)
        mask = pair["mask"].long()  # (H, W)
        images = {"image": pair["image"].float() / 127.5 - 1} if "image" in pair else {}  # (3, H, W)
        texts = self._sample_texts(position, index, pair)
        flip = torch.rand((), generator=generator) < 0.5
        if settings.horizontal_flip and flip:
            mask, images = mask.flip(-1), {name: image.flip(-1) for name, image in images.items()}
            pair |= {name: pair[name].flip(-1) for name in ("low_res",) if name in pair}
            texts |= {name: texts[name].flip(-1) for name in ("regions",) if name in texts}
        timestep = self.sample_timestep(generator)
        shape = (3, *mask.shape) if self.latents is None else self.latents.size(*mask.shape)
        noise = torch.randn(shape, generator=generator)
        conditions = {}
        if self.latents is not None:
            latent_noise = torch.randn(shape, generator=make_generator(seed, LATENTS, position))
            if images:
                conditions["latent_noise"] = latent_noise
            else:
                conditions["latents"] = self.latents.read(index, bool(settings.horizontal_flip and flip), latent_noise)
        if self.warps is not None:
            warp, vector = self.warps.sample(make_generator(seed, WARP, position), mask.shape)
            mask = warp_mask(mask, warp, unknown)
            images = {name: warp_image(image, warp) for name, image in images.items()}
            texts |= {name: warp_mask(texts[name], warp, -1) for name in ("regions",) if name in texts}
            if self.warps.probability is not None:
                conditions["augmentation"] = vector
        if settings.mask_ablation:
            if self.keeps_whole_masks:
                conditions["whole_mask"] = mask
            generator = make_generator(seed, ABLATION, position)
            if torch.rand((), generator=generator) < settings.mask_ablation:
                mask = keep_a_part(mask, unknown, generator)
                _forget(texts, mask == unknown)
        if self.rarity is not None:
            fading = torch.rand(mask.shape, generator=make_generator(seed, LABELS, position))
            tau = timestep / settings.num_train_timesteps
            mask = diffuse_labels(mask[None], tau, fading[None], self.rarity)[0]
        if self.attribute_numbers is not None:
            numbers = self.attribute_numbers[index]
            dropped = torch.rand(len(numbers), generator=make_generator(seed, ATTRIBUTES, position))
            conditions["attributes"] = numbers.masked_fill(dropped < settings.attribute_dropout, -1)
        if settings.perceptual_weight:
            conditions["window"] = torch.rand(3, generator=make_generator(seed, WINDOW, position))
        if self.low_res is not None:
            small = pair["low_res"].float() / 127.5 - 1  # (3, h, w)
            conditions |= self.low_res.degrade(small, make_generator(seed, LOW_RES, position))
        group = make_generator(seed, BATCH, position // self.dropped_together)
        if torch.rand((), generator=group) < settings.mask_dropout:
            mask = torch.full_like(mask, unknown)
            _forget(texts, mask == unknown)
            conditions |= {name: mask for name in ("whole_mask",) if name in conditions}
        return {
            **{name: image.contiguous() for name, image in images.items()},
            "mask": mask.contiguous(),
            "noise": noise,
            "timestep": timestep,
            "stem": pair["stem"],
            **conditions,
            **texts,
        }

    def _sample_texts(self, position: int, index: int, pair: dict[str, Any]) -> dict[str, torch.Tensor]:
        """Return `Captions.sample` of a pair that is read, with the part of `regions` that it shows; {} without."""
        if self.captions is None:
            return {}
        (height, width), (top, left) = pair["mask"].shape, pair["corner"]
        is_whole = (height, width) == self.pairs.sizes[index]
        ids = pair["mask"].numpy() if is_whole else self.pairs.mask(index)  # things are numbered in the whole mask
        generator = make_generator(self.settings.seed, TEXT_CHOICE, position)
        texts = self.captions.sample(index, ids, generator, self.settings.caption_dropout)
        return {**texts, "regions": texts["regions"][top : top + height, left : left + width].contiguous()}


def _forget(texts: dict[str, torch.Tensor], unknown: torch.Tensor) -> None:
    """Take the texts about pixels away that are unknown in the mask (H, W)."""
    if "regions" in texts:
        texts["regions"] = texts["regions"].masked_fill(unknown, -1)


def collate_samples(samples: list[dict[str, Any]]) -> dict[str, Any]:
    """Collate samples into a batch; those with fewer texts about regions get zeros for the rest, at least one."""
    if "region_embeds" in samples[0]:
        most = max(1, *(len(sample["region_embeds"]) for sample in samples))
        padded = [F.pad(sample["region_embeds"], (0, 0, 0, most - len(sample["region_embeds"]))) for sample in samples]
        samples = [{**sample, "region_embeds": embeds} for sample, embeds in zip(samples, padded, strict=True)]
    return default_collate(samples)
