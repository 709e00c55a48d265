"""The model card of a finished run: `model_card.md` filled from settings and numbers that the run itself has."""

import os
from pathlib import Path

import accelerate
import diffusers
import torch
from huggingface_hub import ModelCard, ModelCardData

from semseg_diffusers.data.labels import LabelSet
from semseg_diffusers.data.layout import package_version
from semseg_diffusers.training.settings import TrainingSettings


TEMPLATE = Path(__file__).parents[1] / "model_card.md"

# What a card must say of data whose licence is known; the name of a prepared set's source format is the key.
DATA_LICENSES = {
    "camvid": ("cc-by-nc-4.0", "CamVid (SegNet form), CC BY-NC 4.0: research use; the same holds for these weights."),
    "bdd100k": ("other", "BDD100K: educational, research and not-for-profit use; the same holds for these weights."),
    "toy": ("apache-2.0", "Drawn toy scenes: no licence of others."),
}


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
        source_format: what the data was prepared from (`camvid`, `toy`, ...), where known: it decides the licence.
        num_pairs: training pairs.
        step: optimizer steps done.
        samples_per_step: images an optimizer step.
        trained_seconds: time the training took.
        loss: mean of the last interval.

    Returns:
        the card's path.
    """
    labels = LabelSet.from_config(unet.config)
    size = unet.config.sample_size
    height, width = (size, size) if isinstance(size, int) else size
    license_name, data_license = DATA_LICENSES.get(
        source_format, (None, "Its licence is not known to this package: fill it in before you publish.")
    )
    card_data = ModelCardData(
        library_name="diffusers",
        pipeline_tag="image-to-image",
        license=license_name,
        tags=["diffusers", "semantic-segmentation", "mask-to-image", "synthetic-data", "semseg-diffusers"],
    )
    card = ModelCard.from_template(
        card_data,
        template_path=str(TEMPLATE),
        title=folder.resolve().name,
        source=folder.name,
        version=package_version(),
        classes=[
            {"id": index, "name": name, "color": ", ".join(map(str, color))}
            for index, (name, color) in enumerate(zip(labels.names, labels.colors, strict=True))
        ],
        ignore_index=labels.ignore_index,
        ignore_color=", ".join(map(str, labels.ignore_color)),
        num_pairs=num_pairs,
        dataset=Path(settings.dataset).name,
        split=settings.train_split,
        height=height,
        width=width,
        data_license=data_license,
        network=type(unet).__name__,
        parameters=f"{sum(weight.numel() for weight in unet.parameters()):,}",
        prediction_type=settings.prediction_type,
        noise_schedule=settings.noise_schedule,
        num_train_timesteps=settings.num_train_timesteps,
        weighting="" if settings.snr_gamma is None else f", Min-SNR weights, gamma {settings.snr_gamma:g}",
        step=step,
        samples_per_step=samples_per_step,
        epochs=f"{step * samples_per_step / num_pairs:.1f}",
        learning_rate=settings.learning_rate,
        lr_scheduler=settings.lr_scheduler,
        weights=f"exponential average, decay up to {settings.ema_decay}" if settings.use_ema else "the last step's",
        seed=settings.seed,
        hours=f"{trained_seconds / 3600:.2f}",
        loss=f"{loss:.4f}",
        versions=f"torch {torch.__version__}, diffusers {diffusers.__version__}, accelerate {accelerate.__version__}",
        results="None measured by the training run. `semseg-diffusers agreement` compares samples with their masks.",
    )
    staging = folder / ".README.md.writing"
    card.save(staging)
    os.replace(staging, folder / "README.md")
    return folder / "README.md"
