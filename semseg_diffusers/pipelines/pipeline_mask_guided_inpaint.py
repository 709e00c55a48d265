"""`MaskGuidedInpaintPipeline`: an image regenerated where its mask was edited, and unchanged everywhere else.

At each step what is outside the region is the image at that step's noise level, as in RePaint (Lugmayr et al. 2022,
eq. 8; its resampling is an option). What pipeline_mask_guided_ddpm.py says about its file holds for this one too.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import DiffusionPipeline, ImagePipelineOutput
from diffusers.models.modeling_utils import ModelMixin
from diffusers.schedulers.scheduling_utils import SchedulerMixin
from diffusers.utils.torch_utils import randn_tensor

from .guidance import evaluation_mode
from .image_inputs import (
    Box,
    changed_region,
    check_editing,
    crop_resize_image,
    crop_resize_region,
    crop_window,
    one_for_each,
    paste,
    read_images,
    read_region,
    split_batch,
    to_output,
    to_tensor,
)
from .latents import vae_factor  # noqa: F401  diffusers copies only files that are imported here
from .mask_guided_mixin import MaskGuidedMixin, check_whole_number, separate_call, stack_ids
from .mask_inputs import UNKNOWN, crop_resize_ids
from .portable import PortableFolderMixin
from .scheduler_trial import check_scheduler  # noqa: F401  likewise
from .text_inputs import Texts  # noqa: F401  likewise


# Only these may go back in time: the others keep state of earlier steps.
SCHEDULERS_WITHOUT_MEMORY = ("DDIMParallelScheduler", "DDIMScheduler", "DDPMParallelScheduler", "DDPMScheduler")


def resampling_order(num_steps: int, jump_length: int, jump_n_sample: int) -> list[int]:
    """Return the steps in the order in which they run: each block of `jump_length` runs `jump_n_sample` times.

    Example:
        >>> resampling_order(4, jump_length=2, jump_n_sample=2)
        [0, 1, 0, 1, 2, 3, 2, 3]
    """
    blocks = [range(first, min(first + jump_length, num_steps)) for first in range(0, num_steps, jump_length)]
    return [step for block in blocks for _ in range(jump_n_sample) for step in block]


class MaskGuidedInpaintPipeline(MaskGuidedMixin, PortableFolderMixin, DiffusionPipeline):
    r"""Regenerates images where their masks were edited.

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
        vae (`torch.nn.Module`, *optional*): As in `MaskGuidedDDPMPipeline`: the cells of the latents that a region
            reaches are generated, and decoded pixels are pasted into the region alone.

    Example:
    ```py
    >>> from semseg_diffusers import MaskGuidedInpaintPipeline
    >>> pipe = MaskGuidedInpaintPipeline.from_pretrained("path/to/run")
    >>> image = pipe("photo.png", "edited_mask.png", old_mask="mask.png").images[0]
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

    def check_edit_inputs(
        self, margin: int, padding_mask_crop: int | None, feather: int, jump_length: int, jump_n_sample: int
    ) -> None:
        """Raise a `ValueError` where network, scheduler or the arguments of this pipeline alone cannot work."""
        check_editing(self, self.scheduler)
        crop = 0 if padding_mask_crop is None else padding_mask_crop
        sizes = {"margin": margin, "feather": feather, "padding_mask_crop": crop}
        for name, value in {**sizes, "jump_length": jump_length, "jump_n_sample": jump_n_sample}.items():
            check_whole_number(name, value, 0 if name in sizes else 1)
        name = type(self.scheduler).__name__
        if jump_n_sample > 1 and name not in SCHEDULERS_WITHOUT_MEMORY:
            raise ValueError(
                f"`jump_n_sample` is {jump_n_sample}, and {name} cannot go back in time, since it remembers earlier "
                f"steps. Use one of {', '.join(SCHEDULERS_WITHOUT_MEMORY)}."
            )

    def prepare_regions(
        self, sources: list[np.ndarray], ids: list[np.ndarray | None], edit_region, old_mask, margin: int
    ) -> list[np.ndarray]:
        """Return the region of each image that is regenerated, (H, W) bool: given, or where its masks differ."""
        if (edit_region is None) == (old_mask is None):
            raise ValueError(
                "expected `edit_region`, or `old_mask` to find the region where the masks differ; got "
                f"{'neither' if edit_region is None else 'both'}."
            )
        if edit_region is not None:
            what = "edit_region"
            given: list = [read_region(part) for part in split_batch(edit_region, item_ndim=2)]
        else:
            what, given = "old_mask", self.read_masks(old_mask, "old_mask")
        given = one_for_each(what, given, len(ids))
        if any(other is None for other in given):
            raise ValueError("`old_mask` is None, so what changed cannot be found: pass `edit_region`.")
        for source, new, other in zip(sources, ids, given, strict=True):
            for name, array in (("mask", new), (what, other)):
                if array is not None and array.shape != source.shape[:2]:
                    raise ValueError(
                        f"`image` is {_size(source)}, its `{name}` {_size(array)}; expected one size. Resize the mask "
                        "(nearest) or the image first."
                    )
        if edit_region is not None:
            return given
        return [
            changed_region(old, np.full_like(old, UNKNOWN) if new is None else new, margin)
            for old, new in zip(given, ids, strict=True)
        ]

    def prepare_windows(
        self, sources: list[np.ndarray], regions: list[np.ndarray], height: int, width: int, padding, output_type
    ) -> list[Box]:
        """Return what is generated of each image, at height x width: all of it, or a window around its region."""
        if padding is not None and output_type == "latent":
            raise ValueError("`output_type='latent'` cannot hold what is around `padding_mask_crop`: omit one.")
        windows = []
        for source, region in zip(sources, regions, strict=True):
            window: Box | None = (0, 0, source.shape[1], source.shape[0])
            if padding is not None:
                window = crop_window(region, height, width, padding)
            elif source.shape[:2] != (height, width):
                raise ValueError(
                    f"`image` is {_size(source)}, and {height} x {width} is generated. Pass `padding_mask_crop` to "
                    "generate a window around the region, the image's `height` and `width`, or image and masks of "
                    "that size (`semseg-diffusers prepare` makes them)."
                )
            if window is None:
                rows, columns = (int(region.any(axis=axis).sum()) for axis in (1, 0))
                raise ValueError(
                    f"the region spans {rows} x {columns} pixels of an image of {_size(source)}: no window inside it "
                    f"with the aspect ratio of {height} x {width} holds it. Edit it in parts."
                )
            windows.append(window)
        if output_type != "pil" and len({source.shape for source in sources}) > 1:
            raise ValueError(f"images of several sizes need output_type='pil'; got {output_type!r}.")
        return windows

    def crop_windows(
        self, ids, sources, regions, windows: list[Box], height: int, width: int
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Resize the window of each mask, image and region: (N, H, W), and as generated (N, C, h, w), (N, 1, h, w)."""
        parts, size = list(zip(ids, sources, regions, windows, strict=True)), (height, width)
        window_ids = [None if array is None else crop_resize_ids(array, box, *size) for array, _, _, box in parts]
        photos = [crop_resize_image(source, box, *size) for _, source, _, box in parts]
        inside = np.stack([crop_resize_region(region, box, *size) for _, _, region, box in parts])
        device = self._execution_device
        edited, factor = torch.from_numpy(inside).to(device).unsqueeze(1), self.vae_scale_factor  # (N, 1, H, W)
        if factor > 1:
            edited = F.max_pool2d(edited.float(), factor) > 0  # the cells that a region reaches
        known = self.encode_images(to_tensor(photos, self.latents_dtype, device))
        return stack_ids(window_ids, *size), known, edited

    @torch.no_grad()
    @separate_call
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
        callback_on_step_end: Callable[["MaskGuidedInpaintPipeline", int, int, dict], dict] | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("latents",),
    ) -> ImagePipelineOutput | tuple:
        r"""Regenerate a region of images; outside it every pixel keeps its value exactly.

        Args:
            image: An image, or a list with one for each mask; one is for all masks. A path, a PIL image, an array
                (H, W, 3) or a tensor (3, H, W), uint8 or floats in [0, 1]; a batch of arrays or tensors counts as a
                list.
            mask: The mask of the full image after the edit, of the image's size: a mask, a list of them, or None, as
                `MaskGuidedDDPMPipeline` takes it.
            edit_region (*optional*): What is regenerated: booleans or integers (H, W), or an image or its path, of the
                image's size, not zero (not black) where edited; one for each mask or one for all.
            old_mask (*optional*): In place of `edit_region`: the mask of the image as it is. The region is where the
                two masks differ, with `margin` pixels around it.
            margin (`int`, defaults to 4): Pixels of the image around what differs from `old_mask`.
            padding_mask_crop (`int`, *optional*): For images larger than what the network generates: a window around
                the region, with at least this many pixels of the image around it as far as the image reaches, is
                generated at height x width, resized and pasted back. The window has that aspect ratio and is never
                smaller, so small regions are generated at the image's own resolution; objects then have the size to
                the network that they have in the window: use a padding at which windows resemble the training images.
                None: images have the size that is generated.
            feather (`int`, defaults to 0): Pixels inside the region, from its border, over which the image fades into
                the generated one.
            jump_length (`int`, defaults to 1): Number of steps that are repeated together, for RePaint's resampling.
            jump_n_sample (`int`, defaults to 1): How often each of them is run; 1 is no resampling. More makes the
                generated part agree better with its surroundings, at as many times the cost; for DDPM and DDIM
                schedulers.
            num_images_per_mask (`int`, defaults to 1): Images for each mask; they follow each other.
            num_inference_steps (`int`, *optional*): Denoising steps; as many as the checkpoint recommends if None.
            timesteps (`list[int]`, *optional*): As in `MaskGuidedDDPMPipeline`, like the next one.
            sigmas (`list[float]`, *optional*): The noise levels to sample at, in place of `num_inference_steps`.
            guidance_scale (`float`, *optional*): As in `MaskGuidedDDPMPipeline`, like the next two.
            guidance_start (`float`, defaults to 0.0): Fraction of the steps after which guidance starts.
            guidance_stop (`float`, defaults to 1.0): Fraction of the steps after which it ends.
            generator (`torch.Generator` or a list, *optional*): Source of randomness; a list has one for each image.
            latents (`torch.Tensor`, *optional*): Unit noise to start from, (images, channels, height, width).
            height (`int`, *optional*): Of what is generated, in pixels; the network's `sample_size` if None.
            width (`int`, *optional*): Of what is generated, in pixels; the network's `sample_size` if None.
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
            output_type (`str`, defaults to "pil"): "pil", "np" (B, H, W, C) or "pt" (B, C, H, W), both float32 in
                [0, 1], or "latent" (B, C, H, W) in [-1, 1], not clipped.
            return_dict (`bool`, defaults to True): Whether to return an `ImagePipelineOutput` instead of a tuple.
            callback_on_step_end (`Callable`, *optional*): Called after each step as `(pipeline, step, timestep,
                tensors)`; the tensors in the dictionary that it returns are used from then on. Where it sets
                `pipeline._interrupt = True`, no further step is taken.
            callback_on_step_end_tensor_inputs (`list[str]`, defaults to ["latents"]): The tensors that it gets.

        Returns:
            `ImagePipelineOutput` or `tuple`: The images, those of a mask one after the other. Where no region holds a
            pixel, the network does not run and the images are returned as they are.

        Raises:
            ValueError: Before any work: image, masks and region of different sizes, no region or two of them, a
                scheduler that cannot add noise to images, and all that `MaskGuidedDDPMPipeline` refuses.
        """
        # 1. Read and check all inputs
        num_inference_steps, guidance_scale = self.resolve_sampling(num_inference_steps, guidance_scale)
        num_inference_steps, schedule = self.prepare_schedule(num_inference_steps, timesteps, sigmas)
        ids = self.read_masks(mask)
        num_masks = len(ids)
        height, width = self.image_size(ids, height, width)
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
        self.check_edit_inputs(margin, padding_mask_crop, feather, jump_length, jump_n_sample)
        self.check_scheduler(num_inference_steps, keeps_known=True, schedule=schedule)
        attribute_ids = self.prepare_attributes(attributes, num_masks)  # (number of masks, attributes)
        guide_network = self.prepare_guide(guide_unet, attribute_guidance_scale, prompt_guidance_scale)
        sources = read_images(image, num_masks)
        regions = self.prepare_regions(sources, ids, edit_region, old_mask, margin)
        windows = self.prepare_windows(sources, regions, height, width, padding_mask_crop, output_type)

        things = self.read_instances(instances, num_masks, instance_prompts)
        for source, array in zip(sources, things or (), strict=False):
            if array.shape != source.shape[:2]:
                raise ValueError(f"`image` is {_size(source)}, its `instances` {_size(array)}; expected one size.")
        whole = [np.full(s.shape[:2], UNKNOWN) if a is None else a for s, a in zip(sources, ids, strict=True)]
        texts = self.prepare_texts(whole, things, prompt, negative_prompt, class_prompts, instance_prompts)

        # 2. Crop and resize each window to the generated size
        def crop(maps: list[np.ndarray]) -> list[np.ndarray]:
            return [crop_resize_ids(each, box, height, width) for each, box in zip(maps, windows, strict=True)]

        masks, known, edited = self.crop_windows(ids, sources, regions, windows, height, width)
        texts = texts and texts._replace(regions=crop(texts.regions))
        instances = None if things is None else torch.from_numpy(np.stack(crop(things)))  # (number of masks, H, W)
        known, edited = (part.repeat_interleave(num_images_per_mask, dim=0) for part in (known, edited))  # (B, ...)

        # 3. Prepare timesteps and noise
        self.scheduler.set_timesteps(**schedule, device=self._execution_device)
        if hasattr(self.scheduler, "set_begin_index"):
            self.scheduler.set_begin_index(0)  # so that `add_noise` adds the noise of the step that `step` has reached
        visited = self.scheduler.timesteps
        self.warn_of_untrained_timesteps(visited, num_inference_steps)
        order = resampling_order(len(visited), jump_length, jump_n_sample) if any(map(np.any, regions)) else []
        self._num_timesteps = len(order)
        guided_steps = range(int(guidance_start * len(visited)), int(guidance_stop * len(visited)))
        noise, mask_noise = self.prepare_noise(shape, generator, latents, guide_network)
        latents = noise * self.scheduler.init_noise_sigma  # (B, C, H, W)
        extra_step_kwargs = self.prepare_extra_step_kwargs(generator)

        def keep_outside(latents: torch.Tensor, next_step: int) -> torch.Tensor:
            """RePaint, eq. 8c: outside, latents (B, C, H, W) are the image at the noise level of the next step."""
            level = visited[next_step : next_step + 1]  # (1,), or none after the last step
            noisy = self.scheduler.add_noise(known, noise, level).to(latents.dtype) if len(level) else known
            return torch.where(edited, latents, noisy)  # edited: (B, 1, H, W)

        with evaluation_mode(self.unet, guide_network):
            # 4. Encode what does not change from step to step
            conditions = self.prepare_conditions(
                guide_network, masks, num_images_per_mask, class_labels, attribute_ids, mask_noise, instances, texts
            )

            # 5. Denoise inside, keep the image outside
            latents = keep_outside(latents, order[0] if order else len(visited))
            for i, step in enumerate(self.progress_bar(order)):
                t = visited[step]
                if i > 0 and step <= order[i - 1]:
                    latents = self.go_back(latents, order[i - 1] + 1, step, generator)
                    latents = keep_outside(latents, step)
                # Copied from semseg_diffusers.pipelines.pipeline_mask_guided_ddpm.MaskGuidedDDPMPipeline.__call__
                scales = self.guidance_scales if step in guided_steps else (1.0, 1.0, 1.0)
                weights = conditions.weights(*scales)
                model_input = self.scheduler.scale_model_input(latents, t).to(self.unet.dtype)  # (B, C, H, W)
                predicted = conditions.predict(model_input, t, weights, self.conditioning_scale)
                guided = predicted[:, : self.prediction_channels].to(latents.dtype)
                stepped = self.scheduler.step(guided, t, latents, **extra_step_kwargs, return_dict=False)[0]
                latents = stepped.to(latents.dtype)  # some schedulers compute in another precision
                # End of copy
                latents = keep_outside(latents, step + 1)
                latents = self.call_back(callback_on_step_end, callback_inputs, i, t, latents)
                if self.interrupt:
                    break

        # 6. Paste the windows into the images
        self.check_finite()
        images: Any = latents
        if output_type != "latent":
            edits = [edit for edit in zip(sources, regions, windows, strict=True) for _ in range(num_images_per_mask)]
            generated = zip(self.postprocess(latents, "np"), edits, strict=True)
            pasted = [paste(source, window, region, box, feather) for window, (source, region, box) in generated]
            images = to_output(pasted, output_type, latents.dtype, latents.device)
        self.maybe_free_model_hooks()
        return ImagePipelineOutput(images=images) if return_dict else (images,)

    def go_back(self, latents: torch.Tensor, step: int, earlier: int, generator) -> torch.Tensor:
        """Add noise to latents (B, C, H, W) of one step up to the level of an earlier one: RePaint, eq. 7."""
        levels = self.scheduler.alphas_cumprod.to(latents.device)[self.scheduler.timesteps]
        kept = levels[earlier] / (levels[step] if step < len(levels) else 1)
        noise = randn_tensor(latents.shape, generator=generator, device=latents.device, dtype=latents.dtype)
        return (kept**0.5 * latents + (1 - kept) ** 0.5 * noise).to(latents.dtype)


def _size(array: np.ndarray) -> str:
    return f"{array.shape[0]} x {array.shape[1]}"
