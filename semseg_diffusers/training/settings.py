"""Settings of a training run, with the names of diffusers' example scripts; the run folder keeps `settings.json`.

They are read from the command line, a YAML file (`--config`) and a preset (`presets/*.yaml`). The preset "paper" is
the recipe of Bozsó et al., WINS 2024, as its published code runs it.
"""

from collections.abc import Mapping
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import Any, ClassVar

from semseg_diffusers.data.settings import ColumnOptions, parse_resolution
from semseg_diffusers.utils.settings import Settings, option, read_yaml


# Options that other networks do not have, and what to do about it; they are refused by name.
_CONDITIONS = (
    (
        "attributes", "mask_pyramid", "coordinate_channels", "label_diffusion", "augment_probability",
        "upscale_factor", "max_noise_level", "residual_scale", "text_encoder", "vae",
    ),
    "which stays as it was published. Leave it out, or use --network mask_guided.",
)  # fmt: skip
_LAYERS = (
    (
        "mask_conditioning", "spade_channels", "patch_size", "stem_channels", "norm_num_groups", "hidden_dim",
        "emb_dim",
    ),
    "whose layers have no such setting. Leave it out.",
)  # fmt: skip
_OF_THE_PAPER = (("hidden_dim", "emb_dim"), "which has other widths. Leave it out, or use --network paper.")
_MODULATION = (("mask_conditioning", "spade_channels"), "which reads masks as it was published. Leave it out.")
_OF_THE_BASE = (
    ("block_out_channels", "attention_levels", "layers_per_block", "attention_head_dim", "dropout"),
    "whose layers are those of --base_model. Leave it out.",
)
_BASE = (("base_model", "base_class_label"), "which has no base. Leave it out, or use --network control.")
UNSUPPORTED_OPTIONS = {
    "mask_guided": (_BASE, _OF_THE_PAPER),
    "paper": (_BASE, _CONDITIONS, _MODULATION),
    "sdm": (_BASE, _CONDITIONS, _LAYERS),
    "control": (_CONDITIONS, _LAYERS, _OF_THE_BASE),
}

CAPTION_OPTIONS = ("caption_column", "region_caption_column", "caption_dropout")


@dataclass(frozen=True, kw_only=True)
class PairOptions(ColumnOptions):
    """The pairs that a network is trained on, and their order."""

    _group = "data"
    dataset: str = option(help="prepared folder, or a dataset id on the Hub")
    output_dir: str = option(help="run folder: the pipeline at its root, checkpoint-<step>/")
    train_split: str = option("train", help="split to train on")
    validation_split: str = option("val", help="split whose masks the previews use, if there is one")
    horizontal_flip: bool = option(True, help="flip half of the pairs, image and mask alike")
    class_balanced_sampling: bool = option(
        False, help="sample a class first, rare ones more often, then a pair that shows it"
    )
    class_balance_temperature: float = option(
        0.01, above=0, help="T of the class probabilities exp((1 - frequency) / T); lower prefers rare classes more"
    )
    class_balance_min_share: float = option(
        0.001, at_least=0, at_most=1, help="share of the frame that a class must fill in the pairs sampled for it"
    )
    random_crop: str | None = option(
        None, metavar="SIZE", help="HxW, or a number: train on random crops of this size of data prepared larger",
        old_names=("resolution",),
    )  # fmt: skip
    low_res_from: str | None = option(
        None, metavar="DIR", help="upscalers: also enlarge these images, which `generate --strength` made of the "
        "training photos in the small size",
    )  # fmt: skip
    low_res_share: float = option(
        0.5, above=0, at_most=1, help="upscalers: share of the samples that enlarge such an image, where there is one"
    )
    low_res_blur: float = option(
        0.6, at_least=0, help="upscalers: largest blur of the images to enlarge, of which half have some: standard "
        "deviation in their pixels",
    )  # fmt: skip
    decoded_gigabytes: float = option(
        2.0, at_least=0, help="memory for decoded pairs, shared by the worker processes; 0 decodes every time"
    )
    dataloader_num_workers: int = option(1, at_least=0, help="worker processes beside each training process")

    def check_low_res_share(self) -> None:
        """Refuse a share of images of another model where none are given."""
        if self.low_res_from is None and self.given(["low_res_share"]):
            raise ValueError("--low_res_share needs --low_res_from.")


