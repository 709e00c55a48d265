"""Fill the model card of a finished run from its settings and numbers."""

from pathlib import Path

import accelerate
import diffusers
import torch

from semseg_diffusers.data.dataset_format import data_license
from semseg_diffusers.data.labels import LabelSet
from semseg_diffusers.hub.cards import BY_VARIANT, render_model_card, without_machine_paths
from semseg_diffusers.training.ema import RAW, variant_name
from semseg_diffusers.training.settings import TrainingSettings
from semseg_diffusers.utils.files import write_text


def save_model_card(
    folder: Path,
    *,
    settings: TrainingSettings,
    unet: torch.nn.Module,
    source_format: str | None,
    num_pairs: int,
    step: int,
    samples_per_step: int,
    trained_seconds: float,
    loss: float,
) -> Path:
    """Write `README.md`, the Hub's model card, into a folder that holds a pipeline.

    Args:
        folder: the run folder.
        settings: of the run.
        unet: the trained network; its config holds the label set.
        source_format: what the data was prepared from (`camvid`, `toy`, ...), if known: it determines the licence.
        num_pairs: training pairs.
        step: optimizer steps done.
        samples_per_step: images per optimizer step.
        trained_seconds: duration of the training.
        loss: mean of the last interval.

    Returns:
        the card's path.
    """
    size = unet.config.sample_size
    height, width = (size, size) if isinstance(size, int) else size
    license_name, license_text = data_license(source_format, "these weights")
    is_folder = Path(settings.dataset).is_dir()
    card = render_model_card(
        LabelSet.from_config(unet.config),
        title=folder.resolve().name,
        source=folder.name,
        license_name=license_name,
        network=type(unet).__name__ + _base(settings),
        parameters=sum(weight.numel() for weight in unet.parameters()),
        attributes=getattr(unet.config, "attributes", None),
        dataset_id=None if is_folder or settings.dataset.count("/") != 1 else settings.dataset,
        training={
            "num_pairs": num_pairs,
            "dataset": Path(settings.dataset).resolve().name if is_folder else without_machine_paths(settings.dataset),
            "split": settings.train_split,
            "height": height,
            "width": width,
            "data_license": license_text,
            "prediction_type": settings.prediction_type,
            "noise_schedule": "the base's schedule" if settings.noise_schedule == "base" else settings.noise_schedule,
            "num_train_timesteps": settings.num_train_timesteps,
            "zero_snr": ", rescaled to end in noise alone" if settings.rescale_betas_zero_snr else "",
            "weighting": _weighting(settings),
            "step": step,
            "samples_per_step": samples_per_step,
            "epochs": f"{step * samples_per_step / num_pairs:.1f}",
            "learning_rate": settings.learning_rate,
            "lr_scheduler": settings.lr_scheduler,
            "weights": _weights(settings),
            "seed": settings.seed,
            "hours": f"{trained_seconds / 3600:.2f}",
            "loss": f"{loss:.4f}",
            "versions": f"torch {torch.__version__}, diffusers {diffusers.__version__}, "
            f"accelerate {accelerate.__version__}",
        },
    )
    write_text(folder / "README.md", card)
    return folder / "README.md"


def _base(settings: TrainingSettings) -> str:
    """Return the description of the frozen base of a control branch, after the network's class."""
    if settings.base_model is None:
        return ""
    name = settings.base_model
    name = Path(name).resolve().name if Path(name).is_dir() else without_machine_paths(name)
    label = "" if settings.base_class_label is None else f", class {settings.base_class_label}"
    return f" on `{name}`{label}, which is frozen"


def _weighting(settings: TrainingSettings) -> str:
    """Return the description of loss weights, after "mean squared error"."""
    parts = [] if settings.snr_gamma is None else [f"Min-SNR weights, gamma {settings.snr_gamma:g}"]
    if settings.class_loss_weighting:
        parts.append(
            f"pixels weighted by class up to {settings.class_loss_weight_max:g} from SNR "
            f"{settings.class_loss_min_snr:g} on"
        )
    return "".join(f", {part}" for part in parts)


def _weights(settings: TrainingSettings) -> str:
    """Return which weights are in which file, and how further ones are loaded."""
    if not settings.use_ema:
        return "the last step's"
    first, *further = settings.ema_lengths
    others = [f"`{RAW}` (the last step's)"]
    others += [f"`{variant_name(decay)}` (decay up to {decay})" for decay in further]
    return f"exponential average, decay up to {first}{BY_VARIANT}{', '.join(others)}"
