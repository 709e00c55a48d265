"""Masks of one label set are drawn by a model of another, and datasets are prepared in another set than their own."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler
from helpers.driving_sets import ids_of, save, save_photo
from PIL import Image

from semseg_diffusers import cli
from semseg_diffusers.data.dataset import load_pairs
from semseg_diffusers.data.dataset_format import label_file_near
from semseg_diffusers.data.label_mapping import LabelMapping
from semseg_diffusers.data.labels import LabelSet
from semseg_diffusers.data.prepare import prepare_dataset
from semseg_diffusers.data.settings import PrepareSettings
from semseg_diffusers.evaluation.evaluate import load_generator
from semseg_diffusers.evaluation.settings import EvaluationSettings
from semseg_diffusers.generation.generate import generate_dataset
from semseg_diffusers.generation.settings import GenerationSettings
from semseg_diffusers.models.unet_mask_guided import MaskGuidedUNet2DModel
from semseg_diffusers.pipelines.mask_inputs import resize_ids
from semseg_diffusers.pipelines.pipeline_mask_guided_ddpm import MaskGuidedDDPMPipeline
from semseg_diffusers.utils.distributed import Processes


BDD, CAMVID, PAPER = (LabelSet.from_preset(name) for name in ("bdd100k", "camvid", "paper"))
PRESETS = {"bdd100k": BDD, "camvid": CAMVID, "paper": PAPER}
DIRECTIONS = [("camvid", "bdd100k"), ("bdd100k", "camvid"), ("bdd100k", "paper"), ("paper", "bdd100k")]
ZOO = LabelSet(("lion", "zebra"), ((1, 0, 0), (2, 0, 0)))
FEW = GenerationSettings(num_inference_steps=1, guidance_scale=1.0)
SIZE = (40, 64)  # of the masks; images are 16 x 16


def model_of(labels: LabelSet) -> MaskGuidedDDPMPipeline:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        unet = MaskGuidedUNet2DModel(
            sample_size=16,
            num_classes=labels.num_classes,
            block_out_channels=(8, 16),
            down_block_types=("DownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "UpBlock2D"),
            layers_per_block=1,
            norm_num_groups=4,
            **labels.to_config(),
        )
    return MaskGuidedDDPMPipeline(unet.eval(), DDIMScheduler())


def save_masks(folder: Path, labels: LabelSet, count: int = 3) -> Path:
    """Masks as ids, palette and colours in turn."""
    folder.mkdir(parents=True)
    for seed in range(count):
        picture = labels.decode(draw(labels, seed))
        picture = (Image.fromarray(draw(labels, seed)), picture, picture.convert("RGB"))[seed % 3]
        picture.save(folder / f"m{seed}.png")
    return folder


def draw(labels: LabelSet, seed: int) -> np.ndarray:
    return ids_of(seed, labels.num_classes, SIZE)


def saved_ids(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path))


def lost_pixels(mapping: LabelMapping, masks: list[np.ndarray]) -> tuple[int, int]:
    """Pixels without counterpart, and labelled ones in all, counted one class at a time."""
    lost = sum(int((ids == i).sum()) for ids in masks for i, (_, name) in enumerate(mapping.names) if name is None)
    return lost, sum(int((ids != 255).sum()) for ids in masks)


# Generation --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("source", "target"), DIRECTIONS)
def test_a_model_draws_masks_of_another_label_set(tmp_path, source, target):
    masks = save_masks(tmp_path / "masks", PRESETS[source])
    mapping = LabelMapping(PRESETS[source], PRESETS[target])
    out = tmp_path / "out"
    report = generate_dataset(model_of(PRESETS[target]), masks, out, FEW, mask_labels=PRESETS[source])
    own = [resize_ids(draw(PRESETS[source], seed), 16, 16) for seed in range(3)]
    for seed, ids in enumerate(own):
        assert np.array_equal(saved_ids(out / "masks" / f"m{seed}_0.png"), mapping.map(ids))
    assert LabelSet.from_json(out / "labels.json") == PRESETS[target]
    lost, labelled = lost_pixels(mapping, own)
    assert (lost > 0) == (source == "paper")
    expected = f"{lost:,} of {labelled:,} labelled pixels" if lost else f"all {labelled:,} labelled pixels"
    assert report.mapped.startswith(expected)
    record = json.loads((out / "generation.json").read_text())
    assert record["mask_labels"] == [list(names) for names in mapping.names]


def test_an_image_is_that_of_the_mapped_mask(tmp_path):
    pipeline = model_of(BDD)
    masks = save_masks(tmp_path / "masks", CAMVID)
    generate_dataset(pipeline, masks, tmp_path / "out", FEW, mask_labels=CAMVID)
    mapped = tmp_path / "mapped"
    mapped.mkdir()
    for seed in range(3):
        BDD.decode(LabelMapping(CAMVID, BDD).map(draw(CAMVID, seed))).save(mapped / f"m{seed}.png")
    generate_dataset(pipeline, mapped, tmp_path / "straight", FEW)
    for path in (tmp_path / "out" / "images").iterdir():
        assert np.array_equal(saved_ids(path), saved_ids(tmp_path / "straight" / "images" / path.name))


def test_the_command_says_before_the_first_image_what_became_unknown(tmp_path, capsys):
    model_of(BDD).save_pretrained(tmp_path / "model")
    masks = save_masks(tmp_path / "masks", PAPER)
    options = ["generate", "--model", tmp_path / "model", "--masks", masks, "--output", tmp_path / "out"]
    options = [*map(str, options), "--num_inference_steps", "1", "--device", "cpu"]
    assert cli.main([*options, "--mask_labels", "paper"]) == 0
    said = capsys.readouterr().err
    own = [resize_ids(draw(PAPER, seed), 16, 16) for seed in range(3)]
    lost, labelled = lost_pixels(LabelMapping(PAPER, BDD), own)
    share = f"{100 * lost / labelled:.3g} %"
    line = (
        f"masks mapped to the model's classes: {lost} of {labelled} labelled pixels ({share}) became unknown, having "
        f"no counterpart: background {share}"
    )
    assert said.count(line) == 1
    assert said.index(line) < said.index("generating")
    assert cli.main([*options, "--mask_labels", "ade20k"]) == 2
    assert "label set 'ade20k' is no file and none of the presets" in capsys.readouterr().err


@pytest.mark.parametrize("beside", [False, True])
def test_a_label_set_with_nothing_in_common_is_refused_before_any_image(tmp_path, beside):
    masks = save_masks(tmp_path / "masks", ZOO)
    if beside:
        ZOO.save_json(tmp_path / "masks" / "labels.json")
    with pytest.raises(ValueError, match=r"nothing in common: none of lion, zebra has .* among road, .*JSON"):
        generate_dataset(model_of(BDD), masks, tmp_path / "out", FEW, mask_labels=ZOO)
    assert not (tmp_path / "out").exists()


def test_an_output_goes_on_with_the_same_mapping_only(tmp_path):
    pipeline, out = model_of(BDD), tmp_path / "out"
    masks = save_masks(tmp_path / "masks", CAMVID)
    generate_dataset(pipeline, masks / "m0.png", out, FEW, mask_labels=CAMVID)
    report = generate_dataset(pipeline, masks, out, FEW, mask_labels=CAMVID)
    assert (report.num_made, report.num_kept) == (2, 1)
    with pytest.raises(ValueError, match=r"other settings \(mask_labels: \[\['sky', 'sky'\].* there, None now\)"):
        generate_dataset(pipeline, masks, out, FEW)
    turned = LabelSet(CAMVID.names[::-1], CAMVID.colors)
    with pytest.raises(ValueError, match=r"mask_labels: \[\['sky', 'sky'\].* there, \[\['rider', 'rider'\]"):
        generate_dataset(pipeline, masks, out, FEW, mask_labels=turned)


def test_an_output_of_before_the_option_goes_on(tmp_path):
    pipeline, out = model_of(BDD), tmp_path / "out"
    masks = save_masks(tmp_path / "masks", BDD)
    generate_dataset(pipeline, masks / "m0.png", out, FEW)
    record = json.loads((out / "generation.json").read_text())
    assert record.pop("mask_labels") is None
    (out / "generation.json").write_text(json.dumps(record))
    assert generate_dataset(pipeline, masks, out, FEW, mask_labels=BDD).num_kept == 1


def test_processes_that_have_read_different_label_sets_are_refused(tmp_path):
    names = LabelMapping(CAMVID, BDD).names

    class OfTwoMachines(Processes):
        def gather(self, value):
            # the other machine has another file under that path
            is_record = isinstance(value, dict) and value.get("mask_labels") == json.loads(json.dumps(names))
            return [value, {**value, "mask_labels": "others"}] if is_record else [value]

    masks = save_masks(tmp_path / "masks", CAMVID)
    with pytest.raises(
        ValueError, match="different label sets of the masks: give all machines the same --mask_labels"
    ):
        generate_dataset(model_of(BDD), masks, tmp_path / "out", FEW, mask_labels=CAMVID, processes=OfTwoMachines())
    assert not (tmp_path / "out").exists()


# The label set near the masks ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("place", "masks"),
    [
        ("data/val/masks", "data/val/masks"),
        ("data/masks", "data/masks"),
        ("data/masks/city/night", "data/masks"),
        ("data/masks", "data/masks/m0.png"),
        ("data", "data"),
    ],
)
def test_masks_beside_which_another_label_set_lies_are_refused_with_the_way_out(tmp_path, place, masks):
    pipeline, out = model_of(BDD), tmp_path / "out"
    save_masks(tmp_path / place, CAMVID)
    file = tmp_path / "data" / "labels.json"
    CAMVID.save_json(file)
    message = (
        rf"of the label set in '{re.escape(str(file))}' \(sky, .*\), and the model has other classes \(road, .*--mask_"
    )
    with pytest.raises(ValueError, match=message):
        generate_dataset(pipeline, tmp_path / masks, out, FEW)
    assert not out.exists()
    generate_dataset(pipeline, tmp_path / masks, out, FEW, mask_labels=LabelSet.from_name(str(file)))
    expected = LabelMapping(CAMVID, BDD).map(resize_ids(draw(CAMVID, 0), 16, 16))
    assert np.array_equal(saved_ids(out / "masks" / "m0_0.png"), expected)


def test_one_strange_folder_among_many_is_enough(tmp_path):
    save_masks(tmp_path / "masks" / "a", BDD, count=1)
    save_masks(tmp_path / "masks" / "b", CAMVID, count=2)
    (tmp_path / "masks" / "b" / "m0.png").unlink()
    BDD.save_json(tmp_path / "labels.json")
    CAMVID.save_json(tmp_path / "masks" / "b" / "colormap.json")
    with pytest.raises(ValueError, match=r"masks in '.*b' are of the label set in '.*b/colormap\.json'"):
        generate_dataset(model_of(BDD), tmp_path / "masks", tmp_path / "out", FEW)


def test_masks_in_the_classes_of_the_model_are_drawn_as_they_are_whatever_lies_near(tmp_path):
    """The same set is quiet; masks painted beside another set are the model's where one says so."""
    pipeline = model_of(BDD)
    pipeline.save_pretrained(tmp_path / "model")
    masks = save_masks(tmp_path / "data" / "masks", BDD)
    BDD.save_json(tmp_path / "data" / "labels.json")
    assert generate_dataset(pipeline, masks, tmp_path / "same", FEW).mapped is None
    CAMVID.save_json(tmp_path / "data" / "labels.json")
    own = LabelSet.from_name(str(tmp_path / "model" / "unet" / "config.json"))
    assert generate_dataset(pipeline, masks, tmp_path / "given", FEW, mask_labels=own).mapped is None
    for folder in ("same", "given"):
        assert np.array_equal(saved_ids(tmp_path / folder / "masks/m0_0.png"), resize_ids(draw(BDD, 0), 16, 16))
        assert json.loads((tmp_path / folder / "generation.json").read_text())["mask_labels"] is None


