"""What an upscaler enlarges in training: reduced photos, blurred and noisy to some degree (Ho et al. 2022, cascaded
diffusion models, section 4.2), and images of another model that show the same photos.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from semseg_diffusers.data.dataset import PairDataset
from semseg_diffusers.data.dataset_format import GENERATION_FILE, METADATA_FILE
from semseg_diffusers.pipelines.image_inputs import to_rgb
from semseg_diffusers.pipelines.mask_inputs import open_image
from semseg_diffusers.pipelines.upscaling import LANCZOS_SUPPORT, add_low_res_noise, enlarge
from semseg_diffusers.utils.files import is_outside, read_json, read_json_lines


BLUR_PROBABILITY = 0.5
BLUR_RADIUS = 3  # low-resolution pixels


def reduce_window(window: np.ndarray, factor: int, box: tuple[int, int, int, int]) -> torch.Tensor:
    """Reduce a box (left, top, right, bottom) of an image (H, W, 3) to (3, h, w) uint8, by all pixels that are known.

    The filter is that of `prepare`, so that a box of a large photo equals the same part of a photo prepared small.
    """
    left, top, right, bottom = box
    size = (right - left) // factor, (bottom - top) // factor
    reduced = Image.fromarray(window).resize(size, Image.Resampling.LANCZOS, box=box)
    return torch.from_numpy(np.array(reduced)).permute(2, 0, 1)


def blur(image: torch.Tensor, sigma: float) -> torch.Tensor:
    """Blur an image (3, h, w) by a Gaussian; `sigma` in pixels."""
    offsets = torch.arange(-BLUR_RADIUS, BLUR_RADIUS + 1, dtype=torch.float32)
    weights = torch.exp(-((offsets / sigma) ** 2) / 2)
    weights = (weights / weights.sum()).view(1, 1, -1, 1).expand(3, -1, -1, -1)
    padded = F.pad(image[None], (BLUR_RADIUS,) * 4, mode="replicate")
    return F.conv2d(F.conv2d(padded, weights, groups=3), weights.transpose(2, 3), groups=3)[0]


@dataclass(frozen=True)
class LowRes:
    """Makes the images that an upscaler enlarges, and their noise."""

    factor: int  # the network's `upscale_factor`
    max_noise_level: int  # the network's
    blur: float  # largest standard deviation, low-resolution pixels
    share: float  # of the samples that enlarge an image of another model, where there is one
    files: Mapping[str, list[Path]] = field(default_factory=dict)  # these, by the stem of the photo that they show

    @classmethod
    def of(cls, unet: Any, settings: Any, pairs: PairDataset) -> "LowRes | None":
        """Return what a network's settings ask for; None for one that enlarges nothing."""
        config = getattr(unet, "config", {})
        if not config.get("upscale_factor"):
            return None
        folder = settings.low_res_from
        files = {} if folder is None else low_res_files(Path(folder), pairs, config["upscale_factor"])
        given = settings.low_res_blur, settings.low_res_share
        return cls(config["upscale_factor"], config["max_noise_level"], *given, files)

    @property
    def margin(self) -> int:
        """Return the pixels around a crop that its reduction depends on."""
        return LANCZOS_SUPPORT * self.factor

    def read(
        self, window: np.ndarray, box: tuple[int, int, int, int], corner: tuple[int, int], stem: str, number: float
    ) -> torch.Tensor:
        """Return the image to enlarge (3, h, w) uint8 for a box of a window (H, W, 3), see `reduce_window`.

        `corner` is the top and the left of the box in the photo, `number` in [0, 1) chooses the source.
        """
        files = self.files.get(stem, [])
        if not (files and number < self.share):
            return reduce_window(window, self.factor, box)
        file = files[int(number / self.share * len(files))]
        image = np.array(to_rgb(open_image(file, "image"), f"image '{file}'"))
        top, left = (side // self.factor for side in corner)
        height, width = (box[3] - box[1]) // self.factor, (box[2] - box[0]) // self.factor
        return torch.from_numpy(image[top : top + height, left : left + width]).permute(2, 0, 1)

    def degrade(self, small: torch.Tensor, generator: torch.Generator) -> dict[str, torch.Tensor]:
        """Blur and noise an image (3, h, w) in [-1, 1]; return `low_res`, (3, H, W), and `noise_level`."""
        probability, share, level = torch.rand(3, generator=generator).tolist()
        noise = torch.randn(small.shape, generator=generator)
        if self.blur and probability < BLUR_PROBABILITY and share:
            small = blur(small, share * self.blur)
        # few samples are noisy: generation mostly asks for little noise
        noise_level = torch.tensor(int(level**2 * (self.max_noise_level + 1)))
        small = add_low_res_noise(small[None], noise[None], noise_level)
        return {
            "low_res": enlarge(small, *(self.factor * side for side in small.shape[-2:]))[0],
            "noise_level": noise_level,
        }


def low_res_files(folder: Path, pairs: PairDataset, factor: int) -> dict[str, list[Path]]:
    """Return the images of a folder that `generate --strength` made of the photos of a split, by their stems."""
    where = f"--low_res_from '{folder}'"
    if not (folder / GENERATION_FILE).is_file():
        raise ValueError(f"{where}: it has no {GENERATION_FILE}; expected the output of `generate --strength`.")
    record = read_json(folder / GENERATION_FILE)
    if record.get("strength") is None:
        raise ValueError(
            f"{where}: its images were generated from noise and show other scenes than the photos; expected those of "
            "`generate --strength`, made of the photos in the small size."
        )
    if record.get("upscaler") is not None:
        raise ValueError(f"{where}: its images were enlarged; expected the small ones, generated without --upscaler.")
    size = record["height"] * factor, record["width"] * factor
    other = next((index for index, found in enumerate(pairs.sizes) if found != size), None)
    if other is not None:
        raise ValueError(
            f"{where}: its images are {record['height']} x {record['width']}, and '{pairs.stems[other]}' of "
            f"{pairs.name} is {pairs.sizes[other][0]} x {pairs.sizes[other][1]} (height x width), which is not "
            f"{factor} times as large. Generate them at the other size."
        )
    known, files = {*pairs.stems}, dict[str, list[Path]]()
    for row in read_json_lines(folder / METADATA_FILE):
        stem, name = row.get("stem"), row.get("image_file_name")
        if name is None or is_outside(name):
            raise ValueError(f"{where}: its {METADATA_FILE} names the image {name!r}; expected files in its folder.")
        if stem in known:
            files.setdefault(stem, []).append(folder / name)
    if not files:
        raise ValueError(f"{where}: none of its images was made of a photo of {pairs.name}, by their names.")
    return {stem: sorted(paths) for stem, paths in files.items()}
