"""SDM's network trained by the same script: resumed, checkpointed, loaded and sampled; widths it cannot have."""

import pytest
import torch
from helpers.training_runs import tiny_settings, train_here, weights

from semseg_diffusers import LabelSet, MaskGuidedDDPMPipeline
from semseg_diffusers.toy.scenes import write_toy_dataset
from semseg_diffusers.training.networks import build_network


# diffusers turns sigmas to numpy in ways that numpy 2 deprecates.
pytestmark = pytest.mark.filterwarnings("ignore:__array_:DeprecationWarning")

SDM = {
    "network": "sdm",
    "block_out_channels": (32, 64),
    "attention_levels": 1,
    "attention_head_dim": 32,
    "stem_channels": 16,  # as by default: not this network's
    "norm_num_groups": 16,
}


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    folder = tmp_path_factory.mktemp("toy") / "data"
    write_toy_dataset(folder, num_train=4, num_val=1, size=(16, 16), seed=0)
    return folder


def test_sdm_trains_resumes_as_it_ran_straight_and_draws(toy, tmp_path):
    settings = {**SDM, "checkpointing_steps": 1, "lr_scheduler": "constant"}
    straight = train_here(tiny_settings(toy, tmp_path / "straight", **settings, max_train_steps=2))
    pieces = tmp_path / "pieces"
    train_here(tiny_settings(toy, pieces, **settings, max_train_steps=1))
    train_here(tiny_settings(toy, pieces, **settings, max_train_steps=2, resume_from_checkpoint="latest"))
    assert all(torch.equal(value, weights(pieces)[name]) for name, value in weights(straight).items())
    pipe = MaskGuidedDDPMPipeline.from_pretrained(straight)
    assert type(pipe.unet).__name__ == "SDMUNet2DModel"
    assert pipe.unet.config.out_channels == 3
    assert list(pipe.unet.config.attention_resolutions) == [2]
    assert pipe(torch.zeros(16, 16, dtype=torch.uint8), num_inference_steps=2).images[0].size == (16, 16)


def test_gradient_checkpointing_changes_no_weight(toy, tmp_path):
    settings = {**SDM, "max_train_steps": 1}
    plain, checkpointed = (
        weights(train_here(tiny_settings(toy, tmp_path / str(flag), **settings, gradient_checkpointing=flag)))
        for flag in (False, True)
    )
    for name, value in plain.items():
        torch.testing.assert_close(checkpointed[name], value, rtol=0, atol=5e-5, msg=name)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"block_out_channels": (32, 48)},
            "--block_out_channels 48 is not a multiple of 32, the groups of SDM's norms",
        ),
        ({"attention_head_dim": 48}, "--block_out_channels 64 is not a multiple of 48, --attention_head_dim"),
        ({"attention_levels": 0, "attention_head_dim": 48}, "64 is not a multiple of 48"),  # the bottom attends
        ({"attention_levels": 3}, "--attention_levels 3 is more than the 2 levels"),
    ],
)
def test_widths_that_sdm_cannot_have_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        build_network(tiny_settings("d", "o", **{**SDM, **changes}), LabelSet.from_preset("camvid"), (16, 16))


@pytest.mark.parametrize("option", ["mask_pyramid", "coordinate_channels", "label_diffusion"])
def test_conditions_of_the_default_network_are_refused(option):
    with pytest.raises(ValueError, match=f"--{option} is not for --network sdm"):
        tiny_settings("d", "o", **SDM, **{option: True})


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("mask_conditioning", "concat"),
        ("spade_channels", 64),
        ("patch_size", 1),
        ("stem_channels", 8),
        ("norm_num_groups", 8),
        ("hidden_dim", 64),
        ("emb_dim", 128),
    ],
)
def test_settings_of_the_layers_of_other_networks_are_refused(option, value):
    with pytest.raises(ValueError, match=f"--{option} is not for --network sdm, whose layers have no such setting"):
        tiny_settings("d", "o", **{**SDM, option: value})


def test_size_that_its_depth_does_not_divide_is_refused():
    with pytest.raises(ValueError, match="needs multiples of 2"):
        build_network(tiny_settings("d", "o", **SDM), LabelSet.from_preset("camvid"), (16, 15))
