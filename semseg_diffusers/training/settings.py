"""All settings of a training run, as one dataclass, which `options.py` fills from command line, YAML file and preset.

They carry the names of diffusers' example scripts; the defaults are ours.
"""

import argparse
import dataclasses
import json
import math
import types
import typing
from dataclasses import dataclass, field
from pathlib import Path

import yaml

from semseg_diffusers.data.dataset_format import parse_resolution


# What belongs to the layers and conditions of other networks, and is refused by name: options, and what to do.
_CONDITIONS = (
    ("attributes", "mask_pyramid", "coordinate_channels", "label_diffusion", "augment_probability"),
    "which stays as it was published. Leave it out, or use --network mask_guided.",
)
_LAYERS = (
    (
        "mask_conditioning", "spade_channels", "patch_size", "stem_channels", "norm_num_groups", "hidden_dim",
        "emb_dim",
    ),
    "whose layers have no such setting. Leave it out.",
)  # fmt: skip
_MODULATION = (("mask_conditioning", "spade_channels"), "which reads masks as it was published. Leave it out.")
_OF_THE_BASE = (
    ("block_out_channels", "attention_levels", "layers_per_block", "attention_head_dim", "dropout"),
    "whose layers are those of --base_model. Leave it out.",
)
_BASE = (("base_model", "base_class_label"), "which has no base. Leave it out, or use --network control.")
OTHER_NETWORKS = {
    "mask_guided": (_BASE,),
    "paper": (_BASE, _CONDITIONS, _MODULATION),
    "sdm": (_BASE, _CONDITIONS, _LAYERS),
    "control": (_CONDITIONS, _LAYERS, _OF_THE_BASE),
}


