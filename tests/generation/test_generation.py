"""Generation: masks in, labelled images out; the same images whatever the batch size, the order or an interruption."""

import functools
import json
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler, EDMEulerScheduler, SchedulerMixin
from helpers.generation_places import LABELS, draw_ids, names, pixels
from PIL import Image

from semseg_diffusers import cli
from semseg_diffusers.data.dataset import load_pairs
from semseg_diffusers.data.dataset_format import find_masks
from semseg_diffusers.data.labels import LabelSet
from semseg_diffusers.generation import output_folder
from semseg_diffusers.generation.generate import generate_dataset
from semseg_diffusers.generation.model import new_scheduler
from semseg_diffusers.generation.output_folder import read_metadata
from semseg_diffusers.generation.plan import image_seed
from semseg_diffusers.generation.settings import GenerationSettings
from semseg_diffusers.models.unet_mask_guided import MaskGuidedUNet2DModel
from semseg_diffusers.pipelines.pipeline_mask_guided_ddpm import MaskGuidedDDPMPipeline
from semseg_diffusers.utils.files import exclusive_folder, write_text
from semseg_diffusers.utils.signals import SIGNALS


FEW = GenerationSettings(num_inference_steps=2, guidance_scale=2.0)


@pytest.fixture
def pipeline(tiny_unet):
    unet = MaskGuidedUNet2DModel.from_config(tiny_unet.config, **LABELS.to_config())
    unet.load_state_dict(tiny_unet.state_dict())
    return MaskGuidedDDPMPipeline(unet=unet, scheduler=DDIMScheduler())


@pytest.fixture
def masks(tmp_path):
    folder = tmp_path / "masks"
    (folder / "night").mkdir(parents=True)
    LABELS.decode(draw_ids(0)).save(folder / "a.png")  # palette
    Image.fromarray(draw_ids(1)).save(folder / "b.png")  # ids
    LABELS.decode(draw_ids(2)).convert("RGB").save(folder / "night" / "c.png")  # colours
    return folder


def test_ids_palettes_and_colours_give_the_same_labels(pipeline, masks, tmp_path):
    report = generate_dataset(pipeline, masks, tmp_path / "out", FEW, num_images_per_mask=2)
    assert (report.num_made, report.num_kept) == (6, 0)
    expected = [f"{stem}_{index}.png" for stem in "abc" for index in range(2)]
    assert names(tmp_path / "out" / "images") == names(tmp_path / "out" / "masks") == expected
    for seed, stem in enumerate("abc"):
        saved = Image.open(tmp_path / "out" / "masks" / f"{stem}_1.png")
        assert saved.mode == "P"
        assert np.array_equal(np.asarray(saved), draw_ids(seed))
        assert saved.getpalette()[:3] == list(LABELS.colors[0])
    assert LabelSet.from_json(tmp_path / "out" / "labels.json") == LABELS


def test_datasets_reads_the_output_as_image_and_mask(pipeline, masks, tmp_path):
    from datasets import load_dataset

    generate_dataset(pipeline, masks, tmp_path / "out", FEW)
    table = load_dataset("imagefolder", data_dir=str(tmp_path / "out"), cache_dir=str(tmp_path / "cache"))["train"]
    assert len(table) == 3
    row = table[1]
    assert row["stem"] == "b"
    assert np.array_equal(np.asarray(row["mask"]), draw_ids(1))
    assert np.array_equal(np.asarray(row["image"]), pixels(tmp_path / "out" / "images" / "b_0.png"))
    assert row["synthetic"] is True
    assert row["seed"] == image_seed(0, "b", 0)
    assert row["scheduler"] == "DDIMScheduler"
    assert row["guidance_scale"] == 2.0
    assert row["revision"].startswith("sha256:")


@pytest.mark.parametrize(("recommended", "expected"), [((3, 1.0), (3, 1.0)), ((), (20, 2.0))])
def test_open_settings_are_those_the_model_recommends_and_folders_hold_the_numbers(
    recommended, expected, pipeline, masks, tmp_path
):
    model, out = MaskGuidedDDPMPipeline(pipeline.unet, pipeline.scheduler, *recommended), tmp_path / "out"
    assert generate_dataset(model, masks, out).num_made == 3
    for row in (json.loads((out / "generation.json").read_text()), *read_metadata(out)):
        assert (row["num_inference_steps"], row["guidance_scale"]) == expected
    same = GenerationSettings(num_inference_steps=expected[0], guidance_scale=expected[1])  # as earlier versions
    for settings, other in ((same, pipeline), (GenerationSettings(), model)):
        report = generate_dataset(other, masks, out, settings)
        assert (report.num_made, report.num_kept) == (0, 3)
    with pytest.raises(ValueError, match=f"num_inference_steps: {expected[0]} there, 2 now"):
        generate_dataset(model, masks, out, FEW)


