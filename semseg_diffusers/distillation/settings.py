"""Settings of a distillation; data, optimization and run options are those of `train`, with other defaults."""

from dataclasses import dataclass
from typing import ClassVar

from semseg_diffusers.training.settings import CaptionOptions, LoopSettings
from semseg_diffusers.utils.settings import Settings, option


@dataclass(frozen=True, kw_only=True)
class ObjectiveOptions(Settings):
    """The teacher, the student's steps, and what it learns from."""

    _group = "distillation"
    model: str = option(metavar="DIR|ID", help="the teacher: folder of a training run, or an id on the Hub")
    revision: str | None = option(None, help="its branch, tag or commit on the Hub")
    init_from: str | None = option(
        None, metavar="MODEL", help="a student to start from: folder or Hub id (default: a copy of the teacher)"
    )
    steps: int = option(4, above=0, at_most=16, help="sampling steps of the student, which can take fewer too")
    first_step_share: float = option(
        0.4,
        above=0,
        at_most=1,
        help="share of the samples that start from noise alone; other steps share the rest",
    )
    guidance_scale: float | None = option(
        None, help="guidance scale of the teacher, which the student learns to do without (default: what the model "
        "recommends, else 2)",
    )  # fmt: skip
    distillation_weight: float = option(
        1.0, at_least=0, help="weight of the distance to what the teacher makes of a noised sample of the student"
    )
    reconstruction_weight: float = option(
        1.0, at_least=0, help="weight of the distance to the photo, at the steps that start from a noised photo"
    )
    adversarial_weight: float = option(0.05, at_least=0, help="weight of the discriminator's verdict; 0 for none")
    diversity_weight: float = option(
        0.0, at_least=0,
        help="weight of what two images of a mask lack of the difference that the teacher's have; 0 for none",
    )  # fmt: skip
    mask_dropout: float = option(0.0, at_least=0, at_most=1, help="share of masks dropped")
    mask_ablation: float = option(
        0.0, at_least=0, at_most=1,
        help="share of masks of which only random classes or objects stay known, so that partial masks work",
    )  # fmt: skip
    attribute_dropout: float = option(0.1, at_least=0, at_most=1, help="share of the values of each attribute dropped")


@dataclass(frozen=True, kw_only=True)
class DiscriminatorOptions(Settings):
    """The discriminator, which sees the features of a frozen network."""

    _group = "discriminator"
    discriminator_backbone: str = option(
        "efficientnet-lite0", help="frozen network of its features, as `ImageBackbone` names it"
    )
    discriminator_scale: float = option(1.5, above=0, help="enlargement of the images that the frozen network reads")
    discriminator_learning_rate: float = option(4e-4, above=0, help="learning rate of the discriminator")
    discriminator_window: float = option(
        0.7, above=0, at_most=1,
        help="smallest side, as a share of the image's, of the random windows in which it sees images",
    )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class MaskedDiscriminatorOptions(DiscriminatorOptions):
    """The discriminator, which also sees the mask."""

    _group = "discriminator"
    discriminator: str = option(
        "projected", choices=("projected", "segmentation", "both"),
        help="projected: real or not, at several scales, given the mask; segmentation: the class of each pixel, or "
        "fake",
    )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class DistillationSettings(LoopSettings, MaskedDiscriminatorOptions, ObjectiveOptions, CaptionOptions):
    """Distill a mask-guided diffusion model into one that needs one to four steps."""

    train_batch_size: int = option(8, above=0, help="images per process and forward pass")
    max_train_steps: int | None = option(2000, above=0, help="optimizer steps; overrides --num_train_epochs")
    learning_rate: float = option(1e-4, above=0, help="peak learning rate of AdamW")
    lr_warmup_steps: int = option(50, at_least=0, help="optimizer steps of warm-up")
    adam_beta1: float = option(0.0, help="of AdamW")
    adam_weight_decay: float = option(0.0, help="of AdamW")
    ema_decay: float = option(0.998, at_least=0, at_most=1, help="largest decay of the average")
    checkpointing_steps: int = option(250, above=0, help="steps between checkpoints")
    preview_steps: int = option(250, at_least=0, help="steps between previews; 0 makes none")

    # What the samples of training depend on, and these do not.
    augment_scale: ClassVar[float] = 0.0
    augment_translate: ClassVar[float] = 0.0
    augment_probability: ClassVar[float | None] = None
    perceptual_weight: ClassVar[float] = 0.0
    mask_dropout_unit: ClassVar[str] = "sample"

    def __post_init__(self):
        """Refuse values that no run could use, before anything is read."""
        super().__post_init__()
        if not self.adversarial_weight:
            options = ("discriminator", "discriminator_backbone", "discriminator_scale")
            options += ("discriminator_learning_rate", "discriminator_window", "diversity_weight")
            if given := self.given(options):
                raise ValueError(f"{given[0]} needs an --adversarial_weight of more than 0.")
        if self.steps == 1 and (given := self.given(["first_step_share"])):
            raise ValueError(f"{given[0]} is for students of several steps: with --steps 1, all start from noise.")
        weights = (self.distillation_weight, self.adversarial_weight)
        if not any(weights):
            raise ValueError(
                "--distillation_weight and --adversarial_weight are both 0: from noise, nothing would be learned. "
                "Give one of them."
            )
