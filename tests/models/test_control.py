"""The control branch beside a frozen network: what it starts from, what stays the base's, how much of it counts."""

import copy
import json

import diffusers
import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, UNet2DModel
from helpers.generation_places import LABELS, pixels, save_masks, save_photos
from helpers.tiny_networks import CLASS_LABELS, PARENTS, TINY_PARENT, inputs, tiny_base, tiny_control
from helpers.tiny_pipelines import SCHEDULERS, SIZE, draw, pipeline, random_ids, tiny_unet
from torch.utils.flop_counter import FlopCounterMode

from semseg_diffusers import (
    LabelSet,
    MaskControlNetModel,
    MaskGuidedDDPMPipeline,
    MaskGuidedImg2ImgPipeline,
    MaskGuidedInpaintPipeline,
    PaperUNet2DModel,
    cli,
)
from semseg_diffusers.generation.generate import generate_dataset
from semseg_diffusers.generation.output_folder import read_metadata
from semseg_diffusers.generation.settings import EditSettings, GenerationSettings, Inputs


every_family = pytest.mark.parametrize("family", PARENTS)


def base_of(family: str) -> UNet2DModel:
    torch.manual_seed(0)
    return UNet2DModel(**{**TINY_PARENT, **PARENTS[family]}).eval()


# What it starts from


@every_family
@torch.no_grad()
def test_an_untrained_branch_changes_no_bit_of_any_kind_of_base(family):
    base = base_of(family)
    unet = tiny_control(trained=False, base=base)
    sample, timestep, mask = inputs(channels=base.config.in_channels)
    labels = CLASS_LABELS.get(family)
    expected = base(sample, timestep, labels).sample
    for given in (mask, torch.full_like(mask, 255), torch.zeros_like(mask)):
        assert torch.equal(unet(sample, timestep, labels, mask=given).sample, expected)
    assert torch.equal(unet(sample, timestep, labels).sample, expected)


@every_family
@torch.no_grad()
def test_a_trained_branch_moves_every_kind_of_base_and_leaves_it_alone_where_there_is_no_mask(family):
    base = base_of(family)
    unet = tiny_control(base=base)
    sample, timestep, mask = inputs(channels=base.config.in_channels)
    labels = CLASS_LABELS.get(family)
    expected = base(sample, timestep, labels).sample
    output = unet(sample, timestep, labels, mask=mask).sample
    assert output.isfinite().all()
    assert not torch.allclose(output, expected, rtol=1e-3, atol=1e-6)
    assert torch.equal(unet(sample, timestep, labels).sample, expected)
    mixed = mask.clone()
    mixed[1] = 255
    output_of_mixed = unet(sample, timestep, labels, mask=mixed).sample
    assert torch.equal(output_of_mixed[0], output[0])
    assert torch.equal(output_of_mixed[1], expected[1])


@torch.no_grad()
def test_the_branch_starts_as_a_copy_and_the_base_is_not_the_one_that_was_given():
    base = tiny_base()
    unet = tiny_control(trained=False, base=base)
    for name, weight in base.state_dict().items():
        assert torch.equal(unet.state_dict()[name], weight)
        if f"control.{name}" in unet.state_dict():
            assert torch.equal(unet.state_dict()[f"control.{name}"], weight)
    before = copy.deepcopy(base.state_dict())
    for weight in unet.parameters():
        weight.zero_()
    assert all(torch.equal(weight, before[name]) for name, weight in base.state_dict().items())


def test_dtype_and_size_are_those_of_the_base_unless_another_size_is_given():
    base = tiny_base().to(torch.bfloat16)
    assert {weight.dtype for weight in tiny_control(base=base).parameters()} == {torch.bfloat16}
    assert tiny_control().config.sample_size == 16
    assert tiny_control(sample_size=(16, 32)).config.sample_size == (16, 32)


@pytest.mark.parametrize("network", [tiny_unet, lambda: PaperUNet2DModel(hidden_dim=8), tiny_control])
def test_a_network_that_is_no_plain_one_is_refused(network):
    unet = network()
    with pytest.raises(
        ValueError, match=f"`unet` is a {type(unet).__name__}; expected a `diffusers.UNet2DModel` itself"
    ):
        MaskControlNetModel.from_unet(unet)


def test_a_label_for_a_base_without_classes_is_refused():
    with pytest.raises(ValueError, match="the base has no class embedding by index: omit it"):
        tiny_control(base_class_label=1)


# What is trained


