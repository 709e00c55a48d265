"""What goes wrong in a long run of generation: full memory, masks that cannot be used, copies of training photos."""

import json

import numpy as np
import pytest
import torch
from helpers.generation_places import LABELS, draw_ids, names, pixels, save_masks, save_photos, tiny_pipeline
from PIL import Image, ImageEnhance

from semseg_diffusers import cli
from semseg_diffusers.data.dataset import load_pairs
from semseg_diffusers.data.dataset_format import finish_dataset, make_split, pair_row
from semseg_diffusers.generation.batches import is_out_of_memory
from semseg_diffusers.generation.generate import generate_dataset
from semseg_diffusers.generation.near_copies import flag_near_copies
from semseg_diffusers.generation.output_folder import read_metadata
from semseg_diffusers.generation.settings import NEAR_COPY_THRESHOLD, GenerationSettings
from semseg_diffusers.toy.scenes import draw_scene
from semseg_diffusers.utils.distributed import Processes


FEW = GenerationSettings(num_inference_steps=2, guidance_scale=2.0)


@pytest.fixture
def pipeline():
    return tiny_pipeline()


def fits(pipeline, most: int):
    """Let the network take no more samples at a time than this (two for each image that is guided)."""
    seen = []

    def allocate(_module, args):
        seen.append(len(args[0]))
        if len(args[0]) > most:
            torch.empty(2**60, dtype=torch.uint8)  # more than there is anywhere

    pipeline.unet.register_forward_pre_hook(allocate)
    return seen


# Memory ------------------------------------------------------------------------------------------------------------


def test_a_batch_that_does_not_fit_is_halved_and_the_images_stay_the_same(pipeline, tmp_path, capsys):
    masks = save_masks(tmp_path / "masks", "abcde")
    generate_dataset(pipeline, masks, tmp_path / "whole", FEW, num_images_per_mask=2, batch_size=8)
    seen = fits(pipeline, most=4)
    report = generate_dataset(pipeline, masks, tmp_path / "halved", FEW, num_images_per_mask=2, batch_size=8)
    assert report.num_made == 10
    assert seen == [16, 8] + 10 * [4]
    said = capsys.readouterr().err
    assert "out of memory with 8 images at a time; continuing with 4" in said
    assert "out of memory with 4 images at a time; continuing with 2" in said
    for name in names(tmp_path / "whole" / "images"):
        one, other = (pixels(tmp_path / folder / "images" / name) for folder in ("whole", "halved"))
        assert np.abs(one - other).max() <= 1
    assert len(read_metadata(tmp_path / "halved")) == 10


def test_each_process_halves_its_own_batch_and_says_which_it_is(pipeline, tmp_path, capsys):
    class SecondOfTwo(Processes):
        def gather(self, value):
            return [value]

    masks = save_masks(tmp_path / "masks", "abcdefgh")
    fits(pipeline, most=2)
    report = generate_dataset(pipeline, masks, tmp_path / "out", FEW, batch_size=4, processes=SecondOfTwo(2, 1))
    assert report.num_made == 2  # of the four masks that it has read; the first process would have taken the others
    assert "process 2 of 2: out of memory with 2 images at a time; continuing with 1" in capsys.readouterr().err


def test_one_image_that_does_not_fit_ends_with_what_helps(pipeline, tmp_path):
    masks = save_masks(tmp_path / "masks")
    fits(pipeline, most=1)
    with pytest.raises(ValueError, match="one image does not fit in memory .*smaller --height and --width, --dtype"):
        generate_dataset(pipeline, masks, tmp_path / "out", FEW, batch_size=3)


@pytest.mark.filterwarnings("ignore:invalid value encountered in cast")
def test_numbers_that_are_not_finite_make_no_image(pipeline, tmp_path):
    torch.nn.init.constant_(next(iter(pipeline.unet.parameters())), torch.nan)
    masks = save_masks(tmp_path / "masks")
    with pytest.raises(ValueError, match=r"values that are not finite at step 1 of \d+: use other options"):
        generate_dataset(pipeline, masks, tmp_path / "new", FEW)
    assert not list((tmp_path / "new").rglob("*.png"))


