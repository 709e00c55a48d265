"""The painter without a browser: input from outside, samples, where they are kept, and the page over HTTP."""

import asyncio
import base64
import copy
import io
import json
import os
import re
import socket
import struct
import subprocess
import sys
import threading
import time
import zipfile
import zlib
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import gradio as gr
import httpx
import numpy as np
import pytest
import torch
from helpers.app_place import LIMITS, SIZE, STREET, arguments, call, few_step_sampler, served, tiny_sampler, upload
from helpers.generation_places import ATTRIBUTES, LABELS, draw_ids, names, save_masks, tiny_pipeline
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from semseg_diffusers import cli
from semseg_diffusers.app import handlers as app_handlers
from semseg_diffusers.app.app import find_segmenter, starting_masks
from semseg_diffusers.app.collection import Collection, zip_of
from semseg_diffusers.app.handlers import MAX_VISITORS, VISITOR_LENGTH, VISITOR_SECONDS, Cancelled, Handlers
from semseg_diffusers.app.hosts import OwnHosts, check_address
from semseg_diffusers.app.inputs import (
    check_number,
    check_scheduler,
    pack_mask,
    pack_runs,
    read_mask_upload,
    read_photo_upload,
    read_upload,
    unpack_mask,
)
from semseg_diffusers.app.page import build_page
from semseg_diffusers.app.sampler import EDIT, MODES, NOISE, REDRAW, STEM, FairLock, Photo, Sampler, SamplingRequest
from semseg_diffusers.app.settings import DEFAULT_SEGMENTER, MAX_GUIDANCE, AppSettings, Limits
from semseg_diffusers.app.shapes import HOLE, cut_shapes, drawn_shapes, folder_masks, plain_street, toy_masks
from semseg_diffusers.data.check.check import check_prepared
from semseg_diffusers.data.dataset import load_pairs
from semseg_diffusers.data.labels import LabelSet
from semseg_diffusers.evaluation.filtering import output as filtering
from semseg_diffusers.evaluation.segmentation.judge import load_judge
from semseg_diffusers.generation.batches import BatchGenerator
from semseg_diffusers.generation.model import find_model
from semseg_diffusers.generation.plan import image_seed
from semseg_diffusers.growth.merge import read_generated
from semseg_diffusers.pipelines.pipeline_mask_guided_ddpm import MaskGuidedDDPMPipeline


ROOT = Path(__file__).resolve().parents[2]
CAMVID, BDD = LabelSet.from_preset("camvid"), LabelSet.from_preset("bdd100k")
UNKNOWN = np.full(SIZE, 255, dtype=np.uint8)


def file_of(image: Image.Image, form: str = "png", **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def photo_of(seed: int, size: tuple[int, int] = SIZE) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8))


@pytest.fixture(scope="module")
def sampler():
    return tiny_sampler()


@pytest.mark.parametrize(
    ("recommended", "expected"), [((3, 1.0), (3, 1.0)), ((1000, 99.0), (50, MAX_GUIDANCE)), ((), (20, 2.0))]
)
def test_the_page_starts_at_steps_and_guidance_that_the_model_recommends(recommended, expected, tmp_path):
    pipeline = tiny_pipeline()
    sampler = Sampler(MaskGuidedDDPMPipeline(pipeline.unet, pipeline.scheduler, *recommended), LIMITS)
    page = build_page(
        sampler, Collection(tmp_path / "painted", LABELS, SIZE), {"street": STREET}, drawn_shapes(LABELS), "tiny"
    )
    sliders = {block.label: block.value for block in page.blocks.values() if isinstance(block, gr.Slider)}
    assert (sliders["Steps"], sliders["Guidance"]) == expected
    if recommended == (3, 1.0):
        (sample,) = sampler.generate(STREET, SamplingRequest(num_images=1))
        assert (sample.row["num_inference_steps"], sample.row["guidance_scale"]) == expected


# Masks between page and server ---------------------------------------------------------------------------------------


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 9), st.integers(1, 9), st.data())
def test_a_mask_comes_back_as_it_went(height, width, data):
    count = height * width
    ids = np.array(data.draw(st.lists(st.sampled_from([0, 1, 4, 255]), min_size=count, max_size=count)), np.uint8)
    ids = ids.reshape(height, width)
    sent = json.loads(json.dumps(pack_mask(ids)))
    assert np.array_equal(unpack_mask(sent, LABELS, (height, width)), ids)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"height": 10**9}, "this model expects 16 x 16"),
        ({"width": "16"}, "this model expects 16 x 16"),
        ({"runs": [0, 255]}, "hold 255 pixels; expected 16 x 16"),
        ({"runs": [0, 257]}, "whole numbers from 0"),
        ({"runs": [0, 256, 1]}, "runs of id and count"),
        ({"runs": []}, "runs of id and count"),
        ({"runs": [0, 1] * 300}, "at most 256 runs"),
        ({"runs": "0, 256"}, "runs of id and count"),
        ({"runs": [0, -1, 0, 257]}, "whole numbers from 0"),
        ({"runs": [0.0, 256]}, "whole numbers from 0"),
        ({"runs": [True, 256]}, "whole numbers from 0"),
        ({"runs": [None, 256]}, "whole numbers from 0"),
        ({"runs": [5, 256]}, "holds class 5; this model knows 0-4"),
        ({"runs": [0, 255, 77, 1]}, "holds class 77"),
    ],
)
def test_a_mask_of_another_form_is_refused(changes, expected):
    with pytest.raises(ValueError, match=expected):
        unpack_mask({**pack_mask(STREET), **changes}, LABELS, SIZE)


@pytest.mark.parametrize("value", [None, "x", [1, 2], {"runs": [0, 256]}, 10**9])
def test_what_is_no_mask_at_all_is_refused(value):
    with pytest.raises(ValueError, match="expected a mask as"):
        unpack_mask(value, LABELS, SIZE)


# Numbers, schedulers, images -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [0, 11, -1, 10**9, 10**400, 2.5, float("nan"), float("inf"), True, None, "3", [3]])
def test_what_is_no_whole_number_in_range_is_refused(value):
    with pytest.raises(ValueError, match="steps is .*; expected a whole number from 1 to 10"):
        check_number("steps", value, 1, 10, int)


def test_a_whole_number_of_json_is_one():
    number = check_number("steps", 3.0, 1, 10, int)
    assert (number, type(number)) == (3, int)


@pytest.mark.parametrize("value", [-0.1, 1.1, float("nan"), float("-inf"), None, "1", True])
def test_what_is_no_number_in_range_is_refused(value):
    with pytest.raises(ValueError, match="strength is .*; expected a number from 0 to 1"):
        check_number("strength", value, 0, 1)


