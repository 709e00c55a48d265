"""A saved pipeline is one folder that loads anywhere: its layout, and the three ways to load it in a clean process."""

import json
from pathlib import Path

import diffusers
import pytest
import torch
from diffusers import DiffusionPipeline
from helpers.loading import DIFFUSERS_CLASS, DRAW, KINDS, NETWORKS, OUR_CLASS, REMOTE_CODE, draw, tiny_pipeline

import semseg_diffusers
from semseg_diffusers import (
    LabelSet,
    MaskGuidedDDPMPipeline,
    MaskGuidedImg2ImgPipeline,
    MaskGuidedInpaintPipeline,
    MaskGuidedUNet2DModel,
)


PIPELINES = Path(semseg_diffusers.__file__).parent / "pipelines"
# laid beside pipeline.py
SHARED = (
    "guidance.py",
    "latents.py",
    "mask_guided_mixin.py",
    "mask_inputs.py",
    "portable.py",
    "scheduler_trial.py",
    "text_inputs.py",
)
EDITING = {
    "pipeline_mask_guided_img2img": MaskGuidedImg2ImgPipeline,
    "pipeline_mask_guided_inpaint": MaskGuidedInpaintPipeline,
}


def files_of(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def check_layout(folder: Path, network: str) -> None:
    index = json.loads((folder / "model_index.json").read_text())
    assert index == {
        "_class_name": "MaskGuidedDDPMPipeline",
        "_diffusers_version": diffusers.__version__,
        "default_guidance_scale": None,
        "default_num_inference_steps": None,
        "scheduler": ["diffusers", "DDIMScheduler"],
        "trained_timesteps": None,
        "unet": [network, NETWORKS[network]],
    }
    assert (folder / "pipeline.py").read_text() == (PIPELINES / "pipeline_mask_guided_ddpm.py").read_text()
    for name in SHARED:
        assert (folder / name).read_text() == (PIPELINES / name).read_text()
    (network_source,) = PIPELINES.parent.glob(f"models/**/{network}.py")
    assert (folder / "unet" / f"{network}.py").read_text() == network_source.read_text()


@pytest.mark.parametrize("network", NETWORKS)
def test_saved_folder_has_the_layout_that_loads_anywhere(network, tmp_path):
    tiny_pipeline(network).save_pretrained(tmp_path)
    check_layout(tmp_path, network)
    assert files_of(tmp_path) == {
        "model_index.json",
        "pipeline.py",
        *SHARED,
        "scheduler/scheduler_config.json",
        "unet/config.json",
        "unet/diffusion_pytorch_model.safetensors",
        f"unet/{network}.py",
    }


@pytest.mark.parametrize(
    ("settings", "weights"),
    [
        ({"variant": "fp16"}, "diffusion_pytorch_model.fp16.safetensors"),
        ({"safe_serialization": False}, "diffusion_pytorch_model.bin"),
    ],
)
def test_saving_options_of_diffusers_hold(settings, weights, tmp_path):
    pipe = tiny_pipeline("unet_mask_guided")
    pipe.save_pretrained(tmp_path, **settings)
    check_layout(tmp_path, "unet_mask_guided")
    assert (tmp_path / "unet" / weights).is_file()
    again = MaskGuidedDDPMPipeline.from_pretrained(tmp_path, variant=settings.get("variant"))
    assert torch.equal(draw(again), draw(pipe))


def test_pushing_uploads_the_same_layout(tmp_path, monkeypatch):
    uploaded = []

    def record_upload(self, folder, *args, **kwargs):
        check_layout(Path(folder), "unet_mask_guided")
        uploaded.append(files_of(Path(folder)))

    class Repository:
        repo_id = "someone/streets"

    # Only the wire is cut: what is saved, and when it is uploaded, is diffusers' and ours.
    monkeypatch.setattr(DiffusionPipeline, "_upload_folder", record_upload)
    for module in ("diffusers.pipelines.pipeline_utils", "diffusers.utils.hub_utils"):
        monkeypatch.setattr(f"{module}.create_repo", lambda *_, **__: Repository)
        monkeypatch.setattr(f"{module}.load_or_create_model_card", lambda *_, **__: Card())
        monkeypatch.setattr(f"{module}.populate_model_card", lambda card: card)
    pipe = tiny_pipeline("unet_mask_guided")
    pipe.save_pretrained(str(tmp_path / "streets"), push_to_hub=True)
    pipe.push_to_hub("someone/streets")
    assert len(uploaded) == 2
    assert all("unet/unet_mask_guided.py" in files for files in uploaded)


class Card:
    def save(self, path):
        Path(path).write_text("a card")


def test_saving_again_over_an_old_folder_leaves_it_whole(tmp_path):
    pipe = tiny_pipeline("unet_mask_guided")
    pipe.save_pretrained(tmp_path)
    again = MaskGuidedDDPMPipeline.from_pretrained(tmp_path)
    again.save_pretrained(tmp_path)
    check_layout(tmp_path, "unet_mask_guided")
    assert torch.equal(draw(MaskGuidedDDPMPipeline.from_pretrained(tmp_path)), draw(pipe))


def test_network_keeps_its_label_set_through_saving(tmp_path):
    tiny_pipeline("unet_mask_guided").save_pretrained(tmp_path)
    unet = MaskGuidedUNet2DModel.from_pretrained(tmp_path, subfolder="unet")
    assert LabelSet.from_config(unet.config) == LabelSet.from_preset("bdd100k")


def test_names_that_saved_checkpoints_hold_are_known_to_diffusers():
    assert diffusers.MaskGuidedDDPMPipeline is MaskGuidedDDPMPipeline
    assert diffusers.MaskGuidedImg2ImgPipeline is MaskGuidedImg2ImgPipeline
    assert diffusers.MaskGuidedInpaintPipeline is MaskGuidedInpaintPipeline
    for module, network in NETWORKS.items():
        assert getattr(diffusers, network) is getattr(semseg_diffusers, network)
        assert getattr(getattr(diffusers.pipelines, module), network) is getattr(semseg_diffusers, network)


@pytest.mark.parametrize("code", [OUR_CLASS, DIFFUSERS_CLASS], ids=["our_class", "diffusers_class"])
def test_folder_loads_in_a_clean_process_with_the_package_and_without_trust(code, tmp_path, clean_process):
    pipe = tiny_pipeline("unet_mask_guided")
    pipe.save_pretrained(tmp_path / "saved")
    clean_process(code + DRAW, tmp_path / "saved", tmp_path / "images.pt")
    assert torch.equal(torch.load(tmp_path / "images.pt"), draw(pipe))


@pytest.mark.parametrize("kind", KINDS)
def test_folder_loads_in_a_clean_process_without_the_package_and_saves_the_same_layout(kind, tmp_path, clean_process):
    pipe = tiny_pipeline(kind)
    pipe.save_pretrained(tmp_path / "saved")
    paths = (tmp_path / "saved", tmp_path / "images.pt", tmp_path / "again")
    clean_process(REMOTE_CODE + DRAW, *paths, without_package=True)
    assert torch.equal(torch.load(tmp_path / "images.pt"), draw(pipe))
    check_layout(tmp_path / "again", KINDS[kind][0])
    assert files_of(tmp_path / "again") == files_of(tmp_path / "saved")
    assert torch.equal(draw(MaskGuidedDDPMPipeline.from_pretrained(tmp_path / "again")), draw(pipe))


def test_remote_code_does_not_run_unless_asked_for(tmp_path, clean_process):
    tiny_pipeline("unet_mask_guided").save_pretrained(tmp_path / "saved")
    code = "import sys\nfrom diffusers import DiffusionPipeline\nDiffusionPipeline.from_pretrained(sys.argv[1])"
    result = clean_process(code, tmp_path / "saved", without_package=True, check=False)
    assert result.returncode != 0
    assert "MaskGuidedDDPMPipeline" in result.stderr


# The pipelines that edit photos

EDIT = """
pipe.set_progress_bar_config(disable=True)
ids = torch.arange(16 * 16).reshape(1, 16, 16) % 19
photo = torch.arange(3 * 16 * 16).reshape(3, 16, 16) % 256 / 255
settings = {"generator": torch.Generator().manual_seed(0), "num_inference_steps": 4, "output_type": "pt"}
if "Inpaint" in type(pipe).__name__:
    settings["edit_region"] = ids[0] < 9
"""


def edited(pipe) -> torch.Tensor:
    names = {"pipe": pipe, "torch": torch}
    exec(EDIT, names)
    return pipe(names["photo"], names["ids"], **names["settings"]).images


@pytest.mark.parametrize("file", EDITING)
@pytest.mark.slow
def test_folder_of_a_pipeline_that_edits_loads_without_the_package_and_saves_the_same_files(
    file, tmp_path, clean_process
):
    pipe = EDITING[file].from_pipe(tiny_pipeline("unet_mask_guided"))
    pipe.save_pretrained(tmp_path / "saved")
    index = json.loads((tmp_path / "saved" / "model_index.json").read_text())
    assert index["_class_name"] == EDITING[file].__name__
    assert index["unet"] == ["unet_mask_guided", "MaskGuidedUNet2DModel"]
    assert (tmp_path / "saved" / "pipeline.py").read_text() == (PIPELINES / f"{file}.py").read_text()
    for name in (*SHARED, "image_inputs.py"):
        assert (tmp_path / "saved" / name).read_text() == (PIPELINES / name).read_text()

    code = REMOTE_CODE + EDIT + "torch.save(pipe(photo, ids, **settings).images, sys.argv[2])"
    paths = (tmp_path / "saved", tmp_path / "images.pt", tmp_path / "again")
    clean_process(code, *paths, without_package=True)
    assert torch.allclose(torch.load(tmp_path / "images.pt"), edited(pipe), atol=1e-4)
    assert files_of(tmp_path / "again") == files_of(tmp_path / "saved")
    for name in files_of(tmp_path / "again"):
        if name.endswith(".py") or name == "model_index.json":
            assert (tmp_path / "again" / name).read_text() == (tmp_path / "saved" / name).read_text()


def test_pipelines_that_edit_load_with_the_package_from_their_own_folder_and_from_that_of_a_run(
    tmp_path, clean_process
):
    run = tiny_pipeline("unet_mask_guided")
    run.save_pretrained(tmp_path / "run")
    code = "import sys, torch, diffusers, semseg_diffusers\nfrom diffusers import DiffusionPipeline\n"
    for name, kind in EDITING.items():
        kind.from_pipe(run).save_pretrained(tmp_path / name)
        for load, images in (
            (f"DiffusionPipeline.from_pretrained(sys.argv[1] + '/{name}')", f"{name}_own.pt"),
            (f"diffusers.{kind.__name__}.from_pretrained(sys.argv[1] + '/run')", f"{name}_run.pt"),
        ):
            code += f"pipe = {load}\nassert type(pipe) is semseg_diffusers.{kind.__name__}\n{EDIT}"
            code += f"torch.save(pipe(photo, ids, **settings).images, sys.argv[1] + '/{images}')\n"
    clean_process(code, tmp_path)
    for name, kind in EDITING.items():
        for origin in ("own", "run"):
            images = torch.load(tmp_path / f"{name}_{origin}.pt")
            assert torch.allclose(images, edited(kind.from_pipe(run)), atol=1e-4)


OLD_PIPELINE = """
import torch
from diffusers import DiffusionPipeline, ImagePipelineOutput
SHARED

class MaskGuidedDDPMPipeline(DiffusionPipeline):
    def __init__(self, unet, scheduler):
        super().__init__()
        self.register_modules(unet=unet, scheduler=scheduler)

    def __call__(self, mask, **settings):
        return ImagePipelineOutput(images=torch.full((1, 3, *mask.shape[-2:]), GREY))
"""


@pytest.mark.parametrize("shared", [None, "mask_guidance"], ids=["all code in one file", "shared file of an old name"])
def test_a_folder_with_the_code_of_an_earlier_version_loads_as_it_did(shared, tmp_path, clean_process):
    pipe = tiny_pipeline("unet_mask_guided")
    pipe.save_pretrained(tmp_path)
    for name in SHARED:
        (tmp_path / name).unlink()
    line = "GREY = 0.5" if shared is None else f"from .{shared} import GREY"
    (tmp_path / "pipeline.py").write_text(OLD_PIPELINE.replace("SHARED", line))
    if shared is not None:
        (tmp_path / f"{shared}.py").write_text("GREY = 0.5\n")
    code = REMOTE_CODE.replace("pipe.save_pretrained(sys.argv[3])", "")
    clean_process(code + DRAW, tmp_path, tmp_path / "images.pt", without_package=True)
    assert (torch.load(tmp_path / "images.pt") == 0.5).all()
    for loaded in (MaskGuidedDDPMPipeline.from_pretrained(tmp_path), DiffusionPipeline.from_pretrained(tmp_path)):
        assert torch.equal(draw(loaded), draw(pipe))  # the package's own code
