"""Lists of pairs before they are made: which go into which split, and a fingerprint of them and their files."""

import hashlib
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

from semseg_diffusers.data.archives import ArchivePath
from semseg_diffusers.data.readers import Drawing, Pair


def assign_validation(pairs: Iterable[Pair], fraction: float, seed: int, streaming: bool) -> Iterable[Pair]:
    """Move a share of the training pairs to `val`; which ones hangs on their stems and the seed alone.

    Args:
        pairs (`Iterable[Pair]`): They are gone through once, or for their names first.
        fraction (`float`): The share, 0 or more, below 1.
        seed (`int`): Which pairs those are.
        streaming (`bool`): Whether they come as a stream, whose names are not known before.

    Raises:
        ValueError: The source has splits of its own, nothing is left for training, or it is a stream.
    """
    if fraction == 0:
        return pairs
    if streaming:
        raise ValueError("--val_fraction needs all names before the first pair; leave out --streaming.")
    names = [(pair.split, pair.stem) for pair in pairs]
    if any(split != "train" for split, _ in names):
        raise ValueError("the source has splits of its own; --val_fraction is for sources without.")
    order = sorted(names, key=lambda name: hashlib.sha256(f"{seed}:{name[1]}".encode()).digest())
    count = max(round(fraction * len(names)), 1)
    if count == len(names):
        raise ValueError(f"--val_fraction {fraction} leaves none of the {len(names)} pairs for training.")
    return _Divided(pairs, frozenset(stem for _, stem in order[:count]))


@dataclass(frozen=True)
class _Divided(Iterable):
    """Pairs of which some, by stem, are for validation."""

    pairs: Iterable[Pair]
    validation: frozenset[str]

    def __iter__(self) -> Iterator[Pair]:
        for pair in self.pairs:
            yield replace(pair, split="val") if pair.stem in self.validation else pair

    def __len__(self) -> int:
        return len(self.pairs)

    def identity(self) -> str:
        return identity_of(self.pairs)


def identity_of(pairs: Iterable[Pair]) -> str:
    """A fingerprint of the pairs and their files: names, sizes and times, or checksums."""
    if not isinstance(pairs, tuple):
        return pairs.identity()
    digest = hashlib.sha256()
    for pair in pairs:
        facts = (pair.split, pair.stem, dict(pair.attributes), *(_facts(place) for place in (pair.photo, pair.mask)))
        digest.update(repr(facts).encode())
    return digest.hexdigest()


def _facts(place: object) -> tuple:
    if isinstance(place, ArchivePath):
        return (str(place), *place.fingerprint())
    if isinstance(place, Drawing):
        return (place.source, place.fingerprint())
    status = os.stat(place)
    return (str(place), status.st_size, status.st_mtime_ns)
