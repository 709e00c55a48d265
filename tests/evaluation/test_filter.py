"""`semseg-diffusers filter`: wrong labels are removed, correct ones are kept, and the result is a dataset."""

import json
import re
import shutil

import numpy as np
import pytest
import torch
from helpers.evaluation_place import LABELS, SIZE, Place
from helpers.filter_places import (
    GENERATION,
    POLE,
    add_image,
    draw_ids,
    draw_photo,
    generated_folder,
    hashes,
    read_lines,
    shifted,
    with_car,
)
from PIL import Image

from semseg_diffusers.data.dataset import load_pairs
from semseg_diffusers.data.dataset_format import finish_dataset, make_split, save_pair
from semseg_diffusers.data.labels import LabelSet
from semseg_diffusers.evaluation.filtering.filter import Real, filter_dataset
from semseg_diffusers.evaluation.filtering.rules import EASY_MASK, NOTHING_LABELLED, TOO_LITTLE_KEPT
from semseg_diffusers.evaluation.inputs import generated_images
from semseg_diffusers.evaluation.segmentation.judge import load_judge
from semseg_diffusers.generation.output_folder import check_output
from semseg_diffusers.hub.cards import dataset_content
from semseg_diffusers.hub.folders import check_dataset_folder


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Return real images and a segmenter trained on them."""
    return Place(tmp_path_factory.mktemp("place"))


@pytest.fixture(scope="module")
def generated(tmp_path_factory):
    return generated_folder(tmp_path_factory.mktemp("generated") / "new")


# Pixels beside an edge are read badly by so small a network, in real photos too: a wide margin leaves them out.
MARGIN = 8


def options(place, generated, output, *more):
    return [
        *("filter", "--generated", generated, "--dataset", place.dataset, "--segmenter", place.segmenter),
        *("--output", output, "--device", "cpu", "--tolerance_margin", MARGIN, *more),
    ]


def run(place, generated, output, *more, expect=0):
    return place.command(*options(place, generated, output, *more), expect=expect)


@pytest.fixture(scope="module")
def filtered(place, generated, tmp_path_factory):
    """Return the filtered folder, the command's output, and hashes of the generated folder before."""
    output, before = tmp_path_factory.mktemp("filtered") / "out", hashes(generated)
    return output, run(place, generated, output), before


def mask_of(folder, name):
    return LABELS.encode(folder / "masks" / f"{name}.png")


# Kept and removed -----------------------------------------------------------------------------------------------


def test_a_mislabelled_image_is_dropped_with_its_reason(filtered):
    output, printed, _ = filtered
    (row,) = read_lines(output / "dropped.jsonl")
    assert (row["image_file_name"], row["reason"]) == ("images/wrong_0.png", TOO_LITTLE_KEPT)
    assert row["kept_share"] < 0.2
    assert row["synthetic"] is True
    assert not (output / "images" / "wrong_0.png").exists()
    assert "9 of 10 images kept (dropped: 1 too little kept)" in printed


