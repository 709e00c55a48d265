"""Carry what a network knows of its classes over to other classes, for `--init_from` and `change_classes`.

Weights that read a one-hot mask have one channel for each class. A new class starts from the channels of the classes
that it corresponds to: those named for it, of its name, or of its kind; otherwise from the mean of all classes.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from semseg_diffusers.data.label_mapping import all_kinds, match_classes, normalize
from semseg_diffusers.data.labels import CLASSES, LabelSet


# Kinds of classes that mix others.
MIXED_KINDS = {
    "vehicle": ("car", "truck", "bus"),
    "object": tuple(kind for kind, entry in CLASSES["kinds"].items() if "metres" in entry),
}
OF_CLASSES = ("id2label", "id2color", "id2kind", "label_diffusion")  # settings of a network, one value for each class


def source_classes(
    labels: LabelSet, known: LabelSet, mapping: Mapping[str, Sequence[str | int]] | None = None
) -> tuple[tuple[int, ...], ...]:
    """Return for each class the ids of the known classes that it corresponds to; () where there are none.

    Args:
        labels: the new classes.
        known: the classes of the network.
        mapping: new class -> names or ids of known classes; decides for the classes that it names.

    Raises:
        ValueError: the mapping names a class that does not exist.

    Example:
        >>> own = LabelSet.from_names(["street", "vehicle", "gizmo"])
        >>> known = LabelSet.from_names(["road", "car", "bus", "sky"])
        >>> source_classes(own, known, {"gizmo": ["sky"]})
        ((0,), (1, 2), (3,))
    """
    mapping = mapping or {}
    if strange := [name for name in mapping if name not in labels.label2id]:
        raise ValueError(f"the mapping names '{strange[0]}', and the classes are {', '.join(labels.names)}.")
    forward, backward = match_classes(labels.names, known), match_classes(known.names, labels)
    kinds, known_kinds = all_kinds(labels), all_kinds(known)
    found = []
    for i, name in enumerate(labels.names):
        like = (kinds[i], *MIXED_KINDS.get(kinds[i] or "", ()))
        if name in mapping:
            ids = [_find(entry, known) for entry in mapping[name]]
        elif (counterpart := forward[i]) is not None:
            ids = [counterpart]
        else:
            ids = [j for j, other in enumerate(backward) if other == i]
            ids = ids or [j for j, kind in enumerate(known_kinds) if kind not in (None, "none") and kind in like]
        found.append(tuple(ids))
    return tuple(found)


def _find(entry: str | int, known: LabelSet) -> int:
    ids = {normalize(name): i for i, name in enumerate(known.names)}
    found = entry if isinstance(entry, int) else ids.get(normalize(entry), -1)
    if not 0 <= found < known.num_classes:
        raise ValueError(f"the mapping names {entry!r}, and the network's classes are {', '.join(known.names)}.")
    return found


def describe_sources(labels: LabelSet, known: LabelSet, sources: Sequence[Sequence[int]]) -> str:
    """Return which class starts from which, in one line."""
    named = [", ".join(known.names[i] for i in ids) or "the mean of all" for ids in sources]
    return "; ".join(f"{name} from {source}" for name, source in zip(labels.names, named, strict=True))


def class_channels(network: Any) -> dict[str, int]:
    """Return the weights that read a one-hot mask, with the first of the channels that are classes."""
    config, num_classes = network.config, network.config.num_classes
    none = {name: None for name in OF_CLASSES if name in config}
    with torch.device("meta"):
        other = type(network).from_config(config, num_classes=num_classes - 1 or 2, **none)
    shapes = {name: weight.shape for name, weight in other.state_dict().items()}
    differing = {name: weight for name, weight in network.state_dict().items() if weight.shape != shapes[name]}
    # behind the image's channels, where both are concatenated
    return {
        name: weight.shape[1] - num_classes if name == "conv_in.weight" else 0 for name, weight in differing.items()
    }


def carry_over(
    network: Any, weights: Mapping[str, torch.Tensor], num_known: int, sources: Sequence[Sequence[int]]
) -> dict[str, torch.Tensor]:
    """Return a network's weights that read masks, made from those of a network of `num_known` other classes."""
    own, found = network.state_dict(), {}
    for name, first in class_channels(network).items():
        if name not in weights:
            continue
        theirs, count = weights[name], len(sources)
        rest = theirs.shape[1] - num_known  # channels that are no classes
        expected = (own[name].shape[0], own[name].shape[1] - count + num_known, *own[name].shape[2:])
        if tuple(theirs.shape) != expected:
            continue
        classes = theirs[:, first : first + num_known]
        channels = [(classes[:, list(ids)] if ids else classes).mean(dim=1) for ids in sources]
        parts = [theirs[:, :first], torch.stack(channels, dim=1), theirs[:, first + num_known :]]
        found[name] = torch.cat(parts, dim=1)  # (out, rest + count, ...)
        assert found[name].shape[1] == rest + count, name
    return found


def change_classes(network: Any, labels: LabelSet, mapping: Mapping[str, Sequence[str | int]] | None = None) -> Any:
    """Return a network for other classes, which starts from what this one knows.

    All weights are copied; those of a class are the mean of those of the classes that it corresponds to
    (`source_classes`). So a network for classes of one's own generates from the start, and short training adapts it.
    On the command line, `train --init_from` does the same.

    Args:
        network (`MaskGuidedUNet2DModel` or another network of this package): with a label set in its config; not
            changed.
        labels (`LabelSet`): the new classes.
        mapping (`dict`, *optional*): new class -> names or ids of the network's classes, where names do not say it.

    Returns:
        a network of the same class, in evaluation mode.

    Raises:
        ValueError: the network has no names of its classes, or the mapping names a class that does not exist.

    Example:
        >>> from semseg_diffusers import MaskGuidedUNet2DModel
        >>> known = LabelSet.from_names(["road", "car", "sky"])
        >>> network = MaskGuidedUNet2DModel(
        ...     sample_size=32, num_classes=3, block_out_channels=(16, 32), norm_num_groups=8, layers_per_block=1,
        ...     down_block_types=("DownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "UpBlock2D"),
        ...     **known.to_config(),
        ... )
        >>> own = LabelSet.from_names(["drivable", "mover"])  # "drivable" is known to be road
        >>> change_classes(network, own, {"mover": ["car"]}).config.num_classes
        2
    """
    config = network.config
    known = LabelSet.from_config(config)
    sources = source_classes(labels, known, mapping)
    given = {"num_classes": labels.num_classes, "id2kind": None, **labels.to_config()}
    if rarity := config.get("label_diffusion"):
        given["label_diffusion"] = [sum(rarity[i] for i in ids) / len(ids) if ids else 1.0 for ids in sources]
    weights = network.state_dict()
    changed = type(network).from_config(config, **given)
    changed.load_state_dict({**weights, **carry_over(changed, weights, known.num_classes, sources)})
    return changed.to(device=network.device, dtype=network.dtype).eval()
