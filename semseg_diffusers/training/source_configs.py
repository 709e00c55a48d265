"""Configs of other models, read before their weights: what `--base_model` and `--vae` imply of a run."""

from pathlib import Path
from typing import Any

from huggingface_hub import hf_hub_download
from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

from semseg_diffusers.utils.files import parse_json, read_text
from semseg_diffusers.utils.hub_errors import check_name, hub_errors


CONFIG_FILE, SCHEDULER_FILE = "config.json", "scheduler_config.json"
PREDICTION_TYPES = ("epsilon", "v_prediction", "sample")


def find_file(source: str, name: str, option: str) -> Path | None:
    """Return the path of a file in a local folder, or downloaded from the Hub; None without. Errors name `option`."""
    check_name(source)
    if Path(source).is_dir():
        path = Path(source) / name
        return path if path.is_file() else None
    folder, _, file = name.rpartition("/")
    with hub_errors(f"{option}: loading the model '{source}'", source):
        try:
            return Path(hf_hub_download(source, file, subfolder=folder or None))
        except LocalEntryNotFoundError:
            raise  # the Hub cannot be reached
        except EntryNotFoundError:
            return None


def read_config(source: str, option: str, *names: str) -> tuple[dict[str, Any], str] | None:
    """Return the first existing of some JSON files, and its name."""
    for name in names:
        path = find_file(source, name, option)
        if path is not None:
            try:
                return parse_json(read_text(path)), name
            except ValueError as err:
                raise ValueError(f"{option} {source}: {path} is not JSON: {err}. Is it complete?") from err
    return None


def control_defaults(source: str) -> dict[str, Any]:
    """Return the defaults of a run on a base, whose noise schedule is used, if it has one."""
    found = {"network": "control", "mask_dropout": 0.0}  # without a mask only the frozen base contributes
    config = scheduler_config(source)
    if config is not None:
        found |= {
            "prediction_type": config.get("prediction_type", "epsilon"),
            "num_train_timesteps": config.get("num_train_timesteps", 1000),
            "rescale_betas_zero_snr": config.get("rescale_betas_zero_snr", False),
            "noise_schedule": "base",
        }
    return found


def scheduler_config(source: str) -> dict[str, Any] | None:
    """Return the config of the noise schedule beside a base, which must have betas; None without."""
    found = read_config(source, "--base_model", f"scheduler/{SCHEDULER_FILE}", SCHEDULER_FILE)
    if found is None:
        return None
    config, name = found
    if "beta_schedule" not in config and config.get("trained_betas") is None:
        raise ValueError(
            f"--base_model {source}: its {name} is of a {config.get('_class_name')}, which has its own noise "
            "levels; expected a scheduler with betas, such as DDPMScheduler."
        )
    if config.get("prediction_type", "epsilon") not in PREDICTION_TYPES:
        raise ValueError(
            f"--base_model {source}: it predicts {config['prediction_type']} ({name}); expected one of "
            f"{', '.join(PREDICTION_TYPES)}."
        )
    return config