def test_another_error_of_the_network_is_not_taken_for_full_memory(pipeline, tmp_path):
    def fail(*_):
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    masks = save_masks(tmp_path / "masks")
    pipeline.unet.register_forward_pre_hook(fail)
    with pytest.raises(RuntimeError, match="mat1 and mat2"):
        generate_dataset(pipeline, masks, tmp_path / "out", FEW)


@pytest.mark.parametrize(
    ("error", "is_one"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"), True),
        (
            RuntimeError("[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory: you tried"),
            True,
        ),
        (
            RuntimeError("[enforce fail] . DefaultCPUAllocator: not enough memory: you tried to allocate 4 bytes."),
            True,
        ),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), True),
        (MemoryError(), True),
        (RuntimeError("shapes cannot be multiplied"), False),
        (ValueError("not enough memory of the street"), False),
    ],
)
def test_errors_that_say_that_memory_is_full(error, is_one):
    assert is_out_of_memory(error) is is_one


# Bad masks ---------------------------------------------------------------------------------------------------------


def spoil(folder, names: str) -> None:
    for name in names:
        Image.fromarray(np.full((16, 16), 7, np.uint8)).save(folder / f"{name}.png")


def test_a_number_of_masks_takes_them_evenly_spaced(pipeline, tmp_path):
    masks = save_masks(tmp_path / "masks", "abcdef")
    generate_dataset(pipeline, masks, tmp_path / "out", FEW, num_masks=3)
    assert sorted(path.stem for path in (tmp_path / "out" / "images").iterdir()) == ["a_0", "c_0", "e_0"]
    generate_dataset(pipeline, masks, tmp_path / "out", FEW)  # the others later
    assert len([*(tmp_path / "out" / "images").iterdir()]) == 6


def test_all_bad_masks_are_named_before_anything_starts(pipeline, tmp_path):
    masks = save_masks(tmp_path / "masks", "abcdefghijklmn")
    pipeline.unet.register_forward_pre_hook(lambda *_: pytest.fail("the network was run"))
    spoil(masks, "bd")
    (masks / "f.png").write_bytes(b"no image")
    message = (
        r"(?s)3 masks cannot be used:\n- mask '.*b\.png' holds class 7.*mask '.*d\.png' holds.*f\.png' cannot be read"
    )
    with pytest.raises(ValueError, match=message + ".*Nothing was generated; --skip_errors"):
        generate_dataset(pipeline, masks, tmp_path / "out", FEW)
    spoil(masks, "abcdefghijkl")
    with pytest.raises(ValueError, match="(?s)12 masks cannot be used:.*- and 2 more"):
        generate_dataset(pipeline, masks, tmp_path / "out", FEW)
    assert not (tmp_path / "out").exists()


def test_bad_masks_are_skipped_named_and_kept_in_the_record_until_they_are_mended(pipeline, tmp_path):
    masks, out = save_masks(tmp_path / "masks", "abcd"), tmp_path / "out"
    spoil(masks, "bd")
    report = generate_dataset(pipeline, masks, out, FEW, skip_errors=True)
    assert (report.num_made, list(report.skipped)) == (2, ["b.png", "d.png"])
    assert "holds class 7" in report.skipped["b.png"]
    assert names(out / "images") == ["a_0.png", "c_0.png"]
    assert [row["stem"] for row in read_metadata(out)] == ["a", "c"]
    record = json.loads((out / "generation.json").read_text())["skipped"]
    assert list(record) == ["b.png", "d.png"]
    assert record["b.png"].startswith("mask 'b.png' holds class 7")  # no path of this machine
    Image.fromarray(draw_ids(1)).save(masks / "b.png")
    report = generate_dataset(pipeline, masks, out, FEW, skip_errors=True)
    assert (report.num_made, report.num_kept) == (1, 2)
    assert list(json.loads((out / "generation.json").read_text())["skipped"]) == ["d.png"]