@dataclass(frozen=True)
class TrainingSettings:
    """What a run is made of; saved as `settings.json` in the run folder. Steps are optimizer steps."""

    # Data
    dataset: str = field(default="", metadata={"help": "prepared folder, or a data set id on the Hub"})
    output_dir: str = field(default="", metadata={"help": "run folder: the pipeline at its root, checkpoint-<step>/"})
    train_split: str = field(default="train", metadata={"help": "split to train on"})
    validation_split: str = field(default="val", metadata={"help": "split whose masks the previews draw, where there"})
    image_column: str = field(default="image", metadata={"help": "column of the photos"})
    mask_column: str = field(default="mask", metadata={"help": "column of the masks"})
    labels: str | None = field(
        default=None, metadata={"help": "label set, a preset or a JSON file, where the data set carries none"}
    )
    horizontal_flip: bool = field(default=True, metadata={"help": "mirror half of the pairs, photo and mask alike"})
    class_balanced_sampling: bool = field(
        default=False,
        metadata={"help": "draw a class, the rare ones more often, then a pair that shows it; else each pair in turn"},
    )
    class_balance_temperature: float = field(
        default=0.01,
        metadata={"help": "T of the class probabilities exp((1 - frequency) / T); lower prefers the rarest more"},
    )
    class_balance_min_share: float = field(
        default=0.001,
        metadata={"help": "share of the frame that a class fills in the pairs that are drawn for it, where any does"},
    )
    random_crop: str | None = field(
        default=None,
        metadata={"help": "HxW, or a number: train on random parts of this size of data prepared larger"},
    )
    augment_scale: float = field(
        default=0.0,
        metadata={"help": "enlarge or reduce pairs by up to this factor more than 1; 0.25 is 0.8 to 1.25"},
    )
    augment_translate: float = field(
        default=0.0, metadata={"help": "shift pairs by up to this share of the frame, 0 to 1"}
    )
    augment_probability: float | None = field(
        default=None,
        metadata={
            "help": "of scaling and of shifting, told to the network so that it draws neither; none: all, untold"
        },
    )
    attributes: tuple[str, ...] = field(
        default=(), metadata={"help": "columns of text that the network learns beside the mask, such as weather"}
    )
    decoded_gigabytes: float = field(
        default=2.0,
        metadata={"help": "memory for pairs once decoded, shared by the reading processes; 0 decodes each time anew"},
    )
    dataloader_num_workers: int = field(default=1, metadata={"help": "reading processes beside each training process"})

    # Network
    network: str = field(
        default="mask_guided",
        metadata={
            "choices": ("mask_guided", "paper", "sdm", "control"),
            "help": "sdm is the Semantic Diffusion Model's, of --block_out_channels in multiples of 32; control is a "
            "ControlNet on --base_model, which names it by itself",
        },
    )
    mask_conditioning: str = field(
        default="add",
        metadata={
            "choices": ("add", "concat", "spade"),
            "help": "in the stem, added or beside the photo; spade adds it and modulates the norms of the way up, too",
        },
    )
    spade_channels: int = field(
        default=32, metadata={"help": "width of what modulates the norms, where mask_conditioning is spade"}
    )
    patch_size: int = field(default=2, metadata={"help": "side of the stem's patches; 1 works on every pixel"})
    stem_channels: int = field(default=16, metadata={"help": "width at full resolution, where patch_size > 1"})
    block_out_channels: tuple[int, ...] = field(default=(32, 64, 128, 192), metadata={"help": "width of each level"})
    attention_levels: int = field(default=2, metadata={"help": "how many of the lowest levels have attention"})
    layers_per_block: int = field(default=1, metadata={"help": "residual blocks a level"})
    attention_head_dim: int = field(default=32, metadata={"help": "channels of an attention head"})
    norm_num_groups: int = field(default=16, metadata={"help": "groups of the group norms; divides every width"})
    dropout: float = field(default=0.0, metadata={"help": "dropout inside the residual blocks, 0 to 1"})
    mask_pyramid: bool = field(
        default=False, metadata={"help": "give each lower level the share of each class in its cells"}
    )
    coordinate_channels: bool = field(
        default=False, metadata={"help": "tell the network where in the frame a pixel lies"}
    )
    init_from: str | None = field(
        default=None,
        metadata={"help": "model, a folder or a Hub id, whose weights of the same name and shape the run starts from"},
    )
    base_model: str | None = field(
        default=None,
        metadata={
            "help": "pretrained UNet2DModel, or a pipeline of one, a folder or a Hub id: it stays as it is, and a "
            "control branch beside it learns the masks; its noise schedule is the run's"
        },
    )
    base_class_label: int | None = field(
        default=None, metadata={"help": "what a class-conditional base is told, always"}
    )
    hidden_dim: int = field(default=128, metadata={"help": "width of the paper's network (network: paper)"})
    emb_dim: int = field(default=256, metadata={"help": "time embedding of the paper's network (network: paper)"})

    # Diffusion
    prediction_type: str = field(default="v_prediction", metadata={"choices": ("epsilon", "v_prediction", "sample")})
    noise_schedule: str = field(
        default="linear",
        metadata={
            "choices": ("linear", "squaredcos_cap_v2", "paper", "base"),
            "help": "Ho et al. 2020, the cosine of Nichol and Dhariwal 2021, the ramp of the paper's code, or that of "
            "--base_model",
        },
    )
    rescale_betas_zero_snr: bool = field(
        default=False,
        metadata={"help": "end the schedule in noise alone (Lin et al. 2024), where sampling then starts too"},
    )
    num_train_timesteps: int = field(default=1000, metadata={"help": "diffusion steps of the training schedule"})
    min_timestep: int = field(default=0, metadata={"help": "smallest timestep drawn; the paper never trains 0"})
    snr_gamma: float | None = field(
        default=5.0,
        metadata={"help": "gamma of Min-SNR weighting (Hang et al. 2023); none for plain mean squared error"},
    )
    class_loss_weighting: bool = field(
        default=False, metadata={"help": "let the pixels of classes that fill little of a photo count more"}
    )
    class_loss_weight_max: float = field(
        default=4.0, metadata={"help": "largest of these weights, before their mean is made 1; the smallest is 0.5"}
    )
    class_loss_min_snr: float = field(
        default=0.01, metadata={"help": "noisier samples, by signal-to-noise ratio, are not weighted by class"}
    )
    mask_dropout: float = field(default=0.1, metadata={"help": "share of masks dropped, so that guidance works"})
    mask_dropout_unit: str = field(
        default="sample", metadata={"choices": ("sample", "batch"), "help": "what is dropped together"}
    )
    mask_ablation: float = field(
        default=0.0, metadata={"help": "probability of each class of a mask to be unknown in it, for partial masks"}
    )
    label_diffusion: bool = field(
        default=False,
        metadata={"help": "masks fade as the noise grows, frequent classes first: for labels with errors"},
    )
    attribute_dropout: float = field(
        default=0.1, metadata={"help": "share of the values of each attribute dropped, so that guidance works"}
    )

    # Optimization
    train_batch_size: int = field(default=16, metadata={"help": "images a process and a forward pass"})
    gradient_accumulation_steps: int = field(default=1, metadata={"help": "forward passes an optimizer step"})
    max_train_steps: int | None = field(default=None, metadata={"help": "optimizer steps; wins over num_train_epochs"})
    num_train_epochs: int = field(default=300, metadata={"help": "passes over the data"})
    learning_rate: float = field(default=5e-4, metadata={"help": "peak learning rate of AdamW"})
    lr_scheduler: str = field(
        default="cosine",
        metadata={"choices": ("constant", "constant_with_warmup", "linear", "cosine", "polynomial")},
    )
    lr_warmup_steps: int = field(default=200, metadata={"help": "optimizer steps of warm-up"})
    adam_beta1: float = field(default=0.9, metadata={"help": "AdamW"})
    adam_beta2: float = field(default=0.99, metadata={"help": "AdamW"})
    adam_weight_decay: float = field(default=0.01, metadata={"help": "AdamW"})
    adam_epsilon: float = field(default=1e-8, metadata={"help": "AdamW"})
    max_grad_norm: float | None = field(default=1.0, metadata={"help": "gradient clipping; none for no clipping"})
    mixed_precision: str | None = field(
        default=None,
        metadata={"choices": ("no", "fp16", "bf16"), "help": "default: what `accelerate config` or launch says"},
    )
    gradient_checkpointing: bool = field(default=False, metadata={"help": "less memory for more time"})
    torch_compile: str | None = field(
        default=None,
        metadata={
            "choices": ("no", "inductor", "cudagraphs", "aot_eager", "eager"),
            "help": "backend that compiles the network; default: what `accelerate config` or launch says",
        },
    )
    channels_last: bool = field(
        default=False, metadata={"help": "lay weights and maps out as convolution kernels read them fastest"}
    )
    fused_optimizer: bool = field(default=False, metadata={"help": "AdamW in one kernel for all weights"})
    allow_tf32: bool = field(
        default=False, metadata={"help": "float32 matrix products with 10 bits of mantissa, NVIDIA Ampere or newer"}
    )
    use_ema: bool = field(default=True, metadata={"help": "save an average of the weights, the last ones beside it"})
    ema_decay: float = field(default=0.9995, metadata={"help": "largest decay of the average"})
    ema_decays: tuple[float, ...] = field(
        default=(), metadata={"help": "several averages, the first for the pipeline; wins over ema_decay"}
    )
    ema_warmup: bool = field(default=True, metadata={"help": "let the decay grow with the steps, power 3/4"})
    ema_start_step: int = field(default=0, metadata={"help": "the average copies the weights until this step"})

    # Run
    seed: int = field(default=0, metadata={"help": "of data order, noise, timesteps, dropout, first weights"})
    device: str | None = field(
        default=None, metadata={"choices": ("cpu",), "help": "cpu, or nothing: what accelerate finds"}
    )
    checkpointing_steps: int = field(default=1000, metadata={"help": "steps between checkpoints"})
    checkpoints_total_limit: int | None = field(default=2, metadata={"help": "how many are kept; none keeps all"})
    resume_from_checkpoint: str | None = field(default=None, metadata={"help": "`latest`, or a checkpoint folder"})
    logging_steps: int = field(default=20, metadata={"help": "steps between lines of log.jsonl and the trackers"})
    preview_steps: int = field(default=1000, metadata={"help": "steps between preview pictures; 0 draws none"})
    preview_masks: int = field(default=4, metadata={"help": "rows of a preview"})
    preview_samples: int = field(default=2, metadata={"help": "samples a row"})
    preview_inference_steps: int = field(default=20, metadata={"help": "sampling steps of a preview"})
    preview_guidance_scale: float = field(default=2.0, metadata={"help": "guidance scale of a preview"})
    push_to_hub: bool = field(
        default=False,
        metadata={"help": "upload pipeline and card at the end; log in with `hf auth login` or HF_TOKEN"},
    )
    hub_model_id: str | None = field(default=None, metadata={"help": "user/name (default: the run folder's name)"})
    hub_private_repo: bool = field(default=False, metadata={"help": "make the repository private"})
    report_to: str = field(
        default="none",
        metadata={"help": "trackers of accelerate, commas between them: tensorboard, wandb, ...; all, none"},
    )

    def __post_init__(self):
        """Refuse values that no run could honour, before anything is read."""
        for name in ("dataset", "output_dir"):
            if not getattr(self, name):
                raise ValueError(f"--{name} is missing: the {self._help(name)}.")
        for setting in dataclasses.fields(self):
            value, choices = getattr(self, setting.name), setting.metadata.get("choices")
            if choices and value is not None and value not in choices:
                raise ValueError(f"--{setting.name} must be one of {', '.join(choices)}; got {value!r}.")
        positive = (
            "train_batch_size", "gradient_accumulation_steps", "num_train_epochs", "learning_rate", "logging_steps",
            "checkpointing_steps", "num_train_timesteps", "patch_size", "stem_channels", "layers_per_block",
            "preview_masks", "preview_samples", "preview_inference_steps", "max_train_steps", "max_grad_norm",
            "checkpoints_total_limit", "snr_gamma", "attention_head_dim", "norm_num_groups", "hidden_dim", "emb_dim",
            "class_balance_temperature", "class_loss_min_snr", "spade_channels",
        )  # fmt: skip
        for name in positive:
            value = getattr(self, name)
            if value is not None and not value > 0:  # NaN is refused too
                raise ValueError(f"--{name} must be more than 0; got {value}.")
        for name in (
            "mask_dropout", "dropout", "ema_decay", "class_balance_min_share", "mask_ablation", "attribute_dropout",
            "augment_translate", "augment_probability",
        ):  # fmt: skip
            value = getattr(self, name)
            if value is not None and not 0 <= value <= 1:
                raise ValueError(f"--{name} must lie between 0 and 1; got {value}.")
        for name in (
            "preview_steps", "lr_warmup_steps", "ema_start_step", "attention_levels", "dataloader_num_workers",
            "decoded_gigabytes", "augment_scale",
        ):  # fmt: skip
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"--{name} must be 0 or more, and finite; got {getattr(self, name)}.")
        for decay in self.ema_decays:
            if not 0 <= decay <= 1:
                raise ValueError(f"--ema_decays must lie between 0 and 1; got {decay}.")
        if len({round(decay, 10) for decay in self.ema_decays}) < len(self.ema_decays):
            raise ValueError(f"--ema_decays must differ; got {' '.join(map(str, self.ema_decays))}.")
        if self.ema_decays and not self.use_ema:
            raise ValueError("--ema_decays needs --use_ema true.")
        if not self.class_loss_weight_max >= 1:
            raise ValueError(f"--class_loss_weight_max must be 1 or more; got {self.class_loss_weight_max}.")
        if self.rescale_betas_zero_snr and self.prediction_type == "epsilon":
            raise ValueError(
                "--rescale_betas_zero_snr cannot go with --prediction_type epsilon: where an image is noise alone, to "
                "know the noise is not to know the image. Take v_prediction or sample."
            )
        if self.random_crop is not None:
            try:
                size = self.random_crop_size
            except ValueError as err:
                raise ValueError(f"--random_crop: {err}") from err
            if size is None:
                raise ValueError("--random_crop native is no size; wanted a number (128) or HxW (96x160).")
        if not 0 <= self.min_timestep < self.num_train_timesteps:
            raise ValueError(
                f"--min_timestep must lie in 0..{self.num_train_timesteps - 1}, below --num_train_timesteps; "
                f"got {self.min_timestep}."
            )
        if self.augment_probability is not None and not (self.augment_scale or self.augment_translate):
            raise ValueError(
                "--augment_probability is of scaling and shifting, and neither is asked for. Give --augment_scale or "
                "--augment_translate."
            )
        for names, reason in OTHER_NETWORKS[self.network]:
            for name in names:
                if getattr(self, name) != self.__dataclass_fields__[name].default:
                    raise ValueError(f"--{name} is not for --network {self.network}, {reason}")
        if self.network == "control" and self.base_model is None:
            raise ValueError("--network control trains beside a pretrained network: give it, --base_model.")
        if self.noise_schedule == "base" and self.base_model is None:
            raise ValueError("--noise_schedule base is that of --base_model, and none is given.")
        if self.network == "mask_guided" and self.mask_pyramid and len(self.block_out_channels) < 2:
            raise ValueError("--mask_pyramid fills the levels below the first: give two --block_out_channels or more.")
        default_width = self.__dataclass_fields__["spade_channels"].default
        if self.mask_conditioning != "spade" and self.spade_channels != default_width:
            raise ValueError(
                f"--spade_channels is read with --mask_conditioning spade only, and that is {self.mask_conditioning}. "
                "Give --mask_conditioning spade, or leave it out."
            )
        if self.network != "paper" and self.attention_levels > len(self.block_out_channels):
            raise ValueError(
                f"--attention_levels {self.attention_levels} is more than the {len(self.block_out_channels)} levels "
                "of --block_out_channels."
            )

    @property
    def random_crop_size(self) -> tuple[int, int] | None:
        """Height and width of `random_crop`."""
        return None if self.random_crop is None else parse_resolution(self.random_crop)

    @property
    def ema_lengths(self) -> tuple[float, ...]:
        """Largest decay of each average of the weights, that of the saved pipeline first; () without any."""
        return (self.ema_decays or (self.ema_decay,)) if self.use_ema else ()

    @classmethod
    def _help(cls, name: str) -> str:
        return cls.__dataclass_fields__[name].metadata["help"]

    def to_json(self) -> str:
        return json.dumps(dataclasses.asdict(self), indent=2) + "\n"


