"""Whatever `save_pretrained` writes, shards and variants too, is read by every option that takes a model."""

import json
import logging
import shutil
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel
from helpers.published_checkpoints import konz_folder
from helpers.segmenters import save_network
from helpers.tiny_networks import TINY_PARENT
from helpers.tiny_pipelines import BDD, pipeline, tiny_unet
from PIL import Image

from semseg_diffusers.cli import main
from semseg_diffusers.evaluation.features import load_extractor
from semseg_diffusers.evaluation.segmentation.judge import load_judge
from semseg_diffusers.evaluation.segmentation.networks import new_network
from semseg_diffusers.generation.model import load_guide, load_model, model_revision
from semseg_diffusers.hub.export import export_model
from semseg_diffusers.hub.folders import check_model_folder, stored_hash, stored_weights
from semseg_diffusers.hub.push import push_model
from semseg_diffusers.hub.settings import ExportSettings
from semseg_diffusers.hub.weights import only_variant, read_weights, stored_variants, weight_files
from semseg_diffusers.training.base_model import load_base, load_first_weights
from semseg_diffusers.training.settings import TrainingSettings
from semseg_diffusers.training.source_configs import control_defaults


FORMS = {
    "whole": {},
    "shards": {"max_shard_size": "20KB"},
    "variant": {"variant": "fp16"},
    "shards of a variant": {"max_shard_size": "20KB", "variant": "fp16"},
}


def same(one: torch.nn.Module, other: torch.nn.Module) -> bool:
    pairs = zip(one.state_dict().items(), other.state_dict().items(), strict=True)
    return all(name == key and torch.equal(a, b) for (name, a), (key, b) in pairs)


@pytest.fixture(params=FORMS)
def form(request) -> dict:
    return FORMS[request.param]


@pytest.fixture
def saved(form, tmp_path) -> Path:
    """A pipeline of ours in each form."""
    pipeline().save_pretrained(tmp_path / "model", **form)
    return tmp_path / "model"


def test_a_saved_pipeline_is_read_by_every_option(saved, form, tmp_path, caplog):
    unet = tiny_unet()
    with caplog.at_level(logging.WARNING, logger="semseg_diffusers.hub.weights"):
        assert same(load_model(str(saved)).unet, unet)  # generate, evaluate, the painter
    assert ("the variant `fp16`" in caplog.text) == ("variant" in form)
    assert same(load_guide(str(saved), None, pipeline()), unet)
    for source in (saved, saved / "unet"):
        network = tiny_unet()
        torch.nn.init.ones_(network.conv_in.weight)
        assert load_first_weights(network, str(source)) == ([], [])  # --init_from
        assert same(network, unet)
    check_model_folder(saved)
    exported = export_model(ExportSettings(model=str(saved), output=str(tmp_path / "out"), dtype="float32"))
    assert same(load_model(str(exported)).unet, unet)
    assert stored_hash(exported) == model_revision(unet)
    if "variant" not in form:
        assert stored_hash(saved) == model_revision(unet)
        assert stored_weights(saved / "unet") == (sum(p.numel() for p in unet.parameters()), "float32")


def test_a_saved_base_is_read(form, tmp_path):
    unet = UNet2DModel(**TINY_PARENT)
    DDPMPipeline(unet, DDPMScheduler()).save_pretrained(tmp_path / "base", **form)
    for source in (tmp_path / "base", tmp_path / "base" / "unet"):
        given = {"network": "control", "mask_dropout": 0.0, **control_defaults(str(source))}
        settings = TrainingSettings(dataset="d", output_dir="o", base_model=str(source), **given)
        assert same(load_base(settings).unet, unet)


def test_a_saved_network_of_konz_is_converted(form, tmp_path):
    plain = konz_folder(tmp_path / "whole")
    shutil.copytree(tmp_path / "whole", tmp_path / "theirs")
    for path in (tmp_path / "theirs" / "unet").iterdir():
        path.unlink()
    plain.save_pretrained(tmp_path / "theirs" / "unet", **form)
    words = ["convert", "--from", "segmentation-guided-diffusion", "--num_classes", "4"]
    for name in ("whole", "theirs"):
        assert main([*words, str(tmp_path / name), "--output", str(tmp_path / f"{name}_out")]) in (0, None)
    assert same(load_model(str(tmp_path / "whole_out")).unet, load_model(str(tmp_path / "theirs_out")).unet)


def test_a_saved_network_of_transformers_is_read(form, tmp_path):
    network = new_network("segformer-b0", BDD).eval()
    processor = {"image_processor_type": "SegformerImageProcessor", "size": {"height": 32, "width": 32}}
    save_network(tmp_path / "seg", network, processor)
    for path in (tmp_path / "seg").glob("*.safetensors"):
        path.unlink()
    size = {"max_shard_size": "2MB"} if "max_shard_size" in form else {}
    network.save_pretrained(tmp_path / "seg", **(form | size))
    assert (len([*(tmp_path / "seg").glob("*.safetensors")]) > 1) == bool(size)
    assert same(load_judge(tmp_path / "seg", BDD).network, network)
    extractor = load_extractor(str(tmp_path / "seg"))
    assert same(extractor.module.encoder, network.segformer)


