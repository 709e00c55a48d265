"""`prepare` makes what `load_dataset` reads, keeps masks exact, and leaves nothing behind where it fails."""

import json
import os
import signal
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import datasets
import numpy as np
import pytest
from helpers.driving_sets import all_bytes
from PIL import ExifTags, Image

from semseg_diffusers import cli
from semseg_diffusers.data.crop_resize import crop_resize
from semseg_diffusers.data.dataset import load_pairs
from semseg_diffusers.data.dataset_format import new_dataset
from semseg_diffusers.data.labels import LabelSet
from semseg_diffusers.data.prepare import prepare_dataset, read_image
from semseg_diffusers.data.settings import PrepareSettings, parse_resolution
from semseg_diffusers.utils.files import new_folder


BDD = LabelSet.from_preset("bdd100k")


def striped(height: int, width: int) -> np.ndarray:
    """Ids in columns, so that a shifted or mixed pixel shows."""
    return np.broadcast_to(np.arange(width) * 19 // width, (height, width)).astype(np.uint8).copy()


def photo_of(ids: np.ndarray) -> Image.Image:
    """A photo that shows its mask: each class one grey."""
    return Image.fromarray((ids * 13).astype(np.uint8)).convert("RGB")


@pytest.fixture
def source(tmp_path):
    """Six pairs of 40 x 60 in the folder format, with BDD100K's classes."""
    root = tmp_path / "source"
    for part in ("images", "masks"):
        (root / part).mkdir(parents=True)
    for i in range(6):
        ids = np.roll(striped(40, 60), i, axis=1)
        photo_of(ids).save(root / "images" / f"p{i}.png")
        Image.fromarray(ids).save(root / "masks" / f"p{i}.png")
    BDD.save_json(root / "labels.json")
    return root


@pytest.fixture
def prepare(source, tmp_path):
    """Prepare the source with some settings changed; returns the folder."""

    def run(**changes):
        settings = {"source": str(source), "output": str(tmp_path / "out"), "format": "folder", **changes}
        prepare_dataset(PrepareSettings(**{"resolution": (32, 32), **settings}))
        return Path(settings["output"])

    return run


def fitted(photo: Image.Image, ids: np.ndarray, resolution: tuple[int, int], fit: str = "crop"):
    placement = crop_resize(*ids.shape, resolution, fit)
    kept = ids[placement.rows[:, None], placement.columns]
    return placement.resize_image(photo), placement.pad_ids(kept, 255)


def assert_nothing_left(tmp_path: Path) -> None:
    assert sorted(path.name for path in tmp_path.iterdir()) == ["source"]


# What comes out ----------------------------------------------------------------------------------------------------


def test_load_dataset_reads_what_prepare_wrote(prepare, tmp_path):
    folder = prepare(val_fraction=0.34)
    splits = datasets.load_dataset(str(folder), cache_dir=str(tmp_path / "cache"))
    assert {split: table.num_rows for split, table in splits.items()} == {"train": 4, "validation": 2}
    row = splits["train"][0]
    assert row.keys() == {"image", "mask", "stem"}
    assert (row["image"].mode, row["image"].size, row["mask"].mode, row["mask"].size) == (
        "RGB",
        (32, 32),
        "P",
        (32, 32),
    )
    record = json.loads((folder / "prepare.json").read_text())
    assert (record["format"], record["resolution"], record["splits"]) == ("folder", [32, 32], {"train": 4, "val": 2})
    assert LabelSet.from_json(folder / "labels.json") == BDD


def test_native_resolution_keeps_every_pixel(prepare, source):
    folder = prepare(resolution=None)
    for i in range(6):
        for part in ("images", "masks"):
            before, after = (np.asarray(Image.open(top / part / f"p{i}.png")) for top in (source, folder / "train"))
            assert np.array_equal(before, after)


@pytest.mark.parametrize("resolution", [(16, 16), (20, 30), (64, 32), (40, 60), (24, 96)])
def test_crop_and_resize_invent_no_class_and_keep_photo_and_mask_together(resolution):
    ids = striped(40, 60)
    photo, small = fitted(photo_of(ids), ids, resolution)
    assert (photo.size, small.shape) == (resolution[::-1], resolution)
    assert set(np.unique(small)) <= set(np.unique(ids))
    grey = np.asarray(photo)[..., 0].astype(float)
    assert np.abs(grey - 13.0 * small).mean() < 6.5  # half a class; a shift by one stripe would give 13


@pytest.mark.parametrize(
    ("frame", "resolution", "inset"),
    [
        ((40, 60), (60, 60), (0, 10, 60, 50)),
        ((40, 60), (20, 60), (15, 0, 45, 20)),
        ((40, 60), (20, 30), (0, 0, 30, 20)),
    ],
)
def test_padding_shows_the_whole_frame_and_says_unknown_around_it(frame, resolution, inset):
    ids = striped(*frame)
    photo, small = fitted(photo_of(ids), ids, resolution, "pad")
    left, top, right, bottom = inset
    assert (photo.size, small.shape) == (resolution[::-1], resolution)
    assert set(np.unique(small[top:bottom, left:right])) == set(np.unique(ids))
    outside = np.ones(resolution, bool)
    outside[top:bottom, left:right] = False
    assert (small[outside] == 255).all()
    assert (np.asarray(photo)[outside] == 0).all()
    grey = np.asarray(photo)[top:bottom, left:right, 0].astype(float)
    assert np.abs(grey - 13.0 * small[top:bottom, left:right]).mean() < 6.5


def test_a_whole_frame_is_resized_only_to_its_own_aspect(prepare, source, tmp_path):
    pair = load_pairs(prepare(resolution=(20, 30), fit="whole"), cache_dir=tmp_path / "cache")[0]
    assert np.array_equal(pair["mask"], striped(40, 60)[1::2, 1::2])
    with pytest.raises(
        ValueError, match=r"(?s)p0.png': the frame is 40 x 60, and 32 x 32 .*--fit pad or crop, .* 21x32"
    ):
        prepare(output=str(tmp_path / "out2"), resolution=(32, 32), fit="whole")


@pytest.mark.parametrize("lying", [False, True])
def test_a_large_jpeg_is_decoded_small_and_looks_the_same(tmp_path, lying):
    noise = np.random.default_rng(0).integers(0, 256, (45, 80, 3)).astype(np.uint8)
    large = Image.fromarray(noise).resize((1280, 720), Image.Resampling.BICUBIC)
    exif = Image.Exif()
    if lying:
        exif[ExifTags.Base.Orientation] = 6
    file = large.transpose(Image.Transpose.ROTATE_90) if lying else large
    file.save(tmp_path / "a.jpg", quality=95, exif=exif)
    photo, placement = read_image(tmp_path / "a.jpg", (96, 96))
    assert photo.size == (640, 360)  # three quarters of the eighth would do, half is what a JPEG can give
    difference = np.asarray(placement.resize_image(photo)).astype(int) - np.asarray(placement.resize_image(large))
    assert np.abs(difference).mean() < 2


def test_photo_is_antialiased_and_mask_is_not():
    board = (np.indices((64, 64)).sum(axis=0) % 2).astype(np.uint8)  # a chessboard of single pixels
    photo, ids = fitted(Image.fromarray(board * 255).convert("RGB"), board, (16, 16))
    assert 110 < np.asarray(photo)[2:-2, 2:-2].min() <= np.asarray(photo)[2:-2, 2:-2].max() < 145  # even grey
    assert set(np.unique(ids)) <= {0, 1}


def test_a_wide_frame_is_cropped_around_its_centre(prepare, source, tmp_path):
    ids = np.zeros((720, 1280), np.uint8)
    ids[:, 280:1000] = 13  # the crop that the paper takes
    Image.fromarray(ids).save(source / "masks" / "p0.png")
    photo_of(ids).save(source / "images" / "p0.png")
    pair = load_pairs(prepare(), cache_dir=tmp_path / "cache")[0]
    assert (pair["mask"] == 13).all()


def test_photos_lying_on_their_side_are_turned_upright(prepare, source, tmp_path):
    ids = striped(40, 60)
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6  # the camera was held upright: rows are columns in the file
    lying = photo_of(ids).transpose(Image.Transpose.ROTATE_90)
    (source / "images" / "p0.png").unlink()
    lying.save(source / "images" / "p0.jpg", exif=exif, quality=95)
    Image.fromarray(ids).save(source / "masks" / "p0.png")
    pair = load_pairs(prepare(resolution=None), cache_dir=tmp_path / "cache")[0]
    assert np.abs(pair["image"][0].numpy().astype(float) - 13.0 * ids).mean() < 6.5


@pytest.mark.parametrize("form", ["ids", "palette", "colours", "opaque RGBA", "16 bits"])
def test_masks_of_any_form_become_the_same_ids(prepare, source, tmp_path, form):
    ids = striped(40, 60)
    ids[0] = 255
    mask = {
        "ids": Image.fromarray(ids),
        "palette": BDD.decode(ids),
        "colours": BDD.decode(ids).convert("RGB"),
        "opaque RGBA": BDD.decode(ids).convert("RGBA"),
        "16 bits": Image.fromarray(ids.astype(np.uint16)),
    }[form]
    mask.save(source / "masks" / "p0.png")
    pair = load_pairs(prepare(resolution=None), cache_dir=tmp_path / "cache")[0]
    assert np.array_equal(pair["mask"].numpy(), ids)


def test_camvid_eleven_becomes_unknown(tmp_path):
    ids = (striped(24, 24) % 12).astype(np.uint8)
    for part in ("images", "labels"):
        (tmp_path / "source" / part / "train").mkdir(parents=True)
    photo_of(ids).save(tmp_path / "source" / "images" / "train" / "a.jpg")
    Image.fromarray(ids).save(tmp_path / "source" / "labels" / "train" / "a.png")
    prepare_dataset(
        PrepareSettings(
            source=str(tmp_path / "source"), output=str(tmp_path / "out"), format="camvid", resolution=None
        )
    )
    mask = load_pairs(tmp_path / "out", cache_dir=tmp_path / "cache")[0]["mask"].numpy()
    assert np.array_equal(mask, np.where(ids == 11, 255, ids))


def test_validation_share_hangs_on_stems_and_seed(prepare, tmp_path):
    def stems(name, **changes):
        lines = (prepare(output=str(tmp_path / name), **changes) / "val" / "metadata.jsonl").read_text().splitlines()
        return {json.loads(line)["stem"] for line in lines}

    chosen = stems("a", val_fraction=0.5)
    assert len(chosen) == 3
    assert chosen == stems("b", val_fraction=0.5, num_workers=3)
    assert any(chosen != stems(f"s{seed}", val_fraction=0.5, seed=seed) for seed in (1, 2, 3))


def test_stems_that_sound_like_splits_stay_in_their_split(prepare, source, tmp_path):
    for part in ("images", "masks"):
        for i, name in enumerate(("val", "test_1", "my-validation.x")):
            (source / part / f"p{i}.png").rename(source / part / f"{name}.png")
    splits = datasets.load_dataset(str(prepare()), cache_dir=str(tmp_path / "cache"))
    assert {split: table.num_rows for split, table in splits.items()} == {"train": 6}


def test_enlarging_is_allowed_counted_and_said(source, tmp_path, capsys):
    arguments = ["--source", str(source), "--output", str(tmp_path / "out"), "--num_workers", "1"]
    assert cli.main(["prepare", *arguments, "--resolution", "80"]) == 0
    assert "warning: 6 pairs were smaller than 80 and were enlarged" in capsys.readouterr().out
    assert json.loads((tmp_path / "out" / "prepare.json").read_text())["enlarged"] == 6
    assert cli.main(["prepare", *arguments, "--resolution", "40x40", "--overwrite"]) == 0
    assert "warning" not in capsys.readouterr().out


def test_skip_unmatched_goes_on_and_says_so(source, tmp_path, capsys):
    (source / "masks" / "p3.png").unlink()
    arguments = ["--source", str(source), "--output", str(tmp_path / "out"), "--num_workers", "1"]
    assert cli.main(["prepare", *arguments]) == 2
    assert "1 images have no mask (p3.png)" in capsys.readouterr().err
    assert cli.main(["prepare", *arguments, "--skip_unmatched"]) == 0
    assert "left out, without partner: 1 files (p3.png)" in capsys.readouterr().out
    record = json.loads((tmp_path / "out" / "prepare.json").read_text())
    assert (record["unmatched"], record["skip_unmatched"]) == (["p3.png"], True)


def test_the_record_holds_the_options_that_decide_the_classes(prepare):
    given = {"mask_values": "ids", "ignore_index": 18, "mask_orientation": "stored"}
    record = json.loads((prepare(**given) / "prepare.json").read_text())
    others = {"image_column": None, "mask_column": None, "skip_unmatched": False}
    assert record.items() >= {**given, **others}.items()


# What is wrong with a file -----------------------------------------------------------------------------------------


def spoil_zero_bytes(path: Path):
    path.write_bytes(b"")


def spoil_truncated(path: Path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def spoil_no_image(path: Path):
    path.write_text("<html>404</html>")


@pytest.mark.parametrize("part", ["images", "masks"])
@pytest.mark.parametrize(
    ("spoil", "message"),
    [(spoil_zero_bytes, "is empty"), (spoil_truncated, "cannot be read"), (spoil_no_image, "cannot be read")],
)
def test_unreadable_files_are_named(prepare, source, tmp_path, part, spoil, message):
    spoil(source / part / "p2.png")
    with pytest.raises(ValueError, match=rf"(?s)1 of 6 pairs cannot be used.*{part}.p2.png' {message}"):
        prepare()
    assert_nothing_left(tmp_path)


def test_at_most_five_bad_files_are_named(prepare, source, tmp_path):
    for i in range(6):
        spoil_zero_bytes(source / "masks" / f"p{i}.png")
    with pytest.raises(ValueError, match="5 files or more cannot be used") as raised:
        prepare(num_workers=3)
    assert [f"p{i}.png" in str(raised.value) for i in range(6)] == [True] * 5 + [False]
    assert_nothing_left(tmp_path)


def spoiled_masks():
    ids = striped(40, 60)
    beyond = np.where(ids == 4, 23, ids).astype(np.uint8)
    pink = np.asarray(BDD.decode(ids).convert("RGB")).copy()
    pink[:2, :5] = (255, 0, 255)
    ghost = np.asarray(BDD.decode(ids).convert("RGBA")).copy()
    ghost[:3, :4, 3] = 0
    wide = np.where(ids == 4, 4001, ids.astype(np.uint16))
    return [
        pytest.param(Image.fromarray(beyond), r"p2.png' holds class 23; .* 0-18 and 255 .*Cityscapes", id="range"),
        pytest.param(Image.fromarray(pink), r"p2.png' holds 1 colour .*\(255, 0, 255\) in 10 pixels", id="colour"),
        pytest.param(Image.fromarray(ghost), "p2.png' has 12 transparent pixels", id="transparent"),
        pytest.param(Image.fromarray(wide), r"p2.png' holds class 4001; .*instance", id="16 bits"),
        pytest.param(Image.fromarray(ids.astype(np.float32)), "p2.*image mode F; expected", id="float"),
        pytest.param(Image.fromarray(striped(30, 60)), r"p2.png' is 40 x 60, its mask .*p2.* 30 x 60", id="size"),
    ]


@pytest.mark.parametrize(("mask", "message"), spoiled_masks())
def test_masks_that_do_not_fit_are_named_with_what_is_wrong(prepare, source, tmp_path, mask, message):
    name = "p2.png"
    if mask.mode == "F":  # PNG holds no floats
        (source / "masks" / name).unlink()
        name = "p2.tiff"
    mask.save(source / "masks" / name)
    with pytest.raises(ValueError, match=f"(?s){message}"):
        prepare()
    assert_nothing_left(tmp_path)


def test_tolerance_takes_the_nearest_colour(prepare, source, tmp_path):
    ids = striped(40, 60)
    near = np.asarray(BDD.decode(ids).convert("RGB")).astype(int)
    near[5, 5] += (3, -2, 2)
    Image.fromarray(near.astype(np.uint8)).save(source / "masks" / "p0.png")
    with pytest.raises(ValueError, match="1 colour that no class has"):
        prepare(resolution=None)
    folder = prepare(resolution=None, tolerance=10)
    assert np.array_equal(load_pairs(folder, cache_dir=tmp_path / "cache")[0]["mask"].numpy(), ids)


def test_a_photo_of_more_than_eight_bits_is_refused_not_clipped(prepare, source, tmp_path):
    Image.fromarray(np.full((40, 60), 900, np.uint16)).save(source / "images" / "p0.png")
    with pytest.raises(ValueError, match="p0.png' has the image mode I;16; expected 8 bits per channel"):
        prepare()
    assert_nothing_left(tmp_path)


# What is wrong with the settings -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"val_fraction": 1.0}, "--val_fraction must be 0 or more and less than 1; got 1.0"),
        ({"val_fraction": 0.99}, "leaves none of the 6 pairs for training"),
        ({"fit": "stretch"}, "--fit must be one of crop, whole, pad; got 'stretch'"),
        ({"fit": "pad", "resolution": None}, "--fit pad does not apply to --resolution native"),
        ({"num_workers": 0}, "--num_workers must be 1 or more; got 0"),
        ({"tolerance": -1.0}, "--tolerance must be 0 or more; got -1.0"),
    ],
)
def test_settings_out_of_range_are_refused(prepare, tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        prepare(**changes)
    assert_nothing_left(tmp_path)


def test_val_fraction_is_refused_where_the_source_has_splits(tmp_path):
    for split in ("train", "val"):
        for part in ("images", "masks"):
            (tmp_path / "source" / part / split).mkdir(parents=True)
            (tmp_path / "source" / part / split / "a.png").touch()
    settings = PrepareSettings(
        source=str(tmp_path / "source"), output=str(tmp_path / "out"), format="folder", labels="camvid"
    )
    with pytest.raises(ValueError, match="has its own splits; --val_fraction is for sources without"):
        prepare_dataset(replace(settings, val_fraction=0.1))
    assert_nothing_left(tmp_path)


def test_resolution_is_a_number_two_numbers_or_native():
    read = [parse_resolution(text) for text in ("64", "96x160", "96X160", "native")]
    assert read == [(64, 64), (96, 160), (96, 160), None]
    for wrong in ("", "x", "64x", "1x2x3", "-64", "6.4", "big"):
        with pytest.raises(ValueError, match="expected a number"):
            parse_resolution(wrong)
    with pytest.raises(ValueError, match="resolution 4 x 4: expected sides of 8 to 8192"):
        parse_resolution("4")


def test_output_and_source_must_lie_apart(prepare, source):
    for output in (source, source / "out", source.parent):
        with pytest.raises(ValueError, match="overlap; expected separate folders"):
            prepare(output=str(output), overwrite=True)
    assert (source / "images" / "p0.png").is_file()


def test_an_output_that_holds_something_is_refused_and_only_a_prepared_one_replaced(prepare, tmp_path):
    folder = prepare()
    with pytest.raises(ValueError, match="is not empty.*--overwrite"):
        prepare()
    prepare(overwrite=True, resolution=(16, 16))
    assert json.loads((folder / "prepare.json").read_text())["resolution"] == [16, 16]
    holiday = tmp_path / "holiday"
    holiday.mkdir()
    (holiday / "beach.jpg").touch()
    with pytest.raises(ValueError, match=r"has no prepare.json, .*--overwrite does not replace it"):
        prepare(output=str(holiday), overwrite=True)
    with pytest.raises(ValueError, match="is a file"):
        prepare(output=str(holiday / "beach.jpg"), overwrite=True)
    assert (holiday / "beach.jpg").is_file()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["holiday", "out", "source"]


def test_an_empty_output_folder_is_fine(prepare, tmp_path):
    (tmp_path / "out").mkdir()
    assert (prepare() / "labels.json").is_file()


def test_a_failed_overwrite_leaves_the_old_data_set_as_it_was(prepare, source, tmp_path):
    folder = prepare()
    before = all_bytes(folder)
    spoil_zero_bytes(source / "images" / "p0.png")
    with pytest.raises(ValueError, match="is empty"):
        prepare(overwrite=True)
    assert all_bytes(folder) == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "source"]


