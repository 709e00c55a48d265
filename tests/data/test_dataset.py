"""Pairs come out as ids and uint8 tensors, whatever form the dataset has; what is wrong is named with its file."""

import pickle
import shutil

import datasets
import numpy as np
import pytest
import torch
from PIL import Image

from semseg_diffusers.data.dataset import DecodedPairs, PairDataset, load_pairs
from semseg_diffusers.data.labels import LabelSet
from semseg_diffusers.toy.scenes import draw_scene, write_toy_dataset


BDD = LabelSet.from_preset("bdd100k")


@pytest.fixture(scope="module")
def toy_folder(tmp_path_factory):
    return write_toy_dataset(tmp_path_factory.mktemp("data") / "toy", num_train=3, num_val=2, size=(32, 48))


@pytest.fixture
def changed_folder(toy_folder, tmp_path):
    """A copy of the toy dataset that a test may spoil."""
    return shutil.copytree(toy_folder, tmp_path / "toy")


@pytest.fixture
def load(tmp_path):
    return lambda *args, **kwargs: load_pairs(*args, cache_dir=tmp_path / "cache", **kwargs)


def test_a_pair_is_two_contiguous_uint8_tensors_equal_to_what_was_drawn(toy_folder, load):
    pairs = load(toy_folder)
    assert (len(pairs), pairs.labels, pairs.resolution) == (3, BDD, (32, 48))
    assert pairs.stems == ["toy_0_0000000", "toy_0_0000001", "toy_0_0000002"]
    photo, ids, _ = draw_scene(1, (32, 48))
    pair = pairs[1]
    assert pair.keys() == {"image", "mask", "stem"}
    assert pair["stem"] == "toy_0_0000001"
    assert torch.equal(pair["image"], torch.from_numpy(np.asarray(photo).transpose(2, 0, 1).copy()))
    assert torch.equal(pair["mask"], torch.from_numpy(ids))
    assert pair["image"].is_contiguous()
    assert pair["mask"].is_contiguous()
    assert (pair["image"].dtype, pair["mask"].dtype) == (torch.uint8, torch.uint8)


def test_val_and_validation_are_one_split(toy_folder, load):
    assert load(toy_folder, "val").stems == load(toy_folder, "validation").stems == ["toy_0_5000000", "toy_0_5000001"]
    with pytest.raises(ValueError, match="has no split 'test'; it has train, validation"):
        load(toy_folder, "test")


@pytest.mark.parametrize("in_table", [False, True])
def test_a_pair_without_image_is_named_and_does_not_stop_the_digest(toy_folder, in_table):
    files = sorted(toy_folder.glob("train/masks/*.png"))
    entries = [{"bytes": file.read_bytes() if in_table else None, "path": str(file)} for file in files]
    features = datasets.Features({name: datasets.Image(decode=False) for name in ("image", "mask")})
    table = datasets.Dataset.from_dict({"image": [None, *entries[1:]], "mask": entries}, features=features)
    pairs = PairDataset(table, BDD, "image", "mask", "'nulls' (train)")
    for read in (lambda: pairs.sizes, lambda: pairs[0], lambda: pairs.photo_file(0)):
        with pytest.raises(ValueError, match=r"pair '000000' of 'nulls' .train. has no image in column 'image'"):
            read()
    assert len(pairs.digest) == 64


def test_plain_load_dataset_gives_image_mask_stem_and_attributes(toy_folder, tmp_path):
    splits = datasets.load_dataset(str(toy_folder), cache_dir=str(tmp_path))
    assert set(splits) == {"train", "validation"}
    row = splits["train"][0]
    assert row.keys() == {"image", "mask", "stem", "weather", "scene", "timeofday"}
    assert (row["image"].mode, row["mask"].mode, row["image"].size) == ("RGB", "P", (48, 32))


def test_a_mask_is_read_without_its_photo(changed_folder, load):
    pairs = load(changed_folder)
    expected = pairs[1]["mask"].numpy()
    (changed_folder / "train" / "images" / "toy_0_0000001.png").write_bytes(b"")
    assert np.array_equal(pairs.mask(1), expected)
    assert np.array_equal(pairs.mask(-2), expected)