@dataclass(frozen=True, kw_only=True)
class CaptionOptions(Settings):
    """Texts about the pairs, for networks that read them."""

    _group = "captions"
    caption_column: str = option(
        "captions", help="column of texts about the images, a text or several wordings of it each; a column of one's "
        "own, or that of `semseg-diffusers caption`",
    )  # fmt: skip
    region_caption_column: str = option(
        "region_captions", help="column of texts about classes and things, as `semseg-diffusers caption` writes it"
    )
    caption_dropout: float = option(
        0.1, at_least=0, at_most=1, help="share of the samples without texts about the image, about its classes, and "
        "about its things, each for itself; of the texts that remain, a random share is shown",
    )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class DataOptions(PairOptions):
    """What is done with the pairs, and what else describes them."""

    _group = "data"
    augment_scale: float = option(
        0.0, at_least=0, help="enlarge or reduce pairs by a factor of up to 1 plus this; 0.25 is 0.8 to 1.25"
    )
    augment_translate: float = option(0.0, at_least=0, at_most=1, help="shift pairs by up to this share of the frame")
    augment_probability: float | None = option(
        None, at_least=0, at_most=1,
        help="probability of scaling and of shifting, with the network conditioned on them so that samples show "
        "neither; none: every pair, without conditioning",
    )  # fmt: skip
    attributes: tuple[str, ...] = option(
        (), metavar="NAME", help="text columns that the network is conditioned on beside the mask, such as weather"
    )


@dataclass(frozen=True, kw_only=True)
class NetworkOptions(Settings):
    """The network and the weights it starts from."""

    _group = "network"
    network: str = option(
        "mask_guided", choices=("mask_guided", "paper", "sdm", "control"),
        help="sdm is the network of the Semantic Diffusion Model, with --block_out_channels in multiples of 32; "
        "control is a ControlNet on --base_model, which selects it by itself",
    )  # fmt: skip
    mask_conditioning: str = option(
        "add", choices=("add", "concat", "spade"),
        help="added to the image in the stem, or concatenated with it; spade adds it and also modulates the norms of "
        "the decoder",
    )  # fmt: skip
    spade_channels: int = option(32, above=0, help="width of the modulation, with --mask_conditioning spade")
    patch_size: int = option(2, above=0, help="side of the stem's patches; 1 works on every pixel")
    stem_channels: int = option(16, above=0, help="width at full resolution, with --patch_size > 1")
    block_out_channels: tuple[int, ...] = option((32, 64, 128, 192), metavar="N", help="width of each level")
    attention_levels: int = option(2, at_least=0, help="how many of the lowest levels have attention")
    layers_per_block: int = option(1, above=0, help="residual blocks per level")
    attention_head_dim: int = option(32, above=0, help="channels of an attention head")
    norm_num_groups: int = option(16, above=0, help="groups of the group norms; divides every width")
    dropout: float = option(0.0, at_least=0, at_most=1, help="dropout inside the residual blocks")
    mask_pyramid: bool = option(False, help="give each lower level the share of each class in its cells")
    coordinate_channels: bool = option(False, help="give the network the position of each pixel in the frame")
    upscale_factor: int | None = option(
        None, choices=(2, 4), help="train an upscaler, which enlarges images by this factor, guided by masks of the "
        "large size; with --random_crop, on crops of photos that are prepared large",
    )  # fmt: skip
    max_noise_level: int = option(
        100, at_least=0, at_most=1000, help="upscalers: most noise on the images to enlarge, which the network knows: "
        "steps of a linear schedule of 1000",
    )  # fmt: skip
    residual_scale: float | None = option(
        4.0, above=0, help="upscalers: generate the difference to the enlarged image, times this, which brings it to "
        "the range of images; `none` generates the image itself",
    )  # fmt: skip
    text_encoder: str | None = option(
        None, metavar="MODEL", help="folder or Hub id of a text encoder of transformers (MiniLM, CLIP, T5): the "
        "network reads the captions of the data, and prompts",
    )  # fmt: skip
    text_encoder_by_reference: bool = option(
        False, help="save id and commit of the text encoder with the model instead of its weights, for one of the Hub "
        "whose licence or size forbids a copy",
    )  # fmt: skip
    vae: str | None = option(
        None, metavar="MODEL", help="folder or Hub id of an autoencoder of diffusers (KL, Tiny, VQ), or of a pipeline "
        "with one: the network generates its latents, and the pipeline decodes them; with --patch_size 1 by default",
    )  # fmt: skip
    init_from: str | None = option(
        None, metavar="MODEL",
        help="folder or Hub id of a model to start from: weights of the same name and shape; what it knows of classes "
        "is carried over to those of the data, by their names and kinds",
    )  # fmt: skip
    init_classes: str | None = option(
        None, metavar="FILE",
        help='classes of --init_from for those of the data whose names do not say it: {"structure": ["building", '
        '"fence"]}, JSON or YAML',
    )  # fmt: skip
    base_model: str | None = option(
        None, metavar="MODEL",
        help="pretrained UNet2DModel, or a pipeline of one, as a folder or a Hub id: it stays frozen, and a control "
        "branch beside it learns the masks; its noise schedule is used",
    )  # fmt: skip
    base_class_label: int | None = option(None, help="class label of a class-conditional base, for all images")
    hidden_dim: int = option(128, above=0, help="width of the paper's network (--network paper)")
    emb_dim: int = option(256, above=0, help="time embedding of the paper's network (--network paper)")