# Runs that are stopped ---------------------------------------------------------------------------------------------

STOPPED = """
import signal, sys, time
signal.signal(signal.SIGINT, signal.default_int_handler)  # shells have what they start in the background ignore it
from semseg_diffusers.data.dataset_format import make_split, new_dataset
with new_dataset(sys.argv[1]) as folder:
    make_split(folder, "train")
    print("working", flush=True)
    time.sleep(60)
"""


def start_and_stop(output: Path, signum: int) -> int:
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    process = subprocess.Popen([sys.executable, "-c", STOPPED, str(output)], stdout=subprocess.PIPE, env=environment)
    try:
        assert process.stdout.readline() == b"working\n"
        assert any(path.name.startswith(".out.tmp-") for path in output.parent.iterdir())
        process.send_signal(signum)
        return process.wait(30)
    finally:
        process.kill()
        process.stdout.close()


def test_a_dataset_is_found_again_after_a_kill_between_two_renames(tmp_path):
    process = subprocess.Popen(["true"])
    process.wait()
    old = tmp_path / f".out.tmp-{socket.gethostname()}-{process.pid}.old"
    old.mkdir()
    (old / "labels.json").write_text("of the dataset before")
    (new := old.with_suffix("")).mkdir()
    with pytest.raises(ValueError, match="not empty"), new_folder(tmp_path / "out", "labels.json", "dataset"):
        pass
    assert (tmp_path / "out" / "labels.json").read_text() == "of the dataset before"
    assert not old.exists()
    assert not new.exists()