def test_an_image_is_that_of_its_recorded_seed(pipeline, masks, tmp_path):
    generate_dataset(pipeline, masks, tmp_path / "out", FEW)
    row = read_metadata(tmp_path / "out")[2]
    image = pipeline(
        masks / "night" / "c.png",
        num_inference_steps=row["num_inference_steps"],
        guidance_scale=row["guidance_scale"],
        generator=torch.Generator().manual_seed(row["seed"]),
    ).images[0]
    difference = np.abs(np.asarray(image).astype(int) - pixels(tmp_path / "out" / row["image_file_name"]))
    assert difference.max() <= 1


def test_images_depend_on_neither_batch_size_nor_order_nor_number(pipeline, masks, tmp_path):
    for batch_size in (1, 3, 8):
        generate_dataset(
            pipeline, masks, tmp_path / str(batch_size), FEW, num_images_per_mask=2, batch_size=batch_size
        )
    for folder, mask in (("1", "night/c.png"), ("2", "b.png"), ("3", "a.png")):
        (tmp_path / "reversed" / folder).mkdir(parents=True)
        shutil.copy(masks / mask, tmp_path / "reversed" / folder)
    generate_dataset(pipeline, tmp_path / "reversed", tmp_path / "order", FEW, num_images_per_mask=2, batch_size=3)
    generate_dataset(pipeline, masks / "night" / "c.png", tmp_path / "alone", FEW)
    for name in names(tmp_path / "1" / "images"):
        first = pixels(tmp_path / "1" / "images" / name)
        for other in ("3", "8", "order", *(["alone"] if name == "c_0.png" else [])):
            assert np.abs(first - pixels(tmp_path / other / "images" / name)).max() <= 1, (name, other)
    a, b = (pixels(tmp_path / "1" / "images" / f"a_{index}.png") for index in range(2))
    assert np.abs(a - b).max() > 10  # and each has its own noise


def test_the_seed_of_an_image_is_stable_and_its_own():
    seeds = {image_seed(s, stem, i) for s in range(3) for stem in ("a", "a_1", "b") for i in range(3)}
    assert len(seeds) == 27
    assert image_seed(0, "scene", 0) == 5781559387006414368
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_a_resumed_run_makes_exactly_the_missing_images(pipeline, masks, tmp_path):
    out = tmp_path / "out"
    generate_dataset(pipeline, masks, out, FEW, num_images_per_mask=2)
    before = {name: pixels(out / "images" / name) for name in names(out / "images")}
    kept = {"a_0.png": (out / "images" / "a_0.png").stat().st_mtime_ns}
    (out / "images" / "a_1.png").unlink()
    (out / "masks" / "b_0.png").unlink()
    (out / "images" / "c_0.png").write_bytes((out / "images" / "c_0.png").read_bytes()[:200])  # cut off
    (out / "images" / ".c_1.png.tmp").write_bytes(b"half")
    (out / "metadata.jsonl").unlink()

    report = generate_dataset(pipeline, masks, out, FEW, num_images_per_mask=2)
    assert (report.num_made, report.num_kept) == (3, 3)
    assert names(out / "images") == sorted(before)
    assert (out / "images" / "a_0.png").stat().st_mtime_ns == kept["a_0.png"]
    assert all(np.abs(pixels(out / "images" / name) - image).max() <= 1 for name, image in before.items())
    assert len(read_metadata(out)) == 6


def test_an_interrupted_run_leaves_what_it_made_with_metadata(pipeline, masks, tmp_path, monkeypatch):
    step = pipeline.scheduler.step
    calls = []

    def interrupted(*args, **kwargs):
        calls.append(0)
        if len(calls) > 2:
            raise KeyboardInterrupt
        return step(*args, **kwargs)

    monkeypatch.setattr(pipeline.scheduler, "step", interrupted)
    with pytest.raises(KeyboardInterrupt):
        generate_dataset(pipeline, masks, tmp_path / "out", FEW, batch_size=1)
    assert [row["stem"] for row in read_metadata(tmp_path / "out")] == ["a"]
    monkeypatch.undo()
    report = generate_dataset(pipeline, masks, tmp_path / "out", FEW, batch_size=1)
    assert (report.num_made, report.num_kept) == (2, 1)