def test_nothing_but_bad_masks_is_an_error_also_when_they_are_skipped(pipeline, tmp_path):
    masks = save_masks(tmp_path / "masks", "ab")
    spoil(masks, "ab")
    with pytest.raises(ValueError, match="(?s)none of the 2 masks can be used:.*a.png' holds class 7"):
        generate_dataset(pipeline, masks, tmp_path / "out", FEW, skip_errors=True)


def test_the_command_ends_well_with_a_list_of_what_it_skipped(pipeline, tmp_path, capsys):
    masks = save_masks(tmp_path / "masks", "abc")
    spoil(masks, "b")
    pipeline.save_pretrained(tmp_path / "run")
    options = ["generate", "--model", str(tmp_path / "run"), "--masks", str(masks), "--output", str(tmp_path / "out")]
    options += ["--num_inference_steps", "2", "--device", "cpu"]
    assert cli.main(options) == 2
    assert "Nothing was generated; --skip_errors" in capsys.readouterr().err
    assert cli.main([*options, "--skip_errors"]) == 0
    said = capsys.readouterr().out
    assert "2 images generated" in said
    assert "1 masks skipped:\n  b.png: mask '" in said


# Near-copies -------------------------------------------------------------------------------------------------------


def scene(seed: int) -> Image.Image:
    return Image.fromarray(np.asarray(draw_scene(seed, (32, 32))[0]))


def write_training_set(folder) -> None:
    """A prepared dataset of four toy scenes."""
    split = make_split(folder, "train")
    rows = []
    for number in range(4):
        scene(number).save(split / "images" / f"t{number}.png")
        LABELS.decode(draw_ids(number, (32, 32))).save(split / "masks" / f"t{number}.png")
        rows.append(pair_row(f"t{number}"))
    finish_dataset(folder, {"train": rows}, LABELS, {"format": "toy"})


def test_near_copies_of_training_photos_are_flagged_and_others_are_not(pipeline, tmp_path):
    write_training_set(tmp_path / "data")
    out, masks = tmp_path / "out", save_masks(tmp_path / "masks", "abcd")
    generate_dataset(pipeline, masks, out, FEW)
    size = (16, 16)
    images = {
        "a": scene(2),
        "b": scene(1).transpose(Image.Transpose.FLIP_LEFT_RIGHT),
        "c": ImageEnhance.Brightness(scene(3)).enhance(1.03),
        "d": scene(9),
    }
    for name, image in images.items():  # what a network that repeats its training would generate
        image.resize(size, Image.Resampling.LANCZOS).save(out / "images" / f"{name}_0.png")
    found = flag_near_copies(out, load_pairs(tmp_path / "data", "train"), "data (train)")
    rows = read_metadata(out)
    assert [row["near_copy"] for row in rows] == [True, True, True, False]
    assert [row["nearest_training_photo"] for row in rows[:3]] == ["t2", "t1", "t3"]
    assert rows[0]["nearest_training_distance"] == pytest.approx(0, abs=0.5)
    assert rows[3]["nearest_training_distance"] > NEAR_COPY_THRESHOLD
    assert (found["num_near_copies"], found["num_images"], found["num_photos"]) == (3, 4, 4)
    record = json.loads((out / "generation.json").read_text())["near_copies"]
    assert record == found
    assert (record["num_near_copies"], record["threshold"]) == (3, NEAR_COPY_THRESHOLD)
    assert generate_dataset(pipeline, masks, out, FEW).num_kept == 4  # the record is not one of settings
    assert read_metadata(out) == rows


