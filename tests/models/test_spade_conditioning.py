"""A mask that modulates the decoder: it starts as the plain network, reads shares of cells, trains and resumes.

What every way of conditioning owes is in test_every_network.py and test_network_conditions.py.
"""

import pytest
import torch
from diffusers import UNet2DModel
from diffusers.models.resnet import ResnetBlock2D
from helpers.tiny_networks import CLASS_LABELS, PARENTS, TINY, TINY_PARENT, inputs
from helpers.tiny_networks import tiny_mask_guided as tiny
from helpers.training_runs import tiny_settings, train_here, weights
from torch.utils.flop_counter import FlopCounterMode

from semseg_diffusers import LabelSet, MaskGuidedDDPMPipeline, MaskGuidedUNet2DModel
from semseg_diffusers.models.unet_mask_guided import ModulatedEmbedding, ModulatedResnetBlock2D
from semseg_diffusers.toy.scenes import write_toy_dataset
from semseg_diffusers.training.base_model import load_first_weights
from semseg_diffusers.training.networks import build_network
from semseg_diffusers.training.settings import TrainingSettings


# diffusers turns sigmas to numpy in ways that numpy 2 deprecates.
pytestmark = pytest.mark.filterwarnings("ignore:__array_:DeprecationWarning")

SPADE = {"mask_conditioning": "spade"}


def untrained(**settings) -> MaskGuidedUNet2DModel:
    torch.manual_seed(0)
    return MaskGuidedUNet2DModel(**{**TINY, **settings}).eval()


# It starts as the network without


@pytest.mark.parametrize(
    ("family", "patch_size"), [(name, size) for name in PARENTS for size in (1, 2) if (name, size) != ("ncsnpp", 2)]
)
@torch.no_grad()
def test_untrained_network_predicts_what_that_of_the_same_seed_predicts_which_only_adds(family, patch_size):
    settings = {**PARENTS[family], "patch_size": patch_size}
    unet, plain = untrained(**SPADE, **settings), untrained(**settings)
    sample, timestep, mask = inputs(channels=unet.config.in_channels)
    mask[1, :, :8] = 255
    labels = CLASS_LABELS.get(family)
    assert torch.equal(
        unet(sample, timestep, labels, mask=mask).sample, plain(sample, timestep, labels, mask=mask).sample
    )
    own = {name: value for name, value in unet.state_dict().items() if not name.startswith("mask_norms.")}
    assert own.keys() == plain.state_dict().keys()
    assert all(torch.equal(value, plain.state_dict()[name]) for name, value in own.items())


@pytest.mark.parametrize("kind", [MaskGuidedUNet2DModel, UNet2DModel])
@torch.no_grad()
def test_weights_of_a_network_without_it_are_a_start(kind, tmp_path):
    torch.manual_seed(3)
    before = kind(**(TINY if kind is MaskGuidedUNet2DModel else TINY_PARENT)).eval()
    before.save_pretrained(tmp_path)
    unet = untrained(**SPADE)
    kept, without_place = load_first_weights(unet, str(tmp_path))
    assert without_place == []
    new = ("mask_norms.",) if kind is MaskGuidedUNet2DModel else ("mask_norms.", "mask_branch.")
    assert all(line.startswith(new) for line in kept)
    sample, timestep, mask = inputs()
    given = {"mask": mask} if kind is MaskGuidedUNet2DModel else {}
    assert torch.equal(unet(sample, timestep, **given).sample, before(sample, timestep, **given).sample)


# What is modulated, and by what


