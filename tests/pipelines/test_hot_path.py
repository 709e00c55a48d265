"""What a step of sampling costs beside the network: nothing of ours is encoded, copied or waited for again."""

import pytest
import torch
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler
from helpers.tiny_pipelines import SIZE, draw, pipeline, random_ids, seeded, tiny_unet
from torch.utils._python_dispatch import TorchDispatchMode

from semseg_diffusers import PaperUNet2DModel
from semseg_diffusers.pipelines.guidance import Conditions, guidance_weights, guide


# diffusers turns sigmas to numpy in ways that numpy 2 deprecates, thousands of times.
pytestmark = pytest.mark.filterwarnings("ignore:__array_:DeprecationWarning")

# What reads a tensor's value into Python, or copies between devices: each would wait for an accelerator.
WAITING = ("_local_scalar_dense", "nonzero", "is_nonzero", "_to_copy", "item")
SPADE = {"mask_conditioning": "spade", "patch_size": 2}
PYRAMID = {"mask_pyramid": True, "attributes": {"weather": ["clear", "rainy"]}}


class Operations(TorchDispatchMode):
    """Records the names of the operations that run."""

    def __init__(self):
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):  # noqa: ARG002  torch's signature
        self.names.append(function.overloadpacket.__name__)
        return function(*args, **(kwargs or {}))


class Echo(torch.nn.Module):
    """A network that costs nothing, so that what is counted is ours."""

    def __init__(self, unet):
        super().__init__()
        self.config, self.encode_mask = unet.config, unet.encode_mask

    def forward(self, sample, *_, **__):
        return (sample,)


@pytest.mark.parametrize("levels", [1, 2, 3])
def test_a_step_of_guidance_costs_a_few_operations_on_the_batch_and_waits_for_nothing(levels):
    echo = Echo(tiny_unet(attributes={"weather": ["clear", "rainy"]}))
    attributes = torch.tensor([[1], [1]]) if levels > 1 else None
    conditions = Conditions(echo, random_ids(2), 2, attributes=attributes)
    sample, timestep = torch.randn(4, 3, SIZE, SIZE), torch.tensor(1)
    weights = guidance_weights(*{1: (1.0, None), 2: (3.0, None), 3: (3.0, 5.0)}[levels], True, levels > 1)

    def predict() -> torch.Tensor:  # as in a pipeline's loop
        inputs = conditions.inputs(list(weights), timestep)
        batch = torch.cat([sample] * len(weights)) if len(weights) > 1 else sample
        outputs = echo(batch, timestep, **inputs)[0].chunk(len(weights))
        return guide(dict(zip(weights, outputs, strict=True)), weights, 3)

    predict()  # the first step makes what all others use
    with Operations() as operations:
        predict()
    assert not set(operations.names) & set(WAITING)
    not_views = [name for name in operations.names if name not in ("slice", "split", "view", "detach", "alias")]
    assert not_views == ["cat", *["sub", "mul", "add"] * (levels - 1)] * (levels > 1)


def test_a_fading_mask_brings_nothing_to_the_device_after_its_first_step():
    unet = tiny_unet(label_diffusion=[3.0] * 19, num_train_timesteps=1000)
    ids, noise, timesteps = random_ids(2), torch.rand(2, SIZE, SIZE), torch.tensor([900, 500])
    unet.diffuse_mask(ids, timesteps[0], noise)
    with Operations() as operations:
        unet.diffuse_mask(ids, timesteps[1], noise)
    assert "lift_fresh" not in operations.names  # what torch.tensor() does to a list


@pytest.mark.parametrize(
    "unet",
    [
        pytest.param(tiny_unet, id="add"),
        pytest.param(lambda: tiny_unet(mask_conditioning="concat"), id="concat"),
        pytest.param(lambda: tiny_unet(patch_size=2, **PYRAMID), id="pyramid"),
        pytest.param(lambda: tiny_unet(mask_conditioning="spade", patch_size=2, **PYRAMID), id="spade"),
        pytest.param(lambda: PaperUNet2DModel(hidden_dim=8, num_classes=19, sample_size=SIZE), id="paper"),
    ],
)
def test_features_encoded_once_give_the_images_of_masks_given_at_each_step(unet):
    pipe = pipeline(unet().eval(), DPMSolverMultistepScheduler())
    for name, weight in pipe.unet.named_parameters():
        if "mask" in name or "pyramid" in name:  # some start from zeros
            torch.nn.init.normal_(weight, std=0.1, generator=seeded(1))
    calls = []
    encode = pipe.unet.encode_mask
    pipe.unet.encode_mask = lambda *args, **kwargs: calls.append(1) or encode(*args, **kwargs)
    cached = draw(pipe, random_ids(2), seeds=(0, 1), num_inference_steps=6)
    assert len(calls) == 2  # the masks, and "unknown"
    pipe.unet._hf_hook = None  # as where weights move: `forward` is given the masks
    uncached = draw(pipe, random_ids(2), seeds=(0, 1), num_inference_steps=6)
    assert len(calls) == 8
    assert (cached - uncached).abs().max() < 1e-5


@pytest.mark.parametrize("settings", [{}, PYRAMID, SPADE], ids=["plain", "pyramid", "spade"])
def test_channels_last_gives_the_same_images(settings):
    expected = draw(pipeline(tiny_unet(**settings)), random_ids(2), seeds=(0, 1))
    unet = tiny_unet(**settings).to(memory_format=torch.channels_last)
    assert torch.allclose(draw(pipeline(unet), random_ids(2), seeds=(0, 1)), expected, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_takes_attributes_a_guide_and_fading_masks(dtype):
    settings = {"num_train_timesteps": 1000, "label_diffusion": [3.0] * 19, **PYRAMID}
    pipe = pipeline(tiny_unet(**settings)).to(dtype)
    rainy = {"attributes": {"weather": "rainy"}}
    for extra in ({"attribute_guidance_scale": 2.0}, {"guide_unet": tiny_unet(**settings).to(dtype)}):
        assert draw(pipe, random_ids(), **rainy, **extra).isfinite().all()


@pytest.mark.slow
@pytest.mark.parametrize("settings", [{}, PYRAMID, SPADE], ids=["plain", "pyramid", "spade"])
def test_a_compiled_network_gives_the_same_images_and_is_compiled_once_for_each_batch(settings):
    expected = draw(pipeline(tiny_unet(**settings)), random_ids(), num_inference_steps=4)
    compiled = torch.compile(tiny_unet(**settings), backend="aot_eager", fullgraph=True)
    pipe = pipeline(compiled, DDIMScheduler())
    torch._dynamo.reset()
    assert torch.allclose(draw(pipe, random_ids(), num_inference_steps=4), expected, atol=1e-4)
    with torch.compiler.set_stance("fail_on_recompile"):
        draw(pipe, random_ids(seed=1), num_inference_steps=6)


@pytest.mark.parametrize("thresholding", [False, True])
def test_thresholding_of_the_scheduler_keeps_the_image_in_range(thresholding):
    scheduler = DPMSolverMultistepScheduler(thresholding=thresholding)
    image = draw(pipeline(scheduler=scheduler), random_ids(), guidance_scale=8.0, output_type="latent")
    assert (image.abs().max() <= 1) == thresholding
