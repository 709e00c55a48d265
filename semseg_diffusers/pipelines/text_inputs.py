"""Texts beside masks: which text is about which pixels, and their embeddings by a frozen encoder of transformers.

A text about a region is laid onto its pixels, after FreestyleNet (Xue et al. 2023, section 3.2). This file is saved
beside the weights and runs without the package: it imports the standard library, numpy, torch and diffusers only.
"""

import importlib
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from diffusers.utils import logging


logger = logging.get_logger(__name__)


class Texts(NamedTuple):
    """Embeddings of texts for N masks; what nothing was said about has zeros."""

    text_embeds: torch.Tensor  # (N, E), of the images
    negative_embeds: torch.Tensor  # (N, E), in place of these where a prediction is without texts
    region_embeds: torch.Tensor | None  # (N, K, E), of regions; None where no mask has any
    regions: list[np.ndarray]  # N of (H, W) int64: the index of each pixel's text, -1 where there is none


def number_things(inside: np.ndarray, instances: np.ndarray | None = None) -> np.ndarray:
    """Number the things in a region (H, W) bool from left to right, by their leftmost pixels: (H, W) int64, else -1.

    Things are connected parts, corners included, or what has one id in `instances` (H, W).

    Example:
        >>> number_things(np.array([[0, 0, 1], [1, 0, 1]], dtype=bool)).tolist()
        [[-1, -1, 1], [0, -1, 1]]
    """
    numbers = np.full(inside.shape, -1, dtype=np.int64)
    if not inside.any():
        return numbers
    columns = np.nonzero(inside)[1]
    if instances is not None:
        labels = np.unique(instances[inside], return_inverse=True)[1].reshape(-1)
    else:
        labels = _label_runs(inside)
    left = np.full(labels.max() + 1, inside.shape[1])
    np.minimum.at(left, labels, columns)
    numbers[inside] = np.argsort(np.argsort(left, kind="stable"), kind="stable")[labels]
    return numbers


def _label_runs(inside: np.ndarray) -> np.ndarray:
    """Return the number of the connected part that each pixel of a region (H, W) bool is in, row by row."""
    # He, Chao and Suzuki 2008: runs of a row are joined with those of the row above that they touch
    stride = inside.shape[1] + 2  # so that no run touches one of another row but the next
    edges = np.diff(np.pad(inside, ((0, 0), (1, 1))).astype(np.int8), axis=1)  # (H, W + 1)
    rows, starts = np.nonzero(edges == 1)
    ends = np.nonzero(edges == -1)[1]
    first, last = rows * stride + starts, rows * stride + ends  # `last` is one further: runs touch at corners
    low = np.searchsorted(last, first - stride)
    high = np.searchsorted(first, last - stride, side="right")
    parents = list(range(len(rows)))

    def root(run: int) -> int:
        while parents[run] != run:
            parents[run] = parents[parents[run]]
            run = parents[run]
        return run

    for run in range(len(rows)):
        for above in range(low[run], high[run]):
            parents[root(run)] = root(above)
    parts = np.unique([root(run) for run in range(len(rows))], return_inverse=True)[1].reshape(-1)
    return np.repeat(parts, ends - starts)


def check_text(name: str, text: Any) -> None:
    """Raise a `ValueError` for what is no text, or an empty one."""
    if not isinstance(text, str):
        raise ValueError(f"`{name}` holds {text!r}, of type {type(text).__name__}; expected a text, or None for none.")
    if not text.strip():
        raise ValueError(f"`{name}` holds an empty text; pass None where nothing is said.")


def split_texts(name: str, texts: Any, num_masks: int) -> list[str | None]:
    """Return one text, or None, for each mask; a single one is for all."""
    given = list(texts) if isinstance(texts, (list, tuple)) else [texts] * num_masks
    if len(given) != num_masks:
        raise ValueError(f"got {len(given)} of `{name}` for {num_masks} masks; pass one for each, or one for all.")
    for text in given:
        if text is not None:
            check_text(name, text)
    return given