def test_a_mask_that_is_cut_off_is_made_again(pipeline, masks, tmp_path):
    out = tmp_path / "out"
    generate_dataset(pipeline, masks, out, FEW)
    (out / "masks" / "b_0.png").write_bytes((out / "masks" / "b_0.png").read_bytes()[:100])
    report = generate_dataset(pipeline, masks, out, FEW)
    assert (report.num_made, report.num_kept) == (1, 2)
    assert np.array_equal(pixels(out / "masks" / "b_0.png"), draw_ids(1))


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_ends_the_command_and_what_is_made_is_listed(pipeline, masks, tmp_path, monkeypatch, capsys, number):
    pipeline.save_pretrained(tmp_path / "run")
    options = ["generate", "--model", str(tmp_path / "run"), "--masks", str(masks), "--output", str(tmp_path / "out")]
    options += ["--num_inference_steps", "2", "--batch_size", "1", "--device", "cpu"]
    step, calls = DDIMScheduler.step, []

    def terminated(*args, **kwargs):
        calls.append(0)
        if len(calls) == 4:  # in the second image
            os.kill(os.getpid(), number)
        return step(*args, **kwargs)

    monkeypatch.setattr(DDIMScheduler, "step", terminated)
    ignored = signal.signal(number, signal.SIG_DFL)  # nohup may have set SIGHUP to be ignored, and that stays in force
    before = signal.getsignal(number)
    with pytest.raises(SystemExit) as ended:
        cli.main(options)
    assert ended.value.code == 128 + number
    assert signal.getsignal(number) == before
    signal.signal(number, ignored)
    assert [row["stem"] for row in read_metadata(tmp_path / "out")] == ["a"]
    assert names(tmp_path / "out" / "images") == ["a_0.png"]
    monkeypatch.undo()
    assert cli.main(options) == 0
    assert "2 images generated, 1 kept" in capsys.readouterr().out


def test_images_of_a_killed_run_are_listed_though_other_masks_are_asked_for(pipeline, masks, tmp_path):
    out = tmp_path / "out"
    generate_dataset(pipeline, masks, out, FEW)
    rows = read_metadata(out)
    (out / "metadata.jsonl").unlink()
    shutil.copy(masks / "a.png", out / "images" / "holiday.png")  # none of ours: it carries no row
    report = generate_dataset(pipeline, masks / "b.png", out, FEW)
    assert (report.num_made, report.num_kept) == (0, 1)
    assert read_metadata(out) == [row | ({} if row["stem"] == "b" else {"source_mask": None}) for row in rows]
    generate_dataset(pipeline, masks, out, FEW)
    assert read_metadata(out) == rows


def test_an_image_carries_its_row_without_paths_of_the_machine(pipeline, masks, tmp_path):
    pipeline.save_pretrained(tmp_path / "run")
    saved = MaskGuidedDDPMPipeline.from_pretrained(tmp_path / "run")
    generate_dataset(saved, masks, tmp_path / "out", FEW)
    row = read_metadata(tmp_path / "out")[0]
    assert row["model"] == str(tmp_path / "run")
    assert row["source_mask"] == str(masks / "a.png")
    with Image.open(tmp_path / "out" / "images" / "a_0.png") as image:
        note = json.loads(image.info["semseg_diffusers"])
    assert note == {key: value for key, value in row.items() if key not in ("model", "source_mask")}
    assert str(tmp_path).encode() not in (tmp_path / "out" / "images" / "a_0.png").read_bytes()