def gradients(unet: MaskControlNetModel, mask: torch.Tensor) -> dict[str, torch.Tensor | None]:
    sample, timestep, _ = inputs()
    unet.train().zero_grad()
    unet(sample, timestep, mask=mask).sample.square().mean().backward()
    return {name: parameter.grad for name, parameter in unet.named_parameters()}


def test_the_branch_alone_learns_and_all_of_it():
    found = gradients(tiny_control(), inputs()[2])
    learning = {name for name, gradient in found.items() if gradient is not None and gradient.any()}
    assert learning == {name for name in found if name.startswith("control.")}


def test_at_the_start_only_the_zero_convolutions_learn():
    found = gradients(tiny_control(trained=False), inputs()[2])
    learning = {name for name, gradient in found.items() if gradient is not None and gradient.any()}
    assert learning == {name for name in found if name.startswith("control.zero_conv")}


def test_unknown_masks_teach_nothing():
    found = gradients(tiny_control(), torch.full_like(inputs()[2], 255))
    assert not any(gradient.any() for gradient in found.values() if gradient is not None)


def test_what_is_loaded_is_frozen_as_what_was_saved(tmp_path):
    tiny_control().save_pretrained(tmp_path)
    loaded = MaskControlNetModel.from_pretrained(tmp_path)
    trained = {name for name, weight in loaded.named_parameters() if weight.requires_grad}
    assert trained == {name for name, _ in loaded.named_parameters() if name.startswith("control.")}


def test_training_mode_leaves_the_dropout_of_the_base_off():
    unet = tiny_control(base=tiny_base(dropout=0.5))
    sample, timestep, mask = inputs()
    expected = unet(sample, timestep).sample
    unet.train()
    assert unet.training
    assert torch.equal(unet(sample, timestep).sample, expected)
    one, other = (unet(sample, timestep, mask=mask).sample for _ in range(2))
    assert not torch.equal(one, other)  # the branch's own dropout
    assert not any(module.training for module in unet.eval().modules())


def test_a_network_from_its_config_has_no_dropout_in_the_base():
    unet = MaskControlNetModel(**{**tiny_base(dropout=0.5).config, "num_classes": 5})
    training = {name.split(".")[0] for name, module in unet.named_modules() if module.training}
    assert training == {"", "control"}


# Masks, scales, sizes


def test_encoded_mask_is_the_hint_and_which_samples_are_known():
    hint, known = tiny_control().encode_mask(inputs()[2])
    assert (hint.shape, known.shape) == ((2, 8, 16, 16), (2, 1, 1, 1))


@torch.no_grad()
def test_conditioning_scale_runs_from_the_base_alone_to_all_of_the_branch_and_further():
    unet = tiny_control()
    sample, timestep, mask = inputs()
    base = unet(sample, timestep).sample
    assert torch.equal(unet(sample, timestep, mask=mask, conditioning_scale=0).sample, base)
    whole = unet(sample, timestep, mask=mask).sample
    assert torch.equal(unet(sample, timestep, mask=mask, conditioning_scale=1.0).sample, whole)
    moved = [
        (unet(sample, timestep, mask=mask, conditioning_scale=scale).sample - base).square().mean()
        for scale in (0.01, 0.1, 1.0)
    ]
    assert moved[0] < moved[1] < moved[2]


@torch.no_grad()
def test_the_branch_is_not_run_where_nothing_of_it_counts():
    unet = tiny_control()
    runs = []
    unet.control.register_forward_pre_hook(lambda *_: runs.append(1))
    sample, timestep, mask = inputs()
    unet(sample, timestep)
    unet(sample, timestep, mask=mask, conditioning_scale=0.0)
    assert runs == []
    unet(sample, timestep, mask=mask)
    assert runs == [1]


@torch.no_grad()
def test_a_class_conditional_base_gets_its_own_label_where_none_is_given():
    base = base_of("class embedding")
    unet = tiny_control(base=base, base_class_label=2)
    sample, timestep, mask = inputs()
    labels = torch.tensor([2, 2])
    assert torch.equal(unet(sample, timestep, mask=mask).sample, unet(sample, timestep, labels, mask=mask).sample)
    assert torch.equal(unet(sample, timestep).sample, base(sample, timestep, labels).sample)
    other = unet(sample, timestep, torch.tensor([0, 1]), mask=mask).sample
    assert not torch.allclose(other, unet(sample, timestep, mask=mask).sample, atol=1e-4)
    with pytest.raises(ValueError, match="`class_labels` must be given"):
        tiny_control(base=base)(sample, timestep, mask=mask)


