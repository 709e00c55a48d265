"""What the networks are told in one sampling run, and the guided prediction of a step.

Classifier-free guidance follows Ho and Salimans 2022 (eq. 6), its interval Kynkaanniemi et al. 2024, a scale of its
own for a second condition Brooks et al. 2023 (eq. 3), guidance by a weaker network Karras et al. 2024 (eq. 3), masks
that fade with the noise SCDM (Ko et al. 2024, section 4.2). This file is laid beside the weights with every saved
pipeline and runs without the package: it imports the standard library and torch only.
"""

import contextlib
from collections.abc import Iterator

import torch

from .mask_inputs import UNKNOWN


@contextlib.contextmanager
def evaluation_mode(*modules: torch.nn.Module | None) -> Iterator[None]:
    """Switch networks to evaluation (no dropout) and put every submodule back into its own mode afterwards."""
    present = [module for module in modules if module is not None]
    training = [submodule for module in present for submodule in module.modules() if submodule.training]
    if training:
        for module in present:
            module.eval()
    try:
        yield
    finally:
        for submodule in training:
            submodule.training = True


def has_offload_hooks(unet: torch.nn.Module) -> bool:
    """Offloading hooks bring weights to the device inside `forward` only; so no other method may compute."""
    hooks = ("_hf_hook", "_diffusers_hook")  # accelerate's and diffusers' own
    return any(hasattr(module, hook) for module in unet.modules() for hook in hooks)


class Condition:
    """Mask, attributes and class labels of a run as one network reads them: encoded once, for all steps and images.

    A network may be asked at three levels: "none" (told neither mask nor attributes), "mask" (the mask alone) and
    "whole" (both).

    Args:
        unet (`torch.nn.Module`): The network.
        ids (`torch.Tensor`): Class ids on its device, (number of masks, H, W).
        num_images_per_mask (`int`): Images of a mask follow each other in the batch.
        class_labels (`torch.Tensor`, *optional*): One for each mask.
        attributes (`torch.Tensor`, *optional*): (number of masks, attributes of the network), -1 where unknown.
        mask_noise (`torch.Tensor`, *optional*): Uniform noise in [0, 1) of each image, (B, H, W), where the network
            was trained on masks that fade with the noise (`label_diffusion`): they are encoded anew at each step.
        instances (`torch.Tensor`, *optional*): Instance ids (number of masks, H, W), for a network with
            `instance_edges`.
    """

    def __init__(
        self, unet, ids, num_images_per_mask, class_labels=None, attributes=None, mask_noise=None, instances=None
    ):
        self.unet = unet
        self.has_offload_hooks = has_offload_hooks(unet)
        self.ids = ids.repeat_interleave(num_images_per_mask, dim=0) if mask_noise is not None else None  # (B, H, W)
        self.mask_noise = mask_noise
        self.num_images = len(ids) * num_images_per_mask
        self.with_instances = instances is not None
        self.takes_scale = getattr(unet, "takes_conditioning_scale", False)
        encoded = self.encode(ids, instances) if mask_noise is None else None
        self.known = encoded and tuple(part.repeat_interleave(num_images_per_mask, dim=0) for part in encoded)
        self.unknown_ids = torch.full_like(ids[:1], UNKNOWN)
        self.class_labels, self.attributes = (
            None if value is None else value.repeat_interleave(num_images_per_mask, dim=0)
            for value in (class_labels, attributes)
        )
        self._unknown: tuple[torch.Tensor, ...] | None = None
        self._inputs: dict[tuple[str, ...], dict] = {}

    def encode(self, ids: torch.Tensor, instances: torch.Tensor | None = None) -> tuple[torch.Tensor, ...]:
        """What the network is told about masks (N, H, W) at each step: features, or the ids where weights move."""
        ids = ids if instances is None else self.unet.with_instances(ids, instances)
        return (ids,) if self.has_offload_hooks else self.unet.encode_mask(ids)

    def predict(
        self, sample: torch.Tensor, timestep, levels: tuple[str, ...], conditioning_scale: float | None = None
    ) -> tuple[torch.Tensor, ...]:
        """Ask the network at some levels in one forward pass: each level's output, (B, C or 2C, H, W)."""
        if levels not in self._inputs:  # made at the first step that asks for them
            self._inputs[levels] = self._batch(levels)
        inputs = self._inputs[levels]
        if self.mask_noise is not None:
            inputs = {**inputs, **self._masks(levels, self.encode(self._faded(timestep)))}
        if self.takes_scale and conditioning_scale is not None:
            inputs = {**inputs, "conditioning_scale": conditioning_scale}
        sample = torch.cat([sample] * len(levels)) if len(levels) > 1 else sample
        output = self.unet(sample, timestep, **inputs, return_dict=False)[0]
        return output.chunk(len(levels))

    def _faded(self, timestep) -> torch.Tensor:
        return self.unet.diffuse_mask(self.ids, timestep, self.mask_noise)  # (B, H, W)

    def _masks(self, levels: tuple[str, ...], known: tuple[torch.Tensor, ...]) -> dict:
        """The masks of a batch of levels, as the network's `forward` takes them."""
        parts = [known] * len(levels)
        if "none" in levels:
            if self._unknown is None:
                nothing = self.encode(self.unknown_ids, self.unknown_ids if self.with_instances else None)
                self._unknown = tuple(part.expand(self.num_images, *part.shape[1:]) for part in nothing)
            parts = [self._unknown if level == "none" else known for level in levels]
        batch = parts[0] if len(parts) == 1 else tuple(torch.cat(part) for part in zip(*parts, strict=True))
        return {"mask": batch[0]} if self.has_offload_hooks else {"mask_features": batch}

    def _batch(self, levels: tuple[str, ...]) -> dict:
        """What stays the same at all steps, for a batch of levels."""
        inputs = {} if self.mask_noise is not None else self._masks(levels, self.known)
        if self.class_labels is not None:
            inputs["class_labels"] = torch.cat([self.class_labels] * len(levels))
        if self.attributes is not None:
            unknown = torch.full_like(self.attributes, -1)
            parts = [self.attributes if level == "whole" else unknown for level in levels]
            inputs["attributes"] = torch.cat(parts)
        return inputs