def test_the_command_closes_with_the_near_copies(pipeline, tmp_path, capsys):
    write_training_set(tmp_path / "data")
    pipeline.save_pretrained(tmp_path / "run")
    masks = save_masks(tmp_path / "masks")
    options = ["generate", "--model", str(tmp_path / "run"), "--masks", str(masks), "--output", str(tmp_path / "out")]
    options += ["--num_inference_steps", "1", "--device", "cpu", "--training_set"]
    assert cli.main([*options, str(tmp_path / "data"), "--near_copy_threshold", "200"]) == 0
    last = capsys.readouterr().out.splitlines()[-1]
    of = f"the 4 photos of {tmp_path / 'data'} (train)"
    assert f"3 of 3 images are near-copies of {of} (nearer than 200 grey levels); nearest: " in last
    assert {row["near_copy"] for row in read_metadata(tmp_path / "out")} == {True}
    options[options.index(str(tmp_path / "out"))] = str(tmp_path / "refused")
    assert cli.main([*options, str(tmp_path / "data"), "--near_copy_threshold", "0"]) == 2
    assert "--near_copy_threshold must be more than 0; got 0.0" in capsys.readouterr().err
    assert cli.main([*options, str(tmp_path / "data"), "--edit", "--photos", str(masks)]) == 2
    assert "an edited image is a near-copy of its original" in capsys.readouterr().err
    assert not (tmp_path / "refused").exists()


@pytest.mark.parametrize(
    ("option", "value", "whole"),
    [
        ("--guide_revision", "main", "--guide_model"),
        ("--guide_variant", "raw", "--guide_model"),
        ("--jump_length", "3", "--jump_n_sample"),
        ("--training_split", "val", "--training_set"),
        ("--near_copy_threshold", "3", "--training_set"),
    ],
)
def test_part_of_an_option_that_is_not_given_is_refused(tmp_path, capsys, option, value, whole):
    words = ["generate", "--model", "m", "--masks", "n", "--output", str(tmp_path / "out"), "--edit", option, value]
    assert cli.main(words) == 2
    assert f"{option}: only with {whole}." in capsys.readouterr().err


def test_photos_to_compare_with_are_asked_for_before_any_work(pipeline, tmp_path, capsys):
    pipeline.save_pretrained(tmp_path / "run")
    masks = save_masks(tmp_path / "masks")
    options = ["generate", "--model", str(tmp_path / "run"), "--masks", str(masks), "--output", str(tmp_path / "out")]
    assert cli.main([*options, "--device", "cpu", "--training_set", str(save_photos(tmp_path / "photos"))]) == 2
    assert "labels.json" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


# Speed -------------------------------------------------------------------------------------------------------------


def test_channels_last_changes_rounding_only(pipeline, tmp_path):
    pipeline.save_pretrained(tmp_path / "run")
    masks = save_masks(tmp_path / "masks")
    options = ["generate", "--model", str(tmp_path / "run"), "--masks", str(masks), "--num_inference_steps", "2"]
    options += ["--device", "cpu", "--output"]
    assert cli.main([*options, str(tmp_path / "plain")]) == 0
    assert cli.main([*options, str(tmp_path / "fast"), "--channels_last"]) == 0
    for name in names(tmp_path / "plain" / "images"):
        one, other = (pixels(tmp_path / folder / "images" / name) for folder in ("plain", "fast"))
        assert np.abs(one - other).max() <= 1


@pytest.mark.slow
def test_a_compiled_network_changes_rounding_only(pipeline, tmp_path):
    pipeline.save_pretrained(tmp_path / "run")
    masks = save_masks(tmp_path / "masks")
    options = ["generate", "--model", str(tmp_path / "run"), "--masks", str(masks), "--num_inference_steps", "2"]
    options += ["--device", "cpu", "--output"]
    assert cli.main([*options, str(tmp_path / "plain")]) == 0
    assert cli.main([*options, str(tmp_path / "fast"), "--torch_compile"]) == 0
    for name in names(tmp_path / "plain" / "images"):
        one, other = (pixels(tmp_path / folder / "images" / name) for folder in ("plain", "fast"))
        assert np.abs(one - other).max() <= 1
