"""A trained segmentation network that predicts the classes of a label set from images, real or generated.

Supports networks of `AutoModelForSemanticSegmentation`, and Mask2Former and MaskFormer (Cheng et al. 2022) of
`AutoModelForUniversalSegmentation`. Their classes are matched to those of the data by name.
"""

import functools
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import (
    MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING,
    AutoImageProcessor,
    AutoModelForUniversalSegmentation,
    PreTrainedModel,
)

from semseg_diffusers.data.label_mapping import lookup_table, match_classes
from semseg_diffusers.data.labels import LabelSet
from semseg_diffusers.evaluation.segmentation.networks import (
    Preprocessing,
    PretrainedSource,
    class_names,
    compute_logits,
)
from semseg_diffusers.hub.folders import weights_hash
from semseg_diffusers.utils.files import read_json


RECORD_FILE = "segmenter.json"
MASK_CLASSIFIERS = ("mask2former", "maskformer")  # universal segmentation networks that need only pixels
OPTION = "--segmenter"


@dataclass(frozen=True, eq=False)
class Judge:
    """Predicts class ids of images. Created by `load_judge`.

    Raises:
        ValueError: no class of the data matches one of the network.
    """

    network: PreTrainedModel  # in evaluation mode, on its device
    preprocessing: Preprocessing
    labels: LabelSet  # the classes of the predictions
    class_names: tuple[str, ...]  # of the network, in the order of their ids
    name: str  # folder or Hub id
    revision: str  # Hub commit, or a hash of the weights
    post_processor: Any = None  # image processor that turns outputs of a mask classifier into a map; None for logits
    validation: dict[str, Any] | None = None  # scores recorded when the network was trained
    trained_on: dict[str, Any] | None = None  # its dataset, split, and number of pairs, recorded then
    weights_sha256: str | None = None  # of the weights as loaded: identifies the network independently of its location

    def __post_init__(self):
        if set(self.mapping) == {None}:
            raise ValueError(
                f"{OPTION} '{self.name}' predicts {', '.join(self.class_names[:4])}, ..., and none of the classes of "
                f"the data ({', '.join(self.labels.names[:4])}, ...). Use a network for the same kind of scenes, or "
                "train one: semseg-diffusers segmenter."
            )

    @functools.cached_property
    def mapping(self) -> tuple[int | None, ...]:
        """Return the id of the data for each class of the network; None without a counterpart."""
        return match_classes(self.class_names, self.labels)

    @property
    def not_judged(self) -> tuple[str, ...]:
        """Return the classes of the data that the network does not know."""
        return tuple(name for index, name in enumerate(self.labels.names) if index not in self.mapping)

    def describe(self, resolution: tuple[int, int] | None = None) -> dict[str, Any]:
        """Return a description for results, as JSON.

        If the network keeps the aspect ratio, its input size depends on the images' height and width, and is null
        without.
        """
        fixed = resolution is not None or "height" in self.preprocessing.size
        return {
            "name": self.name,
            "revision": self.revision,
            "architecture": type(self.network).__name__,
            "num_parameters": self.network.num_parameters(),
            "input_size": list(self.preprocessing.input_size(*(resolution or (1, 1)))) if fixed else None,
            "classes": len(self.class_names),
            "not_judged": list(self.not_judged),
            "validation": self.validation,
            "trained_on": self.trained_on,
        }

    def identity(self, resolution: tuple[int, int]) -> dict[str, Any]:
        """Return everything predictions depend on except the pixels, as JSON: for caches."""
        description = self.describe(resolution)
        del description["trained_on"]  # the weights stand for it
        return {
            **description,
            "preprocessing": {**vars(self.preprocessing), "size": dict(self.preprocessing.size)},
            "mapping": list(self.mapping),
            "ignore_index": self.labels.ignore_index,
        }

    @torch.no_grad()
    def read(self, images: torch.Tensor) -> torch.Tensor:
        """Predict class ids.

        Args:
            images: uint8 (B, 3, H, W), RGB.

        Returns:
            uint8 (B, H, W) on the CPU: ids of `labels`, and their `ignore_index` where the network predicts a class
            without a counterpart.
        """
        if self.post_processor is None:
            return self._to_labels(self._logits(images).argmax(1))
        pixel_values, size = self._prepare(images)
        outputs = self.network(pixel_values=pixel_values)
        for key in ("class_queries_logits", "masks_queries_logits"):
            outputs[key] = outputs[key].float()
        maps = self.post_processor.post_process_semantic_segmentation(outputs, target_sizes=[size] * len(images))
        return self._to_labels(torch.stack(maps))  # (B, H, W)

    @torch.no_grad()
    def read_with_confidence(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Predict class ids as `read`, and the probability that the network gives to each.

        Network classes that map to one class of the data add up their probabilities.

        Args:
            images: uint8 (B, 3, H, W), RGB.

        Returns:
            uint8 ids and float32 probabilities (B, H, W), on the CPU.

        Raises:
            ValueError: a mask classifier, which has no class probabilities of each pixel.
        """
        probabilities = self._logits(images).softmax(1)  # (B, classes of the network, H, W)
        best = probabilities.argmax(1)  # (B, H, W)
        confidence = torch.zeros(best.shape, device=best.device)
        for counterpart in {*self.mapping}:
            own = [index for index, label in enumerate(self.mapping) if label == counterpart]
            predicted = torch.isin(best, torch.tensor(own, device=best.device))
            confidence[predicted] = probabilities[:, own].sum(1)[predicted]
        return self._to_labels(best), confidence.cpu()

    @torch.no_grad()
    def losses(self, images: torch.Tensor, masks: torch.Tensor) -> torch.Tensor:
        """Compute the cross-entropy of each pixel, at the size of the masks.

        Network classes that map to one class of the data add up their probabilities.

        Args:
            images: uint8 (B, 3, H, W), RGB.
            masks: class ids (B, H, W) of `labels`.

        Returns:
            float32 (B, H, W) on the CPU, in nats; NaN where the mask, or its class to the network, is unknown.

        Raises:
            ValueError: a mask classifier, which has no class probabilities of each pixel; shapes that differ.
        """
        logs = self._logits(images).log_softmax(1)  # (B, classes of the network, H, W)
        if masks.shape != (len(images), *logs.shape[2:]):
            raise ValueError(f"expected masks of shape {(len(images), *logs.shape[2:])}; got {tuple(masks.shape)}.")
        ids = masks.to(logs.device)
        losses = torch.full(ids.shape, torch.nan, device=logs.device)
        for label in range(self.labels.num_classes):
            own = [index for index, counterpart in enumerate(self.mapping) if counterpart == label]
            present = ids == label
            if own and present.any():
                losses[present] = -logs[:, own].logsumexp(1)[present]
        return losses.cpu()

    def _logits(self, images: torch.Tensor) -> torch.Tensor:
        """Return the logits of each pixel, (B, classes of the network, H, W)."""
        if self.post_processor is not None:
            raise ValueError(
                f"{OPTION} '{self.name}' is a {type(self.network).__name__}, which gives no class "
                "probabilities of each pixel; expected a network for semantic segmentation, such as `semseg-diffusers "
                "segmenter` trains."
            )
        return compute_logits(self.network, *self._prepare(images))

    def _to_labels(self, ids: torch.Tensor) -> torch.Tensor:
        """Map class ids of the network to those of the data, uint8 on the CPU."""
        table = torch.from_numpy(lookup_table(self.mapping, self.labels.ignore_index))
        return table.to(ids.device)[ids].cpu()

    def _prepare(self, images: torch.Tensor) -> tuple[torch.Tensor, tuple[int, int]]:
        """Return the network's input, and the size of the images."""
        if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] != 3:
            raise ValueError(f"expected uint8 images (B, 3, H, W); got {images.dtype} of shape {tuple(images.shape)}.")
        pixel_values = self.preprocessing(images.to(self.network.device)).to(self.network.dtype)
        return pixel_values, (images.shape[2], images.shape[3])


