"""Guidance: what the networks are conditioned on, encoded once, and how their predictions are combined.

Classifier-free guidance follows Ho and Salimans 2022 (eq. 6), its interval Kynkäänniemi et al. 2024, a separate scale
for each further condition Brooks et al. 2023 (eq. 3), guidance by a weaker network Karras et al. 2024 (eq. 3), masks
that fade with the noise SCDM (Ko et al. 2024, section 4.2). This file is saved beside the weights and runs without the
package: it imports torch and files that are saved with it.
"""

import contextlib
import threading
import weakref
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch

from .mask_inputs import UNKNOWN
from .text_inputs import Texts


def guidance_weights(
    scale: float,
    attribute_scale: float | None = None,
    has_mask: bool = True,
    has_attributes: bool = False,
    has_guide: bool = False,
    prompt_scale: float | None = None,
    has_texts: bool = False,
) -> dict[str, float]:
    """Return the weight of each prediction in the guided one: level -> weight, without weights of 0; they sum to 1.

    A network predicts at up to four levels: "none" (of mask, attributes and texts), "mask" (the mask alone),
    "attributes" (both) and "full" (all that is given); "guide" is the guide network's prediction at its full level.
    `attribute_scale` is that of the attributes alone, `prompt_scale` that of the texts, `scale` if None; a scale of 1
    leaves the conditional prediction alone. `has_mask` says whether any mask is known.

    Example:
        >>> guidance_weights(3.0)
        {'none': -2.0, 'full': 3.0}
    """
    attribute_scale, prompt_scale = (scale if own is None else own for own in (attribute_scale, prompt_scale))
    given = (("mask", has_mask, scale), ("attributes", has_attributes, attribute_scale), ("", has_texts, prompt_scale))
    scales = {level: each for level, is_given, each in given if is_given}
    if has_guide:
        weights = {"guide": 1 - scale, "full": scale}
    elif scales:
        # Brooks et al. 2023, eq. 3: each condition is guided away from those before it
        levels, falling = ["none", *list(scales)[:-1]], [1, *scales.values()]
        weights = {level: falling[i] - falling[i + 1] for i, level in enumerate(levels)} | {"full": falling[-1]}
    else:
        weights = {"full": 1}
    return {level: weight for level, weight in weights.items() if weight}


def guide(predictions: Mapping[str, torch.Tensor], weights: Mapping[str, float], channels: int) -> torch.Tensor:
    """Combine the predictions of the levels by their weights (`guidance_weights`).

    Predictions are (B, C, H, W), or (B, 2C, H, W) where the network predicts the variance too: of C `channels`. The
    variance is not guided, it is that of the last level.
    """
    parts, rest = [predictions[level] for level in weights], list(weights.values())
    if len(parts) == 1:
        return parts[0]
    # out = p_1 + (w_2 + ... + w_n) (p_2 - p_1) + ... + w_n (p_n - p_(n-1)); for two, Ho and Salimans 2022, eq. 6
    guided = parts[0][:, :channels]
    for i in range(1, len(parts)):
        guided = guided + sum(rest[i:]) * (parts[i][:, :channels] - parts[i - 1][:, :channels])
    variance = parts[-1][:, channels:]
    return torch.cat([guided, variance], dim=1) if variance.shape[1] else guided


