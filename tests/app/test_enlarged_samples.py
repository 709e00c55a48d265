"""The painter with an upscaler: large masks, samples that are shown small first, and the files of `generate`."""

import base64
import io
import json
import zipfile
from dataclasses import replace

import gradio as gr
import numpy as np
import pytest
from app.test_app import last_live, photo_of
from helpers.app_place import LIMITS, arguments, few_step_sampler
from helpers.generation_places import LABELS, draw_ids, names, pixels, tiny_pipeline, tiny_upscaler
from PIL import Image

from semseg_diffusers import cli
from semseg_diffusers.app.app import find_upscaler, starting_masks
from semseg_diffusers.app.collection import Collection
from semseg_diffusers.app.handlers import Handlers
from semseg_diffusers.app.inputs import pack_mask
from semseg_diffusers.app.page import build_page
from semseg_diffusers.app.sampler import EDIT, MODES, NOISE, REDRAW, STEM, Photo, Sampler, SamplingRequest
from semseg_diffusers.app.settings import DEFAULT_UPSCALER, AppSettings
from semseg_diffusers.app.shapes import drawn_shapes, plain_street
from semseg_diffusers.generation.generate import generate_dataset
from semseg_diffusers.generation.output_folder import read_metadata
from semseg_diffusers.generation.settings import EditSettings, GenerationSettings, Inputs
from semseg_diffusers.pipelines.mask_inputs import resize_ids


LARGE = (32, 32)  # height, width
STREET = plain_street(LABELS, LARGE)
FEW = SamplingRequest(num_images=1, num_inference_steps=2, guidance_scale=1.0, seed=5)
VISITOR = gr.Request(session_hash="visitor")


@pytest.fixture(scope="module")
def sampler():
    return Sampler(tiny_pipeline(), LIMITS, tiny_upscaler(), "runs/upscaler")


@pytest.fixture
def handlers(tmp_path, sampler):
    return Handlers(sampler, Collection(tmp_path / "painted", LABELS, LARGE), str(tmp_path / "files"))


@pytest.fixture
def layers(sampler):
    """Call functions with no arguments at the first layer of each step of the upscaler; the fixture counts these."""
    calls, steps = [], []

    def before_layer(*_) -> None:
        steps.append(len(steps))
        for each in calls:
            each()

    hook = sampler.upscaler.unet.conv_in.register_forward_pre_hook(before_layer)
    yield calls, steps
    hook.remove()


def changed_street() -> np.ndarray:
    ids = STREET.copy()
    ids[17:22, 9:15] = LABELS.label2id["car"]
    return ids


def generate(handlers: Handlers, on_step=lambda *_, **__: None, **options) -> list[tuple]:
    given = arguments(mask=pack_mask(STREET), **options)
    return list(handlers.generate(VISITOR, *given, progress=on_step))


def live_arguments(stroke: int) -> list:
    return arguments(mask={**pack_mask(STREET), "stroke": stroke})


def image_of(live: dict) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(live["image"].partition(",")[2])))


# Samples -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", MODES)
def test_a_sample_is_what_generate_makes_with_the_upscaler_from_the_same_seed(sampler, mode, tmp_path):
    photo, ids = Photo(photo_of(1, LARGE), STREET), changed_street()
    for folder in ("photos/images", "photos/masks", "new"):
        (tmp_path / folder).mkdir(parents=True)
    photo.image.save(tmp_path / "photos" / "images" / f"{STEM}.png")
    LABELS.decode(STREET).save(tmp_path / "photos" / "masks" / f"{STEM}.png")
    LABELS.decode(ids).save(tmp_path / "new" / f"{STEM}.png")
    settings = GenerationSettings(
        num_inference_steps=2, guidance_scale=1.0, seed=5,
        strength=0.5 if mode == REDRAW else None, edit=EditSettings() if mode == EDIT else None,
    )  # fmt: skip
    inputs = Inputs(
        photos=None if mode == NOISE else tmp_path / "photos", upscaler=tiny_upscaler(), upscaler_name="runs/upscaler"
    )
    generate_dataset(tiny_pipeline(), tmp_path / "new", tmp_path / "out", settings, inputs=inputs)
    _, sample = sampler.generate(ids, replace(FEW, mode=mode), photo)
    assert np.array_equal(np.asarray(sample.image), pixels(tmp_path / "out" / "images" / f"{STEM}_0.png"))
    assert np.array_equal(sample.ids, pixels(tmp_path / "out" / "masks" / f"{STEM}_0.png"))
    (row,) = read_metadata(tmp_path / "out")
    assert (row["upscaler"], row["upscaler_steps"], row["noise_level"]) == ("runs/upscaler", 3, 7)
    own = {"stem", "image_file_name", "mask_file_name", "source_mask", "source_photo", "image_sha256"}
    assert {key: sample.row[key] for key in row.keys() - own} == {key: row[key] for key in row.keys() - own}


