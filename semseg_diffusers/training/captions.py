"""Texts about the pairs of a run: their columns, their embeddings, and which of them the network sees of a sample."""

import hashlib
import json
import logging
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from huggingface_hub import cached_assets_path
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from semseg_diffusers.data.dataset import PairDataset
from semseg_diffusers.hub.folders import weights_hash
from semseg_diffusers.pipelines.text_inputs import embed_texts, number_things, tokenize
from semseg_diffusers.utils.files import written_beside


logger = logging.getLogger(__name__)

EMBEDDINGS = "embeddings.safetensors"


class NoTextsError(ValueError):
    """A split has no columns of texts, or they hold none."""


class Region(NamedTuple):
    """What is said about a class of an image, or about one thing of it."""

    class_id: int
    thing: int  # its number from left to right (`number_things`), -1 for all pixels of the class
    texts: tuple[str, ...]  # wordings, one or more


class Captions:
    """The texts about the pairs of a split, and their embeddings.

    Args:
        images: wordings of the text about each image; () where there is none.
        regions: what is said about its classes and things.
    """

    def __init__(self, images: Sequence[tuple[str, ...]], regions: Sequence[tuple[Region, ...]]):
        self.images, self.regions = images, regions
        about_regions = (text for found in regions for region in found for text in region.texts)
        self.texts = list(dict.fromkeys([*(text for texts in images for text in texts), *about_regions]))
        self._rows = {text: row for row, text in enumerate(self.texts)}
        self.embeds = torch.empty(0)  # (texts, E) float32, from `embed`

    @classmethod
    def of(cls, pairs: PairDataset, settings: Any) -> "Captions":
        """Read the columns of a split that the settings name, as `semseg-diffusers caption` writes them.

        Raises:
            NoTextsError: it has neither column, or they hold no text.
            ValueError: they hold something else.
        """
        columns = {name: pairs.column(name) for name in (settings.caption_column, settings.region_caption_column)}
        about_images, about_regions = columns.values()
        if about_images is None and about_regions is None:
            raise NoTextsError(
                f"{pairs.name} has no columns {' or '.join(map(repr, columns))} with texts. Write them with "
                "`semseg-diffusers caption`, or name a column of texts: --caption_column."
            )
        images: list[tuple[str, ...]] = [()] * len(pairs)
        if about_images is not None:
            images = [_wordings(value, settings.caption_column, pairs, row) for row, value in enumerate(about_images)]
        regions: list[tuple[Region, ...]] = [()] * len(pairs)
        if about_regions is not None:
            regions = [
                _regions(value, settings.region_caption_column, pairs, row) for row, value in enumerate(about_regions)
            ]
        captions = cls(images, regions)
        if not captions.texts:
            raise NoTextsError(f"the columns {' and '.join(map(repr, columns))} of {pairs.name} hold no text at all.")
        return captions

    @property
    def digest(self) -> str:
        """Return a hash of all that is said about each pair, and of the embeddings."""
        said = json.dumps([self.images, self.regions]).encode()
        return hashlib.sha256(said + weights_hash({"embeds": self.embeds}).encode()).hexdigest()[:16]

    def embed(self, text_encoder: Any, tokenizer: Any, device: torch.device) -> None:
        """Compute the embeddings of all texts, or read them from the cache of an earlier run (`HF_ASSETS_CACHE`).

        Raises:
            ValueError: a text has more tokens than the encoder reads.
        """
        key = hashlib.sha256(json.dumps(self.texts).encode())
        key.update(weights_hash(text_encoder.state_dict()).encode())
        key.update(json.dumps(tokenizer.get_vocab(), sort_keys=True).encode())
        folder = cached_assets_path("semseg_diffusers", namespace="text_embeddings", subfolder=key.hexdigest()[:32])
        file = folder / EMBEDDINGS
        if not file.is_file():
            logger.info(f"embedding {len(self.texts):,} texts")
            embeds = embed_texts(self.texts, text_encoder, tokenizer, device)
            stacked = torch.stack([embeds[text] for text in self.texts]).cpu()
            try:
                with written_beside(file) as staging:
                    save_file({"embeds": stacked}, staging)
            except (OSError, SafetensorError) as err:
                raise OSError(
                    f"the cache of text embeddings could not be written: {err}. Free disk space, or set "
                    "HF_ASSETS_CACHE."
                ) from err
        self.embeds = load_file(file)["embeds"]

    def check_lengths(self, text_encoder: Any, tokenizer: Any) -> None:
        """Raise a `ValueError` for a text that `prompts` returns and that has more tokens than the encoder reads."""
        for text in {each[0] for each in self.images if each} | {
            region.texts[0] for found in self.regions for region in found
        }:
            tokenize(text, text_encoder, tokenizer)

    def sample(
        self, index: int, ids: np.ndarray, generator: torch.Generator, dropout: float
    ) -> dict[str, torch.Tensor]:
        """Sample what is said about a pair, one wording of each text, some of them left out.

        The texts of each level (image, classes, things) are left out together with the probability `dropout`; of those
        about classes and things that are not, a random share stays, since users describe one thing alone.

        Args:
            index: of the pair.
            ids: class ids (H, W) of its whole mask.
            generator: source of all that is random.
            dropout: probability of each level.

        Returns:
            `text_embeds` (E,); `region_embeds` (K, E) and `regions` (H, W) int64, the index of each pixel's text in
            them, -1 where there is none.
        """
        regions = self.regions[index]
        levels = torch.rand(3, generator=generator) >= dropout  # image, classes, things: said or not
        share, wording = torch.rand(2, generator=generator).tolist()
        numbers = torch.rand(len(regions), 2, generator=generator).tolist()  # is it said, and which wording
        about_image, length = self.images[index], self.embeds.shape[1]
        text_embeds = torch.zeros(length)
        if about_image and levels[0]:
            text_embeds = self.embeds[self._rows[about_image[int(wording * len(about_image))]]]
        rows: dict[int, int] = {}  # of `embeds` -> of `region_embeds`
        places = np.full(ids.shape, -1, dtype=np.int64)
        things: dict[int, np.ndarray] = {}  # numbers of a class's things
        for region, (keep, number) in sorted(zip(regions, numbers, strict=True), key=lambda each: each[0].thing >= 0):
            is_thing = region.thing >= 0
            if not levels[1 + is_thing] or keep >= share:
                continue
            inside = ids == region.class_id
            if is_thing:
                if region.class_id not in things:
                    things[region.class_id] = number_things(inside)
                inside = things[region.class_id] == region.thing
            row = self._rows[region.texts[int(number * len(region.texts))]]
            places[inside] = rows.setdefault(row, len(rows))
        region_embeds = self.embeds[list(rows)] if rows else self.embeds.new_zeros(0, length)
        return {"text_embeds": text_embeds, "region_embeds": region_embeds, "regions": torch.from_numpy(places)}

    def prompts(self, index: int, is_whole: bool) -> dict[str, Any]:
        """Return the first wordings of a pair as arguments of a pipeline; `is_whole`: its mask is no crop."""
        class_prompts: dict[int, str] = {}
        instance_prompts: dict[int, list[str | None]] = {}
        for class_id, thing, texts in self.regions[index]:
            if thing < 0:
                class_prompts[class_id] = texts[0]
            elif is_whole:
                listed = instance_prompts.setdefault(class_id, [])
                listed += [None] * (thing + 1 - len(listed))
                listed[thing] = texts[0]
        prompt = next(iter(self.images[index]), None)
        return {"prompt": prompt, "class_prompts": class_prompts, "instance_prompts": instance_prompts}