def test_columns_that_others_have_added_to_the_metadata_stay(pipeline, masks, tmp_path):
    out = tmp_path / "out"
    generate_dataset(pipeline, masks, out, FEW)
    rows = [row | {"score": number} for number, row in enumerate(read_metadata(out))]
    (out / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    generate_dataset(pipeline, masks, out, FEW)
    assert read_metadata(out) == rows


def test_images_rewritten_by_another_tool_are_listed(pipeline, masks, tmp_path):
    out = tmp_path / "out"
    generate_dataset(pipeline, masks, out, FEW)
    rows = read_metadata(out)
    for name in names(out / "images"):
        Image.fromarray(pixels(out / "images" / name).astype(np.uint8)).save(out / "images" / name)
    (out / "metadata.jsonl").unlink()
    assert generate_dataset(pipeline, masks, out, FEW).num_made == 0
    assert read_metadata(out) == rows


def test_pairs_that_were_deleted_are_not_listed(pipeline, masks, tmp_path):
    out = tmp_path / "out"
    generate_dataset(pipeline, masks, out, FEW)
    (out / "images" / "a_0.png").unlink()
    (out / "masks" / "b_0.png").unlink()
    generate_dataset(pipeline, masks / "night", out, FEW)
    assert [row["stem"] for row in read_metadata(out)] == ["c"]


def test_a_row_is_not_lost_to_a_process_that_looked_earlier(pipeline, masks, tmp_path, monkeypatch):
    out = tmp_path / "out"
    generate_dataset(pipeline, masks, out, FEW)
    complete, rows = (out / "metadata.jsonl").read_text(), read_metadata(out)
    (out / "metadata.jsonl").unlink()
    written = []

    def another_follows(path, text):
        written.append(text)
        write_text(path, text if len(written) > 1 else text.splitlines()[0] + "\n")  # it has seen one image only

    monkeypatch.setattr(output_folder, "write_text", another_follows)
    output_folder.update_metadata(out, rows)
    assert (out / "metadata.jsonl").read_text() == complete
    assert len(written) == 2


def test_a_broken_metadata_file_is_named_and_restored_once_it_is_deleted(pipeline, masks, tmp_path):
    out = tmp_path / "out"
    generate_dataset(pipeline, masks, out, FEW)
    complete = (out / "metadata.jsonl").read_text()
    (out / "metadata.jsonl").write_text(complete[:-30])
    with pytest.raises(ValueError, match=r"metadata\.jsonl' is not valid JSON lines: .* Delete it"):
        generate_dataset(pipeline, masks, out, FEW)
    (out / "metadata.jsonl").unlink()
    generate_dataset(pipeline, masks, out, FEW)
    assert (out / "metadata.jsonl").read_text() == complete


def test_a_run_that_was_killed_before_its_first_image_is_continued(pipeline, masks, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / ".lock").touch()
    (out / "generation.json.tmp-123").write_text("{")
    generate_dataset(pipeline, masks, out, FEW)
    assert not (out / "generation.json.tmp-123").exists()
    for name in ("images", "masks"):
        shutil.rmtree(out / name)
    (out / "labels.json").unlink()
    (out / "metadata.jsonl").unlink()
    other = GenerationSettings(num_inference_steps=1)  # no image prevents other settings
    assert generate_dataset(pipeline, masks, out, other).num_made == 3
    assert json.loads((out / "generation.json").read_text())["num_inference_steps"] == 1


HOLD_A_LOCK = """
import sys
from filelock import FileLock
lock = FileLock(sys.argv[1])
lock.acquire()
print("held", flush=True)
input()
"""


def test_a_second_run_into_the_same_folder_is_refused_while_the_first_lives(pipeline, masks, tmp_path, monkeypatch):
    out = tmp_path / "out"
    generate_dataset(pipeline, masks, out, FEW)
    (out / "images" / "b_0.png").unlink()
    (out / "images" / ".b_0.png.7.tmp").write_bytes(b"being written")
    command = [sys.executable, "-c", HOLD_A_LOCK, str(out / ".lock")]
    monkeypatch.setattr(output_folder, "exclusive_folder", functools.partial(exclusive_folder, patience=0))
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as first:
        assert first.stdout.readline() == "held\n"
        with pytest.raises(ValueError, match="another process is generating into .*out'"):
            generate_dataset(pipeline, masks, out, FEW)
        assert (out / "images" / ".b_0.png.7.tmp").exists()
        first.kill()  # the lock ends with its process, however that ends
        first.wait()
    assert generate_dataset(pipeline, masks, out, FEW).num_made == 1
    assert not (out / "images" / ".b_0.png.7.tmp").exists()


def test_images_that_another_machine_put_elsewhere_are_missed(tmp_path, monkeypatch):
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "a_0.png").touch()
    monkeypatch.setattr(output_folder, "LISTING_TIMEOUT", 0)
    monkeypatch.setattr(output_folder.time, "sleep", lambda _: None)
    output_folder.wait_for_images(tmp_path, ["a_0.png"])
    with pytest.raises(ValueError, match=r"1 images .* such as a_1\.png\. Machines .* need one file system"):
        output_folder.wait_for_images(tmp_path, ["a_0.png", "a_1.png"])


