"""What the mask-guided pipelines share: checking and preparing their inputs, and their output images.

This file is saved beside the weights and runs without the package: it imports the standard library, numpy, torch and
diffusers only, and defines no `DiffusionPipeline`, of which diffusers allows one in a saved folder.
"""

import copy
import functools
import inspect
import math
import os
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from diffusers.callbacks import MultiPipelineCallbacks, PipelineCallback
from diffusers.utils import logging
from diffusers.utils.torch_utils import randn_tensor

from .guidance import Conditions, evaluation_mode, has_offload_hooks
from .latents import check_vae_of_network, decode_latents, encode_images, switch_off_clipping
from .mask_inputs import UNKNOWN, read_instances, read_mask, resize_ids, split_masks
from .scheduler_trial import check_scheduler, describe, mend_scheduler
from .text_inputs import (
    Texts,
    check_text_encoder,
    embed_texts,
    lay_texts,
    load_referenced_encoder,
    split_dicts,
    split_texts,
    stack_texts,
)


logger = logging.get_logger(__name__)
NUM_INFERENCE_STEPS, GUIDANCE_SCALE = 20, 2.0  # of checkpoints that recommend none
OUTPUT_TYPES = ("pil", "np", "pt", "latent")
OF_THE_LAST_CALL = {  # attributes that stay readable after a call
    "_guidance_scale", "_attribute_guidance_scale", "_prompt_guidance_scale", "_conditioning_scale", "_num_timesteps",
}  # fmt: skip
_warned: set[tuple] = set()  # of what this process has warned: trained timesteps, scheduler, steps
if TYPE_CHECKING:
    from diffusers import DiffusionPipeline as Base
else:
    Base = object


_calls = threading.local()  # `stack`: (pipeline, its attributes) of each call that this thread is in


def _call_of(pipeline) -> dict[str, Any]:
    """Return the attributes of this thread's call of a pipeline, or outside a call the pipeline's own."""
    calls = (attributes for called, attributes in reversed(getattr(_calls, "stack", ())) if called is pipeline)
    return next(calls, vars(pipeline))


class OfTheCall:
    """An attribute of a pipeline that each running call has for itself, also where threads share the pipeline."""

    def __set_name__(self, owner, name):
        self.name = name

    def __get__(self, pipeline, owner=None):
        if pipeline is None:
            return self
        attributes = _call_of(pipeline)
        if self.name not in attributes:
            attributes = vars(pipeline)
        if self.name not in attributes:
            raise AttributeError(f"{type(pipeline).__name__!r} has no attribute {self.name!r} before its first call.")
        return attributes[self.name]

    def __set__(self, pipeline, value):
        _call_of(pipeline)[self.name] = value


def separate_call(call: Callable) -> Callable:
    """Decorate a pipeline's `__call__`: it steps with a scheduler of its own, and numbers of any kind are Python's."""

    @functools.wraps(call)
    def separately(self, *args, **kwargs):
        scheduler = copy.deepcopy(self.scheduler)
        if self.scheduler is not self.trained_scheduler:
            mend_scheduler(scheduler)
        if self.vae is not None or self.vae_scale_factor > 1:
            switch_off_clipping(scheduler)
        attributes: dict[str, Any] = {"scheduler": scheduler, "_finite": [], "_interrupt": False}
        _calls.stack = [*getattr(_calls, "stack", ()), (self, attributes)]
        try:
            return call(
                self, *map(plain_number, args), **{name: plain_number(value) for name, value in kwargs.items()}
            )
        finally:
            _calls.stack = _calls.stack[:-1]
            for name in OF_THE_LAST_CALL & attributes.keys():
                vars(self)[name] = attributes[name]

    return separately