def test_the_small_image_comes_first_and_is_what_the_model_alone_makes_of_the_reduced_mask(sampler):
    small = Sampler(tiny_pipeline(), LIMITS)
    found = list(sampler.generate(STREET, replace(FEW, num_images=2)))
    assert [(each.image.size, each.is_preview) for each in found] == [((16, 16), True), ((32, 32), False)] * 2
    alone = list(small.generate(resize_ids(STREET, 16, 16), replace(FEW, num_images=2)))
    for preview, sample, other in zip(found[::2], found[1::2], alone, strict=True):
        assert np.array_equal(np.asarray(preview.image), np.asarray(other.image))
        assert preview.row == sample.row
        assert sample.ids.shape == LARGE


def test_an_edit_keeps_every_large_pixel_outside_of_it(sampler):
    photo, ids = Photo(photo_of(1, LARGE), STREET), STREET.copy()
    ids[17, 9] = LABELS.label2id["car"]  # in the small pixel 8, 4
    _, sample = sampler.generate(ids, replace(FEW, mode=EDIT), photo)
    different = (np.asarray(sample.image) != np.asarray(photo.image)).any(axis=-1)
    region = np.zeros(LARGE, dtype=bool)
    region[8:26, 0:18] = True  # four small pixels around
    assert different.any()
    assert not different[~region].any()


def test_steps_of_both_stages_are_counted_together(sampler):
    reported = []
    list(sampler.generate(STREET, replace(FEW, num_images=2), None, lambda *numbers: reported.append(numbers)))
    assert reported == [(index, step, 5) for index in range(2) for step in range(1, 6)]


def test_no_more_steps_are_taken_to_enlarge_than_the_limit(sampler):
    limited = Sampler(sampler.pipeline, replace(LIMITS, max_steps=2), sampler.upscaler, "runs/upscaler")
    *_, sample = limited.generate(STREET, FEW)
    assert sample.row["upscaler_steps"] == 2


# The page ------------------------------------------------------------------------------------------------------------


def test_the_large_image_takes_the_place_of_the_small_one_and_only_it_can_be_kept(handlers, tmp_path):
    *meanwhile, (_, samples, download, keep, message) = generate(handlers, images=2)
    sizes = [[Image.open(path).size for path, _ in gallery] for gallery, *_ in meanwhile]
    small, large = (16, 16), LARGE
    assert sizes == [[small], [large], [large, small], [large, large]]
    captions = [[caption for _, caption in gallery] for gallery, *_ in meanwhile]
    assert captions[0] == captions[1] == captions[2][:1]
    assert meanwhile[2][-1] == "1 of 2 generated, the next is being enlarged"
    assert (download.interactive, keep.value, message) == (True, ["0", "1"], "2 generated.")
    assert handlers.add(samples, keep.value) == "2 added to painted; it holds 2."
    assert handlers.add(samples, keep.value) == "0 added to painted, 2 were already there; it holds 2."
    for row in read_metadata(tmp_path / "painted"):
        assert Image.open(tmp_path / "painted" / row["image_file_name"]).size == LARGE
        assert np.array_equal(pixels(tmp_path / "painted" / row["mask_file_name"]), STREET)
        assert (row["upscaler"], row["upscaler_steps"], row["noise_level"]) == ("runs/upscaler", 3, 7)


def test_a_dataset_of_small_images_takes_no_large_ones(tmp_path):
    (sample,) = Sampler(tiny_pipeline(), LIMITS).generate(draw_ids(1), FEW)
    Collection(tmp_path / "painted", LABELS, (16, 16)).add([sample])
    with pytest.raises(ValueError, match=r"\(16 x 16; what is kept now is 32 x 32\). .* another --upscaler"):
        Collection(tmp_path / "painted", LABELS, LARGE)


def test_a_download_names_no_folder_of_the_upscaler(tmp_path):
    (tmp_path / "secret" / "large").mkdir(parents=True)
    sampler = Sampler(tiny_pipeline(), LIMITS, tiny_upscaler(), str(tmp_path / "secret" / "large"))
    *_, (_, _, download, *_) = generate(Handlers(sampler, None, str(tmp_path / "files")))
    with zipfile.ZipFile(download.value["path"] if isinstance(download.value, dict) else download.value) as archive:
        assert all(b"secret" not in archive.read(name) for name in archive.namelist())
        assert json.loads(archive.read("generation.json"))["upscaler"] == "large"


def test_a_sample_that_is_cancelled_while_it_is_enlarged_is_neither_shown_nor_kept(handlers, layers):
    calls, steps = layers
    calls.append(lambda: handlers.cancel(VISITOR) if len(steps) == 4 else None)  # the first step of the second sample
    *_, (gallery, samples, download, _, message) = generate(handlers, images=3)
    assert message == "Cancelled; 1 of 3 generated."
    assert (len(gallery), len(samples), download.interactive, len(steps)) == (1, 1, True, 4)
    steps.clear()
    calls[0] = lambda: handlers.cancel(VISITOR)
    *_, (gallery, samples, download, _, message) = generate(handlers, images=3)
    assert message == "Cancelled; 0 of 3 generated."
    assert (gallery, samples, download.interactive, len(steps)) == ([], [], False, 1)