def load_judge(
    name: str | os.PathLike,
    labels: LabelSet,
    *,
    revision: str | None = None,
    input_size: int | tuple[int, int] | None = None,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
    option: str = OPTION,
) -> Judge:
    """Load a segmentation network from a folder or the Hub for a label set.

    Args:
        name: folder written by `semseg-diffusers segmenter`, or folder or Hub id of any transformers network for
            semantic segmentation, Mask2Former or MaskFormer.
        labels: the classes of the data.
        revision: branch, tag or commit on the Hub.
        input_size: (height, width) that images are resized to, or the shorter side in pixels with the aspect ratio
            kept. By default that of the network's image processor: for ours, the size it was trained at.
        device: of the network.
        dtype: of its weights.
        option: that named it, for messages.

    Returns:
        the network in evaluation mode, with its preprocessing and the classes that it shares with the data.

    Raises:
        ValueError: no such folder, a missing file, another kind of network, or none of its classes is in the data.
        HubError: the Hub or the connection failed.
    """
    source = PretrainedSource(name, revision, option)
    config = source.config()
    post_processor = None
    if type(config) in MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING:
        settings, network = source.processor(), source.network()
    elif config.model_type in MASK_CLASSIFIERS:
        post_processor = source.load(AutoImageProcessor, "its image processor")
        settings, network = post_processor.to_dict(), source.network(AutoModelForUniversalSegmentation)
    else:
        raise ValueError(
            f"{option} '{source.name}' is a {config.model_type}; expected a transformers network for semantic "
            f"segmentation, or one of {', '.join(MASK_CLASSIFIERS)}."
        )
    preprocessing = Preprocessing.from_processor(settings)
    if input_size is not None:
        preprocessing = preprocessing.with_size(input_size)
    weights_sha256 = weights_hash(network.state_dict())
    revision = getattr(network.config, "_commit_hash", None) or weights_sha256
    file = Path(source.name) / RECORD_FILE
    record = read_json(file) if file.is_file() else {}
    return Judge(
        network.eval().to(device, dtype),
        preprocessing,
        labels,
        class_names(config),
        source.name,
        revision,
        post_processor,
        record.get("validation"),
        _trained_on(record),
        weights_sha256,
    )


def _trained_on(record: dict[str, Any]) -> dict[str, Any] | None:
    """Return what the record of `segmenter` says about the training pairs; None without one."""
    settings, num_pairs = record.get("settings") or {}, record.get("num_pairs") or {}
    if not num_pairs.get("train"):
        return None
    return {"dataset": settings.get("dataset"), "split": settings.get("train_split"), "num_pairs": num_pairs["train"]}