def test_more_images_and_more_masks_can_be_asked_for_later(pipeline, masks, tmp_path):
    generate_dataset(pipeline, masks / "a.png", tmp_path / "out", FEW)
    report = generate_dataset(pipeline, masks, tmp_path / "out", FEW, num_images_per_mask=2)
    assert (report.num_made, report.num_kept) == (5, 1)
    generate_dataset(pipeline, masks / "b.png", tmp_path / "out", FEW)
    assert len(read_metadata(tmp_path / "out")) == 6  # rows of masks not asked for now stay


def test_jpeg_images_resume_restore_their_rows_and_load_as_png_images_do(pipeline, masks, tmp_path):
    plain, out, jpeg = tmp_path / "plain", tmp_path / "out", replace(FEW, image_format="jpg")
    generate_dataset(pipeline, masks, plain, FEW)
    assert generate_dataset(pipeline, masks, out, jpeg).num_made == 3
    assert names(out / "images") == ["a_0.jpg", "b_0.jpg", "c_0.jpg"]
    assert names(out / "masks") == ["a_0.png", "b_0.png", "c_0.png"]
    for name in ("a_0", "b_0", "c_0"):
        assert Image.open(out / f"images/{name}.jpg").format == "JPEG"
        original = pixels(plain / f"images/{name}.png")
        assert 0 < np.abs(original - pixels(out / f"images/{name}.jpg")).mean() < 5
    complete = (out / "metadata.jsonl").read_text()
    (out / "images/b_0.jpg").write_bytes((out / "images/b_0.jpg").read_bytes()[:-300])  # as after a full disk
    (out / "metadata.jsonl").unlink()
    report = generate_dataset(pipeline, masks, out, jpeg)
    assert (report.num_made, report.num_kept) == (1, 2)
    assert (out / "metadata.jsonl").read_text() == complete
    (out / "metadata.jsonl").unlink()
    generate_dataset(pipeline, masks / "a.png", out, jpeg)  # the other rows come from the comments of the files
    rows, expected = read_metadata(out), [json.loads(line) for line in complete.splitlines()]
    assert rows == [expected[0], *({**row, "model": "unsaved", "source_mask": None} for row in expected[1:])]
    pairs = load_pairs(str(out), "train")
    assert pairs.stems == ["a", "b", "c"]
    assert np.array_equal(np.asarray(pairs.photo(1)), pixels(out / "images/b_0.jpg"))
    assert np.array_equal(pairs.mask(1), draw_ids(1))


def test_another_image_format_in_the_same_output_is_refused(pipeline, masks, tmp_path):
    generate_dataset(pipeline, masks, tmp_path / "out", FEW)
    record = json.loads((tmp_path / "out/generation.json").read_text())
    assert record.pop("image_format") == "png"
    (tmp_path / "out/generation.json").write_text(json.dumps(record))  # as before there were others
    assert generate_dataset(pipeline, masks, tmp_path / "out", FEW).num_kept == 3
    with pytest.raises(ValueError, match="image_format: png there, jpg now"):
        generate_dataset(pipeline, masks, tmp_path / "out", replace(FEW, image_format="jpg"))
    with pytest.raises(ValueError, match="image_format must be one of png, jpg; got 'webp'"):
        generate_dataset(pipeline, masks, tmp_path / "other", replace(FEW, image_format="webp"))


def test_other_settings_in_the_same_output_are_refused_by_name(pipeline, masks, tmp_path):
    out = tmp_path / "out"
    generate_dataset(pipeline, masks, out, FEW)
    with pytest.raises(ValueError, match=r"guidance_scale: 2\.0 there, 3\.0 now"):
        generate_dataset(pipeline, masks, out, GenerationSettings(num_inference_steps=2, guidance_scale=3.0))
    with torch.no_grad():
        next(pipeline.unet.parameters()).add_(1)
    with pytest.raises(ValueError, match="revision: sha256"):
        generate_dataset(pipeline, masks, out, FEW)


