"""Text encoders that a saved model names instead of holding them: written, loaded in all ways, and missing."""

import json
import shutil
from types import SimpleNamespace

import pytest
import torch
from diffusers import DDIMScheduler
from helpers.loading import DIFFUSERS_CLASS, OUR_CLASS, REMOTE_CODE
from helpers.text_encoders import LENGTH, tiny_text_encoder
from helpers.tiny_pipelines import tiny_unet
from helpers.training_runs import tiny_settings

from semseg_diffusers import MaskGuidedDDPMPipeline, MaskGuidedImg2ImgPipeline, cli
from semseg_diffusers.hub.folders import check_model_folder, model_files
from semseg_diffusers.hub.text_encoders import check_same_encoder, source_of
from semseg_diffusers.toy.scenes import write_toy_dataset


ENCODER = "lab/encoder"
COMMAND = "import sys; from semseg_diffusers import cli; sys.exit(cli.main(sys.argv[1:]))"
DRAW = """
pipe.set_progress_bar_config(disable=True)
def draw(pipe, **texts):
    ids, generator = torch.arange(256).reshape(1, 16, 16) % 19, torch.Generator().manual_seed(0)
    return pipe(ids, num_inference_steps=2, generator=generator, output_type="pt", **texts).images
torch.save(draw(pipe, prompt="a rainy evening", class_prompts={0: "red"}), sys.argv[2])
"""
# A second argument is where images go, a third where the pipeline is saved again
OFFLINE = """
try:
    draw(pipe, prompt="a rainy evening")
except ValueError as error:
    print(error)
from semseg_diffusers import MaskGuidedImg2ImgPipeline
MaskGuidedImg2ImgPipeline.from_pipe(pipe).save_pretrained(sys.argv[3])
torch.save(draw(pipe), sys.argv[2])
"""


@pytest.fixture(scope="module")
def place(hub, tmp_path_factory):
    """A model with its encoder in the folder `whole`, and the encoder on the Hub."""
    folder = tmp_path_factory.mktemp("reference")
    (folder / "vocabulary").mkdir()
    encoder, tokenizer = tiny_text_encoder(folder / "vocabulary", max_length=64)
    for part in (encoder, tokenizer):
        part.save_pretrained(folder / "encoder")
    files = {path.name: path.read_bytes() for path in (folder / "encoder").iterdir()}
    commit = hub.add_repo(ENCODER, files).branches["main"]
    unet = tiny_unet(text_embed_dim=LENGTH)
    for weight in unet.parameters():
        if not weight.any():
            torch.nn.init.normal_(weight, std=0.3, generator=torch.Generator().manual_seed(1))
    pipe = MaskGuidedDDPMPipeline(unet, DDIMScheduler(), text_encoder=encoder, tokenizer=tokenizer)
    pipe.save_pretrained(folder / "whole")
    MaskGuidedDDPMPipeline(
        unet, DDIMScheduler(), text_encoder=encoder, tokenizer=tokenizer, text_encoder_source=f"{ENCODER}@{commit}"
    ).save_pretrained(folder / "named")
    return SimpleNamespace(folder=folder, commit=commit, online=hub.environment(folder / "home"))


def check_named(folder, commit) -> None:
    """Check that a saved model names its encoder and holds nothing of it."""
    index = check_model_folder(folder)
    assert index["text_encoder_source"] == f"{ENCODER}@{commit}"
    assert not index.keys() & {"text_encoder", "tokenizer"}
    assert not (folder / "text_encoder").exists()
    assert not (folder / "tokenizer").exists()
    assert not any(name.startswith("t") and "/" in name for name in model_files(folder, index))


@pytest.mark.slow
def test_a_model_that_names_its_encoder_loads_it_in_every_way(place, tmp_path, clean_process):
    check_named(place.folder / "named", place.commit)
    clean_process(OUR_CLASS + DRAW, place.folder / "whole", tmp_path / "expected.pt")
    expected = torch.load(tmp_path / "expected.pt")
    for number, (code, without_package) in enumerate(
        ((OUR_CLASS, False), (DIFFUSERS_CLASS, False), (REMOTE_CODE, True))
    ):
        file, again = tmp_path / f"{number}.pt", tmp_path / f"again{number}"
        clean_process(
            code + DRAW, place.folder / "named", file, again, without_package=without_package, environment=place.online
        )
        torch.testing.assert_close(torch.load(file), expected, atol=1e-5, rtol=1e-5)
    check_named(again, place.commit)  # saved again by the code beside the weights