@dataclass(frozen=True, kw_only=True)
class DiffusionOptions(Settings):
    """The noise schedule, the loss, and what is hidden from the network."""

    _group = "diffusion"
    prediction_type: str = option(
        "v_prediction", choices=("epsilon", "v_prediction", "sample"), help="what the network predicts"
    )
    noise_schedule: str = option(
        "linear", choices=("linear", "squaredcos_cap_v2", "paper", "base"),
        help="Ho et al. 2020, the cosine of Nichol and Dhariwal 2021, the ramp of the paper's code, or that of "
        "--base_model",
    )  # fmt: skip
    rescale_betas_zero_snr: bool = option(
        False, help="end the schedule in pure noise (Lin et al. 2024), where sampling then starts too"
    )
    num_train_timesteps: int = option(1000, above=0, help="diffusion steps of the training schedule")
    min_timestep: int = option(0, help="smallest timestep sampled; the paper never trains 0")
    snr_gamma: float | None = option(
        5.0, above=0, help="gamma of Min-SNR weighting (Hang et al. 2023); none for plain mean squared error"
    )
    class_loss_weighting: bool = option(
        False, help="give more weight to the pixels of classes that fill little of an image"
    )
    class_loss_weight_max: float = option(
        4.0, at_least=1, help="largest of these weights, before their mean is normalised to 1; the smallest is 0.5"
    )
    class_loss_min_snr: float = option(
        0.01, above=0, help="samples with a lower signal-to-noise ratio are not weighted by class"
    )
    perceptual_weight: float = option(
        0.0, at_least=0,
        help="weight of a perceptual loss on the predicted image where there is little noise, beside the main loss at "
        "its own size; 0 for none (default: 0)",
    )  # fmt: skip
    perceptual_backbone: str = option(
        "efficientnet-lite0", help="frozen network of the perceptual loss, as `ImageBackbone` names it"
    )
    mask_dropout: float = option(0.1, at_least=0, at_most=1, help="share of masks dropped, for guidance")
    mask_dropout_unit: str = option("sample", choices=("sample", "batch"), help="what is dropped together")
    mask_ablation: float = option(
        0.0, at_least=0, at_most=1,
        help="share of masks of which only random classes or objects stay known, so that partial masks work",
    )  # fmt: skip
    label_diffusion: bool = option(
        False, help="masks fade as the noise grows, frequent classes first: for labels with errors"
    )
    attribute_dropout: float = option(
        0.1, at_least=0, at_most=1, help="share of the values of each attribute dropped, for guidance"
    )


