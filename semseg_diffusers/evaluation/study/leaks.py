"""What would make a study say more than it can: validation photos among what is trained on, and a filter that is
judged by its own network. Found by names, pixels and weights, and refused unless forced."""

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from semseg_diffusers.data.layout import SPLITS
from semseg_diffusers.evaluation.filtering.independence import read_filter
from semseg_diffusers.evaluation.segmenters.networks import Source
from semseg_diffusers.evaluation.study.pools import KeptPairs, StudyData
from semseg_diffusers.evaluation.study.settings import StudySettings
from semseg_diffusers.generation.output_folder import read_metadata
from semseg_diffusers.generation.sources import Names
from semseg_diffusers.hub.folders import weights_hash


RUN_SETTINGS = "settings.json"  # of a training run: what a model was trained on


def photo_digests(pairs: KeptPairs) -> list[bytes]:
    """A hash of the pixels of each photo."""
    return [hashlib.sha256(pairs[index]["image"].numpy()).digest() for index in range(len(pairs))]


def data_hash(pairs: KeptPairs, digests: Iterable[bytes]) -> str:
    """A hash of a set by names, pixels, masks and classes, whatever files they lie in."""
    whole = hashlib.sha256(repr((pairs.resolution, pairs.labels.names, pairs.labels.ignore_index)).encode())
    for index, digest in enumerate(digests):
        whole.update(pairs.names[index].encode() + b"\0" + digest)
        whole.update(pairs[index]["mask"].numpy())
    return f"sha256:{whole.hexdigest()[:16]}"


def find_leaks(settings: StudySettings, data: StudyData, digests: dict[str, list[bytes]]) -> list[str]:
    """Return what is wrong, a sentence each; nothing where all is well.

    Args:
        settings: folders of the synthetic images.
        data: the sets.
        digests: `photo_digests` of each.
    """
    found = []
    of_validation = dict(zip(digests["validation"], data.validation.names, strict=True))
    for name in [name for name in digests if name != "validation"]:
        same = [of_validation[digest] for digest in digests[name] if digest in of_validation]
        if same:
            where = "the training split" if name == "real" else f"--{name}"
            found.append(f"{_photos(len(same))} also among those of {where}, pixel by pixel, such as '{same[0]}'.")
    # a name that both splits use says nothing
    only_validation = set(data.validation.names) - set(data.real.names)
    for name in ("generated", "filtered"):
        folder = getattr(settings, name)
        if folder is None:
            continue
        rows = read_metadata(folder)
        leaked = sorted(only_validation & _made_from(rows))
        if leaked:
            found.append(
                f"--{name} '{folder}' holds images that were made from masks or photos of the validation split "
                f"({len(leaked)} of them, such as '{leaked[0]}'). Generate from masks of the training split."
            )
        for model in sorted({str(row["model"]) for row in rows if row.get("model")}):
            if _was_trained_on_validation(model, settings):
                found.append(
                    f"--{name} '{folder}' was drawn by '{model}', which was trained on the validation split. Train a "
                    "model on the training split."
                )
    return found


def _photos(count: int) -> str:
    return f"{count} photos of the validation split are" if count > 1 else "a photo of the validation split is"


def _made_from(rows: list[dict[str, Any]]) -> set[str]:
    """The names of all masks and photos that stand behind images."""
    stems = {str(row["stem"]) for row in rows if row.get("stem")}
    stems |= {Path(row["source_photo"]).stem for row in rows if row.get("source_photo")}
    masks = [Path(row["source_mask"]) for row in rows if row.get("source_mask")]
    names = {folder: Names(folder) for folder in {mask.parent for mask in masks}}
    # of masks that `enrich` made, those that they began with
    return stems | {stem for mask in masks for stem in names[mask.parent].of(mask.stem)}


def _was_trained_on_validation(model: str, settings: StudySettings) -> bool:
    """Whether a run that is here says that it learned the split that is to judge."""
    path = Path(model) / RUN_SETTINGS
    if not path.is_file():
        return False
    run = json.loads(path.read_text(encoding="utf-8"))
    split, validation = (SPLITS.get(name, name) for name in (run.get("train_split"), settings.validation_split))
    same_data = Path(str(run.get("dataset"))).absolute() == Path(settings.dataset).absolute()
    return split == validation and same_data


def filter_weights(folder: str | None) -> str | None:
    """The hash of the network that filtered a folder; None where it was not filtered."""
    record = None if folder is None else read_filter(folder)
    return None if record is None else record["segmenter_sha256"]


def base_weights(settings: StudySettings) -> str | None:
    """The hash of the weights that all networks begin with; None for random ones."""
    if settings.base_model is None:
        return None
    source = Source.of(settings.base_model, settings.revision, "--base_model")
    return weights_hash(source.network().state_dict())


def find_filter_as_judge(settings: StudySettings, weights: str | None) -> list[str]:
    """Return a sentence where the networks would begin with the one that filtered the images.

    Args:
        settings: folders of the synthetic images.
        weights: what `base_weights` returns.
    """
    return [
        f"--base_model '{settings.base_model}' is the network that filtered --{name} '{folder}' ({weights}): what it "
        "took for right it has learned already. Begin with another, or with random weights."
        for name, folder in (("generated", settings.generated), ("filtered", settings.filtered))
        if weights is not None and filter_weights(folder) == weights
    ]