def test_pixels_of_a_shifted_object_become_unknown_and_correct_ones_stay(filtered):
    before, after = with_car(60), mask_of(filtered[0], "moved_0")
    wrong = before != shifted(before)
    inside = np.zeros_like(wrong)
    inside[2 : SIZE // 4 - 2, 2 : SIZE // 2 - 2] = True  # edges apart
    assert (after[wrong & inside] == 255).mean() > 0.9
    true = ~wrong
    assert (after[true] == before[true]).mean() > 0.85
    assert set(np.unique(after[after != before])) == {255}


def test_correct_labels_are_kept_as_in_real_images(filtered):
    record = json.loads((filtered[0] / "filter.json").read_text())
    good = [row for row in read_lines(filtered[0] / "metadata.jsonl") if row["stem"].startswith("good")]
    assert len(good) == 8
    assert all(row["kept_share"] > 0.85 for row in good)
    assert record["reference"]["num_photos"] == 8
    assert record["reference"]["kept_share"] > 0.85
    assert record["reference"]["least_kept_share"] <= record["reference"]["kept_share"]
    assert record["results"]["least_kept_share"] < 0.2  # the image that is dropped


def test_pixels_that_an_edit_left_as_in_the_photo_keep_their_labels(place, tmp_path):
    pairs = load_pairs(place.dataset, "train")
    photo, ids = np.asarray(pairs.photo(0)).copy(), pairs[0]["mask"].numpy().copy()
    block = SIZE // 4
    photo[:block, :block] = 0  # what was generated shows nothing
    ids[:block, :block] = 2
    edited = {"edited_share": 1 / 16, "source_photo": f"elsewhere/{pairs.stems[0]}.png"}
    new = tmp_path / "new"
    for index, more in enumerate((edited, {})):
        add_image(new, pairs.stems[0], index, ids, Image.fromarray(photo), **more)
    strict = ("--tolerance_margin", 0.001, "--minimum_kept", 0)
    run(place, new, tmp_path / "filtered", *strict)
    kept = mask_of(tmp_path / "filtered", f"{pairs.stems[0]}_0") != 255
    assert not kept[:block, :block].any()
    kept[:block, :block] = (ids != 255)[:block, :block]
    np.testing.assert_array_equal(kept, ids != 255)
    rows = read_lines(tmp_path / "filtered" / "metadata.jsonl") + read_lines(tmp_path / "filtered" / "dropped.jsonl")
    shares = {row["index"]: row["kept_share"] for row in rows}
    assert shares[0] > 0.9 > 0.5 > shares[1]  # the same image, as one that was generated as a whole


def test_the_generated_folder_is_not_modified(filtered, generated):
    assert hashes(generated) == filtered[2]


# The result is a dataset --------------------------------------------------------------------------------------------


def test_the_output_loads_as_a_generated_folder_does(filtered, generated, place):
    from datasets import load_dataset

    output = filtered[0]
    pairs = load_pairs(output, "train")
    assert len(pairs) == len(load_dataset("imagefolder", data_dir=str(output))["train"]) == 9
    assert pairs.labels == LABELS
    assert (pairs[0]["mask"].numpy() == mask_of(output, "good0_0")).all()
    images = generated_images(output, load_pairs(place.dataset, "val"))
    assert images.names == tuple(
        sorted(path.stem for path in (generated / "images").iterdir() if "wrong" not in str(path))
    )
    assert check_dataset_folder(output) == (LABELS, "generation.json")
    content = dataset_content(LABELS, json.loads((output / "generation.json").read_text()), {"train": 9})
    assert "Of 10 images 9 were kept, and labels that a segmentation network did not find" in content


def test_rows_keep_the_columns_of_generate_and_add_scores(filtered, generated):
    before = {row["image_file_name"]: row for row in read_lines(generated / "metadata.jsonl")}
    rows = read_lines(filtered[0] / "metadata.jsonl")
    record = json.loads((filtered[0] / "filter.json").read_text())
    for row in rows:
        own = before[row["image_file_name"]]
        assert own.items() <= row.items()
        ids, after = mask_of(generated, own["mask_file_name"][6:-4]), mask_of(filtered[0], own["mask_file_name"][6:-4])
        assert row["kept_share"] == pytest.approx((after != 255).sum() / (ids != 255).sum(), abs=1e-6)
        car = LABELS.names.index("car")
        share = row["kept_share_by_class"]["car"]
        assert share is None or share == pytest.approx((after == car).sum() / (ids == car).sum(), abs=1e-6)
        losses = dict(zip(record["class_losses"]["names"], record["class_losses"]["mean"], strict=True))
        expected = np.mean([losses[LABELS.names[label]] for label in ids.ravel()])
        assert row["mask_hardness"] == pytest.approx(expected, abs=1e-6)
        assert {*row} - {*own} == {"segmenter_loss", "kept_share", "kept_share_by_class", "mask_hardness", "mask_rank"}
    assert sorted(
        {row["mask_rank"] for row in rows} | {read_lines(filtered[0] / "dropped.jsonl")[0]["mask_rank"]}
    ) == [*range(6)]


def test_masks_keep_names_and_palettes_and_images_are_byte_identical(filtered, generated):
    for path in (filtered[0] / "masks").iterdir():
        with Image.open(path) as mask:
            assert mask.mode == "P"
            assert mask.getpalette()[:3] == list(LABELS.colors[0])
    there, before = hashes(filtered[0] / "images"), hashes(generated / "images")
    assert there.items() <= before.items()


def test_the_record_names_the_network_that_filtered(filtered, place):
    record = json.loads((filtered[0] / "filter.json").read_text())
    assert record["segmenter_sha256"] == load_judge(place.segmenter, LABELS).weights_sha256
    assert record["settings"]["tolerance_margin"] == MARGIN
    assert record["results"]["num_dropped"] == {TOO_LITTLE_KEPT: 1, EASY_MASK: 0, NOTHING_LABELLED: 0}
    assert record["class_losses"]["mean"][POLE] is None
    assert record["class_losses"]["num_photos"] == 24
    generation = json.loads((filtered[0] / "generation.json").read_text())
    assert GENERATION.items() <= generation.items()
    assert generation["filter"]["segmenter_sha256"] == record["segmenter_sha256"]


def test_the_mean_losses_are_those_of_all_real_pixels(filtered, place):
    record = json.loads((filtered[0] / "filter.json").read_text())
    judge, pairs = load_judge(place.segmenter, LABELS), load_pairs(place.dataset, "train")
    ids = np.stack([pair["mask"].numpy() for pair in pairs])
    losses = np.stack([judge.losses(pair["image"][None], pair["mask"][None])[0].numpy() for pair in pairs])
    for label in range(POLE):
        assert record["class_losses"]["mean"][label] == pytest.approx(losses[ids == label].mean(), rel=1e-4)
        assert record["class_losses"]["pixels"][label] == (ids == label).sum()


def test_generate_refuses_to_add_to_a_filtered_folder(filtered):
    with pytest.raises(ValueError, match="holds images of other settings .*filter"):
        check_output(filtered[0], GENERATION, LABELS)


def test_evaluate_notes_that_the_filter_is_the_judge(filtered, place, tmp_path):
    place.evaluate(tmp_path / "evaluation", generated=filtered[0], features="none")
    notes = json.loads((tmp_path / "evaluation" / "results.json").read_text())["notes"]
    assert any("filtered by the network that segments them here" in note for note in notes)


# Resuming ------------------------------------------------------------------------------------------------------------


def result_of(output):
    """Return everything that holds no time and no commit."""
    kept = {name: value for name, value in hashes(output).items() if name not in ("filter.json", "filter.html")}
    record = json.loads((output / "filter.json").read_text())
    return kept, record["results"], record["reference"], record["class_losses"]


def filter_here(place, generated, output, after_forwards=None, **options):
    """Filter in this process; the network fails after a number of forward passes. Return how many there were."""
    judge, count = load_judge(place.segmenter, LABELS), 0

    def forward(*_):
        nonlocal count
        count += 1
        if after_forwards is not None and count > after_forwards:
            raise KeyboardInterrupt

    judge.network.register_forward_hook(forward)
    real = Real(load_pairs(place.dataset, "train"), "data (train)", load_pairs(place.dataset, "val"), "data (val)")
    try:
        filter_dataset(generated, real, judge, output, **options)
    except KeyboardInterrupt:
        assert after_forwards is not None
    return count


def test_an_interrupted_run_resumes_with_the_same_result(place, generated, tmp_path):
    straight = filter_here(place, generated, tmp_path / "straight", batch_size=4)
    cut = 1 + 6 + 2 + 2  # tried, 24 real photos, 8 to compare with, 8 of the 10 images
    assert filter_here(place, generated, tmp_path / "cut", cut, batch_size=4) == cut + 1
    assert not (tmp_path / "cut" / "metadata.jsonl").exists()
    assert len([*(tmp_path / "cut" / ".read").glob("*.png")]) == 8
    (tmp_path / "cut" / "masks").mkdir()
    (tmp_path / "cut" / "masks" / ".a.png.1.tmp").write_bytes(b"half")
    (tmp_path / "cut" / ".read" / "good0_0.png").write_bytes(b"cut off")
    again = filter_here(place, generated, tmp_path / "cut", batch_size=4)
    assert result_of(tmp_path / "cut") == result_of(tmp_path / "straight")
    assert again < straight - 6  # neither the real photos again, nor the images


def test_a_finished_run_reads_no_image_again(place, generated, tmp_path):
    filter_here(place, generated, tmp_path / "out")
    before = result_of(tmp_path / "out")
    shown = 1 + 1 + 10  # tried, compared with, and read for the page
    assert filter_here(place, generated, tmp_path / "out") <= shown
    assert result_of(tmp_path / "out") == before


def test_added_and_replaced_images_are_filtered_by_the_same_command(place, generated, tmp_path):
    grown = shutil.copytree(generated, tmp_path / "grown")
    filter_here(place, grown, tmp_path / "out")
    add_image(grown, "good9", 0, draw_ids(9), draw_photo(draw_ids(9), 90))
    draw_photo(draw_ids(50), 50).save(grown / "images" / "wrong_0.png")  # right now
    draw_photo((draw_ids(0) + 1) % 4, 0).save(grown / "images" / "good0_0.png")  # wrong now
    filter_here(place, grown, tmp_path / "out")
    filter_here(place, grown, tmp_path / "again")
    assert result_of(tmp_path / "out")[1:] == result_of(tmp_path / "again")[1:]
    ours, again = (hashes(tmp_path / name / "images") for name in ("out", "again"))
    assert ours == again
    assert "wrong_0.png" in ours
    assert "good0_0.png" not in ours
    assert read_lines(tmp_path / "out" / "metadata.jsonl") == read_lines(tmp_path / "again" / "metadata.jsonl")
    assert {path.stem for path in (tmp_path / "out" / "masks").iterdir()} == {name[:-4] for name in ours}


def test_jpeg_images_are_filtered_copied_and_updated(place, generated, tmp_path):
    folder, output = tmp_path / "generated", tmp_path / "out"
    shutil.copytree(generated, folder)
    lines = (folder / "metadata.jsonl").read_text()
    (folder / "metadata.jsonl").write_text(re.sub(r"images/(\w+)\.png", r"images/\1.jpg", lines))
    for path in (folder / "images").glob("*.png"):
        Image.open(path).save(path.with_suffix(".jpg"), quality=95, subsampling=0)
        path.unlink()
    filter_here(place, folder, output)
    kept = {path.name for path in (output / "images").iterdir()}
    assert {"good0_0.jpg", "good3_1.jpg"} <= kept
    assert "wrong_0.jpg" not in kept
    assert (output / "images/good0_0.jpg").read_bytes() == (folder / "images/good0_0.jpg").read_bytes()
    first = (folder / "metadata.jsonl").read_text().splitlines(keepends=True)
    (folder / "metadata.jsonl").write_text("".join(first[1:]))  # an image that is not listed any more
    filter_here(place, folder, output)
    assert kept - {path.name for path in (output / "images").iterdir()} == {"good0_0.jpg"}


def test_other_settings_are_refused_in_the_same_folder(place, generated, filtered):
    error = run(place, generated, filtered[0], "--minimum_kept", 0.7, expect=2)
    assert "was filtered with other settings (minimum_kept: 0.6 there, 0.7 now). Choose another folder" in error


def test_class_losses_of_another_folder_are_reused(place, generated, filtered, tmp_path):
    count = filter_here(place, generated, tmp_path / "out", class_losses=filtered[0])
    assert count == filter_here(place, generated, tmp_path / "own") - 3  # 24 photos, 8 at a time
    assert result_of(tmp_path / "out") == result_of(tmp_path / "own")
    data = place.data_copy(tmp_path / "data")
    Image.new("RGB", (SIZE, SIZE)).save(next((data / "train" / "images").iterdir()))
    other = [word if word != place.dataset else data for word in options(place, generated, tmp_path / "other")]
    error = place.command(*other, "--class_losses", filtered[0], expect=2)
    assert "holds no filter.json with the class losses of this segmenter on these images" in error


# Options -------------------------------------------------------------------------------------------------------------


def test_resampling_keeps_more_images_of_harder_masks(place, tmp_path):
    for seed in range(4):
        for index in range(4):
            add_image(
                tmp_path / "new", f"s{seed}", index, draw_ids(seed), draw_photo(draw_ids(seed), 10 * seed + index)
            )
    printed = run(place, tmp_path / "new", tmp_path / "out", "--resample")
    rows, dropped = (read_lines(tmp_path / "out" / name) for name in ("metadata.jsonl", "dropped.jsonl"))
    counts = {row["mask_rank"]: [r["stem"] for r in rows].count(row["stem"]) for row in rows}
    assert counts == {0: 1, 1: 2, 2: 3, 3: 4}
    hardness = {row["mask_rank"]: row["mask_hardness"] for row in rows}
    assert sorted(hardness.values()) == [hardness[rank] for rank in range(4)]
    assert {row["reason"] for row in dropped} == {EASY_MASK}
    for row in dropped:
        kept = [other for other in rows if other["stem"] == row["stem"]]
        assert all(other["kept_share"] >= row["kept_share"] for other in kept)
    assert f"(dropped: 6 {EASY_MASK})" in printed


def test_a_class_without_real_pixels_becomes_unknown_unless_kept_by_option(place, tmp_path):
    ids = draw_ids(3)
    ids[:8, :8] = POLE
    add_image(tmp_path / "new", "poles", 0, ids, draw_photo(ids, 0))
    run(place, tmp_path / "new", tmp_path / "unknown")
    run(place, tmp_path / "new", tmp_path / "kept", "--keep_unchecked")
    assert not (mask_of(tmp_path / "unknown", "poles_0") == POLE).any()
    assert (mask_of(tmp_path / "kept", "poles_0") == POLE).sum() == 64
    for name, text in (("unknown", "became unknown"), ("kept", "were left as they are")):
        assert f"pole. Their labels {text}" in (tmp_path / name / "filter.html").read_text()


def test_an_image_without_labels_is_dropped_and_an_empty_result_exits_with_code_one(place, tmp_path):
    add_image(tmp_path / "new", "empty", 0, np.full((SIZE, SIZE), 255, np.uint8), draw_photo(draw_ids(0), 0))
    add_image(tmp_path / "new", "wrong", 0, draw_ids(1), draw_photo((draw_ids(1) + 1) % 4, 0))
    run(place, tmp_path / "new", tmp_path / "out", expect=1)
    reasons = {row["stem"]: row["reason"] for row in read_lines(tmp_path / "out" / "dropped.jsonl")}
    assert reasons == {"empty": NOTHING_LABELLED, "wrong": TOO_LITTLE_KEPT}
    assert "No image is kept." in (tmp_path / "out" / "filter.html").read_text()


def test_a_card_that_may_name_a_license_is_copied(place, generated, tmp_path):
    carded = shutil.copytree(generated, tmp_path / "carded")
    (carded / "README.md").write_text("---\nlicense: cc-by-nc-4.0\n---\n")
    run(place, carded, tmp_path / "out")
    assert (tmp_path / "out" / "README.md").read_text() == (carded / "README.md").read_text()


# The judge -----------------------------------------------------------------------------------------------------------


def test_a_judge_that_is_the_filter_is_refused_unless_allowed(place, generated, tmp_path):
    copy = shutil.copytree(place.segmenter, tmp_path / "copy")
    for judge in (place.segmenter, copy):
        error = run(place, generated, tmp_path / "out", "--judge", judge, expect=2)
        assert f"--judge '{judge}' is the network that filters the images (sha256:" in error
        assert not (tmp_path / "out").exists()
    run(place, generated, tmp_path / "out", "--judge", copy, "--allow_same_network")
    assert json.loads((tmp_path / "out" / "filter.json").read_text())["judge"]["name"] == str(copy)
    assert "what it measures on these images is no evidence" in (tmp_path / "out" / "filter.html").read_text()


def test_another_judge_is_recorded(place, generated, tmp_path):
    other = shutil.copytree(place.segmenter, tmp_path / "other")
    judge = load_judge(other, LABELS).network
    judge.decode_head.classifier.bias.data += 0.01
    judge.save_pretrained(other)
    run(place, generated, tmp_path / "out", "--judge", other)
    record = json.loads((tmp_path / "out" / "filter.json").read_text())
    assert record["judge"]["weights_sha256"] == load_judge(other, LABELS).weights_sha256 != record["segmenter_sha256"]
    assert "no evidence" not in (tmp_path / "out" / "filter.html").read_text()


# Refusals ------------------------------------------------------------------------------------------------------------


def change_first_row(folder, change):
    first, *others = read_lines(folder / "metadata.jsonl")
    change(first)
    (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in (first, *others)))