@dataclass(frozen=True, kw_only=True)
class OptimizationOptions(Settings):
    """Length of the run, optimizer, precision and weight averages."""

    _group = "optimization"
    train_batch_size: int = option(16, above=0, help="images per process and forward pass")
    gradient_accumulation_steps: int = option(1, above=0, help="forward passes per optimizer step")
    max_train_steps: int | None = option(None, above=0, help="optimizer steps; overrides --num_train_epochs")
    num_train_epochs: int = option(300, above=0, help="passes over the data")
    learning_rate: float = option(5e-4, above=0, help="peak learning rate of AdamW")
    lr_scheduler: str = option(
        "cosine", choices=("constant", "constant_with_warmup", "linear", "cosine", "polynomial"),
        help="learning rate schedule",
    )  # fmt: skip
    lr_warmup_steps: int = option(200, at_least=0, help="optimizer steps of warm-up")
    adam_beta1: float = option(0.9, help="of AdamW")
    adam_beta2: float = option(0.99, help="of AdamW")
    adam_weight_decay: float = option(0.01, help="of AdamW")
    adam_epsilon: float = option(1e-8, help="of AdamW")
    max_grad_norm: float | None = option(1.0, above=0, help="gradient clipping; none for no clipping")
    mixed_precision: str | None = option(
        None, choices=("no", "fp16", "bf16"), help="default: what `accelerate config` or `accelerate launch` sets"
    )
    gradient_checkpointing: bool = option(False, help="less memory for more time")
    torch_compile: str | None = option(
        None, choices=("no", "inductor", "cudagraphs", "aot_eager", "eager"), metavar="BACKEND",
        help="backend that compiles the network; default: what `accelerate config` or `accelerate launch` sets",
    )  # fmt: skip
    channels_last: bool = option(False, help="memory format that convolution kernels read fastest")
    fused_optimizer: bool = option(False, help="AdamW in one kernel for all weights")
    allow_tf32: bool = option(False, help="float32 matrix products with 10 bits of mantissa, NVIDIA Ampere or newer")
    use_ema: bool = option(True, help="save an average of the weights, the last ones beside it")
    ema_decay: float = option(0.9995, at_least=0, at_most=1, help="largest decay of the average")
    ema_decays: tuple[float, ...] = option(
        (), at_least=0, at_most=1, metavar="DECAY", help="several averages, the first for the pipeline; overrides "
        "--ema_decay",
    )  # fmt: skip
    ema_warmup: bool = option(True, help="let the decay grow with the steps, power 3/4")
    ema_start_step: int = option(0, at_least=0, help="the average copies the weights until this step")


@dataclass(frozen=True, kw_only=True)
class RunOptions(Settings):
    """Checkpoints, log, previews, trackers and the Hub."""

    _group = "run"
    seed: int = option(0, help="seed of data order, noise, timesteps, dropout and initial weights")
    device: str | None = option(None, choices=("cpu",), help="cpu; default: what accelerate finds")
    checkpointing_steps: int = option(1000, above=0, help="steps between checkpoints")
    checkpoints_total_limit: int | None = option(2, above=0, help="how many are kept; none keeps all")
    resume_from_checkpoint: str | None = option(None, help="`latest`, or a checkpoint folder")
    logging_steps: int = option(20, above=0, help="steps between lines of log.jsonl and the trackers")
    preview_steps: int = option(1000, at_least=0, help="steps between previews; 0 makes none")
    preview_masks: int = option(4, above=0, help="rows of a preview")
    push_to_hub: bool = option(
        False, help="upload pipeline and card at the end; log in with `hf auth login` or HF_TOKEN"
    )
    hub_model_id: str | None = option(None, help="user/name (default: the run folder's name)")
    hub_private_repo: bool = option(False, help="create a private repository")
    report_to: str = option(
        "none", help="trackers of accelerate, separated by commas: tensorboard, wandb, ...; or all, none"
    )


