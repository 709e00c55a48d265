"""Generated images are paired with masks by metadata or by name; errors name the file."""

import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from semseg_diffusers.data.dataset import load_pairs
from semseg_diffusers.data.labels import LabelSet
from semseg_diffusers.evaluation.inputs import generated_images, real_images
from semseg_diffusers.toy.scenes import write_toy_dataset


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    return write_toy_dataset(tmp_path_factory.mktemp("toy") / "scenes", num_train=2, num_val=3, size=(32, 48))


@pytest.fixture
def val(scenes):
    return load_pairs(scenes, "val")


@pytest.fixture
def listed(scenes, tmp_path):
    """A folder with metadata, as `generate` writes it, filled with real scenes."""
    folder = shutil.copytree(scenes / "val", tmp_path / "listed")
    shutil.copy(scenes / "labels.json", folder)
    return folder


def named(folder, val, names):
    """A folder of images of another program: {name: index of the image}."""
    folder.mkdir(parents=True)
    for name, index in names.items():
        Image.fromarray(val[index]["image"].permute(1, 2, 0).numpy()).save(folder / name)
    return folder


def test_images_with_metadata_have_their_own_masks(listed, val):
    images, real = generated_images(listed, val), real_images(val)
    assert images.names == images.stems == real.stems
    for index in range(3):
        assert torch.equal(images.image(index), real.image(index))
        assert torch.equal(images.mask(index), real.mask(index))


def test_images_of_another_program_are_paired_by_name(val, tmp_path):
    first, second = sorted(val.stems)[:2]
    names = {f"{second}.png": 1, f"{first}_1.png": 0, f"{first}_0.png": 0}
    for folder in (named(tmp_path / "flat", val, names), named(tmp_path / "deep" / "images", val, names).parent):
        images = generated_images(folder, val)
        assert images.names == (f"{first}_0", f"{first}_1", second)
        assert images.stems == (first, first, second)
        index = val.stems.index(second)
        assert torch.equal(images.mask(2), val[index]["mask"])


def test_an_ambiguous_name_is_resolved_by_the_other_names_or_refused(tmp_path):
    scenes = write_toy_dataset(tmp_path / "scenes", num_train=1, num_val=3, size=(32, 48))
    rows = [json.loads(row) for row in (scenes / "val" / "metadata.jsonl").read_text().splitlines()]
    for row, stem in zip(rows, ("x", "x_0", "x_1"), strict=True):
        row["stem"] = stem
    (scenes / "val" / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    val = load_pairs(scenes, "val")
    copies = generated_images(named(tmp_path / "copies", val, {"x.png": 0, "x_0.png": 1, "x_1.png": 2}), val)
    assert copies.stems == copies.names == ("x", "x_0", "x_1")
    samples = {"x_0.png": 0, "x_1.png": 0, "x_0_0.png": 1, "x_0_1.png": 1, "x_1_0.png": 2, "x_1_1.png": 2}
    images = generated_images(named(tmp_path / "samples", val, samples), val)
    assert images.stems == ("x", "x", "x_0", "x_0", "x_1", "x_1")
    for place, index in enumerate((0, 0, 1, 1, 2, 2)):
        assert torch.equal(images.mask(place), val[index]["mask"])
    with pytest.raises(ValueError, match=r"'x_1' in .* may belong to the mask 'x_1', or be a sample of 'x'"):
        generated_images(named(tmp_path / "mixed", val, {"x.png": 0, "x_1.png": 2, "x_0_0.png": 1}), val)


def test_the_order_of_a_listing_changes_nothing(listed, val):
    before = generated_images(listed, val)
    rows = (listed / "metadata.jsonl").read_text().splitlines()
    (listed / "metadata.jsonl").write_text("\n".join(reversed(rows)) + "\n")
    after = generated_images(listed, val)
    assert after.names == before.names
    assert all(torch.equal(after.image(index), before.image(index)) for index in range(3))


def test_a_subset_keeps_images_and_masks_together(listed, val):
    images = generated_images(listed, val)
    chosen = images.subset([2, 0])
    assert chosen.names == (images.names[2], images.names[0])
    assert torch.equal(chosen.image(0), images.image(2))
    assert torch.equal(chosen.mask(1), images.mask(0))


def test_unsuitable_folders_are_refused(listed, val, tmp_path):
    with pytest.raises(FileNotFoundError, match="there is no folder"):
        generated_images(tmp_path / "none", val)
    with pytest.raises(ValueError, match=r"1 of 1 images .* named after no mask of the split, such as 'other_0.png'"):
        generated_images(named(tmp_path / "other", val, {"other_0.png": 0}), val)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="holds no image"):
        generated_images(tmp_path / "empty", val)
    twice = named(tmp_path / "twice", val, {f"{val.stems[0]}.png": 0, f"{val.stems[0]}.bmp": 0})
    with pytest.raises(ValueError, match=f"two images called '{val.stems[0]}'"):
        generated_images(twice, val)

    deep = named(tmp_path / "deep", val, {})
    Image.fromarray(np.full((32, 48), 40_000, np.uint16)).save(deep / f"{val.stems[0]}.png")
    with pytest.raises(ValueError, match=r"has 16 or more bits per pixel \(I;16\); expected 8"):
        generated_images(deep, val)

    stem = val.stems[0]
    Image.new("RGB", (16, 16)).save(listed / "images" / f"{stem}.png")
    with pytest.raises(ValueError, match=r"is 16 x 16, the real images are 32 x 48.*--resolution 16x16"):
        generated_images(listed, val)
    (listed / "images" / f"{stem}.png").write_bytes(b"no picture")
    with pytest.raises(ValueError, match="cannot be read"):
        generated_images(listed, val)
    (listed / "images" / f"{stem}.png").unlink()
    with pytest.raises(ValueError, match=f"1 files of .* are missing, such as .*{stem}"):
        generated_images(listed, val)
    (listed / "metadata.jsonl").write_text(json.dumps({"file_name": "a.png"}) + "\n")
    with pytest.raises(ValueError, match="lists no images with masks"):
        generated_images(listed, val)
    labels = LabelSet.from_json(listed / "labels.json")
    LabelSet(("street", *labels.names[1:]), labels.colors).save_json(listed / "labels.json")
    with pytest.raises(ValueError, match="different label sets"):
        generated_images(listed, val)


def test_a_mask_of_another_size_than_its_image_is_refused(listed, val):
    path = listed / "masks" / f"{sorted(val.stems)[0]}.png"
    val.labels.decode(np.zeros((16, 16), np.uint8)).save(path)
    images = generated_images(listed, val)
    with pytest.raises(ValueError, match=r"is 16 x 16, its image 32 x 48"):
        images.mask(0)
