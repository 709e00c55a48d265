"""What a score is held against: images paired with the masks of others, and equally many images on both sides."""

import torch


def derangement(count: int, seed: int) -> list[int]:
    """Return a seeded order in which nothing stays at its place.

    Raises:
        ValueError: for fewer than two things.

    Example:
        >>> order = derangement(5, seed=0)
        >>> sorted(order), any(place == index for index, place in enumerate(order))
        ([0, 1, 2, 3, 4], False)
    """
    if count < 2:
        raise ValueError(f"masks can be shuffled from two on; got {count}. Generate from more masks.")
    cycle = torch.randperm(count, generator=torch.Generator().manual_seed(seed)).tolist()
    successor = dict(zip(cycle, cycle[1:] + cycle[:1], strict=True))  # one cycle through all
    return [successor[index] for index in range(count)]


def shuffled_indices(stems: list[str], seed: int) -> list[int]:
    """For each image return the index of an image of another mask.

    Images of one mask share a stem and get the same other mask, so a stem is never scored against its own.
    """
    first = {stem: index for index, stem in reversed(list(enumerate(stems)))}
    unique = sorted(first)
    other = {unique[index]: unique[place] for index, place in enumerate(derangement(len(unique), seed))}
    return [first[other[stem]] for stem in stems]


def spread_choice(stems: list[str], count: int, seed: int) -> list[int]:
    """Choose images so that as many masks as possible are among them: second samples only where masks run out.

    Args:
        stems: the scene of each image.
        count: how many to choose, at most as many as there are.
        seed: which ones, where not all of a round are taken.

    Returns:
        places, in rising order.

    Example:
        >>> spread_choice(["a", "a", "b", "b", "c", "c"], 3, seed=0)
        [0, 2, 4]
    """
    seen: dict[str, int] = {}
    rounds = []
    for stem in stems:
        rounds.append(seen.get(stem, 0))
        seen[stem] = rounds[-1] + 1
    rank = torch.randperm(len(stems), generator=torch.Generator().manual_seed(seed)).tolist()
    order = sorted(range(len(stems)), key=lambda index: (rounds[index], rank[index]))
    return sorted(order[:count])