def split_dicts(name: str, dicts: Any, num_masks: int) -> list[Mapping]:
    """Return one dict for each mask, empty for None; a single one is for all."""
    given = list(dicts) if isinstance(dicts, (list, tuple)) else [dicts] * num_masks
    if len(given) != num_masks:
        raise ValueError(
            f"got {len(given)} of `{name}` for {num_masks} masks; pass one dict for each, or one for all."
        )
    for each in given:
        if not isinstance(each, Mapping | None):
            raise ValueError(f"`{name}` holds {each!r}; expected a dict, or None.")
    return [each or {} for each in given]


def class_id_of(name: str, key: Any, num_classes: int, id2label: Mapping | None) -> int:
    """Return the id of a class that is given by name or id."""
    by_name = {label: int(class_id) for class_id, label in (id2label or {}).items()}
    if key in by_name:
        return by_name[key]
    if isinstance(key, int) and not isinstance(key, bool) and 0 <= key < num_classes:
        return key
    known = ", ".join(by_name) or f"0 to {num_classes - 1}"
    raise ValueError(f"`{name}` holds the class {key!r}; this network knows {known}.")


def lay_texts(
    ids: np.ndarray,
    class_prompts: Mapping,
    instance_prompts: Mapping,
    instances: np.ndarray | None,
    num_classes: int,
    id2label: Mapping | None,
) -> tuple[list[str], np.ndarray]:
    """Return the texts about regions of a mask (H, W), each once, and the index of each pixel's text, -1 for none.

    A text about a thing takes the place of that of its class.
    """
    texts: dict[str, int] = {}
    regions = np.full(ids.shape, -1, dtype=np.int64)
    named = (num_classes, id2label)
    for key, text in class_prompts.items():
        class_id = class_id_of("class_prompts", key, *named)
        if text is not None:
            check_text("class_prompts", text)
            regions[ids == class_id] = texts.setdefault(text, len(texts))
    for key, given in instance_prompts.items():
        if given is None or isinstance(given, str):
            if instances is None or isinstance(key, str):
                raise ValueError(
                    f"`instance_prompts` holds {given!r} for {key!r}; expected a list of texts for a class, those of "
                    "its things from left to right, or the ids of things with one text each and the map `instances`. "
                    "Use `class_prompts` for all things of a class."
                )
            if not (instances == key).any():
                raise ValueError(f"`instance_prompts` holds a text for the thing {key}, which `instances` lacks.")
            if given is not None:
                check_text("instance_prompts", given)
                regions[instances == key] = texts.setdefault(given, len(texts))
            continue
        class_id = class_id_of("instance_prompts", key, *named)
        if not isinstance(given, (list, tuple)):
            raise ValueError(f"`instance_prompts` holds {given!r} for {key!r}; expected a list of texts.")
        numbers = number_things(ids == class_id, instances)
        if len(given) > numbers.max() + 1:
            raise ValueError(
                f"`instance_prompts` holds {len(given)} texts for {key!r}, and the mask has {numbers.max() + 1} "
                f"{'connected parts' if instances is None else 'things'} of that class: pass no more, from left to "
                "right, with None where nothing is said."
            )
        for number, text in enumerate(given):
            if text is not None:
                check_text("instance_prompts", text)
                regions[numbers == number] = texts.setdefault(text, len(texts))
    return list(texts), regions


def check_text_encoder(text_encoder: Any, tokenizer: Any) -> None:
    """Raise a `ValueError` for an encoder without its tokenizer, or a model that does more than encode text."""
    if (text_encoder is None) != (tokenizer is None):
        missing = "tokenizer" if tokenizer is None else "text_encoder"
        raise ValueError(f"`{missing}` is None: pass `text_encoder` and `tokenizer` together, those of one model.")
    if hasattr(text_encoder, "decoder") or hasattr(text_encoder, "vision_model"):
        raise ValueError(
            f"`text_encoder` is a {type(text_encoder).__name__}; expected a model that encodes text alone. Load it "
            "with transformers' T5EncoderModel or CLIPTextModel, or AutoModelForTextEncoding."
        )


