"""`MaskGuidedImg2ImgPipeline`: a photo moved to another mask, weather or look while its layout stays.

Follows SDEdit (Meng et al. 2022, section 3.2): the photo is noised part of the way and denoised under the new
condition. This file is uploaded beside the weights, as pipeline.py, with the files that it imports relatively, and
runs without the package: they import the standard library, numpy, PIL, torch and diffusers only. It holds one pipeline
class only, as diffusers asks, and imports each of them itself: of a folder, diffusers copies no others.
"""

from collections.abc import Callable, Mapping, Sequence

import torch
from diffusers import DiffusionPipeline, ImagePipelineOutput
from diffusers.models.modeling_utils import ModelMixin
from diffusers.schedulers.scheduling_utils import SchedulerMixin
from diffusers.utils.torch_utils import randn_tensor

from .guidance import evaluation_mode
from .mask_guided_mixin import MaskGuidedMixin, uses_prk_steps
from .mask_inputs import center_crop_box
from .photo_inputs import as_images, as_tensor, check_can_edit, read_photos, sample_photo
from .portable import PortableFolderMixin


class MaskGuidedImg2ImgPipeline(MaskGuidedMixin, PortableFolderMixin, DiffusionPipeline):
    r"""Redraws photos after class masks, near to what they show.

    Args:
        unet (`ModelMixin`): A mask-guided network, as `MaskGuidedDDPMPipeline` takes it.
        scheduler (`SchedulerMixin`): A diffusers scheduler that suits the network's prediction, with `add_noise` over
            discrete timesteps.

    Example:

    ```py
    >>> from semseg_diffusers import MaskGuidedImg2ImgPipeline
    >>> pipe = MaskGuidedImg2ImgPipeline.from_pretrained("path/to/run")
    >>> image = pipe("photo.jpg", "mask.png", strength=0.5, attributes={"weather": "rainy"}).images[0]
    ```
    """

    def __init__(self, unet: ModelMixin, scheduler: SchedulerMixin):
        super().__init__()
        self.register_modules(unet=unet, scheduler=scheduler)

    def get_timesteps(self, num_inference_steps: int, strength: float, device) -> tuple[torch.Tensor, int]:
        """The timesteps that a strength leaves, and the number of the first of them among all."""
        self.scheduler.set_timesteps(num_inference_steps, device=device)
        steps = min(int(num_inference_steps * strength), num_inference_steps)
        first = (num_inference_steps - steps) * getattr(self.scheduler, "order", 1)
        if steps == num_inference_steps:
            first = 0
        if hasattr(self.scheduler, "set_begin_index"):
            self.scheduler.set_begin_index(first)
        return self.scheduler.timesteps[first:] if steps else self.scheduler.timesteps[:0], first

    def prepare_noised_photos(
        self, photos: torch.Tensor, timesteps: torch.Tensor, first_step: int, generator, latents: torch.Tensor | None
    ) -> torch.Tensor:
        """The start of sampling: photos (B, 3, H, W) at the noise of the first timestep; at the top, noise alone."""
        if first_step == 0:
            return self.prepare_latents(photos.shape, photos.dtype, photos.device, generator, latents)
        if latents is None:
            latents = randn_tensor(photos.shape, generator=generator, device=photos.device, dtype=photos.dtype)
        return self.scheduler.add_noise(photos, latents.to(photos), timesteps[:1])

    @torch.no_grad()
    def __call__(
        self,
        image,
        mask,
        strength: float = 0.5,
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
        callback_on_step_end: Callable[["MaskGuidedImg2ImgPipeline", int, int, dict], dict] | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("latents",),
    ) -> ImagePipelineOutput | tuple:
        r"""Redraw photos.

        Args:
            image: A photo, or a list with one for each mask; one is for all masks. A path, a PIL image, an array
                (H, W, 3) or a tensor (3, H, W), uint8 or floats in [0, 1]; a batch of arrays or tensors counts as a
                list. Other sizes are cropped around the centre to the aspect and resized, as masks are.
            mask: What the images shall show: a mask, a list of them, or None, as `MaskGuidedDDPMPipeline` takes it.
            strength (`float`, defaults to 0.5): Part of the steps that are gone through, 0 to 1: 0 returns the photo,
                1 starts from noise alone and gives what `MaskGuidedDDPMPipeline` gives for the same generator.
            num_images_per_mask (`int`, defaults to 1): Images for each mask; they follow each other.
            num_inference_steps (`int`, defaults to 20): Denoising steps of the whole schedule, of which
                `int(num_inference_steps * strength)` are done.
            guidance_scale (`float`, defaults to 2.0): As in `MaskGuidedDDPMPipeline`, like the next two, which are
                parts of the whole schedule: the same noise at every strength.
            guidance_start (`float`, defaults to 0.0): Part of the steps after which guidance begins.
            guidance_stop (`float`, defaults to 1.0): Part of the steps after which it ends.
            generator (`torch.Generator` or a list, *optional*): Source of randomness; a list has one for each image.
            latents (`torch.Tensor`, *optional*): Unit noise to add, (images, channels, height, width).
            height (`int`, *optional*): In pixels; the network's `sample_size` if None.
            width (`int`, *optional*): The same.
            class_labels (`int`, list or `torch.Tensor`, *optional*): For class-conditional networks.
            attributes (`dict` or a list, *optional*): As in `MaskGuidedDDPMPipeline`, like the next two.
            attribute_guidance_scale (`float`, *optional*): A scale of the attributes' own.
            guide_unet (`ModelMixin` or a pipeline, *optional*): A smaller or earlier checkpoint to lead away from.
            conditioning_scale (`float`, *optional*): As in `MaskGuidedDDPMPipeline`.
            output_type (`str`, defaults to "pil"): "pil", "np" (B, H, W, C) in [0, 1], "pt" (B, C, H, W) in [0, 1], or
                "latent" (B, C, H, W) in [-1, 1], not clipped; float32 also where the network is in half precision.
            return_dict (`bool`, defaults to True): An `ImagePipelineOutput`, else a tuple.
            callback_on_step_end (`Callable`, *optional*): Called after each step as `(pipeline, step, timestep,
                tensors)`; the tensors in the dictionary that it returns are used from then on.
            callback_on_step_end_tensor_inputs (`list[str]`, defaults to ["latents"]): Which tensors it is given.

        Returns:
            `ImagePipelineOutput` or `tuple`: The images, those of a mask one after the other.

        Raises:
            ValueError: Before any work: unreadable photos or masks, a scheduler that cannot noise photos, and all that
                `MaskGuidedDDPMPipeline` refuses.
        """
        # 1. Read masks and photos and check everything
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
        self.check_strength(strength)
        attributes = self.prepare_attributes(attributes, num_masks)  # (number of masks, attributes)
        guide_unet = self.check_guide(guide_unet, attribute_guidance_scale)
        self._guidance_scale, self._attribute_guidance_scale = guidance_scale, attribute_guidance_scale
        self._conditioning_scale = conditioning_scale
        photos = [
            sample_photo(photo, center_crop_box(*photo.shape[:2], height, width), height, width)
            for photo in read_photos(image, num_masks)
            for _ in range(num_images_per_mask)
        ]  # (B), each (H, W, 3)

        # 2. Timesteps, and the photos at the noise of the first
        timesteps, first_step = self.get_timesteps(num_inference_steps, strength, device)
        self._num_timesteps = len(timesteps)
        if len(timesteps) == 0:
            is_latent = output_type == "latent"
            images = as_tensor(photos, dtype, device) if is_latent else as_images(photos, output_type, device)
            return ImagePipelineOutput(images=images) if return_dict else (images,)
        guided_steps = tuple(int(part * len(self.scheduler.timesteps)) for part in (guidance_start, guidance_stop))
        if isinstance(generator, (list, tuple)):
            generator = list(generator)
        latents = self.prepare_noised_photos(
            as_tensor(photos, dtype, device), timesteps, first_step, generator, latents
        )
        mask_noise = self.prepare_mask_noise((len(photos), height, width), device, generator, guide_unet)
        extra_step_kwargs = self.prepare_extra_step_kwargs(generator)

        with evaluation_mode(self.unet, guide_unet):
            # 3. What depends on the mask alone, once
            guidance = self.prepare_guidance(
                ids, num_images_per_mask, class_labels, attributes, guide_unet, mask_noise, guided_steps, device
            )

            # 4. Denoise
            for i, t in enumerate(self.progress_bar(timesteps)):
                latents = self.denoise(latents, first_step + i, t, guidance, extra_step_kwargs)  # (B, C, H, W)
                latents = self.call_back(callback_on_step_end, i, t, latents, callback_inputs)

        # 5. Pictures
        images = self.postprocess(latents, output_type)
        self.maybe_free_model_hooks()
        return ImagePipelineOutput(images=images) if return_dict else (images,)

    def check_strength(self, strength: float) -> None:
        """Refuse a strength out of range, and a network or scheduler that cannot start from a photo."""
        check_can_edit(self.unet, self.scheduler)
        if isinstance(strength, bool) or not isinstance(strength, (int, float)) or not 0 <= strength <= 1:
            raise ValueError(f"`strength` is {strength!r}; wanted a number from 0 (the photo) to 1 (noise alone).")
        if strength < 1 and uses_prk_steps(self.scheduler):
            raise ValueError(
                f"{type(self.scheduler).__name__} counts its Runge-Kutta steps from the top and cannot start below: "
                "set its skip_prk_steps=True, or take another scheduler."
            )
