"""`MaskGuidedImg2ImgPipeline`: an image moved to another mask, weather or look while its layout stays.

Follows SDEdit (Meng et al. 2022, section 3.2): noise is added to the image for a part of the schedule, and it is
denoised under the new condition. What pipeline_mask_guided_ddpm.py says about its file holds for this one too.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from diffusers import DiffusionPipeline, ImagePipelineOutput
from diffusers.models.modeling_utils import ModelMixin
from diffusers.schedulers.scheduling_utils import SchedulerMixin
from diffusers.utils import logging

from .guidance import evaluation_mode
from .image_inputs import check_editing, crop_resize_image, read_images, to_output, to_tensor
from .latents import vae_factor  # noqa: F401  diffusers copies only files that are imported here
from .mask_guided_mixin import MaskGuidedMixin, separate_call, uses_prk_steps
from .mask_inputs import center_crop_box
from .portable import PortableFolderMixin
from .scheduler_trial import first_step
from .text_inputs import Texts  # noqa: F401  likewise


logger = logging.get_logger(__name__)


class MaskGuidedImg2ImgPipeline(MaskGuidedMixin, PortableFolderMixin, DiffusionPipeline):
    r"""Regenerates images under class masks, close to what they show.

    Args:
        unet (`ModelMixin`): A mask-guided network, as `MaskGuidedDDPMPipeline` takes it.
        scheduler (`SchedulerMixin`): A diffusers scheduler that suits the network's prediction, with `add_noise` over
            discrete timesteps.
        default_num_inference_steps (`int`, *optional*): As in `MaskGuidedDDPMPipeline`, like the next two.
        default_guidance_scale (`float`, *optional*): The guidance scale that the checkpoint recommends.
        trained_timesteps (`list[int]`, *optional*): The timesteps that a distilled network was trained at.
        text_encoder (`torch.nn.Module`, *optional*): As in `MaskGuidedDDPMPipeline`, like the next two.
        tokenizer (*optional*): The tokenizer of the text encoder.
        text_encoder_source (`str`, *optional*): Where both are on the Hub.
        vae (`torch.nn.Module`, *optional*): As in `MaskGuidedDDPMPipeline`: images are encoded to their latents.

    Example:
    ```py
    >>> from semseg_diffusers import MaskGuidedImg2ImgPipeline
    >>> pipe = MaskGuidedImg2ImgPipeline.from_pretrained("path/to/run")
    >>> image = pipe("photo.jpg", "mask.png", strength=0.5, attributes={"weather": "rainy"}).images[0]
    ```
    """

    _optional_components = ["text_encoder", "tokenizer", "vae"]

    def __init__(
        self,
        unet: ModelMixin,
        scheduler: SchedulerMixin,
        default_num_inference_steps: int | None = None,
        default_guidance_scale: float | None = None,
        trained_timesteps: Sequence[int] | None = None,
        text_encoder: torch.nn.Module | None = None,
        tokenizer: Any = None,
        text_encoder_source: str | None = None,
        vae: torch.nn.Module | None = None,
    ):
        super().__init__()
        self.register_modules(unet=unet, scheduler=scheduler, vae=vae)
        self.register_text_encoder(text_encoder, tokenizer, text_encoder_source)
        self.register_recommendation(default_num_inference_steps, default_guidance_scale, trained_timesteps)

    def get_timesteps(
        self, num_inference_steps: int, strength: float, device, schedule: Mapping[str, Any]
    ) -> tuple[torch.Tensor, int]:
        """Return the timesteps that a strength leaves, and the index of the first of them in the schedule."""
        self.scheduler.set_timesteps(**schedule, device=device)
        first = first_step(self.scheduler, num_inference_steps, strength)
        if hasattr(self.scheduler, "set_begin_index"):
            self.scheduler.set_begin_index(first)
        return self.scheduler.timesteps[first:], first

    @torch.no_grad()
    @separate_call
    def __call__(
        self,
        image,
        mask,
        strength: float = 0.5,
        num_images_per_mask: int = 1,
        num_inference_steps: int | None = None,
        timesteps: Sequence[int] | None = None,
        sigmas: Sequence[float] | None = None,
        guidance_scale: float | None = None,
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
        prompt: str | Sequence[str | None] | None = None,
        negative_prompt: str | Sequence[str | None] | None = None,
        class_prompts: Mapping[str, str | None] | Sequence[Mapping[str, str | None] | None] | None = None,
        instance_prompts: Mapping | Sequence[Mapping | None] | None = None,
        prompt_guidance_scale: float | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
        callback_on_step_end: Callable[["MaskGuidedImg2ImgPipeline", int, int, dict], dict] | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("latents",),
    ) -> ImagePipelineOutput | tuple:
        r"""Regenerate images under masks.

        Args:
            image: An image, or a list with one for each mask; one is for all masks. A path, a PIL image, an array
                (H, W, 3) or a tensor (3, H, W), uint8 or floats in [0, 1]; a batch of arrays or tensors counts as a
                list. Other sizes are centre-cropped to the aspect ratio and resized, as masks are.
            mask: The new mask, a list of them, or None, as `MaskGuidedDDPMPipeline` takes it.
            strength (`float`, defaults to 0.5): Fraction of the schedule that is sampled, 0 to 1: 0 returns the image,
                1 starts from noise alone and gives what `MaskGuidedDDPMPipeline` gives for the same generator.
            num_images_per_mask (`int`, defaults to 1): Images for each mask; they follow each other.
            num_inference_steps (`int`, *optional*): Denoising steps of the full schedule, of which
                `int(num_inference_steps * strength)` are run; as many as the checkpoint recommends if None.
            timesteps (`list[int]`, *optional*): As in `MaskGuidedDDPMPipeline`, like the next one.
            sigmas (`list[float]`, *optional*): The noise levels to sample at, in place of `num_inference_steps`.
            guidance_scale (`float`, *optional*): As in `MaskGuidedDDPMPipeline`, like the next two, which are
                fractions of the full schedule: the same noise at every strength.
            guidance_start (`float`, defaults to 0.0): Fraction of the steps after which guidance starts.
            guidance_stop (`float`, defaults to 1.0): Fraction of the steps after which it ends.
            generator (`torch.Generator` or a list, *optional*): Source of randomness; a list has one for each image.
            latents (`torch.Tensor`, *optional*): Unit noise to add, (images, channels, height, width).
            height (`int`, *optional*): In pixels; the network's `sample_size` if None.
            width (`int`, *optional*): In pixels; the network's `sample_size` if None.
            class_labels (`int`, list or `torch.Tensor`, *optional*): For class-conditional networks.
            attributes (`dict` or a list, *optional*): As in `MaskGuidedDDPMPipeline`, like the next two.
            attribute_guidance_scale (`float`, *optional*): A separate scale of the attributes.
            guide_unet (`ModelMixin` or a pipeline, *optional*): A smaller or earlier checkpoint for autoguidance.
            instances (*optional*): As in `MaskGuidedDDPMPipeline`, like the next one.
            conditioning_scale (`float`, *optional*): The scale of a control branch.
            prompt (`str` or a list, *optional*): As in `MaskGuidedDDPMPipeline`, like the next four: a text about the
                whole image.
            negative_prompt (`str` or a list, *optional*): A text in place of none where guidance leads away from.
            class_prompts (`dict` or a list, *optional*): A text about all pixels of a class.
            instance_prompts (`dict` or a list, *optional*): Texts about single things.
            prompt_guidance_scale (`float`, *optional*): A separate scale of the texts.
            output_type (`str`, defaults to "pil"): "pil", "np" (B, H, W, C) in [0, 1], "pt" (B, C, H, W) in [0, 1], or
                "latent" (B, C, H, W) in [-1, 1], not clipped, or what an autoencoder would decode; float32 also where
                the network is in half precision.
            return_dict (`bool`, defaults to True): Whether to return an `ImagePipelineOutput` instead of a tuple.
            callback_on_step_end (`Callable`, *optional*): Called after each step as `(pipeline, step, timestep,
                tensors)`; the tensors in the dictionary that it returns are used from then on. Where it sets
                `pipeline._interrupt = True`, no further step is taken.
            callback_on_step_end_tensor_inputs (`list[str]`, defaults to ["latents"]): The tensors that it gets.

        Returns:
            `ImagePipelineOutput` or `tuple`: The images, those of a mask one after the other.

        Raises:
            ValueError: Before any work: unreadable images or masks, a scheduler that cannot add noise to images, and
                all that `MaskGuidedDDPMPipeline` refuses.
        """
        # 1. Read and check all inputs
        num_inference_steps, guidance_scale = self.resolve_sampling(num_inference_steps, guidance_scale)
        num_inference_steps, schedule = self.prepare_schedule(num_inference_steps, timesteps, sigmas)
        ids = self.prepare_masks(mask, height, width)  # (number of masks, H, W)
        num_masks, height, width = ids.shape
        class_labels = self.prepare_class_labels(class_labels, num_masks)  # (number of masks,)
        callback_inputs = self.prepare_callback(callback_on_step_end, callback_on_step_end_tensor_inputs)
        generator = list(generator) if isinstance(generator, tuple) else generator
        sizes = num_masks, num_images_per_mask, num_inference_steps, height, width
        shape = self.check_inputs(*sizes, generator, latents, output_type, schedule)
        self.prepare_guidance(
            guidance_scale,
            guidance_start,
            guidance_stop,
            attribute_guidance_scale,
            conditioning_scale,
            prompt_guidance_scale,
        )
        self.check_strength(strength)
        self.check_scheduler(num_inference_steps, strength=strength, schedule=schedule)
        attribute_ids = self.prepare_attributes(attributes, num_masks)  # (number of masks, attributes)
        guide_network = self.prepare_guide(guide_unet, attribute_guidance_scale, prompt_guidance_scale)
        instances = self.prepare_instances(instances, num_masks, height, width, instance_prompts)  # (masks, H, W)
        things = None if instances is None else list(instances.numpy())
        texts = self.prepare_texts(list(ids.numpy()), things, prompt, negative_prompt, class_prompts, instance_prompts)
        sources = []  # B of (H, W, 3)
        for source in read_images(image, num_masks):
            box = center_crop_box(source.shape[0], source.shape[1], height, width)
            sources += [crop_resize_image(source, box, height, width)] * num_images_per_mask

        # 2. Prepare timesteps and the noisy images
        device, dtype = self._execution_device, self.latents_dtype
        visited, first_step = self.get_timesteps(num_inference_steps, strength, device, schedule)
        self.warn_of_untrained_timesteps(visited, num_inference_steps)
        self._num_timesteps = len(visited)
        if len(visited) == 0:
            if strength > 0:
                logger.warning(
                    f"`strength` {strength} of {num_inference_steps} steps is less than one step, so images are "
                    f"returned as they are: use a strength of at least 1/{num_inference_steps}, or more steps."
                )
            images = to_output(sources, output_type, dtype, device)
            images = self.encode_images(images) if output_type == "latent" else images
            return ImagePipelineOutput(images=images) if return_dict else (images,)
        num_steps = len(self.scheduler.timesteps)  # of the full schedule
        guided_steps = range(int(guidance_start * num_steps), int(guidance_stop * num_steps))
        noise, mask_noise = self.prepare_noise(shape, generator, latents, guide_network)
        if first_step == 0:
            latents = noise * self.scheduler.init_noise_sigma  # (B, C, H, W)
        else:
            known = self.encode_images(to_tensor(sources, dtype, device))
            latents = self.scheduler.add_noise(known, noise, visited[:1])
        extra_step_kwargs = self.prepare_extra_step_kwargs(generator)

        with evaluation_mode(self.unet, guide_network):
            # 3. Encode what does not change from step to step
            conditions = self.prepare_conditions(
                guide_network, ids, num_images_per_mask, class_labels, attribute_ids, mask_noise, instances, texts
            )

            # 4. Denoise
            for i, t in enumerate(self.progress_bar(visited)):
                step = first_step + i
                # Copied from semseg_diffusers.pipelines.pipeline_mask_guided_ddpm.MaskGuidedDDPMPipeline.__call__
                scales = self.guidance_scales if step in guided_steps else (1.0, 1.0, 1.0)
                weights = conditions.weights(*scales)
                model_input = self.scheduler.scale_model_input(latents, t).to(self.unet.dtype)  # (B, C, H, W)
                predicted = conditions.predict(model_input, t, weights, self.conditioning_scale)
                guided = predicted[:, : self.prediction_channels].to(latents.dtype)
                stepped = self.scheduler.step(guided, t, latents, **extra_step_kwargs, return_dict=False)[0]
                latents = stepped.to(latents.dtype)  # some schedulers compute in another precision
                # End of copy
                latents = self.call_back(callback_on_step_end, callback_inputs, i, t, latents)
                if self.interrupt:
                    break

        # 5. Postprocess
        self.check_finite()
        images = self.postprocess(latents, output_type)
        self.maybe_free_model_hooks()
        return ImagePipelineOutput(images=images) if return_dict else (images,)

    def check_strength(self, strength: float) -> None:
        """Check the strength, and that network and scheduler can start from an image."""
        check_editing(self, self.scheduler)
        if isinstance(strength, bool) or not isinstance(strength, (int, float)) or not 0 <= strength <= 1:
            raise ValueError(f"`strength` is {strength!r}; expected a number from 0 (the image) to 1 (noise alone).")
        if strength < 1 and uses_prk_steps(self.scheduler):
            raise ValueError(
                f"{type(self.scheduler).__name__} cannot start below its Runge-Kutta steps: set its "
                "skip_prk_steps=True, or use another scheduler."
            )
