"""Features: every kind of network loads from files the test makes, prepares images as its processor does, gives the
same features in every batch, and errors name what is missing before an image is read."""

import json
import re
import shutil
import sys

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from semseg_diffusers.evaluation.features import extract, load_extractor, with_paper_features
from semseg_diffusers.evaluation.fidelity import fid
from semseg_diffusers.toy.scenes import draw_scene


SHAPES = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
VIT = SHAPES | {"image_size": 28, "patch_size": 14}
MOBILEVIT = transformers.MobileViTConfig(
    hidden_sizes=[8, 12, 16], neck_hidden_sizes=[4, 4, 8, 8, 8, 8, 16], num_attention_heads=2, aspp_out_channels=8
)
MASK2FORMER = transformers.Mask2FormerConfig(
    backbone_config=transformers.SwinConfig(
        embed_dim=8, depths=[1] * 4, num_heads=[1] * 4, window_size=4, out_features=[f"stage{i}" for i in range(1, 5)]
    ),
    feature_size=32, mask_feature_size=32, hidden_dim=32, encoder_feedforward_dim=16, encoder_layers=1,
    decoder_layers=2, num_attention_heads=2, dim_feedforward=16,
)  # fmt: skip
SEGFORMER = transformers.SegformerConfig(
    hidden_sizes=[4, 8, 12, 16], depths=[1, 1, 1, 1], num_attention_heads=[1, 1, 1, 1], decoder_hidden_size=8
)


def bit_processor(**options):
    return transformers.BitImageProcessorPil(
        size={"shortest_edge": 32}, crop_size={"height": 28, "width": 28}, **options
    )


def segformer_processor(**options):
    return transformers.SegformerImageProcessorPil(size={"height": 64, "width": 96}, **options)


def mobilevit_processor():
    return transformers.MobileViTImageProcessorPil(crop_size={"height": 64, "width": 64})


def mask2former_processor():
    return transformers.Mask2FormerImageProcessorPil(size={"height": 64, "width": 64})


