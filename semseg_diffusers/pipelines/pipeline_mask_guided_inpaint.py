"""`MaskGuidedInpaintPipeline`: a photo made anew where its mask was edited, and left as it is everywhere else.

At each step what lies outside the region is the photo, noised to the step's level, as in RePaint (Lugmayr et al. 2022,
eq. 8, whose resampling is an option). This file is uploaded beside the weights, as pipeline.py, with the files that it
imports relatively, and runs without the package: they import the standard library, numpy, PIL, torch and diffusers
only. It holds one pipeline class only, as diffusers asks, and imports each of them itself: of a folder, diffusers
copies no others.
"""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from diffusers import DiffusionPipeline, ImagePipelineOutput
from diffusers.models.modeling_utils import ModelMixin
from diffusers.schedulers.scheduling_utils import SchedulerMixin
from diffusers.utils.torch_utils import randn_tensor

from .guidance import evaluation_mode
from .mask_guided_mixin import MaskGuidedMixin, check_whole_number, stack_ids
from .mask_inputs import UNKNOWN, sample_ids
from .photo_inputs import (
    Box,
    as_images,
    as_tensor,
    changed_region,
    check_can_edit,
    crop_window,
    one_for_each,
    paste,
    read_photos,
    read_region,
    sample_photo,
    sample_region,
    split_batch,
)
from .portable import PortableFolderMixin


# Only these may go back in time: the others remember the steps before.
SCHEDULERS_WITHOUT_MEMORY = ("DDIMParallelScheduler", "DDIMScheduler", "DDPMParallelScheduler", "DDPMScheduler")


def resampling_order(num_steps: int, jump_length: int, jump_n_sample: int) -> list[int]:
    """The steps in the order in which they are done: each block of `jump_length` is done `jump_n_sample` times.

    Example:
        >>> resampling_order(4, jump_length=2, jump_n_sample=2)
        [0, 1, 0, 1, 2, 3, 2, 3]
    """
    blocks = [range(first, min(first + jump_length, num_steps)) for first in range(0, num_steps, jump_length)]
    return [step for block in blocks for _ in range(jump_n_sample) for step in block]