class MaskGuidance:
    """The prediction of a step, guided inside an interval of the steps.

    Args:
        condition (`Condition`): The network with its condition.
        guide (`Condition`, *optional*): A weaker network with the same condition; with it, guidance leads away from
            its prediction instead of the unconditional one.
        has_mask (`bool`): Whether any mask says anything.
        has_attributes (`bool`): Whether any attribute is known.
        first_step, end_step (`int`): Guidance acts at steps first_step <= i < end_step.
    """

    def __init__(
        self,
        condition: Condition,
        guide: Condition | None,
        has_mask: bool,
        has_attributes: bool,
        first_step: int,
        end_step: int,
    ):
        self.condition = condition
        self.guide = guide
        self.has_mask = has_mask
        self.has_attributes = has_attributes
        self.steps = range(first_step, end_step)
        self.channels = condition.unet.config.in_channels

    def weights(self, scale: float, attribute_scale: float | None) -> dict[str, float]:
        """The level of each prediction that counts with its weight; they sum to 1."""
        attribute_scale = scale if attribute_scale is None else attribute_scale
        if self.guide is not None:
            weights = {"guide": 1 - scale, "whole": scale}
        elif self.has_mask and self.has_attributes:
            weights = {"none": 1 - scale, "mask": scale - attribute_scale, "whole": attribute_scale}
        elif self.has_mask or self.has_attributes:
            scale = scale if self.has_mask else attribute_scale
            weights = {"none": 1 - scale, "whole": scale}
        else:
            weights = {"whole": 1}
        return {level: weight for level, weight in weights.items() if weight}

    def predict(
        self,
        sample: torch.Tensor,
        step: int,
        timestep,
        scale: float,
        attribute_scale: float | None,
        conditioning_scale: float | None = None,
    ) -> torch.Tensor:
        """Predict noise, velocity or image of a step.

        Args:
            sample (`torch.Tensor`): The network's input, (B, C, H, W).
            step (`int`): Number of the step among those of the whole schedule.
            timestep: The scheduler's timestep.
            scale (`float`): Guidance scale; 1 is the plain conditional prediction, in one forward pass of B images.
            attribute_scale (`float`, *optional*): A scale of the attributes' own.
            conditioning_scale (`float`, *optional*): How much of the control branch is added, for networks that have
                one; None is all of it.

        Returns:
            `torch.Tensor`: (B, C, H, W), or (B, 2C, H, W) where the network predicts the variance too: it is not
            guided.
        """
        weights = self.weights(scale, attribute_scale) if step in self.steps else {"whole": 1}
        levels = tuple(level for level in weights if level != "guide")
        outputs = self.condition.predict(sample, timestep, levels, conditioning_scale) if levels else ()
        if "guide" in weights:
            outputs = (*self.guide.predict(sample, timestep, ("whole",), conditioning_scale), *outputs)
        if len(outputs) == 1:
            return outputs[0]
        # out = p_1 + (w_2 + ... + w_n) (p_2 - p_1) + ... + w_n (p_n - p_(n-1)); for two, Ho and Salimans 2022, eq. 6
        predictions = [output[:, : self.channels] for output in outputs]
        rest = list(weights.values())
        guided = predictions[0]
        for i in range(1, len(predictions)):
            guided = guided + sum(rest[i:]) * (predictions[i] - predictions[i - 1])
        variance = outputs[-1][:, self.channels :]
        return torch.cat([guided, variance], dim=1) if variance.shape[1] else guided


