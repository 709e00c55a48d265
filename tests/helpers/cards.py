"""Model cards as training writes them."""

from pathlib import Path

from semseg_diffusers.data.dataset_format import data_license
from semseg_diffusers.hub.cards import new_model_card
from semseg_diffusers.training.networks import variant_name
from semseg_diffusers.training.settings import TrainingSettings


def write_card(run: Path, settings: TrainingSettings, source_format: str) -> None:
    """Write the card of a run of four steps into its folder, which holds a pipeline."""
    license_name, license_text = data_license(source_format, "these weights")
    facts = {
        "settings": settings,
        "num_pairs": 6,
        "data_license": license_text,
        "step": 4,
        "samples_per_step": 2,
        "averages": [(variant_name(decay), decay) for decay in settings.ema_lengths],
        "trained_seconds": 7.0,
        "loss": 0.5,
    }
    (run / "README.md").write_text(new_model_card(run, run.name, license_name=license_name, run=facts))