@pytest.mark.parametrize("family", PARENTS)
@torch.no_grad()
def test_both_norms_of_every_block_on_the_way_up_are_modulated(family):
    unet = tiny(**SPADE, **PARENTS[family])
    blocks = [module for module in unet.up_blocks.modules() if isinstance(module, ResnetBlock2D)]
    assert blocks
    assert all(type(block) is ModulatedResnetBlock2D for block in blocks)
    rest = [module for part in (unet.down_blocks, unet.mid_block) if part is not None for module in part.modules()]
    assert not any(isinstance(module, ModulatedResnetBlock2D) for module in rest)
    places = [place for block in blocks for place in block.slots]
    assert len(set(places)) == 2 * len(blocks)
    assert sum(unet.mask_norms.channels) == sum(b.norm1.num_channels + b.norm2.num_channels for b in blocks)
    sample, timestep, mask = inputs(channels=unet.config.in_channels)
    given = {"class_labels": CLASS_LABELS.get(family), "mask_features": unet.encode_mask(mask)}
    whole = unet(sample, timestep, **given).sample
    for number, start in places:  # each of them moves the output by itself
        maps = [feature.clone() for feature in given["mask_features"]]
        maps[1 + number][:, start] += 1
        moved = unet(sample, timestep, **{**given, "mask_features": tuple(maps)}).sample
        assert not torch.equal(moved, whole), (number, start)


@torch.no_grad()
def test_maps_have_the_size_of_the_levels_and_the_head_of_patches_is_not_modulated():
    unet = tiny(**SPADE, patch_size=2)
    assert type(unet.patch_head.resnet) is ResnetBlock2D
    assert unet.mask_norms.factors == (2, 4)
    _, *maps = unet.encode_mask(inputs()[2])
    assert [tuple(one.shape[2:]) for one in maps] == [(8, 8), (4, 4)]
    assert [one.shape[1] for one in maps] == [2 * channels for channels in unet.mask_norms.channels]


@torch.no_grad()
def test_modulated_block_is_its_parent_between_scales_and_shifts():
    block = tiny(**SPADE).up_blocks[0].resnets[0]
    x, temb = torch.randn(2, block.in_channels, 8, 8), torch.randn(2, 32)
    maps = tuple(
        torch.cat([torch.ones(2, channels, 8, 8), torch.zeros(2, channels, 8, 8)], dim=1) for channels in (104, 104)
    )
    plain = block(x, temb)
    assert torch.equal(block(x, ModulatedEmbedding(temb, maps)), plain)
    (number, start), _ = block.slots
    doubled = [one.clone() for one in maps]
    doubled[number][:, start : start + block.in_channels] = 2
    by_weights = ResnetBlock2D(
        in_channels=block.in_channels, out_channels=block.out_channels, temb_channels=32, groups=4, eps=1e-5
    ).eval()
    by_weights.load_state_dict(block.state_dict())
    by_weights.norm1.weight.mul_(2)
    by_weights.norm1.bias.mul_(2)
    torch.testing.assert_close(block(x, ModulatedEmbedding(temb, tuple(doubled))), by_weights(x, temb))


@torch.no_grad()
def test_a_thin_pole_counts_by_its_share_in_the_smallest_cells():
    unet = tiny(**SPADE, spade_channels=1)
    convolution, projection = unet.mask_norms.convs[-1], unet.mask_norms.projections[-1]
    convolution.weight.zero_()
    convolution.weight[:, 3, 1, 1] = 1
    convolution.bias.zero_()
    projection.weight.fill_(1)
    projection.bias.zero_()
    mask = torch.zeros(1, 16, 16, dtype=torch.long)
    mask[:, :, 5] = 3  # one pixel of two
    lowest = unet.encode_mask(mask)[-1]
    half = torch.nn.functional.silu(torch.tensor(0.5))
    expected = torch.zeros(8, 8)
    expected[:, 2] = half
    torch.testing.assert_close(lowest[0, 0], 1 + expected)  # a scale
    torch.testing.assert_close(lowest[0, -1], expected)  # a shift