BROKEN = {  # change of a generated folder -> message
    "missing": (shutil.rmtree, "there is no folder '.*new'; --generated takes one written by `generate`"),
    "no record": (
        lambda folder: (folder / "generation.json").unlink(),
        "holds no generation.json; expected a folder written by `generate`",
    ),
    "damaged record": (
        lambda folder: (folder / "generation.json").write_text("{"),
        "generation.json' is not valid JSON",
    ),
    "filtered before": (
        lambda folder: (folder / "filter.json").write_text("{}"),
        "is filtered already .filter.json.. Filter the folder it was made from",
    ),
    "columns": (
        lambda folder: add_image(folder, "more", 0, draw_ids(0), draw_photo(draw_ids(0), 0), kept_share=1.0),
        "have columns called kept_share, which the filter writes itself",
    ),
    "no stem": (
        lambda folder: change_first_row(folder, lambda row: row.pop("stem")),
        "lacks one of image_file_name, mask_file_name, stem, index",
    ),
    "names": (
        lambda folder: change_first_row(folder, lambda row: row.update(mask_file_name="masks/other.png")),
        "expected images/NAME.png, or .jpg, with masks/NAME.png",
    ),
    "size": (
        lambda folder: add_image(folder, "small", 0, draw_ids(0)[:16, :16], draw_photo(draw_ids(0)[:16, :16], 0)),
        "is 16 x 16, the real images are 32 x 32",
    ),
    "classes": (
        lambda folder: LabelSet(("a", "b", "c", "d", "e"), LABELS.colors).save_json(folder / "labels.json"),
        "have different label sets",
    ),
}


