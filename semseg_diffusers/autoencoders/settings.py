"""Settings of an autoencoder's training; data, optimization and run options are those of `train`, with other defaults.

Imports nothing heavy, so that `--help` answers at once.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from semseg_diffusers.distillation.settings import DiscriminatorOptions
from semseg_diffusers.evaluation.settings import DEFAULT_FEATURES
from semseg_diffusers.training.settings import LoopSettings
from semseg_diffusers.utils.settings import Settings, option


WIDTHS = (32, 64, 96)  # of the levels, the last one of all that follow
TINY_WIDTH = 48  # of all levels: the layers of an `AutoencoderTiny` change no width
OF_THE_DISCRIMINATOR = (
    "discriminator_start", "adversarial_weighting", "discriminator_backbone", "discriminator_scale",
    "discriminator_learning_rate", "discriminator_window",
)  # fmt: skip
OF_VQ = ("codebook_size", "commitment_weight", "codebook_revival_steps")


def default_widths(kind: str, downsample: int) -> tuple[int, ...]:
    """Return the widths of the levels, the first at full resolution, each following one at half of it."""
    levels = int(math.log2(downsample)) + 1
    if kind == "tiny":
        return (TINY_WIDTH,) * levels
    return (*WIDTHS, *WIDTHS[-1:] * levels)[:levels]


@dataclass(frozen=True, kw_only=True)
class NetworkOptions(Settings):
    """The autoencoder and the weights it starts from."""

    _group = "network"
    kind: str = option(
        "kl", choices=("kl", "vq", "tiny"),
        help="kl: AutoencoderKL, whose latents are near a normal distribution; vq: VQModel, whose latents are codes "
        "of a codebook; tiny: AutoencoderTiny, for speed",
    )  # fmt: skip
    downsample: int = option(
        4, choices=(2, 4, 8, 16, 32), help="pixels of a photo's side for each of the latents' side"
    )
    latent_channels: int = option(4, above=0, help="channels of the latents")
    block_out_channels: tuple[int, ...] = option(
        WIDTHS, above=0, metavar="N",
        help="width of each level, the first at full resolution; one more than halvings (default: 32 64 96 96 ..., of "
        f"tiny {TINY_WIDTH} each)",
    )  # fmt: skip
    layers_per_block: int = option(1, above=0, help="residual blocks per level")
    norm_num_groups: int = option(16, above=0, help="groups of the group norms, of kl and vq; divides every width")
    codebook_size: int = option(1024, at_least=2, help="codes of vq")
    init_from: str | None = option(
        None, metavar="MODEL", help="folder or Hub id of an autoencoder of the same class and layers to start from"
    )


@dataclass(frozen=True, kw_only=True)
class ObjectiveOptions(Settings):
    """What the autoencoder learns from, beside the mean absolute error of its reconstructions."""

    _group = "objective"
    perceptual_weight: float = option(
        0.2, at_least=0, help="weight of the distance in features of a frozen network; 0 for none"
    )
    perceptual_backbone: str = option(
        "efficientnet-lite0", help="frozen network of the perceptual loss, as `ImageBackbone` names it"
    )
    kl_weight: float = option(
        1e-6, at_least=0, help="weight of the divergence of all latents from a normal distribution, over the numbers "
        "of the photo: of kl, and of tiny, whose latents count as means of a fixed width",
    )  # fmt: skip
    commitment_weight: float = option(0.25, at_least=0, help="weight of the distance of vq's latents to their codes")
    codebook_revival_steps: int = option(
        100, at_least=0, help="steps after which a code that no latent chose moves to a latent; 0 for never"
    )
    adversarial_weight: float = option(0.2, at_least=0, help="weight of the discriminator's verdict; 0 for none")
    adversarial_weighting: str = option(
        "adaptive", choices=("adaptive", "fixed"),
        help="adaptive: times the ratio of the gradients of the other losses and of the verdict at the last layer "
        "(VQGAN); fixed: the weight as it is",
    )  # fmt: skip
    discriminator_start: int = option(2000, at_least=0, help="optimizer steps before the discriminator joins")
    features: str | None = option(
        DEFAULT_FEATURES, help="network of the distance between photos and reconstructions on the card, as of "
        "`evaluate`; `none` for no such distance",
    )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class AutoencoderSettings(LoopSettings, DiscriminatorOptions, ObjectiveOptions, NetworkOptions):
    """Train an autoencoder on the photos of a prepared dataset.

    The run folder is a plain folder of AutoencoderKL, VQModel or AutoencoderTiny: `from_pretrained` of diffusers loads
    it. Steps are optimizer steps.
    """

    train_batch_size: int = option(8, above=0, help="photos per process and forward pass")
    max_train_steps: int | None = option(4000, above=0, help="optimizer steps; overrides --num_train_epochs")
    learning_rate: float = option(3e-4, above=0, help="peak learning rate of AdamW")
    lr_warmup_steps: int = option(100, at_least=0, help="optimizer steps of warm-up")
    adam_beta1: float = option(0.5, help="of AdamW")
    adam_weight_decay: float = option(0.0, help="of AdamW")
    ema_decay: float = option(0.998, at_least=0, at_most=1, help="largest decay of the average")
    checkpointing_steps: int = option(250, above=0, help="steps between checkpoints")
    preview_steps: int = option(250, at_least=0, help="steps between previews; 0 makes none")

    # What the loop offers and an autoencoder has no use for: options of upscalers, and the upload of pipelines.
    low_res_from: ClassVar[str | None] = None  # type: ignore[misc]
    low_res_share: ClassVar[float] = 0.5  # type: ignore[misc]
    low_res_blur: ClassVar[float] = 0.0  # type: ignore[misc]
    push_to_hub: ClassVar[bool] = False  # type: ignore[misc]
    hub_model_id: ClassVar[str | None] = None  # type: ignore[misc]
    hub_private_repo: ClassVar[bool] = False  # type: ignore[misc]

    def __post_init__(self):
        """Refuse values that no run could use, before anything is read."""
        super().__post_init__()
        widths, levels = self.block_out_channels, int(math.log2(self.downsample)) + 1
        given = " ".join(map(str, widths))
        if len(widths) != levels:
            raise ValueError(
                f"--downsample {self.downsample} halves {levels - 1} time(s) and needs {levels} widths; got "
                f"--block_out_channels {given}."
            )
        if self.kind == "tiny" and len(set(widths)) > 1:
            raise ValueError(f"--kind tiny has one width for all levels; got --block_out_channels {given}.")
        if self.kind != "tiny" and (odd := [width for width in widths if width % self.norm_num_groups]):
            raise ValueError(
                f"--block_out_channels {odd[0]} is not a multiple of --norm_num_groups {self.norm_num_groups}."
            )
        size = self.random_crop_size
        if size is not None and any(side % self.downsample for side in size):
            raise ValueError(f"--random_crop {self.random_crop} is not a multiple of --downsample {self.downsample}.")
        for names, applies, reason in (
            (OF_VQ, self.kind == "vq", "is for --kind vq"),
            (["kl_weight"], self.kind != "vq", "is for --kind kl and tiny"),
            (["norm_num_groups"], self.kind != "tiny", "is for --kind kl and vq"),
            (["gradient_checkpointing"], self.kind == "kl", "is for --kind kl: diffusers has it for no other"),
            (["perceptual_backbone"], self.perceptual_weight > 0, "needs a --perceptual_weight of more than 0"),
            (OF_THE_DISCRIMINATOR, self.adversarial_weight > 0, "needs an --adversarial_weight of more than 0"),
        ):
            if not applies and (named := self.given(names)):
                raise ValueError(f"{named[0]} {reason}. Leave it out.")

    @classmethod
    def implied(cls, given: Mapping[str, Any]) -> dict[str, Any]:
        """Return the widths that go with a given `kind` and `downsample`, beside what other runs imply."""
        kind, downsample = str(given.get("kind", cls.kind)), str(given.get("downsample", cls.downsample))
        known = downsample.isdecimal() and int(downsample) >= 2
        widths = {"block_out_channels": default_widths(kind, int(downsample))} if known else {}
        return super().implied(given) | widths