@pytest.mark.parametrize(
    "text",
    [
        "DDIMScheduler:num_train_timesteps=1000000000",
        "DDIMScheduler:trained_betas=[0]",
        "DPMSolverMultistepScheduler:solver_order=1000000000",
        "DPMSolverMultistepScheduler:thresholding=1",
        "DPMSolverMultistepScheduler:algorithm_type",
        "DDIMScheduler" * 20,
        ["DDIMScheduler"],
        7,
    ],
)
def test_scheduler_options_that_could_fill_the_memory_are_refused(text):
    with pytest.raises(ValueError, match="scheduler"):
        check_scheduler(text)


def test_harmless_scheduler_options_are_taken():
    text = "DPMSolverMultistepScheduler:algorithm_type=sde-dpmsolver++,solver_order=2,use_karras_sigmas=true"
    assert (check_scheduler(text), check_scheduler(""), check_scheduler(None)) == (text, None, None)


@pytest.mark.parametrize("name", ["max_size", "max_upload_mb", "max_steps", "max_images", "queue_size"])
def test_a_limit_of_nothing_is_refused(name):
    with pytest.raises(ValueError, match=f"--{name} must be more than 0; got 0"):
        Limits(**{name: 0})


def huge_png() -> bytes:
    """A PNG whose head says 60,000 x 60,000, of 100 bytes."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", 60000, 60000, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


def zip_file() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("mask.png", file_of(photo_of(0)))
    return buffer.getvalue()


SVG = b'<svg xmlns="http://www.w3.org/2000/svg"><script>window.evil = 1</script></svg>'
HOSTILE = {
    "zip": zip_file(),
    "svg": SVG,
    "html": b"<html><script>window.evil = 1</script></html>",
    "gif": file_of(photo_of(0), "gif"),
    "tiff": file_of(photo_of(0), "tiff"),
    "cut off": file_of(photo_of(0))[:200],
    "huge": huge_png(),
    "large": file_of(photo_of(0, (8, 600))),
    "empty": b"",
    "heavy": b"\x89PNG\r\n\x1a\n" + b"0" * 1_000_001,
}
MESSAGES = {
    **dict.fromkeys(("zip", "svg", "html", "gif", "tiff"), "not an image in a supported format"),
    "cut off": "cannot be read as an image",
    "huge": "not an image in a supported format|60000 x 60000 pixels",
    "large": "8 x 600 pixels .*; expected at most 512",
    "empty": "is empty",
    "heavy": "1.0 MB; expected at most 1",
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_an_upload_that_is_no_image_or_too_large_is_refused(kind):
    with pytest.raises(ValueError, match=MESSAGES[kind]):
        read_upload(HOSTILE[kind], "photo", LIMITS)


@pytest.mark.parametrize("form", ["png", "jpeg", "webp", "bmp"])
def test_image_formats_are_detected_from_the_content(form):
    assert read_upload(file_of(photo_of(0), form), "photo", LIMITS).size == SIZE[::-1]


def test_a_mask_is_read_from_ids_palette_and_colours():
    ids = draw_ids(1)
    for image in (Image.fromarray(ids), LABELS.decode(ids), LABELS.decode(ids).convert("RGB")):
        assert np.array_equal(read_mask_upload(file_of(image), LABELS, SIZE, LIMITS, clean=False), ids)


def test_a_mask_of_another_size_is_cropped_and_resized_by_nearest_neighbour():
    large = np.kron(draw_ids(1, (16, 32)), np.ones((2, 2), dtype=np.uint8))
    found = read_mask_upload(file_of(LABELS.decode(large)), LABELS, SIZE, LIMITS, clean=False)
    assert np.array_equal(found, draw_ids(1, (16, 32))[:, 8:24])


def test_a_photo_for_a_mask_is_refused_with_the_colours_that_no_class_has():
    with pytest.raises(ValueError, match="colours that no class has"):
        read_mask_upload(file_of(photo_of(3)), LABELS, SIZE, LIMITS, clean=False)
    with pytest.raises(ValueError, match="Is it a photo, or painted in other colours"):
        read_mask_upload(file_of(photo_of(3)), LABELS, SIZE, LIMITS, clean=True)


def test_a_painting_of_soft_edges_is_cleaned_if_asked():
    ids = plain_street(CAMVID, (64, 64))
    soft = CAMVID.decode(ids).convert("RGB").resize((256, 256), Image.Resampling.BICUBIC)
    with pytest.raises(ValueError, match="colours that no class has"):
        read_mask_upload(file_of(soft), CAMVID, (64, 64), LIMITS, clean=False)
    assert (read_mask_upload(file_of(soft), CAMVID, (64, 64), LIMITS, clean=True) == ids).mean() > 0.97
    with pytest.raises(ValueError, match="expected at most 1024 per side"):
        read_mask_upload(file_of(soft.resize((1025, 9))), CAMVID, (64, 64), Limits(), clean=True)


def test_a_photo_is_brought_to_the_size_of_the_model():
    assert read_photo_upload(file_of(photo_of(3, (40, 64)).convert("RGBA")), SIZE, LIMITS).size == SIZE[::-1]
    assert read_photo_upload(file_of(photo_of(3)), SIZE, LIMITS).tobytes() == photo_of(3).tobytes()


# Masks to start from -------------------------------------------------------------------------------------------------


def test_examples_hold_what_a_label_set_has_classes_for():
    assert {CAMVID.names[i] for i in np.unique(plain_street(CAMVID, (64, 64)))} == {
        "sky", "vegetation", "building", "road", "sidewalk"
    }  # fmt: skip
    assert len(toy_masks(CAMVID, (32, 48))) == 4
    letters = LabelSet(("a", "b"), ((1, 1, 1), (2, 2, 2)))
    assert (toy_masks(letters, (32, 48)), drawn_shapes(letters)) == ({}, [])
    assert (plain_street(letters, (32, 48)) == 255).all()
    own = LabelSet(("drivable", "way", "sky"), ((1, 1, 1), (2, 2, 2), (3, 3, 3)), kinds=("road", "sidewalk", None))
    ids = plain_street(own, (64, 64))
    assert (ids[-1, 32], ids[-12, 0], ids[0, 32]) == (0, 1, 2)


def test_masks_of_a_folder_are_offered_at_the_size_of_the_model(tmp_path):
    found = folder_masks(save_masks(tmp_path / "masks", "abc", (32, 32)), LABELS, SIZE)
    assert {name: ids.shape for name, ids in found.items()} == dict.fromkeys("abc", SIZE)
    with pytest.raises(ValueError, match="colours that no class has"):
        folder_masks(tmp_path / "masks", LabelSet(("a",), ((1, 1, 1),)), SIZE)


def test_objects_are_of_classes_that_the_label_set_has():
    shapes = {shape.name: shape for shape in drawn_shapes(CAMVID)}
    assert {"car", "person", "rider", "tree", "sign"} <= shapes.keys()
    assert shapes.keys().isdisjoint({"bus", "truck", "train", "bicycle", "traffic light"})  # of wider classes there
    assert set(np.unique(shapes["rider"].ids)) == {HOLE, CAMVID.label2id["rider"]}  # what is ridden has no class
    assert len(drawn_shapes(BDD)) == 15
    for shape in drawn_shapes(BDD):
        kept = shape.ids != HOLE
        assert kept[0].any(), shape.name
        assert kept.mean() > 0.02, shape.name
        assert kept.shape[0] <= 96, shape.name
        assert sum(shape.packed()["runs"][1::2]) == shape.ids.size


def test_complete_objects_are_cut_from_masks():
    ids = np.zeros((32, 32), dtype=np.uint8)
    ids[10:20, 5:15] = LABELS.label2id["car"]
    ids[10:20, 25:] = LABELS.label2id["car"]  # the frame cuts it
    (car,) = cut_shapes([ids], LABELS)
    assert (car.name, car.ids.shape, set(np.unique(car.ids))) == ("car 1", (10, 10), {LABELS.label2id["car"]})


# Sampling ------------------------------------------------------------------------------------------------------------


def test_a_sample_is_what_the_pipeline_generates_from_its_seed(sampler):
    (sample,) = sampler.generate(STREET, SamplingRequest(num_images=1, num_inference_steps=3, seed=5))
    generator = torch.Generator().manual_seed(sample.row["seed"])
    direct = tiny_pipeline()(STREET, num_inference_steps=3, generator=generator).images[0]
    assert sample.image.tobytes() == direct.tobytes()
    assert sample.row["seed"] == image_seed(5, STEM, 0)
    assert sample.row["scheduler"] == "DDIMScheduler"


def test_seeds_do_not_depend_on_what_is_painted_and_names_do(sampler):
    one, other = (
        list(sampler.generate(ids, SamplingRequest(num_images=2, num_inference_steps=1))) for ids in (STREET, UNKNOWN)
    )
    assert [entry.row["seed"] for entry in one] == [entry.row["seed"] for entry in other]
    assert len({entry.job.file_name for entry in one + other}) == 4
    again = list(sampler.generate(STREET, SamplingRequest(num_images=2, num_inference_steps=1)))
    assert [entry.job for entry in again] == [entry.job for entry in one]
    assert again[1].image.tobytes() == one[1].image.tobytes()


def test_a_scheduler_is_of_one_request_only(sampler):
    (sample,) = sampler.generate(
        STREET, SamplingRequest(scheduler="UniPCMultistepScheduler:solver_order=1", num_images=1)
    )
    assert sample.row["scheduler"] == "UniPCMultistepScheduler"
    assert sample.record["scheduler_config"]["solver_order"] == 1
    assert type(sampler.pipeline.scheduler).__name__ == "DDIMScheduler"
    assert {"DDIMScheduler", "UniPCMultistepScheduler"} <= set(sampler.schedulers)


def test_an_edit_keeps_every_pixel_outside_of_it(sampler):
    photo, new = Photo(photo_of(1), STREET), STREET.copy()
    new[8:11, 4:7] = LABELS.label2id["car"]
    (sample,) = sampler.generate(new, SamplingRequest(mode=EDIT, num_images=1, num_inference_steps=2), photo)
    different = (np.asarray(sample.image) != np.asarray(photo.image)).any(axis=-1)
    region = np.zeros(SIZE, dtype=bool)
    region[4:15, 0:11] = True  # four pixels around
    assert different.any()
    assert not different[~region].any()
    assert sample.row["source_photo"] is None
    assert len(sample.row["source_photo_hash"]) == 16


def test_a_photo_without_a_mask_is_edited_where_it_is_painted(sampler):
    new = UNKNOWN.copy()
    new[0, 0] = 0
    (sample,) = sampler.generate(
        new, SamplingRequest(mode=EDIT, num_images=1, num_inference_steps=1), Photo(photo_of(1), UNKNOWN)
    )
    assert np.array_equal(np.asarray(sample.image)[5:], np.asarray(photo_of(1))[5:])
    with pytest.raises(ValueError, match="there is nothing to edit"):
        list(sampler.generate(UNKNOWN, SamplingRequest(mode=EDIT), Photo(photo_of(1), UNKNOWN)))


def test_edits_of_one_photo_that_had_another_mask_have_other_names(sampler):
    asked, new = SamplingRequest(mode=EDIT, num_images=1, num_inference_steps=2), STREET.copy()
    new[8:11, 4:7] = LABELS.label2id["car"]
    a_part, all_of_it = (next(sampler.generate(new, asked, Photo(photo_of(1), old))) for old in (STREET, UNKNOWN))
    assert a_part.image.tobytes() != all_of_it.image.tobytes()
    assert a_part.job.file_name != all_of_it.job.file_name


def test_strength_nought_is_the_photo(sampler):
    (sample,) = sampler.generate(
        STREET, SamplingRequest(mode=REDRAW, strength=0.0, num_images=1), Photo(photo_of(1), UNKNOWN)
    )
    assert sample.image.tobytes() == photo_of(1).tobytes()


def test_attributes_reach_the_row_and_are_checked():
    sampler = tiny_sampler(attributes=ATTRIBUTES)
    asked = SamplingRequest(
        num_images=1, num_inference_steps=1, attributes={"weather": "rainy"}, attribute_guidance_scale=3.0
    )
    (sample,) = sampler.generate(STREET, asked)
    assert (sample.row["weather"], sample.row["timeofday"]) == ("rainy", None)
    assert sample.row["attribute_guidance_scale"] == 3.0
    with pytest.raises(ValueError, match="'snowy' is not a value of 'weather'"):
        list(sampler.generate(STREET, SamplingRequest(attributes={"weather": "snowy"})))


@pytest.mark.parametrize("mode", [NOISE, REDRAW])
@pytest.mark.parametrize(
    "scheduler",
    ["DPMSolverMultistepScheduler:algorithm_type=sde-dpmsolver++,thresholding=true", "DDPMScheduler", None],
)
def test_what_was_kept_can_be_generated_again_from_its_row(sampler, scheduler, mode):
    photo = Photo(photo_of(3), STREET)
    asked = SamplingRequest(mode=mode, scheduler=scheduler, num_images=1, num_inference_steps=4, seed=5)
    (sample,) = sampler.generate(STREET, asked, photo)
    row = json.loads(json.dumps(sample.row))
    options = row.get("scheduler_options")
    again = replace(asked, scheduler=row["scheduler"] + (f":{options}" if options else ""))
    (other,) = sampler.generate(STREET, again, photo)
    assert np.array_equal(np.asarray(other.image), np.asarray(sample.image))
    assert (options is not None) == (":" in (scheduler or ""))


def test_photo_and_samples_of_a_visitor_are_kept_for_a_reload_and_the_oldest_visitor_is_forgotten(tmp_path, sampler):
    handlers = Handlers(sampler, None, str(tmp_path))
    request, photo = gr.Request(session_hash="one"), Photo(photo_of(3), STREET)
    mask = {**pack_mask(STREET), "visitor": "a" * VISITOR_LENGTH}
    list(handlers.generate(request, *arguments(mask, images=2), progress=lambda *_, **__: None))
    handlers.remember_photo(mask, photo)
    shown, kept, gallery, samples, *_ = handlers.restore(mask)
    assert (kept, len(gallery), len(samples)) == (photo, 2, 2)
    assert shown["photo"].startswith("data:image/png")
    for other in ({"visitor": "b" * VISITOR_LENGTH}, {"visitor": ["a"]}, {}, None, 3):
        assert handlers.restore(other)[1] is None
        assert handlers.restore(other)[3] == gr.skip()
    for i in range(MAX_VISITORS):
        handlers.remember_photo({"visitor": f"{i:0{VISITOR_LENGTH}}"}, photo)
    assert handlers.restore(mask)[1] is None


def test_what_a_visitor_loaded_is_forgotten_an_hour_after_it_was_last_restored(tmp_path, sampler, monkeypatch):
    clock = SimpleNamespace(now=0.0)
    monkeypatch.setattr(app_handlers, "time", SimpleNamespace(monotonic=lambda: clock.now))
    handlers, photo = Handlers(sampler, None, str(tmp_path)), Photo(photo_of(3), STREET)
    stays, leaves = ({"visitor": letter * VISITOR_LENGTH} for letter in "ab")
    handlers.remember_photo(stays, photo)
    handlers.remember_photo(leaves, photo)
    clock.now = VISITOR_SECONDS
    assert handlers.restore(stays)[1] == photo
    clock.now += 1
    assert handlers.restore(leaves)[1] is None
    assert handlers.restore(stays)[1] == photo
    clock.now += VISITOR_SECONDS + 1
    handlers.remember_photo(leaves, None)
    assert handlers.restore(stays)[1] is None


def test_a_page_that_is_restored_late_does_not_end_the_progress_of_a_request(sampler):
    page = build_page(sampler, None, {}, [], "tiny")
    outputs = {
        function.api_name: {each.elem_id for each in function.outputs if each.elem_id}
        for function in page.fns.values()
    }
    assert outputs["generate"] - outputs["restore"] == {"message"}  # where progress is shown


def test_a_browser_keeps_masks_and_options_for_one_model_and_its_classes(sampler):
    def keys(title: str, labels: LabelSet = LABELS) -> set[str]:
        changed = copy.copy(sampler)
        changed.labels = labels
        page = build_page(changed, None, {}, [], title)
        canvas = next(
            block for block in page.blocks.values() if isinstance(block, gr.HTML) and "memory" in block.props
        )
        scripts = " ".join(function.js for function in page.fns.values() if isinstance(function.js, str))
        return {canvas.props["memory"], *re.findall(r"Item\('(?:painter|options) (\w+)'", scripts)}

    renamed = LabelSet(("other", *LABELS.names[1:]), LABELS.colors)
    found = [keys("tiny"), keys("tiny"), keys("else"), keys("tiny", renamed)]
    assert [len(each) for each in found] == [1, 1, 1, 1]
    assert len(set.union(*found)) == 3


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        (SamplingRequest(num_inference_steps=51), "number of steps is 51; expected a whole number from 1 to 50"),
        (SamplingRequest(num_images=5), "number of samples is 5"),
        (SamplingRequest(seed=-1), "seed is -1"),
        (SamplingRequest(guidance_scale=float("nan")), "guidance is nan"),
        (SamplingRequest(attribute_guidance_scale=-1), "guidance is -1"),
        (SamplingRequest(strength=2), "strength is 2"),
        (SamplingRequest(mode="else"), "the mode is 'else'; expected one of a new photo"),
        (SamplingRequest(mode=EDIT), "load one first"),
        (SamplingRequest(scheduler="os.system"), "no scheduler of diffusers"),
        (SamplingRequest(scheduler="EDMEulerScheduler"), "noise levels"),
    ],
)
def test_a_request_out_of_range_is_refused_before_any_work(sampler, asked, expected):
    with pytest.raises(ValueError, match=expected):
        next(sampler.generate(STREET, asked))


def test_steps_are_reported_and_sampling_ends_between_two(sampler):
    reported, cancelled = [], threading.Event()

    def on_step(index: int, step: int, steps: int) -> None:
        reported.append((index, step, steps))
        if cancelled.is_set():
            raise Cancelled

    sampling = sampler.generate(STREET, SamplingRequest(num_images=3, num_inference_steps=2), None, on_step)
    next(sampling)
    assert reported == [(0, 1, 2), (0, 2, 2)]
    cancelled.set()
    with pytest.raises(Cancelled):
        next(sampling)
    assert reported[-1] == (1, 1, 2)
    assert (
        len(list(sampler.generate(STREET, SamplingRequest(num_images=1, num_inference_steps=1)))) == 1
    )  # nothing is held


def test_earlier_samples_cannot_be_downloaded_while_others_are_shown(tmp_path, sampler):
    handlers = Handlers(sampler, Collection(tmp_path / "painted", LABELS, SIZE), str(tmp_path / "files"))
    request = gr.Request(session_hash="visitor")
    sampling = handlers.generate(request, *arguments(images=2), progress=lambda *_, **__: None)
    *meanwhile, (_, samples, download_at_end, keep_at_end, message) = list(sampling)
    for _, _, download, keep, _ in meanwhile:
        assert (download.interactive, keep.value, keep.visible) == (False, [], False)
    assert (download_at_end.interactive, keep_at_end.value, message) == (True, ["0", "1"], "2 generated.")
    with pytest.raises(gr.Error, match="choose samples to keep"):
        handlers.add(samples, meanwhile[0][3].value)


def test_a_mask_that_waited_does_not_change_a_photo_that_came_later(tmp_path, sampler):
    handlers = Handlers(sampler, None, str(tmp_path))
    request = gr.Request(session_hash="visitor")
    (first, photo, *_), (_, later, *_) = (handlers.load_photo(file_of(photo_of(seed))) for seed in (1, 2))
    asked = arguments(mask=first["value"], mode=REDRAW, photo=photo)
    assert list(handlers.generate(request, *asked, progress=lambda *_, **__: None))[-1][-1] == "1 generated."
    asked[1] = later
    with pytest.raises(gr.Error, match="another photo, or mask of it, was loaded while this request waited"):
        list(handlers.generate(request, *asked, progress=lambda *_, **__: None))


def test_only_the_visitor_of_a_request_cancels_it(tmp_path, sampler):
    handlers = Handlers(sampler, None, str(tmp_path))
    one, other = gr.Request(session_hash="one"), gr.Request(session_hash="other")
    answers = []
    (*_, last) = handlers.generate(one, *arguments(), progress=lambda *_, **__: answers.append(handlers.cancel(other)))
    assert last[-1] == "1 generated."
    assert {*answers} == {("Cancelled: nothing is being generated.", True)}


@pytest.mark.parametrize("ending", ["cancel", "leave"])
def test_earlier_samples_stay_when_the_next_request_gives_none(tmp_path, sampler, ending):
    handlers = Handlers(sampler, None, str(tmp_path))
    request = gr.Request(session_hash="visitor")
    end = getattr(handlers, ending)
    (shown,) = list(handlers.generate(request, *arguments(images=2), progress=lambda *_, **__: end(request)))
    assert shown == (*(gr.skip() for _ in range(4)), "Cancelled; 0 of 2 generated.")
    assert handlers.cancel(request) == ("Cancelled: nothing is being generated.", True)


def test_samples_generated_before_an_error_can_be_kept(tmp_path, sampler, monkeypatch):
    handlers = Handlers(sampler, Collection(tmp_path / "painted", LABELS, SIZE), str(tmp_path / "files"))
    generate_stages = BatchGenerator.generate_stages

    def fail_at_the_second(generator, jobs, inputs):
        if jobs[0].index == 1:
            raise ValueError("the numbers ended")
        return generate_stages(generator, jobs, inputs)

    monkeypatch.setattr(BatchGenerator, "generate_stages", fail_at_the_second)
    sampling = handlers.generate(
        gr.Request(session_hash="visitor"), *arguments(images=3), progress=lambda *_, **__: None
    )
    shown = []
    with pytest.raises(gr.Error, match="the numbers ended"):
        shown.extend(iter(sampling))  # what came before the error is kept
    _, samples, download, keep, message = shown[-1]
    assert (download.interactive, keep.value, message) == (True, ["0"], "Ended by an error; 1 of 3 generated.")
    assert handlers.add(samples, keep.value) == "1 added to painted; it holds 1."


@pytest.mark.filterwarnings("ignore:__array_wrap__ must accept:DeprecationWarning")  # DEIS of diffusers
@pytest.mark.parametrize("mode", MODES)
def test_every_scheduler_that_is_offered_generates_in_every_mode_from_one_step_on(sampler, mode):
    photo = Photo(photo_of(1), np.full(SIZE, 255, dtype=np.uint8))
    for scheduler in sampler.schedulers:
        for steps in (1, 3):
            asked = SamplingRequest(mode=mode, scheduler=scheduler, num_inference_steps=steps, num_images=1)
            assert len(list(sampler.generate(STREET, asked, photo))) == 1, scheduler


# Drawing while one paints --------------------------------------------------------------------------------------------


def live_arguments(stroke: object, **options) -> list:
    """What the page sends at a stroke."""
    return arguments(mask={**pack_mask(STREET), "stroke": stroke}, **options)


def last_live(handlers: Handlers, *given: object) -> dict:
    """What `generate_live` answers last."""
    return [*handlers.generate_live(*given)][-1]


@pytest.fixture
def handlers(tmp_path, sampler):
    return Handlers(sampler, None, str(tmp_path))


@pytest.fixture
def at_each_step(sampler):
    """Call functions with no arguments before each step; the fixture counts them."""
    calls, steps = [], []

    def before_step(*_) -> None:
        steps.append(len(steps))
        for each in calls:
            each()

    hook = sampler.pipeline.unet.register_forward_pre_hook(before_step)
    yield calls, steps
    hook.remove()


VISITOR, OTHER = gr.Request(session_hash="visitor"), gr.Request(session_hash="other")


def test_the_live_photo_is_the_first_sample_of_its_request(handlers, sampler):
    shown = last_live(handlers, VISITOR, *live_arguments(3, images=4, seed=5))["live"]
    asked = SamplingRequest(num_images=1, num_inference_steps=2, guidance_scale=1.0, seed=5)
    (sample,) = sampler.generate(STREET, asked)
    assert (shown["stroke"], shown["steps"], shown["seed"]) == (3, 2, 5)
    png = base64.b64decode(shown["image"].removeprefix("data:image/png;base64,"))
    assert Image.open(io.BytesIO(png)).tobytes() == sample.image.tobytes()


def test_a_newer_stroke_of_the_same_visitor_ends_the_live_photo_between_two_steps(handlers, at_each_step):
    calls, steps = at_each_step
    calls.append(lambda: handlers.supersede(OTHER, {"stroke": 9}))
    calls.append(lambda: handlers.supersede(VISITOR, {"stroke": 4}))
    assert "image" in last_live(handlers, VISITOR, *live_arguments(4, steps=3))["live"]
    assert len(steps) == 3
    calls.append(lambda: handlers.supersede(VISITOR, {"stroke": 5}))
    assert last_live(handlers, VISITOR, *live_arguments(4, steps=3)) == gr.skip()
    assert len(steps) == 4
    calls.clear()
    assert last_live(handlers, VISITOR, *live_arguments(4, steps=3)) == gr.skip()  # waited behind the newer one
    assert len(steps) == 4
    assert "image" in last_live(handlers, VISITOR, *live_arguments(5, steps=3))["live"]


def test_the_live_photo_of_a_visitor_who_leaves_is_ended(handlers, at_each_step):
    calls, steps = at_each_step
    calls.append(lambda: handlers.leave(VISITOR))
    assert last_live(handlers, VISITOR, *live_arguments(1, steps=3)) == gr.skip()
    assert len(steps) == 1
    assert handlers._strokes == {}


@pytest.mark.parametrize("stroke", [None, "7", 1.5, [], True, float("nan")])
def test_a_stroke_that_is_no_number_is_the_first(handlers, stroke):
    assert last_live(handlers, VISITOR, *live_arguments(stroke))["live"]["stroke"] == 0


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"mode": EDIT}, "'edit where the mask changed' changes a photo: load one first."),
        ({"scheduler": "<b>"}, "no scheduler of diffusers"),
        ({"steps": 51}, "number of steps is 51"),
    ],
)
def test_an_error_of_a_live_photo_is_text_beside_it(handlers, options, expected):
    shown = last_live(handlers, VISITOR, *live_arguments(1, **options))["live"]
    assert expected in shown["error"]
    assert "&lt;" not in shown["error"]
    assert (shown["stroke"], shown.get("image")) == (1, None)


def test_the_lock_of_the_sampler_is_given_in_the_order_of_asking():
    lock, order = FairLock(), []

    def take(name: int) -> None:
        for _ in range(3):  # asks again as soon as it is done
            with lock:
                order.append(name)

    with lock:
        threads = []
        for name in range(3):
            threads.append(threading.Thread(target=take, args=(name,)))
            threads[-1].start()
            while lock._waiting < name + 2:
                time.sleep(0.001)
    for thread in threads:
        thread.join()
    assert order[:3] == [0, 1, 2]
    assert sorted(order) == [0, 0, 0, 1, 1, 1, 2, 2, 2]


def test_a_model_that_recommends_at_most_four_steps_draws_while_one_paints():
    assert few_step_sampler().is_quick
    assert not tiny_sampler().is_quick


# Datasets and zips ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def samples(sampler):
    return list(sampler.generate(STREET, SamplingRequest(num_images=2, num_inference_steps=1)))


def test_a_folder_grows_without_overwriting_and_is_read_as_a_generated_one(tmp_path, sampler, samples):
    folder = tmp_path / "painted"
    collection = Collection(folder, sampler.labels, sampler.size)
    assert not folder.exists()
    assert (collection.add(samples[:1]), collection.add(samples), collection.add(samples)) == (1, 1, 0)
    before = {path: path.stat().st_mtime_ns for path in (folder / "images").iterdir()}
    more = list(
        sampler.generate(draw_ids(4), SamplingRequest(num_images=1, num_inference_steps=2, guidance_scale=3.0))
    )
    assert Collection(folder, sampler.labels, sampler.size).add(more) == 1
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert names(folder) == sorted([".lock", "generation.json", "images", "labels.json", "masks", "metadata.jsonl"])
    assert len(collection) == 3

    rows = [json.loads(line) for line in (folder / "metadata.jsonl").read_text().splitlines()]
    assert [row["guidance_scale"] for row in sorted(rows, key=lambda row: row["guidance_scale"])] == [2.0, 2.0, 3.0]
    for entry in samples + more:
        assert np.array_equal(LABELS.encode(folder / "masks" / entry.job.file_name), entry.ids)
        assert Image.open(folder / "images" / entry.job.file_name).tobytes() == entry.image.tobytes()
    assert check_prepared(folder).findings == ()
    labels, of_merge, record = read_generated(folder)
    assert (labels, len(of_merge), record["painted"]) == (LABELS, 3, True)
    assert len(filtering.read_generated(folder)[0]) == 3
    pairs = load_pairs(str(folder), "train")
    assert len(pairs) == 3
    assert {tuple(pairs[i]["mask"].shape) for i in range(3)} == {SIZE}


def test_a_folder_of_something_else_is_refused(tmp_path, sampler, samples):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(ValueError, match="is a file; expected a folder"):
        Collection(tmp_path / "file", LABELS, SIZE)
    with pytest.raises(ValueError, match="was not made by the painter"):
        Collection(tmp_path, LABELS, SIZE)
    Collection(tmp_path / "painted", LABELS, SIZE).add(samples)
    for labels, size in ((CAMVID, SIZE), (LABELS, (32, 32))):
        with pytest.raises(ValueError, match=r"other classes or of another size \(16 x 16"):
            Collection(tmp_path / "painted", labels, size)
    assert (tmp_path / "file").read_text() == "mine"


def test_a_folder_whose_process_ended_before_its_first_image_is_continued(tmp_path, samples):
    folder = tmp_path / "painted"
    folder.mkdir()
    (folder / "generation.json").write_text(json.dumps({"painted": True, "height": 32, "width": 32}))
    assert Collection(folder, LABELS, SIZE).add(samples) == 2
    assert LabelSet.from_json(folder / "labels.json") == LABELS
    assert json.loads((folder / "generation.json").read_text())["height"] == SIZE[0]


def test_many_visitors_add_at_once(tmp_path, sampler, samples):
    collection = Collection(tmp_path / "painted", LABELS, SIZE)
    threads = [threading.Thread(target=collection.add, args=([entry],)) for entry in samples * 3]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len((tmp_path / "painted" / "metadata.jsonl").read_text().splitlines()) == 2


def test_a_zip_is_such_a_folder_and_names_no_path_of_this_machine(tmp_path, sampler, samples):
    (tmp_path / "zip").mkdir()
    with zipfile.ZipFile(io.BytesIO(zip_of(samples, LABELS))) as archive:
        assert all(not name.startswith(("/", "..")) for name in archive.namelist())
        archive.extractall(tmp_path / "zip")
    Collection(tmp_path / "painted", LABELS, SIZE).add(samples)
    folders = tmp_path / "zip", tmp_path / "painted"
    for name in ("images", "masks"):
        one, other = ({path.name: path.read_bytes() for path in (folder / name).iterdir()} for folder in folders)
        assert one == other
    assert read_generated(tmp_path / "zip")[1] == read_generated(tmp_path / "painted")[1]


def test_a_zip_names_a_model_of_this_machine_by_its_last_part_only(tmp_path, samples):
    (tmp_path / "secret" / "run").mkdir(parents=True)
    place = {"model": str(tmp_path / "secret" / "run")}
    for entry in samples:
        entry.row.update(place)
        entry.record.update(place)
    try:
        with zipfile.ZipFile(io.BytesIO(zip_of(samples, LABELS))) as archive:
            for name in archive.namelist():
                assert b"secret" not in archive.read(name), name
            assert json.loads(archive.read("generation.json"))["model"] == "run"
    finally:
        for entry in samples:
            entry.row["model"] = entry.record["model"] = "unsaved"


# The page over HTTP --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("app")
    with served(folder) as address:
        yield address, folder


def test_a_program_generates_and_adds_over_http(place):
    address, folder = place
    how, answer = call(address, "generate", *arguments(images=2), session="visitor")
    assert how == "complete"
    gallery, _, download, _, message = answer
    assert message == "2 generated."
    seeds = [image_seed(0, STEM, index) for index in range(2)]
    assert [entry["caption"] for entry in gallery] == [f"0: {seeds[0]}", f"1: {seeds[1]}"]
    image = Image.open(io.BytesIO(httpx.get(gallery[0]["image"]["url"]).content))
    assert (image.format, image.size) == ("PNG", (16, 16))
    with zipfile.ZipFile(io.BytesIO(httpx.get(download["value"]["url"]).content)) as archive:
        assert "metadata.jsonl" in archive.namelist()
    assert call(address, "add", None, ["1"], session="visitor") == ("complete", ["1 added to painted; it holds 1."])
    assert call(address, "add", None, ["1"], session="other")[0] == "error"  # has generated nothing
    assert len(names(folder / "painted" / "images")) == 1
    assert call(address, "cancel", session="visitor") == ("complete", ["Cancelled: nothing is being generated.", True])


@pytest.mark.parametrize(
    "hostile",
    [
        {"steps": -1}, {"steps": 10**9}, {"steps": 1.5}, {"steps": "x"}, {"steps": float("nan")}, {"steps": None},
        {"guidance": float("nan")}, {"guidance": 1e9}, {"seed": -1}, {"seed": 10**30}, {"images": 0},
        {"images": 10**6},
        {"strength": float("nan"), "mode": REDRAW}, {"mode": "else"}, {"mode": EDIT}, {"attribute_guidance": -1},
        {"scheduler": "os.system"}, {"scheduler": "DDIMScheduler:num_train_timesteps=1000000000"},
        {"scheduler": ["a"]},
        {"mask": "x"}, {"mask": {}}, {"mask": {"height": 10**6, "width": 10**6, "runs": [0, 10**12]}},
        {"mask": {"height": 16, "width": 16, "runs": [77, 256]}},
        {"mask": {"height": 16, "width": 16, "runs": [0, -1]}},
        {"mode": REDRAW, "photo": {"picture": "/etc/passwd", "ids": [[0]]}},
    ],
    ids=str,
)  # fmt: skip
def test_hostile_values_are_refused_over_http(place, hostile):
    how, answer = call(place[0], "generate", *arguments(**hostile))
    assert how == "error"
    assert answer["error"] is None or not re.search("Traceback|site-packages|/tmp", answer["error"])


def test_uploads_come_as_masks_and_photos_and_hostile_ones_do_not(place):
    address, _ = place
    ids = draw_ids(3)
    how, answer = call(address, "load_mask", upload(address, "mask.png", file_of(LABELS.decode(ids))), False)
    assert (how, answer[0]["runs"]) == ("complete", pack_runs(ids))
    how, answer = call(address, "load_photo", upload(address, "photo.jpg", file_of(photo_of(1), "jpeg")))
    assert how == "complete"
    assert answer[0]["props"]["photo"].startswith("data:image/png;base64,")
    for kind in ("zip", "svg", "html", "huge"):
        how, answer = call(address, "load_mask", upload(address, "mask.png", HOSTILE[kind]), False)
        assert (how, "not an image in a supported format" in answer["error"] or "60000" in answer["error"]) == (
            "error",
            True,
        )
    how, answer = call(address, "load_mask", upload(address, "mask.png", file_of(photo_of(1))), False)
    assert (how, "colours that no class has" in answer["error"]) == ("error", True)
    how, answer = call(address, "load_photo_mask", upload(address, "a.png", file_of(LABELS.decode(ids))), False, None)
    assert (how, "load the photo first" in answer["error"]) == ("error", True)
    heavy = httpx.post(f"{address}gradio_api/upload", files={"files": ("mask.png", HOSTILE["heavy"])})
    assert heavy.status_code == 413


def test_a_mask_is_suggested_for_a_photo_corrected_and_taken_as_its_own(sampler, tmp_path):
    judge = load_judge(ROOT / DEFAULT_SEGMENTER, LABELS)
    handlers = Handlers(sampler, None, str(tmp_path), judge)
    _, photo, _, message = handlers.load_photo(file_of(photo_of(1)))
    assert "have one suggested" in message
    mask, suggested, message = handlers.suggest_mask(photo)
    assert "Correct it" in message
    pixels = torch.from_numpy(np.array(photo.image)).permute(2, 0, 1)[None]
    assert np.array_equal(suggested.ids, judge.read(pixels)[0].numpy())
    assert np.array_equal(unpack_mask(mask, LABELS, SIZE), suggested.ids)
    corrected = suggested.ids.copy()
    corrected[:4] = 2
    mask, taken, _ = handlers.accept_mask({**pack_mask(corrected), "photo": suggested.key}, suggested)
    assert np.array_equal(taken.ids, corrected)
    assert (taken.image, mask["photo"] == taken.key != suggested.key) == (photo.image, True)
    with pytest.raises(gr.Error, match="another photo"):
        handlers.accept_mask({**pack_mask(corrected), "photo": suggested.key}, taken)
    for call_it in (handlers.suggest_mask, lambda photo: handlers.accept_mask(pack_mask(corrected), photo)):
        with pytest.raises(gr.Error, match="load one first"):
            call_it(None)
    with pytest.raises(gr.Error, match="--segmenter"):
        Handlers(sampler, None, str(tmp_path)).suggest_mask(photo)


def test_the_network_that_comes_along_suggests_masks_of_its_classes_only(tmp_path, monkeypatch):
    camvid, other = (LabelSet.from_preset(name) for name in ("camvid", "bdd100k"))
    monkeypatch.chdir(ROOT)
    assert find_segmenter(AppSettings(), camvid, "cpu").not_judged == ()
    assert find_segmenter(AppSettings(), other, "cpu") is None
    assert find_segmenter(AppSettings(segmenter=DEFAULT_SEGMENTER), other, "cpu").name == DEFAULT_SEGMENTER
    assert find_segmenter(AppSettings(segmenter="off"), camvid, "cpu") is None
    monkeypatch.chdir(tmp_path)
    assert find_segmenter(AppSettings(), camvid, "cpu") is None


def test_no_file_of_the_machine_can_be_read_or_written(place, tmp_path):
    address, folder = place
    secret = tmp_path / "secret.png"
    LABELS.decode(draw_ids(1)).save(secret)
    for path in (
        secret,
        "/etc/passwd",
        "../../../../../../etc/passwd",
        "file:///etc/passwd",
        "http://127.0.0.1:9/a.png",
    ):
        given = {"path": str(path), "url": str(path), "meta": {"_type": "gradio.FileData"}}
        how, answer = call(address, "load_mask", given, False)
        assert (how, "not fetched" in str(answer)) == ("error", str(path).startswith("http"))
        for route in ("gradio_api/file=", "file=", "gradio_api/static/", "static/", "assets/", "gradio_api/proxy="):
            answer = httpx.get(f"{address}{route}{path}")
            assert answer.status_code >= 400 or "<html" in answer.text[:200], route
    for name in ("../../../evil.png", "/tmp/evil.png", "..\\..\\evil.png", "a/../../evil.png"):
        given = upload(address, name, file_of(LABELS.decode(draw_ids(1))))
        assert given["path"].startswith(str(folder / "files"))
        assert ".." not in Path(given["path"]).parts
        assert call(address, "load_mask", given, False)[0] == "complete"
    assert {path.name for path in folder.iterdir()} <= {"files", "painted"}


def test_nothing_is_sent_to_other_hosts_and_nobody_watches(place):
    config = httpx.get(f"{place[0]}config").json()
    assert config["analytics_enabled"] is False
    assert config["max_file_size"] == 1_000_000
    assert httpx.get(f"{place[0]}monitoring").status_code >= 400


OWN = ("127.0.0.1", "localhost", "[::1]:7860", "192.168.1.4:7860", socket.gethostname(), "proxy.test")
STRANGE = ("evil.test", "localhost.evil.test:7860", "127.0.0.1.evil.test", "")


@pytest.mark.parametrize(("host", "status"), [*((host, 200) for host in OWN), *((host, 421) for host in STRANGE)])
def test_the_page_answers_to_its_own_names_and_addresses_only(host, status):
    async def page(scope, receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    transport = httpx.ASGITransport(OwnHosts(page, ["proxy.test:8443", "::1"]))

    async def ask() -> httpx.Response:
        async with httpx.AsyncClient(transport=transport) as client:
            return await client.get("http://127.0.0.1/", headers={"host": host})

    answer = asyncio.run(ask())
    assert answer.status_code == status
    assert ("--allowed_hosts" in answer.text) == (status == 421)


def test_the_served_page_refuses_the_name_of_another_site(place):
    assert httpx.get(f"{place[0]}config", headers={"host": "evil.test"}).status_code == 421
    assert httpx.get(f"{place[0]}config").status_code == 200


# The command ---------------------------------------------------------------------------------------------------------


def test_a_missing_gradio_is_named_with_its_extra(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "gradio", None)
    for name in [name for name in sys.modules if name.startswith("semseg_diffusers.app")]:
        monkeypatch.delitem(sys.modules, name)
    assert cli.main(["app", "--model", "run"]) == 2
    assert "semseg-diffusers[app]" in capsys.readouterr().err


def test_without_a_model_the_first_that_comes_with_a_checkout_is_taken(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["app"]) == 2
    assert "Name a model: --model" in capsys.readouterr().err
    for name in ("demo/run", "checkpoints/toy", "checkpoints/camvid128", "checkpoints/camvid128-turbo"):
        tiny_pipeline().save_pretrained(tmp_path / name)
        assert find_model() == name


@pytest.mark.slow
@pytest.mark.parametrize("name", [None, "alice-painter.hf.space"], ids=["here", "hub"])
def test_a_space_serves_the_model_of_its_variable_and_leaves_nothing_behind(tmp_path, name):
    tiny_pipeline().save_pretrained(tmp_path / "run")
    (tmp_path / "temporary").mkdir()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    variables = {"MODEL_ID": str(tmp_path / "run"), "TMPDIR": str(tmp_path / "temporary"), "PYTHONPATH": str(ROOT)}
    if name is not None:  # as on the Hub, but for the address to listen on
        variables |= {"SPACE_ID": "alice/painter", "SPACE_HOST": name}
    process = subprocess.Popen(
        [sys.executable, str(ROOT / "examples/space/app.py"), "--port", str(port), "--host", "127.0.0.1"],
        env={**os.environ, **variables},
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert next(process.stdout).startswith("run on ")
        assert "Running on" in next(line for line in process.stdout if line.strip())
        address = f"http://127.0.0.1:{port}/"
        assert call(address, "generate", *arguments())[0] == "complete"
        for host, status in (("alice-painter.hf.space", 421 if name is None else 200), ("other.hf.space", 421)):
            assert httpx.get(address, headers={"host": host}).status_code == status
        assert "/add" not in httpx.get(f"{address}gradio_api/info").json()["named_endpoints"]  # --output off
    finally:
        process.terminate()
        process.wait(60)
    assert names(tmp_path) == ["run", "temporary"]
    assert names(tmp_path / "temporary") == []


def test_a_space_installs_what_the_package_needs():
    tomllib = pytest.importorskip("tomllib", reason="Python 3.11 and later read TOML")

    needed = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["dependencies"]
    lines = (ROOT / "examples/space/requirements.txt").read_text(encoding="utf-8").splitlines()
    assert [line for line in lines if not line.startswith("#")] == needed
    head = (ROOT / "examples/space/README.md").read_text(encoding="utf-8").split("---")[1]
    assert {"sdk: gradio", "app_file: app.py"} <= set(head.splitlines())


def test_a_port_in_use_is_named_with_the_option_that_chooses_another(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    tiny_pipeline().save_pretrained("run")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert cli.main(["app", "--model", "run", "--output", "off", "--port", str(port)]) == 2
    error = capsys.readouterr().err
    assert f"cannot listen on --host 127.0.0.1 --port {port}" in error
    assert "Try --port" in error


@pytest.mark.parametrize("host", ["203.0.113.7", "nowhere.invalid", "127.0.0.1:80"])
def test_a_wrong_host_is_named_and_no_other_port_suggested(host):
    with pytest.raises(ValueError, match="must be a name or an address of this machine") as error:
        check_address(host, 7860)
    assert "Try --port" not in str(error.value)


@pytest.mark.parametrize("host", ["::1", "[::1]"])
def test_the_page_is_served_at_an_ipv6_address_with_or_without_brackets(tmp_path, host):
    try:
        with socket.create_server(("::1", 0), family=socket.AF_INET6) as free:
            port = free.getsockname()[1]
    except OSError as err:
        pytest.skip(f"this machine has no IPv6: {err}")
    check_address(host, port)
    with served(tmp_path, host=host) as address:
        assert address.startswith("http://[::1]:")
        assert httpx.get(f"{address}config").status_code == 200


def test_the_page_starts_with_masks_of_the_dataset_where_a_label_set_has_no_street(tmp_path):
    labels = LabelSet(("drivable", "dynamic thing"), ((9, 9, 9), (1, 2, 3)))
    (tmp_path / "run").mkdir()
    examples, shapes = starting_masks(AppSettings(), [str(tmp_path / "run")], labels, SIZE)
    assert (examples, shapes) == ({}, [])  # and the page says that nothing is painted yet
    ids = np.zeros(SIZE, dtype=np.uint8)
    ids[4:8, 4:8] = 1
    folder = tmp_path / "data" / "val" / "masks"
    folder.mkdir(parents=True)
    labels.decode(ids).save(folder / "a.png")
    settings = {"dataset": str(tmp_path / "data"), "validation_split": "val", "train_split": "train"}
    (tmp_path / "run" / "settings.json").write_text(json.dumps(settings))
    examples, _ = starting_masks(AppSettings(), [str(tmp_path / "run")], labels, SIZE)
    assert list(examples) == ["a"]
    assert np.array_equal(examples["a"], ids)
    assert list(starting_masks(AppSettings(), [str(tmp_path / "run")], CAMVID, SIZE)[0])[0] == "plain street"


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--port", "0"], "--port must be between 1 and 65535"),
        (["--max_steps", "0"], "--max_steps must be more than 0; got 0"),
        (["--seed", "-1"], "--seed must be between 0 and"),
        (["--model", "nowhere"], "nowhere"),
        (["--masks", "nowhere"], "nowhere"),
        (["--device", "abacus"], "--device abacus cannot be used here"),
        (["--output", "run"], "was not made by the painter"),
        (["--allowed_hosts", "https://proxy.test"], "--allowed_hosts 'https://proxy.test': expected a name"),
        (["--allowed_hosts", ":80"], "--allowed_hosts ':80': expected a name"),
    ],
)
def test_wrong_options_are_one_line_before_the_page_is_served(tmp_path, monkeypatch, capsys, options, expected):
    monkeypatch.chdir(tmp_path)
    tiny_pipeline().save_pretrained("run")
    assert cli.main(["app", "--model", "run", *options]) == 2
    assert expected in capsys.readouterr().err
    assert names(tmp_path) == ["run"]