# name -> (network, its processor, class of the encoder, its output, number of features, input size)
NETWORKS = {
    "dinov2": (
        lambda: transformers.Dinov2Model(transformers.Dinov2Config(**VIT)),
        bit_processor, "Dinov2Model", "pooler_output", 16, [28, 28],
    ),
    "dinov2 with a head": (
        lambda: transformers.Dinov2ForImageClassification(transformers.Dinov2Config(**VIT)),
        bit_processor, "Dinov2Model", "pooler_output", 16, [28, 28],
    ),
    "vit without a pooler": (
        lambda: transformers.ViTModel(transformers.ViTConfig(**VIT), add_pooling_layer=False),
        bit_processor, "ViTModel", "class token of last_hidden_state", 16, [28, 28],
    ),
    "clip": (
        lambda: transformers.CLIPModel(transformers.CLIPConfig(text_config=SHAPES, vision_config=VIT)),
        bit_processor, "CLIPVision", "pooler_output", 16, [28, 28],
    ),
    "segformer": (
        lambda: transformers.SegformerModel(SEGFORMER),
        segformer_processor, "SegformerModel", "mean over space of last_hidden_state", 16, [64, 96],
    ),
    "segformer with a head": (
        lambda: transformers.SegformerForSemanticSegmentation(SEGFORMER),
        segformer_processor, "SegformerModel", "mean over space of last_hidden_state", 16, [64, 96],
    ),
    "mobilevit": (
        lambda: transformers.MobileViTModel(MOBILEVIT),
        mobilevit_processor, "MobileViTModel", "pooler_output", 16, [64, 64],
    ),
    "mobilevit with a head": (
        lambda: transformers.MobileViTForSemanticSegmentation(MOBILEVIT),
        mobilevit_processor, "MobileViTModel", "mean over space of last_hidden_state", 8, [64, 64],
    ),
    "mask2former": (
        lambda: transformers.Mask2FormerModel(MASK2FORMER), mask2former_processor, "Mask2FormerModel",
        "mean over space of encoder_last_hidden_state", 64, [64, 64],
    ),
    "dinov3": (
        lambda: transformers.DINOv3ViTModel(transformers.DINOv3ViTConfig(**VIT)),
        bit_processor, "DINOv3ViTModel", "pooler_output", 16, [28, 28],
    ),
    "swin": (
        lambda: transformers.SwinModel(
            transformers.SwinConfig(embed_dim=8, depths=[1, 1], num_heads=[1, 1], window_size=4, image_size=28)
        ),
        bit_processor, "SwinModel", "pooler_output", 16, [28, 28],
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def folder_of(tmp_path_factory):
    """Folder of a network by its name in NETWORKS, made once."""
    made = {}

    def get(name):
        if name not in made:
            build, processor, *_ = NETWORKS[name]
            made[name] = tmp_path_factory.mktemp(name.replace(" ", "_"))
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(0)
                network = build()
            generator = torch.Generator().manual_seed(1)
            for key, value in network.named_parameters():  # about as large as trained ones: images are distinguished
                if value.ndim == 1 and key.endswith("weight"):  # of norms
                    torch.nn.init.ones_(value)
                elif value.ndim > 1 and value.numel():
                    torch.nn.init.normal_(value, std=value[0].numel() ** -0.5, generator=generator)
            for buffer, value in network.named_buffers():
                if "running" in buffer:
                    value.uniform_(0.1, 0.2, generator=generator)  # of BatchNorm
            network.save_pretrained(made[name])
            processor().save_pretrained(made[name])
        return made[name]

    return get


@pytest.fixture(scope="module")
def scenes():
    return [torch.from_numpy(np.asarray(draw_scene(seed, (48, 64))[0]).transpose(2, 0, 1).copy()) for seed in range(8)]


def copy_of(folder, target, **changes):
    """A copy of a folder; a change of None omits a file, a dict updates JSON."""
    target.mkdir()
    for file in folder.iterdir():
        change = changes.get(file.stem, {})
        if change is not None:
            data = file.read_bytes()
            target.joinpath(file.name).write_bytes(json.dumps(json.loads(data) | change).encode() if change else data)
    return target


# Networks of transformers --------------------------------------------------------------------------------------------


def test_another_preparation_is_another_revision(folder_of, tmp_path):
    folder = shutil.copytree(folder_of("dinov2"), tmp_path / "dinov2")
    settings = json.loads((folder / "preprocessor_config.json").read_text())
    (folder / "preprocessor_config.json").write_text(json.dumps({**settings, "image_mean": [0.1, 0.2, 0.3]}))
    revisions = [load_extractor(str(name)).describe()["revision"] for name in (folder, folder_of("dinov2"))]
    assert revisions[0] != revisions[1]


@pytest.mark.parametrize("name", NETWORKS)
def test_every_network_gives_the_same_features_in_every_batch(name, folder_of, scenes):
    _, _, architecture, output, num_features, input_size = NETWORKS[name]
    extractor = load_extractor(str(folder_of(name)))
    described = extractor.describe()
    assert described["architecture"].startswith(architecture)
    assert (described["output"], described["num_features"], described["input_size"]) == (
        output, num_features, input_size
    )  # fmt: skip
    assert re.fullmatch("sha256:[0-9a-f]{64}", described["revision"])
    assert described["name"] == str(folder_of(name))
    assert json.loads(json.dumps(described)) == described

    one_by_one = extract(extractor, scenes, batch_size=1)
    assert (one_by_one.shape, one_by_one.dtype) == ((8, num_features), torch.float32)
    spread = one_by_one.std(0).max().item()
    assert spread > 1e-3 * one_by_one.abs().max()  # the images are distinguished
    backwards = extract(extractor, torch.stack(scenes).flip(0), batch_size=3)
    for found in (extract(extractor, scenes, batch_size=7), backwards.flip(0)):
        assert (found - one_by_one).abs().max() < 1e-4 * spread


@pytest.mark.parametrize("name", ["dinov2", "segformer", "mobilevit"])
def test_images_of_the_input_size_are_prepared_as_the_processor_does(name, folder_of):
    extractor = load_extractor(str(folder_of(name)))
    images = torch.randint(0, 256, (3, 3, *extractor.input_size), dtype=torch.uint8)
    processor = transformers.AutoImageProcessor.from_pretrained(folder_of(name))
    expected = processor(list(images), do_resize=False, do_center_crop=False, return_tensors="pt")["pixel_values"]
    assert torch.allclose(extractor.module.prepare(images), expected, atol=1e-5)


def test_dinov2_features_are_the_normalised_class_token_of_the_whole_image(folder_of, scenes):
    network = transformers.Dinov2Model.from_pretrained(folder_of("dinov2")).eval()
    processor = transformers.AutoImageProcessor.from_pretrained(folder_of("dinov2"))
    pixels = torch.nn.functional.interpolate(
        torch.stack(scenes).float() / 255, (28, 28), mode="bicubic", antialias=True
    )
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (processor.image_mean, processor.image_std))
    with torch.no_grad():
        expected = network(pixel_values=(pixels - mean) / std).last_hidden_state[:, 0]
    assert torch.allclose(extract(load_extractor(str(folder_of("dinov2"))), scenes), expected, atol=1e-5)


def test_mobilevit_inside_a_segmentation_network_has_the_weights_of_its_checkpoint(folder_of):
    """AutoModel gives this encoder one layer more, of random weights."""
    extractor = load_extractor(str(folder_of("mobilevit with a head")))
    saved = load_file(folder_of("mobilevit with a head") / "model.safetensors")
    weights = extractor.module.encoder.state_dict()
    assert len(weights) > 100
    assert all(torch.equal(saved[f"mobilevit.{key}"], value) for key, value in weights.items())


def test_images_of_several_sizes_keep_their_order(folder_of, scenes):
    extractor = load_extractor(str(folder_of("dinov2")))
    mixed = [scenes[0], scenes[1][:, :40], scenes[2][:, :40], scenes[3]]
    expected = torch.cat([extract(extractor, [image]) for image in mixed])
    assert torch.allclose(extract(extractor, iter(mixed)), expected, atol=1e-5)


def test_a_given_input_size_is_used(folder_of, scenes):
    extractor = load_extractor(str(folder_of("dinov2")), input_size=(42, 56))
    assert extractor.describe()["input_size"] == [42, 56]
    assert not torch.allclose(extract(extractor, scenes), extract(load_extractor(str(folder_of("dinov2"))), scenes))
    with pytest.raises(ValueError, match=r"vit_without_a_pooler.*' cannot read images of 42 x 56 .*: Input image"):
        load_extractor(str(folder_of("vit without a pooler")), input_size=(42, 56))


def test_a_processor_that_does_not_resize_leaves_images_at_their_size(folder_of, scenes, tmp_path):
    folder = copy_of(folder_of("segformer"), tmp_path / "native", preprocessor_config={"do_resize": False})
    extractor = load_extractor(str(folder))
    assert extractor.describe()["input_size"] is None
    assert extractor.module.prepare(scenes[0][None]).shape == (1, 3, 48, 64)
    assert extract(extractor, scenes).shape == (8, 16)


def test_bfloat16_features_are_near_and_float32(folder_of, scenes):
    folder = str(folder_of("dinov2"))
    exact, found = (extract(load_extractor(folder, dtype=dtype), scenes) for dtype in (torch.float32, torch.bfloat16))
    assert found.dtype == torch.float32
    assert torch.allclose(found, exact, atol=0.1)


def test_vit_whose_checkpoint_lacks_the_pooler_gives_its_class_token(folder_of, scenes, tmp_path):
    """As facebook/dino-vits16 is saved: a pooler made now would be random."""
    folder = copy_of(folder_of("vit without a pooler"), tmp_path / "dino")
    assert "pooler" not in " ".join(load_file(folder / "model.safetensors"))
    extractor = load_extractor(str(folder))
    assert extractor.describe()["output"] == "class token of last_hidden_state"


def test_blur_raises_fid_by_dinov2(folder_of):
    extractor = load_extractor(str(folder_of("dinov2")))
    photos = torch.stack(
        [torch.from_numpy(np.asarray(draw_scene(seed, (32, 32))[0]).transpose(2, 0, 1).copy()) for seed in range(64)]
    )
    real = extract(extractor, photos)
    distances = [fid(real, real)]
    for size in (3, 7, 15):
        blurred = torch.nn.functional.avg_pool2d(photos.float(), size, stride=1, padding=size // 2)
        distances.append(fid(real, extract(extractor, blurred.to(torch.uint8))))
    assert distances == sorted(distances)
    assert distances[0] < 1e-6 < distances[1]


@pytest.mark.slow
def test_network_of_the_hub_is_named_by_its_commit(folder_of, hub, tmp_path, clean_process):
    files = {file.name: file.read_bytes() for file in folder_of("dinov2").iterdir()}
    repo = hub.add_repo("carol/dinov2-tiny", files | {"pytorch_model.bin": b"no weights"})
    code = (
        "import json, sys\nfrom semseg_diffusers.evaluation.features import load_extractor\n"
        "print('\\n', json.dumps(load_extractor('carol/dinov2-tiny', revision=sys.argv[1] or None).describe()))"
    )
    described = [
        json.loads(clean_process(code, revision, environment=environment).stdout.splitlines()[-1])
        for revision, environment in (
            ("main", hub.environment(tmp_path / "home")),
            ("", hub.environment(tmp_path / "home") | {"HF_HUB_OFFLINE": "1"}),  # from the cache
        )
    ]
    assert described[0] == described[1]
    assert described[0]["revision"] == repo.branches["main"]
    assert described[0]["name"] == "carol/dinov2-tiny"
    assert not list((tmp_path / "home").rglob("*.bin"))


# What is missing -----------------------------------------------------------------------------------------------------


def test_offline_without_weights_names_the_option_and_the_missing_files():
    with pytest.raises(
        OSError, match=r"--features: 'facebook/dinov2-small' is no folder here.*HF_HUB_OFFLINE"
    ) as caught:
        load_extractor("facebook/dinov2-small")
    assert "provide a folder with config.json, preprocessor_config.json and model.safetensors" in str(caught.value)
    assert "--features DIR" in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": None}, r"holds no \*.safetensors \(pickled weights are not read\); provide a folder"),
        ({"config": None}, r"holds no config.json; provide a folder"),
        ({"preprocessor_config": None}, r"holds no preprocessor_config.json, which defines its preprocessing"),
        (
            {"config": {"hidden_size": 32}},
            r"\d+ tensors of Dinov2Model are missing in the weights .*, or have another shape",
        ),
        ({"config": {"num_hidden_layers": 2}}, r"18 tensors of .*, such as 'encoder.layer.1.* provide a folder"),
        ({"config": {"architectures": ["BertModel"]}}, r"\d+ tensors of BertModel are missing in the weights"),
        ({"config": {"model_type": "martian"}}, r"is not an image network that transformers"),
        (
            {"preprocessor_config": {"image_processor_type": "Martian"}},
            r"is not an image network that transformers",
        ),
    ],
)
def test_incomplete_folder_is_refused_with_what_is_missing(changes, message, folder_of, tmp_path):
    folder = copy_of(folder_of("dinov2"), tmp_path / "broken", **changes)
    with pytest.raises(ValueError, match=f"--features: .*{message}"):
        load_extractor(str(folder))