@pytest.mark.parametrize(("change", "message"), BROKEN.values(), ids=BROKEN)
def test_generated_folders_that_cannot_be_filtered_are_refused(place, generated, tmp_path, change, message):
    broken = shutil.copytree(generated, tmp_path / "new")
    change(broken)
    error = run(place, broken, tmp_path / "out", expect=2)
    assert re.search(message, error), error
    assert not (tmp_path / "out").exists()


def test_outputs_of_another_kind_are_refused(place, generated, tmp_path):
    copy = shutil.copytree(generated, tmp_path / "new")
    for output in (copy, copy / "filtered", tmp_path):
        assert "contain each other; expected separate folders" in run(place, copy, output, expect=2)
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "a.txt").write_text("mine")
    assert "is not empty and was not made by filter" in run(place, copy, tmp_path / "notes", expect=2)
    assert "is not empty and was not made by filter" in run(place, copy, tmp_path / "notes" / "a.txt", expect=2)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--judge_revision", "main"), "--judge_revision and --allow_same_network need --judge"),
        (("--allow_same_network",), "--judge_revision and --allow_same_network need --judge"),
        (("--batch_size", 0), "--batch_size must be 1 or more; got 0"),
        (("--reference_split", "test"), "has no split 'test'"),
        (("--judge", "no/folder/here"), "--judge"),
    ],
)
def test_options_that_cannot_be_used_are_refused(place, generated, tmp_path, more, message):
    assert message in run(place, generated, tmp_path / "out", *more, expect=2)
    assert not (tmp_path / "out").exists()


