"""Generation by two processes that `accelerate launch` starts, undisturbed, refused, failing and killed."""

import itertools
import json
import os
import random
import re
import signal
import subprocess
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
from accelerate import PartialState
from diffusers import DDIMScheduler
from helpers.generation_places import tiny_pipeline
from helpers.text_encoders import tiny_text_encoder
from helpers.training_runs import launch as start_launch
from helpers.training_runs import workers
from PIL import Image

from semseg_diffusers.data.dataset_format import finish_dataset, make_split, save_pair
from semseg_diffusers.data.labels import LabelSet
from semseg_diffusers.generation.generate import generate_dataset
from semseg_diffusers.generation.output_folder import read_metadata
from semseg_diffusers.generation.plan import image_seed
from semseg_diffusers.generation.settings import EditSettings, GenerationSettings, Inputs
from semseg_diffusers.models.unet_mask_guided import MaskGuidedUNet2DModel
from semseg_diffusers.pipelines.pipeline_mask_guided_ddpm import MaskGuidedDDPMPipeline
from semseg_diffusers.utils.distributed import Processes, _check_own_device, join_processes


LABELS = LabelSet(
    ("road", "sky", "car", "person", "pole"), ((128, 64, 128), (70, 130, 180), (0, 0, 142), (220, 20, 60), (9, 9, 9))
)
TIMEOUT = 300  # seconds
ERROR = r"error in process \d: "
POSIX = pytest.mark.skipif(os.name != "posix", reason="kills processes as POSIX systems do")


class Place:
    """A folder with a saved pipeline and masks, and the command that generates from them."""

    def __init__(self, folder: Path, pipeline: MaskGuidedDDPMPipeline, num_masks: int, num_images: int, steps: int):
        self.folder, self.num_images, self.num_expected = folder, num_images, num_masks * num_images
        self.pipeline, self.settings = pipeline, GenerationSettings(num_inference_steps=steps, guidance_scale=2.0)
        pipeline.save_pretrained(folder / "model")
        (folder / "masks").mkdir()
        for number in range(num_masks):
            ids = np.random.default_rng(number).integers(0, 5, (16, 16), dtype=np.uint8)
            LABELS.decode(ids).save(folder / "masks" / f"{number:02}.png")
        self.output = folder / "out"

    def generate_here(self) -> Path:
        """Generate undisturbed in this process, as the measure of the others."""
        output = self.folder / "here"
        generate_dataset(
            MaskGuidedDDPMPipeline.from_pretrained(self.folder / "model"),
            self.folder / "masks",
            output,
            self.settings,
            num_images_per_mask=self.num_images,
            batch_size=8,
        )
        return output

    def launch(self, *more) -> "Launch":
        """Start the command, the same each time, with more options."""
        return Launch(
            *("--model", self.folder / "model", "--masks", self.folder / "masks", "--output", self.output),
            *("--num_images_per_mask", self.num_images, "--num_inference_steps", self.settings.num_inference_steps),
            *("--guidance_scale", self.settings.guidance_scale, "--batch_size", 2),
            *more,
        )

    def made(self) -> dict[str, int]:
        """The images that are there, with the time at which they were written."""
        files = {}
        if (self.output / "images").is_dir():
            for path in (self.output / "images").glob("*.png"):
                files[path.name] = path.stat().st_mtime_ns
        return files

    def verify(self) -> None:
        """No half image, and none without its mask."""
        for name in self.made():
            with Image.open(self.output / "images" / name) as image, Image.open(self.output / "masks" / name) as mask:
                image.load()
                mask.load()
                assert image.size == mask.size == (16, 16)

    def check_same(self, expected: Path) -> None:
        """Nothing lost, double, left over or different; the metadata equal, each image of its own seed."""
        for kind in ("images", "masks"):
            names = sorted(path.name for path in (expected / kind).iterdir())
            assert len(names) == self.num_expected
            assert sorted(path.name for path in (self.output / kind).iterdir()) == names
            for name in names:
                first, second = (np.asarray(Image.open(folder / kind / name)) for folder in (expected, self.output))
                assert np.abs(first.astype(int) - second).max() <= (1 if kind == "images" else 0), name
        assert read_metadata(self.output) == read_metadata(expected)
        assert all(row["seed"] == image_seed(0, row["stem"], row["index"]) for row in read_metadata(self.output))
        assert (self.output / "contact_sheet.png").is_file()
        assert [path for path in self.output.rglob("*") if ".tmp" in path.name] == []