# The authors' published recipe (PAPER, section III-C, and its code): AdamW 3e-4, batch 50, float32, 1401 epochs, the
# mask dropped for a whole batch in 10 % of the steps, timesteps 1..999, EMA 0.995 from step 2000, nothing else.
PRESETS: dict[str, dict] = {
    "default": {},
    "paper": {
        "network": "paper",
        "hidden_dim": 128,
        "emb_dim": 256,
        "prediction_type": "epsilon",
        "noise_schedule": "paper",
        "num_train_timesteps": 1000,
        "min_timestep": 1,
        "snr_gamma": None,
        "mask_dropout": 0.1,
        "mask_dropout_unit": "batch",
        "horizontal_flip": False,
        "train_batch_size": 50,
        "gradient_accumulation_steps": 1,
        "num_train_epochs": 1401,
        "learning_rate": 3e-4,
        "lr_scheduler": "constant",
        "lr_warmup_steps": 0,
        "adam_beta1": 0.9,
        "adam_beta2": 0.999,
        "adam_weight_decay": 0.01,
        "adam_epsilon": 1e-8,
        "max_grad_norm": None,
        "mixed_precision": "no",
        "use_ema": True,
        "ema_decay": 0.995,
        "ema_warmup": False,
        "ema_start_step": 2000,
        "preview_guidance_scale": 3.0,
    },
}


