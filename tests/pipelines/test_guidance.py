"""Guidance by mask, by attributes and by a weaker network: equations, cost in forward passes, refusals."""

import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler, DPMSolverMultistepScheduler
from helpers.tiny_pipelines import SIZE, draw, pipeline, random_ids, seeded, tiny_unet

from semseg_diffusers import PaperUNet2DModel


# diffusers turns sigmas to numpy in ways that numpy 2 deprecates, thousands of times.
pytestmark = pytest.mark.filterwarnings("ignore:__array_:DeprecationWarning")

KNOWN = {"timeofday": ["day", "night"], "weather": ["clear", "foggy", "rainy"]}
RAINY = {"weather": "rainy"}


def attribute_unet(**settings):
    unet = tiny_unet(attributes=KNOWN, **settings)
    torch.nn.init.normal_(unet.attribute_embedding.weight, generator=seeded(1))  # it starts from zeros
    return unet


def fading_unet(rarity: float = 5.0):
    return tiny_unet(num_train_timesteps=1000, label_diffusion=[rarity] * 19)


def weaker_unet(**settings):
    unet = tiny_unet(block_out_channels=(4, 8), **settings)
    for weight in unet.parameters():
        weight.data.mul_(1.5)
    return unet


@pytest.fixture(scope="module")
def pipe():
    return pipeline(attribute_unet())


def one_step(unet, latents, combine, **levels) -> torch.Tensor:
    """A DDIM step by hand from predictions of the network, by name."""
    scheduler = DDIMScheduler()
    scheduler.set_timesteps(1)
    t = scheduler.timesteps[0]
    with torch.no_grad():
        outputs = {name: unet(latents, t, **inputs).sample for name, inputs in levels.items()}
    return scheduler.step(combine(**outputs), t, latents).prev_sample


# --- attributes ---


def test_attributes_are_guided_with_the_mask_by_one_scale(pipe):
    mask, latents = random_ids(), torch.randn(1, 3, SIZE, SIZE, generator=seeded(4))
    settings = {"num_inference_steps": 1, "latents": latents, "output_type": "latent"}
    image = draw(pipe, mask, attributes=RAINY, guidance_scale=2.5, **settings)
    expected = one_step(
        pipe.unet,
        latents,
        lambda uncond, cond: uncond + 2.5 * (cond - uncond),
        uncond={},
        cond={"mask": mask, "attributes": torch.tensor([[-1, 2]])},
    )
    assert torch.allclose(image, expected, atol=1e-5)


def test_attributes_may_have_a_scale_of_their_own(pipe, batches):
    mask, latents = random_ids(), torch.randn(1, 3, SIZE, SIZE, generator=seeded(4))
    calls = batches(pipe.unet)
    settings = {"num_inference_steps": 1, "latents": latents, "output_type": "latent"}
    image = draw(pipe, mask, attributes=RAINY, guidance_scale=2.5, attribute_guidance_scale=4.0, **settings)
    assert calls == [3]
    assert (pipe.guidance_scale, pipe.attribute_guidance_scale) == (2.5, 4.0)
    expected = one_step(
        pipe.unet,
        latents,
        lambda uncond, some, whole: uncond + 2.5 * (some - uncond) + 4.0 * (whole - some),
        uncond={},
        some={"mask": mask},
        whole={"mask": mask, "attributes": torch.tensor([[-1, 2]])},
    )
    assert torch.allclose(image, expected, atol=1e-5)


@pytest.mark.parametrize(
    ("scales", "forwards"),
    [
        ((3.0, None), 2),  # neither, and both
        ((3.0, 5.0), 3),
        ((3.0, 3.0), 2),
        ((3.0, 0.0), 2),  # neither, and the mask alone
        ((1.0, 5.0), 2),  # the mask alone, and both
        ((1.0, 1.0), 1),
        ((0.0, 0.0), 1),
    ],
)
def test_only_predictions_that_count_are_paid_for(pipe, batches, scales, forwards):
    calls = batches(pipe.unet)
    scale, attribute_scale = scales
    draw(pipe, random_ids(), attributes=RAINY, guidance_scale=scale, attribute_guidance_scale=attribute_scale)
    assert calls == [forwards] * 3


def test_equal_scales_are_one_scale_and_an_attribute_scale_of_zero_is_no_attribute(pipe):
    mask = random_ids()
    one = draw(pipe, mask, attributes=RAINY)
    assert torch.equal(one, draw(pipe, mask, attributes=RAINY, attribute_guidance_scale=2.0))
    none = draw(pipe, mask)
    assert torch.allclose(none, draw(pipe, mask, attributes=RAINY, attribute_guidance_scale=0.0), atol=1e-5)
    assert not torch.allclose(one, none, atol=1e-3)


def test_attributes_without_a_mask_are_guided_by_their_scale(pipe, batches):
    calls = batches(pipe.unet)
    image = draw(pipe, None, attributes=RAINY, guidance_scale=7.0, attribute_guidance_scale=2.0)
    assert calls == [2, 2, 2]
    assert torch.equal(image, draw(pipe, None, attributes=RAINY, guidance_scale=2.0))