class MaskGuidedMixin(Base):
    """Methods of a `DiffusionPipeline` with the components `unet` and `scheduler`."""

    model_cpu_offload_seq = "text_encoder->unet->vae"
    is_upscaler = False
    vae: Any = None
    _callback_tensor_inputs = ["latents"]
    trained_scheduler: Any = None
    scheduler = OfTheCall()
    _guidance_scale, _attribute_guidance_scale, _prompt_guidance_scale = OfTheCall(), OfTheCall(), OfTheCall()
    _conditioning_scale = OfTheCall()
    _num_timesteps, _finite, _interrupt = OfTheCall(), OfTheCall(), OfTheCall()

    @classmethod
    def from_pipe(cls, pipeline, **kwargs):
        """Make a pipeline from the components of another one, as in diffusers."""
        unet = getattr(pipeline, "unet", None)  # diffusers passes on only what `__init__` names by its exact class
        if hasattr(unet, "encode_mask"):
            kwargs.setdefault("unet", unet)
        source = pipeline.config.get("text_encoder_source")
        is_missing = source is not None and pipeline.text_encoder is None  # it did not load before
        if is_missing:
            kwargs.setdefault("text_encoder_source", None)
        if "vae" in inspect.signature(cls.__init__).parameters:
            kwargs.setdefault("vae", getattr(pipeline, "vae", None))
        made = super().from_pipe(pipeline, **kwargs)
        if is_missing and made.text_encoder is None:
            made.register_to_config(text_encoder_source=source)
        if made.unet is unet:
            made.trained_scheduler = getattr(pipeline, "trained_scheduler", None) or made.scheduler
        return made

    def register_modules(self, **kwargs):
        """Register the components; the first scheduler has the noise levels that the network was trained with."""
        unet = kwargs.get("unet")
        if isinstance(unet, torch.nn.Module) and not hasattr(unet, "encode_mask"):
            raise ValueError(
                f"`unet` is a {type(unet).__name__}, which reads no masks; expected a mask-guided network, such as "
                "MaskGuidedUNet2DModel. MaskControlNetModel.from_unet(unet) makes one of a UNet2DModel, to train."
            )
        if isinstance(unet, torch.nn.Module) and kwargs.get("vae") is not None:
            check_vae_of_network(kwargs["vae"], unet.config)
        super().register_modules(**kwargs)
        self.trained_scheduler = kwargs.get("scheduler", self.trained_scheduler)

    def register_text_encoder(self, text_encoder: Any, tokenizer: Any, source: str | None) -> None:
        """Register a text encoder and its tokenizer, or load those of a source on the Hub.

        Where there is a source, it is saved in place of weights and tokenizer.
        """
        if source is not None and text_encoder is None and tokenizer is None:
            text_encoder, tokenizer = load_referenced_encoder(source)
        check_text_encoder(text_encoder, tokenizer)
        self.register_modules(text_encoder=text_encoder, tokenizer=tokenizer)
        if source is not None:
            nothing = (None, None)  # what diffusers saves of a component that is absent
            self.register_to_config(text_encoder=nothing, tokenizer=nothing, text_encoder_source=source)

    def register_recommendation(
        self,
        default_num_inference_steps: int | None,
        default_guidance_scale: float | None,
        trained_timesteps: Sequence[int] | None,
    ) -> None:
        """Check how a checkpoint recommends to sample it, and keep it in the config, which is saved with it."""
        default_num_inference_steps = plain_number(default_num_inference_steps)
        default_guidance_scale = plain_number(default_guidance_scale)
        if default_num_inference_steps is not None:
            check_whole_number("default_num_inference_steps", default_num_inference_steps, 1)
        if default_guidance_scale is not None:
            check_number("default_guidance_scale", default_guidance_scale, "1 is without guidance")
        if trained_timesteps is not None:
            given: Any = trained_timesteps  # numbers of any kind, in what may be no sequence
            trained_timesteps = [plain_number(each) for each in (given if hasattr(given, "__iter__") else [given])]
            if not trained_timesteps:
                raise ValueError("`trained_timesteps` is empty; expected at least one, or None for all timesteps.")
            for timestep in trained_timesteps:
                check_whole_number("trained_timesteps", timestep, 0)
        self.register_to_config(
            default_num_inference_steps=default_num_inference_steps,
            default_guidance_scale=default_guidance_scale,
            trained_timesteps=trained_timesteps,
        )

    def resolve_sampling(
        self, num_inference_steps: int | None = None, guidance_scale: float | None = None
    ) -> tuple[int, float]:
        """Return steps and guidance scale: as given, else as the checkpoint recommends, else 20 and 2.0."""
        if num_inference_steps is None:
            num_inference_steps = self.config.get("default_num_inference_steps")
        if guidance_scale is None:
            guidance_scale = self.config.get("default_guidance_scale")
        return (
            NUM_INFERENCE_STEPS if num_inference_steps is None else num_inference_steps,
            GUIDANCE_SCALE if guidance_scale is None else guidance_scale,
        )

    def warn_of_untrained_timesteps(self, timesteps: torch.Tensor, num_inference_steps: int) -> None:
        """Warn once where a network that was distilled for a few timesteps is sampled at others."""
        trained = self.config.get("trained_timesteps")
        if trained is None or set(timesteps.tolist()) <= set(trained):
            return
        name, saved = type(self.scheduler).__name__, type(self.trained_scheduler).__name__
        if (*trained, name, num_inference_steps) in _warned:
            return
        _warned.add((*trained, name, num_inference_steps))
        logger.warning(
            f"This network was distilled for the timesteps {', '.join(map(str, trained))}; {name} in "
            f"{num_inference_steps} steps visits others, and images may be worse: use the saved {saved} with 1 to "
            f"{len(trained)} steps."
        )

    @property
    def guidance_scale(self) -> float:
        """Guidance scale of the run; read at each step."""
        return self._guidance_scale

    @property
    def attribute_guidance_scale(self) -> float | None:
        """Guidance scale of the attributes alone; read at each step."""
        return self._attribute_guidance_scale

    @property
    def prompt_guidance_scale(self) -> float | None:
        """Guidance scale of the texts alone; read at each step."""
        return self._prompt_guidance_scale

    @property
    def guidance_scales(self) -> tuple[float, float | None, float | None]:
        """Guidance scales of mask, attributes and texts; None is that of the mask."""
        return self.guidance_scale, self.attribute_guidance_scale, self.prompt_guidance_scale

    @property
    def conditioning_scale(self) -> float | None:
        """Scale of the control branch; read at each step."""
        return self._conditioning_scale

    @property
    def do_classifier_free_guidance(self) -> bool:
        """Whether the guidance scale of the mask is another than 1."""
        return self._guidance_scale != 1

    @property
    def num_timesteps(self) -> int:
        """Number of denoising steps of the last run."""
        return self._num_timesteps

    @property
    def interrupt(self) -> bool:
        """Whether a callback has set `_interrupt`: no further step is taken, and the images are those of the last."""
        return _call_of(self).get("_interrupt", False)

    @property
    def latents_dtype(self) -> torch.dtype:
        """Dtype of the latents: float32 or better; half precision would round each step to the size of a step."""
        return torch.promote_types(self.unet.dtype, torch.float32)

    @property
    def vae_scale_factor(self) -> int:
        """Pixels of an image to a side of a cell of its latents; 1 where the network generates pixels."""
        return self.unet.config.get("vae_scale_factor") or 1

    @property
    def sample_size(self) -> tuple[int, int] | None:
        """Height and width in pixels of the images that the network was made for, where it says so."""
        size = self.unet.config.sample_size
        if size is None:
            return None
        height, width = (size, size) if isinstance(size, int) else size
        return height * self.vae_scale_factor, width * self.vae_scale_factor

    def enable_vae_slicing(self) -> None:
        """Decode images one after the other, in less memory."""
        self._autoencoder("enable_vae_slicing").enable_slicing()

    def disable_vae_slicing(self) -> None:
        """Decode the images of a batch together again."""
        self._autoencoder("disable_vae_slicing").disable_slicing()

    def enable_vae_tiling(self) -> None:
        """Encode and decode large images in overlapping tiles, in less memory."""
        self._autoencoder("enable_vae_tiling").enable_tiling()

    def disable_vae_tiling(self) -> None:
        """Encode and decode images as a whole again."""
        self._autoencoder("disable_vae_tiling").disable_tiling()

    def _autoencoder(self, caller: str) -> Any:
        """Return the autoencoder, for a caller that needs one."""
        if self.vae is not None:
            return self.vae
        if self.vae_scale_factor == 1:
            raise ValueError(f"`{caller}`: this network generates pixels, without an autoencoder. Omit it.")
        raise ValueError(
            f"`{caller}`: this network generates latents, and the pipeline has no `vae`: make it with the autoencoder "
            "that the network was trained with, or pass output_type='latent' where only latents are needed."
        )

    def encode_images(self, images: torch.Tensor) -> torch.Tensor:
        """Encode images (B, 3, H, W) in [-1, 1] as the network generates them: latents, or images as they are."""
        if self.vae is None and self.vae_scale_factor == 1:
            return images
        vae = self._autoencoder("image")
        with evaluation_mode(vae):
            latents = encode_images(vae, images, self.unet.config)
        self.check_autoencoded(latents, "encoded")
        return latents.to(images)

    def decode_latents(self, latents: torch.Tensor) -> torch.Tensor:
        """Decode what the network generates (B, C, h, w) to images (B, 3, H, W), near [-1, 1]."""
        if self.vae is None and self.vae_scale_factor == 1:
            return latents
        vae = self._autoencoder("output_type")
        with evaluation_mode(vae):
            images = decode_latents(vae, latents, self.unet.config)
        self.check_autoencoded(images, "decoded")
        return images

    def check_autoencoded(self, values: torch.Tensor, verb: str) -> None:
        """Raise a `ValueError` for values of the autoencoder that are not finite."""
        if not torch.isfinite(values).all():
            raise ValueError(
                f"the autoencoder {verb} images to values that are not finite, in {self.vae.dtype}: use "
                "pipe.vae.to(torch.float32). Weights that are not finite do the same."
            )

    @property
    def prediction_channels(self) -> int:
        """Channels of a prediction that the scheduler reads: twice the image's where it takes a learned variance."""
        learned = getattr(self.scheduler.config, "variance_type", None) in ("learned", "learned_range")
        return (2 if learned else 1) * self.unet.config.in_channels

    def check_inputs(
        self,
        num_masks: int,
        num_images_per_mask: int,
        num_inference_steps: int,
        height: int,
        width: int,
        generator: torch.Generator | Sequence[torch.Generator] | None = None,
        latents: torch.Tensor | None = None,
        output_type: str = "pil",
        schedule: Mapping[str, Any] | None = None,
    ) -> tuple[int, int, int, int]:
        """Return the shape of the latents; raise a `ValueError` for arguments of all pipelines that cannot work."""
        config = self.unet.config
        check_whole_number("num_images_per_mask", num_images_per_mask, 1)
        check_generator(generator)
        if output_type not in OUTPUT_TYPES:
            raise ValueError(f"`output_type` is {output_type!r}; expected one of {', '.join(OUTPUT_TYPES)}.")
        upscale_factor = getattr(config, "upscale_factor", None)
        if (upscale_factor is not None) != self.is_upscaler:
            expected = "MaskGuidedUpscalePipeline" if upscale_factor else "MaskGuidedDDPMPipeline"
            kind = f"enlarges images by a factor of {upscale_factor}" if upscale_factor else "does not enlarge images"
            raise ValueError(f"this network {kind}; expected {expected} for it, not {type(self).__name__}.")
        channels = config.in_channels
        if config.out_channels not in (channels, 2 * channels):
            raise ValueError(
                f"expected a network with {channels} output channels, or {2 * channels} with a learned variance; got "
                f"{config.out_channels}."
            )
        if output_type != "latent" and self.vae_scale_factor > 1:
            self._autoencoder(f"output_type={output_type!r}")
        divisor = getattr(self.unet, "size_divisor", 1) * self.vae_scale_factor
        if height % divisor or width % divisor:
            nearest = " x ".join(str(max(divisor, round(side / divisor) * divisor)) for side in (height, width))
            raise ValueError(
                f"height and width must be multiples of {divisor} for this network; got {height} x {width}. The "
                f"nearest is {nearest}."
            )
        sides = height // self.vae_scale_factor, width // self.vae_scale_factor
        shape = (num_masks * num_images_per_mask, channels, *sides)
        if isinstance(generator, (list, tuple)) and len(generator) != shape[0]:
            raise ValueError(
                f"got {len(generator)} generators for {shape[0]} images ({num_masks} masks, {num_images_per_mask} "
                "each); pass one for each image, or a single one."
            )
        if latents is not None and tuple(latents.shape) != shape:
            raise ValueError(
                f"`latents` have the shape {tuple(latents.shape)}; expected {shape} (images, channels, height, width)."
            )
        self.check_scheduler(num_inference_steps, schedule=schedule)
        return shape

    def check_scheduler(self, num_inference_steps: int, **trial) -> None:
        """Raise a `ValueError` where the scheduler does not sample what the network was trained to predict."""
        check_whole_number("num_inference_steps", num_inference_steps, 1)
        if num_inference_steps < 4 and uses_prk_steps(self.scheduler):
            raise ValueError(
                f"{type(self.scheduler).__name__} starts with Runge-Kutta steps, which need `num_inference_steps` of "
                f"at least 4; got {num_inference_steps}. Use more, or set its skip_prk_steps=True."
            )
        check_scheduler(self.scheduler, num_inference_steps, self.trained_scheduler, **trial)

    def prepare_schedule(
        self, num_inference_steps: int, timesteps: Sequence[int] | None, sigmas: Sequence[float] | None
    ) -> tuple[int, dict[str, Any]]:
        """Return the number of steps, and what the scheduler's `set_timesteps` gets: it, or a list in its place."""
        given = {name: each for name, each in (("timesteps", timesteps), ("sigmas", sigmas)) if each is not None}
        if not given:
            return num_inference_steps, {"num_inference_steps": num_inference_steps}
        if len(given) > 1:
            raise ValueError("`timesteps` and `sigmas` are two ways to set the steps: pass one of them.")
        ((name, values),) = given.items()
        if name not in inspect.signature(self.scheduler.set_timesteps).parameters:
            raise ValueError(
                f"{type(self.scheduler).__name__} takes no `{name}`: pass `num_inference_steps`, or use a scheduler "
                "that does, such as EulerDiscreteScheduler."
            )
        values = [plain_number(each) for each in (values if hasattr(values, "__iter__") else [values])]
        for value in values:
            if name == "timesteps":
                check_whole_number(name, value, 0)
            else:
                check_number(name, value, "a noise level")
        if not values or any(first <= second for first, second in zip(values[:-1], values[1:], strict=True)):
            raise ValueError(f"`{name}` are {values}; expected one or more numbers, each less than the one before.")
        if name == "timesteps":
            return len(values), {name: values}
        scheduler = copy.deepcopy(self.scheduler)
        try:
            scheduler.set_timesteps(sigmas=values)
            taken = [float(value) for value in scheduler.sigmas]
        except (AssertionError, AttributeError, IndexError, TypeError, ValueError) as err:
            raise ValueError(f"{describe(scheduler)} does not take the `sigmas` {values}: {err}") from err
        if not np.allclose(taken[: len(values)], values, rtol=1e-3) or taken[-1] != 0:
            raise ValueError(
                f"{describe(scheduler)} would sample at the sigmas {taken}; expected {values}, down to 0. End it "
                "with 0, or use EulerDiscreteScheduler."
            )
        return len(scheduler.timesteps), {name: values}

    def prepare_guidance(
        self,
        guidance_scale: float,
        guidance_start: float,
        guidance_stop: float,
        attribute_guidance_scale: float | None,
        conditioning_scale: float | None,
        prompt_guidance_scale: float | None = None,
    ) -> None:
        """Check the scales of a run and keep them, to be read at each step."""
        check_number("guidance_scale", guidance_scale, "1 is without guidance")
        if attribute_guidance_scale is not None:
            check_number("attribute_guidance_scale", attribute_guidance_scale, "None guides mask and attributes alike")
        if prompt_guidance_scale is not None:
            check_number("prompt_guidance_scale", prompt_guidance_scale, "None guides mask and texts alike")
        if conditioning_scale is not None:
            check_number("conditioning_scale", conditioning_scale, "1 as it was trained, 0 for the base alone")
            if not getattr(self.unet, "takes_conditioning_scale", False):
                raise ValueError(
                    "`conditioning_scale` is for networks with a control branch, and this one has none: omit it, or "
                    "use `guidance_scale`."
                )
        check_number("guidance_start", guidance_start, "a fraction of the steps")
        check_number("guidance_stop", guidance_stop, "a fraction of the steps")
        if not 0 <= guidance_start <= guidance_stop <= 1:
            raise ValueError(
                f"expected fractions of the steps with 0 <= `guidance_start` <= `guidance_stop` <= 1; got "
                f"{guidance_start} and {guidance_stop}."
            )
        self._guidance_scale, self._attribute_guidance_scale = guidance_scale, attribute_guidance_scale
        self._prompt_guidance_scale, self._conditioning_scale = prompt_guidance_scale, conditioning_scale

    def prepare_callback(self, callback, names: Sequence[str]) -> Sequence[str]:
        """Return the names of the tensors that a callback gets; diffusers' callback objects hold them themselves."""
        if isinstance(callback, (PipelineCallback, MultiPipelineCallbacks)):
            names = callback.tensor_inputs
        unknown = [name for name in names if name not in self._callback_tensor_inputs]
        if unknown:
            raise ValueError(
                f"`callback_on_step_end_tensor_inputs` holds {unknown}; expected names of "
                f"{self._callback_tensor_inputs}."
            )
        return names

    def read_masks(self, masks, what: str = "mask") -> list[np.ndarray | None]:
        """Read `what`, all forms that `__call__` takes, as class ids, each (H, W) uint8; None stays None."""
        masks = split_masks(masks, self.unet.config.num_classes)
        if not masks:
            raise ValueError(f"`{what}` is an empty list; pass at least one mask, or None for an unconditional image.")
        config = self.unet.config
        colors, ignore_color = getattr(config, "id2color", None), getattr(config, "ignore_color", (0, 0, 0))
        colors = colors and [colors[key] for key in sorted(colors, key=int)]
        label_set = config.num_classes, colors, getattr(config, "ignore_index", UNKNOWN), ignore_color
        ids = []
        for i, mask in enumerate(masks):
            names_itself = isinstance(mask, (str, os.PathLike)) or getattr(mask, "filename", None)
            source = None if names_itself or len(masks) == 1 else f"number {i}"
            ids.append(None if mask is None else read_mask(mask, *label_set, source=source))
        return ids

    def image_size(self, ids: list[np.ndarray | None], height: int | None, width: int | None) -> tuple[int, int]:
        """Return height and width of the images: as given, else the network's `sample_size`, else the masks'."""
        if height is None or width is None:
            size = self.sample_size
            if size is None:
                sizes = {array.shape for array in ids if array is not None}
                if len(sizes) != 1:
                    raise ValueError(
                        "this network has no `sample_size` and the masks do not share one size: pass `height` and "
                        "`width`."
                    )
                size = sizes.pop()
            height, width = size[0] if height is None else height, size[1] if width is None else width
        for name, side in (("height", height), ("width", width)):
            if type(side) is not int:
                check_whole_number(name, side, 1)
        if height < 1 or width < 1:
            raise ValueError(f"height and width must be at least 1; got {height} x {width}.")
        return height, width

    def prepare_masks(self, masks, height: int | None, width: int | None) -> torch.Tensor:
        """Read masks as class ids of one size: (number of masks, H, W) on the CPU, long; 255 for None."""
        ids = self.read_masks(masks)
        size = self.image_size(ids, height, width)
        return stack_ids([array if array is None else resize_ids(array, *size) for array in ids], *size)

    def read_instances(self, instances, num_masks: int, instance_prompts=None) -> list[np.ndarray] | None:
        """Read instance ids, each (H, W) int64, for networks that take their edges and for texts about things."""
        if instances is None:
            return None
        if instance_prompts is None and not getattr(self.unet.config, "instance_edges", False):
            raise ValueError(
                "this network has no channel for instance edges: omit `instances`, or pass `instance_prompts` too."
            )
        parts = split_masks(instances)
        if len(parts) != num_masks:
            raise ValueError(f"got {len(parts)} `instances` for {num_masks} masks; pass one for each.")
        return [read_instances(part) for part in parts]

    def prepare_instances(
        self, instances, num_masks: int, height: int, width: int, instance_prompts=None
    ) -> torch.Tensor | None:
        """Read instance ids, cropped and resized as masks are: (number of masks, height, width) on the CPU, long."""
        parts = self.read_instances(instances, num_masks, instance_prompts)
        return None if parts is None else torch.from_numpy(np.stack([resize_ids(p, height, width) for p in parts]))

    def prepare_texts(
        self,
        ids: Sequence[np.ndarray],
        instances: Sequence[np.ndarray] | None,
        prompt,
        negative_prompt,
        class_prompts,
        instance_prompts,
    ) -> Texts | None:
        """Read and embed the texts of a call, about masks (H, W) and the things in them; None where there are none."""
        given = {
            "prompt": prompt, "negative_prompt": negative_prompt, "class_prompts": class_prompts,
            "instance_prompts": instance_prompts,
        }  # fmt: skip
        name = next((name for name, value in given.items() if value is not None), None)
        if name is None:
            return None
        config, count = self.unet.config, len(ids)
        length = getattr(config, "text_embed_dim", 0)
        if not length:
            raise ValueError(f"this network reads no texts (it has no `text_embed_dim`): omit `{name}`.")
        if self.text_encoder is None:
            source = self.config.get("text_encoder_source")
            raise ValueError(
                f"this pipeline has no text encoder for `{name}`: make it with the `text_encoder` and the `tokenizer` "
                f"that the network was trained with{'' if source is None else f', {source} on the Hub'}."
            )
        prompts = split_texts("prompt", prompt, count)
        negative_prompts = split_texts("negative_prompt", negative_prompt, count)
        laid = zip(
            ids,
            split_dicts("class_prompts", class_prompts, count),
            split_dicts("instance_prompts", instance_prompts, count),
            [None] * count if instances is None else instances,
            strict=True,
        )
        labels = config.num_classes, getattr(config, "id2label", None)
        region_texts, regions = zip(*(lay_texts(*each, *labels) for each in laid), strict=True)
        texts = dict.fromkeys([*prompts, *negative_prompts, *(text for each in region_texts for text in each)])
        texts.pop(None, None)
        if not texts:
            return None
        with evaluation_mode(self.text_encoder):
            embeds = embed_texts(list(texts), self.text_encoder, self.tokenizer, self._execution_device)
        found = len(next(iter(embeds.values())))
        if found != length:
            raise ValueError(
                f"the text encoder gives embeddings of length {found}, and this network was trained with {length}: "
                "use the encoder that it was trained with."
            )
        return stack_texts(prompts, negative_prompts, region_texts, list(regions), embeds)

    def prepare_class_labels(self, class_labels, num_masks: int) -> torch.Tensor | None:
        """Return class labels as a tensor (number of masks,); a single label is for all masks."""
        config = self.unet.config
        takes_labels = getattr(self.unet, "class_embedding", None) is not None
        if class_labels is None:
            if takes_labels and getattr(config, "base_class_label", None) is None:
                raise ValueError("this network is class-conditional: pass `class_labels`, one for each mask.")
            return None
        if not takes_labels:
            raise ValueError("this network is not class-conditional: omit `class_labels`.")
        class_labels = torch.as_tensor(class_labels, device=self._execution_device)
        class_labels = class_labels.expand(num_masks) if class_labels.ndim == 0 else class_labels
        if len(class_labels) != num_masks:
            raise ValueError(f"got {len(class_labels)} `class_labels` for {num_masks} masks; pass one for each.")
        num_labels = config.num_class_embeds
        is_index = config.class_embed_type is None and num_labels is not None
        if is_index and not ((class_labels >= 0) & (class_labels < num_labels)).all():
            raise ValueError(f"`class_labels` are {class_labels.tolist()}; expected 0 to {num_labels - 1}.")
        return class_labels

    def prepare_attributes(self, attributes, num_masks: int) -> torch.Tensor | None:
        """Return indices of attributes, -1: unknown, (masks, attributes), CPU, long; None for networks without."""
        known = getattr(self.unet.config, "attributes", None) or {}
        indices = torch.full((num_masks, len(known)), -1, dtype=torch.long)
        for i, values in enumerate(split_dicts("attributes", attributes, num_masks)):
            for name, value in values.items():
                if name not in known or not (value is None or value in known[name]):
                    what = f"'{name}': '{value}'" if name in known else f"'{name}'"
                    listing = "; ".join(f"{name} ({', '.join(values)})" for name, values in known.items())
                    hint = listing or "no attributes: omit them, or train one with --attributes"
                    raise ValueError(f"`attributes` holds {what}; this network knows {hint}.")
                if value is not None:
                    indices[i, list(known).index(name)] = list(known[name]).index(value)
        return indices if known else None

    def prepare_guide(
        self, guide, attribute_guidance_scale: float | None, prompt_guidance_scale: float | None = None
    ) -> torch.nn.Module | None:
        """Return the network of a guide, a network or a pipeline, which must read and predict the same as ours."""
        if guide is None:
            return None
        network, scheduler = getattr(guide, "unet", guide), getattr(guide, "scheduler", None)
        if not hasattr(network, "encode_mask"):
            raise ValueError(f"`guide_unet` is a {type(guide).__name__}; expected a mask-guided network or pipeline.")
        scales = {
            "attribute_guidance_scale": attribute_guidance_scale, "prompt_guidance_scale": prompt_guidance_scale,
        }  # fmt: skip
        for name, scale in scales.items():
            if scale is not None:
                raise ValueError(f"`guide_unet` replaces what `{name}` guides away from: omit one.")
        expected, found = _guide_settings(self.unet.config), _guide_settings(network.config)
        if scheduler is not None:
            expected["prediction type"] = getattr(self.scheduler.config, "prediction_type", None)
            found["prediction type"] = getattr(scheduler.config, "prediction_type", None)
        expected["dtype and device"] = f"{self.unet.dtype} on {self._execution_device}"
        device = self._execution_device if has_offload_hooks(network) else network.device
        found["dtype and device"] = f"{network.dtype} on {device}"
        for name, value in expected.items():
            if found[name] != value:
                raise ValueError(
                    f"`guide_unet` has the {name} {found[name]}, the network {value}. Use a smaller or an earlier "
                    "checkpoint of the same data and settings, and `to(device, dtype)`."
                )
        ours, theirs = (getattr(part, "alphas_cumprod", None) for part in (self.scheduler, scheduler))
        if ours is None or theirs is None:
            return network
        if ours.shape != theirs.shape or not torch.allclose(ours.cpu(), theirs.cpu(), atol=1e-6):
            raise ValueError("`guide_unet` was trained with another noise schedule than the network.")
        return network

    def prepare_noise(
        self, shape: tuple[int, int, int, int], generator, latents: torch.Tensor | None = None, guide_unet=None
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Return unit noise (B, C, H, W), then for masks that fade uniform noise in [0, 1), (B, H, W), else None."""
        device, dtype = self._execution_device, self.latents_dtype
        if latents is None:
            latents = randn_tensor(shape, generator=generator, device=device, dtype=dtype)
        latents = latents.to(device=device, dtype=dtype)
        networks = [unet for unet in (self.unet, guide_unet) if unet is not None]
        if not any(getattr(unet.config, "label_diffusion", None) for unet in networks):
            return latents, None
        parts = generator if isinstance(generator, list) else [generator]
        size = shape[0] // len(parts), *(side * self.vae_scale_factor for side in shape[2:])
        noise = [torch.rand(size, generator=part, device=device if part is None else part.device) for part in parts]
        return latents, torch.cat([part.to(device) for part in noise])

    def prepare_extra_step_kwargs(self, generator) -> dict:
        """Return the arguments of the scheduler's `step`: only the stochastic ones take a generator."""
        takes_generator = "generator" in inspect.signature(self.scheduler.step).parameters
        return {"generator": generator} if takes_generator else {}

    def prepare_conditions(
        self,
        guide_unet,
        ids,
        num_images_per_mask: int,
        class_labels,
        attributes,
        mask_noise,
        instances=None,
        texts: Texts | None = None,
    ) -> Conditions:
        """Encode what does not change from step to step."""
        regions = None if texts is None else torch.from_numpy(np.stack(texts.regions))  # (number of masks, H, W)
        ids, attributes, instances, regions = (
            None if value is None else value.to(self._execution_device)
            for value in (ids, attributes, instances, regions)
        )
        given = ids, num_images_per_mask, class_labels, attributes, mask_noise, instances
        return Conditions(self.unet, *given, guide_unet=guide_unet, texts=texts, regions=regions)

    def call_back(
        self, callback: Callable | None, names: Sequence[str], step: int, timestep, latents: torch.Tensor
    ) -> torch.Tensor:
        """Call a callback after a step; returns its latents, or the given ones where it returns none."""
        if callback is not None:
            tensors = {"latents": latents} if "latents" in names else {}
            latents = (callback(self, step, timestep, tensors) or {}).get("latents", latents)
        self._finite.append(torch.isfinite(latents).all())
        return latents

    def check_finite(self) -> None:
        """Raise a `ValueError` where the latents of the last step are not finite; all steps are read at once."""
        finite = torch.stack(self._finite).tolist() if self._finite else [True]
        if not finite[-1]:
            raise ValueError(
                f"{describe(self.scheduler)} gave values that are not finite at step {finite.index(False) + 1} of "
                f"{len(finite)}: use other options of it, more steps, another scheduler, or float32 where the network "
                "is in half precision. Weights that are not finite do the same."
            )

    def postprocess(self, latents: torch.Tensor, output_type: str) -> Any:
        """Convert what the network generates (B, C, h, w) to `output_type`."""
        if output_type == "latent":
            return latents
        images = (self.decode_latents(latents) / 2 + 0.5).clamp(0, 1)
        if output_type == "pt":
            return images
        pixels = images.float().cpu().permute(0, 2, 3, 1).numpy()  # (B, H, W, C)
        return self.numpy_to_pil(pixels) if output_type == "pil" else pixels


def stack_ids(ids: list[np.ndarray | None], height: int, width: int) -> torch.Tensor:
    """Stack masks of one size (H, W) into a tensor (N, H, W), long; None becomes unknown everywhere."""
    unknown = np.full((height, width), UNKNOWN, dtype=np.uint8)
    return torch.from_numpy(np.stack([unknown if array is None else array for array in ids])).long()


def uses_prk_steps(scheduler) -> bool:
    """Return whether it is a PNDM scheduler that takes its first steps by the Runge-Kutta method."""
    return getattr(scheduler.config, "skip_prk_steps", True) is False


def plain_number(value):
    """Return a scalar of numpy or torch as a number of Python, and everything else as it is."""
    is_scalar = isinstance(value, (np.generic, np.ndarray, torch.Tensor)) and value.ndim == 0
    return value.item() if is_scalar else value


def check_generator(generator) -> None:
    """Raise a `TypeError` for what is no generator of torch, such as a seed."""
    for each in generator if isinstance(generator, (list, tuple)) else [generator]:
        if not (isinstance(each, torch.Generator) or (each is None and each is generator)):
            seed = each if isinstance(each, int) and not isinstance(each, bool) else 0
            raise TypeError(
                f"`generator` is {each!r}, of type {type(each).__name__}; expected a torch.Generator, or a list with "
                f"one for each image: pass generator=torch.Generator().manual_seed({seed})."
            )


def check_whole_number(name: str, value, at_least: int) -> None:
    """Raise a `ValueError` for what is no whole number of at least `at_least`."""
    if isinstance(value, bool) or not isinstance(value, int) or value < at_least:
        raise ValueError(f"`{name}` is {value!r}; expected a whole number of at least {at_least}.")


def check_number(name: str, value, hint: str) -> None:
    """Raise a `ValueError` for what is no finite number."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise ValueError(f"`{name}` is {value!r}; expected a finite number ({hint}).")


def _guide_settings(config) -> dict:
    """Return what a guide must share with the network, under the name that messages give it."""
    size, labels = config.sample_size, getattr(config, "id2label", None)
    return {
        "label set": config.num_classes if labels is None else [labels[key] for key in sorted(labels, key=int)],
        "sample size": (size, size) if isinstance(size, int) else size and tuple(size),
        "input channels": config.in_channels,
        "output channels": config.out_channels,
        "attributes": {k: list(v) for k, v in (getattr(config, "attributes", None) or {}).items()},
        "class labels": getattr(config, "num_class_embeds", None),
        "upscale factor": getattr(config, "upscale_factor", None),
        "text embeddings": getattr(config, "text_embed_dim", 0),
        "latents": [config.get("vae_scale_factor") or 1, config.get("latents_mean"), config.get("latents_std")],
    }