def test_attributes_are_the_columns_of_text(toy_folder, load):
    attributes = load(toy_folder).attributes
    drawn = [draw_scene(number, (32, 48))[2] for number in range(3)]
    assert attributes == {name: [scene[name] for scene in drawn] for name in ("weather", "scene", "timeofday")}


def test_indices_count_from_both_ends_and_stop(toy_folder, load):
    pairs = load(toy_folder)
    assert pairs[-1]["stem"] == pairs[2]["stem"]
    with pytest.raises(IndexError):
        pairs[3]


def test_pairs_travel_to_worker_processes(toy_folder, load):
    pairs = load(toy_folder)
    again = pickle.loads(pickle.dumps(pairs))
    assert torch.equal(again[0]["image"], pairs[0]["image"])


@pytest.mark.parametrize("form", ["ids", "palette", "colours"])
def test_a_table_of_the_hub_with_masks_of_any_form_gives_the_same_ids(tmp_path, load, form):
    photo, ids, _ = draw_scene(2, (32, 32))
    mask = {"ids": Image.fromarray(ids), "palette": BDD.decode(ids), "colours": BDD.decode(ids).convert("RGB")}[form]
    features = datasets.Features({"photo": datasets.Image(), "label": datasets.Image()})
    table = datasets.Dataset.from_dict({"photo": [photo], "label": [mask]}, features=features)
    (tmp_path / "hub").mkdir()
    table.to_parquet(tmp_path / "hub" / "train.parquet")  # pictures as bytes, as a pushed dataset holds them
    pairs = load(tmp_path / "hub", image_column="photo", mask_column="label", labels=BDD)
    assert torch.equal(pairs[0]["mask"], torch.from_numpy(ids))
    assert pairs.resolution == (32, 32)
    assert pairs.stems == ["000000"]


def test_columns_that_are_missing_or_no_pictures_are_named(toy_folder, load):
    with pytest.raises(ValueError, match="no column 'label'; it has image, mask, stem, .*--image_column"):
        load(toy_folder, mask_column="label")
    with pytest.raises(ValueError, match="column 'stem' of .* expected images"):
        load(toy_folder, mask_column="stem")


def test_a_folder_without_labels_says_how_to_get_them(changed_folder, load):
    (changed_folder / "labels.json").unlink()
    with pytest.raises(ValueError, match=r"has no labels.json: give its label set: .* Prepare it: semseg-diffusers"):
        load(changed_folder)
    assert len(load(changed_folder, labels=BDD)) == 3


def test_a_missing_folder_is_not_taken_for_a_hub_id(tmp_path, load):
    with pytest.raises(ValueError, match="there is no folder '.*nowhere'"):
        load(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="'some/thing' is not a local folder, and the Hub cannot be reached"):
        load("some/thing")


def test_ids_out_of_range_are_named_with_file_and_value(changed_folder, load):
    Image.fromarray(np.full((32, 48), 23, np.uint8)).save(changed_folder / "train" / "masks" / "toy_0_0000001.png")
    pairs = load(changed_folder)
    assert pairs[0]["mask"].max() < 19
    with pytest.raises(ValueError, match=r"toy_0_0000001.png' holds class 23; .* 0-18 and 255"):
        pairs[1]


def test_a_broken_photo_is_named(changed_folder, load):
    path = changed_folder / "train" / "images" / "toy_0_0000002.png"
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(ValueError, match=r"image '.*toy_0_0000002.png' cannot be read"):
        load(changed_folder)[2]


def test_photo_and_mask_of_two_sizes_are_refused(changed_folder, load):
    Image.new("RGB", (24, 24)).save(changed_folder / "train" / "images" / "toy_0_0000002.png")
    pairs = load(changed_folder)
    with pytest.raises(ValueError, match=r"'toy_0_0000002' .* image is 24 x 24, its mask 32 x 48"):
        pairs[2]
    with pytest.raises(ValueError, match=r"differ in size: 'toy_0_0000000' is 32 x 48, 'toy_0_0000002' is 24 x 24"):
        _ = pairs.resolution