def test_attributes_are_one_dict_for_all_masks_or_one_for_each(pipe):
    masks = random_ids(2)
    both = draw(pipe, masks, seeds=(0, 1), attributes=[{"weather": None, "timeofday": "night"}, None])
    assert torch.allclose(both[0], draw(pipe, masks[0], attributes={"timeofday": "night"})[0], atol=1e-4)
    assert torch.allclose(both[1], draw(pipe, masks[1], seeds=(1,))[0], atol=1e-4)
    same = draw(pipe, masks, seeds=(0, 1), attributes=RAINY)
    assert torch.equal(same, draw(pipe, masks, seeds=(0, 1), attributes=[RAINY, RAINY]))
    assert torch.equal(draw(pipe, masks[0], attributes={}), draw(pipe, masks[0]))


def test_images_of_a_mask_share_its_attributes(pipe):
    images = draw(pipe, random_ids(2), seeds=range(4), num_images_per_mask=2, attributes=[RAINY, {"weather": "clear"}])
    for i, weather in enumerate(["rainy", "rainy", "clear", "clear"]):
        alone = draw(pipe, random_ids(2)[i // 2], seeds=(i,), attributes={"weather": weather})
        assert torch.allclose(images[i], alone[0], atol=1e-4)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"attributes": {"wether": "rainy"}},
            r"'wether'; this network knows timeofday \(day, night\); weather \(clear",
        ),
        ({"attributes": {"weather": "snow"}}, r"'weather': 'snow'; this network knows .*\(clear, foggy, rainy\)"),
        ({"attributes": [RAINY, RAINY]}, "got 2 of `attributes` for 1 masks"),
        ({"attributes": ["rainy"]}, "`attributes` holds 'rainy'; expected a dict"),
        ({"attribute_guidance_scale": "3"}, "`attribute_guidance_scale` is '3'; expected a finite number"),
    ],
)
def test_unknown_attributes_are_refused_by_what_is_known(pipe, settings, message):
    with pytest.raises(ValueError, match=message):
        draw(pipe, random_ids(), **settings)


@pytest.mark.parametrize(
    "unet",
    [tiny_unet, lambda: PaperUNet2DModel(hidden_dim=8, num_classes=19, sample_size=SIZE)],
    ids=["ours", "paper"],
)
def test_a_network_without_attributes_says_so(unet):
    with pytest.raises(ValueError, match="this network knows no attributes"):
        draw(pipeline(unet()), random_ids(), attributes=RAINY)


# --- the interval ---


def test_guidance_acts_inside_its_interval_only(pipe, batches):
    calls = batches(pipe.unet)
    settings = {"num_inference_steps": 8, "guidance_start": 0.25, "guidance_stop": 0.5, "attributes": RAINY}
    draw(pipe, random_ids(), attribute_guidance_scale=3.0, **settings)
    assert calls == [1] * 2 + [3] * 2 + [1] * 4


# --- guidance by a weaker network ---


def test_a_guide_takes_the_place_of_the_unconditional_prediction():
    main, guide = tiny_unet(), weaker_unet()
    mask, latents = random_ids(), torch.randn(1, 3, SIZE, SIZE, generator=seeded(4))
    settings = {"num_inference_steps": 1, "latents": latents, "output_type": "latent", "guidance_scale": 2.0}
    image = draw(pipeline(main), mask, guide_unet=guide, **settings)
    with torch.no_grad():
        weak, strong = (unet(latents, 0, mask=mask).sample for unet in (guide, main))  # its only timestep is 0
    expected = one_step(main, latents, lambda: weak + 2.0 * (strong - weak))
    assert torch.allclose(image, expected, atol=1e-5)


def test_guide_that_is_the_network_itself_gives_the_plain_conditional_image():
    pipe = pipeline()
    plain = draw(pipe, random_ids(), guidance_scale=1.0)
    assert torch.equal(draw(pipe, random_ids(), guide_unet=pipe.unet, guidance_scale=3.0), plain)


def test_guide_is_asked_inside_the_interval_only_and_only_where_it_counts(batches):
    main, guide = tiny_unet(), weaker_unet()
    pipe = pipeline(main)
    ours, theirs = batches(main), batches(guide)
    draw(pipe, random_ids(2), seeds=(0, 1), guide_unet=guide, num_inference_steps=4, guidance_start=0.5)
    assert (ours, theirs) == ([2] * 4, [2] * 2)
    plain = draw(pipe, random_ids(), guidance_scale=1.0)
    assert len(theirs) == 2
    assert torch.equal(plain, draw(pipe, random_ids(), guide_unet=guide, guidance_scale=1.0))
    assert len(theirs) == 2
    assert torch.equal(draw(pipe, random_ids(), guide_unet=guide, guidance_scale=0.0), draw(
        pipeline(guide), random_ids(), guidance_scale=1.0
    ))  # fmt: skip


