"""Generation from photos: edited where their mask changed, every other pixel as it was, or redrawn all over."""

import json
import shutil

import numpy as np
import pytest
import torch
from datasets import load_dataset
from helpers.generation_places import LABELS, draw_ids, names, pixels, save_masks, save_photos, tiny_pipeline
from PIL import Image

from semseg_diffusers import MaskGuidedImg2ImgPipeline, cli
from semseg_diffusers.generation.generate import generate_dataset
from semseg_diffusers.generation.output_folder import read_metadata
from semseg_diffusers.generation.settings import EditSettings, GenerationSettings, Inputs


def few(**more) -> GenerationSettings:
    return GenerationSettings(**{"num_inference_steps": 2, "guidance_scale": 2.0, **more})


EDIT = few(edit=EditSettings(margin=1))


@pytest.fixture(scope="module")
def pipeline():
    return tiny_pipeline()


@pytest.fixture
def split(tmp_path):
    """Return a folder of photos with their masks, as a split of a prepared dataset."""
    save_masks(tmp_path / "val" / "masks")
    save_photos(tmp_path / "val" / "images")
    return tmp_path / "val"


def edit_masks(split, output, names="abc"):
    """Put a box of another class into some masks; returns their folder."""
    output.mkdir(parents=True)
    for path in sorted((split / "masks").iterdir()):
        ids = np.asarray(Image.open(path)).copy()
        if path.stem in names:
            box = ids[6:10, 4:9]
            box[:] = (box + 1) % 5
        LABELS.decode(ids).save(output / path.name)
    return output


INSIDE = np.zeros((16, 16), bool)
INSIDE[5:11, 3:10] = True  # the box, and a pixel around it


def test_an_edited_photo_is_new_inside_and_the_same_to_the_last_bit_outside(pipeline, split, tmp_path):
    new, out = edit_masks(split, tmp_path / "new"), tmp_path / "out"
    generate_dataset(pipeline, new, out, EDIT, inputs=Inputs(photos=split), num_images_per_mask=2, batch_size=4)
    assert names(out / "images") == [f"{stem}_{index}.png" for stem in "abc" for index in range(2)]
    for row in read_metadata(out):
        image, photo = pixels(out / row["image_file_name"]), pixels(split / "images" / f"{row['stem']}.png")
        assert np.array_equal(image[~INSIDE], photo[~INSIDE])
        assert np.abs(image[INSIDE] - photo[INSIDE]).max() > 10
        saved, old = pixels(out / row["mask_file_name"]), pixels(split / "masks" / f"{row['stem']}.png")
        assert np.array_equal(saved, pixels(new / f"{row['stem']}.png"))
        assert np.array_equal(saved[~INSIDE], old[~INSIDE])
        assert row["edited_share"] == pytest.approx(INSIDE.mean(), abs=1e-6)
        assert row["source_photo"] == str(split / "images" / f"{row['stem']}.png")
    assert str(tmp_path).encode() not in (out / "images" / "a_0.png").read_bytes()
    table = load_dataset("imagefolder", data_dir=str(out), cache_dir=str(tmp_path / "cache"))["train"]
    assert len(table) == 6
    assert table[0]["synthetic"] is True


def test_edits_depend_on_neither_batch_size_nor_the_other_masks_and_are_resumed(pipeline, split, tmp_path):
    new, inputs = edit_masks(split, tmp_path / "new"), Inputs(photos=split)
    generate_dataset(pipeline, new, tmp_path / "one", EDIT, inputs=inputs, batch_size=1)
    generate_dataset(pipeline, new / "b.png", tmp_path / "two", EDIT, inputs=inputs)
    report = generate_dataset(pipeline, new, tmp_path / "two", EDIT, inputs=inputs, batch_size=2)
    assert (report.num_made, report.num_kept) == (2, 1)
    for name in names(tmp_path / "one" / "images"):
        one, two = (pixels(tmp_path / folder / "images" / name) for folder in ("one", "two"))
        assert np.abs(one - two).max() <= 1


def test_masks_that_a_photo_has_already_are_left_out_and_counted(pipeline, split, tmp_path):
    new = edit_masks(split, tmp_path / "new", names="b")
    report = generate_dataset(pipeline, new, tmp_path / "out", EDIT, inputs=Inputs(photos=split))
    assert (report.num_made, report.num_unchanged) == (1, 2)
    assert names(tmp_path / "out" / "images") == ["b_0.png"]
    with pytest.raises(ValueError, match=r"no mask differs from the old mask of its image \(3 read\)"):
        generate_dataset(pipeline, split / "masks", tmp_path / "none", EDIT, inputs=Inputs(photos=split))
    assert not (tmp_path / "none").exists()


def test_photos_and_masks_may_be_in_three_folders(pipeline, split, tmp_path):
    new = edit_masks(split, tmp_path / "new")
    (split / "images").rename(tmp_path / "photos")
    (split / "masks").rename(tmp_path / "old")
    inputs = Inputs(photos=tmp_path / "photos", old_masks=tmp_path / "old")
    assert generate_dataset(pipeline, new, tmp_path / "out", EDIT, inputs=inputs).num_made == 3
    with pytest.raises(ValueError, match=r"photos' holds no masks/\. Give their folder: --old_masks"):
        generate_dataset(pipeline, new, tmp_path / "other", EDIT, inputs=Inputs(photos=tmp_path / "photos"))