def test_reference_images_are_optional_and_of_one_size(place, generated, tmp_path):
    run(place, generated, tmp_path / "out", "--reference_split", "none")
    assert json.loads((tmp_path / "out" / "filter.json").read_text())["reference"] is None
    data = place.data_copy(tmp_path / "data")
    small = draw_ids(0)[:16, :16]
    row = save_pair(make_split(data, "test"), "small", draw_photo(small, 0), small, LABELS)
    rows = {split: read_lines(data / split / "metadata.jsonl") for split in ("train", "val")}
    finish_dataset(data, {**rows, "test": [row]}, LABELS, {"format": "test"})
    words = [word if word != place.dataset else data for word in options(place, generated, tmp_path / "more")]
    error = place.command(*words, "--reference_split", "test", expect=2)
    assert re.search(r"expected images of one size; .* \(train\) has \(32, 32\), .* \(test\) \(16, 16\)", error), error


# Use of the result ---------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_filtered_folder_trains_a_model_and_loads_from_the_hub(filtered, hub, clean_process, tmp_path):
    command = "import sys\nfrom semseg_diffusers import cli\nsys.exit(cli.main(sys.argv[1:]))"
    clean_process(
        command,
        *("train", "--dataset", filtered[0], "--output_dir", tmp_path / "run", "--max_train_steps", 1),
        *("--train_batch_size", 2, "--block_out_channels", 32, 32, "--layers_per_block", 1, "--norm_num_groups", 4),
        *("--device", "cpu"),
    )
    assert (tmp_path / "run" / "model_index.json").is_file()
    environment = hub.environment(tmp_path / "home")
    clean_process(command, "push", "--dataset", filtered[0], "--repo_id", "alice/filtered", environment=environment)
    code = """
import sys, torch
from semseg_diffusers.data.dataset import load_pairs
torch.save([pair["mask"] for pair in load_pairs("alice/filtered")], sys.argv[1])
"""
    clean_process(code, tmp_path / "masks", environment=environment)
    here = [pair["mask"] for pair in load_pairs(filtered[0], "train")]
    assert torch.equal(torch.stack(torch.load(tmp_path / "masks")), torch.stack(here))
    assert (torch.stack(here) == 255).any()
