"""The first weights of a run from another model: 64 pixels before 128, without masks before with them.

A convolution fits every size, so what is learned on small images, or without masks, is a start for the rest.
"""

import json
from pathlib import Path

import torch
from accelerate.logging import get_logger
from safetensors import SafetensorError
from safetensors.torch import load_file

from semseg_diffusers.training.base_model import find_file


logger = get_logger(__name__)

WEIGHTS_FILE, CONFIG_FILE = "diffusion_pytorch_model.safetensors", "config.json"


def load_first_weights(unet: torch.nn.Module, source: str) -> tuple[list[str], list[str]]:
    """Take over the weights of another model that have the name and the shape of the network's own.

    Args:
        unet: the network, changed in place.
        source: a folder that holds a pipeline or a network, or a Hub id of one.

    Returns:
        names of what the network keeps of its own, with the reason, and of what it has no place for.

    Raises:
        ValueError: there is no such model, its weights are no safetensors, or nothing agrees.
        HubError: the Hub has no such model, or does not let one in.
    """
    weights_file, config = _find_weights(source)
    try:
        theirs = load_file(weights_file)
    except SafetensorError as err:
        raise ValueError(f"--init_from {source}: {weights_file} cannot be read: {err}. Is it whole?") from err
    ours = json.loads(json.dumps(getattr(unet.config, "attributes", None)))
    frozen = {name for name, weight in unet.named_parameters() if not weight.requires_grad}  # a base stays as it is
    own = {name: weight for name, weight in unet.state_dict().items() if name not in frozen}
    if other := [name for name in sorted(frozen & set(theirs)) if not _same(theirs[name], unet.get_parameter(name))]:
        logger.warning(
            f"--init_from {source}: its base is another one than --base_model ({len(other)} weights differ): what its "
            "control branch learned belongs to that one."
        )
    kept, taken = [], {}
    for name, weight in own.items():
        if name == "attribute_embedding.weight" and name in theirs and config.get("attributes") != ours:
            kept.append(f"{name} (of other values there)")  # a column is a value
        elif name not in theirs:
            kept.append(f"{name} (not there)")
        elif theirs[name].shape != weight.shape:
            kept.append(f"{name} ({tuple(theirs[name].shape)} there, {tuple(weight.shape)} here)")
        else:
            taken[name] = theirs[name]
    if not taken:
        raise ValueError(
            f"--init_from {source}: none of its {len(theirs)} weights has the name and the shape of one of this "
            f"network's, a {type(unet).__name__}; it is a {config.get('_class_name', 'model of an unknown kind')}. "
            "Give a model of the same kind and widths."
        )
    classes, their_classes = getattr(unet.config, "id2label", None), config.get("id2label")
    if classes and their_classes and len(classes) == len(their_classes):  # of another number, shapes differ
        differing = [
            f"{number} is {their_classes.get(number)} there, {name} here"
            for number, name in classes.items()
            if their_classes.get(number) != name
        ]
        if differing:
            logger.warning(
                f"--init_from {source}: the weights that read masks learned other classes, {len(differing)} of "
                f"{len(classes)} ({'; '.join(differing[:3])}). They are taken over, and have to learn these anew."
            )
    unet.load_state_dict(taken, strict=False)
    return kept, sorted(set(theirs) - set(own) - frozen)


def _same(one: torch.Tensor, other: torch.Tensor) -> bool:
    return one.shape == other.shape and bool((one.to(other) == other).all())


def _find_weights(source: str) -> tuple[Path, dict]:
    """The weights of a pipeline's or a network's folder, here or on the Hub, and the config beside them."""
    for folder in ("unet/", ""):
        action = f"--init_from: loading the model '{source}'"
        found = [find_file(source, f"{folder}{name}", action) for name in (WEIGHTS_FILE, CONFIG_FILE)]
        if None not in found:
            try:
                return found[0], json.loads(found[1].read_text(encoding="utf-8"))
            except ValueError as err:
                raise ValueError(f"--init_from {source}: {found[1]} is not JSON: {err}. Is it whole?") from err
    raise ValueError(
        f"--init_from {source}: it holds neither unet/{WEIGHTS_FILE} nor {WEIGHTS_FILE}, with its {CONFIG_FILE}. Give "
        "a run folder, or what `save_pretrained` of a pipeline or a network wrote."
    )