def test_other_colours_of_the_same_classes_are_named_as_such(tmp_path):
    masks = save_masks(tmp_path / "masks", BDD)
    LabelSet(BDD.names, BDD.colors[::-1]).save_json(masks / "labels.json")
    with pytest.raises(ValueError, match="the model has other colours"):
        generate_dataset(model_of(BDD), masks, tmp_path / "out", FEW)


def test_the_nearest_label_file_counts_and_those_further_above_do_not(tmp_path):
    masks = tmp_path / "far" / "data" / "val" / "masks"
    (masks / "city").mkdir(parents=True)
    BDD.save_json(tmp_path / "far" / "labels.json")
    assert label_file_near(masks / "city", masks) is None
    BDD.save_json(tmp_path / "far" / "data" / "labels.json")
    assert label_file_near(masks / "city", masks) == tmp_path / "far" / "data" / "labels.json"
    BDD.save_json(masks / "city" / "colormap.json")
    assert label_file_near(masks / "city", masks) == masks / "city" / "colormap.json"
    BDD.save_json(masks / "city" / "labels.json")
    assert label_file_near(masks / "city", masks) == masks / "city" / "labels.json"
    assert label_file_near(masks, masks) == tmp_path / "far" / "data" / "labels.json"
    assert label_file_near("/", "/") is None