def network_of_guide(guide, unet, scheduler, attribute_guidance_scale: float | None, device) -> torch.nn.Module | None:
    """The network of a guide, which must read and predict what the pipeline's own does.

    Args:
        guide (`ModelMixin` or a pipeline, *optional*): A pipeline's scheduler is compared too.
        unet, scheduler: Those of the pipeline that is guided.
        attribute_guidance_scale (`float`, *optional*): Has no meaning with a guide.
        device (`torch.device`): Where the pipeline computes.

    Raises:
        ValueError: The guide is of another kind; the message names what differs.
    """
    if guide is None:
        return None
    guide_unet, guide_scheduler = getattr(guide, "unet", guide), getattr(guide, "scheduler", None)
    if not hasattr(guide_unet, "encode_mask"):
        raise ValueError(f"`guide_unet` is a {type(guide).__name__}; wanted a mask-guided network or pipeline.")
    if attribute_guidance_scale is not None:
        raise ValueError(
            "`attribute_guidance_scale` goes with guidance away from the unconditional prediction, `guide_unet` takes "
            "its place: leave one out."
        )
    for name, read in _OF_A_GUIDE.items():
        ours, theirs = read(unet.config), read(guide_unet.config)
        if ours != theirs:
            raise ValueError(
                f"`guide_unet` has the {name} {theirs}, the network {ours}. Take a smaller or an earlier checkpoint "
                "of the same data and settings."
            )
    if guide_scheduler is not None:
        ours, theirs = (getattr(part.config, "prediction_type", None) for part in (scheduler, guide_scheduler))
        if ours != theirs:
            raise ValueError(f"`guide_unet` predicts {theirs}, the network {ours}; both must predict the same.")
        ours, theirs = (getattr(part, "alphas_cumprod", None) for part in (scheduler, guide_scheduler))
        if ours is not None and theirs is not None and not _close(ours, theirs):
            raise ValueError("`guide_unet` was trained with another noise schedule than the network.")
    ours = f"{unet.dtype} on {device}"
    theirs = f"{guide_unet.dtype} on {device if has_offload_hooks(guide_unet) else guide_unet.device}"
    if ours != theirs:
        raise ValueError(f"`guide_unet` is {theirs}, the network {ours}: move it, guide_unet.to(device, dtype).")
    return guide_unet


def _size(config) -> tuple[int, int] | None:
    size = config.sample_size
    return (size, size) if isinstance(size, int) else size and tuple(size)


def _labels(config) -> list | int:
    labels = getattr(config, "id2label", None)
    if labels is None:
        return config.num_classes
    return [label for _, label in sorted((int(key), label) for key, label in labels.items())]


# What a guide must share with the network, by the name that a message gives it.
_OF_A_GUIDE = {
    "label set": _labels,
    "sample size": _size,
    "input channels": lambda config: config.in_channels,
    "output channels": lambda config: config.out_channels,
    "attributes": lambda config: {k: list(v) for k, v in (getattr(config, "attributes", None) or {}).items()},
    "class labels": lambda config: getattr(config, "num_class_embeds", None),
}


def _close(ours: torch.Tensor, theirs: torch.Tensor) -> bool:
    return ours.shape == theirs.shape and torch.allclose(ours.cpu(), theirs.cpu(), atol=1e-6)