def test_damaged_weights_are_refused(folder_of, tmp_path):
    folder = copy_of(folder_of("dinov2"), tmp_path / "damaged")
    (folder / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes()[:1000])
    with pytest.raises(ValueError, match=r"--features: the weights of '.*damaged' cannot be read .*; provide a"):
        load_extractor(str(folder))


def test_names_of_no_network_are_refused(folder_of, tmp_path):
    with pytest.raises(ValueError, match="--features: there is no folder './nowhere'"):
        load_extractor("./nowhere")
    (tmp_path / "weights.bin").write_bytes(b"")
    with pytest.raises(ValueError, match=r"'.*weights.bin' is a file; expected a folder"):
        load_extractor(str(tmp_path / "weights.bin"))
    pipeline = copy_of(folder_of("dinov2"), tmp_path / "pipeline")
    (pipeline / "model_index.json").write_text("{}")
    with pytest.raises(ValueError, match="is a diffusion pipeline; expected an image encoder"):
        load_extractor(str(pipeline))
    with pytest.raises(ValueError, match="is a local folder and has no revision 'main'"):
        load_extractor(str(folder_of("dinov2")), revision="main")


def test_images_other_than_uint8_batches_are_refused(folder_of, scenes):
    extractor = load_extractor(str(folder_of("dinov2")))
    with pytest.raises(ValueError, match=r"uint8 images \(B, 3, H, W\); got torch.float32 \(1, 3, 48, 64\)"):
        extract(extractor, [scenes[0] / 255])
    with pytest.raises(ValueError, match=r"got torch.uint8 \(3, 48, 64\)"):
        extractor(scenes[0])
    with pytest.raises(ValueError, match="at least one image; got none"):
        extract(extractor, [])
    with pytest.raises(ValueError, match="batch_size must be at least 1; got 0"):
        extract(extractor, scenes, batch_size=0)