@dataclass(frozen=True, kw_only=True)
class PreviewOptions(Settings):
    """How previews are sampled."""

    _group = "previews"
    preview_samples: int = option(2, above=0, help="samples per row")
    preview_inference_steps: int = option(20, above=0, help="sampling steps of a preview")
    preview_guidance_scale: float = option(2.0, help="guidance scale of a preview")


@dataclass(frozen=True, kw_only=True)
class LoopSettings(RunOptions, OptimizationOptions, PairOptions):
    """What the training loop reads, whatever is trained."""

    def __post_init__(self):
        """Refuse values that no run could use, before anything is read."""
        super().__post_init__()
        if len({round(decay, 10) for decay in self.ema_decays}) < len(self.ema_decays):
            raise ValueError(f"--ema_decays must differ; got {' '.join(map(str, self.ema_decays))}.")
        if self.ema_decays and not self.use_ema:
            raise ValueError("--ema_decays needs --use_ema true.")
        if self.random_crop is not None:
            try:
                size = self.random_crop_size
            except ValueError as err:
                raise ValueError(f"--random_crop: {err}") from err
            if size is None:
                raise ValueError("--random_crop native is not a size; expected a number (128) or HxW (96x160).")
        if not self.push_to_hub and (given := self.given(("hub_model_id", "hub_private_repo"))):
            raise ValueError(f"{given[0]} needs --push_to_hub.")

    @classmethod
    def implied(cls, given: Mapping[str, Any]) -> dict[str, Any]:
        """Return no number of steps where passes over the data are given, for settings that have one by default."""
        return {"max_train_steps": None} if "num_train_epochs" in given else {}

    @property
    def random_crop_size(self) -> tuple[int, int] | None:
        """Height and width of `random_crop`."""
        return None if self.random_crop is None else parse_resolution(self.random_crop)

    @property
    def ema_lengths(self) -> tuple[float, ...]:
        """Largest decay of each weight average, that of the saved pipeline first; () without any."""
        return (self.ema_decays or (self.ema_decay,)) if self.use_ema else ()

    @classmethod
    def defaults(cls) -> dict[str, Any]:
        """Return the default of each setting, as JSON values; None for those that have none."""
        required: dict[str, Any] = {field.name: "" for field in fields(cls) if field.default is MISSING}
        return {**cls(**required).to_dict(), **dict.fromkeys(required)}


