"""What an image costs by default, and that all that draws has the same defaults: those of docs/how_to/sampling.md."""

import inspect

import pytest
import torch
from helpers.tiny_pipelines import draw, pipeline, random_ids, tiny_unet
from torch.utils.flop_counter import FlopCounterMode

from semseg_diffusers import (
    LabelSet,
    MaskGuidedDDPMPipeline,
    MaskGuidedImg2ImgPipeline,
    MaskGuidedInpaintPipeline,
    PaperUNet2DModel,
)
from semseg_diffusers.generation.settings import GenerationSettings
from semseg_diffusers.pipelines.mask_guided_mixin import GUIDANCE_SCALE, NUM_INFERENCE_STEPS
from semseg_diffusers.training.networks import build_network
from semseg_diffusers.training.objective import build_noise_scheduler, build_sampler
from semseg_diffusers.training.settings import TrainingSettings


SIZE = 128
LABELS = LabelSet.from_preset("bdd100k")
MOST_GFLOP = 421  # an image of the default network, all steps
PAPER_STEPS = 1000  # of two forward passes each

# diffusers turns sigmas to numpy in ways that numpy 2 deprecates
pytestmark = pytest.mark.filterwarnings("ignore:__array_:DeprecationWarning")


@pytest.fixture(scope="module")
def default_pipeline() -> MaskGuidedDDPMPipeline:
    """The network that `train` builds by default, with random weights in every layer, and the sampler it saves."""
    settings = TrainingSettings(dataset="none", output_dir="none")
    unet = build_network(settings, LABELS, (SIZE, SIZE)).eval()
    for weight in unet.parameters():
        if not weight.any():  # layers that start from nothing
            torch.nn.init.normal_(weight, std=0.02, generator=torch.Generator().manual_seed(0))
    pipe = MaskGuidedDDPMPipeline(unet, build_sampler(build_noise_scheduler(settings)))
    pipe.set_progress_bar_config(disable=True)
    return pipe


def some_mask() -> torch.Tensor:
    return torch.randint(0, LABELS.num_classes, (1, SIZE, SIZE), generator=torch.Generator().manual_seed(0))


def test_an_image_at_the_default_settings_takes_a_thousandth_of_the_papers_sampler_at_the_most(default_pipeline):
    with FlopCounterMode(display=False) as ours:
        default_pipeline(some_mask())
    with torch.device("meta"):
        unet = PaperUNet2DModel(num_classes=LABELS.num_classes)
        sample, mask = torch.empty(1, 3, SIZE, SIZE), torch.empty(1, LABELS.num_classes, SIZE, SIZE)
        with torch.no_grad(), FlopCounterMode(display=False) as papers:
            unet(sample, torch.empty(1), mask=mask)
            unet(sample, torch.empty(1))
    assert ours.get_total_flops() <= MOST_GFLOP * 1e9
    assert papers.get_total_flops() * PAPER_STEPS >= 1000 * ours.get_total_flops()


def test_features_of_the_default_network_encoded_once_give_the_images_of_masks_given_at_each_step(default_pipeline):
    def latent() -> torch.Tensor:
        generator = torch.Generator().manual_seed(0)
        return default_pipeline(some_mask(), num_inference_steps=3, generator=generator, output_type="latent").images

    cached = latent()
    default_pipeline.unet._hf_hook = None  # as where hooks move the weights: `forward` is given the masks
    try:
        uncached = latent()
    finally:
        del default_pipeline.unet._hf_hook
    assert (cached - uncached).abs().max() < 1e-5


@pytest.mark.parametrize("kind", [MaskGuidedDDPMPipeline, MaskGuidedImg2ImgPipeline, MaskGuidedInpaintPipeline])
def test_pipelines_and_commands_share_their_defaults(kind):
    arguments, settings = inspect.signature(kind.__call__).parameters, GenerationSettings()
    for name in ("guidance_start", "guidance_stop"):
        assert arguments[name].default == getattr(settings, name)
    for name in ("num_inference_steps", "guidance_scale"):  # what the checkpoint recommends
        assert arguments[name].default is getattr(settings, name) is None


def test_previews_of_a_training_are_sampled_as_images_are_by_default():
    training = TrainingSettings(dataset="none", output_dir="none")
    assert training.preview_inference_steps == NUM_INFERENCE_STEPS
    assert training.preview_guidance_scale == GUIDANCE_SCALE


@pytest.mark.parametrize("zero_snr", [False, True])
def test_sampler_of_a_run_keeps_its_schedule_and_puts_in_noise_of_each_images_own(zero_snr):
    settings = TrainingSettings(dataset="none", output_dir="none", rescale_betas_zero_snr=zero_snr)
    trained = build_noise_scheduler(settings)
    sampler = build_sampler(trained)
    for name in ("beta_schedule", "prediction_type", "num_train_timesteps", "rescale_betas_zero_snr"):
        assert sampler.config[name] == trained.config[name]
    assert sampler.config.algorithm_type == "sde-dpmsolver++"
    pipe = pipeline(tiny_unet(), sampler)
    both = draw(pipe, random_ids(2), seeds=(0, 1), num_inference_steps=4)
    alone = draw(pipe, random_ids(2)[1:], seeds=(1,), num_inference_steps=4)
    assert both.isfinite().all()
    assert torch.allclose(both[1:], alone, atol=1e-4)
