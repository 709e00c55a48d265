"""What an evaluation depends on; `results.json` holds all of it."""

from dataclasses import asdict, dataclass, field
from typing import Any

from semseg_diffusers.evaluation.features import DEFAULT_FEATURES
from semseg_diffusers.evaluation.segmentation.judge import DEFAULT_JUDGE
from semseg_diffusers.generation.settings import GenerationSettings


# What the command has no options for: images are as large as the photos, and made from their masks alone.
NOT_EVALUATED = ("height", "width", "attributes", "attribute_guidance_scale", "strength", "edit", "variations")
FOR_MODEL = ("revision", "num_masks", "num_images_per_mask", "scheduler")  # beside `sampling`, but for its seed


@dataclass(frozen=True)
class EvaluationSettings:
    """One evaluation: images of a model or of a folder, against a split of real photos.

    Raises:
        ValueError: both a model and a folder, or neither; numbers below 1; options of a model with a folder.
    """

    dataset: str  # prepared folder or Hub id
    output: str  # folder for results, page, generated images and what a later run need not do again
    model: str | None = None  # run folder or Hub id; its images are generated from the split's masks
    revision: str | None = None  # branch, tag or commit of `model`
    generated: str | None = None  # folder of images, in place of `model`
    split: str = "val"  # masks and photos
    train_split: str = "train"  # photos that the model may have seen: reference of fidelity, search for copies
    image_column: str = "image"  # of the photos
    mask_column: str = "mask"
    labels: str | None = None  # preset or JSON file, where the data set carries no label set
    segmenter: str = DEFAULT_JUDGE  # folder or Hub id of the network that reads images
    segmenter_revision: str | None = None
    segmenter_size: tuple[int, int] | None = None  # (height, width) it reads images at; None: its own
    features: tuple[str, ...] = (DEFAULT_FEATURES,)  # networks that fidelity is measured with; () leaves it away
    num_masks: int | None = None  # of the split, at even distances; None: all. For `model` only
    num_images_per_mask: int = 1  # for `model` only; two and more show diversity
    sampling: GenerationSettings = field(default_factory=GenerationSettings)  # for `model` only, but for the seed
    scheduler: str | None = None  # class name of a diffusers scheduler, with options; None: the model's
    kid_subsets: int = 100
    kid_subset_size: int | None = None  # None: 1000, or half the images where they are fewer than 2000
    dtype: str = "float32"  # of all networks
    batch_size: int = 8  # images a forward; changes figures by float rounding only

    def __post_init__(self):
        if (self.model is None) == (self.generated is None):
            raise ValueError("give --model, to generate images from the split's masks, or --generated, not both.")
        for name in ("num_masks", "num_images_per_mask", "kid_subsets", "kid_subset_size", "batch_size"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"--{name} must be at least 1; got {value}.")
        if not 0 <= self.seed < 2**63:
            raise ValueError(f"--seed must be 0 or more, below 2^63; got {self.seed}.")
        if self.kid_subset_size == 1:
            raise ValueError("--kid_subset_size must be at least 2: KID compares the images of a subset; got 1.")
        if self.generated is not None:
            given = [name for name in FOR_MODEL if getattr(self, name) != self.__dataclass_fields__[name].default]
            usual = asdict(GenerationSettings(seed=self.seed))
            given += [name for name, value in asdict(self.sampling).items() if value != usual[name]]
            if given:
                raise ValueError(
                    f"{', '.join(f'--{name}' for name in given)} only with --model, whose images are made here: those "
                    "of --generated are evaluated as they are, all of them. Leave it away."
                )

    @property
    def seed(self) -> int:
        """Of images, shuffle, choices and KID's subsets."""
        return self.sampling.seed

    def record(self) -> dict[str, Any]:
        """JSON of all settings under the names of the command's options; those of sampling only where it samples."""
        values = asdict(self)
        sampling = values.pop("sampling")
        if self.model is None:
            values = {name: value for name, value in values.items() if name not in FOR_MODEL}
            sampling = {"seed": self.seed}
        sampling = {name: value for name, value in sampling.items() if name not in NOT_EVALUATED}
        values["features"] = list(self.features)
        values["segmenter_size"] = None if self.segmenter_size is None else list(self.segmenter_size)
        return {**values, **sampling}
