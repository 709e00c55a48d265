"""`MaskGuidedUpscalePipeline`: an image enlarged under a mask of the high resolution, whole or in tiles.

Follows cascaded diffusion models (Ho et al. 2022) and SR3 (Saharia et al. 2021): the enlarged image is a condition
beside the mask. What pipeline_mask_guided_ddpm.py says about its file holds for this one too.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from diffusers import DiffusionPipeline, ImagePipelineOutput
from diffusers.models.modeling_utils import ModelMixin
from diffusers.schedulers.scheduling_utils import SchedulerMixin
from diffusers.utils import logging
from diffusers.utils.torch_utils import randn_tensor

from .guidance import Conditions, evaluation_mode
from .image_inputs import read_images, split_batch, to_tensor
from .latents import vae_factor  # noqa: F401  diffusers copies only files that are imported here
from .mask_guided_mixin import MaskGuidedMixin, check_whole_number, plain_number, separate_call, stack_ids
from .mask_inputs import resize_ids, split_masks
from .portable import PortableFolderMixin
from .scheduler_trial import check_scheduler  # noqa: F401  likewise
from .text_inputs import Texts  # noqa: F401  likewise
from .upscaling import (
    NOISE_LEVEL,
    TiledConditions,
    add_low_res_noise,
    enlarge,
    project_onto,
    sample_to_image,
    tile_windows,
)


logger = logging.get_logger(__name__)


class MaskGuidedUpscalePipeline(MaskGuidedMixin, PortableFolderMixin, DiffusionPipeline):
    r"""Enlarges images under class masks of the high resolution.

    Args:
        unet (`ModelMixin`): A mask-guided network with an `upscale_factor`, as `train --upscale_factor` makes it.
        scheduler (`SchedulerMixin`): Any diffusers scheduler that suits the network's prediction.
        default_num_inference_steps (`int`, *optional*): As in `MaskGuidedDDPMPipeline`, like the next two.
        default_guidance_scale (`float`, *optional*): The guidance scale that the checkpoint recommends.
        trained_timesteps (`list[int]`, *optional*): The timesteps that a distilled network was trained at.
        default_noise_level (`int`, *optional*): The noise level that the checkpoint recommends; 0 if None.

    Example:
    ```py
    >>> from semseg_diffusers import MaskGuidedUpscalePipeline
    >>> pipe = MaskGuidedUpscalePipeline.from_pretrained("path/to/upscaler")
    >>> image = pipe("small.png", "large_mask.png").images[0]
    ```
    """

    is_upscaler = True

    def __init__(
        self,
        unet: ModelMixin,
        scheduler: SchedulerMixin,
        default_num_inference_steps: int | None = None,
        default_guidance_scale: float | None = None,
        trained_timesteps: Sequence[int] | None = None,
        default_noise_level: int | None = None,
    ):
        super().__init__()
        self.register_modules(unet=unet, scheduler=scheduler)
        self.register_recommendation(default_num_inference_steps, default_guidance_scale, trained_timesteps)
        default_noise_level = plain_number(default_noise_level)
        if default_noise_level is not None:
            check_whole_number("default_noise_level", default_noise_level, 0)
        self.register_to_config(default_noise_level=default_noise_level)

    def resolve_noise_level(self, noise_level: int | None = None) -> int:
        """Return the noise level: as given, else as the checkpoint recommends, else 0; checked."""
        most = self.unet.config.max_noise_level
        if noise_level is None:
            recommended = self.config.get("default_noise_level")
            return min(NOISE_LEVEL if recommended is None else recommended, most)
        check_whole_number("noise_level", noise_level, 0)
        if noise_level > most:
            raise ValueError(f"`noise_level` is {noise_level}; this network was trained with 0 to {most}.")
        return noise_level

    def prepare_images(self, image, mask) -> tuple[list[np.ndarray], list]:
        """Read the images to enlarge, (h, w, 3) each and of one size, and return one for each mask, and the masks."""
        if self.unet.config.in_channels != 3:
            raise ValueError(f"expected a network of images with 3 channels; got {self.unet.config.in_channels}.")
        masks = split_masks(mask, self.unet.config.num_classes)
        if mask is None:
            masks = [None] * len(split_batch(image, item_ndim=3))
        images = read_images(image, len(masks))
        sizes = sorted({each.shape[:2] for each in images})
        if len(sizes) > 1:
            found = " and ".join(f"{height} x {width}" for height, width in sizes[:2])
            raise ValueError(f"the images are {found} (height x width); enlarge those of one size together.")
        return images, masks

    def prepare_large_masks(self, masks: list, height: int, width: int) -> torch.Tensor:
        """Read masks at the high resolution: (masks, height, width) on the CPU, long; smaller ones are enlarged."""
        ids = self.read_masks(masks)
        small = next((each.shape for each in ids if each is not None and each.shape[0] < height), None)
        if small is not None:
            logger.warning(
                f"a mask of {small[0]} x {small[1]} is enlarged to {height} x {width} by nearest neighbour, so that "
                "its edges have steps: pass masks of the high resolution where there are any."
            )
        return stack_ids([each if each is None else resize_ids(each, height, width) for each in ids], height, width)

    def prepare_windows(
        self, height: int, width: int, tile_size: int | tuple[int, int] | None, tile_overlap: int
    ) -> list[tuple[slice, slice]]:
        """Return the windows of the tiles, one for the whole frame without `tile_size`."""
        if tile_size is None:
            return [(slice(0, height), slice(0, width))]
        sides = tuple(map(plain_number, tile_size)) if hasattr(tile_size, "__iter__") else (tile_size, tile_size)
        if len(sides) != 2:
            raise ValueError(f"`tile_size` is {tile_size!r}; expected a number of pixels, or height and width.")
        divisor = getattr(self.unet, "size_divisor", 1)
        for name, value in (("tile_size", sides[0]), ("tile_size", sides[1]), ("tile_overlap", tile_overlap)):
            check_whole_number(name, value, 0 if name == "tile_overlap" else 1)
            if value % divisor:
                raise ValueError(f"`{name}` is {value}; expected multiples of {divisor} for this network.")
        if sides[0] >= height and sides[1] >= width:
            return [(slice(0, height), slice(0, width))]
        if tile_overlap >= min(sides):
            raise ValueError(f"`tile_overlap` {tile_overlap} must be smaller than `tile_size` {tile_size}.")
        if getattr(self.unet.config, "coordinate_channels", False):
            raise ValueError("this network knows the place of each pixel in the frame: omit `tile_size`.")
        return tile_windows(height, width, sides, tile_overlap)

    @torch.no_grad()
    @separate_call
    def __call__(
        self,
        image,
        mask,
        num_images_per_mask: int = 1,
        num_inference_steps: int | None = None,
        timesteps: Sequence[int] | None = None,
        sigmas: Sequence[float] | None = None,
        guidance_scale: float | None = None,
        guidance_start: float = 0.0,
        guidance_stop: float = 1.0,
        noise_level: int | None = None,
        generator: torch.Generator | list[torch.Generator] | None = None,
        latents: torch.Tensor | None = None,
        class_labels: int | Sequence[int] | torch.Tensor | None = None,
        attributes: Mapping[str, str | None] | Sequence[Mapping[str, str | None] | None] | None = None,
        attribute_guidance_scale: float | None = None,
        guide_unet: ModelMixin | DiffusionPipeline | None = None,
        tile_size: int | tuple[int, int] | None = None,
        tile_overlap: int = 64,
        project: bool | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
        callback_on_step_end: Callable[["MaskGuidedUpscalePipeline", int, int, dict], dict] | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("latents",),
    ) -> ImagePipelineOutput | tuple:
        r"""Enlarge images by the network's `upscale_factor`.

        Args:
            image: An image, or a list with one for each mask, all of one size; one is for all masks. A path, a PIL
                image, an array (h, w, 3) or a tensor (3, h, w), uint8 or floats in [0, 1]; a batch of arrays or
                tensors counts as a list. The depth of the network must divide the size of the result.
            mask: A mask of the result's size, a list of them, or None to go by the images alone, as
                `MaskGuidedDDPMPipeline` takes it. Smaller ones are enlarged by nearest neighbour, with a warning.
            num_images_per_mask (`int`, defaults to 1): Results for each mask; they follow each other.
            num_inference_steps (`int`, *optional*): As in `MaskGuidedDDPMPipeline`, like the next five.
            timesteps (`list[int]`, *optional*): The timesteps to sample at, in place of `num_inference_steps`.
            sigmas (`list[float]`, *optional*): The noise levels to sample at, in place of `num_inference_steps`.
            guidance_scale (`float`, *optional*): Of the mask; the image to enlarge is always seen.
            guidance_start (`float`, defaults to 0.0): Fraction of the steps after which guidance starts.
            guidance_stop (`float`, defaults to 1.0): Fraction of the steps after which it ends.
            noise_level (`int`, *optional*): Noise that is added to the image to enlarge, which the network knows: 0 to
                the network's `max_noise_level`. More of it hides artefacts, and gives the network more freedom. What
                the checkpoint recommends if None.
            generator (`torch.Generator` or a list, *optional*): Source of randomness; a list has one for each result.
            latents (`torch.Tensor`, *optional*): Unit noise to start from, (results, channels, height, width).
            class_labels (`int`, list or `torch.Tensor`, *optional*): For class-conditional networks.
            attributes (`dict` or a list, *optional*): As in `MaskGuidedDDPMPipeline`, like the next two.
            attribute_guidance_scale (`float`, *optional*): A separate scale of the attributes.
            guide_unet (`ModelMixin` or a pipeline, *optional*): A smaller or earlier checkpoint for autoguidance.
            tile_size (`int` or `tuple[int, int]`, *optional*): Pixels of the result (height, width) that the network
                works on at a time, for frames that do not fit in memory; the whole frame if None.
            tile_overlap (`int`, defaults to 64): Pixels by which tiles overlap; they are joined at every step.
            project (`bool`, *optional*): Whether to change the results as little as possible so that their reductions
                equal the images (`consistency_psnr`). Only at a `noise_level` of 0 if None: noise says that the images
                are not exact.
            output_type (`str`, defaults to "pil"): "pil", "np" (B, H, W, C) in [0, 1], "pt" (B, C, H, W) in [0, 1], or
                "latent" (B, C, H, W) in [-1, 1], not clipped where not projected; float32 also where the network is in
                half precision.
            return_dict (`bool`, defaults to True): Whether to return an `ImagePipelineOutput` instead of a tuple.
            callback_on_step_end (`Callable`, *optional*): Called after each step as `(pipeline, step, timestep,
                tensors)`; the tensors in the dictionary that it returns are used from then on.
            callback_on_step_end_tensor_inputs (`list[str]`, defaults to ["latents"]): The tensors that it gets;
                `latents` are differences to the enlarged images where the network has a `residual_scale`.

        Returns:
            `ImagePipelineOutput` or `tuple`: The enlarged images, those of a mask one after the other.

        Raises:
            ValueError: Before any work: unreadable images or masks, images of several sizes, a size that the network's
                depth does not divide, and all that `MaskGuidedDDPMPipeline` refuses.
        """
        # 1. Read and check all inputs
        num_inference_steps, guidance_scale = self.resolve_sampling(num_inference_steps, guidance_scale)
        num_inference_steps, schedule = self.prepare_schedule(num_inference_steps, timesteps, sigmas)
        images, masks = self.prepare_images(image, mask)  # of (h, w, 3)
        num_masks, factor = len(masks), getattr(self.unet.config, "upscale_factor", None) or 1
        height, width = (factor * side for side in images[0].shape[:2])
        class_labels = self.prepare_class_labels(class_labels, num_masks)  # (number of masks,)
        callback_inputs = self.prepare_callback(callback_on_step_end, callback_on_step_end_tensor_inputs)
        generator = list(generator) if isinstance(generator, tuple) else generator
        sizes = num_masks, num_images_per_mask, num_inference_steps, height, width
        shape = self.check_inputs(*sizes, generator, latents, output_type, schedule)
        self.prepare_guidance(guidance_scale, guidance_start, guidance_stop, attribute_guidance_scale, None)
        noise_level = self.resolve_noise_level(noise_level)
        windows = self.prepare_windows(height, width, tile_size, tile_overlap)
        ids = self.prepare_large_masks(masks, height, width)  # (number of masks, H, W)
        attribute_ids = self.prepare_attributes(attributes, num_masks)  # (number of masks, attributes)
        guide_network = self.prepare_guide(guide_unet, attribute_guidance_scale)

        # 2. Prepare timesteps, noise, and the images to enlarge
        device, dtype = self._execution_device, self.latents_dtype
        self.scheduler.set_timesteps(**schedule, device=device)
        visited = self.scheduler.timesteps
        self.warn_of_untrained_timesteps(visited, num_inference_steps)
        self._num_timesteps = len(visited)
        guided_steps = range(int(guidance_start * len(visited)), int(guidance_stop * len(visited)))
        noise, mask_noise = self.prepare_noise(shape, generator, latents, guide_network)
        latents = noise * self.scheduler.init_noise_sigma  # (B, C, H, W)
        extra_step_kwargs = self.prepare_extra_step_kwargs(generator)
        small = to_tensor(images, dtype, device).repeat_interleave(num_images_per_mask, dim=0)  # (B, C, h, w)
        low_res = small
        if noise_level:
            low_res_noise = randn_tensor(small.shape, generator=generator, device=device, dtype=dtype)
            low_res = add_low_res_noise(small, low_res_noise, noise_level)
        low_res = enlarge(low_res, height, width)  # (B, C, H, W)

        with evaluation_mode(self.unet, guide_network):
            # 3. Encode what does not change from step to step
            given: dict[str, Any] = {
                "class_labels": class_labels,
                "attributes": None if attribute_ids is None else attribute_ids.to(device),
                "mask_noise": mask_noise,
                "guide_unet": guide_network,
                "low_res": low_res,
                "noise_level": noise_level,
            }
            conditions: Conditions | TiledConditions
            if len(windows) == 1:
                conditions = Conditions(self.unet, ids.to(device), num_images_per_mask, **given)
            else:
                conditions = TiledConditions(
                    windows, tile_overlap, self.unet, ids.to(device), num_images_per_mask, **given
                )

            # 4. Denoise
            for step, t in enumerate(self.progress_bar(visited)):
                # Copied from semseg_diffusers.pipelines.pipeline_mask_guided_ddpm.MaskGuidedDDPMPipeline.__call__
                scales = self.guidance_scales if step in guided_steps else (1.0, 1.0, 1.0)
                weights = conditions.weights(*scales)
                model_input = self.scheduler.scale_model_input(latents, t).to(self.unet.dtype)  # (B, C, H, W)
                predicted = conditions.predict(model_input, t, weights, self.conditioning_scale)
                guided = predicted[:, : self.prediction_channels].to(latents.dtype)
                stepped = self.scheduler.step(guided, t, latents, **extra_step_kwargs, return_dict=False)[0]
                latents = stepped.to(latents.dtype)  # some schedulers compute in another precision
                latents = self.call_back(callback_on_step_end, callback_inputs, step, t, latents)
                # End of copy
                if self.interrupt:
                    break

        # 5. Postprocess
        self.check_finite()
        latents = sample_to_image(latents, low_res, getattr(self.unet.config, "residual_scale", None))
        if project if project is not None else not noise_level:
            latents = project_onto(latents, small)
        results = self.postprocess(latents, output_type)
        self.maybe_free_model_hooks()
        return ImagePipelineOutput(images=results) if return_dict else (results,)
