"""The command line of training: an option for each setting, whole recipes (`--preset`), YAML files (`--config`).

`PRESETS["paper"]` is the recipe of Bozsó et al., WINS 2024, as its published code runs it.
"""

import argparse
import dataclasses
import types
import typing
from pathlib import Path

import yaml

from semseg_diffusers.training.settings import TrainingSettings


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
