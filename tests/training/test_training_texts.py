"""Training on captions: which texts a sample shows, where they lie, what a run saves, and what it refuses."""

import json
import shutil

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from helpers.text_encoders import LENGTH, tiny_text_encoder
from helpers.training_runs import distill_here, losses, parse_training, tiny_settings, train_here, weights

from semseg_diffusers import MaskGuidedDDPMPipeline, cli
from semseg_diffusers.data.dataset import load_pairs
from semseg_diffusers.distillation.distill import DistillationRun, Objective, build_inputs
from semseg_diffusers.distillation.settings import DistillationSettings
from semseg_diffusers.hub.text_encoders import load_text_encoder
from semseg_diffusers.pipelines.text_inputs import number_things
from semseg_diffusers.toy.scenes import write_toy_dataset
from semseg_diffusers.training.captions import Captions
from semseg_diffusers.training.dataset import TrainingDataset, collate_samples
from semseg_diffusers.training.inputs import load_inputs, read_captions
from semseg_diffusers.training.settings import TrainingSettings


UNKNOWN = 255


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A dataset with captions, and a text encoder in a folder; the cache of embeddings is beside it."""
    folder = tmp_path_factory.mktemp("texts")
    write_toy_dataset(folder / "plain", num_train=10, num_val=3, size=(32, 64), seed=0)
    data = ("--dataset", str(folder / "plain"), "--output", str(folder / "toy"))
    cli.main(["caption", *data, "--attributes", "weather", "timeofday", "--min_area", "6"])
    (folder / "vocabulary").mkdir()
    for part in tiny_text_encoder(folder / "vocabulary", max_length=64):
        part.save_pretrained(folder / "encoder")
    return folder


@pytest.fixture(autouse=True)
def _cache(place, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_ASSETS_CACHE", str(place / "cache"))


@pytest.fixture(scope="module")
def pairs(place):
    return load_pairs(place / "toy")


@pytest.fixture
def captions(place, pairs):
    found = Captions.of(pairs, settings(place))
    found.embed(*load_text_encoder(str(place / "encoder")), torch.device("cpu"))
    return found


def settings(place, **changes) -> TrainingSettings:
    given = {"dataset": "d", "output_dir": "o", "text_encoder": str(place / "encoder"), "caption_dropout": 0.0}
    return TrainingSettings(**given | changes)


def run_settings(place, run, dataset="toy", **changes) -> TrainingSettings:
    given = {"checkpointing_steps": 4, "text_encoder": str(place / "encoder"), **changes}
    return tiny_settings(place / dataset, run, **given)


def said_about(sample, captions) -> list[tuple[str, np.ndarray]]:
    """Return each text that a sample lays onto its mask, and its pixels (H, W)."""
    found = []
    for number, embed in enumerate(sample["region_embeds"]):
        (row,) = (captions.embeds == embed).all(dim=1).nonzero()[:, 0].tolist()
        inside = (sample["regions"] == number).numpy()
        found.append((captions.texts[row], inside))
    return found


def expected_pixels(captions, ids, index, text) -> np.ndarray:
    """Return the pixels (H, W) of a whole mask that a text may be about."""
    inside = np.zeros(ids.shape, dtype=bool)
    for class_id, thing, texts in captions.regions[index]:
        if text in texts:
            of_class = ids == class_id
            inside |= of_class if thing < 0 else number_things(of_class) == thing
    return inside


# --- samples ---


def test_texts_lie_on_the_pixels_of_their_class_or_thing_and_follow_flips_and_crops(place, pairs, captions):
    cropped = {"random_crop": "16x32"}
    for changes in ({"horizontal_flip": False}, {}, cropped):
        given = TrainingDataset(pairs, settings(place, mask_dropout=0.0, **changes), captions=captions)
        plain = TrainingDataset(pairs, settings(place, mask_dropout=0.0, **changes))
        count = 0
        for position in range(40):
            index = position % len(pairs)
            sample, without = given[position, index], plain[position, index]
            assert torch.equal(sample["image"], without["image"])  # texts change nothing else
            assert torch.equal(sample["mask"], without["mask"])
            whole = pairs.mask(index)
            windows = np.lib.stride_tricks.sliding_window_view(whole, sample["mask"].shape)
            shown = sample["mask"].numpy()
            for text, inside in said_about(sample, captions):
                possible = expected_pixels(captions, whole, index, text)
                views = np.lib.stride_tricks.sliding_window_view(possible, shown.shape)
                places = [
                    (np.array(w), np.array(v))
                    for flip in (False, True)
                    for w, v in (
                        (w[:, ::-1], v[:, ::-1]) if flip else (w, v)
                        for row in zip(windows, views, strict=True)
                        for w, v in zip(*row, strict=True)
                    )
                ]
                assert any(np.array_equal(w, shown) and not (inside & ~v).any() for w, v in places)
                count += inside.any()
        assert count > 40


def test_levels_are_left_out_each_for_itself_and_single_texts_too(place, pairs, captions):
    index = max(range(len(pairs)), key=lambda index: len(captions.regions[index]))
    is_thing = {text: region.thing >= 0 for region in captions.regions[index] for text in region.texts}
    data = TrainingDataset(pairs, settings(place, caption_dropout=0.5), captions=captions)
    seen = []
    for position in range(400):
        sample = data[position, index]
        texts = [text for text, _ in said_about(sample, captions)]
        kinds = {is_thing[text] for text in texts}
        seen.append((bool(sample["text_embeds"].any()), False in kinds, True in kinds, len(texts)))
    about_image, classes, things, counts = np.array(seen).T
    assert abs(about_image.mean() - 0.5) < 0.1
    assert 0.2 < classes.mean() < 0.55
    assert 0.2 < things.mean() < 0.55
    assert len(set(counts)) > 3
    assert abs(np.corrcoef(about_image, classes)[0, 1]) < 0.2


def test_what_the_mask_does_not_show_has_no_text(place, pairs, captions):
    ablated = settings(place, mask_ablation=1.0, mask_dropout=0.3)
    data = TrainingDataset(pairs, ablated, captions=captions)
    for position in range(30):
        sample = data[position, position % len(pairs)]
        assert (sample["regions"][sample["mask"] == UNKNOWN] == -1).all()


def test_a_batch_holds_samples_with_any_number_of_texts(place, pairs, captions):
    data = TrainingDataset(pairs, settings(place), captions=captions)
    samples = [data[position, position] for position in range(4)]
    batch = collate_samples(samples)
    most = max(len(sample["region_embeds"]) for sample in samples)
    assert batch["region_embeds"].shape == (4, most, LENGTH)
    assert batch["regions"].shape == batch["mask"].shape
    silent = [{**sample, "region_embeds": sample["region_embeds"][:0]} for sample in samples]
    assert collate_samples(silent)["region_embeds"].shape == (4, 1, LENGTH)


def test_embeddings_are_computed_once(place, captions, pairs, monkeypatch):
    monkeypatch.setattr("semseg_diffusers.training.captions.embed_texts", lambda *_: pytest.fail("computed again"))
    again = Captions.of(pairs, settings(place))
    encoder, tokenizer = load_text_encoder(str(place / "encoder"))
    again.embed(encoder, tokenizer, torch.device("cpu"))
    assert torch.equal(again.embeds, captions.embeds)
    with torch.no_grad():
        next(encoder.parameters()).add_(1)
    with pytest.raises(pytest.fail.Exception, match="computed again"):
        again.embed(encoder, tokenizer, torch.device("cpu"))


# --- runs ---


@pytest.fixture(scope="module")
def run(place, tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("huggingface_hub.constants.HF_ASSETS_CACHE", str(place / "cache"))
        return train_here(run_settings(place, tmp_path_factory.mktemp("runs") / "run", preview_steps=4))


def test_a_run_saves_a_pipeline_that_reads_prompts(place, run):
    pipe = MaskGuidedDDPMPipeline.from_pretrained(run)
    pipe.set_progress_bar_config(disable=True)
    assert pipe.unet.config.text_embed_dim == LENGTH
    assert pipe.unet.text_branch.to_time.weight.any()
    assert all(layer.weight.any() for layer in pipe.unet.text_branch.to_maps)
    mask = load_pairs(place / "toy", "val")[0]["mask"][None]
    images = [
        pipe(mask, generator=torch.Generator().manual_seed(0), num_inference_steps=2, output_type="pt", **texts).images
        for texts in ({}, {"prompt": "a rainy evening"}, {"class_prompts": {"sky": "red sky"}})
    ]
    assert not torch.allclose(images[0], images[1])
    assert not torch.allclose(images[0], images[2])
    assert (run / "previews" / "over_time.png").is_file()


def test_a_resumed_run_equals_one_without_a_break(place, run, tmp_path):
    again = tmp_path / "run"
    train_here(run_settings(place, again, max_train_steps=2, preview_steps=0))
    shutil.rmtree(again / "unet")
    (again / "model_index.json").unlink()
    train_here(run_settings(place, again, resume_from_checkpoint="latest", preview_steps=0))
    whole = tmp_path / "whole"
    train_here(run_settings(place, whole))
    first, second = weights(whole), weights(again)
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_other_captions_are_another_run(place, tmp_path):
    run, other = tmp_path / "run", tmp_path / "other"
    train_here(run_settings(place, run, max_train_steps=2))
    shutil.copytree(place / "toy", other)
    file = other / "train" / "metadata.jsonl"
    file.write_text(file.read_text().replace("a street", "the street"))
    changed = run_settings(place, run, resume_from_checkpoint="latest")
    with pytest.raises(ValueError, match="was trained with other captions"):
        train_here(TrainingSettings(**{**vars(changed), "dataset": str(other)}))


def test_a_network_without_texts_starts_one_with_them_and_gives_the_same(place, tmp_path):
    plain = train_here(tiny_settings(place / "toy", tmp_path / "plain", max_train_steps=1, dropout=0.0))
    options = {"max_train_steps": 1, "learning_rate": 1e-12, "dropout": 0.0, "init_from": str(plain)}
    both = [
        train_here(tiny_settings(place / "toy", tmp_path / "again", **options)),
        train_here(run_settings(place, tmp_path / "reading", **options)),
    ]
    assert losses(both[0]) == pytest.approx(losses(both[1]), rel=1e-5)


def test_a_student_keeps_the_texts_of_its_teacher(place, run, tmp_path):
    data = {"dataset": str(place / "toy"), "device": "cpu", "dataloader_num_workers": 0}
    steps = {
        "max_train_steps": 2,
        "checkpointing_steps": 2,
        "preview_steps": 2,
        "lr_warmup_steps": 1,
        "train_batch_size": 2,
    }
    options = {**data, **steps, "model": str(run), "adversarial_weight": 0.0, "learning_rate": 1e-3}
    student = distill_here(DistillationSettings(output_dir=str(tmp_path / "student"), caption_dropout=0.0, **options))
    pipe = MaskGuidedDDPMPipeline.from_pretrained(student)
    pipe.set_progress_bar_config(disable=True)
    mask = load_pairs(place / "toy", "val")[0]["mask"][None]
    call = {"output_type": "pt", "num_inference_steps": 1}
    images = [
        pipe(mask, generator=torch.Generator().manual_seed(0), **call, **texts).images
        for texts in ({}, {"class_prompts": {"road": "a red road"}})
    ]
    assert not torch.allclose(*images)
    first, second = weights(run), weights(student)
    changed = {name for name in first if not torch.equal(first[name], second[name])}
    assert {"text_branch.hidden.weight", "text_branch.to_time.weight"} <= changed
    with pytest.raises(ValueError, match="has no columns 'captions' or 'region_captions'"):
        distill_here(
            DistillationSettings(output_dir=str(tmp_path / "none"), **options | {"dataset": str(place / "plain")})
        )


def test_a_teacher_is_asked_with_the_texts_of_the_sample(place, run, tmp_path):
    settings = DistillationSettings(
        dataset=str(place / "toy"), output_dir=str(tmp_path), model=str(run), adversarial_weight=0.0, device="cpu"
    )
    try:
        accelerator = Accelerator(cpu=True)
        inputs = load_inputs(settings, accelerator, build_inputs)
        objective = Objective(DistillationRun(settings, accelerator, inputs, [], features=None))
        data = objective.run.training_dataset()
        index = next(index for index, regions in enumerate(inputs.captions.regions) if regions)
        sample = next(data[position, index] for position in range(99) if data[position, index]["region_embeds"].any())
        batch = collate_samples([sample])
        silent = batch | {"regions": torch.full_like(batch["regions"], -1)}
        images = [objective.teachers_sample(batch["image"], given) for given in (batch, silent)]
    finally:
        AcceleratorState._reset_state(reset_partial_state=True)
    assert not torch.allclose(*images, atol=1e-5)


def test_a_column_of_ones_own_is_read(place, tmp_path):
    data = tmp_path / "own"
    shutil.copytree(place / "plain", data)
    file = data / "train" / "metadata.jsonl"
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    file.write_text("".join(json.dumps({**row, "note": f"a house at {row['timeofday']}"}) + "\n" for row in rows))
    train_here(run_settings(place, tmp_path / "run", caption_column="note", max_train_steps=1, dataset=data))
    found = Captions.of(load_pairs(data), settings(place, caption_column="note"))
    assert all(text.startswith("a house at") for text in found.texts)
    assert not any(found.regions)


# --- refusals ---


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        ("captions", [[1]], r"column 'captions' of .*val.* holds '\[\[1\]\]'"),
        ("region_captions", [{"class": "car"}], "column 'region_captions' of .*val"),
        ("captions", ["a " * 70], "this text encoder reads at most 64: shorten it"),
    ],
)
def test_texts_of_the_validation_split_are_checked_as_those_of_training(place, tmp_path, column, value, message):
    shutil.copytree(place / "toy", tmp_path / "toy")
    file = tmp_path / "toy" / "val" / "metadata.jsonl"
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    file.write_text("".join(json.dumps(row | {column: value}) + "\n" for row in rows))
    with pytest.raises(ValueError, match=message):
        train_here(run_settings(place, tmp_path / "run", dataset=tmp_path / "toy", preview_steps=4))


def test_previews_are_without_texts_where_the_validation_split_has_none(place, pairs):
    data = pairs, load_pairs(place / "plain", "val"), None
    captions, shown = read_captions(settings(place), data)
    assert captions.texts
    assert shown is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--caption_dropout", "0.1"], "--caption_dropout is for networks that read texts: give --text_encoder"),
        (["--text_encoder", "x", "--network", "paper"], "--text_encoder is not for --network paper"),
        (["--text_encoder", "x", "--upscale_factor", "2"], "--text_encoder is not for upscalers"),
    ],
)
def test_options_that_do_not_go_together_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        parse_training("--dataset", "d", "--output_dir", "o", *options)


def test_data_without_texts_and_folders_without_an_encoder_are_refused(place, tmp_path):
    with pytest.raises(
        ValueError, match=r"has no columns 'captions' or 'region_captions' with texts\. Write them with"
    ):
        train_here(run_settings(place, tmp_path / "run", dataset="plain"))
    (tmp_path / "empty").mkdir()
    shutil.copytree(place / "encoder", tmp_path / "truncated")
    file = tmp_path / "truncated" / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    no_encoder = "does not load as a text encoder"
    for name, message in (("empty", no_encoder), ("truncated", no_encoder), ("none", "there is no folder")):
        with pytest.raises(ValueError, match=message):
            load_text_encoder(str(tmp_path / name))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        ("captions", [["a", 3]], r"holds .* for '.*'; expected a text, a list of wordings"),
        ("region_captions", [[{"class": "car"}]], r"expected \{\"class\": name, \"thing\": number"),
        (
            "region_captions",
            [[{"class": "horse", "thing": 0, "texts": ["a horse"]}]],
            "holds .*horse.*; the data has the classes",
        ),
        ("region_captions", [3], r"holds 3 for '.*'; expected \{\"class\": name, \"thing\": number"),
        ("region_captions", [[{"class": "car", "thing": "left", "texts": "a car"}]], r'expected \{"class": name'),
        ("captions", [None], "hold no text at all"),
    ],
)
def test_columns_that_hold_something_else_are_refused(place, pairs, monkeypatch, column, value, message):
    columns = {"captions": None, "region_captions": None, column: value * len(pairs)}
    monkeypatch.setattr(pairs, "column", columns.get)
    with pytest.raises(ValueError, match=message):
        Captions.of(pairs, settings(place))
