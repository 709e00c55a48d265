"""A model written as a folder to ship: small, loadable in each way, with its results and what it draws; or refused."""

import io
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline
from helpers.cards import write_card
from helpers.evaluation_results import evaluation_results
from helpers.tiny_pipelines import draw, random_ids, tiny_unet
from helpers.tiny_pipelines import pipeline as tiny_pipeline
from PIL import Image
from safetensors.torch import load_file

from semseg_diffusers import MaskGuidedDDPMPipeline, MaskGuidedInpaintPipeline, MaskGuidedUpscalePipeline, cli
from semseg_diffusers.generation.generate import generate_dataset
from semseg_diffusers.generation.model import model_revision
from semseg_diffusers.generation.settings import GenerationSettings
from semseg_diffusers.hub import cards, export
from semseg_diffusers.hub.export import choose_masks, make_sheet
from semseg_diffusers.hub.folders import check_model_folder, model_files, weights_hash
from semseg_diffusers.hub.settings import ExportSettings, SheetOptions
from semseg_diffusers.toy.scenes import write_toy_dataset
from semseg_diffusers.training.settings import TrainingSettings
from semseg_diffusers.utils.files import write_json
from semseg_diffusers.utils.images import GAP


WEIGHTS = "unet/diffusion_pytorch_model.safetensors"


def exported(model, output, **options) -> Path:
    return export.export_model(ExportSettings(model=str(model), output=str(output), **options))


def sheet_of(masks, num_masks: int = 3, samples: int = 2, seed: int = 0) -> SheetOptions:
    return SheetOptions(masks=str(masks), num_masks=num_masks, samples=samples, seed=seed)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run folder as training leaves it: averaged weights, the last step's beside them, checkpoints, previews."""
    run = tmp_path_factory.mktemp("runs") / "streets run"
    tiny_pipeline().save_pretrained(run)
    pipeline = MaskGuidedDDPMPipeline.from_pretrained(run)
    pipeline.save_pretrained(run)  # once more: its config now says where the network was loaded from
    pipeline.unet.save_pretrained(run / "unet", variant="raw")
    settings = TrainingSettings(dataset="/home/someone/data/toy16", output_dir="/home/someone/runs/streets")
    write_card(run, settings, "camvid")
    write_json(run / "settings.json", settings.to_dict())
    (run / "log.jsonl").write_text('{"step": 4, "loss": 0.5}\n')
    for name in ("previews/step-0000004.png", "checkpoint-4/optimizer.bin", "run.html"):
        (run / name).parent.mkdir(exist_ok=True)
        (run / name).write_bytes(b"state")
    assert "/" in json.loads((run / "unet" / "config.json").read_text())["_name_or_path"]
    return run


@pytest.fixture(scope="module")
def masks(tmp_path_factory):
    return write_toy_dataset(tmp_path_factory.mktemp("data") / "toy16", 1, 6, (16, 16)) / "val" / "masks"


@pytest.fixture(scope="module")
def shipped(run, masks, tmp_path_factory):
    """The run, exported with a sheet."""
    folder = tmp_path_factory.mktemp("shipped") / "streets"
    return exported(run, folder, masks=str(masks), num_masks=3, samples=2, device="cpu")


def refused(capsys, *words: object) -> str:
    """Run `semseg-diffusers export WORDS`, expect exit code 2, and return its line of error."""
    assert cli.main(["export", *map(str, words)]) == 2
    return capsys.readouterr().err.splitlines()[-1]