def test_enriched_masks_find_the_photo_of_the_mask_they_were_made_from(pipeline, split, tmp_path):
    enriched = tmp_path / "enriched"
    new = edit_masks(split, tmp_path / "new")
    (enriched / "masks").mkdir(parents=True)
    rows = []
    for number, stem in enumerate("ba"):
        shutil.copy(new / f"{stem}.png", enriched / "masks" / f"{number:05}_{stem}.png")
        rows.append({"mask_file_name": f"masks/{number:05}_{stem}.png", "base": stem})
    (enriched / "manifest.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    generate_dataset(pipeline, enriched / "masks", tmp_path / "out", EDIT, inputs=Inputs(photos=split))
    sources = [row["source_photo"] for row in read_metadata(tmp_path / "out")]
    assert sources == [str(split / "images" / "b.png"), str(split / "images" / "a.png")]


def test_a_photo_keeps_its_own_size_where_a_window_is_generated(pipeline, tmp_path):
    split = tmp_path / "val"
    save_masks(split / "masks", "a", (40, 50))
    save_photos(split / "images", "a", (40, 50))
    new = edit_masks(split, tmp_path / "new")
    settings = few(edit=EditSettings(margin=1, padding_mask_crop=2))
    generate_dataset(pipeline, new, tmp_path / "out", settings, inputs=Inputs(photos=split))
    image, photo = pixels(tmp_path / "out" / "images" / "a_0.png"), pixels(split / "images" / "a.png")
    inside = np.zeros((40, 50), bool)
    inside[5:11, 3:10] = True
    assert np.array_equal(image[~inside], photo[~inside])
    assert np.abs(image[inside] - photo[inside]).max() > 10
    assert np.array_equal(pixels(tmp_path / "out" / "masks" / "a_0.png"), pixels(new / "a.png"))


def test_a_photo_of_another_size_is_resized_to_that_of_the_model_as_its_masks_are(pipeline, tmp_path):
    split = tmp_path / "val"
    save_masks(split / "masks", "a", (32, 64))
    save_photos(split / "images", "a", (32, 64))
    new = tmp_path / "new"
    new.mkdir()
    ids = draw_ids(0, (32, 64))
    ids[8:20, 24:34] = (ids[8:20, 24:34] + 1) % 5
    LABELS.decode(ids).save(new / "a.png")
    generate_dataset(pipeline, new, tmp_path / "out", EDIT, inputs=Inputs(photos=split))
    fitted = Image.open(split / "images" / "a.png").resize((16, 16), Image.Resampling.LANCZOS, box=(16, 0, 48, 32))
    same = (pixels(tmp_path / "out" / "images" / "a_0.png") == np.asarray(fitted)).all(axis=2)
    assert same[:3].all()
    assert same[:, 10:].all()
    assert not same[5:9, 5:8].any()


def test_photos_are_redrawn_by_the_strength(pipeline, split, tmp_path):
    settings = few(num_inference_steps=4, strength=0.5, variations={"strength": (0.0, 0.5, 1.0)})
    generate_dataset(pipeline, split / "masks", tmp_path / "out", settings, inputs=Inputs(photos=split))
    rows = read_metadata(tmp_path / "out")
    assert [row["strength"] for row in rows[:3]] == [0.0, 0.5, 1.0]
    photo = pixels(split / "images" / "a.png")
    none, half, full = (pixels(tmp_path / "out" / row["image_file_name"]) for row in rows[:3])
    assert np.array_equal(none, photo)
    plain = pipeline(
        split / "masks" / "a.png", num_inference_steps=4, guidance_scale=2.0,
        generator=torch.Generator().manual_seed(rows[2]["seed"]),
    ).images[0]  # fmt: skip
    assert np.abs(np.asarray(plain).astype(int) - full).max() <= 1
    redrawn = MaskGuidedImg2ImgPipeline(pipeline.unet, pipeline.scheduler)(
        split / "images" / "a.png", split / "masks" / "a.png", strength=0.5, num_inference_steps=4,
        guidance_scale=2.0, generator=torch.Generator().manual_seed(rows[1]["seed"]),
    ).images[0]  # fmt: skip
    assert np.abs(np.asarray(redrawn).astype(int) - half).max() <= 1


def test_another_photo_of_the_same_name_is_refused(pipeline, split, tmp_path):
    new, inputs = edit_masks(split, tmp_path / "new"), Inputs(photos=split)
    generate_dataset(pipeline, new, tmp_path / "out", EDIT, inputs=inputs)
    shutil.copy(split / "images" / "a.png", split / "images" / "b.png")
    with pytest.raises(ValueError, match=r"another `source_photo_hash` for the mask '.*b\.png'"):
        generate_dataset(pipeline, new, tmp_path / "out", EDIT, inputs=inputs)


def test_an_old_mask_that_changed_in_place_is_refused_though_the_share_stays(pipeline, split, tmp_path):
    new, inputs = edit_masks(split, tmp_path / "new"), Inputs(photos=split)
    generate_dataset(pipeline, new, tmp_path / "out", EDIT, inputs=inputs)
    ids = np.asarray(Image.open(new / "b.png")).copy()
    box = ids[8:12, 6:11]  # as large as that of `edit_masks`
    box[:] = (box + 1) % 5
    LABELS.decode(ids).save(split / "masks" / "b.png")
    with pytest.raises(ValueError, match=r"another `edited_region_hash` for the mask '.*b\.png'"):
        generate_dataset(pipeline, new, tmp_path / "out", EDIT, inputs=inputs)


def test_other_edit_settings_in_the_same_output_are_refused(pipeline, split, tmp_path):
    new, inputs = edit_masks(split, tmp_path / "new"), Inputs(photos=split)
    generate_dataset(pipeline, new, tmp_path / "out", EDIT, inputs=inputs)
    with pytest.raises(ValueError, match="edit.margin: 1 there, 2 now"):
        generate_dataset(pipeline, new, tmp_path / "out", few(edit=EditSettings(margin=2)), inputs=inputs)
    with pytest.raises(ValueError, match="edit.margin: 1 there, None now"):
        generate_dataset(pipeline, new, tmp_path / "out", few())


def test_pairs_that_do_not_fit_are_bad_masks_with_their_reasons(pipeline, split, tmp_path):
    new = edit_masks(split, tmp_path / "new")
    (split / "images" / "a.png").unlink()
    save_photos(tmp_path / "large", "ab", (32, 32))
    shutil.copy(tmp_path / "large" / "b.png", split / "images" / "b.png")
    with pytest.raises(
        ValueError,
        match=r"(?s)2 masks cannot be used:.*a\.png': there is no photo called 'a' .*b\.png'.* pixels; .*\nNothing",
    ):
        generate_dataset(pipeline, new, tmp_path / "out", EDIT, inputs=Inputs(photos=split))
    report = generate_dataset(pipeline, new, tmp_path / "out", EDIT, inputs=Inputs(photos=split), skip_errors=True)
    assert report.num_made == 1
    assert "the mask 16 x 16, its photo 32 x 32, the old mask 16 x 16" in report.skipped["b.png"]


@pytest.mark.parametrize(
    ("settings", "inputs", "message"),
    [
        ({"edit": EditSettings()}, {}, "--edit changes real images: give their folder, --photos"),
        ({"strength": 0.5}, {}, "--strength changes real images"),
        ({"edit": EditSettings(), "strength": 0.5}, {"photos": "val"}, "give one of them"),
        ({}, {"photos": "val"}, "--photos: give --edit .* or --strength"),
        ({"strength": 0.5}, {"photos": "val", "old_masks": "val/masks"}, "--old_masks: only with --edit"),
        ({"strength": 1.5}, {"photos": "val"}, "`strength` is 1.5"),
        ({"edit": EditSettings(margin=-1)}, {"photos": "val"}, "`margin` is -1"),
        ({"edit": EditSettings()}, {"photos": "nowhere"}, "no photo file and no folder of photos at 'nowhere'"),
    ],
)
def test_photos_and_settings_that_do_not_go_together_are_refused(
    pipeline, split, tmp_path, monkeypatch, settings, inputs, message
):
    monkeypatch.chdir(tmp_path)
    with pytest.raises((ValueError, OSError), match=message):
        generate_dataset(pipeline, split / "masks", "out", few(**settings), inputs=Inputs(**inputs))
    assert not (tmp_path / "out").exists()


def test_two_commands_lead_from_a_split_to_edited_photos(pipeline, split, tmp_path, capsys):
    pipeline.save_pretrained(tmp_path / "run")
    LABELS.save_json(tmp_path / "labels.json")
    edit = ["edit", "--masks", str(split / "masks"), "--output", str(tmp_path / "edited")]
    assert cli.main([*edit, "--operation", "rectangle class=car first=4,4 last=8,9"]) == 0
    options = ["generate", "--model", str(tmp_path / "run"), "--masks", str(tmp_path / "edited" / "masks")]
    options += ["--output", str(tmp_path / "out"), "--num_inference_steps", "2", "--device", "cpu"]
    assert cli.main([*options, "--edit", "--photos", str(split), "--edit_margin", "0"]) == 0, capsys.readouterr().err
    assert "3 images generated" in capsys.readouterr().out
    image, photo = pixels(tmp_path / "out" / "images" / "a_0.png"), pixels(split / "images" / "a.png")
    changed = pixels(tmp_path / "out" / "masks" / "a_0.png") != pixels(split / "masks" / "a.png")
    assert np.array_equal(image[~changed], photo[~changed])
    assert cli.main([*options, "--edit_margin", "3"]) == 2
    assert "--edit_margin: only with --edit" in capsys.readouterr().err
    redraw = ["--strength", "0.5", "--photos", str(split), "--output", str(tmp_path / "redrawn")]
    assert cli.main([*options, *redraw]) == 0
    assert read_metadata(tmp_path / "redrawn")[0]["strength"] == 0.5