# Preparation -------------------------------------------------------------------------------------------------------


def source_of(folder: Path, labels: LabelSet, pairs: int = 4) -> Path:
    for seed in range(pairs):
        save_photo(folder / "images" / f"p{seed}.png", seed, SIZE)
        save(folder / "masks" / f"p{seed}.png", draw(labels, seed))
    labels.save_json(folder / "labels.json")
    return folder


def prepared(source: Path, output: Path, **changes) -> Path:
    prepare_dataset(PrepareSettings(source=str(source), output=str(output), **{"resolution": (16, 24), **changes}))
    return output


@pytest.mark.parametrize("fit", ["crop", "pad"])
@pytest.mark.parametrize(("source", "target"), DIRECTIONS)
def test_a_prepared_set_is_in_the_label_set_that_was_asked_for(tmp_path, source, target, fit):
    root = source_of(tmp_path / "source", PRESETS[source])
    plain = prepared(root, tmp_path / "plain", fit=fit)
    out = prepared(root, tmp_path / "out", map_to=target, fit=fit)
    mapping = LabelMapping(PRESETS[source], PRESETS[target])
    assert LabelSet.from_json(out / "labels.json") == PRESETS[target]
    own = [saved_ids(plain / "train" / "masks" / f"p{seed}.png") for seed in range(4)]
    for seed, ids in enumerate(own):
        assert np.array_equal(saved_ids(out / "train" / "masks" / f"p{seed}.png"), mapping.map(ids))
        photos = (folder / "train" / "images" / f"p{seed}.png" for folder in (plain, out))
        assert len({path.read_bytes() for path in photos}) == 1
    record = json.loads((out / "prepare.json").read_text())
    assert record["map_to"] == target
    assert record["mapped_classes"] == [list(names) for names in mapping.names]
    lost, labelled = lost_pixels(mapping, own)
    expected = f"{lost:,} of {labelled:,} labelled pixels" if lost else f"all {labelled:,} labelled pixels"
    assert record["notes"][-1].startswith(f"masks mapped to the label set {target}: {expected}")
    record = json.loads((plain / "prepare.json").read_text())
    assert (record["map_to"], record["mapped_classes"], record["notes"]) == (None, None, [])