def test_weights_are_half_as_large_and_compute_in_float32_in_each_way_to_load_them(run, shipped, tmp_path):
    before, after = load_file(run / WEIGHTS), load_file(shipped / WEIGHTS)
    assert {tensor.dtype for tensor in after.values()} == {torch.float16}
    assert all(torch.equal(after[name], tensor.half()) for name, tensor in before.items())

    rounded = MaskGuidedDDPMPipeline.from_pretrained(run)
    rounded.unet.half().float()
    ours = MaskGuidedDDPMPipeline.from_pretrained(shipped)
    known = DiffusionPipeline.from_pretrained(shipped)
    ours.save_pretrained(tmp_path)  # adds the code files
    remote = DiffusionPipeline.from_pretrained(tmp_path, custom_pipeline=str(tmp_path), trust_remote_code=True)
    assert type(remote).__module__.startswith("diffusers_modules")
    images = []
    for pipe in (rounded, ours, known, remote):
        assert {tensor.dtype for tensor in pipe.unet.state_dict().values()} == {torch.float32}
        pipe.set_progress_bar_config(disable=True)
        images.append(draw(pipe, random_ids()))
    assert all(torch.equal(images[0], image) for image in images[1:])
    half = MaskGuidedDDPMPipeline.from_pretrained(shipped, dtype=torch.float16)
    assert half.unet.dtype == torch.float16


def test_it_holds_what_a_push_publishes_but_code_and_other_weights_and_names_no_path_of_the_machine(run, shipped):
    published = {*model_files(run, check_model_folder(run)), "README.md"}
    there = {path.relative_to(shipped).as_posix() for path in shipped.rglob("*") if path.is_file()}
    code = {name for name in published if name.endswith(".py")}
    assert published - there == code | {"unet/diffusion_pytorch_model.raw.safetensors"}
    assert {"pipeline.py", "guidance.py", "unet/unet_mask_guided.py"} <= code
    assert there - published == {"export.json", "samples.jpg", "run.html"}
    for path in shipped.rglob("*.[jm][sd]*"):
        assert not re.search(r"/home/|/tmp|_name_or_path", path.read_text()), path
    assert json.loads((shipped / "settings.json").read_text())["dataset"] == "toy16"


def test_the_card_says_licence_precision_and_only_weights_that_are_there(run, shipped):
    assert "`raw`" in (run / "README.md").read_text()
    card = (shipped / "README.md").read_text()
    assert "`raw`" not in card
    assert "| weights saved | exponential average, decay up to 0.9995 |\n" in card
    assert cards.metadata(card)["license"] == "cc-by-nc-4.0"
    assert card.count("\n# streets\n") == 1
    assert 'from_pretrained("streets")' in card
    assert "stored in float16: `from_pretrained` converts them to float32" in card
    assert "![Masks and samples](samples.jpg)" in card
    assert "*3 of 6 masks, chosen by seed 0, and the first samples of each, none left out.\n" in card
    assert "\nLicence of the weights and of their samples: cc-by-nc-4.0.*\n" in card
    assert "holds no code files: `pipe.save_pretrained` and `semseg-diffusers push` add them" in card


def test_what_was_exported_and_is_again_names_no_picture_or_results_that_are_not_there(shipped, tmp_path):
    first = shutil.copytree(shipped, tmp_path / "first")
    card = cards.replace_part((first / "README.md").read_text(), "results", "[results/val.json](results/val.json)")
    (first / "README.md").write_text(card)
    (first / "results").mkdir()
    (first / "results" / "val.json").write_text("{}")
    again = exported(first, tmp_path / "again", dtype="bfloat16")
    card = (again / "README.md").read_text()
    assert "rounded to float16" not in card
    named = [name for name in re.findall(r"\]\(([^)]+)\)", card) if not name.startswith("http")]
    assert named == ["results/val.json"]
    assert (again / "results" / "val.json").read_text() == "{}"


def test_the_run_page_with_its_photos_goes_along_only_where_a_licence_is_named(run, tmp_path, caplog):
    unknown = shutil.copytree(run, tmp_path / "unknown")
    card = unknown / "README.md"
    card.write_text(card.read_text().replace("license: cc-by-nc-4.0\n", ""))
    assert not (exported(unknown, tmp_path / "made") / "run.html").exists()
    assert "the card names no licence: write `license:` at the head of" in caplog.text