@torch.no_grad()
def test_unknown_masks_leave_every_scale_at_one_and_every_shift_at_zero():
    unet = tiny(**SPADE, patch_size=2)
    mask = inputs()[2]
    mask[0] = 255
    stem, *maps = unet.encode_mask(mask)
    assert not stem[0].any()
    for one in maps:
        scales, shifts = one[0].chunk(2)
        assert (scales == 1).all()
        assert not shifts.any()
        assert not torch.equal(one[0], one[1])


@torch.no_grad()
def test_partly_unknown_mask_modulates_where_it_is_unknown_too():
    unet = tiny(**SPADE)  # that a pixel is unknown in a known mask is something the network may learn from
    mask = inputs()[2]
    mask[:, :8] = 255
    scales = unet.encode_mask(mask)[1].chunk(2, dim=1)[0]
    assert not torch.equal(scales[:, :, :4], torch.ones_like(scales[:, :, :4]))


def test_blocks_whose_norms_cannot_be_modulated_are_refused_by_name():
    with pytest.raises(ValueError, match="modulates the norms of `ResnetBlock2D`, and KUpBlock2D has others"):
        untrained(
            **SPADE, block_out_channels=(32, 32), down_block_types=("KDownBlock2D",) * 2, norm_num_groups=32,
            up_block_types=("KUpBlock2D",) * 2, attention_head_dim=16, mid_block_type=None,
        )  # fmt: skip


# Training


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    folder = tmp_path_factory.mktemp("toy") / "data"
    write_toy_dataset(folder, num_train=4, num_val=1, size=(16, 16), seed=0)
    return folder


def test_it_trains_from_added_weights_resumes_as_it_ran_straight_and_samples(toy, tmp_path):
    train_here(tiny_settings(toy, tmp_path / "add", max_train_steps=1))
    settings = {
        **SPADE, "spade_channels": 8, "init_from": str(tmp_path / "add"), "checkpointing_steps": 1,
        "lr_scheduler": "constant",
    }  # fmt: skip
    straight = train_here(tiny_settings(toy, tmp_path / "straight", **settings, max_train_steps=2))
    pieces = tmp_path / "pieces"
    train_here(tiny_settings(toy, pieces, **settings, max_train_steps=1))
    with pytest.raises(ValueError, match="spade_channels"):
        train_here(
            tiny_settings(
                toy, pieces, **{**settings, "spade_channels": 4}, max_train_steps=2, resume_from_checkpoint="latest"
            )
        )
    train_here(tiny_settings(toy, pieces, **settings, max_train_steps=2, resume_from_checkpoint="latest"))
    assert all(torch.equal(value, weights(pieces)[name]) for name, value in weights(straight).items())
    pipe = MaskGuidedDDPMPipeline.from_pretrained(straight)
    assert (pipe.unet.config.mask_conditioning, pipe.unet.config.spade_channels) == ("spade", 8)
    assert all(projection.weight.any() for projection in pipe.unet.mask_norms.projections)
    assert pipe(torch.zeros(16, 16, dtype=torch.uint8), num_inference_steps=2).images[0].size == (16, 16)


@torch.no_grad()
def test_default_network_keeps_its_size_and_work_and_pays_for_modulation_once():
    counts = {}
    for conditioning in ("add", "spade"):
        settings = TrainingSettings(dataset="data", output_dir="run", mask_conditioning=conditioning)
        with torch.random.fork_rng(devices=[]), torch.device("meta"):
            unet = build_network(settings, LabelSet.from_preset("bdd100k"), (128, 128))
            mask = torch.empty(1, 128, 128, dtype=torch.uint8)
            with FlopCounterMode(display=False) as once:
                features = unet.encode_mask(mask)
            with FlopCounterMode(display=False) as step:
                unet(torch.empty(1, 3, 128, 128), torch.empty(1), mask_features=features)
        counts[conditioning] = (unet.num_parameters(), once.get_total_flops(), step.get_total_flops())
    parameters, once, step = counts["spade"]
    assert parameters <= 1.03 * counts["add"][0]
    assert once <= 0.15 * step
    assert step == counts["add"][2]