def test_the_live_photo_is_shown_small_and_then_large(handlers, sampler):
    small, large = (answer["live"] for answer in handlers.generate_live(VISITOR, *live_arguments(3)))
    expected = list(sampler.generate(STREET, replace(FEW, seed=0)))
    for live, sample in zip((small, large), expected, strict=True):
        assert (live["stroke"], live["isPreview"]) == (3, sample.is_preview)
        assert np.array_equal(np.asarray(image_of(live)), np.asarray(sample.image))


def test_a_newer_stroke_drops_the_enlarging_of_the_live_photo_within_a_step(handlers, sampler, layers):
    calls, steps = layers
    finished = []
    calls.append(lambda: handlers.supersede(VISITOR, {"stroke": 5}))
    hook = sampler.upscaler.unet.conv_out.register_forward_pre_hook(lambda *_: finished.append(True))
    answers = list(handlers.generate_live(VISITOR, *live_arguments(4)))
    assert answers[0]["live"]["isPreview"]
    assert answers[1:] == [gr.skip()]
    assert (len(steps), finished) == (1, [])
    calls.clear()
    assert not last_live(handlers, VISITOR, *live_arguments(5))["live"]["isPreview"]
    assert len(finished) == 3
    hook.remove()


def test_the_page_paints_at_the_large_size_and_names_model_and_upscaler(sampler):
    page = build_page(sampler, None, {"plain street": STREET}, drawn_shapes(LABELS, LARGE[0]), "tiny")
    texts = [block.value for block in page.blocks.values() if isinstance(block, gr.Markdown)]
    facts = "tiny · 16 × 16 pixels (height × width) · 20 steps · enlarged to 32 × 32 by runs/upscaler"
    assert any(facts in text for text in texts)
    canvas = next(block for block in page.blocks.values() if isinstance(block, gr.HTML) and "memory" in block.props)
    assert (canvas.props["height"], canvas.props["width"], canvas.props["upscaler"]) == (*LARGE, "runs/upscaler")
    assert canvas.props["examples"] == [{"name": "plain street", **pack_mask(STREET)}]


def test_drawing_while_one_paints_depends_on_the_model_that_generates():
    assert few_step_sampler(upscaler=tiny_upscaler()).is_quick


def test_objects_for_large_masks_have_their_usual_height_in_pixels():
    heights = {shape.name: shape.ids.shape[0] for shape in drawn_shapes(LABELS, 1000)}
    assert 160 <= heights["car"] < 320
    assert max(shape.ids.shape[0] for shape in drawn_shapes(LABELS)) <= 96


# The command ---------------------------------------------------------------------------------------------------------


def test_the_upscaler_that_comes_along_enlarges_models_of_its_classes_only(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    pipeline = tiny_pipeline()
    assert find_upscaler(AppSettings(), pipeline) == (None, "")
    other = replace(LABELS, names=("road", "sky", "car", "person", "tree"))
    tiny_upscaler(other).save_pretrained(DEFAULT_UPSCALER)
    assert find_upscaler(AppSettings(), pipeline) == (None, "")
    with pytest.raises(ValueError, match="has other classes"):
        find_upscaler(AppSettings(upscaler=DEFAULT_UPSCALER), pipeline)
    tiny_upscaler().save_pretrained(DEFAULT_UPSCALER)
    upscaler, name = find_upscaler(AppSettings(), pipeline)
    assert (upscaler.unet.config.upscale_factor, name) == (2, DEFAULT_UPSCALER)
    assert find_upscaler(AppSettings(upscaler="off"), pipeline) == (None, "")


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--upscaler", "run"], "is no upscaler"),
        (["--upscaler", "nowhere"], "nowhere"),
        (["--upscaler_revision", "main"], "--upscaler_revision: only with --upscaler"),
        (["--upscaler", "off", "--upscaler_revision", "main"], "--upscaler_revision: only with --upscaler"),
    ],
)
def test_wrong_upscalers_are_one_line_before_the_page_is_served(tmp_path, monkeypatch, capsys, options, expected):
    monkeypatch.chdir(tmp_path)
    tiny_pipeline().save_pretrained("run")
    assert cli.main(["app", "--model", "run", *options]) == 2
    assert expected in capsys.readouterr().err
    assert names(tmp_path) == ["run"]


def test_the_page_starts_with_masks_of_the_dataset_of_the_upscaler(tmp_path):
    runs = [str(tmp_path / "upscaler"), str(tmp_path / "model")]
    for seed, run in enumerate(runs):
        folder = tmp_path / f"data{seed}" / "val" / "masks"
        folder.mkdir(parents=True)
        LABELS.decode(draw_ids(seed, LARGE)).save(folder / f"mask{seed}.png")
        settings = {"dataset": str(tmp_path / f"data{seed}"), "validation_split": "val", "train_split": "train"}
        (tmp_path / run).mkdir()
        (tmp_path / run / "settings.json").write_text(json.dumps(settings))
    assert list(starting_masks(AppSettings(), runs, LABELS, LARGE)[0]) == ["plain street", "mask0"]
    assert list(starting_masks(AppSettings(), ["nowhere", *runs[1:]], LABELS, LARGE)[0]) == ["plain street", "mask1"]
