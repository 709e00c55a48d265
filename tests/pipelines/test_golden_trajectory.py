"""The paper's sampler through our pipeline: network, schedule and guidance reproduce the authors' own 20-step run."""

import diffusers.schedulers.scheduling_ddpm as scheduling_ddpm
import pytest
import torch
from diffusers import DDPMScheduler
from helpers.golden_weights import golden_config, golden_shapes, golden_values, golden_weights

from semseg_diffusers import MaskGuidedDDPMPipeline, PaperUNet2DModel


TOLERANCE = 1e-3  # stated in tests/golden/README.md


@pytest.fixture(scope="module")
def values() -> dict[str, torch.Tensor]:
    return golden_values("paper_unet_tiny")


def run(values, monkeypatch, variance_type: str) -> torch.Tensor:
    config = golden_config("paper_unet_tiny")
    unet = PaperUNet2DModel(
        sample_size=32, num_classes=config["num_classes"], hidden_dim=config["hidden_dim"], emb_dim=config["emb_dim"]
    )
    unet.load_state_dict(golden_weights(golden_shapes("paper_unet_tiny")))
    scheduler = DDPMScheduler(
        num_train_timesteps=20,
        trained_betas=values["betas_20"].tolist(),
        variance_type=variance_type,
        clip_sample=False,
    )
    pipe = MaskGuidedDDPMPipeline(unet=unet.eval(), scheduler=scheduler)
    pipe.set_progress_bar_config(disable=True)

    noises = iter(values["trajectory_noises"])
    monkeypatch.setattr(scheduling_ddpm, "randn_tensor", lambda shape, **_: next(noises).reshape(shape))
    return pipe(
        values["label_map"][: len(values["trajectory_init"])],
        num_inference_steps=20,
        guidance_scale=3.0,
        latents=values["trajectory_init"],
        output_type="latent",
    ).images


def test_pipeline_reproduces_the_authors_trajectory(values, monkeypatch):
    final = run(values, monkeypatch, "fixed_large")
    assert (final - values["trajectory_final"]).abs().max() < TOLERANCE


def test_trajectory_tells_the_variance_types_apart(values, monkeypatch):
    final = run(values, monkeypatch, "fixed_small")
    assert (final - values["trajectory_final"]).abs().max() > 0.05