def test_guide_reads_the_same_attributes_and_labels_and_is_left_as_it_was():
    main = attribute_unet(num_class_embeds=3)
    guide = attribute_unet(num_class_embeds=3, block_out_channels=(4, 8), dropout=0.5).train()
    pipe = pipeline(main)
    settings = {"attributes": RAINY, "class_labels": 1, "guide_unet": guide}
    image = draw(pipe, random_ids(), **settings)
    assert all(module.training for module in guide.modules())
    assert torch.equal(image, draw(pipe, random_ids(), **settings))  # no dropout
    other = draw(pipe, random_ids(), attributes={"weather": "clear"}, class_labels=1, guide_unet=guide)
    assert not torch.allclose(image, other, atol=1e-4)


def test_guide_may_be_a_pipeline():
    pipe, guide = pipeline(), pipeline(weaker_unet(), DDPMScheduler())
    assert torch.equal(draw(pipe, random_ids(), guide_unet=guide), draw(pipe, random_ids(), guide_unet=guide.unet))


@pytest.mark.parametrize(
    ("guide", "message"),
    [
        (lambda: tiny_unet(num_classes=5, id2label=None, id2color=None), "has the label set 5, the network"),
        (lambda: tiny_unet(sample_size=(SIZE, 32)), r"has the sample size \(16, 32\), the network \(16, 16\)"),
        (lambda: tiny_unet(out_channels=6), "has the output channels 6, the network 3"),
        (attribute_unet, r"has the attributes \{'timeofday'"),
        (lambda: tiny_unet(num_class_embeds=3), "has the class labels 3, the network None"),
        (
            lambda: tiny_unet().half(),
            "has the dtype and device torch.float16 on cpu, the network torch.float32 on cpu",
        ),
        (
            lambda: pipeline(scheduler=DDIMScheduler(prediction_type="sample")),
            "has the prediction type sample, the network epsilon",
        ),
        (lambda: pipeline(scheduler=DDIMScheduler(beta_end=0.03)), "another noise schedule"),
        (lambda: torch.nn.Linear(1, 1), "`guide_unet` is a Linear; expected a mask-guided network or pipeline"),
    ],
)
def test_a_guide_of_another_kind_is_refused_by_what_differs(guide, message):
    with pytest.raises(ValueError, match=message):
        draw(pipeline(), random_ids(), guide_unet=guide())


def test_a_guide_and_a_scale_of_the_attributes_do_not_go_together(pipe):
    with pytest.raises(ValueError, match="omit one"):
        draw(pipe, random_ids(), attributes=RAINY, attribute_guidance_scale=2.0, guide_unet=pipe.unet)


# --- masks that fade with the noise ---


def test_fading_masks_are_read_as_the_network_reads_them_at_each_step():
    unet = fading_unet()
    mask, latents = random_ids(), torch.randn(1, 3, SIZE, SIZE, generator=seeded(4))
    image = draw(pipeline(unet), mask, latents=latents, guidance_scale=1.0, output_type="latent")
    noise = torch.rand(1, SIZE, SIZE, generator=seeded(0))
    scheduler = DDIMScheduler()
    scheduler.set_timesteps(3)
    for t in scheduler.timesteps:
        with torch.no_grad():
            output = unet(latents, t, mask=unet.diffuse_mask(mask, t, noise)).sample
        latents = scheduler.step(output, t, latents).prev_sample
    assert torch.allclose(image, latents, atol=1e-5)


@pytest.mark.parametrize("scheduler", [DDIMScheduler, DDPMScheduler, DPMSolverMultistepScheduler])
def test_a_batch_of_fading_masks_equals_single_ones(scheduler):
    pipe = pipeline(fading_unet(), scheduler())
    both = draw(pipe, random_ids(2), seeds=(3, 4))
    for i in range(2):
        assert torch.allclose(both[i], draw(pipe, random_ids(2)[i], seeds=(3 + i,))[0], atol=1e-4)


def test_noise_of_fading_masks_is_sampled_after_the_latents():
    hardly = fading_unet(rarity=1e30)  # nothing is gone before the very last of the noise
    assert torch.equal(draw(pipeline(hardly), random_ids()), draw(pipeline(), random_ids()))


def test_guidance_of_fading_masks_leads_away_from_no_mask(batches):
    unet = fading_unet()
    pipe = pipeline(unet)
    calls = batches(unet)
    zero = draw(pipe, random_ids(), guidance_scale=0.0)
    assert torch.allclose(zero, draw(pipe, None), atol=1e-5)
    assert draw(pipe, random_ids()).isfinite().all()
    assert calls == [1] * 6 + [2] * 3


def test_a_guide_may_read_fading_masks_where_the_network_does_not():
    guide = fading_unet()
    image = draw(pipeline(), random_ids(), guide_unet=guide)
    assert torch.equal(image, draw(pipeline(), random_ids(), guide_unet=guide))
    assert not torch.equal(image, draw(pipeline(), random_ids(), guide_unet=tiny_unet()))