@dataclass(frozen=True, kw_only=True)
class TrainingSettings(PreviewOptions, LoopSettings, DiffusionOptions, NetworkOptions, CaptionOptions, DataOptions):
    """Train a mask-guided diffusion model on image-mask pairs.

    `accelerate launch train_accelerate.py` and `semseg-diffusers train` take the same options. Steps are optimizer
    steps.
    """

    PRESETS: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "default": {},
        **{path.stem: read_yaml(path) for path in sorted(Path(__file__).with_name("presets").glob("*.yaml"))},
    }

    def __post_init__(self):
        """Refuse values that no run could use, before anything is read."""
        super().__post_init__()
        if self.rescale_betas_zero_snr and self.prediction_type == "epsilon":
            raise ValueError(
                "--rescale_betas_zero_snr cannot be used with --prediction_type epsilon: in pure noise, knowing the "
                "noise does not determine the image. Use v_prediction or sample."
            )
        if not 0 <= self.min_timestep < self.num_train_timesteps:
            raise ValueError(
                f"--min_timestep must be in 0..{self.num_train_timesteps - 1}, below --num_train_timesteps; "
                f"got {self.min_timestep}."
            )
        if self.augment_probability is not None and not (self.augment_scale or self.augment_translate):
            raise ValueError(
                "--augment_probability needs --augment_scale or --augment_translate, and neither is given."
            )
        for names, needed, is_on in (
            (("class_loss_weight_max", "class_loss_min_snr"), "--class_loss_weighting", self.class_loss_weighting),
            (("perceptual_backbone",), "a --perceptual_weight of more than 0", self.perceptual_weight > 0),
        ):  # fmt: skip
            if not is_on and (given := self.given(names)):
                raise ValueError(f"{given[0]} needs {needed}.")
        for names, reason in UNSUPPORTED_OPTIONS[self.network]:
            if given := self.given(names):
                raise ValueError(f"{given[0]} is not for --network {self.network}, {reason}")
        if self.network == "control" and self.base_model is None:
            raise ValueError("--network control needs a pretrained network: give --base_model.")
        if self.noise_schedule == "base" and self.base_model is None:
            raise ValueError("--noise_schedule base needs --base_model.")
        if self.init_classes is not None and self.init_from is None:
            raise ValueError("--init_classes maps the classes of another model; give that: --init_from.")
        if self.network == "mask_guided" and self.mask_pyramid and len(self.block_out_channels) < 2:
            raise ValueError("--mask_pyramid needs two or more levels (--block_out_channels).")
        self._check_upscaler()
        if self.text_encoder is None and (given := self.given((*CAPTION_OPTIONS, "text_encoder_by_reference"))):
            raise ValueError(f"{given[0]} is for networks that read texts: give --text_encoder, or leave it out.")
        if self.vae is not None and self.perceptual_weight:
            raise ValueError("--perceptual_weight compares images, and with --vae the loss is on latents: omit one.")
        if self.mask_conditioning != "spade" and self.given(["spade_channels"]):
            raise ValueError(
                f"--spade_channels needs --mask_conditioning spade; got {self.mask_conditioning}. Leave it out, or "
                "give --mask_conditioning spade."
            )
        if self.network != "paper" and self.attention_levels > len(self.block_out_channels):
            raise ValueError(
                f"--attention_levels {self.attention_levels} is more than the {len(self.block_out_channels)} levels "
                "of --block_out_channels."
            )

    def _check_upscaler(self) -> None:
        of_upscalers = ("max_noise_level", "residual_scale", "low_res_from", "low_res_share", "low_res_blur")
        if self.upscale_factor is None:
            if given := self.given(of_upscalers):
                raise ValueError(f"{given[0]} is for upscalers: give --upscale_factor, or leave it out.")
            return
        if given := self.given(["augment_scale", "augment_translate", "coordinate_channels"]):
            raise ValueError(f"{given[0]} is not for upscalers, which see crops at their own scale. Leave it out.")
        if self.text_encoder is not None:
            raise ValueError("--text_encoder is not for upscalers, which keep the colours of what they enlarge.")
        if self.vae is not None:
            raise ValueError("--vae is not for upscalers, which generate pixels. Leave one of both out.")
        if self.random_crop_size is not None and any(side % self.upscale_factor for side in self.random_crop_size):
            raise ValueError(
                f"--random_crop {self.random_crop} is not a multiple of --upscale_factor {self.upscale_factor}."
            )
        self.check_low_res_share()

    @classmethod
    def implied(cls, given: Mapping[str, Any]) -> dict[str, Any]:
        """Return what a given `base_model` implies, network and noise schedule, an `upscale_factor`, and a `vae`."""
        if str(given.get("upscale_factor", "none")).lower() != "none":
            # Attention over a crop says nothing of that over a whole frame. In the noisiest samples the image to
            # enlarge shows what to predict, and Min-SNR would hardly train them. It needs no guidance.
            return {"attention_levels": 0, "snr_gamma": None, "preview_guidance_scale": 1.0}
        if str(given.get("vae", "none")).lower() != "none":
            return {"patch_size": 1}  # latents are patches already
        source = given.get("base_model")
        if source is None or str(source).lower() == "none":
            return {}
        from semseg_diffusers.training.source_configs import control_defaults

        return control_defaults(str(source))


@dataclass(frozen=True, kw_only=True)
class ReportSettings(Settings):
    """Write the report of a training run: run.html in its folder, whether the run is in progress, ended or killed."""

    run: str = option(positional=True, metavar="RUN", help="folder of a run: the --output_dir of `train`")
    output: str | None = option(None, metavar="FILE", help="the HTML file (default: run.html in the folder)")