def _wordings(value: Any, column: str, pairs: PairDataset, row: int) -> tuple[str, ...]:
    """Return the wordings that a cell holds: a text, several, or null."""
    texts = [value] if isinstance(value, str) else [] if value is None else value
    if not isinstance(texts, (list, tuple)) or not all(isinstance(text, str) for text in texts):
        raise ValueError(
            f"column '{column}' of {pairs.name} holds {str(value)[:60]!r} for '{pairs.stems[row]}'; expected a "
            "text, a list of wordings of it, or null."
        )
    return tuple(dict.fromkeys(text.strip() for text in texts if text.strip()))


def _regions(value: Any, column: str, pairs: PairDataset, row: int) -> tuple[Region, ...]:
    """Return what a cell says about classes and things: a list of {"class": name, "thing": number, "texts": [...]}."""
    found = []
    for entry in value if isinstance(value, (list, tuple)) else [] if value is None else [value]:
        where = f"column '{column}' of {pairs.name} holds {str(entry)[:80]} for '{pairs.stems[row]}'"
        named = isinstance(entry, Mapping) and {"class", "thing", "texts"} <= entry.keys()
        if not named or type(entry["thing"]) is not int:
            raise ValueError(
                f'{where}; expected {{"class": name, "thing": number, "texts": wordings}}, as `semseg-diffusers '
                "caption` writes them."
            )
        if entry["class"] not in pairs.labels.label2id:
            raise ValueError(f"{where}; the data has the classes {', '.join(pairs.labels.names)}.")
        texts = _wordings(entry["texts"], column, pairs, row)
        if texts:
            found.append(Region(pairs.labels.label2id[entry["class"]], entry["thing"], texts))
    return tuple(found)
