"""`MaskGuidedDDPMPipeline`: images from class masks, sampled from noise with any diffusers scheduler.

This file is saved beside the weights as pipeline.py, with the files that it imports relatively, and runs without the
package. It holds one pipeline class, as diffusers requires, and imports each shared file itself: no others are copied.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from diffusers import DiffusionPipeline, ImagePipelineOutput
from diffusers.models.modeling_utils import ModelMixin
from diffusers.schedulers.scheduling_utils import SchedulerMixin

from .guidance import evaluation_mode
from .latents import vae_factor  # noqa: F401  diffusers copies only files that are imported here
from .mask_guided_mixin import MaskGuidedMixin, separate_call
from .mask_inputs import UNKNOWN  # noqa: F401  likewise
from .portable import PortableFolderMixin
from .scheduler_trial import check_scheduler  # noqa: F401  likewise
from .text_inputs import Texts  # noqa: F401  likewise


class MaskGuidedDDPMPipeline(MaskGuidedMixin, PortableFolderMixin, DiffusionPipeline):
    r"""Generates images that follow class masks.

    Args:
        unet (`ModelMixin`): A mask-guided network: `forward(sample, timestep, class_labels, mask, mask_features)` and
            `encode_mask`. Its config holds `num_classes`, `sample_size` and, where known, the label set.
        scheduler (`SchedulerMixin`): Any diffusers scheduler that suits the network's prediction (noise, velocity or
            image, by the scheduler's own `prediction_type`).
        default_num_inference_steps (`int`, *optional*): Steps that the checkpoint recommends, for calls without
            `num_inference_steps`; 20 if None. Saved in `model_index.json`, like the next two.
        default_guidance_scale (`float`, *optional*): The guidance scale that it recommends; 2.0 if None.
        trained_timesteps (`list[int]`, *optional*): For networks that were distilled for few steps: the timesteps they
            were trained at. Sampling at others logs a warning.
        text_encoder (`torch.nn.Module`, *optional*): For networks that read texts: the frozen encoder of transformers
            that they were trained with, such as a BertModel (MiniLM), a T5EncoderModel or a CLIPTextModel. Embeddings
            are the mean of its last hidden states over the tokens, of CLIP the pooled state.
        tokenizer (*optional*): Its tokenizer. Both are saved and loaded with the pipeline.
        text_encoder_source (`str`, *optional*): Where both are on the Hub, as `"owner/name@commit"`. It is saved in
            their place, and they are loaded from there; where that fails, a warning says so and the pipeline takes no
            prompts.
        vae (`torch.nn.Module`, *optional*): For networks that generate latents (`vae_scale_factor`): the autoencoder
            of diffusers that they were trained with, such as an AutoencoderKL, AutoencoderTiny or VQModel. Saved and
            loaded with the pipeline; without it, only latents can be generated.

    Example:
    ```py
    >>> from semseg_diffusers import MaskGuidedDDPMPipeline
    >>> pipe = MaskGuidedDDPMPipeline.from_pretrained("path/to/run")
    >>> image = pipe("mask.png", num_inference_steps=20).images[0]
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

    @torch.no_grad()
    @separate_call
    def __call__(
        self,
        mask,
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
        callback_on_step_end: Callable[["MaskGuidedDDPMPipeline", int, int, dict], dict] | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("latents",),
    ) -> ImagePipelineOutput | tuple:
        r"""Generate images from masks.

        Args:
            mask: A mask, a list of them, or None for an unconditional image (also inside a list). A mask is a path, a
                PIL image, integer ids (H, W) as array or tensor, one-hot floats (num_classes, H, W), or the label
                set's colours; a batch of arrays or tensors counts as a list. 255 is unknown. Other sizes are
                centre-cropped to the aspect ratio and resized by nearest neighbour.
            num_images_per_mask (`int`, defaults to 1): Images for each mask; they follow each other.
            num_inference_steps (`int`, *optional*): Denoising steps; as many as the checkpoint recommends if None.
            timesteps (`list[int]`, *optional*): The timesteps to sample at, falling, in place of
                `num_inference_steps`, for schedulers whose `set_timesteps` takes them.
            sigmas (`list[float]`, *optional*): Likewise their noise levels, down to 0.
            guidance_scale (`float`, *optional*): `uncond + scale * (cond - uncond)`, where uncond is predicted
                without mask and attributes; 1 is the plain conditional prediction, at half the cost. What the
                checkpoint recommends if None.
            guidance_start (`float`, defaults to 0.0): Fraction of the steps after which guidance starts.
            guidance_stop (`float`, defaults to 1.0): Fraction of the steps after which it ends; outside the interval
                the prediction is plain conditional.
            generator (`torch.Generator` or a list, *optional*): Source of randomness; a list has one for each image.
            latents (`torch.Tensor`, *optional*): Unit noise to start from, (images, channels, height, width); of
                networks of latents, in cells.
            height (`int`, *optional*): In pixels; the network's `sample_size` if None.
            width (`int`, *optional*): In pixels; the network's `sample_size` if None.
            class_labels (`int`, list or `torch.Tensor`, *optional*): For class-conditional networks, one for each mask
                or one for all.
            attributes (`dict` or a list, *optional*): Name -> value for all masks, such as `{"weather": "rainy"}`, or
                one dict for each mask; missing names, and None, are unknown.
            attribute_guidance_scale (`float`, *optional*): A separate scale of the attributes: `uncond +
                guidance_scale * (mask - uncond) + attribute_guidance_scale * (mask and attributes - mask)`, three
                predictions a step.
            guide_unet (`ModelMixin` or a pipeline, *optional*): A smaller or earlier checkpoint whose prediction takes
                the place of uncond (autoguidance): `guide + guidance_scale * (cond - guide)`, both with all
                conditions. It must have the network's device and dtype; a bare network must predict what the scheduler
                expects, which is checked for a pipeline.
            instances (*optional*): For networks with `instance_edges`, and for `instance_prompts`: a path, a
                one-channel PIL image or integer ids (H, W) for each mask, such as Cityscapes' `instanceIds`, of the
                mask's size. If None, the borders of the classes are the edges.
            conditioning_scale (`float`, *optional*): For networks with a control branch (`MaskControlNetModel`): the
                scale of what it adds; 1, as it was trained, if None; 0 is the base alone.
            prompt (`str` or a list, *optional*): For networks that read texts (`text_embed_dim`): a text about the
                whole image, such as `"a rainy evening"`, for all masks, or one for each; None is no text.
            negative_prompt (`str` or a list, *optional*): A text that takes the place of no text in the predictions
                that guidance leads away from; without guidance it has no effect.
            class_prompts (`dict` or a list, *optional*): A text about all pixels of a class, such as `{"car": "a red
                car"}`, for all masks, or one dict for each. Classes are named, or given by id.
            instance_prompts (`dict` or a list, *optional*): Texts about single things, in place of that about their
                class: `{"car": ["a red car", None, "a white car"]}` for those of a class from left to right (connected
                parts of the mask, or what `instances` distinguishes), or `{26001: "a red car"}` by ids of `instances`.
            prompt_guidance_scale (`float`, *optional*): A separate scale of the texts, as `attribute_guidance_scale`
                is that of the attributes; one more prediction a step.
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
            ValueError: Before any work: unreadable masks, ids or colours that the network does not know, sizes that
                its depth does not divide, counts that do not fit, texts that are empty or too long.
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
        attribute_ids = self.prepare_attributes(attributes, num_masks)  # (number of masks, attributes)
        guide_network = self.prepare_guide(guide_unet, attribute_guidance_scale, prompt_guidance_scale)
        instances = self.prepare_instances(instances, num_masks, height, width, instance_prompts)  # (masks, H, W)
        things = None if instances is None else list(instances.numpy())
        texts = self.prepare_texts(list(ids.numpy()), things, prompt, negative_prompt, class_prompts, instance_prompts)

        # 2. Prepare timesteps and noise
        self.scheduler.set_timesteps(**schedule, device=self._execution_device)
        visited = self.scheduler.timesteps
        self.warn_of_untrained_timesteps(visited, num_inference_steps)
        self._num_timesteps = len(visited)
        guided_steps = range(int(guidance_start * len(visited)), int(guidance_stop * len(visited)))
        noise, mask_noise = self.prepare_noise(shape, generator, latents, guide_network)
        latents = noise * self.scheduler.init_noise_sigma  # (B, C, H, W)
        extra_step_kwargs = self.prepare_extra_step_kwargs(generator)

        with evaluation_mode(self.unet, guide_network):
            # 3. Encode what does not change from step to step
            conditions = self.prepare_conditions(
                guide_network, ids, num_images_per_mask, class_labels, attribute_ids, mask_noise, instances, texts
            )

            # 4. Denoise
            for step, t in enumerate(self.progress_bar(visited)):
                scales = self.guidance_scales if step in guided_steps else (1.0, 1.0, 1.0)
                weights = conditions.weights(*scales)
                model_input = self.scheduler.scale_model_input(latents, t).to(self.unet.dtype)  # (B, C, H, W)
                predicted = conditions.predict(model_input, t, weights, self.conditioning_scale)
                guided = predicted[:, : self.prediction_channels].to(latents.dtype)
                stepped = self.scheduler.step(guided, t, latents, **extra_step_kwargs, return_dict=False)[0]
                latents = stepped.to(latents.dtype)  # some schedulers compute in another precision
                latents = self.call_back(callback_on_step_end, callback_inputs, step, t, latents)
                if self.interrupt:
                    break

        # 5. Postprocess
        self.check_finite()
        images = self.postprocess(latents, output_type)
        self.maybe_free_model_hooks()
        return ImagePipelineOutput(images=images) if return_dict else (images,)
