"""Names that scripts and checkpoints rely on: commands, options, classes and their arguments."""

import ast
import inspect
import re
from pathlib import Path

import pytest

import semseg_diffusers
from semseg_diffusers import cli


TRAINING = """dataset output_dir preset image_column mask_column device seed train_batch_size max_train_steps
    num_train_epochs gradient_accumulation_steps learning_rate lr_scheduler lr_warmup_steps mixed_precision use_ema
    checkpointing_steps checkpoints_total_limit resume_from_checkpoint report_to hub_model_id push_to_hub"""
OPTIONS = {
    "prepare": "source format resolution output annotations",
    "check": "source dataset",
    "subset": "dataset output seed",
    "join": "datasets attribute output",
    "toy": "output seed",
    "stats": "dataset output",
    "labels": "preset output",
    "clean": "masks labels output",
    "edit": "masks output operation",
    "caption": "dataset output seed",
    "enrich": "dataset output num_masks seed",
    "autoencoder": f"kind downsample {TRAINING.replace('preset ', '').partition(' hub_model_id')[0]}",
    "train": TRAINING,
    "distill": f"model steps {TRAINING.replace('preset ', '')}",
    "report": "",
    "generate": "model masks num_images_per_mask output seed device dtype",
    "app": "model device dtype",
    "segmenter": "dataset output seed device",
    "label": "images segmenter output min_confidence split",
    "filter": "generated dataset segmenter output",
    "evaluate": "model dataset split output image_column mask_column seed device dtype",
    "study": "dataset generated output seeds device",
    "merge": "dataset generated output",
    "grow": "dataset model output",
    "convert": "from output",
    "export": "model output dtype seed",
    "push": "model dataset repo_id",
}


def test_there_is_a_row_for_each_command():
    assert list(OPTIONS) == list(cli.COMMANDS)


@pytest.mark.parametrize("name", OPTIONS)
def test_a_command_has_its_options(name, capsys):
    with pytest.raises(SystemExit) as exit_info:
        cli.main([name, "--help"])
    assert exit_info.value.code == 0
    listed = set(re.findall(r"--(\w+)", capsys.readouterr().out))
    assert {*OPTIONS[name].split(), "help"} - listed == set()


def parameters(function) -> list[str]:
    return [name for name in inspect.signature(function).parameters if name != "self"]


def test_the_network_takes_its_arguments():
    network = semseg_diffusers.MaskGuidedUNet2DModel
    names = ["sample", "timestep", "class_labels", "mask", "mask_features", "return_dict"]
    assert [name for name in parameters(network.forward) if name in names] == names
    assert {"sample_size", "in_channels", "out_channels", "num_classes", "mask_conditioning"} <= set(
        parameters(network)
    )
    assert {"num_classes", "hidden_dim", "emb_dim"} <= set(parameters(semseg_diffusers.PaperUNet2DModel))
    assert callable(network.encode_mask)


def test_the_pipelines_take_their_arguments():
    shared = """mask num_images_per_mask num_inference_steps guidance_scale guidance_start guidance_stop generator
        output_type return_dict callback_on_step_end"""
    for name in ("MaskGuidedDDPMPipeline", "MaskGuidedImg2ImgPipeline", "MaskGuidedInpaintPipeline"):
        pipeline = getattr(semseg_diffusers, name)
        recommendation = ["default_num_inference_steps", "default_guidance_scale", "trained_timesteps"]
        texts = ["text_encoder", "tokenizer", "text_encoder_source"]
        assert parameters(pipeline) == ["unet", "scheduler", *recommendation, *texts, "vae"]
        assert set(shared.split()) <= set(parameters(pipeline.__call__))
    assert "latents" in parameters(semseg_diffusers.MaskGuidedDDPMPipeline.__call__)


def test_label_sets_have_their_methods():
    labels = semseg_diffusers.LabelSet
    assert all(labels.from_preset(name).num_classes > 0 for name in ("bdd100k", "cityscapes", "camvid", "paper"))
    assert {"from_json", "encode", "decode"} <= set(dir(labels))
    assert "tolerance" in parameters(labels.encode)


def test_the_package_offers_thirty_to_fifty_names_each_with_a_home():
    assert 30 <= len(semseg_diffusers.__all__) <= 50
    assert set(semseg_diffusers.__all__) <= set(dir(semseg_diffusers))
    for name in semseg_diffusers.__all__:
        public = getattr(semseg_diffusers, name)
        assert public.__name__ == name
        assert public.__module__.startswith("semseg_diffusers")
    with pytest.raises(AttributeError, match="has no attribute 'MaskGuidedUnet'"):
        semseg_diffusers.MaskGuidedUnet  # noqa: B018


def test_names_for_type_checkers_are_those_that_are_loaded():
    tree = ast.parse(Path(semseg_diffusers.__file__).read_text(encoding="utf-8"))
    block = next(node for node in tree.body if isinstance(node, ast.If))
    checked = {alias.name: node.module for node in block.body for alias in node.names}
    loaded = {name: getattr(semseg_diffusers, name).__module__ for name in semseg_diffusers.__all__}
    assert checked == {name: module for name, module in loaded.items() if name != "register"}


@pytest.mark.parametrize("statement", ["import semseg_diffusers", "from semseg_diffusers import LabelSet"])
def test_importing_the_package_or_its_label_sets_loads_no_diffusers(statement, clean_process):
    code = f"import sys\n{statement}\nprint(sorted({{'diffusers', 'transformers', 'datasets'}} & set(sys.modules)))"
    assert clean_process(code).stdout == "[]\n"
