"""Attributes of pairs beside photo and mask, such as weather: which values a split knows, and their numbers.

A network is told numbers; its config says which value each of them is (`MaskGuidedUNet2DModel`).
"""

from collections.abc import Iterable, Mapping, Sequence

import torch

from semseg_diffusers.data.loading import PairDataset


UNKNOWN = (None, "", "undefined")  # what data sets write where nobody said; BDD100K says "undefined"
MOST_VALUES = 256  # a column with more different values than this names pairs rather than conditions


def attribute_values(pairs: PairDataset, names: Iterable[str]) -> dict[str, list[str]]:
    """The values that a split knows of each attribute.

    Args:
        pairs (`PairDataset`): the split, usually that of training.
        names (`Iterable[str]`): columns of text.

    Returns:
        `dict[str, list[str]]`: names and values sorted, unknown ones left out.

    Raises:
        ValueError: there is no such column, it says nothing, or it has a value of its own for nearly every pair.
    """
    found = {}
    for name in sorted(set(names)):
        if name not in pairs.attributes:
            known = ", ".join(sorted(pairs.attributes)) or "none"
            raise ValueError(
                f"{pairs.name} has no column of text '{name}' for an attribute; it has {known}. Numbers, and nulls "
                "throughout, are no text."
            )
        values = sorted(set(pairs.attributes[name]) - set(UNKNOWN))
        if not values:
            raise ValueError(
                f"column '{name}' of {pairs.name} says nothing: every pair is {UNKNOWN[-1]}. Leave it out."
            )
        if len(values) > MOST_VALUES:
            raise ValueError(
                f"column '{name}' of {pairs.name} has {len(values)} different values in {len(pairs)} pairs; an "
                f"attribute has {MOST_VALUES} at most. Name a column of conditions, such as weather."
            )
        found[name] = values
    return found


def attribute_numbers(pairs: PairDataset, values: Mapping[str, Sequence[str]]) -> torch.Tensor:
    """The number of each pair's value in the list of each attribute.

    Args:
        pairs (`PairDataset`): a split; a column that it lacks is unknown throughout.
        values (`Mapping`): attribute -> its values in order, as `attribute_values` or a network's config gives them.

    Returns:
        `torch.Tensor`: (N, A) int64, -1 where the value is unknown or not in the list.
    """
    numbers = torch.full((len(pairs), len(values)), -1)
    for column, (name, known) in enumerate(values.items()):
        number_of = {value: number for number, value in enumerate(known)}
        for row, value in enumerate(pairs.attributes.get(name, ())):
            numbers[row, column] = number_of.get(value, -1)
    return numbers