def test_another_scheduler_or_label_set_in_the_same_output_is_refused(pipeline, masks, tmp_path):
    out = tmp_path / "out"
    generate_dataset(pipeline, masks, out, FEW)
    saved = pipeline.scheduler
    pipeline.scheduler = new_scheduler("DPMSolverMultistepScheduler", saved.config)
    with pytest.raises(ValueError, match="scheduler: DDIMScheduler there, DPMSolverMultistepScheduler now"):
        generate_dataset(pipeline, masks, out, FEW)
    pipeline.scheduler = saved
    pipeline.unet.register_to_config(id2label={"0": "street", "1": "sky", "2": "car", "3": "person", "4": "pole"})
    with pytest.raises(ValueError, match=r"classes: \('road'.* there, \('street'"):
        generate_dataset(pipeline, masks, out, FEW)


def test_another_mask_of_the_same_name_is_refused(pipeline, masks, tmp_path):
    generate_dataset(pipeline, masks, tmp_path / "out", FEW)
    Image.fromarray(draw_ids(9)).save(masks / "b.png")
    with pytest.raises(ValueError, match=r"another mask called 'b' than .*b\.png"):
        generate_dataset(pipeline, masks, tmp_path / "out", FEW)


def test_a_folder_of_something_else_is_not_written_to(pipeline, masks, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "thesis.txt").write_text("mine")
    with pytest.raises(ValueError, match="not empty and was not made by generate"):
        generate_dataset(pipeline, masks, out, FEW)
    assert names(out) == ["thesis.txt"]


def test_settings_that_are_no_object_are_named(pipeline, masks, tmp_path):
    generate_dataset(pipeline, masks, tmp_path / "out", FEW)
    (tmp_path / "out" / "generation.json").write_text("[]")
    with pytest.raises(
        ValueError, match=r"generation\.json' must hold a JSON object; got a list\. Choose another output"
    ):
        generate_dataset(pipeline, masks, tmp_path / "out", FEW)


def _write(masks, name, content):
    if isinstance(content, bytes):
        (masks / name).write_bytes(content)
    else:
        Image.fromarray(content).save(masks / name)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("z.png", np.full((16, 16), 7, np.uint8), r"z\.png' holds class 7; this model knows 0-4 and 255"),
        ("z.png", np.full((16, 16, 3), (1, 2, 3), np.uint8), r"z\.png' holds 1 colour .*\(1, 2, 3\) in 256 pixels"),
        ("z.png", b"", r"z\.png' is empty"),
        ("z.png", b"no image", r"z\.png' cannot be read"),
        ("a.jpg", np.zeros((16, 16), np.uint8), r"a\.jpg' and .*a\.png' have the same stem"),
    ],
)
def test_a_bad_mask_stops_the_run_before_the_first_image(pipeline, masks, tmp_path, name, content, message):
    _write(masks, name, content)
    pipeline.unet.register_forward_pre_hook(lambda *_: pytest.fail("the network was run"))
    with pytest.raises(ValueError, match=message):
        generate_dataset(pipeline, masks, tmp_path / "out", FEW)
    assert not (tmp_path / "out").exists()


def test_a_tolerance_takes_the_nearest_colour(pipeline, tmp_path):
    colours = np.asarray(LABELS.decode(draw_ids(2)).convert("RGB")).copy()
    colours[0, 0, 0] ^= 2
    Image.fromarray(colours).save(tmp_path / "c.png")
    generate_dataset(pipeline, tmp_path / "c.png", tmp_path / "out", FEW, tolerance=3)
    assert np.array_equal(pixels(tmp_path / "out" / "masks" / "c_0.png"), draw_ids(2))


def test_a_mask_of_another_size_is_saved_as_the_condition_was(pipeline, tmp_path):
    Image.fromarray(draw_ids(3, (32, 64))).save(tmp_path / "wide.png")
    generate_dataset(pipeline, tmp_path / "wide.png", tmp_path / "out", FEW)
    assert np.array_equal(pixels(tmp_path / "out" / "masks" / "wide_0.png"), draw_ids(3, (32, 64))[1::2, 17:48:2])
    wide = GenerationSettings(num_inference_steps=2, guidance_scale=2.0, height=16, width=32)
    generate_dataset(pipeline, tmp_path / "wide.png", tmp_path / "wide", wide)
    assert pixels(tmp_path / "wide" / "images" / "wide_0.png").shape == (16, 32, 3)