class Launch:
    """`accelerate launch` of two processes."""

    def __init__(self, *options):
        self.process = start_launch("-m", "semseg_diffusers.generation", *options)

    @property
    def said(self) -> str:
        return self.process.output

    def workers(self) -> list[psutil.Process]:
        """The processes that generate, the main one first."""
        return workers(self.process)

    def wait_for_images(self, place: Place, number: int) -> float:
        """Wait until so many are there; return the seconds between the last two arrivals, 0.1 if there was one."""
        end, count, arrivals = time.monotonic() + TIMEOUT, len(place.made()), []
        while count < number:
            assert self.process.poll() is None, self.said
            assert time.monotonic() < end, f"no {number} images in {TIMEOUT} s: {self.said}"
            time.sleep(0.02)
            before, count = count, len(place.made())
            if count > before:
                arrivals.append(time.monotonic())
        return arrivals[-1] - arrivals[-2] if len(arrivals) > 1 else 0.1

    def end(self) -> int:
        """Wait for the end, and return the exit code."""
        try:
            return self.process.wait(TIMEOUT)
        except subprocess.TimeoutExpired:
            pytest.fail(f"it hangs: {self.said}")

    def kill_group(self) -> None:
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


def is_alive(process: psutil.Process) -> bool:
    """Tell whether a process runs; one that nobody has buried does not."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


@pytest.fixture
def new_place(tmp_path, tiny_unet, nothing_stays_running) -> Callable[..., Place]:
    """Make a `Place`."""

    def make(num_masks: int, num_images: int, steps: int, pipeline: MaskGuidedDDPMPipeline | None = None) -> Place:
        if pipeline is None:
            unet = MaskGuidedUNet2DModel.from_config(tiny_unet.config, **LABELS.to_config())
            unet.load_state_dict(tiny_unet.state_dict())
            pipeline = MaskGuidedDDPMPipeline(unet, DDIMScheduler())
        return Place(tmp_path, pipeline, num_masks, num_images, steps)

    return make


def test_shares_are_even_and_together_the_whole():
    items = list(range(11))
    shares = [Processes(4, index).share(items) for index in range(4)]
    assert sorted(itertools.chain(*shares)) == items
    assert {len(share) for share in shares} == {2, 3}


def test_without_a_launcher_there_is_one_process_on_the_device_that_was_given(monkeypatch):
    for name in ("LOCAL_RANK", "WORLD_SIZE", "ACCELERATE_MIXED_PRECISION"):
        monkeypatch.delenv(name, raising=False)
    processes, device = join_processes("cpu")
    assert (processes.count, processes.index, device.type) == (1, 0, "cpu")
    assert not processes.launcher.is_gone


def test_processes_that_cannot_find_each_other_are_refused(monkeypatch):
    monkeypatch.setenv("LOCAL_RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)  # as where Apple's GPUs are
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.distributed, "init_process_group", lambda **_: None)  # the other one is not there
    PartialState._reset_state()
    try:
        with pytest.raises(ValueError, match="2 processes were launched, but .* use --device cpu"):
            join_processes()
    finally:
        PartialState._reset_state()


@pytest.mark.parametrize(
    ("asked", "fits"), [(None, True), ("cuda", True), ("cuda:1", True), ("cuda:0", False), ("cpu", False)]
)
def test_each_of_several_processes_has_a_device_of_its_own(asked, fits):
    if fits:
        _check_own_device(asked, torch.device("cuda:1"), 2)
        return
    with pytest.raises(ValueError, match=f"'{asked}' cannot be used by each of 2 processes: this one has 'cuda:1'"):
        _check_own_device(asked, torch.device("cuda:1"), 2)


def test_two_processes_make_what_one_makes(new_place):
    place = new_place(num_masks=5, num_images=2, steps=3)
    launch = place.launch()
    assert launch.end() == 0, launch.said
    assert "2 processes" in launch.said
    assert "generating, process 1 of 2: 100%" in launch.said
    assert "10 images generated, 0 kept" in launch.said  # the sum of what the two made: none was made twice
    assert launch.said.count("images generated") == 1
    place.check_same(place.generate_here())


@pytest.mark.slow
def test_two_processes_give_each_image_its_texts_as_one_does(new_place, tmp_path_factory):
    encoder = tiny_text_encoder(tmp_path_factory.mktemp("vocabulary"))
    place = new_place(num_masks=5, num_images=2, steps=2, pipeline=tiny_pipeline(encoder=encoder))
    texts = {"prompt": "the night", "class_prompts": {"car": ["a red car", None, "a blue car"], "sky": "the evening"}}
    (place.folder / "texts.json").write_text(json.dumps(texts["class_prompts"]))
    launch = place.launch("--prompt", texts["prompt"], "--class_prompts", place.folder / "texts.json")
    assert launch.end() == 0, launch.said
    place.settings = replace(place.settings, **texts)
    place.check_same(place.generate_here())
    assert {row["prompt"] for row in read_metadata(place.output)} == {"the night"}


@pytest.mark.slow
def test_two_processes_map_masks_as_one_and_say_it_once(new_place):
    place = new_place(num_masks=5, num_images=1, steps=2)
    fewer = LabelSet(("sky", "road", "lion", "car", "zebra"), LABELS.colors)
    fewer.save_json(place.folder / "labels.json")
    refused = place.launch()
    assert refused.end() != 0
    assert len(re.findall(ERROR, refused.said)) == 1
    assert "--mask_labels" in refused.said
    launch = place.launch("--mask_labels", place.folder / "labels.json")
    assert launch.end() == 0, launch.said
    own = np.stack([np.asarray(Image.open(path)) for path in sorted((place.folder / "masks").iterdir())])
    lost = int(np.isin(own, (2, 4)).sum())
    assert launch.said.count(f"masks mapped to the model's classes: {lost} of {own.size:,} labelled pixels") == 1
    for path, ids in zip(sorted((place.output / "masks").iterdir()), own, strict=True):
        assert np.array_equal(np.asarray(Image.open(path)), np.array([1, 0, 255, 2, 255])[ids])


@pytest.mark.slow
def test_two_processes_skip_bad_masks_of_both_shares_and_make_a_grid_as_one_does(new_place):
    place = new_place(num_masks=6, num_images=2, steps=2)
    for number in (1, 4):  # one in each share
        Image.fromarray(np.full((16, 16), 7, np.uint8)).save(place.folder / "masks" / f"{number:02}.png")
    refused = place.launch()
    assert refused.end() != 0
    assert len(re.findall(ERROR, refused.said)) == 1
    listed = r"2 masks cannot be used:\s.*01\.png' holds class 7.*\s.*04\.png' holds class 7"
    assert re.search(ERROR + listed, refused.said)
    options = ("--skip_errors", "--variations", "guidance_scale=1.5,3", "--training_set")
    rows = []
    split = make_split(place.folder / "data", "train")
    for number in range(3):
        photo = np.random.default_rng(number).integers(0, 256, (16, 16, 3), dtype=np.uint8)
        ids = np.zeros((16, 16), np.uint8)
        rows.append(save_pair(split, f"t{number}", Image.fromarray(photo), ids, LABELS))
    finish_dataset(place.folder / "data", {"train": rows}, LABELS, {"format": "toy"})
    launch = place.launch(*options, place.folder / "data")
    assert launch.end() == 0, launch.said
    assert "16 images generated, 0 kept" in launch.said
    assert launch.said.count("2 masks skipped:") == 1
    assert launch.said.count(f"16 images are near-copies of the 3 photos of {place.folder / 'data'} (train)") == 1
    here = place.folder / "here"
    generate_dataset(
        place.pipeline,
        place.folder / "masks",
        here,
        replace(place.settings, variations={"guidance_scale": (1.5, 3.0)}),
        num_images_per_mask=2,
        skip_errors=True,
    )
    made = read_metadata(place.output)
    assert [row["image_file_name"] for row in made] == [row["image_file_name"] for row in read_metadata(here)]
    for row in made:
        one, other = (np.asarray(Image.open(folder / row["image_file_name"])) for folder in (place.output, here))
        assert np.abs(one.astype(int) - other).max() <= 1
        assert row["nearest_training_photo"] in ("t0", "t1", "t2")


@pytest.mark.slow
def test_two_processes_edit_photos_as_one_does(new_place):
    place = new_place(num_masks=5, num_images=2, steps=2)
    (place.folder / "images").mkdir()
    (place.folder / "new").mkdir()
    for path in sorted((place.folder / "masks").iterdir()):
        ids = np.asarray(Image.open(path)).copy()
        photo = np.random.default_rng(int(path.stem)).integers(0, 256, (16, 16, 3), dtype=np.uint8)
        Image.fromarray(photo).save(place.folder / "images" / path.name)
        ids[4:9, 4:9] = (ids[4:9, 4:9] + 1) % 5
        LABELS.decode(ids).save(place.folder / "new" / path.name)
    launch = place.launch("--masks", place.folder / "new", "--edit", "--photos", place.folder)
    assert launch.end() == 0, launch.said
    here = place.folder / "here"
    settings = replace(place.settings, edit=EditSettings())
    inputs = Inputs(photos=place.folder)
    generate_dataset(place.pipeline, place.folder / "new", here, settings, inputs=inputs, num_images_per_mask=2)
    rows = read_metadata(here)
    assert len(rows) == len(read_metadata(place.output)) == 10
    for row in rows:
        one, other = (np.asarray(Image.open(folder / row["image_file_name"])) for folder in (place.output, here))
        assert np.abs(one.astype(int) - other).max() <= 1


@pytest.mark.slow
def test_a_refusal_ends_both_processes_and_is_said_once(new_place):
    place = new_place(num_masks=3, num_images=1, steps=2)
    Image.fromarray(np.full((16, 16), 7, np.uint8)).save(place.folder / "masks" / "01.png")  # in the second's share
    launch = place.launch()
    assert launch.end() != 0
    assert len(re.findall(ERROR, launch.said)) == 1
    assert re.search(rf"{ERROR}mask '.*01\.png' holds class 7", launch.said)
    assert re.search(r"exitcode +: 2 ", launch.said)
    assert not place.output.exists()


@POSIX
@pytest.mark.slow
def test_a_launch_that_was_killed_is_continued_by_the_same_command(new_place):
    place = new_place(num_masks=6, num_images=2, steps=25)
    launch = place.launch()
    launch.wait_for_images(place, 2)
    workers = launch.workers()
    assert len(workers) == 2
    launch.kill_group()  # the launcher alone: it puts its processes into groups of their own
    end = time.monotonic() + TIMEOUT
    while any(is_alive(worker) for worker in workers):
        assert time.monotonic() < end, "they run without their launcher"
        time.sleep(0.1)
    before = place.made()
    assert 2 <= len(before) < place.num_expected
    place.verify()

    launch = place.launch()
    assert launch.end() == 0, launch.said
    assert f"{place.num_expected - len(before)} images generated, {len(before)} kept" in launch.said
    assert before.items() <= place.made().items()
    place.check_same(place.generate_here())


@POSIX
@pytest.mark.slow
def test_a_process_that_fails_ends_the_other_and_what_is_done_stays(new_place):
    place = new_place(num_masks=20, num_images=1, steps=25)
    launch = place.launch()
    launch.wait_for_images(place, 1)
    lost = place.folder / "masks" / "19.png"  # the last of the second process
    content = lost.read_bytes()
    lost.unlink()
    assert launch.end() != 0
    assert len(re.findall(ERROR, launch.said)) == 1
    assert re.search(rf"{ERROR}.*19\.png", launch.said)
    place.verify()
    assert sorted(place.made()) == [Path(row["image_file_name"]).name for row in read_metadata(place.output)]

    lost.write_bytes(content)
    launch = place.launch()
    assert launch.end() == 0, launch.said
    place.check_same(place.generate_here())


@POSIX
@pytest.mark.slow
def test_a_terminated_launch_lists_what_it_made(new_place):
    place = new_place(num_masks=10, num_images=4, steps=25)
    launch = place.launch()
    launch.wait_for_images(place, 3)
    launch.process.terminate()
    assert launch.end() != 0
    made = place.made()
    assert 3 <= len(made) < place.num_expected
    assert sorted(made) == [Path(row["image_file_name"]).name for row in read_metadata(place.output)]
    assert [path for path in place.output.rglob("*") if ".tmp" in path.name] == []


@POSIX
@pytest.mark.slow
def test_ten_kills_at_random_moments_lose_double_and_change_nothing(new_place):
    place = new_place(num_masks=20, num_images=4, steps=15)
    chance = random.Random(3)
    victims = ["launcher", "first", "second", "all"] * 3
    chance.shuffle(victims)
    kept, former = {}, []
    for victim in victims[:10]:
        launch = place.launch()
        interval = launch.wait_for_images(place, len(kept) + chance.randint(1, 4))
        time.sleep(chance.uniform(0, interval))
        workers = launch.workers()
        former += workers
        if victim == "launcher":
            launch.kill_group()  # the same command follows at once, while the two may still be at it
        elif victim == "all":
            for process in (*workers, psutil.Process(launch.process.pid)):
                process.kill()
            launch.process.wait()
        else:
            workers[("first", "second").index(victim)].kill()
            assert launch.end() != 0
        place.verify()
        made = place.made()
        assert kept.items() <= made.items()  # nothing lost, nothing made again
        kept = made
    assert len(kept) < place.num_expected, "the kills came too late to mean anything"

    launch = place.launch()
    assert launch.end() == 0, launch.said
    assert [worker for worker in former if is_alive(worker)] == []
    assert kept.items() <= place.made().items()
    place.check_same(place.generate_here())
