"""Settings of `semseg-diffusers evaluate`; `results.json` records all that results depend on."""

from dataclasses import dataclass, fields
from typing import Any

from semseg_diffusers.data.settings import ColumnOptions, parse_resolution
from semseg_diffusers.generation.settings import GenerationSettings, SamplingOptions
from semseg_diffusers.utils.settings import option


DEFAULT_SEGMENTER = "facebook/mask2former-swin-tiny-cityscapes-semantic"  # for driving scenes
# FD-DINOv2 as published uses facebook/dinov2-large: choose that to compare with papers.
DEFAULT_FEATURES = "facebook/dinov2-small"
_SAMPLING = tuple(field.name for field in fields(SamplingOptions))
_MODEL_OPTIONS = ("revision", "num_masks", "num_images_per_mask", *_SAMPLING)


@dataclass(frozen=True, kw_only=True)
class EvaluationSettings(SamplingOptions, ColumnOptions):
    """Evaluate a model, or a folder of generated images, against the real images of a dataset.

    Agreement with the masks is compared with a ceiling (real images) and a floor (masks of other images); fidelity has
    its own floor. Samples of the same mask are compared, and training images are searched for copies. results.json
    holds all numbers, report.html shows them with images. The same command resumes an interrupted run.

    Several processes, GPUs or machines share the work:
      accelerate launch [--config_file FILE] -m semseg_diffusers.evaluation --dataset ... (the options below)
    """

    model: str | None = option(None, help="run folder or Hub repo id: images are generated from the split's masks")
    generated: str | None = option(
        None,
        metavar="DIR",
        help="evaluate these images instead: folder written by `generate`, or images named after the split's masks "
        "(STEM.png, STEM_NUMBER.png)",
    )
    revision: str | None = option(None, help="branch, tag or commit of a model on the Hub")
    dataset: str = option(help="real images: prepared folder or Hub dataset id")
    split: str = option("val", help="masks and real images to evaluate with")
    train_split: str = option("train", help="real images the model may have been trained on")
    output: str = option(metavar="DIR", help="folder to create or resume")
    segmenter: str = option(
        DEFAULT_SEGMENTER, help="network that segments the images: folder written by `segmenter`, or Hub id"
    )
    segmenter_revision: str | None = option(None, help="branch, tag or commit of a segmenter on the Hub")
    segmenter_size: tuple[int, int] | None = option(
        None,
        metavar="HxW",
        help="input size of the segmenter (default: its own)",
        parse=lambda words: parse_resolution(words[0]),
    )
    features: tuple[str, ...] = option(
        (DEFAULT_FEATURES,),
        help="networks for fidelity: folder or Hub id of an image network, inception, a TorchScript file, or none",
    )
    num_masks: int | None = option(None, at_least=1, help="masks of the split to use, evenly spaced (default: all)")
    num_images_per_mask: int = option(1, at_least=1, help="two or more measure diversity")
    kid_subsets: int = option(100, at_least=1, help="subsets for KID")
    kid_subset_size: int | None = option(
        None, at_least=2, help="images per KID subset (default: half of the smaller set, at most 1000)"
    )
    batch_size: int = option(8, at_least=1, help="images per forward pass and process")
    seed: int = option(0, at_least=0, below=2**63, help="of images, shuffled masks and subsets")
    device: str | None = option(None, help="torch device (default: GPU if available; each process takes its own)")
    dtype: str = option("float32", choices=("float32", "float16", "bfloat16"), help="of all networks")

    def __post_init__(self):
        super().__post_init__()
        if (self.model is None) == (self.generated is None):
            raise ValueError("give --model, to generate images from the split's masks, or --generated, not both.")
        if "none" in self.features:
            if len(self.features) > 1:
                raise ValueError(f"--features: none excludes other networks; got {' '.join(self.features)}.")
            object.__setattr__(self, "features", ())
        given = self.given(_MODEL_OPTIONS)
        if self.generated is not None and given:
            raise ValueError(
                f"{', '.join(given)} only with --model, which generates images; all images of --generated are "
                "evaluated as they are. Omit it."
            )

    @property
    def sampling(self) -> GenerationSettings:
        """How the model's images are generated."""
        return self.generation_settings(seed=self.seed)

    def record(self) -> dict[str, Any]:
        """Return the settings that results depend on, as JSON under the names of the options."""
        names = [field.name for field in fields(self) if field.name != "device"]
        if self.model is None:
            names = [name for name in names if name not in _MODEL_OPTIONS]
        values = {name: getattr(self, name) for name in names}
        if self.model is not None:
            values["conditioning_scale"] = None  # of `generate`: evaluations use that of the training
        return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}