def test_the_unknown_of_the_new_set_stands_around_a_padded_frame(tmp_path):
    own = LabelSet(("road", "sky"), ((1, 0, 0), (2, 0, 0)), ignore_index=7)
    own.save_json(tmp_path / "own.json")
    source = source_of(tmp_path / "source", CAMVID)
    out = prepared(
        source, tmp_path / "out", map_to=str(tmp_path / "own.json"), fit="pad", resolution=(24, 24), max_unknown=1.0
    )
    ids = saved_ids(out / "train" / "masks" / "p0.png")
    assert set(np.unique(ids)) == {0, 1, 7}
    assert (ids[0] == 7).all()


def test_two_data_sets_in_one_label_set_are_of_one_kind(tmp_path):
    camvid = source_of(tmp_path / "camvid", CAMVID)
    bdd = source_of(tmp_path / "bdd", BDD)
    folders = prepared(camvid, tmp_path / "a", map_to="bdd100k"), prepared(bdd, tmp_path / "b")
    first, second = (load_pairs(folder, cache_dir=tmp_path / "cache") for folder in folders)
    assert first.labels == second.labels
    assert first.resolution == second.resolution


def test_the_command_prepares_and_says_what_became_unknown(tmp_path, capsys):
    root = source_of(tmp_path / "source", PAPER)
    options = ["prepare", "--source", str(root), "--output", str(tmp_path / "out"), "--num_workers", "1"]
    assert cli.main([*options, "--map_to", "camvid"]) == 0
    assert re.search(
        r"^masks mapped to the label set camvid: [\d,]+ of [\d,]+ labelled pixels \([\d.]+ %\) became unknown, having "
        r"no counterpart: background [\d.]+ %$",
        capsys.readouterr().out,
        re.MULTILINE,
    )


