"""What the training of a segmentation network begins with: random weights of an architecture, or those of a network.
One rule for the size that photos are read at and for the learning rate, whoever trains."""

from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedModel

from semseg_diffusers.data.labels import LabelSet
from semseg_diffusers.data.options import parse_resolution
from semseg_diffusers.evaluation.segmentation.architectures import ARCHITECTURES, network_to_fine_tune, new_network
from semseg_diffusers.evaluation.segmentation.networks import Source
from semseg_diffusers.evaluation.segmentation.preprocessing import Preprocessing, scaled_size


DEFAULT_ARCHITECTURE = "segformer-b0"
FINE_TUNING_RATE = 1e-4  # a network that was trained before
FINE_TUNING_SIDE = 256  # pixels of the input's shorter side, at least


@dataclass(frozen=True)
class Beginning:
    """A network before its first step, and how it is to be trained."""

    network: PreTrainedModel
    processor: dict[str, Any]  # settings of its image processor, the size filled in
    preprocessing: Preprocessing  # the same, on tensors
    input_size: tuple[int, int]  # height and width that it reads
    learning_rate: float


def begin(
    labels: LabelSet,
    resolution: tuple[int, int],
    *,
    architecture: str | None = None,
    base_model: str | None = None,
    revision: str | None = None,
    input_size: str | None = None,
    learning_rate: float | None = None,
    seed: int = 0,
) -> Beginning:
    """Build a network, or load one to go on from.

    Args:
        labels: the classes of the data.
        resolution: height and width of its photos.
        architecture: one of `ARCHITECTURES`; `DEFAULT_ARCHITECTURE` where neither this nor `base_model` is given.
        base_model: folder or Hub id of a network to fine-tune.
        revision: branch, tag or commit of `base_model` on the Hub.
        input_size: a number for the shorter side, "HxW" or "native"; by default what suits the network.
        learning_rate: highest rate; by default what suits the network.
        seed: of new weights.

    Raises:
        ValueError: both kinds of beginning, a revision of none, no such network, or a size that is none.
        HubError: the Hub, or the way to it, failed.
    """
    if architecture and base_model:
        raise ValueError("--architecture and --base_model exclude each other: random weights, or those of a network.")
    if revision and not base_model:
        raise ValueError("--revision is of --base_model, which is missing.")
    if base_model:
        network, processor = network_to_fine_tune(Source.of(base_model, revision, "--base_model"), labels, seed)
        enlargement, least_side, rate = 2, FINE_TUNING_SIDE, FINE_TUNING_RATE
    else:
        name = architecture or DEFAULT_ARCHITECTURE
        network, chosen = new_network(name, labels, seed), ARCHITECTURES[name]
        processor, rate = chosen.processor, chosen.learning_rate
        enlargement, least_side = chosen.enlargement, chosen.least_side
    size = _input_size(input_size, resolution, enlargement, least_side)
    processor = {**processor, "size": {"height": size[0], "width": size[1]}}
    processor |= {"do_resize": True, "do_center_crop": False, "do_reduce_labels": False}
    return Beginning(
        network,
        processor,
        Preprocessing.from_processor(processor),
        size,
        rate if learning_rate is None else learning_rate,
    )


def _input_size(text: str | None, resolution: tuple[int, int], enlargement: int, least_side: int) -> tuple[int, int]:
    if text is None:
        return scaled_size(*resolution, max(enlargement * min(resolution), least_side))
    size = parse_resolution(text)
    if size is None:
        return resolution
    return size if "x" in text.lower() else scaled_size(*resolution, size[0])
