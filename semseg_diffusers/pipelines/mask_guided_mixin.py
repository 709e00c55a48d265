"""What the mask-guided pipelines share: their inputs, read and checked, what a sampling run needs, and its pictures.

This file is laid beside the weights with every saved pipeline and runs without the package: it imports the standard
library, numpy, torch and diffusers only, and defines no `DiffusionPipeline` of its own, of which diffusers allows one
to a saved folder.
"""

import inspect
import math
import os
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from diffusers.callbacks import MultiPipelineCallbacks, PipelineCallback
from diffusers.utils.torch_utils import randn_tensor

from .guidance import Condition, MaskGuidance, network_of_guide
from .mask_inputs import UNKNOWN, read_instances, read_mask, resize_ids, split_masks


OUTPUT_TYPES = ("pil", "np", "pt", "latent")


class MaskGuidedMixin:
    """Methods of a `DiffusionPipeline` with the components `unet` and `scheduler`."""

    model_cpu_offload_seq = "unet"
    _callback_tensor_inputs = ["latents"]

    @classmethod
    def from_pipe(cls, pipeline, **kwargs):
        """Make a pipeline from the components of another one, as in diffusers.

        diffusers takes over only networks of the very class that `__init__` names, and ours names none.
        """
        unet = getattr(pipeline, "unet", None)
        if hasattr(unet, "encode_mask"):
            kwargs.setdefault("unet", unet)
        return super().from_pipe(pipeline, **kwargs)

    @property
    def guidance_scale(self) -> float:
        return self._guidance_scale

    @property
    def attribute_guidance_scale(self) -> float | None:
        return self._attribute_guidance_scale

    @property
    def conditioning_scale(self) -> float | None:
        return self._conditioning_scale

    @property
    def do_classifier_free_guidance(self) -> bool:
        return self._guidance_scale != 1

    @property
    def num_timesteps(self) -> int:
        return self._num_timesteps

    @property
    def latents_dtype(self) -> torch.dtype:
        """Of the latents: float32 at least, whatever the network computes in. In half precision each step would be
        rounded to the size of a step itself, and the more steps, the farther the images would be off."""
        return torch.promote_types(self.unet.dtype, torch.float32)

    # Inputs

    @staticmethod
    def callback_inputs(callback, names: Sequence[str]) -> Sequence[str]:
        """The tensors that a callback asks for: diffusers' callback objects say it themselves."""
        return callback.tensor_inputs if isinstance(callback, (PipelineCallback, MultiPipelineCallbacks)) else names

    def check_inputs(
        self,
        num_masks: int,
        num_images_per_mask: int,
        num_inference_steps: int,
        guidance_scale: float,
        guidance_start: float,
        guidance_stop: float,
        generator,
        latents: torch.Tensor | None,
        height: int,
        width: int,
        class_labels: torch.Tensor | None,
        output_type: str,
        callback_on_step_end_tensor_inputs: Sequence[str],
        attribute_guidance_scale: float | None = None,
        conditioning_scale: float | None = None,
    ) -> None:
        """Refuse what cannot work, before any work is done."""
        channels, out_channels = self.unet.config.in_channels, self.unet.config.out_channels
        check_whole_number("num_images_per_mask", num_images_per_mask, 1)
        check_whole_number("num_inference_steps", num_inference_steps, 1)
        if num_inference_steps < 4 and uses_prk_steps(self.scheduler):
            raise ValueError(
                f"{type(self.scheduler).__name__} begins with Runge-Kutta steps, which want 4 `num_inference_steps` "
                f"at least; got {num_inference_steps}: take more, or set its skip_prk_steps=True."
            )
        check_number("guidance_scale", guidance_scale, "1 is without guidance")
        if attribute_guidance_scale is not None:
            check_number(
                "attribute_guidance_scale", attribute_guidance_scale, "None guides mask and attributes as one"
            )
        if conditioning_scale is not None:
            check_number("conditioning_scale", conditioning_scale, "1 is as it was trained, 0 its base alone")
            if not getattr(self.unet, "takes_conditioning_scale", False):
                raise ValueError(
                    "`conditioning_scale` is of networks with a control branch, and this one has none: leave it out, "
                    "or take `guidance_scale`."
                )
        if not 0 <= guidance_start <= guidance_stop <= 1:
            raise ValueError(
                f"guidance runs from `guidance_start` {guidance_start} to `guidance_stop` {guidance_stop}; wanted "
                "parts of the steps with 0 <= start <= stop <= 1."
            )
        if output_type not in OUTPUT_TYPES:
            raise ValueError(f"`output_type` is {output_type!r}; wanted one of {', '.join(OUTPUT_TYPES)}.")
        if out_channels not in (channels, 2 * channels):
            raise ValueError(
                f"the network gives {out_channels} channels for {channels}; wanted {channels}, or {2 * channels} "
                "where it learned the variance too."
            )

        divisor = getattr(self.unet, "size_divisor", 1)
        if height < 1 or width < 1 or height % divisor or width % divisor:
            nearest = " x ".join(str(max(divisor, round(side / divisor) * divisor)) for side in (height, width))
            raise ValueError(
                f"height and width must be multiples of {divisor} for this network; got {height} x {width}. The "
                f"nearest is {nearest}."
            )

        num_images = num_masks * num_images_per_mask
        if isinstance(generator, (list, tuple)) and len(generator) != num_images:
            raise ValueError(
                f"got {len(generator)} generators for {num_images} images ({num_masks} masks, {num_images_per_mask} "
                "each); give one for each image, or a single one."
            )
        if latents is not None and tuple(latents.shape) != (num_images, channels, height, width):
            raise ValueError(
                f"`latents` have the shape {tuple(latents.shape)}; wanted {(num_images, channels, height, width)}: "
                "images, channels, height, width."
            )
        unknown = [name for name in callback_on_step_end_tensor_inputs if name not in self._callback_tensor_inputs]
        if unknown:
            raise ValueError(
                f"`callback_on_step_end_tensor_inputs` asks for {unknown}; there is {self._callback_tensor_inputs}."
            )

        takes_labels = getattr(self.unet, "class_embedding", None) is not None
        has_label = getattr(self.unet.config, "base_class_label", None) is not None
        if takes_labels and class_labels is None and not has_label:
            raise ValueError("this network is class-conditional: give `class_labels`, one for each mask.")
        if class_labels is not None:
            if not takes_labels:
                raise ValueError("this network is not class-conditional: leave `class_labels` out.")
            if len(class_labels) != num_masks:
                raise ValueError(f"got {len(class_labels)} `class_labels` for {num_masks} masks; give one for each.")
            num_labels = self.unet.config.num_class_embeds
            is_index = self.unet.config.class_embed_type is None and num_labels is not None
            if is_index and not ((class_labels >= 0) & (class_labels < num_labels)).all():
                raise ValueError(f"`class_labels` are {class_labels.tolist()}; this network knows 0-{num_labels - 1}.")

    def label_set(self) -> tuple:
        """The network's label set as `read_mask` takes it: number of classes, colours, ignore id, ignore colour."""
        config = self.unet.config
        colors = getattr(config, "id2color", None)
        if colors is not None:
            colors = [color for _, color in sorted((int(key), color) for key, color in colors.items())]
        ignore = getattr(config, "ignore_index", UNKNOWN), getattr(config, "ignore_color", (0, 0, 0))
        return config.num_classes, colors, *ignore

    def read_masks(self, masks, what: str = "mask") -> list[np.ndarray | None]:
        """Read masks as class ids, each (H, W) uint8 of its own size; None stays None.

        Args:
            masks: All that `__call__` takes as `mask`.
            what (`str`, defaults to "mask"): The name of the argument.
        """
        masks = split_masks(masks)
        if not masks:
            raise ValueError(f"`{what}` is an empty list; give at least one mask, or None for an unconditional image.")
        sources = [None] * len(masks) if len(masks) == 1 else [f"number {i}" for i in range(len(masks))]
        for i, mask in enumerate(masks):
            if isinstance(mask, (str, os.PathLike)) or getattr(mask, "filename", None):
                sources[i] = None  # it names itself
        return [
            None if mask is None else read_mask(mask, *self.label_set(), source=source)
            for mask, source in zip(masks, sources, strict=True)
        ]

    def image_size(self, ids: list[np.ndarray | None], height: int | None, width: int | None) -> tuple[int, int]:
        """Height and width of the images: as asked for, the network's `sample_size`, else that of the masks."""
        if height is None or width is None:
            size = self.unet.config.sample_size
            if size is None:
                sizes = {array.shape for array in ids if array is not None}
                if len(sizes) != 1:
                    raise ValueError(
                        "this network has no `sample_size` of its own and the masks do not share one: give `height` "
                        "and `width`."
                    )
                size = sizes.pop()
            size = (size, size) if isinstance(size, int) else size
            height, width = size[0] if height is None else height, size[1] if width is None else width
        if height < 1 or width < 1:
            raise ValueError(f"height and width must be at least 1; got {height} x {width}.")
        return height, width

    def prepare_masks(self, masks, height: int | None, width: int | None) -> torch.Tensor:
        """Read masks as class ids of one size.

        Args:
            masks: All that `__call__` takes as `mask`.
            height (`int`, *optional*): Size wanted; the network's `sample_size`, else the masks' own, if None.
            width (`int`, *optional*): The same.

        Returns:
            `torch.Tensor`: Class ids on the CPU, (number of masks, H, W), long; 255 everywhere for None.
        """
        ids = self.read_masks(masks)
        height, width = self.image_size(ids, height, width)
        return stack_ids(
            [array if array is None else resize_ids(array, height, width) for array in ids], height, width
        )

    def prepare_instances(self, instances, num_masks: int, height: int, width: int) -> torch.Tensor | None:
        """Read instance ids, cropped and resized as masks are: (number of masks, height, width) on the CPU, long.

        Raises:
            ValueError: The network has no channel for instance edges, or they are unreadable or not one for each mask.
        """
        if instances is None:
            return None
        if not getattr(self.unet.config, "instance_edges", False):
            raise ValueError("this network has no channel for the edges of instances: leave `instances` out.")
        parts = split_masks(instances)
        if len(parts) != num_masks:
            raise ValueError(f"got {len(parts)} `instances` for {num_masks} masks; give one for each.")
        return torch.from_numpy(np.stack([resize_ids(read_instances(part), height, width) for part in parts]))

    def prepare_class_labels(self, class_labels, num_masks: int) -> torch.Tensor | None:
        """Class labels as a tensor (number of masks,): one label is for all masks."""
        if class_labels is None:
            return None
        class_labels = torch.as_tensor(class_labels, device=self._execution_device)
        return class_labels.expand(num_masks) if class_labels.ndim == 0 else class_labels

    def prepare_attributes(self, attributes, num_masks: int) -> torch.Tensor | None:
        """Attributes as numbers of the network's values.

        Args:
            attributes (`dict`, list of them, *optional*): Name -> value for all masks, or one for each mask; what is
                left out, or None, is unknown.
            num_masks (`int`): How many masks there are.

        Returns:
            `torch.Tensor`: (number of masks, attributes of the network) on the CPU, long, -1 where unknown; None where
            the network knows no attributes.

        Raises:
            ValueError: A name or value that the network does not know.
        """
        known = getattr(self.unet.config, "attributes", None) or {}
        given = list(attributes) if isinstance(attributes, (list, tuple)) else [attributes] * num_masks
        if len(given) != num_masks:
            raise ValueError(
                f"got {len(given)} `attributes` for {num_masks} masks; give one dict for each, or for all."
            )
        numbers = torch.full((num_masks, len(known)), -1, dtype=torch.long)
        for i, values in enumerate(given):
            if not isinstance(values, Mapping | None):
                raise ValueError(f"`attributes` holds {values!r}; wanted a dict of names and values, or None.")
            for name, value in (values or {}).items():
                if name not in known or not (value is None or value in known[name]):
                    what = f"'{name}': '{value}'" if name in known else f"'{name}'"
                    raise ValueError(f"`attributes` holds {what}; {_knows(known)}")
                if value is not None:
                    numbers[i, list(known).index(name)] = list(known[name]).index(value)
        return numbers if known else None

    def check_guide(self, guide, attribute_guidance_scale: float | None) -> torch.nn.Module | None:
        """The network of a guide, or None; see `network_of_guide` for what is refused."""
        return network_of_guide(guide, self.unet, self.scheduler, attribute_guidance_scale, self._execution_device)

    # A sampling run

    def prepare_latents(self, shape, dtype, device, generator, latents: torch.Tensor | None = None) -> torch.Tensor:
        """The noise that sampling starts from, at the scheduler's scale."""
        if latents is None:
            latents = randn_tensor(shape, generator=generator, device=device, dtype=dtype)
        return latents.to(device=device, dtype=dtype) * self.scheduler.init_noise_sigma

    def prepare_mask_noise(self, shape, device, generator, guide_unet) -> torch.Tensor | None:
        """Uniform noise in [0, 1) of each image, (B, H, W), by which its mask fades; None where none does.

        It is drawn after the latents, so that networks without it give the images that they always gave.
        """
        networks = [self.unet] if guide_unet is None else [self.unet, guide_unet]
        if not any(getattr(unet.config, "label_diffusion", None) for unet in networks):
            return None
        parts = generator if isinstance(generator, (list, tuple)) else [generator]
        shape = (shape[0] // len(parts), *shape[1:])
        noise = [torch.rand(shape, generator=part, device=device if part is None else part.device) for part in parts]
        return torch.cat([part.to(device) for part in noise])  # (B, H, W)

    def prepare_extra_step_kwargs(self, generator) -> dict:
        """Schedulers do not share one signature of `step`: only the stochastic ones take a generator."""
        takes_generator = "generator" in inspect.signature(self.scheduler.step).parameters
        return {"generator": generator} if takes_generator else {}

    def prepare_guidance(
        self,
        ids: torch.Tensor,
        num_images_per_mask: int,
        class_labels: torch.Tensor | None,
        attributes: torch.Tensor | None,
        guide_unet: torch.nn.Module | None,
        mask_noise: torch.Tensor | None,
        guided_steps: tuple[int, int],
        device,
        instances: torch.Tensor | None = None,
    ) -> MaskGuidance:
        """Encode what depends on masks and attributes alone, once for all steps and images.

        Args:
            ids (`torch.Tensor`): Class ids on the CPU, (number of masks, H, W).
            num_images_per_mask (`int`): Images for each mask.
            class_labels, attributes (`torch.Tensor`, *optional*): One, or one row, for each mask.
            guide_unet (`torch.nn.Module`, *optional*): The network that guidance leads away from.
            mask_noise (`torch.Tensor`, *optional*): See `prepare_mask_noise`.
            guided_steps (`tuple[int, int]`): The first guided step, and the first after it that is not.
            device (`torch.device`): Where the networks compute.
            instances (`torch.Tensor`, *optional*): Instance ids on the CPU, (number of masks, H, W).
        """
        has_mask = bool((ids < self.unet.config.num_classes).any())
        has_attributes = attributes is not None and bool((attributes >= 0).any())
        ids = ids.to(device)
        attributes, instances = (None if value is None else value.to(device) for value in (attributes, instances))

        def condition(unet):
            noise = mask_noise if getattr(unet.config, "label_diffusion", None) else None
            edged = instances if getattr(unet.config, "instance_edges", False) else None
            return Condition(unet, ids, num_images_per_mask, class_labels, attributes, noise, edged)

        guide = None if guide_unet is None else condition(guide_unet)
        return MaskGuidance(condition(self.unet), guide, has_mask, has_attributes, *guided_steps)

    def denoise(
        self, latents: torch.Tensor, step: int, timestep, guidance: MaskGuidance, extra_step_kwargs: dict
    ) -> torch.Tensor:
        """One step: latents (B, C, H, W) of a timestep to those of the next. The scales are read anew each time, since
        a callback may change them."""
        model_input = self.scheduler.scale_model_input(latents, timestep).to(self.unet.dtype)
        scales = self.guidance_scale, self.attribute_guidance_scale, self.conditioning_scale
        output = guidance.predict(model_input, step, timestep, *scales)
        if getattr(self.scheduler.config, "variance_type", None) not in ("learned", "learned_range"):
            output = output[:, : latents.shape[1]]  # a variance is read only where the scheduler wants a learned one
        output = output.to(latents.dtype)
        stepped = self.scheduler.step(output, timestep, latents, **extra_step_kwargs, return_dict=False)[0]
        return stepped.to(latents.dtype)  # some schedulers compute in another precision

    def call_back(self, callback, step: int, timestep, latents: torch.Tensor, names: Sequence[str]) -> torch.Tensor:
        """Show a callback the tensors that it asks for, and use from then on those that it returns."""
        if callback is None:
            return latents
        returned = callback(self, step, timestep, {"latents": latents} if "latents" in names else {}) or {}
        return returned.get("latents", latents)

    def postprocess(self, latents: torch.Tensor, output_type: str):
        """Turn latents (B, C, H, W) in [-1, 1] into what `output_type` says."""
        if output_type == "latent":
            return latents
        images = (latents / 2 + 0.5).clamp(0, 1)
        if output_type == "pt":
            return images
        images = images.float().cpu().permute(0, 2, 3, 1).numpy()  # (B, H, W, C)
        return self.numpy_to_pil(images) if output_type == "pil" else images


def stack_ids(ids: list[np.ndarray | None], height: int, width: int) -> torch.Tensor:
    """Masks of one size (H, W) as one tensor (N, H, W), long; None becomes unknown everywhere."""
    unknown = np.full((height, width), UNKNOWN, dtype=np.uint8)
    return torch.from_numpy(np.stack([unknown if array is None else array for array in ids])).long()


def check_whole_number(name: str, value, least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ValueError(f"`{name}` is {value!r}; wanted a whole number of at least {least}.")


def uses_prk_steps(scheduler) -> bool:
    """Whether it is a PNDM scheduler that was not told to leave its first steps, of Runge and Kutta, out."""
    return getattr(scheduler.config, "skip_prk_steps", True) is False


def check_number(name: str, value, hint: str) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise ValueError(f"`{name}` is {value!r}; wanted a finite number ({hint}).")


def _knows(attributes: Mapping[str, Sequence[str]]) -> str:
    """Say what attributes a network knows."""
    if not attributes:
        return "this network knows no attributes: leave them out, or train one with --attributes."
    known = "; ".join(f"{name} ({', '.join(values)})" for name, values in attributes.items())
    return f"this network knows {known}."