@torch.no_grad()
def test_saved_network_loads_equal_with_the_label_set(tmp_path):
    labels = LabelSet.from_preset("camvid")
    unet = tiny_control(num_classes=labels.num_classes, **labels.to_config())
    unet.save_pretrained(tmp_path)
    loaded, report = MaskControlNetModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report.values())
    sample, timestep, mask = inputs()
    assert torch.equal(loaded(sample, timestep, mask=mask).sample, unet(sample, timestep, mask=mask).sample)
    assert LabelSet.from_config(loaded.config) == labels
    assert json.loads((tmp_path / "config.json").read_text())["block_out_channels"] == [8, 16]


@torch.no_grad()
def test_size_and_work_beside_a_base_of_the_default_widths_are_as_the_docs_say():
    with torch.random.fork_rng(devices=[]), torch.device("meta"):
        base = UNet2DModel(
            block_out_channels=(32, 64, 128, 192),
            down_block_types=("DownBlock2D", "DownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D"),
            up_block_types=("AttnUpBlock2D", "AttnUpBlock2D", "UpBlock2D", "UpBlock2D"),
            layers_per_block=1,
            attention_head_dim=32,
            norm_num_groups=16,
            attn_norm_num_groups=16,
            resnet_time_scale_shift="scale_shift",
        )
        unet = MaskControlNetModel.from_config(base.config, num_classes=11)
        sample, mask = torch.empty(1, 3, 128, 128), torch.empty(1, 128, 128, dtype=torch.uint8)
        features = unet.encode_mask(mask)
        with FlopCounterMode(display=False) as whole:
            unet(sample, torch.empty(1), mask_features=features)
        with FlopCounterMode(display=False) as alone:
            unet(sample, torch.empty(1))
    millions = unet.num_parameters() / 1e6, unet.num_parameters(only_trainable=True) / 1e6
    assert millions == (pytest.approx(10.6, abs=0.05), pytest.approx(3.1, abs=0.05))
    giga = whole.get_total_flops() / 1e9, alone.get_total_flops() / 1e9
    assert giga == (pytest.approx(19.7, abs=0.05), pytest.approx(15.8, abs=0.05))


# Pipelines


def control_pipe(kind=MaskGuidedDDPMPipeline, scheduler=None, **settings):
    labels = LabelSet.from_preset("bdd100k")
    unet = tiny_control(num_classes=labels.num_classes, **labels.to_config(), **settings)
    return pipeline(unet=unet, scheduler=scheduler, kind=kind)


@pytest.mark.filterwarnings("ignore:__array_:DeprecationWarning")
@pytest.mark.parametrize("name", SCHEDULERS)
def test_every_scheduler_samples_with_it(name):
    pipe = control_pipe(scheduler=getattr(diffusers, name)())
    images = draw(pipe, random_ids(2), seeds=(0, 1), num_inference_steps=5)
    assert images.shape == (2, 3, SIZE, SIZE)
    assert images.isfinite().all()


def test_guidance_leads_away_from_the_base_alone():
    pipe = control_pipe()
    mask = random_ids()
    plain = draw(pipe, None)
    assert torch.equal(draw(pipe, mask, guidance_scale=0.0), plain)
    assert not torch.allclose(draw(pipe, mask, guidance_scale=3.0), draw(pipe, mask, guidance_scale=1.0), atol=1e-3)


@pytest.mark.parametrize("kind", [MaskGuidedDDPMPipeline, MaskGuidedImg2ImgPipeline, MaskGuidedInpaintPipeline])
def test_every_pipeline_takes_a_conditioning_scale(kind):
    pipe = control_pipe(kind)
    photo = [torch.linspace(0, 1, 3 * SIZE * SIZE).view(3, SIZE, SIZE)]
    more = {
        MaskGuidedDDPMPipeline: {},
        MaskGuidedImg2ImgPipeline: {"image": photo, "strength": 1.0},
        MaskGuidedInpaintPipeline: {"image": photo, "edit_region": torch.ones(SIZE, SIZE).bool()},
    }[kind]

    def images(mask, **settings):
        settings = {"num_inference_steps": 3, "output_type": "pt", "guidance_scale": 1.0, **more, **settings}
        return pipe(mask=mask, generator=torch.manual_seed(0), **settings).images

    mask = random_ids()
    assert torch.equal(images(mask, conditioning_scale=0.0), images(None))
    assert torch.equal(images(mask, conditioning_scale=1.0), images(mask))
    half = images(mask, conditioning_scale=0.5)
    assert not torch.allclose(half, images(mask), atol=1e-3)
    assert not torch.allclose(half, images(None), atol=1e-3)