def test_without_a_connection_a_model_says_so_in_a_line_and_goes_on_without_texts(place, tmp_path, clean_process):
    again = tmp_path / "again"
    code = OUR_CLASS + DRAW.rsplit("\n", 2)[0] + OFFLINE
    answer = clean_process(code, place.folder / "named", tmp_path / "images.pt", again)
    (line,) = [line for line in answer.stderr.splitlines() if ENCODER in line]
    assert f"The text encoder {ENCODER}@{place.commit} of this pipeline did not load, so it takes no prompts" in line
    assert f"that the network was trained with, {ENCODER}@{place.commit} on the Hub." in answer.stdout
    assert torch.load(tmp_path / "images.pt").isfinite().all()
    assert json.loads((again / "model_index.json").read_text())["text_encoder_source"].startswith(ENCODER)


def test_one_may_pass_the_encoder_or_leave_it_out(place):
    whole = MaskGuidedDDPMPipeline.from_pretrained(place.folder / "whole")
    given = {"text_encoder": whole.text_encoder, "tokenizer": whole.tokenizer}
    passed = MaskGuidedDDPMPipeline.from_pretrained(place.folder / "named", **given)
    assert passed.text_encoder is whole.text_encoder
    other = MaskGuidedImg2ImgPipeline.from_pipe(passed)
    assert other.text_encoder is whole.text_encoder
    assert other.config.text_encoder_source == passed.config.text_encoder_source
    left_out = MaskGuidedDDPMPipeline.from_pretrained(place.folder / "named", text_encoder_source=None)
    assert left_out.text_encoder is None


@pytest.mark.slow
def test_training_and_export_write_models_that_name_their_encoder(place, tmp_path, clean_process):
    write_toy_dataset(tmp_path / "toy", num_train=4, num_val=2, size=(32, 32), seed=0)
    cli.main(["caption", "--dataset", str(tmp_path / "toy"), "--output", str(tmp_path / "texts")])
    settings = tiny_settings(
        tmp_path / "texts", tmp_path / "run", text_encoder=ENCODER, text_encoder_by_reference=True, max_train_steps=1
    )
    environment = place.online | {"HF_ASSETS_CACHE": str(tmp_path / "assets")}
    clean_process(COMMAND, "train", *settings.to_arguments(), environment=environment)
    check_named(tmp_path / "run", place.commit)
    words = ("--model", place.folder / "whole", "--output", tmp_path / "shared", "--text_encoder_id", ENCODER)
    clean_process(COMMAND, "export", *words, environment=environment)
    check_named(tmp_path / "shared", place.commit)
    for name in ("run", "shared"):
        link = f"[{ENCODER}](https://huggingface.co/{ENCODER}/tree/{place.commit})"
        assert link in (tmp_path / name / "README.md").read_text()


def test_other_encoders_and_folders_are_refused(place, tmp_path):
    whole = MaskGuidedDDPMPipeline.from_pretrained(place.folder / "whole")
    other = MaskGuidedDDPMPipeline.from_pretrained(place.folder / "whole").text_encoder
    with pytest.raises(ValueError, match=r"encoder' is a folder, which others cannot load a text encoder from"):
        source_of(str(place.folder / "encoder"))
    check_same_encoder(ENCODER, other, whole.tokenizer, whole)
    torch.nn.init.zeros_(other.embeddings.word_embeddings.weight)
    with pytest.raises(ValueError, match="another text encoder than the model was trained with: its weights differ"):
        check_same_encoder(ENCODER, other, whole.tokenizer, whole)
    shutil.copytree(place.folder / "named", tmp_path / "named")
    words = ["export", "--model", str(tmp_path / "named"), "--output", str(tmp_path / "out")]
    assert cli.main([*words, "--text_encoder_id", ENCODER]) == 2