@pytest.mark.parametrize(
    ("settings", "options", "message"),
    [
        (GenerationSettings(height=16), {}, "expected height and width, or none of them"),
        (GenerationSettings(height=15, width=16), {}, "got 15 x 16"),
        (GenerationSettings(num_inference_steps=0), {}, "num_inference_steps"),
        (GenerationSettings(num_inference_steps=1001), {}, "1001"),
        (GenerationSettings(guidance_start=0.9, guidance_stop=0.1), {}, "guidance_stop"),
        (FEW, {"num_images_per_mask": 0}, "num_images_per_mask and batch_size"),
        (FEW, {"batch_size": 0}, "num_images_per_mask and batch_size"),
        (FEW, {"tolerance": -1.0}, "tolerance must be 0 or more; got 8, -1.0"),
        (FEW, {"contact_sheet_rows": -1}, "contact_sheet and tolerance must be 0 or more; got -1"),
        (GenerationSettings(guidance_scale=float("nan")), {}, "guidance_scale"),
    ],
)
def test_settings_that_cannot_work_leave_no_output_behind(pipeline, masks, tmp_path, settings, options, message):
    with pytest.raises(ValueError, match=message):
        generate_dataset(pipeline, masks, tmp_path / "out", settings, **options)
    assert not (tmp_path / "out").exists()


def test_no_masks_are_an_error(tmp_path):
    with pytest.raises(FileNotFoundError, match="no mask file and no folder"):
        find_masks(tmp_path / "nothing")
    (tmp_path / "notes.txt").write_text("a")
    with pytest.raises(ValueError, match="holds no mask"):
        find_masks(tmp_path)


def test_an_unknown_scheduler_is_answered_with_the_list():
    with pytest.raises(ValueError, match=r"'FastScheduler'; those that .*DDIMScheduler, .*UniPCMultistepScheduler"):
        new_scheduler("FastScheduler", {})
    with pytest.raises(ValueError, match="those that sample"):
        new_scheduler("UNet2DModel", {})


@pytest.mark.parametrize(
    "name",
    ["FlowMatchEulerDiscreteScheduler", "DDPMWuerstchenScheduler", "VQDiffusionScheduler", "RePaintScheduler",
     "KarrasVeScheduler", "ScoreSdeVeScheduler", "EDMEulerScheduler"],
)  # fmt: skip
def test_a_scheduler_of_other_noise_levels_or_steps_is_answered_with_those_that_fit(name):
    with pytest.raises(ValueError, match=rf"{name} has noise levels or steps of its own.*DDIMScheduler") as refused:
        new_scheduler(name, DDIMScheduler().config)
    assert name not in str(refused.value).split("this model: ")[1].split(", ")


def test_a_scheduler_without_a_schedule_of_betas_is_replaced_by_one_of_its_kind():
    assert isinstance(new_scheduler("EDMDPMSolverMultistepScheduler", EDMEulerScheduler().config), SchedulerMixin)


def test_a_scheduler_takes_options_of_its_own():
    saved = new_scheduler("DPMSolverMultistepScheduler", DDIMScheduler(prediction_type="v_prediction").config)
    name = "DPMSolverMultistepScheduler:algorithm_type=sde-dpmsolver++,thresholding=true,sample_max_value=1.5"
    config = new_scheduler(name, saved.config).config
    assert (config.algorithm_type, config.thresholding, config.sample_max_value) == ("sde-dpmsolver++", True, 1.5)
    assert config.prediction_type == "v_prediction"
    kept = new_scheduler("DPMSolverMultistepScheduler", new_scheduler(name, saved.config).config)
    assert kept.config.algorithm_type == "sde-dpmsolver++"


@pytest.mark.parametrize(
    ("short", "name"),
    [("ddim", "DDIM"), ("DDIMScheduler", "DDIM"), ("euler-a", "EulerAncestralDiscrete"), ("UniPC", "UniPCMultistep"),
     ("dpm++:thresholding=true", "DPMSolverMultistep"), ("LCM", "LCM")],
)  # fmt: skip
def test_schedulers_have_short_names(short, name):
    saved = DDIMScheduler().config
    assert type(new_scheduler(short, saved)).__name__ == f"{name}Scheduler"