def load_referenced_encoder(source: str) -> tuple[Any, Any]:
    """Load a text encoder and its tokenizer that a pipeline names, "owner/name@commit" of the Hub, from safetensors.

    (None, None), and a warning of one line, where that cannot be.
    """
    name, _, revision = source.partition("@")
    options = {"revision": revision or "main"}
    try:
        transformers = importlib.import_module("transformers")  # needed by networks that read texts alone
        tokenizer = transformers.AutoTokenizer.from_pretrained(name, **options)
        encoder = transformers.AutoModelForTextEncoding.from_pretrained(name, use_safetensors=True, **options)
    except (ImportError, OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        logger.warning(
            f"The text encoder {source} of this pipeline did not load, so it takes no prompts: {reason} Load it again "
            "with a connection to the Hub, or pass `text_encoder` and `tokenizer`."
        )
        return None, None
    return encoder.requires_grad_(False).eval(), tokenizer


def tokenize(text: str, text_encoder: Any, tokenizer: Any) -> dict[str, torch.Tensor]:
    """Return the inputs of an encoder for a text (1, number of tokens); too many of them are a `ValueError`."""
    most = min(tokenizer.model_max_length, getattr(text_encoder.config, "max_position_embeddings", None) or math.inf)
    tokens = dict(tokenizer(text, return_tensors="pt", verbose=False))
    count = tokens["input_ids"].shape[1]
    if count > most:
        shown = text if len(text) <= 60 else f"{text[:60]}..."
        raise ValueError(f"the text {shown!r} has {count} tokens; this text encoder reads at most {most}: shorten it.")
    return tokens


@torch.no_grad()
def embed_texts(
    texts: Sequence[str], text_encoder: Any, tokenizer: Any, device: Any = None
) -> dict[str, torch.Tensor]:
    """Embed each text by itself, so that no other changes its numbers: text -> (E,) float32.

    The embedding is the mean of the last hidden states over the tokens; of CLIP it is the pooled state of the last
    token, projected where the model is a CLIPTextModelWithProjection.
    """
    tokens = {text: tokenize(text, text_encoder, tokenizer) for text in texts}  # all are checked before any work
    device = text_encoder.device if device is None else device
    embeds = {}
    for text, given in tokens.items():
        output = text_encoder(**{name: value.to(device) for name, value in given.items()})
        embed = getattr(output, "text_embeds", None)
        if embed is None and "clip" in text_encoder.config.model_type:
            embed = output.pooler_output
        if embed is None:
            embed = output.last_hidden_state.mean(dim=1)  # (1, E)
        embeds[text] = embed[0].float()
    return embeds


def stack_texts(
    prompts: Sequence[str | None],
    negative_prompts: Sequence[str | None],
    region_texts: Sequence[Sequence[str]],
    regions: list[np.ndarray],
    embeds: Mapping[str, torch.Tensor],
) -> Texts:
    """Arrange the embeddings of the texts of N masks; masks with fewer texts about regions get zeros for the rest."""
    nothing = torch.zeros_like(next(iter(embeds.values())))

    def stack(texts: Sequence[str | None], length: int) -> torch.Tensor:
        rows = [nothing if text is None else embeds[text] for text in texts]
        return torch.stack(rows + [nothing] * (length - len(rows)))

    most = max(map(len, region_texts))
    region_embeds = torch.stack([stack(texts, most) for texts in region_texts]) if most else None  # (N, K, E)
    count = len(prompts)
    return Texts(stack(prompts, count), stack(negative_prompts, count), region_embeds, regions)