@pytest.mark.slow
@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_a_run_that_is_told_to_stop_leaves_nothing(tmp_path, signum):
    assert start_and_stop(tmp_path / "out", signum) != 0
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_what_a_run_killed_outright_left_is_removed_by_the_next(tmp_path):
    start_and_stop(tmp_path / "out", signal.SIGKILL)
    assert not (tmp_path / "out").exists()
    assert len(list(tmp_path.iterdir())) == 1
    with new_dataset(tmp_path / "out") as folder:
        (folder / "labels.json").touch()
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_run_in_progress_is_left_alone_by_another(clean_process, tmp_path):
    with new_dataset(tmp_path / "out") as folder:
        clean_process(
            "import sys\n"
            "from semseg_diffusers.utils.files import new_folder\n"
            "with new_folder(sys.argv[1], 'labels.json', 'dataset') as folder:\n"
            "    (folder / 'labels.json').touch()",
            str(tmp_path / "out"),
        )
        assert (tmp_path / "out" / "labels.json").is_file()
        assert folder.is_dir()


# Real data ---------------------------------------------------------------------------------------------------------


def test_real_bdd100k_pairs_of_the_authors_format(data_root, tmp_path):
    settings = PrepareSettings(
        source=str(data_root / "bdd100k_samples"), output=str(tmp_path / "out"), format="paper", resolution=None
    )
    assert prepare_dataset(settings).splits == {"train": 2}
    pairs = load_pairs(tmp_path / "out", cache_dir=tmp_path / "cache")
    assert (pairs.labels.names[0], pairs.resolution) == ("background", (128, 128))
    original = Image.open(data_root / "bdd100k_samples" / "masks" / f"{pairs.stems[0]}.png").convert("RGB")
    colours = np.asarray(pairs.labels.colors)[pairs[0]["mask"].numpy()]
    assert np.array_equal(colours, np.asarray(original))


def test_real_camvid_frames(data_root, tmp_path):
    """Eight frames: linked, not copied, so that the test stays short."""
    for split in ("train", "val"):
        for part, ending in (("images", "jpg"), ("labels", "png")):
            (tmp_path / "source" / part / split).mkdir(parents=True)
            for path in sorted((data_root / "camvid" / part / split).glob(f"*.{ending}"))[:4]:
                (tmp_path / "source" / part / split / path.name).symlink_to(path)
    prepare_dataset(
        PrepareSettings(
            source=str(tmp_path / "source"), output=str(tmp_path / "out"), format="camvid", resolution=(128, 128)
        )
    )
    pairs = load_pairs(tmp_path / "out", "val", cache_dir=tmp_path / "cache")
    assert (len(pairs), pairs.resolution) == (4, (128, 128))
    ids = np.stack([pair["mask"].numpy() for pair in pairs])
    assert set(np.unique(ids)) <= {*range(11), 255}
    assert (ids == pairs.labels.label2id["road"]).mean() > 0.1