class MaskGuidedInpaintPipeline(MaskGuidedMixin, PortableFolderMixin, DiffusionPipeline):
    r"""Makes photos anew where their masks were edited.

    Args:
        unet (`ModelMixin`): A mask-guided network, as `MaskGuidedDDPMPipeline` takes it.
        scheduler (`SchedulerMixin`): A diffusers scheduler that suits the network's prediction, with `add_noise` over
            discrete timesteps.

    Example:

    ```py
    >>> from semseg_diffusers import MaskGuidedInpaintPipeline
    >>> pipe = MaskGuidedInpaintPipeline.from_pretrained("path/to/run")
    >>> image = pipe("photo.png", "edited_mask.png", old_mask="mask.png").images[0]
    ```
    """

    def __init__(self, unet: ModelMixin, scheduler: SchedulerMixin):
        super().__init__()
        self.register_modules(unet=unet, scheduler=scheduler)

    # Inputs

    def check_edit_inputs(
        self,
        edit_region,
        old_mask,
        margin: int,
        padding_mask_crop: int | None,
        feather: int,
        jump_length: int,
        jump_n_sample: int,
        output_type: str,
    ) -> None:
        """Refuse what of the arguments of this pipeline alone cannot work."""
        check_can_edit(self.unet, self.scheduler)
        if (edit_region is None) == (old_mask is None):
            raise ValueError(
                "give `edit_region`, or `old_mask` to find the region where the masks differ: one of them, not "
                f"{'none' if edit_region is None else 'both'}."
            )
        check_whole_number("margin", margin, 0)
        check_whole_number("feather", feather, 0)
        check_whole_number("jump_length", jump_length, 1)
        check_whole_number("jump_n_sample", jump_n_sample, 1)
        if padding_mask_crop is not None:
            check_whole_number("padding_mask_crop", padding_mask_crop, 0)
            if output_type == "latent":
                raise ValueError("`output_type='latent'` has no place for pixels around a window: leave one out.")
        name = type(self.scheduler).__name__
        if jump_n_sample > 1 and name not in SCHEDULERS_WITHOUT_MEMORY:
            raise ValueError(
                f"`jump_n_sample` is {jump_n_sample}, and {name} cannot go back in time, since it remembers earlier "
                f"steps. Take one of {', '.join(SCHEDULERS_WITHOUT_MEMORY)}."
            )

    def prepare_regions(
        self, photos: list[np.ndarray], ids: list[np.ndarray | None], edit_region, old_mask, margin: int
    ) -> list[np.ndarray]:
        """The region of each photo that is made anew, (H, W) bool, given or found where its masks differ."""
        if edit_region is not None:
            what, given = "edit_region", [read_region(part) for part in split_batch(edit_region, item_ndim=2)]
        else:
            what, given = "old_mask", self.read_masks(old_mask, "old_mask")
        given = one_for_each(what, given, len(ids))
        for photo, new, other in zip(photos, ids, given, strict=True):
            if other is None:
                raise ValueError("`old_mask` is None, so what changed cannot be found: give `edit_region`.")
            for name, array in (("mask", new), (what, other)):
                if array is not None and array.shape != photo.shape[:2]:
                    raise ValueError(
                        f"the photo is {_size(photo)}, its `{name}` {_size(array)}. They show the same pixels, so "
                        "they are of the same size: resize the mask (nearest) or the photo first."
                    )
        if edit_region is not None:
            return given
        return [
            changed_region(old, np.full_like(old, UNKNOWN) if new is None else new, margin)
            for old, new in zip(given, ids, strict=True)
        ]

    def prepare_windows(
        self,
        photos: list[np.ndarray],
        regions: list[np.ndarray],
        height: int,
        width: int,
        padding_mask_crop: int | None,
        output_type: str,
    ) -> list[Box]:
        """The part of each photo that is drawn, at height x width: all of it, or a window around its region."""
        windows = []
        for photo, region in zip(photos, regions, strict=True):
            box = (0, 0, photo.shape[1], photo.shape[0])
            if padding_mask_crop is not None:
                box = crop_window(region, height, width, padding_mask_crop)
                if box is None:
                    rows, columns = (int(region.any(axis=axis).sum()) for axis in (1, 0))
                    raise ValueError(
                        f"the region spans {rows} x {columns} pixels of a photo of {_size(photo)}: no window inside "
                        f"it with the aspect of {height} x {width} holds it. Edit it in parts."
                    )
            elif photo.shape[:2] != (height, width):
                raise ValueError(
                    f"the photo is {_size(photo)} and {height} x {width} are drawn. Give `padding_mask_crop` to draw "
                    "a window around the region, `height` and `width` of the photo, or a photo and masks of that size "
                    "(`semseg-diffusers prepare` makes them)."
                )
            windows.append(box)
        if output_type != "pil" and len({photo.shape for photo in photos}) > 1:
            raise ValueError(f"photos of several sizes come back as output_type='pil'; got {output_type!r}.")
        return windows

    # Sampling

    @torch.no_grad()
    def __call__(
        self,
        image,
        mask,
        edit_region=None,
        old_mask=None,
        margin: int = 4,
        padding_mask_crop: int | None = None,
        feather: int = 0,
        jump_length: int = 1,
        jump_n_sample: int = 1,
        num_images_per_mask: int = 1,
        num_inference_steps: int = 20,
        guidance_scale: float = 2.0,
        guidance_start: float = 0.0,
        guidance_stop: float = 1.0,
        generator: torch.Generator | list[torch.Generator] | None = None,
        latents: torch.Tensor | None = None,
        height: int | None = None,
        width: int | None = None,
        class_labels: int | Sequence[int] | torch.Tensor | None = None,
        attributes: Mapping[str, str | None] | Sequence[Mapping[str, str | None] | None] | None = None,
        attribute_guidance_scale: float | None = None,
        guide_unet: ModelMixin | DiffusionPipeline | None = None,
        conditioning_scale: float | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
        callback_on_step_end: Callable[["MaskGuidedInpaintPipeline", int, int, dict], dict] | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("latents",),
    ) -> ImagePipelineOutput | tuple:
        r"""Make photos anew inside a region; outside, every pixel stays as it is, to the last bit.

        Args:
            image: A photo, or a list with one for each mask; one is for all masks. A path, a PIL image, an array
                (H, W, 3) or a tensor (3, H, W), uint8 or floats in [0, 1]; a batch of arrays or tensors counts as a
                list.
            mask: What the whole photo shall show after the edit, of the photo's size: a mask, a list of them, or None,
                as `MaskGuidedDDPMPipeline` takes it.
            edit_region (*optional*): What is made anew: booleans or integers (H, W), or a picture or its path, of the
                photo's size, not zero (not black) where edited; one for each mask or one for all.
            old_mask (*optional*): In place of `edit_region`: what the photo shows now. The region is where the two
                masks differ, with `margin` pixels around it.
            margin (`int`, defaults to 4): Pixels of the photo around what differs from `old_mask`.
            padding_mask_crop (`int`, *optional*): For photos that are larger than what the network draws: a window
                around the region, with at least this many pixels of the photo around it as far as the photo goes, is
                drawn at height x width, resized and put back. The window has that aspect and is never smaller, so
                small regions are drawn at the photo's own resolution; objects then are as large to the network as in
                the window: give so much padding that windows look like the photos of the training. None: photos are
                of the size that is drawn.
            feather (`int`, defaults to 0): Pixels inside the region, from its border on, over which the photo fades
                into what was drawn.
            jump_length (`int`, defaults to 1): Steps that are done again together, for RePaint's resampling.
            jump_n_sample (`int`, defaults to 1): How often each of them is done; 1 is no resampling. More lets what is
                drawn agree better with what lies around it, at as many times the cost; for DDPM and DDIM schedulers.
            num_images_per_mask (`int`, defaults to 1): Images for each mask; they follow each other.
            num_inference_steps (`int`, defaults to 20): Denoising steps.
            guidance_scale (`float`, defaults to 2.0): As in `MaskGuidedDDPMPipeline`, like the next two.
            guidance_start (`float`, defaults to 0.0): Part of the steps after which guidance begins.
            guidance_stop (`float`, defaults to 1.0): Part of the steps after which it ends.
            generator (`torch.Generator` or a list, *optional*): Source of randomness; a list has one for each image.
            latents (`torch.Tensor`, *optional*): Unit noise to start from, (images, channels, height, width).
            height (`int`, *optional*): Of what is drawn, in pixels; the network's `sample_size` if None.
            width (`int`, *optional*): The same.
            class_labels (`int`, list or `torch.Tensor`, *optional*): For class-conditional networks.
            attributes (`dict` or a list, *optional*): As in `MaskGuidedDDPMPipeline`, like the next two.
            attribute_guidance_scale (`float`, *optional*): A scale of the attributes' own.
            guide_unet (`ModelMixin` or a pipeline, *optional*): A smaller or earlier checkpoint to lead away from.
            conditioning_scale (`float`, *optional*): As in `MaskGuidedDDPMPipeline`.
            output_type (`str`, defaults to "pil"): "pil", "np" (B, H, W, C) or "pt" (B, C, H, W), both float32 in
                [0, 1], or "latent" (B, C, H, W) in [-1, 1], not clipped.
            return_dict (`bool`, defaults to True): An `ImagePipelineOutput`, else a tuple.
            callback_on_step_end (`Callable`, *optional*): Called after each step as `(pipeline, step, timestep,
                tensors)`; the tensors in the dictionary that it returns are used from then on.
            callback_on_step_end_tensor_inputs (`list[str]`, defaults to ["latents"]): Which tensors it is given.

        Returns:
            `ImagePipelineOutput` or `tuple`: The photos, those of a mask one after the other. Where no region holds a
            pixel, nothing is drawn and the photos come back.

        Raises:
            ValueError: Before any work: photo, masks and region of different sizes, no region or two of them, a
                scheduler that cannot noise photos, and all that `MaskGuidedDDPMPipeline` refuses.
        """
        # 1. Read photos, masks and regions, and check everything
        device, dtype = self._execution_device, self.latents_dtype
        ids = self.read_masks(mask)
        num_masks = len(ids)
        height, width = self.image_size(ids, height, width)
        class_labels = self.prepare_class_labels(class_labels, num_masks)  # (number of masks,)
        callback_inputs = self.callback_inputs(callback_on_step_end, callback_on_step_end_tensor_inputs)
        self.check_inputs(
            num_masks,
            num_images_per_mask,
            num_inference_steps,
            guidance_scale,
            guidance_start,
            guidance_stop,
            generator,
            latents,
            height,
            width,
            class_labels,
            output_type,
            callback_inputs,
            attribute_guidance_scale,
            conditioning_scale,
        )
        self.check_edit_inputs(
            edit_region, old_mask, margin, padding_mask_crop, feather, jump_length, jump_n_sample, output_type
        )
        attributes = self.prepare_attributes(attributes, num_masks)  # (number of masks, attributes)
        guide_unet = self.check_guide(guide_unet, attribute_guidance_scale)
        self._guidance_scale, self._attribute_guidance_scale = guidance_scale, attribute_guidance_scale
        self._conditioning_scale = conditioning_scale
        photos = read_photos(image, num_masks)
        regions = self.prepare_regions(photos, ids, edit_region, old_mask, margin)
        windows = self.prepare_windows(photos, regions, height, width, padding_mask_crop, output_type)

        # 2. What is drawn of each photo, at the network's size
        size = height, width
        windowed = [
            (None if array is None else sample_ids(array, box, *size), sample_photo(photo, box, *size))
            for array, photo, box in zip(ids, photos, windows, strict=True)
        ]
        drawn_ids = stack_ids([array for array, _ in windowed], *size)  # (number of masks, H, W)
        known = as_tensor([photo for _, photo in windowed], dtype, device)  # (number of masks, 3, H, W)
        inside = np.stack([sample_region(*pair, *size) for pair in zip(regions, windows, strict=True)])
        inside = torch.from_numpy(inside).to(device).unsqueeze(1)  # (number of masks, 1, H, W)
        known, inside = (part.repeat_interleave(num_images_per_mask, dim=0) for part in (known, inside))  # (B, ...)

        # 3. Timesteps and the noise to start from
        self.scheduler.set_timesteps(num_inference_steps, device=device)
        if hasattr(self.scheduler, "set_begin_index"):
            self.scheduler.set_begin_index(0)  # so that `add_noise` noises to the level that `step` has come to
        timesteps = self.scheduler.timesteps
        order = resampling_order(len(timesteps), jump_length, jump_n_sample) if any(map(np.any, regions)) else []
        self._num_timesteps = len(order)
        guided_steps = int(guidance_start * len(timesteps)), int(guidance_stop * len(timesteps))
        if isinstance(generator, (list, tuple)):
            generator = list(generator)
        if latents is None:
            latents = randn_tensor(known.shape, generator=generator, device=device, dtype=dtype)
        noise = latents.to(known)  # (B, C, H, W)
        latents = noise * self.scheduler.init_noise_sigma
        mask_noise = self.prepare_mask_noise((len(noise), height, width), device, generator, guide_unet)
        extra_step_kwargs = self.prepare_extra_step_kwargs(generator)

        def keep_the_photo(latents: torch.Tensor, next_step: int) -> torch.Tensor:
            """RePaint, eq. 8c: outside, latents (B, C, H, W) are the photo at the noise of the next step."""
            level = timesteps[next_step : next_step + 1]  # (1,), or none after the last step
            photo = self.scheduler.add_noise(known, noise, level).to(latents.dtype) if len(level) else known
            return torch.where(inside, latents, photo)

        with evaluation_mode(self.unet, guide_unet):
            # 4. What depends on the mask alone, once
            guidance = self.prepare_guidance(
                drawn_ids, num_images_per_mask, class_labels, attributes, guide_unet, mask_noise, guided_steps, device
            )

            # 5. Denoise inside, keep the photo outside
            latents = keep_the_photo(latents, order[0] if order else len(timesteps))
            for i, step in enumerate(self.progress_bar(order)):
                if i > 0 and step <= order[i - 1]:
                    latents = self.go_back(latents, order[i - 1] + 1, step, generator)
                    latents = keep_the_photo(latents, step)
                latents = self.denoise(latents, step, timesteps[step], guidance, extra_step_kwargs)  # (B, C, H, W)
                latents = keep_the_photo(latents, step + 1)
                latents = self.call_back(callback_on_step_end, i, timesteps[step], latents, callback_inputs)

        # 6. What was drawn, put into the photos
        if output_type == "latent":
            images = latents
        else:
            drawn = self.postprocess(latents, "np").reshape(num_masks, num_images_per_mask, height, width, 3)
            edits = zip(photos, drawn, regions, windows, strict=True)
            images = [
                paste(photo, image, region, box, feather) for photo, group, region, box in edits for image in group
            ]
            images = as_images(images, output_type, device)
        self.maybe_free_model_hooks()
        return ImagePipelineOutput(images=images) if return_dict else (images,)

    def go_back(self, latents: torch.Tensor, step: int, earlier: int, generator) -> torch.Tensor:
        """Noise latents (B, C, H, W) of one step to the level of an earlier one, which is noisier: RePaint, eq. 7."""
        levels = self.scheduler.alphas_cumprod.to(latents.device)[self.scheduler.timesteps]
        kept = levels[earlier] / (levels[step] if step < len(levels) else 1)
        noise = randn_tensor(latents.shape, generator=generator, device=latents.device, dtype=latents.dtype)
        return (kept**0.5 * latents + (1 - kept) ** 0.5 * noise).to(latents.dtype)


def _size(array: np.ndarray) -> str:
    return f"{array.shape[0]} x {array.shape[1]}"