def test_a_missing_shard_is_named_by_every_option(tmp_path, monkeypatch):
    pipeline().save_pretrained(tmp_path / "model", max_shard_size="20KB")
    shard = max((tmp_path / "model" / "unet").glob("*.safetensors"))
    shard.unlink()
    doors = (
        lambda: load_model(str(tmp_path / "model")),
        lambda: load_first_weights(tiny_unet(), str(tmp_path / "model")),
        lambda: check_model_folder(tmp_path / "model"),
        lambda: export_model(ExportSettings(model=str(tmp_path / "model"), output=str(tmp_path / "out"))),
        lambda: push_model(tmp_path / "model", "user/name"),
    )
    for door in doors:
        with pytest.raises((ValueError, OSError), match=shard.name):
            door()


@pytest.mark.parametrize("index", ["[]", "{}", '{"weight_map": {"a": "../secret.safetensors"}}', '{"weight_map": 3}'])
def test_a_damaged_index_is_refused(index, tmp_path):
    (tmp_path / "diffusion_pytorch_model.safetensors.index.json").write_text(index)
    with pytest.raises(ValueError, match=r"diffusion_pytorch_model.safetensors.index.json'"):
        weight_files(tmp_path)


def test_several_variants_without_own_weights_are_named_and_one_is_taken_by_option(tmp_path):
    folder, unet = tmp_path / "model", tiny_unet()
    pipeline().save_pretrained(folder, variant="fp16")
    unet.save_pretrained(folder / "unet", variant="ema_0_99")
    assert stored_variants(str(folder), "unet") == ["ema_0_99", "fp16"]
    with pytest.raises(ValueError, match="the variants ema_0_99, fp16: give one with --variant"):
        load_model(str(folder))
    assert same(load_model(str(folder), variant="fp16").unet, unet)
    unet.save_pretrained(folder / "unet")
    assert only_variant(str(folder), "unet") is None


def test_a_variant_alone_is_not_pushed(tmp_path):
    pipeline().save_pretrained(tmp_path / "model", variant="fp16")
    with pytest.raises(ValueError, match="holds no weights but a variant.*`export` writes them"):
        push_model(tmp_path / "model", "user/name")


def test_a_network_without_a_pipeline_is_refused_by_name(tmp_path):
    tiny_unet().save_pretrained(tmp_path / "unet")
    with pytest.raises(ValueError, match="'.*unet' holds no model_index.json; .* how its images were noised"):
        load_model(str(tmp_path / "unet"))


def test_all_shards_are_one_state_dict(tmp_path):
    tiny_unet().save_pretrained(tmp_path, max_shard_size="20KB")
    files = weight_files(tmp_path)
    assert len(files) > 2
    index = json.loads((tmp_path / "diffusion_pytorch_model.safetensors.index.json").read_text())
    assert read_weights(files).keys() == index["weight_map"].keys() == tiny_unet().state_dict().keys()


FROM_THE_HUB = """
import sys
import torch
from semseg_diffusers import LabelSet, MaskGuidedUNet2DModel, load_pairs
from semseg_diffusers.hub.push import load_pipeline
from semseg_diffusers.training.base_model import load_first_weights
expected = load_pipeline(sys.argv[1]).unet.state_dict()
for name in ("alice/shards", "alice/fp16", "alice/fp16shards"):
    torch.manual_seed(1)
    other = MaskGuidedUNet2DModel.from_config(MaskGuidedUNet2DModel.load_config(sys.argv[1] + "/unet"))
    load_first_weights(other, name)
    for unet in (load_pipeline(name).unet, other):
        print(all(torch.equal(value, expected[key]) for key, value in unet.state_dict().items()))
pairs = load_pairs("alice/named", cache_dir=sys.argv[2])
print(pairs.labels.names[:2], pairs.mask(0).tolist())
"""


@pytest.mark.slow
def test_shards_variants_and_named_classes_are_read_from_the_hub(hub, tmp_path, clean_process):
    for name, form in (
        ("shards", "shards"),
        ("fp16", "variant"),
        ("fp16shards", "shards of a variant"),
        ("own", "whole"),
    ):
        folder = tmp_path / name
        pipeline().save_pretrained(folder, **FORMS[form])
        files = {
            path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()
        }
        hub.add_repo(f"alice/{name}", files)
    ids = Image.fromarray(np.array([[0, 1], [1, 255]], dtype=np.uint8))
    features = datasets.Features({"image": datasets.Image(), "mask": datasets.Image()})
    table = datasets.Dataset.from_dict({"image": [ids.convert("RGB")], "mask": [ids]}, features=features)
    table.to_parquet(tmp_path / "train.parquet")
    files = {"train.parquet": (tmp_path / "train.parquet").read_bytes(), "id2label.json": b'{"0": "road", "1": "sky"}'}
    hub.add_repo("alice/named", files, kind="dataset")
    environment = hub.environment(tmp_path / "home")
    done = clean_process(FROM_THE_HUB, str(tmp_path / "own"), str(tmp_path / "cache"), environment=environment)
    assert done.stdout.splitlines() == ["True"] * 6 + ["('road', 'sky') [[0, 1], [1, 255]]"]