class Conditions:
    """Mask, attributes, texts and class labels of a run as the networks take them, encoded once for all its steps.

    On the networks' device: `ids` and `instances` (N, H, W), `class_labels` (N,), `attributes` (N, attributes; -1 is
    unknown), for N masks, whose images follow each other. Networks with `label_diffusion` read `mask_noise`, uniform
    in [0, 1), (B, H, W): their masks fade, and are encoded again at each step. Upscalers read `low_res` (B, 3, H, W),
    the images to enlarge at the size of the result, and `noise_level`, one for all or (B,). `texts` and `regions`, the
    stacked maps of the texts (N, H, W), are for networks with a `text_embed_dim`.
    """

    def __init__(
        self,
        unet: Any,
        ids: torch.Tensor,
        num_images_per_mask: int,
        class_labels: torch.Tensor | None = None,
        attributes: torch.Tensor | None = None,
        mask_noise: torch.Tensor | None = None,
        instances: torch.Tensor | None = None,
        guide_unet: torch.nn.Module | None = None,
        low_res: torch.Tensor | None = None,
        noise_level: torch.Tensor | int | None = None,
        texts: Texts | None = None,
        regions: torch.Tensor | None = None,
    ):
        def for_each_image(tensor):
            return None if tensor is None else tensor.repeat_interleave(num_images_per_mask, dim=0)

        self.guide = None
        if guide_unet is not None:
            given = class_labels, attributes, mask_noise, instances
            further: dict[str, Any] = {
                "low_res": low_res,
                "noise_level": noise_level,
                "texts": texts,
                "regions": regions,
            }
            self.guide = Conditions(guide_unet, ids, num_images_per_mask, *given, **further)
        self.unet = unet
        self.takes_ids = has_offload_hooks(unet)
        self.takes_scale = getattr(unet, "takes_conditioning_scale", False)
        self.mask_noise = mask_noise if getattr(unet.config, "label_diffusion", None) else None
        instances = instances if getattr(unet.config, "instance_edges", False) else None
        self.ids = None if self.mask_noise is None else for_each_image(ids)  # (B, H, W)
        self.num_images = len(ids) * num_images_per_mask
        self.has_mask = bool((ids < unet.config.num_classes).any())
        self.has_attributes = attributes is not None and bool((attributes >= 0).any())
        self.has_instances = instances is not None
        self.low_res = low_res
        levels = torch.as_tensor(0 if noise_level is None else noise_level, device=ids.device)
        self.noise_level = levels.reshape(-1).expand(self.num_images)  # (B,)
        self.unknown_ids = torch.full_like(ids[:1], UNKNOWN)
        self.known = () if self.ids is not None else tuple(map(for_each_image, self._encode(ids, instances)))
        self.class_labels, self.attributes = for_each_image(class_labels), for_each_image(attributes)
        self.has_texts = texts is not None
        self._said: tuple[torch.Tensor, ...] = ()
        self._unsaid: tuple[torch.Tensor, ...] = ()
        if texts is not None:
            said: tuple[torch.Tensor, ...] = (texts.text_embeds,)
            unsaid: tuple[torch.Tensor, ...] = (texts.negative_embeds,)
            if texts.region_embeds is not None and regions is not None:
                said += texts.region_embeds, regions
                unsaid += torch.zeros_like(texts.region_embeds), torch.full_like(regions, -1)
            if not self.takes_ids:
                said, unsaid = unet.encode_text(*said), unet.encode_text(*unsaid)
            self._said, self._unsaid = (tuple(map(for_each_image, parts)) for parts in (said, unsaid))
        self._unknown: tuple[torch.Tensor, ...] = ()
        self._inputs: dict[tuple[str, ...], dict] = {}

    def weights(
        self, scale: float, attribute_scale: float | None, prompt_scale: float | None = None
    ) -> dict[str, float]:
        """Return the weight of each prediction in the guided one, see `guidance_weights`."""
        has = self.has_mask, self.has_attributes, self.guide is not None
        return guidance_weights(scale, attribute_scale, *has, prompt_scale, self.has_texts)

    def passes(
        self, weights: Mapping[str, float], timestep, conditioning_scale: float | None
    ) -> Iterator[tuple[torch.nn.Module, list[str], dict]]:
        """Yield each forward pass of a step: the network, the levels of its batch, and its keyword arguments."""
        if self.guide is not None and "guide" in weights:
            yield self.guide.unet, ["guide"], self.guide.inputs(["full"], timestep, conditioning_scale)
        levels = [level for level in weights if level != "guide"]
        if levels:
            yield self.unet, levels, self.inputs(levels, timestep, conditioning_scale)

    def predict(
        self, sample: torch.Tensor, timestep, weights: Mapping[str, float], conditioning_scale: float | None = None
    ) -> torch.Tensor:
        """Return the guided prediction (`guide`) for a sample (B, C, H, W) at a timestep, one for all or each (B,)."""
        predictions: dict[str, torch.Tensor] = {}
        for network, levels, inputs in self.passes(weights, timestep, conditioning_scale):
            count = len(levels)
            batch = torch.cat([sample] * count) if count > 1 else sample
            times = timestep.repeat(count) if torch.is_tensor(timestep) and timestep.ndim else timestep
            outputs = network(batch, times, **inputs, return_dict=False)[0].chunk(count)
            predictions |= dict(zip(levels, outputs, strict=True))
        return guide(predictions, weights, sample.shape[1])

    def inputs(self, levels: Sequence[str], timestep, conditioning_scale: float | None = None) -> dict:
        """Return the keyword arguments of the network's `forward` for a batch of all images at each level."""
        levels = tuple(levels)
        if levels not in self._inputs:  # made at the first step that needs them
            same = {} if self.mask_noise is not None else self._mask_inputs(levels, self.known)
            if self.class_labels is not None:
                same["class_labels"] = torch.cat([self.class_labels] * len(levels))
            if self.attributes is not None:
                unknown = torch.full_like(self.attributes, -1)
                known = ("attributes", "full")
                same["attributes"] = torch.cat([self.attributes if level in known else unknown for level in levels])
            if self.has_texts:
                parts = [self._said if level == "full" else self._unsaid for level in levels]
                batch = tuple(torch.cat(each) for each in zip(*parts, strict=True))
                names = ("text_embeds", "region_embeds", "regions")
                same |= dict(zip(names, batch, strict=False)) if self.takes_ids else {"text_features": batch}
            if self.low_res is not None:
                same["low_res"] = torch.cat([self.low_res] * len(levels))
                same["noise_level"] = self.noise_level.repeat(len(levels))
            self._inputs[levels] = same
        inputs = dict(self._inputs[levels])
        if self.mask_noise is not None:
            faded = self.unet.diffuse_mask(self.ids, timestep, self.mask_noise)  # (B, H, W)
            inputs |= self._mask_inputs(levels, self._encode(faded))
        if self.takes_scale and conditioning_scale is not None:
            inputs["conditioning_scale"] = conditioning_scale
        return inputs

    def _encode(self, ids: torch.Tensor, instances: torch.Tensor | None = None) -> tuple[torch.Tensor, ...]:
        """Return mask features (N, ...), or the ids themselves where only `forward` may compute."""
        ids = ids if instances is None else self.unet.with_instances(ids, instances)
        return (ids,) if self.takes_ids else self.unet.encode_mask(ids)

    def _mask_inputs(self, levels: tuple[str, ...], known: tuple[torch.Tensor, ...]) -> dict:
        if "none" in levels and not self._unknown:
            parts = self._encode(self.unknown_ids, self.unknown_ids if self.has_instances else None)
            self._unknown = tuple(part.expand(self.num_images, *part.shape[1:]) for part in parts)
        masks = [self._unknown if level == "none" else known for level in levels]
        batch = masks[0] if len(masks) == 1 else tuple(torch.cat(parts) for parts in zip(*masks, strict=True))
        return {"mask": batch[0]} if self.takes_ids else {"mask_features": batch}


def has_offload_hooks(unet: torch.nn.Module) -> bool:
    """Return whether hooks bring weights to the device inside `forward` only, so that no other method may compute."""
    hooks = ("_hf_hook", "_diffusers_hook")  # accelerate's and diffusers' own
    return any(hasattr(module, hook) for module in unet.modules() for hook in hooks)


_lock = threading.Lock()
_num_users: weakref.WeakKeyDictionary[torch.nn.Module, int] = weakref.WeakKeyDictionary()  # of what was in training


@contextlib.contextmanager
def evaluation_mode(*modules: torch.nn.Module | None) -> Iterator[None]:
    """Switch networks to evaluation (no dropout); once no thread uses it so, restore the mode of each submodule."""
    with _lock:
        present = (submodule for module in modules if module is not None for submodule in module.modules())
        switched = {submodule for submodule in present if submodule.training or submodule in _num_users}
        for submodule in switched:
            _num_users[submodule] = _num_users.get(submodule, 0) + 1
            submodule.training = False
    try:
        yield
    finally:
        with _lock:
            for submodule in switched:
                _num_users[submodule] -= 1
                if not _num_users[submodule]:
                    del _num_users[submodule]
                    submodule.training = True