def test_features_that_are_not_finite_are_refused(folder_of, scenes, tmp_path):
    folder = copy_of(folder_of("dinov2"), tmp_path / "overflow")
    weights = load_file(folder / "model.safetensors")
    weights["layernorm.weight"] *= torch.nan
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"features by '.*' are not finite.*float32 \(--dtype\)"):
        extract(load_extractor(str(folder)), scenes)


# TorchScript ---------------------------------------------------------------------------------------------------------


class Plain(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = torch.nn.Conv2d(3, 5, 3)
        self.norm = torch.nn.BatchNorm2d(5)

    def forward(self, images):
        return self.norm(self.conv(images.float() / 255)).mean((2, 3))


class Styled(torch.nn.Module):
    """As inception-2015-12-05.pt: logits, or features where they are asked for."""

    def forward(self, img: torch.Tensor, return_features: bool = False) -> torch.Tensor:
        features = img.to(torch.float32).mean((2, 3))
        return features if return_features else features[:, :1]


class Pair(torch.nn.Module):
    def forward(self, images):
        return images, images


def save_script(network, path):
    torch.jit.script(network).save(str(path))
    return str(path)


def test_torchscript_file_of_a_plain_module(scenes, tmp_path):
    extractor = load_extractor(save_script(Plain(), tmp_path / "plain.torchscript"))
    assert extractor.describe() | {"revision": ""} == {
        "name": str(tmp_path / "plain.torchscript"), "revision": "", "architecture": "Plain", "output": "output",
        "num_features": 5, "input_size": None,
    }  # fmt: skip
    one_by_one = extract(extractor, scenes, batch_size=1)
    assert torch.allclose(extract(extractor, scenes, batch_size=7), one_by_one, atol=1e-6)  # BatchNorm at rest
    other = load_extractor(save_script(Plain(), tmp_path / "other.pt"))
    assert other.describe()["revision"] != extractor.describe()["revision"]


def test_torchscript_module_is_called_with_return_features_if_it_accepts_it(scenes, tmp_path):
    extractor = load_extractor(save_script(Styled(), tmp_path / "styled.pt"))
    assert (extractor.describe()["output"], extractor.num_features) == ("return_features=True", 3)
    assert torch.allclose(extract(extractor, scenes), torch.stack(scenes).float().mean((2, 3)), atol=1e-3)


def test_torchscript_module_gets_images_of_the_given_size_as_uint8(scenes, tmp_path):
    seen = save_script(Styled(), tmp_path / "styled.pt")
    extractor = load_extractor(seen, input_size=(24, 32))
    small = torch.nn.functional.interpolate(torch.stack(scenes).float(), (24, 32), mode="bicubic", antialias=True)
    expected = small.round().clamp(0, 255).mean((2, 3))
    assert torch.allclose(extract(extractor, scenes), expected, atol=1e-3)
    assert extractor.describe()["input_size"] == [24, 32]


def test_torchscript_files_that_give_no_features_are_refused(tmp_path):
    with pytest.raises(ValueError, match="there is no file 'nowhere.pt'; expected a TorchScript module"):
        load_extractor("nowhere.pt")
    torch.save(Plain().state_dict(), tmp_path / "state.pt")
    with pytest.raises(ValueError, match=r"'.*state.pt' is not a TorchScript file"):
        load_extractor(str(tmp_path / "state.pt"))
    pair = save_script(Pair(), tmp_path / "pair.pt")
    with pytest.raises(ValueError, match=r"pair.pt' cannot read .* expected features of shape \(2, D\).*got tuple"):
        load_extractor(pair)
    with pytest.raises(ValueError, match="only networks of the Hub have a revision"):
        load_extractor(pair, revision="main")


# Inception -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["inception", "inception-64", "inception:weights.pth"])
def test_inception_without_its_libraries_names_the_extra_and_the_alternatives(name, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch_fidelity", None)
    with pytest.raises(
        ValueError, match=r"--features inception needs torch-fidelity .*semseg-diffusers\[fid\]"
    ) as said:
        load_extractor(name)
    assert "TorchScript file" in str(said.value)
    assert "--features facebook/dinov2-small" in str(said.value)


def test_options_that_inception_does_not_have_are_refused():
    with pytest.raises(ValueError, match="reads images at 299 x 299; got an input size of"):
        load_extractor("inception", input_size=(128, 128))
    with pytest.raises(ValueError, match="'inception-64' has none"):
        load_extractor("inception-64", revision="main")


def test_the_standard_inception_brings_the_features_of_the_paper():
    names = ["inception:/folder/weights.pth", "inception-2015-12-05.pt"]
    assert with_paper_features(names) == [*names, "inception-64:/folder/weights.pth"]
    assert with_paper_features(names[1:]) == names[1:]