def test_a_relative_output_is_named_as_it_is_given(run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    card = (exported(run, "checkpoints/streets", dtype="float32") / "README.md").read_text()
    assert 'from_pretrained("checkpoints/streets")' in card
    assert "\n# streets\n" in card
    assert "are stored in" not in card


def test_the_sheet_shows_masks_chosen_by_the_seed_and_is_the_same_each_time(shipped, masks):
    sheet = sheet_of(masks)
    record = json.loads((shipped / "export.json").read_text())["sheet"]
    assert record["masks"] == [path.stem for path in choose_masks(sheet)[0]]
    assert (record["of"], record["samples"], record["num_inference_steps"]) == (6, 2, 20)
    chosen = {tuple(choose_masks(sheet_of(masks, seed=seed))[0]) for seed in range(5)}
    assert len(chosen) > 1

    data, again = make_sheet(MaskGuidedDDPMPipeline.from_pretrained(shipped), sheet)
    assert again == record
    assert data == (shipped / "samples.jpg").read_bytes()
    picture = Image.open(io.BytesIO(data))
    assert picture.width >= 9 * 128  # all three blocks of a mask and two samples in one row
    assert len(data) <= export.MAX_SHEET_BYTES


def test_the_images_that_agree_best_and_worst_are_drawn_again_and_named_on_the_card(run, masks, tmp_path, capsys):
    stems = sorted(path.stem for path in masks.glob("*.png"))
    results = evaluation_results(weights_hash(MaskGuidedDDPMPipeline.from_pretrained(run).unet.state_dict()))
    entries = [{"image": f"{stem}_0", "stem": stem, "mean_iou": 0.9 - i / 10} for i, stem in enumerate(stems[:4])]
    results["examples"] = {"rule": "by a rule", "best": entries[:2], "worst": entries[:1:-1]}
    results["generation"] |= {"scheduler": type(tiny_pipeline().scheduler).__name__}
    results["generation"] |= {"num_inference_steps": 2, "guidance_scale": 1.0, "seed": 5}
    file = tmp_path / "toy16" / "results.json"
    file.parent.mkdir()
    file.write_text(json.dumps(results))
    options = {"masks": str(masks), "num_masks": 1, "samples": 1, "device": "cpu", "results": (str(file),)}
    folder = exported(run, tmp_path / "made", **options)
    card = (folder / "README.md").read_text()
    assert "![Best and worst images](extremes.jpg)" in card
    assert "by a rule; 0.80 or more, and 0.70 or less" in " ".join(card.split())
    assert "extremes.jpg" in model_files(folder, check_model_folder(folder))

    generate_dataset(
        MaskGuidedDDPMPipeline.from_pretrained(folder), masks, tmp_path / "generated",
        GenerationSettings(num_inference_steps=2, guidance_scale=1.0, seed=5), contact_sheet_rows=0,
    )  # fmt: skip
    with Image.open(folder / "extremes.jpg") as sheet:
        shown = np.asarray(sheet.convert("RGB"), dtype=int)
    for row, chosen in enumerate((stems[:2], stems[3:1:-1])):
        for column, stem in enumerate(chosen):
            image = Image.open(tmp_path / "generated" / "images" / f"{stem}_0.png").convert("RGB")
            top, right = GAP + row * (128 + GAP), shown.shape[1] - GAP - (3 - 2 * column - 1) * (128 + GAP)
            cell = shown[top : top + 128, right - 128 : right]
            assert np.abs(cell.mean(axis=(0, 1)) - np.asarray(image).mean(axis=(0, 1))).max() < 6  # JPEG

    results["examples"]["worst"] = [{"image": "other_0", "stem": "other", "mean_iou": 0.1}]
    file.write_text(json.dumps(results))
    message = refused(
        capsys, "--model", run, "--output", tmp_path / "none", "--masks", masks, "--num_masks", 1, "--results", file
    )
    assert "holds no mask 'other', whose image is among the best or worst of --results" in message
    assert not (tmp_path / "none").exists()


def test_what_the_model_recommends_is_exported_shown_on_the_card_and_used_for_the_sheet(masks, tmp_path):
    pipeline = tiny_pipeline()
    few = MaskGuidedDDPMPipeline(pipeline.unet, pipeline.scheduler, 1, 1.0, trained_timesteps=[999])
    few.save_pretrained(tmp_path / "few")
    folder = exported(tmp_path / "few", tmp_path / "made", masks=str(masks), num_masks=1, samples=1, device="cpu")
    index = json.loads((folder / "model_index.json").read_text())
    assert (index["default_num_inference_steps"], index["default_guidance_scale"]) == (1, 1.0)
    assert index["trained_timesteps"] == [999]
    sheet = json.loads((folder / "export.json").read_text())["sheet"]
    assert (sheet["num_inference_steps"], sheet["guidance_scale"]) == (1, 1.0)
    card = (folder / "README.md").read_text()
    assert "\n\nRecommended, and the default of the call: 1 sampling step, guidance scale 1.\n\n" in card
    assert 'image = pipe("mask.png").images[0]' in card


def test_the_sheet_of_an_upscaler_shows_images_of_another_model_enlarged(masks, tmp_path):
    torch.manual_seed(0)
    unet = tiny_unet(upscale_factor=2)
    MaskGuidedUpscalePipeline(unet, tiny_pipeline().scheduler, 2, 1.0).save_pretrained(tmp_path / "upscaler")
    tiny_pipeline().save_pretrained(tmp_path / "generator")
    given = {"masks": str(masks), "num_masks": 1, "samples": 1, "device": "cpu"}
    upscaler, generator = tmp_path / "upscaler", str(tmp_path / "generator")
    folder = exported(upscaler, tmp_path / "made", **given, generator=generator)
    sheet = json.loads((folder / "export.json").read_text())["sheet"]
    assert (sheet["num_inference_steps"], sheet["guidance_scale"], sheet["generator"]) == (2, 1.0, generator)
    assert (folder / "samples.jpg").is_file()
    assert f"Images of `{generator}`, enlarged by these very weights" in (folder / "README.md").read_text()
    with pytest.raises(ValueError, match="give both --masks and --generator"):
        exported(upscaler, tmp_path / "other", **given)
    with pytest.raises(ValueError, match="--generator is for upscalers"):
        exported(generator, tmp_path / "other", **given, generator=generator)


def test_the_card_of_an_upscaler_shows_the_best_and_worst_of_the_images_that_it_enlarged(masks, tmp_path):
    torch.manual_seed(0)
    unet, pipeline = tiny_unet(upscale_factor=2), tiny_pipeline()
    MaskGuidedUpscalePipeline(unet, pipeline.scheduler, 2, 1.0).save_pretrained(tmp_path / "upscaler")
    pipeline.save_pretrained(tmp_path / "generator")
    stems = sorted(path.stem for path in masks.glob("*.png"))
    results = evaluation_results(weights_hash(pipeline.unet.state_dict()))
    entries = [{"image": f"{stem}_0", "stem": stem, "mean_iou": 0.5} for stem in stems[:2]]
    results["examples"] = {"rule": "by a rule", "best": entries[:1], "worst": entries[1:]}
    results["generation"] |= {"scheduler": type(pipeline.scheduler).__name__}
    file = tmp_path / "results.json"
    file.write_text(json.dumps(results))
    given = {"masks": str(masks), "num_masks": 1, "samples": 1, "device": "cpu", "results": (str(file),)}
    given |= {"generator": str(tmp_path / "generator")}
    with pytest.raises(ValueError, match="for images that no upscaler enlarged.*evaluate --upscaler"):
        exported(tmp_path / "upscaler", tmp_path / "none", **given)

    enlarged = {"model": "enlarged", "upscaler": "upscaler", "upscaler_revision": weights_hash(unet.state_dict())}
    results["generation"] |= {**enlarged, "upscaler_steps": 2, "noise_level": 0}
    file.write_text(json.dumps(results))
    folder = exported(tmp_path / "upscaler", tmp_path / "made", **given)
    card = (folder / "README.md").read_text()
    assert "![Best and worst images](extremes.jpg)" in card
    command = re.search("^semseg-diffusers generate .*$", card, flags=re.MULTILINE)[0]
    assert "--upscaler made " in command
    assert "--model enlarged " in command
    with Image.open(folder / "extremes.jpg") as picture:
        assert picture.height > 2 * 128  # two rows of cells

    results["generation"]["revision"] = "sha256:0123456789abcdef"
    file.write_text(json.dumps(results))
    with pytest.raises(ValueError, match="--generator .* has other weights .* than the model whose enlarged images"):
        exported(tmp_path / "upscaler", tmp_path / "none", **given)
    results["generation"]["upscaler_revision"] = "sha256:0123456789abcdef"
    file.write_text(json.dumps(results))
    with pytest.raises(ValueError, match=r"is for other weights \(sha256:0123456789abcdef\) than"):
        exported(tmp_path / "upscaler", tmp_path / "none", **given)
    assert not (tmp_path / "none").exists()


def test_a_card_recommends_only_what_the_model_does():
    index = {"_class_name": "MaskGuidedDDPMPipeline"}
    assert "Recommended" not in cards.model_use("streets", index)
    for recommended, text in (
        ({"default_guidance_scale": 0.0}, "\n\nRecommended, and the default of the call: guidance scale 0.\n\n"),
        ({"default_num_inference_steps": 20}, "\n\nRecommended, and the default of the call: 20 sampling steps.\n\n"),
    ):
        assert text in cards.model_use("streets", index | recommended)


def test_a_sheet_that_cannot_be_small_enough_is_refused(shipped, masks, monkeypatch):
    monkeypatch.setattr(export, "MAX_SHEET_BYTES", 1000)
    with pytest.raises(ValueError, match="does not fit into 1 kB. Use fewer --num_masks or --samples"):
        make_sheet(MaskGuidedDDPMPipeline.from_pretrained(shipped), sheet_of(masks, 1, 1))


def test_results_of_either_precision_fill_the_card_and_those_of_other_weights_are_refused(run, tmp_path, capsys):
    file = tmp_path / "toy16" / "results.json"
    file.parent.mkdir()
    before = weights_hash(MaskGuidedDDPMPipeline.from_pretrained(run).unet.state_dict())
    file.write_text(json.dumps(evaluation_results(before)))
    made = exported(run, tmp_path / "of_before", results=(str(file),))
    card = (made / "README.md").read_text()
    assert "| mean IoU | higher | 0.125 | 0.250 | 0.500 |" in card
    assert "Measured before the weights were rounded to float16." in card
    assert cards.metadata(card)["model-index"]
    saved = json.loads((made / "results" / "toy16.json").read_text())
    assert saved["settings"]["dataset"] == "toy16"
    assert not (made / "samples.jpg").exists()

    rounded = model_revision(MaskGuidedDDPMPipeline.from_pretrained(made).unet)
    assert rounded != before
    assert rounded == json.loads((made / "export.json").read_text())["weights"]
    file.write_text(json.dumps(evaluation_results(rounded)))
    card = (exported(run, tmp_path / "of_after", results=(str(file),)) / "README.md").read_text()
    assert "Measured before" not in card
    # and a folder that was exported takes results of itself
    assert (exported(made, tmp_path / "again", results=(str(file),)) / WEIGHTS).read_bytes() == (
        made / WEIGHTS
    ).read_bytes()

    file.write_text(json.dumps(evaluation_results("sha256:0123456789abcdef")))
    message = refused(capsys, "--model", run, "--output", tmp_path / "none", "--results", file)
    assert "is for other weights (sha256:0123456789abcdef) than" in message
    assert not (tmp_path / "none").exists()


def test_a_push_of_an_exported_folder_takes_its_sheet_record_and_results_along(run, shipped, tmp_path):
    folder = shutil.copytree(shipped, tmp_path / "streets")
    (folder / "results").mkdir()
    (folder / "results" / "toy16.json").write_text("{}")
    names = {*model_files(folder, check_model_folder(folder))}
    assert {"samples.jpg", "export.json", "results/toy16.json"} <= names
    mine = shutil.copytree(run, tmp_path / "run")
    (mine / "samples.jpg").write_bytes(b"of the user's own")
    (mine / "results").mkdir()
    assert not {"results/toy16.json", "export.json"} & {*model_files(mine, check_model_folder(mine))}


def test_pipelines_that_edit_stay_what_they_are(tmp_path):
    tiny_pipeline(kind=MaskGuidedInpaintPipeline).save_pretrained(tmp_path / "saved")
    made = exported(tmp_path / "saved", tmp_path / "made")
    assert type(DiffusionPipeline.from_pretrained(made)) is MaskGuidedInpaintPipeline
    assert "old_mask=" in (made / "README.md").read_text()


def test_what_stands_there_is_left_alone_unless_this_command_made_it(run, shipped, tmp_path, capsys):
    there = shutil.copytree(shipped, tmp_path / "there")
    words = ("--model", run, "--output", there)
    assert "is not empty. Choose another folder, or use --overwrite" in refused(capsys, *words)
    assert cli.main(["export", *map(str, words), "--overwrite", "--dtype", "bfloat16"]) == 0
    assert "weights in bfloat16" in capsys.readouterr().out
    assert load_file(there / WEIGHTS).popitem()[1].dtype == torch.bfloat16
    (there / "export.json").unlink()
    assert "so it is no exported model and --overwrite does not replace it" in refused(capsys, *words, "--overwrite")


def test_weights_too_large_for_half_precision_are_refused_and_nothing_is_left(tmp_path, masks):
    large = tiny_pipeline()
    with torch.no_grad():
        large.unet.conv_out.weight.fill_(1e6)
    large.save_pretrained(tmp_path / "large")
    with pytest.raises(ValueError, match="--dtype float16 cannot hold the weights conv_out.weight: use bfloat16"):
        exported(tmp_path / "large", tmp_path / "made")
    assert [path.name for path in tmp_path.iterdir()] == ["large"]
    assert (exported(tmp_path / "large", tmp_path / "made", dtype="bfloat16") / WEIGHTS).is_file()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--num_masks", "2", "--seed", "1"), "--num_masks, --seed: only with --masks"),
        (("--masks", "{masks}", "--num_masks", "7"), "holds 6 masks; expected at least --num_masks 7"),
        (("--masks", "{masks}", "--samples", "0"), "--samples must be 1 or more; got 0"),
        (("--masks", "{masks}", "--num_masks", "1", "--mask_labels", "nothing"), "nothing"),
        (("--model", "{masks}"), "holds no model_index.json"),
        (("--model", "nowhere"), "there is no folder 'nowhere'"),
    ],
)
def test_options_that_make_no_sense_are_refused_before_any_work(run, masks, tmp_path, capsys, options, message):
    options = [option.format(masks=masks) for option in options]
    assert message in refused(capsys, "--model", run, "--output", tmp_path / "made", *options)
    assert not [*tmp_path.iterdir()]


def test_a_class_or_a_precision_that_is_not_known_is_refused(run, tmp_path):
    with pytest.raises(ValueError, match="--dtype must be one of float16, bfloat16, float32"):
        exported(run, tmp_path / "made", dtype="int8")
    newer = shutil.copytree(run, tmp_path / "newer")
    index = newer / "model_index.json"
    index.write_text(index.read_text().replace("MaskGuidedDDPMPipeline", "MaskGuidedVideoPipeline"))
    with pytest.raises(ValueError, match="holds a MaskGuidedVideoPipeline, which this package does not have"):
        exported(newer, tmp_path / "made")