def test_a_dataset_that_was_made_anew_is_not_taken_from_the_cache(tmp_path, load):
    folder = write_toy_dataset(tmp_path / "toy", num_train=2, num_val=1, size=(32, 32))
    assert len(load(folder)) == 2
    write_toy_dataset(folder, num_train=3, num_val=1, size=(48, 48), seed=1, overwrite=True)
    pairs = load(folder)
    assert (pairs.stems[0], len(pairs), pairs.resolution) == ("toy_1_0000000", 3, (48, 48))


def test_unknown_pixels_stay_255(changed_folder, load):
    ids = np.full((32, 48), 255, np.uint8)
    ids[:4] = 7
    BDD.decode(ids).save(changed_folder / "train" / "masks" / "toy_0_0000000.png")
    assert torch.equal(load(changed_folder)[0]["mask"], torch.from_numpy(ids))


# Pairs that are kept decoded ---------------------------------------------------------------------------------------


class Uneven:
    """Four pairs of two sizes, as `PairDataset` keeps them."""

    sizes = [(4, 6), (4, 6), (5, 3), (4, 6)]

    def pair(self, index):
        size = self.sizes[index]
        random = np.random.default_rng(index)
        return random.integers(0, 256, (3, *size)).astype(np.uint8), random.integers(0, 19, size).astype(np.uint8)


def test_kept_pairs_come_out_as_they_went_in_and_as_copies():
    pairs = Uneven()
    kept = DecodedPairs(pairs.sizes, 10_000)
    assert kept.count == 4
    assert [kept.get(index) for index in range(4)] == [None] * 4
    for index in (2, 0, 3):
        kept.put(index, *pairs.pair(index))
    assert kept.get(1) is None
    for index in (0, 2, 3):
        kept.get(index)[0][:] = 0
        assert all(np.array_equal(a, b) for a, b in zip(kept.get(index), pairs.pair(index), strict=True))


@pytest.mark.parametrize(("most_bytes", "count"), [(0, 0), (96, 0), (97, 1), (254, 2), (255, 3)])
def test_as_many_pairs_are_kept_as_there_is_room_for(most_bytes, count):
    pairs = Uneven()
    kept = DecodedPairs(pairs.sizes, most_bytes)
    for index in range(4):
        kept.put(index, *pairs.pair(index))
    assert [kept.get(index) is not None for index in range(4)] == [index < count for index in range(4)]


def test_items_of_a_data_set_are_the_same_kept_or_not(toy_folder, load):
    plain, keeping = load(toy_folder), load(toy_folder)
    assert keeping.keep_decoded(10**6) == len(plain)
    for _ in range(2):
        for index in range(len(plain)):
            first, second = plain[index], keeping[index]
            assert first["stem"] == second["stem"]
            assert all(torch.equal(first[name], second[name]) for name in ("image", "mask"))
            second["image"].zero_()  # what is handed out belongs to the caller
    assert keeping.keep_decoded(0) == 0
    assert torch.equal(keeping[0]["image"], plain[0]["image"])


def test_what_a_forked_reader_decoded_is_there_in_the_process_that_started_it(toy_folder, load):
    pairs = load(toy_folder)
    pairs.keep_decoded(10**6)
    loader = torch.utils.data.DataLoader(pairs, num_workers=1, multiprocessing_context="fork")
    assert len([batch["mask"] for batch in loader]) == len(pairs)
    assert all(pairs._decoded.get(index) is not None for index in range(len(pairs)))


def test_a_data_set_that_is_sent_to_another_process_leaves_its_memory_behind(toy_folder, load):
    pairs = load(toy_folder)
    pairs.keep_decoded(10**6)
    expected = pairs[0]
    assert torch.equal(pickle.loads(pickle.dumps(pairs))[0]["image"], expected["image"])