def test_a_callback_may_change_the_conditioning_scale():
    pipe = control_pipe()

    def switch_off(pipe, *_):
        pipe._conditioning_scale = 0.0
        return {}

    mask, steps = random_ids(), {"guidance_scale": 1.0, "num_inference_steps": 3}
    changed = draw(pipe, mask, callback_on_step_end=switch_off, **steps)
    assert not torch.allclose(changed, draw(pipe, mask, **steps), atol=1e-3)
    assert pipe.conditioning_scale is None


@pytest.mark.parametrize(
    ("unet", "scale", "message"),
    [
        (None, 1.0, "`conditioning_scale` is for networks with a control branch, and this one has none"),
        (tiny_control, float("nan"), "`conditioning_scale` is nan; expected a finite number"),
        (tiny_control, True, "`conditioning_scale` is True; expected a finite number"),
    ],
)
def test_conditioning_scales_that_mean_nothing_are_refused(unet, scale, message):
    pipe = pipeline(unet=None if unet is None else unet())
    with pytest.raises(ValueError, match=message):
        draw(pipe, None, conditioning_scale=scale)


def test_a_guide_with_a_branch_gets_the_scale_and_one_without_does_not():
    pipe = control_pipe()
    mask = random_ids()
    by_itself = draw(pipe, mask, guide_unet=pipe.unet, conditioning_scale=0.5, guidance_scale=2.0)
    expected = draw(pipe, mask, conditioning_scale=0.5, guidance_scale=1.0)
    torch.testing.assert_close(by_itself, expected, rtol=0, atol=1e-4)
    assert draw(pipe, mask, guide_unet=tiny_unet(), conditioning_scale=0.5).isfinite().all()


# Generation


@pytest.fixture
def generator():
    unet = tiny_control(num_classes=5, **LABELS.to_config())
    return MaskGuidedDDPMPipeline(unet=unet, scheduler=DDIMScheduler())


def test_images_of_every_conditioning_scale_are_made_and_recorded(generator, tmp_path):
    masks = save_masks(tmp_path / "masks")
    settings = GenerationSettings(num_inference_steps=2, variations={"conditioning_scale": (0.0, 1.0)})
    generate_dataset(generator, masks, tmp_path / "grid", settings)
    rows = read_metadata(tmp_path / "grid")
    assert [row["conditioning_scale"] for row in rows] == [0.0, 1.0] * 3
    for row in rows[:2]:
        image = generator(
            masks / "a.png",
            num_inference_steps=2,
            conditioning_scale=row["conditioning_scale"],
            generator=torch.Generator().manual_seed(row["seed"]),
        ).images[0]
        saved = pixels(tmp_path / "grid" / row["image_file_name"])
        assert np.abs(np.asarray(image).astype(int) - saved).max() <= 1
    generate_dataset(generator, masks, tmp_path / "plain", GenerationSettings(num_inference_steps=2))
    assert "conditioning_scale" not in read_metadata(tmp_path / "plain")[0]


@pytest.mark.parametrize("changed", [{"strength": 1.0}, {"edit": EditSettings()}])
def test_photos_are_changed_at_a_conditioning_scale(generator, changed, tmp_path):
    masks, photos = save_masks(tmp_path / "masks"), save_photos(tmp_path / "photos" / "images")
    save_masks(tmp_path / "photos" / "masks", names="bca")
    settings = GenerationSettings(num_inference_steps=2, conditioning_scale=0.5, **changed)
    generate_dataset(generator, masks, tmp_path / "out", settings, inputs=Inputs(photos=photos.parent))
    assert {row["conditioning_scale"] for row in read_metadata(tmp_path / "out")} == {0.5}


def test_the_command_takes_it_and_refuses_it_for_networks_without_a_branch(generator, tmp_path, capsys):
    masks = save_masks(tmp_path / "masks")
    generator.save_pretrained(tmp_path / "model")
    words = ["--masks", str(masks), "--num_inference_steps", "2", "--conditioning_scale", "0.5"]
    assert cli.main(["generate", "--model", str(tmp_path / "model"), "--output", str(tmp_path / "out"), *words]) == 0
    assert read_metadata(tmp_path / "out")[0]["conditioning_scale"] == 0.5
    pipeline(unet=tiny_unet()).save_pretrained(tmp_path / "plain")
    assert cli.main(["generate", "--model", str(tmp_path / "plain"), "--output", str(tmp_path / "no"), *words]) != 0
    assert "`conditioning_scale` is for networks with a control branch" in capsys.readouterr().err