def _convert(setting: dataclasses.Field, text: object) -> object:
    """Read one value, from the command line or YAML, as the type that its field declares."""
    options = typing.get_args(setting.type) if isinstance(setting.type, types.UnionType) else (setting.type,)
    if text is None or (isinstance(text, str) and text.lower() == "none" and type(None) in options):
        if type(None) not in options:
            raise ValueError("a value is needed")
        return None
    kind = next(option for option in options if option is not type(None))
    if kind is bool:
        known = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}
        if str(text).lower() not in known:
            raise ValueError("expected true or false")
        return known[str(text).lower()]
    if typing.get_origin(kind) is tuple:
        parts = text if isinstance(text, (list, tuple)) else str(text).replace(",", " ").split()
        return tuple(typing.get_args(kind)[0](part) for part in parts)
    if kind is int and isinstance(text, float) and not text.is_integer():
        raise ValueError("expected a whole number")
    return kind(text)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Give `parser` one option for every setting, and `--preset` and `--config`."""
    parser.add_argument("--preset", choices=sorted(PRESETS), help="a whole recipe; single options still win over it")
    parser.add_argument("--config", help="YAML file of options; the command line wins over it")
    defaults = {setting.name: setting.default for setting in dataclasses.fields(TrainingSettings)}
    for setting in dataclasses.fields(TrainingSettings):
        choices = setting.metadata.get("choices")
        text = setting.metadata.get("help", "").replace("%", "%%")
        options = {
            "default": argparse.SUPPRESS,
            "help": f"{text}{' ' if text else ''}{'(' + ' | '.join(choices) + ') ' if choices else ''}"
            f"[{defaults[setting.name]}]",
        }
        if setting.type is bool:
            options |= {"nargs": "?", "const": "true", "metavar": "true|false"}
        elif typing.get_origin(setting.type) is tuple:
            options |= {"nargs": "*" if setting.default == () else "+"}
            options |= {"metavar": "NAME" if typing.get_args(setting.type)[0] is str else "N"}
        else:
            options |= {"metavar": setting.name.rsplit("_", 1)[-1].upper()}
        parser.add_argument(f"--{setting.name}", **options)


def settings_from(arguments: argparse.Namespace) -> TrainingSettings:
    """Merge defaults, preset, what a base model decides, YAML file and command line, the later winning.

    Args:
        arguments: what a parser with `add_arguments` returned.

    Returns:
        the whole settings, checked.

    Raises:
        ValueError: an unknown option in the YAML file, a value that its option cannot take.
        FileNotFoundError: no such YAML file.
        HubError: the base model is on the Hub, which has none of that name or cannot be reached.
    """
    given = {name: value for name, value in vars(arguments).items() if name in TrainingSettings.__dataclass_fields__}
    from_file: dict = {}
    if arguments.config:
        path = Path(arguments.config)
        if not path.is_file():
            raise FileNotFoundError(f"--config {path}: no such file.")
        try:
            from_file = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
        except yaml.YAMLError as error:
            raise ValueError(f"--config {path} is not YAML: {error}") from error
        if not isinstance(from_file, dict):
            raise ValueError(f"--config {path} must hold `option: value` lines; got a {type(from_file).__name__}.")
    preset = arguments.preset or from_file.pop("preset", None) or "default"
    from_file.pop("preset", None)
    if preset not in PRESETS:
        raise ValueError(f"preset {preset!r} is not known; there are {', '.join(sorted(PRESETS))}.")
    unknown = sorted(set(from_file) - set(TrainingSettings.__dataclass_fields__))
    if unknown:
        raise ValueError(f"--config {arguments.config} holds unknown options: {', '.join(unknown)}. See --help.")
    merged = dict(PRESETS[preset])
    base_model = {**from_file, **given}.get("base_model")
    if base_model is not None and str(base_model).lower() != "none":
        from semseg_diffusers.training.base_model import control_defaults

        # where the preset says another thing, a refusal names it
        merged = {**control_defaults(str(base_model)), **merged}
    for source, values in ((f"--config {arguments.config}", from_file), ("command line", given)):
        for name, value in values.items():
            try:
                merged[name] = _convert(TrainingSettings.__dataclass_fields__[name], value)
            except (TypeError, ValueError) as error:
                raise ValueError(f"{source}: --{name} {value!r} cannot be read: {error}.") from error
    return TrainingSettings(**merged)