def test_the_schedulers_listed_are_those_that_sample_the_model():
    saved = DPMSolverMultistepScheduler(beta_schedule="squaredcos_cap_v2", prediction_type="v_prediction").config
    with pytest.raises(ValueError, match="is called 'Dreams'; those that sample this model: ") as refused:
        new_scheduler("Dreams", saved)
    listed = str(refused.value).rpartition(": ")[2].split(", ")
    assert {"DDIMScheduler", "DDPMScheduler", "DPMSolverMultistepScheduler", "UniPCMultistepScheduler"} <= {*listed}
    assert {"CogVideoXDDIMScheduler", "DDIMInverseScheduler", "HeunDiscreteScheduler"}.isdisjoint(listed)


def test_ddim_takes_the_timesteps_that_its_steps_go_by():
    saved = DPMSolverMultistepScheduler().config
    assert saved.timestep_spacing == "linspace"
    scheduler = new_scheduler("DDIMScheduler", saved)
    scheduler.set_timesteps(10)
    assert scheduler.timesteps.diff().tolist() == [-100] * 9
    assert new_scheduler("DDIMScheduler:timestep_spacing=linspace", saved).config.timestep_spacing == "linspace"


@pytest.mark.parametrize("name", ["DEISMultistepScheduler", "SASolverScheduler", "UniPCMultistepScheduler"])
def test_solvers_of_another_family_take_the_place_of_the_saved_one(name):
    saved = DPMSolverMultistepScheduler(algorithm_type="sde-dpmsolver++")
    assert new_scheduler(name, saved.config)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "DDIMScheduler:eta=1",
            "DDIMScheduler:eta=1: expected OPTION=VALUE, with one of the options num_train_timesteps",
        ),
        ("DDIMScheduler:thresholding", "DDIMScheduler:thresholding: expected OPTION=VALUE"),
        ("DPMSolverMultistepScheduler:algorithm_type=ode", "does not take algorithm_type=ode: ode is not implemented"),
    ],
)
def test_options_that_a_scheduler_does_not_take_are_refused(name, message):
    with pytest.raises(ValueError, match=message):
        new_scheduler(name, DDIMScheduler().config)


def test_sampling_leaves_the_pipeline_as_it_was(pipeline, masks, tmp_path):
    pipeline.set_progress_bar_config(desc="mine")
    pipeline.unet.train()
    state = torch.random.get_rng_state()
    generate_dataset(pipeline, masks, tmp_path / "out", FEW)
    assert pipeline._progress_bar_config == {"desc": "mine"}
    assert pipeline.unet.training
    assert torch.equal(state, torch.random.get_rng_state())


def test_contact_sheet_shows_mask_and_samples_and_can_be_omitted(pipeline, masks, tmp_path):
    report = generate_dataset(pipeline, masks, tmp_path / "out", FEW, num_images_per_mask=2, contact_sheet_rows=2)
    with Image.open(report.contact_sheet) as sheet:
        sheet.load()
    assert sheet.width > 3 * 128
    assert 2 * 128 < sheet.height < 3 * 128
    report = generate_dataset(pipeline, masks, tmp_path / "none", FEW, contact_sheet_rows=0)
    assert report.contact_sheet is None
    assert "contact_sheet.png" not in names(tmp_path / "none")


def test_the_command_generates_from_a_saved_folder(pipeline, masks, tmp_path, capsys):
    pipeline.save_pretrained(tmp_path / "run")
    options = ["generate", "--model", str(tmp_path / "run"), "--masks", str(masks), "--output", str(tmp_path / "out")]
    options += ["--num_inference_steps", "2", "--seed", "3", "--device", "cpu"]
    assert cli.main([*options, "--scheduler", "UniPCMultistepScheduler"]) == 0
    assert "3 images generated, 0 kept" in capsys.readouterr().out
    row = read_metadata(tmp_path / "out")[0]
    assert row["scheduler"] == "UniPCMultistepScheduler"
    assert row["model"] == str(tmp_path / "run")
    assert row["seed"] == image_seed(3, "a", 0)
    assert json.loads((tmp_path / "out" / "generation.json").read_text())["dtype"] == "float32"
    half = [
        *options[:6],
        str(tmp_path / "half"),
        "--num_inference_steps",
        "1",
        "--device",
        "cpu",
        "--dtype",
        "bfloat16",
    ]
    assert cli.main([*half, "--dtype", "bfloat16"]) == 0
    assert json.loads((tmp_path / "half" / "generation.json").read_text())["dtype"] == "bfloat16"
    capsys.readouterr()
    assert cli.main(options) == 2  # the model's own scheduler now
    assert "error: output" in capsys.readouterr().err