@pytest.mark.parametrize(
    ("map_to", "message"),
    [("zoo.json", "nothing in common: none of sky, building"), ("ade20k", "'ade20k' is no file and none of the")],
)
def test_a_set_that_cannot_be_mapped_to_leaves_nothing_behind(tmp_path, monkeypatch, map_to, message):
    monkeypatch.chdir(tmp_path)
    ZOO.save_json("zoo.json")
    root = source_of(tmp_path / "source", CAMVID)
    with pytest.raises(ValueError, match=message):
        prepared(root, tmp_path / "out", map_to=map_to)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["source", "zoo.json"]


def test_a_model_of_another_set_is_evaluated_on_the_data_mapped_to_its_own(tmp_path):
    model_of(BDD).save_pretrained(tmp_path / "model")
    root = source_of(tmp_path / "source", CAMVID)
    plain = prepared(root, tmp_path / "plain", resolution=(16, 16))
    mapped = prepared(
        root, tmp_path / "mapped", resolution=(16, 16), map_to=str(tmp_path / "model" / "unet" / "config.json")
    )

    def load(dataset: Path) -> MaskGuidedDDPMPipeline:
        settings = EvaluationSettings(
            dataset=str(dataset), output=str(tmp_path / "out"), model=str(tmp_path / "model")
        )
        return load_generator(settings, load_pairs(dataset, cache_dir=tmp_path / "cache"), "cpu")[0]

    with pytest.raises(ValueError, match=r"generates other classes .* again with --map_to and the model's label"):
        load(plain)
    assert LabelSet.from_config(load(mapped).unet.config) == BDD


# Real data ---------------------------------------------------------------------------------------------------------


def test_real_bdd100k_pairs_of_the_authors_format_come_to_bdd100k(data_root, tmp_path):
    """Their background, road and void in one, is no class of BDD100K's: unknown, never road."""
    source = data_root / "bdd100k_samples"
    own = [PAPER.encode(path) for path in sorted((source / "masks").glob("*.png"))]
    assert LabelSet.from_json(source / "colormap.json") == PAPER
    mapping = LabelMapping(PAPER, BDD)
    lost, labelled = lost_pixels(mapping, own)
    assert 0 < lost < labelled == 2 * 128 * 128

    out = prepared(source, tmp_path / "out", map_to="bdd100k", resolution=None)
    share = f"{100 * lost / labelled:.3g} %"
    assert json.loads((out / "prepare.json").read_text())["notes"] == [
        f"masks mapped to the label set bdd100k: {lost:,} of {labelled:,} labelled pixels ({share}) became unknown, "
        f"having no counterpart: background {share}"
    ]
    for ids, path in zip(own, sorted((out / "train" / "masks").iterdir()), strict=True):
        mapped = saved_ids(path)
        assert not (mapped == BDD.label2id["road"]).any()
        assert np.array_equal(mapped == 255, ids == 0)
        assert np.array_equal(mapped[ids > 0], ids[ids > 0])  # the other 18 have the same ids in both

    pipeline = model_of(BDD)
    with pytest.raises(ValueError, match=r"colormap\.json' \(background, .*--mask_labels"):
        generate_dataset(pipeline, source / "masks", tmp_path / "images", FEW)
    report = generate_dataset(pipeline, source / "masks", tmp_path / "images", FEW, mask_labels=PAPER)
    assert "background" in report.mapped


def test_real_camvid_masks_come_to_bdd100k(data_root, tmp_path):
    """Four frames; every class of CamVid has its name in BDD100K, so that nothing but the unlabelled is unknown."""
    (tmp_path / "source" / "images").mkdir(parents=True)
    (tmp_path / "source" / "labels").mkdir()
    for path in sorted((data_root / "camvid" / "labels" / "val").iterdir())[:4]:
        (tmp_path / "source" / "labels" / path.name).symlink_to(path)
        photo = data_root / "camvid" / "images" / "val" / f"{path.stem}.jpg"
        (tmp_path / "source" / "images" / photo.name).symlink_to(photo)
    out = prepared(tmp_path / "source", tmp_path / "out", map_to="bdd100k", resolution=None)
    unlabelled = 0
    for path in sorted((out / "train" / "masks").iterdir()):
        own, mapped = saved_ids(tmp_path / "source" / "labels" / path.name), saved_ids(path)
        for i, name in enumerate(CAMVID.names):
            assert (mapped[own == i] == BDD.label2id[name]).all(), name
        assert np.array_equal(mapped == 255, own == 11)
        unlabelled += int((own == 11).sum())
    (note,) = json.loads((out / "prepare.json").read_text())["notes"]
    assert note.endswith(f"all {4 * 360 * 480 - unlabelled:,} labelled pixels have a counterpart")
