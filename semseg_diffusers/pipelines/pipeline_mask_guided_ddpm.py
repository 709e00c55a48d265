"""`MaskGuidedDDPMPipeline`: photos that follow class masks, drawn from noise with any diffusers scheduler.

This file is uploaded beside the weights, as pipeline.py, with the files that it imports relatively, and runs without
the package: they import the standard library, numpy, PIL, torch and diffusers only. It holds one pipeline class only,
as diffusers asks, and imports each of them itself: of a folder, diffusers copies no others.
"""

from collections.abc import Callable, Mapping, Sequence

import torch
from diffusers import DiffusionPipeline, ImagePipelineOutput
from diffusers.models.modeling_utils import ModelMixin
from diffusers.schedulers.scheduling_utils import SchedulerMixin

from .guidance import evaluation_mode
from .mask_guided_mixin import MaskGuidedMixin
from .mask_inputs import UNKNOWN  # noqa: F401  of a folder, diffusers copies only what this file itself names
from .portable import PortableFolderMixin


class MaskGuidedDDPMPipeline(MaskGuidedMixin, PortableFolderMixin, DiffusionPipeline):
    r"""Draws photos that follow class masks.

    Args:
        unet (`ModelMixin`): A mask-guided network: `forward(sample, timestep, class_labels, mask, mask_features)` and
            `encode_mask`. Its config holds `num_classes`, `sample_size` and, where known, the label set.
        scheduler (`SchedulerMixin`): Any diffusers scheduler that suits the network's prediction (noise, velocity or
            image, by the scheduler's own `prediction_type`).

    Example:

    ```py
    >>> from semseg_diffusers import MaskGuidedDDPMPipeline
    >>> pipe = MaskGuidedDDPMPipeline.from_pretrained("path/to/run")
    >>> image = pipe("mask.png", num_inference_steps=20).images[0]
    ```
    """

    def __init__(self, unet: ModelMixin, scheduler: SchedulerMixin):
        super().__init__()
        self.register_modules(unet=unet, scheduler=scheduler)

    @torch.no_grad()
    def __call__(
        self,
        mask,
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
        instances=None,
        conditioning_scale: float | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
        callback_on_step_end: Callable[["MaskGuidedDDPMPipeline", int, int, dict], dict] | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("latents",),
    ) -> ImagePipelineOutput | tuple:
        r"""Draw images from masks.

        Args:
            mask: A mask, a list of them, or None for an unconditional image (also inside a list). A mask is a path, a
                PIL image, integer ids (H, W) as array or tensor, one-hot floats (num_classes, H, W), or the label
                set's colours; a batch of arrays or tensors counts as a list. 255 is unknown. Other sizes are cropped
                around the centre to the aspect and resized by nearest neighbour.
            num_images_per_mask (`int`, defaults to 1): Images for each mask; they follow each other.
            num_inference_steps (`int`, defaults to 20): Denoising steps.
            guidance_scale (`float`, defaults to 2.0): `uncond + scale * (cond - uncond)`, where uncond is told neither
                mask nor attributes; 1 is the plain conditional prediction, at half the cost.
            guidance_start (`float`, defaults to 0.0): Part of the steps after which guidance begins.
            guidance_stop (`float`, defaults to 1.0): Part of the steps after which it ends; outside, the prediction is
                plain conditional.
            generator (`torch.Generator` or a list, *optional*): Source of randomness; a list has one for each image.
            latents (`torch.Tensor`, *optional*): Unit noise to start from, (images, channels, height, width).
            height (`int`, *optional*): In pixels; the network's `sample_size` if None.
            width (`int`, *optional*): The same.
            class_labels (`int`, list or `torch.Tensor`, *optional*): For class-conditional networks, one for each mask
                or one for all.
            attributes (`dict` or a list, *optional*): Name -> value for all masks, such as `{"weather": "rainy"}`, or
                one dict for each mask; what is left out, or None, is unknown.
            attribute_guidance_scale (`float`, *optional*): A scale of the attributes' own: `uncond + guidance_scale *
                (mask - uncond) + attribute_guidance_scale * (mask and attributes - mask)`, three predictions a step.
            guide_unet (`ModelMixin` or a pipeline, *optional*): A smaller or earlier checkpoint, which takes the place
                of uncond (autoguidance): `guide + guidance_scale * (cond - guide)`, both told all. A bare network must
                predict what the scheduler expects; of a pipeline this is checked. The network's device and dtype.
            instances (*optional*): For networks with `instance_edges`: a path, a one-channel PIL image or integer ids
                (H, W) for each mask, such as Cityscapes' `instanceIds`, as large as the mask. Where they are None, the
                borders of the classes are the edges.
            conditioning_scale (`float`, *optional*): For networks with a control branch (`MaskControlNetModel`): how
                much of what it says is added; 1, as it was trained, if None; 0 is the base alone.
            output_type (`str`, defaults to "pil"): "pil", "np" (B, H, W, C) in [0, 1], "pt" (B, C, H, W) in [0, 1], or
                "latent" (B, C, H, W) in [-1, 1], not clipped; float32 also where the network is in half precision.
            return_dict (`bool`, defaults to True): An `ImagePipelineOutput`, else a tuple.
            callback_on_step_end (`Callable`, *optional*): Called after each step as `(pipeline, step, timestep,
                tensors)`; the tensors in the dictionary that it returns are used from then on.
            callback_on_step_end_tensor_inputs (`list[str]`, defaults to ["latents"]): Which tensors it is given.

        Returns:
            `ImagePipelineOutput` or `tuple`: The images, those of a mask one after the other.

        Raises:
            ValueError: Before any work: unreadable masks, ids or colours that the network does not know, sizes that
                its depth does not divide, counts that do not fit.
        """
        # 1. Read the masks and check everything
        device, dtype = self._execution_device, self.latents_dtype
        ids = self.prepare_masks(mask, height, width)  # (number of masks, H, W)
        num_masks, height, width = ids.shape
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
        attributes = self.prepare_attributes(attributes, num_masks)  # (number of masks, attributes)
        guide_unet = self.check_guide(guide_unet, attribute_guidance_scale)
        instances = self.prepare_instances(instances, num_masks, height, width)  # (number of masks, H, W)
        self._guidance_scale, self._attribute_guidance_scale = guidance_scale, attribute_guidance_scale
        self._conditioning_scale = conditioning_scale

        # 2. Timesteps and the noise to start from
        self.scheduler.set_timesteps(num_inference_steps, device=device)
        timesteps = self.scheduler.timesteps
        self._num_timesteps = len(timesteps)
        guided_steps = int(guidance_start * len(timesteps)), int(guidance_stop * len(timesteps))
        if isinstance(generator, (list, tuple)):
            generator = list(generator)
        num_images = num_masks * num_images_per_mask
        shape = (num_images, self.unet.config.in_channels, height, width)
        latents = self.prepare_latents(shape, dtype, device, generator, latents)  # (B, C, H, W)
        mask_noise = self.prepare_mask_noise((num_images, height, width), device, generator, guide_unet)
        extra_step_kwargs = self.prepare_extra_step_kwargs(generator)

        with evaluation_mode(self.unet, guide_unet):
            # 3. What depends on the mask alone, once
            guidance = self.prepare_guidance(
                ids,
                num_images_per_mask,
                class_labels,
                attributes,
                guide_unet,
                mask_noise,
                guided_steps,
                device,
                instances,
            )

            # 4. Denoise
            for i, t in enumerate(self.progress_bar(timesteps)):
                latents = self.denoise(latents, i, t, guidance, extra_step_kwargs)  # (B, C, H, W)
                latents = self.call_back(callback_on_step_end, i, t, latents, callback_inputs)

        # 5. Pictures
        images = self.postprocess(latents, output_type)
        self.maybe_free_model_hooks()
        return ImagePipelineOutput(images=images) if return_dict else (images,)
